//! The list of items: the names behind the ids of stores, and which items there may be.
//!
//! It is a file in the data directory. Whoever holds the directory changes it, so there is one writer.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::item::{InvalidItem, Item};
use crate::sync::tokens::{read, replace};

/// Which items visitors may like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Door {
    /// Any. The first like makes an item.
    #[default]
    Open,
    /// Those on the list.
    Closed,
}

/// The list as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Listed {
    /// Which items visitors may like.
    pub(crate) door: Door,
    /// The items by name.
    #[serde(with = "names")]
    pub(crate) items: BTreeSet<Item>,
}

/// The list of items of a data directory.
pub(crate) struct ItemList {
    path: PathBuf,
    listed: RwLock<Listed>,
    /// Held while the file is written. Readers of the list don't wait for the disk.
    writing: Mutex<()>,
}

impl ItemList {
    /// Reads the list, if there is one.
    ///
    /// # Errors
    ///
    /// When the file can't be read or understood.
    pub(crate) fn read(path: PathBuf) -> anyhow::Result<Self> {
        let listed = match read(&path)? {
            Some(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged; mend it, or take it from a backup", path.display()))?,
            None => Listed::default(),
        };
        Ok(Self { path, listed: RwLock::new(listed), writing: Mutex::default() })
    }

    /// The list as it is now.
    pub(crate) fn now(&self) -> RwLockReadGuard<'_, Listed> {
        self.listed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the list, in the file first. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When the file can't be written. Nothing is changed then.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Listed)) -> anyhow::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.now().clone();
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            replace(&self.path, &serde_json::to_vec_pretty(&after)?)?;
            *self.listed.write().unwrap_or_else(PoisonError::into_inner) = after;
        }
        Ok(())
    }
}

/// Writes items as their names.
mod names {
    use serde::{Deserializer, Serializer, de::Error};

    use super::{BTreeSet, Deserialize, InvalidItem, Item};

    pub(super) fn serialize<S: Serializer>(items: &BTreeSet<Item>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(items.iter().map(Item::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<Item>, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        names.iter().map(|name| name.parse()).collect::<Result<_, InvalidItem>>().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("items.json");
        let list = ItemList::read(path.clone()).expect("no list yet");
        list.change(|_| {}).expect("nothing to change");
        assert!(!path.exists(), "a look makes nothing");
        let item: Item = "blog.example/hello".parse().expect("a name");
        list.change(|listed| listed.items.extend([item.clone()])).expect("written");
        list.change(|listed| listed.door = Door::Closed).expect("written");
        let again = ItemList::read(path.clone()).expect("a list");
        assert_eq!(*again.now(), Listed { door: Door::Closed, items: BTreeSet::from([item]) });
        std::fs::write(&path, r#"{"items":["a,b"]}"#).expect("written");
        let why = format!("{:#}", ItemList::read(path).err().expect("a comma"));
        assert!(why.contains("is damaged") && why.contains("a,b"), "{why}");
    }
}
