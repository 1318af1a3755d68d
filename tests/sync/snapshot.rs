//! A new device begins with its hub's snapshot, and the history follows behind.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::common::mounted::Mounted;
use crate::common::{errors, wait_for};
use crate::proxy::Mode;
use crate::support::{Node, get, hub_behind_proxy, likes, new_id, wait_until_level};

/// More than a hub says is too short for a snapshot.
const LONG: usize = 12_000;

const BEGAN: &str = "began with the hub's snapshot";

/// Events that no program here knows. The state lists them, so they make a snapshot large.
fn unknown(count: usize) -> String {
    let mut lines = String::new();
    for _ in 0..count {
        writeln!(lines, r#"{{"id":"{}","name":"Other"}}"#, new_id()).unwrap();
    }
    lines
}

fn on(word: &'static str, mode: Mode) -> Mode {
    Mode::On(word, Box::new(mode))
}

/// Waits until the device has all of the log.
fn wait_for_all_of_the_log(node: &Node) {
    wait_for(&format!("its history; it is {}", node.status()), || node.status()["history"].is_null().then_some(()));
}

/// How many bytes of its snapshot a device has.
fn part(node: &Node) -> u64 {
    fs::metadata(node.data.join("stores/likes/snapshot.part")).map(|meta| meta.len()).unwrap_or_default()
}

fn wait_for_part(node: &Node, bytes: u64) {
    wait_for(&format!("{bytes} bytes of the snapshot; it has {}", part(node)), || (part(node) >= bytes).then_some(()));
}

/// Waits until the device has all of a snapshot, and returns its size.
fn wait_for_whole(node: &Node) -> u64 {
    wait_for("the whole snapshot", || {
        let dir = node.data.join("stores/likes");
        let label = ["snapshot.json", "snapshot.checking"].iter().find_map(|name| fs::read(dir.join(name)).ok())?;
        let bytes = serde_json::from_slice::<Value>(&label).ok()?["bytes"].as_u64();
        bytes.filter(|bytes| part(node) == *bytes)
    })
}

/// The bytes of each snapshot that the hub began to send.
fn sent(hub: &Node) -> Vec<u64> {
    let log = hub.log();
    let lines = log.lines().filter(|line| line.contains("a device gets a snapshot"));
    lines.map(|line| line.split_once("bytes=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap()).collect()
}

fn made(hub: &Node) -> usize {
    hub.log().matches("made a snapshot").count()
}

fn kept(hub: &Node) -> usize {
    let files = fs::read_dir(hub.data.join("stores/likes/snapshots")).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "db")).count()
}

#[test]
fn trust_73_a_device_begins_with_a_snapshot_and_has_all_of_the_log_in_the_end() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_for_count(LONG as u64);
    assert!(phone.log().contains(BEGAN), "{}", phone.log());
    phone.like();
    wait_for_all_of_the_log(&phone);
    wait_until_level(&[&hub, &phone], LONG as u64 + 1);
    assert!(phone.log().contains("the snapshot is proven by it"), "{}", phone.log());
    for left in ["base.db", "snapshot.part", "snapshot.json"] {
        assert!(!phone.data.join("stores/likes").join(left).exists(), "{left}");
    }
    phone.verify();
    assert_eq!(phone.export(), hub.export());
}

#[test]
fn trust_73_likes_made_before_and_during_a_download_count_once() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&(likes(LONG) + &unknown(20_000)));
    proxy.part();
    let phone = Node::client("phone", &proxy.url, &hub);
    for _ in 0..3 {
        phone.like();
    }
    proxy.set(on("/snapshot", Mode::Slow(8_192, Duration::from_millis(20))));
    wait_for_part(&phone, 100_000);
    phone.like();
    phone.like();
    assert_eq!((phone.count(), phone.pending()), (5, 5));
    wait_until_level(&[&hub, &phone], LONG as u64 + 5);
    assert!(phone.log().contains(BEGAN), "{}", phone.log());
    wait_for_all_of_the_log(&phone);
    phone.verify();
}

#[test]
fn trust_74_a_broken_download_goes_on_where_it_broke_also_after_a_kill() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&(likes(LONG) + &unknown(40_000)));
    proxy.set(on("/snapshot", Mode::Slow(4_096, Duration::from_millis(5))));
    let mut phone = Node::client("phone", &proxy.url, &hub);
    wait_for_part(&phone, 200_000);
    proxy.cut();
    wait_for_part(&phone, 400_000);
    phone.kill();
    // What was written is there after a kill, and a power cut may take the end of it.
    let left = part(&phone);
    phone.start();
    wait_until_level(&[&hub, &phone], LONG as u64);
    wait_for_all_of_the_log(&phone);
    let sent = sent(&hub);
    assert_eq!(sent.len(), 3, "{sent:?}");
    assert!(sent[1] <= sent[0] - 200_000, "{sent:?}");
    assert_eq!(sent[2], sent[0] - left, "{sent:?}");
    assert_eq!(made(&hub), 1);
    phone.verify();
}

#[test]
fn trust_74_a_part_that_a_power_cut_changed_is_downloaded_again() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&(likes(LONG) + &unknown(20_000)));
    proxy.set(on("/snapshot", Mode::Slow(4_096, Duration::from_millis(5))));
    let mut phone = Node::client("phone", &proxy.url, &hub);
    wait_for_part(&phone, 100_000);
    phone.kill();
    let path = phone.data.join("stores/likes/snapshot.part");
    let mut bytes = fs::read(&path).unwrap();
    bytes[50_000..60_000].fill(0);
    fs::write(&path, bytes).unwrap();
    phone.start();
    wait_until_level(&[&hub, &phone], LONG as u64);
    assert!(phone.log().contains(BEGAN), "{}", phone.log());
    assert_eq!(sent(&hub).len(), 3);
}

#[test]
fn trust_74_a_snapshot_is_not_checked_again_if_its_check_ended_the_process() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    // The whole snapshot is here, and nothing is asked of the hub's log.
    proxy.set(on("after=", Mode::Refuse));
    let mut phone = Node::client("phone", &proxy.url, &hub);
    wait_for_whole(&phone);
    phone.kill();
    let dir = phone.data.join("stores/likes");
    if dir.join("snapshot.json").exists() {
        fs::rename(dir.join("snapshot.json"), dir.join("snapshot.checking")).unwrap();
    }
    proxy.set(Mode::Pass);
    phone.start();
    wait_until_level(&[&hub, &phone], LONG as u64);
    let log = phone.log();
    assert!(log.contains("an earlier process ended while it checked it") && !log.contains(BEGAN), "{log}");
    for left in ["snapshot.part", "snapshot.json", "snapshot.checking"] {
        assert!(!dir.join(left).exists(), "{left}");
    }
}

#[test]
fn trust_74_killed_at_any_moment_a_device_ends_with_all_of_the_log() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&(likes(LONG) + &unknown(5_000)));
    proxy.set(on("likes/", Mode::Slow(65_536, Duration::from_millis(5))));
    let mut count = LONG as u64;
    for n in 0..10 {
        let name = format!("phone-{n}");
        let mut phone = Node::client(&name, &proxy.url, &hub);
        phone.like();
        count += 1;
        // Each kill comes at another moment: while it downloads, joins, fetches and proves.
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(30 * n));
            phone.kill();
            phone.start();
        }
        wait_until_level(&[&hub, &phone], count);
        wait_for_all_of_the_log(&phone);
        wait_until_level(&[&hub, &phone], count);
        phone.verify();
    }
}

#[test]
fn trust_73_a_hub_that_is_older_than_snapshots_is_pulled_from() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let body = r#"{"status":404,"code":"not-found","detail":"The program knows no such address."}"#;
    let answer = format!(
        "HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    proxy.set(on("/snapshot", Mode::Answer(answer)));
    let phone = Node::client("phone", &proxy.url, &hub);
    wait_until_level(&[&hub, &phone], LONG as u64);
    assert!(!phone.log().contains("snapshot"), "{}", phone.log());
    assert!(phone.status()["history"].is_null());
}

#[test]
fn trust_73_a_short_log_is_pulled() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(1_000));
    let phone = Node::client("phone", &proxy.url, &hub);
    wait_until_level(&[&hub, &phone], 1_000);
    assert!(!phone.log().contains("snapshot"), "{}", phone.log());
    assert!(!hub.data.join("stores/likes/snapshots").exists());
}

#[test]
fn trust_73_without_its_history_a_device_says_so_and_takes_no_ones_place() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    phone.flag("--history", "none");
    phone.start();
    phone.like();
    wait_until_level(&[&hub, &phone], LONG as u64 + 1);
    let history = phone.status()["history"].clone();
    assert_eq!((&history["state"], &history["here"]), (&"left-out".into(), &0.into()), "{history}");
    assert_eq!(history["length"], LONG);
    let words = phone.run(&["status"]);
    assert!(words.contains(&format!("0 of the {LONG} events in the hub's snapshot are here")), "{words}");
    let doctor = String::from_utf8(phone.command(&["doctor"]).output().unwrap().stdout).unwrap();
    assert!(doctor.contains(&format!("this device leaves {LONG} events of the log out")), "{doctor}");
    let exported = phone.command(&["export"]).output().unwrap();
    assert!(
        errors(&exported).contains(&format!("{LONG} events of the log of likes are not here")),
        "{}",
        errors(&exported)
    );
    assert_eq!(exported.status.code(), Some(3), "a script must not take it for a backup of the log");
    let (_, page) = get(&format!("{}/history", phone.url()));
    assert!(page.contains("in the hub’s snapshot, with which this device began"), "{page}");
    let noted = phone.run(&["verify"]);
    assert!(noted.contains("snapshot"), "{noted}");
    for command in [["adopt", "--yes"], ["promote", "--yes"]] {
        let output = phone.command(&command).output().unwrap();
        assert!(!output.status.success(), "{command:?}");
    }
    phone.stop();
    for command in [["adopt", "--yes"], ["promote", "--yes"]] {
        let output = phone.command(&command).output().unwrap();
        assert!(!output.status.success(), "{command:?}");
        assert!(errors(&output).contains("snapshot"), "{command:?}: {}", errors(&output));
        assert!(errors(&output).contains("`likewise import` in a new data directory"), "{}", errors(&output));
    }
    // As it says. The process isn't needed for an export, either.
    let again = phone.command(&["export"]).output().unwrap();
    assert_eq!((again.status.code(), &again.stdout), (Some(3), &exported.stdout));
    let mut new = Node::alone();
    new.import(std::str::from_utf8(&exported.stdout).unwrap());
    new.start();
    assert_eq!(new.count(), 1, "what is here goes on");

    // Without the flag it comes.
    phone.unflag("--history");
    phone.start();
    wait_for_all_of_the_log(&phone);
    wait_until_level(&[&hub, &phone], LONG as u64 + 1);
    phone.verify();
    assert_eq!(phone.export(), hub.export());
}

#[test]
fn a_hub_and_who_follows_none_need_all_of_the_log() {
    let mut alone = Node::alone();
    alone.flag("--history", "none");
    let words = alone.refuses_to_start();
    assert!(words.contains("--history none"), "{words}");
}

#[test]
fn trust_75_a_hub_restored_to_before_the_snapshot_gets_everything_back() {
    let (mut hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let backup = hub.file("backup");
    hub.run(&["backup", backup.to_str().unwrap()]);
    hub.import(&likes(500));
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    phone.flag("--history", "none");
    phone.start();
    phone.like();
    wait_until_level(&[&hub, &phone], LONG as u64 + 501);
    assert!(phone.log().contains(BEGAN));
    proxy.part();
    phone.like();
    hub.kill();
    fs::remove_dir_all(hub.data.join("stores")).unwrap();
    crate::support::copy_all(&backup.join("stores"), &hub.data.join("stores"));
    hub.start();
    hub.like();
    proxy.point_to(hub.url());
    proxy.set(Mode::Pass);
    // 500 likes were in the snapshot and nowhere else, so they are gone. Both of the phone's are there.
    wait_until_level(&[&hub, &phone], LONG as u64 + 3);
    assert_eq!(phone.log().matches(BEGAN).count(), 2, "{}", phone.log());
    phone.verify();
}

#[test]
fn trust_75_a_snapshot_whose_place_the_restored_log_does_not_have_is_made_anew() {
    let (mut hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let backup = hub.file("backup");
    hub.run(&["backup", backup.to_str().unwrap()]);
    hub.import(&likes(100));
    let phone = Node::client("phone", &proxy.url, &hub);
    wait_until_level(&[&hub, &phone], LONG as u64 + 100);
    drop(phone);
    hub.kill();
    // The snapshot stays where it is, beside the files of an earlier day.
    let store = hub.data.join("stores/likes");
    for name in ["eventlog.db", "eventlog.db-wal", "state.db", "state.db-wal", "witness"] {
        drop(fs::remove_file(store.join(name)));
    }
    crate::support::copy_all(&backup.join("stores/likes"), &store);
    assert_eq!(kept(&hub), 1);
    hub.start();
    proxy.point_to(hub.url());
    let laptop = Node::client("laptop", &proxy.url, &hub);
    wait_until_level(&[&hub, &laptop], LONG as u64);
    assert!(laptop.log().contains(BEGAN), "{}", laptop.log());
    assert_eq!((made(&hub), kept(&hub)), (2, 1));
}

#[test]
fn trust_75_an_event_that_is_in_the_snapshot_is_pushed_again_if_the_hub_loses_it() {
    let (mut hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let backup = hub.file("backup");
    hub.run(&["backup", backup.to_str().unwrap()]);
    proxy.part();
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    phone.start();
    phone.like();
    phone.stop();
    let mut copy = phone.copy();
    copy.flag("--history", "none");
    proxy.set(Mode::Pass);
    phone.start();
    wait_until_level(&[&hub, &phone], LONG as u64 + 1);
    phone.stop();
    // The hub's newest snapshot is from before the like. The next one has it.
    fs::remove_dir_all(hub.data.join("stores/likes/snapshots")).unwrap();
    copy.start();
    wait_until_level(&[&hub, &copy], LONG as u64 + 1);
    assert_eq!(copy.status()["history"]["length"], LONG + 1, "the like is in the snapshot");
    assert_eq!(copy.status()["history"]["own"], 1, "as the hub says");
    let words = copy.run(&["status"]);
    assert!(words.contains("1 events of this device are in the snapshot, as only the hub says"), "{words}");
    proxy.part();
    hub.kill();
    fs::remove_dir_all(hub.data.join("stores")).unwrap();
    crate::support::copy_all(&backup.join("stores"), &hub.data.join("stores"));
    hub.start();
    proxy.point_to(hub.url());
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &copy], LONG as u64 + 1);
    assert_eq!(copy.status()["set_aside"], 0);
    copy.verify();
}

#[test]
fn a_hub_makes_few_snapshots_keeps_the_last_and_leaves_them_out_of_backups() {
    let (mut hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let joins = |hub: &Node, n: u32| {
        let mut phone = Node::prepared(&format!("phone-{n}"), &proxy.url, hub);
        phone.flag("--history", "none");
        phone.start();
        let count = hub.count();
        wait_until_level(&[hub, &phone], count);
        assert!(phone.log().contains(BEGAN), "{}", phone.log());
    };
    joins(&hub, 0);
    hub.import(&likes(100));
    joins(&hub, 1);
    assert_eq!((made(&hub), kept(&hub)), (1, 1));
    hub.stop();
    hub.start();
    proxy.point_to(hub.url());
    joins(&hub, 2);
    assert_eq!((made(&hub), kept(&hub)), (1, 1), "the next process goes on with it");
    for n in 3..6 {
        hub.import(&likes(10_001));
        joins(&hub, n);
        assert_eq!(made(&hub), n as usize - 1);
        assert!(kept(&hub) <= 2);
    }
    let backup = hub.file("backup");
    hub.run(&["backup", backup.to_str().unwrap()]);
    assert!(!backup.join("stores/likes/snapshots").exists());
    // What the disk has changed is made anew.
    let dir = hub.data.join("stores/likes/snapshots");
    hub.stop();
    for file in fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    hub.start();
    proxy.point_to(hub.url());
    joins(&hub, 7);
    assert_eq!((made(&hub), kept(&hub)), (5, 1));
}

#[test]
fn trust_42_a_revoked_tokens_download_is_cut() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&(likes(LONG) + &unknown(60_000)));
    proxy.set(on("/snapshot", Mode::Slow(4_096, Duration::from_millis(20))));
    let phone = Node::client("phone", &proxy.url, &hub);
    wait_for_part(&phone, 65_536);
    hub.run(&["token", "revoke", "phone"]);
    phone.wait_until_halted("unauthorized");
    assert_eq!(phone.count(), 0);
    let status: Value = phone.status();
    assert!(status["history"].is_null(), "{status}");
}

/// Leaves the file system only this much room, until it is deleted.
pub(crate) fn fill(mounted: &Mounted, left: u64) -> std::path::PathBuf {
    let disk = rustix::fs::statvfs(mounted.path()).unwrap();
    let path = mounted.path().join("ballast");
    fs::write(&path, vec![1; usize::try_from(disk.f_bavail * disk.f_frsize - left).unwrap()]).unwrap();
    path
}

#[test]
fn trust_61_a_disk_that_fills_up_during_a_download_takes_likes_and_the_log() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&(likes(LONG) + &unknown(40_000)));
    let mounted = Mounted::in_memory(96);
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    phone.data = mounted.path().join("data");
    proxy.set(on("/snapshot", Mode::Slow(4_096, Duration::from_millis(20))));
    phone.start();
    wait_for_part(&phone, 65_536);
    let ballast = fill(&mounted, 12 << 20);
    phone.like();
    wait_for("the download to end", || phone.log().contains("the disk has no room for it").then_some(()));
    assert_eq!(part(&phone), 0);
    phone.like();
    assert!(phone.count() >= 2);
    fs::remove_file(ballast).unwrap();
    wait_until_level(&[&hub, &phone], LONG as u64 + 2);
    phone.stop();
}

#[test]
fn trust_61_a_disk_without_room_for_the_state_of_a_snapshot_takes_likes_and_the_log() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&(likes(LONG) + &unknown(20_000)));
    let mounted = Mounted::in_memory(96);
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    phone.data = mounted.path().join("data");
    proxy.set(on("after=", Mode::Refuse));
    phone.start();
    let bytes = wait_for_whole(&phone);
    let ballast = fill(&mounted, bytes + (8 << 20));
    proxy.set(Mode::Pass);
    wait_for("the snapshot to be given up", || phone.log().contains("the disk has no room for it").then_some(()));
    phone.like();
    fs::remove_file(ballast).unwrap();
    wait_until_level(&[&hub, &phone], LONG as u64 + 1);
    assert!(!phone.log().contains(BEGAN), "{}", phone.log());
    phone.stop();
}

#[test]
fn whoever_asks_for_one_byte_at_a_time_does_not_fill_the_hubs_log() {
    let (hub, _proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let schema = hub.status()["schema"].as_str().unwrap().replace(' ', "%20");
    let url = format!("{}/sync/v1/likes/snapshot?schema={schema}", hub.url());
    let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
    let token = format!("Bearer {}", hub.token("phone"));
    let mut whole = agent.get(&url).header("authorization", &token).call().unwrap();
    let whole = whole.body_mut().read_to_vec().unwrap();
    assert_eq!(sent(&hub), [whole.len() as u64]);
    for at in 0..20 {
        let range = format!("bytes={at}-{at}");
        let mut byte = agent.get(&url).header("authorization", &token).header("range", range).call().unwrap();
        assert_eq!(byte.body_mut().read_to_vec().unwrap(), whole[at..=at]);
    }
    assert_eq!(sent(&hub).len(), 1, "{}", hub.log());
}

#[test]
fn trust_61_a_hub_without_room_for_a_snapshot_syncs_on_and_says_so() {
    let mounted = Mounted::in_memory(64);
    let mut hub = Node::stopped_hub();
    hub.data = mounted.path().join("data");
    hub.start();
    hub.import(&likes(LONG));
    let ballast = fill(&mounted, 8 << 20);
    for name in ["phone", "laptop"] {
        let url = hub.url().to_owned();
        let phone = Node::client(name, &url, &hub);
        let count = hub.count();
        wait_until_level(&[&hub, &phone], count);
        assert!(!phone.log().contains(BEGAN), "{}", phone.log());
        phone.like();
        wait_until_level(&[&hub, &phone], count + 1);
    }
    let log = hub.log();
    assert_eq!(log.matches("no snapshot can be made").count(), 1, "{log}");
    assert!(log.contains("would leave the disk without room"), "{log}");
    fs::remove_file(ballast).unwrap();
    hub.stop();
}
