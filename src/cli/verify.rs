//! `verify`: checks the log and the state.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use reqwest::Method;

use super::process::json;
use super::target::{Access, Target};
use crate::engine::{self, Report, Setup};
use crate::node::host_name;
use crate::sync::plain;

pub(super) async fn verify(at: &Target<'_>) -> anyhow::Result<ExitCode> {
    let store = &at.store;
    let report: Report = match at.access()? {
        Access::Asked(process) => {
            let request = process.request(Method::POST, &format!("{store}/verify"))?;
            let Some(answer) = process.answer_about_store(request).await? else { bail!(at.missing()) };
            json(answer).await?
        }
        Access::Here(here) => engine::verify(&at.files(&here)?, &Setup::new(at.app.schema(), host_name(at.app))?)?,
    };
    let mut out = io::stdout().lock();
    writeln!(out, "store {store}: {} events in the log, {} pending", report.events, report.pending)?;
    writeln!(out, "log digest   {} at {}", report.log_digest, report.head)?;
    writeln!(out, "state digest {}", report.state_digest)?;
    // They may quote what somebody else's event holds.
    for note in &report.notes {
        writeln!(out, "note: {}", plain(note))?;
    }
    for problem in &report.problems {
        writeln!(out, "problem: {}", plain(problem))?;
    }
    let is_well = report.problems.is_empty();
    writeln!(out, "{}", if is_well { "all is well" } else { "something is wrong" })?;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
