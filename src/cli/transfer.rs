//! `export`, `import` and `backup`: events and whole directories, out and in.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use reqwest::{Body, Method};
use tokio_util::io::ReaderStream;

use super::target::{Access, Target, access_to_all};
use crate::app::App;
use crate::data_dir;
use crate::engine::{self, Imported};
use crate::node::host_name;
use crate::web::{self, Exported, MISSING};

/// The exit status of an export that lacks events of the log.
const PARTIAL: u8 = 3;

pub(super) async fn export(at: &Target<'_>, which: Exported) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let missing = export_to(&mut out, at, which).await?;
    out.flush()?;
    Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::from(PARTIAL) })
}

/// Writes the events of a store to `out`, and says on standard error what of its log is missing. Returns how many events are.
pub(super) async fn export_to(out: &mut impl Write, at: &Target<'_>, which: Exported) -> anyhow::Result<u64> {
    match at.access()? {
        Access::Asked(process) => {
            let request = process.request(Method::GET, &format!("{}/{}", at.store, which.route()))?;
            let Some(mut answer) = process.answer_about_store(request).await? else { bail!(at.missing()) };
            let missing = answer.headers().get(MISSING).and_then(|missing| missing.to_str().ok()?.parse().ok());
            let missing = missing.unwrap_or_default();
            say_what_is_missing(at, missing);
            while let Some(piece) =
                answer.chunk().await.context("the export broke off; what is missing is not known")?
            {
                out.write_all(&piece)?;
            }
            Ok(missing)
        }
        Access::Here(here) => {
            let missing = which.write(&at.files(&here)?, out)?;
            say_what_is_missing(at, missing);
            Ok(missing)
        }
    }
}

fn say_what_is_missing(at: &Target<'_>, missing: u64) {
    if missing > 0 {
        eprintln!(
            "{missing} events of the log of {} are not here, so they are missing in this: it began with the hub's snapshot, and \
             what is behind that comes later, or never with --history none. So this export is no backup of the log; \
             the command exits with {PARTIAL}",
            at.store
        );
    }
}

pub(super) async fn import(at: &Target<'_>) -> anyhow::Result<ExitCode> {
    let device = host_name(at.app);
    // One of the two branches reads it.
    let sent = Body::wrap_stream(ReaderStream::new(tokio::io::stdin()));
    let imported = at.with_store("import", sent, async |store| {
        let imported = engine::import(store, &device, tokio::io::stdin()).await;
        imported.map_err(|error| anyhow!("{} {}", web::sentence(error), web::AFTER_IMPORT))
    });
    let Imported { added, known } = imported.await?;
    eprintln!("{added} events added to {}, {known} were there before", at.store);
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn backup(app: &App, data: &Path, to: &Path) -> anyhow::Result<ExitCode> {
    // The process may have another working directory.
    let to = std::path::absolute(to).with_context(|| format!("cannot find {}", to.display()))?;
    let count: usize = match access_to_all(app, data)? {
        Access::Asked(process) => {
            let request = process.request(Method::POST, "backup")?.body(to.as_os_str().as_encoded_bytes().to_vec());
            let count = process.answer(request).await?;
            if !to.exists() {
                bail!(
                    "the {} process {} says that it copied everything to {}, but there is nothing here: it sees other \
                     files than you do. Name a directory that both can see",
                    app.name(),
                    process.holder.pid,
                    to.display()
                );
            }
            count
        }
        Access::Here(here) => data_dir::backup(here.dir.path(), &to)?,
    };
    eprintln!("{count} {} copied to {}", if count == 1 { "store" } else { "stores" }, to.display());
    Ok(ExitCode::SUCCESS)
}
