//! Directories and files of ours: how they are made, for nobody but their owner, and made durable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::storage::{Fault, IoContext};

/// Makes a directory that only its owner may enter, with those above it, durably.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), Fault> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_private_dir(parent)?;
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.doing("create the directory", path),
    }?;
    sync_parent(path)
}

/// Opens a file for reading and writing that only its owner may open, and makes it when it isn't there.
pub(crate) fn open_private_file(path: &Path) -> Result<File, Fault> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).doing("open", path)
}

/// Makes the name of a new file or directory durable; SQLite leaves that to others.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Fault> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_dir(parent)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), Fault> {
    if cfg!(unix) {
        File::open(path).and_then(|dir| dir.sync_all()).doing("make durable the directory", path)?;
    }
    Ok(())
}
