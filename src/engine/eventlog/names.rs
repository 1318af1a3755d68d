//! Names of events and devices, each stored once and known by a number.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;

use super::{Result, damaged};

/// Strings that occur often, each stored once and known by a number.
#[derive(Default)]
pub(super) struct Interned {
    pub(super) ids: BTreeMap<Arc<str>, i64>,
    pub(super) texts: BTreeMap<i64, Arc<str>>,
}

impl Interned {
    pub(super) fn load(conn: &Connection, sql: &str) -> Result<Self> {
        let mut all = Self::default();
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            all.add(row.get(0)?, row.get::<_, String>(1)?.into());
        }
        Ok(all)
    }

    pub(super) fn add(&mut self, id: i64, text: Arc<str>) {
        self.ids.insert(Arc::clone(&text), id);
        self.texts.insert(id, text);
    }

    /// Returns the highest number.
    pub(super) fn last(&self) -> i64 {
        self.texts.last_key_value().map_or(0, |(id, _)| *id)
    }

    /// Forgets the strings whose numbers are above `last`.
    pub(super) fn forget_after(&mut self, last: i64) {
        while let Some(entry) = self.texts.last_entry().filter(|entry| *entry.key() > last) {
            self.ids.remove(&entry.remove());
        }
    }

    /// Returns the number of `text`, and assigns one if it has none yet.
    pub(super) fn intern(&mut self, conn: &Connection, insert: &str, text: &str) -> Result<i64> {
        if let Some(id) = self.ids.get(text) {
            return Ok(*id);
        }
        conn.prepare_cached(insert)?.execute([text])?;
        let id = conn.last_insert_rowid();
        self.add(id, text.into());
        Ok(id)
    }

    pub(super) fn text(&self, id: i64) -> Result<&Arc<str>> {
        self.texts.get(&id).ok_or_else(|| damaged(format!("a name that events refer to, number {id}, is gone")))
    }
}
