//! `join`: makes a data directory a device of the hub that a pairing link names.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use reqwest::Method;

use super::process::Process;
use crate::app::App;
use crate::data_dir::{self, Claim, DataDir};
use crate::engine;
use crate::sync::{Link, Purpose, TokenFile, joined};
use crate::web::Followed;

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
    engine::create_private_dir(data)?;
    // Held meanwhile, unless a process has it.
    let process = match DataDir::claim(data)? {
        Claim::Taken(holder) => Holder::Process(Process::new(app, data, holder)?),
        Claim::Ours(dir) => Holder::Us(dir),
        Claim::ReadOnly(_) => bail!(data_dir::read_only(data)),
    };
    if let Holder::Process(process) = &process {
        let followed: anyhow::Result<Followed> = process.answer(process.request(Method::GET, "joined")?).await;
        followed.with_context(|| {
            format!("the process that serves {} can't follow a hub; stop it first. It says", data.display())
        })?;
    }
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
    if let Holder::Process(process) = &process {
        let Followed { url } = process.answer(process.request(Method::POST, "joined")?).await?;
        match url.filter(|url| url != link.hub()) {
            None => eprintln!("the running process syncs with it now"),
            Some(other) => {
                eprintln!("the running process follows {other}, as it was told; start it again without --upstream")
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Who has the data directory.
enum Holder {
    Process(Process),
    Us(#[allow(dead_code, reason = "its use is to be dropped")] DataDir),
}
