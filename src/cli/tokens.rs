//! `token`: the devices that may sync with this hub.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::arguments::TokenCommand;
use super::process::Process;
use crate::app::App;
use crate::data_dir::{Claim, DataDir};
use crate::engine;
use crate::sync::{Purpose, Seen, TokenFile, plain};
use crate::web;

/// Has the process that serves the data read its tokens and links, and says that it did. A gateway's process tells all other
/// gateways, too. Says what follows if there is no process: it reads them when it starts.
pub(super) async fn tell_process(app: &App, data: &Path) -> anyhow::Result<&'static str> {
    let is_of_gateway = DataDir::gateways(data).exists();
    let later = if is_of_gateway { "; the other gateways know once this one is started" } else { "" };
    let Claim::Taken(holder) = DataDir::claim(data)? else { return Ok(later) };
    // One that doesn't listen yet hasn't read them yet.
    let Ok(process) = Process::new(app, data, holder) else { return Ok(later) };
    let asked = process.tell("tokens").await;
    asked.with_context(|| match is_of_gateway {
        true => "the file is changed, and all other gateways will know when the cluster is reached; they may not know it yet",
        false => "the file is changed, but the running process may not know it yet",
    })?;
    Ok(if is_of_gateway { "; all gateways know, or will within seconds" } else { "; the running process knows" })
}

/// A file that was not there before, for a token. It goes again if there is none.
struct NewFile {
    path: PathBuf,
    file: Option<File>,
}

impl NewFile {
    fn create(path: PathBuf) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).with_context(|| match path.exists() {
            true => format!("{} is there already, and a token overwrites nothing; name another file", path.display()),
            false => format!("cannot create {}", path.display()),
        })?;
        Ok(Self { path, file: Some(file) })
    }

    fn write(mut self, token: &str) -> anyhow::Result<()> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let written = writeln!(file, "{token}").and_then(|()| file.sync_all());
        written.with_context(|| format!("cannot write the token to {}; it is {token}", self.path.display()))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            drop(fs::remove_file(&self.path));
        }
    }
}

pub(super) async fn token(app: &App, data: &Path, command: TokenCommand) -> anyhow::Result<ExitCode> {
    let name = app.name();
    let file = TokenFile::in_dir(data);
    if DataDir::gateways(data).exists() {
        // Another gateway may have changed them a moment ago. If that can't be known now, it is known later.
        drop(tell_process(app, data).await);
    }
    match command {
        TokenCommand::Add { name: device, read, out: place } => {
            engine::create_private_dir(data)?;
            let purpose = if read { Purpose::Read } else { Purpose::Sync };
            // Before there is a token that would then be nowhere.
            let place = place.map(NewFile::create).transpose()?;
            let token = file.add(device.clone(), purpose)?;
            let (is, it) = match place {
                Some(place) => {
                    let is = format!("is in {}, and nowhere else", place.path.display());
                    place.write(&token)?;
                    (is, "Bring that file to that device")
                }
                None => {
                    writeln!(io::stdout(), "{token}")?;
                    ("is shown only now".to_owned(), "Put it into a file on that device")
                }
            };
            let told = tell_process(app, data).await?;
            if !file.list()?.iter().any(|known| known.device == device && known.is(&token)) {
                bail!(
                    "the device {0} has a token already, from another gateway, so this one was taken back; revoke that first \
                     with `token revoke {0}`, or choose another name",
                    device.as_str()
                );
            }
            let use_it = match purpose {
                Purpose::Sync => format!("{it}, and start {name} there with --upstream URL --token-file FILE"),
                Purpose::Read | Purpose::Browser => {
                    "It opens /status and /metrics as a bearer token, and nothing else".to_owned()
                }
            };
            eprintln!("the token of {} {is}. {use_it}{told}", device.as_str());
        }
        TokenCommand::Revoke { name: device } => {
            let purpose = file.revoke(&device)?;
            let told = tell_process(app, data).await?;
            let what = match purpose {
                Purpose::Sync => "can no longer sync; what it pushed stays",
                Purpose::Read => "can no longer read",
                Purpose::Browser => "no longer sees the page; what it posted stays",
            };
            eprintln!("{} {what}{told}", device.as_str());
        }
        TokenCommand::List => {
            let mut text = Vec::new();
            let out = &mut text;
            let seen = Seen::read(data);
            let tokens = file.list()?;
            if tokens.is_empty() {
                eprintln!(
                    "there are no devices in {}; `{name} pair NAME` makes a link for one, and \
                     `{name} token add NAME` a token",
                    data.display()
                );
            }
            for token in tokens {
                let device = token.device.as_str();
                let made = web::date_time(token.created);
                let kind = token.purpose.as_str();
                match seen.get(device) {
                    _ if token.purpose == Purpose::Read => {
                        writeln!(out, "{device}\tadded {made}\treads only\t{kind}")?;
                    }
                    Some(seen) if token.purpose == Purpose::Browser => {
                        writeln!(out, "{device}\tadded {made}\tseen {}\t{kind}", web::date_time(seen.at))?;
                    }
                    Some(seen) => {
                        let pulled = seen.pulled.iter().map(|(store, seq)| format!("{store} up to {seq}"));
                        let pulled = pulled.collect::<Vec<_>>().join(", ");
                        writeln!(
                            out,
                            "{device}\tadded {made}\tseen {}\tpulled {pulled}\t{kind}",
                            web::date_time(seen.at)
                        )?;
                    }
                    None => writeln!(out, "{device}\tadded {made}\tnever seen\t{kind}")?,
                }
            }
            // Another gateway may have put the names there.
            io::stdout().write_all(plain(&String::from_utf8_lossy(&text)).as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
