//! Reads of the eventlog: where an id is, and events in order, in parts of bounded size.

use std::sync::Arc;

use rusqlite::{Params, Row, params};

use super::file::HASHED;
use super::tally::RowHash;
use super::{Eventlog, Result, damaged, first};
use crate::engine::error::LogFault;
use crate::engine::event::{Args, Device, Envelope, EventId, EventName, EventRef};
use crate::engine::place::{Entry, Seq};
use crate::limits::engine::eventlog::{BYTES, EVENTS};

/// How much is read from the eventlog at a time. This bounds memory, however long the eventlog is.
#[derive(Debug, Clone, Copy)]
pub struct PageSize {
    /// The most events.
    pub events: usize,
    /// The most bytes of their names and payloads. A page has at least one event, however large that is.
    pub bytes: usize,
}

impl PageSize {
    /// The default. It is small enough to hold in memory, and large enough that the number of reads doesn't matter.
    pub(crate) const PORTION: Self = Self { events: EVENTS, bytes: BYTES };

    /// Returns a size of that many events, however large they are.
    pub const fn events(events: usize) -> Self {
        Self { events, bytes: usize::MAX }
    }

    fn fill<T>(self, rows: impl Iterator<Item = Result<T>>, event: impl Fn(&T) -> &Envelope) -> Result<Vec<T>> {
        let mut page = Vec::new();
        let mut bytes = 0;
        for row in rows {
            let row = row?;
            let Envelope { name, args, .. } = event(&row);
            bytes += name.as_str().len() + args.as_text().map_or(0, str::len);
            if bytes > self.bytes && !page.is_empty() {
                break;
            }
            page.push(row);
        }
        Ok(page)
    }
}

/// A table of events that aren't in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The outbox.
    Pending,
    /// The events that the authority refused.
    SetAside,
    /// The events of ours that are in the snapshot where the log begins, as the upstream says. Their numbers are their
    /// places.
    Early,
}

impl Waiting {
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Pending => "outbox",
            Self::SetAside => "set_aside",
            Self::Early => "early",
        }
    }

    /// Returns the SQL that reads the table's rows as n, id, name, args, why, hash.
    pub(super) fn select(self) -> &'static str {
        match self {
            Self::Pending => "SELECT n, id, name, args, '', hash FROM outbox",
            Self::SetAside => "SELECT n, id, name, args, why, hash FROM set_aside",
            Self::Early => "SELECT n, id, name, args, '', hash FROM early",
        }
    }

    /// Returns the SQL that deletes the row with a number, and reads it as [`select`](Self::select) does.
    pub(super) fn delete(self) -> &'static str {
        match self {
            Self::Pending => "DELETE FROM outbox WHERE n = ?1 RETURNING n, id, name, args, '', hash",
            Self::SetAside => "DELETE FROM set_aside WHERE n = ?1 RETURNING n, id, name, args, why, hash",
            Self::Early => "DELETE FROM early WHERE n = ?1 RETURNING n, id, name, args, '', hash",
        }
    }
}

/// What is left of an event that isn't in the log.
pub(crate) struct Rescued {
    pub(crate) n: i64,
    /// `None` if nothing readable is left.
    pub(crate) event: Option<Envelope>,
    /// Why it was set aside, if it was.
    pub(crate) why: Option<String>,
    /// Whether it is still what was stored.
    pub(crate) is_as_stored: bool,
}

/// The place of an event in the eventlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// In the log, or in the history below its base.
    Log(Seq, Content),
    /// Below the base, where the history has not come yet. It is an event of ours that the upstream has at this place.
    Early(Seq, Content),
    /// In the outbox, under this number.
    Outbox(i64, Content),
    /// Among the events that the authority refused.
    SetAside(Content),
}

/// The parts that must be equal for two events with the same id to be the same event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) name: EventName,
    pub(crate) args: Args,
}

impl Found {
    pub(crate) fn content(&self) -> &Content {
        let (Self::Log(_, content) | Self::Early(_, content) | Self::Outbox(_, content) | Self::SetAside(content)) =
            self;
        content
    }

    pub(crate) fn is(&self, event: &Envelope) -> bool {
        self.content().is(event)
    }
}

impl Content {
    /// Returns the event with this content and that id.
    pub(crate) fn of(self, id: EventId) -> Envelope {
        let Self { name, args } = self;
        Envelope { id, name, args }
    }

    pub(crate) fn is(&self, event: &Envelope) -> bool {
        self.name == event.name && self.args == event.args
    }
}

impl Eventlog {
    /// Returns where the event `id` is, if it is anywhere. Looks in the log and its history first, then in the outbox.
    pub(crate) fn find(&self, id: EventId) -> Result<Option<Found>> {
        let key = [id.as_bytes()];
        let in_log = |row: &Row<'_>| {
            let name = EventName::stored(Arc::clone(self.names.text(row.get(1)?)?));
            Ok(Found::Log(Seq::from_sql(row.get(0)?), Content { name, args: args(row, 2)? }))
        };
        let sql = "SELECT seq, name, args FROM log WHERE id = ?1";
        if let Some(found) = first(&mut *self.conn.prepare_cached(sql)?, key, in_log)? {
            return Ok(Some(found));
        }
        let waiting =
            |row: &Row<'_>| self.pending_row(row).map(|(n, Envelope { name, args, .. })| (n, Content { name, args }));
        if self.tip.early > 0 {
            let sql = "SELECT n, id, name, args, '', hash FROM early WHERE id = ?1";
            if let Some((n, content)) = first(&mut *self.conn.prepare_cached(sql)?, key, waiting)? {
                return Ok(Some(Found::Early(Seq::from_sql(n), content)));
            }
        }
        if self.tip.pending > 0 {
            let sql = "SELECT n, id, name, args, '', hash FROM outbox WHERE id = ?1";
            if let Some((n, content)) = first(&mut *self.conn.prepare_cached(sql)?, key, waiting)? {
                return Ok(Some(Found::Outbox(n, content)));
            }
        }
        if self.tip.set_aside > 0 {
            let sql = "SELECT n, id, name, args, why, hash FROM set_aside WHERE id = ?1";
            if let Some((_, content)) = first(&mut *self.conn.prepare_cached(sql)?, key, waiting)? {
                return Ok(Some(Found::SetAside(content)));
            }
        }
        Ok(None)
    }

    /// Returns the events of the log after `after`, as many as fit into `size`. Those below the base are not among them:
    /// until all of them are here, there would be gaps.
    pub(crate) fn entries(&self, after: Seq, size: PageSize) -> Result<Vec<Entry>> {
        self.rows(after.max(self.tip.base.seq), size)
    }

    /// Returns the events after `after` that are here, in the log or in its history, as many as fit into `size`.
    pub(crate) fn rows(&self, after: Seq, size: PageSize) -> Result<Vec<Entry>> {
        let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let mut statement = self.conn.prepare_cached(sql)?;
        let most = i64::try_from(size.events).unwrap_or(i64::MAX);
        let rows = statement.query_and_then(params![after.to_sql(), most], |row| self.entry(row))?;
        size.fill(rows, |entry| &entry.event)
    }

    /// Returns the place of the last of the next `most` events after `after`, if there are any.
    pub(crate) fn entries_end(&self, after: Seq, most: u64) -> Result<Option<Seq>> {
        let sql = "SELECT max(seq) FROM (SELECT seq FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2)";
        let last: Option<i64> =
            self.conn.prepare_cached(sql)?.query_row(params![after.to_sql(), most], |row| row.get(0))?;
        Ok(last.map(Seq::from_sql))
    }

    /// Calls `each` with up to `most` events of the log after `after`, to rescue what is left. Passes `None` for an
    /// event that can't be read any more. Returns the place of the last event, if there was one.
    pub(crate) fn each_entry<E: From<LogFault>>(
        &self,
        after: Seq,
        most: usize,
        each: &mut dyn FnMut(Option<Entry>) -> Result<(), E>,
    ) -> Result<Option<Seq>, E> {
        let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let last = self.each(sql, params![after.to_sql(), most], |row| {
            each(self.entry(row).ok().filter(|entry| entry.event.is_well_formed()))
        })?;
        Ok(last.map(Seq::from_sql))
    }

    /// Calls `each` with up to `most` events of the log or its history after `after` and up to `until`, in order, without
    /// copying them. Stops when `each` fails. Returns the place of the last event, if there was one.
    pub(crate) fn each_in_log<E: From<LogFault>>(
        &self,
        after: Seq,
        until: Seq,
        most: usize,
        each: &mut dyn FnMut(&EventRef<'_>) -> Result<(), E>,
    ) -> Result<Option<Seq>, E> {
        let sql = "SELECT seq, id, name, args FROM log WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let event = |row: &Row<'_>| each(&self.log_event(row)?);
        let last = self.each(sql, params![after.to_sql(), until.to_sql(), most], event)?;
        Ok(last.map(Seq::from_sql))
    }

    /// Does the same as [`each_in_log`](Self::each_in_log) for the events of the outbox whose number is above `after`.
    pub(crate) fn each_pending<E: From<LogFault>>(
        &self,
        after: i64,
        most: usize,
        each: &mut dyn FnMut(&EventRef<'_>) -> Result<(), E>,
    ) -> Result<Option<i64>, E> {
        let sql = "SELECT n, id, name, args, '', hash FROM outbox WHERE n > ?1 ORDER BY n LIMIT ?2";
        self.each(sql, params![after, most], |row| each(&self.waiting(row)?.1))
    }

    /// Calls `each` with the id of each of up to `most` events of the log or its history after `after` and up to `until`, in
    /// order, and with the number of the device that brought it. Returns the place of the last event, if there was one.
    pub(crate) fn each_origin(
        &self,
        after: Seq,
        until: Seq,
        most: usize,
        each: &mut dyn FnMut(EventId, i64),
    ) -> Result<Option<Seq>> {
        let sql = "SELECT seq, id, origin FROM log WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
        let last = self.each(sql, params![after.to_sql(), until.to_sql(), most], |row| {
            each(id(row, 1)?, row.get(2).map_err(LogFault::from)?);
            Ok::<_, LogFault>(())
        })?;
        Ok(last.map(Seq::from_sql))
    }

    /// Returns the device with that number.
    pub(crate) fn origin(&self, number: i64) -> Result<Device> {
        Ok(Device::stored(Arc::clone(self.origins.text(number)?)))
    }

    /// Calls `each` with the rows of a query whose first column is a place or number. Returns that of the last row.
    pub(super) fn each<E: From<LogFault>>(
        &self,
        sql: &str,
        params: impl Params,
        mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
    ) -> Result<Option<i64>, E> {
        let mut statement = self.conn.prepare_cached(sql).map_err(LogFault::from)?;
        let mut rows = statement.query(params).map_err(LogFault::from)?;
        let mut last = None;
        while let Some(row) = rows.next().map_err(LogFault::from)? {
            each(row)?;
            last = Some(row.get(0).map_err(LogFault::from)?);
        }
        Ok(last)
    }

    /// Returns the events of the outbox whose number is above `after`, with their numbers, as many as fit into `size`.
    pub(crate) fn pending(&self, after: i64, size: PageSize) -> Result<Vec<(i64, Envelope)>> {
        let sql = "SELECT n, id, name, args, '', hash FROM outbox WHERE n > ?1 ORDER BY n LIMIT ?2";
        let mut statement = self.conn.prepare_cached(sql)?;
        let most = i64::try_from(size.events).unwrap_or(i64::MAX);
        let rows = statement.query_and_then(params![after, most], |row| self.pending_row(row))?;
        size.fill(rows, |(_, event)| event)
    }

    /// Returns the events that were set aside first, as many as fit into `size`.
    pub(crate) fn set_aside_first(&self, size: PageSize) -> Result<Vec<Envelope>> {
        let sql = "SELECT n, id, name, args, why, hash FROM set_aside ORDER BY n LIMIT ?1";
        let mut statement = self.conn.prepare_cached(sql)?;
        let rows = statement.query_and_then([size.events], |row| self.pending_row(row).map(|(_, event)| event))?;
        size.fill(rows, |event| event)
    }

    /// Returns why the event `id` was set aside, if it was.
    pub(crate) fn why_set_aside(&self, id: EventId) -> Result<Option<String>> {
        if self.tip.set_aside == 0 {
            return Ok(None);
        }
        let sql = "SELECT n, id, name, args, why, hash FROM set_aside WHERE id = ?1";
        let why = |row: &Row<'_>| self.pending_row(row).and_then(|_| Ok(row.get(4)?));
        first(&mut *self.conn.prepare_cached(sql)?, [id.as_bytes()], why)
    }

    /// Returns the events set aside, each with the reason, oldest first.
    pub(crate) fn all_set_aside(&self) -> Result<Vec<(Envelope, String)>> {
        let sql = "SELECT n, id, name, args, why, hash FROM set_aside ORDER BY n";
        let event = |row: &Row<'_>| Ok((self.pending_row(row)?.1, row.get(4)?));
        self.conn.prepare_cached(sql)?.query_and_then((), event)?.collect()
    }

    /// Returns the events above the number `after` in a table outside the log, as many as fit into `size`. Serves to
    /// rescue what is left of the table.
    pub(crate) fn rescue(&self, which: Waiting, after: i64, size: PageSize) -> Result<Vec<Rescued>> {
        let sql = format!("{} WHERE n > ?1 ORDER BY n LIMIT ?2", which.select());
        let mut statement = self.conn.prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, size.events])?;
        let (mut all, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let n = row.get(0)?;
            let why = match which {
                Waiting::Pending | Waiting::Early => None,
                Waiting::SetAside => Some(row.get_ref(4)?.as_str().unwrap_or_default().to_owned()),
            };
            let (event, is_as_stored) = match self.pending_row(row) {
                Ok((_, event)) => (Some(event), true),
                Err(_) => (self.envelope(row, 1).ok().filter(Envelope::is_well_formed), false),
            };
            bytes += event.as_ref().and_then(|event| event.args.as_text()).map_or(0, str::len);
            all.push(Rescued { n, event, why, is_as_stored });
            if bytes > size.bytes {
                break;
            }
        }
        Ok(all)
    }

    pub(super) fn entry(&self, row: &Row<'_>) -> Result<Entry> {
        let origin = Device::stored(Arc::clone(self.origins.text(row.get(4)?)?));
        Ok(Entry { seq: Seq::from_sql(row.get(0)?), event: self.envelope(row, 1)?, origin })
    }

    /// Reads a row of the log, whose columns are seq, id, name and args.
    fn log_event<'r>(&'r self, row: &'r Row<'_>) -> Result<EventRef<'r>> {
        Ok(EventRef { id: id(row, 1)?, name: self.names.text(row.get(2)?)?, args: row.get_ref(3)?.as_str_or_null()? })
    }

    /// Reads a row of the outbox or of the events set aside, whose columns are n, id, name, args, why and hash. Fails
    /// if the row isn't what was stored.
    pub(super) fn waiting<'r>(&'r self, row: &'r Row<'_>) -> Result<(i64, EventRef<'r>, RowHash)> {
        let read = || {
            let (n, bytes) = (row.get(0)?, row.get_ref(1)?.as_blob()?);
            let (name, args) = (self.names.text(row.get(2)?)?, row.get_ref(3)?.as_str_or_null()?);
            let hash = RowHash::of(n, bytes, name, args, row.get_ref(4)?.as_str()?);
            let is_stored = self.format < HASHED || row.get::<_, i64>(5)? == hash.short();
            Ok::<_, LogFault>((n, EventRef { id: id(row, 1)?, name, args }, hash, is_stored))
        };
        match read() {
            Ok((n, event, hash, true)) => Ok((n, event, hash)),
            _ => {
                let id = id(row, 1).map_or_else(|_| "whose id can't be read".to_owned(), |id| id.to_string());
                Err(damaged(format!("an event that isn't in the log yet is not what was stored: {id}")))
            }
        }
    }

    /// Reads the same row as [`waiting`](Self::waiting), but returns an event that owns its text.
    pub(super) fn pending_row(&self, row: &Row<'_>) -> Result<(i64, Envelope)> {
        let (n, event, _) = self.waiting(row)?;
        let name = self.names.text(row.get(2)?)?;
        Ok((n, Envelope { id: event.id, name: EventName::stored(Arc::clone(name)), args: Args::stored(event.args) }))
    }

    pub(super) fn envelope(&self, row: &Row<'_>, at: usize) -> Result<Envelope> {
        Ok(Envelope {
            id: id(row, at)?,
            name: EventName::stored(Arc::clone(self.names.text(row.get(at + 1)?)?)),
            args: args(row, at + 2)?,
        })
    }
}

pub(super) fn id(row: &Row<'_>, at: usize) -> Result<EventId> {
    EventId::from_bytes(row.get_ref(at)?.as_blob()?).map_err(|why| damaged(why.to_string()))
}

pub(super) fn args(row: &Row<'_>, at: usize) -> Result<Args> {
    Ok(Args::stored(row.get_ref(at)?.as_str_or_null()?))
}
