//! Numbers for whoever watches over the program, in Prometheus' text format.

use std::sync::OnceLock;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use metrics::{Counter, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::App;
use crate::engine::{Error, Receipt};

/// The process's recorder, and the counters that every like passes. There is one a process, however many servers run in
/// it.
#[derive(Clone)]
pub(crate) struct Metrics {
    recorder: Option<PrometheusHandle>,
    stored: Counter,
    repeated: Counter,
    refused: Counter,
    overloaded: Counter,
    failed: Counter,
}

impl Metrics {
    pub(crate) fn install() -> Self {
        static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let recorder = RECORDER.get_or_init(|| {
            let handle = PrometheusBuilder::new().install_recorder();
            handle.inspect_err(|error| tracing::warn!(%error, "there will be no metrics")).ok()
        });
        describe_counter!("likewise_likes_total", "Clicks by what became of them");
        describe_gauge!("likewise_streams", "Open event streams");
        gauge!("likewise_streams").increment(0);
        let likes = |result| {
            let counter = counter!("likewise_likes_total", "result" => result);
            counter.absolute(0);
            counter
        };
        Self {
            recorder: recorder.clone(),
            stored: likes("stored"),
            repeated: likes("repeated"),
            refused: likes("refused"),
            overloaded: likes("overloaded"),
            failed: likes("failed"),
        }
    }

    pub(crate) fn count_like(&self, receipt: &Result<Receipt, Error>) {
        let counter = match receipt {
            Ok(Receipt { is_new: true, .. }) => &self.stored,
            Ok(_) => &self.repeated,
            Err(Error::Malformed(_) | Error::Refused(_) | Error::Conflict(_)) => &self.refused,
            Err(Error::Overloaded | Error::TooManyOpen) => &self.overloaded,
            Err(_) => &self.failed,
        };
        counter.increment(1);
    }

    /// Counts a stream as open until the answer is dropped.
    pub(crate) fn stream_opened(&self) -> OpenStream {
        gauge!("likewise_streams").increment(1);
        OpenStream
    }
}

/// A stream that counts as open.
pub(crate) struct OpenStream;

impl Drop for OpenStream {
    fn drop(&mut self) {
        gauge!("likewise_streams").decrement(1);
    }
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let text = app.metrics.recorder.as_ref().map(|recorder| recorder.render()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], text)
}
