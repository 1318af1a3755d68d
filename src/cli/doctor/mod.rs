//! `doctor`: what is wrong with this setup, and what to do about it.
//!
//! Each check is one function that gives one finding, and changes nothing that stays. A check that can't be made says why, and
//! counts as no problem.

mod cluster;
mod machine;
mod network;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::process::Process;
use crate::app::App;
use crate::data_dir::{Claim, DataDir};
use crate::node::in_full;
use crate::sync::{ClusterOptions, UpstreamOptions, WAS_WRONG, plain};
use crate::web::{HistoryState, HistoryStatus, Setting};

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found, and in what.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Problem,
    /// It could not be checked here.
    Unknown,
}

impl Verdict {
    fn mark(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Problem => "PROBLEM",
            Self::Unknown => "-",
        }
    }
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Problem, found: found.into(), advice: Some(advice.into()) }
    }

    fn unknown(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Unknown, found: found.into(), advice: None }
    }

    /// A problem whose error already says what to do.
    fn failed(check: &'static str, error: &anyhow::Error) -> Self {
        Self { check, verdict: Verdict::Problem, found: in_full(error), advice: None }
    }
}

/// What is looked at.
struct Patient<'a> {
    app: &'a App,
    data: &'a Path,
    /// The hub, where the command line names one.
    upstream: Option<UpstreamOptions>,
    /// The cluster, where the command line names one.
    cluster: Option<ClusterOptions>,
    /// Where the servers of the cluster tell about themselves.
    monitors: Vec<String>,
    /// Certificates that are trusted besides the system's.
    root_certificate: Option<PathBuf>,
    public_url: Option<String>,
    /// The process that serves the data, with how it is set up.
    process: Option<(Process, Setting)>,
}

/// What the command line says beside the data directory.
pub(super) struct Told {
    pub(super) upstream: Option<UpstreamOptions>,
    pub(super) cluster: Option<ClusterOptions>,
    pub(super) monitors: Vec<String>,
    pub(super) root_certificate: Option<PathBuf>,
    pub(super) public_url: Option<String>,
    pub(super) json: bool,
}

pub(super) async fn doctor(app: &App, data: &Path, told: Told) -> anyhow::Result<ExitCode> {
    let Told { upstream, cluster, monitors, root_certificate, public_url, json } = told;
    let mut patient = Patient { app, data, upstream, cluster, monitors, root_certificate, public_url, process: None };
    let mut findings = vec![patient.files()];
    // Only the owner can look further, and a place that nobody has used has nothing to look at.
    if DataDir::is_used(data).unwrap_or(false) && DataDir::check(data).is_ok() {
        findings.push(patient.process().await);
        findings.push(patient.disk());
        findings.push(patient.tokens());
    }
    findings.extend(patient.left_alone());
    let (hub, clock) = patient.hub_and_clock().await;
    findings.extend(hub);
    findings.extend(patient.history());
    findings.extend(patient.cluster().await);
    findings.extend(patient.setting());
    let (front, clock) = patient.front(clock).await;
    findings.extend(front);
    findings.push(clock);
    let is_well = findings.iter().all(|finding| finding.verdict != Verdict::Problem);
    show(&mut io::stdout().lock(), &findings, json)?;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes a line for each finding.
fn show(out: &mut impl Write, findings: &[Finding], json: bool) -> anyhow::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, findings)?;
        writeln!(out)?;
        return Ok(());
    }
    for Finding { check, verdict, found, advice } in findings {
        let advice = advice.as_ref().map(|advice| format!(". {advice}")).unwrap_or_default();
        // Whoever answered may have said part of it, and it is one line.
        let text = plain(&format!("{}{advice}", found.trim_end_matches('.'))).replace('\n', " ");
        writeln!(out, "{:<8} {check:<9} {text}", verdict.mark())?;
    }
    Ok(())
}

impl Patient<'_> {
    /// Asks the process that has the data whether it is well, and how it is set up.
    async fn process(&mut self) -> Finding {
        const CHECK: &str = "process";
        let name = self.app.name();
        let holder = match DataDir::claim(self.data) {
            Ok(Claim::Ours(_)) => return Finding::unknown(CHECK, format!("no {name} process serves this data now")),
            Ok(Claim::ReadOnly(_)) => {
                let advice = "Nothing can be stored here. Copy the data to where it can be written";
                return Finding::problem(CHECK, "the data can only be read", advice);
            }
            Ok(Claim::Taken(holder)) => holder,
            Err(error) => return Finding::failed(CHECK, &error),
        };
        let pid = holder.as_ref().map(|holder| holder.pid);
        let Ok(process) = Process::new(self.app, self.data, holder) else {
            let who = pid.map_or("a process".to_owned(), |pid| format!("the process {pid}"));
            return Finding::problem(
                CHECK,
                format!("{who} holds {}, and nobody can ask it anything", self.data.display()),
                format!(
                    "If it is a {name} command, wait for it. Otherwise stop it: nothing else can use the data meanwhile"
                ),
            );
        };
        let (pid, address) = (process.holder.pid, process.address.clone());
        match process.setting().await {
            Ok(setting) => self.process = Some((process, setting)),
            Err(error) => {
                let advice = format!("Look at its log, and restart it if it hangs ({})", in_full(&error));
                return Finding::problem(CHECK, format!("the process {pid} has the data and doesn't answer"), advice);
            }
        }
        match self.process.as_ref().and_then(|(_, setting)| setting.trouble.clone()) {
            Some(why) => {
                Finding::problem(CHECK, format!("the process {pid} can't store anything: {why}"), "Mend the cause")
            }
            None => Finding::ok(CHECK, format!("the process {pid} serves the data on {address}")),
        }
    }

    /// A gateway's directory, while nothing says to which cluster it belongs.
    fn left_alone(&self) -> Option<Finding> {
        let is_alone = self.process.is_none() && self.cluster.is_none() && self.upstream.is_none();
        let is_of_gateway = is_alone && DataDir::is_gateways(self.data).unwrap_or(false);
        is_of_gateway.then(|| {
            let name = self.app.name();
            Finding::unknown(
                "hub",
                format!("the data is a gateway's, and no {name} process serves it; to look at its cluster, name that with --upstream"),
            )
        })
    }

    /// What is missing of the log on a device that began with its hub's snapshot.
    fn history(&self) -> Option<Finding> {
        const CHECK: &str = "history";
        let (_, Setting { upstream, history, .. }) = self.process.as_ref()?;
        if upstream.snapshot_was_wrong {
            let advice = format!(
                "Look at the hub: run `{0} verify` there. If it finds nothing, the hub has another version of {0}, whose state \
                 differs",
                self.app.name()
            );
            return Some(Finding::problem(CHECK, WAS_WRONG, advice));
        }
        let HistoryStatus { state, length, here, .. } = history.as_ref()?;
        let missing = length.saturating_sub(*here);
        Some(match state {
            HistoryState::Coming => Finding::unknown(
                CHECK,
                format!(
                    "{missing} of the {length} events in the hub's snapshot are still to come; until then, keep the hub"
                ),
            ),
            HistoryState::Proving => {
                Finding::unknown(CHECK, "all of the log is here, and is compared with the hub's snapshot")
            }
            HistoryState::LeftOut => Finding::ok(
                CHECK,
                format!("this device leaves {missing} events of the log out, so another one has to have them"),
            ),
        })
    }

    /// What the process itself finds wrong with its flags.
    fn setting(&self) -> Vec<Finding> {
        let faults = self.process.iter().flat_map(|(_, setting)| &setting.faults);
        faults.map(|(found, advice)| Finding::problem("flags", found, advice)).collect()
    }
}
