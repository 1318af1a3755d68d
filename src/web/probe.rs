//! The test stream, with which `doctor` sees whether streams arrive through whatever is in front of this server.
//!
//! Nobody knows who answers at a public address before it is asked. So what is shown there opens this one stream, once, and
//! nothing else. The stream's only event is what this process told the command beforehand, so no other program can pretend
//! to be this one.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::guard::bearer_token;
use super::{App, Problem, STREAM_HEADERS};
use crate::limits::web::probe::{LASTS, OPEN};
use crate::random;
use crate::sync::sse;

/// What a command is given for one test.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// What it shows to get the test stream.
    pub(crate) token: String,
    /// What the stream's event says.
    pub(crate) answer: String,
}

/// The tests that were asked for and not made yet. They are in memory alone.
#[derive(Default)]
pub(crate) struct Probes(Mutex<Vec<(Probe, Instant)>>);

impl Probes {
    fn begin(&self) -> Probe {
        let probe = Probe { token: random::hex::<32>(), answer: random::hex::<16>() };
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, since)| since.elapsed() < LASTS);
        if open.len() == OPEN {
            open.remove(0);
        }
        open.push((probe.clone(), Instant::now()));
        probe
    }

    /// Returns what to answer to whoever shows `token`, once.
    fn take(&self, token: &[u8]) -> Option<String> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, since)| since.elapsed() < LASTS);
        let is_shown = |(probe, _): &(Probe, Instant)| probe.token.as_bytes().ct_eq(token).into();
        let place = open.iter().position(is_shown)?;
        Some(open.remove(place).0.answer)
    }
}

/// `POST /control/v1/probe`: begins a test.
pub(crate) async fn begin(State(app): State<App>) -> Json<Probe> {
    Json(app.probes.begin())
}

/// `GET /sync/v1/probe`: the test stream. It stays open after its event: what gathers streams would pass on all of one that
/// ends.
pub(crate) async fn stream(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let answer = bearer_token(&headers).and_then(|token| app.probes.take(token)).ok_or(StatusCode::UNAUTHORIZED)?;
    let event: Bytes = sse::frame("probe", &answer);
    let shutdown = app.shutdown.clone();
    let end = async move {
        shutdown.run_until_cancelled(tokio::time::sleep(LASTS)).await;
        None
    };
    let events = stream::iter([Ok::<_, Infallible>(event)]).chain(stream::once(end).filter_map(std::future::ready));
    Ok((STREAM_HEADERS, Body::from_stream(events)).into_response())
}
