//! A hub behind common proxies, set up as `docs/proxies.md` says.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use reqwest::{Client, Response, StatusCode, Version};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::common::reverse_proxy::{Kind, NAME, ReverseProxy, free_port};
use crate::common::{PATIENCE, code_block};
use crate::doctor::{Found, doctor};
use crate::support::Node;

/// A running proxy in front of a hub.
struct Running {
    proxy: ReverseProxy,
    /// The path under which the hub is.
    base: &'static str,
    runtime: Runtime,
}

impl Running {
    /// Runs the recipe, changed by `change`, in front of what listens on `hub`.
    fn start(kind: Kind, hub: &str, change: impl Fn(String) -> String) -> Self {
        Self { proxy: ReverseProxy::start(kind, hub, change), base: "", runtime: Runtime::new().unwrap() }
    }

    fn origin(&self) -> String {
        self.proxy.origin()
    }

    /// Returns the address of the hub.
    fn site(&self) -> String {
        format!("{}{}", self.origin(), self.base)
    }

    /// Creates a client that looks like a browser to the proxy.
    fn browser(&self, version: Version) -> Client {
        self.browser_at("127.0.0.1", version)
    }

    /// Creates such a client that connects from `address`.
    fn browser_at(&self, address: &str, version: Version) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.proxy.authority.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        let protocol = if version == Version::HTTP_2 { b"h2".to_vec() } else { b"http/1.1".to_vec() };
        tls.alpn_protocols = vec![protocol];
        let client = Client::builder()
            .no_proxy()
            .local_address(address.parse::<IpAddr>().unwrap())
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls)
            .resolve(NAME, SocketAddr::from((Ipv4Addr::LOCALHOST, self.proxy.port)));
        let client = if version == Version::HTTP_11 { client.http1_only() } else { client };
        client.build().unwrap()
    }

    /// Prepares a device that syncs with `hub` through the proxy, without starting it.
    fn device(&self, hub: &Node) -> Node {
        let mut device = Node::prepared("phone", &self.site(), hub);
        let roots = device.file("roots.pem");
        fs::write(&roots, &self.proxy.authority.pem).unwrap();
        device.flag("--root-certificate", roots.to_str().unwrap());
        device.environment("HTTPS_PROXY", &door_to_this_machine());
        device
    }

    /// Has `doctor` look at the hub, and at this proxy in front of it.
    fn examine(&self, hub: &Node) -> Found {
        let roots = hub.file("roots.pem");
        fs::write(&roots, &self.proxy.authority.pem).unwrap();
        let flags = ["--public-url", &self.site(), "--root-certificate", roots.to_str().unwrap()];
        doctor(hub, &flags, &[("HTTPS_PROXY", &door_to_this_machine())])
    }

    /// Reads the page's stream until it has brought `text`.
    async fn read_until(stream: &mut Response, text: &str) {
        let mut heard = String::new();
        while !heard.contains(text) {
            let piece = tokio::time::timeout(PATIENCE, stream.chunk()).await;
            let piece = piece.unwrap_or_else(|_| panic!("waited for {text:?}, and heard {heard:?}"));
            let piece = piece.unwrap().unwrap_or_else(|| panic!("the stream ended after {heard:?}"));
            heard.push_str(&String::from_utf8_lossy(&piece));
        }
    }

    /// Opens the page, follows it, and likes, as a browser does.
    fn like_on_the_page(&self, version: Version, before: u64) {
        let (browser, origin, site) = (self.browser(version), self.origin(), self.site());
        self.runtime.block_on(async {
            let page = browser.get(format!("{site}/")).send().await.unwrap();
            assert_eq!(page.version(), version);
            assert_eq!(page.status(), StatusCode::OK);
            assert!(page.text().await.unwrap().contains(&format!(r#"data-count="{before}""#)));
            let mut stream = browser.get(format!("{site}/live")).send().await.unwrap();
            assert_eq!(stream.status(), StatusCode::OK);
            Self::read_until(&mut stream, &format!(r#"data-count="{before}""#)).await;
            let like = browser.post(format!("{site}/likes")).header("Origin", &origin);
            let like = like
                .header("Sec-Fetch-Site", "same-origin")
                .header("Content-Type", "application/x-www-form-urlencoded")
                .body(format!("id={}", uuid::Uuid::now_v7()));
            let answer = like.send().await.unwrap();
            let there = answer.headers().get("location").map(|there| there.to_str().unwrap().to_owned());
            assert_eq!(answer.status(), StatusCode::SEE_OTHER, "{}", answer.text().await.unwrap());
            assert_eq!(there, Some(format!("{}/", self.base)));
            Self::read_until(&mut stream, &format!(r#"data-count="{}""#, before + 1)).await;
        });
    }

    /// Follows the page while nothing happens: the proxy must neither hold the pings back nor take the stream for dead.
    fn stay_on_the_page(&self) {
        let (browser, site) = (self.browser(Version::HTTP_2), self.site());
        self.runtime.block_on(async {
            let mut stream = browser.get(format!("{site}/live")).send().await.unwrap();
            Self::read_until(&mut stream, "event: ping").await;
            Self::read_until(&mut stream, "event: ping").await;
        });
    }
}

/// Starts a forward proxy that leads connections to [`NAME`] to this machine, and returns its address.
fn door_to_this_machine() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || drop(carry(client)));
        }
    });
    url
}

fn carry(mut client: TcpStream) -> std::io::Result<()> {
    use std::io::Write as _;
    let request = crate::proxy::read_request(&mut client)?.unwrap_or_default();
    let request = String::from_utf8_lossy(&request).into_owned();
    let port = request.split_whitespace().nth(1).and_then(|target| target.rsplit_once(':')?.1.parse::<u16>().ok());
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port.unwrap_or_default()))?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
        drop(to.shutdown(std::net::Shutdown::Both));
    });
    drop(std::io::copy(&mut client, &mut server));
    server.shutdown(std::net::Shutdown::Both)
}

/// Starts a hub that strangers may ask under [`NAME`].
fn hub() -> Node {
    let mut hub = Node::stopped_hub();
    hub.flag("--allow-host", NAME);
    hub.switch("--public");
    hub.flag("--listen", &format!("127.0.0.1:{}", free_port()));
    hub.start();
    hub
}

/// Returns the count that the hub tells its owner.
fn count(hub: &Node) -> u64 {
    let status: Value = serde_json::from_str(&hub.run(&["status", "--json"])).unwrap();
    status["count"].as_u64().unwrap()
}

/// Does all that people do through a proxy, and restarts each side.
fn works(kind: Kind, change: impl Fn(String) -> String) {
    let hub = hub();
    let proxy = Running::start(kind, hub.url(), change);
    works_through(hub, proxy);
}

/// Does the same under a path, with the recipe for that.
fn works_under_a_path(kind: Kind) {
    let mut hub = hub();
    hub.stop();
    hub.flag("--base-path", "/likes");
    hub.start();
    // What nginx speaks unless it is told otherwise, up to 1.29.6.
    let old = "proxy_http_version 1.0;\nproxy_set_header Host";
    let recipe = |_| kind.recipe("## Under a path").replace("example.org", NAME).replace("proxy_set_header Host", old);
    let mut proxy = Running::start(kind, hub.url(), recipe);
    proxy.base = "/likes";
    let answer = proxy.runtime.block_on(proxy.browser(Version::HTTP_2).get(proxy.site()).send()).unwrap();
    assert!(answer.status().is_redirection(), "{answer:?}");
    assert!(answer.headers()["location"].to_str().unwrap().ends_with("/likes/"), "{answer:?}");
    works_through(hub, proxy);
}

/// Does the same through a socket file, with the recipe for that.
fn works_through_a_file(kind: Kind, change: impl Fn(String) -> String) {
    let mut hub = hub();
    hub.stop();
    hub.flag("--listen", &format!("unix:{}", hub.file("socket").display()));
    hub.start();
    let proxy = Running::start(kind, hub.url(), change);
    works_through(hub, proxy);
}

fn works_through(mut hub: Node, mut proxy: Running) {
    proxy.like_on_the_page(Version::HTTP_11, 0);
    proxy.like_on_the_page(Version::HTTP_2, 1);

    let mut phone = proxy.device(&hub);
    phone.start();
    phone.wait_for_count(2);
    phone.like();
    phone.wait_for_count(3);
    assert_eq!(count(&hub), 3);

    hub.stop();
    phone.wait_until("offline");
    phone.like();
    hub.start();
    phone.wait_for_count(4);
    proxy.proxy.stop();
    phone.wait_until("offline");
    phone.like();
    proxy.proxy.restart();
    phone.wait_for_count(5);
    assert_eq!(count(&hub), 5);
    let found = proxy.examine(&hub);
    found.is_well();
    assert!(found.of("proxy").1.contains("streams arrive") && found.of("clock").0 == "ok");
    proxy.stay_on_the_page();
    phone.wait_until("online");
    proxy.like_on_the_page(Version::HTTP_11, 5);
}

#[test]
fn trust_71_behind_nginx() {
    works(Kind::Nginx, |recipe| recipe);
}

#[test]
fn trust_71_behind_nginx_that_drops_the_port_and_speaks_http_1_1() {
    works(Kind::Nginx, |recipe| {
        recipe.replace(
            "proxy_set_header Host $http_host;",
            "proxy_http_version 1.1;\nproxy_set_header Host $host;\nproxy_read_timeout 10s;",
        )
    });
}

#[test]
fn trust_71_behind_caddy() {
    works(Kind::Caddy, |recipe| recipe);
}

#[test]
fn trust_71_behind_haproxy() {
    works(Kind::Haproxy, |recipe| recipe);
}

/// HAProxy asks in the version of HTTP that it was asked in.
#[test]
fn trust_71_an_old_client_behind_haproxy() {
    let hub = hub();
    let proxy = Running::start(Kind::Haproxy, hub.url(), |recipe| recipe);
    let browser = proxy.browser(Version::HTTP_11);
    proxy.runtime.block_on(async {
        let old = |path| browser.get(format!("{}{path}", proxy.site())).version(Version::HTTP_10);
        let page = old("/").send().await.unwrap();
        assert_eq!(page.status(), StatusCode::OK);
        let mut stream = old("/live").send().await.unwrap();
        Running::read_until(&mut stream, "event: status").await;
    });
}

#[test]
fn trust_71_under_a_path_behind_nginx() {
    works_under_a_path(Kind::Nginx);
}

#[test]
fn trust_71_under_a_path_behind_caddy() {
    works_under_a_path(Kind::Caddy);
}

/// Likes through the proxy on a page of another site, with a name that has a slash in it, as addresses have.
fn button_works(kind: Kind, change: impl Fn(String) -> String) {
    const SITE: &str = "https://blog.example.org";
    let mut hub = Node::stopped_hub();
    for (flag, value) in [("--allow-host", NAME), ("--behind-proxy", "127.0.0.1"), ("--embed", SITE)] {
        hub.flag(flag, value);
    }
    hub.flag("--listen", &format!("127.0.0.1:{}", free_port()));
    hub.start();
    let proxy = Running::start(kind, hub.url(), change);
    let (browser, embed) = (proxy.browser(Version::HTTP_2), format!("{}/embed/v1", proxy.origin()));
    let item = format!("{embed}/blog.example.org%2Fmy-post");
    proxy.runtime.block_on(async {
        let mut stream = browser.get(format!("{item}/live")).header("Origin", SITE).send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::OK);
        Running::read_until(&mut stream, "data: 0").await;
        let like = browser.post(format!("{item}/likes")).header("Origin", SITE).header("Accept", "application/json");
        let answer = like.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.headers()["access-control-allow-origin"], SITE);
        Running::read_until(&mut stream, "data: 1").await;
        let counts = browser.get(format!("{embed}/counts?items=blog.example.org%2Fmy-post")).send().await.unwrap();
        assert_eq!(counts.text().await.unwrap(), r#"{"blog.example.org/my-post":1}"#);
        assert_eq!(browser.get(proxy.origin()).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    });
    assert_eq!(hub.run(&["items", "list"]), "blog.example.org/my-post\t1 like\topen\n");
    assert!(!hub.log().contains("--behind-proxy"), "{}", hub.log());
}

#[test]
fn trust_71_a_button_behind_nginx() {
    let location = code_block(include_str!("../../docs/embed.md"), "## Behind a proxy", "nginx");
    button_works(Kind::Nginx, |recipe| {
        let (before, _) = recipe.split_once("    location / {").unwrap();
        format!("{before}{location}\n}}\n")
    });
}

#[test]
fn trust_71_a_button_behind_caddy() {
    button_works(Kind::Caddy, |recipe| recipe);
}

#[test]
fn trust_71_a_button_behind_haproxy() {
    button_works(Kind::Haproxy, |recipe| recipe);
}

/// What leads from the proxy to the hub.
#[derive(Clone, Copy)]
enum Way {
    Tcp,
    SocketFile,
}

/// A client that says in its own headers that it is another one each time is still one client, and others are others.
fn clients_are_told_apart(kind: Kind, way: Way, heading: &str) {
    const SITE: &str = "https://blog.example.org";
    const SILENT: &str = "doesn't say for whom it asks";
    let mut hub = Node::stopped_hub();
    hub.flag("--allow-host", NAME);
    hub.flag("--embed", SITE);
    match way {
        Way::Tcp => {
            hub.flag("--behind-proxy", "127.0.0.1");
            hub.flag("--listen", &format!("127.0.0.1:{}", free_port()));
        }
        Way::SocketFile => hub.flag("--listen", &format!("unix:{}", hub.file("socket").display())),
    }
    hub.start();
    let proxy = Running::start(kind, hub.url(), |_| kind.recipe(heading));
    let like = |browser: &Client, item: String, claims: &str| {
        let like = browser.post(format!("{}/embed/v1/{item}/likes", proxy.origin())).header("Origin", SITE);
        let like = like.header("Accept", "application/json").header("X-Forwarded-For", claims);
        proxy.runtime.block_on(async { like.send().await.unwrap().status() })
    };
    let at = |address: &str, version| proxy.browser_at(address, version);
    let stranger = at("127.0.0.2", Version::HTTP_11);
    // The first to like this many things.
    let refused = (0..40).map(|n| like(&stranger, format!("new-{n}"), &format!("198.51.100.{n}")));
    let refused = refused.enumerate().find(|(_, status)| *status != StatusCode::NO_CONTENT);
    assert!(refused.is_some_and(|(n, status)| n >= 20 && status == StatusCode::TOO_MANY_REQUESTS), "{refused:?}");
    for claims in ["198.51.100.99, 127.0.0.1", "127.0.0.3", "unknown", ""] {
        assert_eq!(like(&stranger, "other".to_owned(), claims), StatusCode::TOO_MANY_REQUESTS, "{claims}");
    }
    for (item, version) in [("another", Version::HTTP_11), ("yet-another", Version::HTTP_2)] {
        let other = at("127.0.0.3", version);
        assert_eq!(like(&other, item.to_owned(), "127.0.0.2"), StatusCode::NO_CONTENT);
    }
    let log = hub.log();
    assert!(!log.contains(SILENT) && !log.contains("--behind-proxy"), "{log}");
}

#[test]
fn trust_64_clients_behind_nginx_cannot_pose_as_others() {
    clients_are_told_apart(Kind::Nginx, Way::Tcp, "# Behind a proxy");
}

#[test]
fn trust_64_clients_behind_caddy_cannot_pose_as_others() {
    clients_are_told_apart(Kind::Caddy, Way::Tcp, "# Behind a proxy");
}

#[test]
fn trust_64_clients_behind_haproxy_cannot_pose_as_others() {
    clients_are_told_apart(Kind::Haproxy, Way::Tcp, "# Behind a proxy");
}

#[test]
fn trust_64_clients_behind_nginx_and_a_socket_file_cannot_pose_as_others() {
    clients_are_told_apart(Kind::Nginx, Way::SocketFile, "## Through a socket file");
}

#[test]
fn trust_64_clients_behind_caddy_and_a_socket_file_cannot_pose_as_others() {
    clients_are_told_apart(Kind::Caddy, Way::SocketFile, "## Through a socket file");
}

/// The recipe is the one for TCP, with another address in its last line.
#[test]
fn trust_64_clients_behind_haproxy_and_a_socket_file_cannot_pose_as_others() {
    clients_are_told_apart(Kind::Haproxy, Way::SocketFile, "# Behind a proxy");
}

#[test]
fn trust_71_through_a_socket_file_behind_nginx() {
    works_through_a_file(Kind::Nginx, |_| Kind::Nginx.recipe("## Through a socket file"));
}

#[test]
fn trust_71_through_a_socket_file_behind_caddy() {
    works_through_a_file(Kind::Caddy, |_| Kind::Caddy.recipe("## Through a socket file"));
}

#[test]
fn trust_71_through_a_socket_file_behind_haproxy() {
    works_through_a_file(Kind::Haproxy, |recipe| recipe);
}

#[test]
fn trust_70_nginx_without_the_host_line_opens_nothing_and_is_told_what_it_lacks() {
    let hub = hub();
    for line in ["", "proxy_http_version 1.1;", "proxy_set_header Host localhost;"] {
        let proxy =
            Running::start(Kind::Nginx, hub.url(), |recipe| recipe.replace("proxy_set_header Host $http_host;", line));
        let (browser, origin) = (proxy.browser(Version::HTTP_11), proxy.origin());
        for path in ["/", "/live", "/status", "/metrics", "/s/other/"] {
            let (status, text) = proxy.runtime.block_on(async {
                let answer = browser.get(format!("{origin}{path}")).send().await.unwrap();
                (answer.status(), answer.text().await.unwrap())
            });
            assert_eq!(status, StatusCode::FORBIDDEN, "{line} {path}: {text}");
            let is_old = !line.contains("1.1");
            assert!(!is_old || text.contains("proxy_set_header Host $http_host"), "{line} {path}: {text}");
        }
        proxy.examine(&hub).has_only("proxy", &["this machine itself", "proxy_set_header Host $http_host"]);
    }
    drop(hub);
    // Nobody told this program of a proxy. HTTP/1.0 gives nginx away.
    let mut lone = Node::stopped_hub();
    lone.start();
    let proxy =
        Running::start(Kind::Nginx, lone.url(), |recipe| recipe.replace("proxy_set_header Host $http_host;", ""));
    let answer = proxy.runtime.block_on(proxy.browser(Version::HTTP_2).get(proxy.origin()).send()).unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
}

/// nginx is told to ignore what the hub asks for. It holds back even the head of the answer.
#[test]
fn trust_71_a_device_behind_nginx_that_gathers_streams_is_told_what_to_change() {
    let hub = hub();
    let proxy = Running::start(Kind::Nginx, hub.url(), |recipe| {
        recipe.replace("location / {", "location / {\nproxy_ignore_headers X-Accel-Buffering;")
    });
    let mut phone = proxy.device(&hub);
    phone.start();
    phone.like();
    let status = phone.wait_until("offline");
    proxy.examine(&hub).has_only("proxy", &["its streams don't arrive", "`proxy_buffering off;`"]);
    let error = status["upstream"]["error"].as_str().unwrap();
    assert!(error.contains("hold the stream back") && error.contains("`proxy_buffering off;`"), "{error}");
    assert_eq!((phone.count(), count(&hub)), (1, 0));
}
