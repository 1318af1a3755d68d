//! The static files, inside the binary. Their addresses carry a version, so that browsers may keep them for ever.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::problem::Problem;

/// Each file: its name, its type, its bytes.
const FILES: [(&str, &str, &[u8]); 3] = [
    ("likewise.js", "text/javascript; charset=utf-8", include_bytes!("../../static/likewise.js")),
    ("likewise.css", "text/css; charset=utf-8", include_bytes!("../../static/likewise.css")),
    ("favicon.svg", "image/svg+xml", include_bytes!("../../static/favicon.svg")),
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
    format!("/static/{file}?v={}", *ASSETS_VERSION)
}

/// `GET /static/{file}`
pub(crate) async fn asset(Path(file): Path<String>) -> Response {
    match FILES.iter().find(|(name, ..)| *name == file) {
        Some((_, kind, bytes)) => {
            let keep = "public, max-age=31536000, immutable";
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, keep)], *bytes).into_response()
        }
        None => Problem::from(StatusCode::NOT_FOUND).into_response(),
    }
}

/// `GET /favicon.ico`, which some browsers ask for whatever the page says.
pub(crate) async fn favicon() -> Redirect {
    Redirect::temporary(&format!("/static/favicon.svg?v={}", *ASSETS_VERSION))
}
