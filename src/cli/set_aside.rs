//! `set-aside`: the events that the hub refused.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use reqwest::Body;

use super::arguments::SetAsideCommand;
use super::target::Target;
use super::transfer::{export, export_to};
use crate::engine::Line;
use crate::sync::plain;
use crate::web::Exported;

pub(super) async fn set_aside(at: &Target<'_>, command: &SetAsideCommand) -> anyhow::Result<ExitCode> {
    match command {
        SetAsideCommand::Export => return export(at, Exported::SetAside).await,
        SetAsideCommand::List => {
            let mut lines = Vec::new();
            export_to(&mut lines, at, Exported::SetAside).await?;
            let mut out = io::stdout().lock();
            for line in serde_json::Deserializer::from_slice(&lines).into_iter::<Line>() {
                let Line { id, name, set_aside, .. } = line.context("the answer is not understood")?;
                writeln!(out, "{id}\t{name}\t{}", plain(&set_aside.unwrap_or_default()))?;
            }
        }
        SetAsideCommand::Retry => {
            let retry = at.with_store("set-aside/retry", Body::default(), async |store| store.retry_set_aside().await);
            let count: usize = retry.await?;
            eprintln!("{count} events are committed once more");
        }
    }
    Ok(ExitCode::SUCCESS)
}
