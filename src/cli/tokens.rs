//! `token`: the devices that may sync with this hub.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::arguments::TokenCommand;
use crate::app::App;
use crate::engine;
use crate::sync::{Purpose, Seen, TokenFile};
use crate::web;

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

pub(super) fn token(app: &App, data: &Path, command: TokenCommand) -> anyhow::Result<ExitCode> {
    let name = app.name();
    let file = TokenFile::in_dir(data);
    let mut out = io::stdout().lock();
    match command {
        TokenCommand::Add { name: device, read, out: place } => {
            engine::create_private_dir(data)?;
            let purpose = if read { Purpose::Read } else { Purpose::Sync };
            // Before there is a token that would then be nowhere.
            let place = place.map(NewFile::create).transpose()?;
            let token = file.add(device.clone(), purpose)?;
            match place {
                Some(place) => place.write(&token)?,
                None => writeln!(out, "{token}")?,
            }
            let use_it = match purpose {
                Purpose::Sync => format!(
                    "Put it into a file on that device, and start {name} there with --upstream URL --token-file FILE"
                ),
                Purpose::Read => "It opens /status and /metrics as a bearer token, and nothing else".to_owned(),
            };
            eprintln!("this is the token of {}, and it is shown only now. {use_it}", device.as_str());
        }
        TokenCommand::Revoke { name: device } => {
            file.revoke(&device)?;
            eprintln!("{} can no longer sync; what it pushed stays", device.as_str());
        }
        TokenCommand::List => {
            let seen = Seen::read(data);
            let tokens = file.list()?;
            if tokens.is_empty() {
                eprintln!("there are no devices in {}; `{name} token add NAME` adds one", data.display());
            }
            for token in tokens {
                let device = token.device.as_str();
                let made = web::date_time(token.created);
                if token.purpose == Purpose::Read {
                    writeln!(out, "{device}\tadded {made}\treads only")?;
                    continue;
                }
                match seen.get(device) {
                    Some(seen) => {
                        let pulled = seen.pulled.iter().map(|(store, seq)| format!("{store} up to {seq}"));
                        let pulled = pulled.collect::<Vec<_>>().join(", ");
                        writeln!(out, "{device}\tadded {made}\tseen {}\tpulled {pulled}", web::date_time(seen.at))?;
                    }
                    None => writeln!(out, "{device}\tadded {made}\tnever seen")?,
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
