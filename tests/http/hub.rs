//! `likewise hub`: a hub alone, which orders the events of any app and has no page.

use likewise::sync::{TokenSource, UpstreamOptions};

use crate::app::Board;
use crate::client::{Answer, agent};
use crate::common::{Server, data_dir, likewise, printed, run, wait_for};

#[allow(dead_code, reason = "its program is not run here")]
#[path = "../../examples/todo/main.rs"]
mod todo;

fn hub(data: &std::path::Path, flags: &[&str]) -> Server {
    let mut command = likewise();
    command.args(["hub", "--listen", "127.0.0.1:0"]).args(flags);
    Server::spawn(command, data)
}

fn get(server: &Server, path: &str, host: Option<&str>) -> Answer {
    let mut request = agent().get(format!("{}{path}", server.url));
    if let Some(host) = host {
        request = request.header("host", host);
    }
    Answer::of(request.call().expect("an answer"))
}

#[test]
fn devices_of_another_app_sync_through_a_hub_that_does_not_know_it() {
    let data = data_dir();
    let server = hub(data.path(), &[]);
    let device = |name: &str| {
        let token = printed(run(data.path(), &["token", "add", name])).trim().to_owned();
        let token = TokenSource::Given(token);
        let upstream = UpstreamOptions { url: server.url.clone(), token, root_certificate: None };
        Board::start_with(todo::app(), Some(upstream)).expect("it is served")
    };
    let (laptop, phone) = (device("laptop"), device("phone"));
    for (device, title) in [(&laptop, "milk"), (&phone, "bread")] {
        assert_eq!(device.post("/add", &[], &format!("title={title}")).status, 303);
    }
    for device in [&laptop, &phone] {
        wait_for("both to-dos", || {
            let status = device.get("/status").json();
            let is_level = status["left"] == 2 && status["pending"] == 0 && status["head"] == 2;
            is_level.then_some(())
        });
    }
    let digest = |device: &Board| device.get("/status?digests").json()["log_digest"].clone();
    assert_eq!(digest(&laptop), digest(&phone));

    let of_todo = |command: &str| printed(run(data.path(), &[command, "--store", "todo"]));
    let status = get(&server, "/s/todo/status?digests", None).json();
    assert_eq!((&status["head"], &status["unknown"], &status["skipped"]), (&2.into(), &2.into(), &0.into()));
    assert_eq!(status["log_digest"], digest(&laptop));
    let check = |exported: &str| {
        assert_eq!(exported.lines().count(), 2, "{exported}");
        assert!(exported.contains("TodoAdded") && exported.contains("milk"), "{exported}");
    };
    of_todo("verify");
    check(&of_todo("export"));
    server.kill();
    of_todo("verify");
    check(&of_todo("export"));
    let words = of_todo("status");
    assert!(words.contains("2 of kinds that this program doesn't know"), "{words}");
}

#[test]
fn a_hub_has_no_page() {
    let data = data_dir();
    let server = hub(data.path(), &["--allow-host", "hub.example"]);
    let (status, metrics) = (get(&server, "/status", None), get(&server, "/metrics", None));
    assert_eq!((status.status, metrics.status), (403, 403), "a proxy on this machine may ask that");
    server.kill();
    let server = hub(data.path(), &["--allow-host", "hub.example", "--local-page"]);
    for path in ["/healthz", "/status", "/metrics", "/s/todo/status", "/s/todo/healthz", "/s/todo/metrics"] {
        assert_eq!(get(&server, path, None).status, 200, "{path}");
    }
    for path in ["/", "/live", "/likes", "/s/todo/", "/s/todo/live", "/static/likewise.js", "/favicon.ico", "/nowhere"]
    {
        for host in [None, Some("hub.example")] {
            let answer = get(&server, path, host);
            assert_eq!((answer.status, answer.header("content-type")), (404, "application/problem+json"), "{path}");
            assert_eq!(answer.json()["code"], "not-found");
        }
    }
    let post = Answer::of(agent().post(format!("{}/likes", server.url)).send_form([("id", "1")]).expect("an answer"));
    assert_eq!(post.status, 404);
    assert!(!server.store("likes").exists());
    assert_eq!(get(&server, "/healthz", Some("hub.example")).status, 200);
    for path in ["/status", "/metrics", "/s/todo/status"] {
        let answer = get(&server, path, Some("hub.example"));
        assert_eq!((answer.status, answer.json()["code"].as_str()), (403, Some("not-public")), "{path}");
        assert!(!answer.body.contains("--public"), "{}", answer.body);
    }
    let answer = get(&server, "/sync/v1/todo/events", Some("hub.example"));
    assert_eq!((answer.status, answer.json()["code"].as_str()), (401, Some("unauthorized")));
    assert_eq!(get(&server, "/", Some("elsewhere.example")).status, 403);
}
