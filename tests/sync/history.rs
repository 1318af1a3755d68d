//! Who brought what, after a hub was away, and after events were taken back.

use crate::proxy::Mode;
use crate::support::{Node, get, hub_behind_proxy, wait_until_level};

/// The devices of a history and how many events each brought, in order of their names.
fn devices(node: &Node) -> Vec<String> {
    let (status, page) = get(&format!("{}/history", node.url()));
    assert_eq!(status, 200, "{page}");
    let mut devices: Vec<String> = page
        .lines()
        .filter_map(|line| line.split_once("<b data-numbers>"))
        .map(|(_, line)| line)
        .filter(|line| line.contains(" from ") || line.contains("here"))
        .map(|line| {
            let parts = line.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
            parts.collect::<String>().replace(" (this device)", "")
        })
        .collect();
    devices.sort();
    devices
}

#[test]
fn history_tells_devices_apart_and_what_waits_here() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    let laptop = Node::client("laptop", &proxy.url, &hub);
    (0..3).for_each(|_| phone.like());
    (0..2).for_each(|_| laptop.like());
    wait_until_level(&[&hub, &phone, &laptop], 5);
    for node in [&hub, &phone, &laptop] {
        assert_eq!(devices(node), ["2 from laptop", "3 from phone"]);
    }
    proxy.part();
    phone.wait_until("offline");
    phone.like();
    assert_eq!(devices(&phone), ["1 here, waiting", "2 from laptop", "3 from phone"]);
    let (_, page) = get(&format!("{}/history", phone.url()));
    assert!(page.contains("<b data-numbers>6</b> today"), "what waits has happened, too: {page}");
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &phone, &laptop], 6);
    for node in [&hub, &phone, &laptop] {
        assert_eq!(devices(node), ["2 from laptop", "4 from phone"]);
    }
}
