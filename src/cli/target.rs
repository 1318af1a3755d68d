//! What a command works on: a store in a data directory. Only one process can open its databases. So either the process
//! that has the directory does the work, or the command takes the directory and does it itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use reqwest::{Body, Method};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::process::Process;
use crate::app::App;
use crate::data_dir::{self, Claim, DataDir, read_only};
use crate::engine::{self, Files, Store, StoreId, StoreLimits, Stores};
use crate::node::{host_name, open_stores, show_progress};
use crate::sync::TokenFile;

/// How many stores are named to somebody who asks for one that isn't there.
const NAMED: usize = 10;

/// A store of an app, in a data directory.
pub(super) struct Target<'a> {
    pub(super) app: &'a App,
    pub(super) data: &'a Path,
    pub(super) store: StoreId,
}

/// Who writes.
pub(super) enum Writer {
    /// The process that has the data directory.
    Asked(Process),
    /// The command itself, which has the directory.
    Here(DataDir),
}

/// Who reads.
pub(super) enum Access {
    /// The process that has the data directory.
    Asked(Process),
    /// The command itself.
    Here(Here),
}

impl Target<'_> {
    /// Access for reading the store's files.
    ///
    /// # Errors
    ///
    /// When there is no data, or the process that has it can't be asked.
    pub(super) fn access(&self) -> anyhow::Result<Access> {
        if !DataDir::is_used(self.data)? {
            bail!(self.missing());
        }
        access(self.app, self.data, Some(&self.store))
    }

    /// Does `act` to the store. If a process has the data directory, that process does it: it answers `POST` with
    /// `body` on the store's control route `route`. Otherwise the command does it itself.
    ///
    /// # Errors
    ///
    /// When neither is possible, or the work itself fails.
    pub(super) async fn with_store<T, E>(
        &self,
        route: &str,
        body: Body,
        act: impl AsyncFnOnce(&Store) -> Result<T, E>,
    ) -> anyhow::Result<T>
    where
        T: DeserializeOwned,
        E: Into<anyhow::Error>,
    {
        match self.writer()? {
            Writer::Asked(process) => {
                let request = process.request(Method::POST, &format!("{}/{route}", self.store))?.body(body);
                process.answer(request).await
            }
            Writer::Here(dir) => self.open(&dir, act).await,
        }
    }

    /// Finds who can write to the store.
    ///
    /// # Errors
    ///
    /// When the data directory can only be read, or the process that has it can't be asked.
    pub(super) fn writer(&self) -> anyhow::Result<Writer> {
        writer(self.app, self.data)
    }

    /// Opens the store in `dir` for as long as `act` takes.
    ///
    /// # Errors
    ///
    /// When the store can't be opened, or `act` fails.
    pub(super) async fn open<T, E: Into<anyhow::Error>>(
        &self,
        dir: &DataDir,
        act: impl AsyncFnOnce(&Store) -> Result<T, E>,
    ) -> anyhow::Result<T> {
        open_all(self.app, dir, async |stores| act(&stores.get(&self.store)?).await.map_err(Into::into)).await
    }

    /// Fails unless the store has files.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub(super) fn must_exist(&self) -> anyhow::Result<()> {
        if DataDir::files(self.data, &self.store).exist() { Ok(()) } else { bail!(self.missing()) }
    }

    /// The files of the store, in a directory that the command has.
    ///
    /// # Errors
    ///
    /// When the store has no events, or can't be looked at.
    pub(super) fn files(&self, here: &Here) -> anyhow::Result<Files> {
        let files = DataDir::files(here.dir.path(), &self.store);
        if engine::is_blank(&files)? {
            bail!(self.missing());
        }
        Ok(files)
    }

    /// Fails when the data has no such store, unless it is the one that everybody begins with.
    ///
    /// # Errors
    ///
    /// When the name is most likely misspelled.
    pub(super) fn must_be_known(&self) -> anyhow::Result<()> {
        let is_first = self.store.as_str() == self.app.store_name();
        if is_first || !DataDir::is_used(self.data)? { Ok(()) } else { self.must_exist() }
    }

    /// Says that the store isn't there.
    pub(super) fn missing(&self) -> String {
        let (store, data) = (&self.store, self.data.display());
        let known = engine::stores_in(&DataDir::stores(self.data)).unwrap_or_default();
        let known: Vec<_> = known.iter().take(NAMED).map(StoreId::as_str).collect();
        let there = if known.is_empty() { String::new() } else { format!(" (there are {})", known.join(", ")) };
        format!("there is no store {store} in {data}{there}; name the directory with --data, the store with --store")
    }
}

/// Finds who can write to a data directory.
///
/// # Errors
///
/// As [`Target::writer`].
pub(super) fn writer(app: &App, data: &Path) -> anyhow::Result<Writer> {
    Ok(match DataDir::claim(data)? {
        Claim::Taken(holder) => Writer::Asked(Process::new(app, data, holder)?),
        Claim::Ours(dir) => Writer::Here(dir),
        Claim::ReadOnly(_) => bail!(read_only(data)),
    })
}

/// Opens the stores in `dir` for as long as `act` takes.
///
/// # Errors
///
/// When they can't be opened, or `act` fails.
pub(super) async fn open_all<T>(
    app: &App,
    dir: &DataDir,
    act: impl AsyncFnOnce(&Stores) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let stores = open_stores(dir, app.schema(), &host_name(app), StoreLimits::default(), false, show_progress)?;
    let result = act(&stores).await;
    tokio::task::spawn_blocking(move || stores.close()).await.context("cannot close the stores")?;
    result
}

/// Access to all stores of a data directory.
///
/// # Errors
///
/// As [`Target::access`].
pub(super) fn access_to_all(app: &App, data: &Path) -> anyhow::Result<Access> {
    if !DataDir::is_used(data)? {
        bail!(
            "there is no data in {}; run `{}` and use it, or name the directory with --data",
            data.display(),
            app.name()
        );
    }
    access(app, data, None)
}

fn access(app: &App, data: &Path, store: Option<&StoreId>) -> anyhow::Result<Access> {
    Ok(match DataDir::claim(data)? {
        Claim::Taken(holder) => Access::Asked(Process::new(app, data, holder)?),
        Claim::Ours(dir) => Access::Here(Here { dir, _copy: None }),
        Claim::ReadOnly(reading) => {
            let copy = private_copy(data, store)
                .with_context(|| format!("{} can only be read, and copying it to read from failed", data.display()))?;
            drop(reading);
            let dir = DataDir::take(&data_dir::locate(&copy.path().join("data"))?)?;
            Access::Here(Here { dir, _copy: Some(copy) })
        }
    })
}

/// A data directory that the command reads: the one that was named, or a copy.
pub(super) struct Here {
    pub(super) dir: DataDir,
    /// Dropped last.
    _copy: Option<TempDir>,
}

/// Copies a data directory, or one store of it, to where SQLite can write: SQLite can't read a database whose WAL it
/// may not touch. The copy says what the files say. Nobody can tell whether that is on a disk.
fn private_copy(data: &Path, store: Option<&StoreId>) -> anyhow::Result<TempDir> {
    let copy = tempfile::Builder::new().prefix("likewise-").tempdir()?;
    // The directory for temporary files may be open to others; this one isn't.
    let to = copy.path().join("data");
    engine::create_private_dir(&to)?;
    for id in engine::stores_in(&DataDir::stores(data))? {
        if store.is_some_and(|store| *store != id) {
            continue;
        }
        let (from, to) = (DataDir::files(data, &id), DataDir::files(&to, &id));
        engine::create_private_dir(to.dir())?;
        for entry in fs::read_dir(from.dir()).with_context(|| format!("cannot read {}", from.dir().display()))? {
            copy_file(&from.dir().join(entry?.file_name()), to.dir())?;
        }
    }
    TokenFile::in_dir(data).copy_to(&to)?;
    Ok(copy)
}

fn copy_file(path: &Path, to: &Path) -> anyhow::Result<()> {
    let to: PathBuf = to.join(path.file_name().context("BUG: a file without a name")?);
    if let Some(mut file) = engine::open_to_read(path)? {
        let mut copied = engine::open_private_file(&to)?;
        io::copy(&mut file, &mut copied).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok(())
}
