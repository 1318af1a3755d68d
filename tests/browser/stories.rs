//! What a person does with the program, from its start to the goal, in Firefox as well. The other tests look closer, in
//! Chromium.

use crate::common::reverse_proxy::{Kind, NAME, ReverseProxy};
use crate::common::{Server, data_dir};
use crate::firefox::{Firefox, FirefoxTab};
use crate::likewise::stored;

impl FirefoxTab<'_> {
    fn like(&self) {
        self.click("document.querySelector('#like button')");
    }

    fn until_count(&self, count: u64) {
        self.until(&format!("document.getElementById('count')?.dataset.count === '{count}'"));
    }

    fn until_live(&self) {
        self.until("document.documentElement.dataset.live === 'open'");
    }
}

#[test]
fn firefox_counts_clicks_in_all_tabs_and_keeps_them_while_the_program_is_down() {
    let data = data_dir();
    let server = Server::start(data.path());
    let port = server.port();
    let firefox = Firefox::launch();
    let [one, two] = [(); 2].map(|()| firefox.open(&server.url));
    one.until_live();
    two.until_live();
    two.like();
    one.until_count(1);
    assert_eq!(server.streams(), 1);

    server.kill();
    two.like();
    two.like();
    two.until_count(3);
    let server = Server::start_with(data.path(), &["--listen", &format!("127.0.0.1:{port}")]);
    two.until("document.documentElement.dataset.unsent === '0'");
    one.until_count(3);
    let ids = stored(server.data(), "likes");
    assert_eq!(ids.len(), 3, "{ids:?}");
}

#[test]
fn firefox_opens_a_public_page_behind_a_proxy_with_tls() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--allow-host", NAME, "--public"]);
    let mut proxy = ReverseProxy::start(Kind::Nginx, &server.url, |recipe| recipe);
    let firefox = Firefox::launch();
    let tab = firefox.open(&proxy.origin());
    tab.until_live();
    tab.like();
    tab.until_count(1);
    proxy.stop();
    tab.like();
    tab.until_count(2);
    proxy.restart();
    tab.until("document.documentElement.dataset.unsent === '0'");
    tab.until_live();
    assert_eq!(stored(data.path(), "likes").len(), 2);
}
