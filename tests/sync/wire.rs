//! The bytes between a hub and its clients, and pushes that no client of ours sends.

use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{likewise, wait_for};
use crate::support::{Node, Wire, exchange, get, hub_behind_proxy, like, likes, new_id, wait_until_level};

/// The whole exchange as bytes. Any change here breaks every other client.
#[test]
fn the_wire_is_as_documented() {
    let hub = Node::hub();
    let wire = Wire::new(&hub, "phone");
    let mut pull = wire.pull("after=0").unwrap();
    let head = pull.head.to_lowercase();
    assert!(
        head.starts_with("http/1.1 200 ok\r\n") && head.contains("\r\ncontent-type: text/event-stream\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\ncache-control: no-store, no-transform\r\n"), "{head}");
    assert!(head.contains("\r\nx-accel-buffering: no\r\n"), "{head}");
    let hello = pull.next_bytes().unwrap();
    let data = hello.strip_prefix("event: hello\ndata: ").expect("a hello").trim_end();
    let parsed: Value = serde_json::from_str(data).unwrap();
    let run = parsed["run"].as_str().unwrap();
    assert_eq!(hello, format!("event: hello\ndata: {{\"log\":null,\"run\":\"{run}\",\"head\":0}}\n\n"));

    let (first, second) = (new_id(), new_id());
    let push = format!(
        r#"{{"log":null,"run":"{run}","events":[{{"id":"{first}","name":"LikeAdded"}},{{"id":"{second}","name":"NoteAdded","args":"[1.0,\"é\"]"}},{{"id":"{first}","name":"Other"}},{{"id":"no","name":"LikeAdded"}}]}}"#
    );
    let (status, head, body) = wire.push_text(&push);
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: application/json"), "{head}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let log = answer["log"].as_str().unwrap().to_owned();
    let why = |index: usize| answer["events"][index]["why"].to_string();
    assert_eq!(
        body,
        format!(
            r#"{{"log":"{log}","events":[{{"seq":1}},{{"seq":2}},{{"refused":"id-taken","why":{}}},{{"refused":"malformed","why":{}}}]}}"#,
            why(2),
            why(3)
        )
    );
    let page = pull.next_bytes().unwrap();
    assert_eq!(
        page,
        format!(
            "event: page\ndata: {{\"log\":\"{log}\",\"events\":[\
             {{\"seq\":1,\"id\":\"{first}\",\"name\":\"LikeAdded\",\"origin\":\"phone\"}},\
             {{\"seq\":2,\"id\":\"{second}\",\"name\":\"NoteAdded\",\"args\":\"[1.0,\\\"é\\\"]\",\"origin\":\"phone\"}}\
             ],\"next\":2,\"more\":false}}\n\n"
        )
    );
    let start = Instant::now();
    assert_eq!(pull.next_bytes().unwrap(), "event: ping\ndata: {}\n\n");
    assert!(start.elapsed() < Duration::from_secs(60), "a ping took {:?}", start.elapsed());

    // From the middle, with the digest that the status shows.
    let digest = hub.status()["log_digest"].as_str().unwrap().to_owned();
    let mut pull = wire.pull(&format!("log={log}&after=2&digest={digest}&last_id={second}")).unwrap();
    let (_, hello) = pull.next().unwrap();
    assert_eq!(hello, json!({ "log": log, "run": run, "head": 2 }));
    let (status, problem) = wire.pull(&format!("log={log}&after=1&digest={digest}")).err().expect("another log");
    assert_eq!((status, &problem["code"], &problem["head"]), (409, &"diverged".into(), &2.into()));
    let points: Vec<_> = problem["checkpoints"].as_array().unwrap().iter().map(|point| point["seq"].clone()).collect();
    assert_eq!(points.first(), Some(&2.into()));
    assert_eq!(points.last(), Some(&0.into()));
    assert_eq!(problem["checkpoints"][0]["digest"], digest);

    for (parameters, code) in
        [("after=x", "malformed-pull"), ("log=x", "malformed-pull"), ("digest=x", "malformed-pull")]
    {
        let (status, problem) = wire.pull(parameters).err().expect("a refusal");
        assert_eq!((status, &problem["code"]), (400, &code.into()), "{parameters}");
    }
    let (status, problem) = wire.pull(&format!("log={}", new_id())).err().expect("a refusal");
    assert_eq!((status, &problem["code"]), (409, &"wrong-log".into()));
    let run = Value::from(run);
    let (status, problem) = wire.push(&new_id().into(), &run, &[like()]);
    assert_eq!((status, &problem["code"]), (409, &"wrong-log".into()));
    assert_eq!(wire.push(&Value::Null, &run, &[like()]).1["events"][0], json!({ "seq": 3 }));
}

#[test]
fn trust_16_one_batch_over_two_connections_is_stored_once() {
    let hub = Node::hub();
    let wire = Wire::new(&hub, "phone");
    let run = wire.hello()["run"].clone();
    let events: Vec<_> = (0..1_000).map(|_| like()).collect();
    let answers: Vec<_> = thread::scope(|all| {
        let pushes: Vec<_> = (0..4).map(|_| all.spawn(|| wire.push(&Value::Null, &run, &events))).collect();
        pushes.into_iter().map(|push| push.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!(answer.0, 200);
        assert_eq!(answer, &answers[0]);
    }
    assert_eq!(hub.count(), 1_000);
    hub.verify();
}

#[test]
fn trust_17_another_event_under_a_known_id_is_refused() {
    let hub = Node::hub();
    let wire = Wire::new(&hub, "phone");
    let run = wire.hello()["run"].clone();
    let first = like();
    let (_, answer) = wire.push(&Value::Null, &run, std::slice::from_ref(&first));
    let log = answer["log"].clone();
    let others = [
        json!({ "id": first["id"], "name": "LikeAdded", "args": "[1]" }),
        json!({ "id": first["id"], "name": "Other" }),
        first.clone(),
        // These all mean that there is no payload.
        json!({ "id": first["id"], "name": "LikeAdded", "args": "{}" }),
        json!({ "id": first["id"], "name": "LikeAdded", "args": null }),
    ];
    let (status, answer) = wire.push(&log, &run, &others);
    assert_eq!(status, 200);
    let codes: Vec<_> = answer["events"].as_array().unwrap().iter().map(|event| event["refused"].clone()).collect();
    assert_eq!(codes, [json!("id-taken"), json!("id-taken"), Value::Null, Value::Null, Value::Null]);
    assert_eq!(answer["events"][2], json!({ "seq": 1 }));
    assert_eq!((hub.count(), hub.export().len()), (1, 1));
}

/// The same on a device that is offline: its own event loses, and is kept.
#[test]
fn trust_17_a_conflict_met_by_pulling_sets_the_local_event_aside() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    proxy.part();
    phone.wait_until("offline");
    let id = new_id();
    phone.import(&format!("{{\"id\":\"{id}\",\"name\":\"LikeAdded\"}}\n"));
    phone.like();
    assert_eq!((phone.count(), phone.pending()), (3, 2));
    let wire = Wire::new(&hub, "other");
    let hello = wire.hello();
    let other = json!({ "id": id, "name": "NoteAdded", "args": "\"first\"" });
    assert_eq!(wire.push(&hello["log"], &hello["run"], &[other]).0, 200);

    proxy.set(crate::proxy::Mode::Pass);
    wait_until_level(&[&hub, &phone], 2);
    let status = phone.status();
    assert_eq!((&status["set_aside"], &status["unknown"]), (&1.into(), &1.into()));
    assert_eq!(phone.export().last().unwrap()["id"], id.as_str());
    let list = phone.run(&["set-aside", "list"]);
    assert!(list.starts_with(&format!("{id}\tLikeAdded\t")) && list.contains("belongs to another event"), "{list}");
    let exported: Value = serde_json::from_str(phone.run(&["set-aside", "export"]).trim()).unwrap();
    assert_eq!((&exported["id"], &exported["name"]), (&id.as_str().into(), &"LikeAdded".into()));
    assert!(exported["set_aside"].is_string());
    let (_, page) = crate::support::get(phone.url());
    assert!(page.contains("1 like not accepted and set aside"), "{page}");
    phone.verify();

    // Under its own id it counts.
    phone.run(&["set-aside", "retry"]);
    wait_until_level(&[&hub, &phone], 3);
    assert_eq!(phone.status()["set_aside"], 0);
    assert_eq!(phone.run(&["set-aside", "list"]), "");
    phone.verify();
}

/// The id is taken between the last page and the push, so the hub refuses the push.
#[test]
fn trust_17_an_event_that_the_hub_refuses_is_set_aside() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.freeze();
    let wire = Wire::new(&hub, "other");
    let ids: Vec<_> = (0..20).map(|_| new_id()).collect();
    let taken = json!({ "id": ids[7], "name": "NoteAdded", "args": "[7]" });
    assert_eq!(wire.push(&Value::Null, &wire.hello()["run"], &[taken]).0, 200);
    phone.import(&ids.iter().map(|id| format!("{{\"id\":\"{id}\",\"name\":\"LikeAdded\"}}\n")).collect::<String>());
    let status = wait_for("the refusal", || {
        let status = phone.status();
        (status["set_aside"] == 1).then_some(status)
    });
    assert_eq!((&status["count"], &status["pending"], &status["head"]), (&19.into(), &19.into(), &0.into()));
    let list = phone.run(&["set-aside", "list"]);
    assert!(list.starts_with(&format!("{}\tLikeAdded\tid-taken: ", ids[7])), "{list}");
    proxy.cut();
    wait_until_level(&[&hub, &phone], 19);
    let order: Vec<_> = hub.export().iter().skip(1).map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(order, [&ids[..7], &ids[8..]].concat());
    phone.run(&["set-aside", "retry"]);
    wait_until_level(&[&hub, &phone], 20);
    phone.verify();
}

#[test]
fn trust_28_an_event_of_a_newer_program_is_stored_and_passed_on_unchanged() {
    let hub = Node::hub();
    let phone = Node::client("phone", hub.url(), &hub);
    let wire = Wire::new(&hub, "newer");
    let hello = wire.hello();
    let event = json!({ "id": new_id(), "name": "CommentAdded", "args": "{\"text\":\"hi\", \"n\":1.0}" });
    let (status, answer) = wire.push(&Value::Null, &hello["run"], &[event.clone(), like()]);
    assert_eq!((status, answer["events"][0]["seq"].clone()), (200, json!(1)));
    wait_until_level(&[&hub, &phone], 1);
    for node in [&hub, &phone] {
        let status = node.status();
        assert_eq!((&status["unknown"], &status["skipped"]), (&1.into(), &0.into()));
        let exported = &node.export()[0];
        assert_eq!(
            (&exported["id"], &exported["name"], &exported["args"]),
            (&event["id"], &event["name"], &event["args"])
        );
        assert_eq!(exported["origin"], "newer");
        node.verify();
    }
}

#[test]
fn trust_30_a_push_that_is_too_large_is_refused_whole() {
    let hub = Node::hub();
    let wire = Wire::new(&hub, "phone");
    let run = wire.hello()["run"].clone();
    let many: Vec<_> = (0..1_001).map(|_| like()).collect();
    let (status, problem) = wire.push(&Value::Null, &run, &many);
    assert_eq!((status, &problem["code"]), (413, &"body-too-large".into()));
    let text = "x".repeat(60_000);
    let large: Vec<_> =
        (0..20).map(|_| json!({ "id": new_id(), "name": "LikeAdded", "args": format!("\"{text}\"") })).collect();
    let (status, problem) = wire.push(&Value::Null, &run, &large);
    assert_eq!((status, &problem["code"]), (413, &"body-too-large".into()));
    assert!(hub.export_is_empty(), "something was stored");
    let (status, _) = wire.push(&Value::Null, &run, &many[1..]);
    assert_eq!((status, hub.count()), (200, 1_000));
    // A payload that is too large for an event, in a push that isn't too large.
    let large = json!({ "id": new_id(), "name": "LikeAdded", "args": format!("\"{}\"", "x".repeat(70_000)) });
    let (status, answer) = wire.push(&Value::Null, &run, &[like(), large, like()]);
    assert_eq!((status, &answer["events"][1]["refused"]), (200, &"malformed".into()));
    assert_eq!(hub.count(), 1_002);
}

/// Events that were pushed and answered, but not pulled, may be gone with the hub that took them. So nothing that builds on them
/// may be pushed before the client has pulled from the new hub.
#[test]
fn trust_52_a_push_to_another_run_of_the_hub_has_to_pull_first() {
    let mut hub = Node::hub();
    let wire = Wire::new(&hub, "phone");
    hub.like();
    let backup = hub.file("backup");
    hub.run(&["backup", backup.to_str().unwrap()]);
    let hello = wire.hello();
    let (first, second) = (like(), like());
    assert_eq!(wire.push(&hello["log"], &hello["run"], std::slice::from_ref(&first)).0, 200);
    hub.stop();
    std::fs::remove_dir_all(hub.data.join("stores")).unwrap();
    std::fs::rename(backup.join("stores"), hub.data.join("stores")).unwrap();
    hub.start();
    let wire = wire.at(&hub);
    let (status, problem) = wire.push(&hello["log"], &hello["run"], std::slice::from_ref(&second));
    assert_eq!((status, &problem["code"]), (409, &"pull-first".into()));
    assert_eq!(hub.count(), 1);
    let again = wire.hello();
    assert_eq!((&again["log"], &again["head"]), (&hello["log"], &1.into()));
    assert_ne!(again["run"], hello["run"]);
    assert_eq!(wire.push(&again["log"], &again["run"], &[first.clone(), second.clone()]).0, 200);
    let ids: Vec<_> = hub.export().iter().skip(1).map(|event| event["id"].clone()).collect();
    assert_eq!(ids, [first["id"].clone(), second["id"].clone()]);
}

#[test]
fn trust_55_odd_payloads_keep_their_bytes_on_every_way() {
    let hub = Node::hub();
    let phone = Node::client("phone", hub.url(), &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let payloads = [
        r#"{"a":1.0,"a":2}"#,
        "123456789012345678901234567890",
        r#""\r\n\u000d\u2028\ud83e\udd80""#,
        "\"🦀\u{2028}\u{2029}\u{7f}\u{feff}\"",
        " [ 1e0 , -0 , 1E+2 ] ",
        r#""event: page\ndata: x\n\n""#,
        "\"<script>&amp;</script>\"",
    ];
    let events: Vec<_> = payloads.iter().map(|args| json!({ "id": new_id(), "name": "Odd", "args": args })).collect();
    let wire = Wire::new(&hub, "newer");
    let hello = wire.hello();
    let (status, answer) = wire.push(&hello["log"], &hello["run"], &events);
    assert!(answer["events"].as_array().unwrap().iter().all(|event| event["seq"].is_u64()), "{answer}");
    assert_eq!(status, 200);
    wait_until_level(&[&hub, &phone], 1);
    let exported = phone.run(&["export"]);
    assert_eq!(exported, hub.run(&["export"]));
    let texts: Vec<_> = phone.export().iter().skip(1).map(|event| event["args"].clone()).collect();
    assert_eq!(texts, payloads.map(Value::from));
    let mut pull = wire.pull("after=0").unwrap();
    let texts: Vec<_> =
        pull.page()["events"].as_array().unwrap().iter().skip(1).map(|event| event["args"].clone()).collect();
    assert_eq!(texts, payloads.map(Value::from));

    // The same bytes from the same devices, imported elsewhere, make the same log.
    let mut copy = Node::hub();
    copy.import(&exported);
    let (of_copy, of_hub) = (copy.status(), hub.status());
    assert_eq!((&of_copy["log_digest"], &of_copy["state_digest"]), (&of_hub["log_digest"], &of_hub["state_digest"]));
    copy.stop();
    // The same through the outbox of a device that isn't connected.
    let mut tablet = Node::prepared("tablet", hub.url(), &hub);
    tablet.import(&exported);
    tablet.start();
    wait_until_level(&[&hub, &phone, &tablet], 1);
    assert_eq!(tablet.run(&["export"]), exported);
}

/// A command that revokes a token is done when the running hub has done it, and a list that can't be read is told.
#[test]
fn a_token_is_revoked_when_the_command_says_so() {
    let hub = Node::hub();
    let wire = Wire::new(&hub, "phone");
    wire.hello();
    let output = hub.command(&["token", "revoke", "phone"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("the running process knows"), "{said}");
    assert!(matches!(wire.pull("after=0"), Err((401, _))));

    std::fs::write(hub.data.join("tokens.json"), "no tokens").unwrap();
    let (status, body) = get(&format!("{}/healthz", hub.url()));
    assert!(status == 503 && body.contains("tokens-unreadable") && body.contains("is damaged"), "{status} {body}");
    assert_eq!(hub.command(&["health"]).output().unwrap().status.code(), Some(1));
    std::fs::remove_file(hub.data.join("tokens.json")).unwrap();
    assert_eq!(get(&format!("{}/healthz", hub.url())).0, 200);
}

/// Under the names of `--allow-host` a hub syncs. It shows no page there unless it is told to.
#[test]
fn an_allowed_host_opens_sync_and_not_the_page() {
    let mut hub = Node::hub();
    let token = hub.token("phone");
    hub.stop();
    hub.flag("--allow-host", "likes.example.org");
    hub.start();
    let address = hub.url().trim_start_matches("http://").to_owned();
    let ask = |path: &str, host: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let (status, _, body) = exchange(&address, &request);
        (status, body)
    };
    let sync = "/sync/v1/likes/events?after=0&log=00000000-0000-4000-8000-000000000000";
    // The hub has no such log, but it answers.
    let (status, body) = ask(sync, "likes.example.org");
    assert!(status == 409 && body.contains("wrong-log"), "{status} {body}");
    assert_eq!(ask("/healthz", "likes.example.org"), (200, "ok\n".to_owned()));
    for path in ["/", "/status", "/live", "/s/other/"] {
        assert_eq!(ask(path, "likes.example.org").0, 403, "{path}");
        assert_eq!(ask(path, "other.example.org").0, 403, "{path}");
    }
    assert_eq!(ask(sync, "other.example.org").0, 403);
    // A proxy on this machine may call it that as well.
    assert_eq!(ask("/", "localhost").0, 403);
    assert!(hub.run(&["status"]).contains("likes on hub"), "a command shows its key");
}

/// Commands that make no sense without a token say how to get one.
#[test]
fn an_upstream_without_a_token_is_refused_at_the_start() {
    let dir = crate::common::data_dir();
    let output = likewise()
        .args(["serve", "--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:1", "--data"])
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("likewise token add NAME"), "{errors}");
}

#[test]
fn a_pull_with_an_end_is_over_there() {
    let hub = Node::hub();
    hub.import(&likes(300));
    let log = hub.status()["log"].as_str().unwrap().to_owned();
    let phone = Wire::new(&hub, "phone");
    let pull = |from: u64, until: u64| {
        let mut pull = phone.pull(&format!("log={log}&after={from}&until={until}&digest={}", "0".repeat(64))).unwrap();
        let (event, hello) = pull.next().unwrap();
        assert_eq!((event.as_str(), &hello["head"]), ("hello", &json!(300)));
        let mut seqs = Vec::new();
        while let Some((event, page)) = pull.next() {
            assert_eq!(event, "page");
            seqs.extend(page["events"].as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()));
            assert!(page["next"].as_u64().unwrap() <= until);
        }
        seqs
    };
    assert_eq!(pull(0, 150), (1..=150).collect::<Vec<_>>());
    assert_eq!(pull(0, 300), (1..=300).collect::<Vec<_>>());
    assert_eq!(pull(0, 0), Vec::<u64>::new());
}
