//! Numbers for whoever watches over the program, in Prometheus' text format.

use std::sync::OnceLock;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::App;
use crate::engine::{Error, Receipt};

/// The process's recorder. There is one a process, however many servers run in it.
#[derive(Clone)]
pub(crate) struct Metrics(Option<PrometheusHandle>);

impl Metrics {
    pub(crate) fn install() -> Self {
        static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let handle = RECORDER.get_or_init(|| {
            let handle = PrometheusBuilder::new().install_recorder();
            handle.inspect_err(|error| tracing::warn!(%error, "there will be no metrics")).ok()
        });
        describe_counter!("likewise_likes_total", "Clicks by what became of them");
        describe_gauge!("likewise_streams", "Open event streams");
        for result in ["stored", "repeated", "refused", "overloaded", "failed"] {
            counter!("likewise_likes_total", "result" => result).absolute(0);
        }
        gauge!("likewise_streams").increment(0);
        Self(handle.clone())
    }

    pub(crate) fn count_like(&self, receipt: &Result<Receipt, Error>) {
        let result = match receipt {
            Ok(Receipt { is_new: true, .. }) => "stored",
            Ok(_) => "repeated",
            Err(Error::Malformed(_) | Error::Refused(_) | Error::Conflict(_)) => "refused",
            Err(Error::Overloaded | Error::TooManyOpen) => "overloaded",
            Err(_) => "failed",
        };
        counter!("likewise_likes_total", "result" => result).increment(1);
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
    let text = app.metrics.0.map(|handle| handle.render()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], text)
}
