//! Directories for simulated machines.
//!
//! Written by hand, because without the feature `app` the library has no other use for a crate of temporary
//! directories.

use std::fs;
use std::path::{Path, PathBuf};

use crate::random;

/// A directory that is deleted when this value is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Creates a directory, in memory if possible: simulated machines never really lose power.
    pub(super) fn new() -> Self {
        let name = format!("likewise-test-{}", random::hex::<8>());
        let make = |parent: &Path| fs::create_dir(parent.join(&name)).map(|()| Self(parent.join(&name)));
        let memory = Path::new("/dev/shm");
        let in_memory = if memory.is_dir() { make(memory).ok() } else { None };
        let elsewhere = std::env::temp_dir();
        in_memory.unwrap_or_else(|| {
            make(&elsewhere).unwrap_or_else(|why| {
                panic!(
                    "can't make a directory in {}: {why}. Set TMPDIR to one that can be written to",
                    elsewhere.display()
                )
            })
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover directory is untidy but harmless.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Copies a store while it is open, which is how a killed process leaves it.
pub(super) fn copy_dir(from: &Path, to: &Path) {
    let copy = || {
        fs::create_dir_all(to)?;
        for file in fs::read_dir(from)? {
            let file = file?;
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
        std::io::Result::Ok(())
    };
    copy().unwrap_or_else(|why| panic!("can't copy {} to {}: {why}", from.display(), to.display()));
}
