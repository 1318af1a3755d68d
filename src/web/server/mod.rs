//! The HTTP/1.1 server loop. `axum::serve` has no header timeout, no limit of connections and no deadline for event
//! streams at shutdown. A server that strangers can reach and that must stop within seconds needs all three.

mod event_stream;
mod framing;
mod limits;
mod listener;
mod lobby;
mod socket;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use hyper::Request;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use self::event_stream::{Asked, EventStream, HandedOver};
pub(crate) use self::limits::{Limits, raise_open_file_limit, stores_within_open_files};
pub(crate) use self::listener::{Door, Listener};
use self::listener::{Peer, Stream, tcp, write_and_close};
pub(crate) use self::lobby::Connection;
use self::lobby::{Answering, Lobby};
use self::socket::{Socket, set_up};
use crate::limits::web::server::GOING;

use super::guard::{CameIn, Guarded, SECURITY_HEADERS};

/// Serves `site` on `listener` until `shutdown`, and returns when the last connection is gone or `limits.drain` is
/// over.
///
/// Each request carries its [`Connection`], and how that came in, as [`CameIn`].
/// At shutdown, requests in flight finish. Event streams have to end by themselves, on the same token.
pub(crate) async fn serve(listener: Listener, site: Guarded, limits: Limits, shutdown: CancellationToken) {
    let server = Arc::new(Server { http: http1_with(limits), site, limits, shutdown });
    let busy_answer = busy_answer();
    let lobby = Lobby::new();
    let mut connections = JoinSet::new();
    let mut accept_errors = AcceptErrors::default();
    let mut closing = pin!(server.closing_time());
    loop {
        let accepted = tokio::select! {
            () = &mut closing => break,
            accepted = listener.accept() => accepted,
        };
        while let Some(ended) = connections.try_join_next() {
            report_panic(ended);
        }
        match accepted {
            Ok((stream, peer)) => {
                let open = connections.len();
                let has_room = open < limits.connections || open < limits.connections + GOING && lobby.make_room();
                if has_room {
                    let connection = lobby.enter(peer.is_on_this_machine());
                    connections.spawn(Arc::clone(&server).attend(stream, peer, connection));
                } else {
                    tracing::debug!("a connection was refused: {open} are open");
                    // A new socket takes this little without waiting. If not, the closed connection is an answer, too.
                    write_and_close(stream, &busy_answer);
                }
            }
            Err(error) => accept_errors.pause_after(&error).await,
        }
    }

    drop(listener);
    let drained = timeout(limits.drain, async {
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    });
    if drained.await.is_err() {
        tracing::warn!("{} connections did not end within {:?} and were cut off", connections.len(), limits.drain);
        connections.shutdown().await;
    }
}

fn http1_with(limits: Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The socket bounds how long a head may take, and how long a connection may rest: it sets no timer for each request.
    http.header_read_timeout(None).max_buf_size(limits.buffer_bytes);
    http
}

/// What all connections share.
struct Server {
    http: http1::Builder,
    site: Guarded,
    limits: Limits,
    shutdown: CancellationToken,
}

impl Server {
    /// Resolves when the server takes no more requests.
    async fn closing_time(&self) {
        self.shutdown.cancelled().await;
        sleep(self.limits.last_call).await;
    }

    /// Serves one connection, from its acceptance to its end. There may be thousands that have yet to ask for something, and
    /// thousands of event streams. So what a conversation needs is there only during the conversation.
    async fn attend(self: Arc<Self>, stream: Stream, peer: Peer, connection: Connection) {
        let came_in = match set_up(&stream, self.limits).and_then(|()| came_in(&stream, peer)) {
            Ok(came_in) => came_in,
            Err(error) => {
                tracing::debug!(%error, "a connection was gone before its first byte");
                return;
            }
        };
        let mut socket = Socket::new(stream, connection.clone(), self.limits);
        let begun = tokio::select! {
            biased;
            begun = socket.begun() => begun,
            () = connection.let_go() => return tracing::debug!("a connection that said nothing made room"),
            () = self.closing_time() => return,
        };
        if let Err(error) = begun {
            return tracing::debug!(%error, "a connection said nothing");
        }
        let Some(stream) = Box::pin(self.converse(socket, came_in, connection.clone())).await else { return };
        tokio::select! {
            biased;
            ended = stream.run() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "an event stream broke off");
                }
            }
            () = connection.let_go() => tracing::debug!("an event stream that nobody reads made room"),
        }
    }

    /// Answers the requests on one connection, until it ends or an event stream begins. Returns the stream.
    async fn converse(&self, socket: Socket, came_in: CameIn, connection: Connection) -> Option<EventStream> {
        let known = connection.clone();
        let handed_over = HandedOver::default();
        let hand_over = handed_over.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(came_in);
            request.extensions_mut().insert(known.clone());
            let answering = known.answer();
            let (asked, hand_over) = (Asked::by(&request), hand_over.clone());
            let answer = self.site.clone().call(request);
            async move {
                let answer = answer.await.unwrap_or_else(|never| match never {});
                let answer = answer.map(|body| AnswerBody { body, _answering: answering });
                Ok::<_, Infallible>(hand_over.unless_stream(asked, answer).await)
            }
        });
        let mut conversation = self.http.serve_connection(TokioIo::new(socket), service);
        let ended = tokio::select! {
            biased;
            ended = handed_over.or_end(&connection, &mut conversation) => ended,
            () = connection.let_go() => {
                tracing::debug!("a connection that kept us waiting made room");
                return None;
            }
            () = self.closing_time() => {
                Pin::new(&mut conversation).graceful_shutdown();
                handed_over.or_end(&connection, &mut conversation).await
            }
        };
        match ended {
            Ok(stream) => stream.map(|answer| EventStream::new(conversation.into_parts().io.into_inner(), answer)),
            Err(error) => {
                // Peers hang up, stall and send nonsense all day. That is no fault of ours.
                tracing::debug!(error = format!("{:#}", anyhow::Error::from(error)), "a connection broke off");
                None
            }
        }
    }
}

/// Returns how a connection came in.
fn came_in(stream: &Stream, peer: Peer) -> io::Result<CameIn> {
    Ok(match (peer, tcp(stream)) {
        (Peer::At(peer), Some(stream)) => CameIn::Port { peer, own: stream.local_addr()? },
        _ => CameIn::File,
    })
}

/// The body of an answer. The request counts as being answered until it is dropped.
struct AnswerBody {
    body: Body,
    _answering: Answering,
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn busy_answer() -> String {
    let body = "Too many connections are open. Try again in a moment.\n";
    let mut answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\n\
         content-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\n\
         cache-control: no-store\r\n\
         retry-after: 1\r\n\
         connection: close\r\n",
        body.len()
    );
    for (name, value) in SECURITY_HEADERS {
        write!(answer, "{name}: {value}\r\n").expect("BUG: a String takes all text");
    }
    answer + "\r\n" + body
}

/// Keeps a failing `accept` from spinning and from filling the log.
#[derive(Default)]
struct AcceptErrors {
    last_logged: Option<Instant>,
}

impl AcceptErrors {
    /// Pauses after an error, if that helps. A connection that died in the queue costs nothing. Anything else, such as
    /// running out of file descriptors, takes time to pass. A pause this short still lets an honest peer in as soon as
    /// it does.
    async fn pause_after(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};

        let fleeting = matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted);
        let now = Instant::now();
        if self.last_logged.is_none_or(|last| now - last >= Duration::from_secs(1)) {
            self.last_logged = Some(now);
            tracing::warn!(%error, "a connection could not be accepted; trying on");
        }
        if !fleeting {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection ended in a panic");
    }
}

#[cfg(test)]
mod tests;
