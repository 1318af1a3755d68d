//! Writes events from a person or a device. They are stored and applied together, and each gets its own answer.

use super::Replica;
use crate::engine::error::Fault;
use crate::engine::event::{Device, Envelope, EventId};
use crate::engine::eventlog::{Found, Tip, Whose};
use crate::engine::materialize::{Effect, Enders, Halt, OnFault, Stop};
use crate::engine::place::Seq;
use crate::limits::engine::replica::SETTLE_EVERY;

/// The outcome of storing an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored now. Holds its seq, unless an upstream has yet to assign one.
    Stored(Option<Seq>),
    /// It was already stored.
    Known(Option<Seq>),
    /// Its id belongs to an event with another name or payload. That event stays.
    Conflict,
    /// It can't be applied and was not stored. Holds the reason.
    Refused(String),
}

impl Replica {
    /// Commits events that happened here. They are durable and applied when this returns, except those it refuses.
    ///
    /// Each event is judged on its own. Together they cost one fsync.
    ///
    /// # Errors
    ///
    /// A fault of the machine. Each of `events` may or may not be stored then. Commit them again under the same ids.
    pub fn commit(&mut self, events: &[Envelope]) -> Result<Vec<Outcome>, Fault> {
        let device = self.setup.device.clone();
        let batch: Vec<_> = events.iter().map(|event| (event, &device)).collect();
        self.write(&batch, OnFault::Refuse)
    }

    /// Works like [`commit`](Self::commit), for events that somebody else brings here. An authority records the given name as
    /// their origin. Where an upstream gives the places, it names the origin, and the given name has no effect.
    ///
    /// An authority's state may be left uncommitted, because more events follow at once and the log has them all. Call
    /// [`rest`](Self::rest) when none do.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit).
    pub(crate) fn commit_from(&mut self, events: &[(Envelope, Option<Device>)]) -> Result<Vec<Outcome>, Fault> {
        let device = self.setup.device.clone();
        let batch: Vec<_> = events.iter().map(|(event, origin)| (event, origin.as_ref().unwrap_or(&device))).collect();
        self.unless_broken(|replica| {
            let outcomes = replica.try_write_log(&batch, OnFault::Refuse)?;
            if replica.is_authority() {
                replica.deferred +=
                    outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Stored(_))).count() as u64;
            }
            if !(1..SETTLE_EVERY).contains(&replica.deferred) {
                replica.commit_if_level()?;
            }
            replica.witness.write(replica.log.testimony())?;
            Ok(outcomes)
        })
    }

    /// Commits the state of the events that [`commit_from`](Self::commit_from) left uncommitted.
    ///
    /// # Errors
    ///
    /// A fault of the machine. The events are stored.
    pub(crate) fn rest(&mut self) -> Result<(), Fault> {
        if self.deferred == 0 { Ok(()) } else { self.unless_broken(Self::commit_state) }
    }

    /// Adds events that happened elsewhere, in this order, each with the device it comes from. They are not judged: an
    /// event that can't be applied is stored and skipped, as on every other replica.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit).
    pub fn add(&mut self, events: &[(Envelope, Device)]) -> Result<Vec<Outcome>, Fault> {
        let batch: Vec<_> = events.iter().map(|(event, origin)| (event, origin)).collect();
        self.write(&batch, OnFault::Skip)
    }

    pub(super) fn write(&mut self, batch: &[(&Envelope, &Device)], on_fault: OnFault) -> Result<Vec<Outcome>, Fault> {
        self.unless_broken(|replica| replica.try_write(batch, on_fault))
    }

    pub(super) fn try_write(
        &mut self,
        batch: &[(&Envelope, &Device)],
        on_fault: OnFault,
    ) -> Result<Vec<Outcome>, Fault> {
        let outcomes = self.try_write_log(batch, on_fault)?;
        self.commit_if_level()?;
        self.witness.write(self.log.testimony())?;
        Ok(outcomes)
    }

    /// Stores events, and applies them in the state's open transaction.
    fn try_write_log(&mut self, batch: &[(&Envelope, &Device)], on_fault: OnFault) -> Result<Vec<Outcome>, Fault> {
        self.log.begin()?;
        let outcomes = match self.write_together(batch, on_fault)? {
            Some(outcomes) => outcomes,
            None => {
                let mut enders = Enders::new();
                let each = batch.iter().map(|(event, origin)| self.write_alone(event, origin, on_fault, &mut enders));
                each.collect::<Result<_, _>>()?
            }
        };
        self.log.commit()?;
        Ok(outcomes)
    }

    /// Commits the state, unless its transaction has pending events, or confirmed ones that wait with them.
    fn commit_if_level(&mut self) -> Result<(), Fault> {
        let is_level = self.log.tip().pending == 0 && self.unsettled == 0;
        if self.is_authority() || is_level { self.commit_state() } else { Ok(()) }
    }

    /// Returns whether events are committed whose effect isn't.
    pub(crate) fn is_deferring(&self) -> bool {
        self.deferred > 0
    }

    fn is_authority(&self) -> bool {
        matches!(self.log.tip().whose, Whose::Own(_))
    }

    /// Stores and applies the whole batch or none of it. Returns `None` if the events have to be looked at one by one.
    pub(super) fn write_together(
        &mut self,
        batch: &[(&Envelope, &Device)],
        on_fault: OnFault,
    ) -> Result<Option<Vec<Outcome>>, Fault> {
        // Pending events in an open transaction stay. Where there are none, all of it can be undone, which costs less.
        let is_part = self.state.is_open();
        if is_part {
            self.state.mark()?
        } else {
            self.state.begin()?
        }
        let outcomes = self.store(batch)?;
        let stored = outcomes.iter().zip(batch).filter(|(outcome, _)| matches!(outcome, Outcome::Stored(_)));
        let fresh: Vec<_> = stored.map(|(_, (event, _))| *event).collect();
        match self.state.apply_together(&fresh, on_fault) {
            Ok(effects) if on_fault == OnFault::Skip || effects.iter().all(|effect| *effect == Effect::Applied) => {
                if is_part {
                    self.state.keep()?;
                }
                Ok(Some(outcomes))
            }
            Ok(_) | Err(Halt::Undo) => {
                self.begin_anew()?;
                if is_part {
                    self.state.undo()?;
                } else {
                    self.state.rollback()?;
                    self.state.begin()?;
                }
                Ok(None)
            }
            Err(Halt::Stop(Stop::Ended(..))) => {
                self.begin_anew()?;
                self.restore(&mut Enders::new())?;
                Ok(None)
            }
            Err(Halt::Stop(Stop::Fault(fault))) => Err(fault),
        }
    }

    /// Undoes what the eventlog's transaction has stored.
    fn begin_anew(&mut self) -> Result<(), Fault> {
        self.log.rollback()?;
        Ok(self.log.begin()?)
    }

    /// Stores and applies one event of a batch that has a faulty event. `enders` holds the earlier events of the batch
    /// that end the transaction. Each of them then costs one re-application of the others, not one for every event
    /// behind it.
    pub(super) fn write_alone(
        &mut self,
        event: &Envelope,
        origin: &Device,
        on_fault: OnFault,
        enders: &mut Enders,
    ) -> Result<Outcome, Fault> {
        let mark = self.log.mark()?;
        let outcome = self.store(&[(event, origin)])?.remove(0);
        let refused = match outcome {
            Outcome::Stored(_) => match self.state.apply_alone(event, on_fault) {
                Ok(Effect::Skipped(why)) if on_fault == OnFault::Refuse => Some(why),
                Ok(Effect::Unknown) if on_fault == OnFault::Refuse => {
                    Some(format!("nothing here knows events named {}", event.name.as_str()))
                }
                Ok(_) => None,
                Err(Stop::Ended(_, why)) if on_fault == OnFault::Refuse => {
                    self.log.undo(mark)?;
                    self.restore(enders)?;
                    return Ok(Outcome::Refused(why));
                }
                Err(Stop::Ended(id, why)) => {
                    self.log.keep()?;
                    enders.insert(id, why);
                    self.restore(enders)?;
                    return Ok(outcome);
                }
                Err(Stop::Fault(fault)) => return Err(fault),
            },
            _ => None,
        };
        match refused {
            Some(why) => {
                self.log.undo(mark)?;
                Ok(Outcome::Refused(why))
            }
            None => {
                self.log.keep()?;
                Ok(outcome)
            }
        }
    }

    /// Puts each event in its place in the eventlog, unless its id is there already.
    pub(super) fn store(&mut self, batch: &[(&Envelope, &Device)]) -> Result<Vec<Outcome>, Fault> {
        let Tip { whose, set_aside, .. } = *self.log.tip();
        let places = match whose {
            Whose::Own(_) => self.log.append_all(batch)?,
            Whose::Upstream(_) => vec![None; batch.len()],
        };
        let outcome = |((event, _), place): (&(&Envelope, _), _)| match place {
            Some(seq) => {
                if set_aside > 0 {
                    self.log.remove_set_aside(event)?;
                }
                Ok(Outcome::Stored(Some(seq)))
            }
            None => self.store_pending(event),
        };
        batch.iter().zip(places).map(outcome).collect()
    }

    /// Puts `event` into the outbox, unless its id is anywhere in the eventlog.
    pub(super) fn store_pending(&mut self, event: &Envelope) -> Result<Outcome, Fault> {
        match self.find(event.id)? {
            Some(found) if !found.is(event) => self.conflict(&found),
            Some(Found::Log(seq, _) | Found::Early(seq, _)) => Ok(Outcome::Known(Some(seq))),
            Some(_) => Ok(Outcome::Known(None)),
            None => {
                self.log.push(event)?;
                Ok(Outcome::Stored(None))
            }
        }
    }

    /// Returns the outcome for an event whose id belongs to another one. Fails if the disk has changed the stored
    /// event.
    pub(super) fn conflict(&self, found: &Found) -> Result<Outcome, Fault> {
        if let Found::Log(seq, _) = found {
            self.log.ensure(Seq(seq.0 - 1), *seq)?;
        }
        Ok(Outcome::Conflict)
    }

    pub(crate) fn find(&self, id: EventId) -> Result<Option<Found>, Fault> {
        Ok(self.log.find(id)?)
    }
}
