//! Copies a whole data directory, in the process that holds it.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use super::DataDir;
use crate::engine::{self, StoreId};
use crate::sync::TokenFile;
use crate::sync::tokens::{read, replace};

/// Copies all stores and the tokens of the data directory `data` to the new or empty directory `to`, and returns the
/// number of stores. If it fails, nothing is left at `to`.
pub(crate) fn backup(data: &Path, to: &Path) -> anyhow::Result<usize> {
    let mut stores = engine::stores_in(&DataDir::stores(data))?;
    // A store that can't be inspected stays in the list: copying it says what is wrong.
    stores.retain(|store| !engine::is_blank(&DataDir::files(data, store)).unwrap_or(false));
    // A hub without events yet may have tokens.
    if stores.is_empty() && TokenFile::in_dir(data).list()?.is_empty() {
        bail!(
            "there is no data in {} yet, so there is nothing to copy; if it is elsewhere, name the directory with --data",
            data.display()
        );
    }
    // A partial copy looks like a complete one with fewer events, so it stays in a directory of its own until it is
    // complete.
    let part = to.join("incomplete");
    let is_new = !to.exists();
    if !is_new {
        make_room(to, &part)?;
    }
    let copied = copy_all(data, &stores, &part).and_then(|()| put_in_place(&part, to));
    if copied.is_err() {
        drop(fs::remove_dir_all(&part));
        if is_new {
            drop(fs::remove_dir(to));
        }
    }
    copied?;
    Ok(stores.len())
}

/// Makes sure that `to` is empty. Removes what a killed backup left there.
fn make_room(to: &Path, part: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(to).with_context(|| format!("cannot read {}", to.display()))? {
        if entry.with_context(|| format!("cannot read {}", to.display()))?.path() != part {
            bail!("{} is not empty; name a directory that doesn't exist yet", to.display());
        }
    }
    if part.exists() {
        fs::remove_dir_all(part).with_context(|| format!("cannot delete {}", part.display()))?;
    }
    Ok(())
}

/// Copies everything that belongs in a backup to the new directory `to`, durably.
fn copy_all(data: &Path, stores: &[StoreId], to: &Path) -> anyhow::Result<()> {
    engine::create_private_dir(to)?;
    for store in stores {
        engine::backup(&DataDir::files(data, store), &DataDir::files(to, store))
            .with_context(|| format!("the store {store} was not copied"))?;
    }
    // A restored hub goes on with the same devices, recognizes the same visitors, and knows the names of its items. A restored
    // gateway knows which tokens were in the bucket, so that it revokes none by having fewer, and brings none back.
    TokenFile::in_dir(data).copy_to(to)?;
    for file in [DataDir::visitor_key, DataDir::items, DataDir::gateways] {
        if let Some(bytes) = read(&file(data))? {
            replace(&file(to), &bytes)?;
        }
    }
    Ok(())
}

/// Moves everything in the directory `part` up into `to`, durably.
fn put_in_place(part: &Path, to: &Path) -> anyhow::Result<()> {
    let cannot_write = || format!("cannot write {}", to.display());
    for entry in fs::read_dir(part).with_context(cannot_write)? {
        let entry = entry.with_context(cannot_write)?;
        fs::rename(entry.path(), to.join(entry.file_name())).with_context(cannot_write)?;
    }
    fs::remove_dir(part).with_context(cannot_write)?;
    Ok(engine::sync_dir(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Purpose;

    #[test]
    fn a_copy_knows_the_same_visitors_and_items() {
        let dir = tempfile::tempdir().expect("a directory");
        let (data, to) = (dir.path().join("data"), dir.path().join("copy"));
        engine::create_private_dir(&data).expect("a directory");
        TokenFile::in_dir(&data).add("phone".parse().expect("a name"), Purpose::Sync).expect("a token");
        fs::write(DataDir::visitor_key(&data), "key").expect("written");
        fs::write(DataDir::items(&data), "{}").expect("written");
        assert_eq!(backup(&data, &to).expect("a copy"), 0);
        assert_eq!(fs::read(DataDir::visitor_key(&to)).expect("read"), b"key");
        assert_eq!(fs::read(DataDir::items(&to)).expect("read"), b"{}");
    }
}
