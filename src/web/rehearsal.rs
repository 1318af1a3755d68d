//! The rehearsal of what people see. An app that is checked tries its forms, figures, fragments and page on a state in
//! memory, and so finds names that aren't there and SQL that can't be right before anybody opens the page.
//!
//! The state is empty at first, and then has rows of made-up events. The page's parameters are empty, too. So a refusal, a
//! query without an answer and a panic of the author's code prove nothing, and are passed over.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::face::{Face, Figure, Fragment, Unmade};
use super::live::{drawn, status_fragment};
use super::status::StatusLine;
use super::{Html, Page, Params, Render, Sees};
use crate::engine::{DbError, EventId, Rehearsed};

/// What is wrong with a part of an app.
pub(crate) enum Flaw {
    /// With a form, a fragment or a figure.
    Part { what: &'static str, name: &'static str, why: String },
    /// With the page.
    Page(String),
}

/// What people see of an app, while it is tried.
pub(crate) struct Rehearsal<'a> {
    face: &'a Arc<Face>,
    /// Fragments that panicked. Each panic is written to standard error, and once is enough.
    given_up: HashSet<&'static str>,
}

impl<'a> Rehearsal<'a> {
    pub(crate) fn new(face: &'a Arc<Face>) -> Self {
        Self { face, given_up: HashSet::new() }
    }

    /// Tries it on a state.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub(crate) fn run(&mut self, state: &Rehearsed<'_>) -> Result<(), Flaw> {
        if state.is_empty {
            self.try_forms(state)?;
            self.try_figures(state)?;
            self.try_embed(state)?;
        }
        let mut fragments = HashMap::new();
        for fragment in &self.face.fragments {
            let html = match self.given_up.contains(fragment.name) {
                true => None,
                false => self.try_fragment(fragment, state)?,
            };
            fragments.insert(fragment.name, html.unwrap_or_default());
        }
        // The fragments are all that the state changes about it.
        if state.is_empty { self.try_page(fragments) } else { Ok(()) }
    }

    fn try_forms(&self, state: &Rehearsed<'_>) -> Result<(), Flaw> {
        match self.face.forms.iter().find(|form| !state.knows(form.event)) {
            Some(form) => {
                let why = format!("no materializer takes its event {}; add one to the schema with `on`", form.event);
                Err(Flaw::Part { what: "form", name: form.name, why })
            }
            None => Ok(()),
        }
    }

    /// A figure has no parameters, so it has to have a number in a new store.
    fn try_figures(&self, state: &Rehearsed<'_>) -> Result<(), Flaw> {
        self.face.figures.iter().try_for_each(|figure| try_figure(figure, state))
    }

    /// What is embedded has no fields, and a count in a new store.
    fn try_embed(&self, state: &Rehearsed<'_>) -> Result<(), Flaw> {
        let Some(embed) = &self.face.embed else { return Ok(()) };
        let flaw = |why: String| Err(Flaw::Part { what: "event to embed", name: embed.form.event, why });
        if !state.knows(embed.form.event) {
            return flaw("no materializer takes it; add one to the schema with `on`".to_owned());
        }
        match embed.event(EventId::now()) {
            Err(Unmade::Misfit(misfit)) => {
                return flaw(format!("it can't be made without fields: {}", misfit.sentence()));
            }
            Err(Unmade::Malformed(why)) => return flaw(why.to_string()),
            Ok(_) | Err(Unmade::Refused(_)) => {}
        }
        try_figure(&embed.figure, state)
    }

    /// Gives the fragment's HTML, if it has any on this state.
    fn try_fragment(&mut self, fragment: &Fragment, state: &Rehearsed<'_>) -> Result<Option<Html>, Flaw> {
        let name = fragment.name;
        let flaw = |why: String| Flaw::Part { what: "fragment", name, why };
        let asked = match catch_unwind(AssertUnwindSafe(|| fragment.ask(&Params::default()))) {
            Ok(Ok(asked)) => asked,
            Ok(Err(_)) => return Ok(None),
            Err(_) => {
                self.given_up.insert(name);
                return Ok(None);
            }
        };
        let draw = match asked.rehearse(state).map_err(|why| flaw(why.to_string()))? {
            Ok(draw) => draw,
            Err(why) => {
                // A panic comes as a refusal.
                if matches!(why, DbError::Refused(_)) {
                    self.given_up.insert(name);
                }
                return Ok(None);
            }
        };
        let render = Render::for_page(self.face, "");
        let html = drawn(asked.key(), draw, render.clone());
        if html.is_err() {
            self.given_up.insert(name);
        }
        match render.unknown() {
            Some(unknown) => Err(flaw(unknown)),
            None => Ok(html.ok()),
        }
    }

    fn try_page(&self, fragments: HashMap<&'static str, Html>) -> Result<(), Flaw> {
        let status = status_fragment(StatusLine::default()).map_err(Flaw::Page)?;
        let render = Render::for_page(self.face, "");
        let page =
            Page::new(self.face.store.to_owned(), Params::default(), fragments, status, Sees::All, render.clone());
        // What it can't draw without parameters is none of our business.
        drop(catch_unwind(AssertUnwindSafe(|| self.face.draw(&page))));
        render.unknown().map_or(Ok(()), |unknown| Err(Flaw::Page(unknown)))
    }
}

fn try_figure(figure: &Figure, state: &Rehearsed<'_>) -> Result<(), Flaw> {
    let Ok(query) = catch_unwind(AssertUnwindSafe(|| (figure.query)())) else { return Ok(()) };
    state.answer(&query).and_then(|answer| answer.map(drop)).map_err(|why| Flaw::Part {
        what: "figure",
        name: figure.name,
        why: why.to_string(),
    })
}
