//! A device begins with the snapshot of an app whose state has a row for each event, in the order of the log.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use likewise::engine::{
    Device, Envelope, Event, EventId, Files, Page, PageSize, Query, Replica, Schema, Seq, Setup, Snapshot,
};
use likewise::sync::{TokenSource, UpstreamOptions};
use likewise::{App, Options};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::common::mounted::Mounted;
use crate::common::served::Served;
use crate::common::{data_dir, printed, run, wait_for};
use crate::proxy::{Mode, Proxy};
use crate::snapshot::fill;
use crate::support::get;

const ROWS: u64 = 20_000;

#[derive(Serialize, Deserialize)]
struct RowAdded {
    text: String,
}

impl Event for RowAdded {
    const NAME: &'static str = "RowAdded";
}

fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT NOT NULL, before TEXT) STRICT;
         CREATE INDEX row_text ON row (text);",
    )
    .on(|RowAdded { text }, db| {
        // Each row knows the one before it, so the order of the events is in the state.
        let sql = "INSERT INTO row (text, before) SELECT ?1, (SELECT text FROM row ORDER BY id DESC LIMIT 1)";
        db.execute(sql, [text])
    })
}

fn rows() -> App {
    App::new("rows", schema).figure("rows", || Query::first("SELECT count(*) FROM row"))
}

fn row(text: String) -> Envelope {
    Envelope::new(EventId::now(), &RowAdded { text }).expect("an event")
}

fn status(served: &Served) -> Value {
    let (status, body) = get(&format!("{}/status?digests", served.url));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn trust_73_a_state_with_a_row_for_each_event_comes_as_a_snapshot_and_is_proven() {
    let (hub_data, data) = (data_dir(), data_dir());
    let token = printed(run(hub_data.path(), &["token", "add", "phone"])).trim().to_owned();
    let options = |data: &tempfile::TempDir| Options { data: Some(data.path().to_owned()), ..Options::default() };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let node = rows().open(options(&hub_data)).expect("a node");
        let store = node.store("rows").expect("the store");
        let device: Device = "hub".parse().expect("a name");
        for from in (0..ROWS).step_by(1_000) {
            let events = (from..from + 1_000).map(|n| (row(format!("row number {n}")), device.clone()));
            store.add(events.collect()).await.expect("stored");
        }
        drop(store);
        node.close().await;
    });
    let hub = Served::start(rows(), options(&hub_data));
    let proxy = Proxy::start();
    proxy.point_to(&hub.url);
    proxy.set(Mode::On("/snapshot", Box::new(Mode::Slow(8_192, Duration::from_millis(5)))));
    let upstream = UpstreamOptions { url: proxy.url.clone(), token: TokenSource::Given(token), root_certificate: None };
    let device = Served::start(rows(), Options { upstream: Some(upstream), ..options(&data) });
    let part = data.path().join("stores/rows/snapshot.part");
    wait_for("a part of the snapshot", || {
        std::fs::metadata(&part).is_ok_and(|meta| meta.len() > 300_000).then_some(())
    });
    proxy.cut();
    let begun = wait_for("the rows", || Some(status(&device)).filter(|status| status["rows"] == ROWS));
    assert!(begun["head"] == ROWS && begun["pending"] == 0, "{begun}");
    let end = wait_for("the history", || Some(status(&device)).filter(|status| status["history"].is_null()));
    let of_hub = status(&hub);
    for name in ["log", "schema", "log_digest", "state_digest", "digest_seq"] {
        assert_eq!(end[name], of_hub[name], "{name}");
    }
    assert!(end["upstream"].get("snapshot_was_wrong").is_none(), "{end}");
    drop((device, hub));
}

#[test]
fn trust_61_a_disk_that_fills_up_while_a_device_joins_leaves_a_store_that_pulls_the_log() {
    let setup = || Setup {
        schema: Arc::new(schema()),
        device: "test".parse().expect("a name"),
        executable: "one".to_owned(),
        progress: |_, _| {},
    };
    let open = |files: &Files| Replica::open(files.clone(), setup()).expect("it opens");
    let count = |replica: &Replica| replica.query(&Query::<u64>::first("SELECT count(*) FROM row")).expect("a count");
    let (hub_dir, mounted) = (data_dir(), Mounted::in_memory(96));
    let hub_files = Files::in_dir(hub_dir.path().join("hub"));
    let mut hub = open(&hub_files);
    hub.commit(&(0..200).map(|_| row("x".repeat(50_000))).collect::<Vec<_>>()).expect("stored");
    let entries = hub.entries(Seq::START, PageSize::events(1_000)).expect("a page");
    for ends_before_the_state in [false, true] {
        let dir = mounted.path().join("device");
        let files = Files::in_dir(&dir);
        let mut device = open(&files);
        device.follow().expect("it follows");
        drop(device);
        let state = fs::read(dir.join("state.db")).expect("a state");
        let mut device = open(&files);
        let part = dir.join("snapshot.part");
        let snapshot = Snapshot::make(&hub_files, &part).expect("a snapshot").expect("it has events");
        let checked = snapshot.check(&part, &schema()).expect("it is right");
        let ballast = if ends_before_the_state {
            assert!(device.join(checked).expect("it joins"));
            drop(device);
            fs::write(dir.join("state.db"), &state).expect("the state of before");
            let ballast = fill(&mounted, snapshot.bytes / 2);
            device = open(&files);
            ballast
        } else {
            let ballast = fill(&mounted, snapshot.bytes / 2);
            assert!(!device.join(checked).expect("it goes on"), "there is no room");
            ballast
        };
        assert!(device.base() == Seq::START && device.can_join());
        for left in ["state.db.new", "base.db", "snapshot.part"] {
            assert!(!dir.join(left).exists(), "{left}");
        }
        device.commit(&[row("mine".to_owned())]).expect("stored");
        assert_eq!(count(&device), 1);
        fs::remove_file(ballast).expect("deleted");
        let page = Page { entries: entries.clone(), next: Seq(200), more: false };
        device.arrive(&page).expect("it arrives");
        device.settle_arrivals().expect("settled");
        assert_eq!(count(&device), 201);
        drop(device);
        assert_eq!(count(&open(&files)), 201);
        fs::remove_dir_all(&dir).expect("deleted");
    }
}
