//! `doctor`, on setups that have the faults it is there to find.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::proxy::{Lie, Mode, Proxy};
use crate::support::Node;

/// What `doctor` finds on a node's data.
pub struct Found {
    pub exit: i32,
    findings: Vec<Value>,
}

/// Runs `doctor` as an administrator would, with these flags and variables.
pub fn doctor(node: &Node, flags: &[&str], environment: &[(&str, &str)]) -> Found {
    let mut command = node.command(&["doctor", "--json"]);
    let output = command.args(flags).envs(environment.iter().copied()).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let findings = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}{errors}"));
    assert!(!errors.contains("panicked"), "{errors}");
    Found { exit: output.status.code().expect("an exit"), findings }
}

impl Found {
    /// The finding of a check: its verdict, and its words.
    pub fn of(&self, check: &str) -> (&str, String) {
        let found = self.findings.iter().find(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("no {check} in {:?}", self.findings));
        let advice = found["advice"].as_str().unwrap_or_default();
        (found["verdict"].as_str().unwrap(), format!("{}. {advice}", found["found"].as_str().unwrap()))
    }

    /// Asserts that this check alone found a problem, in these words.
    pub fn has_only(&self, check: &str, words: &[&str]) {
        let problems: Vec<_> = self.findings.iter().filter(|finding| finding["verdict"] == "problem").collect();
        let (verdict, text) = self.of(check);
        assert_eq!((verdict, problems.len(), self.exit), ("problem", 1, 1), "{problems:?}");
        for part in words {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }

    pub fn is_well(&self) {
        let problems: Vec<_> = self.findings.iter().filter(|finding| finding["verdict"] == "problem").collect();
        assert!(problems.is_empty() && self.exit == 0, "{} {problems:?}", self.exit);
    }
}

/// The flags that name the hub for `doctor`, as a device has them.
fn as_device(hub: &Node, url: &str, token: &str) -> Vec<String> {
    let file = hub.file("doctors-token");
    fs::write(&file, token).unwrap();
    ["--upstream", url, "--token-file", file.to_str().unwrap()].map(str::to_owned).to_vec()
}

fn asked(node: &Node, flags: &[String]) -> Found {
    doctor(node, &flags.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

#[test]
fn a_setup_without_faults_is_well_on_the_hub_and_on_the_device() {
    let hub = Node::hub();
    hub.like();
    let device = Node::client("laptop", hub.url(), &hub);
    device.wait_until("online");
    device.like();
    let found = doctor(&hub, &[], &[]);
    found.is_well();
    for check in ["files", "process", "disk", "tokens"] {
        assert_eq!(found.of(check).0, "ok");
    }
    let found = doctor(&device, &[], &[]);
    found.is_well();
    assert_eq!(found.of("hub").0, "ok");
    let found = asked(&device, &as_device(&hub, hub.url(), &hub.token("phone")));
    found.is_well();
    assert_eq!((found.of("hub").0, found.of("clock").0), ("ok", "ok"));
    let lines = device.run(&["doctor"]);
    assert!(lines.lines().count() >= 5 && lines.lines().all(|line| line.starts_with("ok ") || line.starts_with("- ")));

    let unused = Node::stopped_hub();
    doctor(&unused, &[], &[]).is_well();
    assert!(!unused.data.exists(), "a look makes nothing");
}

#[test]
fn what_doctor_sends_to_a_public_address_opens_nothing() {
    let hub = Node::hub();
    // A device may have any name.
    let token = hub.token("likewise-doctor");
    let tokens = fs::read(hub.data.join("tokens.json")).unwrap();
    let found = doctor(&hub, &["--public-url", hub.url()], &[]);
    found.is_well();
    assert!(found.of("proxy").1.contains("streams arrive"), "{:?}", found.of("proxy"));

    // Somebody else answers there, and keeps what they are shown.
    let (elsewhere, shown) = (Proxy::start(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&shown);
    let lie = move |request: &str, client: &mut TcpStream| {
        let bearer = request.lines().find(|line| line.to_lowercase().starts_with("authorization:"));
        kept.lock().unwrap().extend(bearer.map(|line| line.split(' ').next_back().unwrap().to_owned()));
        let event = "event: probe\ndata: \"00112233445566778899aabbccddeeff\"\n\n";
        write!(client, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{event}")
    };
    elsewhere.set(Mode::Lie(Lie(Arc::new(lie))));
    doctor(&hub, &["--public-url", &elsewhere.url], &[]).has_only("proxy", &["is another hub"]);
    let shown = shown.lock().unwrap().clone();
    assert_eq!(shown.len(), 1, "{shown:?}");
    let ask = |path: &str, token: &str| {
        let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        let request = agent.get(format!("{}{path}", hub.url())).header("authorization", format!("Bearer {token}"));
        request.call().unwrap().status().as_u16()
    };
    let events = "/sync/v1/likes/events?log=7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d&after=1";
    assert_eq!((ask(events, &shown[0]), ask("/control/v1/setting", &shown[0])), (401, 401));
    assert_eq!(ask("/sync/v1/probe", &shown[0]), 200);
    assert_eq!((ask("/sync/v1/probe", &shown[0]), ask("/sync/v1/probe", &token)), (401, 401), "it is good once");
    assert_ne!(ask(events, &token), 401);
    assert_eq!(fs::read(hub.data.join("tokens.json")).unwrap(), tokens, "the device is still let in");
}

#[test]
fn a_hub_that_is_away_or_refuses_is_a_problem_of_the_device() {
    let mut hub = Node::hub();
    let device = Node::client("laptop", hub.url(), &hub);
    device.wait_until("online");
    hub.run(&["token", "revoke", "laptop"]);
    device.wait_until_halted("unauthorized");
    doctor(&device, &[], &[]).has_only("hub", &["token add"]);
    let (url, revoked) = (hub.url().to_owned(), hub.token("tablet"));
    hub.run(&["token", "revoke", "tablet"]);
    let alone = Node::stopped_hub();
    asked(&alone, &as_device(&hub, &url, &revoked)).has_only("hub", &["refuses to sync", "token add"]);
    hub.stop();
    let found = asked(&alone, &as_device(&hub, &url, &revoked));
    found.has_only("hub", &["doesn't answer", "refused"]);
    asked(&alone, &as_device(&hub, "http://likes.example.org", "lw_0")).has_only("hub", &["https://"]);
}

#[test]
fn a_wrong_clock_is_found_by_the_hubs() {
    let (alone, proxy) = (Node::stopped_hub(), Proxy::start());
    let answer =
        "HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2015 14:11:33 GMT\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
    proxy.set(Mode::Answer(answer.to_owned()));
    let found = asked(&alone, &as_device(&alone, &proxy.url, "lw_0"));
    let (verdict, text) = found.of("clock");
    assert!(verdict == "problem" && text.contains("ahead of") && text.contains("timedatectl"), "{text}");
    assert_eq!(found.exit, 1);
}

#[test]
fn damaged_tokens_and_a_process_that_says_nothing_are_found() {
    let mut hub = Node::hub();
    hub.token("laptop");
    hub.stop();
    let tokens = hub.data.join("tokens.json");
    let good = fs::read(&tokens).unwrap();
    fs::write(&tokens, &good[..good.len() / 2]).unwrap();
    doctor(&hub, &[], &[]).has_only("tokens", &["is damaged", "from a backup"]);
    fs::write(&tokens, &good).unwrap();
    doctor(&hub, &[], &[]).is_well();

    // Something else than a server has the data.
    let lock = File::options().write(true).open(hub.data.join("lock")).unwrap();
    lock.lock().unwrap();
    lock.set_len(0).unwrap();
    doctor(&hub, &[], &[]).has_only("process", &["holds", "stop it"]);
}

#[test]
fn links_in_the_data_are_found() {
    let mut hub = Node::hub();
    hub.like();
    hub.stop();
    let store = hub.data.join("stores/likes");
    fs::rename(&store, hub.file("elsewhere")).unwrap();
    std::os::unix::fs::symlink(hub.file("elsewhere"), &store).unwrap();
    doctor(&hub, &[], &[]).has_only("files", &["stores/likes", "link"]);
}
