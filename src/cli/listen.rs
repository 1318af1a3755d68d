//! What a server listens on: a port, a socket file, or a socket that the service manager passes.

use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

use crate::limits::web::server::BACKLOG;
use crate::web::Listener;

/// A value of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listen {
    /// A host and a port.
    Port(String),
    #[cfg(unix)]
    File(PathBuf),
}

impl FromStr for Listen {
    type Err = &'static str;

    /// Checks the form of an address to listen on. The resolver would say little about it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            #[cfg(unix)]
            return match path.strip_prefix("//").unwrap_or(path) {
                path if path.starts_with('/') => Ok(Self::File(path.into())),
                _ => Err("write unix:PATH with a path from the root, such as unix:/run/likewise/socket"),
            };
            #[cfg(not(unix))]
            return Err("socket files are for systems like Linux; write HOST:PORT");
        }
        let is_host =
            |host: &str| !host.is_empty() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'));
        match text.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => Ok(Self::Port(text.to_owned())),
            _ => Err("write HOST:PORT, such as 127.0.0.1:3000 or [::1]:3000, or unix:PATH"),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(text) => f.write_str(text),
            #[cfg(unix)]
            Self::File(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens, with the file that goes when this is dropped.
pub(super) struct Listening {
    pub(super) listener: Listener,
    pub(super) _file: Option<SocketFile>,
}

impl Listen {
    /// Listens, unless the service manager has passed a socket that does.
    ///
    /// # Errors
    ///
    /// When that isn't possible.
    pub(super) async fn open(&self) -> anyhow::Result<Listening> {
        #[cfg(unix)]
        if let Some(listener) = passed()? {
            return Ok(Listening { listener, _file: None });
        }
        match self {
            Self::Port(address) => {
                let listener = bind(address).await.with_context(|| {
                    format!(
                        "cannot listen on {address}; choose another address with --listen, or let the system choose a port with \
                         --listen 127.0.0.1:0"
                    )
                })?;
                Ok(Listening { listener: listener.into(), _file: None })
            }
            #[cfg(unix)]
            Self::File(path) => {
                let (listener, file) = SocketFile::listen(path)
                    .with_context(|| format!("cannot listen on {self}; choose another place with --listen"))?;
                Ok(Listening { listener: Listener::File(listener), _file: Some(file) })
            }
        }
    }
}

/// Listens on the first address of `listen` that can be had, with room for all pages to connect at once.
async fn bind(listen: &str) -> io::Result<TcpListener> {
    let mut why = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in lookup_host(listen).await? {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Otherwise a restart has to wait until the system has forgotten the last connections. On Windows it doesn't, and the
    // option would let two programs have the same port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The socket that the service manager passes (`LISTEN_FDS`), if it passes one.
#[cfg(unix)]
fn passed() -> anyhow::Result<Option<Listener>> {
    let mut passed = listenfd::ListenFd::from_env();
    match passed.len() {
        0 => return Ok(None),
        1 => {}
        many => anyhow::bail!(
            "the service manager passes {many} sockets, and one is all that can be used; name one in the unit"
        ),
    }
    if let Ok(Some(listener)) = passed.take_tcp_listener(0) {
        listener.set_nonblocking(true)?;
        return Ok(Some(TcpListener::from_std(listener)?.into()));
    }
    let listener = passed.take_unix_listener(0).context("what the service manager passes is no socket that listens")?;
    let listener = listener.context("the service manager passes no socket")?;
    listener.set_nonblocking(true)?;
    Ok(Some(Listener::File(tokio::net::UnixListener::from_std(listener)?)))
}

/// Tells the service manager that the server is ready, if one wants to know. Nothing depends on it here.
pub(super) fn tell_service_manager() {
    #[cfg(unix)]
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager that all is ready");
    }
}

/// The file of a socket that this process listens on. It goes when this is dropped.
#[cfg(unix)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have put its own in its place.
    id: (u64, u64),
}

#[cfg(not(unix))]
pub(super) enum SocketFile {}

#[cfg(unix)]
impl SocketFile {
    /// Who may connect: the user that this process runs as, and the file's group. That is the directory's group where the
    /// directory hands its group on (mode 2750, say).
    const MODE: u32 = 0o660;

    /// Listens on a socket file at `path`. One that nobody listens on any more is replaced.
    fn listen(path: &Path) -> anyhow::Result<(tokio::net::UnixListener, Self)> {
        use std::fs::{self, Permissions};
        use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
        use std::os::unix::net::UnixStream;

        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                anyhow::bail!("{} is there, and is no socket", path.display());
            }
            if UnixStream::connect(path).is_ok() {
                anyhow::bail!("another program listens on {}", path.display());
            }
            fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        let listener = tokio::net::UnixListener::bind(path)
            .with_context(|| format!("{} can't be made; a path has room for about 100 bytes", path.display()))?;
        // Whoever connects before that is a stranger, as is everybody without the key.
        let meta = fs::set_permissions(path, Permissions::from_mode(Self::MODE))
            .and_then(|()| fs::symlink_metadata(path))
            .with_context(|| format!("cannot give {} its rights", path.display()))?;
        let file = Self { path: path.to_owned(), id: (meta.dev(), meta.ino()) };
        Ok((listener, file))
    }
}

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt as _;

        let is_ours = std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id);
        if is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_or_a_socket_file() {
        for (text, shown) in [
            ("127.0.0.1:3000", "127.0.0.1:3000"),
            ("[::1]:0", "[::1]:0"),
            ("unix:/run/likewise/socket", "unix:/run/likewise/socket"),
            ("unix:///run/likewise/socket", "unix:/run/likewise/socket"),
        ] {
            assert_eq!(text.parse::<Listen>().expect("an address").to_string(), shown);
        }
        for wrong in ["", "3000", "localhost", "::1:3000x", "unix:", "unix:socket", "unix://host/socket"] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }
}
