//! Power cuts at any moment of what the program does: nothing acknowledged is lost or doubled, and everything opens.

use std::path::Path;

use crate::check::{Findings, check_likes, power_cuts};
use crate::client::{agent, new_id};
use crate::common::Server;
use crate::shim::Recorder;

/// Likes from several writers at once, so many each.
fn like_from(recorder: &Recorder, server: &Server, writers: usize, likes: usize) {
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                let agent = agent();
                for _ in 0..likes {
                    let id = new_id();
                    let answer = agent.post(format!("{}/likes", server.url)).send_form([("id", &id)]);
                    assert_eq!(answer.expect("an answer").status(), 303);
                    recorder.acknowledge(&id);
                }
            });
        }
    });
}

/// Likes until one is held in its sync, in the write-ahead log of the eventlog, and gives that one's id.
fn like_and_die_in_the_sync(recorder: &Recorder, server: Server) -> String {
    let id = new_id();
    recorder.only("eventlog.db-wal");
    recorder.hold();
    let posted = {
        let (url, id) = (format!("{}/likes", server.url), id.clone());
        std::thread::spawn(move || drop(agent().post(url).send_form([("id", &id)])))
    };
    recorder.until_held();
    recorder.kill(server);
    posted.join().expect("no panic");
    recorder.release();
    recorder.only("");
    id
}

fn alone(image: &Path, due: &[String]) -> Findings {
    check_likes(&image.join("data"), due)
}

#[test]
fn trust_04_a_power_cut_under_several_writers() {
    let scenario = |recorder: &Recorder, _| {
        let server = recorder.serve("data", &[]);
        like_from(recorder, &server, 4, 25);
        assert!(server.terminate().success());
    };
    power_cuts("commits", 100, scenario, alone).assert_well("commits");
}

#[test]
fn trust_58_a_like_whose_sync_a_kill_ended_and_that_was_posted_again() {
    let scenario = |recorder: &Recorder, _| {
        let mut server = recorder.serve("data", &[]);
        for _ in 0..8 {
            like_from(recorder, &server, 2, 3);
            let id = like_and_die_in_the_sync(recorder, server);
            server = recorder.serve("data", &[]);
            server.like("", &id);
            recorder.acknowledge(&id);
        }
        recorder.kill(server);
    };
    power_cuts("kill-and-retry", 100, scenario, alone).assert_well("kill-and-retry");
}
