//! Root acts as the user who owns the data.
//!
//! Another user's server couldn't open a file that root made, with `sudo likewise token add` for example. And the owner
//! of the directory could lead root astray in it, between a check and the step after it. So root takes on that user's
//! rights before it touches anything: what it makes is that user's, and it can reach nothing else.

use std::path::Path;

#[cfg(not(unix))]
pub(crate) fn act_as_owner(_name: &str, _data: &Path, _copy: Option<&Path>) -> anyhow::Result<()> {
    Ok(())
}

/// Gives up being root, for good, if the data directory `data` is another user's, or will be made in another user's
/// directory. A copy at `copy` becomes that user's as well, so its directory is made and given away while root still can.
///
/// Must come before the first thread starts. Each thread has its own user, which new threads inherit.
///
/// # Errors
///
/// When root may not do so here, or when that user can't reach `copy`.
#[cfg(unix)]
pub(crate) fn act_as_owner(name: &str, data: &Path, copy: Option<&Path>) -> anyhow::Result<()> {
    use anyhow::{Context, bail};

    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let Some(owner) = Owner::of(data)? else { return Ok(()) };
    if let Some(copy) = copy {
        let copy = std::path::absolute(copy).with_context(|| format!("cannot find {}", copy.display()))?;
        if let Some(barred) = copy.ancestors().skip(1).find(|dir| owner.is_barred_from(dir)) {
            bail!(
                "the copy is to belong to the user {}, as the data does, and that user can't enter {}. Copy to a directory \
                 below another one",
                owner.user,
                barred.display()
            );
        }
        owner.give_new_dir(&copy)?;
    }
    owner.take_on().with_context(|| {
        let user = owner.user;
        format!("{} belongs to the user {user}, whom root can't act as here; run {name} as {user}", data.display())
    })?;
    tracing::info!("acting as the user {}, because {} is that user's", owner.user, data.display());
    Ok(())
}

/// The owner of a directory.
#[cfg(unix)]
struct Owner {
    user: u32,
    group: u32,
}

#[cfg(unix)]
impl Owner {
    /// The owner of the directory `data`, or of the directory that it will be made in. `None` if that is root, or if
    /// everybody may make directories there.
    fn of(data: &Path) -> anyhow::Result<Option<Self>> {
        use anyhow::Context;
        use std::os::unix::fs::MetadataExt;

        let Some(dir) = data.ancestors().find(|dir| dir.exists()) else { return Ok(None) };
        let meta = dir.metadata().with_context(|| format!("cannot look at {}", dir.display()))?;
        let is_everybodys = dir != data && meta.mode() & 0o002 != 0;
        let owner = Self { user: meta.uid(), group: meta.gid() };
        Ok((owner.user != 0 && !is_everybodys).then_some(owner))
    }

    /// Takes on this user's rights, for good.
    #[cfg(target_os = "linux")]
    fn take_on(&self) -> std::io::Result<()> {
        use rustix::process::{Gid, Uid};
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        Ok(set_thread_res_uid(user, user, user)?)
    }

    /// Other systems offer no call for that without unsafe code.
    #[cfg(not(target_os = "linux"))]
    fn take_on(&self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Whether the rights on an existing directory keep this user out of it.
    fn is_barred_from(&self, dir: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;

        let Ok(meta) = dir.metadata() else { return false };
        let to_enter = match () {
            () if meta.uid() == self.user => 0o100,
            () if meta.gid() == self.group => 0o010,
            () => 0o001,
        };
        meta.mode() & to_enter == 0
    }

    /// Makes the directory `path` and the missing ones above it for this user, if only root can make them.
    fn give_new_dir(&self, path: &Path) -> anyhow::Result<()> {
        use crate::engine::create_private_dir;
        use anyhow::Context;
        use std::os::unix::fs::{MetadataExt, lchown};

        let missing: Vec<_> = path.ancestors().take_while(|dir| !dir.exists()).collect();
        let above = missing.last().and_then(|dir| dir.parent()).and_then(|dir| dir.metadata().ok());
        // Elsewhere the user needs no help, or somebody else could have led root there.
        let is_roots = |dir: &Path| dir.symlink_metadata().is_ok_and(|meta| meta.uid() == 0);
        if above.is_some_and(|meta| meta.mode() & 0o022 == 0 || meta.mode() & 0o1000 != 0)
            && path.ancestors().skip(missing.len()).all(is_roots)
        {
            for dir in missing.iter().rev() {
                create_private_dir(dir)?;
                lchown(dir, Some(self.user), Some(self.group))
                    .with_context(|| format!("cannot give {} to the user {}", dir.display(), self.user))?;
            }
        }
        Ok(())
    }
}
