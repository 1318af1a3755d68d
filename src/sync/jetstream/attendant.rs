//! One store of a gateway. A [`Gateway`] decides what to do. The attendant does it, with a cluster, a clock and a store.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::super::authority::{Incoming, Refusal};
use super::super::client::LinkState;
use super::super::gateway::{Answered, Ends, Gateway, Home, Judges, Publication, Question, Sequence, Step, Ticket, log_in};
use super::super::protocol::{Pushed, code as hub_code};
use super::super::stay::Stay;
use super::api::{Api, ApiError, Stored, code};
use super::cluster::{Cluster, Epoch, Stand};
use crate::engine::{Error, Fault, LogId, Replica, Store};
use crate::limits::sync::nats::{
    ANSWER_WITHOUT_READING, AT_ONCE, DOUBT_AFTER, LOOK_EVERY, READ_AGAIN, REQUESTS, REST_AFTER_TROUBLE,
};
use crate::random;

/// Where the hub's routes bring what devices ask of a store.
#[derive(Clone)]
pub(crate) struct Desk {
    requests: mpsc::Sender<Request>,
    news: watch::Sender<Sequence>,
}

/// Why a gateway can't serve a store at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// Devices come again. Holds the reason.
    Later(String),
    /// The store was moved. Holds where it went.
    Moved(String),
}

enum Request {
    /// Tell when the log is what the stream had after this came.
    Level(oneshot::Sender<Result<LogId, NotReady>>),
    /// Put these events into the stream.
    Push(Incoming, oneshot::Sender<Result<Result<Pushed, Refusal>, NotReady>>),
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
        match timeout(super::super::super::limits::sync::nats::PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(NotReady::Later("the store was just let go of".to_owned())),
            Err(_) => Err(NotReady::Later("the cluster doesn't get there in time".to_owned())),
        }
    }

    /// Tells that the stream has a message of this store with that sequence.
    pub(super) fn tell(&self, sequence: Sequence) {
        self.news.send_if_modified(|known| {
            let is_new = sequence > *known;
            *known = sequence.max(*known);
            is_new
        });
    }
}

/// Looks after one store.
pub(in super::super) struct Attendant {
    stay: Stay,
    cluster: Cluster,
    subject: String,
    requests: mpsc::Receiver<Request>,
    news: watch::Receiver<Sequence>,
    epoch: watch::Receiver<Epoch>,
    /// Devices that wait to be judged, each with what the leader said since, and pushes that wait for their answer.
    levels: Vec<(Option<Sequence>, oneshot::Sender<Result<LogId, NotReady>>)>,
    pushes: HashMap<Ticket, oneshot::Sender<Result<Result<Pushed, Refusal>, NotReady>>>,
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
        match error {
            ApiError::Refused(found, why) if code::FULL.contains(&found) => {
                Self::Away(format!("JetStream has no room: {why}. Raise its limit, or give its disk more room"))
            }
            error => Self::Away(error.to_string()),
        }
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

/// What the store's thread found.
struct Found {
    step: Step,
    /// Messages that were read ahead, and the one that they follow.
    ahead: Ahead,
    answers: Vec<Answered>,
    loss: Option<String>,
    notices: Vec<String>,
    judges: Judges,
    /// How far the log has come, in messages.
    applied: Sequence,
    log: LogId,
}

/// Messages that follow one another in the subject.
#[derive(Debug, Default)]
struct Ahead {
    after: Sequence,
    messages: VecDeque<Stored>,
}

impl Ahead {
    fn follows(&self, after: Sequence) -> bool {
        self.after == after && !self.messages.is_empty()
    }

    fn take(&mut self) -> Option<Stored> {
        let message = self.messages.pop_front()?;
        self.after = message.sequence;
        Some(message)
    }
}

/// What came of a step.
enum Outcome {
    Nothing,
    Heard(Question, Ends),
    Got(Sequence, Option<Stored>),
    Acknowledged(Publication, Sequence),
    Refused(u64, Option<Sequence>),
    Unanswered(u64),
    Doubt,
    AnswerNow,
}

impl Attendant {
    /// Attends to a store from now on. `warming` is held until it is level.
    pub(in super::super) fn new(stay: Stay, cluster: Cluster, warming: Option<OwnedSemaphorePermit>) -> (Self, Desk) {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let (news, heard) = watch::channel(0);
        let desk = Desk { requests, news };
        let subject = cluster.subject(&stay.id);
        let epoch = cluster.epoch();
        let attendant = Self {
            stay,
            cluster,
            subject,
            requests: receiver,
            news: heard,
            epoch,
            levels: Vec::new(),
            pushes: HashMap::new(),
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
        loop {
            let trouble = match self.serve().await {
                Ok(()) => return false,
                Err(trouble) => trouble,
            };
            self.warming = None;
            let not_ready = match &trouble {
                Trouble::Closed => return true,
                Trouble::Away(why) | Trouble::Halted(_, why) => NotReady::Later(why.clone()),
                Trouble::Moved(to) => NotReady::Moved(to.clone()),
            };
            match trouble {
                Trouble::Halted(code, why) => self.stay.tell(LinkState::Halted, Some(code), Some(why)),
                Trouble::Moved(to) => {
                    let why = format!("The store was moved out of this stream: {to}");
                    self.stay.tell(LinkState::Halted, Some(hub_code::MOVED), Some(why));
                }
                Trouble::Away(why) => self.stay.tell(LinkState::Offline, None, Some(why)),
                Trouble::Closed => {}
            }
            self.turn_away(&not_ready);
            if self.rest(&not_ready).await {
                return false;
            }
        }
    }

    /// Waits until it is worth another attempt. Whoever asks for something meanwhile is told why not. Returns true if nobody
    /// uses the store any more.
    async fn rest(&mut self, not_ready: &NotReady) -> bool {
        self.epoch.mark_unchanged();
        let patience = if matches!(not_ready, NotReady::Moved(_)) { LOOK_EVERY } else { REST_AFTER_TROUBLE };
        let over = sleep(patience.mul_f64(0.5 + 0.5 * random::fraction()));
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return false,
                _ = self.epoch.changed() => return false,
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
                    Ok(ticket) => drop(self.pushes.insert(ticket, reply)),
                    Err(_) => drop(reply.send(later("more events of devices wait here than may; come again"))),
                }
            }
        }
    }

    /// Keeps the store level with the stream. Returns when nobody uses it.
    async fn serve(&mut self) -> Result<(), Trouble> {
        let (api, stream) = self.ready().await?;
        let store = self.stay.clients.shared.stores.get(&self.stay.id)?;
        self.stay.health = store.health();
        let home = Home {
            stream,
            store: self.stay.id.clone(),
            log: self.cluster.moved(&self.stay.id).unwrap_or_else(|| log_in(stream, &self.stay.id)),
            device: self.stay.clients.shared.device.clone(),
        };
        let mut first = None;
        if store.is_absent() {
            match self.wait_for_reason(&api, &store, home.log).await? {
                Reason::Idle => return Ok(()),
                Reason::Message => {}
                Reason::Push(request) => first = Some(request),
            }
        }
        let known = home.clone();
        let gateway = store.with(move |replica| Gateway::begin(replica, known)).await?;
        let gateway = Arc::new(Mutex::new(gateway));
        if let Some(request) = first {
            self.accept(request, Some(&gateway));
        }
        let mut serving = Serving { store, gateway, api, home, ahead: Ahead::default(), since: None };
        self.epoch.mark_unchanged();
        let mut epoch = self.epoch.borrow().clone();
        let mut outcome = Outcome::Nothing;
        loop {
            if self.epoch.has_changed().unwrap_or(false) {
                let now = self.epoch.borrow_and_update().clone();
                serving.api = self.cluster.api().map_err(Trouble::Away)?;
                self.take_in(&serving, &epoch, &now);
                epoch = now;
            }
            while let Ok(request) = self.requests.try_recv() {
                self.accept(request, Some(&serving.gateway));
            }
            let found = serving.decide(outcome, self.levels.iter().any(|(last, _)| last.is_none())).await?;
            outcome = self.act(&mut serving, found).await?;
            if let (Outcome::Nothing, true) = (&outcome, serving.is_over) {
                return Ok(());
            }
        }
    }
}
