//! An event stream, once its head is due.
//!
//! The HTTP library keeps some 13 KB for each connection, for requests that may still come. On the connection of a stream none
//! comes, and there may be thousands of streams. So the connection is taken from the library as soon as it has nothing more to
//! write, and the stream goes to the socket from here, in chunks.

use std::future::{pending, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use axum::http::response::Parts;
use axum::http::{Method, Version, header};
use httpdate::HttpDate;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::{Request, Response};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::AnswerBody;
use super::lobby::Connection;
use super::socket::Socket;
use crate::limits::web::server::{AT_ONCE, UNASKED};

/// Where the answer to a request waits to be written without the library.
#[derive(Clone, Default)]
pub(super) struct HandedOver(Arc<Mutex<Option<Response<AnswerBody>>>>);

impl HandedOver {
    /// Hands over an event stream, and never returns then. Returns any other answer.
    pub(super) async fn unless_stream(self, asked: Asked, answer: Response<AnswerBody>) -> Response<AnswerBody> {
        let kind = answer.headers().get(header::CONTENT_TYPE);
        if asked == Asked::ForStream && kind.is_some_and(|kind| kind == "text/event-stream") {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
            return pending().await;
        }
        answer
    }

    /// Drives the library's `conversation` on a connection until it ends, or until an event stream begins. Returns the stream.
    ///
    /// # Errors
    ///
    /// Why the conversation broke off.
    pub(super) async fn or_end<C>(
        &self,
        connection: &Connection,
        conversation: &mut C,
    ) -> hyper::Result<Option<Response<AnswerBody>>>
    where
        C: Future<Output = hyper::Result<()>> + Unpin,
    {
        poll_fn(|cx| match Pin::new(&mut *conversation).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended.map(|()| None)),
            // The library may still have earlier answers to write.
            Poll::Pending if connection.is_kept_from_writing() => Poll::Pending,
            Poll::Pending => match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(stream) => Poll::Ready(Ok(Some(stream))),
                None => Poll::Pending,
            },
        })
        .await
    }
}

/// What a request may be answered with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// An event stream that lasts until the connection is closed.
    ForStream,
    /// Only what the library writes.
    ForAnswer,
}

impl Asked {
    pub(super) fn by(request: &Request<Incoming>) -> Self {
        let is_plain = request.method() == Method::GET && request.version() == Version::HTTP_11;
        if is_plain && request.body().is_end_stream() { Self::ForStream } else { Self::ForAnswer }
    }
}

/// An event stream on its connection.
pub(super) struct EventStream {
    socket: Socket,
    body: AnswerBody,
    /// What waits to be written.
    unsent: Vec<Bytes>,
    /// How much of the first of these is written.
    written: usize,
    /// How many more bytes the peer may send, which nobody asked for.
    unasked: usize,
    /// Whether all of the body is written or waits for that.
    is_whole: bool,
}

impl EventStream {
    pub(super) fn new(socket: Socket, answer: Response<AnswerBody>) -> Self {
        let (parts, body) = answer.into_parts();
        Self { socket, body, unsent: vec![head(&parts)], written: 0, unasked: UNASKED, is_whole: false }
    }

    /// Writes the stream until it ends or the peer hangs up.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub(super) async fn run(mut self) -> io::Result<()> {
        if poll_fn(|cx| self.poll(cx)).await? {
            poll_fn(|cx| Pin::new(&mut self.socket).poll_shutdown(cx)).await?;
        }
        Ok(())
    }

    /// Ready once there is nothing left to do. Then it says whether the peer still listens.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if !self.unsent.is_empty() {
                match self.poll_write(cx) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => break,
                }
            }
            if self.is_whole {
                return Poll::Ready(Ok(true));
            }
            self.gather(cx)?;
            if self.unsent.is_empty() {
                break;
            }
        }
        ready!(self.poll_hung_up(cx))?;
        Poll::Ready(Ok(false))
    }

    /// Takes what the body has at this moment, to write it at once as one chunk.
    fn gather(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut chunk = Vec::new();
        let mut length = 0;
        while length < AT_ONCE {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    self.is_whole = true;
                    break;
                }
                Poll::Ready(Some(frame)) => {
                    if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                        length += data.len();
                        chunk.push(data);
                    }
                }
            }
        }
        // A chunk without content would say that the body ends.
        if length > 0 {
            self.unsent.push(format!("{length:x}\r\n").into());
            self.unsent.append(&mut chunk);
            self.unsent.push(Bytes::from_static(b"\r\n"));
        }
        if self.is_whole {
            self.unsent.push(Bytes::from_static(b"0\r\n\r\n"));
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(first) = self.unsent.first() {
            let mut slices = [IoSlice::new(&[]); 8];
            let rest = self.unsent[1..].iter().map(|bytes| &bytes[..]);
            for (slice, bytes) in slices.iter_mut().zip([&first[self.written..]].into_iter().chain(rest)) {
                *slice = IoSlice::new(bytes);
            }
            let filled = self.unsent.len().min(slices.len());
            let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &slices[..filled]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            let whole = self.unsent.iter().take_while(|bytes| {
                let is_whole = self.written >= bytes.len();
                if is_whole {
                    self.written -= bytes.len();
                }
                is_whole
            });
            let whole = whole.count();
            self.unsent.drain(..whole);
        }
        // Between two changes, a stream holds nothing.
        self.unsent = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Ready once the peer has hung up. It has no more to say that is of use.
    fn poll_hung_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut scratch = [0; 256];
            let mut read = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
            let length = read.filled().len();
            if length == 0 || length > self.unasked {
                return Poll::Ready(Ok(()));
            }
            self.unasked -= length;
        }
    }
}

/// The head of a stream. The connection ends with it.
fn head(answer: &Parts) -> Bytes {
    let date = HttpDate::from(SystemTime::now());
    let mut head =
        format!("HTTP/1.1 {}\r\ndate: {date}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n", answer.status)
            .into_bytes();
    for (name, value) in &answer.headers {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(piece);
        }
    }
    head.extend_from_slice(b"\r\n");
    head.into()
}
