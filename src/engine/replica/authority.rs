//! Whose log it is, and what happens when that changes: events are taken back, get places of their own, or are set aside.

use super::Replica;
use super::write::Outcome;
use crate::engine::error::{Fault, LogFault};
use crate::engine::event::{Envelope, EventId};
use crate::engine::eventlog::{Content, Eventlog, Found, PageSize, Whose};
use crate::engine::opening::Alone;
use crate::engine::place::{LogId, Seq};
use crate::engine::setup::Setup;
use crate::engine::state::State;

impl Replica {
    /// Begins to follow an upstream: a log of our own goes back to the outbox, to be pushed. Does nothing if the log is an
    /// upstream's already.
    ///
    /// # Errors
    ///
    /// As [`take_back`](Self::take_back).
    pub fn follow(&mut self) -> Result<(), Fault> {
        match self.log.tip().whose {
            Whose::Own(_) => self.take_back(Seq::START, Whose::Upstream(None)),
            Whose::Upstream(_) => Ok(()),
        }
    }

    /// Records which log the upstream has, at the first meeting.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn meet(&mut self, log: LogId) -> Result<(), Fault> {
        if self.log.tip().whose == Whose::Upstream(Some(log)) {
            return Ok(());
        }
        self.change(|own| own.set_whose(Whose::Upstream(Some(log))))
    }

    /// Takes everything in the log after `after` back to the front of the outbox, for a log whose authority is `whose`
    /// from now on. No event is lost: those taken back are pending again, under the same ids. When the log is our own
    /// from now on, nobody else gives places out, and everything pending gets its own at once.
    ///
    /// # Errors
    ///
    /// A fault of the machine. A crash between the eventlog's commit and the new state is mended by opening.
    pub fn take_back(&mut self, after: Seq, whose: Whose) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.try_take_back(after, whose))
    }

    pub(super) fn try_take_back(&mut self, after: Seq, whose: Whose) -> Result<(), Fault> {
        self.state.rollback()?;
        self.unsettled = 0;
        let device = self.setup.device.clone();
        self.transact(|own| {
            own.take_back(after)?;
            own.set_whose(whose)?;
            if let Whose::Own(_) = whose { own.place_pending(&device) } else { Ok(()) }
        })?;
        self.rebuild()
    }

    /// Rebuilds the state from the log.
    pub(super) fn rebuild(&mut self) -> Result<(), Fault> {
        // The old connection has to close the file first.
        self.state = State::in_memory(&self.setup.schema)?;
        let alone = Alone::in_dir(self.files.dir())?;
        let Setup { schema, executable, .. } = &self.setup;
        self.state = State::new(&self.files.state(), schema, executable, self.log.tip().generation, &alone)?;
        drop(alone);
        drop(self.state.take_changes());
        self.try_settle()?;
        self.state.touch_all();
        Ok(())
    }

    /// Makes this replica the authority of the log: what is pending gets its place at the end.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn promote(&mut self) -> Result<(), Fault> {
        let Whose::Upstream(log) = self.log.tip().whose else { return Ok(()) };
        let device = self.setup.device.clone();
        self.change(|own| {
            own.set_whose(Whose::Own(log.unwrap_or_else(LogId::random)))?;
            own.place_pending(&device)
        })?;
        self.settle()
    }

    /// Sets aside pending events that the upstream refuses. Each is kept with the reason, and loses its effect.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn refuse(&mut self, refused: &[(EventId, String)]) -> Result<(), Fault> {
        self.change(|own| {
            for (id, why) in refused {
                if let Some(Found::Outbox(n, Content { name, args })) = own.find(*id)? {
                    own.set_aside(&Envelope { id: *id, name, args }, why)?;
                    own.remove_pending(n)?;
                }
            }
            Ok(())
        })?;
        self.settle()
    }

    /// Keeps an event among those set aside, with the reason, unless this very event is here. Another one may have its id:
    /// that is how most come to be set aside.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn set_aside(&mut self, event: &Envelope, why: &str) -> Result<Outcome, Fault> {
        match self.find(event.id)? {
            Some(Found::Log(seq, content)) if content.is(event) => return Ok(Outcome::Known(Some(seq))),
            Some(found) if found.is(event) => return Ok(Outcome::Known(None)),
            _ => {}
        }
        let before = self.log.tip().set_aside;
        self.change(|own| own.set_aside(event, why))?;
        let is_new = self.log.tip().set_aside > before;
        Ok(if is_new { Outcome::Stored(None) } else { Outcome::Known(None) })
    }

    /// Commits the events that were set aside once more. One whose id belongs to another event by now gets an id from
    /// `new_id`. Returns how many there were.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn retry_set_aside(&mut self, mut new_id: impl FnMut() -> EventId) -> Result<usize, Fault> {
        let device = self.setup.device.clone();
        let mut count = 0;
        self.change(|own| {
            loop {
                let page = own.set_aside_first(PageSize::PORTION)?;
                if page.is_empty() {
                    return Ok(());
                }
                count += page.len();
                for event in page {
                    own.remove_set_aside(&event)?;
                    let id = if own.find(event.id)?.is_some() { new_id() } else { event.id };
                    let event = Envelope { id, ..event };
                    match own.tip().whose {
                        Whose::Own(_) => drop(own.append(own.tip().head.next(), &event, &device)?),
                        Whose::Upstream(_) => drop(own.push(&event)?),
                    }
                }
            }
        })?;
        self.settle()?;
        Ok(count)
    }

    /// The events set aside, each with the reason, oldest first.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn all_set_aside(&self) -> Result<Vec<(Envelope, String)>, Fault> {
        Ok(self.log.all_set_aside()?)
    }

    /// Changes the eventlog alone, durably, unless an earlier fault left log and state apart. Where that changes what the
    /// state has to be, the caller [settles](Self::settle) it.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Eventlog) -> Result<(), LogFault>) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.transact(change))
    }

    pub(super) fn transact(&mut self, change: impl FnOnce(&mut Eventlog) -> Result<(), LogFault>) -> Result<(), Fault> {
        let done = self.log.begin().and_then(|()| change(&mut self.log)).and_then(|()| self.log.commit());
        done?;
        self.witness.write(self.log.testimony())
    }
}
