//! The lock on a directory of stores. One process at a time holds it, and any other is told which.
//!
//! SQLite's own locks would stop a second process at each store. But they wouldn't tell it that its count for a store
//! that it found empty is out of date.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::error::{Fault, IoContext};
use super::files::{Access, create_private_dir, exists, open_private_file, open_to_read};

/// The name of the lock's file. No store can have it.
const NAME: &str = ".lock";

/// The one that keeps other processes out of a directory of stores.
pub(crate) enum Guard {
    /// The code that opened the stores.
    Caller,
    /// The stores, as soon as the directory exists.
    Stores { dir: PathBuf, held: Mutex<Option<DirLock>> },
}

impl Guard {
    /// Returns the guard of the stores in `dir`, to be [claimed](Self::claim).
    pub(crate) fn of(dir: &Path) -> Self {
        Self::Stores { dir: dir.to_owned(), held: Mutex::default() }
    }

    /// Makes sure that no other process has the directory, if it exists. Doesn't create the directory.
    ///
    /// # Errors
    ///
    /// [`Fault::InUse`] if another process has it, or a fault of the machine.
    pub(crate) fn claim(&self) -> Result<(), Fault> {
        match self {
            Self::Stores { dir, .. } if exists(dir)? => self.claim_for_files(),
            _ => Ok(()),
        }
    }

    /// Does the same as [`claim`](Self::claim) before files are created there. Creates the directory if it doesn't
    /// exist.
    pub(crate) fn claim_for_files(&self) -> Result<(), Fault> {
        let Self::Stores { dir, held } = self else { return Ok(()) };
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(DirLock::take(dir)?);
        }
        Ok(())
    }

    /// Lets other processes in.
    pub(crate) fn release(&self) {
        if let Self::Stores { held, .. } = self {
            held.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

/// A lock on a directory. It ends when this is dropped or when the process ends in any way.
pub(crate) struct DirLock {
    /// `None` on media that can't be written and have no lock file. Nobody else writes there either.
    _file: Option<File>,
}

impl DirLock {
    fn take(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join(NAME);
        if exists(dir)? && Access::to(dir) == Access::Read {
            let file = open_to_read(&path)?;
            return match file.as_ref().map(File::try_lock_shared) {
                Some(Err(TryLockError::WouldBlock)) => Err(in_use(dir, file)),
                _ => Ok(Self { _file: file }),
            };
        }
        create_private_dir(dir)?;
        let mut file = open_private_file(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(dir, Some(file))),
            Err(TryLockError::Error(error)) => return Err(error).doing("lock", &path),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(std::process::id().to_string().as_bytes())
        };
        write(&mut file).doing("write", &path)?;
        Ok(Self { _file: Some(file) })
    }
}

/// Returns the fault that says who has the directory, as far as the lock's file tells.
fn in_use(dir: &Path, file: Option<File>) -> Fault {
    /// Long enough for any process id. Anything after it isn't ours.
    const LONGEST: u64 = 20;
    let mut text = String::new();
    let read = file.map(|file| file.take(LONGEST).read_to_string(&mut text));
    let pid = read.and_then(Result::ok).and_then(|_| text.trim().parse().ok());
    Fault::InUse { dir: dir.to_owned(), pid }
}
