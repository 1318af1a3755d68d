//! A disk that refuses under sync: a call fails on the disk of a device that pulls and pushes, or on the disk of its hub. Neither
//! side loses or doubles what it acknowledged. When the disk is well again, both go on and end up equal. After a power cut of
//! both, they end up equal, too.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::check::{Cuts, Findings, Opened, Outcome, check_likes, exported, power_cuts, until_level};
use crate::client::new_id;
use crate::common::{self, printed, wait_for};
use crate::faults::{Kind, NAME_FAILS, NO_ROOM_OR_BROKEN, SYNC_FAILS, assert_ended_in_words, assert_in_words};
use crate::shim::{Class, Fault, Recorder};

/// Whose disk is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Device,
    Hub,
}

const SIDES: [Side; 2] = [Side::Device, Side::Hub];

impl Side {
    /// Its data directory below the root.
    fn data(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Hub => "hub",
        }
    }
}

/// How many likes are posted to each side while one of the disks is bad.
const LIKES: usize = 4;

/// A device and its hub on disks that are watched.
struct Pair<'a> {
    recorder: &'a Recorder,
    token: PathBuf,
    device: Option<Opened>,
    hub: Option<Opened>,
    /// Likes that were not acknowledged, and where they were posted.
    tried: Vec<(Side, String)>,
}

impl<'a> Pair<'a> {
    /// A hub that knows the device, before the first start of either.
    fn new(recorder: &'a Recorder) -> Self {
        let added = printed(recorder.command("hub", &["token", "add", "phone"]).output().expect("the program starts"));
        let token = recorder.aside("token");
        fs::write(&token, &added).expect("a file for the token");
        recorder.acknowledge(&format!("token {}", added.trim()));
        Self { recorder, token, device: None, hub: None, tried: Vec::new() }
    }

    fn of(&mut self, side: Side) -> &mut Option<Opened> {
        match side {
            Side::Device => &mut self.device,
            Side::Hub => &mut self.hub,
        }
    }

    /// Starts whichever of the two isn't running. The device needs the hub's address, so it restarts with the hub.
    fn start(&mut self) -> Result<(), String> {
        let serve = |data: &str, flags: &[&str]| {
            let mut command = self.recorder.command(data, &["serve", "--listen", "127.0.0.1:0"]);
            command.args(flags);
            Opened::spawn(command)
        };
        if self.hub.as_mut().is_none_or(|hub| !hub.is_running()) {
            self.kill(Side::Device);
            self.hub = Some(serve("hub", &[])?);
        }
        if self.device.as_mut().is_none_or(|device| !device.is_running()) {
            let (hub, token) = (self.hub.as_ref().expect("it runs"), self.token.to_str().expect("a path"));
            let flags = ["--upstream", &hub.url, "--token-file", token, "--retry-halted", "1"];
            self.device = Some(serve("device", &flags)?);
        }
        Ok(())
    }

    fn kill(&mut self, side: Side) {
        if let Some(opened) = self.of(side).take() {
            self.recorder.kill_opened(opened);
        }
    }

    /// Likes once on a disk that may be bad. False if the like was refused, or not answered.
    fn try_like(&mut self, side: Side, id: &str) -> bool {
        let answer = self.of(side).as_ref().and_then(|opened| opened.try_like(id));
        if let Some((status, body)) = &answer {
            assert!([303, 503].contains(status), "{side:?}: {status}: {body}");
        }
        let is_stored = answer.is_some_and(|(status, _)| status == 303);
        if is_stored {
            self.recorder.acknowledge(&format!("{} {id}", side.data()));
        }
        is_stored
    }

    /// Posts a like on healthy disks until it is stored.
    fn like(&mut self, side: Side, id: &str) {
        wait_for("a like to be stored on a healthy disk", || {
            self.start().unwrap_or_else(|why| panic!("it doesn't start on a healthy disk: {why}"));
            self.try_like(side, id).then_some(())
        });
    }

    /// How many events the two have, if they have the same ones.
    fn level(&self) -> Option<u64> {
        let status = |opened: &Option<Opened>| -> Option<Value> {
            let (status, body) = opened.as_ref()?.try_get("/status?digests")?;
            if status == 200 { serde_json::from_str(&body).ok() } else { None }
        };
        let (device, hub) = (status(&self.device)?, status(&self.hub)?);
        let same = |field: &str| device[field] == hub[field] && !device[field].is_null();
        let is_level = ["count", "log_digest", "state_digest"].into_iter().all(same) && device["pending"] == 0;
        is_level.then(|| device["count"].as_u64()).flatten()
    }

    /// Waits until the two hold the same events. Each has acknowledged all of them then.
    fn until_level(&mut self) {
        let count = wait_for("the device and its hub to hold the same events", || {
            self.start().unwrap_or_else(|why| panic!("it doesn't start on a healthy disk: {why}"));
            self.level()
        });
        let ids = exported(&self.recorder.root().join("hub")).expect("an export");
        assert_eq!(ids.len() as u64, count, "the page's number is not the number of events");
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "an id is there twice");
        for id in ids {
            SIDES.iter().for_each(|side| self.recorder.acknowledge(&format!("{} {id}", side.data())));
        }
    }
}

/// One run in which the disk of `side` has this fault, from the first start or once the two are in sync. Returns how many calls
/// failed.
fn bad_disk(recorder: &Recorder, side: Side, fault: Fault, from_the_start: bool) -> u64 {
    let mut pair = Pair::new(recorder);
    if !from_the_start {
        SIDES.iter().for_each(|side| pair.like(*side, &new_id()));
        pair.until_level();
    }
    recorder.only(&format!("/root/{}/", side.data()));
    recorder.fault(fault);
    for n in 0..LIKES {
        if let Err(said) = pair.start() {
            assert_ended_in_words(fault, &said);
        }
        let failed = recorder.failed();
        for side in SIDES {
            let id = new_id();
            if !pair.try_like(side, &id) {
                pair.tried.push((side, id));
            }
        }
        // Either they sync, or something failed meanwhile. A disk that fails for ever may cause no further news.
        wait_for("the likes to be synced, or to meet a fault", || {
            let runs = SIDES.iter().all(|side| pair.of(*side).as_mut().is_some_and(Opened::is_running));
            let has_failed = recorder.failed() > failed || fault.forever && failed > 0;
            (!runs || has_failed || pair.level().is_some()).then_some(())
        });
        if n == LIKES / 2 {
            let status = recorder.command(side.data(), &["status"]).output().expect("the program starts");
            assert_in_words(fault, &status);
            if let Some(Err(said)) = pair.of(side).take().map(Opened::stop) {
                assert_ended_in_words(fault, &said);
            }
        }
    }
    recorder.mend();
    recorder.only("");
    // The ids stay the same: a like that was stored despite the fault counts once.
    for (side, id) in std::mem::take(&mut pair.tried) {
        pair.like(side, &id);
    }
    pair.until_level();
    // Another start finds what is in the page cache.
    pair.kill(SIDES[usize::from(fault.at.is_multiple_of(2))]);
    SIDES.iter().for_each(|side| pair.like(*side, &new_id()));
    pair.until_level();
    SIDES.iter().for_each(|side| pair.kill(*side));
    recorder.failed()
}

fn check(image: &Path, due: &[String]) -> Findings {
    let due_in = |data: &str| -> Vec<String> {
        due.iter().filter_map(|what| what.strip_prefix(data)?.strip_prefix(' ')).map(str::to_owned).collect()
    };
    let mut findings = Findings::new();
    for side in SIDES {
        findings.extend(check_likes(&image.join(side.data()), &due_in(side.data())));
    }
    if findings.is_empty()
        && let Some(token) = due_in("token").first()
    {
        findings.extend(until_level(&image.join("hub"), &image.join("device"), token));
    }
    findings
}

/// Every `stride`-th call of this kind fails, on either side, until there are no more such calls. Two images are checked each
/// time.
fn every(class: Class, stride: usize, kinds: &[Kind]) {
    let is_all = common::is_asked_for_all();
    let stride = if is_all { 1 } else { stride };
    let mut all = Outcome::default();
    for side in SIDES {
        for from_the_start in [true, false] {
            // In a sample, each class has one of the two times.
            if !is_all && from_the_start == matches!(class, Class::Syncs | Class::Opens) {
                continue;
            }
            for (n, at) in (1..).step_by(stride).enumerate() {
                let kinds = if is_all { kinds } else { &kinds[n % kinds.len()..][..1] };
                let failed = Cell::new(0);
                for (errno, forever, drops) in kinds.iter().copied() {
                    let fault = Fault { class, at, errno, forever, drops };
                    let name = format!("{}-{}", side.data(), fault.name(from_the_start));
                    let scenario = |recorder: &Recorder| {
                        eprintln!("{name}");
                        failed.set(failed.get() + bad_disk(recorder, side, fault, from_the_start));
                    };
                    all.add(power_cuts(&name, Cuts::Random(2), scenario, check));
                }
                if failed.get() == 0 {
                    assert!(n > 0, "no calls of the kind {class:?}");
                    break;
                }
            }
        }
    }
    all.assert_well(&format!("{class:?} under sync"));
}

#[test]
fn trust_05_a_write_that_fails_under_sync() {
    every(Class::Writes, 120, &NO_ROOM_OR_BROKEN);
}

#[test]
fn trust_05_a_sync_that_fails_under_sync() {
    every(Class::Syncs, 20, &SYNC_FAILS);
}

#[test]
fn trust_05_a_name_that_can_not_be_changed_under_sync() {
    every(Class::Names, 17, &NAME_FAILS);
}

#[test]
fn trust_05_a_file_that_can_not_be_opened_or_made_under_sync() {
    every(Class::Opens, 9, &NO_ROOM_OR_BROKEN);
}
