//! One connection as the HTTP loop sees it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::Limits;
use super::framing::Framing;
use super::listener::{Stream, poll_begun, tcp};
use super::lobby::Connection;
use crate::limits::web::server::SEND_BUFFER;

/// Sets up a connection before its first byte.
pub(super) fn set_up(stream: &Stream, limits: Limits) -> io::Result<()> {
    let Some(stream) = tcp(stream) else { return Ok(()) };
    #[cfg(target_os = "linux")]
    {
        let millis = u32::try_from(limits.unacknowledged.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?;
    }
    rustix::net::sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER)?;
    stream.set_nodelay(true)
}

/// A connection that follows what its peer sends, gives up on one that takes nothing, and closes without resetting the
/// connection.
pub(super) struct Socket {
    stream: Stream,
    connection: Connection,
    framing: Framing,
    write_stall: Duration,
    linger: Duration,
    header_read: Duration,
    idle: Duration,
    /// Runs while the head of a request is incomplete, and until the first one begins.
    head: Option<Pin<Box<Sleep>>>,
    /// When something was last received or sent, and the timer that ends a rest. It is set anew only when it runs out, because
    /// most rests are much shorter.
    active: Instant,
    rest: Option<Pin<Box<Sleep>>>,
    /// Runs while a write has to wait.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs after our side is closed.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: Stream, connection: Connection, limits: Limits) -> Self {
        let Limits { write_stall, linger, header_read, idle, .. } = limits;
        Self {
            stream,
            connection,
            framing: Framing::new(),
            write_stall,
            linger,
            header_read,
            idle,
            head: None,
            active: Instant::now(),
            rest: None,
            stalled: None,
            lingering: None,
        }
    }

    /// Returns whether no head is on its way, after at least one was.
    fn rests(&self) -> bool {
        self.framing.heads() > 0 && self.framing.head_bytes() == 0
    }

    /// Waits until the peer has sent something, or hung up.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub(super) async fn begun(&mut self) -> io::Result<()> {
        poll_fn(|cx| match poll_begun(&self.stream, cx) {
            Poll::Ready(begun) => Poll::Ready(begun),
            Poll::Pending => self.watch_silence(cx),
        })
        .await
    }

    /// Gives up on a peer that says nothing.
    fn watch_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.rests() { self.watch_rest(cx) } else { self.watch_head(cx) }
    }

    /// Gives up on a connection that has rested for long. While we are working on an answer, it doesn't rest.
    fn watch_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = self.active + self.idle;
        let rest = self.rest.get_or_insert_with(|| Box::pin(sleep_until(end)));
        while rest.as_mut().poll(cx).is_ready() {
            if self.connection.is_answering() {
                self.active = Instant::now();
            }
            let end = self.active + self.idle;
            if end <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            rest.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// Gives up on a head that doesn't come. A byte now and then doesn't extend its time.
    fn watch_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let patience = self.header_read;
        let head = self.head.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(head.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn watch_stall(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.active = Instant::now();
            if self.stalled.take().is_some() {
                self.connection.is_stalled(false);
            }
            return written;
        }
        if self.stalled.is_none() {
            self.connection.is_stalled(true);
        }
        let patience = self.write_stall.min(self.connection.time_to_take());
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) else { return self.watch_silence(cx) };
        self.active = Instant::now();
        let Self { framing, connection, .. } = &mut *self;
        let heads = framing.heads();
        framing.pass(&mut buffer.filled_mut()[before..]);
        connection.has_read(framing.head_bytes(), framing.is_between_requests());
        // The next head has its own time. The first one's has run since the connection was opened.
        if self.rests() || heads > 0 && self.framing.heads() > heads {
            self.head = None;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_stall(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes our side, then reads and discards until the peer closes its own or `linger` is over.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.lingering = Some(Box::pin(sleep(self.linger)));
        }
        loop {
            let over = self.lingering.as_mut().is_none_or(|lingering| lingering.as_mut().poll(cx).is_ready());
            if over {
                return Poll::Ready(Ok(()));
            }
            let mut scratch = [0; 4096];
            let mut discarded = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut discarded));
            if read.is_err() || discarded.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
