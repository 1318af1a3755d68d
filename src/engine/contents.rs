//! The contents of a state's tables: their digests, and their rows for people to read.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::place::Digest;

/// The digest of each table that has something to do with events, by table name.
pub(crate) type TableDigests = BTreeMap<String, Digest>;

/// The digests of all that a state holds of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contents {
    /// What the schema's tables hold.
    pub(super) tables: Digest,
    /// Which events have no effect, and which of them because nothing here knows their name.
    pub(super) skipped: Digest,
    /// Why the others have none. The words are a program's own, so another version may have others.
    pub(super) reasons: Digest,
}

impl Contents {
    /// Reads all of a state.
    pub(super) fn of(conn: &Connection) -> rusqlite::Result<Self> {
        let reasons = rows_digest(conn, "SELECT id, why FROM likewise_skipped ORDER BY id")?;
        Ok(Self { tables: digest_of(conn)?, skipped: skipped_digest(conn)?, reasons })
    }

    /// Returns whether both are states of the same events, if maybe made by programs with other words.
    pub(super) fn follow_from_the_same(&self, other: &Self) -> bool {
        (self.tables, self.skipped) == (other.tables, other.skipped)
    }
}

fn skipped_digest(conn: &Connection) -> rusqlite::Result<Digest> {
    rows_digest(conn, "SELECT id, why IS NULL FROM likewise_skipped ORDER BY id")
}

fn rows_digest(conn: &Connection, sql: &str) -> rusqlite::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    feed_rows(&mut hasher, conn, sql)?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Returns the digest of all tables that aren't the engine's. It covers their names and each row with its rowid, in key
/// order. It depends on what the tables hold, not on where SQLite put it.
pub(super) fn digest_of(conn: &Connection) -> rusqlite::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    for table in tables_of(conn)? {
        feed_table(&mut hasher, conn, &table)?;
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Returns the digest of each of these tables, and of the one with the events without effect.
pub(super) fn table_digests(conn: &Connection) -> rusqlite::Result<TableDigests> {
    let digest = |table: Table| {
        let mut hasher = blake3::Hasher::new();
        feed_table(&mut hasher, conn, &table)?;
        Ok((table.name, Digest(*hasher.finalize().as_bytes())))
    };
    let skipped = ("likewise_skipped".to_owned(), skipped_digest(conn)?);
    tables_of(conn)?.into_iter().map(digest).chain([Ok(skipped)]).collect()
}

struct Table {
    name: String,
    is_without_rowid: bool,
}

impl Table {
    /// Returns the statement that reads the whole table: each row with its rowid, in key order.
    fn select(&self, conn: &Connection) -> rusqlite::Result<String> {
        let name = &self.name;
        let quoted = name.replace('"', "\"\"");
        if name == "sqlite_sequence" {
            return Ok("SELECT name, seq FROM sqlite_sequence ORDER BY name".to_owned());
        }
        if !self.is_without_rowid {
            return Ok(format!("SELECT rowid, * FROM \"{quoted}\" ORDER BY rowid"));
        }
        let keys: Vec<String> = conn
            .prepare("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk")?
            .query_map([name], |row| row.get::<_, String>(0))?
            .map(|key| key.map(|key| format!("\"{}\"", key.replace('"', "\"\""))))
            .collect::<Result<_, _>>()?;
        Ok(format!("SELECT * FROM \"{quoted}\" ORDER BY {}", keys.join(", ")))
    }
}

fn tables_of(conn: &Connection) -> rusqlite::Result<Vec<Table>> {
    // `sqlite_sequence` determines future rowids, so it is content too.
    let sql = "SELECT name, wr FROM pragma_table_list
               WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'likewise~_%' ESCAPE '~'
                 AND (name NOT LIKE 'sqlite~_%' ESCAPE '~' OR name = 'sqlite_sequence')
               ORDER BY name";
    let table = |row: &Row<'_>| Ok(Table { name: row.get(0)?, is_without_rowid: row.get(1)? });
    conn.prepare(sql)?.query_map((), table)?.collect()
}

fn feed_table(hasher: &mut blake3::Hasher, conn: &Connection, table: &Table) -> rusqlite::Result<()> {
    feed(hasher, b'T', table.name.as_bytes());
    feed_rows(hasher, conn, &table.select(conn)?)
}

fn feed_rows(hasher: &mut blake3::Hasher, conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = conn.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        feed(hasher, b'R', &[]);
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => feed(hasher, b'N', &[]),
                ValueRef::Integer(value) => feed(hasher, b'I', &value.to_le_bytes()),
                ValueRef::Real(value) => feed(hasher, b'F', &value.to_bits().to_le_bytes()),
                ValueRef::Text(value) => feed(hasher, b'S', value),
                ValueRef::Blob(value) => feed(hasher, b'B', value),
            }
        }
    }
    Ok(())
}

/// The rows of each of a schema's tables, by table name. For people to read: each row is `column=value, …`.
pub(crate) type TableRows = BTreeMap<String, Vec<String>>;

pub(super) fn table_rows(conn: &Connection) -> rusqlite::Result<TableRows> {
    let rows = |table: Table| {
        let mut statement = conn.prepare(&table.select(conn)?)?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        // An INTEGER PRIMARY KEY is another name for the rowid.
        let named_twice = usize::from(columns[1..].contains(&columns[0]));
        let line = |row: &Row<'_>| {
            let value = |(place, column): (usize, &String)| {
                let value: String = match row.get_ref(place)? {
                    ValueRef::Null => "NULL".to_owned(),
                    ValueRef::Integer(value) => value.to_string(),
                    ValueRef::Real(value) => format!("{value:?}"),
                    ValueRef::Text(value) => format!("'{}'", String::from_utf8_lossy(value)),
                    ValueRef::Blob(value) => value.iter().fold("x".to_owned(), |hex, byte| format!("{hex}{byte:02x}")),
                };
                Ok(format!("{column}={value}"))
            };
            let values: Vec<String> =
                columns.iter().enumerate().skip(named_twice).map(value).collect::<rusqlite::Result<_>>()?;
            Ok(values.join(", "))
        };
        let lines = statement.query_map((), line)?.collect::<rusqlite::Result<_>>()?;
        Ok((table.name, lines))
    };
    tables_of(conn)?.into_iter().map(rows).collect()
}

fn feed(hasher: &mut blake3::Hasher, kind: u8, bytes: &[u8]) {
    hasher.update(&[kind]);
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
