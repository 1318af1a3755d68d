//! A disk that refuses: a write, a sync, a name or an opening fails, once or for ever. Whatever fails, nothing acknowledged is
//! lost or doubled. Likes are refused in words meanwhile, and everything goes on when the disk is well again. A later power cut
//! shows that no failed sync was believed, on a disk that keeps what it couldn't write and on one that forgets it.

use std::path::Path;
use std::process::Output;

use rustix::io::Errno;

use crate::check::{Cuts, Findings, Opened, Outcome, check_likes, power_cuts, text};
use crate::client::new_id;
use crate::common::{self, wait_for};
use crate::shim::{Class, Fault, Recorder};

/// How many likes a scenario has before the disk goes bad, and how many while it is bad.
const LIKES: usize = 3;

fn start(recorder: &Recorder) -> Result<Opened, String> {
    Opened::spawn(recorder.command("data", &["serve", "--listen", "127.0.0.1:0"]))
}

/// Posts one like until it is stored, always with the same id. A server that has ended is restarted.
fn like_at_last(recorder: &Recorder, server: &mut Option<Opened>, id: &str) {
    wait_for("a like to be stored on a disk that is well", || {
        if server.as_mut().is_none_or(|server| !server.is_running()) {
            *server = Some(start(recorder).unwrap_or_else(|why| panic!("it doesn't start on a healthy disk: {why}")));
        }
        let (status, _) = server.as_ref()?.try_like(id)?;
        (status == 303).then(|| recorder.acknowledge(id))
    });
}

/// A server may end because of a bad disk, or not start on one, if it says why.
pub(crate) fn assert_ended_in_words(fault: Fault, said: &str) {
    assert!(said.contains("exit status: 1") && !said.contains("panicked"), "{fault:?}: {said}");
}

/// What a command may do on a disk that refuses: fail in words, or succeed.
pub(crate) fn assert_in_words(fault: Fault, output: &Output) {
    let said = text(output);
    assert!(output.status.code().is_some_and(|code| code < 2), "{fault:?}: {said}");
    assert!(output.status.success() || said.len() > 20, "{fault:?}: it failed without a word: {said}");
    assert!(!said.contains("panicked"), "{fault:?}: {said}");
}

/// One run on a disk with this fault. The fault is there from the first start, or begins while the program runs.
fn bad_disk(recorder: &Recorder, fault: Fault, from_the_start: bool) {
    let mut server = None;
    if !from_the_start {
        like_at_last(recorder, &mut server, &new_id());
    }
    recorder.fault(fault);
    let mut tried = Vec::new();
    for n in 0..LIKES * 2 {
        if server.as_mut().is_none_or(|server| !server.is_running()) {
            match start(recorder) {
                Ok(started) => server = Some(started),
                Err(said) => assert_ended_in_words(fault, &said),
            }
        }
        let id = new_id();
        let answer = server.as_ref().and_then(|server| server.try_like(&id));
        match answer {
            Some((303, _)) => recorder.acknowledge(&id),
            Some((status, body)) => {
                assert_eq!(status, 503, "{fault:?}: {body}");
                tried.push(id);
            }
            None => tried.push(id),
        }
        if n == LIKES {
            assert_in_words(fault, &recorder.command("data", &["export"]).output().expect("the program starts"));
            assert_in_words(fault, &recorder.command("data", &["status"]).output().expect("the program starts"));
            if let Some(Err(said)) = server.take().map(Opened::stop) {
                assert_ended_in_words(fault, &said);
            }
        }
    }
    recorder.mend();
    // The ids stay the same: a like that was stored despite the fault counts once.
    for id in &tried {
        like_at_last(recorder, &mut server, id);
    }
    like_at_last(recorder, &mut server, &new_id());
    // Another start finds what is in the page cache.
    let server = server.expect("it runs");
    if fault.at.is_multiple_of(2) {
        recorder.kill_opened(server);
    } else {
        server.stop().expect("a clean end");
    }
    let mut server = None;
    like_at_last(recorder, &mut server, &new_id());
    recorder.kill_opened(server.expect("it runs"));
}

fn check(image: &Path, due: &[String]) -> Findings {
    check_likes(&image.join("data"), due)
}

/// How many calls of this kind there are when nothing fails.
fn calls(class: Class, from_the_start: bool) -> u64 {
    let recorder = Recorder::new();
    bad_disk(&recorder, Fault { class, at: 0, errno: Errno::IO, forever: false, drops: false }, from_the_start);
    recorder.seen()
}

/// Every `stride`-th call fails. Two images are checked each time.
fn every(class: Class, stride: usize, kinds: &[Kind]) {
    let is_all = common::is_asked_for_all();
    let mut all = Outcome::default();
    for from_the_start in [true, false] {
        let calls = calls(class, from_the_start);
        assert!(calls > 0, "no calls of the kind {class:?}");
        for (n, at) in (1..=calls).step_by(if is_all { 1 } else { stride }).enumerate() {
            let kinds = if is_all { kinds } else { &kinds[n % kinds.len()..][..1] };
            for (errno, forever, drops) in kinds.iter().copied() {
                let fault = Fault { class, at, errno, forever, drops };
                let name = fault.name(from_the_start);
                let scenario = |recorder: &Recorder| {
                    eprintln!("{name}");
                    bad_disk(recorder, fault, from_the_start);
                };
                all.add(power_cuts(&name, Cuts::Random(2), scenario, check));
            }
        }
    }
    all.assert_well(&format!("{class:?}"));
}

/// How a call fails, whether it fails for ever, and whether the disk drops what it couldn't sync.
pub(crate) type Kind = (Errno, bool, bool);

pub(crate) const NO_ROOM_OR_BROKEN: [Kind; 4] =
    [(Errno::IO, false, false), (Errno::NOSPC, true, false), (Errno::IO, true, false), (Errno::NOSPC, false, false)];

pub(crate) const SYNC_FAILS: [Kind; 4] =
    [(Errno::IO, false, true), (Errno::IO, true, false), (Errno::IO, true, true), (Errno::IO, false, false)];

pub(crate) const NAME_FAILS: [Kind; 2] = [(Errno::IO, false, false), (Errno::IO, true, false)];

#[test]
fn trust_05_a_write_that_fails() {
    every(Class::Writes, 37, &NO_ROOM_OR_BROKEN);
}

#[test]
fn trust_05_a_sync_that_fails() {
    every(Class::Syncs, 13, &SYNC_FAILS);
}

#[test]
fn trust_05_a_name_that_can_not_be_changed() {
    every(Class::Names, 3, &NAME_FAILS);
}

#[test]
fn trust_05_a_file_that_can_not_be_opened_or_made() {
    every(Class::Opens, 11, &NO_ROOM_OR_BROKEN);
}

/// What happens after a failed sync.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Syncs work again.
    Works,
    /// They go on failing for a while.
    Fails,
    /// The program is killed.
    Dies,
}

/// The sync of a like fails. The same like is posted again until it is stored, and others follow.
fn failed_sync(recorder: &Recorder, drops: bool, then: Then) {
    let mut server = None;
    for _ in 0..LIKES {
        like_at_last(recorder, &mut server, &new_id());
    }
    recorder.only("eventlog.db");
    let forever = matches!(then, Then::Fails);
    recorder.fault(Fault { class: Class::Syncs, at: 1, errno: Errno::IO, forever, drops });
    let ids = [new_id(), new_id()];
    let like = |server: &Option<Opened>, id: &str| server.as_ref().and_then(|server| server.try_like(id));
    assert!(like(&server, &ids[0]).is_none_or(|(status, _)| status != 303), "it was stored though its sync failed");
    assert!(recorder.failed() > 0);
    match then {
        Then::Dies => recorder.kill_opened(server.take().expect("it runs")),
        Then::Fails => {
            let answer = like(&server, &ids[1]);
            assert!(answer.is_none_or(|(status, _)| status != 303), "it was stored though its sync failed");
        }
        Then::Works => {}
    }
    recorder.mend();
    recorder.only("");
    for id in &ids {
        like_at_last(recorder, &mut server, id);
    }
    for _ in 0..LIKES {
        like_at_last(recorder, &mut server, &new_id());
    }
    recorder.kill_opened(server.take().expect("it runs"));
    for _ in 0..LIKES {
        like_at_last(recorder, &mut server, &new_id());
    }
    recorder.kill_opened(server.expect("it runs"));
}

fn failed_syncs(drops: bool) {
    let mut all = Outcome::default();
    for then in [Then::Works, Then::Fails, Then::Dies] {
        let name = format!("failed-sync-{then:?}{}", if drops { "-drops" } else { "" }).to_lowercase();
        all.add(power_cuts(&name, Cuts::Random(12), |recorder| failed_sync(recorder, drops, then), check));
    }
    all.assert_well("failed syncs");
}

#[test]
fn trust_59_a_failed_sync_on_a_disk_that_keeps_what_it_could_not_write() {
    failed_syncs(false);
}

#[test]
fn trust_59_a_failed_sync_on_a_disk_that_forgets_what_it_could_not_write() {
    failed_syncs(true);
}
