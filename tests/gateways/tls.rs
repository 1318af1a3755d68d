//! Gateways that reach their servers over TLS.

use std::fs;
use std::path::Path;

use crate::common::authority::Authority;
use crate::common::nats::{Link, Nats, Plan};
use crate::common::wait_for;
use crate::support::{Node, wait_until_level};

/// A server that takes TLS alone, with a certificate for its address, which a link has.
fn secure(authority: &Authority, dir: &Path) -> (Nats, Link) {
    let (certificate, key) = authority.sign_as_files("127.0.0.1");
    let (certificate_file, key_file) = (dir.join("certificate.pem"), dir.join("key.pem"));
    fs::write(&certificate_file, certificate).unwrap();
    fs::write(&key_file, key).unwrap();
    fs::write(dir.join("authority.pem"), &authority.pem).unwrap();
    let lines = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        certificate_file.to_str().unwrap(),
        key_file.to_str().unwrap()
    );
    let nats = Plan::new(1).also(&lines).start();
    let link = Link::start(nats.clients_of(0));
    (nats, link)
}

#[test]
fn a_gateway_talks_tls_and_believes_no_certificate_that_it_does_not_know() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let (_nats, link) = secure(&authority, dir.path());
    let roots = dir.path().join("authority.pem");
    let known = |scheme: &str| {
        let mut gateway = Node::gateway("gateway", &format!("{scheme}://{}", link.address));
        gateway.flag("--root-certificate", roots.to_str().unwrap());
        gateway.start();
        gateway.like();
        gateway
    };
    // A server that asks for TLS gets it, whatever its address says.
    let (one, two) = (known("tls"), known("nats"));
    wait_until_level(&[&one, &two], 2);
    assert_eq!(one.status()["upstream"]["url"], format!("tls://{}", link.address));

    let mut stranger = Node::gateway("gateway", &format!("tls://{}", link.address));
    stranger.start();
    stranger.like();
    wait_for("words on the certificate", || {
        let status = stranger.status();
        let why = status["upstream"]["error"].as_str().unwrap_or_default();
        (status["upstream"]["state"] == "offline" && why.contains("certificate")).then_some(())
    });
    assert_eq!(stranger.pending(), 1);
}
