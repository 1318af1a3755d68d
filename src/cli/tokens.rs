//! `token`: the devices that may sync with this hub.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::arguments::TokenCommand;
use super::process::Process;
use crate::app::App;
use crate::data_dir::{Claim, DataDir};
use crate::engine;
use crate::sync::{Purpose, Seen, TokenFile};
use crate::web;

/// Has the process that serves the data read its tokens, and says that it did. Says nothing if there is none: it reads them
/// when it starts.
async fn tell_process(app: &App, data: &Path) -> anyhow::Result<&'static str> {
    let Claim::Taken(holder) = DataDir::claim(data)? else { return Ok("") };
    // One that doesn't listen yet hasn't read them yet.
    let Ok(process) = Process::new(app, data, holder) else { return Ok("") };
    let asked = process.tell("tokens").await;
    asked.context("the file is changed, but the running process may not know it yet")?;
    Ok("; the running process knows")
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
    match command {
        TokenCommand::Add { name: device, read, out: place } => {
            engine::create_private_dir(data)?;
            let purpose = if read { Purpose::Read } else { Purpose::Sync };
            // Before there is a token that would then be nowhere.
            let place = place.map(NewFile::create).transpose()?;
            let token = file.add(device.clone(), purpose)?;
            match place {
                Some(place) => place.write(&token)?,
                None => writeln!(io::stdout(), "{token}")?,
            }
            let told = tell_process(app, data).await?;
            let use_it = match purpose {
                Purpose::Sync => format!(
                    "Put it into a file on that device, and start {name} there with --upstream URL --token-file FILE"
                ),
                Purpose::Read | Purpose::Browser => {
                    "It opens /status and /metrics as a bearer token, and nothing else".to_owned()
                }
            };
            eprintln!("this is the token of {}, and it is shown only now. {use_it}{told}", device.as_str());
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
            let mut out = io::stdout().lock();
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
        }
    }
    Ok(ExitCode::SUCCESS)
}
