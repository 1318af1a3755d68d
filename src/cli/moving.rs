//! `move`: a hub's stores into a stream, and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use super::arguments::{ClusterArgs, MoveCommand};
use super::serve::cluster_at;
use crate::app::App;
use crate::data_dir::DataDir;
use crate::engine::{self, Replica, Setup, StoreId};
use crate::node::{host_name, show_progress};
use crate::sync::{Cluster, Moved, Mover, TokenFile, joined, look_before_moving, plain};

pub(super) async fn go(app: &App, data: &Path, command: MoveCommand) -> anyhow::Result<ExitCode> {
    let (args, to, is_sure) = match command {
        MoveCommand::In { cluster, yes } => (cluster, None, yes),
        MoveCommand::Out { cluster, to } => (cluster, Some(to), false),
    };
    if let Some(to) = &to
        && to.trim().is_empty()
    {
        bail!(
            "--to is empty; give the address of the hub that has the stores from now on: gateways and devices are told it"
        );
    }
    if let Some(hub) = joined(data)? {
        bail!("{} is a device of the hub {}; move that hub's data", data.display(), hub.url);
    }
    if to.is_none() && !DataDir::is_used(data)? {
        bail!("there is no data in {}; name the directory of the hub with --data", data.display());
    }
    let dir = DataDir::take(data).context("a move takes a data directory that nobody uses")?;
    let ClusterArgs { upstream, root_certificate, nats } = args;
    let cluster = Cluster::new(&cluster_at(&upstream, root_certificate, nats), dir.path())?;
    if to.is_none() {
        must_be_free(&dir, &cluster, is_sure).await?;
    }
    let end = CancellationToken::new();
    let looking = tokio::spawn(cluster.clone().look_after(end.clone()));
    let moved = match &to {
        None => move_in(app, &dir, &cluster).await,
        Some(to) => move_out(app, &dir, &cluster, to).await,
    };
    end.cancel();
    drop(looking.await);
    let moved = moved.context("not all was moved. What was moved stays so; give the same command again to go on")?;
    let tokens = TokenFile::in_dir(dir.path()).list()?.len();
    let (data, url) = (dir.path().display(), cluster.url());
    eprintln!("{moved} stores and {tokens} tokens are moved.");
    match to {
        None => eprintln!("{data} is a gateway's now: start {} with --upstream {url}", app.name()),
        Some(_) => {
            DataDir::forget_gateways(dir.path())?;
            eprintln!("{data} is a hub's now: start {} without --upstream", app.name());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails if others are where the hub's stores are to go. Nothing has changed then, here or there.
async fn must_be_free(dir: &DataDir, cluster: &Cluster, is_sure: bool) -> anyhow::Result<()> {
    let mut logs = BTreeMap::new();
    for store in engine::stores_in(&DataDir::stores(dir.path()))? {
        if let Some(log) = engine::ownership(&DataDir::files(dir.path(), &store))?.own {
            logs.insert(store, log);
        }
    }
    let there = look_before_moving(cluster, &logs).await?;
    let url = cluster.url();
    if !there.others.is_empty() {
        let stores: Vec<_> = there.others.iter().map(StoreId::as_str).collect();
        bail!(
            "nothing was moved: {url} has other logs of these stores already: {}. Give this hub a prefix of its own, as a path \
             after the last address",
            stores.join(", ")
        );
    }
    let own = TokenFile::in_dir(dir.path()).list()?;
    let strangers = there.tokens.iter().filter(|token| !own.contains(token));
    let strangers: Vec<_> = strangers.map(|token| plain(token.device.as_str())).collect();
    if !strangers.is_empty() && !is_sure {
        bail!(
            "nothing was moved: {url} has gateways with devices of their own: {}. They would be let in here, and this hub's \
             devices there. If it is another installation, give this hub a prefix of its own, as a path after the last address; \
             if both are to be one, give --yes",
            strangers.join(", ")
        );
    }
    Ok(())
}

async fn move_in(app: &App, dir: &DataDir, cluster: &Cluster) -> anyhow::Result<usize> {
    let setup = setup(app)?;
    let mut mover = Mover::new(cluster.clone(), setup.device.clone()).await?;
    let mut logs = BTreeMap::new();
    for store in engine::stores_in(&DataDir::stores(dir.path()))? {
        let files = DataDir::files(dir.path(), &store);
        if engine::is_blank(&files)? {
            continue;
        }
        // All are looked at before the first one moves.
        let replica = Replica::open(files, setup.clone())?;
        if let Some(log) = mover.log_to_move(&replica).with_context(|| cannot(&store))? {
            logs.insert(store, log);
        }
    }
    mover.bring(&logs).await?;
    for store in logs.keys() {
        let mut replica = Replica::open(DataDir::files(dir.path(), store), setup.clone())?;
        tell(store, &mover.move_in(&mut replica, store).await.with_context(|| cannot(store))?);
    }
    Ok(logs.len())
}

async fn move_out(app: &App, dir: &DataDir, cluster: &Cluster, to: &str) -> anyhow::Result<usize> {
    let setup = setup(app)?;
    let mut mover = Mover::new(cluster.clone(), setup.device.clone()).await?;
    let mut stores = mover.stores().await?;
    // What waits here has to get into the stream before that is closed.
    for store in engine::stores_in(&DataDir::stores(dir.path()))? {
        if !engine::is_blank(&DataDir::files(dir.path(), &store))? {
            stores.insert(store);
        }
    }
    // All are the stream's before the first one is this directory's own. So a move that is interrupted can be seen here.
    for store in &stores {
        let mut replica = Replica::open(DataDir::files(dir.path(), store), setup.clone())?;
        mover.begin_out(&mut replica, store).with_context(|| cannot(store))?;
    }
    for store in &stores {
        let mut replica = Replica::open(DataDir::files(dir.path(), store), setup.clone())?;
        tell(store, &mover.move_out(&mut replica, store, to).await.with_context(|| cannot(store))?);
    }
    mover.take_tokens().await?;
    Ok(stores.len())
}

fn setup(app: &App) -> anyhow::Result<Setup> {
    Ok(Setup { progress: show_progress, ..Setup::new(app.schema(), host_name(app))? })
}

fn cannot(store: &StoreId) -> String {
    format!("cannot move the store {store}")
}

fn tell(store: &StoreId, moved: &Moved) {
    match moved {
        Moved::Now(events) => eprintln!("{store}: {events} events moved"),
        Moved::Before => eprintln!("{store}: was moved before"),
        Moved::Apart => eprintln!("{store}: stays what it is; the stream has nothing of it"),
    }
}
