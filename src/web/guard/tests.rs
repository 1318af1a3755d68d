//! What the guard lets through, refuses, and bounds.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::Version;
use axum::routing::{any, get, post};
use bytes::Bytes;
use tower::ServiceExt as _;

use super::host::{Authority, Host};
use super::*;
use crate::fuzz::{self, fuzz, outcome};
use crate::sync::{Purpose, TokenFile, Tokens};

const HOST: &str = "localhost:3000";

impl Default for Policy {
    fn default() -> Self {
        Self::of(crate::likes::app().face())
    }
}

/// The routes of the program, with handlers that only count.
struct Site {
    guarded: Guarded,
    handled: Arc<AtomicUsize>,
}

impl Site {
    fn new(policy: Policy) -> Self {
        let handled = Arc::new(AtomicUsize::new(0));
        let count = handled.clone();
        let hit = move || {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready("handled")
        };
        let store = Router::new()
            .route("/", get(hit.clone()))
            .route("/live", get(hit.clone()))
            .route("/status", get(hit.clone()))
            .route("/metrics", get(hit.clone()))
            .route("/healthz", get(hit.clone()))
            .route("/panic", get(panics))
            .route("/likes", post(takes_all));
        let router = store
            .clone()
            .route("/s/{store}/", get(hit.clone()))
            .nest("/s/{store}", store)
            .route("/any", any(hit))
            .route("/sync/v1/{store}/events", get("events").post(takes_all))
            .route("/control/import", get("import").post(takes_all));
        // `key` opens everything to its owner, and `watch` what watchers see.
        let passes = Passes::new(|shown| match shown {
            b"key" => Some(Pass::Owner),
            b"watch" => Some(Pass::Watcher),
            _ => None,
        });
        Self { guarded: protect(router, Policy { passes, ..policy }), handled }
    }

    async fn answer(&self, request: Request) -> Response {
        let never = self.guarded.clone().oneshot(request).await;
        never.unwrap_or_else(|never| match never {})
    }

    fn handled(&self) -> usize {
        self.handled.swap(0, Ordering::Relaxed)
    }
}

async fn panics() -> &'static str {
    panic!("as the test wants")
}

async fn takes_all(body: Bytes) -> String {
    body.len().to_string()
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
    request_from("127.0.0.1:50000", method, uri, headers)
}

fn request_from(peer: &str, method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
    request_between(peer, "192.168.1.1:3000", method, uri, headers)
}

fn request_between(peer: &str, own: &str, method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
    let mut request = Request::builder().method(method).uri(uri);
    for &(name, value) in headers {
        request = request.header(name, value);
    }
    // Commands show the key, unless a test has them show something else.
    if uri.contains("/control/") && !headers.iter().any(|(name, _)| *name == "authorization") {
        request = request.header(KEY.0, KEY.1);
    }
    let mut request = request.body(Body::empty()).expect("a valid request");
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    request.extensions_mut().insert(CameIn::Port { peer: address(peer), own: address(own) });
    request
}

fn with_body(path: &str, headers: &[(&str, &str)], body: Body) -> Request {
    let mut request = request("POST", path, &[&[("host", HOST)], headers].concat());
    *request.body_mut() = body;
    request
}

/// A body without a length, as chunked ones are.
fn pieces(count: usize, size: usize) -> Body {
    let pieces = (0..count).map(move |_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; size])));
    Body::from_stream(futures_util::stream::iter(pieces))
}

fn allowing(hosts: &[&str], public: bool) -> Policy {
    Policy {
        allow_hosts: hosts.iter().map(|host| host.parse().expect("a host")).collect(),
        public,
        ..Policy::default()
    }
}

async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body in memory");
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Pages hide the code, so this asks what only JSON shows.
async fn code(response: Response) -> String {
    let json: serde_json::Value = serde_json::from_str(&text(response).await).expect("problem details");
    json["code"].as_str().expect("a code").to_owned()
}

fn has_security_headers(response: &Response) -> bool {
    let headers = response.headers();
    let complete = SECURITY_HEADERS.iter().all(|(name, value)| headers.get_all(*name).iter().eq([value]));
    let no_cors = !headers.keys().any(|name| name.as_str().starts_with("access-control-"));
    complete && no_cors
}

#[tokio::test]
async fn trust_33_cross_site_writes_and_reads_are_refused() {
    let site = Site::new(Policy::default());
    let fetch_sites: [&[&str]; 8] = [
        &[],
        &["none"],
        &["same-origin"],
        &["same-site"],
        &["cross-site"],
        &[""],
        &["same-origin", "cross-site"],
        &["same-origin", "same-origin"],
    ];
    let origins: [&[&str]; 9] = [
        &[],
        &["http://localhost:3000"],
        &["null"],
        &["http://localhost:3001"],
        &["https://evil.example"],
        &["http://localhost:3000.evil.example"],
        &[""],
        &["http://localhost:3000", "https://evil.example"],
        &["http://localhost:3000", "http://localhost:3000"],
    ];
    let guarded_reads = ["/live", "/status", "/metrics", "/s/work/live", "/s/work/status"];
    let open_reads = ["/", "/healthz", "/s/work/"];
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
        for fetch_site in fetch_sites {
            for origin in origins {
                let mut headers = vec![("host", HOST)];
                headers.extend(fetch_site.iter().map(|site| ("sec-fetch-site", *site)));
                headers.extend(origin.iter().map(|origin| ("origin", *origin)));

                // Programs send neither. A browser's headers have to agree, and it sends each of them once.
                let is_ours = matches!(fetch_site, [] | ["none" | "same-origin"])
                    && matches!(origin, [] | ["http://localhost:3000"]);

                let reads = matches!(method, "GET" | "HEAD");
                let paths = if reads { [&guarded_reads[..], &open_reads].concat() } else { vec!["/any"] };
                for path in paths {
                    let case = format!("{method} {path} {fetch_site:?} {origin:?}");
                    let passes = is_ours || open_reads.contains(&path);
                    let answer = site.answer(request(method, path, &headers)).await;
                    assert!(has_security_headers(&answer), "{case}");
                    if passes {
                        assert_eq!(answer.status(), StatusCode::OK, "{case}");
                    } else {
                        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{case}");
                    }
                    assert_eq!(site.handled(), usize::from(passes), "{case}");
                }
            }
        }
    }
    let foreign = request("GET", "/status", &[("host", HOST), ("sec-fetch-site", "cross-site")]);
    assert_eq!(code(site.answer(foreign).await).await, "cross-site");
    let foreign = request("POST", "/control/import", &[("host", HOST), ("origin", "null")]);
    assert_eq!(code(site.answer(foreign).await).await, "cross-site");
}

const ROUTES: [(&str, &str); 9] = [
    ("GET", "/"),
    ("POST", "/likes"),
    ("GET", "/live"),
    ("GET", "/s/work/status"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("POST", "/sync/v1/likes/events"),
    ("POST", "/control/import"),
    ("GET", "/nothing/here"),
];

#[tokio::test]
async fn trust_34_foreign_hosts_are_refused_on_every_route() {
    let site = Site::new(Policy::default());
    let foreign = [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "evil-localhost",
        "localhost.",
        "localhost.:3000",
        "127.0.0.1.",
        "127.0.0.1.evil.example",
        "foo.localhost",
        "user@localhost",
        "localhost:3000@evil.example",
        "localhost:",
        "localhost:0",
        "localhost:+80",
        "localhost:080",
        "localhost:65536",
        "localhost:80:80",
        "localhost/",
        "localhost, evil.example",
        "localhost evil.example",
        "",
        ":3000",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "128.0.0.1",
        "192.168.1.20",
        "::1",
        "[::1",
        "[::1]x",
        "[::1]3000",
        "[::]",
        "[::2]",
        "[::1%lo]",
        "[::ffff:127.0.0.1]",
        "[localhost]",
        "xn--lcalhost-54a",
    ];
    for (method, path) in ROUTES {
        // What only asks for health may come under any address.
        let is_address =
            |host: &str| Authority::parse(host).is_some_and(|authority| !matches!(authority.host, Host::Name(_)));
        for host in foreign.into_iter().filter(|host| path != "/healthz" || !is_address(host)) {
            let answer = site.answer(request(method, path, &[("host", host)])).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path} {host:?}");
            assert!(has_security_headers(&answer));
            assert!(text(answer).await.contains("--allow-host"));
        }
        let bad = [vec![], vec![("host", HOST), ("host", HOST)], vec![("host", HOST), ("host", "evil.example")]];
        for headers in bad.into_iter().filter(|headers| !headers.is_empty() || path != "/healthz") {
            let answer = site.answer(request(method, path, &headers)).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{method} {path} {headers:?}");
        }
        let absolute = [
            ("http://evil.example", HOST, StatusCode::FORBIDDEN),
            ("http://localhost:3000", "evil.example", StatusCode::FORBIDDEN),
            ("http://localhost.", "localhost.", StatusCode::FORBIDDEN),
            ("http://a@localhost:3000", HOST, StatusCode::FORBIDDEN),
            ("http://localhost:3001", HOST, StatusCode::BAD_REQUEST),
            ("http://127.0.0.1:3000", HOST, StatusCode::BAD_REQUEST),
        ];
        for (target, host, status) in absolute {
            let uri = format!("{target}{path}");
            let answer = site.answer(request(method, &uri, &[("host", host)])).await;
            assert_eq!(answer.status(), status, "{method} {uri} {host:?}");
        }
    }
    assert_eq!(site.handled(), 0);
}

#[tokio::test]
async fn loopback_names_open_everything_to_local_peers_only() {
    let site = Site::new(Policy::default());
    for host in [
        "localhost",
        "localhost:3000",
        "LocalHost:80",
        "127.0.0.1",
        "127.8.9.1:65535",
        "[::1]",
        "[::1]:3000",
        "[0:0::1]",
    ] {
        for peer in ["127.0.0.1:1", "127.3.4.5:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            for path in ["/", "/live", "/control/import"] {
                let answer = site.answer(request_from(peer, "GET", path, &[("host", host)])).await;
                assert_eq!(answer.status(), StatusCode::OK, "{path} {host} {peer}");
            }
        }
        for peer in ["192.168.1.20:1", "[fd00::2]:1", "0.0.0.0:1"] {
            let answer = site.answer(request_from(peer, "GET", "/", &[("host", host)])).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{host} {peer}");
        }
    }
    let absolute = request("GET", "http://LOCALHOST:3000/", &[("host", HOST)]);
    assert_eq!(site.answer(absolute).await.status(), StatusCode::OK);

    let mut unknown = request("GET", "/", &[("host", HOST)]);
    unknown.extensions_mut().remove::<CameIn>();
    assert_eq!(site.answer(unknown).await.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_peer_with_our_own_address_is_local_if_it_shows_the_key_and_names_a_loopback_host() {
    let site = Site::new(Policy::default());
    for (peer, own, host, status) in [
        ("192.0.2.2:5000", "192.0.2.2:3000", "localhost", StatusCode::OK),
        ("[::ffff:192.0.2.2]:5000", "192.0.2.2:3000", "127.0.0.1:3000", StatusCode::OK),
        ("[fd00::2]:5000", "[fd00::2]:3000", "[::1]:3000", StatusCode::OK),
        ("192.0.2.3:5000", "192.0.2.2:3000", "localhost", StatusCode::FORBIDDEN),
        ("[fd00::3]:5000", "[fd00::2]:3000", "localhost", StatusCode::FORBIDDEN),
        ("192.0.2.2:5000", "192.0.2.2:3000", "192.0.2.2:3000", StatusCode::FORBIDDEN),
        ("192.0.2.2:5000", "192.0.2.2:3000", "evil.example", StatusCode::FORBIDDEN),
    ] {
        for path in ["/status", "/control/import"] {
            let answer = site.answer(request_between(peer, own, "GET", path, &[("host", host), KEY])).await;
            assert_eq!(answer.status(), status, "{path} {host} {peer} {own}");
            // What forwards a container's port connects from there, for everybody.
            let anybody = request_between(peer, own, "GET", path, &[("host", host), WATCH]);
            assert_eq!(site.answer(anybody).await.status(), StatusCode::FORBIDDEN, "{path} {host} {peer} {own}");
        }
    }
}

#[tokio::test]
async fn an_allowed_host_opens_sync_and_the_page_only_when_public() {
    let hub = Site::new(allowing(&["Hub.example", "10.0.0.7:8443"], false));
    let open = Site::new(allowing(&["hub.example"], true));
    let ask = |path, host| request_from("10.0.0.9:1", "GET", path, &[("host", host)]);
    for host in ["hub.example", "HUB.EXAMPLE:443", "10.0.0.7:8443"] {
        for (path, hub_status) in [
            ("/sync/v1/likes/events", StatusCode::OK),
            ("/healthz", StatusCode::OK),
            ("/", StatusCode::FORBIDDEN),
            ("/status", StatusCode::FORBIDDEN),
            ("/s/work/healthz", StatusCode::FORBIDDEN),
            ("/s/sync/", StatusCode::FORBIDDEN),
            ("/control/import", StatusCode::FORBIDDEN),
        ] {
            let answer = hub.answer(ask(path, host)).await;
            assert_eq!(answer.status(), hub_status, "{path} {host}");
        }
    }
    for host in ["10.0.0.7", "10.0.0.7:8444", "sub.hub.example", "localhost"] {
        let answer = hub.answer(ask("/sync/v1/likes/events", host)).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{host}");
    }
    for path in ["/", "/live", "/s/work/status"] {
        let answer = open.answer(ask(path, "hub.example")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    let refused = |answer| async { code(answer).await };
    let answer = open.answer(ask("/control/import", "hub.example")).await;
    assert_eq!(refused(answer).await, "loopback-only");
    let answer = hub.answer(ask("/status", "hub.example")).await;
    assert_eq!(refused(answer).await, "not-public");
    let answer = hub.answer(ask("/status", "evil.example")).await;
    assert_eq!(refused(answer).await, "host-not-allowed");
}

/// A hub that strangers reach through a proxy on its machine.
fn behind_a_proxy(public: bool, local_page: bool) -> Site {
    Site::new(Policy { local_page, ..allowing(&["hub.example"], public) })
}

const KEY: (&str, &str) = ("authorization", "Bearer key");
const WATCH: (&str, &str) = ("authorization", "Bearer watch");

#[tokio::test]
async fn commands_without_the_key_are_refused_before_their_body_is_read() {
    for site in [Site::new(Policy::default()), behind_a_proxy(true, true), behind_a_proxy(false, false)] {
        for shown in ["", "Bearer", "Bearer ", "Bearer watch", "Bearer key2", "Basic key"] {
            // The body has no end.
            let body =
                Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(b"x"))));
            let request = with_body("/control/import", &[("authorization", shown)], body);
            assert_eq!(site.answer(request).await.status(), StatusCode::UNAUTHORIZED, "{shown:?}");
        }
    }
}

#[tokio::test]
async fn trust_70_with_an_allowed_host_loopback_names_open_sync_and_what_shows_the_key() {
    let hub = behind_a_proxy(true, false);
    let local = behind_a_proxy(false, true);
    for (method, path) in ROUTES {
        let request = |headers: &[(&str, &str)]| request(method, path, &[&[("host", "localhost")], headers].concat());
        let is_open = path.starts_with("/sync/") || path == "/healthz" || path.starts_with("/control/");
        for shown in
            [&[][..], &[WATCH], &[("authorization", "Bearer ")], &[("authorization", "Basic key")], &[KEY, KEY]]
        {
            let answer = hub.answer(request(shown)).await;
            assert_eq!(answer.status() != StatusCode::FORBIDDEN, is_open, "{method} {path} {shown:?}");
        }
        for answer in [hub.answer(request(&[KEY])).await, local.answer(request(&[])).await] {
            assert_ne!(answer.status(), StatusCode::FORBIDDEN, "{method} {path}");
        }
    }
    let refused = request("GET", "/status", &[("host", "127.0.0.1:3000")]);
    assert_eq!(code(hub.answer(refused).await).await, "no-local-page");
}

#[tokio::test]
async fn trust_70_nobody_is_the_owner_for_asking_through_a_named_proxy() {
    let named = Policy { proxies: vec!["127.0.0.1".parse().expect("an address")], ..Policy::default() };
    let behind = Site::new(named.clone());
    for (method, path) in ROUTES {
        let is_open = path.starts_with("/sync/") || path == "/healthz" || path.starts_with("/control/");
        let ask = |peer: &str| request_between(peer, "127.0.0.1:3000", method, path, &[("host", "localhost")]);
        assert_eq!(behind.answer(ask("127.0.0.1:50000")).await.status() != StatusCode::FORBIDDEN, is_open, "{path}");
        assert_ne!(behind.answer(ask("[::1]:50000")).await.status(), StatusCode::FORBIDDEN, "{path}");
    }
    let with_key = request("GET", "/status", &[("host", "localhost"), KEY]);
    assert_eq!(behind.answer(with_key).await.status(), StatusCode::OK);
    let local = Site::new(Policy { local_page: true, ..named });
    assert_eq!(local.answer(request("GET", "/", &[("host", "localhost")])).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn trust_70_a_proxy_that_leaves_the_name_out_opens_nothing() {
    let lone = Site::new(Policy::default());
    let local = behind_a_proxy(true, true);
    for site in [&lone, &local] {
        for (method, path) in ROUTES {
            for sign in ["forwarded", "via", "x-real-ip", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"] {
                let answer = site.answer(request(method, path, &[("host", "127.0.0.1:3000"), (sign, "x"), KEY])).await;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path} {sign}");
                assert!(text(answer).await.contains("proxy_set_header Host $http_host"), "{sign}");
            }
            let mut old = request(method, path, &[("host", "127.0.0.1:3000")]);
            *old.version_mut() = Version::HTTP_10;
            assert_eq!(site.answer(old).await.status(), StatusCode::FORBIDDEN, "{method} {path}");
        }
        assert_eq!(site.handled(), 0);
    }
    // Unless the owner says that there is no proxy. A header says otherwise.
    let without = Site::new(Policy { local_page: true, ..Policy::default() });
    for (headers, expected) in [(&[][..], StatusCode::OK), (&[("via", "1.0 nginx")], StatusCode::FORBIDDEN)] {
        let mut old = request("GET", "/", &[&[("host", "127.0.0.1:3000")], headers].concat());
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(without.answer(old).await.status(), expected, "{headers:?}");
    }
    // Under a name of ours a proxy may say what it likes.
    let mut named = request("GET", "/", &[("host", "hub.example"), ("via", "1.0 nginx"), ("x-forwarded-for", "x")]);
    *named.version_mut() = Version::HTTP_10;
    assert_eq!(local.answer(named).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn strangers_see_what_is_on_the_page_and_watchers_see_more() {
    let (open, hub) = (behind_a_proxy(true, false), behind_a_proxy(false, false));
    let ask = async |site: &Site, path: &str, shown: &[(&str, &str)]| {
        let headers = [&[("host", "hub.example")], shown].concat();
        site.answer(request_from("10.0.0.9:1", "GET", path, &headers)).await
    };
    for path in ["/metrics", "/s/work/metrics", "/adopt", "/s/work/adopt", "/history", "/s/work/history", "/stores"] {
        let answer = ask(&open, path, &[]).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        assert!(text(answer).await.contains("for the owner"), "{path}");
        assert_eq!(
            ask(&open, path, &[KEY]).await.status(),
            StatusCode::FORBIDDEN,
            "{path}: the key is for this machine"
        );
    }
    for site in [&open, &hub] {
        for path in ["/status", "/metrics", "/s/work/status", "/s/work/metrics"] {
            assert_eq!(ask(site, path, &[WATCH]).await.status(), StatusCode::OK, "{path}");
        }
        assert_eq!(ask(site, "/control/import", &[WATCH]).await.status(), StatusCode::FORBIDDEN);
    }
    assert_eq!(ask(&hub, "/", &[WATCH]).await.status(), StatusCode::FORBIDDEN);
    let seen = async |caller: &Policy, headers: &[(&str, &str)]| {
        check(caller, &request_from("10.0.0.9:1", "GET", "/status", headers)).map(|caller| caller.sees()).ok()
    };
    let policy = Policy { passes: Passes::new(|_| Some(Pass::Watcher)), ..allowing(&["hub.example"], true) };
    assert_eq!(seen(&policy, &[("host", "hub.example")]).await, Some(Sees::ThePage));
    assert_eq!(seen(&policy, &[("host", "hub.example"), WATCH]).await, Some(Sees::All));
}

#[tokio::test]
async fn a_paired_browser_gets_the_page_and_nothing_that_is_the_owners() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = TokenFile::in_dir(dir.path());
    let add = |name: &str, purpose| file.add(name.parse().expect("a name"), purpose).expect("a token");
    let (phone, laptop) = (add("phone", Purpose::Browser), add("laptop", Purpose::Sync));
    let tokens = Tokens::follow(file.clone(), Default::default()).expect("tokens");
    let policy = allowing(&["hub.example"], false);
    let cookies = PairingCookies::new(&policy.face, Some(&"https://hub.example".parse().expect("an address")));
    let asked = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("hub.example"))]);
    let named = |token: &str| {
        let set = cookies.of(&asked).set(token).expect("a cookie");
        set.to_str().expect("text").split(';').next().expect("a value").to_owned()
    };
    let (phones, laptops) = (named(&phone), named(&laptop));
    assert!(phones.starts_with("__Host-likewise-paired=lw_"), "{phones}");
    let site = Site::new(Policy { browsers: Some(Browsers { tokens, cookies: cookies.clone() }), ..policy });
    let ask = async |peer: &str, method: &str, path: &str, host: &str, shown: &[(&str, &str)]| {
        let headers = [&[("host", host), ("accept", "application/json")], shown].concat();
        site.answer(request_from(peer, method, path, &headers)).await
    };
    let out = "10.0.0.9:1";
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/live"),
        ("GET", "/status"),
        ("GET", "/s/work/"),
        ("GET", "/s/work/live"),
        ("POST", "/likes"),
    ] {
        let answer = ask(out, method, path, "hub.example", &[("cookie", &format!("a=b; {laptops}; {phones}"))]).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let keeps = answer.headers().get("set-cookie").map(|it| it.to_str().expect("text").to_owned());
        assert_eq!(keeps.is_some(), path.ends_with('/'), "a page renews the cookie: {path}");
        assert!(keeps.is_none_or(|it| it.starts_with(&phones) && it.ends_with("; HttpOnly; SameSite=Lax; Secure")));
        let bare = phones.trim_start_matches("__Host-").to_owned();
        for (cookie, expected) in [
            (laptops.clone(), "not-paired"),
            (phones[..phones.len() - 1].to_owned(), "not-paired"),
            (bare, "not-public"),
            (format!("{laptops}; {laptops}"), "not-paired"),
            (String::new(), "not-public"),
        ] {
            let answer = ask(out, method, path, "hub.example", &[("cookie", &cookie)]).await;
            assert_eq!(code(answer).await, expected, "{path} {cookie}");
        }
        let bearer = format!("Bearer {phone}");
        let answer = ask(out, method, path, "hub.example", &[("authorization", &bearer)]).await;
        assert_eq!(code(answer).await, "not-public", "{path}");
        // The name was passed on wrongly by a proxy, and the cookie shows who it is.
        let answer = ask("127.0.0.1:1", method, path, "localhost", &[("cookie", &phones)]).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(code(ask("127.0.0.1:1", method, path, "localhost", &[]).await).await, "no-local-page");
    }
    for path in ["/metrics", "/s/work/metrics", "/adopt", "/s/work/adopt"] {
        for (peer, host) in [(out, "hub.example"), ("127.0.0.1:1", "localhost")] {
            let answer = ask(peer, "GET", path, host, &[("cookie", &phones)]).await;
            assert_eq!(code(answer).await, "owner-only", "{path} {host}");
        }
    }
    let answer = ask(out, "GET", "/control/import", "hub.example", &[("cookie", &phones)]).await;
    assert_eq!(code(answer).await, "loopback-only");
    let foreign = [("cookie", phones.as_str()), ("sec-fetch-site", "cross-site")];
    assert_eq!(code(ask(out, "POST", "/likes", "hub.example", &foreign).await).await, "cross-site");
    file.revoke(&"phone".parse().expect("a name")).expect("revoked");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    while ask(out, "GET", "/", "hub.example", &[("cookie", &phones)]).await.status() == StatusCode::OK {
        assert!(std::time::Instant::now() < deadline, "a revoked browser gets the page");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_page_behind_a_pairing_link_is_for_everybody_and_other_sites_cant_press_its_button() {
    let hub = behind_a_proxy(false, false);
    for path in ["/pair", "/static/0123456789ab/app.css", "/favicon.ico"] {
        for (peer, host) in [("10.0.0.9:1", "hub.example"), ("127.0.0.1:1", "localhost")] {
            let answer = hub.answer(request_from(peer, "GET", path, &[("host", host)])).await;
            // There is none here. What matters is that the guard lets the request through.
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path} {host}");
        }
    }
    for shown in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example"), ("origin", "null")] {
        let headers = [("host", "hub.example"), ("accept", "application/json"), shown];
        let answer = hub.answer(request_from("10.0.0.9:1", "POST", "/pair", &headers)).await;
        assert_eq!(code(answer).await, "cross-site", "{shown:?}");
    }
}

#[tokio::test]
async fn a_health_check_needs_no_name() {
    let hub = behind_a_proxy(false, false);
    let ask = async |method: &str, path: &str, host: Option<&str>| {
        let host: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
        hub.answer(request_from("10.0.0.9:1", method, path, &host)).await.status().as_u16()
    };
    for host in [None, Some("10.0.0.7"), Some("10.0.0.7:3000"), Some("[fd00::1]")] {
        assert_eq!(ask("GET", "/healthz", host).await, 200, "{host:?}");
        assert_eq!(ask("HEAD", "/healthz", host).await, 200, "{host:?}");
        assert!(ask("GET", "/status", host).await >= 400, "{host:?}");
        assert!(ask("GET", "/s/work/healthz", host).await >= 400, "{host:?}");
    }
    assert_eq!(ask("GET", "/healthz", Some("evil.example")).await, 403);
}

#[tokio::test]
async fn a_proxy_may_drop_the_port_if_the_browser_vouches_for_the_page() {
    let site = Site::new(allowing(&["hub.example", "other.example:8443"], true));
    let post = async |host: &str, origin: &str, site_header: Option<&str>| {
        let mut headers = vec![("host", host), ("origin", origin)];
        headers.extend(site_header.map(|site| ("sec-fetch-site", site)));
        site.answer(request_from("10.0.0.9:1", "POST", "/any", &headers)).await
    };
    let same = Some("same-origin");
    for (host, origin, fetch_site, status) in [
        ("hub.example", "https://hub.example:8443", same, 200),
        ("hub.example", "https://hub.example:8443", None, 403),
        ("hub.example", "https://hub.example:8443", Some("none"), 403),
        ("hub.example", "https://hub.example:8443", Some("same-site"), 403),
        ("hub.example", "https://other.example:8444", same, 403),
        ("hub.example", "https://evil.example", same, 403),
        ("hub.example", "https://hub.example.evil.example", same, 403),
    ] {
        let answer = post(host, origin, fetch_site).await;
        assert_eq!(answer.status().as_u16(), status, "{host} {origin} {fetch_site:?}");
    }
    let said = text(post("hub.example", "https://hub.example:8443", None).await).await;
    for word in ["https://hub.example:8443", "hub.example", "proxy_set_header Host $http_host;"] {
        assert!(said.contains(word), "{said}");
    }
    // Another program on this machine is another website.
    let local = request(
        "POST",
        "/any",
        &[("host", HOST), ("origin", "http://localhost:3001"), ("sec-fetch-site", "same-origin")],
    );
    assert_eq!(site.answer(local).await.status(), StatusCode::FORBIDDEN);
}

#[test]
fn allowed_hosts_are_checked_where_they_enter() {
    for (text, shown) in [
        ("Likes.Example.org", "likes.example.org"),
        ("likes:8443", "likes:8443"),
        ("192.168.1.20:3000", "192.168.1.20:3000"),
        ("[FD00::1]:3000", "[fd00::1]:3000"),
        ("a_b-c.d", "a_b-c.d"),
    ] {
        let host: AllowedHost = text.parse().expect(text);
        assert_eq!(host.to_string(), shown);
    }
    for text in [
        "",
        "*",
        "*.example.org",
        "https://likes.example.org",
        "likes.example.org/",
        "likes.example.org.",
        "a..b",
        "-a.b",
        "a b",
        "me@likes",
        "likes:",
        "likes:http",
        "fd00::1",
        "1.2.3",
    ] {
        let error = text.parse::<AllowedHost>().expect_err(text);
        assert!(error.to_string().contains("is not a host"), "{error}");
    }
}

#[tokio::test]
async fn trust_36_every_answer_carries_the_security_headers() {
    let site = Site::new(Policy::default());
    let long = format!("/?{}", "x".repeat(8 * 1024));
    for (method, uri, headers, status) in [
        ("GET", "/", vec![("host", HOST)], 200),
        ("GET", "/nothing", vec![("host", HOST)], 404),
        ("DELETE", "/likes", vec![("host", HOST)], 405),
        ("GET", "/panic", vec![("host", HOST)], 500),
        ("GET", "/", vec![], 400),
        ("GET", "/", vec![("host", "evil.example")], 403),
        ("GET", &long, vec![("host", HOST)], 414),
        ("POST", "/likes", vec![("host", HOST), ("content-encoding", "gzip")], 415),
        ("POST", "/likes", vec![("host", HOST), ("origin", "null")], 403),
    ] {
        let answer = site.answer(request(method, uri, &headers)).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {uri}");
        assert!(has_security_headers(&answer), "{method} {uri}");
        if status >= 400 {
            assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
            let page = text(answer).await;
            assert!(!page.contains("<script") && !page.contains("<style"));
        }
    }
}

#[tokio::test]
async fn routers_own_refusals_become_problems() {
    let site = Site::new(Policy::default());
    let wrong = site.answer(request("PUT", "/healthz", &[("host", HOST)])).await;
    assert_eq!(wrong.headers()[header::ALLOW], "GET,HEAD");
    assert_eq!(code(wrong).await, "method-not-allowed");

    let missing = site.answer(request("GET", "/sync/v2/x", &[("host", HOST)])).await;
    assert_eq!(code(missing).await, "not-found");

    let get = site.answer(request("GET", "/x", &[("host", HOST)])).await;
    let head = site.answer(request("HEAD", "/x", &[("host", HOST)])).await;
    let lengths = [&get, &head].map(|answer| answer.headers()[header::CONTENT_LENGTH].clone());
    assert_eq!(lengths[0], lengths[1]);
    assert_ne!(lengths[0], "0");
    assert_eq!(text(head).await, "");
}

#[tokio::test]
async fn trust_38_a_panicking_handler_leaves_the_server_alive() {
    let site = Site::new(Policy::default());
    let answer = site.answer(request("GET", "/panic", &[("host", HOST)])).await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!text(answer).await.contains("as the test wants"));
    let next = site.answer(request("GET", "/", &[("host", HOST)])).await;
    assert_eq!(next.status(), StatusCode::OK);
}

#[tokio::test]
async fn trust_40_too_large_and_compressed_requests_are_refused() {
    let site = Site::new(Policy::default());
    let (kib, mib) = (1024, 1024 * 1024);
    for (path, body, status) in [
        ("/likes", Body::from(vec![b'x'; 4 * kib]), 200),
        ("/likes", Body::from(vec![b'x'; 4 * kib + 1]), 413),
        ("/likes", pieces(4, kib), 200),
        ("/likes", pieces(5, kib), 413),
        ("/s/work/likes", pieces(5, kib), 413),
        ("/sync/v1/likes/events", pieces(1, mib), 200),
        ("/sync/v1/likes/events", Body::from(vec![b'x'; 2 * mib]), 413),
        ("/sync/v1/likes/events", pieces(2, mib), 413),
        ("/control/import", pieces(5, mib), 200),
    ] {
        let answer = site.answer(with_body(path, &[], body)).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert!(has_security_headers(&answer));
        if status == 413 {
            assert_eq!(answer.headers()[header::CONNECTION], "close");
        }
    }
    // Only of a form's own post is it final that it is too large.
    for (path, expected) in [
        ("/likes", "malformed-form"),
        ("/s/work/likes", "malformed-form"),
        ("/any", "body-too-large"),
        ("/likes/", "body-too-large"),
        ("/sync/v1/likes/events", "body-too-large"),
    ] {
        let large = Body::from(vec![b'x'; 2 * mib]);
        let answer = site.answer(with_body(path, &[("accept", "application/json")], large)).await;
        assert_eq!((answer.status().as_u16(), code(answer).await.as_str()), (413, expected), "{path}");
    }
    for (encodings, status) in [
        (vec!["identity"], 200),
        (vec!["Identity"], 200),
        (vec!["gzip"], 415),
        (vec!["identity, gzip"], 415),
        (vec!["identity", "br"], 415),
        (vec![""], 415),
    ] {
        for path in ["/likes", "/sync/v1/likes/events", "/control/import"] {
            let headers: Vec<_> = encodings.iter().map(|encoding| ("content-encoding", *encoding)).collect();
            let answer = site.answer(with_body(path, &headers, pieces(1, 10))).await;
            assert_eq!(answer.status().as_u16(), status, "{path} {encodings:?}");
        }
    }

    let cookie = "x".repeat(33 * kib);
    let heavy = request("GET", "/status", &[("host", HOST), ("cookie", &cookie)]);
    let answer = site.answer(heavy).await;
    assert_eq!(answer.status().as_u16(), 431);
    assert_eq!(code(answer).await, "headers-too-large");
}

#[tokio::test(start_paused = true)]
async fn slow_bodies_are_given_up() {
    let site = Site::new(Policy::default());
    let dripping = |pause: u64, count: usize| {
        let drops = futures_util::stream::unfold(0, move |sent| async move {
            tokio::time::sleep(std::time::Duration::from_secs(pause)).await;
            (sent < count).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"x")), sent + 1))
        });
        Body::from_stream(drops)
    };
    for (path, body, status) in [
        ("/likes", dripping(1, 5), 200),
        // Each byte is in time, the whole is not.
        ("/likes", dripping(1, 20), 408),
        ("/sync/v1/likes/events", dripping(9, 20), 200),
        ("/sync/v1/likes/events", dripping(11, 1), 408),
        ("/control/import", dripping(50, 20), 200),
        ("/control/import", dripping(61, 1), 408),
    ] {
        let answer = site.answer(with_body(path, &[], body)).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert!(has_security_headers(&answer));
    }
}

#[test]
fn trust_38_fuzzed_hosts_have_one_spelling() {
    fuzz("host", &["localhost", "127.0.0.1", "[::1]", ":80", ".", "@", "xn--", "0x7f.1"], |input| {
        let host = fuzz::text(input).parse::<AllowedHost>();
        if let Ok(host) = &host {
            assert_eq!(host.to_string().parse::<AllowedHost>().as_ref().ok(), Some(host));
            assert!(input.len() <= 300 && fuzz::text(input).is_ascii());
            assert!(host.0.host.is_loopback() == Authority::parse(&host.to_string()).unwrap().host.is_loopback());
        }
        outcome(&host.as_ref().map_err(|_| "no host"))
    });
}
