//! How this instance is set up, for `doctor`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::embed::Embedding;
use super::status::{HistoryStatus, UpstreamStatus};
use super::{App, Problem};
use crate::sync::{Cluster, Overview, Stand};

/// How an instance is set up, and how it is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// Where others reach it.
    pub(crate) public_url: Option<String>,
    /// Its connection to the hub, for the app's first store.
    pub(crate) upstream: UpstreamStatus,
    /// What is here of the events behind the hub's snapshot, if that store began with one.
    #[serde(default)]
    pub(crate) history: Option<HistoryStatus>,
    /// The cluster, if it is a gateway.
    #[serde(default)]
    pub(crate) cluster: Option<ClusterSetting>,
    /// Why nothing can be stored in that store.
    pub(crate) trouble: Option<String>,
    /// Flags that don't fit together, each with what to do about it.
    pub(crate) faults: Vec<(String, String)>,
}

/// The cluster to which an instance is a gateway, and how it is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ClusterSetting {
    /// Why it can't be used, if it can't.
    pub(crate) trouble: Option<String>,
    /// Which server is connected to, with its version.
    pub(crate) server: String,
    /// Where the copies of the stream are.
    pub(crate) copies: String,
    /// How many servers have a copy of the stream.
    #[serde(default)]
    pub(crate) servers: usize,
    /// What somebody should mend though sync goes on, and how.
    #[serde(default)]
    pub(crate) faults: Vec<String>,
    /// What should be better for real use, and what to do.
    pub(crate) flaws: Vec<String>,
}

impl ClusterSetting {
    /// Describes a cluster as it was found.
    pub(crate) fn of(overview: &Overview) -> Self {
        let Overview { server, version, faults, flaws, followers, .. } = overview;
        Self {
            trouble: None,
            server: format!("{server}, nats-server {version}"),
            copies: overview.copies(),
            servers: followers.len() + 1,
            faults: faults.clone(),
            flaws: flaws.clone(),
        }
    }

    fn now(cluster: &Cluster) -> Self {
        match &*cluster.stand().borrow() {
            Stand::Ready(overview) => Self::of(overview),
            Stand::Away(why) | Stand::Unfit(why) => Self::in_trouble(why),
            Stand::Connecting => Self::in_trouble("it is not reached yet"),
        }
    }

    fn in_trouble(why: &str) -> Self {
        Self { trouble: Some(why.to_owned()), ..Self::default() }
    }
}

/// `GET /control/v1/setting`
pub(crate) async fn setting(State(app): State<App>) -> Result<Json<Setting>, Problem> {
    let first = app.face.store.parse().map_err(Problem::internal)?;
    let store = app.stores.get(&first)?;
    let link = app.clients.attend(&store, usize::MAX).borrow().clone();
    let health = store.healthy().await;
    let trouble = health.trouble().map(str::to_owned).or_else(|| app.hub.trouble());
    let history = health.standing().and_then(|standing| standing.history);
    let history = history.map(|found| HistoryStatus::of(found, link.history));
    let (public_url, mut faults) = (app.public_url.clone(), app.faults.clone());
    faults.extend(app.embedding.iter().flat_map(Embedding::faults));
    let cluster = app.clients.cluster().map(ClusterSetting::now);
    Ok(Json(Setting { public_url, upstream: (&link).into(), history, cluster, trouble, faults }))
}
