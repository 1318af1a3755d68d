//! Where connections come in: a port, or a socket file.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
#[cfg(unix)]
use tokio_util::either::Either;

/// A socket that listens.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// Only who may write to the file can connect.
    #[cfg(unix)]
    File(UnixListener),
}

/// A connection that was accepted.
#[cfg(unix)]
pub(super) type Stream = Either<TcpStream, UnixStream>;
#[cfg(not(unix))]
pub(super) type Stream = TcpStream;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    At(SocketAddr),
    /// Whatever it is, it has no address, and it is on this machine.
    File,
}

impl Peer {
    pub(super) fn is_on_this_machine(self) -> bool {
        match self {
            Self::At(address) => address.ip().to_canonical().is_loopback(),
            Self::File => true,
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// A place to listen at. It outlasts the server behind it, so another one can take that server's place and nobody who
/// connects meanwhile is refused.
pub(crate) enum Door {
    Tcp(std::net::TcpListener),
    #[cfg(unix)]
    File(std::os::unix::net::UnixListener),
}

impl Door {
    /// Returns a listener for one server.
    ///
    /// # Errors
    ///
    /// When the system allows no more.
    pub(crate) fn open(&self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(door) => Listener::Tcp(TcpListener::from_std(door.try_clone()?)?),
            #[cfg(unix)]
            Self::File(door) => Listener::File(UnixListener::from_std(door.try_clone()?)?),
        })
    }
}

impl Listener {
    /// Returns the place at which it listens.
    ///
    /// # Errors
    ///
    /// When the runtime doesn't let go of it.
    pub(crate) fn into_door(self) -> io::Result<Door> {
        Ok(match self {
            Self::Tcp(listener) => Door::Tcp(listener.into_std()?),
            #[cfg(unix)]
            Self::File(listener) => Door::File(listener.into_std()?),
        })
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((of_port(stream), Peer::At(peer)))
            }
            #[cfg(unix)]
            Self::File(listener) => listener.accept().await.map(|(stream, _)| (Either::Right(stream), Peer::File)),
        }
    }
}

/// Returns a connection that came in at a port.
pub(super) fn of_port(stream: TcpStream) -> Stream {
    #[cfg(unix)]
    return Either::Left(stream);
    #[cfg(not(unix))]
    stream
}

/// Returns the connection of a port, which has options of its own.
pub(super) fn tcp(stream: &Stream) -> Option<&TcpStream> {
    #[cfg(unix)]
    return match stream {
        Either::Left(stream) => Some(stream),
        Either::Right(_) => None,
    };
    #[cfg(not(unix))]
    Some(stream)
}

/// Ready once the peer of a port has sent something or hung up. Whoever connects to a file is there to say something.
pub(super) fn poll_begun(stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let Some(stream) = tcp(stream) else { return Poll::Ready(Ok(())) };
    stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map_ok(drop)
}

/// Writes what fits without waiting, and closes.
pub(super) fn write_and_close(stream: Stream, text: &str) {
    use std::net::Shutdown;

    let write = |stream: &mut dyn io::Write| drop(stream.write_all(text.as_bytes()));
    #[cfg(unix)]
    let stream = match stream {
        Either::Left(stream) => stream,
        Either::Right(stream) => {
            if let Ok(mut stream) = stream.into_std() {
                write(&mut stream);
                drop(stream.shutdown(Shutdown::Write));
            }
            return;
        }
    };
    if let Ok(mut stream) = stream.into_std() {
        write(&mut stream);
        drop(stream.shutdown(Shutdown::Write));
    }
}
