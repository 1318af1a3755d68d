//! The name of an item, and the store that has its likes.

use std::fmt;
use std::str::FromStr;

use crate::engine::StoreId;
use crate::limits::web::embed::ITEM_BYTES;

/// What the stores of items begin with. No other store is reached from other sites.
const PREFIX: &str = "item-";

/// What separates the two parts of a store's id if the name alone can't be one.
const MARK: &str = "--";

/// How much of such a name stands in the id, so that people recognize it.
const EXCERPT: usize = 24;

/// The name of something that people like on another site: a word such as `my-post`, or the address of a page.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Item(Box<str>);

/// A text isn't the name of an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of an item: use 1 to {ITEM_BYTES} bytes of text, without commas, control characters, and spaces \
     at either end"
)]
pub(crate) struct InvalidItem(String);

impl Item {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the item's store. Two names never share one.
    ///
    /// A plain name stands in the id as it is. Any other is an excerpt and a hash, with a mark between them that no plain
    /// name has. The hash is 160 bits long, so nobody finds two names with the same one.
    pub(crate) fn store(&self) -> StoreId {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let name = &*self.0;
        let fits = PREFIX.len() + name.len() <= 63 && name.bytes().all(is_plain);
        let id = if fits && !name.starts_with('-') && !name.contains(MARK) {
            format!("{PREFIX}{name}")
        } else {
            format!("{PREFIX}{}{MARK}{}", excerpt(name), base32(&blake3::hash(name.as_bytes()).as_bytes()[..20]))
        };
        id.parse().expect("BUG: an item makes no store id")
    }

    /// Returns the item of a store, if the store's id says it.
    pub(crate) fn of_store(id: &StoreId) -> Option<Self> {
        let name = id.as_str().strip_prefix(PREFIX)?;
        name.parse().ok().filter(|item: &Self| item.store() == *id)
    }
}

/// Returns whether a store is an item's.
pub(crate) fn is_of_an_item(id: &StoreId) -> bool {
    id.as_str().starts_with(PREFIX)
}

impl FromStr for Item {
    type Err = InvalidItem;

    fn from_str(name: &str) -> Result<Self, InvalidItem> {
        let is_odd = |letter: char| letter.is_control() || letter == ',';
        if name.is_empty() || name.len() > ITEM_BYTES || name.trim() != name || name.chars().any(is_odd) {
            return Err(InvalidItem(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the letters and digits at the end of a name: the beginnings of addresses are all alike.
fn excerpt(name: &str) -> String {
    let letters = name.chars().map(|letter| letter.to_ascii_lowercase());
    let words = letters.map(|letter| if letter.is_ascii_alphanumeric() { letter } else { ' ' }).collect::<String>();
    let slug = words.split_whitespace().collect::<Vec<_>>().join("-");
    slug[slug.len().saturating_sub(EXCERPT)..].trim_start_matches('-').to_owned()
}

/// Writes bytes in the letters that a store id may have, five bits each.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let letter = |at: usize| (at..at + 5).fold(0, |value, at| value << 1 | bit(at));
    (0..bytes.len() * 8).step_by(5).map(|at| char::from(ALPHABET[usize::from(letter(at))])).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::fuzz::{fuzz, outcome, text};

    fn store(name: &str) -> String {
        name.parse::<Item>().unwrap_or_else(|why| panic!("{why}")).store().to_string()
    }

    #[test]
    fn plain_names_stand_in_the_id_and_others_have_an_excerpt_and_a_hash() {
        assert_eq!(store("my-post"), "item-my-post");
        assert_eq!(store(&"x".repeat(58)), format!("item-{}", "x".repeat(58)));
        // This never changes: stores on disk are named so.
        let id = "item-example-2026-hello-world--ygtt2jepvqjl2zq4ujsy2yeqiw5p76ma";
        assert_eq!(store("blog.example/2026/hello-world"), id);
        for name in ["My-Post", "a b", "é", "a--b", "-a", &"x".repeat(59), "blog.example/post", "♥"] {
            let id = store(name);
            assert!(id.contains("--") && id.len() <= 63, "{name}: {id}");
        }
    }

    #[test]
    fn no_two_names_share_a_store() {
        let hashed = store("My-Post");
        let mut seen = HashMap::new();
        let names = ["my-post", "My-Post", "my post", "my_post", "MY-POST", "my-post-", "a/b", "a-b", "a--b", "a_b"];
        for name in names.into_iter().chain([&hashed["item-".len()..]]) {
            assert_eq!(seen.insert(store(name), name), None, "{name}");
        }
    }

    #[test]
    fn a_plain_store_gives_its_item_back() {
        let item = |id: &str| Item::of_store(&id.parse().expect("an id"));
        assert_eq!(item("item-my-post").expect("an item").as_str(), "my-post");
        for other in ["likes", "item-", &store("My-Post")] {
            assert_eq!(item(other), None, "{other}");
        }
    }

    #[test]
    fn trust_38_fuzzed_names_of_items_have_a_store_of_their_own() {
        let mut seen: HashMap<StoreId, Item> = HashMap::new();
        fuzz("item", &["my-post", "--", "item-", "https://", "%2C", ",", "é"], |input| {
            let item = text(input).parse::<Item>();
            if let Ok(item) = &item {
                let id = item.store();
                assert!(is_of_an_item(&id));
                assert_eq!(Item::of_store(&id).unwrap_or_else(|| item.clone()), *item);
                assert_eq!(seen.entry(id).or_insert_with(|| item.clone()), item);
            }
            outcome(&item)
        });
    }
}
