//! What other sites embed: every route of it, for whom it opens, and its limits.

use std::path::Path;

use serde_json::json;

use crate::client::{Answer, Live, listing, new_id};
use crate::common::{Server, data_dir, errors, likewise, printed, run, run_with, wait_for};

const SITE: &str = "https://blog.example";
const HUB: &str = "hub.example";

/// A server on this machine whose buttons one site may embed.
fn serve(data: &Path) -> Server {
    Server::start_with(data, &["--listen", "127.0.0.1:0", "--embed", SITE])
}

/// A server under a name of its own, behind a proxy on this machine.
fn behind_a_proxy(data: &Path) -> Server {
    let flags = ["--listen", "127.0.0.1:0", "--allow-host", HUB, "--behind-proxy", "127.0.0.1", "--embed", SITE];
    Server::start_with(data, &flags)
}

/// A script's like on a page of the site.
fn like(server: &Server, item: &str, id: &str) -> Answer {
    let headers = [("origin", SITE), ("accept", "application/json")];
    server.post_with(&format!("/embed/v1/{item}/likes"), &headers, &format!("id={id}"))
}

/// The same from a client behind the proxy.
fn like_from(server: &Server, client: &str, item: &str) -> Answer {
    let head = format!(
        "POST /embed/v1/{item}/likes HTTP/1.1\r\nHost: {HUB}\r\nOrigin: {SITE}\r\nAccept: application/json\r\n"
    );
    server.ask(&format!("{head}X-Forwarded-For: {client}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
}

fn counts(server: &Server, items: &str) -> serde_json::Value {
    let answer = server.get_with(&format!("/embed/v1/counts?items={items}"), &[("origin", SITE)]);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The data of the next message of a stream.
fn next(stream: &mut Live) -> String {
    let message = stream.next().expect("a message");
    message.lines().find_map(|line| line.strip_prefix("data: ")).expect("data").to_owned()
}

fn code(answer: &Answer) -> String {
    answer.json()["code"].as_str().expect("a code").to_owned()
}

#[test]
fn a_like_counts_once_and_a_script_is_told_so() {
    let data = data_dir();
    let server = serve(data.path());
    let id = new_id();
    for _ in 0..2 {
        let answer = like(&server, "my-post", &id);
        assert_eq!((answer.status, answer.header("likewise-stored")), (204, id.as_str()), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), SITE);
        assert_eq!(answer.header("access-control-expose-headers"), "likewise-stored, retry-after");
        assert_eq!(answer.header("vary"), "origin");
        assert_eq!(answer.header("access-control-allow-credentials"), "");
    }
    assert_eq!(counts(&server, "my-post"), json!({ "my-post": 1 }));
    // An item named like the app's own store is another store.
    assert_eq!(like(&server, "likes", &new_id()).status, 204);
    assert_eq!(server.count(), 0);
    assert_eq!(
        printed(run(data.path(), &["status", "--json", "--store", "item-likes"])).matches("\"count\": 1").count(),
        1
    );
    for (body, expected) in [("id=x", "malformed-id"), ("id=a&id=b", "malformed-id"), ("a=%ff", "malformed-form")] {
        let headers = [("origin", SITE), ("accept", "application/json")];
        let answer = server.post_with("/embed/v1/my-post/likes", &headers, body);
        assert_eq!((answer.status, code(&answer).as_str()), (400, expected));
        assert_eq!(answer.header("access-control-allow-origin"), SITE, "the page can read why");
    }
    let long = "a".repeat(401);
    for item in [&long, "a%2Cb", "%20a", "a%00", "%ff"] {
        let answer = like(&server, item, &new_id());
        assert_eq!((answer.status, code(&answer).as_str()), (400, "malformed-item"), "{item}");
    }
}

#[test]
fn a_form_comes_back_to_the_page_that_has_it() {
    let data = data_dir();
    let server = serve(data.path());
    let page = format!("{SITE}/my-post?a=b");
    let form = |headers: &[(&str, &str)], body: &str| {
        let answer = server.post_with("/embed/v1/my-post/likes", headers, body);
        assert!(matches!(answer.status, 204 | 303), "{answer:?}");
        answer.header("location").to_owned()
    };
    let back = format!("back={}", page.replace('?', "%3F").replace('=', "%3D"));
    assert_eq!(
        form(&[("origin", SITE), ("sec-fetch-mode", "navigate"), ("sec-fetch-site", "cross-site")], &back),
        page
    );
    assert_eq!(form(&[("origin", SITE), ("referer", &page)], ""), page);
    let root = format!("{SITE}/");
    assert_eq!(form(&[("origin", SITE), ("referer", &root)], &back), page, "browsers say only the site");
    assert_eq!(form(&[("origin", SITE)], ""), root);
    for elsewhere in [
        "https://evil.example/",
        "//evil.example",
        "javascript:alert(1)",
        "https://blog.example.evil/",
        "blob:https://blog.example/0",
        "https://user@blog.example/",
        "https://:pw@blog.example/",
        "",
    ] {
        assert_eq!(
            form(&[("origin", SITE), ("referer", elsewhere)], &format!("back={elsewhere}")),
            root,
            "{elsewhere}"
        );
    }
    assert_eq!(form(&[], ""), "", "a program has no page");
    assert_eq!(form(&[("origin", SITE), ("sec-fetch-mode", "cors")], &back), "", "a script stays where it is");
    // A person gets a page of what is wrong.
    let wrong =
        server.post_with("/embed/v1/my-post/likes", &[("origin", SITE), ("sec-fetch-mode", "navigate")], "id=x");
    assert_eq!((wrong.status, wrong.header("content-type")), (400, "text/html; charset=utf-8"));
}

#[test]
fn trust_33_other_sites_embed_nothing() {
    let data = data_dir();
    let server = serve(data.path());
    let before = listing(data.path());
    let evil = "https://evil.example";
    let strangers: [&[(&str, &str)]; 7] = [
        &[("origin", evil)],
        &[("origin", "null")],
        &[("origin", "http://blog.example")],
        &[("origin", "https://blog.example:8443")],
        &[("origin", "https://BLOG.example")],
        &[("sec-fetch-site", "cross-site")],
        &[("origin", evil), ("sec-fetch-site", "same-origin")],
    ];
    for headers in strangers {
        for path in ["counts?items=a", "live?items=a", "a/live", "a/heart"] {
            let answer = server.get_with(&format!("/embed/v1/{path}"), headers);
            assert_eq!((answer.status, code(&answer).as_str()), (403, "site-not-allowed"), "{path} {headers:?}");
            assert!(!answer.headers.keys().any(|name| name.starts_with("access-control-")), "{answer:?}");
        }
        for path in ["a/likes", "a/heart"] {
            let answer = server.post_with(&format!("/embed/v1/{path}"), headers, "");
            assert_eq!(answer.status, 403, "{path} {headers:?}");
        }
    }
    let asked = format!("OPTIONS /embed/v1/a/likes HTTP/1.1\r\nHost: localhost\r\nOrigin: {evil}\r\n");
    let asked = asked + "Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n";
    assert_eq!(server.ask(&asked).status, 403);
    let allowed = server.ask(&asked.replace(evil, SITE));
    assert_eq!((allowed.status, allowed.header("access-control-allow-methods")), (204, "GET, POST"));
    assert_eq!(listing(data.path()), before);

    // To the site itself, nothing else opens.
    for path in ["/", "/live", "/status", "/metrics", "/healthz", "/s/item-a/live"] {
        let answer = server.get_with(path, &[("origin", SITE), ("sec-fetch-site", "cross-site")]);
        assert!(!answer.headers.keys().any(|name| name.starts_with("access-control-")), "{path}: {answer:?}");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{path}");
        assert!(matches!(path, "/" | "/healthz") || answer.status == 403, "{path}: {answer:?}");
    }
    assert_eq!(server.post_with("/likes", &[("origin", SITE)], "").status, 403);
    assert_eq!(server.post_with("/s/item-a/likes", &[("origin", SITE)], "").status, 403);
}

#[test]
fn embedding_opens_under_the_names_of_the_server_and_opens_nothing_else() {
    let data = data_dir();
    let server = behind_a_proxy(data.path());
    let ask = |host: &str, path: &str| {
        server.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {SITE}\r\nConnection: close\r\n\r\n"))
    };
    assert_eq!(ask(HUB, "/embed/v1/counts?items=a").status, 200);
    assert_eq!(ask(HUB, "/embed.js").status, 200);
    assert_eq!(ask(HUB, "/").status, 403);
    assert_eq!(ask(HUB, "/s/item-a/").status, 403);
    assert_eq!(code(&ask("localhost", "/embed/v1/counts?items=a")), "no-local-page");
    assert_eq!(ask("evil.example", "/embed/v1/counts?items=a").status, 403);
    drop(server);
    let closed = Server::start(data.path());
    for path in ["/embed.js", "/embed/v1/counts?items=a", "/embed/v1/a/badge.svg", "/embed/v1/a/live"] {
        assert_eq!(closed.get(path).status, 404, "{path}");
    }
    assert_eq!(closed.post("/embed/v1/a/likes", "").status, 404);
}

#[test]
fn trust_57_looking_at_items_makes_nothing_and_the_first_like_is_seen() {
    let data = data_dir();
    let server = serve(data.path());
    let before = listing(data.path());
    let hundred: Vec<String> = (0..100).map(|n| format!("nothing-{n}")).collect();
    let hundred = hundred.join(",");
    let all = counts(&server, &hundred);
    assert!(all.as_object().is_some_and(|all| all.len() == 100 && all.values().all(|count| *count == 0)), "{all}");
    assert_eq!(server.get("/embed/v1/nothing/heart").json(), json!({ "\u{2764}\u{fe0f}": 0 }));
    assert!(server.get("/embed/v1/nothing/badge.svg").body.contains(">0</text>"));
    let mut one = server.live("/embed/v1/nothing-7/live");
    let mut many = server.live(&format!("/embed/v1/live?items={hundred}"));
    assert_eq!(one.answer.header("content-type"), "text/event-stream");
    assert_eq!(one.answer.header("x-accel-buffering"), "no");
    assert_eq!(next(&mut one), "0");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&next(&mut many)).expect("JSON"), all);
    assert_eq!(listing(data.path()), before);

    assert_eq!(like(&server, "other", &new_id()).status, 204);
    assert_eq!(like(&server, "nothing-7", &new_id()).status, 204);
    assert_eq!(next(&mut one), "1");
    assert_eq!(next(&mut many), r#"{"nothing-7":1}"#, "only what changed");
    // Whoever likes, and wherever: the owner on the page of the store, or an import.
    assert_eq!(server.post("/s/item-nothing-7/likes", "").status, 303);
    assert_eq!(next(&mut one), "2");
    assert_eq!(next(&mut many), r#"{"nothing-7":2}"#);
    let stored = listing(data.path()).into_iter().filter(|(path, _)| path.ends_with("eventlog.db")).count();
    assert_eq!(stored, 2);
    assert_eq!(counts(&server, "other,nothing-7,nothing-8"), json!({ "other": 1, "nothing-7": 2, "nothing-8": 0 }));
}

#[test]
fn counts_can_be_kept_by_caches() {
    let data = data_dir();
    let server = serve(data.path());
    assert_eq!(like(&server, "a", &new_id()).status, 204);
    let path = "/embed/v1/counts?items=a,b,a,";
    let first = server.get_with(path, &[("origin", SITE)]);
    assert_eq!(first.json(), json!({ "a": 1, "b": 0 }));
    assert_eq!(first.header("cache-control"), "public, max-age=10");
    assert_eq!(first.header("cross-origin-resource-policy"), "cross-origin");
    assert_eq!(first.header("vary"), "origin");
    let tag = first.header("etag");
    let again = server.get_with(path, &[("origin", SITE), ("if-none-match", tag)]);
    assert_eq!((again.status, again.body.as_str(), again.header("etag")), (304, "", tag));
    assert_eq!(again.header("access-control-allow-origin"), SITE);
    assert_eq!(like(&server, "b", &new_id()).status, 204);
    wait_for("the new count", || (server.get_with(path, &[("if-none-match", tag)]).status == 200).then_some(()));
    let many: Vec<String> = (0..=100).map(|n| n.to_string()).collect();
    for (items, expected) in
        [("", "malformed-item"), (",", "malformed-item"), (&*many.join(","), "too-many-items-asked")]
    {
        let answer = server.get(&format!("/embed/v1/counts?items={items}"));
        assert_eq!((answer.status, code(&answer).as_str()), (400, expected));
    }
    assert_eq!(counts(&server, "blog.example%2Fmy%20post"), json!({ "blog.example/my post": 0 }));
}

#[test]
fn the_script_and_the_badge_are_for_anybody() {
    let data = data_dir();
    let server = serve(data.path());
    assert_eq!(like(&server, "a", &new_id()).status, 204);
    for headers in [&[][..], &[("origin", "https://evil.example")], &[("sec-fetch-site", "cross-site")]] {
        let badge = server.get_with("/embed/v1/a/badge.svg", headers);
        assert_eq!((badge.status, badge.header("content-type")), (200, "image/svg+xml"), "{headers:?}");
        assert_eq!(badge.header("cross-origin-resource-policy"), "cross-origin");
        assert_eq!(badge.header("cache-control"), "public, max-age=60");
        assert!(badge.body.contains("<title>likes: 1</title>"), "{}", badge.body);
        assert_eq!(server.get_with("/embed.js", headers).status, 200);
    }
    let request = "GET /embed.js HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
    let script = server.ask(request);
    assert_eq!(script.header("content-encoding"), "gzip");
    assert_eq!(script.header("cross-origin-resource-policy"), "cross-origin");
    assert_eq!(script.header("cache-control"), "public, max-age=3600");
    let bytes: usize = script.header("content-length").parse().expect("a length");
    assert!(bytes <= 3 * 1024, "the script takes {bytes} bytes");
    let same = server.get_with("/embed.js", &[("if-none-match", script.header("etag"))]);
    assert_eq!(same.status, 304);
}

#[test]
fn open_heart_is_spoken() {
    let data = data_dir();
    let server = serve(data.path());
    let send = |body: &str, kind: &str| server.post_with("/embed/v1/a/heart", &[("content-type", kind)], body).status;
    let (text, form) = ("text/plain", "application/x-www-form-urlencoded");
    for (body, kind) in [
        ("\u{2764}\u{fe0f}", text),
        ("\u{2764}", form),
        ("\u{2764}\u{fe0f}=", text),
        ("\u{2764}\u{fe0f}=\r\n", text),
        ("%E2%9D%A4%EF%B8%8F=", form),
        ("\u{2764}\u{fe0f} and whatever follows", text),
    ] {
        assert_eq!(send(body, kind), 204, "{body:?}");
    }
    for body in ["", "\u{1f968}", "like", "\u{1f968}\u{2764}"] {
        assert_eq!(send(body, text), 400, "{body:?}");
    }
    let counted = wait_for("the counts", || {
        let counts = server.get_with("/embed/v1/a/heart", &[("origin", SITE)]);
        (counts.json() == json!({ "\u{2764}\u{fe0f}": 6 })).then_some(counts)
    });
    assert_eq!(counted.header("access-control-allow-origin"), SITE);
    let form = server.post_with("/embed/v1/a/heart", &[("origin", SITE), ("content-type", text)], "\u{2764}=");
    assert_eq!((form.status, form.header("location")), (303, &*format!("{SITE}/")));
}

#[test]
fn trust_64_one_client_s_likes_are_limited_and_others_go_on() {
    let data = data_dir();
    let server = behind_a_proxy(data.path());
    let (mut stored, refused) = (0, (0..200).map(|_| like_from(&server, "198.51.100.7", "a")));
    let mut refused = refused.inspect(|answer| stored += u64::from(answer.status == 204));
    let refused = refused.find(|answer| answer.status != 204).expect("a limit");
    assert_eq!((refused.status, code(&refused).as_str()), (429, "too-many-likes"), "{refused:?}");
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{refused:?}");
    assert_eq!(refused.header("access-control-allow-origin"), SITE);
    assert!(stored >= 100, "{stored}");
    // Whoever has one address of IPv6 has a network of them.
    assert_eq!(like_from(&server, "198.51.100.8", "a").status, 204);
    assert_eq!(like_from(&server, "203.0.113.1, 198.51.100.7", "a").status, 429, "what a client claims doesn't count");
    let log = server.log();
    assert!(!log.contains("198.51.100") && !log.contains("proxy"), "{log}");
}

#[test]
fn trust_64_new_items_are_limited_for_each_client_and_for_all() {
    let data = data_dir();
    let server = behind_a_proxy(data.path());
    let mut made = 0;
    let mut refused = None;
    // Each client makes as many as it may, until all together have made too many.
    'all: for client in 0..30 {
        for n in 0..30 {
            let answer = like_from(&server, &format!("2001:db8:{client}::{n}"), &format!("new-{client}-{n}"));
            match answer.status {
                204 => made += 1,
                429 if answer.body.contains("This address") => {
                    assert_eq!(code(&answer), "too-many-new-items");
                    assert!(n >= 20, "{n}");
                    break;
                }
                _ => {
                    refused = Some(answer);
                    break 'all;
                }
            }
        }
    }
    let refused = refused.expect("a limit for all together");
    assert_eq!((refused.status, code(&refused).as_str()), (429, "too-many-new-items"));
    assert!((200..=203).contains(&made), "{made}");
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
    // What is there can be liked, what the owner adds needs no room, and the page of the owner goes on.
    assert_eq!(like_from(&server, "203.0.113.9", "new-0-0").status, 204);
    printed(run(data.path(), &["items", "add", "announced"]));
    assert_eq!(like_from(&server, "203.0.113.9", "announced").status, 204);
    printed(run_with(
        data.path(),
        &["import", "--store", "mine"],
        &format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", new_id()),
    ));
}

#[test]
fn trust_64_streams_of_one_client_are_limited() {
    let data = data_dir();
    let server = serve(data.path());
    let mut streams: Vec<_> = (0..50).map(|_| server.live("/embed/v1/a/live")).collect();
    assert!(streams.iter().all(|stream| stream.answer.status == 200));
    let refused = server.get_with("/embed/v1/live?items=a", &[("origin", SITE)]);
    assert_eq!((refused.status, code(&refused).as_str()), (429, "too-many-streams"));
    assert_eq!(refused.header("retry-after"), "30");
    assert_eq!(counts(&server, "a"), json!({ "a": 0 }), "counts are there for those without a stream");
    assert_eq!(server.live("/live").answer.status, 200, "the owner's page has its own");
    streams.truncate(49);
    wait_for("room for another", || (server.live("/embed/v1/a/live").answer.status == 200).then_some(()));
}

#[test]
fn a_proxy_that_nobody_named_is_said_once() {
    let data = data_dir();
    let flags = ["--listen", "127.0.0.1:0", "--allow-host", HUB, "--embed", SITE];
    let server = Server::start_with(data.path(), &flags);
    for _ in 0..3 {
        assert_eq!(like_from(&server, "198.51.100.7", "a").status, 204);
    }
    let log = server.log();
    assert_eq!(log.matches("--behind-proxy 127.0.0.1").count(), 1, "{log}");
    assert!(!log.contains("198.51.100.7"), "{log}");
    let listed = run(data.path(), &["items", "list"]);
    assert!(errors(&listed).contains("start this server with `--behind-proxy 127.0.0.1`"), "{listed:?}");
    let examined = run(data.path(), &["doctor", "--public-url", "http://127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&examined.stdout);
    let line = said.lines().find(|line| line.starts_with("PROBLEM  flags")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("`--behind-proxy 127.0.0.1`") && examined.status.code() == Some(1), "{line}");
}

#[test]
fn visitors_like_items_on_the_sites_alone_and_the_owner_and_paired_browsers_on_the_page_too() {
    let data = data_dir();
    let (url, flags) = (format!("https://{HUB}"), ["--listen", "127.0.0.1:0", "--public", "--local-page"]);
    let serve = |more: &[&str]| Server::start_with(data.path(), &[&flags[..], &["--public-url", &url], more].concat());
    let server = serve(&["--embed", SITE]);
    let on_the_page = |server: &Server, path: &str, cookie: &str| {
        let headers = [("host", HUB), ("origin", &url), ("sec-fetch-site", "same-origin"), ("cookie", cookie)];
        server.post_with(path, &[&headers[..], &[("accept", "application/json")]].concat(), "")
    };
    printed(run(data.path(), &["items", "add", "there"]));
    printed(run(data.path(), &["items", "close"]));
    let before = listing(data.path());
    for item in ["there", "elsewhere"] {
        let refused = on_the_page(&server, &format!("/s/item-{item}/likes"), "");
        assert_eq!((refused.status, code(&refused).as_str()), (403, "embedded-only"), "{refused:?}");
    }
    assert_eq!(listing(data.path()), before);
    assert_eq!(server.get_with("/s/item-there/", &[("host", HUB)]).status, 200, "it can be read");
    assert_eq!(on_the_page(&server, "/s/other/likes", "").status, 204, "other stores are as they were");
    assert_eq!(server.post("/s/item-there/likes", "").status, 303, "the owner");

    let link = printed(run(data.path(), &["pair", "laptop"]));
    let (_, secret) = link.trim_end().split_once("/pair#").expect("a link");
    let form = format!("kind=browser&secret={secret}&nonce=00112233445566778899aabbccddeeff");
    let paired = server.post_with("/pair", &[("host", HUB)], &form);
    let cookie = paired.header("set-cookie").split(';').next().expect("a cookie").to_owned();
    assert_eq!(on_the_page(&server, "/s/item-there/likes", &cookie).status, 204, "a paired browser");

    // The list stays the owner's word.
    drop(server);
    let server = serve(&[]);
    assert_eq!(on_the_page(&server, "/s/item-there/likes", "").status, 403);
    assert_eq!(on_the_page(&server, "/s/other/likes", "").status, 204);
}

#[test]
fn a_store_that_only_looks_like_an_items_is_a_visitors_where_nothing_was_embedded() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--allow-host", HUB, "--public"]);
    assert_eq!(server.post_with("/s/item-a/likes", &[("host", HUB)], "").status, 303);
}

#[test]
fn the_owner_says_which_items_there_are() {
    let data = data_dir();
    let server = serve(data.path());
    let items = |words: &[&str]| printed(run(data.path(), &[&["items"], words].concat()));
    assert_eq!(like(&server, "my-post", &new_id()).status, 204);
    assert_eq!(like(&server, "blog.example%2Fhello", &new_id()).status, 204);
    assert_eq!(items(&["list"]), "blog.example/hello\t1 like\topen\nmy-post\t1 like\topen\n");
    items(&["close"]);
    let refused = like(&server, "spam", &new_id());
    assert_eq!((refused.status, code(&refused).as_str()), (404, "no-such-item"));
    assert_eq!(like(&server, "my-post", &new_id()).status, 204, "what there is stays open");
    items(&["add", "next-post", "blog.example/next"]);
    items(&["remove", "my-post"]);
    assert_eq!(like(&server, "next-post", &new_id()).status, 204);
    assert_eq!(like(&server, "blog.example%2Fnext", &new_id()).status, 204);
    assert_eq!(like(&server, "my-post", &new_id()).status, 404);
    let expected = "blog.example/hello\t1 like\topen\nblog.example/next\t1 like\topen\nmy-post\t2 likes\tclosed\n\
                    next-post\t1 like\topen\n";
    wait_for("the list", || (items(&["list"]) == expected).then_some(()));
    drop(server);

    // Without a server, and after a backup and a restart.
    assert_eq!(items(&["list"]), expected);
    items(&["add", "without-a-server"]);
    let wrong = run(data.path(), &["items", "add", "a,b"]);
    assert!(!wrong.status.success() && errors(&wrong).contains("is not the name of an item"), "{wrong:?}");
    let copy = data_dir();
    let to = copy.path().join("copy");
    printed(run(data.path(), &["backup", to.to_str().expect("a path")]));
    let server = serve(&to);
    assert_eq!(like(&server, "without-a-server", &new_id()).status, 204);
    assert_eq!(like(&server, "spam", &new_id()).status, 404);
    let listed: serde_json::Value =
        serde_json::from_str(&printed(run(&to, &["items", "list", "--json"]))).expect("JSON");
    assert_eq!(listed["door"], "closed");
    assert_eq!(listed["items"][0]["item"], "blog.example/hello");
    printed(run(&to, &["items", "open"]));
    assert_eq!(like(&server, "spam", &new_id()).status, 204);
}

#[test]
fn counts_from_elsewhere_are_imported_once() {
    let data = data_dir();
    let import = |source: &str, lines: &str| {
        let output = run_with(data.path(), &["items", "import", "--source", source], lines);
        (output.status.success(), errors(&output))
    };
    let said = |lines: &str| import("claps", lines).1;
    assert_eq!(
        said("item,count\nmy-post,1500\nblog.example/b,3\n"),
        "1503 likes added to 2 items, 0 were there before\n"
    );
    assert_eq!(said("my-post,1500\n"), "0 likes added to 1 item, 1500 were there before\n");
    let server = serve(data.path());
    let mut live = server.live("/embed/v1/my-post/live");
    assert_eq!(next(&mut live), "1500");
    assert_eq!(said("{\"item\":\"my-post\",\"count\":1502}\n"), "2 likes added to 1 item, 1500 were there before\n");
    assert_eq!(next(&mut live), "1502");
    assert_eq!(import("other", "my-post,1\n").1, "1 like added to 1 item, 0 were there before\n");
    assert_eq!(next(&mut live), "1503");
    assert_eq!(counts(&server, "my-post,blog.example%2Fb"), json!({ "my-post": 1503, "blog.example/b": 3 }));
    for (lines, why) in [
        ("new,1\nnew\n", "Line 2: \"new\" is not `item,count`."),
        ("new,1\nnew,2\n", "Line 2: new has a line already"),
        ("new,1\na,b,2\n", "Line 2: \"a,b\" is not the name of an item"),
        ("new,1.200\nother,5\n", "Line 1: \"1.200\" is not a count"),
        ("new,99999999\n", "Line 1: 99999999 are more likes than"),
    ] {
        let (ok, said) = import("claps", lines);
        assert!(!ok && said.contains(why) && said.contains("Nothing was stored."), "{said}");
    }
    assert_eq!(counts(&server, "new"), json!({ "new": 0 }));
}

#[test]
fn what_has_to_do_with_embedding_is_under_the_base_path_too() {
    let data = data_dir();
    let flags = ["--listen", "127.0.0.1:0", "--base-path", "/likes", "--embed", SITE];
    let server = Server::start_with(data.path(), &flags);
    let answer = server.post_with("/likes/embed/v1/a/likes", &[("origin", SITE), ("accept", "application/json")], "");
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(server.get("/likes/embed/v1/counts?items=a").json(), json!({ "a": 1 }));
    assert_eq!(server.get("/likes/embed.js").status, 200);
    assert_eq!(server.get("/embed.js").status, 404);
}

#[test]
fn a_site_is_said_as_an_origin_and_a_hub_alone_embeds_nothing() {
    let data = data_dir();
    for (flags, why) in [
        (&["serve", "--embed", "https://blog.example/"][..], "write https://blog.example"),
        (&["serve", "--embed", "blog.example"], "is not the origin of a site"),
        (&["hub", "--embed", SITE], "unexpected argument '--embed'"),
    ] {
        let output = run(data.path(), flags);
        assert!(output.status.code() == Some(2) && errors(&output).contains(why), "{output:?}");
    }
    let mut command = likewise();
    command
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("LIKEWISE_EMBED", "https://a.example, https://blog.example,");
    let server = Server::spawn(command, data.path());
    assert_eq!(like(&server, "a", &new_id()).status, 204);
}
