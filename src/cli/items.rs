//! `items`: what other sites embed. Which items there are and may be, and counts from elsewhere.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use reqwest::{Body, Method};
use tokio_util::io::ReaderStream;

use super::arguments::ItemsCommand;
use super::process::Process;
use super::target::{Access, Writer, access_to_all, open_all, writer};
use crate::app::App;
use crate::data_dir::DataDir;
use crate::node::host_name;
use crate::web::embed::{self, Door, ImportedCounts, ItemChange, ItemList, ItemReport, ItemsReport};
use crate::web::{Embed, sentence};

pub(super) async fn items(app: &App, data: &Path, command: ItemsCommand) -> anyhow::Result<ExitCode> {
    let embed = app.face().embed.clone();
    let embed = embed.with_context(|| format!("{} has nothing that other sites could embed", app.name()))?;
    match command {
        ItemsCommand::List { json } => list(app, data, &embed, json).await?,
        ItemsCommand::Add { names } => change(app, data, ItemChange { add: names, ..ItemChange::default() }).await?,
        ItemsCommand::Remove { names } => {
            change(app, data, ItemChange { remove: names, ..ItemChange::default() }).await?
        }
        ItemsCommand::Close => {
            change(app, data, ItemChange { door: Some(Door::Closed), ..ItemChange::default() }).await?
        }
        ItemsCommand::Open => change(app, data, ItemChange { door: Some(Door::Open), ..ItemChange::default() }).await?,
        ItemsCommand::Import { source } => import(app, data, &embed, &source).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(app: &App, data: &Path, embed: &Embed, json: bool) -> anyhow::Result<()> {
    let report: ItemsReport = match access_to_all(app, data)? {
        Access::Asked(process) => process.answer(process.request(Method::GET, "items")?).await?,
        Access::Here(here) => {
            let list = ItemList::read(DataDir::items(data))?;
            open_all(app, &here.dir, async |stores| Ok(embed::report(&list, stores, embed).await)).await?
        }
    };
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    for ItemReport { item, store, count, open } in &report.items {
        let count = count.map_or("can't be read".to_owned(), |count| app.face().nouns.count(&count));
        let name = item.as_deref().unwrap_or(store);
        writeln!(out, "{name}\t{count}\t{}", if *open { "open" } else { "closed" })?;
    }
    let many = app.face().nouns.many;
    match report.door {
        Door::Open => eprintln!("anything takes {many}; `{} items close` keeps to this list", app.name()),
        Door::Closed => eprintln!("only what is open here takes {many}; `{} items add` adds to it", app.name()),
    }
    for (wrong, advice) in report.faults {
        eprintln!("{wrong}. {advice}");
    }
    Ok(())
}

async fn change(app: &App, data: &Path, change: ItemChange) -> anyhow::Result<()> {
    match writer(app, data)? {
        Writer::Asked(process) => tell(&process, &change).await,
        Writer::Here(dir) => {
            let list = ItemList::read(DataDir::items(data))?;
            open_all(app, &dir, async |stores| embed::change_list(&list, stores, &change)).await
        }
    }
}

async fn tell(process: &Process, change: &ItemChange) -> anyhow::Result<()> {
    process.done(process.request(Method::POST, "items")?.body(serde_json::to_vec(change)?)).await
}

async fn import(app: &App, data: &Path, embed: &Embed, source: &str) -> anyhow::Result<()> {
    let imported: ImportedCounts = match writer(app, data)? {
        Writer::Asked(process) => {
            let source: String = form_urlencoded::byte_serialize(source.as_bytes()).collect();
            let request = process.request(Method::POST, &format!("item-counts?source={source}"))?;
            process.answer(request.body(Body::wrap_stream(ReaderStream::new(tokio::io::stdin())))).await?
        }
        Writer::Here(dir) => {
            let (list, device) = (ItemList::read(DataDir::items(data))?, host_name(app));
            let import = async |stores: &_| {
                let imported = embed::import_counts(stores, embed, &list, &device, source, tokio::io::stdin()).await;
                imported.map_err(|error| anyhow!("{} {}", sentence(&error), embed::after(&error)))
            };
            open_all(app, &dir, import).await?
        }
    };
    let ImportedCounts { items, added, known } = imported;
    let added = app.face().nouns.count(&added);
    eprintln!("{added} added to {items} {}, {known} were there before", if items == 1 { "item" } else { "items" });
    Ok(())
}
