//! `status`: the state of a store.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use reqwest::{Method, RequestBuilder};

use super::process::{At, unanswered, understood};
use super::target::{Access, Target, access_to_all};
use crate::app::App;
use crate::data_dir::DataDir;
use crate::engine::{NoEffect, Skipped, Store};
use crate::limits::app::KINDS;
use crate::node::host_name;
use crate::sync::{LinkStatus, WAS_WRONG, joined, joined_as, plain};
use crate::web::{self, Digests, HistoryState, HistoryStatus, StatusReport};

/// How a status is shown.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub(super) json: bool,
    pub(super) digests: bool,
}

pub(super) async fn status(at: &Target<'_>, url: Option<String>, shown: Shown) -> anyhow::Result<ExitCode> {
    let url =
        url.map(|url| if url.contains("://") || url.starts_with("unix:") { url } else { format!("http://{url}") });
    if url.is_none() {
        at.must_be_known()?;
    }
    let mut is_gateway = false;
    let (report, skipped) = match url {
        // Only the owner may see which events have no effect.
        Some(url) => (ask(at, &At::new(&url, ""), true, |request| request).await?, Vec::new()),
        None => match access_to_all(at.app, at.data)? {
            Access::Asked(process) => {
                let report = ask(at, process.at(), true, |request| process.as_owner(request)).await?;
                let request = process.request(Method::GET, &format!("{}/skipped", at.store))?;
                (report, process.answer(request).await?)
            }
            Access::Here(here) => {
                is_gateway = DataDir::is_gateways(at.data)?;
                let report = at.open(&here.dir, async |store| -> anyhow::Result<_> {
                    let mut report = report_of(at.app, at.data, store).await?;
                    report.digests = Some(web::digests(store)?);
                    Ok((report, store.skipped().await?))
                });
                report.await?
            }
        },
    };
    let mut out = io::stdout().lock();
    if shown.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        let digests = report.digests.as_ref().filter(|_| shown.digests);
        let mut text = Vec::new();
        show(&mut text, at.app, &report, is_gateway, digests, &skipped)?;
        // Some of it is what a server says, which may be anybody's.
        out.write_all(plain(&String::from_utf8_lossy(&text)).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The status of a store that this command has opened: it follows nothing while no process serves the data in `data`. A
/// directory that was joined to a hub still says to which, and under which name.
pub(super) async fn report_of(app: &App, data: &Path, store: &Store) -> anyhow::Result<StatusReport> {
    let url = joined(data)?.map(|hub| hub.url.into());
    let device = joined_as(data)?.unwrap_or_else(|| host_name(app));
    let link = LinkStatus { url, ..LinkStatus::none() };
    Ok(StatusReport::of(app.face(), store, &device, app.version_text(), &link).await?)
}

/// The status that a program answers.
pub(super) async fn ask(
    at: &Target<'_>,
    program: &At,
    digests: bool,
    prepare: impl Fn(RequestBuilder) -> RequestBuilder,
) -> anyhow::Result<StatusReport> {
    let name = at.app.name();
    let digests = if digests { "?digests" } else { "" };
    let url = format!("{}{}/status{digests}", program.url, at.app.face().base(&at.store));
    let answer = prepare(program.client()?.get(&url)).send().await.map_err(|error| unanswered(error, &url, name))?;
    understood(answer, &url).await?.json().await.with_context(|| {
        format!(
            "what {url} answers is not the status of a store, or not all of it: strangers see only what is on the page"
        )
    })
}

fn show(
    out: &mut impl Write,
    app: &App,
    report: &StatusReport,
    is_gateway: bool,
    digests: Option<&Digests>,
    without_effect: &[Skipped],
) -> io::Result<()> {
    let name = app.name();
    let StatusReport { store, device, version, head, cursor, pending, set_aside, skipped, unknown, log, .. } = report;
    writeln!(out, "store      {store} on {device}", device = device.as_str())?;
    if !version.is_empty() {
        writeln!(out, "version    {version}")?;
    }
    for (figure, number) in &report.figures {
        // A count without a name of its own counts events.
        let label = if figure == "count" { app.face().nouns.many } else { figure };
        writeln!(out, "{label:<10} {number}")?;
    }
    writeln!(out, "log        {} up to {head}", log.as_deref().unwrap_or("none yet,"))?;
    writeln!(out, "state      up to {cursor}")?;
    if let Some(HistoryStatus { state, length, here, own, .. }) = &report.history {
        let words = match state {
            HistoryState::Coming => "the others are still coming",
            HistoryState::Proving => "they are compared with it now",
            HistoryState::LeftOut => "this device leaves the others out",
        };
        writeln!(out, "history    {here} of the {length} events in the hub's snapshot are here; {words}")?;
        if *own > 0 {
            writeln!(
                out,
                "           {own} events of this device are in the snapshot, as only the hub says; they are kept here, too"
            )?;
        }
    }
    let upstream = &report.upstream;
    let url = upstream.url.as_ref().map(|url| format!(", {url}")).unwrap_or_default();
    let since = upstream.since.map(|since| format!(" since {}", web::date_time(since))).unwrap_or_default();
    // One word for one state, here and on the page.
    let state = match upstream.state.as_str() {
        "halted" => "stopped",
        _ if is_gateway => "not followed now: this is a gateway, and no process serves it",
        "none" if upstream.url.is_some() => "not followed now, because no process serves this data",
        state => state,
    };
    writeln!(out, "upstream   {state}{since}{url}")?;
    if upstream.snapshot_was_wrong {
        writeln!(out, "           {WAS_WRONG}")?;
    }
    for line in [&upstream.why, &upstream.error, &upstream.copies].into_iter().flatten() {
        writeln!(out, "           {line}")?;
    }
    if let Some(advice) = upstream.code.as_deref().and_then(|code| web::what_to_do(app.face(), code)) {
        writeln!(out, "           {advice}")?;
    }
    for (count, what) in [
        (pending, "waiting for a place in the log".to_owned()),
        (set_aside, format!("set aside: see `{name} set-aside list`")),
        (skipped, "skipped, because they could not be applied".to_owned()),
        (
            unknown,
            format!(
                "of kinds that this program doesn't know: of a newer {name}, of another app, or renamed here (an event keeps its NAME)"
            ),
        ),
    ] {
        if *count > 0 {
            writeln!(out, "events     {count} {what}")?;
        }
    }
    let kinds = kinds(without_effect);
    for (kind, count) in kinds.iter().take(KINDS) {
        writeln!(out, "           {kind} ({count})")?;
    }
    if kinds.len() > KINDS {
        writeln!(out, "           and {} other kinds", kinds.len() - KINDS)?;
    }
    if let Some(digests) = digests {
        writeln!(
            out,
            "digests    at {}: log {}, state {}",
            digests.digest_seq, digests.log_digest, digests.state_digest
        )?;
    }
    Ok(())
}

/// Events without effect by kind: their name with the reason, and how many there are.
fn kinds(skipped: &[Skipped]) -> Vec<(String, usize)> {
    let mut kinds = BTreeMap::new();
    for Skipped { name, why, .. } in skipped {
        let kind = match why {
            // The reason usually begins with the name.
            NoEffect::Failed(why) if why.contains(name) => why.clone(),
            NoEffect::Failed(why) => format!("{name}: {why}"),
            _ => format!("{name}: nothing here knows this name"),
        };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    kinds
}
