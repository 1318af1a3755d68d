//! What each client of `/embed` may do. A client is an address, hashed with a key that lives an hour and is never written
//! anywhere, so nobody can tell afterwards who was there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::limits::web::Rate;
use crate::limits::web::embed::{CLIENTS, LIKES_OF_A_CLIENT, NEW_ITEMS_OF_A_CLIENT, STREAMS_OF_A_CLIENT};
use crate::random;
use crate::web::guard::ClientAddress;
use crate::web::shares::Bucket;

/// A client, as it is known while a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    of_hour: Hash,
    of_streams: Hash,
}

/// An address under one of the keys.
type Hash = [u8; 16];

/// All clients for whom there is no room.
const OTHERS: Hash = [0; 16];

/// A key that is never written anywhere.
type Key = [u8; blake3::KEY_LEN];

/// What is counted for each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Like,
    NewItem,
}

/// All clients of the present hour.
#[derive(Clone)]
pub(crate) struct Clients {
    crowd: Arc<Mutex<Crowd>>,
}

struct Crowd {
    key: Key,
    left: HashMap<Hash, Left>,
    /// Lives as long as the process: streams outlive the hour, and a client has no more of them in the next. Whoever finds it
    /// learns only who is there now, since an entry goes with its last stream.
    streams_key: Key,
    streams: HashMap<Hash, usize>,
}

/// What a client has left.
struct Left {
    likes: Bucket,
    new_items: Bucket,
}

impl Left {
    fn all(now: Instant) -> Self {
        Self { likes: Bucket::full(LIKES_OF_A_CLIENT, now), new_items: Bucket::full(NEW_ITEMS_OF_A_CLIENT, now) }
    }

    fn is_all(&mut self, now: Instant) -> bool {
        self.likes.is_full(LIKES_OF_A_CLIENT, now) && self.new_items.is_full(NEW_ITEMS_OF_A_CLIENT, now)
    }

    fn of(&mut self, act: Act) -> (&mut Bucket, Rate) {
        match act {
            Act::Like => (&mut self.likes, LIKES_OF_A_CLIENT),
            Act::NewItem => (&mut self.new_items, NEW_ITEMS_OF_A_CLIENT),
        }
    }
}

impl Clients {
    pub(crate) fn new() -> Self {
        let (key, streams_key) = (random::bytes(), random::bytes());
        let crowd = Crowd { key, left: HashMap::new(), streams_key, streams: HashMap::new() };
        Self { crowd: Arc::new(Mutex::new(crowd)) }
    }

    /// Forgets all clients, and the key under which they were known. Streams that are open still count.
    pub(crate) fn forget(&self) {
        let mut crowd = self.lock();
        crowd.key = random::bytes();
        crowd.left = HashMap::new();
    }

    /// Returns the client with this address.
    pub(crate) fn at(&self, address: IpAddr) -> Client {
        let network = ClientAddress(address).network();
        let (key, streams_key) = {
            let crowd = self.lock();
            (crowd.key, crowd.streams_key)
        };
        let under = |key: &Key| -> Hash {
            let hash = match network {
                IpAddr::V4(address) => blake3::keyed_hash(key, &address.octets()),
                IpAddr::V6(address) => blake3::keyed_hash(key, &address.octets()),
            };
            std::array::from_fn(|place| hash.as_bytes()[place])
        };
        Client { of_hour: under(&key), of_streams: under(&streams_key) }
    }

    /// Counts what a client does. If that is too much, it counts nothing and returns how long to wait.
    pub(crate) fn take(&self, client: Client, act: Act) -> Result<(), Duration> {
        self.take_at(client, act, Instant::now())
    }

    fn take_at(&self, client: Client, act: Act, now: Instant) -> Result<(), Duration> {
        let client = client.of_hour;
        let mut crowd = self.lock();
        let left = &mut crowd.left;
        if left.len() >= CLIENTS && !left.contains_key(&client) {
            left.retain(|_, left| !left.is_all(now));
        }
        let has_room = left.len() < CLIENTS || left.contains_key(&client);
        let client = if has_room { client } else { OTHERS };
        let (bucket, rate) = left.entry(client).or_insert_with(|| Left::all(now)).of(act);
        bucket.take(rate, 1.0, now)
    }

    /// Counts a stream of a client until the returned value is dropped. Nothing if the client has as many as it may.
    pub(crate) fn open_stream(&self, client: Client) -> Option<OpenStream> {
        let client = client.of_streams;
        let mut crowd = self.lock();
        let open = crowd.streams.entry(client).or_default();
        if *open >= STREAMS_OF_A_CLIENT {
            return None;
        }
        *open += 1;
        Some(OpenStream { clients: self.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().expect("BUG: counting clients panicked")
    }
}

/// A stream that counts as a client's.
pub(crate) struct OpenStream {
    clients: Clients,
    client: Hash,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.clients.lock().streams.entry(self.client) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(clients: &Clients, address: &str) -> Client {
        clients.at(address.parse().expect("an address"))
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_ipv6_for_as_long_as_the_key_lives() {
        let clients = Clients::new();
        let one = at(&clients, "198.51.100.7");
        assert_eq!(at(&clients, "::ffff:198.51.100.7"), one);
        assert_ne!(at(&clients, "198.51.100.8"), one);
        assert_eq!(at(&clients, "2001:db8:1:2::7"), at(&clients, "2001:db8:1:2:ffff::1"));
        assert_ne!(at(&clients, "2001:db8:1:2::7"), at(&clients, "2001:db8:1:3::7"));
        clients.forget();
        assert_ne!(at(&clients, "198.51.100.7"), one);
        assert_ne!(
            at(&Clients::new(), "198.51.100.7"),
            at(&clients, "198.51.100.7"),
            "another process has another key"
        );
    }

    #[test]
    fn each_client_has_its_own_allowance() {
        let (clients, now) = (Clients::new(), Instant::now());
        let (one, other) = (at(&clients, "198.51.100.7"), at(&clients, "198.51.100.8"));
        let mut taken = 0;
        let wait = loop {
            match clients.take_at(one, Act::Like, now) {
                Ok(()) => taken += 1,
                Err(wait) => break wait,
            }
        };
        assert!((taken as f64 - LIKES_OF_A_CLIENT.burst).abs() < 0.5, "{taken}");
        assert_eq!(clients.take_at(one, Act::NewItem, now), Ok(()), "counted apart");
        assert_eq!(clients.take_at(other, Act::Like, now), Ok(()));
        assert_eq!(clients.take_at(one, Act::Like, now + wait), Ok(()));
    }

    #[test]
    fn a_stranger_with_many_addresses_fills_no_memory() {
        let (clients, now) = (Clients::new(), Instant::now());
        for n in 0..CLIENTS as u32 + 500 {
            let _ = clients.take_at(clients.at(IpAddr::V4(n.into())), Act::Like, now);
        }
        assert!(clients.lock().left.len() <= CLIENTS + 1);
        // A client with everything left needs no entry.
        let later = now + Duration::from_secs(3_600);
        assert_eq!(clients.take_at(at(&clients, "203.0.113.1"), Act::Like, later), Ok(()));
        assert_eq!(clients.lock().left.len(), 1);
    }

    #[test]
    fn streams_count_until_they_end_even_after_the_key_is_forgotten() {
        let clients = Clients::new();
        let one = at(&clients, "198.51.100.7");
        let streams: Vec<_> = std::iter::from_fn(|| clients.open_stream(one)).collect();
        assert_eq!(streams.len(), STREAMS_OF_A_CLIENT);
        assert!(clients.open_stream(at(&clients, "198.51.100.8")).is_some());
        clients.forget();
        let same = at(&clients, "198.51.100.7");
        assert!(clients.open_stream(same).is_none(), "another hour brings no others");
        drop(streams);
        assert!(clients.lock().streams.is_empty());
        assert!(clients.open_stream(same).is_some());
    }
}
