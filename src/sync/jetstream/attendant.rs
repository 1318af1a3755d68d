//! One store of a gateway. A [`Gateway`] decides what to do. The attendant does it, with a cluster, a clock and a store.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::super::authority::{Incoming, Refusal};
use super::super::client::LinkState;
use super::super::gateway::{
    Answered, Ends, Gateway, Home, Judges, Publication, Question, Sequence, Step, Ticket, is_other_log, log_in,
};
use super::super::protocol::{Pushed, code as hub_code};
use super::super::stay::Stay;
use super::api::{Api, ApiError, Stored, code};
use super::cluster::{Cluster, Epoch, Stand};
use crate::engine::{Error, Fault, Health, LogId, Replica, Store, StreamId};
use crate::limits::sync::nats::{
    ANSWER_WITHOUT_READING, AT_ONCE, DOUBT_AFTER, PATIENCE, READ_AGAIN, REQUESTS, REST_AFTER_TROUBLE,
};
use crate::random;

/// What was last told of a store's messages.
#[derive(Debug, Clone, Copy, Default)]
struct News {
    /// How often something was told.
    nth: u64,
    /// The message that the stream has.
    sequence: Sequence,
}

/// Where the hub's routes bring what devices ask of a store.
#[derive(Clone)]
pub(crate) struct Desk {
    requests: mpsc::Sender<Request>,
    news: watch::Sender<News>,
}

/// Why a gateway can't serve a store at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// Devices come again. Holds the reason.
    Later(String),
    /// The store was moved. Holds where it went.
    Moved(String),
}

/// Said to devices and people while a log that is moved into the stream isn't whole.
const MOVING_IN: &str = "this store is being moved into the cluster, and the rest of its log is still to come; if the move was \
                         interrupted, run `likewise move in` again where it ran, and if that data is lost, like something at \
                         a gateway's own page";

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, NotReady>>;

enum Request {
    /// Tell when the log is what the stream had after this came.
    Level(Reply<LogId>),
    /// Put these events into the stream.
    Push(Incoming, Reply<Result<Pushed, Refusal>>),
}

impl Desk {
    /// Returns once the store's log is at least what the stream had when this was called. Returns the id that the log has,
    /// or will have once it begins.
    ///
    /// # Errors
    ///
    /// Why that doesn't come to be.
    pub(crate) async fn level(&self) -> Result<LogId, NotReady> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Level(reply), answer).await?
    }

    /// Publishes what a device pushed, and returns its answer.
    ///
    /// # Errors
    ///
    /// Why there is no answer. The events may be in the stream all the same, and may be pushed again.
    pub(crate) async fn push(&self, incoming: Incoming) -> Result<Result<Pushed, Refusal>, NotReady> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Push(incoming, reply), answer).await?
    }

    async fn ask<T>(&self, request: Request, answer: oneshot::Receiver<T>) -> Result<T, NotReady> {
        let busy = |_| NotReady::Later("more devices ask for this store at once than it can serve".to_owned());
        self.requests.try_send(request).map_err(busy)?;
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(NotReady::Later("the store was just let go of".to_owned())),
            Err(_) => Err(NotReady::Later("the cluster doesn't get there in time".to_owned())),
        }
    }

    /// Tells that the stream has a message of this store with that sequence. A stream that has lost messages tells of lower ones
    /// than before.
    pub(in super::super) fn tell(&self, sequence: Sequence) {
        self.news.send_modify(|news| *news = News { nth: news.nth + 1, sequence });
    }
}

/// Looks after one store.
pub(in super::super) struct Attendant {
    stay: Stay,
    cluster: Cluster,
    stream: String,
    subject: String,
    requests: mpsc::Receiver<Request>,
    news: watch::Receiver<News>,
    epoch: watch::Receiver<Epoch>,
    /// What of it the gateway was told.
    seen: Epoch,
    /// Devices that wait to be judged, each with what the leader said since, and pushes that wait for their answer.
    levels: Vec<(Option<Sequence>, Reply<LogId>)>,
    pushes: HashMap<Ticket, Reply<Result<Pushed, Refusal>>>,
    /// Whether the rest of a log that is moved into the stream is still to come.
    is_moving_in: bool,
    /// Held until the store is level for the first time: only so many become so at once.
    warming: Option<OwnedSemaphorePermit>,
}

/// Why a store isn't attended to for now.
enum Trouble {
    /// The cluster isn't reached or doesn't answer. Holds the reason.
    Away(String),
    /// Somebody has to act. Holds a code of ours and the reason.
    Halted(&'static str, String),
    /// The store was moved. Holds where it went.
    Moved(String),
    /// The store was closed here.
    Closed,
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::Closed => Self::Closed,
            error => Self::Away(error.to_string()),
        }
    }
}

/// Why a store that has no events here gets a log.
enum Reason {
    /// The stream has a message of it, or somebody committed an event.
    Events,
    /// A device pushes to it.
    Push(Request),
    /// None: nobody uses it.
    Idle,
}

/// What is under way for a store with a log.
struct Serving {
    store: Store,
    health: watch::Receiver<Health>,
    gateway: Arc<Mutex<Gateway>>,
    api: Api,
    /// Messages that were read ahead.
    ahead: Ahead,
    /// Since when the next message is waited for.
    since: Option<Instant>,
    /// Whether those who wait for an acknowledged message to be read were answered without that.
    is_answered: bool,
    /// Since when a hint of something new is looked into, and the last one that came to nothing.
    hinted: Option<Instant>,
    settled: u64,
}

/// Messages that follow one another in the subject.
#[derive(Debug, Default)]
struct Ahead {
    /// The one before the first of them.
    after: Sequence,
    messages: VecDeque<Stored>,
}

impl Ahead {
    fn follows(&self, after: Sequence) -> bool {
        self.after == after && !self.messages.is_empty()
    }

    fn take(&mut self) -> Option<(Sequence, Stored)> {
        let message = self.messages.pop_front()?;
        let after = std::mem::replace(&mut self.after, message.sequence);
        Some((after, message))
    }
}

/// What came of a step.
enum Outcome {
    Nothing,
    Heard(Question, Ends),
    Got(Sequence, Option<Stored>),
    Acknowledged(u64, Sequence),
    Refused(u64, Option<Sequence>),
    Doubt,
}

/// What the store's thread found.
struct Found {
    step: Step,
    ahead: Ahead,
    /// How far the log has come, in messages.
    applied: Sequence,
    /// The id that the log has, or will have.
    log: LogId,
    /// Whether devices may be judged that wait for these messages.
    judges: Vec<Judges>,
    /// Whether anybody may be judged by what is here now.
    stand: Judges,
    answers: Vec<Answered>,
    loss: Option<String>,
    notices: Vec<String>,
    /// A question to the leader that can be asked at any time.
    question: Question,
}

impl Attendant {
    /// Attends to a store from now on. `warming` is held until it is level.
    pub(in super::super) fn new(stay: Stay, cluster: Cluster, warming: Option<OwnedSemaphorePermit>) -> (Self, Desk) {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let (news, heard) = watch::channel(News::default());
        let desk = Desk { requests, news };
        let (stream, subject) = (cluster.stream(), cluster.subject(&stay.id));
        let epoch = cluster.epoch();
        let attendant = Self {
            stay,
            cluster,
            stream,
            subject,
            requests: receiver,
            news: heard,
            epoch,
            seen: Epoch::default(),
            levels: Vec::new(),
            pushes: HashMap::new(),
            is_moving_in: false,
            warming,
        };
        (attendant, desk)
    }

    pub(in super::super) async fn run(mut self) {
        let shutdown = self.stay.clients.shared.shutdown.clone();
        loop {
            let is_closed = shutdown.run_until_cancelled(self.attend()).await;
            if self.stay.ends(is_closed.is_none_or(|is_closed| is_closed)) {
                return;
            }
        }
    }

    /// Attends to the store until nobody uses it and nothing waits to be published. Returns true if the store was closed
    /// instead.
    async fn attend(&mut self) -> bool {
        // It outlives what keeps it from going on: it knows what was published without an answer.
        let mut gateway = None;
        loop {
            let trouble = match self.serve(&mut gateway).await {
                Ok(()) => return false,
                Err(trouble) => trouble,
            };
            self.warming = None;
            // Where they were is no news of where they are.
            self.tell_copies(None);
            let not_ready = match trouble {
                Trouble::Closed => return true,
                Trouble::Away(why) => {
                    self.stay.tell(LinkState::Offline, None, Some(why.clone()));
                    NotReady::Later(why)
                }
                Trouble::Halted(code, why) => {
                    gateway = None;
                    self.stay.tell(LinkState::Halted, Some(code), Some(why.clone()));
                    NotReady::Later(why)
                }
                Trouble::Moved(to) => {
                    gateway = None;
                    let why = format!("The store was moved out of this stream: {to}");
                    self.stay.tell(LinkState::Halted, Some(hub_code::MOVED), Some(why));
                    NotReady::Moved(to)
                }
            };
            self.turn_away(&not_ready);
            if self.rest(&not_ready).await {
                return false;
            }
        }
    }

    /// Waits until it is worth another attempt. Whoever asks for something meanwhile is told why not. Returns true if nobody
    /// uses the store any more.
    async fn rest(&mut self, not_ready: &NotReady) -> bool {
        let mut epoch = self.epoch.clone();
        epoch.mark_unchanged();
        let mut over = pin!(sleep(REST_AFTER_TROUBLE.mul_f64(0.5 + 0.5 * random::fraction())));
        loop {
            tokio::select! {
                () = &mut over => return false,
                _ = epoch.changed() => return false,
                () = self.stay.is_asked_now() => return false,
                () = self.stay.idle() => return true,
                Some(request) = self.requests.recv() => {
                    self.accept(request, None);
                    self.turn_away(not_ready);
                }
            }
        }
    }

    /// Tells everybody who waits that there is nothing to wait for.
    fn turn_away(&mut self, not_ready: &NotReady) {
        for (_, reply) in self.levels.drain(..) {
            drop(reply.send(Err(not_ready.clone())));
        }
        for (_, reply) in self.pushes.drain() {
            drop(reply.send(Err(not_ready.clone())));
        }
    }

    /// Takes a request in. A push goes to the gateway, if there is one.
    fn accept(&mut self, request: Request, gateway: Option<&Mutex<Gateway>>) {
        match request {
            Request::Level(reply) => self.levels.push((None, reply)),
            Request::Push(incoming, reply) => {
                let later = |why: &str| Err(NotReady::Later(why.to_owned()));
                let Some(gateway) = gateway else {
                    drop(reply.send(later("the store isn't ready")));
                    return;
                };
                match lock(gateway).push(incoming) {
                    Some(ticket) => drop(self.pushes.insert(ticket, reply)),
                    None => drop(reply.send(later("more events of devices wait here than may; come again"))),
                }
            }
        }
    }

    /// Lets go of the pushes for whose answers nobody waits any more.
    fn give_up_pushes(&mut self, gateway: &Mutex<Gateway>) {
        let is_closed = |(_, reply): &(&Ticket, &Reply<_>)| reply.is_closed();
        let closed: Vec<_> = self.pushes.iter().filter(is_closed).map(|(ticket, _)| *ticket).collect();
        for ticket in closed {
            self.pushes.remove(&ticket);
            lock(gateway).give_up(ticket);
        }
    }

    /// Keeps the store level with the stream. Returns when nobody uses it.
    async fn serve(&mut self, kept: &mut Option<(StreamId, Arc<Mutex<Gateway>>)>) -> Result<(), Trouble> {
        let (api, stream) = self.ready().await?;
        // What is known of another stream is of no use.
        kept.take_if(|(known, _)| *known != stream);
        let store = self.stay.clients.shared.stores.get(&self.stay.id)?;
        self.stay.health = store.health();
        let mut first = None;
        let gateway = match kept {
            Some((_, gateway)) => Arc::clone(gateway),
            None => {
                let home = Home {
                    stream,
                    store: self.stay.id.clone(),
                    log: self.cluster.moved(&self.stay.id).unwrap_or_else(|| log_in(stream, &self.stay.id)),
                    device: self.stay.clients.shared.device.clone(),
                };
                if store.is_absent() {
                    match self.wait_for_reason(api.clone(), home.log).await? {
                        Reason::Idle => return Ok(()),
                        Reason::Events => {}
                        Reason::Push(request) => first = Some(request),
                    }
                }
                self.seen = self.epoch.borrow_and_update().clone();
                let begun = store.with(move |replica| Gateway::begin(replica, home)).await?;
                Arc::clone(&kept.insert((stream, Arc::new(Mutex::new(begun)))).1)
            }
        };
        if let Some(request) = first {
            self.accept(request, Some(&gateway));
        }
        let ahead = Ahead::default();
        let health = store.health();
        let mut serving =
            Serving { store, health, gateway, api, ahead, since: None, is_answered: false, hinted: None, settled: 0 };
        let mut outcome = Outcome::Nothing;
        loop {
            let now = self.epoch.borrow_and_update().clone();
            if now != self.seen {
                let (api, found) = self.ready().await?;
                if found != stream {
                    return Err(Trouble::Away("the stream is another than it was".to_owned()));
                }
                serving.api = api;
                let before = std::mem::replace(&mut self.seen, now.clone());
                let mut gateway = lock(&serving.gateway);
                if now.runs.number != before.runs.number {
                    gateway.begin_run();
                }
                if now.runs.has_suspected(&self.stay.id, before.runs.number) || now.damage != before.damage {
                    gateway.suspect();
                }
                if now.connection != before.connection {
                    gateway.reconnected();
                    // What was heard over another connection may be another leader's word.
                    serving.ahead = Ahead::default();
                    if matches!(outcome, Outcome::Heard(..) | Outcome::Got(..)) {
                        outcome = Outcome::Nothing;
                    }
                }
            }
            while let Ok(request) = self.requests.try_recv() {
                self.accept(request, Some(&serving.gateway));
            }
            self.give_up_pushes(&serving.gateway);
            let found = self.decide(&mut serving, std::mem::replace(&mut outcome, Outcome::Nothing)).await?;
            match self.act(&mut serving, found).await? {
                Some(next) => outcome = next,
                None => return Ok(()),
            }
        }
    }

    /// Waits until the cluster is known to be ready, or known not to be.
    async fn ready(&self) -> Result<(Api, StreamId), Trouble> {
        let mut stand = self.cluster.stand();
        let known = stand.wait_for(|stand| *stand != Stand::Connecting).await.map_err(|_| Trouble::Closed)?.clone();
        match known {
            Stand::Ready(overview) => Ok((self.cluster.api().map_err(Trouble::Away)?, overview.stream)),
            Stand::Away(why) => Err(Trouble::Away(why)),
            Stand::Unfit(why) => Err(Trouble::Halted(hub_code::UNFIT, why)),
            Stand::Connecting => Err(Trouble::Away("the cluster is not reached yet".to_owned())),
        }
    }

    /// Waits until a store without events gets some. Looking at it makes nothing.
    async fn wait_for_reason(&mut self, mut api: Api, log: LogId) -> Result<Reason, Trouble> {
        let mut health = self.stay.health.clone();
        let mut is_known = false;
        loop {
            if !is_known || !self.levels.is_empty() {
                if api.last(&self.stream, &self.subject).await?.is_some() {
                    return Ok(Reason::Events);
                }
                is_known = true;
                self.is_level();
                for (_, reply) in self.levels.drain(..) {
                    drop(reply.send(Ok(log)));
                }
            }
            tokio::select! {
                Some(request) = self.requests.recv() => match request {
                    push @ Request::Push(..) => return Ok(Reason::Push(push)),
                    level @ Request::Level(..) => self.accept(level, None),
                },
                changed = self.news.changed() => {
                    changed.map_err(|_| Trouble::Closed)?;
                    return Ok(Reason::Events);
                }
                changed = health.changed() => {
                    changed.map_err(|_| Trouble::Closed)?;
                    if *health.borrow() != Health::Absent {
                        return Ok(Reason::Events);
                    }
                }
                // What is known may be another leader's word.
                _ = self.epoch.changed() => {
                    api = self.ready().await?.0;
                    is_known = false;
                }
                () = self.stay.idle() => return Ok(Reason::Idle),
            }
        }
    }

    /// Tells that the store is level with the stream, and what devices wait for all the same.
    fn is_level(&mut self) {
        self.warming = None;
        self.stay.tell(LinkState::Online, None, self.is_moving_in.then(|| MOVING_IN.to_owned()));
        self.stay.usage.tried.send_modify(|times| *times += 1);
        self.stay.clients.hear();
        self.tell_copies(self.cluster.copies());
    }

    /// Tells where the copies of the stream are.
    fn tell_copies(&self, copies: Option<Arc<str>>) {
        self.stay.status.send_if_modified(|status| {
            let is_new = status.copies != copies;
            status.copies = copies;
            is_new
        });
    }

    /// Passes in what came of the last step, applies what was read ahead, and asks what to do next.
    async fn decide(&mut self, serving: &mut Serving, outcome: Outcome) -> Result<Found, Trouble> {
        let gateway = Arc::clone(&serving.gateway);
        let mut ahead = std::mem::take(&mut serving.ahead);
        let lasts: Vec<_> = self.levels.iter().filter_map(|(last, _)| *last).collect();
        let act = move |replica: &mut Replica| {
            let mut gateway = lock(&gateway);
            let gateway = &mut *gateway;
            pass_in(gateway, replica, outcome)?;
            let step = apply(gateway, replica, &mut ahead)?;
            let applied = replica.applied()?.map_or(0, |applied| applied.sequence);
            let judges = lasts.iter().map(|last| gateway.judges(replica, *last)).collect::<Result<_, Fault>>()?;
            Ok(Found {
                step,
                applied,
                log: replica.standing()?.whose.log_id().unwrap_or(gateway.log()),
                judges,
                stand: gateway.judges(replica, 0)?,
                answers: gateway.take_answers(),
                loss: gateway.take_loss(),
                notices: gateway.take_notices(),
                question: gateway.question(replica)?,
                ahead,
            })
        };
        let mut found = serving.store.with(act).await?;
        serving.ahead = std::mem::take(&mut found.ahead);
        self.is_moving_in = found.stand == Judges::MovingIn;
        match found.stand {
            Judges::Halted(why) => {
                let code = if is_other_log(&why) { hub_code::WRONG_LOG } else { hub_code::UNFIT };
                return Err(Trouble::Halted(code, why));
            }
            Judges::Moved(to) => return Err(Trouble::Moved(to)),
            Judges::Yes | Judges::NotYet | Judges::MovingIn => {}
        }
        let store = self.stay.id.as_str();
        for notice in &found.notices {
            tracing::warn!(store, "{notice}");
        }
        if let Some(loss) = found.loss.take() {
            tracing::warn!(store, "{loss}; what it lost is published again, and a new run begins");
            self.cluster.lost(&self.stay.id);
        }
        for Answered { ticket, result } in found.answers.drain(..) {
            if let Some(reply) = self.pushes.remove(&ticket) {
                drop(reply.send(Ok(result)));
            }
        }
        let mut judges = std::mem::take(&mut found.judges).into_iter();
        let mut waiting = Vec::new();
        for (last, reply) in self.levels.drain(..) {
            match last.and_then(|_| judges.next()) {
                Some(Judges::Yes) => drop(reply.send(Ok(found.log))),
                Some(Judges::Halted(why)) => drop(reply.send(Err(NotReady::Later(why)))),
                Some(Judges::Moved(to)) => drop(reply.send(Err(NotReady::Moved(to)))),
                Some(Judges::MovingIn) => drop(reply.send(Err(NotReady::Later(MOVING_IN.to_owned())))),
                Some(Judges::NotYet) | None => waiting.push((last, reply)),
            }
        }
        self.levels = waiting;
        Ok(found)
    }

    /// Does a step, or waits for something to do. Returns what came of it, or `None` if nobody uses the store any more.
    async fn act(&mut self, serving: &mut Serving, found: Found) -> Result<Option<Outcome>, Trouble> {
        if !matches!(found.step, Step::Read(_)) {
            (serving.since, serving.is_answered) = (None, false);
        }
        // Whoever came since the leader was last asked waits for its word.
        if self.levels.iter().any(|(last, _)| last.is_none()) && !matches!(found.step, Step::Ask(_)) {
            return self.hear(serving, found.question, false).await.map(Some);
        }
        match found.step {
            Step::Ask(question) => self.hear(serving, question, true).await.map(Some),
            Step::Get(sequence) => {
                let message = serving.api.message(&self.stream, sequence).await?;
                let message = message.filter(|message| message.subject == self.subject);
                Ok(Some(Outcome::Got(sequence, message)))
            }
            Step::Read(after) => self.read(serving, after).await.map(Some),
            Step::Publish(publication) => self.publish(serving, publication).await.map(Some),
            Step::Rest => self.wait(serving, found.applied).await,
        }
    }

    /// Asks the leader where the subject ends. `counts` also has the messages counted.
    async fn hear(&mut self, serving: &Serving, question: Question, counts: bool) -> Result<Outcome, Trouble> {
        let api = &serving.api;
        let (stream, subject) = (&self.stream, &self.subject);
        let asked = self.levels.len();
        let before = if counts { Some(api.count(stream, subject).await?) } else { None };
        let last = api.last(stream, subject).await?.map_or(0, |last| last.sequence);
        let after = if counts { Some(api.count(stream, subject).await?) } else { None };
        // A message that came meanwhile makes the numbers those of different moments.
        let messages = before.filter(|before| after == Some(*before));
        for (target, _) in self.levels[..asked].iter_mut().filter(|(target, _)| target.is_none()) {
            *target = Some(last);
        }
        Ok(Outcome::Heard(question, Ends { last, messages }))
    }

    /// Reads what comes after a message. A replica that is behind may not have it yet.
    async fn read(&mut self, serving: &mut Serving, after: Sequence) -> Result<Outcome, Trouble> {
        let messages = serving.api.read(&self.stream, &self.subject, after + 1).await?;
        if !messages.is_empty() {
            (serving.since, serving.is_answered) = (None, false);
            serving.ahead = Ahead { after, messages: messages.into() };
            return Ok(Outcome::Nothing);
        }
        let since = *serving.since.get_or_insert_with(Instant::now);
        if since.elapsed() > DOUBT_AFTER {
            serving.since = None;
            return Ok(Outcome::Doubt);
        }
        if since.elapsed() > ANSWER_WITHOUT_READING && !serving.is_answered {
            serving.is_answered = true;
            lock(&serving.gateway).answer_now();
        }
        self.news.mark_unchanged();
        tokio::select! {
            () = sleep(READ_AGAIN.max(since.elapsed() / 4)) => {}
            _ = self.news.changed() => {}
            Some(request) = self.requests.recv() => self.accept(request, Some(&serving.gateway)),
            _ = self.epoch.changed() => {}
        }
        Ok(Outcome::Nothing)
    }

    /// Publishes a message, once it is this gateway's turn.
    async fn publish(&mut self, serving: &mut Serving, publication: Publication) -> Result<Outcome, Trouble> {
        let Publication { number, expected, bytes, turn } = publication;
        let pause = turn.pause(random::fraction());
        if !pause.is_zero() {
            self.news.mark_unchanged();
            let is_others = tokio::select! {
                () = sleep(pause) => false,
                _ = self.news.changed() => true,
            };
            if is_others {
                // Another gateway was faster, and its message is read first.
                return self.read_news(serving, expected).await;
            }
        }
        let bytes = Bytes::from(bytes);
        let counts = self.cluster.counts();
        match serving.api.publish(&self.subject, expected, bytes.clone()).await {
            Ok(sequence) => {
                // The acknowledgement says that the stream has these bytes at this place, and nothing of the subject in
                // between: it is as good as reading them.
                counts.published.fetch_add(1, Ordering::Relaxed);
                let message = Stored { subject: self.subject.clone(), sequence, payload: bytes };
                serving.ahead = Ahead { after: expected, messages: VecDeque::from([message]) };
                Ok(Outcome::Acknowledged(number, sequence))
            }
            Err(error) if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRONG_LAST_SEQUENCE_CONSTANT) => {
                counts.raced.fetch_add(1, Ordering::Relaxed);
                Ok(Outcome::Refused(number, error.last_sequence()))
            }
            Err(ApiError::NoAnswer(why)) => {
                counts.unanswered.fetch_add(1, Ordering::Relaxed);
                lock(&serving.gateway).unanswered(number);
                Err(Trouble::Away(why))
            }
            // Nothing was stored. It is tried again, as it was.
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what is new after a message, if anything is.
    async fn read_news(&mut self, serving: &mut Serving, after: Sequence) -> Result<Outcome, Trouble> {
        let messages = serving.api.read(&self.stream, &self.subject, after + 1).await?;
        serving.ahead = Ahead { after, messages: messages.into() };
        Ok(Outcome::Nothing)
    }

    /// Waits for something to do.
    async fn wait(&mut self, serving: &mut Serving, applied: Sequence) -> Result<Option<Outcome>, Trouble> {
        self.is_level();
        let hint = *self.news.borrow_and_update();
        if hint.sequence > applied && hint.nth != serving.settled {
            let outcome = self.read_news(serving, applied).await?;
            if serving.ahead.follows(applied) {
                return Ok(Some(outcome));
            }
            // The replica that answered may be behind.
            if serving.hinted.get_or_insert_with(Instant::now).elapsed() > DOUBT_AFTER {
                (serving.hinted, serving.settled) = (None, hint.nth);
                return Ok(Some(Outcome::Doubt));
            }
            tokio::select! {
                () = sleep(READ_AGAIN) => {}
                Some(request) = self.requests.recv() => self.accept(request, Some(&serving.gateway)),
            }
            return Ok(Some(Outcome::Nothing));
        }
        serving.hinted = None;
        tokio::select! {
            Some(request) = self.requests.recv() => self.accept(request, Some(&serving.gateway)),
            changed = self.news.changed() => changed.map_err(|_| Trouble::Closed)?,
            changed = serving.health.changed() => changed.map_err(|_| Trouble::Closed)?,
            _ = self.epoch.changed() => {}
            () = self.stay.idle() => return Ok(None),
        }
        Ok(Some(Outcome::Nothing))
    }
}

/// Passes in what came of a step.
fn pass_in(gateway: &mut Gateway, replica: &mut Replica, outcome: Outcome) -> Result<(), Fault> {
    match outcome {
        Outcome::Nothing => {}
        Outcome::Heard(question, ends) => gateway.heard(replica, question, ends)?,
        Outcome::Got(sequence, message) => {
            gateway.found(replica, sequence, message.as_ref().map(|message| &*message.payload))?;
        }
        Outcome::Acknowledged(number, sequence) => gateway.acknowledged(number, sequence),
        Outcome::Refused(number, last) => gateway.refused(replica, number, last)?,
        Outcome::Doubt => gateway.doubt(),
    }
    Ok(())
}

/// Applies messages that were read ahead, as many as may go at once, and returns the step that comes then.
fn apply(gateway: &mut Gateway, replica: &mut Replica, ahead: &mut Ahead) -> Result<Step, Fault> {
    for _ in 0..AT_ONCE {
        let step = gateway.next(replica)?;
        let after = match step {
            Step::Read(after) => after,
            Step::Publish(_) | Step::Rest => replica.applied()?.map_or(0, |applied| applied.sequence),
            Step::Ask(_) | Step::Get(_) => return Ok(step),
        };
        if !ahead.follows(after) {
            return Ok(step);
        }
        let Some((after, message)) = ahead.take() else { return Ok(step) };
        gateway.arrive(replica, after, message.sequence, &message.payload)?;
    }
    gateway.next(replica)
}

fn lock(gateway: &Mutex<Gateway>) -> MutexGuard<'_, Gateway> {
    gateway.lock().expect("BUG: a gateway panicked")
}
