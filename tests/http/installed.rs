//! What makes a page installable, and what its service worker is told.

use serde_json::json;

use crate::common::{Server, data_dir};

const PUBLIC: &str = "likes.example";

#[test]
fn every_store_has_a_manifest_and_looking_makes_nothing() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--base-path", "/app"]);
    for (base, name, short) in [("/app", "Likewise", "Likewise"), ("/app/s/work", "work · Likewise", "work")] {
        let page = server.get(&format!("{base}/"));
        let address = page.between("<link rel=\"manifest\" href=\"", "\"");
        assert_eq!(address, format!("{base}/manifest.webmanifest"));
        let answer = server.get(address);
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/manifest+json"));
        let manifest = answer.json();
        let home = format!("{base}/");
        for (field, expected) in [
            ("id", &*home),
            ("name", name),
            ("short_name", short),
            ("start_url", &home),
            ("scope", &home),
            ("display", "standalone"),
            ("background_color", "#fbf5ec"),
        ] {
            assert_eq!(manifest[field], expected, "{base} {field}");
        }
        let icons = manifest["icons"].as_array().expect("icons");
        let sizes: Vec<_> = icons.iter().map(|icon| (&icon["sizes"], &icon["purpose"])).collect();
        let expected = [("any", "any"), ("192x192", "any"), ("512x512", "any"), ("512x512", "maskable")];
        assert_eq!(json!(sizes), json!(expected));
        for icon in icons {
            let [src, kind] = ["src", "type"].map(|field| icon[field].as_str().expect("a text"));
            let file = server.ask(&format!("GET {src} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
            assert_eq!((file.status, file.header("content-type")), (200, kind), "{icon}");
        }
    }
    assert!(!server.store("work").exists());
}

#[test]
fn the_service_worker_has_the_base_path_as_its_scope_and_every_answer_has_our_mark() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--base-path", "/app"]);
    assert!(server.get("/app/").body.contains("data-keeper=\"/app/sw.js?app=likewise&amp;title=Likewise\""));
    let worker = server.get("/app/sw.js");
    assert_eq!((worker.status, worker.header("cache-control")), (200, "no-cache"));
    assert!(worker.header("content-type").starts_with("text/javascript"));
    assert!(worker.header("content-security-policy").contains("manifest-src 'self'"));
    for path in
        ["/app/", "/app", "/app/sw.js", "/app/nowhere", "/elsewhere", "/app/healthz", "/app/status", "/app/s/work"]
    {
        assert_eq!(server.get(path).header("likewise-app"), "likewise", "{path}");
    }
    assert_eq!(server.post("/app/likes", "id=1").header("likewise-app"), "likewise");
}

#[test]
fn strangers_can_install_the_page_and_see_nothing_of_the_hub() {
    let data = data_dir();
    let upstream = "http://127.0.0.1:9";
    let token = data.path().join("token");
    std::fs::write(&token, "lw_0").expect("a file");
    let flags = ["--listen", "127.0.0.1:0", "--allow-host", PUBLIC, "--public", "--local-page", "--upstream", upstream];
    let flags: Vec<_> = flags.into_iter().chain(["--token-file", token.to_str().expect("a path")]).collect();
    let server = Server::start_with(data.path(), &flags);
    let host = [("Host", PUBLIC)];
    for path in ["/manifest.webmanifest", "/sw.js"] {
        assert_eq!(server.get_with(path, &host).status, 200, "{path}");
    }
    let page = server.get_with("/", &host);
    assert!(page.body.contains("id=\"status\"") && !page.body.contains(upstream), "{}", page.body);
    assert!(!page.body.contains("<details") && !page.body.contains("sync-now"), "{}", page.body);
    let own = server.get("/");
    assert!(own.body.contains(&format!("<code>{upstream}</code>")), "{}", own.body);

    let refused = server.post_with("/sync-now", &[("Host", PUBLIC), ("Accept", "application/json")], "");
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("owner-only")));
    let foreign = [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")];
    assert_eq!(server.post_with("/sync-now", &foreign, "").status, 403);
    let tried = server.post("/sync-now", "");
    assert_eq!((tried.status, tried.header("location")), (303, "/"));
    assert_eq!(server.post_with("/s/work/sync-now", &[("Accept", "application/json")], "").status, 204);

    // The stream tells each what their page does.
    let mut theirs = server.live_under(PUBLIC, "/live");
    let mut ours = server.live("/live");
    for (stream, is_ours) in [(&mut theirs, false), (&mut ours, true)] {
        let status = std::iter::from_fn(|| stream.next()).find(|fragment| fragment.contains("id=\"status\""));
        assert_eq!(status.expect("a status").contains(upstream), is_ours);
    }
}

#[test]
fn without_a_hub_there_is_nothing_to_sync_now() {
    let data = data_dir();
    let server = Server::start(data.path());
    let refused = server.post_with("/sync-now", &[("Accept", "application/json")], "");
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("no-upstream")));
}
