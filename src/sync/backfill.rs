//! The decisions of a device that fetches the events behind its snapshot, on a replica, without network, clock or thread.
//!
//! A backfill is one stream that ends at the snapshot's place. It goes beside the sessions, which begin there.

use super::protocol::{Hello, WirePage, code};
use super::session::{End, SessionError, no_hubs, not_understood};
use crate::engine::{HistoryPosition, LogId, Replica, Seq};
use crate::limits::sync::session::IN_VAIN;

/// One stream of the events behind a snapshot.
#[derive(Debug)]
pub struct Backfill {
    log: LogId,
    until: Seq,
    /// How far the hub's pages have come.
    reached: Seq,
    /// How many pages in a row brought nothing.
    in_vain: u32,
}

/// What a page of the history has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backfilled {
    /// More is missing.
    More,
    /// All of it is here, and has to [prove](crate::engine::prove) the snapshot now.
    Complete,
    /// It is not the log of the snapshot. It counts, and the snapshot was given up.
    Disproven,
}

impl Backfill {
    /// Starts with the hub's first message. The replica's history is at `position`.
    ///
    /// # Errors
    ///
    /// When the hub has another log than the snapshot's.
    pub fn begin(position: HistoryPosition, hello: &Hello) -> Result<Self, End> {
        if let Some(why) = hello.fault() {
            return Err(no_hubs(why));
        }
        if hello.log != Some(position.log) {
            let why = "The hub has another log than this store began with.";
            return Err(End::Halted(code::WRONG_LOG, why.to_owned()));
        }
        Ok(Self { log: position.log, until: position.until, reached: position.after, in_vain: 0 })
    }

    /// Takes in a page.
    ///
    /// # Errors
    ///
    /// What ends the stream, or a fault of the machine.
    pub fn arrive(&mut self, replica: &mut Replica, page: WirePage) -> Result<Backfilled, SessionError> {
        if page.log != self.log {
            return Err(End::Offline("the hub changed its log in the middle of the history".to_owned()).into());
        }
        if let Some(why) = page.fault(self.reached) {
            return Err(no_hubs(why).into());
        }
        let is_ours = |position: &HistoryPosition| {
            (position.log, position.until, position.after) == (self.log, self.until, self.reached)
        };
        if !replica.history().as_ref().is_some_and(is_ours) {
            // The snapshot was given up meanwhile.
            return Err(End::PullFirst.into());
        }
        let page = page.until(self.until);
        self.in_vain = if page.events.is_empty() { self.in_vain + 1 } else { 0 };
        if self.in_vain > IN_VAIN {
            return Err(End::Offline("the hub sends page after page that brings nothing".to_owned()).into());
        }
        let page = page.into_page().map_err(|why| not_understood(&why))?;
        replica.arrive_history(&page)?;
        let Some(position) = replica.history() else { return Ok(Backfilled::Disproven) };
        self.reached = position.after;
        Ok(if position.is_complete() { Backfilled::Complete } else { Backfilled::More })
    }
}
