//! A second schema for the simulation: an account book in which every entry depends on all entries before it, with references
//! between tables and varied payloads. Nothing here knows the right result. A replay does.

use likewise::engine::{Db, DbError, Envelope, Event, Schema};
use serde::{Deserialize, Serialize};

use crate::support::{Rng, event};

macro_rules! events {
    ($($name:ident { $($field:ident: $type:ty),* })*) => {
        $(
            #[derive(Debug, Serialize, Deserialize)]
            struct $name { $($field: $type),* }
            impl Event for $name { const NAME: &'static str = concat!("ledger.", stringify!($name)); }
        )*
    };
}

events! {
    Opened { account: String }
    Posted { from: String, to: String, cents: i64, memo: Option<String> }
    InterestPaid { percent: i64 }
    Closed { account: String, into: String }
    Struck { entry: i64 }
}

pub(crate) fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE account (name TEXT PRIMARY KEY, cents INTEGER NOT NULL CHECK (cents >= -500)) STRICT;
         CREATE TABLE entry (
             n INTEGER PRIMARY KEY AUTOINCREMENT,
             id BLOB NOT NULL,
             account TEXT NOT NULL REFERENCES account (name) ON DELETE CASCADE,
             cents INTEGER NOT NULL,
             balance INTEGER NOT NULL,
             memo TEXT
         ) STRICT;
         CREATE INDEX entry_by_account ON entry (account, n);
         CREATE TABLE total (one INTEGER PRIMARY KEY, entries INTEGER NOT NULL) STRICT;
         INSERT INTO total VALUES (1, 0);
         CREATE TRIGGER entry_counted AFTER INSERT ON entry BEGIN UPDATE total SET entries = entries + 1; END;",
    )
    .on(|Opened { account }, db| db.execute("INSERT INTO account VALUES (?1, 0)", [account]))
    .on(|Posted { from, to, cents, memo }, db| {
        book(db, &from, -cents, memo.as_deref())?;
        book(db, &to, cents, memo.as_deref())
    })
    .on(|InterestPaid { percent }, db| {
        let names = db.rows("SELECT name, cents FROM account ORDER BY name", (), |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        names.iter().try_for_each(|(name, cents)| book(db, name, cents * percent / 100, Some("interest")))
    })
    .on(|Closed { account, into }, db| {
        let cents = db.first("SELECT cents FROM account WHERE name = ?1", [&account], |row| Ok(row.get(0)?))?;
        book(db, &into, cents.unwrap_or(0), Some("closing"))?;
        if account == into {
            return Err(DbError::refuse("it would be closed into itself"));
        }
        db.execute("DELETE FROM account WHERE name = ?1", [account]).map(drop)
    })
    .on(|Struck { entry }, db| db.execute("DELETE FROM entry WHERE n = ?1", [entry]))
}

/// Writes an entry with the resulting balance.
fn book(db: &Db<'_>, account: &str, cents: i64, memo: Option<&str>) -> Result<(), DbError> {
    if db.execute("UPDATE account SET cents = cents + ?2 WHERE name = ?1", (account, cents))? == 0 {
        return Err(DbError::refuse(format!("there is no account {account}")));
    }
    let sql = "INSERT INTO entry (id, account, cents, balance, memo)
               SELECT ?1, name, ?3, cents, ?4 FROM account WHERE name = ?2";
    db.execute(sql, (db.id().as_bytes(), account, cents, memo)).map(drop)
}

pub(crate) fn random_event(rng: &mut Rng) -> Envelope {
    let id = rng.new_id();
    let names = ["cash", "rent", "tea", "\u{1f980}"];
    let (a, b) = (*rng.pick(&names), *rng.pick(&names));
    let cents = rng.below(400) as i64 - 50;
    let (name, args) = match rng.below(20) {
        0..=4 => ("Opened", format!(r#"{{"account":"{a}"}}"#)),
        5..=12 => (
            "Posted",
            format!(r#"{{"from":"{a}","to":"{b}","cents":{cents},"memo":"{}"}}"#, "m".repeat(rng.below(200))),
        ),
        13 => ("Posted", format!(r#"{{ "to" : "{b}", "from":"{a}","cents":{cents} }}"#)),
        14 => ("InterestPaid", format!(r#"{{"percent":{}}}"#, rng.below(30))),
        15 => ("Closed", format!(r#"{{"account":"{a}","into":"{b}"}}"#)),
        16..=17 => ("Struck", format!(r#"{{"entry":{}}}"#, rng.below(20))),
        18 => ("Later", format!(r#"[{cents}]"#)),
        _ => {
            let posted = format!(r#"{{"from":"{b}","to":"{a}","cents":{cents},"memo":null}}"#);
            let items = format!(
                r#"[{{"name":"ledger.Posted","args":{posted}}},{{"name":"ledger.Struck","args":{{"entry":3}}}}]"#
            );
            return event(id, "likewise.batch", &items);
        }
    };
    event(id, &format!("ledger.{name}"), &args)
}
