//! Numbers for monitoring, in Prometheus' text format. Each instance has its own registry.
//!
//! [docs/metrics.md](../../docs/metrics.md) lists them. There may be ten thousand stores, so no number has one series for
//! each: stores are added up, and the one in the address is shown by itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::face::Face;
use super::status::figures;
use super::{App, Opened, Problem};
use crate::clock;
use crate::engine::{Error, Receipt, Stores, rusqlite};
use crate::sync::{Cluster, Stand};

/// What an instance counts. Names begin with the app's.
pub(crate) struct Metrics {
    registry: Registry,
    stored: Counter,
    repeated: Counter,
    refused: Counter,
    overloaded: Counter,
    failed: Counter,
    devices_refused: Counter,
    streams: Gauge,
    commits: Histogram,
    syncs: Histogram,
}

impl Metrics {
    pub(crate) fn new(face: &Face) -> Self {
        let mut registry = Registry::default();
        let results = Family::<[(&str, &str); 1], Counter>::default();
        let posts = format!("Posts of {} by what became of them", face.nouns.many);
        registry.register(name(face, face.nouns.many), posts, results.clone());
        let streams = Gauge::default();
        registry.register(name(face, "streams"), "Open event streams of pages", streams.clone());
        let devices_refused = Counter::default();
        let help = "Requests for sync that showed no valid token";
        registry.register(name(face, "devices_refused"), help, devices_refused.clone());

        let built = [
            ("version", face.version.to_owned()),
            ("engine", env!("CARGO_PKG_VERSION").to_owned()),
            ("sqlite", rusqlite::version().to_owned()),
        ];
        registry.register(name(face, "build"), "Versions of the program, its engine and SQLite", Info::new(built));
        let started = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        started.set(seconds(clock::unix_millis()));
        let help = "When the program started, since the Unix epoch";
        registry.register_with_unit(name(face, "start_time"), help, Unit::Seconds, started);

        let commits = Histogram::new(durations());
        let help = "How long a store took for what waited to be stored, until it was on disk and everybody was told";
        registry.register_with_unit(name(face, "commit_duration"), help, Unit::Seconds, commits.clone());
        let syncs = Histogram::new(durations());
        let help = "The part of it in which the log was written and synced to the disk";
        registry.register_with_unit(name(face, "fsync_duration"), help, Unit::Seconds, syncs.clone());
        let result = |name| results.get_or_create(&[("result", name)]).clone();
        Self {
            stored: result("stored"),
            repeated: result("repeated"),
            refused: result("refused"),
            overloaded: result("overloaded"),
            failed: result("failed"),
            devices_refused,
            streams,
            commits,
            syncs,
            registry,
        }
    }

    /// Counts what `stores` write from now on.
    pub(crate) fn measure(&self, stores: &Stores) {
        let (commits, syncs) = (self.commits.clone(), self.syncs.clone());
        stores.measure(move |written| {
            commits.observe(written.commit.as_secs_f64());
            syncs.observe(written.sync.as_secs_f64());
        });
    }

    /// Counts a post by its outcome.
    pub(crate) fn count_post(&self, receipt: &Result<Receipt, Error>) {
        let counter = match receipt {
            Ok(Receipt { is_new: true, .. }) => &self.stored,
            Ok(_) => &self.repeated,
            Err(Error::Malformed(_) | Error::Refused(_) | Error::Conflict(_)) => &self.refused,
            Err(Error::Overloaded | Error::TooManyOpen) => &self.overloaded,
            Err(_) => &self.failed,
        };
        counter.inc();
    }

    /// Counts a request for sync without a valid token.
    pub(crate) fn refused(&self) {
        self.devices_refused.inc();
    }

    /// Counts a stream as open until the returned value is dropped.
    pub(crate) fn stream_opened(&self) -> OpenStream {
        self.streams.inc();
        OpenStream(self.streams.clone())
    }
}

/// The bounds of durations: from a fast disk's fsync to a disk that stands still, each double the one before.
fn durations() -> impl Iterator<Item = f64> {
    exponential_buckets(0.000_1, 2.0, 18)
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

/// A stream that counts as open.
pub(crate) struct OpenStream(Gauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The name of a metric: the app's name and its own, of letters, digits and `_`.
fn name(face: &Face, own: &str) -> String {
    format!("{}_{own}", face.name).replace(|other: char| !other.is_ascii_alphanumeric(), "_")
}

/// Numbers that are looked up when somebody asks.
struct LookedUp<'a> {
    face: &'a Face,
    registry: Registry,
}

impl LookedUp<'_> {
    fn gauge(&mut self, own: &str, help: &str, value: u64) {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.registry.register(name(self.face, own), help, gauge);
    }

    /// The stores and what waits in them.
    fn stores(&mut self, stores: &Stores) {
        let census = stores.census();
        for (own, help, value) in [
            ("stores", "Stores that exist", census.stores),
            ("stores_open", "Stores that are open; the numbers of events are about these", census.open),
            ("stores_failing", "Open stores that can't store anything at present", census.failing),
            ("events_pending", "Events that wait for a place in the log", census.pending),
            ("events_set_aside", "Events that the hub refused, and that are kept", census.set_aside),
            ("events_skipped", "Events in the log that can't be applied", census.skipped),
            ("events_unknown", "Events in the log whose name this program doesn't know", census.unknown),
            ("events_missing", "Events behind the hub's snapshot that are not here", census.missing),
            ("queue_length", "Pieces of work that wait for the threads of all stores", census.queued),
            ("queue_longest", "The most that wait for one store", census.longest_queue),
            ("queue_limit", "The most that may wait for one store", stores.limits().queue as u64),
        ] {
            self.gauge(own, help, value);
        }
    }

    /// The cluster to which this instance is a gateway.
    fn gateway(&mut self, cluster: &Cluster) {
        let stand = cluster.stand().borrow().clone();
        let is_ready = cluster.not_serving().is_none();
        self.gauge(
            "gateway_ready",
            "1 if this gateway serves devices; 0 while it is cut off from its cluster",
            is_ready.into(),
        );
        if let Stand::Ready(now) = stand {
            let current = now.followers.iter().filter(|(_, fault)| fault.is_none()).count() as u64 + 1;
            for (own, help, value) in [
                ("gateway_stream_messages", "Messages in the stream", now.messages),
                ("gateway_stream_bytes", "Bytes of the stream", now.bytes),
                ("gateway_replicas", "Copies that the stream is to have", now.replicas),
                ("gateway_replicas_current", "Copies of the stream that are complete", current),
            ] {
                self.gauge(own, help, value);
            }
        }
        let counts = cluster.counts();
        for (own, help, count) in [
            ("gateway_published", "Messages that this gateway put into the stream", &counts.published),
            ("gateway_raced", "Messages that were made anew because another gateway was faster", &counts.raced),
            ("gateway_unanswered", "Messages to which the stream gave no answer", &counts.unanswered),
            ("gateway_losses", "How often it was found that the stream had lost something", &counts.losses),
        ] {
            let counter = Counter::<u64>::default();
            counter.inc_by(count.load(Ordering::Relaxed));
            self.registry.register(name(self.face, own), help, counter);
        }
    }

    /// The devices that sync with this hub, or the hub that this instance syncs with.
    fn sync(&mut self, app: &App) {
        if !app.clients.follow_hub() {
            let (devices, connected, pulls) = app.hub.devices();
            self.gauge("devices", "Devices that may sync with this hub", devices as u64);
            self.gauge("devices_connected", "Devices that are connected", connected as u64);
            self.gauge("pulls", "Streams in which devices pull stores", pulls as u64);
        }
        if !app.clients.have_upstream() {
            return;
        }
        if let Some(cluster) = app.clients.cluster() {
            self.gateway(cluster);
        }
        let states = Family::<[(&str, &str); 1], Gauge>::default();
        for (state, count) in app.clients.states() {
            states.get_or_create(&[("state", state.as_str())]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let help = "Stores that are kept level with the hub, by the state of their connection";
        self.registry.register(name(self.face, "upstream_stores"), help, states);
        let heard = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        heard.set(seconds(app.clients.heard().unwrap_or_default()));
        let help = "When the hub last said anything, since the Unix epoch; 0 if it hasn't since the program started";
        let own = name(self.face, "upstream_last_sync_timestamp");
        self.registry.register_with_unit(own, help, Unit::Seconds, heard);
    }
}

/// `GET /metrics`
///
/// Health and figures belong to the store in the address. The instance's own numbers are shown even if the store can't be
/// read.
pub(crate) async fn metrics(
    State(app): State<App>,
    Opened { store, .. }: Opened,
) -> Result<impl IntoResponse, Problem> {
    let mut now = LookedUp { face: &app.face, registry: Registry::default() };
    let is_healthy = store.healthy().await.trouble().is_none() && app.hub.trouble().is_none();
    now.gauge("healthy", "1 if an event can be stored, as /healthz says; 0 if not", is_healthy.into());
    now.stores(&app.stores);
    now.sync(&app);
    for (figure, value) in figures(&app.face, &store).await.unwrap_or_default() {
        now.gauge(figure, &format!("The figure {figure} of the store"), value);
    }
    let mut text = String::new();
    for registry in [&app.metrics.registry, &now.registry] {
        prometheus_text::encode(&mut text, registry).map_err(Problem::internal)?;
    }
    Ok(([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], text))
}
