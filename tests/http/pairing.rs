//! Pairing over the wire: who gets what for a link, once, and what a paired browser may do.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Output;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Answer, agent, new_id};
use crate::common::{PATIENCE, Server, data_dir, errors, printed, run, wait_for};

/// The name under which others reach the hubs of these tests, through a proxy that isn't there.
const HOST: &str = "likes.example.org";

const NONCE: &str = "00112233445566778899aabbccddeeff";

fn hub(data: &Path) -> Server {
    Server::start_with(data, &["--listen", "127.0.0.1:0", "--public-url", &format!("https://{HOST}")])
}

/// What `pair` printed: the secret, and the code.
struct Link {
    secret: String,
    code: String,
}

impl Link {
    fn new(server: &Server, name: &str) -> Self {
        Self::printed(run(server.data(), &["pair", name]))
    }

    fn printed(output: Output) -> Self {
        let words = errors(&output);
        let link = printed(output);
        let (_, secret) = link.trim_end().split_once("/pair#").unwrap_or_else(|| panic!("no link: {link}"));
        assert_eq!((secret.len(), link.lines().count()), (32, 1), "standard output has the link alone: {link}");
        let (_, code) = words.split_once("and type ").unwrap_or_else(|| panic!("no code: {words}"));
        Self { secret: secret.to_owned(), code: code[..9].to_owned() }
    }

    fn form(&self, kind: &str, nonce: &str) -> String {
        format!("kind={kind}&secret={}&nonce={nonce}", self.secret)
    }
}

/// Posts to the hub under its public name, as a browser or a device does.
fn post(server: &Server, path: &str, headers: &[(&str, &str)], form: &str) -> Answer {
    server.post_with(path, &[&[("host", HOST)], headers].concat(), form)
}

fn get(server: &Server, path: &str, cookie: &str) -> Answer {
    server.get_with(path, &[("host", HOST), ("cookie", cookie)])
}

const JSON: (&str, &str) = ("accept", "application/json");

fn code(answer: &Answer) -> String {
    answer.json()["code"].as_str().unwrap_or_default().to_owned()
}

/// The cookie that an answer sets, as a browser sends it back.
fn cookie(answer: &Answer) -> String {
    answer.header("set-cookie").split(';').next().unwrap_or_default().to_owned()
}

/// Pairs a browser.
fn browser(server: &Server, name: &str) -> String {
    let answer = post(server, "/pair", &[], &Link::new(server, name).form("browser", NONCE));
    assert_eq!((answer.status, answer.header("location")), (303, "/"), "{answer:?}");
    cookie(&answer)
}

fn origins(data: &Path) -> Vec<String> {
    let lines = printed(run(data, &["export"]));
    let origin = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON")["origin"].clone();
    lines.lines().map(|line| origin(line).as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_link_is_good_once_and_a_lost_answer_comes_again() {
    let data = data_dir();
    let server = hub(data.path());
    let link = Link::new(&server, "laptop");
    let form = link.form("device", NONCE);
    let first = post(&server, "/pair", &[JSON], &form);
    assert_eq!((first.status, first.header("cache-control")), (200, "no-store"), "{first:?}");
    assert_eq!(first.json()["name"], "laptop");
    assert_eq!(post(&server, "/pair", &[JSON], &form).body, first.body);
    drop(server);

    // A hub that starts again knows.
    let server = hub(data.path());
    assert_eq!(post(&server, "/pair", &[JSON], &form).body, first.body);
    let other = post(&server, "/pair", &[JSON], &link.form("device", &NONCE.replace('0', "f")));
    assert_eq!((other.status, code(&other).as_str()), (410, "pairing-used"), "{other:?}");
    let browsers = post(&server, "/pair", &[JSON], &link.form("browser", NONCE));
    assert_eq!(code(&browsers), "pairing-used");
    let wrong = post(&server, "/pair", &[JSON], &format!("kind=device&nonce={NONCE}&secret={NONCE}"));
    assert_eq!((wrong.status, code(&wrong).as_str()), (404, "pairing-unknown"), "{wrong:?}");
    let short = post(&server, "/pair", &[JSON], &link.form("device", "1"));
    assert_eq!((short.status, code(&short).as_str()), (400, "malformed-nonce"), "{short:?}");
    let page = post(&server, "/pair", &[], &link.form("browser", "0123456789abcdef0123456789abcdef"));
    assert!(page.body.contains("good only once") && page.body.contains("pair NAME"), "{}", page.body);

    let token = first.json()["token"].as_str().expect("a token").to_owned();
    let pull = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("host", HOST), ("authorization", bearer.as_str()), JSON];
        // Another log than the hub's, so that the answer ends.
        server.get_with(&format!("/sync/v1/likes/events?after=1&log={NONCE}"), &headers)
    };
    assert_ne!(pull(&token).status, 401);
    run(data.path(), &["token", "revoke", "laptop"]);
    assert_eq!(pull(&token).status, 401);
    assert_eq!(code(&post(&server, "/pair", &[JSON], &form)), "pairing-used", "a revoked token comes back for nobody");
}

#[test]
fn a_paired_browser_sees_the_page_and_its_likes_carry_its_name() {
    let data = data_dir();
    let server = hub(data.path());
    let stranger = get(&server, "/", "");
    assert_eq!(stranger.status, 403, "the page isn't public");
    let paired = post(&server, "/pair", &[], &Link::new(&server, "phone").form("browser", NONCE));
    let set = paired.header("set-cookie");
    assert!(set.starts_with("__Host-likewise-paired=lw_"), "{set}");
    for attribute in ["; Path=/;", "; HttpOnly", "; Secure", "; SameSite=Lax", "; Max-Age="] {
        assert!(set.contains(attribute), "{attribute} in {set}");
    }
    assert!(!set.contains("Domain"), "{set}");
    let cookie = cookie(&paired);
    let page = get(&server, "/", &cookie);
    assert_eq!((page.status, page.header("cache-control")), (200, "no-store"));
    assert_eq!(get(&server, "/s/work/", &cookie).status, 200);
    let like = |path: &str, cookie: &str| {
        let own = format!("https://{HOST}");
        let headers = [("cookie", cookie), ("origin", &own), ("sec-fetch-site", "same-origin")];
        post(&server, path, &headers, &format!("id={}", new_id())).status
    };
    assert_eq!(like("/likes", &cookie), 303);
    assert_eq!(like("/s/work/likes", &cookie), 303);
    assert_eq!(origins(data.path()), ["phone"]);
    let status = get(&server, "/status", &cookie);
    assert_eq!((status.status, status.json()["count"].as_u64()), (200, Some(1)));
    assert_eq!(status.json().get("device"), None, "what is on the page, and no more");

    let page = get(&server, "/", &cookie);
    assert!(page.body.contains("<a href=\"/history\">History</a>"), "{}", page.body);
    let history = get(&server, "/s/work/history", &cookie);
    assert!(history.body.contains("</b> from <bdi>phone</bdi>"), "{}", history.body);
    let stores = get(&server, "/stores", &cookie);
    assert!(stores.body.contains("<a href=\"/s/work/\">work</a>"), "{}", stores.body);
    for path in ["/metrics", "/control/v1/likes/export"] {
        assert_eq!(get(&server, path, &cookie).status, 403, "{path}");
    }
    assert_eq!(post(&server, "/adopt", &[("cookie", &cookie)], "").status, 403);
    assert_eq!(post(&server, "/control/v1/tokens", &[("cookie", &cookie)], "").status, 403);
    let token = cookie.split_once('=').expect("a value").1.to_owned();
    let bearer = format!("Bearer {token}");
    for path in ["/sync/v1/likes/events", "/status"] {
        let answer = server.get_with(path, &[("host", HOST), ("authorization", &bearer)]);
        assert!(matches!(answer.status, 401 | 403), "a cookie is no token: {path} {answer:?}");
    }
    assert_eq!(get(&server, "/sync/v1/likes/events", &cookie).status, 401);

    // A device's token is no cookie, under whatever name.
    let device = printed(run(data.path(), &["token", "add", "laptop"]));
    for name in ["__Host-likewise-paired", "likewise-paired"] {
        assert_eq!(get(&server, "/", &format!("{name}={}", device.trim())).status, 403);
    }
    let list = || printed(run(data.path(), &["token", "list"]));
    let line = |name: &str| list().lines().find(|line| line.starts_with(name)).expect("a line").to_owned();
    assert!(line("laptop\t").ends_with("\tnever seen\tdevice"), "{}", list());
    // A hub writes down every few seconds whom it has seen.
    let is_noted = |line: String| line.contains("\tseen ") && line.ends_with("\tbrowser");
    wait_for("the note", || is_noted(line("phone\t")).then_some(()));
}

#[test]
fn revoking_a_browser_ends_its_streams() {
    let data = data_dir();
    let server = hub(data.path());
    let cookie = browser(&server, "phone");
    let mut stream = server.connect();
    write!(stream, "GET /live HTTP/1.1\r\nHost: {HOST}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while line.trim() != "event: done" {
        line.clear();
        assert!(lines.read_line(&mut line).expect("a stream") > 0, "the stream ended");
    }
    let output = run(data.path(), &["token", "revoke", "phone"]);
    assert!(errors(&output).contains("phone no longer sees the page"), "{output:?}");
    // A stream that goes on says something every few seconds.
    let start = Instant::now();
    while lines.read_line(&mut line).expect("a stream") > 0 {
        assert!(start.elapsed() < PATIENCE, "the stream goes on: {line}");
    }
    let answer = server.get_with("/live", &[("host", HOST), ("cookie", &cookie), JSON]);
    assert_eq!((answer.status, code(&answer).as_str()), (403, "not-paired"), "{answer:?}");
}

#[test]
fn opening_the_page_uses_nothing_up_and_strangers_see_nothing_else() {
    let data = data_dir();
    let server = hub(data.path());
    let link = Link::new(&server, "phone");
    for _ in 0..3 {
        let page = get(&server, "/pair", "");
        assert_eq!((page.status, page.header("cache-control")), (200, "no-store"), "{page:?}");
        assert_eq!(page.header("referrer-policy"), "same-origin");
        assert!(!page.body.contains("phone") && !page.body.contains(&link.secret), "{}", page.body);
        let script = page.between("<script type=\"module\" src=\"", "\"").to_owned();
        let style = page.between("<link rel=\"stylesheet\" href=\"", "\"").to_owned();
        for file in [script, style] {
            assert_eq!(get(&server, &file, "").status, 200, "{file}");
        }
    }
    let nonces: Vec<_> =
        (0..2).map(|_| get(&server, "/pair", "").between("name=\"nonce\" value=\"", "\"").to_owned()).collect();
    assert!(nonces[0] != nonces[1] && nonces[0].len() == 64, "{nonces:?}");
    for headers in [[("sec-fetch-site", "cross-site")], [("origin", "https://evil.example")], [("origin", "null")]] {
        let answer = post(&server, "/pair", &headers, &link.form("browser", NONCE));
        assert_eq!(answer.status, 403, "{headers:?}");
    }
    assert_eq!(server.get_with("/pair", &[("host", "evil.example")]).status, 403);
    let answer = post(&server, "/pair", &[], &link.form("browser", &nonces[0]));
    assert_eq!(answer.status, 303, "it is still good: {answer:?}");
    let again = get(&server, "/pair", &cookie(&answer));
    assert!(again.body.contains("paired already, as phone"), "{}", again.body);
}

#[test]
fn a_code_takes_few_guesses_and_the_link_works_all_the_same() {
    let data = data_dir();
    let proxied =
        ["--listen", "127.0.0.1:0", "--public-url", &format!("https://{HOST}"), "--behind-proxy", "127.0.0.1"];
    let server = Server::start_with(data.path(), &proxied);
    let (phone, laptop) = (Link::new(&server, "phone"), Link::new(&server, "laptop"));
    let guess = |client: &str, code: &str| {
        let headers = [("x-forwarded-for", client), JSON];
        post(&server, "/pair", &headers, &format!("code={code}&nonce={NONCE}"))
    };
    for _ in 0..10 {
        assert_eq!(guess("192.0.2.1", "0000-0000").status, 404);
    }
    let refused = guess("192.0.2.1", &phone.code);
    assert_eq!((refused.status, code(&refused).as_str()), (429, "too-many-guesses"), "{refused:?}");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=601).contains(&wait), "{wait}");
    // Others have guesses of their own, and a right one costs nothing.
    let typed = phone.code.to_lowercase().replace('-', "+");
    assert_eq!(guess("192.0.2.2", &typed).status, 303);
    let link = post(&server, "/pair", &[("x-forwarded-for", "192.0.2.1"), JSON], &laptop.form("device", NONCE));
    assert_eq!(link.status, 200, "{link:?}");
}

#[test]
fn on_this_machine_a_hub_needs_no_address() {
    let data = data_dir();
    let server = Server::start(data.path());
    let output = run(data.path(), &["pair", "phone"]);
    assert!(errors(&output).contains("works on this machine alone"), "{output:?}");
    let link = printed(output);
    let (address, secret) = link.trim_end().split_once("/pair#").expect("a link");
    assert_eq!(address, server.url);
    let form = format!("secret={secret}&nonce={NONCE}");
    let answer = server.post("/pair", &form);
    let set = answer.header("set-cookie");
    assert!(set.starts_with(&format!("likewise-paired-{}=", server.port())), "browsers send it to every port: {set}");
    assert!(!set.contains("Secure"), "{set}");
    let cookie = cookie(&answer);
    let liked = server.post_with("/likes", &[("cookie", &cookie)], &format!("id={}", new_id()));
    assert_eq!(liked.status, 303);
    server.like("", &new_id());
    let origins = origins(data.path());
    assert_eq!(origins[0], "phone");
    assert_ne!(origins[1], "phone", "a browser without the cookie is the owner");

    // Another program on this machine gets the cookie, too, and knows nothing of it.
    let elsewhere = data_dir();
    let other = Server::start_with(elsewhere.path(), &["--listen", "127.0.0.1:0", "--allow-host", HOST]);
    assert_eq!(other.get_with("/", &[("cookie", &cookie)]).status, 403);
}

#[test]
fn pair_says_why_there_is_no_link() {
    let refusal = |data: &TempDir, words: &[&str]| {
        let output = run(data.path(), words);
        assert!(!output.status.success(), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        errors(&output)
    };
    let data = data_dir();
    let said = refusal(&data, &["pair", "phone"]);
    assert!(said.contains("isn't running") && said.contains("--public-url"), "{said}");
    let said = refusal(&data, &["pair", "phone", "--public-url", "http://192.168.1.20:3000"]);
    for word in ["plain http", "Caddy", "tailscale"] {
        assert!(said.contains(word), "{said}");
    }
    let said = refusal(&data, &["pair", "phone", "--public-url", "likes.example.org"]);
    assert!(said.contains("is not the address of a server"), "{said}");

    // Without a running hub, the file is enough.
    let link = Link::printed(run(data.path(), &["pair", "phone", "--public-url", &format!("https://{HOST}")]));
    let server = hub(data.path());
    assert_eq!(post(&server, "/pair", &[], &link.form("browser", NONCE)).status, 303);
    let said = refusal(&data, &["pair", "phone"]);
    assert!(said.contains("has a token already; revoke it first with `token revoke phone`"), "{said}");
    drop(server);

    let server = Server::start_with(data.path(), &["--listen", "0.0.0.0:0"]);
    let said = refusal(&data, &["pair", "tablet"]);
    assert!(said.contains("--public-url https://NAME") && said.contains("Caddy"), "{said}");
    drop(server);
    let plain = ["--listen", "127.0.0.1:0", "--public-url", "http://192.168.1.20:3000"];
    let server = Server::start_with(data.path(), &plain);
    assert!(refusal(&data, &["pair", "tablet"]).contains("plain http"));
    let answer = server.get_with("/sync/v1/likes/events", &[("host", "192.168.1.20:3000")]);
    assert_eq!(answer.status, 401, "its own name is allowed");
}

#[test]
fn the_code_in_squares_is_for_terminals() {
    let data = data_dir();
    let server = Server::start(data.path());
    let drawn = |output: &Output| errors(output).contains('█');
    let piped = run(server.data(), &["pair", "phone"]);
    assert!(!drawn(&piped), "{}", errors(&piped));
    let asked = run(server.data(), &["pair", "phone", "--qr"]);
    assert!(drawn(&asked), "{}", errors(&asked));
    Link::printed(asked);
}

#[test]
fn a_hub_without_a_page_pairs_devices_alone() {
    let data = data_dir();
    let mut command = crate::common::likewise();
    command.args(["hub", "--listen", "127.0.0.1:0", "--public-url", &format!("https://{HOST}")]);
    let server = Server::spawn(command, data.path());
    let link = Link::new(&server, "laptop");
    let page = get(&server, "/pair", "");
    assert!(page.status == 404 && page.body.contains("has no pages"), "{page:?}");
    let browsers = post(&server, "/pair", &[], &link.form("browser", NONCE));
    assert_eq!((browsers.status, browsers.header("set-cookie")), (404, ""), "{browsers:?}");
    assert_eq!(post(&server, "/pair", &[JSON], &link.form("device", NONCE)).status, 200, "it is still good");
}

#[test]
fn a_cookie_is_bound_to_tls_however_little_the_server_knows_of_the_proxy() {
    let data = data_dir();
    let public_url = format!("https://{HOST}");
    let from_hub = |name: &str| Link::printed(run(data.path(), &["pair", name, "--public-url", &public_url]));
    // One link is made while no server is there, and one while it is.
    let early = from_hub("early");
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--allow-host", HOST, "--local-page"]);
    for (name, link) in [("early", early), ("late", from_hub("late"))] {
        let answer = post(&server, "/pair", &[], &link.form("browser", NONCE));
        let set = answer.header("set-cookie");
        assert!(set.starts_with("__Host-likewise-paired=lw_") && set.contains("; Path=/;"), "{name}: {set}");
        assert!(set.ends_with("; Secure") && !set.contains("Domain"), "{name}: {set}");
        let cookie = cookie(&answer);
        let page = get(&server, "/", &cookie);
        assert_eq!(page.status, 200, "{name}");
        assert!(page.header("set-cookie").ends_with("; Secure"), "{page:?}");
        // Without the prefix anybody beside this host could have set it.
        let bare = cookie.trim_start_matches("__Host-");
        let port = server.port();
        for other in [bare.to_owned(), bare.replace("paired=", &format!("paired-{port}="))] {
            assert_eq!(get(&server, "/", &other).status, 403, "{name}: {other}");
        }
    }
    // The browser on this machine has no TLS.
    let answer = server.post("/pair", &from_hub("desk").form("browser", NONCE));
    assert!(!answer.header("set-cookie").contains("Secure"), "{answer:?}");
    let liked = server.post_with("/likes", &[("cookie", &cookie(&answer))], &format!("id={}", new_id()));
    assert_eq!((liked.status, origins(data.path())), (303, vec!["desk".to_owned()]));
}

#[test]
fn under_a_base_path_the_link_and_the_cookie_have_it() {
    let data = data_dir();
    let address = format!("https://{HOST}/tools/likes");
    let flags = ["--listen", "127.0.0.1:0", "--public-url", &address, "--base-path", "/tools/likes"];
    let server = Server::start_with(data.path(), &flags);
    let output = run(data.path(), &["pair", "phone"]);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&format!("{address}/pair#")), "{output:?}");
    let link = Link::printed(output);
    let page = get(&server, "/tools/likes/pair", "");
    assert_eq!(page.between("action=\"", "\""), "/tools/likes/pair");
    let answer = post(&server, "/tools/likes/pair", &[], &link.form("browser", NONCE));
    assert_eq!((answer.status, answer.header("location")), (303, "/tools/likes/"), "{answer:?}");
    let set = answer.header("set-cookie");
    assert!(set.starts_with("__Host-likewise-paired+tools+likes=") && set.contains("; Path=/;"), "{set}");
    let cookie = cookie(&answer);
    assert_eq!(get(&server, "/tools/likes/", &cookie).status, 200);
    // One that somebody else could set for a part of the site doesn't hide it.
    let tossed = cookie.replace("=lw_", "=lw_0");
    assert_eq!(get(&server, "/tools/likes/", &format!("{tossed}; {cookie}")).status, 200);
    assert_eq!(get(&server, "/tools/likes/", &cookie.replace("__Host-", "__Secure-")).status, 403);
    drop(server);
    let mut command = crate::common::likewise();
    command.args(["serve", "--public-url", "https://likes.example.org/other", "--base-path", "/likes"]);
    let output = command.env("LIKEWISE_DATA", data.path()).output().expect("it starts");
    assert!(errors(&output).contains("--base-path"), "{output:?}");
}

#[test]
fn a_page_that_follows_a_hub_pairs_with_nothing() {
    let (data, device) = (data_dir(), data_dir());
    let server = Server::start(data.path());
    let link = printed(run(data.path(), &["pair", "laptop"]));
    let joined = run(device.path(), &["join", link.trim_end()]);
    assert!(joined.status.success(), "{joined:?}");
    let follower = Server::start(device.path());
    assert_eq!(follower.get("/pair").status, 403);
    let output = run(device.path(), &["pair", "phone"]);
    assert!(!output.status.success() && errors(&output).contains(&server.url), "{output:?}");
    let answer = agent().get(format!("{}/pair", follower.url)).header("accept", "application/json").call();
    assert_eq!(code(&Answer::of(answer.expect("an answer"))), "not-a-hub");
}
