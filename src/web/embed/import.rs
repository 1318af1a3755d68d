//! Counts from elsewhere, as likes: each becomes events whose ids follow from where they come from. So an import can be
//! repeated: it adds nothing twice, and of a higher count the difference.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::codec::{FramedRead, LinesCodec};

use super::item::Item;
use super::list::{ItemList, Listed};
use crate::engine::{Device, EventId, MOST_TOGETHER, Outcome, Stores};
use crate::limits::engine::readers::MAX_LINE;
use crate::limits::engine::stores::STORES;
use crate::limits::web::embed::MOST_IMPORTED;
use crate::web::face::{Embed, Unmade};

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportedCounts {
    /// The items that it named.
    pub(crate) items: u64,
    /// Likes that it stored.
    pub(crate) added: u64,
    /// Likes that an earlier import stored.
    pub(crate) known: u64,
}

/// Why an import stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportCountsError {
    /// The input is wrong. Nothing was stored.
    #[error("line {0}: {1}")]
    Line(usize, String),
    /// The list of items can't be written. Nothing was stored.
    #[error("the list of items: {0:#}")]
    List(anyhow::Error),
    /// A store can't take its likes. Those of the items before it are stored.
    #[error("{0}: {1}")]
    Item(Item, String),
}

/// Adds the counts in `input`, a line for each item: `item,count`, or `{"item":…,"count":…}`. They come from `source`: the
/// same item may have other likes from another.
pub(crate) async fn import_counts(
    stores: &Stores,
    embed: &Embed,
    list: &ItemList,
    device: &Device,
    source: &str,
    input: impl AsyncRead + Unpin,
) -> Result<ImportedCounts, ImportCountsError> {
    let counts = read(input).await?;
    let add = |listed: &mut Listed| listed.items.extend(counts.iter().map(|(item, _)| item.clone()));
    list.change(add).map_err(ImportCountsError::List)?;
    let mut imported = ImportedCounts { items: counts.len() as u64, ..ImportedCounts::default() };
    for (item, count) in counts {
        let fail = |why: String| ImportCountsError::Item(item.clone(), why);
        let store = stores.get(&item.store()).map_err(|error| fail(error.to_string()))?;
        let mut numbers = 1..=count;
        loop {
            let ids = numbers.by_ref().take(MOST_TOGETHER).map(|number| id(source, &item, number));
            let events = ids.map(|id| Ok((embed.event(id)?, device.clone())));
            let events = events.collect::<Result<Vec<_>, Unmade>>();
            let events = events.map_err(|_| fail("the app's event can't be made without fields".to_owned()))?;
            if events.is_empty() {
                break;
            }
            for outcome in store.add(events).await.map_err(|error| fail(error.to_string()))? {
                match outcome {
                    Outcome::Stored(_) => imported.added += 1,
                    Outcome::Known(_) => imported.known += 1,
                    Outcome::Conflict => return Err(fail("the id of a like belongs to another event".to_owned())),
                    Outcome::Refused(why) => return Err(fail(why)),
                }
            }
        }
    }
    Ok(imported)
}

/// The id of one of the likes that a source had. Nobody knows when it happened, so it has the oldest time there is; a time
/// that could be chosen would give a repeated import other ids, and count everything twice.
fn id(source: &str, item: &Item, number: u64) -> EventId {
    let mut hasher = blake3::Hasher::new_derive_key("likewise 2026-11 imported count");
    for part in [source, item.as_str()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.update(&number.to_le_bytes());
    let mut random = [0; 10];
    random.copy_from_slice(&hasher.finalize().as_bytes()[..10]);
    EventId::from_parts(0, random)
}

/// All lines, before anything is stored.
async fn read(input: impl AsyncRead + Unpin) -> Result<Vec<(Item, u64)>, ImportCountsError> {
    let mut lines = FramedRead::new(input, LinesCodec::new_with_max_length(MAX_LINE)).enumerate();
    let (mut counts, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some((place, line)) = lines.next().await {
        let wrong = |why: String| ImportCountsError::Line(place + 1, why);
        let line = line.map_err(|error| wrong(error.to_string()))?;
        let Some((item, count)) = parse(&line, place == 0).map_err(wrong)? else { continue };
        if !seen.insert(item.clone()) {
            return Err(wrong(format!("{item} has a line already; add the two up")));
        }
        if counts.len() as u64 >= STORES {
            return Err(wrong(format!("there can't be more than {STORES} items")));
        }
        counts.push((item, count));
    }
    Ok(counts)
}

#[derive(Deserialize)]
struct Line {
    item: String,
    count: u64,
}

/// The item and the count on a line. Nothing on an empty one, and on a first one that names the columns.
fn parse(line: &str, is_first: bool) -> Result<Option<(Item, u64)>, String> {
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.is_empty() {
        return Ok(None);
    }
    let (name, count) = if line.starts_with('{') {
        let Line { item, count } =
            serde_json::from_str(line).map_err(|why| format!("not an item and its count: {why}"))?;
        (item, count)
    } else {
        let (name, count) = line.rsplit_once(',').ok_or_else(|| format!("{line:?} is not `item,count`"))?;
        let bare = |text: &str| {
            let text = text.trim();
            text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).to_owned()
        };
        match bare(count).parse() {
            Ok(count) => (bare(name), count),
            Err(_) if is_first && is_title(&bare(count)) => return Ok(None),
            Err(_) => return Err(format!("{:?} is not a count", bare(count))),
        }
    };
    if count > MOST_IMPORTED {
        return Err(format!("{count} are more likes than an import may bring for one item, which is {MOST_IMPORTED}"));
    }
    Ok(Some((name.parse::<Item>().map_err(|error| error.to_string())?, count)))
}

/// Returns whether a text names a column. One with a digit in it is meant as a count, and dropping it would lose likes.
fn is_title(text: &str) -> bool {
    text.contains(char::is_alphabetic) && !text.contains(char::is_numeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_item_and_its_count() {
        let parse = |line| parse(line, false).map(|read| read.map(|(item, count)| (item.to_string(), count)));
        for line in [
            "my-post,12",
            " my-post , 12\r",
            "\"my-post\",\"12\"",
            r#"{"count":12,"item":"my-post","x":1}"#,
            "\u{feff}my-post,12",
        ] {
            assert_eq!(parse(line), Ok(Some(("my-post".to_owned(), 12))), "{line}");
        }
        assert_eq!(parse("  "), Ok(None));
        for line in [
            "my-post",
            "my-post,",
            "my-post,-1",
            "my-post,1.5",
            "a,b,1",
            ",1",
            "{",
            r#"{"item":"a"}"#,
            "my-post,10000001",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for titles in ["item,count", "Seite,\"Anzahl (gesamt)\"", "page,♥ likes"] {
            assert_eq!(super::parse(titles, true), Ok(None), "{titles}");
        }
        for line in
            ["other,1.200", "other,1e3", "other,5 likes", "other,", "other,-", "other,-1", "other,\u{661}", "other"]
        {
            assert!(super::parse(line, true).is_err(), "{line} is no line of titles");
        }
    }

    #[test]
    fn ids_follow_from_source_item_and_number() {
        let item = |name: &str| name.parse::<Item>().expect("a name");
        // This never changes: a repeated import has to find what an earlier one stored.
        assert_eq!(id("claps", &item("my-post"), 1).to_string(), "00000000-0000-7309-a99e-c0482a6e8889");
        let ids = [id("claps", &item("my-post"), 2), id("clap", &item("smy-post"), 1), id("claps", &item("my-pos"), 1)];
        for (place, one) in ids.iter().enumerate() {
            assert!(!ids[..place].contains(one) && *one != id("claps", &item("my-post"), 1));
        }
    }
}
