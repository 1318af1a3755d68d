//! The static files, inside the binary. Their addresses carry a version, so that browsers may keep them for ever.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::problem::Problem;

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Each file: its name, its type, its bytes. Scripts are ES modules, used as they stand.
const FILES: [(&str, &str, &[u8]); 13] = [
    ("likewise.js", SCRIPT, include_bytes!("../../static/likewise.js")),
    ("likes.js", SCRIPT, include_bytes!("../likes/likes.js")),
    ("worker.js", SCRIPT, include_bytes!("../../static/worker.js")),
    ("backoff.js", SCRIPT, include_bytes!("../../static/backoff.js")),
    ("forms.js", SCRIPT, include_bytes!("../../static/forms.js")),
    ("ids.js", SCRIPT, include_bytes!("../../static/ids.js")),
    ("link.js", SCRIPT, include_bytes!("../../static/link.js")),
    ("morph.js", SCRIPT, include_bytes!("../../static/morph.js")),
    ("outbox.js", SCRIPT, include_bytes!("../../static/outbox.js")),
    ("stream.js", SCRIPT, include_bytes!("../../static/stream.js")),
    ("app.css", "text/css; charset=utf-8", include_bytes!("../../static/app.css")),
    ("likewise.css", "text/css; charset=utf-8", include_bytes!("../likes/likewise.css")),
    ("favicon.svg", "image/svg+xml", include_bytes!("../likes/favicon.svg")),
];

/// Changes with any of the files.
pub(crate) static ASSETS_VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    for (_, _, bytes) in FILES {
        hasher.update(bytes);
    }
    hasher.finalize().to_hex()[..12].to_owned()
});

/// Where a file is.
pub(crate) fn address(file: &str) -> String {
    format!("/static/{}/{file}", *ASSETS_VERSION)
}

/// `GET /static/{version}/{file}`
///
/// The version is a folder, so that a script imports others of its own version. A page that was loaded before an upgrade
/// may ask for an older one: it is sent on to the present files, which fit together.
pub(crate) async fn asset(Path((version, file)): Path<(String, String)>) -> Response {
    match FILES.iter().find(|(name, ..)| *name == file) {
        Some((name, ..)) if version != *ASSETS_VERSION => current(name),
        Some((_, kind, bytes)) => {
            let keep = "public, max-age=31536000, immutable";
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, keep)], *bytes).into_response()
        }
        None => Problem::from(StatusCode::NOT_FOUND).into_response(),
    }
}

/// `GET /static/{file}`, the address before versions were folders. Pages of then may still be open.
pub(crate) async fn unversioned(Path(file): Path<String>) -> Response {
    match FILES.iter().find(|(name, ..)| *name == file) {
        Some((name, ..)) => current(name),
        None => Problem::from(StatusCode::NOT_FOUND).into_response(),
    }
}

/// `GET /favicon.ico`, which some browsers ask for whatever the page says.
pub(crate) async fn favicon() -> Response {
    current("favicon.svg")
}

/// Leads to the present version of a file.
fn current(file: &str) -> Response {
    let there = Redirect::temporary(&address(file));
    ([(header::CACHE_CONTROL, "no-store")], there).into_response()
}
