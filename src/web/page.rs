//! The page of a store: what its author draws it with, and `GET /`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};

use askama::Template;
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::request;
use axum::response::{IntoResponse, Redirect, Response};

use super::face::{Answers, Draw, Face, FragmentKey};
use super::problem::Problem;
use super::status::StatusLine;
use super::typed::{self, Filled};
use super::views::{View, links};
use super::{App, AskedStore, Html, IntoHtml as _, Opened, Params, Sees, Services, live};
use crate::engine::{Error, EventId, Store};

/// What fragments and pages are drawn with: the addresses of the store's forms and files, and the ids of forms.
#[derive(Clone)]
pub struct Render {
    face: Arc<Face>,
    base: Arc<str>,
    ids: Ids,
    /// Names that an author used and that don't exist.
    unknown: Arc<Mutex<Vec<String>>>,
}

/// Where the ids of forms come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// The server makes one for each form, because the page is for one person.
    Fresh,
    /// The script makes them. A fragment on the stream is one text for everybody: with an id in it, the posts of two
    /// people would count as one.
    Script,
}

impl Render {
    /// For a fragment that goes to every page that has it.
    pub(crate) fn for_stream(face: &Arc<Face>, base: &str) -> Self {
        Self { face: Arc::clone(face), base: base.into(), ids: Ids::Script, unknown: Arc::default() }
    }

    /// For one page.
    pub(crate) fn for_page(face: &Arc<Face>, base: &str) -> Self {
        Self { ids: Ids::Fresh, ..Self::for_stream(face, base) }
    }

    /// Where the form `name` posts to, in this store.
    pub fn to(&self, name: &str) -> String {
        if !self.face.forms.iter().any(|form| form.name == name) {
            self.note(format!("there is no form named `{name}`"));
        }
        [&self.base, "/", name].concat()
    }

    /// The hidden field that makes each post of a form count once. Put it into every form.
    pub fn id(&self) -> Html {
        match self.ids {
            Ids::Fresh => Html::trusted(format!(
                "<input type=\"hidden\" name=\"id\" value=\"{}\" autocomplete=\"off\">",
                EventId::now()
            )),
            Ids::Script => Html::default(),
        }
    }

    /// The address of a static file: one that the app added with [`App::asset`](crate::App::asset), or one that every
    /// program has. It changes with the file, so browsers may keep the file for ever.
    pub fn asset(&self, file: &str) -> String {
        if self.face.assets.find(file).is_none() {
            self.note(format!("there is no asset named `{file}`"));
        }
        self.face.asset(file)
    }

    /// What the addresses of this store begin with: the program's base path, then `/s/NAME` unless it is the app's first
    /// store.
    pub fn base(&self) -> &str {
        &self.base
    }

    fn note(&self, what: String) {
        self.unknown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(what);
    }

    /// The first name that an author used and that doesn't exist.
    pub(crate) fn unknown(&self) -> Option<String> {
        self.unknown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).first().cloned()
    }
}

impl fmt::Debug for Render {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Render").field("base", &self.base).field("ids", &self.ids).finish_non_exhaustive()
    }
}

/// A handler of an app's own routes gets what addresses in the store that was asked for are made with.
impl<S: Send + Sync> FromRequestParts<S> for Render {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Response> {
        let app = Services::of(parts).map_err(Problem::into_response)?;
        let asked = AskedStore::from_request_parts(parts, &app).await.map_err(Problem::into_response)?;
        Ok(Self::for_page(&app.face, asked.base()))
    }
}

/// A page that is being drawn: the store that it shows, and every fragment as it is now.
#[derive(Clone)]
pub struct Page {
    parts: Arc<Parts>,
}

struct Parts {
    store: String,
    params: Params,
    fragments: HashMap<&'static str, Html>,
    status: Html,
    views: Html,
    render: Render,
}

/// What the program needs in a page's `<head>`.
#[derive(Template)]
#[template(path = "head.html")]
struct Head<'a> {
    face: &'a Face,
    base: &'a str,
    forms: String,
}

impl Page {
    pub(crate) fn new(
        store: String,
        params: Params,
        fragments: HashMap<&'static str, Html>,
        status: Html,
        sees: Sees,
        render: Render,
    ) -> Self {
        let views = match sees {
            Sees::All | Sees::TheViews => links(&render.face, &render.base, View::Page),
            Sees::ThePage => Html::default(),
        };
        Self { parts: Arc::new(Parts { store, params, fragments, status, views, render }) }
    }

    /// What belongs in the page's `<head>`: character set, viewport, the common style and script.
    pub fn head(&self) -> Html {
        let Render { face, base, .. } = &self.parts.render;
        let forms: Vec<_> = face.forms.iter().map(|form| form.name).collect();
        let head = Head { face, base, forms: forms.join(" ") };
        head.into_html().expect("BUG: a template of text and names can't fail")
    }

    /// The fragment `name` as it is now. The script keeps it up to date.
    pub fn live(&self, name: &str) -> Html {
        self.parts.fragments.get(name).cloned().unwrap_or_else(|| {
            self.parts.render.note(format!("there is no fragment named `{name}`"));
            Html::default()
        })
    }

    /// The line that says how the store is and whether it is in sync. The script keeps it up to date.
    pub fn status(&self) -> Html {
        self.parts.status.clone()
    }

    /// Links to the program's own views of the store: its history and the other stores. Nothing for strangers, who may not
    /// see these. A paired browser is no stranger.
    pub fn views(&self) -> Html {
        self.parts.views.clone()
    }

    /// A line for messages of the script. The script also has screen readers say them.
    pub fn message(&self) -> Html {
        Html::trusted("<p id=\"message\" class=\"message\" data-message></p>")
    }

    /// The page's `<title>`: `title`, and before it the summary that a fragment gives in an attribute, as in
    /// `<p data-summary="42 likes">`. The script keeps the title up to date, and has screen readers say the summary, at most
    /// every few seconds.
    pub fn title(&self, title: &str) -> Html {
        let title = Html::text(title);
        let fragments = &self.parts.render.face.fragments;
        let summary = fragments.iter().find_map(|fragment| summary(self.parts.fragments.get(fragment.name)?.as_str()));
        let (summary, point) = summary.map_or(("", ""), |summary| (summary, " · "));
        let title = title.as_str();
        Html::trusted(["<title data-title=\"", title, "\">", summary, point, title, "</title>"].concat())
    }

    /// Where the form `name` posts to.
    pub fn to(&self, name: &str) -> String {
        self.parts.render.to(name)
    }

    /// The hidden field that makes each post of a form count once. Put it into every form.
    pub fn id(&self) -> Html {
        self.parts.render.id()
    }

    /// What a part of the page is drawn with when a fragment uses it, too.
    pub fn render(&self) -> Render {
        self.parts.render.clone()
    }

    /// The first parameter called `name` in the page's address, or an empty text.
    pub fn param(&self, name: &str) -> String {
        self.parts.params.first(name)
    }

    /// The parameters in the page's address.
    pub fn params(&self) -> &Params {
        &self.parts.params
    }

    /// The store's name.
    pub fn store(&self) -> &str {
        &self.parts.store
    }

    /// What the addresses of this store begin with: the program's base path, then `/s/NAME` unless it is the app's first
    /// store.
    pub fn base(&self) -> &str {
        self.parts.render.base()
    }

    /// The address of a static file: one that the app added with [`App::asset`](crate::App::asset), or one that every
    /// program has. It changes with the file, so browsers may keep the file for ever.
    pub fn asset(&self, file: &str) -> String {
        self.parts.render.asset(file)
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("store", &self.parts.store).finish_non_exhaustive()
    }
}

/// Returns the summary that a fragment gives, still escaped.
fn summary(fragment: &str) -> Option<&str> {
    let (_, rest) = fragment.split_once(" data-summary=\"")?;
    rest.split_once('"').map(|(summary, _)| summary).filter(|summary| !summary.is_empty())
}

/// `GET /`
///
/// A page that uses no parameters has one address, the one that a form's redirect leads to. A browser that goes back to
/// another address may show the old page from its cache. That page's id was posted already, so a new post would count
/// for nothing.
pub(crate) async fn page(
    State(app): State<App>,
    sees: Sees,
    Opened { asked, store, link, .. }: Opened,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let params = Params::new(query.as_deref().unwrap_or_default());
    let health = store.healthy().await;
    let status = StatusLine::of(&app.face, &health, &link.borrow(), asked.base(), sees);
    let page = draw(&app, &store, asked.base(), status, sees, params).await?;
    let (html, page) = page;
    if query.is_some() && !page.parts.params.are_read() {
        return Ok(Redirect::to(&asked.home()).into_response());
    }
    if let Some(unknown) = page.parts.render.unknown() {
        return Err(Problem::internal(format_args!("the page: {unknown}")));
    }
    Ok(html.into_page())
}

/// The fields of the forms that post to `action`, on the page at `address` or else on the store's own page. Empty when
/// that page can't be drawn.
pub(crate) async fn fields(
    app: &Services,
    Opened { asked, store, .. }: &Opened,
    address: &str,
    action: &str,
) -> BTreeMap<String, Filled> {
    let (path, query) = address.split_once('?').unwrap_or((address, ""));
    let params = Params::new(if path == asked.home() { query } else { "" });
    match draw(app, store, asked.base(), StatusLine::default(), Sees::ThePage, params).await {
        Ok((html, _)) => typed::fields(html.as_str(), action),
        Err(_) => BTreeMap::new(),
    }
}

async fn draw(
    app: &Services,
    store: &Store,
    base: &str,
    status: StatusLine,
    sees: Sees,
    params: Params,
) -> Result<(Html, Page), Problem> {
    let malformed = |why: super::Refusal| {
        let advice = "Check the address for typing errors, or go to the start page.";
        Problem::bad_request("malformed-parameter", super::sentence(why.why()), advice)
    };
    let asked = app.face.ask(&params).map_err(malformed)?;
    let mut following: Vec<_> = asked.iter().map(|asked| (asked.key().clone(), asked.follow(store))).collect();
    for (_, answers) in &mut following {
        answers.answered().await?;
    }
    let render = Render::for_page(&app.face, base);
    let mut fragments = HashMap::new();
    for (key, answer) in at_one_moment(store, following) {
        let drawn = match answer {
            Ok(draw) => live::drawn(&key, draw, render.clone()),
            Err(Error::Query(why)) => Err(why),
            Err(error) => return Err(error.into()),
        };
        let html = drawn.unwrap_or_else(|why| {
            tracing::error!(fragment = key.name, why, "a fragment can't be shown");
            key.wrap(&Html::trusted("<span class=\"trouble\">This part can’t be shown now.</span>"))
        });
        fragments.insert(key.name, html);
    }
    let status = live::status_fragment(status).map_err(Problem::internal)?;
    let store = store.id().as_str().to_owned();
    let page = Page::new(store, params, fragments, status, sees, render);
    let html = app.face.draw(&page).map_err(Problem::internal)?;
    Ok((html, page))
}

/// The answers at one moment between two commits, so the page never shows half a commit.
fn at_one_moment(
    store: &Store,
    following: Vec<(FragmentKey, Box<dyn Answers>)>,
) -> Vec<(FragmentKey, Result<Box<Draw>, Error>)> {
    let rounds = store.rounds();
    let _nothing_is_told = rounds.borrow();
    following.into_iter().filter_map(|(key, mut answers)| Some((key, answers.take()?))).collect()
}
