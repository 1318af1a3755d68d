//! Gateways that reach their servers over TLS, and those that have to show credentials.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use nkeys::KeyPair;
use serde_json::{Value, json};

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
        let says_what_to_do = why.contains("certificate") && why.contains("--root-certificate");
        (status["upstream"]["state"] == "offline" && says_what_to_do).then_some(())
    });
    assert!(!stranger.log().contains("failed to verify"), "each attempt would log it: {}", stranger.log());
    assert_eq!(stranger.pending(), 1);
}

/// A token as NATS has them: `issuer` says `claims` of `subject`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: &Value) -> String {
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let body = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": "test", "nats": claims,
    });
    let text = [head, body].map(|part| BASE64.encode(part.to_string())).join(".");
    let signature = BASE64.encode(issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

/// A credentials file, as `nsc` writes it.
fn credentials(jwt: &str, user: &KeyPair) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n\
         ------END USER NKEY SEED------\n",
        user.seed().unwrap()
    )
}

#[test]
fn a_gateway_shows_the_credentials_in_its_file_as_they_are_now() {
    let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let of_account = json!({ "type": "account", "version": 2, "limits": limits });
    let of_system =
        json!({ "type": "account", "version": 2, "limits": { "subs": -1, "data": -1, "payload": -1, "conn": -1 } });
    let of_operator = json!({ "type": "operator", "version": 2 });
    let of_user = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let lines = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
        jwt(&operator, &operator, &of_operator),
        system.public_key(),
        system.public_key(),
        jwt(&operator, &system, &of_system),
        account.public_key(),
        jwt(&operator, &account, &of_account),
    );
    let nats = Plan::new(1).also(&lines).start();
    let (dir, user, stranger) = (tempfile::tempdir().unwrap(), KeyPair::new_user(), KeyPair::new_user());
    let file = dir.path().join("gateway.creds");
    // Nobody knows the account that signed this one.
    fs::write(&file, credentials(&jwt(&KeyPair::new_account(), &stranger, &of_user), &stranger)).unwrap();
    let mut gateway = Node::gateway("gateway", &nats.url());
    gateway.flag("--nats-credentials", file.to_str().unwrap());
    gateway.start();
    gateway.like();
    wait_for("the servers to refuse it", || {
        let status = gateway.status();
        let why = status["upstream"]["error"].as_str().unwrap_or_default();
        why.contains("uthorization").then_some(())
    });
    fs::write(&file, credentials(&jwt(&account, &user, &of_user), &user)).unwrap();
    wait_until_level(&[&gateway], 1);
}
