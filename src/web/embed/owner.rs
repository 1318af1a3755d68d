//! What the owner sees and says of the items, by a command: which there are, which there may be, and counts from elsewhere.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::import::{ImportCountsError, ImportedCounts, import_counts};
use super::item::{Item, is_of_an_item};
use super::list::{Door, ItemList};
use super::{App, Problem, sentence};
use crate::engine::{StoreId, Stores};
use crate::web::face::Embed;

/// All items.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ItemsReport {
    /// Which items visitors may like.
    pub(crate) door: Door,
    /// By name.
    pub(crate) items: Vec<ItemReport>,
    /// What is wrong with proxies in front, each with what to do about it.
    #[serde(default)]
    pub(crate) faults: Vec<(String, String)>,
}

/// One item.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ItemReport {
    /// Its name. Nothing if only the store is known, as after it came from another device.
    pub(crate) item: Option<String>,
    /// Its store.
    pub(crate) store: String,
    /// Nothing if it can't be read.
    pub(crate) count: Option<u64>,
    /// Whether visitors may like it.
    pub(crate) open: bool,
}

/// What the owner says of the items.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ItemChange {
    /// Items to put on the list.
    #[serde(default)]
    pub(crate) add: Vec<String>,
    /// Items to take off the list.
    #[serde(default)]
    pub(crate) remove: Vec<String>,
    /// Which items visitors may like from now on.
    #[serde(default)]
    pub(crate) door: Option<Door>,
}

/// Reports all items: those on the list, and those that have a store.
pub(crate) async fn report(list: &ItemList, stores: &Stores, embed: &Embed) -> ItemsReport {
    let shutdown = CancellationToken::new();
    let _ends_with_this = shutdown.clone().drop_guard();
    report_from(list, stores, &Board::new(stores.clone(), embed.count(), shutdown)).await
}

async fn report_from(list: &ItemList, stores: &Stores, board: &Board) -> ItemsReport {
    let listed = list.now().clone();
    let mut all: BTreeMap<StoreId, Option<Item>> = stores
        .existing()
        .borrow()
        .iter()
        .filter(|id| is_of_an_item(id))
        .map(|id| (id.clone(), Item::of_store(id)))
        .collect();
    all.extend(listed.items.iter().map(|item| (item.store(), Some(item.clone()))));
    let ids: Vec<_> = all.keys().cloned().collect();
    let counts = board.read(&ids).await;
    let report = |((id, item), count): ((StoreId, Option<Item>), Option<u64>)| ItemReport {
        open: listed.door == Door::Open || item.as_ref().is_some_and(|item| listed.items.contains(item)),
        item: item.map(|item| item.to_string()),
        store: id.to_string(),
        count,
    };
    let mut items: Vec<_> = all.into_iter().zip(counts).map(report).collect();
    items.sort();
    ItemsReport { door: listed.door, items, faults: Vec::new() }
}

/// Changes the list as the owner says. Waits for the disk.
///
/// # Errors
///
/// When a name is no item's, or the list can't be written.
pub(crate) fn change_list(list: &ItemList, stores: &Stores, change: &ItemChange) -> anyhow::Result<()> {
    let items = |names: &[String]| names.iter().map(|name| name.parse()).collect::<Result<Vec<Item>, _>>();
    let (add, remove) = (items(&change.add)?, items(&change.remove)?);
    list.change(|listed| {
        // Closing keeps open what there is, until the owner says otherwise.
        if change.door == Some(Door::Closed) && listed.door == Door::Open {
            listed.items.extend(stores.existing().borrow().iter().filter_map(Item::of_store));
        }
        listed.door = change.door.unwrap_or(listed.door);
        listed.items.extend(add);
        listed.items.retain(|item| !remove.contains(item));
    })
}

/// `GET /control/v1/items`
pub(crate) async fn items(State(app): State<App>) -> Result<Json<ItemsReport>, Problem> {
    let embedding = app.embedding()?;
    let report = report_from(&embedding.list, &app.stores, &embedding.board).await;
    Ok(Json(ItemsReport { faults: embedding.faults(), ..report }))
}

/// `POST /control/v1/items`, with an [`ItemChange`].
pub(crate) async fn change_items(State(app): State<App>, body: Bytes) -> Result<StatusCode, Problem> {
    let failed = |why: String| Problem::bad_request("items-unchanged", sentence(why), "Nothing was changed.");
    let change: ItemChange = serde_json::from_slice(&body).map_err(|why| failed(why.to_string()))?;
    let change =
        move || change_list(&app.embedding()?.list, &app.stores, &change).map_err(|why| failed(format!("{why:#}")));
    tokio::task::spawn_blocking(change).await.map_err(Problem::internal)??;
    Ok(StatusCode::NO_CONTENT)
}

/// Where counts come from.
#[derive(Deserialize)]
pub(crate) struct From {
    source: String,
}

/// `POST /control/v1/item-counts?source=NAME`, with a line for each item.
pub(crate) async fn import_route(
    State(app): State<App>,
    Query(From { source }): Query<From>,
    body: Body,
) -> Result<Json<ImportedCounts>, Problem> {
    let embedding = app.embedding()?;
    let input = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let imported = import_counts(&app.stores, &embedding.embed, &embedding.list, &app.device, &source, input).await;
    Ok(Json(imported.map_err(|error| {
        let advice = after(&error);
        match error {
            ImportCountsError::Line(..) => Problem::bad_request("malformed-import", sentence(error), advice),
            _ => Problem::unavailable("store-unavailable", sentence(error), advice, 2),
        }
    })?))
}

/// The advice after an [`ImportCountsError`].
pub(crate) fn after(error: &ImportCountsError) -> &'static str {
    match error {
        ImportCountsError::Line(..) | ImportCountsError::List(_) => "Nothing was stored. Mend it and import again.",
        ImportCountsError::Item(..) => "Mend the cause and import all of it again: nothing is added twice.",
    }
}
