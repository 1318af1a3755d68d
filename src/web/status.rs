//! How a store is: for programs as JSON, for people as a line on the page.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{App, Opened};
use crate::engine::{Device, Error, Health, Standing, Store, committed_state};
use crate::likes::{count, schema};

/// The body of `GET /status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StatusReport {
    pub(crate) store: String,
    pub(crate) device: Device,
    pub(crate) count: u64,
    /// The last event of the log.
    pub(crate) head: u64,
    /// How far the committed state has come in it.
    pub(crate) cursor: u64,
    pub(crate) pending: u64,
    pub(crate) set_aside: u64,
    pub(crate) skipped: u64,
    pub(crate) unknown: u64,
    /// The log's id; null before the store's first event.
    pub(crate) log: Option<String>,
    /// Which replicas may compare the digests of their states.
    pub(crate) schema: String,
    pub(crate) upstream: UpstreamStatus,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) digests: Option<Digests>,
}

/// How the connection to the upstream is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UpstreamStatus {
    pub(crate) url: Option<String>,
    /// `none`, `connecting`, `online`, `offline` or `halted`.
    pub(crate) state: String,
    pub(crate) code: Option<String>,
    pub(crate) error: Option<String>,
    /// Since when, in milliseconds since the Unix epoch.
    pub(crate) since: Option<u64>,
}

impl UpstreamStatus {
    /// Of an instance on its own.
    pub(crate) fn none() -> Self {
        Self { url: None, state: "none".to_owned(), code: None, error: None, since: None }
    }
}

/// What tells two replicas apart, or shows that they are the same.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Digests {
    pub(crate) log_digest: String,
    pub(crate) state_digest: String,
    /// The last event that both stand for.
    pub(crate) digest_seq: u64,
}

impl StatusReport {
    /// The status of `store`, without digests.
    pub(crate) async fn of(store: &Store, device: &Device) -> Result<Self, Error> {
        let standing = match store.healthy().await {
            Health::Open(standing) => Some(standing),
            Health::Absent | Health::Opening => None,
            Health::Failed(why) => return Err(Error::Unavailable(why.into())),
        };
        let count = store.read(count()).await?;
        let at = |field: fn(&Standing) -> u64| standing.as_ref().map(field).unwrap_or_default();
        Ok(Self {
            store: store.id().to_string(),
            device: device.clone(),
            count,
            head: at(|standing| standing.head.0),
            cursor: at(|standing| standing.cursor.0),
            pending: at(|standing| standing.pending),
            set_aside: at(|standing| standing.set_aside),
            skipped: at(|standing| standing.skipped),
            unknown: at(|standing| standing.unknown),
            log: standing.and_then(|standing| standing.whose.log_id()).map(|id| id.to_string()),
            schema: schema().fingerprint(),
            upstream: UpstreamStatus::none(),
            digests: None,
        })
    }
}

/// The digests of the log and of the committed state, read beside the thread that writes.
pub(crate) fn digests(store: &Store) -> Result<Digests, Error> {
    let found = if store.files().state().exists() {
        committed_state(store.files()).map_err(|fault| Error::from(&fault))?
    } else {
        store.empty_state()?
    };
    let (cursor, state) = found;
    Ok(Digests { log_digest: cursor.digest.to_string(), state_digest: state.to_string(), digest_seq: cursor.seq.0 })
}

/// `GET /status`
pub(crate) async fn status(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    Opened { store, .. }: Opened,
) -> Result<impl IntoResponse, Problem> {
    let mut report = StatusReport::of(&store, &app.device).await?;
    let asks = |query: &str| query.split('&').any(|part| part.split('=').next() == Some("digests"));
    if query.as_deref().is_some_and(asks) {
        let digested = tokio::task::spawn_blocking(move || digests(&store)).await.map_err(Problem::internal)?;
        report.digests = Some(digested?);
    }
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(report)))
}

/// `GET /healthz`
pub(crate) async fn healthz(Opened { store, .. }: Opened) -> Result<impl IntoResponse, Problem> {
    match store.healthy().await {
        Health::Failed(why) => Err(Error::Unavailable(why.into()).into()),
        _ => Ok(([(header::CACHE_CONTROL, "no-store")], "ok\n")),
    }
}

/// What the page says about all this.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatusLine {
    pub(crate) state: &'static str,
    pub(crate) pending: u64,
    pub(crate) set_aside: u64,
    pub(crate) since: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) what_to_do: Option<String>,
}

impl StatusLine {
    pub(crate) fn of(health: &Health) -> Self {
        match health {
            Health::Opening => Self { state: "opening", ..Self::default() },
            Health::Absent => Self { state: "none", ..Self::default() },
            Health::Open(standing) => {
                let Standing { pending, set_aside, .. } = *standing;
                Self { state: "none", pending, set_aside, ..Self::default() }
            }
            Health::Failed(why) => Self { state: "failed", error: Some(why.clone()), ..Self::default() },
        }
    }
}
