//! The servers that the other tests start do what those tests ask of them. No likewise is here.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self, Context};
use tokio::runtime::Runtime;

use crate::common::nats::{Course, Nats, Plan};
use crate::common::wait_for;

/// A stream on three servers, and a client of it.
struct Bare {
    runtime: Runtime,
    stream: Context,
}

impl Bare {
    fn new(nats: &Nats) -> Self {
        let runtime = Runtime::new().unwrap();
        let stream = runtime.block_on(async {
            let options =
                async_nats::ConnectOptions::new().retry_on_initial_connect().ping_interval(Duration::from_secs(2));
            let mut context = jetstream::new(options.connect(nats.urls()).await.unwrap());
            context.set_timeout(Duration::from_secs(5));
            let config = Config {
                name: "bare".to_owned(),
                subjects: vec!["bare.>".to_owned()],
                storage: StorageType::File,
                num_replicas: nats.len(),
                ..Config::default()
            };
            context.create_stream(config).await.unwrap();
            context
        });
        Self { runtime, stream }
    }

    /// Publishes until it is acknowledged, and returns the sequence.
    fn publish(&self, text: &'static str) -> u64 {
        wait_for(&format!("an acknowledgement of {text:?}"), || {
            self.runtime.block_on(async {
                let sent = self.stream.publish("bare.one", text.into()).await.ok()?;
                Some(sent.await.ok()?.sequence)
            })
        })
    }

    fn last(&self) -> u64 {
        wait_for("the stream's leader", || {
            self.runtime
                .block_on(async { Some(self.stream.get_stream("bare").await.ok()?.cached_info().state.last_sequence) })
        })
    }
}

#[test]
fn a_cluster_goes_on_when_its_leader_is_killed_paused_or_cut_off() {
    let mut nats = Plan::new(3).with_links().start();
    let bare = Bare::new(&nats);
    assert_eq!(bare.publish("first"), 1);
    let leader = |nats: &Nats| wait_for("a leader", || nats.leader_of("bare"));

    let killed = leader(&nats);
    nats.kill(killed);
    let seen = bare.publish("while one is dead");
    nats.start(killed);
    nats.wait_until_ready();

    let paused = leader(&nats);
    nats.pause(paused);
    let seen = bare.publish("while one is paused").max(seen);
    nats.resume(paused);
    nats.wait_until_ready();

    let parted = leader(&nats);
    nats.set_links_of(parted, Course::Cut);
    // Its own clients are cut off with it; this client may be one of them.
    wait_for("another leader", || {
        let others = (0..3).filter(|n| *n != parted);
        others.into_iter().find_map(|n| nats.told_by(n, "jsz").map(|_| n)).and(nats.leader_of("bare"))
    });
    nats.set_links_of(parted, Course::Pass);
    nats.wait_until_ready();
    let seen = bare.publish("together again").max(seen);
    assert!(bare.last() >= seen, "acknowledged messages are there");
}

#[test]
fn all_servers_set_back_to_one_moment_forget_what_came_later() {
    let mut nats = Nats::cluster();
    let bare = Bare::new(&nats);
    let before = bare.publish("kept");
    let saved = nats.save_all();
    let after = bare.publish("forgotten");
    assert!(after > before);
    for n in 0..3 {
        nats.kill(n);
    }
    for (n, saved) in saved.iter().enumerate() {
        nats.set_back(n, saved);
    }
    for n in 0..3 {
        nats.start(n);
    }
    nats.wait_until_ready();
    assert_eq!(bare.last(), before);
    assert_eq!(bare.publish("instead"), after);
}

#[test]
fn a_server_that_runs_out_of_disk_says_so() {
    let nats = Plan::new(1).store_limit("1MB").start();
    let bare = Bare::new(&nats);
    let told = bare.runtime.block_on(async {
        for _ in 0..200 {
            let sent = bare.stream.publish("bare.one", vec![0; 10_000].into()).await.unwrap();
            if let Err(error) = sent.await {
                return error.to_string();
            }
        }
        String::new()
    });
    assert!(told.contains("resources"), "{told}");
}
