//! The digests that show whether the eventlog holds what was stored: a chain over the log, and a sum over the events
//! outside it.

use rusqlite::{Row, params};

use super::file::{HASHED, meta};
use super::read::id;
use super::tally::Tally;
use super::{Eventlog, Result, Tip, damaged, first};
use crate::engine::error::{Fault, LogFault};
use crate::engine::place::{Digest, Seq};

/// How many events are between two checkpoints of the log's digest. Opening a store hashes at most this many.
pub(crate) const CHECKPOINT_EVERY: u64 = 1_024;

/// A point of the log whose digest is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    pub(crate) seq: Seq,
    pub(crate) digest: Digest,
    pub(crate) length: u64,
}

impl Eventlog {
    /// Returns the last point at or before `seq` whose digest is stored.
    pub(crate) fn checkpoint_before(&self, seq: Seq) -> Result<Checkpoint> {
        let sql = "SELECT seq, digest, length FROM
                       (SELECT * FROM checkpoint WHERE seq <= ?1 UNION ALL SELECT * FROM base WHERE seq <= ?1)
                   ORDER BY seq DESC LIMIT 1";
        let row = first(&mut *self.conn.prepare_cached(sql)?, [seq.to_sql()], read_checkpoint)?;
        Ok(row.unwrap_or_default())
    }

    /// Returns the first checkpoint after `seq` that is at least `events` events past the last one at or before `seq`.
    /// Returns the end of the log if there is none.
    pub(crate) fn milestone_after(&self, seq: Seq, events: u64) -> Result<Checkpoint> {
        let from = self.checkpoint_before(seq)?.length;
        let sql = "SELECT seq, digest, length FROM checkpoint WHERE seq > ?1 AND length >= ?2 ORDER BY seq LIMIT 1";
        let found = first(
            &mut *self.conn.prepare_cached(sql)?,
            params![seq.to_sql(), from.saturating_add(events)],
            read_checkpoint,
        )?;
        let Tip { head, digest, length, .. } = self.tip;
        Ok(found.unwrap_or(Checkpoint { seq: head, digest, length }))
    }

    /// Returns every checkpoint.
    pub(crate) fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        self.conn
            .prepare("SELECT seq, digest, length FROM checkpoint ORDER BY seq")?
            .query_and_then((), read_checkpoint)?
            .collect()
    }

    /// Returns the last point of the log at or before `seq`, or `None` if not all events up to there are here.
    pub(crate) fn point_at(&self, seq: Seq) -> Result<Option<Checkpoint>> {
        let Tip { head, digest, length, base, history, .. } = self.tip;
        if seq >= head {
            return Ok(Some(Checkpoint { seq: head, digest, length }));
        }
        if seq < base.seq && seq > history.end.seq {
            return Ok((seq <= history.after).then_some(history.end));
        }
        self.walk(self.checkpoint_before(seq)?, Some(seq)).map(Some)
    }

    /// Returns the digest of the log up to `seq`, whether or not there is an event at `seq`. Returns `None` if not all
    /// events up to there are here.
    pub(crate) fn digest_at(&self, seq: Seq) -> Result<Option<Digest>> {
        Ok(self.point_at(seq)?.map(|point| point.digest))
    }

    /// Returns points of the log with their digests, from the end to the beginning. Near the end, the distances double,
    /// and all these points together cost one walk. The others are points whose digests are stored. No point is in the
    /// gap below the base.
    pub(crate) fn points(&self) -> Result<Vec<(Seq, Digest)>> {
        let Tip { head, base, .. } = self.tip;
        let back = |distance: u64| Seq(head.0.saturating_sub(distance)).max(base.seq);
        let distances = (0..64).map(|power| 1 << power).take_while(|distance| *distance < head.0 - base.seq.0);
        let (near, far): (Vec<u64>, Vec<u64>) = distances.partition(|distance| *distance < CHECKPOINT_EVERY);
        let mut point = self.checkpoint_before(back(near.last().copied().unwrap_or_default()))?;
        let mut points = Vec::new();
        for distance in near.into_iter().rev().chain([0]) {
            point = self.walk(point, Some(back(distance)))?;
            points.push((back(distance), point.digest));
        }
        points.reverse();
        for distance in far {
            let Checkpoint { seq, digest, .. } = self.checkpoint_before(back(distance))?;
            if points.last().is_some_and(|(last, _)| *last > seq) {
                points.push((seq, digest));
            }
        }
        points.push((base.seq, base.digest));
        Ok(points)
    }

    /// Continues hashing from a known point, up to `until` or to the end.
    pub(crate) fn walk(&self, from: Checkpoint, until: Option<Seq>) -> Result<Checkpoint> {
        let mut point = from;
        let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 AND seq <= ?2 ORDER BY seq";
        let mut statement = self.conn.prepare_cached(sql)?;
        let until = until.map_or(i64::MAX, Seq::to_sql);
        let mut rows = statement.query([from.seq.to_sql(), until])?;
        while let Some(row) = rows.next()? {
            self.step(&mut point, row)?;
        }
        Ok(point)
    }

    /// Hashes the next event of the log, whose columns are seq, id, name, args, origin.
    pub(super) fn step(&self, point: &mut Checkpoint, row: &Row<'_>) -> Result<()> {
        let (name, origin) = (self.names.text(row.get(2)?)?, self.origins.text(row.get(4)?)?);
        point.seq = Seq::from_sql(row.get(0)?);
        point.digest = point.digest.extended(id(row, 1)?.as_bytes(), name, row.get_ref(3)?.as_str_or_null()?, origin);
        point.length += 1;
        Ok(())
    }

    /// Runs SQLite's own check of the file's structure. Returns what is wrong, line by line.
    pub(crate) fn integrity_check(&self) -> Result<Vec<String>> {
        let lines: Vec<String> =
            self.conn.prepare("PRAGMA integrity_check")?.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// Returns whether the digest of the whole log is the one that was stored with its last event.
    pub(super) fn ends_as_stored(&self) -> Result<bool> {
        let stored: Vec<u8> = meta(&self.conn, "digests")?.unwrap_or_default();
        Ok(self.format < HASHED || stored.get(..32) == Some(&self.tip.digest.0))
    }

    /// Returns what differs from what was stored: at the end of the log, in the outbox, and among the events set aside.
    pub(crate) fn check_waiting(&self) -> Result<Vec<String>> {
        if self.format < HASHED {
            return Ok(Vec::new());
        }
        let mut tip = self.tip;
        let mut problems = Vec::new();
        for which in tip.tables() {
            let (count, tally) = tip.waiting(*which);
            (*count, *tally) = (0, Tally::default());
            let mut statement = self.conn.prepare_cached(&format!("{} ORDER BY n", which.select()))?;
            let mut rows = statement.query(())?;
            while let Some(row) = rows.next()? {
                *count += 1;
                match self.waiting(row) {
                    Ok((_, _, hash)) => tally.add(hash),
                    Err(LogFault(Fault::Damaged(what))) => problems.push(what),
                    Err(other) => return Err(other),
                }
            }
        }
        if !problems.is_empty() {
            return Ok(problems);
        }
        let history = self.tip.history.end;
        if self.walk(self.checkpoint_before(history.seq)?, Some(history.seq))? != history {
            problems.push("the last events of the history are not those that were stored".to_owned());
        }
        let stored: Vec<u8> = meta(&self.conn, "digests")?.unwrap_or_default();
        let counts = |tip: &Tip| (tip.pending, tip.set_aside, tip.early);
        if counts(&tip) != counts(&self.tip) || stored != tip.digests() {
            let parts = [
                (tip.digest.0, "the events at the end of the log"),
                (tip.outbox_tally.to_bytes(), "the events that wait for a place in the log"),
                (tip.set_aside_tally.to_bytes(), "the events that were set aside"),
                (tip.early_tally.to_bytes(), "the events that are in the snapshot"),
            ];
            let differs =
                |(nth, (digest, _)): &(usize, &([u8; 32], _))| stored.get(32 * nth..32 * nth + 32) != Some(digest);
            let what = parts
                .iter()
                .enumerate()
                .take(1 + tip.tables().len())
                .find(differs)
                .map_or("what waits", |(_, (_, what))| what);
            problems.push(format!("{what} are not those that were stored"));
        }
        Ok(problems)
    }
}

pub(super) fn read_checkpoint(row: &Row<'_>) -> Result<Checkpoint> {
    let digest = Digest::from_slice(row.get_ref(1)?.as_blob()?);
    Ok(Checkpoint {
        seq: Seq::from_sql(row.get(0)?),
        digest: digest.ok_or_else(|| damaged("a digest in it doesn't have 32 bytes".to_owned()))?,
        length: row.get(2)?,
    })
}
