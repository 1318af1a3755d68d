//! A shop's stock and its orders: a feature larger than likes, on the same engine.
//!
//! Its events have payloads, its tables depend on each other, one materializer looks at the state before it decides, and
//! pages would watch queries with parameters and rows. Run it with
//!
//! ```sh
//! cargo run --example shop              # in a new directory, deleted at the end
//! cargo run --example shop -- my-shop   # in one that stays, to look into its files
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use likewise::engine::{
    Batch, Db, DbError, Envelope, Error, Event, EventId, Query, Schema, Setup, StoreLimits, Stores,
};
use serde::{Deserialize, Serialize};

/// The shop has something new, or the price of something changed.
#[derive(Debug, Serialize, Deserialize)]
struct PriceSet {
    item: String,
    cents: i64,
}

/// A delivery arrived. It says what happened, not what the stock is now: deltas merge, whoever else was offline.
#[derive(Debug, Serialize, Deserialize)]
struct Delivered {
    item: String,
    pieces: u32,
}

/// Somebody wants something. What it costs is not in the event: the materializer decides by the state it finds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ordered {
    customer: String,
    item: String,
    pieces: u32,
}

impl Event for PriceSet {
    const NAME: &'static str = "PriceSet";
}
impl Event for Delivered {
    const NAME: &'static str = "Delivered";
}
impl Event for Ordered {
    const NAME: &'static str = "Ordered";
}

/// The tables, and what each event does to them.
fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE item (name TEXT PRIMARY KEY, cents INTEGER NOT NULL, stock INTEGER NOT NULL DEFAULT 0) STRICT;
         CREATE TABLE sale (
             id TEXT PRIMARY KEY,
             customer TEXT NOT NULL,
             item TEXT NOT NULL REFERENCES item (name),
             pieces INTEGER NOT NULL CHECK (pieces > 0),
             cents INTEGER NOT NULL
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX sale_by_customer ON sale (customer);",
    )
    .on(|PriceSet { item, cents }, db| {
        let sql = "INSERT INTO item (name, cents) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET cents = excluded.cents";
        db.execute(sql, (item, cents))
    })
    .on(|Delivered { item, pieces }, db| {
        match db.execute("UPDATE item SET stock = stock + ?2 WHERE name = ?1", (&item, pieces))? {
            0 => Err(DbError::refuse(format!("there is no {item} here"))),
            _ => Ok(()),
        }
    })
    .on(sell)
}

/// A materializer may read the state and branch on it, as long as nothing else decides: no clock, no chance, no file.
/// Everything it did is undone when it ends in an error.
fn sell(Ordered { customer, item, pieces }: Ordered, db: &Db<'_>) -> Result<(), DbError> {
    let of_item = "SELECT cents, stock FROM item WHERE name = ?1";
    let found = db.first(of_item, [&item], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    let Some((price, stock)) = found else {
        return Err(DbError::refuse(format!("there is no {item} here")));
    };
    if stock < i64::from(pieces) {
        return Err(DbError::refuse(format!("{pieces} {item} ordered, {stock} in stock")));
    }
    // Ten or more at once are a tenth cheaper.
    let percent = if pieces >= 10 { 90 } else { 100 };
    let cents = price * i64::from(pieces) * percent / 100;
    db.execute("UPDATE item SET stock = stock - ?2 WHERE name = ?1", (&item, pieces))?;
    // The event's id is unique wherever the event was made, so it is a good key. A rowid would depend on the order.
    let sql = "INSERT INTO sale (id, customer, item, pieces, cents) VALUES (?1, ?2, ?3, ?4, ?5)";
    db.execute(sql, (db.id(), customer, item, pieces, cents))?;
    Ok(())
}

/// What runs out soon: rows, each read into a tuple.
fn scarce(below: u32) -> Query<Vec<(String, i64)>> {
    let sql = "SELECT name, stock FROM item WHERE stock < ?1 ORDER BY stock, name";
    Query::rows(sql, |row| Ok((row.get(0)?, row.get(1)?))).bind(below)
}

/// What `customer` has spent: one value.
fn spent(customer: &str) -> Query<i64> {
    Query::first("SELECT coalesce(sum(cents), 0) FROM sale WHERE customer = ?1").bind(customer)
}

/// A day in the shop whose stores are in `dir`.
async fn day(dir: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let stores = open(dir)?;
    anyhow::ensure!(stores.list()?.is_empty(), "there is a shop in {} already", dir.display());
    let shop = stores.get(&"shop".parse()?)?;

    // Events that make sense only together are one batch: one id, wholly or not at all.
    let opening = Batch::new()
        .with(&PriceSet { item: "tea".into(), cents: 450 })?
        .with(&PriceSet { item: "cup".into(), cents: 1_200 })?
        .with(&Delivered { item: "tea".into(), pieces: 20 })?
        .with(&Delivered { item: "cup".into(), pieces: 6 })?;
    shop.commit_envelope(opening.seal(EventId::now())?).await?;

    // A live query answers at once, and then whenever a commit changed its answer. A page would be told by it.
    let mut scarce = shop.watch(scarce(10));
    let mut annas = shop.watch(spent("Anna"));
    writeln!(out, "the shop opens   scarce: {:?}", scarce.next().await?)?;
    annas.next().await?;

    // When this returns, the order is on disk, and the state has it.
    let order = Ordered { customer: "Anna".into(), item: "tea".into(), pieces: 12 };
    let order = Envelope::new(EventId::now(), &order)?;
    shop.commit_envelope(order.clone()).await?;
    writeln!(out, "Anna buys tea    scarce: {:?}", scarce.next().await?)?;
    writeln!(out, "                 she spent {} cents: a tenth off", annas.next().await?)?;

    // The answer got lost, say, so her phone sends the order again. One id counts once.
    let receipt = shop.commit_envelope(order).await?;
    writeln!(out, "it comes twice   stored anew: {}", receipt.is_new)?;

    // An order that can't be met is refused with the materializer's own words, and nothing of it is kept. In a batch, the
    // delivery before it goes with it.
    let greedy = Batch::new().with(&Delivered { item: "cup".into(), pieces: 1 })?.with(&Ordered {
        customer: "Ben".into(),
        item: "cup".into(),
        pieces: 100_000,
    })?;
    match shop.commit_envelope(greedy.seal(EventId::now())?).await {
        Err(Error::Refused(why)) => writeln!(out, "Ben is greedy    {why}")?,
        other => anyhow::bail!("this should have been refused: {other:?}"),
    }
    let (stock, bens) = (shop.read(self::scarce(u32::MAX)).await?, shop.read(spent("Ben")).await?);
    writeln!(out, "at closing time  stock: {stock:?}; Ben spent {bens}")?;
    close(stores).await?;

    // The log is all there is to keep. Without its tables the shop opens as it closed, for they follow from the events.
    std::fs::remove_file(shop.files().state())?;
    let stores = open(dir)?;
    let shop = stores.get(&"shop".parse()?)?;
    let is_same = shop.read(self::scarce(u32::MAX)).await? == stock;
    writeln!(out, "the next day     the tables were lost and made again; all is as it was: {is_same}")?;
    close(stores).await
}

fn open(dir: &Path) -> anyhow::Result<Stores> {
    Ok(Stores::open(dir, Setup::new(schema(), "till".parse()?)?, StoreLimits::default())?)
}

/// Closing waits for the stores' threads, which async code leaves to a thread that may wait.
async fn close(stores: Stores) -> anyhow::Result<()> {
    Ok(tokio::task::spawn_blocking(move || stores.close()).await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let given = std::env::args_os().nth(1).map(PathBuf::from);
    day(given.as_deref().unwrap_or(temporary.path()), &mut io::stdout()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_keeps_the_rules() {
        schema().check().unwrap();
    }

    #[tokio::test]
    async fn a_day_goes_as_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = Vec::new();
        day(dir.path(), &mut told).await.unwrap();
        assert_eq!(
            String::from_utf8(told).unwrap(),
            r#"the shop opens   scarce: [("cup", 6)]
Anna buys tea    scarce: [("cup", 6), ("tea", 8)]
                 she spent 4860 cents: a tenth off
it comes twice   stored anew: false
Ben is greedy    100000 cup ordered, 7 in stock
at closing time  stock: [("cup", 6), ("tea", 8)]; Ben spent 0
the next day     the tables were lost and made again; all is as it was: true
"#
        );
    }
}
