//! Error answers. A handler says what went wrong as a [`Problem`]; one place turns it into a page for people or into
//! `application/problem+json` for programs, so that no answer of ours is ever a bare status or a library's plain text.

use std::borrow::Cow;
use std::fmt::Display;

use askama::Template;
use axum::body::Body;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

/// What went wrong with a request, in words for whoever reads the answer (problem details, RFC 9457).
///
/// As a response it is only a status and itself in the extensions: [`render`] gives it its form.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    advice: Cow<'static, str>,
    retry_after: Option<u32>,
    members: Option<Box<Map<String, Value>>>,
}

impl Problem {
    /// `code` is for programs and never changes; `detail` says what happened, to what; `advice` what to do next.
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        debug_assert!(is_failure(status), "BUG: {status} is no status of a problem");
        Self { status, code, detail: detail.into(), advice: advice.into(), retry_after: None, members: None }
    }

    /// 400: the request can't be understood, and won't be when it is repeated.
    pub(crate) fn bad_request(
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail, advice)
    }

    /// 403: understood and refused, whoever asks.
    pub(crate) fn forbidden(
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail, advice)
    }

    /// 409: the request doesn't fit the state of what it asks for.
    pub(crate) fn conflict(
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail, advice)
    }

    /// 503: not now; the same request can succeed in `retry_after` seconds.
    pub(crate) fn unavailable(
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
        retry_after: u32,
    ) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail, advice).retry_after(retry_after)
    }

    /// 500: the fault is ours. `error` goes to the log with its causes; the answer shows nothing of it.
    pub(crate) fn internal(error: impl Display) -> Self {
        tracing::error!(error = %format_args!("{error:#}"), "a request failed");
        Self::of_status(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Adds the `Retry-After` header, in seconds.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Adds an extension member to the JSON form. Pages don't show it.
    pub(crate) fn with(mut self, member: &'static str, value: impl Into<Value>) -> Self {
        debug_assert!(!RESERVED.contains(&member), "BUG: {member} is a member of every problem");
        self.members.get_or_insert_default().insert(member.to_owned(), value.into());
        self
    }

    /// The problem behind a bare status: the router's 404 and 405, an extractor's 400.
    fn of_status(status: StatusCode) -> Self {
        let (code, detail, advice) = match status {
            StatusCode::BAD_REQUEST => (
                "bad-request",
                "The request is not in a form that this address understands.",
                "Go back, reload the page and try again.",
            ),
            StatusCode::UNAUTHORIZED => (
                "unauthorized",
                "This address needs a valid token.",
                "Add a device at the hub with `likewise token add NAME` and use the token that it prints.",
            ),
            StatusCode::FORBIDDEN => {
                ("forbidden", "This request is not allowed.", "Use the program from its own page.")
            }
            StatusCode::NOT_FOUND => {
                ("not-found", "Likewise knows no such address.", "Check it for typing errors, or go to the start page.")
            }
            StatusCode::METHOD_NOT_ALLOWED => (
                "method-not-allowed",
                "This address exists, but not for requests of this method.",
                "Use one of the methods in the Allow header, or go to the start page.",
            ),
            StatusCode::REQUEST_TIMEOUT => (
                "request-timeout",
                "The request did not arrive in time, so the connection was closed.",
                "Try again. On a slow network, send less at once.",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("body-too-large", "The request carries more data than this address takes.", "Send less at once.")
            }
            StatusCode::URI_TOO_LONG => (
                "uri-too-long",
                "The address of the request is too long.",
                "Check the address, or go to the start page.",
            ),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => (
                "unsupported-media-type",
                "The request carries data in a format that this address doesn't take.",
                "Send a form to pages and JSON to programs, with the matching Content-Type.",
            ),
            StatusCode::UNPROCESSABLE_ENTITY => (
                "unprocessable",
                "The data of the request has the right format, but not the expected content.",
                "Go back, reload the page and try again.",
            ),
            StatusCode::TOO_MANY_REQUESTS => {
                ("too-many-requests", "There were too many requests in a short time.", "Wait a moment and try again.")
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
                "headers-too-large",
                "The headers of the request are too large.",
                "Clear the cookies of this address: all programs of one machine share them.",
            ),
            StatusCode::SERVICE_UNAVAILABLE => {
                ("unavailable", "The program can't do this right now.", "Wait a moment and try again.")
            }
            status if status.is_server_error() => (
                "internal",
                "Something went wrong inside the program. Nothing that was confirmed before is lost.",
                "Try again. If it happens again, look into the log of the program.",
            ),
            _ => ("refused", "The request can't be answered.", "Go to the start page and try again."),
        };
        Self::new(status, code, detail, advice)
    }

    fn into_json(self) -> String {
        let mut members = self.members.map(|members| *members).unwrap_or_default();
        members.insert("type".to_owned(), "about:blank".into());
        members.insert("title".to_owned(), reason(self.status).into());
        members.insert("status".to_owned(), self.status.as_u16().into());
        members.insert("code".to_owned(), self.code.into());
        members.insert("detail".to_owned(), self.detail.into());
        if !self.advice.is_empty() {
            members.insert("advice".to_owned(), self.advice.into());
        }
        Value::Object(members).to_string()
    }

    fn into_page(self, home: String) -> String {
        let page = ErrorPage {
            status: self.status.as_u16(),
            title: title(self.status),
            detail: &self.detail,
            advice: &self.advice,
            assets: &crate::web::ASSETS_VERSION,
            home,
        };
        page.render().unwrap_or_else(|error| {
            tracing::error!(%error, "the error page could not be rendered");
            title(self.status).to_owned()
        })
    }
}

/// A problem in general words, where the status says it all.
impl From<StatusCode> for Problem {
    fn from(status: StatusCode) -> Self {
        Self::of_status(status)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives an answer to `method uri` its final form. Answers below 400 pass; any other becomes its [`Problem`], or the
/// one made from its status, as JSON (where the path or the request asks for it) or as a page. Whatever body it had is
/// dropped: it was never meant for a reader.
pub(crate) fn render(method: &Method, uri: &Uri, asks_for_json: bool, response: Response) -> Response {
    if !is_failure(response.status()) {
        return response;
    }
    let (mut head, _) = response.into_parts();
    let problem = head.extensions.remove::<Problem>().unwrap_or_else(|| {
        if head.status.is_server_error() {
            tracing::error!(%method, path = uri.path(), status = head.status.as_u16(), "a request failed");
        }
        Problem::of_status(head.status)
    });
    tracing::debug!(%method, path = uri.path(), status = problem.status.as_u16(), code = problem.code, "refused");

    let status = problem.status;
    let retry_after = problem.retry_after;
    let (media_type, body) = if asks_for_json || speaks_json(uri.path()) {
        ("application/problem+json", problem.into_json())
    } else {
        ("text/html; charset=utf-8", problem.into_page(home(uri)))
    };

    let length = body.len();
    let mut answer = Response::new(match *method {
        Method::HEAD => Body::empty(),
        _ => Body::from(body),
    });
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for name in KEPT {
        if let Some(value) = head.headers.remove(&name) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if LEAVES_BODY_UNREAD.contains(&status) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Whether a request wants JSON rather than a page. Browsers that go to an address, and programs that don't care, don't
/// name it.
pub(super) fn asks_for_json(headers: &HeaderMap) -> bool {
    let accepts = |media_types: &[&str]| {
        let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let weights = ranges.flat_map(|value| value.split(',')).filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next()?.to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok())?;
            media_types.contains(&media_type.as_str()).then_some(weight)
        });
        weights.fold(0.0, f32::max)
    };
    accepts(&["application/json", "application/problem+json"]) > accepts(&["text/html"])
}

/// The path as it would be under the default store: `/s/work/live` and `/live` are the same route.
pub(super) fn storeless(path: &str) -> &str {
    match split_store(path) {
        Some((_, rest)) => rest,
        None => path,
    }
}

/// Headers of the original answer that still hold for the rendered one.
const KEPT: [HeaderName; 2] = [header::ALLOW, header::RETRY_AFTER];

/// After these the rest of the request is still on its way, and is not worth reading.
const LEAVES_BODY_UNREAD: [StatusCode; 2] = [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::REQUEST_TIMEOUT];

/// Members that every problem has, and that [`Problem::with`] therefore can't add.
const RESERVED: [&str; 6] = ["type", "title", "status", "code", "detail", "advice"];

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    status: u16,
    title: &'static str,
    detail: &'a str,
    advice: &'a str,
    assets: &'a str,
    home: String,
}

fn is_failure(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

fn speaks_json(path: &str) -> bool {
    let path = storeless(path);
    matches!(path, "/status" | "/healthz") || path.starts_with("/sync/") || path.starts_with("/control/")
}

/// The start page of the store that was asked for. Only a well-formed store id finds its way into the link.
fn home(uri: &Uri) -> String {
    match split_store(uri.path()) {
        Some((store, _)) if is_store_id(store) => format!("/s/{store}/"),
        _ => "/".to_owned(),
    }
}

/// `/s/work/live` is (`work`, `/live`). The segment is taken as it stands in the URI, which is how the router matches.
fn split_store(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/s/")?;
    Some(rest.split_at(rest.find('/')?))
}

fn is_store_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 63 && text.bytes().next().is_some_and(plain) && text.bytes().all(|byte| plain(byte) || byte == b'-')
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

/// A heading for people. Programs get the registered reason phrase.
fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => "That can’t be understood",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "That’s not allowed",
        StatusCode::NOT_FOUND => "Nothing here to like",
        StatusCode::METHOD_NOT_ALLOWED => "That can’t be done here",
        StatusCode::CONFLICT => "That doesn’t fit",
        StatusCode::REQUEST_TIMEOUT => "That took too long",
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "That’s too much"
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "Not right now",
        status if status.is_server_error() => "Something went wrong",
        _ => "That didn’t work",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body in memory");
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    fn answer(path: &'static str, response: impl IntoResponse) -> Response {
        render(&Method::GET, &Uri::from_static(path), false, response.into_response())
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
        let response =
            render(&Method::POST, &Uri::from_static("/likes"), true, StatusCode::BAD_REQUEST.into_response());
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
            assert_eq!(home(&Uri::from_static(path)), expected, "{path}");
        }
    }
}
