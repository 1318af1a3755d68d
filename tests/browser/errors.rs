//! What a person sees when something is refused.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::chromium::{Browser, Tab};
use crate::common::{Server, data_dir};

#[test]
fn an_unknown_address_shows_a_page_that_leads_back() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&format!("{}/nowhere", server.url));
    assert_eq!(tab.text("h1"), "Nothing here to like");
    assert_eq!(tab.text(".status"), "Error 404");
    tab.leave_by(|tab| tab.click(".back"));
    assert_eq!(tab.eval("location.pathname"), "/");
    tab.until_live();

    tab.go(&format!("{}/s/work/nowhere", server.url));
    tab.leave_by(|tab| tab.click(".back"));
    assert_eq!(tab.eval("location.pathname"), "/s/work/");

    tab.go(&format!("{}/s/No%20such%20Store/", server.url));
    assert_eq!(tab.text(".status"), "Error 404");
}

#[test]
fn without_javascript_a_malformed_id_shows_a_page_that_says_so() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&server.url);
    tab.eval("document.querySelector('input').value = '<b>no id</b>'");
    tab.leave_by(Tab::like);
    assert_eq!(tab.text("h1"), "That can’t be understood");
    assert!(tab.text("#advice").contains("Nothing was stored"));
    assert_eq!(tab.eval("document.querySelectorAll('b').length"), 0);
    tab.leave_by(|tab| tab.click(".back"));
    assert_eq!(tab.count(), 0);
}

#[test]
fn trust_69_a_refused_click_is_taken_back_and_said() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&server.url);
    tab.until_live();
    tab.eval("document.querySelector('input').value = 'no id'");
    tab.like();
    tab.until("document.getElementById('message').textContent.startsWith('A like was not counted.')");
    tab.until_count(0);
    tab.until_sent();
    tab.like();
    tab.until_count(1);
    tab.until_sent();
    assert_eq!(tab.text("#message"), "");
}

#[test]
fn trust_33_a_form_on_another_site_is_refused() {
    let data = data_dir();
    let server = Server::start(data.path());
    let form = format!("<form method=post action='{}/likes'><button id=trap>Win</button></form>", server.url);
    let elsewhere = site(form);
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&elsewhere);
    tab.leave_by(|tab| tab.click("#trap"));
    assert_eq!(tab.text("h1"), "That’s not allowed");
    tab.leave_by(|tab| tab.click(".back"));
    assert_eq!(tab.count(), 0);
    assert!(!server.store("likes").exists());
}

#[test]
fn trust_34_a_name_that_was_bent_to_this_machine_shows_a_refusal() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    browser.network_may_fail();
    browser.may_complain("Refused to apply style");
    browser.may_complain("The Cross-Origin-Opener-Policy header has been ignored");
    let tab = browser.open(&format!("http://evil.example:{}/", server.port()));
    assert_eq!(tab.text("h1"), "That’s not allowed");
    assert!(tab.text("#detail").contains("evil.example"));
    // Its stylesheet is refused, too, and so is the mark.
    let [.., width, height] = tab.place("svg");
    assert!(width < 300.0 && height < 300.0, "an unstyled mark of {width} by {height} hides the words");
}

/// Another website on this machine, which answers everything with this page.
fn site(page: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
            let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{page}", page.len());
        }
    });
    format!("http://{address}/")
}
