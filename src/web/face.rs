//! What people see of an app, as the web floor holds it: forms, fragments, page and figures, each with its types erased.

use std::sync::{Arc, OnceLock};

use askama::Template;
use axum::Router;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;

use super::assets::Assets;
use super::fields::{Fields, Misfit};
use super::html::{Html, IntoHtml};
use super::problem::capitalized;
use super::{BasePath, Page, Params, Refusal, Render, Visitor};
use crate::engine::{DbError, Envelope, Error, Event, EventId, Query, Rehearsed, Store, StoreId, Watch};
use crate::limits::web::guard::FORM_BYTES;

/// What people see of an app.
#[derive(Clone)]
pub(crate) struct Face {
    pub(crate) name: &'static str,
    /// The version that the program shows.
    pub(crate) version: &'static str,
    /// What all addresses begin with.
    pub(crate) base_path: BasePath,
    /// The store whose routes have no prefix.
    pub(crate) store: &'static str,
    pub(crate) nouns: Nouns,
    /// The colour behind the icon of an installed page.
    pub(crate) background: &'static str,
    /// The heading of the page for an address that isn't there.
    pub(crate) lost: &'static str,
    pub(crate) forms: Vec<Form>,
    /// The longest body of a form, in bytes.
    pub(crate) form_bytes: u64,
    pub(crate) fragments: Vec<Fragment>,
    pub(crate) page: Option<Arc<DrawPage>>,
    pub(crate) assets: Assets,
    pub(crate) figures: Vec<Figure>,
    /// What other sites may embed.
    pub(crate) embed: Option<Embed>,
    pub(crate) routes: Router,
    /// Drawn with the first page.
    files: OnceLock<Html>,
}

/// The links to the program's own files.
#[derive(Template)]
#[template(path = "files.html")]
struct Files<'a> {
    face: &'a Face,
}

/// Makes the page's HTML.
pub(crate) type DrawPage = dyn Fn(Page) -> Result<Html, String> + Send + Sync;

/// What one event is called, and several.
#[derive(Debug, Clone, Copy, Default)]
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

/// What other sites may embed: an event without fields, and the number that it changes.
#[derive(Clone)]
pub(crate) struct Embed {
    pub(crate) form: Form,
    pub(crate) figure: Figure,
}

/// A form, which becomes an event.
#[derive(Clone)]
pub(crate) struct Form {
    pub(crate) name: &'static str,
    /// The name of its event.
    pub(crate) event: &'static str,
    make: Make,
}

#[derive(Clone)]
enum Make {
    /// From the fields alone.
    Plain(Arc<MakePlain>),
    /// From the fields and the visitor.
    Visited(Arc<MakeVisited>),
}

type MakePlain = dyn Fn(&Fields, EventId) -> Result<Envelope, Unmade> + Send + Sync;
type MakeVisited = dyn Fn(&Fields, &Visitor, EventId) -> Result<Envelope, Unmade> + Send + Sync;

/// Why there is no event from a form's fields.
#[derive(Debug)]
pub(crate) enum Unmade {
    /// They don't fit the form.
    Misfit(Misfit),
    /// The app refuses them, in its own words.
    Refused(Refusal),
    /// The event breaks a rule of the engine.
    Malformed(Error),
}

/// A piece of HTML that follows a query.
#[derive(Clone)]
pub(crate) struct Fragment {
    pub(crate) name: &'static str,
    ask: Arc<Ask>,
}

type Ask = dyn Fn(&Params) -> Result<Box<dyn Asked>, Refusal> + Send + Sync;

/// Identifies a fragment. Fragments of one name with equal queries are one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FragmentKey {
    pub(crate) name: &'static str,
    /// A fingerprint of the query, if the query has bound values and so differs between pages.
    pub(crate) query: Option<String>,
}

/// A fragment with its query, made from a page's parameters.
pub(crate) trait Asked: Send {
    /// Which fragment it is.
    fn key(&self) -> &FragmentKey;

    /// Follows the answers of a store.
    fn follow(&self, store: &Store) -> Box<dyn Answers>;

    /// Runs the query in a rehearsal, as [`Rehearsed::answer`] does: what draws its answer.
    fn rehearse(&self, state: &Rehearsed<'_>) -> Result<Result<Box<Draw>, DbError>, DbError>;
}

/// The answers that a fragment follows.
pub(crate) trait Answers: Send {
    /// Waits until there is an answer. The newest answer can then be taken, even if it was taken before.
    fn answered(&mut self) -> BoxFuture<'_, Result<(), Error>>;

    /// Whether there is an answer, taken or not.
    fn is_answered(&self) -> bool;

    /// The newest answer, unless it was taken before: the function that draws it, or why there is none.
    fn take(&mut self) -> Option<Result<Box<Draw>, Error>>;
}

/// Draws one answer.
pub(crate) type Draw = dyn FnOnce(Render) -> Result<Html, String> + Send;

impl Face {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            version: env!("CARGO_PKG_VERSION"),
            base_path: BasePath::default(),
            store: name,
            nouns: Nouns { one: "event", many: "events" },
            background: "#f6f7f8",
            lost: "Nothing here",
            forms: Vec::new(),
            form_bytes: FORM_BYTES,
            fragments: Vec::new(),
            page: None,
            assets: Assets::common(),
            figures: Vec::new(),
            embed: None,
            routes: Router::new(),
            files: OnceLock::new(),
        }
    }

    /// The same face under another base path.
    pub(crate) fn under(&self, base_path: BasePath) -> Self {
        Self { base_path, files: OnceLock::new(), ..self.clone() }
    }

    /// What the addresses of `store` begin with.
    pub(crate) fn base(&self, store: &StoreId) -> String {
        if store.as_str() == self.store { self.base_path.to_string() } else { format!("{}/s/{store}", self.base_path) }
    }

    /// The address of the static file `name`.
    pub(crate) fn asset(&self, name: &str) -> String {
        [self.base_path.as_str(), "/static/", self.assets.version(), "/", name].concat()
    }

    /// The links to the program's own files, which every page's head has.
    pub(crate) fn files(&self) -> &Html {
        self.files.get_or_init(|| Files { face: self }.into_html().expect("BUG: a template of names can't fail"))
    }

    /// The addresses of the app's own stylesheets.
    pub(crate) fn own_styles(&self) -> impl Iterator<Item = String> {
        self.assets.own_styles().map(|style| self.asset(style.name))
    }

    /// The app's name as a heading.
    pub(crate) fn title(&self) -> String {
        capitalized(self.name)
    }

    /// Every fragment, with its query made from `params`.
    pub(crate) fn ask(&self, params: &Params) -> Result<Vec<Box<dyn Asked>>, Refusal> {
        self.fragments.iter().map(|fragment| fragment.ask(params)).collect()
    }

    /// The HTML of `page`.
    pub(crate) fn draw(&self, page: &Page) -> Result<Html, String> {
        match &self.page {
            Some(draw) => draw(page.clone()),
            None => Ok(Html::trusted(format!(
                "<!doctype html><html lang=\"en\"><head>{}{}</head><body>{}</body></html>",
                page.head(),
                page.title(&self.title()),
                page.status()
            ))),
        }
    }
}

impl Nouns {
    /// `number` of them, in words such as "1 like" or "2 likes".
    pub(crate) fn count(&self, number: &u64) -> String {
        format!("{number} {}", if *number == 1 { self.one } else { self.many })
    }

    /// The plural, at the beginning of a sentence.
    pub(crate) fn many_capitalized(&self) -> String {
        capitalized(self.many)
    }
}

impl Form {
    pub(crate) fn new<E: Event>(name: &'static str) -> Self {
        let make = |fields: &Fields, id| seal(id, &fields.parse::<E>().map_err(Unmade::Misfit)?);
        Self { name, event: E::NAME, make: Make::Plain(Arc::new(make)) }
    }

    pub(crate) fn with<F, E>(
        name: &'static str,
        make: impl Fn(F, &Visitor) -> Result<E, Refusal> + Send + Sync + 'static,
    ) -> Self
    where
        F: DeserializeOwned + 'static,
        E: Event,
    {
        let make = move |fields: &Fields, visitor: &Visitor, id| {
            let event = make(fields.parse().map_err(Unmade::Misfit)?, visitor).map_err(Unmade::Refused)?;
            seal(id, &event)
        };
        Self { name, event: E::NAME, make: Make::Visited(Arc::new(make)) }
    }

    /// Makes the event from `fields`, under `id`. Calls `visitor` only if the form asks who posts.
    pub(crate) fn make<P: From<Unmade>>(
        &self,
        fields: &Fields,
        id: EventId,
        visitor: impl FnOnce() -> Result<Visitor, P>,
    ) -> Result<Envelope, P> {
        Ok(match &self.make {
            Make::Plain(make) => make(fields, id)?,
            Make::Visited(make) => make(fields, &visitor()?, id)?,
        })
    }
}

impl Embed {
    /// The event with this id.
    pub(crate) fn event(&self, id: EventId) -> Result<Envelope, Unmade> {
        self.form.make(&Fields::default(), id, || Err(Unmade::Refused(Refusal::new("nobody is asked who posts"))))
    }

    /// Makes the query that counts.
    pub(crate) fn count(&self) -> Arc<dyn Fn() -> Query<u64> + Send + Sync> {
        Arc::clone(&self.figure.query)
    }
}

fn seal<E: Event>(id: EventId, event: &E) -> Result<Envelope, Unmade> {
    Envelope::new(id, event).map_err(|why| Unmade::Malformed(why.into()))
}

impl Fragment {
    pub(crate) fn new<T, H, M>(
        name: &'static str,
        query: impl Fn(&Params) -> Result<Query<T>, Refusal> + Send + Sync + 'static,
        render: impl Fn(T, Render) -> H + Send + Sync + 'static,
    ) -> Self
    where
        T: Clone + PartialEq + Send + Sync + 'static,
        H: IntoHtml<M>,
    {
        let render: Arc<DrawAnswer<T>> = Arc::new(move |answer, with| render(answer, with).into_html());
        let ask = move |params: &Params| {
            let query = query(params)?;
            let key = FragmentKey { name, query: query.fingerprint() };
            Ok(Box::new(Question { key, query, render: Arc::clone(&render) }) as Box<dyn Asked>)
        };
        Self { name, ask: Arc::new(ask) }
    }

    /// The fragment with the query that `params` give it.
    pub(crate) fn ask(&self, params: &Params) -> Result<Box<dyn Asked>, Refusal> {
        (self.ask)(params)
    }
}

type DrawAnswer<T> = dyn Fn(T, Render) -> Result<Html, String> + Send + Sync;

struct Question<T> {
    key: FragmentKey,
    query: Query<T>,
    render: Arc<DrawAnswer<T>>,
}

struct Following<T> {
    answers: Watch<T>,
    render: Arc<DrawAnswer<T>>,
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Asked for Question<T> {
    fn key(&self) -> &FragmentKey {
        &self.key
    }

    fn follow(&self, store: &Store) -> Box<dyn Answers> {
        Box::new(Following { answers: store.watch(self.query.clone()), render: Arc::clone(&self.render) })
    }

    fn rehearse(&self, state: &Rehearsed<'_>) -> Result<Result<Box<Draw>, DbError>, DbError> {
        let render = Arc::clone(&self.render);
        let draw = |answer| Box::new(move |with: Render| render(answer, with)) as Box<Draw>;
        Ok(state.answer(&self.query)?.map(draw))
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Answers for Following<T> {
    fn answered(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        self.answers.answered().boxed()
    }

    fn is_answered(&self) -> bool {
        self.answers.is_answered()
    }

    fn take(&mut self) -> Option<Result<Box<Draw>, Error>> {
        let render = Arc::clone(&self.render);
        let draw = |answer| Box::new(move |with: Render| render(answer, with)) as Box<Draw>;
        self.answers.take().map(|answer| answer.map(draw))
    }
}

impl FragmentKey {
    /// Puts what the author drew into one element, by which the script finds it, and other people's scripts by its id.
    /// `<likewise-live>` is allowed wherever
    /// text is, so a fragment may stand in a paragraph or a heading. It takes no part in the layout.
    pub(crate) fn wrap(&self, html: &Html) -> Html {
        let (name, html) = (self.name, html.as_str().trim_end());
        let key = self.query.as_ref().map(|query| [" data-key=\"", query, "\""].concat()).unwrap_or_default();
        let start = "<likewise-live class=\"live\" id=\"live-";
        Html::trusted([start, name, "\" data-live=\"", name, "\"", &key, ">", html, "</likewise-live>"].concat())
    }
}
