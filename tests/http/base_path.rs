//! `--base-path`: the whole program under a path of a site.

use std::collections::BTreeSet;

use likewise::axum::Router;
use likewise::axum::routing::get;
use likewise::{Options, Render};

use crate::app::{Board, board};
use crate::client::{Answer, new_id};
use crate::common::{Server, data_dir, errors, printed, run, run_with};

const BASE: &str = "/tools/likes";

fn serve(data: &std::path::Path, flags: &[&str]) -> Server {
    Server::start_with(data, &[&["--listen", "127.0.0.1:0", "--base-path", BASE], flags].concat())
}

/// The addresses in a page, of links, forms, files and what the script is told.
fn addresses(page: &str) -> BTreeSet<&str> {
    let names = [" href=\"", " src=\"", " action=\"", " formaction=\"", " data-base=\""];
    let after = |name| page.split(name).skip(1).map(|rest| rest.split('"').next().unwrap());
    names.into_iter().flat_map(after).collect()
}

/// Checks that a page knows no address outside the base path, and that its files are there.
fn assert_under_base(server: &Server, page: &Answer) {
    let all = addresses(&page.body);
    assert!(all.len() > 3, "{all:?}");
    for address in all {
        let rest = address.strip_prefix(BASE).unwrap_or_else(|| panic!("{address} in {}", page.body));
        assert!(rest.is_empty() || rest.starts_with('/'), "{address}");
        if rest.starts_with("/static/") {
            let file = server.get(address);
            assert_eq!(file.status, 200, "{address}");
            assert!(!file.body.contains("\"/static") && !file.body.contains("from \"/"), "{address}");
        }
    }
}

#[test]
fn everything_is_under_the_base_path() {
    let data = data_dir();
    let server = serve(data.path(), &[]);
    let at = |path: &str| format!("{BASE}{path}");

    for (home, likes) in [(at("/"), at("/likes")), (at("/s/work/"), at("/s/work/likes"))] {
        let page = server.get(&home);
        assert_eq!(page.status, 200, "{home}");
        assert_under_base(&server, &page);
        assert!(page.body.contains(&format!("data-base=\"{}\"", home.trim_end_matches('/'))), "{}", page.body);
        assert_eq!(page.body.contains("work"), home.contains("work"), "only another store shows its name");
        assert!(page.between("<form", "</form>").contains(&format!("action=\"{likes}\"")), "{}", page.body);
        let answer = server.post(&likes, &format!("id={}", new_id()));
        assert_eq!((answer.status, answer.header("location")), (303, &*home));
        // Back to the page that posted; never to the address of the form.
        for (page, expected) in [(home.clone() + "?q=1", home.clone() + "?q=1"), (likes.clone(), home.clone())] {
            let referer = format!("{}{page}", server.url);
            let host = server.url.strip_prefix("http://").unwrap();
            let answer = server.post_with(&likes, &[("referer", &referer), ("host", host)], "");
            assert_eq!((answer.status, answer.header("location")), (303, &*expected));
        }
        let answer = server.get(&(home.clone() + "?x"));
        assert_eq!((answer.status, answer.header("location")), (303, &*home));
        let mut live = server.live(&(home.clone() + "live"));
        live.until(3);
        let status = server.get(&(home.clone() + "status"));
        assert_eq!((status.status, status.json()["count"].as_u64()), (200, Some(3)));
        for path in ["healthz", "metrics"] {
            assert_eq!(server.get(&(home.clone() + path)).status, 200, "{path}");
        }
        let lost = server.get(&(home.clone() + "nowhere"));
        assert_eq!(lost.status, 404);
        assert_under_base(&server, &lost);
        assert!(lost.body.contains(&format!("class=\"back\" href=\"{home}\"")), "{}", lost.body);
        let refused = server.post(&likes, "id=1&note=x");
        assert_eq!(refused.status, 400);
        assert_under_base(&server, &refused);
    }

    for (path, status, location) in [
        (BASE.to_owned(), 308, at("/")),
        (at("?q"), 308, at("/")),
        (at("/s/work"), 308, at("/s/work/")),
        (at("/favicon.ico"), 307, at("/static/")),
        (at("/static/likes.js"), 307, at("/static/")),
        (at("/static/0123456789ab/likes.js"), 307, at("/static/")),
    ] {
        let answer = server.get(&path);
        assert_eq!(answer.status, status, "{path}");
        let there = answer.header("location");
        assert!(there.starts_with(&location), "{path} leads to {there}");
        assert_eq!(server.get(there).status, 200, "{there}");
    }
    assert_eq!(server.get(&at("/sync/v1/likes/events")).json()["code"], "unauthorized");
    assert_eq!(server.get(&at("/control/v1/likes/export")).status, 401);
}

#[test]
fn outside_the_base_path_nothing_is_but_health() {
    let data = data_dir();
    let server = serve(data.path(), &[]);
    for path in [
        "/",
        "/likes",
        "/live",
        "/status",
        "/metrics",
        "/adopt",
        "/s/work/",
        "/s/work/healthz",
        "/static/likewise.js",
        "/favicon.ico",
        "/sync/v1/likes/events",
        "/control/v1/likes/export",
        "/tools",
        "/tools/",
        "/tools/like",
        "/tools/likesome/",
        "/tools//likes/",
        "/Tools/likes/",
        "/tools/%6cikes/",
        "/tools/likes/../../",
    ] {
        for answer in [server.get(path), server.post(path, "")] {
            assert_eq!(answer.status, 404, "{path}: {answer:?}");
            assert!(answer.body.contains(&format!("{BASE}/")) || path.contains(BASE), "{path}: {answer:?}");
            assert!(!answer.header("content-security-policy").is_empty(), "{path}");
        }
    }
    assert_eq!(server.get("/healthz").body, "ok\n");
    assert_under_base(&server, &server.get("/"));
    for path in ["/likes", "/status", "/sync/v1/likes/events"] {
        let answer = server.get_with(path, &[("accept", "application/json")]);
        assert_eq!(answer.json()["code"], "outside-base-path", "a page keeps its posts and tries again");
    }
    assert!(!server.store("likes").exists());
}

#[test]
fn the_guard_judges_the_path_behind_the_base_path() {
    let data = data_dir();
    let flags = ["--allow-host", "hub.example", "--local-page"];
    let server = serve(data.path(), &flags);
    let at = |path: &str| format!("{BASE}{path}");
    let code = |answer: Answer| answer.json()["code"].as_str().map(str::to_owned).unwrap();
    let json = ("accept", "application/json");
    for path in ["/live", "/status", "/metrics", "/s/work/live", "/sync/v1/likes/events"] {
        let answer = server.get_with(&at(path), &[("sec-fetch-site", "cross-site"), json]);
        assert_eq!(code(answer), "cross-site", "{path}");
    }
    assert_eq!(code(server.post_with(&at("/likes"), &[("origin", "http://evil.example"), json], "")), "cross-site");
    for path in ["/", "/likes", "/status", "/metrics", "/live"] {
        assert_eq!(code(server.get_with(&at(path), &[("host", "hub.example"), json])), "not-public", "{path}");
        assert_eq!(code(server.get_with(&at(path), &[("host", "evil.example"), json])), "host-not-allowed", "{path}");
        assert_eq!(code(server.get_with(path, &[("host", "evil.example"), json])), "host-not-allowed", "{path}");
    }
    let hub = ("host", "hub.example");
    assert_eq!(code(server.get_with(&at("/control/v1/likes/export"), &[hub, json])), "loopback-only");
    assert_eq!(code(server.get_with(&at("/sync/v1/likes/events"), &[hub, json])), "unauthorized");
    assert_eq!(code(server.get_with("/sync/v1/likes/events", &[hub, json])), "outside-base-path");
    for path in ["/healthz".to_owned(), at("/healthz")] {
        for host in ["hub.example", "192.0.2.1"] {
            assert_eq!(server.get_with(&path, &[("host", host)]).status, 200, "{path} under {host}");
        }
    }
    let long = "x".repeat(200_000);
    assert_eq!(code(server.post_with(&at("/likes"), &[json], &long)), "malformed-form");
}

#[test]
fn commands_find_the_process_under_its_base_path() {
    let data = data_dir();
    let server = serve(data.path(), &[]);
    server.like(BASE, &new_id());
    assert_eq!(server.url.matches('/').count(), 2, "the ready line names the address alone");
    assert!(server.log().contains(&format!("{}{BASE}/", server.url)), "{}", server.log());
    let lock = std::fs::read_to_string(data.path().join("lock")).expect("the lock");
    assert!(lock.contains(&format!("\"{}{BASE}\"", server.url)), "{lock}");
    let done = |arguments: &[&str]| printed(run(data.path(), arguments));
    assert!(done(&["status"]).contains("likes      1"));
    for url in [format!("{}{BASE}", server.url), format!("{}{BASE}/", server.url)] {
        assert!(done(&["status", "--url", &url]).contains("likes      1"));
    }
    let wrong = errors(&run(data.path(), &["status", "--url", &server.url]));
    assert!(wrong.contains(&format!("Everything of this program is under {BASE}/.")), "{wrong}");
    let export = done(&["export"]);
    assert_eq!(export.lines().count(), 1);
    done(&["verify"]);
    done(&["set-aside", "list"]);
    let line = format!(r#"{{"id":"{}","name":"LikeAdded"}}"#, new_id());
    printed(run_with(data.path(), &["import"], &line));
    let copy = data.path().join("copy");
    done(&["backup", copy.to_str().unwrap()]);
    assert!(done(&["status", "--store", "likes"]).contains("likes      2"));
}

#[test]
fn a_hub_alone_is_under_its_base_path() {
    let data = data_dir();
    let mut command = crate::common::likewise();
    command.args(["hub", "--listen", "127.0.0.1:0"]).env("LIKEWISE_BASE_PATH", " /hub/ ");
    let server = Server::spawn(command, data.path());
    for path in ["/hub/healthz", "/hub/status", "/hub/metrics", "/hub/s/todo/status", "/healthz"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/hub/sync/v1/todo/events").json()["code"], "unauthorized");
    assert_eq!(server.get("/hub/").json()["code"], "not-found");
    for path in ["/", "/status", "/sync/v1/todo/events"] {
        assert_eq!(server.get(path).json()["code"], "outside-base-path", "{path}");
    }
}

#[test]
fn what_is_no_base_path_is_refused_at_start() {
    let data = data_dir();
    for wrong in ["likes", "/a//b", "/a/../b", "/a?b", "/a b", "http://example.org/likes", "//"] {
        let output = run(data.path(), &["serve", "--listen", "127.0.0.1:0", "--base-path", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        let said = errors(&output);
        assert!(said.contains("is not a base path: write it like `/likes`"), "{said}");
    }
    // The whole site.
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--base-path", "/"]);
    assert_eq!(server.get("/").status, 200);
}

/// A route of an app's own that makes addresses.
async fn links(render: Render) -> String {
    format!("{} {} {}", render.base(), render.to("add"), render.asset("app.css"))
}

#[test]
fn an_app_is_under_the_base_path_with_its_own_routes_its_cookie_and_what_it_refuses() {
    let app = || board().asset("board.css", "text/css", "h1 { color: teal }");
    let app = || app().routes(Router::new().route("/links", get(links)));
    let options = |base: &str| Options { base_path: base.parse().unwrap(), ..Options::default() };
    let one = Board::start_as(app(), options("/one")).unwrap();
    assert_eq!(one.post("/one/add", &[], "title=Milk").header("location"), "/one/");
    assert_eq!(one.get("/one/titles").body, "Milk");
    assert_eq!(one.get("/titles").status, 404);
    for (path, base) in [("/one/links", "/one"), ("/one/s/work/links", "/one/s/work")] {
        let links = one.get(path).body;
        let expected = format!("{base} {base}/add /one/static/");
        assert!(links.starts_with(&expected) && links.ends_with("/app.css"), "{links}");
    }
    let cookie = one.post("/one/see", &[], "note=a").header("set-cookie").to_owned();
    assert!(cookie.starts_with("board-visitor=") && cookie.contains("; Path=/one/; "), "{cookie}");

    let refused = one.post("/one/add", &[], "title=no+milk");
    assert_eq!(refused.status, 422, "{refused:?}");
    let action = refused.between("method=\"post\" action=\"", "\"").to_owned();
    assert_eq!(action, "/one/add?back=%2Fone%2F");
    assert_eq!(one.post(&action, &[], "title=some+milk").header("location"), "/one/");
    let lost = one.get("/one/nowhere");
    for address in addresses(&lost.body) {
        assert!(address.starts_with("/one/"), "{address}");
    }
    assert!(lost.body.contains("/board.css"), "{}", lost.body);
}
