//! Numbers for monitoring, in Prometheus' text format. Each instance has its own registry.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::face::Face;
use super::status::figures;
use super::{App, Opened, Problem};
use crate::engine::{Error, Receipt};

/// What an instance counts. Names begin with the app's.
pub(crate) struct Metrics {
    registry: Registry,
    stored: Counter,
    repeated: Counter,
    refused: Counter,
    overloaded: Counter,
    failed: Counter,
    streams: Gauge,
}

impl Metrics {
    pub(crate) fn new(face: &Face) -> Self {
        let mut registry = Registry::default();
        let results = Family::<[(&str, &str); 1], Counter>::default();
        let posts = format!("Posts of {} by what became of them", face.nouns.many);
        registry.register(name(face, face.nouns.many), posts, results.clone());
        let streams = Gauge::default();
        registry.register(name(face, "streams"), "Open event streams", streams.clone());
        let result = |name| results.get_or_create(&[("result", name)]).clone();
        Self {
            stored: result("stored"),
            repeated: result("repeated"),
            refused: result("refused"),
            overloaded: result("overloaded"),
            failed: result("failed"),
            streams,
            registry,
        }
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

    /// Counts a stream as open until the returned value is dropped.
    pub(crate) fn stream_opened(&self) -> OpenStream {
        self.streams.inc();
        OpenStream(self.streams.clone())
    }
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

/// `GET /metrics`
///
/// The figures belong to the store in the address. The instance's own numbers are shown even if the store can't be
/// read.
pub(crate) async fn metrics(
    State(app): State<App>,
    Opened { store, .. }: Opened,
) -> Result<impl IntoResponse, Problem> {
    let mut text = String::new();
    prometheus_text::encode(&mut text, &app.metrics.registry).map_err(Problem::internal)?;
    let mut of_the_store = Registry::default();
    for (figure, value) in figures(&app.face, &store).await.unwrap_or_default() {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        of_the_store.register(name(&app.face, figure), format!("The figure {figure} of the store"), gauge);
    }
    prometheus_text::encode(&mut text, &of_the_store).map_err(Problem::internal)?;
    Ok(([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], text))
}
