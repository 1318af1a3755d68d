//! Static files, inside the binary: those that every program has, and the app's own. Their addresses carry a version, so
//! browsers may keep them for ever.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::App;
use super::face::Face;
use super::problem::Problem;

/// A static file.
#[derive(Clone, Copy)]
pub(crate) struct Asset {
    pub(crate) name: &'static str,
    /// Its type, as `Content-Type` says it.
    pub(crate) kind: &'static str,
    pub(crate) bytes: &'static [u8],
}

/// The icon of a program. An app may replace it.
pub(crate) const ICON: &str = "favicon.svg";

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// The files that every program has. Scripts are ES modules, used as they stand.
const COMMON: [Asset; 11] = [
    file("likewise.js", SCRIPT, include_bytes!("../../static/likewise.js")),
    file("worker.js", SCRIPT, include_bytes!("../../static/worker.js")),
    file("backoff.js", SCRIPT, include_bytes!("../../static/backoff.js")),
    file("forms.js", SCRIPT, include_bytes!("../../static/forms.js")),
    file("ids.js", SCRIPT, include_bytes!("../../static/ids.js")),
    file("link.js", SCRIPT, include_bytes!("../../static/link.js")),
    file("morph.js", SCRIPT, include_bytes!("../../static/morph.js")),
    file("outbox.js", SCRIPT, include_bytes!("../../static/outbox.js")),
    file("stream.js", SCRIPT, include_bytes!("../../static/stream.js")),
    file("app.css", STYLE, include_bytes!("../../static/app.css")),
    file(ICON, "image/svg+xml", include_bytes!("../../static/favicon.svg")),
];

const fn file(name: &'static str, kind: &'static str, bytes: &'static [u8]) -> Asset {
    Asset { name, kind, bytes }
}

/// The static files of a program.
#[derive(Clone)]
pub(crate) struct Assets {
    own: Vec<Asset>,
    /// Changes with any of the files.
    version: String,
}

impl Assets {
    /// The files that every program has, and no others.
    pub(crate) fn common() -> Self {
        Self { version: version(&[]), own: Vec::new() }
    }

    /// Adds a file of the app's own.
    pub(crate) fn add(&mut self, asset: Asset) {
        self.own.push(asset);
        self.version = version(&self.own);
    }

    /// The app's own files.
    pub(crate) fn own(&self) -> &[Asset] {
        &self.own
    }

    /// The file `name`. An app's own icon replaces the common one.
    pub(crate) fn find(&self, name: &str) -> Option<&Asset> {
        self.own.iter().chain(&COMMON).find(|asset| asset.name == name)
    }

    /// Where the file `name` is, below the base path.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("/static/{}/{name}", self.version)
    }

    /// The app's own stylesheets.
    pub(crate) fn own_styles(&self) -> impl Iterator<Item = &Asset> {
        let is_style = |asset: &&Asset| asset.kind.split(';').next().is_some_and(|kind| kind.trim() == "text/css");
        self.own.iter().filter(is_style)
    }
}

/// Whether `name` is a common file that an app may not replace.
pub(crate) fn is_common(name: &str) -> bool {
    name != ICON && COMMON.iter().any(|asset| asset.name == name)
}

fn version(own: &[Asset]) -> String {
    let mut hasher = blake3::Hasher::new();
    for Asset { name, kind, bytes } in COMMON.iter().chain(own) {
        for part in [name.as_bytes(), kind.as_bytes(), bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }
    hasher.finalize().to_hex()[..12].to_owned()
}

/// `GET /static/{version}/{file}`
///
/// The version is a folder, so a script imports the modules of its own version. A page from before an upgrade may ask
/// for an older version. It is redirected to the present files, which fit together.
pub(crate) async fn asset(State(app): State<App>, Path((version, name)): Path<(String, String)>) -> Response {
    let assets = &app.face.assets;
    match assets.find(&name) {
        Some(asset) if version != assets.version => current(&app.face, asset.name),
        Some(asset) => {
            let keep = "public, max-age=31536000, immutable";
            ([(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, keep)], asset.bytes).into_response()
        }
        None => Problem::from(StatusCode::NOT_FOUND).into_response(),
    }
}

/// `GET /static/{file}`, the address before versions were folders. Pages of that time may still be open.
pub(crate) async fn unversioned(State(app): State<App>, Path(name): Path<String>) -> Response {
    match app.face.assets.find(&name) {
        Some(asset) => current(&app.face, asset.name),
        None => Problem::from(StatusCode::NOT_FOUND).into_response(),
    }
}

/// `GET /favicon.ico`, which some browsers ask for whatever the page says.
pub(crate) async fn favicon(State(app): State<App>) -> Response {
    current(&app.face, ICON)
}

/// Redirects to the present version of a file.
fn current(face: &Face, name: &str) -> Response {
    let there = Redirect::temporary(&face.asset(name));
    ([(header::CACHE_CONTROL, "no-store")], there).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_covers_the_apps_own_files() {
        let with = |files: &[(&'static str, &'static str, &'static [u8])]| {
            let mut assets = Assets::common();
            files.iter().for_each(|(name, kind, bytes)| assets.add(file(name, kind, bytes)));
            assets.version
        };
        let versions = [
            with(&[]),
            with(&[("a.css", STYLE, b"x")]),
            with(&[("b.css", STYLE, b"x")]),
            with(&[("a.css", SCRIPT, b"x")]),
            with(&[("a.css", STYLE, b"y")]),
            with(&[("a.css", STYLE, b"x"), ("b.css", STYLE, b"x")]),
        ];
        for (place, version) in versions.iter().enumerate() {
            assert!(!versions[..place].contains(version), "{versions:?}");
        }
        assert_eq!(versions[1], with(&[("a.css", STYLE, b"x")]));
    }
}
