//! The routes through which commands on this machine ask the process that has the data directory. They show the key in the
//! lock file, which only the owner of the data can read. The guard has looked at it before anything here runs.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use futures_util::{TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::problem::Problem;
use super::{App, AskedStore, Opened, pair, sentence};
use crate::engine::{self, Error, Fault, Files, ImportError, Imported, Report, Setup, Standing, import};
use crate::limits::web::control::{PIECE, PIECES};

/// `POST /control/v1/{store}/import`
pub(crate) async fn import_route(
    State(app): State<App>,
    Opened { store, .. }: Opened,
    body: Body,
) -> Result<Json<Imported>, Problem> {
    let input = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let imported = import(&store, &app.device, input).await.map_err(|error| match error {
        ImportError::Line(..) => Problem::bad_request("malformed-import", sentence(error), AFTER_IMPORT),
        ImportError::Store(..) | ImportError::Unusable(_) => {
            Problem::unavailable("store-unavailable", sentence(error), AFTER_IMPORT, 2)
        }
    })?;
    Ok(Json(imported))
}

/// The header that says how many events of the log are missing in an export.
pub(crate) const MISSING: HeaderName = HeaderName::from_static("likewise-missing");

/// Which events to write out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exported {
    All,
    SetAside,
}

impl Exported {
    /// The end of the route that gives them.
    pub(crate) fn route(self) -> &'static str {
        match self {
            Self::All => "export",
            Self::SetAside => "set-aside",
        }
    }

    /// Writes them to `out`, and returns how many events of the log are missing.
    pub(crate) fn write(self, files: &Files, out: &mut dyn Write) -> Result<u64, Fault> {
        match self {
            Self::All => engine::export(files, out).map(|written| written.missing),
            Self::SetAside => engine::export_set_aside(files, out).map(|()| 0),
        }
    }
}

/// `GET /control/v1/{store}/export`
pub(crate) async fn export(State(app): State<App>, asked: AskedStore) -> Result<impl IntoResponse, Problem> {
    // A store that can't be opened can still be exported. What arrives from here on may be in it, too.
    let standing = match app.stores.get(asked.id()) {
        Ok(store) => store.healthy().await.standing().cloned(),
        Err(_) => None,
    };
    let missing = standing.and_then(|standing| standing.history).map_or(0, |history| history.missing());
    let body = write_out(&app, &asked, Exported::All).await?;
    Ok(([(MISSING, missing.to_string())], body))
}

/// `GET /control/v1/{store}/set-aside`
pub(crate) async fn export_set_aside(State(app): State<App>, asked: AskedStore) -> Result<Body, Problem> {
    write_out(&app, &asked, Exported::SetAside).await
}

/// Streams a store's events into the body of an answer, as fast as the client reads them. Works even where the store
/// itself can't be opened: it writes what can be read.
async fn write_out(app: &App, asked: &AskedStore, which: Exported) -> Result<Body, Problem> {
    let files = existing(app, asked).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
        if let Err(fault) = which.write(&files, &mut out) {
            // A client that hung up knows. Any other has to learn that the export is not complete.
            drop(sender.blocking_send(Err(io::Error::other(fault))));
        }
    });
    Ok(Body::from_stream(stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    })))
}

/// The output, as pieces of a body.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(Ok(Bytes::copy_from_slice(piece))).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `POST /control/v1/{store}/verify`
pub(crate) async fn verify(State(app): State<App>, asked: AskedStore) -> Result<Json<Report>, Problem> {
    let files = existing(&app, &asked).await?;
    let (schema, device) = (app.stores.schema(), app.device.clone());
    let verify = move || {
        let executable = engine::executable()?;
        engine::verify(&files, &Setup { schema, device, executable, progress: |_, _| {} })
    };
    let report = tokio::task::spawn_blocking(verify).await.map_err(Problem::internal)?;
    Ok(Json(report.map_err(|fault| Error::from(&fault))?))
}

/// The files of a store, provided that it has events.
async fn existing(app: &App, asked: &AskedStore) -> Result<Files, Problem> {
    let files = app.stores.files(asked.id());
    let looked_at = files.clone();
    let blank = tokio::task::spawn_blocking(move || engine::is_blank(&looked_at)).await.map_err(Problem::internal)?;
    if blank.map_err(|fault| Error::from(&fault))? {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no-such-store",
            format!("There is no store {} in {}.", asked.id(), app.data.display()),
            "Name the store with --store.",
        ));
    }
    Ok(files)
}

/// `POST /control/v1/tokens`: reads the tokens again, and answers when what was changed there holds. What a gateway's files
/// have, all gateways know then.
pub(crate) async fn tokens(State(app): State<App>) -> Result<StatusCode, Problem> {
    app.hub.share().await?;
    match app.hub.trouble() {
        None => Ok(StatusCode::NO_CONTENT),
        Some(why) => Err(tokens_unknown(&why)),
    }
}

/// `GET /control/v1/pairing`: where others reach this hub, for a command that makes a link.
pub(crate) async fn pairing(State(app): State<App>) -> Result<Json<PairingAt>, Problem> {
    if app.clients.follow_hub() {
        return Err(pair::follows());
    }
    Ok(Json(PairingAt { public_url: app.pairings.public_url.as_ref().map(ToString::to_string) }))
}

/// The hub that a process follows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Followed {
    pub(crate) url: Option<String>,
}

/// `GET /control/v1/joined`: which hub this process follows, for a command that joins its directory to one.
pub(crate) async fn followed(State(app): State<App>) -> Json<Followed> {
    Json(Followed { url: app.clients.upstream() })
}

/// `POST /control/v1/joined`: the directory was joined to a hub. A process that follows none begins anew, and then follows
/// it. Any other looks at its token again by itself.
pub(crate) async fn joined(state: State<App>) -> Json<Followed> {
    if !state.clients.have_upstream() {
        state.anew.cancel();
        state.shutdown.cancel();
    }
    followed(state).await
}

/// Where others reach a hub.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PairingAt {
    /// Its address, if it is known.
    pub(crate) public_url: Option<String>,
}

/// The hub can't read its tokens.
pub(super) fn tokens_unknown(why: &str) -> Problem {
    Problem::unavailable("tokens-unreadable", sentence(why), "Mend the file, or take it from a backup.", 5)
}

/// `POST /control/v1/backup`, with the directory of the copy as the body: a path from the root, byte for byte.
pub(crate) async fn backup(State(app): State<App>, body: Bytes) -> Result<Json<usize>, Problem> {
    let to = path(body).filter(|to| to.is_absolute()).ok_or_else(|| {
        let detail = "The body is not the path of a directory, from the root.";
        Problem::bad_request("malformed-backup", detail, format!("Use `{} backup TO`.", app.face.name))
    })?;
    let data = app.data.clone();
    let copied = tokio::task::spawn_blocking(move || crate::data_dir::backup(&data, &to)).await;
    let copied = copied.map_err(Problem::internal)?.map_err(|error| {
        let why = sentence(format!("{error:#}"));
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "backup-failed", why, "Nothing was changed.")
    })?;
    Ok(Json(copied))
}

/// These bytes as a path.
fn path(bytes: Bytes) -> Option<PathBuf> {
    #[cfg(unix)]
    let path = Some(std::os::unix::ffi::OsStringExt::from_vec(bytes.into()));
    #[cfg(not(unix))]
    let path = String::from_utf8(bytes.into()).ok();
    path.map(|path: std::ffi::OsString| path.into())
}

/// `POST /control/v1/{store}/adopt`
pub(crate) async fn adopt(State(app): State<App>, Opened { store, .. }: Opened) -> Result<Json<Standing>, Problem> {
    if !app.clients.have_upstream() {
        return Err(Problem::conflict(
            "no-upstream",
            "This program follows no hub that it could adopt the log of.",
            "Start it with --upstream, and adopt then.",
        ));
    }
    Ok(Json(store.adopt().await?))
}

/// `POST /control/v1/{store}/promote`
pub(crate) async fn promote(State(app): State<App>, Opened { store, .. }: Opened) -> Result<Json<Standing>, Problem> {
    if app.clients.have_upstream() {
        return Err(Problem::conflict(
            "follows-a-hub",
            "This program follows a hub, so it can't be the authority of the log itself.",
            "Stop it, promote then, and start it without --upstream.",
        ));
    }
    Ok(Json(store.promote().await?))
}

/// `POST /control/v1/{store}/set-aside/retry`
pub(crate) async fn retry_set_aside(Opened { store, .. }: Opened) -> Result<Json<usize>, Problem> {
    Ok(Json(store.retry_set_aside().await?))
}

/// The advice after an [`ImportError`].
pub(crate) const AFTER_IMPORT: &str =
    "What stood before it is stored. Mend the cause and import again: nothing is added twice.";
