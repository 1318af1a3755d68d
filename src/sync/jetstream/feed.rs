//! What is new in the stream: a gateway is told of each message's subject and sequence, and not of what is in it.
//!
//! It is a hint. The attendants read the messages themselves, and ask the leader where a subject ends before they judge
//! anybody. What isn't told is found within seconds, since the stream's last sequence is looked at every second.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Message;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::super::client::Clients;
use super::super::gateway::Sequence;
use super::api::{Api, ApiError};
use super::cluster::{Cluster, Stand};
use crate::engine::{Error, StoreId};
use crate::limits::sync::client::LOOK_EVERY as RETRY;
use crate::limits::sync::nats::{HEARTBEAT, LOOK_EVERY, ODD_SUBJECTS, WARMING};

/// Has stores attended to when the stream has something new of them, and at first all that the stream has.
pub(in super::super) struct Feed {
    clients: Clients,
    cluster: Cluster,
    /// How many messages each store has in the stream, as far as was told.
    counts: BTreeMap<StoreId, u64>,
    /// Stores that wait to be made level.
    cold: VecDeque<StoreId>,
    warming: Arc<Semaphore>,
    odd: BTreeSet<String>,
}

/// Why the stream is no longer watched.
enum Lost {
    Api(ApiError),
    /// The server's hints don't come, or some of them didn't.
    Hints(&'static str),
}

impl From<ApiError> for Lost {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl Feed {
    pub(in super::super) fn new(clients: Clients, cluster: Cluster) -> Self {
        Self {
            clients,
            cluster,
            counts: BTreeMap::new(),
            cold: VecDeque::new(),
            warming: Arc::new(Semaphore::new(WARMING)),
            odd: BTreeSet::new(),
        }
    }

    /// Watches the stream for as long as the program runs.
    pub(in super::super) async fn run(mut self) {
        let mut stand = self.cluster.stand();
        loop {
            if stand.wait_for(|stand| matches!(stand, Stand::Ready(_))).await.is_err() {
                return;
            }
            let Ok(api) = self.cluster.api() else {
                sleep(LOOK_EVERY).await;
                continue;
            };
            match self.watch(&api).await {
                Ok(()) => {}
                Err(Lost::Api(error)) => tracing::debug!("the stream can't be watched: {error}"),
                Err(Lost::Hints(why)) => tracing::debug!("the stream is watched anew: {why}"),
            }
            sleep(RETRY).await;
        }
    }

    /// Watches the stream over one connection.
    async fn watch(&mut self, api: &Api) -> Result<(), Lost> {
        let mut epoch = self.cluster.epoch();
        epoch.mark_unchanged();
        let connection = epoch.borrow().connection;
        let inbox = api.client().new_inbox();
        let subscribed = api.client().subscribe(inbox.clone()).await;
        let mut hints = subscribed.map_err(|error| ApiError::NoAnswer(error.to_string()))?;
        let mut reached = self.list(api).await?;
        let consumer = self.consumer(&inbox, reached + 1);
        api.request::<Value>(&format!("CONSUMER.CREATE.{}", self.cluster.stream()), &consumer).await?;
        let (mut heard, mut nth, mut looks) = (Instant::now(), 0, 0);
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let last = self.cluster.last();
        loop {
            let has_cold = !self.cold.is_empty();
            let warming = Arc::clone(&self.warming);
            tokio::select! {
                hint = hints.next() => {
                    let Some(hint) = hint else { return Err(Lost::Hints("the subscription ended")) };
                    heard = Instant::now();
                    if hint.status.is_some() {
                        self.is_there(api, &hint).await;
                        continue;
                    }
                    let Some((of_stream, of_consumer)) = sequences(&hint) else { continue };
                    if of_consumer != nth + 1 {
                        return Err(Lost::Hints("some of its hints are missing"));
                    }
                    (nth, reached, looks) = (of_consumer, of_stream, 0);
                    if let Some(store) = self.store_of(hint.subject.as_str()) {
                        *self.counts.entry(store.clone()).or_default() += 1;
                        self.clients.wake(&store, of_stream);
                    }
                }
                Ok(permit) = warming.acquire_owned(), if has_cold => {
                    let Some(store) = self.cold.pop_front() else { continue };
                    if let Err(Error::TooManyOpen) = self.clients.warm(&store, permit) {
                        self.cold.push_front(store);
                        sleep(RETRY).await;
                    }
                }
                _ = ticks.tick() => {
                    if heard.elapsed() > 3 * HEARTBEAT {
                        return Err(Lost::Hints("it fell silent"));
                    }
                    // The stream may also end before what was told, if it has lost something.
                    looks = if *last.borrow() == reached { 0 } else { looks + 1 };
                    if looks > 2 {
                        return Err(Lost::Hints("the stream ends elsewhere than it told"));
                    }
                }
                changed = epoch.changed() => {
                    if changed.is_err() || epoch.borrow().connection != connection {
                        return Err(Lost::Hints("the connection is another"));
                    }
                }
            }
        }
    }

    /// A consumer that tells this inbox what comes from that sequence on, for as long as somebody listens.
    fn consumer(&self, inbox: &str, from: Sequence) -> Value {
        json!({
            "stream_name": self.cluster.stream(),
            "config": {
                "deliver_subject": inbox,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": from,
                "ack_policy": "none",
                "replay_policy": "instant",
                "headers_only": true,
                "flow_control": true,
                "idle_heartbeat": nanos(HEARTBEAT),
                "inactive_threshold": nanos(5 * HEARTBEAT),
                "mem_storage": true,
                "num_replicas": 1,
            },
        })
    }

    /// The server says that it is there, or asks whether this gateway keeps up.
    async fn is_there(&self, api: &Api, hint: &Message) {
        let stalled = hint.headers.as_ref().and_then(|headers| headers.get("Nats-Consumer-Stalled"));
        let asks =
            hint.reply.as_ref().map(|reply| reply.to_string()).or(stalled.map(|reply| reply.as_str().to_owned()));
        if let Some(reply) = asks {
            drop(api.client().publish(reply, Vec::new().into()).await);
        }
    }

    /// Lists the stores that the stream has, and has those attended to that have more messages than was known. Returns the
    /// last sequence of the stream.
    async fn list(&mut self, api: &Api) -> Result<Sequence, Lost> {
        let filter = self.cluster.subjects();
        let (mut offset, mut last) = (0, 0);
        loop {
            let info = api.info(&self.cluster.stream(), Some((&filter, offset))).await?;
            last = info.state.last_seq.max(last);
            let found = info.state.subjects.len() as u64;
            for (subject, count) in info.state.subjects {
                let Some(store) = self.store_of(&subject) else { continue };
                if self.counts.insert(store.clone(), count) != Some(count) && !self.clients.wake_attended(&store, last)
                {
                    self.cold.push_back(store);
                }
            }
            offset += found;
            if found == 0 || offset >= info.total {
                return Ok(last);
            }
        }
    }

    fn store_of(&mut self, subject: &str) -> Option<StoreId> {
        match self.cluster.store_of(subject) {
            Ok(store) => Some(store),
            Err(why) => {
                if self.odd.len() < ODD_SUBJECTS && self.odd.insert(subject.to_owned()) {
                    tracing::warn!("the stream has messages that are none of a gateway's, and are passed over: {why}");
                }
                None
            }
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The sequences of a message in its stream and at its consumer, which its reply subject tells.
fn sequences(hint: &Message) -> Option<(Sequence, u64)> {
    let reply = hint.reply.as_ref()?;
    let parts: Vec<_> = reply.as_str().split('.').collect();
    // `$JS.ACK.STREAM.CONSUMER.DELIVERED.STREAM-SEQUENCE.CONSUMER-SEQUENCE.TIME.PENDING`; newer servers put a domain and an
    // account before the stream.
    let at = if parts.len() > 9 { 7 } else { 5 };
    Some((parts.get(at)?.parse().ok()?, parts.get(at + 1)?.parse().ok()?))
}
