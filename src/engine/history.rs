//! Who brought the events of a log, and when: counted from the log itself, beside the thread that writes.
//!
//! None of it is stored. Counts that are kept with each commit would cost every event a write, and they could come to differ
//! from a log whose events were taken back. To read a million events takes a fraction of a second, and a count that was
//! made once only reads what is new.

use std::collections::{BTreeMap, HashMap};

use super::error::{Fault, LogFault};
use super::event::Device;
use super::eventlog::{Eventlog, Tip};
use super::place::{Generation, Seq};
use super::replica::HistoryStanding;
use super::setup::Files;
use crate::limits::engine::history::PORTION;

/// Who brought the events of a store, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// How many events of the log each device brought to it.
    pub devices: HashMap<Device, u64>,
    /// How many events wait for a place in the log.
    pub pending: u64,
    /// How many events of the log are not here, so that nothing is known of them: they are behind a snapshot.
    pub missing: u64,
    /// How many events happened on each day, by the clocks of the devices where they happened.
    pub days: BTreeMap<i32, u64>,
    /// How many events have a time that belongs to no day.
    pub undated: u64,
}

/// How far a log is counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// What is in the log up to there.
    history: History,
    /// The last event that is counted.
    upto: Seq,
    /// Where the log began then. The events below it are counted as they arrive.
    base: Seq,
    /// The last event below the base that is counted.
    below: Seq,
    /// The log's generation then. If it is another one now, events were taken back.
    generation: Generation,
}

impl Counted {
    /// Counts what is in the log and isn't counted yet. Returns that together with what waits. `day` returns the number of
    /// the day to which a time belongs, in milliseconds since the Unix epoch, or `None` if a clock that says so must be
    /// wrong.
    pub(super) fn read_on(&mut self, files: &Files, day: &mut dyn FnMut(u64) -> Option<i32>) -> Result<History, Fault> {
        loop {
            // Each portion has a snapshot of its own: while one is held, the WAL can't start over.
            let log = Eventlog::snapshot(&files.eventlog())?;
            if self.read_portion(&log, day)? == PORTION {
                continue;
            }
            let mut history = self.history.clone();
            history.missing = HistoryStanding::of(log.tip()).map_or(0, |history| history.missing());
            log.each_pending(i64::MIN, i64::MAX as usize, &mut |event| {
                history.pending += 1;
                history.happened(day(event.id.millis()));
                Ok::<_, LogFault>(())
            })?;
            return Ok(history);
        }
    }

    fn read_portion(&mut self, log: &Eventlog, day: &mut dyn FnMut(u64) -> Option<i32>) -> Result<usize, Fault> {
        let Tip { head, generation, base, .. } = *log.tip();
        if generation != self.generation || head < self.upto {
            *self = Self { generation, ..Self::default() };
        }
        // A snapshot begins a generation. So within one, the base is either what it was or gone.
        self.base = self.base.max(base.seq);
        self.upto = self.upto.max(self.base);
        let mut read = 0;
        let mut by_number = BTreeMap::new();
        for (upto, until) in [(&mut self.below, self.base), (&mut self.upto, Seq(u64::MAX >> 1))] {
            let last = log.each_origin(*upto, until, PORTION - read, &mut |id, origin| {
                read += 1;
                *by_number.entry(origin).or_insert(0) += 1;
                self.history.happened(day(id.millis()));
            })?;
            *upto = last.unwrap_or(*upto);
        }
        for (origin, count) in by_number {
            *self.history.devices.entry(log.origin(origin)?).or_insert(0) += count;
        }
        Ok(read)
    }
}

impl History {
    fn happened(&mut self, day: Option<i32>) {
        match day {
            Some(day) => *self.days.entry(day).or_insert(0) += 1,
            None => self.undated += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::eventlog::Whose;
    use crate::engine::{Envelope, EventId, Replica, Setup, Store, StoreLimits, Stores};
    use crate::likes::{self, LikeAdded};

    type Counts<T> = Vec<(T, u64)>;

    const DAY: u64 = 86_400_000;

    /// The history of a store: its devices, its days, and how many events have no day or wait.
    fn of(store: &Store) -> (Counts<String>, Counts<i32>, u64, u64) {
        let day = |millis: u64| i32::try_from(millis / DAY).ok().filter(|day| *day > 0);
        let History { devices, days, undated, pending, .. } = store.history(day).expect("a history");
        let mut devices: Vec<_> =
            devices.into_iter().map(|(device, count)| (device.as_str().to_owned(), count)).collect();
        devices.sort();
        (devices, days.into_iter().collect(), undated, pending)
    }

    fn like(day: u64, n: u8) -> Envelope {
        Envelope::new(EventId::from_parts(day * DAY, [n; 10]), &LikeAdded {}).expect("an event")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn history_follows_the_log_forth_and_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let setup = Setup {
            schema: Arc::new(likes::schema()),
            device: "here".parse().expect("a name"),
            executable: "test".to_owned(),
            progress: |_, _| {},
        };
        let stores = Stores::open(dir.path(), setup, StoreLimits::default()).expect("stores");
        let store = stores.get(&"likes".parse().expect("a name")).expect("a store");
        assert_eq!(of(&store), (vec![], vec![], 0, 0), "nothing is there, and nothing is made");
        assert!(!store.files().exist());

        let (here, phone): (Device, Device) = ("here".parse().expect("a name"), "phone".parse().expect("a name"));
        let events = vec![(like(0, 1), phone.clone()), (like(7, 2), phone), (like(7, 3), here)];
        store.add(events).await.expect("they are stored");
        let three = vec![("here".to_owned(), 1), ("phone".to_owned(), 2)];
        assert_eq!(of(&store), (three, vec![(7, 2)], 1, 0));
        store.commit_envelope(like(8, 4)).await.expect("it is stored");
        store.commit_envelope(like(8, 4)).await.expect("it was stored");
        let four = vec![("here".to_owned(), 2), ("phone".to_owned(), 2)];
        assert_eq!(of(&store), (four, vec![(7, 2), (8, 1)], 1, 0));

        let take_back = |replica: &mut Replica| replica.take_back(Seq(1), Whose::Upstream(None));
        store.with(take_back).await.expect("they are taken back");
        assert_eq!(of(&store), (vec![("phone".to_owned(), 1)], vec![(7, 2), (8, 1)], 1, 3), "what waits has its day");
        store.promote().await.expect("it is promoted");
        let four = vec![("here".to_owned(), 3), ("phone".to_owned(), 1)];
        assert_eq!(of(&store), (four, vec![(7, 2), (8, 1)], 1, 0));

        // Nobody looks before the log is as long as it was.
        let take_all_back = |replica: &mut Replica| replica.take_back(Seq::START, Whose::Upstream(None));
        store.with(take_all_back).await.expect("they are taken back");
        store.promote().await.expect("it is promoted");
        assert_eq!(of(&store), (vec![("here".to_owned(), 4)], vec![(7, 2), (8, 1)], 1, 0));
    }
}
