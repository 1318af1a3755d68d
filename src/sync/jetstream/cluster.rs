//! The cluster that a gateway stands before: one connection, the stream, the bucket, and how all of it is.
//!
//! One task looks after it. Every second it asks for the stream and the bucket. An answer counts only as of the moment when a
//! majority of their servers last followed the leader that gave it. So it is known how old that is which is known of them, and a
//! gateway that was cut off knows it, alone or together with its server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use async_nats::connection::State;
use async_nats::{ConnectOptions, Event, ServerInfo};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::super::access::Token;
use super::super::gateway::Message;
use super::super::gateway::shared::Runs;
use super::super::http::read_certificates;
use super::super::tls::{Trust, tls};
use super::address::{Address, ClusterOptions, Login};
use super::api::{Api, ApiError, Peer, Shortage, StreamInfo, code};
use super::bucket::{Bucket, BucketError};
use super::settings;
use crate::engine::{LogId, StoreId, StreamId};
use crate::limits::sync::gateway::MESSAGE_BYTES;
use crate::limits::sync::nats::{
    ANSWER, BELIEVED, CONNECT, LONGEST_WAIT, LOOK_EVERY, PING, REPLICAS, SHORTEST_WAIT, UNANSWERED,
};
use crate::random;

/// How the cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Nothing is known yet.
    Connecting,
    /// Stream and bucket are there and as they have to be.
    Ready(Arc<Overview>),
    /// It isn't reached. That changes by itself. Holds the reason.
    Away(String),
    /// It can't be used until somebody acts. Holds the reason, and what to do.
    Unfit(String),
}

/// A cluster that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overview {
    /// The id of the stream, from which the ids of its logs follow.
    pub(super) stream: StreamId,
    /// The server that is connected to, and its version.
    pub(crate) server: String,
    pub(crate) version: String,
    /// The server that leads the stream; empty where there is only one.
    pub(crate) leader: String,
    /// How many copies the stream is to have.
    pub(crate) replicas: u64,
    /// The servers that hold the other copies, each with what is wrong with it, if anything is.
    pub(crate) followers: Vec<(String, Option<&'static str>)>,
    /// Where the stream's messages begin and how many are missing. A change of these in the middle is damage.
    pub(super) first: u64,
    pub(super) gaps: u64,
    pub(super) created: String,
    /// What somebody should mend though sync goes on, and how.
    pub(crate) faults: Vec<String>,
    /// What should be better for real use, and what to do.
    pub(crate) flaws: Vec<String>,
    /// How many messages the stream holds, and their bytes.
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// What somebody who only looks finds at a cluster that can be used.
pub(crate) enum Examined {
    /// There is no stream yet, and it would have so many copies.
    Nothing {
        replicas: u64,
    },
    Stream(Box<Overview>),
}

/// What a gateway's stores have to know of the cluster, beside the messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Epoch {
    /// Goes up when the connection, the leader or the stream may be another.
    pub(super) connection: u64,
    /// Goes up when the stream lost something from its middle.
    pub(super) damage: u64,
    /// The runs that have begun.
    pub(super) runs: Runs,
    /// Goes up when the copies of the stream are elsewhere, or are otherwise.
    copies: u64,
}

/// What a cluster has before stores are moved there.
#[derive(Debug, Default)]
pub(crate) struct There {
    /// Who may sync with the gateways that are there.
    pub(crate) tokens: Vec<Token>,
    /// Of which stores it has another log.
    pub(crate) others: Vec<StoreId>,
}

/// What became of this gateway's messages.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// The stream has them.
    pub(crate) published: AtomicU64,
    /// Another gateway was faster, and they were made anew.
    pub(crate) raced: AtomicU64,
    /// No answer came.
    pub(crate) unanswered: AtomicU64,
    /// How often it was found that the stream had lost something.
    pub(crate) losses: AtomicU64,
}

/// The cluster that a gateway stands before.
#[derive(Clone)]
pub(crate) struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    options: ClusterOptions,
    bucket: Bucket,
    api: Mutex<Option<Api>>,
    stand: watch::Sender<Stand>,
    epoch: Arc<watch::Sender<Epoch>>,
    /// Where the copies of the stream are, in words.
    copies: Mutex<Option<Arc<str>>>,
    /// Stores of which the stream lost something, for which no new run has begun yet; each with the run in which that was
    /// found.
    lost: Mutex<BTreeMap<StoreId, u64>>,
    /// Wakes whoever looks after the cluster.
    now: Notify,
    /// The last sequence of the stream, as of the last look.
    last: watch::Sender<u64>,
    /// What the connection last complained of.
    complaint: Arc<Mutex<Option<String>>>,
    shortage: Shortage,
    counts: Counts,
}

impl Cluster {
    /// Checks the options. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// When one of them can't be used.
    pub(crate) fn new(options: &ClusterOptions, data: &Path) -> anyhow::Result<Self> {
        let address = Address::parse(&options.servers, options.without_tls)?;
        let complaint = Arc::new(Mutex::new(None));
        let epoch = Arc::new(watch::channel(Epoch::default()).0);
        drop(connect_options(options, &address, &complaint, &epoch)?);
        let bucket = Bucket::new(data, address.bucket(), &address.prefix().to_string())?;
        Ok(Self {
            inner: Arc::new(Inner {
                address,
                options: options.clone(),
                bucket,
                api: Mutex::default(),
                stand: watch::channel(Stand::Connecting).0,
                epoch,
                copies: Mutex::default(),
                lost: Mutex::default(),
                now: Notify::new(),
                last: watch::channel(0).0,
                complaint,
                shortage: Shortage::default(),
                counts: Counts::default(),
            }),
        })
    }

    /// Keeps looking after the cluster until `shutdown`.
    pub(crate) async fn look_after(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.keep()).await;
        self.hang_up().await;
    }

    /// Its servers, without passwords.
    pub(crate) fn url(&self) -> String {
        self.inner.address.to_string()
    }

    /// What became of this gateway's messages.
    pub(crate) fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    /// The name of the stream.
    pub(super) fn stream(&self) -> String {
        self.inner.address.stream()
    }

    /// The subject of a store.
    pub(super) fn subject(&self, store: &StoreId) -> String {
        self.inner.address.prefix().subject(store)
    }

    /// The subjects of all stores.
    pub(super) fn subjects(&self) -> String {
        self.inner.address.prefix().subjects()
    }

    /// The store of a subject, or why it is none's.
    pub(super) fn store_of(&self, subject: &str) -> Result<StoreId, String> {
        self.inner.address.prefix().store_of(subject)
    }

    /// The id that the log of a store brought along, if it was moved here.
    pub(super) fn moved(&self, store: &StoreId) -> Option<LogId> {
        self.inner.bucket.moved(store)
    }

    /// Where the copies of the stream are, in words, if it was reached.
    pub(super) fn copies(&self) -> Option<Arc<str>> {
        self.inner.copies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes what gateways share and this directory's tokens level now.
    pub(super) async fn level(&self, api: &Api) -> Result<(), BucketError> {
        self.inner.bucket.level_now(api).await
    }

    /// Notes which logs stores bring along into the stream, before they do.
    pub(super) async fn bring(&self, api: &Api, logs: &BTreeMap<StoreId, LogId>) -> Result<(), BucketError> {
        self.inner.bucket.bring(api, logs).await
    }

    /// What stores have to know, now and as it changes.
    pub(super) fn epoch(&self) -> watch::Receiver<Epoch> {
        self.inner.epoch.subscribe()
    }

    /// Notes that the stream lost something of a store. There is no run from now on until a new one has begun.
    pub(super) fn lost(&self, store: &StoreId) {
        self.inner.counts.losses.fetch_add(1, Ordering::Relaxed);
        let run = self.inner.epoch.borrow().runs.number;
        self.inner.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(store.clone(), run);
        self.inner.now.notify_one();
    }

    /// How it is, now and as that changes.
    pub(crate) fn stand(&self) -> watch::Receiver<Stand> {
        self.inner.stand.subscribe()
    }

    /// The last sequence of the stream, now and as it grows.
    pub(super) fn last(&self) -> watch::Receiver<u64> {
        self.inner.last.subscribe()
    }

    /// JetStream, if the cluster can be used.
    ///
    /// # Errors
    ///
    /// Why it can't.
    pub(super) fn api(&self) -> Result<Api, String> {
        match &*self.inner.stand.borrow() {
            Stand::Ready(_) => self.connected().ok_or_else(|| "there is no connection".to_owned()),
            Stand::Connecting => Err(format!("{} is not reached yet", self.inner.address)),
            Stand::Away(why) | Stand::Unfit(why) => Err(why.clone()),
        }
    }

    /// Why devices can't be served now, if they can't.
    pub(crate) fn not_serving(&self) -> Option<String> {
        let is_between_runs =
            || self.run().is_none().then(|| "the stream lost something, and a new run begins".to_owned());
        self.api().err().or_else(is_between_runs)
    }

    /// What went wrong, if it is that the servers don't let this gateway in, or don't allow it what it needs. `why` is what
    /// was seen of it.
    pub(super) fn refusal(&self, why: &str) -> Option<String> {
        let is_refusal = |why: &String| [RIGHTS, LOGIN].iter().any(|words| why.contains(words));
        Some(why.to_owned()).filter(is_refusal).or_else(|| Some(self.explained(why.to_owned())).filter(is_refusal))
    }

    /// Makes the bucket and this gateway's files level now.
    ///
    /// # Errors
    ///
    /// Why they aren't.
    pub(crate) async fn share(&self) -> Result<(), String> {
        self.inner.bucket.level_now(&self.api()?).await.map_err(|error| error.to_string())
    }

    /// The run that this gateway serves under, if the bucket was heard of lately and nothing there is unfit. What a gateway
    /// knows otherwise may be out of date, and a revoked device must not live on behind a partition.
    pub(crate) fn run(&self) -> Option<Arc<str>> {
        let is_fit = !matches!(&*self.inner.stand.borrow(), Stand::Unfit(_));
        let is_lately = self.inner.bucket.heard().is_some_and(|heard| heard.elapsed() < BELIEVED);
        let is_whole = self.inner.lost.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        self.inner.bucket.run().filter(|_| is_lately && is_whole && is_fit)
    }

    /// Returns once `run` is over: another one has begun, the stream lost something, stream or bucket became unfit, or the
    /// bucket wasn't heard of for too long.
    pub(crate) async fn run_ends(&self, run: &str) {
        let mut runs = self.inner.bucket.runs();
        let mut stand = self.stand();
        while self.run().as_deref() == Some(run) {
            let heard = self.inner.bucket.heard().map(|heard| heard.elapsed()).unwrap_or_default();
            tokio::select! {
                _ = runs.changed() => {}
                changed = stand.changed() => if changed.is_err() { return },
                () = sleep(BELIEVED.saturating_sub(heard).max(LOOK_EVERY)) => {}
            }
        }
    }

    fn connected(&self) -> Option<Api> {
        self.inner.api.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn keep(&self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.inner.now.notified() => {}
            }
            if failures >= UNANSWERED {
                // A server that stands still keeps its connections, and a connection whose server refuses to have it again
                // ends without a word. Another one may do better.
                self.hang_up().await;
                failures = 0;
            }
            let looked = match self.connect().await {
                Ok(api) => self.look(&api).await,
                Err(why) => Err(Trouble::Away(why)),
            };
            let stand = match looked {
                Ok(overview) => Stand::Ready(Arc::new(overview)),
                Err(Trouble::Away(why)) => Stand::Away(self.explained(why)),
                Err(Trouble::Unfit(why)) => Stand::Unfit(why),
            };
            failures = if matches!(stand, Stand::Away(_)) { failures + 1 } else { 0 };
            self.tell(stand);
        }
    }

    /// Ends the connection.
    async fn hang_up(&self) {
        let api = self.inner.api.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(api) = api {
            drop(timeout(CONNECT, api.client().drain()).await);
        }
    }

    /// Notes what stores have to know of the cluster as it is now. Those that serve halt if it became unfit.
    fn note(&self, known: &Stand, stand: &Stand) {
        let now = match stand {
            Stand::Ready(now) => now,
            Stand::Unfit(_) if known != stand => {
                return self.inner.epoch.send_modify(|epoch| epoch.connection += 1);
            }
            Stand::Unfit(_) | Stand::Away(_) | Stand::Connecting => return,
        };
        let before = if let Stand::Ready(before) = known { Some(before) } else { None };
        let is_another = before.is_none_or(|before| (&before.leader, &before.created) != (&now.leader, &now.created));
        let is_damaged = before.is_some_and(|before| (before.first, before.gaps) != (now.first, now.gaps));
        let runs = self.inner.bucket.begun();
        let copies: Arc<str> = now.copies().into();
        let mut known = self.inner.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let are_others = known.as_ref() != Some(&copies);
        *known = Some(copies);
        drop(known);
        self.inner.epoch.send_if_modified(|epoch| {
            let next = Epoch {
                connection: epoch.connection + u64::from(is_another),
                damage: epoch.damage + u64::from(is_damaged),
                runs,
                copies: epoch.copies + u64::from(are_others),
            };
            let is_new = *epoch != next;
            *epoch = next;
            is_new
        });
    }

    fn tell(&self, stand: Stand) {
        let address = &self.inner.address;
        self.inner.stand.send_if_modified(|known| {
            match (&*known, &stand) {
                (Stand::Ready(before), Stand::Ready(now)) => {
                    let before: Vec<_> = before.wrong().collect();
                    now.wrong().filter(|wrong| !before.contains(wrong)).for_each(|wrong| tracing::warn!("{wrong}"));
                }
                (_, Stand::Ready(now)) => {
                    tracing::info!(server = now.server, version = now.version, "connected to {address}");
                    now.wrong().for_each(|wrong| tracing::warn!("{wrong}"));
                }
                (Stand::Unfit(before), Stand::Unfit(now)) if before == now => {}
                (_, Stand::Unfit(why)) => tracing::error!("{address} can't be used: {why}"),
                (Stand::Away(_), Stand::Away(_)) => {}
                (_, Stand::Away(why)) => tracing::warn!("{address} isn't reached: {why}"),
                (_, Stand::Connecting) => {}
            }
            let is_new = *known != stand;
            let before = std::mem::replace(known, stand);
            // Whoever is woken by that waits until the new stand can be seen.
            self.note(&before, known);
            is_new
        });
    }

    /// Returns the connection, made if there is none. One that broke is made again by itself, once to each server.
    async fn connect(&self) -> Result<Api, String> {
        if let Some(api) = self.connected() {
            let is_connected = api.client().connection_state() == State::Connected;
            return if is_connected { Ok(api) } else { Err(self.complaint()) };
        }
        let Inner { address, options, complaint, epoch, shortage, .. } = &*self.inner;
        let options = connect_options(options, address, complaint, epoch).map_err(|error| format!("{error:#}"))?;
        let connecting = options.connect(address.servers.clone());
        match timeout(CONNECT * self.rounds(), connecting).await {
            Ok(Ok(client)) => {
                let api = Api::new(client, Arc::clone(shortage));
                *self.inner.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(api.clone());
                Ok(api)
            }
            Ok(Err(error)) => Err(in_words(&error)),
            Err(_) => Err("no server answered in time".to_owned()),
        }
    }

    fn rounds(&self) -> u32 {
        u32::try_from(self.inner.address.servers.len()).unwrap_or(u32::MAX).max(1)
    }

    /// Says with `why` what may be the cause: what a server complained of, such as rights that this gateway doesn't have, since
    /// such a server gives no other answer; and that there was no room, since such servers soon have no leader.
    fn explained(&self, mut why: String) -> String {
        let complaint = self.inner.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shortage = self.inner.shortage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (when, cause) in [("", complaint), ("before that, ", shortage)] {
            if let Some(cause) = cause.filter(|cause| !why.contains(cause)) {
                let _ = write!(why, "; {when}{cause}");
            }
        }
        advised(why)
    }

    fn complaint(&self) -> String {
        let complaint = self.inner.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        complaint.unwrap_or_else(|| "the connection broke".to_owned())
    }

    /// Looks at the cluster once, and changes nothing there.
    ///
    /// # Errors
    ///
    /// Why it can't be used.
    pub(crate) async fn examine(&self) -> anyhow::Result<Examined> {
        let examining = async {
            let api = self.connect().await.map_err(Trouble::Away)?;
            let server = check_server(&api)?;
            let name = self.inner.address.stream();
            let Some(info) = self.found(&api, &name).await? else {
                return Ok(Examined::Nothing { replicas: replicas_at(&server) });
            };
            let id = self.check_stream(&info, &server)?;
            let shared = self.found(&api, &self.inner.address.bucket()).await?;
            if let Some(shared) = &shared {
                self.check_bucket(shared, &server)?;
            }
            Ok(Examined::Stream(Box::new(self.overview(&info, shared.as_ref(), id, &server))))
        };
        let examined: Result<_, Trouble> = examining.await;
        let examined = examined.map_err(|trouble| match trouble {
            Trouble::Away(why) => anyhow!(self.explained(why)),
            Trouble::Unfit(why) => anyhow!(why),
        });
        self.hang_up().await;
        examined
    }

    /// Looks at what is there already where these logs are to be moved in, once, and changes nothing.
    ///
    /// # Errors
    ///
    /// Why that can't be known. The outer error may pass.
    pub(super) async fn glance(&self, logs: &BTreeMap<StoreId, LogId>) -> Result<anyhow::Result<There>, String> {
        let glancing = async {
            let api = self.connect().await.map_err(Trouble::Away)?;
            let server = check_server(&api)?;
            let name = self.inner.address.stream();
            let Some(info) = self.found(&api, &name).await? else { return Ok(There::default()) };
            let id = self.check_stream(&info, &server)?;
            if self.inner.bucket.known_stream() == Some(id.to_string()) {
                // This directory is a gateway's already: a move goes on.
                return Ok(There::default());
            }
            let shared = self.inner.bucket.glance(&api).await.map_err(of_bucket)?;
            let mut there =
                There { tokens: shared.map(|shared| shared.tokens).unwrap_or_default(), others: Vec::new() };
            for (store, log) in logs {
                let messages = api.read(&name, &self.subject(store), 1).await.map_err(trouble)?;
                let first = messages.iter().find_map(|message| match Message::read(&message.payload) {
                    Ok(Message::Group(group)) => Some(group.log),
                    _ => None,
                });
                if first.is_some_and(|first| first != *log) {
                    there.others.push(store.clone());
                }
            }
            Ok(there)
        };
        let there: Result<_, Trouble> = glancing.await;
        let there = match there {
            Ok(there) => Ok(Ok(there)),
            Err(Trouble::Unfit(why)) => Ok(Err(anyhow!("{} can't be used: {why}", self.url()))),
            Err(Trouble::Away(why)) => Err(self.explained(why)),
        };
        self.hang_up().await;
        there
    }

    /// Looks at everything once.
    async fn look(&self, api: &Api) -> Result<Overview, Trouble> {
        let server = check_server(api)?;
        let (name, bucket) = (self.inner.address.stream(), self.inner.address.bucket());
        let prefix = self.inner.address.prefix().to_string();
        let info = match self.found(api, &name).await? {
            Some(info) => info,
            None => {
                let known = self.inner.bucket.known_stream();
                if known.is_some() {
                    tracing::warn!(
                        "the stream {name} is gone from {}; it is made again, and what it held is published again as far as \
                         gateways and devices have it",
                        self.inner.address
                    );
                }
                let id = known.unwrap_or_else(settings::random_id);
                self.make(api, &name, |replicas| settings::of_stream(&name, &id, replicas)).await?
            }
        };
        let id = self.check_stream(&info, &server)?;
        self.inner.bucket.meet_stream(&id.to_string()).map_err(|error| Trouble::Away(format!("{error:#}")))?;
        let began = Instant::now();
        let shared = match self.found(api, &bucket).await? {
            Some(info) => info,
            None => self.make(api, &bucket, |replicas| settings::of_bucket(&bucket, &prefix, replicas)).await?,
        };
        self.check_bucket(&shared, &server)?;
        let mut full = None;
        match self.inner.bucket.level(api, &shared, began).await {
            Ok(()) => {}
            // Those who are known already go on.
            Err(BucketError::Full(why)) => full = Some(why),
            Err(error) => return Err(of_bucket(error)),
        }
        let lost = self.inner.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !lost.is_empty() {
            self.inner.bucket.begin_runs(api, &lost).await.map_err(of_bucket)?;
            let mut still = self.inner.lost.lock().unwrap_or_else(PoisonError::into_inner);
            still.retain(|store, run| lost.get(store) != Some(run));
        }
        self.inner.last.send_if_modified(|last| {
            let is_new = *last != info.state.last_seq;
            *last = info.state.last_seq;
            is_new
        });
        let mut overview = self.overview(&info, Some(&shared), id, &server);
        overview.faults.extend(full);
        Ok(overview)
    }

    /// Fails if the stream isn't as it has to be. Returns its id.
    fn check_stream(&self, info: &StreamInfo, server: &ServerInfo) -> Result<StreamId, Trouble> {
        let name = self.inner.address.stream();
        settings::check_stream(&name, &info.config).map_err(unfit)?;
        check_copies(&name, info, server)?;
        let id = settings::id(&info.config).unwrap_or_default();
        id.parse()
            .map_err(|error| Trouble::Unfit(format!("the id in the metadata of the stream {name} is none: {error}")))
    }

    /// Fails if the bucket isn't as it has to be.
    fn check_bucket(&self, info: &StreamInfo, server: &ServerInfo) -> Result<(), Trouble> {
        let name = self.inner.address.bucket();
        settings::check_bucket(&name, &self.inner.address.prefix().to_string(), &info.config).map_err(unfit)?;
        check_copies(&name, info, server)
    }

    /// Describes the cluster by its stream and its bucket.
    fn overview(&self, info: &StreamInfo, bucket: Option<&StreamInfo>, id: StreamId, server: &ServerInfo) -> Overview {
        let named = bucket.map(|bucket| (self.inner.address.bucket(), bucket));
        let streams: Vec<_> = [(self.inner.address.stream(), info)].into_iter().chain(named).collect();
        let few = streams.iter().filter_map(|(name, info)| settings::few_replicas(name, info.copies()));
        let peers_of = |info: &StreamInfo| info.cluster.clone().unwrap_or_default();
        let all_peers = streams.iter().flat_map(|(_, info)| peers_of(info).replicas);
        let missing: BTreeSet<_> = all_peers.filter(Peer::is_missing).map(|peer| peer.name).collect();
        let missing = missing.into_iter().map(|name| {
            format!("the server {name} doesn't answer the others; start it, because sync stands still once a majority is missing")
        });
        let peers = peers_of(info);
        let followers = peers.replicas.into_iter().map(|peer| {
            let fault = if peer.is_missing() { Some("missing") } else { (!peer.current).then_some("behind") };
            (peer.name, fault)
        });
        let replicas = info.copies();
        Overview {
            stream: id,
            server: server.server_name.clone(),
            version: server.version.clone(),
            leader: if replicas > 1 { peers.leader } else { String::new() },
            replicas,
            followers: followers.collect(),
            // A stream without messages begins at 0, and its first message is 1.
            first: info.state.first_seq.max(1),
            gaps: info.state.num_deleted,
            created: info.created.clone(),
            faults: missing.collect(),
            flaws: few.collect(),
            messages: info.state.messages,
            bytes: info.state.bytes,
        }
    }

    async fn found(&self, api: &Api, name: &str) -> Result<Option<StreamInfo>, Trouble> {
        match api.info(name, None).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is(code::STREAM_NOT_FOUND) => Ok(None),
            Err(error) => Err(trouble(error)),
        }
    }

    /// Makes a stream: on three servers if there are as many, or else on one.
    async fn make(
        &self,
        api: &Api,
        name: &str,
        config: impl Fn(u64) -> serde_json::Value,
    ) -> Result<StreamInfo, Trouble> {
        let replicas = replicas_at(&api.client().server_info());
        match api.create(name, &config(replicas)).await {
            Ok(info) => {
                tracing::info!(replicas, "made the stream {name}");
                Ok(info)
            }
            // Another gateway was faster.
            Err(error) if error.is(code::NAME_IN_USE) => match self.found(api, name).await? {
                Some(info) => Ok(info),
                None => Err(Trouble::Away(error.to_string())),
            },
            Err(ApiError::Refused(found, why)) if code::TOO_FEW_SERVERS.contains(&found) => {
                Err(Trouble::Away(format!(
                    "the stream {name} can't be made on {REPLICAS} servers: {why}. Start them all; or make it yourself with \
                 fewer replicas, and it can be lost with them"
                )))
            }
            Err(error) => Err(trouble(error)),
        }
    }
}

/// Why a look came to nothing.
enum Trouble {
    Away(String),
    Unfit(String),
}

fn of_bucket(error: BucketError) -> Trouble {
    match error {
        BucketError::Unfit(why) => Trouble::Unfit(why),
        BucketError::Api(error) => trouble(error),
        BucketError::Files(_) | BucketError::Full(_) => Trouble::Away(error.to_string()),
    }
}

fn unfit(error: anyhow::Error) -> Trouble {
    Trouble::Unfit(format!("{error:#}"))
}

fn trouble(error: ApiError) -> Trouble {
    match error {
        ApiError::Refused(code::NOT_ENABLED, _) => Trouble::Unfit(
            "JetStream isn't turned on there; start nats-server with --jetstream, or `jetstream {}` in its file"
                .to_owned(),
        ),
        ApiError::Refused(code::NOT_ENABLED_FOR_ACCOUNT, _) => {
            Trouble::Unfit("this account may not use JetStream; enable it for the account".to_owned())
        }
        error => Trouble::Away(error.to_string()),
    }
}

/// How many copies a new stream gets.
fn replicas_at(server: &ServerInfo) -> u64 {
    if server.cluster.is_none() { 1 } else { REPLICAS }
}

/// Fails if the server that is connected to won't do.
fn check_server(api: &Api) -> Result<ServerInfo, Trouble> {
    let server = api.client().server_info();
    settings::check_version(&server.version).map_err(unfit)?;
    if server.max_payload < MESSAGE_BYTES {
        return Err(Trouble::Unfit(format!(
            "the servers take messages of up to {} bytes, and a message of events has up to {MESSAGE_BYTES}; raise max_payload",
            server.max_payload
        )));
    }
    Ok(server)
}

/// Fails if the servers hold fewer copies of a stream than they should. One server alone is enough to try it, and for those who
/// can do without sync for a while.
fn check_copies(name: &str, info: &StreamInfo, server: &ServerInfo) -> Result<(), Trouble> {
    match settings::few_replicas(name, info.copies()) {
        Some(why) if server.cluster.is_some() => Err(Trouble::Unfit(why)),
        _ => Ok(()),
    }
}

impl Overview {
    /// Everything that should be otherwise.
    fn wrong(&self) -> impl Iterator<Item = &String> {
        self.faults.iter().chain(&self.flaws)
    }

    /// Says in a line where its copies are.
    pub(crate) fn copies(&self) -> String {
        if self.replicas == 1 {
            return "one copy of the stream".to_owned();
        }
        let mut text = format!("{} copies of the stream: {} leads", self.replicas, self.leader);
        for (name, fault) in &self.followers {
            // A number would change each second.
            let _ = write!(text, ", {name} is {}", fault.unwrap_or("current"));
        }
        text
    }
}

fn connect_options(
    options: &ClusterOptions,
    address: &Address,
    complaint: &Arc<Mutex<Option<String>>>,
    epoch: &Arc<watch::Sender<Epoch>>,
) -> anyhow::Result<ConnectOptions> {
    let (complaint, epoch) = (Arc::clone(complaint), Arc::clone(epoch));
    let mut connect = ConnectOptions::new()
        .name("likewise")
        .ping_interval(PING)
        .connection_timeout(CONNECT)
        .request_timeout(Some(ANSWER))
        // Whoever set this up named the servers that may be talked to.
        .ignore_discovered_servers()
        .max_reconnects(address.servers.len())
        .reconnect_delay_callback(|attempts| {
            let doubled = SHORTEST_WAIT * 2_u32.saturating_pow(u32::try_from(attempts).unwrap_or(u32::MAX).min(16));
            let bound: Duration = doubled.min(LONGEST_WAIT);
            bound.mul_f64(0.5 + 0.5 * random::fraction())
        })
        .event_callback(move |event| {
            let said = match event {
                Event::Connected => None,
                Event::ServerError(error) => Some(format!("a server says: {error}")),
                Event::ClientError(error) => Some(error.to_string()),
                Event::Disconnected => Some("the connection broke".to_owned()),
                Event::LameDuckMode => Some("the server is being shut down".to_owned()),
                Event::Draining | Event::Closed => Some("the connection was ended".to_owned()),
                Event::SlowConsumer(_) => Some("this gateway reads too slowly".to_owned()),
            };
            if said.is_none() {
                epoch.send_modify(|epoch| epoch.connection += 1);
            }
            tracing::debug!(said, "the connection to a NATS server changed");
            *complaint.lock().unwrap_or_else(PoisonError::into_inner) = said;
            std::future::ready(())
        });
    connect = match address.login.clone() {
        Some(Login::User(user, password)) => connect.user_and_password(user, password),
        Some(Login::Token(token)) => connect.token(token),
        None => connect,
    };
    if let Some(path) = &options.credentials {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        connect = connect.credentials(&text).with_context(|| {
            format!("{} holds no credentials of NATS, as `nsc generate creds` makes them", path.display())
        })?;
    }
    let roots = options.root_certificate.as_deref().map(read_certificates).transpose()?.unwrap_or_default();
    match tls(Trust::SystemAnd(roots)) {
        Ok(mut config) => {
            config.alpn_protocols.clear();
            // A server may ask for TLS though its address doesn't.
            connect = connect.tls_client_config(config).require_tls(address.has_tls);
        }
        Err(error) if address.has_tls => return Err(error).context("cannot connect over TLS"),
        Err(_) => {}
    }
    Ok(connect)
}

/// Describes what went wrong, down to its cause.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if why.contains(&text) {
            text = why;
        } else if !text.contains(&why) {
            let _ = write!(text, ": {why}");
        }
        cause = error.source();
    }
    text
}

/// In the words of servers: this user may not do that.
const RIGHTS: &str = "ermissions Violation";
/// In the words of servers and of the client: nobody is let in like this.
const LOGIN: &str = "uthorization violation";

/// Adds to words of servers, of the client or of TLS what to do.
fn advised(mut why: String) -> String {
    let advice = [
        ("UnknownIssuer", "If its authority is one of your own, name that with --root-certificate"),
        (
            "InvalidContentType",
            "The server speaks no TLS there: give it a part `tls {}` in its file, or use nats:// where the way to it is private",
        ),
        (LOGIN, "Name the file of this gateway's credentials with --nats-credentials, or have them renewed"),
        (RIGHTS, "SECURITY.md says which rights a gateway needs"),
    ];
    for (words, advice) in advice {
        if why.contains(words) && !why.contains(advice) {
            let _ = write!(why, ". {advice}");
        }
    }
    why
}

#[cfg(test)]
mod tests {
    use super::super::address::WithoutTls;
    use super::*;

    #[test]
    fn a_lack_of_room_is_still_said_once_its_servers_have_no_leader() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = ClusterOptions {
            servers: "nats://localhost".to_owned(),
            credentials: None,
            root_certificate: None,
            without_tls: WithoutTls::Here,
        };
        let cluster = Cluster::new(&options, dir.path()).expect("a cluster");
        let unavailable = ApiError::Refused(code::UNAVAILABLE, "temporarily unavailable".to_owned()).to_string();
        assert_eq!(cluster.explained(unavailable.clone()), unavailable);
        let full = ApiError::Refused(code::FULL[0], "insufficient resources".to_owned()).to_string();
        *cluster.inner.shortage.lock().expect("what was said") = Some(full.clone());
        let why = cluster.explained(unavailable);
        assert!(why.contains("temporarily unavailable") && why.contains("before that, JetStream has no room"), "{why}");
        assert_eq!(cluster.explained(full.clone()), full, "it isn't said twice");
    }

    #[test]
    fn what_servers_and_tls_say_comes_with_what_to_do() {
        for (said, advice) in [
            ("IO error: invalid peer certificate: UnknownIssuer", "--root-certificate"),
            ("IO error: received corrupt message of type InvalidContentType", "speaks no TLS"),
            ("authorization violation: nats: authorization violation", "--nats-credentials"),
            ("Permissions Violation for Publish to \"$KV.shop.gateways\"", "SECURITY.md"),
        ] {
            let why = advised(said.to_owned());
            assert!(why.starts_with(said) && why.contains(advice), "{why}");
            assert_eq!(advised(why.clone()), why);
        }
    }
}
