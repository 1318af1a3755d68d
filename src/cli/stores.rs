//! `stores`: all stores of a data directory, a line each.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::status::{as_owner_of, ask};
use super::target::{Access, Target, access_to_all};
use crate::app::App;
use crate::data_dir::DataDir;
use crate::engine;
use crate::node::host_name;
use crate::sync::LinkStatus;
use crate::web::StatusReport;

pub(super) async fn stores(app: &App, data: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let access = access_to_all(app, data)?;
    let mut reports = Vec::new();
    for store in engine::stores_in(&DataDir::stores(data))? {
        let at = Target { app, data, store };
        reports.push(match &access {
            Access::Asked(process) => ask(&at, &process.address, false, as_owner_of(process)).await?,
            Access::Here(here) => {
                let device = host_name(app);
                let report = at.open(&here.dir, async |store| {
                    StatusReport::of(app.face(), store, &device, &LinkStatus::none()).await
                });
                report.await?
            }
        });
    }
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &reports)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    for StatusReport { store, figures, pending, set_aside, upstream, .. } in &reports {
        let figures = figures.iter().map(|(name, number)| match name.as_str() {
            // A count without a name of its own counts events.
            "count" => format!("{number} {}", app.face().nouns.many),
            name => format!("{name} {number}"),
        });
        let figures = figures.collect::<Vec<_>>().join(", ");
        let counts = [(*pending, "waiting"), (*set_aside, "set aside")];
        let rest = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("\t{count} {what}"));
        writeln!(out, "{store}\t{figures}\t{}{}", upstream.state, rest.collect::<String>())?;
    }
    if reports.is_empty() {
        eprintln!("there are no stores in {} yet", data.display());
    }
    Ok(ExitCode::SUCCESS)
}
