//! Moves stores into a stream and out of it, for a command that has the data directory. Each step can be interrupted and done
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use super::super::gateway::{
    Ends, Gateway, Home, Judges, Message, MoveError, MoveIn, MoveStep, Sequence, Step, log_in,
};
use super::api::{Api, ApiError, code};
use super::bucket::BucketError;
use super::cluster::{Cluster, Overview, Stand, There};
use crate::engine::{Device, LogId, Replica, StoreId, StreamId, Whose};
use crate::limits::sync::nats::{MOVE_PATIENCE, MOVE_PAUSE};

/// A cluster that is ready for a move.
pub(crate) struct Mover {
    cluster: Cluster,
    stream: StreamId,
    device: Device,
    /// When the cluster last answered.
    heard: Instant,
}

/// What a move did to a store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// It was moved. Holds how many events its log has.
    Now(u64),
    /// It had been moved before.
    Before,
    /// It has nothing to do with the stream, and was left as it is.
    Apart,
}

/// Looks at what a cluster has already where these logs are to be moved in. Nothing is changed.
///
/// # Errors
///
/// When it can't be used, or isn't reached for a while.
pub(crate) async fn look_before_moving(cluster: &Cluster, logs: &BTreeMap<StoreId, LogId>) -> anyhow::Result<There> {
    let began = Instant::now();
    loop {
        match cluster.glance(logs).await {
            Ok(there) => return there,
            Err(why) if began.elapsed() > MOVE_PATIENCE => bail!("{} isn't reached: {why}", cluster.url()),
            Err(why) if let Some(why) = cluster.refusal(&why) => bail!("{} refuses it: {why}", cluster.url()),
            Err(_) => sleep(MOVE_PAUSE).await,
        }
    }
}

impl Mover {
    /// Waits until the cluster can be used. It looks after itself meanwhile: what gateways share and this directory's tokens
    /// are level then.
    ///
    /// # Errors
    ///
    /// When it can't be used, or isn't reached for a while.
    pub(crate) async fn new(cluster: Cluster, device: Device) -> anyhow::Result<Self> {
        let began = Instant::now();
        let mut stand = cluster.stand();
        let stream = loop {
            let seen = stand.borrow_and_update().clone();
            match seen {
                Stand::Ready(overview) => {
                    let Overview { stream, .. } = &*overview;
                    break *stream;
                }
                Stand::Unfit(why) => bail!("{} can't be used: {why}", cluster.url()),
                Stand::Away(why) if began.elapsed() > MOVE_PATIENCE => bail!("{} isn't reached: {why}", cluster.url()),
                Stand::Away(why) if let Some(why) = cluster.refusal(&why) => {
                    bail!("{} refuses it: {why}", cluster.url())
                }
                Stand::Away(_) | Stand::Connecting => {}
            }
            drop(tokio::time::timeout(MOVE_PAUSE, stand.changed()).await);
        };
        Ok(Self { cluster, stream, device, heard: Instant::now() })
    }

    /// Lists the stores that the stream has messages of.
    ///
    /// # Errors
    ///
    /// When the cluster doesn't answer.
    pub(crate) async fn stores(&mut self) -> anyhow::Result<BTreeSet<StoreId>> {
        let mut stores = BTreeSet::new();
        let mut offset = 0;
        loop {
            let filter = self.cluster.subjects();
            let info = self.persist(async |api, stream| api.info(stream, Some((&filter, offset))).await).await?;
            // A subject that is no store's is nobody's of ours.
            stores.extend(info.state.subjects.keys().filter_map(|subject| self.cluster.store_of(subject).ok()));
            let count = info.state.subjects.len() as u64;
            if count == 0 {
                return Ok(stores);
            }
            offset += count;
        }
    }

    /// Returns the log of a store that is to be moved in, if it has any events.
    ///
    /// # Errors
    ///
    /// When the log isn't this directory's own to move.
    pub(crate) fn log_to_move(&self, replica: &Replica) -> anyhow::Result<Option<LogId>> {
        let standing = replica.standing()?;
        let is_moved = replica.stream() == Some(self.stream);
        match standing.whose {
            Whose::Own(log) => Ok((standing.length > 0).then_some(log)),
            Whose::Upstream(log) if is_moved => Ok(log),
            Whose::Upstream(_) => Err(MoveError::NotOwn.into()),
        }
    }

    /// Notes which logs are moved in, before any is: gateways then know them even where the stream loses their events.
    ///
    /// # Errors
    ///
    /// When the cluster doesn't answer.
    pub(crate) async fn bring(&mut self, logs: &BTreeMap<StoreId, LogId>) -> anyhow::Result<()> {
        loop {
            let brought = match self.cluster.api() {
                Ok(api) => self.cluster.bring(&api, logs).await,
                Err(why) => Err(BucketError::Api(ApiError::NoAnswer(why))),
            };
            match brought {
                Ok(()) => return Ok(()),
                Err(BucketError::Api(error)) => self.wait(error).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves a store's own log into the stream, and makes the store a gateway's.
    ///
    /// # Errors
    ///
    /// When its log can't be moved there, the cluster isn't reached for a while, or the machine fails. Try again then.
    pub(crate) async fn move_in(&mut self, replica: &mut Replica, store: &StoreId) -> anyhow::Result<Moved> {
        if replica.stream() == Some(self.stream) {
            return Ok(Moved::Before);
        }
        let subject = self.cluster.subject(store);
        let mut moving = MoveIn::new(replica)?;
        loop {
            match moving.next(replica)? {
                MoveStep::Read(after) => {
                    let read = self.persist(async |api, stream| api.read(stream, &subject, after + 1).await).await?;
                    let is_end = read.is_empty();
                    for message in read {
                        moving.arrive(replica, message.sequence, &message.payload)?;
                    }
                    // A replica of the stream may be behind; its leader is not.
                    if is_end && self.last(&subject).await? <= after {
                        moving.level();
                    }
                }
                MoveStep::Publish { expected, bytes } => match self.publish(&subject, expected, bytes).await? {
                    Some(sequence) => moving.published(sequence),
                    None => moving.unsure(),
                },
                MoveStep::Done => break,
            }
        }
        let length = replica.standing()?.length;
        moving.conclude(replica, self.stream)?;
        Ok(Moved::Now(length))
    }

    /// Makes a store a gateway's that is to be moved out, unless its log is this directory's own.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub(crate) fn begin_out(&self, replica: &mut Replica, store: &StoreId) -> anyhow::Result<Option<Gateway>> {
        let standing = replica.standing()?;
        if matches!(standing.whose, Whose::Own(_)) && standing.length > 0 {
            return Ok(None);
        }
        let home = Home {
            stream: self.stream,
            store: store.clone(),
            log: self.cluster.moved(store).unwrap_or_else(|| log_in(self.stream, store)),
            device: self.device.clone(),
        };
        Ok(Some(Gateway::begin(replica, home)?))
    }

    /// Closes a store in the stream, reads what it has, and makes its log this directory's own.
    ///
    /// # Errors
    ///
    /// As [`move_in`](Self::move_in).
    pub(crate) async fn move_out(&mut self, replica: &mut Replica, store: &StoreId, to: &str) -> anyhow::Result<Moved> {
        let subject = self.cluster.subject(store);
        let Some(mut gateway) = self.begin_out(replica, store)? else {
            return self.was_moved(&subject, to).await;
        };
        loop {
            self.read_all(&mut gateway, replica, store).await?;
            if let Some(closed) = replica.closed()? {
                must_be_same(&closed, to)?;
                break;
            }
            let last = replica.applied()?.map_or(0, |applied| applied.sequence);
            if last == 0 {
                return Ok(Moved::Apart);
            }
            self.publish(&subject, last, Message::closing(to).to_bytes()).await?;
            gateway.doubt();
        }
        let length = replica.standing()?.length;
        replica.promote()?;
        Ok(Moved::Now(length))
    }

    /// Brings this directory's tokens up to what all gateways share.
    ///
    /// # Errors
    ///
    /// When the cluster doesn't answer, or the files can't be written.
    pub(crate) async fn take_tokens(&mut self) -> anyhow::Result<()> {
        loop {
            let levelled = match self.cluster.api() {
                Ok(api) => self.cluster.level(&api).await,
                Err(why) => Err(BucketError::Api(ApiError::NoAnswer(why))),
            };
            match levelled {
                Ok(()) => return Ok(()),
                Err(BucketError::Api(error)) => self.wait(error).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Checks that a store whose log is this directory's own was moved here out of the stream.
    async fn was_moved(&mut self, subject: &str, to: &str) -> anyhow::Result<Moved> {
        let last = self.persist(async |api, stream| api.last(stream, subject).await).await?;
        match last.map(|last| Message::read(&last.payload)) {
            Some(Ok(Message::Closed(closed))) => {
                must_be_same(&closed, to)?;
                Ok(Moved::Before)
            }
            None => Ok(Moved::Apart),
            Some(_) => bail!(
                "the directory has a log of its own for this store. Name the directory of a gateway with --data, or a new one"
            ),
        }
    }

    /// Brings a replica to the end of its subject, and what waits here into the stream.
    async fn read_all(&mut self, gateway: &mut Gateway, replica: &mut Replica, store: &StoreId) -> anyhow::Result<()> {
        let subject = &*self.cluster.subject(store);
        let mut chance = 0.0;
        loop {
            if let Some(what) = gateway.take_loss() {
                tracing::warn!("{subject}: {what}; it is published again, under a new run");
                self.cluster.lost(store);
            }
            for notice in gateway.take_notices() {
                tracing::warn!("{subject}: {notice}");
            }
            match gateway.next(replica)? {
                Step::Ask(question) => {
                    let last = self.last(subject).await?;
                    let messages = self.count(subject).await?;
                    let ends = Ends { last, messages: (self.last(subject).await? == last).then_some(messages) };
                    gateway.heard(replica, question, ends)?;
                }
                Step::Get(sequence) => {
                    let found = self.persist(async |api, stream| api.message(stream, sequence).await).await?;
                    let found = found.filter(|found| found.subject == subject);
                    gateway.found(replica, sequence, found.as_ref().map(|found| &*found.payload))?;
                }
                Step::Read(mut after) => {
                    let read = self.persist(async |api, stream| api.read(stream, subject, after + 1).await).await?;
                    if read.is_empty() {
                        gateway.doubt();
                        sleep(Duration::from_millis(20)).await;
                    }
                    for message in read {
                        gateway.arrive(replica, after, message.sequence, &message.payload)?;
                        after = message.sequence;
                    }
                }
                Step::Publish(publication) => {
                    chance = 1.0 - chance;
                    sleep(publication.turn.pause(chance)).await;
                    match self.publish(subject, publication.expected, publication.bytes).await? {
                        Some(sequence) => gateway.acknowledged(publication.number, sequence),
                        None => gateway.refused(replica, publication.number, None)?,
                    }
                }
                Step::Rest => return Ok(()),
            }
            if let Judges::Halted(why) = gateway.judges(replica, 0)? {
                bail!("{why}");
            }
        }
    }

    /// The number of the subject's last message.
    async fn last(&mut self, subject: &str) -> anyhow::Result<Sequence> {
        let last = self.persist(async |api, stream| api.last(stream, subject).await).await?;
        Ok(last.map_or(0, |last| last.sequence))
    }

    /// How many messages the subject has.
    async fn count(&mut self, subject: &str) -> anyhow::Result<u64> {
        let info = self.persist(async |api, stream| api.info(stream, Some((subject, 0))).await).await?;
        Ok(info.state.subjects.get(subject).copied().unwrap_or_default())
    }

    /// Publishes under a condition. Returns `None` if the condition isn't met, or if it is not known whether it was taken.
    async fn publish(&mut self, subject: &str, expected: Sequence, bytes: Vec<u8>) -> anyhow::Result<Option<Sequence>> {
        let sent = match self.cluster.api() {
            Ok(api) => api.publish(subject, expected, bytes.into()).await,
            Err(why) => Err(ApiError::NoAnswer(why)),
        };
        match sent {
            Ok(sequence) => {
                self.heard = Instant::now();
                Ok(Some(sequence))
            }
            Err(error) if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRONG_LAST_SEQUENCE_CONSTANT) => {
                Ok(None)
            }
            Err(error) => {
                self.wait(error).await?;
                Ok(None)
            }
        }
    }

    /// Asks the cluster until it answers.
    async fn persist<T>(&mut self, ask: impl AsyncFn(&Api, &str) -> Result<T, ApiError>) -> anyhow::Result<T> {
        loop {
            let asked = match self.cluster.api() {
                Ok(api) => ask(&api, &self.cluster.stream()).await,
                Err(why) => Err(ApiError::NoAnswer(why)),
            };
            match asked {
                Ok(answer) => {
                    self.heard = Instant::now();
                    return Ok(answer);
                }
                Err(error) => self.wait(error).await?,
            }
        }
    }

    /// Waits before the next attempt, unless there were enough.
    async fn wait(&self, error: ApiError) -> anyhow::Result<()> {
        if let Some(why) = self.cluster.refusal(&error.to_string()) {
            bail!("{} refuses it: {why}", self.cluster.url());
        }
        if self.heard.elapsed() > MOVE_PATIENCE {
            return Err(error).with_context(|| format!("{} doesn't answer", self.cluster.url()));
        }
        sleep(MOVE_PAUSE).await;
        Ok(())
    }
}

fn must_be_same(closed: &str, to: &str) -> anyhow::Result<()> {
    let Message::Closed(to) = Message::closing(to) else { unreachable!("BUG: a closing message closes") };
    if closed != to {
        bail!("it was moved out already, to {closed}. If that came to nothing, give that as --to");
    }
    Ok(())
}
