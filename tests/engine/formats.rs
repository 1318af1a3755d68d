//! Data that earlier versions wrote opens with everything it held, and is converted to the present format wholly or not at all.
//! Version 0.1.0 wrote `tests/data/format-1`, and the first one with snapshots `tests/data/format-3`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use likewise::engine::{Concluded, Files, Replica, Seq, Whose, prove, verify};
use likewise::likes;
use rusqlite::Connection;

use crate::support::*;

/// What a store of format 1 holds.
struct Old {
    /// The directory with `eventlog.db`.
    path: &'static str,
    /// How many events its log has, and the log's digest.
    log: (u64, &'static str),
    /// The payloads of the pending events, in order.
    pending: &'static [Option<&'static str>],
    /// The payloads of the events set aside.
    set_aside: &'static [&'static str],
    is_ours: bool,
    count: u64,
}

/// A hub that ended cleanly, with a checkpoint in its log; a lone instance that was killed before its WAL was ever moved
/// into its databases; a device that was killed with events in its outbox and one set aside.
const OLD: [Old; 3] = [
    Old {
        path: "hub/stores/likes",
        log: (1_041, "64d511ebc04c4688521b9846b5d2607693da5690f6a9e35120a47e7a31b1b3e4"),
        pending: &[],
        set_aside: &[],
        is_ours: true,
        count: 1_040,
    },
    Old {
        path: "lone-killed/stores/likes",
        log: (3, "190b103296bf1c0d31850777de5280f97f76cb240dbb3a54de76dd4834e966ba"),
        pending: &[],
        set_aside: &[],
        is_ours: true,
        count: 3,
    },
    Old {
        path: "device-killed/stores/notes",
        log: (7, "c532b30de2d35ab707bdb7fce8375964767e40ad9fd8caf9b63f529bf723089b"),
        pending: &[Some(r#"{"text": "pending", "of": ["hub"]}"#), None, None, Some("[1.0, 1e2]")],
        set_aside: &[r#"{"text": "the device's"}"#],
        is_ours: false,
        count: 7,
    },
];

fn try_open(dir: &Path) -> Replica {
    Replica::open(Files::in_dir(dir), setup(likes::schema()))
        .unwrap_or_else(|fault| panic!("{}: {fault}", dir.display()))
}

impl Old {
    /// A copy to work on.
    fn copy(&self, home: &Home) -> PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1").join(self.path);
        copy_dir(&from, &home.dir);
        home.dir.clone()
    }

    fn check(&self, replica: &Replica) {
        let standing = replica.standing().unwrap();
        let (length, digest) = self.log;
        assert_eq!(standing.length, length, "{}", self.path);
        assert_eq!(replica.digest_at(standing.head).unwrap().to_string(), digest, "{}", self.path);
        let ids = ids_of(replica);
        assert_eq!(ids.len() as u64, length + self.pending.len() as u64);
        let args = |events: Vec<likewise::engine::Envelope>| -> Vec<Option<String>> {
            events.into_iter().map(|event| event.args.as_text().map(str::to_owned)).collect()
        };
        let owned = |text: &Option<&str>| text.map(str::to_owned);
        assert_eq!(args(outbox_of(replica)), self.pending.iter().map(owned).collect::<Vec<_>>(), "{}", self.path);
        let set_aside: Vec<_> = self.set_aside.iter().map(|text| Some((*text).to_owned())).collect();
        assert_eq!(args(set_aside_of(replica)), set_aside, "{}", self.path);
        assert_eq!(matches!(standing.whose, Whose::Own(_)), self.is_ours);
        assert_eq!(replica.query(&likes::count()).unwrap(), self.count, "{}", self.path);
    }
}

fn format_of(dir: &Path) -> i64 {
    let conn = Connection::open(dir.join("eventlog.db")).unwrap();
    conn.query_row("PRAGMA user_version", (), |row| row.get(0)).unwrap()
}

#[test]
fn data_of_format_1_opens_with_all_that_it_held_and_moves_on() {
    for old in OLD {
        let home = Home::new();
        let dir = old.copy(&home);
        let mut replica = try_open(&dir);
        old.check(&replica);
        let pending = outbox_of(&replica);
        // It goes on from there: a new event is stored, and all pending ones arrive.
        assert!(stored(&replica.commit(&[event(id(1), "LikeAdded", "")]).unwrap()));
        if !old.is_ours {
            let head = replica.standing().unwrap().head;
            replica.arrive(&page(head.0 + 1, &pending, false)).unwrap();
            assert_eq!(replica.standing().unwrap().pending, 1);
            assert_eq!(replica.retry_set_aside(|| id(2)).unwrap(), 1);
            replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
        }
        let before = ids_of(&replica);
        drop(replica);
        assert_eq!(format_of(&dir), 2, "{}", old.path);
        assert_eq!(ids_of(&try_open(&dir)), before);
    }
}

#[test]
fn data_of_format_1_can_be_looked_at_and_is_left_as_it_is() {
    for old in OLD {
        let home = Home::new();
        let dir = old.copy(&home);
        let report = verify(&home.files(), &setup(likes::schema())).unwrap();
        assert_eq!(report.problems, [""; 0], "{}", old.path);
        assert_eq!((report.events, report.pending), (old.log.0, old.pending.len() as u64));
        let mut lines = Vec::new();
        likewise::engine::export(&home.files(), &mut lines).unwrap();
        let lines = String::from_utf8(lines).unwrap().lines().count();
        assert_eq!(lines, old.log.0 as usize + old.pending.len() + old.set_aside.len(), "{}", old.path);
        assert_eq!(format_of(&dir), 1, "{}", old.path);
    }
}

/// A device that was killed while its history came: the log begins at a snapshot of 1,090 events. 1,060 of them are here, and
/// the device's own at 1,075 is known to be among them. 10 came later, and 2 wait.
#[test]
fn data_between_a_snapshot_and_its_history_opens_with_all_that_it_held() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-3/begun-killed/stores/likes");
    let like = |n| event(id(n), "LikeAdded", "");
    let home = Home::new();
    copy_dir(&from, &home.dir);
    assert_eq!(format_of(&home.dir), 3);
    copy_dir(&from, &home.dir);
    let made_for: String = {
        let conn = Connection::open(home.path("base.db")).unwrap();
        conn.query_row("SELECT schema FROM likewise_cursor", (), |row| row.get(0)).unwrap()
    };
    let mut replica = try_open(&home.dir);
    for n in [1, 1_060, 1_075, 1_091, 1_100] {
        let known = replica.commit(&[like(n)]).unwrap();
        let seq = if n <= 1_060 || replica.base() > Seq::START { Some(Seq(n)) } else { None };
        assert_eq!(known, [likewise::engine::Outcome::Known(seq)]);
    }
    let waiting: Vec<_> = [2_001, 2_002].map(like).into();
    if made_for == likes::schema().fingerprint() {
        let standing = replica.standing().unwrap();
        assert_eq!((standing.length, standing.pending, replica.base()), (1_100, 2, Seq(1_090)));
        let history = standing.history.unwrap();
        assert_eq!((history.length, history.here), (1_090, 1_060));
        assert_eq!(replica.query(&likes::count()).unwrap(), 1_102);
        assert_eq!(outbox_of(&replica), waiting);
        let rest: Vec<_> = (1_061..=1_090).map(like).collect();
        replica.arrive_history(&page(1_061, &rest, false)).unwrap();
        let proof = prove(&home.files(), &setup(likes::schema())).unwrap().unwrap();
        assert_eq!(replica.conclude(proof).unwrap(), Concluded::Proven);
        assert_eq!(log_of(&replica).len(), 1_100);
    } else {
        // Another SQLite can't use the snapshot, and nothing is lost.
        assert_eq!((replica.base(), log_of(&replica).len()), (Seq::START, 1_060));
        let mut ours = vec![like(1_075)];
        ours.extend((1_091..=1_100).map(like));
        ours.extend(waiting);
        assert_eq!(outbox_of(&replica), ours);
    }
    drop(replica);
    assert_eq!(format_of(&home.dir), 2);
    assert_eq!(verify(&home.files(), &setup(likes::schema())).unwrap().problems, [""; 0]);
}

#[test]
#[ignore = "writes test data"]
fn write_format_3() {
    let like = |n| event(id(n), "LikeAdded", "");
    let hub = Home::new();
    let mut replica = try_open(&hub.dir);
    let events: Vec<_> = (1..=1_090).map(|n| (like(n), device("elsewhere"))).collect();
    replica.add(&events).unwrap();
    let home = Home::new();
    std::fs::create_dir_all(&home.dir).unwrap();
    let path = home.path("snapshot.part");
    let snapshot = likewise::engine::Snapshot::make(&hub.files(), &path).unwrap().unwrap();
    let mut replica = try_open(&home.dir);
    replica.follow().unwrap();
    replica.commit(&[like(1_075), like(2_001), like(2_002)]).unwrap();
    assert!(replica.join(snapshot.check(&path, &likes::schema()).unwrap()).unwrap());
    assert!(replica.are_in_snapshot(&[(id(1_075), Seq(1_075))]).unwrap());
    let above: Vec<_> = (1_091..=1_100).map(like).collect();
    replica.arrive(&page(1_091, &above, false)).unwrap();
    let history: Vec<_> = (1..=1_060).map(like).collect();
    replica.arrive_history(&page(1, &history, true)).unwrap();
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-3/begun-killed/stores/likes");
    copy_dir(&home.dir, &to);
}

/// Tells a child process what to open, and where.
const OPENS: &str = "LIKEWISE_TEST_OPENS";

/// A process is killed just before each of its writes while it opens old data, one after the other.
#[test]
fn trust_60_a_change_of_the_format_that_is_cut_anywhere_loses_nothing() {
    if let Err(why) = Command::new("strace").arg("-V").output() {
        panic!("this test needs strace ({why}): install it, on Debian with `apt-get install strace`");
    }
    let mut kills = 0;
    for call in ["pwrite64", "rename", "unlink"] {
        for nth in 1.. {
            let home = Home::new();
            let old = &OLD[2];
            let dir = old.copy(&home);
            let output = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
                .args(["-e", &format!("inject={call}:signal=KILL:when={nth}")])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "formats::child_that_opens_old_data", "--ignored", "--nocapture"])
                .env(OPENS, &dir)
                .stderr(Stdio::null())
                .output()
                .unwrap();
            old.check(&try_open(&dir));
            if String::from_utf8_lossy(&output.stdout).contains("the end") {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 10, "only {kills} kills");
}

#[test]
#[ignore = "a process of its own, started by another test"]
fn child_that_opens_old_data() {
    let Some(dir) = std::env::var_os(OPENS) else { return };
    drop(try_open(Path::new(&dir)));
    println!("the end");
    std::process::exit(0);
}
