//! The list of all stores, and the way to a new one.

use crate::client::{listing, new_id};
use crate::common::{Server, data_dir};

/// The names of the stores on a page of the list, with what it says of each.
fn listed(page: &str) -> Vec<(String, String)> {
    let text = |html: &str| html.split('<').next().unwrap_or_default().trim().to_owned();
    let (_, lists) = page.split_once("<ul class=\"stores\">").unwrap_or_default();
    let store = |item: &str| {
        let (_, name) = item.split_once("/\">").expect("a link");
        let (_, words) = name.split_once("<span").and_then(|(_, rest)| rest.split_once('>')).expect("words");
        (text(name), text(words))
    };
    lists.split("<li>").skip(1).map(store).collect()
}

#[test]
fn the_list_has_every_store_with_its_count_and_items_last() {
    let data = data_dir();
    let server = Server::start(data.path());
    for (store, likes) in [("work", 2), ("item-post", 3), ("attic", 1)] {
        (0..likes).for_each(|_| server.like(&format!("/s/{store}"), &new_id()));
    }
    let page = server.get("/stores");
    assert_eq!((page.status, page.header("cache-control")), (200, "no-store"), "{page:?}");
    let expected = [("likes", "0 likes"), ("attic", "1 like"), ("work", "2 likes"), ("item-post", "3 likes")];
    assert_eq!(listed(&page.body), expected.map(|(name, words)| (name.to_owned(), words.to_owned())));
    assert!(page.body.contains("<a href=\"/\">likes</a>") && page.body.contains("<a href=\"/s/work/\">work</a>"));
    assert!(page.body.find("Items on other sites") > page.body.find("/s/work/"), "{}", page.body);
    // It is the same list from everywhere, and not a part of a store.
    assert_eq!(server.get("/s/work/stores").status, 404);
}

#[test]
fn a_name_leads_to_its_store_and_makes_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let before = listing(data.path());
    for (name, expected) in [("work", "/s/work/"), ("likes", "/"), ("+work+", "/s/work/")] {
        let answer = server.get(&format!("/stores?name={name}"));
        assert_eq!((answer.status, answer.header("location")), (303, expected), "{name}");
    }
    let answer = server.get("/stores?name=My+%3CStore%3E");
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("“<bdi>My &#60;Store&#62;</bdi>” can’t be the name of a store."), "{}", answer.body);
    assert!(answer.body.contains("How about <a href=\"/stores?name=my-store\">my-store</a>?"), "{}", answer.body);
    assert!(answer.body.contains("value=\"My &#60;Store&#62;\""), "what was typed is still there: {}", answer.body);
    assert_eq!(listing(data.path()), before);
}

#[test]
fn many_stores_have_pages_and_can_be_found() {
    let data = data_dir();
    let server = Server::start(data.path());
    for n in 0..120 {
        server.like(&format!("/s/store-{n:03}"), &new_id());
    }
    let (mut path, mut names, mut pages) = ("/stores".to_owned(), Vec::new(), 0);
    loop {
        let page = server.get(&path);
        names.extend(listed(&page.body).into_iter().map(|(name, words)| {
            assert!(words == "1 like" || name == "likes", "{name}: {words}");
            name
        }));
        pages += 1;
        if !page.body.contains("class=\"more\"") {
            break;
        }
        path = page.between("class=\"more\" href=\"", "\"").replace("&amp;", "&");
    }
    let expected: Vec<_> =
        std::iter::once("likes".to_owned()).chain((0..120).map(|n| format!("store-{n:03}"))).collect();
    assert_eq!((names, pages), (expected, 3));

    let found = server.get("/stores?find=E-11");
    assert_eq!(listed(&found.body).len(), 10);
    assert!(found.body.contains("10</span> stores with “<bdi>E-11</bdi>” in the name"), "{}", found.body);
    assert!(server.get("/stores?find=%22%3E%3Cb").body.contains("&#34;&#62;&#60;b"));
}

#[test]
fn under_a_base_path_the_list_leads_to_stores_under_it() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--base-path", "/tools/likes"]);
    server.like("/tools/likes/s/work", &new_id());
    let page = server.get("/tools/likes/stores");
    for link in ["/tools/likes/s/work/", "/tools/likes/", "/tools/likes/history", "/tools/likes/stores"] {
        assert!(page.body.contains(&format!("\"{link}\"")), "{link}: {}", page.body);
    }
    let answer = server.get("/tools/likes/stores?name=work");
    assert_eq!(answer.header("location"), "/tools/likes/s/work/");
    let history = server.get("/tools/likes/s/work/history");
    assert!(history.body.contains("<h1 data-numbers>1 like</h1>"), "{}", history.body);
}
