//! Receives the body of a request, within the share of memory that bodies may take.

use axum::extract::{FromRef, FromRequest, Request};
use axum::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use hyper::body::Body as _;

use super::guard::Asker;
use super::shares::{Full, Lease};
use super::{App, Problem};

/// The whole body of a request, and the headers that came with it.
pub(crate) struct Received {
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
    /// Held until the request is answered, because what is made from a body is larger than the body.
    _lease: Lease,
}

impl<S> FromRequest<S> for Received
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let busy = |full: Full| {
            let what = "More is being sent";
            full.problem("too-much-at-once", what, "Nothing was stored. Repeat it with the same ids.", 1)
        };
        let mut lease = App::from_ref(state).shares.bodies.lend(&Asker::of(&parts).who, 0).map_err(busy)?;
        let headers = parts.headers;
        let mut bytes = BytesMut::new();
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            // The guard, which bounds the body, says what is wrong with it.
            let piece = piece.map_err(|_| Problem::from(StatusCode::BAD_REQUEST))?;
            lease.extend(piece.len()).map_err(busy)?;
            if bytes.is_empty() && pieces.is_end_stream() {
                return Ok(Self { headers, bytes: piece, _lease: lease });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Self { headers, bytes: bytes.freeze(), _lease: lease })
    }
}
