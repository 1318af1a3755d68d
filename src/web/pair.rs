//! Pairing, as a browser or a device sees it: the page behind a link, and what its button posts.
//!
//! Messengers open the links that people send. So opening the page uses nothing up, and only a post does. The secret of a
//! link stands after its `#`, which no server is sent; the page's script puts it into the form.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::http::header::{self, HeaderMap};
use axum::http::{StatusCode, request};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::face::{Face, Unmade};
use super::guard::{Asker, ClientAddress, PairingCookies};
use super::problem::Problem;
use super::{App, IntoHtml as _, PublicUrl, Received, Who, form, hub, sentence};
use crate::limits::web::guesses::{OF_A_CLIENT, OF_ALL, WINDOW};
use crate::random;
use crate::sync::{NotPaired, PairingFile, Purpose, Shown, code};

/// How browsers and devices pair with this instance.
pub(crate) struct Pairings {
    file: PairingFile,
    guesses: Guesses,
    /// Where others reach this instance, if that is known.
    pub(super) public_url: Option<PublicUrl>,
    cookies: PairingCookies,
}

impl Pairings {
    pub(crate) fn new(data: &Path, public_url: Option<PublicUrl>, cookies: PairingCookies) -> Self {
        Self { file: PairingFile::in_dir(data), guesses: Guesses::default(), public_url, cookies }
    }
}

/// The page behind a pairing link.
#[derive(Template)]
#[template(path = "pair.html")]
struct PairPage<'a> {
    face: &'a Face,
    action: String,
    home: String,
    /// Another one each time, so nobody else is given what this browser asks for.
    nonce: String,
    /// The name under which the browser is paired already.
    paired: Option<String>,
}

/// `GET /pair`
pub(crate) async fn page(State(app): State<App>, parts: request::Parts) -> Result<Response, Problem> {
    must_be_authority(&app)?;
    let base = &app.face.base_path;
    let paired = match Asker::of(&parts).who {
        Who::Token(device) => Some(device.as_str().to_owned()),
        Who::Owner | Who::Visitor => None,
    };
    let page = PairPage {
        face: &app.face,
        action: format!("{base}/pair"),
        home: base.home(),
        nonce: random::hex::<32>(),
        paired,
    };
    Ok(page.into_html().map_err(Problem::internal)?.into_page())
}

/// What is posted.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    secret: String,
    #[serde(default)]
    code: String,
    nonce: String,
    #[serde(default)]
    kind: Kind,
}

/// Who asks.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A browser, which gets a cookie.
    #[default]
    Browser,
    /// The command `join`, which gets a token to sync with.
    Device,
}

/// `POST /pair`
pub(crate) async fn redeem(
    State(app): State<App>,
    Asker { client, .. }: Asker,
    received: Received,
) -> Result<Response, Problem> {
    let asked = asked(&app, &received)?;
    give(&app, client, &received.headers, asked).await
}

/// `POST /pair` of a hub without a page
pub(crate) async fn redeem_for_devices(
    State(app): State<App>,
    Asker { client, .. }: Asker,
    received: Received,
) -> Result<Response, Problem> {
    let asked = asked(&app, &received)?;
    let is_browser = asked.kind == Kind::Browser;
    if is_browser { Err(hub::no_page().await) } else { give(&app, client, &received.headers, asked).await }
}

fn asked(app: &App, received: &Received) -> Result<Asked, Problem> {
    must_be_authority(app)?;
    let (fields, _) = form::read(&app.face.nouns, &received.headers, &received.bytes)?;
    Ok(fields.parse().map_err(Unmade::Misfit)?)
}

async fn give(
    app: &App,
    client: Option<ClientAddress>,
    headers: &HeaderMap,
    asked: Asked,
) -> Result<Response, Problem> {
    let Asked { secret, code, nonce, kind } = asked;
    let shown = if secret.is_empty() { Shown::Code(code) } else { Shown::Secret(secret) };
    let is_guess = matches!(shown, Shown::Code(_));
    if is_guess {
        app.pairings.guesses.count(client).map_err(too_many_guesses)?;
    }
    let purpose = match kind {
        Kind::Browser => Purpose::Browser,
        Kind::Device => Purpose::Sync,
    };
    // The link may have been made at another gateway, or used there.
    app.hub.share().await?;
    let file = app.pairings.file.clone();
    let redeemed = tokio::task::spawn_blocking(move || file.redeem(&shown, &nonce, purpose)).await;
    let paired = redeemed.map_err(Problem::internal)?.map_err(|why| refused(app, why))?;
    app.hub.share().await?;
    if !app.hub.knows(&paired.token, purpose) {
        return Err(refused(app, NotPaired::Used));
    }
    if is_guess {
        app.pairings.guesses.take_back(client);
    }
    tracing::info!("{} is paired, as a {}", paired.device.as_str(), purpose.as_str());
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok(match kind {
        Kind::Device => (no_store, Json(paired)).into_response(),
        Kind::Browser => {
            let cookie = app
                .pairings
                .cookies
                .of(headers)
                .set(&paired.token)
                .ok_or_else(|| Problem::internal("BUG: no cookie"))?;
            let home = Redirect::to(&app.face.base_path.home());
            (no_store, [(header::SET_COOKIE, cookie)], home).into_response()
        }
    })
}

/// Refuses to pair with an instance that follows a hub: devices can't sync with it, and the hub names what it pushes.
fn must_be_authority(app: &App) -> Result<(), Problem> {
    if app.clients.follow_hub() { Err(follows()) } else { Ok(()) }
}

/// This instance follows a hub.
pub(super) fn follows() -> Problem {
    Problem::forbidden(
        code::NOT_A_HUB,
        "This program follows a hub itself, so nothing pairs with it.",
        "Make the link on the machine of the hub.",
    )
}

fn refused(app: &App, why: NotPaired) -> Problem {
    let again =
        || format!("Nothing was changed. Make a new link with `{} pair NAME` on the hub's machine.", app.face.name);
    let problem = |status, code, detail| Problem::new(status, code, detail, again());
    match why {
        NotPaired::BadNonce => Problem::bad_request(
            "malformed-nonce",
            "The nonce is not 32 to 128 letters and digits.",
            "Reload the page and try again. A program must send random ones.",
        ),
        NotPaired::Unknown => problem(
            StatusCode::NOT_FOUND,
            "pairing-unknown",
            "There is no such link or code: it is mistyped, another one took its place, or it is long out of date.",
        ),
        NotPaired::Expired => problem(
            StatusCode::GONE,
            "pairing-expired",
            "This link is more than ten minutes old, so it is no longer good.",
        ),
        NotPaired::Used => {
            problem(StatusCode::GONE, "pairing-used", "This link was used already, and it is good only once.")
        }
        NotPaired::Taken(device) => Problem::conflict(
            "pairing-name-taken",
            format!("The name {} got a token in another way.", device.as_str()),
            again(),
        ),
        NotPaired::Failed(error) => {
            tracing::error!("a link can't be redeemed: {error:#}");
            Problem::unavailable("pairing-unavailable", sentence(format!("{error:#}")), "Try again in a moment.", 5)
        }
    }
}

fn too_many_guesses(wait: Duration) -> Problem {
    Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too-many-guesses",
        "Too many wrong codes were typed.",
        "Wait ten minutes, or use the link instead of the code: it works all the time.",
    )
    .retry_in(wait)
}

/// Counts guesses at codes, in memory: a restart gives nobody more than the tries of one window.
#[derive(Default)]
struct Guesses(Mutex<Option<Window>>);

struct Window {
    since: Instant,
    /// How often each client has guessed. There are at most as many as guesses of all.
    clients: HashMap<Option<IpAddr>, u32>,
    all: u32,
}

impl Guesses {
    /// Counts a guess of a client, before it is judged. If that is too much, it returns how long to wait.
    fn count(&self, client: Option<ClientAddress>) -> Result<(), Duration> {
        self.count_at(client, Instant::now())
    }

    fn count_at(&self, client: Option<ClientAddress>, now: Instant) -> Result<(), Duration> {
        let client = client.map(ClientAddress::network);
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = |window: &Window| now.saturating_duration_since(window.since);
        let window = match &mut *window {
            Some(window) if passed(window) < WINDOW => window,
            over => over.insert(Window { since: now, clients: HashMap::new(), all: 0 }),
        };
        let own = window.clients.get(&client).copied().unwrap_or_default();
        if own >= OF_A_CLIENT || window.all >= OF_ALL {
            return Err(WINDOW - passed(window));
        }
        window.clients.insert(client, own + 1);
        window.all += 1;
        Ok(())
    }

    /// Takes back a guess that was right.
    fn take_back(&self, client: Option<ClientAddress>) {
        let client = client.map(ClientAddress::network);
        if let Some(window) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            window.all = window.all.saturating_sub(1);
            if let Some(own) = window.clients.get_mut(&client) {
                *own = own.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<ClientAddress> {
        Some(ClientAddress(text.parse().expect("an address")))
    }

    #[test]
    fn each_client_has_some_guesses_and_all_together_have_more() {
        let (guesses, start) = (Guesses::default(), Instant::now());
        let count = |client: &str, now| guesses.count_at(address(client), now);
        for _ in 0..OF_A_CLIENT {
            count("192.0.2.1", start).expect("a try");
        }
        assert_eq!(count("192.0.2.1", start), Err(WINDOW));
        count("192.0.2.2", start).expect("others still have theirs");
        guesses.take_back(address("192.0.2.1"));
        count("192.0.2.1", start).expect("a right code is no guess");

        for n in 0..OF_A_CLIENT {
            count(&format!("2001:db8::{n}"), start).expect("a try");
        }
        assert!(count("2001:db8::ffff", start).is_err(), "one network is one client");
        count("2001:db8:0:1::1", start).expect("another network");

        let mut left = 0;
        while count(&format!("10.0.{}.{}", left / 200, left % 200), start).is_ok() {
            left += 1;
        }
        assert_eq!(left, OF_ALL - 2 * OF_A_CLIENT - 2);
        count("192.0.2.1", start + WINDOW).expect("a new window");
    }
}
