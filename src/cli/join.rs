//! `join`: makes a data directory a device of the hub that a pairing link names.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use reqwest::Method;

use super::process::Process;
use crate::app::App;
use crate::data_dir::{self, Claim, DataDir};
use crate::engine::{self, Device};
use crate::limits::sync::pairing::LONGEST_LINK;
use crate::sync::{Joined, Link, Purpose, TokenFile, joined};
use crate::web::Followed;

pub(super) async fn join(
    app: &App,
    data: &Path,
    link: Option<String>,
    root_certificate: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let name = app.name();
    let link: Link = match link.filter(|link| link != "-") {
        Some(link) => link,
        None => read_link(name)?,
    }
    .parse()?;
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
    let Joined { device, before } = link.join(data, root_certificate).await?;
    if let Holder::Us(_) = &process {
        // A gateway whose stores were moved out becomes a device of the hub that has them.
        DataDir::forget_gateways(data)?;
    }
    eprintln!("joined {} as {}; `{name}` alone syncs with it from now on", link.hub(), device.as_str());
    if let Some(before) = before.as_ref().map(Device::as_str) {
        eprintln!("it was {before} there before; end that name at the hub with `{name} token revoke {before}`");
    }
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

/// Reads the link from standard input. Every user of a machine can read the arguments of its commands, and a shell keeps
/// them.
fn read_link(name: &str) -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        eprint!("The link that `{name} pair` printed at the hub: ");
    }
    let mut line = String::new();
    io::BufReader::new(io::stdin().lock().take(LONGEST_LINK))
        .read_line(&mut line)
        .context("cannot read the link from standard input")?;
    match line.trim() {
        "" => bail!("there is no link on standard input; give `{name} join` what `{name} pair NAME` prints at the hub"),
        link => Ok(link.to_owned()),
    }
}

/// Who has the data directory.
enum Holder {
    Process(Process),
    Us(#[allow(dead_code, reason = "its use is to be dropped")] DataDir),
}
