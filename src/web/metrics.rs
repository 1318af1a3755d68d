//! Numbers for whoever watches over the program, in Prometheus' text format. Each instance has its own registry.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{App, Problem};
use crate::engine::{Error, Receipt};

/// What an instance counts.
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
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let results = Family::<[(&str, &str); 1], Counter>::default();
        registry.register("likewise_likes", "Clicks by what became of them", results.clone());
        let streams = Gauge::default();
        registry.register("likewise_streams", "Open event streams", streams.clone());
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

    /// Counts a post by what became of it.
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

    /// Counts a stream as open until the answer is dropped.
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

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    let mut text = String::new();
    prometheus_text::encode(&mut text, &app.metrics.registry).map_err(Problem::internal)?;
    Ok(([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], text))
}
