//! `pair` and `join`: a second device without a token to copy.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};

use crate::common::authority::Authority;
use crate::common::wait_for;
use crate::proxy::{Mode, Proxy};
use crate::support::{Node, hub_behind_proxy, wait_until_level};
use crate::tls::Terminator;

/// A link of `hub` for `name`, which leads through `address` if that is another than the hub's own.
fn link(hub: &Node, name: &str, address: Option<&str>) -> String {
    let mut words = vec!["pair", name];
    words.extend(address.iter().flat_map(|address| ["--public-url", address]));
    hub.run(&words).trim().to_owned()
}

/// What `join` said, which was given the link on standard input. It may have failed.
fn join(device: &Node, link: &str) -> (bool, String) {
    let mut command = device.command(&["join"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{link}\n").as_bytes()).unwrap();
    said(child.wait_with_output().unwrap())
}

fn said(Output { status, stderr, .. }: Output) -> (bool, String) {
    (status.success(), String::from_utf8(stderr).unwrap())
}

fn joined(device: &Node, link: &str) -> String {
    let (is_done, said) = join(device, link);
    assert!(is_done, "{said}");
    said
}

#[test]
fn a_joined_directory_syncs_by_itself_and_brings_what_it_has() {
    let hub = Node::hub();
    hub.like();
    let mut laptop = Node::alone();
    laptop.start();
    laptop.like();
    laptop.like();
    laptop.stop();
    let said = joined(&laptop, &link(&hub, "laptop", None));
    assert!(said.contains(&format!("joined {} as laptop", hub.url())), "{said}");
    for _ in 0..2 {
        laptop.start();
        wait_until_level(&[&hub, &laptop], 3);
        assert_eq!(laptop.status()["upstream"]["url"], hub.url());
        laptop.stop();
        let stopped = laptop.run(&["status"]);
        assert!(stopped.contains("likes on laptop") && stopped.contains(hub.url()), "{stopped}");
        assert!(stopped.contains("not followed now"), "{stopped}");
    }
    let mut origins: Vec<_> = hub.export().iter().map(|event| event["origin"].clone()).collect();
    origins.sort_by_key(ToString::to_string);
    assert_eq!(origins, ["hub", "laptop", "laptop"]);
    for file in ["upstream.json", "upstream.token"] {
        let mode = std::fs::metadata(laptop.data.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert!(!laptop.data.join("join.nonce").exists());
    let words = hub.command(&["token", "list"]).output().unwrap();
    assert!(String::from_utf8_lossy(&words.stdout).contains("\tdevice\n"), "{words:?}");
}

#[test]
fn a_link_comes_on_standard_input_or_as_an_argument() {
    let (hub, laptop) = (Node::hub(), Node::alone());
    for words in [&["join"][..], &["join", "-"]] {
        let (is_done, said) = said(laptop.command(words).stdin(Stdio::null()).output().unwrap());
        assert!(!is_done && said.contains("no link on standard input"), "{said}");
    }
    let (is_done, said) = said(laptop.command(&["join", &link(&hub, "laptop", None)]).output().unwrap());
    assert!(is_done && said.contains("as laptop"), "{said}");
    let said = joined(&Node::alone(), &format!("  {}  ", link(&hub, "tablet", None)));
    assert!(said.contains("as tablet"), "{said}");
    let words = hub.command(&["pair", "desk"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&words.stderr).contains("join LINK"), "{words:?}");
}

#[test]
fn a_running_program_syncs_once_its_directory_is_joined() {
    let hub = Node::hub();
    let mut laptop = Node::alone();
    laptop.start();
    laptop.like();
    let url = laptop.url().to_owned();
    let said = joined(&laptop, &link(&hub, "laptop", None));
    assert!(said.contains("the running process syncs with it now"), "{said}");
    wait_until_level(&[&hub, &laptop], 1);
    laptop.like();
    wait_until_level(&[&hub, &laptop], 2);
    assert_eq!(laptop.url(), url);

    // With a new token, the running process goes on by itself.
    hub.run(&["token", "revoke", "laptop"]);
    laptop.like();
    laptop.wait_until_halted("unauthorized");
    joined(&laptop, &link(&hub, "laptop", None));
    wait_until_level(&[&hub, &laptop], 3);
    laptop.stop();
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again() {
    let (hub, proxy) = hub_behind_proxy();
    let mut laptop = Node::alone();
    let link = link(&hub, "laptop", Some(&proxy.url));
    proxy.set(Mode::EatPushAnswers);
    let command = laptop.command(&["join", &link]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("a lost answer", || (proxy.eaten() >= 1).then_some(()));
    proxy.set(Mode::Pass);
    let output = command.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");

    laptop.start();
    laptop.like();
    wait_until_level(&[&hub, &laptop], 1);
}

#[test]
fn a_join_that_was_killed_can_be_repeated() {
    let (hub, proxy) = hub_behind_proxy();
    let laptop = Node::alone();
    let link = link(&hub, "laptop", Some(&proxy.url));
    proxy.set(Mode::EatPushAnswers);
    let mut command = laptop.command(&["join", &link]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("a lost answer", || (proxy.eaten() >= 1).then_some(()));
    command.kill().unwrap();
    command.wait().unwrap();
    proxy.set(Mode::Pass);
    let other = Node::alone();
    let (is_done, said) = join(&other, &link);
    assert!(!is_done && said.contains("used already"), "{said}");
    joined(&laptop, &link);
}

#[test]
fn a_hub_behind_tls_is_joined_with_its_certificate() {
    let hub = Node::hub();
    let authority = Authority::new();
    let proxy = Terminator::start(authority.sign("localhost", 2100), &hub);
    let mut laptop = Node::alone();
    let link = link(&hub, "laptop", Some(&proxy.url));
    let (is_done, said) = join(&laptop, &link);
    assert!(!is_done && said.contains("--root-certificate") && said.contains("still good"), "{said}");
    let roots = laptop.file("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    laptop.run(&["join", &link, "--root-certificate", roots.to_str().unwrap()]);
    std::fs::remove_file(&roots).unwrap();
    laptop.start();
    laptop.like();
    wait_until_level(&[&hub, &laptop], 1);
    assert_eq!(laptop.status()["upstream"]["url"], proxy.url.as_str());
}

#[test]
fn a_directory_has_one_hub_and_the_command_line_wins() {
    let (first, second) = (Node::hub(), Node::hub());
    let mut laptop = Node::alone();
    joined(&laptop, &link(&first, "laptop", None));
    let other = link(&second, "laptop", None);
    let again = joined(&laptop, &link(&first, "tablet", None));
    assert!(again.contains("it was laptop there before") && again.contains("token revoke laptop"), "{again}");
    let (is_done, said) = join(&laptop, &other);
    assert!(!is_done, "{said}");
    for word in [first.url(), second.url(), "upstream.json", "adopt"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let hub = laptop.command(&["hub", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(
        !hub.status.success() && String::from_utf8_lossy(&hub.stderr).contains("so it is no hub itself"),
        "{hub:?}"
    );

    laptop.flag("--upstream", second.url());
    assert!(laptop.refuses_to_start().contains("takes a token"), "the token is for the other hub");
    laptop.trust(&second.token("desk"));
    laptop.start();
    laptop.like();
    wait_until_level(&[&second, &laptop], 1);
    assert!(laptop.log().contains("takes the place of"), "{}", laptop.log());
    assert_eq!(first.count(), 0);
    laptop.stop();

    // What is copied elsewhere speaks for nobody.
    let backup = laptop.file("backup");
    laptop.run(&["backup", backup.to_str().unwrap()]);
    for file in ["upstream.json", "upstream.token"] {
        assert!(laptop.data.join(file).exists() && !backup.join(file).exists(), "{file}");
    }
}

#[test]
fn who_takes_over_from_the_hub_leaves_it() {
    let mut hub = Node::hub();
    let mut laptop = Node::alone();
    joined(&laptop, &link(&hub, "laptop", None));
    laptop.start();
    laptop.like();
    wait_until_level(&[&hub, &laptop], 1);
    hub.kill();
    let refused = laptop.command(&["promote", "--yes"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Stop it, promote then"), "{refused:?}");
    laptop.stop();
    laptop.run(&["promote", "--yes"]);
    laptop.start();
    laptop.like();
    let status = laptop.status();
    assert_eq!((status["upstream"]["state"].as_str(), status["head"].as_u64()), (Some("none"), Some(2)), "{status}");
}

#[test]
fn what_is_no_hub_is_not_joined() {
    let laptop = Node::alone();
    let (is_done, said) = join(&laptop, "http://127.0.0.1:1/pair#00112233445566778899aabbccddeeff");
    assert!(!is_done && said.contains("cannot ask"), "{said}");
    let portal = Proxy::start();
    portal.set(Mode::Answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nLogin".to_owned()));
    let (is_done, said) = join(&laptop, &format!("{}/pair#00112233445566778899aabbccddeeff", portal.url));
    assert!(!is_done && said.contains("something else than a hub"), "{said}");
    // A hub that is hostile writes nothing but words on the terminal.
    let problem = r#"{"detail":"No\u001b]0;you\u0007\u009b2J\u202e.","advice":"Do\n\u001b[2Jthis."}"#;
    let said_by_hub = |status: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    portal.set(Mode::Answer(said_by_hub("403 Forbidden", problem)));
    let (is_done, text) = join(&laptop, &format!("{}/pair#00112233445566778899aabbccddeeff", portal.url));
    assert!(!is_done && text.contains("No ]0;you") && text.contains("this."), "{text:?}");
    let is_hidden = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!text.contains(is_hidden), "{text:?}");
    let ask = || {
        let output = laptop.command(&["status", "--url", &portal.url]).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let (is_done, text) = ask();
    assert!(!is_done && text.contains("No ]0;you") && !text.contains(is_hidden), "{text:?}");
    let mut status = Node::hub().status();
    status["version"] = "1.0\u{1b}[2J\u{9b}2J".into();
    portal.set(Mode::Answer(said_by_hub("200 OK", &status.to_string())));
    let (is_done, text) = ask();
    assert!(is_done && text.contains("1.0 [2J") && !text.contains(is_hidden), "{text:?}");
    for (link, words) in [
        ("http://likes.example.org/pair#00", "https://"),
        ("https://likes.example.org/pair", "is not a link"),
        ("likes.example.org", "is not a link"),
    ] {
        let (is_done, said) = join(&laptop, link);
        assert!(!is_done && said.contains(words), "{link}: {said}");
    }
    assert!(!laptop.data.join("upstream.json").exists());
}
