//! What the web floor shows of an app: its forms, fragments, page and figures, each with its types erased.

use std::sync::Arc;

use axum::Router;
use serde::de::DeserializeOwned;

use super::html::{Html, IntoHtml};
use super::{Page, Params, Refusal, Render, Visitor};
use crate::engine::{Envelope, Event, EventId, Query};

/// What people see of an app.
pub(crate) struct Face {
    pub(crate) name: &'static str,
    pub(crate) nouns: Nouns,
    pub(crate) forms: Vec<Form>,
    pub(crate) fragments: Vec<Fragment>,
    pub(crate) page: Option<Arc<DrawPage>>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) routes: Router,
}

/// Makes the page's HTML.
pub(crate) type DrawPage = dyn Fn(Page) -> Result<Html, String> + Send + Sync;

/// What one event is called, and several.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nouns {
    pub(crate) one: &'static str,
    pub(crate) many: &'static str,
}

/// A number that an app shows.
#[derive(Clone)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) query: Arc<dyn Fn() -> Query<u64> + Send + Sync>,
}

/// A form, which becomes an event.
pub(crate) struct Form {
    pub(crate) name: &'static str,
    /// Whether its event depends on who posts.
    pub(crate) asks_who: bool,
    #[expect(dead_code, reason = "forms are served next")]
    make: Arc<dyn Fn(&str, &Visitor, EventId) -> Result<Envelope, Refusal> + Send + Sync>,
}

/// A piece of HTML that follows a query.
pub(crate) struct Fragment {
    pub(crate) name: &'static str,
}

impl Face {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            nouns: Nouns { one: "event", many: "events" },
            forms: Vec::new(),
            fragments: Vec::new(),
            page: None,
            figures: Vec::new(),
            routes: Router::new(),
        }
    }
}

impl Form {
    pub(crate) fn new<E: Event>(name: &'static str) -> Self {
        let make = |_: &str, _: &Visitor, _: EventId| Err(Refusal::new("not yet"));
        Self { name, asks_who: false, make: Arc::new(make) }
    }

    pub(crate) fn with<F, E>(
        name: &'static str,
        make: impl Fn(F, &Visitor) -> Result<E, Refusal> + Send + Sync + 'static,
    ) -> Self
    where
        F: DeserializeOwned + 'static,
        E: Event,
    {
        drop(make);
        Self { asks_who: true, ..Self::new::<E>(name) }
    }
}

impl Fragment {
    pub(crate) fn new<T, H, M>(
        name: &'static str,
        query: impl Fn(&Params) -> Result<Query<T>, Refusal> + Send + Sync + 'static,
        render: impl Fn(T, Render) -> H + Send + Sync + 'static,
    ) -> Self
    where
        H: IntoHtml<M>,
    {
        drop((query, render));
        Self { name }
    }
}

impl Nouns {
    /// The noun for `number` of them.
    pub(crate) fn of(self, number: u64) -> &'static str {
        if number == 1 { self.one } else { self.many }
    }
}
