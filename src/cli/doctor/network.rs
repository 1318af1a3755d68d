//! What `doctor` asks over the network: the hub, its clock, and the proxy in front of this one.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;
use tokio::time::timeout;

use super::{Finding, Patient, Verdict};
use crate::cli::process::Process;
use crate::clock;
use crate::engine::{Position, StoreId};
use crate::limits::app::doctor::{CLOCK, EVENT_BYTES, FIRST_EVENT};
use crate::sync::{End, TokenSource, Upstream, UpstreamOptions, code};
use crate::web;
use crate::web::probe::Probe;

const HUB: &str = "hub";
const FRONT: &str = "proxy";
const CLOCK_CHECK: &str = "clock";

const HOLDS_BACK: &str = "A proxy in front of it gathers streams: let it obey the header X-Accel-Buffering, or turn its buffering \
                          off (nginx: `proxy_buffering off;`)";
const PASS_THE_NAME: &str = "Have the proxy pass on the name that it is asked for (nginx: `proxy_set_header Host $http_host;`, \
                             Apache: `ProxyPreserveHost On`)";

impl Patient<'_> {
    /// Whether the hub answers, has a right certificate, and accepts the token; and what its clock says.
    pub(super) async fn hub_and_clock(&self) -> (Option<Finding>, Finding) {
        let unknown = Finding::unknown(CLOCK_CHECK, "there is no hub or public name to compare the clock with");
        let Some(options) = self.upstream.clone() else {
            return (self.hub_by_the_process(), unknown);
        };
        let url = options.url.clone();
        let upstream = match Upstream::new(options) {
            Ok(upstream) => upstream,
            Err(error) => return (Some(Finding::failed(HUB, &error)), unknown),
        };
        let answer = match upstream.stranger("healthz").await {
            Ok(answer) => answer,
            Err(error) => return (Some(unreachable(HUB, &url, error)), unknown),
        };
        let clock = compare_clocks(&url, &answer);
        let store: StoreId = match self.app.store_name().parse() {
            Ok(store) => store,
            Err(why) => return (Some(Finding::unknown(HUB, format!("{why}"))), clock),
        };
        let finding = match first_event(upstream.pull(&store, Position::start())).await {
            Ok(_) => Finding::ok(HUB, format!("{url} answers and accepts the token")),
            Err(why) => self.sync_problem(HUB, &url, why),
        };
        (Some(finding), clock)
    }

    /// What the process that serves the data says of its hub, if it has one.
    fn hub_by_the_process(&self) -> Option<Finding> {
        let setting = &self.process.as_ref()?.1;
        let upstream = &setting.upstream;
        let url = upstream.url.as_ref()?;
        if setting.cluster.is_some() && upstream.state == "online" {
            let found = format!("this one is a gateway to {url}, and level with its stream");
            return Some(match &upstream.error {
                None => Finding::ok(HUB, found),
                // A move that is under way looks like one that was interrupted.
                Some(why) => Finding::unknown(HUB, format!("{found}; {why}")),
            });
        }
        let advice = upstream.code.as_deref().and_then(|code| web::what_to_do(self.app.face(), code));
        Some(match (upstream.state.as_str(), &upstream.error) {
            ("online", _) => Finding::ok(HUB, format!("this one is in sync with {url}")),
            ("connecting", None) => Finding::unknown(HUB, format!("this one is just connecting to {url}")),
            (state, why) => Finding {
                check: HUB,
                verdict: Verdict::Problem,
                found: format!("{url} is {state}: {}", why.as_deref().unwrap_or("it is not known why")),
                advice,
            },
        })
    }

    fn sync_problem(&self, check: &'static str, url: &str, why: Failed) -> Finding {
        match why {
            Failed::HeldBack => {
                Finding::problem(check, format!("{url} answers, but its streams don't arrive"), HOLDS_BACK)
            }
            Failed::Ended(End::Halted(code, why)) => Finding {
                check,
                verdict: Verdict::Problem,
                found: format!("{url} refuses to sync: {why}"),
                advice: web::what_to_do(self.app.face(), code),
            },
            Failed::Ended(End::Offline(why)) => {
                Finding::problem(check, format!("{url} can't be synced with: {why}"), "Check the address")
            }
            // The hub has a word to say about logs, so it accepts the token.
            Failed::Ended(_) => Finding::ok(check, format!("{url} answers and accepts the token")),
        }
    }

    /// Asks this server under its public name, through whatever is in front of it.
    pub(super) async fn front(&self, clock: Finding) -> (Option<Finding>, Finding) {
        let Some((process, setting)) = &self.process else { return (None, clock) };
        let Some(url) = self.public_url.clone().or_else(|| setting.public_url.clone()) else {
            return (None, clock);
        };
        let url = url.trim_end_matches('/').to_owned();
        let options = |token: &str| UpstreamOptions {
            url: url.clone(),
            token: TokenSource::Given(token.to_owned()),
            root_certificate: self.root_certificate.clone(),
        };
        let asked = match Upstream::new(options("none")) {
            Ok(asked) => asked,
            Err(error) => return (Some(Finding::failed(FRONT, &error)), clock),
        };
        let answer = match asked.stranger("healthz").await {
            Ok(answer) => answer,
            Err(error) => return (Some(unreachable(FRONT, &url, error)), clock),
        };
        let clock = if clock.verdict == Verdict::Unknown { compare_clocks(&url, &answer) } else { clock };
        // Under a name of this machine's own, whoever asks here counts as the owner.
        if !asked.is_local()
            && let Some(problem) = name_problem(&url, &asked).await
        {
            return (Some(problem), clock);
        }
        (Some(self.stream_through(process, &url, options).await), clock)
    }

    /// Whether a stream of `process` arrives through the proxy. Nobody knows yet who answers at `url`, so what is sent there
    /// opens nothing but that stream.
    async fn stream_through(
        &self,
        process: &Process,
        url: &str,
        options: impl FnOnce(&str) -> UpstreamOptions,
    ) -> Finding {
        let asked = async {
            let probe: Probe = process.answer(process.request(Method::POST, "probe")?).await?;
            Ok((Upstream::new(options(&probe.token))?, probe.answer))
        };
        let (upstream, answer) = match asked.await {
            Ok(asked) => asked,
            Err(error) => return Finding::failed(FRONT, &error),
        };
        let another = || {
            Finding::problem(
                FRONT,
                format!("{url} is another hub, or something on the way takes tokens out of requests"),
                "Check where that name leads, and have the proxy pass the header Authorization on",
            )
        };
        match first_event(upstream.probe()).await {
            Ok(event) if event.contains(&answer) => Finding::ok(FRONT, format!("{url} leads here, and streams arrive")),
            Ok(_) | Err(Failed::Ended(End::Halted(code::UNAUTHORIZED, _))) => another(),
            Err(why) => self.sync_problem(FRONT, url, why),
        }
    }
}

/// Why a stream brought nothing.
enum Failed {
    Ended(End),
    HeldBack,
}

/// Waits for the first event of a stream that is being opened, and returns its text.
async fn first_event<S>(opening: impl Future<Output = Result<S, End>>) -> Result<String, Failed>
where
    S: Stream<Item = io::Result<Bytes>> + Unpin,
{
    let mut stream = match timeout(FIRST_EVENT, opening).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(end)) => return Err(Failed::Ended(end)),
        // nginx holds even the head of the answer back.
        Err(_) => return Err(Failed::HeldBack),
    };
    let mut text = Vec::new();
    let is_event = |text: &[u8]| text.len() > EVENT_BYTES || text.windows(2).any(|end| end == b"\n\n");
    let reading = async {
        while !is_event(&text) {
            let Some(Ok(bytes)) = stream.next().await else { return false };
            text.extend_from_slice(&bytes);
        }
        true
    };
    match timeout(FIRST_EVENT, reading).await {
        Ok(true) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Ok(false) => Err(Failed::Ended(End::Offline("its stream broke off at once".to_owned()))),
        Err(_) => Err(Failed::HeldBack),
    }
}

/// Whether the proxy passes the name on. A stranger's question tells: it gets another answer under this machine's own name.
async fn name_problem(url: &str, asked: &Upstream) -> Option<Finding> {
    let answer = asked.stranger("status").await.ok()?;
    let status = answer.status();
    let answer: Value = answer.json().await.unwrap_or_default();
    let problem = |found: String, advice: &str| Some(Finding::problem(FRONT, found, advice));
    match answer["code"].as_str() {
        Some("proxy-host" | "no-local-page") => problem(
            format!("{url} leads here, but the proxy says that it was asked for this machine itself"),
            PASS_THE_NAME,
        ),
        Some("host-not-allowed") => problem(
            format!("{url} leads here, and this server doesn't answer to the name that the proxy passes on"),
            "Start it with --allow-host and that name, or have the proxy pass on the name that it is asked for",
        ),
        // What strangers may see has no device.
        None if status == StatusCode::OK && answer.get("device").is_some() => problem(
            format!("{url} shows strangers everything: the proxy says that it was asked for this machine itself"),
            "Stop the proxy. Start this server with --allow-host and its public name, and have the proxy pass that name on \
             (nginx: `proxy_set_header Host $http_host;`)",
        ),
        Some("not-public" | "owner-only") => None,
        _ if status == StatusCode::OK => None,
        _ => problem(
            format!("{url} answers {status}, which this program doesn't"),
            "Check where that name leads, and whether the proxy passes the path on unchanged",
        ),
    }
}

/// Says why there was no answer.
fn unreachable(check: &'static str, url: &str, error: reqwest::Error) -> Finding {
    let error = error.without_url();
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        why = format!("{why}: {error}");
        cause = error.source();
    }
    if is_about_certificate(&error) {
        return Finding::problem(
            check,
            format!("the certificate of {url} is not trusted here: {why}"),
            "Have the other side renew it, for the name in the address. If its authority is one of your own, name it with \
             --root-certificate",
        );
    }
    Finding::problem(
        check,
        format!("{url} doesn't answer: {why}"),
        "Check the address, the network, and that it runs there",
    )
}

/// Whether the certificate is the cause of an error.
fn is_about_certificate(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // An IO error has an inner one, which it doesn't count as its source.
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_about_certificate(inner)) || error.source().is_some_and(is_about_certificate)
}

/// Compares this machine's clock with the date of an answer.
fn compare_clocks(url: &str, answer: &Response) -> Finding {
    let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
    let Some(theirs) = date.and_then(|date| u64::try_from(date.as_millisecond()).ok()) else {
        return Finding::unknown(CLOCK_CHECK, format!("{url} doesn't say what time it is"));
    };
    let ours = clock::unix_millis();
    let apart = Duration::from_millis(ours.abs_diff(theirs));
    if apart <= CLOCK {
        return Finding::ok(CLOCK_CHECK, format!("as that of {url}, to {} s", apart.as_secs().max(1)));
    }
    let way = if ours < theirs { "behind" } else { "ahead of" };
    Finding::problem(
        CLOCK_CHECK,
        format!("this machine's clock is {} s {way} that of {url}", apart.as_secs()),
        "Set the clock that is wrong, for example with `timedatectl set-ntp true`. Likes are dated by it, and a certificate is \
         valid by it",
    )
}
