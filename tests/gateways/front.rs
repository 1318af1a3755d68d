//! A load balancer without stickiness: each connection goes to any of the hubs behind it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::common::PATIENCE;

/// The load balancer, for as long as the process lives.
pub struct Front {
    /// Where devices find it.
    pub url: String,
    hubs: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Front {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let hubs = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
        let behind = Arc::clone(&hubs);
        thread::spawn(move || {
            let turn = AtomicUsize::new(0);
            for client in listener.incoming().flatten() {
                let hubs = behind.lock().unwrap().clone();
                let nth = turn.fetch_add(1, Ordering::Relaxed);
                // A hub that refuses connections is passed over, as a load balancer does.
                let found = (0..hubs.len()).map(|more| hubs[(nth + more) % hubs.len()]);
                if let Some(hub) = found.into_iter().find_map(|hub| TcpStream::connect_timeout(&hub, PATIENCE).ok()) {
                    join(client, hub);
                }
            }
        });
        Self { url, hubs }
    }

    /// Sends connections to the hubs at these addresses from now on.
    pub fn point_to<'a>(&self, urls: impl IntoIterator<Item = &'a str>) {
        let address = |url: &str| url.trim_start_matches("http://").parse().expect("an address");
        *self.hubs.lock().unwrap() = urls.into_iter().map(address).collect();
    }
}

/// Carries what either end sends to the other, until one of them ends.
fn join(client: TcpStream, hub: TcpStream) {
    let (Ok(back), Ok(forth)) = (client.try_clone(), hub.try_clone()) else { return };
    thread::spawn(move || carry(client, hub));
    thread::spawn(move || carry(forth, back));
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    drop(to.set_nodelay(true));
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    drop([from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)]);
}
