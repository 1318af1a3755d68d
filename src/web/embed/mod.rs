//! What other sites embed: a like button with its counts, on the pages of sites that the owner names.
//!
//! An item is a store of its own kind, and no other store is reached from here. Looking makes nothing. Everybody here is a
//! visitor, on whatever machine. The guard has checked which site asks, and lets its pages read the answer.

mod badge;
mod board;
mod clients;
mod import;
mod item;
mod list;
mod live;
mod owner;
mod script;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use askama::Template as _;
use axum::Router;
use axum::extract::{FromRequestParts, RawPathParams, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use percent_encoding::percent_decode;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::badge::Badge;
use self::board::Board;
pub(crate) use self::clients::Client;
use self::clients::{Act, Clients};
pub(crate) use self::import::{ImportedCounts, import_counts};
pub(crate) use self::item::{Item, is_of_an_item};
use self::list::Listed;
pub(crate) use self::list::{Door, ItemList};
pub(crate) use self::owner::{
    ItemChange, ItemReport, ItemsReport, after, change_items, change_list, import_route, items, report,
};
use super::assets::prefers_gzip;
use super::face::Embed;
use super::fields::Fields;
use super::form::STORED;
use super::guard::{Asker, ClientAddress, HidingProxy, SEC_FETCH_MODE, Sites};
use super::problem::asks_for_json;
use super::shares::{Meter, Who};
use super::{App, Problem, Received, Services, sentence};
use crate::data_dir::DataDir;
use crate::engine::{EventId, StoreId, Stores};
use crate::limits::web::embed::{BADGE_KEPT, COUNTS_KEPT, HIDING_PROXIES, ITEMS, KEY_LIVES, NEW_ITEMS, TOGETHER};
use crate::limits::web::shares::VISITORS_LINKS;

/// What embedding needs, beside what every handler can use.
pub(crate) struct Embedding {
    embed: Embed,
    sites: Sites,
    list: ItemList,
    board: Board,
    clients: Clients,
    /// New items of all clients together.
    new_items: Meter,
    /// The most items that visitors can have made, in all.
    most_items: usize,
    /// The proxies that were seen to hide their clients.
    hiding: Mutex<BTreeSet<HidingProxy>>,
}

impl Embedding {
    /// Reads the list of items in the data directory `data`. Must be called in a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the list can't be read.
    pub(crate) fn new(
        embed: Embed,
        sites: Sites,
        stores: Stores,
        data: &Path,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let list = ItemList::read(DataDir::items(data)).context("the list of items")?;
        let (board, clients) = (Board::new(stores, embed.count(), shutdown.clone()), Clients::new());
        let forgetful = clients.clone();
        tokio::spawn(async move {
            while shutdown.run_until_cancelled(tokio::time::sleep(KEY_LIVES)).await.is_some() {
                forgetful.forget();
            }
        });
        let new_items = Meter::new(NEW_ITEMS);
        let (most_items, hiding) = (ITEMS, Mutex::default());
        Ok(Self { embed, sites, list, board, clients, new_items, most_items, hiding })
    }

    /// What is wrong with proxies that hide their clients, each with what to do about it. All clients behind such a one
    /// share the limits of one.
    pub(crate) fn faults(&self) -> Vec<(String, String)> {
        self.hiding().iter().map(|proxy| proxy.fault()).collect()
    }

    /// Notes a proxy that hides its clients, and says it once.
    fn note(&self, proxy: HidingProxy) {
        let mut hiding = self.hiding();
        if hiding.len() < HIDING_PROXIES && hiding.insert(proxy) {
            let (wrong, advice) = proxy.fault();
            tracing::error!("{wrong}. {advice}");
        }
    }

    fn hiding(&self) -> MutexGuard<'_, BTreeSet<HidingProxy>> {
        self.hiding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether visitors may add to this store by `/embed` alone, where the owner's list and the limits hold. That
    /// stays so when a server with such a list embeds nothing for a while.
    pub(crate) fn has(&self, store: &StoreId) -> bool {
        is_of_an_item(store) && (!self.sites.0.is_empty() || *self.list.now() != Listed::default())
    }
}

/// The routes of embedding. They exist where a site may embed something.
pub(super) fn routes(app: &App) -> Router<App> {
    if app.embedding.as_ref().is_none_or(|embedding| embedding.sites.0.is_empty()) {
        return Router::new();
    }
    Router::new()
        .route("/embed.js", get(script::script))
        .route("/embed/v1/counts", get(counts))
        .route("/embed/v1/live", get(live_of_many))
        .route("/embed/v1/{item}/live", get(live_of_one))
        .route("/embed/v1/{item}/likes", axum::routing::post(like))
        .route("/embed/v1/{item}/heart", get(heart).post(send_heart))
        .route("/embed/v1/{item}/badge.svg", get(show_badge))
}

impl Services {
    fn embedding(&self) -> Result<&Embedding, Problem> {
        self.embedding.as_ref().ok_or_else(|| StatusCode::NOT_FOUND.into())
    }
}

/// The item in the address of a request.
struct AskedItem(Item);

impl<S: Send + Sync> FromRequestParts<S> for AskedItem {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|error| malformed_item(sentence(error)))?;
        let name = params.iter().find(|(name, _)| *name == "item").map(|(_, name)| name).unwrap_or_default();
        Ok(Self(item_of(name)?))
    }
}

fn item_of(name: &str) -> Result<Item, Problem> {
    name.parse().map_err(|error| malformed_item(sentence(error)))
}

fn malformed_item(detail: String) -> Problem {
    Problem::bad_request("malformed-item", detail, "Give the button a short name with `item`, such as `my-post`.")
}

/// The items in `?items=a,b`.
struct AskedItems(Vec<Item>);

impl<S: Send + Sync> FromRequestParts<S> for AskedItems {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
        let query = query.unwrap_or_default();
        let names = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "items");
        let mut items = Vec::new();
        for name in names
            .map(|(_, names)| names.into_owned())
            .collect::<Vec<_>>()
            .iter()
            .flat_map(|names| names.split(','))
            .filter(|name| !name.is_empty())
        {
            let item = item_of(name)?;
            if !items.contains(&item) {
                items.push(item);
            }
            if items.len() > TOGETHER {
                return Err(Problem::bad_request(
                    "too-many-items-asked",
                    format!("One request asks for {TOGETHER} items at most."),
                    "Ask for the others in another request.",
                ));
            }
        }
        if items.is_empty() {
            let advice = "Name them, separated by commas: `?items=my-post,my-other-post`.";
            return Err(Problem::bad_request("malformed-item", "The request asks for no items.", advice));
        }
        Ok(Self(items))
    }
}

/// The client that a request comes from.
struct AskingClient(Client);

impl FromRequestParts<App> for AskingClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let embedding = app.embedding()?;
        let missing = || Problem::internal("a request without the address of its client");
        let Asker { client, hidden_by, .. } = Asker::of(parts);
        let ClientAddress(address) = client.ok_or_else(missing)?;
        if let Some(proxy) = hidden_by {
            embedding.note(proxy);
        }
        Ok(Self(embedding.clients.at(address)))
    }
}

/// `POST /embed/v1/{item}/likes`
///
/// A browser that sent a form goes back to the page that has it. A script is told that its like is stored.
async fn like(
    State(app): State<App>,
    AskedItem(item): AskedItem,
    AskingClient(client): AskingClient,
    received: Received,
) -> Result<Response, Problem> {
    let (fields, ids) = Fields::read(&received.bytes)
        .map_err(|misfit| Problem::bad_request("malformed-form", misfit.sentence(), "Nothing was stored."))?;
    let id = match &ids[..] {
        [] => EventId::now(),
        [id] => id.parse().map_err(|why| malformed_id(format!("{why}.")))?,
        _ => return Err(malformed_id("The form has the field `id` more than once.".to_owned())),
    };
    store(&app, &item, client, id).await?;
    let page = fields.iter().find(|(name, _)| *name == "back").map(|(_, page)| page);
    Ok(stored(&app, id, page, &received.headers))
}

fn malformed_id(detail: String) -> Problem {
    Problem::bad_request("malformed-id", detail, "Nothing was stored. A program must send a new UUID of version 7.")
}

/// Stores a like, if that is one that may come.
async fn store(app: &App, item: &Item, client: Client, id: EventId) -> Result<(), Problem> {
    let embedding = app.embedding()?;
    embedding.clients.take(client, Act::Like).map_err(|wait| {
        let advice = "Nothing was stored. Repeat it later with the same id: an id counts once.";
        too_often("too-many-likes", "Many likes came from this address just now.", advice, wait)
    })?;
    let store_id = item.store();
    let exists = app.stores.existing().borrow().contains(&store_id);
    let (door, is_listed) = {
        let listed = embedding.list.now();
        (listed.door, listed.items.contains(item))
    };
    match door {
        Door::Closed if !is_listed => {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "no-such-item",
                format!("There is nothing called {:?} here to like.", item.as_str()),
                format!("The owner of this program adds it with `{} items add`.", app.face.name),
            ));
        }
        Door::Open if !is_listed && !exists => embedding.make_room(app, client)?,
        _ => {}
    }
    if !is_listed {
        let (app, item) = (Arc::clone(app), item.clone());
        // The name comes first: what the store's id is a hash of could not be found out later.
        let record = move || app.embedding()?.list.change(|listed| listed.items.extend([item])).map_err(unwritable);
        tokio::task::spawn_blocking(record).await.map_err(Problem::internal)??;
    }
    let event = embedding.embed.event(id)?;
    let who = Who::Visitor;
    let store = app.stores.get_leaving(&store_id, who.spare(app.stores.limits()))?;
    let most = if exists { usize::MAX } else { VISITORS_LINKS };
    drop(app.clients.attend(&store, most));
    store.begin(who.spare(app.stores.limits()))?;
    let receipt = store.commit_envelope(event).await;
    app.metrics.count_post(&receipt);
    receipt?;
    Ok(())
}

impl Embedding {
    /// Counts a new item, unless there are too many.
    fn make_room(&self, app: &App, client: Client) -> Result<(), Problem> {
        let items = app.stores.existing().borrow().iter().filter(|id| is_of_an_item(id)).count();
        if items >= self.most_items {
            return Err(Problem::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "too-many-items",
                format!("There are {items} items here, and visitors can't make more."),
                format!("The owner of this program adds others with `{} items add`.", app.face.name),
            ));
        }
        let advice = "Nothing was stored. Repeat it later with the same id: an id counts once.";
        let refuse = |detail: &'static str| move |wait| too_often("too-many-new-items", detail, advice, wait);
        self.clients
            .take(client, Act::NewItem)
            .map_err(refuse("This address was the first to like many things just now."))?;
        self.new_items.take(&Who::Visitor, 1.0).map_err(refuse("Many new things were liked here just now."))
    }
}

fn too_often(code: &'static str, detail: &'static str, advice: &'static str, wait: Duration) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, code, detail, advice).retry_in(wait)
}

fn unwritable(error: anyhow::Error) -> Problem {
    tracing::error!("the list of items can't be written: {error:#}");
    Problem::unavailable(
        "store-unavailable",
        "The list of items can't be written.",
        "Nothing was stored. Try again.",
        5,
    )
}

/// The answer after a like: for a form, the way back to the page. Scripts, and programs that come from no page, get no
/// content.
fn stored(app: &App, id: EventId, page: Option<&str>, headers: &HeaderMap) -> Response {
    let comes_from_a_form = match headers.get(SEC_FETCH_MODE) {
        Some(mode) => mode == "navigate",
        None => !asks_for_json(headers),
    };
    let page = comes_from_a_form.then(|| app.embedding.as_ref().and_then(|it| it.page(page, headers))).flatten();
    match page {
        Some(page) => Redirect::to(page.as_str()).into_response(),
        None => (StatusCode::NO_CONTENT, [(STORED, id.to_string())]).into_response(),
    }
}

impl Embedding {
    /// The page that a form is on: what the form says, or else the browser, which often says only the site. Nothing but
    /// pages of the sites counts.
    fn page(&self, said: Option<&str>, headers: &HeaderMap) -> Option<Url> {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let (referer, origin) = (header(header::REFERER), header(header::ORIGIN));
        let page = |text: &str| Url::parse(text).ok();
        let is_ours = |page: &Url| {
            // A blob has the origin of the page that made it, and a name in front of the host looks like another host.
            let is_plain = page.username().is_empty() && page.password().is_none();
            let site = page.origin().ascii_serialization();
            matches!(page.scheme(), "http" | "https")
                && is_plain
                && self.sites.have(site.as_bytes())
                && origin.is_none_or(|origin| origin == site)
        };
        [said, referer, origin].into_iter().flatten().filter_map(page).find(is_ours)
    }
}

/// The one emoji that Open Heart counts here, and the spelling of it without a variation selector.
const HEART: &str = "\u{2764}\u{fe0f}";
const BARE_HEART: &str = "\u{2764}";

/// `GET /embed/v1/{item}/heart`, as the Open Heart protocol has it (<https://openheart.fyi>).
async fn heart(State(app): State<App>, AskedItem(item): AskedItem, headers: HeaderMap) -> Result<Response, Problem> {
    let count = count_of(&app, &item).await?;
    let counts = serde_json::json!({ HEART: count });
    Ok(cached(&headers, "application/json", COUNTS_KEPT, counts.to_string()))
}

/// `POST /embed/v1/{item}/heart`: the body begins with the emoji. A form that has it as the name of its button sends an
/// equals sign behind it.
async fn send_heart(
    State(app): State<App>,
    AskedItem(item): AskedItem,
    AskingClient(client): AskingClient,
    received: Received,
) -> Result<Response, Problem> {
    let text = percent_decode(&received.bytes).decode_utf8_lossy();
    if !text.trim_start().starts_with(BARE_HEART) {
        return Err(Problem::bad_request(
            "unknown-emoji",
            "Only ❤️ is counted here.",
            "Send it as the body of the request.",
        ));
    }
    let id = EventId::now();
    store(&app, &item, client, id).await?;
    Ok(stored(&app, id, None, &received.headers))
}

/// `GET /embed/v1/{item}/badge.svg`
async fn show_badge(
    State(app): State<App>,
    AskedItem(item): AskedItem,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let badge = Badge::new(app.face.nouns.many, count_of(&app, &item).await?);
    let picture = badge.render().map_err(Problem::internal)?;
    Ok(cached(&headers, "image/svg+xml", BADGE_KEPT, picture))
}

async fn count_of(app: &App, item: &Item) -> Result<u64, Problem> {
    let counts = app.embedding()?.board.read(&[item.store()]).await;
    counts.into_iter().flatten().next().ok_or_else(unreadable)
}

fn unreadable() -> Problem {
    Problem::unavailable("store-unavailable", "The count can't be read just now.", "Ask again in a moment.", 5)
}

/// `GET /embed/v1/counts?items=a,b`: a JSON object of counts by item. A count that can't be read just now is null.
async fn counts(
    State(app): State<App>,
    AskedItems(items): AskedItems,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let stores: Vec<StoreId> = items.iter().map(Item::store).collect();
    let counts = app.embedding()?.board.read(&stores).await;
    let is_whole = counts.iter().all(Option::is_some);
    let counts: serde_json::Map<_, _> =
        items.iter().zip(counts).map(|(item, count)| (item.as_str().to_owned(), count.into())).collect();
    let kept = if is_whole { COUNTS_KEPT } else { 0 };
    Ok(cached(&headers, "application/json", kept, serde_json::Value::from(counts).to_string()))
}

/// An answer that caches on the way may keep for `seconds`, and that isn't sent again to somebody who has it.
fn cached(headers: &HeaderMap, kind: &'static str, seconds: u32, body: String) -> Response {
    let tag = format!("\"{}\"", &blake3::hash(body.as_bytes()).to_hex()[..16]);
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|value| value.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag);
    // A weak one, because the same text may be sent in gzip as well.
    let tag = format!("W/{tag}");
    let head = [
        (header::ETAG, tag),
        (header::CACHE_CONTROL, format!("public, max-age={seconds}")),
        (header::CONTENT_TYPE, kind.to_owned()),
    ];
    if is_known { (StatusCode::NOT_MODIFIED, head).into_response() } else { (head, body).into_response() }
}

/// `GET /embed/v1/{item}/live`: the count alone, now and after each change.
async fn live_of_one(
    State(app): State<App>,
    AskedItem(item): AskedItem,
    AskingClient(client): AskingClient,
) -> Result<Response, Problem> {
    live(&app, vec![item], live::Form::Number, client)
}

/// `GET /embed/v1/live?items=a,b`: a JSON object of counts by item, first all and then those that change.
async fn live_of_many(
    State(app): State<App>,
    AskedItems(items): AskedItems,
    AskingClient(client): AskingClient,
) -> Result<Response, Problem> {
    live(&app, items, live::Form::Object, client)
}

fn live(app: &App, items: Vec<Item>, form: live::Form, client: Client) -> Result<Response, Problem> {
    const CODE: &str = "too-many-streams";
    const ADVICE: &str = "Ask for the counts now and then.";
    let embedding = app.embedding()?;
    let of_client = embedding.clients.open_stream(client).ok_or_else(|| {
        let detail = "As many streams go to this address as one may have.";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, CODE, detail, ADVICE).retry_after(30)
    })?;
    let of_all = app.shares.streams.lend(&Who::Visitor, 1).map_err(|_| {
        Problem::unavailable(CODE, "As many pages are open as this server can keep up to date.", ADVICE, 30)
    })?;
    let taken = live::Taken { _of_all: of_all, _of_client: of_client, _open: app.metrics.stream_opened() };
    Ok(live::answer(&embedding.board, items, form, taken, app.shutdown.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::StoreLimits;
    use crate::likes::schema;
    use crate::web::tests::app;

    #[tokio::test]
    async fn visitors_make_no_more_items_than_there_may_be_and_the_owner_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut app = app(dir.path(), schema(), StoreLimits::default(), 100);
        let embed = app.face.embed.clone().expect("likes are embedded");
        let (stores, shutdown) = (app.stores.clone(), app.shutdown.clone());
        let embedding = Embedding::new(embed, Sites::default(), stores, dir.path(), shutdown).expect("a list");
        let services = Arc::get_mut(&mut app).expect("nobody else has it");
        services.embedding = Some(Embedding { most_items: 2, ..embedding });
        let embedding = app.embedding().expect("just given");
        let client = embedding.clients.at("198.51.100.7".parse().expect("an address"));
        let like = async |name: &str| {
            let item = name.parse().expect("a name");
            let stored = store(&app, &item, client, EventId::now()).await;
            stored.map_err(|problem| problem.into_response().status())
        };
        assert_eq!(like("a").await, Ok(()));
        assert_eq!(like("b").await, Ok(()));
        assert_eq!(like("c").await, Err(StatusCode::INSUFFICIENT_STORAGE));
        assert!(!embedding.list.now().items.contains(&"c".parse().expect("a name")));
        assert_eq!(like("a").await, Ok(()), "what is there goes on");
        embedding.list.change(|listed| listed.items.extend(["d".parse().expect("a name")])).expect("written");
        assert_eq!(like("d").await, Ok(()), "the owner's word");
        assert_eq!(like("e").await, Err(StatusCode::INSUFFICIENT_STORAGE));
    }

    #[tokio::test]
    async fn one_proxy_hides_no_other_and_there_is_an_end_to_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let app = app(dir.path(), schema(), StoreLimits::default(), 100);
        let embed = app.face.embed.clone().expect("likes are embedded");
        let (stores, shutdown) = (app.stores.clone(), app.shutdown.clone());
        let embedding = Embedding::new(embed, Sites::default(), stores, dir.path(), shutdown).expect("a list");
        let unnamed = |last: u8| HidingProxy::Unnamed([192, 168, 1, last].into());
        (0..=255).for_each(|_| embedding.note(unnamed(7)));
        embedding.note(HidingProxy::SilentByFile);
        let faults = embedding.faults();
        assert!(faults[0].1.contains("`--behind-proxy 192.168.1.7`"), "{faults:?}");
        assert!(faults[1].0.contains("socket file") && faults.len() == 2, "{faults:?}");
        (0..=255).for_each(|last| embedding.note(unnamed(last)));
        assert_eq!(embedding.faults().len(), HIDING_PROXIES);
    }
}
