//! Directories that are no longer what they were: gateways that are left alone, that become devices, or that wait for the rest of
//! a move.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::common::nats::{Course, Link, Nats};
use crate::common::reverse_proxy::{Kind, NAME, ReverseProxy};
use crate::common::wait_for;
use crate::stranger::Stranger;
use crate::support::{Node, get, likes, wait_until_level};

#[test]
fn a_gateways_directory_is_not_served_without_its_cluster() {
    let nats = Nats::single();
    let mut gateway = Node::gateway("gateway", &nats.url());
    gateway.start();
    gateway.like();
    wait_until_level(&[&gateway], 1);
    gateway.stop();
    gateway.unflag("--upstream");
    let said = gateway.refuses_to_start();
    for words in ["is a gateway's", "--upstream", "likewise move out", "likewise promote"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let status = gateway.run(&["status"]);
    assert!(status.contains("not followed now: this is a gateway"), "{status}");
    let found = gateway.run(&["doctor"]);
    assert!(found.contains("the data is a gateway's"), "{found}");
    // A copy of it is no hub either, until somebody says so.
    let mut copy = gateway.copy();
    copy.refuses_to_start();
    copy.run(&["promote", "--yes"]);
    copy.start();
    copy.like();
    assert_eq!((copy.count(), copy.pending()), (2, 0));
    gateway.flag("--upstream", &nats.url());
    gateway.start();
    gateway.like();
    wait_until_level(&[&gateway], 2);
}

#[test]
fn a_move_out_that_was_interrupted_is_not_served_as_if_it_were_all() {
    let nats = Nats::single();
    let hub = Node::stopped_hub();
    hub.import(&likes(20_000));
    let mut small = hub.command(&["import", "--store", "a-small-one"]).stdin(Stdio::piped()).spawn().unwrap();
    small.stdin.take().unwrap().write_all(likes(1).as_bytes()).unwrap();
    assert!(small.wait().unwrap().success());
    hub.run(&["move", "in", "--upstream", &nats.url()]);
    let out = ["move", "out", "--upstream", &nats.url(), "--to", "https://hub.example.org"];
    let mut half = Node::stopped_hub();
    let mut child = half.command(&out).stderr(Stdio::piped()).spawn().unwrap();
    // The small store is done. The other one comes next.
    let told = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(told.into_iter().any(|line| line == "a-small-one: 1 events moved"));
    child.kill().unwrap();
    child.wait().unwrap();
    let said = half.refuses_to_start();
    assert!(said.contains("was interrupted") && said.contains("give the command of the move again"), "{said}");
    half.run(&out);
    half.start();
    assert_eq!(half.count(), 20_000);
}

#[test]
fn a_gateway_whose_stores_were_moved_out_brings_what_waits_to_the_hub() {
    let nats = Nats::single();
    let mut gateways = ["one", "two"].map(|name| Node::gateway(name, &nats.url()));
    gateways.iter_mut().for_each(Node::start);
    let [mut hub, mut left] = gateways;
    hub.like();
    left.like();
    wait_until_level(&[&hub, &left], 2);
    hub.stop();
    hub.run(&["move", "out", "--upstream", &nats.url(), "--to", "https://hub.example.org"]);
    hub.unflag("--upstream");
    hub.start();
    left.wait_until_halted("moved");
    left.like();
    let told = left.run(&["status"]);
    for words in ["https://hub.example.org", "likewise pair NAME", "likewise join", "without --upstream"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    // As it says.
    left.stop();
    left.unflag("--upstream");
    let link = hub.run(&["pair", "two"]);
    left.run(&["join", link.trim()]);
    let told = left.run(&["status"]);
    assert!(told.contains(hub.url()) && told.contains("no process serves this data"), "{told}");
    left.start();
    wait_until_level(&[&hub, &left], 3);
    assert_eq!(hub.export(), left.export());
}

#[test]
fn a_cluster_in_place_of_the_joined_hub_is_told() {
    let nats = Nats::single();
    let hub = Node::hub();
    let mut laptop = Node::alone();
    let link = hub.run(&["pair", "laptop"]);
    laptop.run(&["join", link.trim()]);
    laptop.environment("LIKEWISE_UPSTREAM", &nats.url());
    laptop.start();
    laptop.wait_until("online");
    let log = laptop.log();
    let warning = log.lines().find(|line| line.contains("WARN") && line.contains(hub.url()));
    assert!(warning.is_some_and(|line| line.contains("LIKEWISE_UPSTREAM")), "{log}");
}

#[test]
fn a_gateway_says_that_a_move_waits() {
    let nats = Nats::single();
    let hub = Node::stopped_hub();
    hub.import(&likes(20_000));
    hub.run(&["move", "in", "--upstream", &format!("{}/whole", nats.url())]);
    // Another prefix gets the first message alone.
    let stranger = Stranger::new(&nats);
    let mut gateway = Node::gateway("gateway", &format!("{}/part", nats.url()));
    gateway.start();
    gateway.wait_until("online");
    assert!(stranger.info("whole")["state"]["messages"].as_u64() > Some(1));
    let first = stranger.asks("STREAM.MSG.GET.whole", &json!({ "next_by_subj": "whole.likes", "seq": 1 }));
    let bytes = BASE64.decode(first["message"]["data"].as_str().unwrap()).unwrap();
    assert!(stranger.publishes("part.likes", bytes)["error"].is_null());
    wait_for("words on the move", || {
        let status = gateway.status();
        let why = status["upstream"]["error"].as_str().unwrap_or_default();
        (status["upstream"]["state"] == "online" && why.contains("still to come")).then_some(())
    });
    assert!(gateway.log().contains("likewise move in"), "{}", gateway.log());
    let found = gateway.command(&["doctor"]).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.lines().any(|line| line.starts_with("- ") && line.contains("still to come")), "{found}");
    // As it says, a like at its page ends that.
    gateway.like();
    wait_for("the move to be over", || gateway.status()["upstream"]["error"].is_null().then_some(()));
    assert_eq!(gateway.pending(), 0);
}

#[test]
fn a_proxy_set_up_as_written_leaves_out_a_gateway_that_is_cut_off() {
    let nats = Nats::single();
    let links = [0, 1].map(|_| Link::start(nats.clients_of(0)));
    let gateways = [0, 1].map(|n| {
        let mut gateway = Node::gateway(&format!("gateway-{n}"), &format!("nats://{}", links[n].address));
        gateway.flag("--allow-host", NAME);
        gateway.start();
        gateway
    });
    let addresses = gateways.each_ref().map(|gateway| gateway.url().trim_start_matches("http://").to_owned());
    let proxy = ReverseProxy::start(Kind::Haproxy, gateways[0].url(), |_| {
        let recipe = Kind::Haproxy.recipe("## In front of gateways");
        recipe.replace("10.0.0.1:3000", &addresses[0]).replace("10.0.0.2:3000", &addresses[1])
    });
    let runtime = Runtime::new().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(proxy.authority.pem.as_bytes()).unwrap()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let tls = tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .resolve(NAME, ([127, 0, 0, 1], proxy.port).into())
        .build()
        .unwrap();
    let address = format!("{}/healthz?sync", proxy.origin());
    let serves = || runtime.block_on(client.get(&address).send()).is_ok_and(|answer| answer.status().is_success());
    let always_serves = || (0..20).all(|_| serves()).then_some(());
    wait_for("both to serve", always_serves);
    links[0].set(Course::Cut);
    let itself = format!("{}/healthz?sync", gateways[0].url());
    wait_for("the first one to see that it is cut off", || (get(&itself).0 == 503).then_some(()));
    wait_for("the proxy to leave it out", always_serves);
    assert_eq!(get(&itself).0, 503);
    links[1].set(Course::Cut);
    links[0].set(Course::Pass);
    wait_for("the proxy to use it again, alone", || {
        let is_other_out = get(&itself).0 == 200 && get(&format!("{}/healthz?sync", gateways[1].url())).0 == 503;
        is_other_out.then_some(()).and_then(|()| always_serves())
    });
}
