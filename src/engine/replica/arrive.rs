//! Takes in an upstream's log, and describes our log to an upstream or a device.

use super::{Replica, View};
use crate::engine::error::{Fault, LogFault};
use crate::engine::eventlog::{Eventlog, Found, ID_TAKEN, PageSize, Tip};
use crate::engine::place::{Digest, Entry, Generation, LogId, Seq};
use crate::limits::engine::replica::{PUT_BACK, SETTLE_EVERY};

/// Only the next event.
const ONE: PageSize = PageSize { events: 1, bytes: 0 };

/// Where a replica stands in its upstream's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// When the generation changes, all the other fields change too.
    pub generation: Generation,
    /// The upstream's log, if this replica has met it before.
    pub log: Option<LogId>,
    /// How far the log was pulled.
    pub after: Seq,
    /// The digest of our log up to there.
    pub digest: Digest,
}

impl Position {
    /// Returns the position of one that has nothing of any log.
    pub(crate) fn start() -> Self {
        Self { generation: Generation::default(), log: None, after: Seq::START, digest: Digest::EMPTY }
    }
}

/// A part of an upstream's log, in log order.
#[derive(Debug, Clone)]
pub struct Page {
    /// The events.
    pub entries: Vec<Entry>,
    /// Where the next page begins.
    pub next: Seq,
    /// Whether the upstream already has more events.
    pub more: bool,
}

impl Replica {
    /// Takes in a page of the upstream's log. A pending event is confirmed by arriving here.
    ///
    /// The log may get [ahead](Self::is_behind) of what queries see, because re-applying the outbox after every page
    /// would be quadratic. The outbox is re-applied once as many events have arrived as are pending. It is re-applied
    /// at once if few are pending and no more pages wait. A caller that stops pulling, or has waited long enough, calls
    /// [`settle_arrivals`](Self::settle_arrivals).
    ///
    /// # Errors
    ///
    /// A fault of the machine. Pull the page again then.
    pub fn arrive(&mut self, page: &Page) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.try_arrive(page))
    }

    pub(super) fn try_arrive(&mut self, page: &Page) -> Result<(), Fault> {
        self.try_arrive_with(page, |_, _| Ok(true)).map(drop)
    }

    /// Takes in a page. `conclude` runs at the end of its transaction, and gets the place where the page ends. If it returns
    /// false, nothing is changed. Returns what it returned.
    pub(super) fn try_arrive_with(
        &mut self,
        page: &Page,
        conclude: impl FnOnce(&mut Eventlog, Seq) -> Result<bool, LogFault>,
    ) -> Result<bool, Fault> {
        let before = *self.log.tip();
        let mut is_ours_in_order = !self.is_behind();
        self.log.begin()?;
        let mut entries = page.entries.as_slice();
        while !entries.is_empty() {
            let (admitted, are_next) = self.admit_some(entries)?;
            is_ours_in_order &= are_next;
            entries = &entries[admitted..];
        }
        if page.next > before.pulled {
            self.log.set_pulled(page.next)?;
        }
        if !conclude(&mut self.log, page.next)? {
            self.log.rollback()?;
            return Ok(false);
        }
        self.log.commit()?;
        self.witness.write(self.log.testimony())?;

        let now = *self.log.tip();
        let added = now.length - before.length;
        let are_all_new = added > 0 && added == page.entries.len() as u64;
        if are_all_new && before.pending == 0 && self.apply_end(before.head, &page.entries)? {
            return Ok(true);
        }
        self.follow_arrivals(added, now.pending != before.pending, is_ours_in_order, page.more)?;
        Ok(true)
    }

    /// Brings the state after arrivals, as far as that is due.
    fn follow_arrivals(&mut self, added: u64, has_left: bool, is_ours_in_order: bool, more: bool) -> Result<(), Fault> {
        let pending = self.log.tip().pending;
        if added == 0 && !has_left {
            return self.settle_if_due(more);
        }
        if is_ours_in_order {
            // The open transaction has already applied exactly these events, in this order.
            self.unsettled += added;
            if pending == 0 {
                return self.commit_state();
            }
            // Settling re-applies all pending events. With a million pending, settling every 10,000 would do that a
            // hundred times. Opening applies the pending events in any case.
            let most = SETTLE_EVERY.max(pending);
            return if self.unsettled >= most { self.try_settle() } else { Ok(()) };
        }
        let earlier = if let View::Behind { lag } = self.view { lag } else { 0 };
        self.view = View::Behind { lag: earlier + added };
        self.settle_if_due(more)
    }

    /// Shows the arrived events to queries, if that is worth re-applying all pending events.
    pub(super) fn settle_if_due(&mut self, more: bool) -> Result<(), Fault> {
        let View::Behind { lag } = self.view else { return Ok(()) };
        let pending = self.log.tip().pending;
        let is_due = if more { lag >= SETTLE_EVERY.max(pending) } else { lag >= pending };
        if is_due || pending == 0 || !more && pending <= PUT_BACK { self.try_settle() } else { Ok(()) }
    }

    /// Adds the first events of a page to our log, as many as can be added together. Returns how many they are, and whether the
    /// open transaction has them already.
    fn admit_some(&mut self, entries: &[Entry]) -> Result<(usize, bool), LogFault> {
        let Tip { pending, set_aside, early, .. } = *self.log.tip();
        if set_aside == 0 && early == 0 {
            if pending == 0 {
                let are_new = self.log.append_page(entries)?;
                return Ok((entries.len(), !are_new));
            }
            let confirmed = self.log.confirm(entries)?;
            if confirmed > 0 {
                return Ok((confirmed, true));
            }
        }
        Ok((1, self.admit(&entries[0])?))
    }

    /// Adds one event of the upstream's log to ours. Returns true if the open transaction has it already, as it was the
    /// next of our own pending events.
    pub(super) fn admit(&mut self, entry: &Entry) -> Result<bool, LogFault> {
        let tip = *self.log.tip();
        let event = &entry.event;
        if entry.seq <= tip.head {
            // It has arrived before.
            return Ok(true);
        }
        let may_be_ours = tip.pending > 0 || tip.set_aside > 0 || tip.early > 0;
        let found = if may_be_ours { self.log.find(event.id)? } else { None };
        let is_same = found.as_ref().is_some_and(|found| found.is(event));
        let mut is_next = false;
        match found {
            Some(Found::Log(..)) => return Ok(true),
            // An upstream that said it was below the base has contradicted itself. What it brings counts.
            Some(Found::Early(at, content)) => {
                if !is_same {
                    self.log.set_aside(&content.of(event.id), ID_TAKEN)?;
                }
                self.log.remove_early(at)?;
            }
            Some(Found::Outbox(n, _)) => {
                let first = self.log.pending(i64::MIN, ONE)?;
                is_next = is_same && first.first().is_some_and(|(first, _)| *first == n);
                if is_same {
                    self.log.passes(n)?;
                }
                if !is_same && let Some((_, ours)) = self.log.pending(n - 1, ONE)?.first() {
                    self.log.set_aside(ours, ID_TAKEN)?;
                }
                self.log.remove_pending(n)?;
            }
            Some(Found::SetAside(_)) | None => {}
        }
        if tip.set_aside > 0 {
            self.log.remove_set_aside(event)?;
        }
        let added = self.log.append(entry.seq, event, &entry.origin)?;
        Ok(is_next || !added)
    }

    /// Returns how far the upstream's log was pulled, and the digest of our log up to there.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn position(&self) -> Result<Position, Fault> {
        let Tip { generation, whose, pulled, .. } = *self.log.tip();
        Ok(Position { generation, log: whose.log_id(), after: pulled, digest: self.digest_at(pulled)? })
    }

    /// Returns whether the log up to `after` has this digest.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn vouches_for(&self, after: Seq, digest: Digest) -> Result<bool, Fault> {
        Ok(after <= self.log.tip().head && self.known_digest(after)? == Some(digest))
    }

    /// Returns points of the log with their digests, from its end to its beginning. They are close together at first,
    /// then ever sparser. So another replica finds a shared point not far before the place where the logs diverge.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn points(&self) -> Result<Vec<(Seq, Digest)>, Fault> {
        Ok(self.log.points()?)
    }

    /// Returns the last of `points` that this log shares, or the beginning of the log if it shares none.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn last_shared(&self, points: &[(Seq, Digest)]) -> Result<Seq, Fault> {
        let mut shared = Seq::START;
        for (seq, digest) in points {
            if *seq > shared && self.vouches_for(*seq, *digest)? {
                shared = *seq;
            }
        }
        Ok(shared)
    }
}
