//! Writes to the eventlog: events come in, get their place, go back to the outbox, or are set aside.

use rusqlite::{CachedStatement, Connection, Row, params};

use super::digests::{CHECKPOINT_EVERY, Checkpoint};
use super::file::set_meta;
use super::names::Interned;
use super::read::{PageSize, Waiting, id};
use super::tally::RowHash;
use super::{Eventlog, Result, Tip, damaged, first};
use crate::engine::event::{Device, Envelope};
use crate::engine::place::{Entry, Seq};

impl Eventlog {
    /// Appends `event` to the log as `seq`. Returns false, and changes nothing, if the log already has its id.
    pub(crate) fn append(&mut self, seq: Seq, event: &Envelope, origin: &Device) -> Result<bool> {
        let mut appender = self.appender(self.end())?;
        let is_new = appender.append(seq, event, origin)?;
        let end = appender.finish();
        self.set_end(end);
        Ok(is_new)
    }

    /// Appends `event` to the history below the base as `seq`. Returns false, and changes nothing, if the log or the history
    /// already has its id.
    pub(super) fn append_history(&mut self, seq: Seq, event: &Envelope, origin: &Device) -> Result<bool> {
        let mut appender = self.appender(self.tip.history.end)?;
        let is_new = appender.append(seq, event, origin)?;
        self.tip.history.end = appender.finish();
        Ok(is_new)
    }

    /// Appends `events` to the log, in the next places. Returns the place of each, or `None` if the log already has its
    /// id.
    pub(crate) fn append_all(&mut self, events: &[(&Envelope, &Device)]) -> Result<Vec<Option<Seq>>> {
        let mut appender = self.appender(self.end())?;
        let append = |(event, origin): &(&Envelope, &Device)| {
            let seq = appender.end.seq.next();
            Ok(appender.append(seq, event, origin)?.then_some(seq))
        };
        let places = events.iter().map(append).collect::<Result<_>>()?;
        let end = appender.finish();
        self.set_end(end);
        Ok(places)
    }

    /// Appends the events of an upstream's page that come after the end of the log and whose ids it doesn't have. Returns
    /// whether there are any.
    pub(crate) fn append_page(&mut self, entries: &[Entry]) -> Result<bool> {
        let before = self.end();
        let mut appender = self.appender(before)?;
        for Entry { seq, event, origin } in entries {
            if *seq > appender.end.seq {
                appender.append(*seq, event, origin)?;
            }
        }
        let end = appender.finish();
        self.set_end(end);
        Ok(end.length > before.length)
    }

    /// Moves the first events of the outbox to the end of the log, as many as `entries` begins with. Returns how many.
    pub(crate) fn confirm(&mut self, entries: &[Entry]) -> Result<usize> {
        let (mut head, mut tally) = (self.tip.head, self.tip.outbox_tally);
        let (mut count, mut first, mut last) = (0, None, None);
        {
            let mut statement = self.conn.prepare_cached(&format!("{} ORDER BY n", Waiting::Pending.select()))?;
            let mut rows = statement.query(())?;
            for Entry { seq, event, .. } in entries {
                let Some(row) = rows.next()? else { break };
                let (n, ours, hash) = self.waiting(row)?;
                if *seq <= head || ours != event.borrowed() {
                    break;
                }
                tally.take(hash);
                (head, first, last) = (*seq, first.or(Some(n)), Some(n));
                count += 1;
            }
        }
        if let (Some(first), Some(last)) = (first, last) {
            self.passes(first)?;
            self.conn.prepare_cached("DELETE FROM outbox WHERE n <= ?1")?.execute([last])?;
            self.tip.outbox_tally = tally;
            self.tip.pending -= count as u64;
            self.append_page(&entries[..count])?;
        }
        Ok(count)
    }

    /// Returns the end of the log.
    fn end(&self) -> Checkpoint {
        let Tip { head, digest, length, .. } = self.tip;
        Checkpoint { seq: head, digest, length }
    }

    pub(super) fn set_end(&mut self, end: Checkpoint) {
        let Checkpoint { seq, digest, length } = end;
        self.tip = Tip { head: seq, digest, length, ..self.tip };
    }

    fn appender(&mut self, end: Checkpoint) -> Result<Appender<'_>> {
        let Self { conn, names, origins, .. } = self;
        let conn: &Connection = conn;
        let sql =
            "INSERT INTO log (seq, id, name, origin, args) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING";
        Ok(Appender { insert: conn.prepare_cached(sql)?, conn, end, names, origins })
    }

    /// Puts `event` at the end of the outbox. Returns false if the outbox already has its id.
    pub(crate) fn push(&mut self, event: &Envelope) -> Result<bool> {
        let name = self.names.intern(&self.conn, "INSERT INTO name (text) VALUES (?1)", event.name.as_str())?;
        let (n, args) = (self.tip.n + 1, event.args.as_text());
        let hash = RowHash::of(n, event.id.as_bytes(), event.name.as_str(), args, "");
        let sql =
            "INSERT INTO outbox (n, id, name, args, hash) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING";
        let values = params![n, event.id.as_bytes(), name, args, hash.short()];
        if self.conn.prepare_cached(sql)?.execute(values)? == 0 {
            return Ok(false);
        }
        self.tip.n = n;
        self.tip.pending += 1;
        self.tip.outbox_tally.add(hash);
        Ok(true)
    }

    /// Removes the event with number `n` from the outbox.
    pub(crate) fn remove_pending(&mut self, n: i64) -> Result<()> {
        self.remove(Waiting::Pending, n)
    }

    /// Keeps `event` among those that the authority refused. If it is there already, it stays as it is. Another event
    /// with the same id, which lost against a third, is kept beside it.
    pub(crate) fn set_aside(&mut self, event: &Envelope, why: &str) -> Result<()> {
        let name = self.names.intern(&self.conn, "INSERT INTO name (text) VALUES (?1)", event.name.as_str())?;
        let sql = "SELECT coalesce(max(n), 0) + 1 FROM set_aside";
        let n = self.conn.prepare_cached(sql)?.query_row((), |row| row.get(0))?;
        let args = event.args.as_text();
        let hash = RowHash::of(n, event.id.as_bytes(), event.name.as_str(), args, why);
        let sql = "INSERT INTO set_aside (n, id, name, args, why, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
        let values = params![n, event.id.as_bytes(), name, args, why, hash.short()];
        if self.conn.prepare_cached(sql)?.execute(values)? > 0 {
            self.tip.set_aside += 1;
            self.tip.set_aside_tally.add(hash);
        }
        Ok(())
    }

    /// Removes `event` from those set aside, if it is among them. Another event with its id stays.
    pub(crate) fn remove_set_aside(&mut self, event: &Envelope) -> Result<()> {
        let Some(name) = self.names.ids.get(event.name.as_str()) else { return Ok(()) };
        let sql = "DELETE FROM set_aside WHERE id = ?1 AND name = ?2 AND args IS ?3
                   RETURNING n, id, name, args, why, hash";
        let key = params![event.id.as_bytes(), name, event.args.as_text()];
        let hash = |row: &Row<'_>| self.waiting(row).map(|(_, _, hash)| hash);
        if let Some(hash) = first(&mut *self.conn.prepare_cached(sql)?, key, hash)? {
            self.tip.set_aside -= 1;
            self.tip.set_aside_tally.take(hash);
        }
        Ok(())
    }

    /// Moves every event of the log after `after`, which isn't below the base, back to the front of the outbox, in log
    /// order, under the same ids. Raises the generation, because the state may contain events that the log no longer has.
    pub(crate) fn take_back(&mut self, after: Seq) -> Result<()> {
        self.log_to_outbox(after)?;
        self.raise_generation(after)?;
        if self.tip.pulled > after {
            self.set_pulled(after)?;
        }
        Ok(())
    }

    /// Begins a new generation of the log, in which the events after `after` are no longer what they were.
    pub(super) fn raise_generation(&mut self, after: Seq) -> Result<()> {
        self.remember_cut(after)?;
        self.tip.generation.0 += 1;
        set_meta(&self.conn, "generation", self.tip.generation.0)
    }

    /// Moves every event of the log after `after` back to the front of the outbox, behind those that were passed.
    pub(super) fn log_to_outbox(&mut self, after: Seq) -> Result<()> {
        let from = self.walk(self.checkpoint_before(after)?, Some(after))?;
        let taken = self.tip.length - from.length;
        let mut n = self.before_outbox(taken)?;
        let first_pending = n + taken.cast_signed();
        let mut point = from;
        {
            let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 ORDER BY seq";
            let mut statement = self.conn.prepare_cached(sql)?;
            let mut rows = statement.query([after.to_sql()])?;
            while let Some(row) = rows.next()? {
                self.step(&mut point, row)?;
                let hash = self.insert_pending(n, row)?;
                self.tip.outbox_tally.add(hash);
                n += 1;
            }
        }
        if point.digest != self.tip.digest {
            // A changed event would get a hash of its own now, and nothing could show the change any more.
            return Err(damaged(format!("of the events after {after} some are not those that were stored")));
        }
        self.conn.execute("DELETE FROM log WHERE seq > ?1", [after.to_sql()])?;
        self.conn.execute("DELETE FROM checkpoint WHERE seq > ?1", [after.to_sql()])?;
        self.forget_messages_after(after)?;
        let last = self.checkpoint_before(after)?;
        self.checked.borrow_mut().forget_after(from, last.seq);
        self.set_end(from);
        self.tip.pending += taken;
        self.passed_to_front(first_pending)
    }

    /// Returns the first of `count` numbers at the front of the outbox. They are below all that the outbox has assigned or
    /// will assign, so newer events stay behind these.
    pub(super) fn before_outbox(&self, count: u64) -> Result<i64> {
        let first: Option<i64> = self.conn.query_row("SELECT min(n) FROM outbox", (), |row| row.get(0))?;
        Ok(first.unwrap_or(1).min(1) - i64::try_from(count).expect("BUG: a log of 2^63 events"))
    }

    /// Puts an event into the outbox under the number `n`. The row has its id, name and args in the second to fourth
    /// columns.
    pub(super) fn insert_pending(&self, n: i64, row: &Row<'_>) -> Result<RowHash> {
        let (id, name, args) = (id(row, 1)?, row.get::<_, i64>(2)?, row.get_ref(3)?.as_str_or_null()?);
        let hash = RowHash::of(n, id.as_bytes(), self.names.text(name)?, args, "");
        self.conn
            .prepare_cached("INSERT INTO outbox (n, id, name, args, hash) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![n, id.as_bytes(), name, args, hash.short()])?;
        Ok(hash)
    }

    /// Moves every event of the outbox to the end of the log, in order.
    pub(crate) fn place_pending(&mut self, origin: &Device) -> Result<()> {
        loop {
            let page = self.pending(i64::MIN, PageSize::PORTION)?;
            if page.is_empty() {
                return Ok(());
            }
            for (n, event) in page {
                self.remove_pending(n)?;
                self.append(self.tip.head.next(), &event, origin)?;
            }
        }
    }
}

/// The end of the log while events are appended. It holds the INSERT statement, because fetching it again for each
/// event takes a tenth of the time.
struct Appender<'a> {
    insert: CachedStatement<'a>,
    conn: &'a Connection,
    end: Checkpoint,
    names: &'a mut Interned,
    origins: &'a mut Interned,
}

impl Appender<'_> {
    /// Returns the new end.
    fn finish(self) -> Checkpoint {
        self.end
    }

    /// Does the same as [`Eventlog::append`].
    fn append(&mut self, seq: Seq, event: &Envelope, origin: &Device) -> Result<bool> {
        let Self { insert, conn, end, names, origins } = self;
        debug_assert!(seq > end.seq, "BUG: {seq} is not behind {}", end.seq);
        let name = names.intern(conn, "INSERT INTO name (text) VALUES (?1)", event.name.as_str())?;
        let origin_id = origins.intern(conn, "INSERT INTO origin (text) VALUES (?1)", origin.as_str())?;
        let args = event.args.as_text();
        if insert.execute(params![seq.to_sql(), event.id.as_bytes(), name, origin_id, args])? == 0 {
            return Ok(false);
        }
        end.seq = seq;
        end.digest = end.digest.extended(event.id.as_bytes(), event.name.as_str(), args, origin.as_str());
        end.length += 1;
        if end.length.is_multiple_of(CHECKPOINT_EVERY) {
            conn.prepare_cached("INSERT INTO checkpoint (seq, digest, length) VALUES (?1, ?2, ?3)")?
                .execute(params![seq.to_sql(), end.digest.0, end.length])?;
        }
        Ok(true)
    }
}
