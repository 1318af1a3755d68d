//! The web floor: pages, forms and live streams over the stores, behind the guard.

pub(crate) mod assets;
mod base_path;
mod control;
mod cookies;
pub(crate) mod embed;
pub(crate) mod face;
mod fields;
mod form;
mod guard;
mod history;
mod html;
mod hub;
mod install;
pub(crate) mod live;
pub(crate) mod metrics;
mod page;
mod pair;
mod params;
pub(crate) mod probe;
mod problem;
mod public_url;
mod received;
mod rehearsal;
mod remote;
mod server;
mod setting;
mod shares;
mod snapshot;
mod status;
mod store;
mod stores;
mod typed;
mod views;
mod visitor;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::header::{self, HeaderName};
use axum::middleware::map_request;
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio_util::sync::CancellationToken;

use crate::engine::{Device, Stores};
use crate::sync::{Clients, Snapshots};

pub use base_path::BasePath;
pub(crate) use control::{AFTER_IMPORT, Exported, Followed, MISSING, PairingAt};
pub(crate) use face::{Embed, Face};
pub use guard::{AllowedHost, EmbeddingSite, TrustedProxy};
pub(crate) use guard::{Browsers, Guarded, PairingCookies, Pass, Passes, Policy, Sees, Sites, protect};
pub use html::{Html, IntoHtml};
pub(crate) use hub::Hub;
pub use page::{Page, Render};
pub(crate) use pair::Pairings;
pub use params::{Params, Refusal};
pub(crate) use problem::{Problem, sentence};
pub use public_url::PublicUrl;
pub(crate) use received::Received;
pub(crate) use rehearsal::{Flaw, Rehearsal};
pub(crate) use remote::Committed;
pub(crate) use server::{Connection, Door, Limits, Listener, raise_open_file_limit, serve, stores_within_open_files};
pub(crate) use setting::{ClusterSetting, Setting};
pub(crate) use shares::{Full, Lease, Shares, Who};
pub(crate) use status::{Digests, HistoryState, HistoryStatus, StatusReport, date_time, digests, what_to_do};
pub(crate) use store::{AskedStore, Opened};
pub use visitor::Visitor;
pub(crate) use visitor::VisitorKey;

/// What every handler can use. It is one pointer, because each request gets a copy.
pub(crate) type App = Arc<Services>;

/// The parts of an instance that requests are answered with.
pub(crate) struct Services {
    /// What people see of the app.
    pub(crate) face: Arc<Face>,
    pub(crate) stores: Stores,
    pub(crate) device: Device,
    /// The data directory.
    pub(crate) data: PathBuf,
    pub(crate) pages: live::Pages,
    /// Bounds what strangers can make this instance hold, and shares it out.
    pub(crate) shares: Shares,
    /// Keeps the stores in sync with the upstream, if there is one.
    pub(crate) clients: Clients,
    /// Lets other instances sync with this one.
    pub(crate) hub: Hub,
    /// Lets devices begin with the state of this hub.
    pub(crate) snapshots: Snapshots,
    /// Lets browsers and devices pair with this instance.
    pub(crate) pairings: Pairings,
    /// Lets `doctor` try a stream.
    pub(crate) probes: probe::Probes,
    /// Tells visitors apart for apps that ask who posts.
    pub(crate) visitors: VisitorKey,
    /// What other sites embed, if the app has that.
    pub(crate) embedding: Option<embed::Embedding>,
    pub(crate) metrics: metrics::Metrics,
    /// Where others reach this instance.
    pub(crate) public_url: Option<String>,
    /// Flags that don't fit together, each with what to do about it.
    pub(crate) faults: Vec<(String, String)>,
    pub(crate) shutdown: CancellationToken,
    /// Says, before the shutdown, that the server is to begin anew afterwards.
    pub(crate) anew: CancellationToken,
}

/// Headers of every event stream. A proxy must neither gather it into larger pieces (nginx, and what follows its lead, read
/// `X-Accel-Buffering`) nor compress it, which comes to the same.
const STREAM_HEADERS: [(HeaderName, &str); 3] = [
    (header::CONTENT_TYPE, "text/event-stream"),
    (header::CACHE_CONTROL, "no-store, no-transform"),
    (HeaderName::from_static("x-accel-buffering"), "no"),
];

/// What an instance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// An app: its pages, and sync for other devices unless it follows a hub itself.
    App,
    /// A hub alone. It orders the events of any app, and has nothing to show to people.
    Hub,
}

/// All routes of an app, without the guard.
///
/// # Errors
///
/// When the app's own routes collide with each other or with these. The text is the router's.
pub(crate) fn routes(app: App) -> Result<Router, String> {
    // The router panics on a collision, and it has no way to look at an app's routes beforehand.
    catch_unwind(AssertUnwindSafe(|| joined(app))).map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        words.unwrap_or("they collide").to_owned()
    })
}

fn joined(app: App) -> Router {
    let mut of_a_store = how_it_is()
        .route("/adopt", post(form::adopt))
        .route("/sync-now", post(form::sync_now))
        .route("/live", get(live::live))
        .route("/history", get(history::history));
    of_a_store = of_a_store.route("/manifest.webmanifest", get(install::manifest));
    for form in &app.face.forms {
        let post_it = {
            let form = form.clone();
            async move |state, opened, query, received| form::post(form, state, opened, query, received).await
        };
        of_a_store = of_a_store.route(&format!("/{}", form.name), post(post_it));
    }
    let own = app.face.routes.clone().layer(Extension(Arc::clone(&app))).layer(map_request(guard::with_connect_info));
    let of_a_store = of_a_store.merge(own.with_state(()));
    Router::new()
        .route("/", get(page::page))
        .merge(of_a_store.clone())
        .route("/stores", get(stores::stores))
        .route("/s/{store}", get(async |asked: AskedStore| Redirect::permanent(&asked.home())))
        .route("/s/{store}/", get(page::page))
        .nest("/s/{store}", of_a_store)
        .route("/static/{version}/{file}", get(assets::asset))
        .route("/static/{file}", get(assets::unversioned))
        .route("/sw.js", get(install::service_worker))
        .route("/favicon.ico", get(assets::favicon))
        .route("/apple-touch-icon.png", get(assets::touch_icon))
        .merge(embed::routes(&app))
        .route("/pair", get(pair::page).post(pair::redeem))
        .route("/control/v1/joined", get(control::followed).post(control::joined))
        .merge(for_devices_and_commands())
        .with_state(app)
}

/// The routes of a hub that shows nothing to people, without the guard.
pub(crate) fn hub_routes(app: App) -> Router {
    Router::new()
        .merge(how_it_is())
        .nest("/s/{store}", how_it_is())
        .route("/pair", get(hub::no_page).post(pair::redeem_for_devices))
        .merge(for_devices_and_commands())
        .fallback(hub::no_page)
        .with_state(app)
}

/// How a store is, for programs.
fn how_it_is() -> Router<App> {
    Router::new()
        .route("/status", get(status::status))
        .route("/healthz", get(status::healthz))
        .route("/metrics", get(metrics::metrics))
}

fn for_devices_and_commands() -> Router<App> {
    Router::new()
        .route("/sync/v1/{store}/events", get(hub::pull).post(hub::push))
        .route("/sync/v1/{store}/snapshot", get(snapshot::send))
        .route("/sync/v1/probe", get(probe::stream))
        .route("/control/v1/probe", post(probe::begin))
        .route("/control/v1/backup", post(control::backup))
        .route("/control/v1/items", get(embed::items).post(embed::change_items))
        .route("/control/v1/item-counts", post(embed::import_route))
        .route("/control/v1/tokens", post(control::tokens))
        .route("/control/v1/setting", get(setting::setting))
        .route("/control/v1/pairing", get(control::pairing))
        .route("/control/v1/{store}/export", get(control::export))
        .route("/control/v1/{store}/import", post(control::import_route))
        .route("/control/v1/{store}/verify", post(control::verify))
        .route("/control/v1/{store}/adopt", post(control::adopt))
        .route("/control/v1/{store}/promote", post(control::promote))
        .route("/control/v1/{store}/commit", post(remote::commit))
        .route("/control/v1/{store}/query", post(remote::query))
        .route("/control/v1/{store}/skipped", get(remote::skipped))
        .route("/control/v1/{store}/set-aside", get(control::export_set_aside))
        .route("/control/v1/{store}/set-aside/retry", post(control::retry_set_aside))
}

#[cfg(test)]
pub(crate) mod tests;
