//! A pairing link, opened in a browser as people open it.

use crate::chromium::{Browser, Tab};
use crate::common::reverse_proxy::{Kind, NAME, ReverseProxy};
use crate::common::{Server, data_dir, errors, printed, run};
use crate::firefox::Firefox;
use crate::likewise::fill;
use crate::look::picture_every_size;

/// A hub that is not public, behind a proxy with TLS.
fn hub(data: &std::path::Path) -> (Server, ReverseProxy) {
    let public_url = format!("https://{NAME}");
    let server = Server::start_with(data, &["--listen", "127.0.0.1:0", "--public-url", &public_url]);
    let proxy = ReverseProxy::start(Kind::Nginx, &server.url, |recipe| recipe);
    (server, proxy)
}

/// A link that leads through the proxy, and its code.
fn link(server: &Server, proxy: &ReverseProxy, name: &str) -> (String, String) {
    let output = run(server.data(), &["pair", name, "--public-url", &proxy.origin()]);
    let words = errors(&output);
    let (_, code) = words.split_once("and type ").unwrap_or_else(|| panic!("no code: {words}"));
    let code = code[..9].to_owned();
    (printed(output).trim().to_owned(), code)
}

fn origins(server: &Server) -> Vec<String> {
    let lines = printed(run(server.data(), &["export"]));
    let origin = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["origin"].clone();
    lines.lines().map(|line| origin(line).as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_link_opens_the_page_for_one_browser_until_it_is_revoked() {
    let data = data_dir();
    let (server, proxy) = hub(data.path());
    let (link, _) = link(&server, &proxy, "phone");
    let browser = Browser::launch();
    let tab = browser.open(&link);
    tab.until("document.querySelector('[name=secret]').value.length === 32");
    assert_eq!(tab.eval("location.pathname + location.search + location.hash"), "/pair", "the secret is out of sight");
    assert_eq!(tab.eval("document.querySelector('[name=code]')"), serde_json::Value::Null, "there is no code to type");
    picture_every_size(&tab, "pair");
    tab.leave_by(|tab| drop(tab.eval("location.reload()")));
    tab.until("document.querySelector('[name=secret]').value.length === 32");
    tab.leave_by(|tab| tab.click("#pair button"));
    assert_eq!(tab.eval("location.pathname + location.hash"), "/");
    tab.until_live();
    tab.like();
    tab.until_count(1);
    tab.until_sent();
    // Somebody else likes, and the page is live.
    fill(data.path(), "likes", 1);
    tab.until_count(2);
    assert_eq!(origins(&server)[0], "phone");
    assert_eq!(tab.eval("document.cookie"), "", "no script sees the cookie");

    // What the token follows from isn't kept once it is there.
    tab.back();
    assert_eq!(tab.eval("location.pathname"), "/pair");
    tab.until("document.getElementById('paired') !== null && history.state === null");
    assert_eq!(tab.eval("document.querySelector('[name=secret]').value"), "");
    tab.leave_by(|tab| tab.click("#paired a"));
    assert_eq!(tab.eval("location.pathname"), "/");
    tab.until_live();

    browser.network_may_fail();
    run(data.path(), &["token", "revoke", "phone"]);
    tab.until("document.documentElement.dataset.live === 'closed'");
    tab.until("document.getElementById('message').textContent.includes('no longer paired')");
    tab.leave_by(|tab| drop(tab.eval("location.reload()")));
    assert!(tab.text("#detail").contains("no longer paired"), "{}", tab.text("#detail"));
    picture_every_size(&tab, "not-paired");
}

#[test]
fn without_javascript_the_code_is_typed() {
    let data = data_dir();
    let (server, proxy) = hub(data.path());
    let (_, code) = link(&server, &proxy, "phone");
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.blank();
    // A link that is opened in a tab which shows the page already is taken.
    tab.go(&format!("{}/pair", proxy.origin()));
    tab.eval("location.hash = 'f'.repeat(32)");
    tab.until("document.querySelector('[name=secret]').value.length === 32");
    tab.without_scripts();
    tab.go(&format!("{}/pair", proxy.origin()));
    picture_every_size(&tab, "pair-code");
    tab.type_into("[name=code]", "0000-0000");
    tab.leave_by(|tab| tab.click("#pair button"));
    assert!(tab.text("#detail").contains("no such link or code"), "{}", tab.text("#detail"));
    tab.back();
    tab.eval("document.querySelector('[name=code]').value = ''");
    tab.type_into("[name=code]", &code.to_lowercase());
    tab.leave_by(|tab| tab.click("#pair button"));
    assert_eq!(tab.eval("location.pathname"), "/");
    tab.leave_by(Tab::like);
    assert_eq!(tab.count(), 1);
    assert_eq!(origins(&server), ["phone"]);
}

#[test]
fn on_this_machine_a_link_works_over_plain_http() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(printed(run(data.path(), &["pair", "desk"])).trim());
    tab.until("document.querySelector('[name=secret]').value.length === 32");
    tab.leave_by(|tab| tab.click("#pair button"));
    tab.until_live();
    tab.like();
    tab.until_sent();
    assert_eq!(origins(&server), ["desk"]);
    tab.go(&format!("{}/pair", server.url));
    assert!(tab.text("#paired").contains("paired already, as desk"), "{}", tab.text("#paired"));
}

#[test]
fn firefox_opens_a_link_behind_a_proxy_with_tls() {
    let data = data_dir();
    let (server, proxy) = hub(data.path());
    let (link, _) = link(&server, &proxy, "phone");
    let firefox = Firefox::launch();
    let tab = firefox.open(&link);
    tab.until("document.querySelector('[name=secret]').value.length === 32");
    tab.click("document.querySelector('#pair button')");
    tab.until("document.documentElement.dataset.live === 'open'");
    tab.click("document.querySelector('#like button')");
    tab.until(
        "document.documentElement.dataset.unsent === '0' && document.getElementById('count').dataset.count === '1'",
    );
    assert_eq!(origins(&server), ["phone"]);
}
