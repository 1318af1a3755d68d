//! Problems as pages and as JSON.

use super::*;

async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body in memory");
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn answer(path: &'static str, response: impl IntoResponse) -> Response {
    render(&Face::new("likewise"), &Method::GET, &Uri::from_static(path), false, response.into_response())
}

#[tokio::test]
async fn programs_get_problem_details_and_people_a_page() {
    let problem = || Problem::conflict("diverged", "The logs differ at <7>.", "Pull first.").with("head", 12);
    for path in ["/status", "/healthz", "/s/work/status", "/sync/v1/likes/events", "/control/export"] {
        let response = answer(path, problem());
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        let json: Value = serde_json::from_str(&text(response).await).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "type": "about:blank", "title": "Conflict", "status": 409, "code": "diverged",
                "detail": "The logs differ at <7>.", "advice": "Pull first.", "head": 12,
            })
        );
    }
    for path in ["/", "/likes", "/live", "/s/work/", "/s/status", "/statuses", "/sync"] {
        let response = answer(path, problem());
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        let page = text(response).await;
        assert!(page.contains("The logs differ at &#60;7&#62;.") && page.contains("Pull first."), "{page}");
    }
}

#[test]
fn json_is_for_who_prefers_it_to_a_page() {
    for (accept, expected) in [
        ("application/json", true),
        ("application/problem+json, */*;q=0.1", true),
        ("Application/JSON;charset=utf-8, text/html;q=0.9", true),
        ("application/json;q=0", false),
        ("application/json;q=much", false),
        ("text/html, application/json;q=0.9", false),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
        ("text/event-stream", false),
        ("*/*", false),
        ("", false),
    ] {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
        assert_eq!(asks_for_json(&headers), expected, "{accept}");
    }
    assert!(!asks_for_json(&HeaderMap::new()));
    let response = render(
        &Face::new("likewise"),
        &Method::POST,
        &Uri::from_static("/likes"),
        true,
        StatusCode::BAD_REQUEST.into_response(),
    );
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
}

#[tokio::test]
async fn bare_failures_get_words_and_lose_their_body() {
    for status in (400..=599).filter_map(|code| StatusCode::from_u16(code).ok()) {
        let response = answer("/status", (status, "SECRET: stack trace"));
        assert_eq!(response.status(), status);
        let body = text(response).await;
        assert!(!body.contains("SECRET"), "{body}");
        let json: Value = serde_json::from_str(&body).expect("JSON");
        for member in ["code", "detail", "advice", "title"] {
            assert!(json[member].as_str().is_some_and(|text| !text.is_empty()), "{json}");
        }
    }
    let fine = answer("/status", (StatusCode::OK, "as it was"));
    assert_eq!(text(fine).await, "as it was");
}

#[tokio::test]
async fn what_still_holds_is_kept() {
    let response = answer("/", (StatusCode::METHOD_NOT_ALLOWED, [("allow", "GET,HEAD"), ("etag", "\"1\"")], "no"));
    assert_eq!(response.headers()[header::ALLOW], "GET,HEAD");
    assert!(!response.headers().contains_key(header::ETAG));

    let busy = answer("/", Problem::unavailable("overload", "Too much at once.", "Try again.", 2));
    assert_eq!(busy.headers()[header::RETRY_AFTER], "2");

    let token = answer("/sync/v1/likes/events", StatusCode::UNAUTHORIZED);
    assert_eq!(token.headers()[header::WWW_AUTHENTICATE], "Bearer");
}

#[tokio::test]
async fn trust_37_internal_errors_are_not_shown_and_hostile_words_are_inert() {
    let hidden = text(answer("/", Problem::internal("disk I/O error in /home/a/eventlog.db"))).await;
    assert!(!hidden.contains("eventlog.db"), "{hidden}");

    let hostile = "<script>alert(1)</script>";
    let page = text(answer("/", Problem::bad_request("x", hostile, hostile))).await;
    assert!(!page.contains("<script>"), "{page}");
}

#[test]
fn the_way_home_leads_to_the_store_that_was_asked_for() {
    for (path, expected) in [
        ("/", "/"),
        ("/live", "/"),
        ("/s/work/live", "/s/work/"),
        ("/s/Work/live", "/"),
        ("/s//live", "/"),
        ("/s/-a/live", "/"),
        ("/s/a%22b/live", "/"),
        ("/s/work", "/"),
    ] {
        assert_eq!(home(&BasePath::default(), &Uri::from_static(path)), expected, "{path}");
        let under = home(&"/base".parse().expect("a path"), &Uri::from_static(path));
        assert_eq!(under, format!("/base{expected}"), "{path}");
    }
}
