//! `adopt` and `promote`: which log a store belongs to.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::bail;
use reqwest::Body;

use super::target::Target;
use crate::data_dir::DataDir;
use crate::engine::Standing;
use crate::sync::{joined, leave};

pub(super) async fn adopt(at: &Target<'_>, yes: bool) -> anyhow::Result<ExitCode> {
    let store = &at.store;
    at.must_exist()?;
    confirm(yes, &format!("Move the store {store} to the log that its hub has, and push everything there?"))?;
    let standing: Standing = at.with_store("adopt", Body::default(), async |store| store.adopt().await).await?;
    eprintln!("{} events of {store} wait to be pushed", standing.pending);
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn promote(at: &Target<'_>, yes: bool) -> anyhow::Result<ExitCode> {
    let store = &at.store;
    at.must_exist()?;
    confirm(yes, &format!("Make this instance the authority of the store {store}? Its hub must be gone for good."))?;
    let standing: Standing = at.with_store("promote", Body::default(), async |store| store.promote().await).await?;
    eprintln!("the log of {store} is this instance's own now, up to {}", standing.head);
    if let Some(hub) = joined(at.data)? {
        leave(at.data)?;
        eprintln!("{} no longer follows the hub {}", at.data.display(), hub.url);
    }
    if DataDir::forget_gateways(at.data)? {
        eprintln!("{} is no gateway any more", at.data.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the person at the terminal, unless they said yes already.
fn confirm(yes: bool, question: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("{question} Nobody is there to ask; give --yes to do it");
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { bail!("nothing was changed") }
}
