//! One task for each store. It follows the queries of all open pages, and draws each change once for all of them.

use std::collections::HashMap;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::dialect::Dialect;
use super::{STATUS, drawn, status_fragment, too_many};
use crate::engine::{Error, Health, Store, StoreId};
use crate::limits::web::live::{CROWD, FRAGMENTS, GROUP, LONGEST_PAUSE, SHORTEST_PAUSE};
use crate::sync::LinkStatus;
use crate::web::face::{Answers, Asked, Draw, Face, FragmentKey};
use crate::web::status::StatusLine;
use crate::web::{Full, Html, Lease, Problem, Render, Sees, Services, Who};

/// The status line has the first slots in every store: one as the owner sees it, and one as everybody else does.
const STATUS_SLOTS: [Sees; 2] = [Sees::All, Sees::ThePage];

/// What the open pages of a store show: each fragment as a frame, by slot.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<Frame>);

/// A framed fragment, and the update that it came with.
#[derive(Debug, Clone, Default)]
struct Frame {
    version: u64,
    bytes: Bytes,
    digest: u64,
    /// The same in the other dialects. Each is made when the first stream of its kind asks for it.
    others: [OnceLock<Bytes>; Dialect::OTHERS],
}

impl Frame {
    fn in_dialect(&self, dialect: Dialect) -> Bytes {
        match dialect.place() {
            Some(place) => self.others[place].get_or_init(|| dialect.reframe(&self.bytes)).clone(),
            None => self.bytes.clone(),
        }
    }
}

/// What a stream has sent, as one number. It depends on the text alone, so it means the same after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version(u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Version {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(bytes).as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Frames {
    /// Returns the frame in `slot`, if it is newer than the version `sent`. Sets `sent` to its version.
    pub(super) fn newer(&self, slot: usize, dialect: Dialect, sent: &mut u64) -> Option<Bytes> {
        let frame = self.0.get(slot).filter(|frame| frame.version > *sent)?;
        *sent = frame.version;
        Some(frame.in_dialect(dialect))
    }

    /// Puts a frame into `slot`. Returns false if the same frame was there already.
    pub(super) fn set(&mut self, slot: usize, version: u64, bytes: Bytes) -> bool {
        if self.0.len() <= slot {
            self.0.resize(slot + 1, Frame::default());
        }
        let is_new = self.0[slot].bytes != bytes;
        if is_new {
            self.0[slot] = Frame { version, digest: digest(&bytes), bytes, others: Default::default() };
        }
        is_new
    }

    /// Returns the version of the frames in `slots`. Frames name their fragments, so their order doesn't matter.
    pub(super) fn version(&self, slots: impl Iterator<Item = usize>) -> Version {
        Version(slots.filter_map(|slot| self.0.get(slot)).fold(0, |sum, frame| sum.wrapping_add(frame.digest)))
    }

    fn clear(&mut self, slot: usize) {
        if let Some(frame) = self.0.get_mut(slot) {
            *frame = Frame::default();
        }
    }
}

/// Frames a fragment as an event.
pub(super) fn frame(event: &str, html: &Html) -> Bytes {
    let mut text = format!("event: {event}\n");
    // In an event stream, a carriage return alone also ends a line.
    for line in html.as_str().trim_end().split(['\r', '\n']) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    text.into()
}

/// The open pages of each store.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    stores: Arc<Mutex<HashMap<StoreId, Channel>>>,
}

/// Connects the publisher of a store and its streams.
#[derive(Clone)]
struct Channel {
    frames: watch::Sender<Frames>,
    groups: Arc<Groups>,
    interests: Arc<Interests>,
}

impl Channel {
    fn view(&self) -> View {
        View { frames: self.frames.subscribe(), calls: self.groups.join() }
    }
}

/// What a stream sees of the publisher.
pub(super) struct View {
    frames: watch::Receiver<Frames>,
    calls: watch::Receiver<()>,
}

impl View {
    /// Returns the frames as they are now.
    pub(super) fn frames(&self) -> watch::Ref<'_, Frames> {
        self.frames.borrow()
    }

    /// Waits until the frames may have changed. Returns false if there is no publisher any more.
    pub(super) async fn changed(&mut self) -> bool {
        self.calls.changed().await.is_ok()
    }

    /// Creates a view of `frames`, and what announces their changes.
    #[cfg(test)]
    pub(super) fn of(frames: watch::Receiver<Frames>) -> (Self, watch::Sender<()>) {
        let (call, calls) = watch::channel(());
        (Self { frames, calls }, call)
    }
}

/// Announces changes to one group of streams after the other. If all streams of a crowd were woken at once, whoever clicks
/// meanwhile would wait behind them.
#[derive(Default)]
pub(super) struct Groups(Mutex<Vec<watch::Sender<()>>>);

impl Groups {
    fn lock(&self) -> MutexGuard<'_, Vec<watch::Sender<()>>> {
        self.0.lock().expect("BUG: joining a group panicked")
    }

    /// Returns what announces changes to one more stream.
    pub(super) fn join(&self) -> watch::Receiver<()> {
        let mut groups = self.lock();
        match groups.iter().find(|group| group.receiver_count() < GROUP) {
            Some(group) => group.subscribe(),
            None => {
                let (group, calls) = watch::channel(());
                groups.push(group);
                calls
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Announces a change to all.
    pub(super) async fn call(&self) {
        let call = |at: usize| self.lock().get(at).map(|group| group.send_replace(()));
        for at in 0.. {
            let Some(()) = call(at) else { return };
            yield_now().await;
        }
    }
}

/// Which fragments the streams of a store follow.
#[derive(Default)]
struct Interests {
    table: Mutex<Table>,
    /// Tells the publisher that the table changed.
    changed: Notify,
}

#[derive(Default)]
struct Table {
    slots: HashMap<FragmentKey, Interest>,
    free: Vec<usize>,
    /// The fragments that the publisher doesn't know yet.
    fresh: Vec<Box<dyn Asked>>,
}

/// A fragment that streams follow.
struct Interest {
    slot: usize,
    followers: usize,
}

/// The fragments that one stream follows.
pub(super) struct Following {
    interests: Arc<Interests>,
    keys: Vec<FragmentKey>,
    slots: Vec<usize>,
}

impl Following {
    /// Creates a value without a publisher.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { interests: Arc::default(), keys: Vec::new(), slots: Vec::new() }
    }

    /// Returns the fragments' slots among the frames.
    pub(super) fn slots(&self) -> &[usize] {
        &self.slots
    }
}

impl Interests {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("BUG: following a fragment panicked")
    }

    /// Records that a stream follows what it `asked` for. Records nothing if that is too much.
    fn follow(self: &Arc<Self>, sees: Sees, asked: Vec<Box<dyn Asked>>) -> Result<Following, Problem> {
        let mut following = Following { interests: Arc::clone(self), keys: Vec::new(), slots: Vec::new() };
        for asked in asked {
            let key = asked.key().clone();
            if following.keys.contains(&key) {
                continue;
            }
            let mut table = self.lock();
            let Table { slots, free, fresh } = &mut *table;
            if let Some(interest) = slots.get_mut(&key) {
                interest.followers += 1;
                following.slots.push(interest.slot);
            } else {
                if slots.len() >= FRAGMENTS {
                    // Dropping `following` takes back what is recorded, and takes the lock.
                    drop(table);
                    return Err(too_many());
                }
                let slot = free.pop().unwrap_or(STATUS_SLOTS.len() + slots.len());
                slots.insert(key.clone(), Interest { slot, followers: 1 });
                fresh.push(asked);
                following.slots.push(slot);
            }
            following.keys.push(key);
        }
        following.slots.push(usize::from(sees != Sees::All));
        self.changed.notify_one();
        Ok(following)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut table = self.interests.lock();
        for key in &self.keys {
            if let Some(interest) = table.slots.get_mut(key) {
                interest.followers -= 1;
            }
        }
        self.interests.changed.notify_one();
    }
}

impl Pages {
    fn lock(&self) -> MutexGuard<'_, HashMap<StoreId, Channel>> {
        self.stores.lock().expect("BUG: subscribing panicked")
    }

    /// Returns the frames of `store`, which are kept up to date while anybody holds them. The first page takes a place
    /// for the store among those that pages keep open, from its sender's share.
    pub(super) fn subscribe(
        &self,
        app: &Services,
        store: &Store,
        link: watch::Receiver<LinkStatus>,
        who: &Who,
        sees: Sees,
        asked: Vec<Box<dyn Asked>>,
    ) -> Result<(Following, View), Problem> {
        let mut stores = self.lock();
        if let Some(known) = stores.get(store.id()) {
            return Ok((known.interests.follow(sees, asked)?, known.view()));
        }
        let place = app.shares.held.lend(who, 0).and_then(|lease| Place::of(lease, store)).map_err(|_| too_many())?;
        let interests = Arc::<Interests>::default();
        let following = interests.follow(sees, asked)?;
        let channel = Channel { frames: watch::Sender::new(Frames::default()), groups: Arc::default(), interests };
        let view = channel.view();
        stores.insert(store.id().clone(), channel.clone());
        let publisher = Publisher {
            pages: self.clone(),
            base: app.face.base(store.id()),
            face: Arc::clone(&app.face),
            store: store.clone(),
            channel,
            place,
            followed: Vec::new(),
            version: 0,
        };
        tokio::spawn(publisher.run(link));
        Ok((following, view))
    }
}

/// A store's place among those that pages keep open. A store without events takes none, because it has neither a thread
/// nor files.
struct Place {
    lease: Lease,
    is_taken: bool,
}

impl Place {
    fn of(lease: Lease, store: &Store) -> Result<Self, Full> {
        let mut place = Self { lease, is_taken: false };
        place.take(store)?;
        Ok(place)
    }

    fn take(&mut self, store: &Store) -> Result<(), Full> {
        if !self.is_taken && !store.is_absent() {
            self.lease.extend(1)?;
            self.is_taken = true;
        }
        Ok(())
    }
}

/// Draws the changes of a store for all its pages.
struct Publisher {
    pages: Pages,
    face: Arc<Face>,
    base: String,
    store: Store,
    channel: Channel,
    place: Place,
    followed: Vec<Followed>,
    /// The version of the last update.
    version: u64,
}

/// A fragment that pages have.
struct Followed {
    key: FragmentKey,
    slot: usize,
    answers: Box<dyn Answers>,
}

/// The news at one moment between two commits.
struct News {
    /// The status line, as in [`STATUS_SLOTS`].
    status: [StatusLine; 2],
    /// Fragments by slot: the function that draws each, or why there is no answer.
    fragments: Vec<(FragmentKey, usize, Result<Box<Draw>, Error>)>,
}

impl Publisher {
    /// Publishes until nobody watches, or the store is closed.
    async fn run(mut self, mut link: watch::Receiver<LinkStatus>) {
        let mut rounds = self.store.rounds();
        let mut health = self.store.health();
        loop {
            // The store may just have got its first event.
            if self.place.take(&self.store).is_err() {
                break;
            }
            self.look_at_interests();
            if let Some(news) = self.news(&mut rounds, &mut health, &mut link) {
                let is_closed = news.fragments.iter().any(|(.., answer)| matches!(answer, Err(Error::Closed)));
                if is_closed {
                    break;
                }
                if self.publish(news) {
                    self.channel.groups.call().await;
                    sleep(pause(self.channel.frames.receiver_count())).await;
                }
            }
            tokio::select! {
                changed = rounds.changed() => if changed.is_err() { break },
                changed = health.changed() => if changed.is_err() { break },
                changed = link.changed() => if changed.is_err() { break },
                () = self.channel.interests.changed.notified() => {}
                () = self.channel.frames.closed() => {
                    let mut stores = self.pages.lock();
                    if self.channel.frames.receiver_count() == 0 {
                        stores.remove(self.store.id());
                        return;
                    }
                }
            }
        }
        self.pages.lock().remove(self.store.id());
    }

    /// Follows the fragments that streams newly ask for, and drops those that no stream follows any more.
    fn look_at_interests(&mut self) {
        let mut table = self.channel.interests.lock();
        let Table { slots, free, fresh } = &mut *table;
        for asked in fresh.drain(..) {
            let key = asked.key().clone();
            if let Some(Interest { slot, .. }) = slots.get(&key) {
                self.followed.push(Followed { slot: *slot, answers: asked.follow(&self.store), key });
            }
        }
        let is_followed = |key: &FragmentKey| slots.get(key).is_some_and(|interest| interest.followers > 0);
        let left: Vec<_> = self.followed.extract_if(.., |followed| !is_followed(&followed.key)).collect();
        if left.is_empty() {
            return;
        }
        // The next fragment in one of these slots must not show what was in it.
        self.channel.frames.send_if_modified(|frames| {
            left.iter().for_each(|followed| frames.clear(followed.slot));
            false
        });
        for Followed { key, slot, .. } in left {
            slots.remove(&key);
            free.push(slot);
        }
    }

    /// Returns the news at a moment between two commits. `None` while an answer is still missing: a page gets all of
    /// its fragments at once.
    fn news(
        &mut self,
        rounds: &mut watch::Receiver<u64>,
        health: &mut watch::Receiver<Health>,
        link: &mut watch::Receiver<LinkStatus>,
    ) -> Option<News> {
        let _nothing_is_told = rounds.borrow_and_update();
        let health = health.borrow_and_update();
        let answers_come = !matches!(*health, Health::Opening | Health::Failed(_));
        if answers_come && !self.followed.iter().all(|followed| followed.answers.is_answered()) {
            return None;
        }
        let link = link.borrow_and_update();
        let status = STATUS_SLOTS.map(|sees| StatusLine::of(&self.face, &health, &link, &self.base, sees));
        let new = |followed: &mut Followed| Some((followed.key.clone(), followed.slot, followed.answers.take()?));
        Some(News { status, fragments: self.followed.iter_mut().filter_map(new).collect() })
    }

    /// Draws the news and hands it to the streams. Returns false if everything looks as before.
    fn publish(&mut self, news: News) -> bool {
        let mut updates = Vec::new();
        let with = Render::for_stream(&self.face, &self.base);
        for (key, slot, answer) in news.fragments {
            // A fragment that can't be drawn stays as it was. The status line says what is wrong with the store.
            let html = match answer {
                Ok(draw) => drawn(&key, draw, with.clone()),
                Err(Error::Query(why)) => Err(why),
                Err(_) => continue,
            };
            match html {
                Ok(html) => updates.push((slot, frame(key.name, &html))),
                Err(why) => tracing::error!(fragment = key.name, why, "a fragment can't be shown"),
            }
        }
        for (slot, status) in news.status.into_iter().enumerate() {
            match status_fragment(status) {
                Ok(html) => updates.push((slot, frame(STATUS.name, &html))),
                Err(why) => tracing::error!(why, "the status can't be shown"),
            }
        }
        if let Some(unknown) = with.unknown() {
            tracing::error!("a fragment is drawn wrong: {unknown}");
        }
        self.version += 1;
        let version = self.version;
        self.channel.frames.send_if_modified(|frames| {
            updates.into_iter().fold(false, |is_new, (slot, bytes)| frames.set(slot, version, bytes) | is_new)
        })
    }
}

/// Returns the pause after an update. The more pages the update woke, the longer the pause.
pub(super) fn pause(pages: usize) -> Duration {
    let crowd = u32::try_from(pages).unwrap_or(CROWD).min(CROWD);
    SHORTEST_PAUSE + (LONGEST_PAUSE - SHORTEST_PAUSE) * crowd / CROWD
}
