//! Our directories and files. They are private to their owner, durable, and distinguished from other users' files.
//!
//! Another user who can put a file into a data directory must not decide what this program overwrites. So no symbolic
//! link in it is followed. Where this process can write, everything it opens has to belong to the user it runs as.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::path::Path;

use super::error::{Fault, IoContext, NotOurs};

/// What this process can do in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It can create and change files, so everything has to be ours.
    Write,
    /// It can only read: the directory is on read-only media, or its owner has removed the right to write.
    Read,
}

impl Access {
    /// Returns what this process can do in the directory at `path`, which may not exist yet.
    pub(crate) fn to(path: &Path) -> Self {
        #[cfg(unix)]
        {
            use rustix::fs::{Access as Asked, AtFlags, CWD, accessat};
            use rustix::io::Errno;

            let is_ours = || fs::metadata(path).is_ok_and(|meta| owner(&meta) == us());
            match accessat(CWD, path, Asked::WRITE_OK, AtFlags::EACCESS) {
                Err(Errno::ROFS) => return Self::Read,
                Err(Errno::ACCESS | Errno::PERM) if is_ours() => return Self::Read,
                _ => {}
            }
        }
        Self::Write
    }
}

/// Returns the user that this process acts as.
#[cfg(unix)]
pub(crate) fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(unix)]
fn owner(meta: &Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::uid(meta)
}

/// Durably creates a directory that only its owner may enter, and its missing parents. An existing one has to be
/// [ours](check_dir).
pub(crate) fn create_private_dir(path: &Path) -> Result<(), Fault> {
    if exists(path)? {
        return check_dir(path);
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        create_private_dir(parent)?;
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return check_dir(path),
        other => other.doing("create the directory", path)?,
    }
    sync_parent(path)
}

/// Returns whether something has this name. A dangling link counts.
pub(crate) fn exists(path: &Path) -> Result<bool, Fault> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).doing("look at", path),
    }
}

/// Opens a file for reading and writing, and creates it if it doesn't exist. Only its owner may open it. An existing
/// file has to be ours and have no other name.
pub(crate) fn open_private_file(path: &Path) -> Result<File, Fault> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = open(path, &mut options)?;
    check_sole_name(path, &file.metadata().doing("look at", path)?)?;
    Ok(file)
}

/// Opens a file of ours only for reading, if it exists.
pub(crate) fn open_to_read(path: &Path) -> Result<Option<File>, Fault> {
    match open(path, OpenOptions::new().read(true)) {
        Ok(file) => Ok(Some(file)),
        Err(Fault::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, Fault> {
    // Don't follow links, and don't wait for the other end of a pipe.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        options,
        (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed(),
    );
    match options.open(path) {
        Ok(file) => {
            check_file(path, &file.metadata().doing("look at", path)?)?;
            Ok(file)
        }
        Err(error) => {
            // For a link, the system only reports too many links. For another user's file, it only denies permission.
            if let Ok(meta) = fs::symlink_metadata(path) {
                check_file(path, &meta)?;
            }
            Err(error).doing("open", path)
        }
    }
}

/// Refuses a directory that is a link. Where we can write, also refuses one that is another user's or everybody's.
pub(crate) fn check_dir(path: &Path) -> Result<(), Fault> {
    let meta = fs::symlink_metadata(path).doing("look at", path)?;
    if meta.is_symlink() {
        return Err(NotOurs::Link(path.to_owned()).into());
    }
    if !meta.is_dir() {
        return Err(NotOurs::Kind { path: path.to_owned(), wanted: "a directory" }.into());
    }
    #[cfg(unix)]
    if Access::to(path) == Access::Write {
        // In a sticky directory nobody can replace other users' files. A group is trusted: many users have one of
        // their own, and a umask that lets it write.
        const EVERYBODY: u32 = 0o002;
        const STICKY: u32 = 0o1000;
        check_owner(path, &meta)?;
        if std::os::unix::fs::MetadataExt::mode(&meta) & (EVERYBODY | STICKY) == EVERYBODY {
            return Err(NotOurs::Open(path.to_owned()).into());
        }
    }
    Ok(())
}

/// Refuses a store's directory if it isn't [ours](check_dir). Refuses files in it that SQLite would open by name if
/// they are links, another user's or have another name. `names` are the prefixes of those files' names.
pub(crate) fn check_files(dir: &Path, names: &[&str]) -> Result<(), Fault> {
    if !exists(dir)? {
        return Ok(());
    }
    check_dir(dir)?;
    for entry in fs::read_dir(dir).doing("read", dir)? {
        let entry = entry.doing("read", dir)?;
        let name = entry.file_name();
        if !names.iter().any(|ours| name.as_encoded_bytes().starts_with(ours.as_bytes())) {
            continue;
        }
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) => {
                check_file(&path, &meta)?;
                check_sole_name(&path, &meta)?;
            }
            // The process that had the store open may just have closed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing("look at", &path),
        }
    }
    Ok(())
}

/// Refuses anything that isn't a regular file. Where we can write, also refuses another user's file.
fn check_file(path: &Path, meta: &Metadata) -> Result<(), NotOurs> {
    if meta.is_symlink() {
        return Err(NotOurs::Link(path.to_owned()));
    }
    if !meta.is_file() {
        return Err(NotOurs::Kind { path: path.to_owned(), wanted: "a file" });
    }
    if Access::to(parent(path)) == Access::Write { check_owner(path, meta) } else { Ok(()) }
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "who owns a file is said in other ways there"))]
fn check_owner(path: &Path, meta: &Metadata) -> Result<(), NotOurs> {
    #[cfg(unix)]
    if owner(meta) != us() {
        return Err(NotOurs::Owner { path: path.to_owned(), owner: owner(meta), us: us() });
    }
    Ok(())
}

/// Where we can write, refuses a file that has another name, because it would change under that name as well.
#[cfg_attr(not(unix), expect(unused_variables, reason = "the number of names isn't known there"))]
fn check_sole_name(path: &Path, meta: &Metadata) -> Result<(), NotOurs> {
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(meta) > 1 && Access::to(parent(path)) == Access::Write {
        return Err(NotOurs::Shared(path.to_owned()));
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the name of a new file or directory durable. SQLite leaves that to its caller.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Fault> {
    sync_dir(parent(path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), Fault> {
    if cfg!(unix) {
        File::open(path).and_then(|dir| dir.sync_all()).doing("make durable the directory", path)?;
    }
    Ok(())
}

/// Returns how many bytes this user may still write where `path` is, if that can be known; 0 if there is no room for another
/// file.
#[cfg(all(unix, feature = "app"))]
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let has_no_names = disk.f_files > 0 && disk.f_favail == 0;
    Some(if has_no_names { 0 } else { disk.f_bavail.saturating_mul(disk.f_frsize) })
}

#[cfg(all(not(unix), feature = "app"))]
pub(crate) fn free_bytes(_: &Path) -> Option<u64> {
    None
}
