//! Posts: a form becomes an event, once however often it is posted. A refusal comes back with what was typed.

use std::collections::BTreeMap;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Redirect, Response};
use tokio::time::timeout;
use url::Url;

use super::face::{Form, Nouns, Unmade};
use super::fields::Fields;
use super::problem::{Problem, Typed, asks_for_json};
use super::{App, Opened, Received, page};
use crate::engine::{Error, EventId};
use crate::limits::sync::client::TRY_NOW;
use crate::sync::code;

/// Tells a script which event is stored. An answer without it comes from somebody else, such as the login page of a
/// network.
pub(crate) const STORED: HeaderName = HeaderName::from_static("likewise-stored");

/// `POST /{form}`
///
/// A browser is redirected to the page that posted. A script, which asks for JSON, is told that its event is stored.
pub(crate) async fn post(
    form: Form,
    State(app): State<App>,
    opened: Opened,
    RawQuery(query): RawQuery,
    received: Received,
) -> Result<Response, Problem> {
    let Received { headers, bytes, .. } = &received;
    let home = opened.asked.home();
    let action = format!("{home}{}", form.name);
    let back = back(&action, query.as_deref(), headers, &home);
    let asks_for_json = asks_for_json(headers);
    let (fields, ids) = read(&app.face.nouns, headers, bytes)?;
    let posted = store(&form, &app, &opened, headers, &fields, &ids).await;
    let (id, cookie) = match posted {
        Ok(stored) => stored,
        Err(problem) if asks_for_json || fields.is_empty() => return Err(problem),
        Err(problem) => {
            // The same event has to keep its id when it is posted again, unless the answer was about the event itself.
            // An overloaded store isn't asked for its page as well.
            let (id, known) = if problem.is_about_the_moment() {
                (ids.first().cloned(), BTreeMap::new())
            } else {
                (None, page::fields(&app, &opened, &back, &action).await)
            };
            let id = id.unwrap_or_else(|| EventId::now().to_string());
            let back: String = form_urlencoded::byte_serialize(back.as_bytes()).collect();
            return Err(problem.with_typed(Typed::new(format!("{action}?back={back}"), id, &fields, &known)));
        }
    };
    let mut answer = if asks_for_json {
        (StatusCode::NO_CONTENT, [(STORED, id.to_string())]).into_response()
    } else {
        Redirect::to(&back).into_response()
    };
    if let Some(cookie) = cookie {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(answer)
}

/// Makes the event and stores it. Returns its id, and the visitor's cookie if the form asked who posts.
async fn store(
    form: &Form,
    app: &App,
    Opened { store, who, .. }: &Opened,
    headers: &HeaderMap,
    fields: &Fields,
    ids: &[String],
) -> Result<(EventId, Option<HeaderValue>), Problem> {
    let id = match ids {
        [] => EventId::now(),
        [id] => id.parse().map_err(|why| malformed_id(format!("{why}.")))?,
        [..] => return Err(malformed_id("The form has the field `id` more than once.".to_owned())),
    };
    let mut cookie = None;
    let event = form.make(fields, id, || {
        let (visitor, given) = app.visitors.who(&app.face, headers).map_err(Problem::internal)?;
        cookie = Some(given);
        Ok::<_, Problem>(visitor)
    })?;
    app.begin(store, who)?;
    let receipt = store.commit_envelope(event).await;
    app.metrics.count_post(&receipt);
    receipt?;
    Ok((id, cookie))
}

fn malformed_id(detail: String) -> Problem {
    let advice = "Nothing was stored. Reload the page and post again; a program must send a new UUID of version 7.";
    Problem::bad_request("malformed-id", detail, advice)
}

/// The fields of a form, and apart from them those named `id`.
pub(super) fn read(nouns: &Nouns, headers: &HeaderMap, body: &[u8]) -> Result<(Fields, Vec<String>), Problem> {
    if body.is_empty() {
        return Ok(Default::default());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not-a-form",
            format!("{} are posted as a form, and this was something else.", nouns.many_capitalized()),
            "Send the fields as application/x-www-form-urlencoded.",
        ));
    }
    Fields::read(body).map_err(|misfit| Unmade::Misfit(misfit).into())
}

impl From<Unmade> for Problem {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Misfit(misfit) => {
                let advice = "Nothing was stored. Correct it and post again.";
                let problem = Self::bad_request("malformed-form", misfit.sentence(), advice);
                match misfit.field {
                    Some(field) => problem.with("field", field),
                    None => problem,
                }
            }
            Unmade::Refused(refusal) => Error::Refused(refusal.why().to_owned()).into(),
            Unmade::Malformed(error) => error.into(),
        }
    }
}

/// Where a browser goes after a post to `action`, with `query`: back to the page that posted if it is on our site, or else
/// to the store's page.
fn back(action: &str, query: Option<&str>, headers: &HeaderMap, home: &str) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // A refusal is shown at the form's own address, which isn't a page. So the address carries the page along.
    let carried = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).find(|(name, _)| name == "back");
    let page = match &carried {
        Some((_, path)) => Url::parse(&format!("http://{host}")).and_then(|own| own.join(path)),
        None => Url::parse(headers.get(header::REFERER).and_then(|page| page.to_str().ok()).unwrap_or_default()),
    };
    let is_ours = |page: &Url| {
        let port = page.port().map(|port| format!(":{port}")).unwrap_or_default();
        matches!(page.scheme(), "http" | "https")
            && page.host_str().is_some_and(|name| format!("{name}{port}").eq_ignore_ascii_case(host))
            // A path that begins with two slashes would name another host.
            && !page.path().starts_with("//")
            && page.path() != action
    };
    match page.ok().filter(is_ours) {
        Some(page) => page.path().to_owned() + &page.query().map(|query| format!("?{query}")).unwrap_or_default(),
        None => home.to_owned(),
    }
}

/// `POST /adopt`, from the button that a page shows while the hub has another log than the store was synced with.
pub(crate) async fn adopt(Opened { asked, store, link, .. }: Opened) -> Result<Redirect, Problem> {
    if link.borrow().code != Some(code::WRONG_LOG) {
        return Err(Problem::conflict(
            "nothing-to-adopt",
            "The store is not halted because of another log at its hub.",
            "Nothing was changed. Go back and reload the page to see how it is.",
        ));
    }
    store.adopt().await?;
    Ok(Redirect::to(&asked.home()))
}

/// `POST /sync-now`, from the button that a page shows while the hub isn't reached. Answers when the attempt has come to
/// something, so the page that comes next shows it.
pub(crate) async fn sync_now(
    State(app): State<App>,
    headers: HeaderMap,
    Opened { asked, store, .. }: Opened,
) -> Result<Response, Problem> {
    if !app.clients.have_upstream() {
        return Err(Problem::conflict(
            "no-upstream",
            "This program follows no hub that it could sync with.",
            "Start it with --upstream and the address of a hub.",
        ));
    }
    // If it takes longer, the status line shows later what has come of it.
    drop(timeout(TRY_NOW, app.clients.try_now(&store)).await);
    if asks_for_json(&headers) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Redirect::to(&asked.home()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    #[test]
    fn trust_38_fuzzed_forms_are_one_id_or_refused() {
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        let nouns = Nouns { one: "event", many: "events" };
        fuzz("form", &["id=", "&id=", "%2d", "id%3d", "a=b", "%ff"], |input| match read(&nouns, &headers, input) {
            Ok((fields, ids)) => {
                let text: Vec<_> = form_urlencoded::parse(input).filter(|(name, _)| name != "id").collect();
                // An empty pair between two `&` doesn't count.
                assert!(fields.iter().eq(text.iter().map(|(name, value)| (&**name, &**value))));
                format!("{} {}", ids.len().min(2), fields.is_empty())
            }
            Err(problem) => problem.into_response().status().to_string(),
        });
    }

    #[test]
    fn after_a_post_the_browser_goes_to_one_of_our_pages() {
        let back = |query: &str, referer: &str| {
            let headers = [(header::HOST, "localhost:3000"), (header::REFERER, referer)];
            let headers = headers.map(|(name, value)| (name, HeaderValue::try_from(value).expect("a header")));
            back("/s/work/add", Some(query), &HeaderMap::from_iter(headers), "/s/work/")
        };
        for (referer, expected) in [
            ("http://localhost:3000/?q=a%20b", "/?q=a%20b"),
            ("http://LOCALHOST:3000/s/work/#there", "/s/work/"),
            ("https://localhost:3000/lists/1", "/lists/1"),
            ("http://localhost:3001/", "/s/work/"),
            ("http://localhost/", "/s/work/"),
            ("http://elsewhere.example/", "/s/work/"),
            ("http://localhost:3000//elsewhere.example/", "/s/work/"),
            ("http://localhost:3000/s/work/add", "/s/work/"),
            ("http://localhost:3000@elsewhere.example/", "/s/work/"),
            ("javascript:alert(1)", "/s/work/"),
            ("", "/s/work/"),
        ] {
            assert_eq!(back("", referer), expected, "{referer}");
        }
        for (carried, expected) in [
            ("%2F%3Fq%3D1", "/?q=1"),
            ("%2F%2Felsewhere.example", "/s/work/"),
            ("%5C%5Celsewhere.example", "/s/work/"),
            ("http%3A%2F%2Felsewhere.example", "/s/work/"),
            ("%2Fs%2Fwork%2Fadd", "/s/work/"),
        ] {
            let query = format!("back={carried}");
            assert_eq!(back(&query, "http://localhost:3000/s/work/add"), expected, "{carried}");
        }
    }
}
