//! An app that a test serves itself, in its own process.

use std::net::TcpListener;
use std::thread::JoinHandle;

use likewise::{App, Options};
use tokio::sync::oneshot;

use super::wait_for;

/// An app, served on a loopback address until this is dropped.
pub struct Served {
    pub port: u16,
    pub url: String,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves `app` on a free port.
    pub fn start(app: App, options: Options) -> Self {
        Self::start_on(0, app, options)
    }

    /// Serves `app` on `port`.
    pub fn start_on(port: u16, app: App, options: Options) -> Self {
        // A server that has just ended may still have the port.
        let listener = wait_for("the port", || TcpListener::bind(("127.0.0.1", port)).ok());
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("a socket for Tokio");
        let (end, ends) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket of Tokio's");
                app.serve(options, listener, async { drop(ends.await) }).await.expect("it serves");
            });
        });
        Self { port: address.port(), url: format!("http://{address}"), end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the app ended badly");
    }
}
