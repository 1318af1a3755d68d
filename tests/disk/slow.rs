//! A disk that takes its time: whoever reads doesn't wait for it, and sees nothing that isn't safe yet.

use std::time::Duration;

use crate::client::{agent, new_id};
use crate::common::wait_for;
use crate::shim::Recorder;

/// How long a page may take while a sync goes on that ends only when it is told to: long enough for a busy machine.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn trust_65_pages_do_not_wait_for_a_sync_and_show_nothing_of_it() {
    let recorder = Recorder::new();
    let server = recorder.serve("data", &[]);
    server.like_times(3);
    let reader =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(SOON)).build().new_agent();
    let read = |path: &str| {
        let answer = reader.get(format!("{}{path}", server.url)).call();
        let mut answer = answer.unwrap_or_else(|why| panic!("{path} waits for a sync: {why}"));
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("the answer"))
    };
    assert!(read("/").1.contains(r#"data-count="3""#));
    recorder.only("eventlog.db");
    recorder.hold();
    let id = new_id();
    let posted = {
        let (url, id) = (format!("{}/likes", server.url), id.clone());
        std::thread::spawn(move || agent().post(url).send_form([("id", &id)]).expect("an answer").status().as_u16())
    };
    recorder.until_held();
    for _ in 0..3 {
        let (status, page) = read("/");
        assert_eq!(status, 200);
        assert!(page.contains(r#"data-count="3""#), "it shows what isn't safe yet: {page}");
        read("/healthz");
    }
    assert!(!posted.is_finished(), "the like was answered before its sync");
    recorder.release();
    assert_eq!(posted.join().expect("no panic"), 303);
    wait_for("the like to be shown", || read("/").1.contains(r#"data-count="4""#).then_some(()));
    assert!(server.terminate().success());
}

#[test]
fn trust_47_a_like_whose_sync_takes_its_time_is_finished_at_the_end() {
    let recorder = Recorder::new();
    let server = recorder.serve("data", &[]);
    server.like_times(3);
    recorder.only("eventlog.db");
    recorder.delay(1_000);
    let posted = {
        let url = format!("{}/likes", server.url);
        std::thread::spawn(move || {
            agent().post(url).send_form([("id", &new_id())]).expect("an answer").status().as_u16()
        })
    };
    recorder.until_held();
    assert!(server.terminate().success());
    assert_eq!(posted.join().expect("no panic"), 303);
    recorder.delay(0);
    assert_eq!(recorder.serve("data", &[]).count(), 4);
}
