//! Shared by these tests: a schema in which order matters and events fail in every possible way, a model of it in plain Rust,
//! and a check that must hold after every step of every test.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use likewise::engine::{
    Db, DbError, Device, Entry, Envelope, Event, EventId, Fault, Files, Outcome, Page, PageSize, Query, Replica,
    Schema, Seq, Setup, Store, StoreLimits, Stores, Whose,
};
use likewise::testing::check_places;
use rusqlite::{Connection, OpenFlags, ffi};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use likewise::testing::Rng;

/// A directory for one test, in memory if possible: nothing here loses power.
pub(crate) fn scratch() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("likewise-test-");
    let in_memory = Path::new("/dev/shm").is_dir().then(|| builder.tempdir_in("/dev/shm").ok()).flatten();
    in_memory.unwrap_or_else(|| builder.tempdir().expect("a temporary directory"))
}

/// Copies a store while it is open, as a killed process leaves it.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// The `n`th id of a fixed sequence.
pub(crate) fn id(n: u64) -> EventId {
    Rng::new(n ^ 0x1d).new_id()
}

/// An event made from a name and the text of its payload, as a foreign program might send it.
pub(crate) fn event(id: EventId, name: &str, args: &str) -> Envelope {
    Envelope { id, name: name.parse().unwrap(), args: args.parse().unwrap() }
}

pub(crate) fn like(n: u64) -> Envelope {
    event(id(n), "Liked", "")
}

pub(crate) fn append(n: u64, text: &str) -> Envelope {
    event(id(n), "Appended", &format!("{{\"text\":\"{text}\"}}"))
}

pub(crate) fn device(name: &str) -> Device {
    name.parse().unwrap()
}

macro_rules! events {
    ($($name:ident { $($field:ident: $type:ty),* })*) => {
        $(
            #[derive(Debug, Serialize, Deserialize)]
            pub(crate) struct $name { $(pub(crate) $field: $type),* }
            impl Event for $name { const NAME: &'static str = stringify!($name); }
        )*
    };
}

events! {
    Liked {}
    Deposited { to: String, amount: i64 }
    Transferred { from: String, to: String, amount: i64 }
    Withdrawn { from: String, amount: i64 }
    Appended { text: String }
    Put { key: String, value: String }
    Claimed { name: String, by: String }
    Guarded { by: i64 }
    Reckless { name: String }
    Sloppy { name: String }
    Panicked {}
    ClockRead {}
    Committed {}
    JournalEmptied {}
    Bloated { megabytes: i64 }
    Future {}
}

pub(crate) const TABLES: &str = "
    CREATE TABLE likes (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
    INSERT INTO likes VALUES (1, 0);
    CREATE TABLE account (name TEXT PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0)) STRICT, WITHOUT ROWID;
    CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
    INSERT INTO note VALUES (1, '');
    CREATE TABLE register (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE changes (id INTEGER PRIMARY KEY, n INTEGER NOT NULL) STRICT;
    INSERT INTO changes VALUES (1, 0);
    CREATE TRIGGER register_changes AFTER INSERT ON register BEGIN UPDATE changes SET n = n + 1; END;
    CREATE TABLE claim (name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL) STRICT;
    CREATE TABLE guarded (id INTEGER PRIMARY KEY, total INTEGER NOT NULL) STRICT;
    INSERT INTO guarded VALUES (1, 0);
    CREATE TRIGGER guard BEFORE UPDATE ON guarded WHEN new.total > 20
        BEGIN SELECT RAISE(ROLLBACK, 'the guard says no'); END;
    CREATE TABLE journal (n INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT NOT NULL) STRICT;
    CREATE TABLE bulk (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
";

/// Everything in the tables, as lines.
const DUMP: [&str; 8] = [
    "SELECT 'likes ' || count FROM likes",
    "SELECT 'account ' || name || ' ' || balance FROM account ORDER BY name",
    "SELECT 'note ' || text FROM note",
    "SELECT 'register ' || key || ' ' || value FROM register ORDER BY key",
    "SELECT 'changes ' || n FROM changes",
    "SELECT 'claim ' || name || ' ' || owner FROM claim ORDER BY name",
    "SELECT 'guarded ' || total FROM guarded",
    "SELECT 'journal ' || n || ' ' || what FROM journal ORDER BY n",
];

thread_local! {
    /// How many more materializers run on this thread before the machine fails, and with which SQLite code.
    static FAILS_AFTER: Cell<Option<(u32, i32)>> = const { Cell::new(None) };
}

/// Makes the machine fail once, in the materializer that follows the next `materializers`.
pub(crate) fn fail_after(materializers: u32, code: i32) {
    FAILS_AFTER.set(Some((materializers, code)));
}

/// Mends the machine. True if it hadn't failed yet.
pub(crate) fn mend() -> bool {
    FAILS_AFTER.take().is_some()
}

fn machine(db: &Db<'_>) -> Result<(), DbError> {
    match FAILS_AFTER.get() {
        Some((0, code)) => {
            // After an event has ended the transaction, later events of its batch can do nothing, so nothing can fail them
            // either.
            db.first("SELECT 1 FROM likes", (), |_| Ok(()))?;
            FAILS_AFTER.set(None);
            let error = ffi::Error::new(code);
            Err(rusqlite::Error::SqliteFailure(error, Some("the machine failed".to_owned())).into())
        }
        Some((more, code)) => {
            FAILS_AFTER.set(Some((more - 1, code)));
            Ok(())
        }
        None => Ok(()),
    }
}

/// The SQLite codes that say nothing about an event.
pub(crate) const MACHINE_FAULTS: [i32; 10] = [
    ffi::SQLITE_FULL,
    ffi::SQLITE_IOERR,
    ffi::SQLITE_IOERR_WRITE,
    ffi::SQLITE_NOMEM,
    ffi::SQLITE_BUSY,
    ffi::SQLITE_LOCKED,
    ffi::SQLITE_CORRUPT,
    ffi::SQLITE_READONLY,
    ffi::SQLITE_CANTOPEN,
    ffi::SQLITE_INTERRUPT,
];

fn journal(db: &Db<'_>, what: &str) -> Result<usize, DbError> {
    db.execute("INSERT INTO journal (what) VALUES (?1)", [what])
}

/// The schema of all tests here.
pub(crate) fn bank() -> Schema {
    Schema::new(TABLES)
        .on(|_: Liked, db| {
            machine(db)?;
            db.execute("UPDATE likes SET count = count + 1", ())
        })
        .on(|event: Deposited, db| {
            machine(db)?;
            let sql = "INSERT INTO account VALUES (?1, ?2)
                       ON CONFLICT (name) DO UPDATE SET balance = balance + excluded.balance";
            db.execute(sql, (event.to, event.amount))
        })
        .on(|event: Transferred, db| {
            machine(db)?;
            let has = db.first("SELECT balance FROM account WHERE name = ?1", [&event.from], |row| Ok(row.get(0)?))?;
            if has.unwrap_or(0) < event.amount {
                return Err(DbError::refuse(format!("{} has too little", event.from)));
            }
            db.execute("UPDATE account SET balance = balance - ?2 WHERE name = ?1", (&event.from, event.amount))?;
            let sql = "INSERT INTO account VALUES (?1, ?2)
                       ON CONFLICT (name) DO UPDATE SET balance = balance + excluded.balance";
            db.execute(sql, (event.to, event.amount))
        })
        // Fails the CHECK, after it has written.
        .on(|event: Withdrawn, db| {
            machine(db)?;
            journal(db, "withdrawal")?;
            db.execute("UPDATE account SET balance = balance - ?2 WHERE name = ?1", (event.from, event.amount))
        })
        .on(|event: Appended, db| {
            machine(db)?;
            journal(db, &event.text)?;
            db.execute("UPDATE note SET text = text || ?1", [event.text])
        })
        .on(|event: Put, db| {
            machine(db)?;
            db.execute("INSERT OR REPLACE INTO register VALUES (?1, ?2)", (event.key, event.value))
        })
        // Ends the transaction when the name is taken.
        .on(|event: Claimed, db| {
            machine(db)?;
            journal(db, "claim")?;
            db.execute("INSERT OR ROLLBACK INTO claim VALUES (?1, ?2)", (event.name, event.by))
        })
        // Ends the transaction when the trigger objects.
        .on(|event: Guarded, db| {
            machine(db)?;
            db.execute("UPDATE guarded SET total = total + ?1", [event.by])
        })
        // Ends the transaction, ignores that, and tries to go on.
        .on(|event: Reckless, db| {
            machine(db)?;
            let _ = db.execute("INSERT OR ROLLBACK INTO claim VALUES (?1, 'reckless')", [event.name]);
            let _ = db.execute("UPDATE likes SET count = count + 100", ());
            Ok(())
        })
        // Ignores a harmless error.
        .on(|event: Sloppy, db| {
            machine(db)?;
            let _ = db.execute("INSERT INTO claim VALUES (?1, 'sloppy')", [event.name]);
            db.execute("UPDATE note SET text = text || '~'", ())
        })
        .on(|_: Panicked, db| {
            machine(db)?;
            db.execute("UPDATE likes SET count = count + 1000", ())?;
            if db.millis() < u64::MAX {
                // Like `panic!`, but without thousands of messages on standard error.
                std::panic::resume_unwind(Box::new("a materializer with a mistake"));
            }
            Ok(())
        })
        // These two have SQL that can't be prepared. The rehearsal would find that, but it doesn't get this far.
        .on(|_: ClockRead, db| {
            machine(db)?;
            if db.millis() == 0 {
                return Ok(0);
            }
            db.execute("UPDATE likes SET count = count + 1000", ())?;
            db.execute("UPDATE note SET text = text || datetime('now')", ())
        })
        .on(|_: Committed, db| {
            machine(db)?;
            if db.millis() == 0 {
                return Ok(0);
            }
            db.execute("UPDATE likes SET count = count + 1000", ())?;
            db.execute("COMMIT", ())
        })
        .on(|_: JournalEmptied, db| {
            machine(db)?;
            db.execute("DELETE FROM journal", ())
        })
        .on(|event: Bloated, db| {
            machine(db)?;
            let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                       INSERT INTO bulk (text) SELECT format('%01024d', i) FROM n";
            db.execute(sql, [event.megabytes * 1024])
        })
}

/// A later version's schema, which knows one more event.
pub(crate) fn later_bank() -> Schema {
    bank().on(|_: Future, db| db.execute("UPDATE likes SET count = count + 10", ()))
}

pub(crate) fn setup(schema: Schema) -> Setup {
    Setup { schema: Arc::new(schema), device: device("here"), executable: "one".to_owned(), progress: |_, _| {} }
}

/// A random event: most succeed, some depend on earlier ones, some never succeed.
pub(crate) fn random_event(rng: &mut Rng) -> Envelope {
    let id = rng.new_id();
    let (name, args) = random_content(rng, true);
    event(id, &name, &args)
}

fn random_content(rng: &mut Rng, may_be_batch: bool) -> (String, String) {
    let people = ["ann", "bob", "cyd"];
    let (a, b, c) = (*rng.pick(&people), *rng.pick(&people), *rng.pick(&["k", "l", "m", "n", "o"]));
    let amount = rng.below(9) + 1;
    let letter = char::from(b'a' + rng.below(26) as u8);
    let (name, args) = match rng.below(40) {
        0..=5 => ("Liked", String::new()),
        6..=9 => ("Deposited", format!(r#"{{"to":"{a}","amount":{amount}}}"#)),
        10..=14 => ("Transferred", format!(r#"{{"from":"{a}","to":"{b}","amount":{amount}}}"#)),
        15..=16 => ("Withdrawn", format!(r#"{{"from":"{a}","amount":{amount}}}"#)),
        17..=22 => ("Appended", format!(r#"{{"text":"{letter}"}}"#)),
        23..=25 => ("Put", format!(r#"{{"key":"{c}","value":"{letter}"}}"#)),
        26..=28 => ("Claimed", format!(r#"{{"name":"{c}","by":"{a}"}}"#)),
        29..=30 => ("Guarded", format!(r#"{{"by":{amount}}}"#)),
        31 => ("Reckless", format!(r#"{{"name":"{c}"}}"#)),
        32 => ("Sloppy", format!(r#"{{"name":"{c}"}}"#)),
        33 => (*rng.pick(&["Panicked", "ClockRead", "Committed"]), String::new()),
        34 => ("Deposited", r#"{"to":7}"#.to_owned()),
        35 => ("JournalEmptied", String::new()),
        36 => ("Future", String::new()),
        37..=39 if may_be_batch => {
            let items: Vec<String> = (0..=rng.below(3))
                .map(|_| {
                    let (name, args) = random_content(rng, false);
                    let args = if args.is_empty() { String::new() } else { format!(r#","args":{args}"#) };
                    format!(r#"{{"name":"{name}"{args}}}"#)
                })
                .collect();
            ("likewise.batch", format!("[{}]", items.join(",")))
        }
        _ => ("Liked", String::new()),
    };
    (name.to_owned(), args)
}

/// The result of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Applied,
    Skipped,
    Unknown,
}

/// The same schema in plain Rust, without SQLite and without the engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    likes: i64,
    accounts: BTreeMap<String, i64>,
    note: String,
    register: BTreeMap<String, String>,
    changes: i64,
    claims: BTreeMap<String, String>,
    guarded: i64,
    journal: Vec<(i64, String)>,
    journal_last: i64,
    skipped: BTreeSet<EventId>,
    unknown: BTreeSet<EventId>,
}

impl Model {
    pub(crate) fn of<'e>(events: impl IntoIterator<Item = &'e Envelope>) -> Self {
        let mut model = Self::default();
        for event in events {
            model.apply(event);
        }
        model
    }

    pub(crate) fn apply(&mut self, event: &Envelope) -> Verdict {
        let args = event.args.as_text().unwrap_or("{}");
        let name = event.name.as_str();
        // The others fail before they change anything.
        let may_fail_late = matches!(name, "Withdrawn" | "Claimed" | "Guarded" | "Reckless" | "likewise.batch");
        let before = may_fail_late.then(|| self.clone());
        let done = self.run(name, &serde_json::from_str(args).unwrap());
        if let Some(before) = before.filter(|_| done != Some(true)) {
            *self = before;
        }
        match done {
            Some(true) => Verdict::Applied,
            Some(false) => {
                self.skipped.insert(event.id);
                Verdict::Skipped
            }
            None => {
                self.unknown.insert(event.id);
                Verdict::Unknown
            }
        }
    }

    fn run(&mut self, name: &str, args: &Value) -> Option<bool> {
        let text = |key: &str| args[key].as_str().map(str::to_owned);
        let number = |key: &str| args[key].as_i64();
        // An inner `None` is a payload that can't be read, which is the event's fault.
        let done = match name {
            "Liked" => {
                self.likes += 1;
                Some(())
            }
            "Deposited" => text("to").zip(number("amount")).map(|(to, amount)| {
                *self.accounts.entry(to).or_default() += amount;
            }),
            "Transferred" => {
                let (from, to, amount) = (text("from")?, text("to")?, number("amount")?);
                let has = self.accounts.get(&from).copied().unwrap_or(0);
                (has >= amount).then(|| {
                    *self.accounts.entry(from).or_default() -= amount;
                    *self.accounts.entry(to).or_default() += amount;
                })
            }
            "Withdrawn" => {
                self.write_journal("withdrawal".to_owned());
                let (from, amount) = (text("from")?, number("amount")?);
                match self.accounts.get_mut(&from) {
                    Some(has) if *has < amount => None,
                    Some(has) => {
                        *has -= amount;
                        Some(())
                    }
                    None => Some(()),
                }
            }
            "Appended" => {
                self.note += &text("text")?;
                self.write_journal(text("text")?);
                Some(())
            }
            "Put" => {
                self.register.insert(text("key")?, text("value")?);
                self.changes += 1;
                Some(())
            }
            "Claimed" => {
                self.write_journal("claim".to_owned());
                self.claims.insert(text("name")?, text("by")?).is_none().then_some(())
            }
            "Guarded" => {
                self.guarded += number("by")?;
                (self.guarded <= 20).then_some(())
            }
            "Reckless" => {
                self.likes += 100;
                self.claims.insert(text("name")?, "reckless".to_owned()).is_none().then_some(())
            }
            "Sloppy" => {
                self.claims.entry(text("name")?).or_insert("sloppy".to_owned());
                self.note.push('~');
                Some(())
            }
            "Panicked" | "ClockRead" | "Committed" => None,
            "JournalEmptied" => {
                self.journal.clear();
                Some(())
            }
            "likewise.batch" => {
                // If it isn't a list of events, that is the event's fault.
                let items = args.as_array().map(Vec::as_slice).unwrap_or_default();
                // One unknown event makes the whole batch wait, whatever else is in it.
                if items.iter().any(|item| item["name"] == "Future") {
                    return None;
                }
                let all = items.iter().all(|item| self.run(item["name"].as_str().unwrap(), &item["args"]).unwrap());
                (all && !items.is_empty()).then_some(())
            }
            _ => return None,
        };
        Some(done.is_some())
    }

    fn write_journal(&mut self, what: String) {
        self.journal_last += 1;
        self.journal.push((self.journal_last, what));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("likes {}", self.likes)];
        lines.extend(self.accounts.iter().map(|(name, balance)| format!("account {name} {balance}")));
        lines.push(format!("note {}", self.note));
        lines.extend(self.register.iter().map(|(key, value)| format!("register {key} {value}")));
        lines.push(format!("changes {}", self.changes));
        lines.extend(self.claims.iter().map(|(name, owner)| format!("claim {name} {owner}")));
        lines.push(format!("guarded {}", self.guarded));
        lines.extend(self.journal.iter().map(|(n, what)| format!("journal {n} {what}")));
        lines
    }
}

/// Everything that queries see.
pub(crate) fn view(replica: &Replica) -> Vec<String> {
    DUMP.into_iter()
        .flat_map(|sql| replica.query(&Query::rows(sql, |row| Ok(row.get::<_, String>(0)?))).unwrap())
        .collect()
}

pub(crate) fn likes(replica: &Replica) -> i64 {
    replica.query(&Query::first("SELECT count FROM likes")).unwrap()
}

pub(crate) fn note(replica: &Replica) -> String {
    replica.query(&Query::first("SELECT text FROM note")).unwrap()
}

/// What another reader finds in `state.db`, and how far that says it has come.
pub(crate) fn committed_view(dir: &Path) -> (Seq, Vec<String>) {
    let conn = Connection::open_with_flags(dir.join("state.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    conn.execute_batch("BEGIN").unwrap();
    let seq = conn.query_row("SELECT seq FROM likewise_cursor", (), |row| row.get::<_, u64>(0)).unwrap();
    let mut lines = Vec::new();
    for sql in DUMP {
        let mut statement = conn.prepare(sql).unwrap();
        let rows = statement.query_map((), |row| row.get::<_, String>(0)).unwrap();
        lines.extend(rows.map(Result::unwrap));
    }
    (Seq(seq), lines)
}

pub(crate) fn log_of(replica: &Replica) -> Vec<Entry> {
    replica.entries(Seq::START, PageSize::events(usize::MAX >> 1)).unwrap()
}

pub(crate) fn outbox_of(replica: &Replica) -> Vec<Envelope> {
    replica.pending(i64::MIN, PageSize::events(usize::MAX >> 1)).unwrap().into_iter().map(|(_, event)| event).collect()
}

pub(crate) fn set_aside_of(replica: &Replica) -> Vec<Envelope> {
    replica.all_set_aside().unwrap().into_iter().map(|(event, _)| event).collect()
}

/// The ids of the log, followed by those of the outbox.
pub(crate) fn ids_of(replica: &Replica) -> Vec<EventId> {
    let log = log_of(replica).into_iter().map(|entry| entry.event.id);
    log.chain(outbox_of(replica).into_iter().map(|event| event.id)).collect()
}

/// What holds whenever no operation is under way: every event is in one place, queries see the replay of log and outbox, and
/// the state on disk is the replay of the log up to its cursor.
pub(crate) fn check(replica: &Replica, dir: &Path) {
    check_files(replica, dir);
    check_view(replica, dir);
}

/// The part of [`check`] that also holds between the pages of a pull.
pub(crate) fn check_files(replica: &Replica, dir: &Path) {
    check_places(replica);
    check_state_file(replica, dir);
}

/// The part of [`check`] about what queries see. What a snapshot stands for isn't known here.
pub(crate) fn check_view(replica: &Replica, _: &Path) {
    if replica.base() > Seq::START {
        return;
    }
    let (log, outbox) = (log_of(replica), outbox_of(replica));
    let model = Model::of(log.iter().map(|entry| &entry.event).chain(&outbox));
    assert_eq!(view(replica), model.lines(), "what queries see is not the replay of log and outbox");
    let standing = replica.standing().unwrap();
    assert_eq!(standing.skipped, model.skipped.len() as u64, "skipped");
    assert_eq!(standing.unknown, model.unknown.len() as u64, "unknown");
}

/// The part of [`check_files`] that the simulation doesn't have itself: what is on disk. What a snapshot stands for isn't known
/// here.
pub(crate) fn check_state_file(replica: &Replica, dir: &Path) {
    if replica.base() > Seq::START {
        return;
    }
    let log = log_of(replica);
    let (cursor, lines) = committed_view(dir);
    assert_eq!(cursor, replica.standing().unwrap().cursor);
    let confirmed = Model::of(log.iter().filter(|entry| entry.seq <= cursor).map(|entry| &entry.event));
    assert_eq!(lines, confirmed.lines(), "state.db is not the replay of the log up to {cursor}");
}

/// A replica with the directory it lives in.
pub(crate) struct Home {
    pub(crate) scratch: TempDir,
    pub(crate) dir: PathBuf,
    moves: u32,
}

impl Home {
    pub(crate) fn new() -> Self {
        let scratch = scratch();
        let dir = scratch.path().join("0");
        Self { scratch, dir, moves: 0 }
    }

    /// For a child process, in its parent's directory. The parent tidies up after the child is killed.
    pub(crate) fn of_child(dir: PathBuf) -> Self {
        let scratch = TempDir::new_in(dir.parent().unwrap()).unwrap();
        Self { scratch, dir, moves: 0 }
    }

    pub(crate) fn files(&self) -> Files {
        Files::in_dir(&self.dir)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub(crate) fn try_open_as(&self, setup: Setup) -> Result<Replica, Fault> {
        Replica::open(self.files(), setup)
    }

    pub(crate) fn try_open(&self) -> Result<Replica, Fault> {
        self.try_open_as(setup(bank()))
    }

    pub(crate) fn open(&self) -> Replica {
        let replica = self.try_open().unwrap();
        check(&replica, &self.dir);
        replica
    }

    /// Opens it as a device with an upstream.
    pub(crate) fn follow(&self) -> Replica {
        let mut replica = self.open();
        if !matches!(replica.standing().unwrap().whose, Whose::Upstream(_)) {
            replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
        }
        replica
    }

    /// Reopens the files as a process would find them if this one were killed now.
    pub(crate) fn crash(&mut self, replica: Replica) {
        self.moves += 1;
        let next = self.scratch.path().join(self.moves.to_string());
        copy_dir(&self.dir, &next);
        drop(replica);
        fs::remove_dir_all(&self.dir).unwrap();
        self.dir = next;
    }

    pub(crate) fn crash_and_open(&mut self, replica: Replica) -> Replica {
        self.crash(replica);
        self.open()
    }

    pub(crate) fn check(&self, replica: &Replica) {
        check(replica, &self.dir);
    }
}

/// A page from an upstream that numbers its events from `first`.
pub(crate) fn page(first: u64, events: &[Envelope], more: bool) -> Page {
    let entries: Vec<Entry> = events
        .iter()
        .zip(first..)
        .map(|(event, seq)| Entry { seq: Seq(seq), event: event.clone(), origin: device("elsewhere") })
        .collect();
    let next = Seq(first + events.len() as u64 - 1);
    Page { entries, next, more }
}

pub(crate) fn stored(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|outcome| matches!(outcome, Outcome::Stored(_)))
}

/// A new replica with its own log of these events, in this order.
pub(crate) fn replay(schema: Schema, entries: &[Entry]) -> (Home, Replica) {
    let home = Home::new();
    let mut replica = home.try_open_as(setup(schema)).unwrap();
    let events: Vec<_> = entries.iter().map(|entry| (entry.event.clone(), entry.origin.clone())).collect();
    assert!(stored(&replica.add(&events).unwrap()));
    (home, replica)
}

/// Stores in a directory that is removed with them.
pub(crate) struct Shelf {
    pub(crate) stores: Stores,
    pub(crate) scratch: TempDir,
}

impl Shelf {
    pub(crate) fn new(schema: Schema, limits: StoreLimits) -> Self {
        let scratch = scratch();
        let stores = Stores::open(&scratch.path().join("stores"), setup(schema), limits).unwrap();
        Self { stores, scratch }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.path().join("stores")
    }

    pub(crate) fn store(&self, name: &str) -> Store {
        self.stores.get(&name.parse().unwrap()).unwrap()
    }
}

/// The result of `future`, if it has one without waiting.
pub(crate) fn at_once<F: std::future::Future>(future: F) -> Option<F::Output> {
    match pin!(tokio::task::unconstrained(future)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
