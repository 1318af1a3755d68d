//! The page, and the form that likes.

use askama::Template;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};

use super::problem::{Problem, asks_for_json};
use super::status::StatusLine;
use super::{ASSETS_VERSION, App, Opened, Received};
use crate::engine::{Envelope, EventId, Malformed};
use crate::likes::{LikeAdded, count};
use crate::sync::code;

/// The whole page.
#[derive(Template)]
#[template(path = "page.html")]
struct LikesPage<'a> {
    base: &'a str,
    store: &'a str,
    count: u64,
    id: String,
    status: StatusLine,
    assets: &'a str,
}

/// `GET /`
///
/// The page has one address, the one that the form's redirect leads to: a browser that goes back to another address
/// may show the old page from its cache, with an id that was posted already, and a new click would count for nothing.
pub(crate) async fn page(
    Opened { asked, store, link, .. }: Opened,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    if query.is_some() {
        return Ok(Redirect::to(&asked.home()).into_response());
    }
    let health = store.healthy().await;
    let status = StatusLine::of(&health, &link.borrow(), &asked.base());
    let html = LikesPage {
        base: &asked.base(),
        store: store.id().as_str(),
        count: store.read(count()).await?,
        id: EventId::now().to_string(),
        status,
        assets: &ASSETS_VERSION,
    };
    let html = html.render().map_err(Problem::internal)?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Html(html)).into_response())
}

/// Names the like that is stored now, to a script: an answer without it comes from somebody else, such as the login page
/// of a network.
const STORED: &str = "likewise-stored";

/// `POST /likes`
///
/// A form leads back to the page. A script, which asks for JSON, is told that its like is stored.
pub(crate) async fn like(
    State(app): State<App>,
    Opened { asked, store, who, .. }: Opened,
    headers: HeaderMap,
    body: Received,
) -> Result<Response, Problem> {
    let id = form_id(&headers, &body.bytes)?;
    let event = Envelope::new(id, &LikeAdded {}).map_err(crate::engine::Error::from)?;
    app.begin(&store, &who)?;
    let receipt = store.commit_envelope(event).await;
    app.metrics.count_post(&receipt);
    receipt?;
    Ok(if asks_for_json(&headers) {
        (StatusCode::NO_CONTENT, [(STORED, id.to_string())]).into_response()
    } else {
        Redirect::to(&asked.home()).into_response()
    })
}

/// `POST /adopt`, from the button that a page shows while its hub has another log than the store was synced with.
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

/// The id of the click: the form's, or a new one when it has none.
fn form_id(headers: &HeaderMap, body: &[u8]) -> Result<EventId, Problem> {
    if body.is_empty() {
        return Ok(EventId::now());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not-a-form",
            "A like is posted as a form, and this was something else.",
            "Send the field `id` as application/x-www-form-urlencoded, or nothing at all.",
        ));
    }
    let mut ids = form_urlencoded::parse(body).filter(|(name, _)| name == "id").map(|(_, value)| value);
    match (ids.next(), ids.next()) {
        (None, _) => Ok(EventId::now()),
        (Some(id), None) => id.parse().map_err(|why: Malformed| {
            Problem::bad_request(
                "malformed-id",
                format!("{why}."),
                "Nothing was stored. Reload the page and click again; a program must send a new UUID of version 7.",
            )
        }),
        (Some(_), Some(_)) => Err(Problem::bad_request(
            "malformed-id",
            "The form has the field `id` more than once.",
            "Nothing was stored. Reload the page and click again.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    #[test]
    fn trust_38_fuzzed_forms_are_one_id_or_refused() {
        let kind = header::HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        fuzz("form", &["id=", "&id=", "%2d", "id%3d"], |input| match form_id(&headers, input) {
            Ok(id) => {
                let mut ids = form_urlencoded::parse(input).filter(|(name, _)| name == "id");
                let named = ids.next().map(|(_, id)| id.to_lowercase());
                assert!(named.is_none_or(|named| named == id.to_string()) && ids.next().is_none());
                "right".to_owned()
            }
            Err(problem) => problem.into_response().status().to_string(),
        });
    }
}
