//! The outside of the program: each route, as pages, forms, programs and other people's tests rely on it.

use std::io::Read as _;

use serde_json::{Value, json};

use crate::client::{Answer, Live, agent, listing, new_id, redacted};
use crate::common::{Server, data_dir, wait_for};

#[test]
fn the_page_shows_the_count_in_a_form_that_likes() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like_times(2);
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("cache-control"), "no-store");
    assert_eq!(page.between(r#"<output id="count" "#, "</output>"), r#"data-count="2">2"#);
    let form = page.between("<form", "</form>");
    for part in [r#"method="post""#, r#"action="/likes""#, r#"autocomplete="off""#, r#"type="hidden" name="id""#] {
        assert!(form.contains(part), "{part} is not in {form}");
    }
    insta::assert_snapshot!("page", redacted(&page.body.replace(env!("CARGO_PKG_VERSION"), "VERSION")));

    let id = page.between(r#"name="id" value=""#, "\"");
    assert_eq!(uuid::Uuid::parse_str(id).expect("an id").get_version_num(), 7);
    let other = server.get("/");
    assert_ne!(other.between(r#"name="id" value=""#, "\""), id, "each page has an id of its own");
}

#[test]
fn the_page_after_a_like_shows_it() {
    let data = data_dir();
    let server = Server::start(data.path());
    let _watched = server.live("/live");
    for expected in 1..=100 {
        server.like("", &new_id());
        assert_eq!(server.count(), expected);
        assert_eq!(server.get("/status").json()["head"], expected);
    }
}

#[test]
fn trust_57_going_back_and_clicking_again_is_a_new_like() {
    let data = data_dir();
    let server = Server::start(data.path());
    // A browser that goes back to a page that it may not keep asks for it again, and gets another id. A page with a query
    // would be another address, which the browser might keep.
    for path in ["/?", "/?from=mail", "/?id=1"] {
        let answer = server.get(path);
        assert_eq!((answer.status, answer.header("location")), (303, "/"), "{path}");
    }
    assert_eq!(server.get("/s/work/?x").header("location"), "/s/work/");
    for expected in 1..=2 {
        let page = server.get("/");
        server.like("", page.between(r#"name="id" value=""#, "\""));
        assert_eq!(server.count(), expected);
    }
}

#[test]
fn a_like_is_counted_once_however_often_it_is_posted() {
    let data = data_dir();
    let server = Server::start(data.path());
    let id = new_id();
    for _ in 0..3 {
        let answer = server.post("/likes", &format!("id={id}"));
        assert_eq!((answer.status, answer.header("location")), (303, "/"));
    }
    // The same id in another spelling.
    for same in [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}"), format!("urn:uuid:{id}")] {
        let answer = server.post("/likes", &format!("id={same}"));
        assert!(matches!(answer.status, 303 | 400), "{same}: {answer:?}");
        assert_eq!(server.count(), 1, "{same}");
    }
    assert_eq!(server.post("/likes", &format!("unknown=1&id={id}&more=2")).status, 303);
    assert_eq!(server.count(), 1);
}

#[test]
fn a_like_without_an_id_gets_one() {
    let data = data_dir();
    let server = Server::start(data.path());
    assert_eq!(server.post("/likes", "").status, 303);
    assert_eq!(server.post("/likes", "other=field").status, 303);
    let bare = server.ask(&format!(
        "POST /likes HTTP/1.1\r\nHost: localhost:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        server.port()
    ));
    assert_eq!((bare.status, bare.header("location")), (303, "/"));
    assert_eq!(server.count(), 3);
}

#[test]
fn what_is_no_like_is_refused_and_not_counted() {
    let data = data_dir();
    let server = Server::start(data.path());
    let id = new_id();
    let version_4 = uuid::Uuid::new_v4();
    let form = "application/x-www-form-urlencoded";
    for (kind, body, expected) in [
        (form, "id=".to_owned(), 400),
        (form, "id=x".to_owned(), 400),
        (form, format!("id={version_4}"), 400),
        (form, format!("id={}", uuid::Uuid::nil()), 400),
        (form, format!("id={}", uuid::Uuid::max()), 400),
        (form, format!("id={id}x"), 400),
        (form, format!("id=+{id}"), 400),
        (form, "id=%00%ff".to_owned(), 400),
        (form, format!("id={id}&id={id}"), 400),
        (form, format!("id={id}&id={}", new_id()), 400),
        ("application/json", format!("{{\"id\":\"{id}\"}}"), 415),
        ("text/plain", format!("id={id}"), 415),
        ("multipart/form-data; boundary=x", format!("id={id}"), 415),
        (form, format!("id={id}&pad={}", "x".repeat(4096)), 413),
    ] {
        let answer = server.post_with("/likes", &[("content-type", kind)], &body);
        assert_eq!(answer.status, expected, "{kind} {body}: {answer:?}");
        assert_eq!(answer.header("content-type"), "text/html; charset=utf-8", "an error of the page is a page");
        assert!(answer.body.contains(r#"<a class="back" href="/">"#), "{}", answer.body);
    }
    assert_eq!(server.count(), 0);
    assert!(!server.store("likes").exists(), "refused likes make no files");
    server.like("", &id);
    let charset = [("content-type", "Application/X-WWW-Form-Urlencoded; charset=UTF-8")];
    assert_eq!(server.post_with("/likes", &charset, &format!("id={}", new_id())).status, 303);
    assert_eq!(server.count(), 2);
}

#[test]
fn wrong_methods_are_told_the_right_ones() {
    let data = data_dir();
    let server = Server::start(data.path());
    for (path, methods, allowed) in [
        ("/", &["POST", "PUT", "DELETE", "PATCH", "OPTIONS"][..], "GET,HEAD"),
        ("/likes", &["GET", "HEAD", "PUT", "DELETE", "OPTIONS"], "POST"),
        ("/live", &["POST", "DELETE"], "GET,HEAD"),
        ("/status", &["POST", "PUT"], "GET,HEAD"),
        ("/healthz", &["POST"], "GET,HEAD"),
        ("/metrics", &["POST"], "GET,HEAD"),
        ("/s/work/", &["POST"], "GET,HEAD"),
        ("/s/work/likes", &["GET", "DELETE"], "POST"),
        ("/static/likewise.js", &["POST"], "GET,HEAD"),
    ] {
        for method in methods {
            let answer = server.ask(&format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n",
                server.port()
            ));
            assert_eq!((answer.status, answer.header("allow")), (405, allowed), "{method} {path} {answer:?}");
        }
    }
    assert_eq!(server.count(), 0);
}

#[test]
fn an_unknown_address_gets_a_page_that_says_so() {
    let data = data_dir();
    let server = Server::start(data.path());
    for path in
        ["/nothing", "/likes/", "/s", "/s/", "/static/", "/static/nothing", "/s/work/nothing", "//", "/%00", "/.."]
    {
        let answer = server
            .ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n", server.port()));
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.header("content-type"), "text/html; charset=utf-8", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    insta::assert_snapshot!("error_page", redacted(&server.get("/nothing").body));
}

#[test]
fn each_store_has_its_own_count_under_its_name() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like("/s/work", &new_id());
    server.like("/s/work", &new_id());
    let id = new_id();
    server.like("/s/0-a", &id);
    server.like("", &id);
    let answer = server.post("/s/work/likes", &format!("id={}", new_id()));
    assert_eq!((answer.status, answer.header("location")), (303, "/s/work/"));

    let page = server.get("/s/work/");
    assert_eq!(page.between(r#"data-count=""#, "\""), "3");
    assert!(page.body.contains(r#"action="/s/work/likes""#), "{}", page.body);
    assert_eq!(server.get("/s/0-a/status").json()["count"], 1);
    assert_eq!(server.get("/status").json()["count"], 1);
    assert_eq!(server.get("/s/likes/status").json()["log"], server.get("/status").json()["log"]);
    assert_eq!(server.get("/s/work/healthz").status, 200);
    let moved = server.get("/s/work");
    assert_eq!((moved.status, moved.header("location")), (308, "/s/work/"));
    assert_eq!(server.live("/s/work/live").until(3), [0; 0]);
}

#[test]
fn what_is_no_name_of_a_store_is_not_found() {
    let data = data_dir();
    let server = Server::start(data.path());
    let long = "x".repeat(64);
    for name in
        ["Work", "-a", "a_b", "a.b", "..", "%2e%2e", "a%2Fb", "%00", "a%20b", "ä", "%C3%A4", "a;b", &long, "%ff"]
    {
        for route in ["", "/", "/likes", "/live", "/status", "/healthz"] {
            let method = if route == "/likes" { "POST" } else { "GET" };
            let answer = server.ask(&format!(
                "{method} /s/{name}{route} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n",
                server.port()
            ));
            assert!(matches!(answer.status, 404 | 400), "{name}{route}: {answer:?}");
            assert!(!answer.body.contains("href=\"/s/"), "{name}{route}: {answer:?}");
        }
    }
    let longest = "x".repeat(63);
    server.like(&format!("/s/{longest}"), &new_id());
    let stores: Vec<_> = listing(&data.path().join("stores")).into_iter().filter(|(_, size)| *size == 0).collect();
    assert!(stores.len() == 1 && stores[0].0.ends_with(&longest), "{stores:?}");
}

#[test]
fn the_status_has_exactly_the_promised_fields() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--device", "laptop of A. Nyone"]);
    let none = json!({"url": null, "state": "none", "code": null, "error": null, "since": null});
    let mut status = server.get("/status");
    assert_eq!(status.header("content-type"), "application/json");
    assert_eq!(status.header("cache-control"), "no-store");
    let schema = status.json()["schema"].clone();
    assert!(schema.as_str().is_some_and(|schema| !schema.is_empty()), "{schema}");
    let expected = |count: u64, log: &Value| {
        json!({
            "store": "likes", "device": "laptop of A. Nyone", "count": count, "head": count, "cursor": count,
            "pending": 0, "set_aside": 0, "skipped": 0, "unknown": 0, "log": log, "schema": schema, "upstream": none,
            "version": env!("CARGO_PKG_VERSION"),
        })
    };
    assert_eq!(status.json(), expected(0, &Value::Null));

    server.like_times(3);
    status = server.get("/status");
    let log = status.json()["log"].clone();
    assert!(log.as_str().is_some_and(|log| uuid::Uuid::try_parse(log).is_ok()), "{log}");
    assert_eq!(status.json(), expected(3, &log));
    assert_eq!(server.get("/status?other").json(), expected(3, &log));

    let mut with_digests = expected(3, &log);
    for query in ["?digests", "?digests=", "?digests=1", "?a=b&digests"] {
        let status = server.get(&format!("/status{query}")).json();
        for name in ["log_digest", "state_digest"] {
            let digest = status[name].as_str().expect("a digest");
            assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
            with_digests[name] = status[name].clone();
        }
        with_digests["digest_seq"] = json!(3);
        assert_eq!(status, with_digests);
    }
}

#[test]
fn digests_stand_for_the_log_and_the_state_up_to_their_seq() {
    let (data, other) = (data_dir(), data_dir());
    let (server, twin) = (Server::start(data.path()), Server::start(other.path()));
    let digests = |server: &Server| {
        let status = server.get("/status?digests").json();
        (status["log_digest"].clone(), status["state_digest"].clone(), status["digest_seq"].clone())
    };
    assert_eq!(digests(&server), digests(&twin));
    let ids = server.like_times(2);
    let before = digests(&server);
    assert_ne!(before, digests(&twin));
    ids.iter().for_each(|id| twin.like("", id));
    assert_eq!(digests(&twin), before, "the same likes by the same device");
    twin.like("", &new_id());
    assert_ne!(digests(&twin), before);
}

#[test]
fn health_and_metrics_answer_programs() {
    let data = data_dir();
    let server = Server::start(data.path());
    let health = server.get("/healthz");
    assert_eq!((health.status, health.header("cache-control")), (200, "no-store"));

    let id = new_id();
    server.like("", &id);
    server.like("", &id);
    let _live = server.live("/live");
    let metrics = server.get("/metrics");
    assert_eq!(metrics.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        r#"likewise_likes_total{result="stored"} 1"#,
        r#"likewise_likes_total{result="repeated"} 1"#,
        r#"likewise_likes_total{result="overloaded"} 0"#,
        "likewise_streams 1",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line} is not in\n{}", metrics.body);
    }
}

#[test]
fn errors_for_programs_are_problem_json_with_a_code() {
    let data = data_dir();
    let server = Server::start(data.path());
    let answer = server.get_with("/status", &[("origin", "https://evil.example")]);
    assert_eq!((answer.status, answer.header("content-type")), (403, "application/problem+json"));
    let json = serde_json::to_string_pretty(&answer.json()).expect("JSON");
    insta::assert_snapshot!("problem", json);
    let missing = server.get("/s/No/status");
    assert_eq!((missing.status, missing.header("content-type")), (404, "application/problem+json"));
    assert_eq!(missing.json()["code"], "no-such-store");
}

#[test]
fn static_files_may_be_kept_for_ever_under_their_version() {
    let data = data_dir();
    let server = Server::start(data.path());
    let page = server.get("/");
    let parts = page.body.split(['"', ' ']).filter(|part| part.starts_with("/static/"));
    for part in parts.clone() {
        let file = server.get(part);
        assert_eq!(file.status, 200, "{part}");
        assert_eq!(file.header("cache-control"), "public, max-age=31536000, immutable", "{part}");
    }
    for (name, kind) in [
        ("likewise.js", "text/javascript; charset=utf-8"),
        ("likewise.css", "text/css; charset=utf-8"),
        ("favicon.svg", "image/svg+xml"),
    ] {
        let ours = parts.clone().find(|part| part.ends_with(name)).unwrap_or_else(|| panic!("no {name} in the page"));
        // Addresses of other versions redirect there, and aren't kept: old pages may still be open.
        for old in [format!("/static/{name}?v=0123456789ab"), format!("/static/0123456789ab/{name}")] {
            let answer = server.get(&old);
            assert_eq!((answer.status, answer.header("location")), (307, ours), "{old}");
            assert_eq!(answer.header("cache-control"), "no-store", "{old}");
        }
        assert_eq!(server.get(ours).header("content-type"), kind);
    }
    let icon = server.get("/favicon.ico");
    assert_eq!(icon.status, 307);
    assert_eq!(server.get(icon.header("location")).header("content-type"), "image/svg+xml");
}

#[test]
fn static_files_go_out_compressed_where_that_is_taken() {
    let data = data_dir();
    let server = Server::start(data.path());
    let page = server.get("/");
    let (mut plain, mut packed) = (0, 0);
    for part in page.body.split(['"', ' ']).filter(|part| part.starts_with("/static/")) {
        let whole = server.get(part);
        assert_eq!((whole.header("vary"), whole.header("content-encoding")), ("accept-encoding", ""), "{part}");
        let head = format!("GET {part} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        let bytes = server.send(format!("{head}Accept-Encoding: gzip, deflate, br\r\n\r\n").as_bytes());
        let (start, answer) = (body_of(&bytes), Answer::parse(&bytes).expect("an answer"));
        assert_eq!((answer.status, answer.header("vary")), (200, "accept-encoding"), "{part}");
        for name in ["content-type", "cache-control"] {
            assert_eq!(answer.header(name), whole.header(name), "{part}");
        }
        let gzipped = &bytes[start..];
        assert_eq!(answer.header("content-length"), gzipped.len().to_string(), "{part}");
        (plain, packed) = (plain + whole.body.len(), packed + gzipped.len());
        if answer.header("content-encoding") == "gzip" {
            let mut text = String::new();
            flate2::read::GzDecoder::new(gzipped).read_to_string(&mut text).expect("gzip");
            assert_eq!(text, whole.body, "{part}");
        }
        let refused = server.send(format!("{head}Accept-Encoding: gzip;q=0, br\r\n\r\n").as_bytes());
        assert_eq!(refused[body_of(&refused)..], *whole.body.as_bytes(), "{part}");
    }
    assert!(packed * 2 < plain, "{packed} bytes instead of {plain}");
}

/// Where the body of an answer begins.
fn body_of(bytes: &[u8]) -> usize {
    4 + bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of the head")
}

#[test]
fn a_live_stream_begins_with_what_is_there_and_goes_on_with_what_changes() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut live = server.live("/live");
    assert_eq!(live.answer.status, 200);
    assert_eq!(live.answer.header("content-type"), "text/event-stream");
    assert_eq!(live.answer.header("cache-control"), "no-store, no-transform");
    assert_eq!(live.answer.header("x-accel-buffering"), "no");
    let mut first = [frame(&mut live), frame(&mut live)];
    first.sort();
    insta::assert_snapshot!("frames", first.concat());
    assert_eq!(first[0], likes_frame(0));

    for count in 1..=3 {
        server.like("", &new_id());
        assert_eq!(frame(&mut live), likes_frame(count));
    }
    let mut late = server.live("/live");
    let mut first = [frame(&mut late), frame(&mut late)];
    first.sort();
    assert_eq!(first[0], likes_frame(3));
    assert!(first[1].starts_with("event: status\ndata: "), "{first:?}");
}

#[test]
fn all_streams_see_the_same_and_only_of_their_store() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut streams: Vec<Live> = (0..20).map(|_| server.live("/live")).collect();
    let mut other = server.live("/s/other/live");
    server.like_times(5);
    for live in &mut streams {
        live.until(5);
    }
    server.like("/s/other", &new_id());
    assert_eq!(other.until(1), [0]);
}

#[test]
fn who_reads_late_gets_the_newest_and_not_the_backlog() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut slow = server.live("/live");
    slow.until(0);
    let mut quick = server.live("/live");
    server.like_times(200);
    quick.until(200);
    // What it missed was small enough for the sockets' buffers, so it is still there. Nothing comes twice or out of order.
    let seen = slow.until(200);
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    assert!(seen.len() < 200, "changes close together are one");
}

#[test]
fn a_stream_that_was_closed_is_forgotten() {
    let data = data_dir();
    let server = Server::start(data.path());
    let streams: Vec<Live> = (0..5).map(|_| server.live("/live")).collect();
    assert!(server.get("/metrics").body.contains("\nlikewise_streams 5\n"));
    drop(streams);
    wait_for("the streams to be forgotten", || {
        server.get("/metrics").body.contains("\nlikewise_streams 0\n").then_some(())
    });
    server.like("", &new_id());
    server.live("/live").until(1);
}

#[test]
fn trust_57_looking_creates_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let before = listing(data.path());
    let mut live = server.live("/live");
    let mut other = server.live("/s/work/live");
    live.until(0);
    other.until(0);
    for path in [
        "/",
        "/?",
        "/status",
        "/status?digests",
        "/healthz",
        "/metrics",
        "/likes",
        "/nothing",
        "/favicon.ico",
        "/static/likewise.js",
        "/static/likewise.css",
        "/static/favicon.svg",
        "/s/work",
        "/s/work/",
        "/s/work/status?digests",
        "/s/work/healthz",
        "/s/work/likes",
        "/s/../",
        "/s/%2e%2e/status",
    ] {
        server.get(path);
        let url = format!("{}{path}", server.url);
        agent().head(url).call().unwrap_or_else(|why| panic!("HEAD {path}: {why}"));
    }
    assert_eq!(listing(data.path()), before);

    server.like("", &new_id());
    let with_one = listing(data.path());
    server.get("/");
    server.get("/status?digests");
    assert_eq!(listing(data.path()), with_one);
}

fn frame(live: &mut Live) -> String {
    live.next().expect("a frame")
}

fn likes_frame(count: u64) -> String {
    let digits = count.to_string().len();
    let s = if count == 1 { "" } else { "s" };
    format!(
        "event: likes\ndata: <likewise-live class=\"live\" id=\"live-likes\" data-live=\"likes\"><p class=\"tally\" data-digits=\"{digits}\" \
         data-numbers data-summary=\"{count} like{s}\"><output id=\"count\" data-count=\"{count}\">{count}</output></p></likewise-live>\n\n"
    )
}
