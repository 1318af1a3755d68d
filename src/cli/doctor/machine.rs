//! What `doctor` looks at on this machine: the files, the disk and the tokens.

use std::fs::{self, Metadata};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Finding, Patient};
use crate::data_dir::DataDir;
use crate::engine::{Access, free_bytes, open_private_file};
use crate::limits::app::doctor::{FREE, PROBE};
use crate::sync::{Purpose, TokenFile};

impl Patient<'_> {
    /// Whether everything in the data directory is its owner's.
    pub(super) fn files(&self) -> Finding {
        const CHECK: &str = "files";
        match DataDir::is_used(self.data) {
            Ok(true) => {}
            Ok(false) => {
                let data = self.data.display();
                return Finding::unknown(CHECK, format!("nobody has used {data} yet; name another place with --data"));
            }
            Err(error) => return Finding::failed(CHECK, &error),
        }
        if let Err(error) = DataDir::check(self.data) {
            return Finding::failed(CHECK, &error);
        }
        match strangers(self.data) {
            Err(error) => Finding::failed(CHECK, &error),
            Ok(found) if found.is_empty() => {
                Finding::ok(CHECK, format!("everything in {} is its owner's", self.data.display()))
            }
            Ok(found) => {
                let data = self.data.display();
                let (advice, wrong): (_, Vec<_>) = if found.iter().any(|(_, kind)| *kind == Odd::Link) {
                    let links = found.iter().filter(|(_, kind)| *kind == Odd::Link).collect();
                    ("Put what they name in the place of links".to_owned(), links)
                } else {
                    let advice =
                        format!("Give them to the owner of the directory: `chown -hR --reference={data} {data}`");
                    (advice, found.iter().collect())
                };
                let (first, kind) = wrong[0];
                let more =
                    if wrong.len() > 1 { format!(", and so do {} more", wrong.len() - 1) } else { String::new() };
                Finding::problem(CHECK, format!("{} {}{more}", first.display(), kind.words()), advice)
            }
        }
    }

    /// Whether there is room, and whether it can be written to.
    pub(super) fn disk(&self) -> Finding {
        const CHECK: &str = "disk";
        let free = free_bytes(self.data);
        let shown = free.map(|free| format!("{} MB free", free / 1_000_000));
        if Access::to(self.data) == Access::Read {
            return Finding::problem(
                CHECK,
                format!("{} can only be read", self.data.display()),
                "Make it writable, or mount the disk for writing",
            );
        }
        if let Err(why) = probe(self.data) {
            let shown = shown.map(|shown| format!(" ({shown})")).unwrap_or_default();
            let found = format!("nothing can be written to {}{shown}: {why}", self.data.display());
            return Finding::problem(
                CHECK,
                found,
                "Make room, or mend the disk. Nothing acknowledged is lost meanwhile",
            );
        }
        match (free, shown) {
            (Some(free), Some(shown)) if free < FREE => {
                Finding::problem(CHECK, format!("only {shown} where the data is"), "Make room before likes are refused")
            }
            (_, Some(shown)) => Finding::ok(CHECK, format!("{shown} where the data is, and it can be written")),
            (_, None) => Finding::ok(CHECK, "it can be written to"),
        }
    }

    /// Whether the tokens can be read.
    pub(super) fn tokens(&self) -> Finding {
        const CHECK: &str = "tokens";
        match TokenFile::in_dir(self.data).list() {
            Ok(tokens) => {
                let devices = tokens.iter().filter(|token| token.purpose == Purpose::Sync).count();
                let noun = if devices == 1 { "device" } else { "devices" };
                Finding::ok(CHECK, format!("{devices} {noun} may sync with this one"))
            }
            Err(error) => Finding {
                advice: Some("Take the file from a backup, or remove it and add the devices again".to_owned()),
                ..Finding::failed(CHECK, &error)
            },
        }
    }
}

/// What is wrong with a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Odd {
    Link,
    Owner,
}

impl Odd {
    fn words(self) -> &'static str {
        match self {
            Self::Link => "leads out of the data as a symbolic link",
            Self::Owner => "belongs to another user than the directory",
        }
    }
}

/// Everything below `dir` that isn't its owner's, or is a link.
fn strangers(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Odd)>> {
    let owner = fs::symlink_metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
            // Files of a store come and go.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_symlink() {
                found.push((entry.path(), Odd::Link));
            } else if !is_same_owner(&meta, &owner) {
                found.push((entry.path(), Odd::Owner));
            } else if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

#[cfg(unix)]
fn is_same_owner(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    one.uid() == other.uid()
}

#[cfg(not(unix))]
fn is_same_owner(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// Writes a little, has it synced, and removes it.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join("doctor.new");
    let write = || {
        let mut file = open_private_file(&path).map_err(io::Error::other)?;
        file.write_all(&[0; PROBE])?;
        file.sync_all()
    };
    let written = write();
    let removed = fs::remove_file(&path);
    written.and(removed)
}
