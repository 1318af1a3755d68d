//! The authority of the log, and changes of it. Such a change takes events back, gives them places, or sets them aside.

use super::Replica;
use super::base::Parts;
use super::write::Outcome;
use crate::engine::error::{Fault, LogFault};
use crate::engine::event::{Envelope, EventId};
use crate::engine::eventlog::{Content, Eventlog, Found, PageSize, Whose};
use crate::engine::opening::Alone;
use crate::engine::place::{LogId, Seq};
use crate::engine::state::State;

impl Replica {
    /// Begins to follow an upstream. Moves a log of our own back to the outbox, to be pushed. Does nothing if the log
    /// is already an upstream's.
    ///
    /// # Errors
    ///
    /// The same as for [`take_back`](Self::take_back).
    pub fn follow(&mut self) -> Result<(), Fault> {
        match self.log.tip().whose {
            Whose::Own(_) => self.take_back(Seq::START, Whose::Upstream(None)),
            Whose::Upstream(_) => Ok(()),
        }
    }

    /// Records which log the upstream has, when first meeting it. If a stream's messages made the log so far, they no longer
    /// do.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn meet(&mut self, log: LogId) -> Result<(), Fault> {
        if self.log.tip().whose == Whose::Upstream(Some(log)) && self.log.stream().is_none() {
            return Ok(());
        }
        self.change(|own| {
            own.set_stream(None)?;
            own.set_whose(Whose::Upstream(Some(log)))
        })
    }

    /// Takes all events of the log after `after` back to the front of the outbox. If `after` is below the base, the base is
    /// [dropped](Self::drop_base) first. `whose` is the authority of the log
    /// from now on. No event is lost: those taken back are pending again, under the same ids. If the log becomes our
    /// own, no one else assigns places, so every pending event gets its place at once.
    ///
    /// # Errors
    ///
    /// A fault of the machine. If a crash comes between the eventlog's commit and the new state, opening repairs it.
    pub fn take_back(&mut self, after: Seq, whose: Whose) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.try_take_back(after, whose))
    }

    pub(super) fn try_take_back(&mut self, after: Seq, whose: Whose) -> Result<(), Fault> {
        self.roll_back()?;
        let device = self.setup.device.clone();
        self.transact(|own| {
            if after < own.tip().base.seq {
                own.drop_base()?;
            }
            own.take_back(after)?;
            own.set_whose(whose)?;
            if let Whose::Own(_) = whose { own.place_pending(&device) } else { Ok(()) }
        })?;
        self.forget_snapshot();
        self.rebuild()
    }

    /// Rebuilds the state from the log, and from the snapshot where the log begins.
    pub(super) fn rebuild(&mut self) -> Result<(), Fault> {
        // Replace the old connection first, because it has to close the file.
        self.state = State::in_memory(&self.setup.schema)?;
        let alone = Alone::in_dir(self.files.dir())?;
        let Self { files, setup, log, witness, .. } = self;
        self.state = Parts { files, setup, log, witness, is_new: true }.begin_state(&alone)?;
        drop(alone);
        drop(self.state.take_changes());
        self.try_settle()?;
        self.state.touch_all();
        Ok(())
    }

    /// Makes this replica the authority of the log. Pending events get their places at its end. Returns false, and changes
    /// nothing, while the log begins at a snapshot: an authority needs every id.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn promote(&mut self) -> Result<bool, Fault> {
        let Whose::Upstream(log) = self.log.tip().whose else { return Ok(true) };
        if !self.log.tip().is_whole() {
            return Ok(false);
        }
        let device = self.setup.device.clone();
        self.change(|own| {
            own.set_stream(None)?;
            own.set_whose(Whose::Own(log.unwrap_or_else(LogId::random)))?;
            own.place_pending(&device)
        })?;
        self.settle()?;
        Ok(true)
    }

    /// Sets aside pending events that the upstream refuses. Each is kept with the reason and loses its effect.
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

    /// Adds an event to those set aside, with the reason, unless this very event is stored already. Another event may
    /// have its id: that is why most events are set aside.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn set_aside(&mut self, event: &Envelope, why: &str) -> Result<Outcome, Fault> {
        match self.find(event.id)? {
            Some(Found::Log(seq, content) | Found::Early(seq, content)) if content.is(event) => {
                return Ok(Outcome::Known(Some(seq)));
            }
            Some(found) if found.is(event) => return Ok(Outcome::Known(None)),
            _ => {}
        }
        let before = self.log.tip().set_aside;
        self.change(|own| own.set_aside(event, why))?;
        let is_new = self.log.tip().set_aside > before;
        Ok(if is_new { Outcome::Stored(None) } else { Outcome::Known(None) })
    }

    /// Commits the set-aside events again and returns how many there were. An event whose id now belongs to another
    /// event gets a new id from `new_id`.
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

    /// Returns the set-aside events, each with the reason, oldest first.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn all_set_aside(&self) -> Result<Vec<(Envelope, String)>, Fault> {
        Ok(self.log.all_set_aside()?)
    }

    /// Changes only the eventlog, durably, unless an earlier fault left the log and the state out of step. If the state
    /// has to change as well, the caller [settles](Self::settle) it.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Eventlog) -> Result<(), LogFault>) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.transact(change))
    }

    pub(super) fn transact(&mut self, change: impl FnOnce(&mut Eventlog) -> Result<(), LogFault>) -> Result<(), Fault> {
        let done = self.log.begin().and_then(|()| change(&mut self.log)).and_then(|()| self.log.commit());
        done?;
        self.witness.write(self.log.testimony())
    }
}
