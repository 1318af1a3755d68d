//! `health`: whether an event can be stored now.

use std::process::ExitCode;

use anyhow::bail;

use super::process::{unanswered, understood};
use super::target::{Access, Target, access_to_all};

pub(super) async fn health(at: &Target<'_>) -> anyhow::Result<ExitCode> {
    let process = match access_to_all(at.app, at.data)? {
        Access::Asked(process) => process,
        Access::Here(_) => bail!("no {} process serves {}", at.app.name(), at.data.display()),
    };
    let url = format!("{}{}/healthz", process.at().url, at.app.face().base(&at.store));
    let request = process.as_owner(process.at().client()?.get(&url));
    let answer = request.send().await.map_err(|error| unanswered(error, &process.address, at.app.name()))?;
    understood(answer, &url).await?;
    Ok(ExitCode::SUCCESS)
}
