//! An upstream hub, reached over HTTP: how requests are made, and what the answers mean.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use reqwest::header::HeaderName;
use reqwest::{Response, StatusCode, Url, header, redirect};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::protocol::{Point, Push, Pushed, code, points};
use super::ration::Ration;
use super::session::{End, PushAnswer};
use super::tls::{Trust, tls};
use crate::clock;
use crate::engine::{HistoryPosition, Position, StoreId};
use crate::limits::sync::http::{
    ANSWER, CONNECT, KEEP, KEEPALIVE, LONGEST_REST, MAX_ANSWER, MAX_PROBLEM, MAX_UNDER_WAY, STORES_IN_A_LANE,
};

/// The address of a hub, and how to be let in.
#[derive(Debug, Clone)]
pub struct UpstreamOptions {
    /// Its address, such as `https://likes.example.org`, with its base path if it has one.
    pub url: String,
    /// This device's token for it.
    pub token: TokenSource,
    /// A file of certificates in PEM form to trust for it, besides the system's.
    pub root_certificate: Option<PathBuf>,
}

/// Where a device's token comes from.
#[derive(Clone)]
pub enum TokenSource {
    /// A file. It is read again for every connection, so a new token needs no restart.
    File(PathBuf),
    /// The token itself.
    Given(String),
}

impl fmt::Display for TokenSource {
    /// Writes where the token comes from, never the token itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "what is in {}", path.display()),
            Self::Given(_) => f.write_str("what was given as the token"),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TokenSource {
    fn read(&self) -> anyhow::Result<String> {
        let token = match self {
            Self::File(path) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read the token in {}", path.display()))?
            }
            Self::Given(token) => token.clone(),
        };
        // Some editors begin a text with a byte-order mark.
        let token = token.trim_start_matches('\u{feff}').trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!(
                "{} is no token: a token is one word in ASCII letters and digits, as `token add` prints it at the hub",
                self
            );
        }
        Ok(token.to_owned())
    }
}

/// A hub.
#[derive(Clone)]
pub(crate) struct Upstream {
    url: Url,
    token: TokenSource,
    /// Makes the requests, with connections of its own.
    client: reqwest::Client,
    /// The clients of all lanes, created when first needed.
    lanes: Arc<Mutex<Vec<reqwest::Client>>>,
    tls: ClientConfig,
    /// The memory that its answers may hold together.
    ration: Arc<Ration>,
}

impl Upstream {
    /// Checks the options. The token is only ever sent over TLS, or to this machine.
    pub(crate) fn new(options: UpstreamOptions) -> anyhow::Result<Self> {
        let url = checked(&options.url)?;
        let (tls, client) = connect(&url, options.root_certificate.as_deref())?;
        let lanes = Arc::new(Mutex::new(vec![client.clone()]));
        Ok(Self { url, token: options.token, client, lanes, tls, ration: Ration::new(MAX_UNDER_WAY) })
    }

    /// Returns the lane for one more store, given the lanes of the others.
    pub(crate) fn lane_beside(taken: impl Iterator<Item = usize>) -> usize {
        let mut stores = Vec::new();
        for lane in taken {
            stores.resize(stores.len().max(lane + 1), 0);
            stores[lane] += 1;
        }
        stores.iter().position(|stores| *stores < STORES_IN_A_LANE).unwrap_or(stores.len())
    }

    /// Returns the same upstream, reached through the connections of this lane.
    pub(crate) fn in_lane(&self, lane: usize) -> Self {
        let mut lanes = self.lanes.lock().expect("BUG: making a client panicked");
        while lanes.len() <= lane {
            // A client was made before, so it can be made again. If not, this lane shares the first one.
            let client = client(&self.url, &self.tls).unwrap_or_else(|_| self.client.clone());
            lanes.push(client);
        }
        Self { client: lanes[lane].clone(), ..self.clone() }
    }

    /// Returns its address, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Returns the memory that its answers may hold together.
    pub(crate) fn ration(&self) -> &Arc<Ration> {
        &self.ration
    }

    /// Returns a stamp of the token. When the stamp changes, a refused token is tried again at once.
    pub(crate) fn token_stamp(&self) -> Option<std::time::SystemTime> {
        match &self.token {
            TokenSource::File(path) => std::fs::metadata(path).and_then(|meta| meta.modified()).ok(),
            TokenSource::Given(_) => None,
        }
    }

    /// Starts to pull what comes after `position`.
    pub(crate) async fn pull(
        &self,
        store: &StoreId,
        position: Position,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + use<>, End> {
        let mut url = self.url_of(store, "events");
        url.query_pairs_mut()
            .extend_pairs(position.log.map(|log| ("log", log.to_string())))
            .append_pair("after", &position.after.to_string())
            .append_pair("digest", &position.digest.to_string());
        self.stream(url).await
    }

    /// Starts to fetch what comes after `position`, up to the snapshot that this device began with.
    pub(crate) async fn history(
        &self,
        store: &StoreId,
        position: HistoryPosition,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + use<>, End> {
        let HistoryPosition { log, after, digest, until } = position;
        let mut url = self.url_of(store, "events");
        url.query_pairs_mut()
            .append_pair("log", &log.to_string())
            .append_pair("after", &after.to_string())
            .append_pair("digest", &digest.to_string())
            .append_pair("until", &until.to_string());
        self.stream(url).await
    }

    /// Asks for a snapshot of a state with this schema, or for the part of one that `range` names. Returns the answer,
    /// whatever it is.
    pub(crate) async fn snapshot(
        &self,
        store: &StoreId,
        schema: &str,
        range: Option<[(HeaderName, String); 2]>,
    ) -> Result<Response, End> {
        let mut url = self.url_of(store, "snapshot");
        url.query_pairs_mut().append_pair("schema", schema);
        let mut request = self.client.get(url).bearer_auth(self.token()?);
        for (name, value) in range.into_iter().flatten() {
            request = request.header(name, value);
        }
        request.send().await.map_err(offline)
    }

    /// Opens the stream that shows nothing but whether streams arrive.
    pub(crate) async fn probe(&self) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + use<>, End> {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/sync/v1/probe", url.path().trim_end_matches('/')));
        self.stream(url).await
    }

    async fn stream(&self, url: Url) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + use<>, End> {
        let request = self.client.get(url).bearer_auth(self.token()?).header(header::ACCEPT, "text/event-stream");
        let answer = request.send().await.map_err(offline)?;
        let answer = self.accepted(answer).await?;
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(End::Offline(format!("{} answered with no event stream, but {kind:?}", self.url())));
        }
        Ok(Box::pin(answer.bytes_stream().map_err(std::io::Error::other)))
    }

    /// Pushes events.
    pub(crate) async fn push(&self, store: &StoreId, push: &Push) -> Result<PushAnswer, End> {
        let request =
            self.client.post(self.url_of(store, "events")).bearer_auth(self.token()?).json(push).timeout(ANSWER);
        let answer = match request.send().await {
            Ok(answer) => answer,
            // On a slow link, a smaller push may get through in time.
            Err(error) if error.is_timeout() && !error.is_connect() => return Ok(PushAnswer::TooMuch(offline(error))),
            Err(error) => return Err(offline(error)),
        };
        if answer.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let problem = self.problem(answer).await?;
            let is_hubs_word = problem.as_ref().is_some_and(|problem| problem.code == code::TOO_LARGE);
            let end = self.meaning(StatusCode::PAYLOAD_TOO_LARGE, problem);
            return Ok(if is_hubs_word { PushAnswer::TooLarge } else { PushAnswer::TooMuch(end) });
        }
        let answer = self.accepted(answer).await?;
        let pushed = self.read::<Pushed>(answer, MAX_ANSWER).await?;
        let other = || End::Offline(format!("{} answered a push with something else than a hub does", self.url()));
        pushed.map(PushAnswer::Pushed).ok_or_else(other)
    }

    /// Returns whether it is on this machine, by its address.
    pub(crate) fn is_local(&self) -> bool {
        is_local(&self.url)
    }

    /// Asks for one of its pages as a stranger does, without the token.
    pub(crate) async fn stranger(&self, page: &str) -> reqwest::Result<Response> {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/{page}", url.path().trim_end_matches('/')));
        self.client.get(url).timeout(ANSWER).send().await
    }

    fn url_of(&self, store: &StoreId, what: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/sync/v1/{store}/{what}", url.path().trim_end_matches('/')));
        url
    }

    /// Returns the token for a request, if a request can go out.
    fn token(&self) -> Result<String, End> {
        if self.url.scheme() == "https" && clock::is_before_epoch() {
            let why = "the clock of this machine stands before 1970, when no certificate was valid; set it";
            return Err(End::Offline(why.to_owned()));
        }
        self.token.read().map_err(|error| End::Halted(code::NO_TOKEN, format!("{error:#}")))
    }

    /// Returns the answer if it is a success, and otherwise what it means.
    async fn accepted(&self, answer: Response) -> Result<Response, End> {
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let later = retry_after(&answer);
        match (self.meaning(status, self.problem(answer).await?), later) {
            (End::Offline(why), Some(later)) => Err(End::Later(why, later)),
            (end, _) => Err(end),
        }
    }

    /// Reads the problem that an answer carries, if it carries one.
    pub(super) async fn problem(&self, answer: Response) -> Result<Option<Problem>, End> {
        let kind = answer.headers().get(header::CONTENT_TYPE);
        let is_problem = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
        if is_problem { self.read(answer, MAX_PROBLEM).await } else { Ok(None) }
    }

    /// Reads the body of an answer, up to `most` bytes. Returns `None` if it isn't understood.
    async fn read<T: DeserializeOwned>(&self, mut answer: Response, most: usize) -> Result<Option<T>, End> {
        let too_long = || End::Offline(format!("{} gave an answer that is too long for a hub's", self.url()));
        let mut portion = self.ration.portion();
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(offline)? {
            if text.len() + chunk.len() > most {
                return Err(too_long());
            }
            portion.grow_to(text.len() + chunk.len()).map_err(|error| End::Offline(error.to_string()))?;
            text.extend_from_slice(&chunk);
        }
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Returns what an unsuccessful answer means. Only a problem with one of our own codes is a hub's word. A captive
    /// portal's 403 or a proxy's 502 is not.
    fn meaning(&self, status: StatusCode, problem: Option<Problem>) -> End {
        let other = || End::Offline(format!("{} answered {status}", self.url()));
        let Some(Problem { code, detail, checkpoints }) = problem else { return other() };
        let halting = [code::WRONG_LOG, code::NOT_A_HUB, code::UNAUTHORIZED, code::TOO_MANY_STORES];
        match code.as_str() {
            code::PULL_FIRST => End::PullFirst,
            code::DIVERGED => End::Diverged(checkpoints),
            code => match halting.into_iter().find(|halting| *halting == code) {
                Some(code) => End::Halted(code, detail),
                None if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => End::Offline(detail),
                // This is the hub's guard. The hub doesn't answer to the name that we use, or isn't under this path.
                None if matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => End::Offline(detail),
                None => other(),
            },
        }
    }
}

/// Returns how long the sender of an answer asks to be left alone. Others than our hub may say so, too.
pub(super) fn retry_after(answer: &Response) -> Option<Duration> {
    let is_busy = matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let seconds = answer.headers().get(header::RETRY_AFTER).filter(|_| is_busy)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_REST))
}

/// Returns a client of the hub at `url`. It trusts the certificates in the file `certificates`, besides the system's.
pub(super) fn connect(url: &Url, certificates: Option<&Path>) -> anyhow::Result<(ClientConfig, reqwest::Client)> {
    let roots = certificates.map(read_certificates).transpose()?.unwrap_or_default();
    let trust = if url.scheme() == "https" { Trust::SystemAnd(roots) } else { Trust::Nobody };
    let tls = tls(trust).context(
        "cannot make requests over TLS. If this machine has no certificate authorities, install them (the package is often \
         named ca-certificates), or name the one of the hub with --root-certificate",
    )?;
    let client = client(url, &tls).context("cannot make requests")?;
    Ok((tls, client))
}

/// Reads certificates in PEM form.
pub(super) fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.ok().filter(|roots| !roots.is_empty());
    found.with_context(|| format!("{} holds no certificate in PEM form", path.display()))
}

/// Parses the address of a hub, if the token may be sent there: over TLS, or to this machine.
pub(super) fn checked(text: &str) -> anyhow::Result<Url> {
    let text = text.trim_end_matches('/');
    let url = Url::parse(text)
        .with_context(|| format!("{text} is not the address of a hub, like https://likes.example.org"))?;
    if url.host().is_none() {
        bail!("{text} is not the address of a hub, like https://likes.example.org");
    }
    match url.scheme() {
        "https" => {}
        "http" if is_local(&url) => {}
        "http" => bail!(
            "the token would travel over the network for all to read; use https:// for the hub, which takes a proxy \
             such as Caddy in front of it"
        ),
        other => bail!("a hub is reached over https, not over {other}"),
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        bail!(
            "{text} has more than the host, port and base path of a hub; write it like https://likes.example.org or \
             https://example.org/likes"
        );
    }
    Ok(url)
}

/// Returns whether only this machine has that address.
pub(crate) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn client(url: &Url, tls: &ClientConfig) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        // Only the hub itself is ever shown the token, wherever an answer points.
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .pool_idle_timeout(KEEP)
        .tcp_keepalive(KEEPALIVE)
        .user_agent(concat!("likewise/", env!("CARGO_PKG_VERSION")));
    if is_local(url) {
        builder = builder.no_proxy();
    }
    builder.tls_backend_preconfigured(tls.clone()).build()
}

/// What a hub says when it refuses a request.
#[derive(Deserialize)]
pub(super) struct Problem {
    pub(super) code: String,
    pub(super) detail: String,
    #[serde(default, deserialize_with = "points")]
    checkpoints: Vec<Point>,
}

/// Describes what went wrong on the way, down to its cause. Omits the URL, which the status shows anyway.
pub(super) fn offline(error: reqwest::Error) -> End {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    End::Offline(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, outcome, text};

    #[test]
    fn trust_38_fuzzed_refusals_are_a_hubs_word_or_none() {
        fuzz("problem", &["\"code\":", "\"detail\":", "\"checkpoints\":", "diverged", "wrong-log"], |input| {
            let problem = serde_json::from_slice::<Problem>(input);
            if let Ok(problem) = &problem {
                assert!(problem.checkpoints.len() <= 256);
            }
            outcome(&problem)
        });
    }

    #[test]
    fn trust_38_fuzzed_tokens_are_one_word_that_fits_in_a_header() {
        fuzz("token", &["lw_", "\n", "Bearer "], |input| {
            let token = TokenSource::Given(text(input)).read();
            if let Ok(token) = &token {
                assert!(
                    header::HeaderValue::from_str(token).is_ok() && token.bytes().all(|byte| byte.is_ascii_graphic())
                );
            }
            outcome(&token)
        });
    }

    #[test]
    fn trust_38_fuzzed_addresses_of_hubs_take_the_token_nowhere_else() {
        fuzz("upstream", &["http://", "https://", "localhost", "127.0.0.1", "[::1]", "@", "#", "?"], |input| {
            let url = match checked(&text(input)) {
                Ok(url) => url,
                Err(why) => return why.to_string(),
            };
            assert!(url.scheme() == "https" || url.scheme() == "http" && is_local(&url), "{url}");
            assert!(url.username().is_empty() && url.password().is_none(), "{url}");
            assert!(url.query().is_none() && url.fragment().is_none(), "{url}");
            "right".to_owned()
        });
    }
}
