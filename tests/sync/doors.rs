//! Who is let in, and what of it becomes visible.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::wait_for;
use crate::support::{Node, Wire, exchange, hub_behind_proxy, wait_until_level};

#[test]
fn trust_42_wrong_tokens_are_all_answered_alike() {
    let hub = Node::hub();
    let token = hub.token("phone");
    let address = hub.url().trim_start_matches("http://").to_owned();
    let ask = |method: &str, headers: &str| {
        let request = format!(
            "{method} /sync/v1/likes/events HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\
             Content-Length: 2\r\n\r\n{{}}"
        );
        let (status, head, body) = exchange(&address, &request);
        let date = |line: &&str| !line.to_lowercase().starts_with("date:");
        (status, head.lines().filter(date).collect::<Vec<_>>().join("\n"), body)
    };
    // The right token works as soon as it is made.
    assert_eq!(ask("POST", &format!("Authorization: Bearer {token}\r\n")).0, 400);
    let expected = ask("POST", "");
    assert!(expected.0 == 401 && expected.2.contains("\"code\":\"unauthorized\""), "{expected:?}");
    let right = format!("Authorization: Bearer {token}\r\n");
    let (shorter, swapped) = (&token[..token.len() - 1], token.to_uppercase());
    let wrong = [
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: Bearer wrong\r\n".to_owned(),
        format!("Authorization: Bearer {shorter}\r\n"),
        format!("Authorization: Bearer {token}0\r\n"),
        format!("Authorization: Bearer {token} {token}\r\n"),
        format!("Authorization: Bearer {swapped}\r\n"),
        format!("Authorization: Bearer {}\r\n", "x".repeat(20_000)),
        "Authorization: Bearer \u{e9}\u{0e9}\r\n".to_owned(),
        format!("Authorization: Basic {token}\r\n"),
        format!("Authorization: {token}\r\n"),
        format!("{right}{right}"),
        format!("Authorization: Bearer wrong\r\n{right}"),
        format!("{right}Authorization: Bearer wrong\r\n"),
        format!("X-Authorization: Bearer {token}\r\n"),
        format!("Cookie: token={token}\r\n"),
    ];
    for headers in &wrong {
        for method in ["POST", "GET"] {
            assert_eq!(ask(method, headers), expected, "{method} {headers}");
        }
    }
    assert!(hub.export_is_empty());
}

#[test]
fn trust_42_a_token_holds_from_its_making_to_its_end() {
    let (hub, proxy) = hub_behind_proxy();
    let mut phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let wire = Wire::new(&hub, "raw");
    let mut pull = wire.pull("after=0").unwrap();
    pull.page();

    hub.run(&["token", "revoke", "raw"]);
    hub.run(&["token", "revoke", "phone"]);
    let start = Instant::now();
    while pull.next().is_some() {}
    assert!(start.elapsed() < Duration::from_secs(60), "the stream went on for {:?}", start.elapsed());
    assert_eq!(wire.push_raw(&json!({})).0, 401);
    phone.wait_until_halted("unauthorized");
    phone.like();
    hub.like();
    assert_eq!((phone.count(), phone.pending(), hub.count()), (2, 1, 2));
    let (_, page) = crate::support::get(phone.url());
    assert!(page.contains("Sync stopped") && page.contains("likewise token add"), "{page}");

    // A new token in the file is noticed without a restart.
    let token = hub.token("phone-2");
    phone.trust(&token);
    wait_until_level(&[&hub, &phone], 3);
    assert_eq!(phone.export().last().unwrap()["origin"], "phone-2");
}

/// Revoking a token ends its stream even in the middle of a long log, not only at the next new event.
#[test]
fn trust_42_revoking_cuts_a_stream_that_has_much_to_send() {
    let hub = Node::hub();
    let wire = Wire::new(&hub, "raw");
    // Too much for any socket buffer.
    hub.import(&notes(600));
    let mut pull = wire.pull("after=0").unwrap();
    let first = pull.page();
    assert_eq!(first["more"], true);
    hub.run(&["token", "revoke", "raw"]);
    wait_for("the hub to know", || (wire.push_raw(&json!({})).0 == 401).then_some(()));
    let mut last = first["next"].clone();
    while let Some((event, data)) = pull.next() {
        if event == "page" {
            last = data["next"].clone();
        }
    }
    assert!(last.as_u64().unwrap() < 600, "a device whose token was revoked got the whole log");
}

/// `count` events of 60,000 bytes.
fn notes(count: usize) -> String {
    let text = "x".repeat(60_000);
    let line =
        |_| format!("{{\"id\":\"{}\",\"name\":\"NoteAdded\",\"args\":\"\\\"{text}\\\"\"}}\n", crate::support::new_id());
    (0..count).map(line).collect()
}

#[test]
fn without_a_token_file_the_status_says_so() {
    let hub = Node::hub();
    let mut phone = Node::prepared("phone", hub.url(), &hub);
    let file = phone.file("token");
    let token = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    phone.start();
    let status = phone.wait_until_halted("unauthorized");
    assert!(status["upstream"]["error"].as_str().unwrap().contains(file.to_str().unwrap()), "{status}");
    phone.like();
    phone.trust(&token);
    wait_until_level(&[&hub, &phone], 1);
}

#[test]
fn trust_43_no_token_is_ever_logged() {
    let (mut hub, proxy) = hub_behind_proxy();
    hub.stop();
    hub.environment("LIKEWISE_LOG", "trace");
    hub.start();
    proxy.point_to(hub.url());
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    phone.environment("LIKEWISE_LOG", "trace");
    let token = std::fs::read_to_string(phone.file("token")).unwrap();
    phone.start();
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    proxy.cut();
    phone.like();
    wait_until_level(&[&hub, &phone], 2);
    hub.run(&["token", "revoke", "phone"]);
    phone.wait_until_halted("unauthorized");
    let mut other = Node::prepared("other", &proxy.url, &hub);
    let given = std::fs::read_to_string(other.file("token")).unwrap();
    other.unflag("--token-file");
    other.environment("LIKEWISE_TOKEN", &given);
    other.environment("LIKEWISE_LOG", "trace");
    other.start();
    wait_until_level(&[&hub, &other], 2);
    for node in [&mut phone, &mut other, &mut hub] {
        node.stop();
        let log = node.log();
        assert!(log.contains("DEBUG"), "nothing is traced: {log}");
        for token in [&token, &given] {
            let secret = token.trim().trim_start_matches("lw_");
            assert!(!log.contains(secret), "a token is in the log");
            // Nor as a list of bytes.
            let bytes: Vec<_> = secret.bytes().take(16).map(|byte| byte.to_string()).collect();
            assert!(!log.contains(&bytes.join(", ")), "a token is in the log as bytes");
        }
    }
}

#[test]
fn a_hub_without_tokens_lets_nobody_in() {
    let hub = Node::hub();
    let wire = Wire::with_token(&hub, "");
    assert_eq!(wire.push_raw(&json!({})).0, 401);
    let wire = Wire::with_token(&hub, "lw_00000000000000000000000000000000");
    let (status, problem) = wire.pull("after=0").err().expect("a refusal");
    assert_eq!((status, &problem["code"]), (401, &"unauthorized".into()));
    // A running hub notices a new token.
    let wire = Wire::new(&hub, "phone");
    assert_eq!(wire.hello()["head"], 0);
}

/// An instance that follows a hub is no hub itself, whatever token it is shown.
#[test]
fn an_instance_with_an_upstream_is_no_hub() {
    let hub = Node::hub();
    let phone = Node::client("phone", hub.url(), &hub);
    for token in ["", "wrong", &phone.token("tablet")] {
        let wire = Wire::with_token(&phone, token);
        let (status, problem) = wire.push_raw(&json!({}));
        assert_eq!((status, &problem["code"]), (403, &"not-a-hub".into()));
        let (status, problem) = wire.pull("after=0").err().expect("a refusal");
        assert_eq!((status, &problem["code"]), (403, &"not-a-hub".into()));
    }
}

#[test]
fn a_hub_without_likes_is_backed_up_with_its_tokens() {
    let hub = Node::hub();
    let token = hub.token("phone");
    let copy = hub.file("copy");
    hub.run(&["backup", copy.to_str().unwrap()]);
    let mut restored = Node::hub();
    restored.stop();
    std::fs::remove_dir_all(&restored.data).unwrap();
    std::fs::rename(&copy, &restored.data).unwrap();
    restored.start();
    let mut phone = Node::unnamed(restored.url());
    phone.trust(&token);
    phone.start();
    phone.like();
    restored.wait_for_count(1);
}
