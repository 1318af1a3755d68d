//! Error answers. A handler says what went wrong as a [`Problem`]. One place turns it into a page for people or
//! `application/problem+json` for programs, so no answer is ever a bare status or a library's plain text.

mod of_engine;
mod words;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use askama::Template;
use axum::body::Body;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use self::words::{reason, title};
use super::BasePath;
use super::face::Face;
use super::fields::Fields;
use super::typed::Filled;

/// The code of an event that can't be stored, now or later, because its materializer or the hub refuses it.
const EVENT_REFUSED: &str = "event-refused";

/// What went wrong with a request, in words for the reader of the answer (problem details, RFC 9457).
///
/// As a response it is a bare status, with itself in the extensions. [`render`] gives it its form.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    advice: Cow<'static, str>,
    retry_after: Option<u32>,
    /// Whether the connection ends with the answer.
    ends_connection: bool,
    members: Option<Box<Map<String, Value>>>,
    typed: Option<Box<Typed>>,
}

/// A form that was not stored, so that a person can correct it and post it again.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    pub(crate) action: String,
    pub(crate) id: String,
    /// The fields that a person can correct: names and values.
    pub(crate) shown: Vec<(String, String)>,
    /// The fields that the form sends along unseen.
    pub(crate) hidden: Vec<(String, String)>,
}

impl Typed {
    /// Sorts `fields` by what the page with the form knows of them.
    pub(crate) fn new(action: String, id: String, fields: &Fields, known: &BTreeMap<String, Filled>) -> Self {
        let mut typed = Self { action, id, shown: Vec::new(), hidden: Vec::new() };
        for (name, value) in fields.iter() {
            // Nobody types an id.
            let is_shown = known.get(name).map_or(!Fields::is_id(value), |filled| *filled == Filled::ByHand);
            let fields = if is_shown { &mut typed.shown } else { &mut typed.hidden };
            fields.push((name.to_owned(), value.to_owned()));
        }
        typed
    }

    /// Shows the field `name`, because it is the one at fault.
    fn show(&mut self, name: &str) {
        let is_it = |field: &mut (String, String)| field.0 == name;
        self.shown.extend(self.hidden.extract_if(.., is_it));
    }
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
        Self {
            status,
            code,
            detail: detail.into(),
            advice: advice.into(),
            retry_after: None,
            ends_connection: false,
            members: None,
            typed: None,
        }
    }

    /// Returns its code, which is for programs.
    pub(crate) fn code(&self) -> &'static str {
        self.code
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

    /// Adds the `Retry-After` header, for somebody who has to wait that long. A whole second more is never too early.
    pub(crate) fn retry_in(self, wait: Duration) -> Self {
        self.retry_after(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// Ends the connection with the answer. The next try makes a new one, which a load balancer may lead to somebody who can do
    /// what this server can't.
    pub(crate) fn ends_connection(mut self) -> Self {
        self.ends_connection = true;
        self
    }

    /// Adds an extension member to the JSON form. Pages don't show it.
    pub(crate) fn with(mut self, member: &'static str, value: impl Into<Value>) -> Self {
        debug_assert!(!RESERVED.contains(&member), "BUG: {member} is a member of every problem");
        self.members.get_or_insert_default().insert(member.to_owned(), value.into());
        self
    }

    /// Shows the form again below the problem, with what was typed. The advice is then to correct it, unless the same
    /// post may succeed later. Without a typed field there is nothing to correct, and no form.
    pub(crate) fn with_typed(mut self, mut typed: Typed) -> Self {
        if let Some(field) = self.members.as_ref().and_then(|members| members.get("field")?.as_str()) {
            typed.show(field);
        }
        let may_succeed = self.is_about_the_moment();
        // The words of a refusal stand alone.
        if !may_succeed && !typed.shown.is_empty() && !self.advice.is_empty() {
            self.advice = "Nothing was stored. Correct it and post it again.".into();
        }
        self.typed = (may_succeed || !typed.shown.is_empty()).then(|| Box::new(typed));
        self
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_about_the_moment(&self) -> bool {
        self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS
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

    fn into_page(self, face: &Face, home: String) -> String {
        let page = ErrorPage {
            face,
            typed: self.typed.as_deref(),
            status: self.status.as_u16(),
            title: match self.code {
                EVENT_REFUSED => "Not saved",
                _ if self.status == StatusCode::NOT_FOUND => face.lost,
                _ => title(self.status),
            },
            detail: &self.detail,
            advice: &self.advice,
            home,
        };
        page.render().unwrap_or_else(|error| {
            tracing::error!(%error, "the error page could not be rendered");
            title(self.status).to_owned()
        })
    }
}

/// A problem in general words, where the status says enough.
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

/// Gives the answer to `method uri` its final form. Answers below 400 pass. Any other becomes its [`Problem`], or the
/// one for its status: as JSON if the path or the request asks for it, or else as a page. Any other body is dropped,
/// because it was never meant for a reader.
pub(crate) fn render(face: &Face, method: &Method, uri: &Uri, asks_for_json: bool, response: Response) -> Response {
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
    let (retry_after, ends_connection) = (problem.retry_after, problem.ends_connection);
    let (media_type, body) = if asks_for_json || speaks_json(uri.path()) {
        ("application/problem+json", problem.into_json())
    } else {
        ("text/html; charset=utf-8", problem.into_page(face, home(&face.base_path, uri)))
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
    if ends_connection || LEAVES_BODY_UNREAD.contains(&status) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Whether a request prefers JSON to a page. Browsers on their way to an address and programs that don't care never
/// name JSON.
pub(in crate::web) fn asks_for_json(headers: &HeaderMap) -> bool {
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

/// The path, below the base path, as it would be under the default store: `/s/work/live` and `/live` are the same route.
pub(in crate::web) fn storeless(path: &str) -> &str {
    match split_store(path) {
        Some((_, rest)) => rest,
        None => path,
    }
}

/// Headers of the original answer that also hold for the rendered one.
const KEPT: [HeaderName; 2] = [header::ALLOW, header::RETRY_AFTER];

/// With these, the rest of the request is still on its way, and not worth reading.
const LEAVES_BODY_UNREAD: [StatusCode; 2] = [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::REQUEST_TIMEOUT];

/// Members that every problem has. [`Problem::with`] can't add them.
const RESERVED: [&str; 6] = ["type", "title", "status", "code", "detail", "advice"];

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    face: &'a Face,
    typed: Option<&'a Typed>,
    status: u16,
    title: &'a str,
    detail: &'a str,
    advice: &'a str,
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
fn home(base_path: &BasePath, uri: &Uri) -> String {
    match split_store(uri.path()) {
        Some((store, _)) if is_store_id(store) => format!("{base_path}/s/{store}/"),
        _ => base_path.home(),
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

/// An error's message as a sentence. A file name at its start keeps its case.
pub(crate) fn sentence(error: impl Display) -> String {
    let text = error.to_string();
    let word = text.split_whitespace().next().unwrap_or_default().trim_end_matches(['.', ':', ',', ';']);
    let mut sentence = if word.contains(['.', '/', '\\']) { text } else { capitalized(&text) };
    if !sentence.ends_with('.') {
        sentence.push('.');
    }
    sentence
}

/// The same text with a capital at its start.
pub(crate) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    first + letters.as_str()
}

#[cfg(test)]
mod tests;
