//! A hub behind a proxy that speaks HTTP/2, where the requests of many stores share connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::common::authority::Authority;
use crate::common::wait_for;
use crate::support::Node;

/// How many requests RFC 9113 wants a server to allow at least. Some servers allow no more.
const REQUESTS: u32 = 100;

struct Proxy {
    url: String,
    /// Open connections.
    connections: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl Proxy {
    fn start(authority: &Authority, hub: &Node) -> Self {
        let runtime = Runtime::new().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let mut config = Arc::unwrap_or_clone(authority.sign("localhost", 2100));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let router = Router::new().fallback(forward).with_state(hub.url().to_owned());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let open = Arc::clone(&connections);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, router, open) = (acceptor.clone(), router.clone(), Arc::clone(&open));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    open.fetch_add(1, Ordering::SeqCst);
                    let mut http = http2::Builder::new(TokioExecutor::new());
                    http.max_concurrent_streams(REQUESTS);
                    drop(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { url, connections, _runtime: runtime }
    }
}

/// Forwards a request to the hub, and streams the answer back.
async fn forward(State(hub): State<String>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().expect("a path").as_str();
    let body = to_bytes(body, 2 << 20).await.unwrap_or_default();
    let mut onward = hyper::Request::builder().method(head.method).uri(format!("{hub}{path}"));
    for name in [header::AUTHORIZATION, header::CONTENT_TYPE, header::ACCEPT] {
        if let Some(value) = head.headers.get(&name) {
            onward = onward.header(name, value);
        }
    }
    let onward = onward.body(reqwest::Body::from(body)).expect("a request").try_into().expect("a request");
    match reqwest::Client::builder().no_proxy().build().expect("a client").execute(onward).await {
        Ok(answer) => {
            let status = answer.status();
            let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
            let headers = kind.map(|kind| [(header::CONTENT_TYPE, kind)]);
            let body = Body::from_stream(answer.bytes_stream());
            match headers {
                Some(headers) => (status, headers, body).into_response(),
                None => (status, body).into_response(),
            }
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

#[test]
fn more_stores_than_a_connection_takes_share_a_few() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let hub = Node::hub();
    let authority = Authority::new();
    let proxy = Proxy::start(&authority, &hub);
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    let roots = phone.file("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    phone.flag("--root-certificate", roots.to_str().unwrap());
    phone.start();
    let stores: Vec<String> = (0..REQUESTS + 10).map(|n| format!("/s/store-{n}")).collect();
    for base in &stores {
        phone.like_in(base);
    }
    for base in &stores {
        wait_for(&format!("{base} at the hub; {}", phone.status_of(base)), || {
            let is_level = phone.status_of(base)["pending"] == 0 && hub.status_of(base)["count"] == 1;
            is_level.then_some(())
        });
    }
    assert!(!phone.log().contains("offline"), "{}", phone.log());
    // 110 stores, and the one of the start page, in four lanes. On a busy machine, two requests of a lane may both start to
    // connect before either knows that one connection is enough. Then each keeps its own.
    let open = || proxy.connections.load(Ordering::SeqCst);
    wait_for("no more connections than the stores need", || (open() <= 8).then_some(()));
}
