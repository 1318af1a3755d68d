//! Static files, inside the binary: those that every program has, and the app's own. Their addresses carry a version, so
//! browsers may keep them for ever. They go out compressed where the browser takes it.

use std::io::Write as _;
use std::sync::OnceLock;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::App;
use super::face::Face;
use super::problem::Problem;
use crate::limits::web::assets::{GZIP, WORTH};

/// A static file.
#[derive(Clone)]
pub(crate) struct Asset {
    pub(crate) name: &'static str,
    /// Its type, as `Content-Type` says it.
    pub(crate) kind: &'static str,
    pub(crate) bytes: &'static [u8],
    /// The file in gzip, once somebody has asked for it. Nothing if that saves too little.
    gzipped: OnceLock<Option<Bytes>>,
}

/// The icon of a program. An app may replace it.
pub(crate) const ICON: &str = "favicon.svg";

/// The icons of an installed page, the best first. The maskable one is also for devices that cut icons into a shape.
const ICONS: [&str; 4] = [ICON, "icon-192.png", "icon-512.png", MASKABLE];

/// The icon with room around it, so that a device may cut it into any shape.
const MASKABLE: &str = "icon-maskable.png";

pub(super) const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PNG: &str = "image/png";

/// The files that every program has. Scripts are ES modules, used as they stand.
static COMMON: [Asset; 18] = [
    Asset::new("likewise.js", SCRIPT, include_bytes!("../../static/likewise.js")),
    Asset::new("worker.js", SCRIPT, include_bytes!("../../static/worker.js")),
    Asset::new("backoff.js", SCRIPT, include_bytes!("../../static/backoff.js")),
    Asset::new("forms.js", SCRIPT, include_bytes!("../../static/forms.js")),
    Asset::new("ids.js", SCRIPT, include_bytes!("../../static/ids.js")),
    Asset::new("kept.js", SCRIPT, include_bytes!("../../static/kept.js")),
    Asset::new("link.js", SCRIPT, include_bytes!("../../static/link.js")),
    Asset::new("morph.js", SCRIPT, include_bytes!("../../static/morph.js")),
    Asset::new("outbox.js", SCRIPT, include_bytes!("../../static/outbox.js")),
    Asset::new("pair.js", SCRIPT, include_bytes!("../../static/pair.js")),
    Asset::new("stream.js", SCRIPT, include_bytes!("../../static/stream.js")),
    Asset::new("summary.js", SCRIPT, include_bytes!("../../static/summary.js")),
    Asset::new("view.js", SCRIPT, include_bytes!("../../static/view.js")),
    Asset::new("app.css", STYLE, include_bytes!("../../static/app.css")),
    Asset::new(ICON, "image/svg+xml", include_bytes!("../../static/favicon.svg")),
    Asset::new("icon-192.png", PNG, include_bytes!("../../static/icon-192.png")),
    Asset::new("icon-512.png", PNG, include_bytes!("../../static/icon-512.png")),
    Asset::new(MASKABLE, PNG, include_bytes!("../../static/icon-maskable.png")),
];

impl Asset {
    pub(crate) const fn new(name: &'static str, kind: &'static str, bytes: &'static [u8]) -> Self {
        Self { name, kind, bytes, gzipped: OnceLock::new() }
    }

    /// The answer to a request with these headers. `kept` says how caches may keep it.
    pub(super) fn answer(&self, headers: &HeaderMap, kept: &'static str) -> Response {
        let head = [
            (header::CONTENT_TYPE, self.kind),
            (header::CACHE_CONTROL, kept),
            // For caches on the way, which serve browsers of other abilities.
            (header::VARY, "accept-encoding"),
        ];
        match self.gzipped().filter(|_| prefers_gzip(headers)) {
            Some(gzipped) => (head, [(header::CONTENT_ENCODING, "gzip")], gzipped).into_response(),
            None => (head, self.bytes).into_response(),
        }
    }

    /// The file in gzip, if that is worth it. The first call makes it.
    fn gzipped(&self) -> Option<Bytes> {
        self.gzipped.get_or_init(|| (self.bytes.len() <= GZIP).then(|| gzip(self.bytes)).flatten()).clone()
    }
}

/// `bytes` in gzip. Nothing if that saves too little.
pub(crate) fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).ok()?;
    let gzipped = encoder.finish().ok()?;
    (gzipped.len() + bytes.len() / WORTH <= bytes.len()).then(|| gzipped.into())
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

    /// The names of the icons of an installed page. They show one picture: an app that has one of its own gets none of the
    /// common ones beside it.
    pub(crate) fn icons(&self) -> impl Iterator<Item = &'static str> {
        let is_own = |name: &&str| self.own.iter().any(|asset| asset.name == *name);
        let has_own = ICONS.iter().any(is_own);
        ICONS.into_iter().filter(move |name| !has_own || is_own(name))
    }

    /// The icon for devices that know no manifest and cut icons into a shape.
    pub(crate) fn touch_icon(&self) -> Option<&'static str> {
        self.icons().find(|name| *name == MASKABLE)
    }

    /// What changes with any of the files.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The app's own stylesheets.
    pub(crate) fn own_styles(&self) -> impl Iterator<Item = &Asset> {
        let is_style = |asset: &&Asset| asset.kind.split(';').next().is_some_and(|kind| kind.trim() == "text/css");
        self.own.iter().filter(is_style)
    }
}

/// Whether `name` is a common file that an app may not replace.
pub(crate) fn is_common(name: &str) -> bool {
    !ICONS.contains(&name) && COMMON.iter().any(|asset| asset.name == name)
}

fn version(own: &[Asset]) -> String {
    let mut hasher = blake3::Hasher::new();
    for Asset { name, kind, bytes, .. } in COMMON.iter().chain(own) {
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
pub(crate) async fn asset(
    State(app): State<App>,
    Path((version, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let assets = &app.face.assets;
    match assets.find(&name) {
        Some(asset) if version != assets.version => current(&app.face, asset.name),
        Some(asset) => asset.answer(&headers, "public, max-age=31536000, immutable"),
        None => Problem::from(StatusCode::NOT_FOUND).into_response(),
    }
}

/// Whether a request takes gzip, and likes the file as it is no better
/// (<https://www.rfc-editor.org/rfc/rfc9110#field.accept-encoding>).
pub(crate) fn prefers_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut others) = (None, None, 0.0);
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for item in values.flat_map(|value| value.split(',')) {
        let (coding, weight) = item.split_once(';').unwrap_or((item, "q=1"));
        let weight = weight.trim().strip_prefix("q=").or(weight.trim().strip_prefix("Q="));
        let weight: f32 = weight.and_then(|weight| weight.parse().ok()).unwrap_or(0.0);
        match coding.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => gzip = Some(weight),
            "identity" => identity = Some(weight),
            "*" => others = weight,
            _ => {}
        }
    }
    let gzip = gzip.unwrap_or(others);
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
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

/// `GET /apple-touch-icon.png`, which some devices ask for whatever the page says.
pub(crate) async fn touch_icon(State(app): State<App>) -> Response {
    match app.face.assets.touch_icon() {
        Some(name) => current(&app.face, name),
        None => Problem::from(StatusCode::NOT_FOUND).into_response(),
    }
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
            files.iter().for_each(|(name, kind, bytes)| assets.add(Asset::new(name, kind, bytes)));
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

    #[test]
    fn icons_of_an_app_and_common_ones_are_never_mixed() {
        let mut assets = Assets::common();
        assert_eq!(assets.icons().collect::<Vec<_>>(), ICONS);
        assert_eq!(assets.touch_icon(), Some(MASKABLE));
        assets.add(Asset::new("a.css", STYLE, b"x"));
        assert_eq!(assets.icons().count(), ICONS.len());
        assets.add(Asset::new(ICON, "image/svg+xml", b"x"));
        assert_eq!(assets.icons().collect::<Vec<_>>(), [ICON]);
        assert_eq!(assets.touch_icon(), None);
    }

    #[test]
    fn gzip_is_sent_where_it_is_taken() {
        let prefers = |values: &[&str]| {
            let values = values.iter().map(|value| (header::ACCEPT_ENCODING, value.parse().expect("a value")));
            prefers_gzip(&values.collect())
        };
        for yes in ["gzip", "gzip, deflate, br, zstd", "br;q=1.0, GZIP ; q=0.5", "*", "identity;q=0.5, gzip", "x-gzip"]
        {
            assert!(prefers(&[yes]), "{yes}");
        }
        for no in ["", "identity", "br", "gzip;q=0", "gzip; q=0.000, *", "*;q=0", "identity, gzip;q=0.5", "gzip;q=x"] {
            assert!(!prefers(&[no]), "{no}");
        }
        assert!(prefers(&["br", "gzip"]), "in two lines");
        assert!(!prefers(&[]));
    }

    #[test]
    fn what_gzip_makes_no_smaller_stays_as_it_is() {
        let noise: Vec<u8> = (0..200_u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        assert_eq!(gzip(&noise), None);
        assert_eq!(gzip(b""), None);
        assert!(gzip(&[b'x'; 1_000]).expect("it is worth it").len() < 100);
    }
}
