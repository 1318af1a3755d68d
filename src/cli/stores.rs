//! `stores`: all stores of a data directory, a line each.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::status::{ask, report_of};
use super::target::{Access, Target, access_to_all, open_all};
use crate::app::App;
use crate::data_dir::DataDir;
use crate::engine;
use crate::web::StatusReport;

pub(super) async fn stores(app: &App, data: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let reports = match access_to_all(app, data)? {
        Access::Asked(process) => {
            let mut reports = Vec::new();
            for store in engine::stores_in(&DataDir::stores(data))? {
                let at = Target { app, data, store };
                reports.push(ask(&at, process.at(), false, |request| process.as_owner(request)).await?);
            }
            reports
        }
        Access::Here(here) => {
            let all = open_all(app, &here.dir, async |stores| -> anyhow::Result<_> {
                let mut reports = Vec::new();
                for id in stores.list()? {
                    reports.push(report_of(app, data, &stores.get(&id)?).await?);
                }
                Ok(reports)
            });
            all.await?
        }
    };
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &reports)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    for StatusReport { store, figures, pending, set_aside, upstream, .. } in &reports {
        let figures = figures.iter().map(|(name, number)| match name.as_str() {
            // A count without a name of its own counts events.
            "count" => number.as_u64().map_or_else(|| number.to_string(), |count| app.face().nouns.count(&count)),
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
