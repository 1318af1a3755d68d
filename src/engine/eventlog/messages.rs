//! The messages of a stream that were applied to the log. A gateway remembers each, with the place that it brought the log
//! to.
//!
//! They map places to messages. The last one is the condition of the next publish, and all of them are what an audit
//! compares with the stream.

use rusqlite::{Row, params};

use super::file::{BEYOND, FORMAT, meta, set_meta};
use super::{Eventlog, Result, damaged, first};
use crate::engine::place::{Digest, Seq, StreamId};

/// The table of a gateway's messages. Other eventlogs don't have it.
const TABLE: &str = "
    CREATE TABLE message (
        sequence INTEGER PRIMARY KEY,
        nth INTEGER NOT NULL UNIQUE,
        seq INTEGER NOT NULL,
        shift INTEGER NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
";

const COLUMNS: &str = "SELECT sequence, nth, seq, shift, hash FROM message";

/// A message that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Its number in the stream.
    pub sequence: u64,
    /// Which one it is among the messages of this store, from 1.
    pub nth: u64,
    /// The end of the log after it.
    pub seq: Seq,
    /// What was added to the places that follow from its number.
    pub offset: u64,
    /// The BLAKE3 hash of its bytes.
    pub hash: Digest,
}

impl Eventlog {
    /// Returns the stream whose messages make this log, if this is a gateway's.
    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.tip.stream
    }

    /// Records that messages of this stream make the log from now on, or that no stream does.
    pub(crate) fn set_stream(&mut self, stream: Option<StreamId>) -> Result<()> {
        if stream == self.tip.stream {
            return Ok(());
        }
        self.conn.execute_batch("DROP TABLE IF EXISTS message")?;
        set_meta(&self.conn, "closed", None::<String>)?;
        if stream.is_some() {
            self.conn.execute_batch(TABLE)?;
        }
        set_meta(&self.conn, "stream", stream.map(|stream| stream.to_string()))?;
        self.tip.stream = stream;
        self.mark_format()
    }

    /// Returns where the store went, if its closing message was read.
    pub(crate) fn closed(&self) -> Result<Option<String>> {
        meta(&self.conn, "closed")
    }

    pub(crate) fn set_closed(&self, to: &str) -> Result<()> {
        set_meta(&self.conn, "closed", to)
    }

    /// Records that a message was applied.
    pub(crate) fn add_message(&self, message: &Applied) -> Result<()> {
        let Applied { sequence, nth, seq, offset, hash } = message;
        let sql = "INSERT INTO message (sequence, nth, seq, shift, hash) VALUES (?1, ?2, ?3, ?4, ?5)";
        self.conn.prepare_cached(sql)?.execute(params![sequence, nth, seq.to_sql(), offset, hash.0])?;
        Ok(())
    }

    /// Forgets the messages that brought the log beyond a place. Nothing is left of a log that is taken back to its
    /// beginning, not even messages without events.
    pub(super) fn forget_messages_after(&self, seq: Seq) -> Result<()> {
        if self.tip.stream.is_some() {
            let least = if seq == Seq::START { -1 } else { seq.to_sql() };
            self.conn.execute("DELETE FROM message WHERE seq > ?1", [least])?;
        }
        Ok(())
    }

    /// Forgets the messages after a number.
    pub(crate) fn forget_messages_beyond(&self, sequence: u64) -> Result<()> {
        self.conn.execute("DELETE FROM message WHERE sequence > ?1", [sequence])?;
        Ok(())
    }

    /// Returns the last message whose number is at most `sequence`.
    pub(crate) fn message_until(&self, sequence: u64) -> Result<Option<Applied>> {
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        self.message(&format!("{COLUMNS} WHERE sequence <= ?1 ORDER BY sequence DESC LIMIT 1"), sequence)
    }

    /// Returns the first message whose number is above `sequence`.
    pub(crate) fn message_after(&self, sequence: u64) -> Result<Option<Applied>> {
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        self.message(&format!("{COLUMNS} WHERE sequence > ?1 ORDER BY sequence LIMIT 1"), sequence)
    }

    /// Returns the `nth` message of this store.
    pub(crate) fn nth_message(&self, nth: u64) -> Result<Option<Applied>> {
        self.message(&format!("{COLUMNS} WHERE nth = ?1"), i64::try_from(nth).unwrap_or(i64::MAX))
    }

    fn message(&self, sql: &str, key: i64) -> Result<Option<Applied>> {
        if self.tip.stream.is_none() {
            return Ok(None);
        }
        first(&mut *self.conn.prepare_cached(sql)?, [key], read_message)
    }

    /// Gives the file the format that its contents need: programs that know neither messages nor snapshots must leave it
    /// alone.
    pub(super) fn mark_format(&mut self) -> Result<()> {
        let is_plain = self.tip.stream.is_none() && self.tip.is_whole();
        self.format = if is_plain { FORMAT } else { BEYOND };
        self.conn.execute_batch(&format!("PRAGMA user_version = {}", self.format))?;
        Ok(())
    }
}

fn read_message(row: &Row<'_>) -> Result<Applied> {
    let hash = Digest::from_slice(row.get_ref(4)?.as_blob()?);
    Ok(Applied {
        sequence: row.get(0)?,
        nth: row.get(1)?,
        seq: Seq::from_sql(row.get(2)?),
        offset: row.get(3)?,
        hash: hash.ok_or_else(|| damaged("the hash of a message doesn't have 32 bytes".to_owned()))?,
    })
}
