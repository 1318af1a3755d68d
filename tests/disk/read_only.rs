//! Data on read-only media, such as a snapshot of a disk: reading works, writing says why it doesn't, and nothing is changed.

use std::fs;

use crate::check::{Opened, copy, exported, run, text};
use crate::common::mounted::Mounted;
use crate::common::{Server, data_dir, printed};

/// Makes some likes. The program is then shut down, or killed. Returns the ids.
fn some_likes(data: &std::path::Path, in_order: bool) -> Vec<String> {
    let server = Server::start(data);
    let ids = server.like_times(5);
    if in_order {
        assert!(server.terminate().success());
    } else {
        server.kill();
    }
    ids
}

#[test]
fn trust_72_data_on_read_only_media_can_be_read() {
    for in_order in [true, false] {
        let data = data_dir();
        let ids = some_likes(data.path(), in_order);
        let mounted = Mounted::in_memory(64);
        let media = mounted.path().join("data");
        copy(data.path(), &media);
        mounted.make_read_only();
        let wal = media.join("stores/likes/eventlog.db-wal");
        assert_eq!(fs::metadata(wal).is_ok_and(|meta| meta.len() > 0), !in_order, "there is a WAL after a kill");

        assert_eq!(exported(&media).expect("an export"), ids);
        assert!(printed(run(&media, &["verify"])).contains("all is well"));
        let status = printed(run(&media, &["status"]));
        assert!(status.contains("likes      5"), "{status}");
        let elsewhere = data_dir();
        let to = elsewhere.path().join("copy");
        printed(run(&media, &["backup", to.to_str().expect("a path")]));
        assert_eq!(exported(&to).expect("an export"), ids);

        let Err(why) = Opened::start(&media, &[]) else { panic!("it serves data that it can't write") };
        assert!(why.contains("can only be read"), "{why}");
        let refused = run(&media, &["token", "add", "phone"]);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert_eq!(exported(data.path()).expect("an export"), ids);
    }
}
