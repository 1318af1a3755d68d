//! `pair`: a link with which a browser or another machine gets a token of this hub.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use reqwest::Method;

use super::process::Process;
use super::tokens::tell_process;
use crate::app::App;
use crate::data_dir::{Claim, DataDir};
use crate::engine::{self, Device};
use crate::sync::{PairingFile, joined};
use crate::web::{PairingAt, PublicUrl};

/// What else is asked for.
pub(super) struct Asked {
    /// Where others reach the hub, if the command line says so.
    pub(super) public_url: Option<PublicUrl>,
    /// Whether to draw the QR code in any case.
    pub(super) qr: bool,
}

pub(super) async fn pair(app: &App, data: &Path, name: Device, asked: Asked) -> anyhow::Result<ExitCode> {
    let app_name = app.name();
    let url = public_url(app, data, asked.public_url).await?;
    if !url.is_private() {
        bail!(
            "{url} is plain http, over which anybody in the network could read the link, and use it first. {}",
            two_ways(app_name)
        );
    }
    engine::create_private_dir(data)?;
    let invitation = PairingFile::in_dir(data).open(name.clone())?;
    if DataDir::gateways(data).exists() {
        // Whoever opens the link may get to another gateway.
        tell_process(app, data).await?;
    }
    let link = format!("{url}/pair#{}", invitation.secret);
    let is_shown = io::stdout().is_terminal();
    if is_shown || asked.qr {
        draw(&link)?;
    }
    writeln!(io::stdout(), "{link}")?;
    eprintln!(
        "This link is for {}. Open it in a browser, or run `{app_name} join` on another machine and paste it there. It is good \
         once, within ten minutes.",
        name.as_str()
    );
    eprintln!("Without the link: open {url}/pair and type {}", invitation.code);
    if url.is_local() {
        eprintln!("It works on this machine alone, because phones and other machines need TLS. {}", two_ways(app_name));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where others reach the hub: what the command line says, or else what the process that serves the data says.
async fn public_url(app: &App, data: &Path, given: Option<PublicUrl>) -> anyhow::Result<PublicUrl> {
    if let Some(hub) = joined(data)? {
        bail!("{} is a device of the hub {}, so nothing pairs with it. Make the link there", data.display(), hub.url);
    }
    let known = match DataDir::claim(data)? {
        Claim::Taken(holder) => {
            let process = Process::new(app, data, holder)?;
            let PairingAt { public_url } = process.answer(process.request(Method::GET, "pairing")?).await?;
            public_url
        }
        Claim::Ours(_) | Claim::ReadOnly(_) if given.is_none() => bail!(
            "{0} isn't running on {1}, so it isn't known where others will reach it. Start it first, or name the address with \
             --public-url",
            app.name(),
            data.display()
        ),
        Claim::Ours(_) | Claim::ReadOnly(_) => None,
    };
    match (given, known) {
        (Some(given), _) => Ok(given),
        (None, Some(known)) => Ok(known.parse()?),
        (None, None) => bail!(
            "{0} doesn't know under which address others reach it. Start it with --public-url https://NAME. {1}",
            app.name(),
            two_ways(app.name())
        ),
    }
}

/// How a hub gets TLS, without which a link could be read on its way.
fn two_ways(app: &str) -> String {
    format!(
        "There are two ways to have TLS: a proxy in front, such as Caddy, which takes two lines for a name of your own \
         (docs/proxies.md); or a tunnel or tailnet that gives this machine a name with TLS, such as `tailscale serve`. Start \
         {app} with --public-url https://THAT-NAME"
    )
}

/// Draws a QR code, black on white whatever the terminal's colours are: not every phone reads the inverse.
fn draw(link: &str) -> anyhow::Result<()> {
    let code = QrCode::new(link)?.render::<Dense1x2>().build();
    let mut err = io::stderr().lock();
    let is_coloured = io::stderr().is_terminal();
    for line in code.lines() {
        match is_coloured {
            true => writeln!(err, "\x1b[30;107m{line}\x1b[0m")?,
            false => writeln!(err, "{line}")?,
        }
    }
    Ok(())
}
