//! How large the body of a request may be, and how slowly it may arrive.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tower::Service as _;

use super::Policy;
use crate::web::problem::Problem;

/// How large the body of a request may be, and how slowly it may arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyRule {
    /// In bytes; `None` only where the route reads the body as a stream.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) patience: Patience,
}

/// How long to wait for the body of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// For the whole body. A byte now and then doesn't extend the wait.
    Total(Duration),
    /// For the next piece, where the length of a body says nothing about how long it takes.
    Idle(Duration),
}

/// The innermost step. A body whose declared length is too large is refused at once, any other when it exceeds the
/// limit.
pub(super) async fn bound_body(policy: &Policy, mut request: Request, router: Router) -> Response {
    let path = request.uri().path();
    let rule = policy.body_rule(path);
    let is_form = policy.is_form(path);
    let too_large = move || if is_form { form_too_large(rule.max_bytes) } else { data_too_large(rule.max_bytes) };
    // axum's own limit would cut in before ours.
    DefaultBodyLimit::disable().apply(&mut request);
    if request.body().is_end_stream() {
        return routed(router, request).await;
    }
    let max_bytes = rule.max_bytes.unwrap_or(u64::MAX);
    if request.body().size_hint().lower() > max_bytes {
        return too_large().into_response();
    }

    let fault = Arc::new(OnceLock::new());
    let request = request.map(|inner| {
        Body::new(BoundedBody {
            inner,
            left: max_bytes,
            patience: rule.patience,
            deadline: Instant::now() + rule.patience.duration(),
            timer: None,
            fault: fault.clone(),
        })
    });
    let answer = routed(router, request).await;
    match fault.get() {
        // The handler saw malformed content. The cause is the better answer.
        Some(BodyFault::TooLarge) if answer.status().is_client_error() => too_large().into_response(),
        Some(BodyFault::TooSlow) if answer.status().is_client_error() => {
            Problem::from(StatusCode::REQUEST_TIMEOUT).into_response()
        }
        _ => answer,
    }
}

async fn routed(mut router: Router, request: Request) -> Response {
    router.call(request).await.unwrap_or_else(|never| match never {})
}

impl Patience {
    fn duration(self) -> Duration {
        match self {
            Self::Total(duration) | Self::Idle(duration) => duration,
        }
    }
}

/// Why a body was cut off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum BodyFault {
    #[error("the body of the request is larger than this address takes")]
    TooLarge,
    #[error("the body of the request did not arrive in time")]
    TooSlow,
}

fn data_too_large(max_bytes: Option<u64>) -> Problem {
    let Some(max_bytes) = max_bytes else { return StatusCode::PAYLOAD_TOO_LARGE.into() };
    let detail = format!("The request carries more than the {max_bytes} bytes that this address takes.");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail, "Send less at once.")
}

/// A form that is too large. Its code is final: the same post can never succeed, so the page returns the text to its
/// author. `body-too-large` isn't final. It may come from a proxy and be about the proxy's settings, so the page keeps
/// the post and tries again.
fn form_too_large(max_bytes: Option<u64>) -> Problem {
    let most = max_bytes.map(|bytes| format!(": a form carries at most {bytes} bytes")).unwrap_or_default();
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "malformed-form",
        format!("What you wrote is too long{most}."),
        "Nothing was stored. Go back to what you wrote, shorten it, and post it again.",
    )
}

/// A request body that fails when it gets too large or too slow, and records which.
struct BoundedBody {
    inner: Body,
    left: u64,
    patience: Patience,
    deadline: Instant,
    /// Made only once the body keeps us waiting. Most bodies arrive with their head.
    timer: Option<Pin<Box<Sleep>>>,
    fault: Arc<OnceLock<BodyFault>>,
}

impl BoundedBody {
    fn fail(&self, fault: BodyFault) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Only the first fault counts. A body that is polled again stays failed.
        let fault = self.fault.get_or_init(|| fault);
        Poll::Ready(Some(Err(axum::Error::new(*fault))))
    }
}

impl hyper::body::Body for BoundedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(fault) = self.fault.get() {
            return self.fail(*fault);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let deadline = self.deadline;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            ready!(timer.as_mut().poll(cx));
            return self.fail(BodyFault::TooSlow);
        };
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => return self.fail(BodyFault::TooLarge),
            }
        }
        if let Patience::Idle(duration) = self.patience {
            self.deadline = Instant::now() + duration;
            let deadline = self.deadline;
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(deadline);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
