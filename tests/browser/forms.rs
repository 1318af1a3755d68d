//! Forms and fragments of any app: what was typed is never lost, and arrives once and in order.

use serde_json::{Value, json};

use crate::chromium::{Browser, ENTER, Tab};
use crate::common::{Server, data_dir, wait_for};
use crate::likewise::stored;
use crate::stage::{Stage, commit, fragment};

/// A form for new items, and the list of those that wait. It has no field for an id, as in a fragment.
const ADD: &str = "<form method=post action=/add><input name=title autocomplete=off><button>Add</button></form>\
                   <ul data-waiting=add hidden></ul>";

fn add(tab: &Tab<'_>, title: &str) {
    tab.to_front();
    tab.type_into("[name=title]", title);
    tab.press(&ENTER);
}

/// The titles that were posted, in order; each under an id of its own.
fn titles(stage: &Stage) -> Vec<String> {
    let mut ids = Vec::new();
    let title = |post: String| {
        let form = post.strip_prefix("/add ").unwrap_or_else(|| panic!("{post}")).to_owned();
        let mut fields = form_urlencoded::parse(form.as_bytes()).into_owned();
        let (name, id) = fields.next().expect("an id");
        assert_eq!(name, "id");
        assert_eq!(uuid::Uuid::parse_str(&id).map(|id| id.get_version_num()), Ok(7), "{id}");
        ids.push(id);
        fields.find(|(name, _)| name == "title").expect("a title").1
    };
    let titles: Vec<String> = stage.posted().into_iter().map(title).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), titles.len(), "an id was posted twice: {:?}", stage.posted());
    titles
}

fn waiting(tab: &Tab<'_>) -> Value {
    tab.eval("[...document.querySelectorAll('[data-waiting] li')].map((item) => item.textContent)")
}

#[test]
fn trust_69_posts_of_several_tabs_wait_over_a_restart_and_arrive_in_order() {
    let stage = Stage::start("add", ADD);
    stage.says(&commit(&[]));
    stage.is_down(true);
    let browser = Browser::launch();
    browser.network_may_fail();
    let [two, one] = [(); 2].map(|()| browser.open(&stage.url));
    for tab in [&one, &two] {
        tab.until_live();
    }
    add(&one, "first");
    assert_eq!(one.eval("document.querySelector('[name=title]').value"), "", "the form clears");
    assert_eq!(waiting(&one), json!(["first"]));
    add(&two, "second");
    add(&one, "third");
    one.until(
        "document.querySelector('[data-message]').textContent === '2 to-dos waiting to be saved. Trying again…'
         || document.querySelector('[data-message]').textContent === '3 to-dos waiting to be saved. Trying again…'",
    );
    one.close();
    two.close();

    let later = browser.open(&stage.url);
    later.until_live();
    later.until("document.documentElement.dataset.unsent === '3'");
    assert_eq!(waiting(&later), json!(["first", "second", "third"]));
    add(&later, "fourth");
    assert_eq!(stage.posted(), [""; 0]);
    stage.is_down(false);
    later.until_sent();
    assert_eq!(titles(&stage), ["first", "second", "third", "fourth"]);
    assert!(!later.is_visible("[data-waiting]"));
    later.until("document.querySelector('[data-message]').textContent === ''");
}

#[test]
fn a_tab_that_hangs_holds_up_no_other() {
    let stage = Stage::start("add", ADD);
    stage.says(&commit(&[]));
    let browser = Browser::launch();
    let [hanging, tab] = [(); 2].map(|()| browser.open(&stage.url));
    hanging.eval("navigator.locks.request('stage::', () => new Promise(() => {})); 0");
    hanging.until("navigator.locks.query().then(({ held }) => held.length === 1)");
    add(&tab, "first");
    add(&tab, "second");
    tab.until_sent();
    assert_eq!(titles(&stage), ["first", "second"]);
}

#[test]
fn trust_69_what_was_refused_comes_back_into_its_form() {
    let stage = Stage::start("add", ADD);
    stage.says(&commit(&[]));
    stage.answers(&[
        "422 Unprocessable Entity\r\nContent-Type: application/problem+json\n\n\
         {\"code\":\"event-refused\",\"detail\":\"Too short.\",\"advice\":\"Write more.\"}",
        "409 Conflict\r\nContent-Type: application/problem+json\n\n{\"code\":\"id-taken\",\"detail\":\"Taken.\"}",
    ]);
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&stage.url);
    tab.until_live();
    add(&tab, "milk");
    tab.until("document.querySelector('[name=title]').value === 'milk'");
    assert_eq!(tab.text("[data-message]"), "“milk” was not saved. Too short. Write more.");
    assert_eq!(waiting(&tab), json!([]));
    tab.press(&ENTER);
    tab.until("document.querySelector('[data-message]').textContent === '“milk” was not saved. Taken.'");
    tab.until("document.querySelector('[name=title]').value === 'milk'");
    add(&tab, "milk, 2 l");
    tab.until_sent();
    assert_eq!(titles(&stage), ["milk", "milk", "milk, 2 l"]);
    assert_eq!(tab.eval("localStorage.length"), 0);
}

#[test]
fn trust_69_what_was_refused_waits_for_a_form_in_which_somebody_types() {
    let stage = Stage::start("add", ADD);
    stage.says(&commit(&[]));
    stage.is_down(true);
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&stage.url);
    tab.until_live();
    add(&tab, "milk");
    tab.type_into("[name=title]", "bre");
    stage.answers(&["422 No\r\nContent-Type: application/problem+json\n\n\
                     {\"code\":\"event-refused\",\"detail\":\"Too short.\"}"]);
    stage.is_down(false);
    tab.until("document.querySelector('[data-message]').textContent === '“milk” was not saved. Too short.'");
    assert_eq!(tab.eval("document.querySelector('[name=title]').value"), "bre");
    add(&tab, "bread");
    tab.until("document.querySelector('[name=title]').value === 'milk'");
    tab.until_sent();
    assert_eq!(titles(&stage), ["milk", "bread"]);
}

#[test]
fn trust_69_what_is_said_of_the_moment_deletes_nothing() {
    let stage = Stage::start("add", ADD);
    stage.says(&commit(&[]));
    stage.answers(&[
        "403 Forbidden\r\nContent-Type: application/problem+json\n\n{\"code\":\"host-not-public\",\"detail\":\"Not here.\"}",
        "404 Not Found\r\nContent-Type: application/problem+json\n\n{\"code\":\"not-found\"}",
        "413 Payload Too Large\r\nContent-Type: application/problem+json\n\n{\"code\":\"body-too-large\"}",
        "400 Bad Request\r\nContent-Type: application/problem+json\n\n{\"code\":\"bad-request\"}",
    ]);
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&stage.url);
    tab.until_live();
    add(&tab, "milk");
    tab.until_sent();
    let posted = stage.posted();
    assert_eq!(posted.len(), 5);
    assert!(posted.iter().all(|post| *post == posted[0]), "{posted:?}");
}

#[test]
fn trust_69_likes_wait_while_a_hub_is_not_public() {
    let data = data_dir();
    let public = ["--listen", "127.0.0.1:0", "--allow-host", "hub.example", "--public"];
    let server = Server::start_with(data.path(), &public);
    let port = server.port();
    let listen = format!("127.0.0.1:{port}");
    let browser = Browser::launch();
    browser.network_may_fail();
    browser.may_complain("The Cross-Origin-Opener-Policy header has been ignored");
    let tab = browser.open(&format!("http://hub.example:{port}/"));
    tab.until_live();
    tab.like();
    tab.until_sent();
    server.kill();

    let server = Server::start_with(data.path(), &["--listen", &listen, "--allow-host", "hub.example"]);
    for _ in 0..3 {
        tab.like();
    }
    tab.until(
        "performance.getEntriesByType('resource').some((it) => it.name.endsWith('/likes') && it.responseStatus === 403)",
    );
    assert_eq!(tab.eval("document.documentElement.dataset.unsent"), "3");
    assert_eq!(tab.eval("localStorage.length"), 3);
    assert_eq!(tab.count(), 4);
    server.kill();

    let _server = Server::start_with(data.path(), &["--listen", &listen, "--allow-host", "hub.example", "--public"]);
    tab.until_sent();
    tab.until_live();
    tab.until_count(4);
    assert_eq!(stored(data.path(), "likes").len(), 4);
}

#[test]
fn trust_69_a_like_that_an_earlier_version_has_left_is_stored() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    let id = uuid::Uuid::now_v7().to_string();
    tab.eval(&format!("localStorage.setItem('likewise::{id}', '')"));
    tab.leave_by(|tab| drop(tab.eval("location.reload()")));
    tab.until_count(1);
    tab.until("localStorage.length === 0");
    assert_eq!(stored(data.path(), "likes"), [id]);
}

#[test]
fn a_commit_is_shown_at_once_and_takes_nothing_from_who_types() {
    let item = |name: &str| {
        format!(
            "<li><details><summary>{name}</summary>more</details><select><option>1<option>2</select><input type=range>\
             <form method=post action=/rename>\
             <input type=hidden name=todo value={name}><input name=to></form></li>"
        )
    };
    let list = |names: &[&str]| format!("<ul>{}</ul>", names.iter().map(|name| item(name)).collect::<String>());
    let before = [("open", &*list(&["a", "b", "c"])), ("left", "<b>3 left</b>")];
    let page: String = before.iter().map(|(name, html)| fragment(name, html)).collect();
    let stage = Stage::start("rename", &page);
    stage.says(&commit(&before));
    let browser = Browser::launch();
    let tab = browser.open(&stage.url);
    tab.until_live();
    tab.eval("window.form = document.querySelector('[value=b]').form; form.parentElement.firstChild.open = true; 0");
    tab.type_into("[value=b] + input", "half-typed");
    tab.eval("form.elements.to.setSelectionRange(2, 5); window.field = form.elements.to; 0");

    // Half of a commit shows nothing.
    let after = [("open", &*list(&["new", "c", "b"])), ("left", "<b>4 left</b>")];
    let events = commit(&after);
    let (half, rest) = events.split_once("event: left").expect("two fragments");
    stage.mutters(half);
    stage.mutters("event: ping\ndata: ok\n\n");
    assert_eq!(tab.text("b"), "3 left");
    assert_eq!(tab.eval("document.querySelector('[value=new]')"), Value::Null);
    stage.mutters(&format!("event: left{rest}"));
    tab.until("document.querySelector('b').textContent === '4 left'");
    assert_eq!(
        tab.eval("[...document.querySelectorAll('[name=todo]')].map((field) => field.value)"),
        json!(["new", "c", "b"])
    );
    assert_eq!(
        tab.eval("[document.activeElement === field, field.value, field.selectionStart, field.selectionEnd]"),
        json!([true, "half-typed", 2, 5])
    );
    assert_eq!(tab.eval("field.form.elements.todo.value"), "b");
    assert_eq!(tab.eval("document.querySelector('details[open] summary').textContent"), "b");

    // What somebody has typed in stays until they are done, though it is gone elsewhere.
    stage.mutters(&commit(&[("open", &list(&["c"]))]));
    tab.until("document.querySelector('[value=new]') === null");
    assert_eq!(tab.eval("[document.activeElement === field, field.value]"), json!([true, "half-typed"]));
    tab.press(&ENTER);
    tab.until_sent();
    assert!(stage.posted()[0].ends_with("&todo=b&to=half-typed"), "{:?}", stage.posted());
    stage.mutters(&commit(&[("open", &list(&["c", "d"]))]));
    tab.until("document.querySelectorAll('li').length === 2 && document.querySelector('[value=b]') === null");
}

#[test]
fn a_fragment_may_stand_inside_a_paragraph() {
    let stage = Stage::start("add", &format!("<p id=said>There are {} left.</p>", fragment("left", "<b>1</b>")));
    stage.says(&commit(&[("left", "<b>2</b>")]));
    let browser = Browser::launch();
    let tab = browser.open(&stage.url);
    tab.until_live();
    assert_eq!(tab.text("#said"), "There are 2 left.");
    stage.mutters(&commit(&[("left", "<b>3</b>")]));
    tab.until("document.getElementById('said').textContent === 'There are 3 left.'");
}

#[test]
fn trust_41_pages_with_different_parameters_share_a_stream_and_show_their_own() {
    let found = |key: &str, text: &str| (format!("found {key}"), format!("<i>{text}</i>"));
    let both = [found("k1", "milk"), found("k2", "bread")];
    let both: Vec<(&str, &str)> = both.iter().map(|(name, html)| (&**name, &**html)).collect();
    let stage = Stage::start("add", &fragment("found k1", "<i>?</i>"));
    stage.says(&commit(&both));
    let browser = Browser::launch();
    let one = browser.open(&format!("{}/?q=milk&n=1", stage.url));
    one.until("document.querySelector('i').textContent === 'milk'");
    let two = browser.open(&format!("{}/?q=bread", stage.url));
    two.until_live();
    one.to_front();
    one.until_live();
    let streams = stage.streams();
    let wanted = |address: &str| {
        let (_, query) = address.split_once('?').unwrap_or_default();
        let mut sets: Vec<String> = form_urlencoded::parse(query.as_bytes()).map(|(_, set)| set.into_owned()).collect();
        sets.sort();
        sets
    };
    assert_eq!(wanted(&streams.first().expect("a stream").1), ["q=milk&n=1"]);
    assert_eq!(wanted(&streams.last().expect("a stream").1), ["q=bread", "q=milk&n=1"]);

    // Each page takes what it has a place for.
    two.eval("document.querySelector('.live').dataset.key = 'k2'");
    stage.mutters(&commit(&[("found k1", "<i>oat milk</i>"), ("found k2", "<i>rye bread</i>")]));
    one.until("document.querySelector('i').textContent === 'oat milk'");
    two.until("document.querySelector('i').textContent === 'rye bread'");
}

#[test]
fn trust_57_a_form_from_the_back_forward_cache_posts_under_an_id_of_its_own() {
    let id = uuid::Uuid::now_v7();
    let form = format!(
        "<form method=post action=/add><input type=hidden name=id value={id}><input name=title><button>Add</button></form>"
    );
    let stage = Stage::start("add", &form);
    stage.says(&commit(&[]));
    let browser = Browser::launch();
    let tab = browser.open(&format!("{}/?q=milk", stage.url));
    tab.until_live();
    add(&tab, "first");
    tab.until_sent();
    tab.eval("document.querySelector('[name=id]').setAttribute('value', 'used')");
    tab.go(&format!("{}/elsewhere", stage.url));
    tab.back();
    tab.until_live();
    add(&tab, "second");
    tab.until_sent();
    wait_for("both posts", || (stage.posted().len() == 2).then_some(()));
    assert_eq!(titles(&stage), ["first", "second"]);
}

#[test]
fn an_id_has_the_time_of_the_click_and_not_of_the_page() {
    let form = format!(
        "<form method=post action=/add><input type=hidden name=id value={}><input name=title><button>Add</button></form>",
        uuid::Uuid::now_v7()
    );
    let stage = Stage::start("add", &form);
    stage.says(&commit(&[]));
    let browser = Browser::launch();
    let tab = browser.open(&stage.url);
    tab.until_live();
    let millis = |id: &str| u64::from_str_radix(&id.replace('-', "")[..12], 16).expect("a UUID");
    for n in 1..=2 {
        let drawn = tab.eval("document.querySelector('[name=id]').value");
        let drawn = millis(drawn.as_str().expect("an id"));
        tab.until(&format!("Date.now() > {drawn}"));
        let before = tab.eval("Date.now()").as_u64().expect("a time");
        add(&tab, "milk");
        tab.until_sent();
        wait_for("the post", || (stage.posted().len() == n).then_some(()));
        let posted = stage.posted().pop().expect("a post");
        let id = posted.split_once("id=").expect("an id").1.split('&').next().expect("an id").to_owned();
        assert!(millis(&id) >= before && before > drawn, "{id} was minted before {before}");
    }
}
