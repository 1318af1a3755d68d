//! What makes a page installable, and lets it open while the program is away: the web app manifest and the service worker.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::assets::{Asset, SCRIPT};
use super::{App, AskedStore};

/// The name of the header that every answer carries, with the app's name as its value. By it the service worker tells this
/// program from another one that answers in its place.
pub(super) const MARK: &str = "likewise-app";

/// A web app manifest (<https://www.w3.org/TR/appmanifest/>).
#[derive(Serialize)]
struct Manifest {
    id: String,
    name: String,
    short_name: String,
    start_url: String,
    scope: String,
    display: &'static str,
    background_color: &'static str,
    theme_color: &'static str,
    icons: Vec<Icon>,
}

#[derive(Serialize)]
struct Icon {
    src: String,
    #[serde(rename = "type")]
    kind: &'static str,
    sizes: &'static str,
    purpose: &'static str,
}

/// `GET /manifest.webmanifest`
///
/// Each store can be installed as an app of its own, which opens the page of that store.
pub(crate) async fn manifest(State(app): State<App>, asked: AskedStore) -> impl IntoResponse {
    let face = &app.face;
    let title = face.title();
    let is_first = asked.id().as_str() == face.store;
    let icon = |name: &str| {
        let asset = face.assets.find(name).expect("BUG: an icon that isn't there");
        let (sizes, purpose) = match name {
            "icon-192.png" => ("192x192", "any"),
            "icon-512.png" => ("512x512", "any"),
            "icon-maskable.png" => ("512x512", "maskable"),
            _ => ("any", "any"),
        };
        Icon { src: face.asset(name), kind: asset.kind, sizes, purpose }
    };
    let manifest = Manifest {
        id: asked.home(),
        name: if is_first { title.clone() } else { format!("{} · {title}", asked.id()) },
        short_name: if is_first { title } else { asked.id().to_string() },
        start_url: asked.home(),
        scope: asked.home(),
        display: "standalone",
        background_color: face.background,
        theme_color: face.background,
        icons: face.assets.icons().map(icon).collect(),
    };
    ([(header::CONTENT_TYPE, "application/manifest+json"), (header::CACHE_CONTROL, "no-cache")], Json(manifest))
}

/// The service worker. It isn't among the files of a page, because its address must not change with a version.
static SERVICE_WORKER: Asset = Asset::new("sw.js", SCRIPT, include_bytes!("../../static/sw.js"));

/// `GET /sw.js`
///
/// Its scope is the base path. Browsers look for a newer one at each visit. The page's address of it says which app it
/// is for.
pub(crate) async fn service_worker(headers: HeaderMap) -> Response {
    SERVICE_WORKER.answer(&headers, "no-cache")
}
