//! `join`: makes a data directory a device of the hub that a pairing link names.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use crate::app::App;
use crate::data_dir::{Claim, DataDir};
use crate::engine;
use crate::sync::{Link, Purpose, TokenFile, joined};

pub(super) async fn join(
    app: &App,
    data: &Path,
    link: &str,
    root_certificate: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let name = app.name();
    let link: Link = link.parse()?;
    if let Some(hub) = joined(data)?
        && hub.url != link.hub()
    {
        bail!(
            "{0} is a device of the hub {1} already. To move it to {2}: stop {name}, delete {0}/upstream.json, join again, start \
             {name}, and then run `{name} adopt`, which brings everything along",
            data.display(),
            hub.url,
            link.hub()
        );
    }
    // Held meanwhile, unless a process has it.
    let claim = DataDir::claim(data)?;
    if let Claim::ReadOnly(_) = claim {
        bail!(crate::data_dir::read_only(data));
    }
    engine::create_private_dir(data)?;
    let devices = TokenFile::in_dir(data).list()?;
    let called = link.join(data, root_certificate).await?;
    eprintln!("joined {} as {called}; `{name}` alone syncs with it from now on", link.hub());
    if devices.iter().any(|token| token.purpose != Purpose::Read) {
        eprintln!(
            "{} was a hub itself. Its devices and browsers can't use it any more; pair them with {}",
            data.display(),
            link.hub()
        );
    }
    if let Claim::Taken(_) = claim {
        eprintln!("{name} is running on {}; stop it and start it again to sync", data.display());
    }
    Ok(ExitCode::SUCCESS)
}
