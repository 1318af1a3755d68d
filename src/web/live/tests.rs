//! Streams, and the frames on them.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::watch;

use super::publisher::{Frames, Groups, frame, pause};
use super::*;
use crate::engine::StoreLimits;
use crate::limits::web::live::GROUP;
use crate::web::metrics::Metrics;
use crate::web::tests::{app, ask};
use crate::web::{Shares, Who};

/// Creates a stream of the fragment in the first slot, and of the status in the second.
fn stream(view: View, shutdown: &CancellationToken) -> LiveStream {
    LiveStream {
        dialect: Dialect::Own,
        view,
        sent: vec![(0, 0), (1, 0)],
        waiting: VecDeque::new(),
        first: None,
        alive: pings(),
        shutdown: shutdown.clone(),
        _following: Following::none(),
        _slot: Shares::new(8, StoreLimits::default()).streams.lend(&Who::Owner, 1).expect("a slot"),
        _open: Metrics::new(&Face::new("test")).stream_opened(),
    }
}

fn html(text: impl std::fmt::Display) -> Html {
    Html::trusted(text.to_string())
}

/// Returns the text of frames without the lines with their ids.
fn without_ids(frames: &[u8]) -> String {
    let text = String::from_utf8(frames.to_vec()).expect("text");
    text.split_inclusive('\n').filter(|line| !line.starts_with("id: ")).collect()
}

/// Returns everything that a stream sends for one update.
async fn update(stream: &mut LiveStream) -> String {
    let mut all = Vec::new();
    loop {
        let bytes = stream.next().await.expect("frames");
        all.extend_from_slice(&bytes);
        if bytes.starts_with(b"event: done\n") {
            return without_ids(&all);
        }
    }
}

#[tokio::test]
async fn trust_41_when_all_streams_are_taken_the_next_is_told_and_likes_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let router =
        crate::web::routes(app(dir.path(), crate::likes::schema(), StoreLimits::default(), 2)).expect("routes");
    let first = ask(&router, "GET", "/live").await;
    let second = ask(&router, "GET", "/s/work/live").await;
    assert_eq!([first.status(), second.status()], [StatusCode::OK; 2]);
    assert_eq!(ask(&router, "GET", "/live").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask(&router, "POST", "/likes").await.status(), StatusCode::SEE_OTHER);
    assert_eq!(ask(&router, "GET", "/").await.status(), StatusCode::OK);
    drop(first);
    assert_eq!(ask(&router, "GET", "/live").await.status(), StatusCode::OK, "a place is free again");
    drop(second);
}

#[tokio::test]
async fn trust_64_pages_of_visitors_keep_so_many_stores_open_and_leave_room_for_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = StoreLimits { open: 8, ..StoreLimits::default() };
    let app = app(dir.path(), crate::likes::schema(), limits, 100);
    let strangers = crate::web::routes(Arc::clone(&app)).expect("routes");
    let owners = crate::web::protect(crate::web::routes(app).expect("routes"), crate::web::Policy::default());
    for store in 0..8 {
        assert_eq!(ask(&owners, "POST", &format!("/s/{store}/likes")).await.status(), StatusCode::SEE_OTHER);
    }
    let mut streams = Vec::new();
    for store in 0..8 {
        streams.push(ask(&strangers, "GET", &format!("/s/{store}/live")).await);
    }
    let live = streams.iter().filter(|stream| stream.status() == StatusCode::OK).count();
    assert_eq!(live, 6, "one place is the owner's, and one is for those who need a store for a moment");
    assert_eq!(ask(&strangers, "GET", "/s/0/live").await.status(), StatusCode::OK, "the same store takes no other");
    for store in 0..10 {
        assert_eq!(ask(&owners, "POST", &format!("/s/{store}/likes")).await.status(), StatusCode::SEE_OTHER);
    }
    assert_eq!(ask(&owners, "GET", "/s/7/live").await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_says_every_8_seconds_that_it_is_alive() {
    let (frames, receiver) = watch::channel(Frames::default());
    let shutdown = CancellationToken::new();
    let (view, call) = View::of(receiver);
    let mut stream = stream(view, &shutdown);
    let start = tokio::time::Instant::now();
    for seconds in [8, 16, 24] {
        assert_eq!(stream.next().await.as_deref(), Some(&b"event: ping\ndata: ok\n\n"[..]));
        assert_eq!(start.elapsed().as_secs(), seconds);
    }
    frames.send_modify(|frames| {
        frames.set(0, 1, frame("likes", &html("<p>1</p>")));
    });
    call.send_replace(());
    assert_eq!(stream.next().await.as_deref(), Some(&b"event: likes\ndata: <p>1</p>\n\n"[..]));
    assert_eq!(without_ids(&stream.next().await.expect("a frame")), "event: done\ndata: ok\n\n");
    shutdown.cancel();
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn trust_48_who_reads_seldom_gets_the_newest_of_each_fragment() {
    let (frames, receiver) = watch::channel(Frames::default());
    let (view, _call) = View::of(receiver);
    let mut stream = stream(view, &CancellationToken::new());
    let set = |slot, version, name, text: String| {
        frames.send_modify(|frames| {
            frames.set(slot, version, frame(name, &html(text)));
        });
    };
    for count in 0..1_000 {
        set(0, count + 1, "likes", count.to_string());
        set(1, count + 1, "status", format!("{} pending", count / 10));
    }
    let all = update(&mut stream).await;
    assert_eq!(all, "event: likes\ndata: 999\n\nevent: status\ndata: 99 pending\n\nevent: done\ndata: ok\n\n");
    set(0, 1_001, "likes", "1000".to_owned());
    assert_eq!(update(&mut stream).await, "event: likes\ndata: 1000\n\nevent: done\ndata: ok\n\n", "only what changed");
}

#[tokio::test]
async fn who_comes_back_with_the_newest_version_is_told_so_and_gets_nothing_else() {
    let (frames, receiver) = watch::channel(Frames::default());
    let set = |slot, version, text: &str| {
        frames.send_modify(|frames| {
            frames.set(slot, version, frame(["likes", "status"][slot], &html(text)));
        });
    };
    let begin = |known: Option<Version>| {
        let stream = stream(View::of(receiver.clone()).0, &CancellationToken::new());
        LiveStream { first: Some(First { known }), ..stream }
    };
    let all = async |mut stream: LiveStream| {
        let mut text = String::new();
        while !text.ends_with("data: ok\n\n") {
            text.push_str(std::str::from_utf8(&stream.next().await.expect("a frame")).expect("text"));
        }
        let id = text.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").parse().ok();
        let retry =
            text.lines().find_map(|line| line.strip_prefix("retry: ")).expect("a time").parse().expect("a number");
        assert!((1_000..=5_000).contains(&retry), "{text}");
        (text.lines().filter(|line| !line.starts_with("id: ") && !line.starts_with("retry: ")).collect::<String>(), id)
    };
    set(0, 1, "1");
    set(1, 1, "fine");
    let (text, first) = all(begin(None)).await;
    assert_eq!(text, "event: likesdata: 1event: statusdata: fineevent: donedata: ok");
    assert_eq!(all(begin(first)).await, ("event: currentdata: ok".to_owned(), first));
    set(0, 2, "2");
    let (text, second) = all(begin(first)).await;
    assert_eq!(text, "event: likesdata: 2event: statusdata: fineevent: donedata: ok");
    set(0, 3, "1");
    assert_ne!(first, second);
    assert_eq!(all(begin(first)).await.0, "event: currentdata: ok", "what it shows is what it has to show");
}

#[tokio::test]
async fn streams_of_one_dialect_share_one_frame() {
    let (frames, receiver) = watch::channel(Frames::default());
    frames.send_modify(|frames| {
        frames.set(0, 1, frame("likes", &html("1")));
    });
    let first = async |dialect| {
        let stream = stream(View::of(receiver.clone()).0, &CancellationToken::new());
        LiveStream { dialect, ..stream }.next().await.expect("a frame")
    };
    for dialect in [Dialect::Own, Dialect::Htmx, Dialect::Datastar, Dialect::Turbo] {
        let (one, other) = (first(dialect).await, first(dialect).await);
        assert_eq!(one.as_ptr(), other.as_ptr(), "{dialect:?}: it was framed twice");
        assert_ne!(dialect == Dialect::Own, one != first(Dialect::Own).await, "{dialect:?}");
    }
}

#[tokio::test]
async fn a_stream_in_another_dialect_takes_the_parameters_of_one_page() {
    let dir = tempfile::tempdir().expect("a directory");
    let router =
        crate::web::routes(app(dir.path(), crate::likes::schema(), StoreLimits::default(), 9)).expect("routes");
    for fine in ["as=htmx", "x=1&as=datastar", "as=turbo&x=%61s", "a%73=turbo", "xas=none"] {
        assert_eq!(ask(&router, "GET", &format!("/live?{fine}")).await.status(), StatusCode::OK, "{fine}");
    }
    for wrong in ["as=", "as", "as=own", "as=HTMX", "as=htmx&as=none", "as=turbo&live=", "live=&as=htmx"] {
        assert_eq!(ask(&router, "GET", &format!("/live?{wrong}")).await.status(), StatusCode::BAD_REQUEST, "{wrong}");
    }
    assert_eq!(dialect("b=%ff&as=turbo&c=1").ok(), Some((Dialect::Turbo, "b=%ff&c=1".to_owned())));
}

#[test]
fn trust_37_no_text_can_break_out_of_its_frame() {
    let text = frame("status", &html("one\n\nevent: likes\r\rdata: two\r\n\r\nid: 3\n"));
    let text = String::from_utf8(text.to_vec()).expect("text");
    let (body, rest) = text.split_once("\n\n").expect("an end");
    assert_eq!(rest, "");
    let mut lines = body.split(['\r', '\n']);
    assert_eq!(lines.next(), Some("event: status"));
    assert!(lines.all(|line| line.starts_with("data: ")), "{text:?}");
}

#[tokio::test]
async fn each_stream_hears_of_a_change_however_many_there_are() {
    let groups = Groups::default();
    let streams = 3 * GROUP + 1;
    let mut calls: Vec<_> = (0..streams).map(|_| groups.join()).collect();
    assert_eq!(groups.len(), 4);
    groups.call().await;
    assert!(calls.iter().all(|calls| calls.has_changed().is_ok_and(|changed| changed)));
    // Those who come later take the places of those who left.
    calls.drain(..GROUP + 1);
    calls.extend((0..GROUP).map(|_| groups.join()));
    assert_eq!(groups.len(), 4);
    drop(groups);
    assert!(calls.iter().all(|calls| calls.has_changed().is_err()), "nobody tells of changes any more");
}

#[test]
fn the_pause_between_updates_grows_with_the_pages() {
    assert_eq!([0, 2_000, 1_000_000].map(|pages| pause(pages).as_millis()), [16, 258, 500]);
    assert!(pause(10) < pause(500));
}
