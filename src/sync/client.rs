//! The client: keeps stores level with their upstream for as long as that makes sense. Each store has a [`Client`] of
//! its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::behind::HistoryWanted;
use super::download::{Beginning, Begun, Shown};
use super::http::Upstream;
use super::jetstream::{Attendant, Cluster, Desk, Feed, is_cluster};
use super::link::Client;
use super::ration::Allowance;
use super::stay::Stay;
use super::tokens;
use crate::engine::{Device, Error, HistoryStanding, Standing, Store, StoreId, Stores};
use crate::limits::sync::client::{IDLE_AFTER, LOOK_EVERY, REPAIR_EVERY, REPAIRS};

/// The state of a store's link to its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// There is no upstream.
    None,
    Connecting,
    Online,
    /// Not connected. It tries again by itself.
    Offline,
    /// The upstream refuses this store. Somebody has to act.
    Halted,
}

impl LinkState {
    /// The states that a store can have that follows an upstream.
    pub(crate) const LINKED: [Self; 4] = [Self::Connecting, Self::Online, Self::Offline, Self::Halted];

    /// Returns its spelling in the status.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Connecting => "connecting",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Halted => "halted",
        }
    }
}

/// A store's link to its upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkStatus {
    pub(crate) url: Option<Arc<str>>,
    pub(crate) state: LinkState,
    /// The hub's code, if the hub halted the store.
    pub(crate) code: Option<&'static str>,
    /// Why it is not online.
    pub(crate) error: Option<String>,
    /// Whether what is behind a snapshot is fetched.
    pub(crate) history: HistoryWanted,
    /// Whether the hub's snapshot, with which the store began, has turned out to be wrong.
    pub(crate) was_wrong: bool,
    /// When it entered this state, in milliseconds since the Unix epoch.
    pub(crate) since: Option<u64>,
    /// Where the copies of the stream are, if the upstream is a cluster that is reached.
    pub(crate) copies: Option<Arc<str>>,
}

impl LinkStatus {
    pub(crate) fn none() -> Self {
        Self {
            url: None,
            state: LinkState::None,
            code: None,
            error: None,
            history: HistoryWanted::Full,
            was_wrong: false,
            since: None,
            copies: None,
        }
    }

    /// Returns whether the upstream is a cluster, to which this instance is a gateway.
    pub(crate) fn is_of_gateway(&self) -> bool {
        self.url.as_deref().is_some_and(is_cluster)
    }
}

/// Who orders the events of the stores here, if this instance doesn't.
#[derive(Clone)]
pub(crate) enum Authority {
    /// A hub, of which this instance is a device.
    Hub(Box<Upstream>),
    /// A cluster, to which this instance is a gateway.
    Cluster(Cluster),
}

impl Authority {
    /// Returns its address, without a slash at the end and without passwords.
    fn url(&self) -> String {
        match self {
            Self::Hub(hub) => hub.url().to_owned(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }
}

/// The clients of all stores that follow one upstream.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) stores: Stores,
    /// The name of this instance, from which its own events come.
    pub(super) device: Device,
    upstream: Option<Authority>,
    /// Whether what is behind a snapshot is fetched.
    pub(super) history: HistoryWanted,
    /// How long a halted store waits before it tries again.
    pub(super) retry_halted: Duration,
    pub(super) shutdown: CancellationToken,
    pub(super) links: Mutex<HashMap<StoreId, Link>>,
    /// How often each store has begun with its hub's snapshot.
    pub(super) begun: Begun,
    none: watch::Sender<LinkStatus>,
    /// Counts how often an offline store has come online.
    pub(super) found: watch::Sender<u64>,
    /// When the upstream last said anything about any store, in milliseconds since the Unix epoch; 0 before that.
    heard: AtomicU64,
}

pub(super) struct Link {
    /// Its receivers belong to requests and open pages.
    status: watch::Sender<LinkStatus>,
    usage: Arc<Usage>,
    lane: usize,
    /// Where a gateway brings what devices ask of the store.
    desk: Option<Desk>,
}

/// When a store was last used.
pub(super) struct Usage {
    pub(super) last: Mutex<Instant>,
    pub(super) again: Notify,
    /// Somebody asks for an attempt at once.
    pub(super) now: Notify,
    /// Counts the attempts that have come to something.
    pub(super) tried: watch::Sender<u64>,
}

impl Link {
    /// Returns whether a page shows the store.
    fn is_watched(&self) -> bool {
        self.status.receiver_count() > 0
    }
}

impl Clients {
    pub(crate) fn new(
        stores: Stores,
        device: Device,
        upstream: Option<Authority>,
        history: HistoryWanted,
        retry_halted: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let (none, found) = (watch::channel(LinkStatus::none()).0, watch::channel(0).0);
        let links = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                stores,
                device,
                upstream,
                history,
                retry_halted,
                shutdown,
                links,
                begun: Begun::default(),
                none,
                found,
                heard: AtomicU64::new(0),
            }),
        }
    }

    /// Has each snapshot with which a store begins answer what the app shows of it. Call it before there are any clients.
    pub(crate) fn showing(mut self, shown: Vec<Shown>) -> Self {
        Arc::get_mut(&mut self.shared).expect("BUG: the clients are shared already").begun.shown = shown;
        self
    }

    /// Returns whether there is an upstream.
    pub(crate) fn have_upstream(&self) -> bool {
        self.shared.upstream.is_some()
    }

    /// Returns whether the upstream is a hub. Then this instance is none.
    pub(crate) fn follow_hub(&self) -> bool {
        matches!(self.shared.upstream, Some(Authority::Hub(_)))
    }

    /// Returns the cluster to which this instance is a gateway, if it is one.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        match &self.shared.upstream {
            Some(Authority::Cluster(cluster)) => Some(cluster),
            Some(Authority::Hub(_)) | None => None,
        }
    }

    /// Returns the address of the upstream, if there is one.
    pub(crate) fn upstream(&self) -> Option<String> {
        self.shared.upstream.as_ref().map(Authority::url)
    }

    /// Returns where to bring what devices ask of a store, if this is a gateway. It keeps the store level from now on.
    pub(crate) fn desk(&self, store: &Store) -> Option<Desk> {
        self.cluster()?;
        drop(self.attend(store, usize::MAX));
        let links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        links.get(store.id()).and_then(|link| link.desk.clone())
    }

    /// Keeps `store`, which somebody is using, level with the upstream, and returns the status of its link. Doesn't
    /// start if `most` other stores are already kept level.
    pub(crate) fn attend(&self, store: &Store, most: usize) -> watch::Receiver<LinkStatus> {
        let Some(upstream) = &self.shared.upstream else { return self.shared.none.subscribe() };
        if most < usize::MAX && self.count() >= most && self.status(store.id()).is_none() {
            return self.shared.none.subscribe();
        }
        self.link(upstream, store, Instant::now(), None)
    }

    /// Returns how many stores have a link in each state.
    pub(crate) fn states(&self) -> [(LinkState, usize); 4] {
        let links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        let count = |state| links.values().filter(|link| link.status.borrow().state == state).count();
        LinkState::LINKED.map(|state| (state, count(state)))
    }

    /// Notes that the upstream said something.
    pub(super) fn hear(&self) {
        self.shared.heard.fetch_max(tokens::now(), Ordering::Relaxed);
    }

    /// Returns when the upstream last said anything, in milliseconds since the Unix epoch.
    pub(crate) fn heard(&self) -> Option<u64> {
        Some(self.shared.heard.load(Ordering::Relaxed)).filter(|heard| *heard > 0)
    }

    fn status(&self, id: &StoreId) -> Option<watch::Receiver<LinkStatus>> {
        let links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        links.get(id).map(|link| link.status.subscribe())
    }

    /// Returns the link of a store that was last used at `used`. Creates the link if needed.
    fn link(
        &self,
        upstream: &Authority,
        store: &Store,
        used: Instant,
        warming: Option<OwnedSemaphorePermit>,
    ) -> watch::Receiver<LinkStatus> {
        let mut links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        if let Some(link) = links.get(store.id()) {
            let mut last = link.usage.last.lock().expect("BUG: touching a link panicked");
            *last = used.max(*last);
            link.usage.again.notify_one();
            return link.status.subscribe();
        }
        let first = LinkStatus {
            url: Some(upstream.url().into()),
            state: LinkState::Connecting,
            history: self.shared.history,
            since: Some(tokens::now()),
            ..LinkStatus::none()
        };
        let (sender, status) = watch::channel(first);
        let usage = Arc::new(Usage {
            last: Mutex::new(used),
            again: Notify::new(),
            now: Notify::new(),
            tried: watch::channel(0).0,
        });
        let stay = Stay {
            id: store.id().clone(),
            health: store.health(),
            status: sender.clone(),
            usage: Arc::clone(&usage),
            clients: self.clone(),
        };
        let (lane, desk) = match upstream {
            Authority::Hub(hub) => {
                let lane = Upstream::lane_beside(links.values().map(|link| link.lane));
                let repairs = Allowance::new(REPAIRS, REPAIR_EVERY);
                let (beginning, is_online) = (Beginning::default(), watch::channel(false).0);
                let upstream = hub.in_lane(lane);
                tokio::spawn(Client { stay, upstream, repairs, beginning, is_online }.run());
                (lane, None)
            }
            Authority::Cluster(cluster) => {
                let (attendant, desk) = Attendant::new(stay, cluster.clone(), warming);
                tokio::spawn(attendant.run());
                (0, Some(desk))
            }
        };
        links.insert(store.id().clone(), Link { status: sender, usage, lane, desk });
        status
    }

    /// Watches the stream of the cluster to which this is a gateway, if it is one.
    pub(crate) async fn follow_stream(self) {
        if let Some(cluster) = self.cluster().cloned() {
            let shutdown = self.shared.shutdown.clone();
            shutdown.run_until_cancelled(Feed::new(self, cluster).run()).await;
        }
    }

    /// Tells whoever attends to the store `id` that the stream may have something new of it, up to that sequence. Has it
    /// attended to if it isn't.
    pub(super) fn wake(&self, id: &StoreId, sequence: u64) {
        if !self.wake_attended(id, sequence)
            && let (Some(upstream), Ok(store)) = (&self.shared.upstream, self.shared.stores.get(id))
        {
            drop(self.link(upstream, &store, Instant::now(), None));
        }
    }

    /// Works like [`wake`](Self::wake) for a store that is attended to. Returns whether it is.
    pub(super) fn wake_attended(&self, id: &StoreId, sequence: u64) -> bool {
        let links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        let desk = links.get(id).and_then(|link| link.desk.as_ref());
        desk.inspect(|desk| desk.tell(sequence)).is_some()
    }

    /// Has a store made level with the stream that nobody uses. `permit` is held until it is.
    pub(super) fn warm(&self, id: &StoreId, permit: OwnedSemaphorePermit) -> Result<(), Error> {
        let Some(upstream) = &self.shared.upstream else { return Ok(()) };
        let store = self.shared.stores.get(id)?;
        let long_ago = Instant::now().checked_sub(IDLE_AFTER).unwrap_or_else(Instant::now);
        drop(self.link(upstream, &store, long_ago, Some(permit)));
        Ok(())
    }

    /// Has `store` try to reach the upstream at once, whatever it waits for. Returns when that has come to something.
    pub(crate) async fn try_now(&self, store: &Store) {
        let link = self.attend(store, usize::MAX);
        let usage = {
            let links = self.shared.links.lock().expect("BUG: attending to a store panicked");
            links.get(store.id()).map(|link| Arc::clone(&link.usage))
        };
        let Some(usage) = usage.filter(|_| link.borrow().state != LinkState::Online) else { return };
        let mut tried = usage.tried.subscribe();
        usage.now.notify_one();
        // An error means that the client has ended, because the program does.
        drop(tried.changed().await);
    }

    /// Returns how many stores open pages show.
    pub(super) fn watched(&self) -> usize {
        let links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        links.values().filter(|link| link.is_watched()).count()
    }

    pub(super) fn count(&self) -> usize {
        self.shared.links.lock().expect("BUG: attending to a store panicked").len()
    }

    /// Returns whether a store has something to push, or something behind a snapshot to fetch or prove.
    pub(super) fn has_work(&self, standing: &Standing) -> bool {
        let is_coming =
            |history: &HistoryStanding| self.shared.history == HistoryWanted::Full || history.here == history.length;
        standing.pending > 0 || standing.history.as_ref().is_some_and(is_coming)
    }

    /// Keeps `first` level from the start. Does the same for every store in which an earlier process left work, whether or
    /// not anybody visits it.
    pub(crate) async fn resume(self, first: StoreId) {
        let Shared { stores, upstream, .. } = &*self.shared;
        let Some(upstream) = upstream else { return };
        // Nobody uses the others, so each is dropped as soon as it is level.
        let long_ago = Instant::now().checked_sub(IDLE_AFTER).unwrap_or_else(Instant::now);
        for id in [first.clone()].iter().chain(&stores.list().unwrap_or_default()) {
            let mut found = stores.get(id);
            while matches!(found, Err(Error::TooManyOpen)) {
                sleep(LOOK_EVERY).await;
                found = stores.get(id);
            }
            let Ok(store) = found else { continue };
            if *id == first {
                drop(self.attend(&store, usize::MAX));
            } else if store.healthy().await.standing().is_some_and(|standing| self.has_work(standing)) {
                drop(self.link(upstream, &store, long_ago, None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::http::{TokenSource, UpstreamOptions};
    use super::*;
    use crate::engine::{Setup, StoreLimits};
    use crate::likes::{self, LikeAdded};

    /// Creates clients of a hub that isn't there.
    fn clients(dir: &std::path::Path, open: usize) -> Clients {
        let setup = Setup {
            schema: Arc::new(likes::schema()),
            device: "test".parse().expect("a name"),
            executable: "test".to_owned(),
            progress: |_, _| {},
        };
        let limits = StoreLimits { open, ..StoreLimits::default() };
        let stores = Stores::following(dir, setup, limits).expect("stores");
        let upstream = UpstreamOptions {
            url: "http://127.0.0.1:1".to_owned(),
            token: TokenSource::Given("lw_0".to_owned()),
            root_certificate: None,
        };
        let upstream = Authority::Hub(Box::new(Upstream::new(upstream).expect("an upstream")));
        Clients::new(
            stores,
            "test".parse().expect("a name"),
            Some(upstream),
            HistoryWanted::Full,
            Duration::from_secs(60),
            CancellationToken::new(),
        )
    }

    async fn open(stores: &Stores, name: &str) -> Store {
        let id = name.parse().expect("a name");
        loop {
            match stores.get(&id) {
                Ok(store) => return store,
                Err(Error::TooManyOpen) => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn stores_that_wait_for_their_hub_leave_room_for_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let clients = clients(dir.path(), 2);
        let stores = &clients.shared.stores;
        let names = ["one", "two", "three", "four", "five"];
        for name in names {
            let store = open(stores, name).await;
            store.commit(LikeAdded {}).await.expect("a receipt");
            let mut link = clients.attend(&store, usize::MAX);
            link.wait_for(|link| link.state == LinkState::Offline).await.expect("a status");
        }
        assert_eq!(clients.shared.links.lock().expect("links").len(), names.len(), "each is tried again");
        for name in names {
            let store = open(stores, name).await;
            assert_eq!(store.read(likes::count()).await, Ok(1));
        }
        clients.shared.shutdown.cancel();
        let stores = stores.clone();
        tokio::task::spawn_blocking(move || stores.close()).await.expect("closed");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_clients_of_closed_stores_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let clients = clients(dir.path(), 8);
        let store = open(&clients.shared.stores, "one").await;
        store.commit(LikeAdded {}).await.expect("a receipt");
        let mut link = clients.attend(&store, usize::MAX);
        let stores = clients.shared.stores.clone();
        tokio::task::spawn_blocking(move || stores.close()).await.expect("closed");
        while link.changed().await.is_ok() {}
        assert!(clients.shared.links.lock().expect("links").is_empty());
    }

    #[test]
    fn stores_share_lanes_up_to_a_number() {
        let mut taken = Vec::new();
        for _ in 0..70 {
            taken.push(Upstream::lane_beside(taken.iter().copied()));
        }
        assert_eq!((taken[0], taken[31], taken[32], taken[69]), (0, 0, 1, 2));
        taken.remove(5);
        assert_eq!(Upstream::lane_beside(taken.iter().copied()), 0, "a free place is taken first");
    }
}
