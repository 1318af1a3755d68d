//! Reads a long log on a thread of its own, so that the next events are here when the state has the last ones.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};
use std::{io, mem};

use crate::engine::error::LogFault;
use crate::engine::event::{EventId, EventRef};
use crate::engine::eventlog::{Checkpoint, Eventlog};
use crate::engine::materialize::{Each, Halt};
use crate::engine::place::Seq;
use crate::limits::engine::replica::{AHEAD, AHEAD_BYTES, CHUNK, PER_COMMIT};

/// The events of a log from some place to its end, as a thread reads them. They come in chunks, and in portions of
/// [`PER_COMMIT`] events that each end at a checkpoint. When this is dropped, the thread ends.
pub(super) struct Ahead {
    parts: Receiver<Result<Part, LogFault>>,
    chunk: Chunk,
    /// The number of chunks that were received.
    count: u64,
    milestone: Option<Checkpoint>,
}

enum Part {
    Chunk(Chunk),
    /// The end of a portion.
    Milestone(Checkpoint),
}

impl Ahead {
    /// Begins to read `log` after `after`.
    pub(super) fn begin<'scope>(
        scope: &'scope Scope<'scope, '_>,
        log: &'scope mut Eventlog,
        after: Seq,
    ) -> io::Result<Self> {
        let (send, parts) = sync_channel(AHEAD);
        let read = move || {
            let reader = Reader { log, send: &send, chunk: Chunk::default() };
            if let Err(Unread::Fault(fault)) = reader.read(after) {
                // If nobody receives it, nobody needs it any more.
                drop(send.send(Err(fault)));
            }
        };
        Builder::new().name("reading ahead".to_owned()).spawn_scoped(scope, read)?;
        Ok(Self { parts, chunk: Chunk::default(), count: 0, milestone: None })
    }

    /// Returns how many chunks were received so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Calls `each` with the events of the chunk behind the first `count` chunks: the next, or the last once more. Returns
    /// the number of chunks up to it, or `None` if the portion has ended.
    pub(super) fn each(&mut self, count: u64, each: &mut Each<'_>) -> Result<Option<u64>, Halt> {
        if count == self.count {
            match self.parts.recv().expect("BUG: a log doesn't end at a checkpoint")? {
                Part::Chunk(chunk) => (self.chunk, self.count) = (chunk, count + 1),
                Part::Milestone(end) => {
                    self.milestone = Some(end);
                    return Ok(None);
                }
            }
        }
        self.chunk.each(each)?;
        Ok(Some(self.count))
    }

    /// Returns where the portion that was read last ends.
    pub(super) fn milestone(&self) -> Checkpoint {
        self.milestone.expect("BUG: a portion that wasn't read")
    }
}

/// What the thread does.
struct Reader<'a> {
    log: &'a Eventlog,
    send: &'a SyncSender<Result<Part, LogFault>>,
    chunk: Chunk,
}

/// Why the thread ends early.
enum Unread {
    Fault(LogFault),
    /// Nobody wants the rest.
    Left,
}

impl From<LogFault> for Unread {
    fn from(fault: LogFault) -> Self {
        Self::Fault(fault)
    }
}

impl Reader<'_> {
    fn read(mut self, mut after: Seq) -> Result<(), Unread> {
        while after < self.log.tip().head {
            let milestone = self.log.milestone_after(after, PER_COMMIT)?;
            let log = self.log;
            log.each_in_log(after, milestone.seq, usize::MAX, &mut |event| {
                self.chunk.push(event);
                if self.chunk.is_full() { self.send_chunk() } else { Ok(()) }
            })?;
            self.send_chunk()?;
            self.send(Part::Milestone(milestone))?;
            after = milestone.seq;
        }
        Ok(())
    }

    fn send_chunk(&mut self) -> Result<(), Unread> {
        let chunk = mem::take(&mut self.chunk);
        self.send(Part::Chunk(chunk))
    }

    fn send(&self, part: Part) -> Result<(), Unread> {
        self.send.send(Ok(part)).map_err(|_| Unread::Left)
    }
}

/// Events with their payloads in one text, since an allocation for each would cost as much as reading it.
#[derive(Default)]
struct Chunk {
    events: Vec<(EventId, Arc<str>, Option<Range<usize>>)>,
    text: String,
}

impl Chunk {
    fn push(&mut self, event: &EventRef<'_>) {
        // Most events have the name of the one before.
        let name = match self.events.last() {
            Some((_, name, _)) if **name == *event.name => Arc::clone(name),
            _ => event.name.into(),
        };
        let start = self.text.len();
        self.text.push_str(event.args.unwrap_or_default());
        self.events.push((event.id, name, event.args.map(|_| start..self.text.len())));
    }

    fn is_full(&self) -> bool {
        self.events.len() >= CHUNK || self.text.len() >= AHEAD_BYTES
    }

    fn each(&self, each: &mut Each<'_>) -> Result<(), Halt> {
        self.events.iter().try_for_each(|(id, name, args)| {
            each(&EventRef { id: *id, name, args: args.clone().map(|range| &self.text[range]) })
        })
    }
}
