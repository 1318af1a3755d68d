//! How a store is: for programs as JSON, for people as a line on the page.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::control::tokens_unknown;
use super::face::{Face, Nouns};
use super::problem::Problem;
use super::{App, Full, Opened, Sees, Who};
use crate::clock;
use crate::engine::{Device, Error, Health, HistoryStanding, Standing, Store, committed_state};
use crate::sync::{HistoryWanted, LinkState, LinkStatus, WAS_WRONG, code};

/// The body of `GET /status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StatusReport {
    pub(crate) store: String,
    pub(crate) device: Device,
    /// The app's figures, by name.
    #[serde(flatten, deserialize_with = "figures_alone")]
    pub(crate) figures: Map<String, Value>,
    /// The last event of the log.
    pub(crate) head: u64,
    /// How far the committed state is in the log.
    pub(crate) cursor: u64,
    pub(crate) pending: u64,
    pub(crate) set_aside: u64,
    pub(crate) skipped: u64,
    pub(crate) unknown: u64,
    /// The log's id; null before the store's first event.
    pub(crate) log: Option<String>,
    /// Replicas with the same value may compare the digests of their states.
    pub(crate) schema: String,
    pub(crate) upstream: UpstreamStatus,
    /// What is here of the events behind the hub's snapshot, if this device began with one. Absent once all of the log is
    /// here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) history: Option<HistoryStatus>,
    /// The program's version; empty from one that is too old to say it.
    #[serde(default)]
    pub(crate) version: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) digests: Option<Digests>,
}

/// What is here of the events behind a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HistoryStatus {
    pub(crate) state: HistoryState,
    /// The last event that is in the snapshot.
    pub(crate) base: u64,
    /// How many events are in it.
    pub(crate) length: u64,
    /// How many of them are here.
    pub(crate) here: u64,
    /// How many events of this device are in it, as only the hub says.
    #[serde(default)]
    pub(crate) own: u64,
}

/// What becomes of the events behind a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HistoryState {
    /// They are still coming.
    Coming,
    /// All are here, and have to prove the snapshot.
    Proving,
    /// They are not asked for.
    LeftOut,
}

impl HistoryState {
    fn in_words(self) -> &'static str {
        match self {
            Self::Coming | Self::Proving => "History is still coming.",
            Self::LeftOut => "This device leaves the history out.",
        }
    }
}

impl HistoryStatus {
    pub(super) fn of(history: HistoryStanding, wanted: HistoryWanted) -> Self {
        let HistoryStanding { base, length, here, own } = history;
        let state = match wanted {
            _ if here >= length => HistoryState::Proving,
            HistoryWanted::Full => HistoryState::Coming,
            HistoryWanted::None => HistoryState::LeftOut,
        };
        Self { state, base: base.0, length, here, own }
    }
}

/// How the connection to the upstream is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UpstreamStatus {
    pub(crate) url: Option<String>,
    /// `none`, `connecting`, `online`, `offline` or `halted`.
    pub(crate) state: String,
    pub(crate) code: Option<String>,
    pub(crate) error: Option<String>,
    /// What is wrong, as this device sees it, for people. Only while somebody has to act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// Whether the hub's snapshot, with which this device began, was not what follows from the log.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) snapshot_was_wrong: bool,
    /// Since when, in milliseconds since the Unix epoch.
    pub(crate) since: Option<u64>,
    /// Where the copies of the stream are, if this is a gateway that has reached its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) copies: Option<String>,
}

impl From<&LinkStatus> for UpstreamStatus {
    fn from(link: &LinkStatus) -> Self {
        Self {
            url: link.url.as_deref().map(str::to_owned),
            state: link.state.as_str().to_owned(),
            // The token file is as good as its token.
            code: link.code.map(|code| if code == code::NO_TOKEN { code::UNAUTHORIZED } else { code }.to_owned()),
            error: link.error.clone(),
            why: what_is_wrong(link),
            snapshot_was_wrong: link.was_wrong,
            since: link.since,
            copies: link.copies.as_deref().map(str::to_owned),
        }
    }
}

/// What shows whether two replicas are the same.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Digests {
    pub(crate) log_digest: String,
    pub(crate) state_digest: String,
    /// The last event that both digests cover.
    pub(crate) digest_seq: u64,
}

/// The remaining fields, without those of [`Digests`].
fn figures_alone<'de, D: Deserializer<'de>>(fields: D) -> Result<Map<String, Value>, D::Error> {
    let mut fields = Map::deserialize(fields)?;
    fields.retain(|name, _| !["log_digest", "state_digest", "digest_seq"].contains(&name.as_str()));
    Ok(fields)
}

impl StatusReport {
    /// The status of `store`, without digests.
    pub(crate) async fn of(
        face: &Face,
        store: &Store,
        device: &Device,
        version: &str,
        link: &LinkStatus,
    ) -> Result<Self, Error> {
        let health = store.healthy().await;
        if let Health::Failed(why) = health {
            return Err(Error::Unavailable(why.into()));
        }
        let standing = health.standing();
        let figures = figures(face, store).await?;
        let at = |field: fn(&Standing) -> u64| standing.map(field).unwrap_or_default();
        Ok(Self {
            store: store.id().to_string(),
            device: device.clone(),
            version: version.to_owned(),
            head: at(|standing| standing.head.0),
            cursor: at(|standing| standing.cursor.0),
            pending: at(|standing| standing.pending),
            set_aside: at(|standing| standing.set_aside),
            skipped: at(|standing| standing.skipped),
            unknown: at(|standing| standing.unknown),
            log: standing.and_then(|standing| standing.whose.log_id()).map(|id| id.to_string()),
            schema: store.schema_fingerprint(),
            upstream: link.into(),
            history: standing.and_then(|standing| standing.history).map(|found| HistoryStatus::of(found, link.history)),
            digests: None,
            figures: figures.into_iter().map(|(name, figure)| (name.to_owned(), figure.into())).collect(),
        })
    }
}

/// The app's figures in `store`, by name.
pub(crate) async fn figures(face: &Face, store: &Store) -> Result<Vec<(&'static str, u64)>, Error> {
    let mut figures = Vec::new();
    for figure in &face.figures {
        figures.push((figure.name, store.read((figure.query)()).await?));
    }
    Ok(figures)
}

/// The digests of the log and of the committed state, read without the writing thread.
pub(crate) fn digests(store: &Store) -> Result<Digests, Error> {
    let found = if store.files().state().exists() {
        committed_state(store.files()).map_err(|fault| Error::from(&fault))?
    } else {
        store.empty_state()?
    };
    let (cursor, state) = found;
    Ok(Digests { log_digest: cursor.digest.to_string(), state_digest: state.to_string(), digest_seq: cursor.seq.0 })
}

/// What `GET /status` answers to strangers: what they see on the page.
#[derive(Debug, Serialize)]
struct PublicStatus {
    store: String,
    #[serde(flatten)]
    figures: Map<String, Value>,
    pending: u64,
    upstream: PublicUpstream,
}

#[derive(Debug, Serialize)]
struct PublicUpstream {
    state: String,
}

impl From<StatusReport> for PublicStatus {
    fn from(StatusReport { store, figures, pending, upstream, .. }: StatusReport) -> Self {
        Self { store, figures, pending, upstream: PublicUpstream { state: upstream.state } }
    }
}

/// `GET /status`
pub(crate) async fn status(
    State(app): State<App>,
    sees: Sees,
    RawQuery(query): RawQuery,
    Opened { store, link, who, .. }: Opened,
) -> Result<Response, Problem> {
    let link = link.borrow().clone();
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    let mut report = StatusReport::of(&app.face, &store, &app.device, app.face.version, &link).await?;
    if sees != Sees::All {
        return Ok((no_store, Json(PublicStatus::from(report))).into_response());
    }
    if query.as_deref().is_some_and(|query| asks(query, "digests")) {
        let busy = |full: Full| {
            full.problem("too-many-digests", "More digests are being counted", "Ask again in a moment.", 1)
        };
        let _lease = match who {
            Who::Visitor => Some(app.shares.digests.lend(&who, 1).map_err(busy)?),
            Who::Owner | Who::Token(_) => None,
        };
        let digested = tokio::task::spawn_blocking(move || digests(&store)).await.map_err(Problem::internal)?;
        report.digests = Some(digested?);
    }
    Ok((no_store, Json(report)).into_response())
}

/// Whether a query has a parameter of this name, with or without a value.
fn asks(query: &str, name: &str) -> bool {
    query.split('&').any(|part| part.split('=').next() == Some(name))
}

/// `GET /healthz`
///
/// Strangers learn whether, and not why. With `?sync` it also says whether devices are served here at present, for a load
/// balancer in front of gateways: a gateway that is cut off from its cluster still stores what is posted on its own page.
pub(crate) async fn healthz(
    State(app): State<App>,
    sees: Sees,
    RawQuery(query): RawQuery,
    Opened { store, .. }: Opened,
) -> Result<impl IntoResponse, Problem> {
    let asks_for_sync = query.as_deref().is_some_and(|query| asks(query, "sync"));
    let not_serving = if asks_for_sync { app.hub.not_serving() } else { None };
    let of_store = store.healthy().await.trouble().map(|why| Error::Unavailable(why.into()).into());
    match of_store.or_else(|| app.hub.trouble().as_deref().map(tokens_unknown)).or(not_serving) {
        Some(_) if sees != Sees::All => Err(StatusCode::SERVICE_UNAVAILABLE.into()),
        Some(problem) => Err(problem),
        None => Ok(([(header::CACHE_CONTROL, "no-store")], "ok\n")),
    }
}

/// What the status line on the page says.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatusLine {
    pub(crate) nouns: Nouns,
    pub(crate) state: &'static str,
    pub(crate) pending: u64,
    pub(crate) since: Option<String>,
    /// What the line shows when it is opened. Only the owner has that.
    pub(crate) more: Option<More>,
}

/// What only the owner sees.
#[derive(Debug, Clone, Default)]
pub(crate) struct More {
    pub(crate) app: &'static str,
    pub(crate) hub: Option<String>,
    /// What the upstream is called: a hub, or a gateway's cluster.
    pub(crate) upstream: &'static str,
    /// Where the copies of the stream are, if it is a cluster.
    pub(crate) copies: Option<String>,
    pub(crate) since: Option<String>,
    /// What is wrong, in a sentence from this side.
    pub(crate) why: Option<String>,
    /// What the machine or the hub itself says of it.
    pub(crate) error: Option<String>,
    pub(crate) what_to_do: Option<String>,
    pub(crate) set_aside: u64,
    /// What becomes of the events behind a snapshot.
    pub(crate) history: Option<&'static str>,
    /// That the snapshot was wrong.
    pub(crate) was_wrong: Option<&'static str>,
    /// Where to post to have the hub tried at once, while it isn't reached.
    pub(crate) sync_now: Option<String>,
    /// Where to post to move the store to its hub's log, while that is the way out.
    pub(crate) adopt: Option<String>,
}

impl StatusLine {
    pub(crate) fn of(face: &Face, health: &Health, link: &LinkStatus, base: &str, sees: Sees) -> Self {
        let shown = |more: More| (sees == Sees::All).then_some(More { app: face.name, ..more });
        let blank = Self { nouns: face.nouns, more: shown(More::default()), ..Self::default() };
        if let Some(why) = health.trouble() {
            let more = More { error: Some(why.to_owned()), ..More::default() };
            return Self { state: "failed", more: shown(more), ..blank };
        }
        let Standing { pending, set_aside, history, .. } = match health {
            Health::Opening => return Self { state: "opening", ..blank },
            health => health.standing().cloned().unwrap_or_default(),
        };
        let since = link.since.map(clock_time);
        let is_halted = link.state == LinkState::Halted;
        let is_away = matches!(link.state, LinkState::Offline | LinkState::Halted);
        let more = More {
            hub: link.url.as_deref().map(str::to_owned),
            upstream: if link.is_of_gateway() { "cluster" } else { "hub" },
            copies: link.copies.as_deref().map(str::to_owned),
            since: since.clone(),
            why: what_is_wrong(link),
            error: link.error.clone(),
            what_to_do: link.code.filter(|_| is_halted).and_then(|code| what_to_do(face, code)),
            set_aside,
            history: history.map(|history| HistoryStatus::of(history, link.history).state.in_words()),
            was_wrong: link.was_wrong.then_some(WAS_WRONG),
            sync_now: is_away.then(|| format!("{base}/sync-now")),
            adopt: (is_halted && link.code == Some(code::WRONG_LOG)).then(|| format!("{base}/adopt")),
            ..More::default()
        };
        // A store that was synced and now runs without its upstream has events that wait for it.
        let is_detached = link.state == LinkState::None && pending > 0;
        Self {
            state: if is_detached { "detached" } else { link.state.as_str() },
            pending,
            // The line shows a start time only while offline.
            since: since.filter(|_| link.state == LinkState::Offline),
            more: shown(more),
            ..blank
        }
    }
}

impl StatusLine {
    /// What is wrong, in the line itself.
    pub(crate) fn trouble(&self) -> Option<&str> {
        let more = self.more.as_ref()?;
        more.why.as_deref().or(more.error.as_deref())
    }
}

/// Why a store is stopped, as its device sees it.
fn what_is_wrong(link: &LinkStatus) -> Option<String> {
    let sentence = match link.code.filter(|_| link.state == LinkState::Halted)? {
        code::WRONG_LOG if link.is_of_gateway() => "The stream has another log than the one that is here.",
        code::UNFIT => "The cluster can't be used as it is set up.",
        code::MOVED => "The store was moved to another hub.",
        code::UNAUTHORIZED => "The hub no longer accepts this device's token.",
        code::NO_TOKEN => "This device has no token for the hub.",
        code::WRONG_LOG => "The hub has another log than the one that this device was synced with.",
        code::NOT_A_HUB => "What answers at the hub's address follows a hub itself.",
        code::TOO_MANY_STORES => "The hub takes no more stores from this device.",
        _ => return None,
    };
    Some(sentence.to_owned())
}

/// What a person can do about a store that its hub refuses.
pub(crate) fn what_to_do(face: &Face, code: &str) -> Option<String> {
    let app = face.name;
    let way = match code {
        code::UNAUTHORIZED | code::NO_TOKEN => {
            format!(
                "Make a link with `{app} pair NAME` at the hub, and use it here with `{app} join`. Or put a token of `{app} token add NAME` into the token file."
            )
        }
        code::WRONG_LOG => {
            format!("Check the hub's address. If it is a new hub, move to it: `{app} adopt` pushes them there.")
        }
        code::NOT_A_HUB => "Sync with the hub itself, with --upstream.".to_owned(),
        code::UNFIT => "It goes on by itself once that is changed.".to_owned(),
        code::MOVED => format!(
            "To push them to the hub that has it now, stop this one, make a link with `{app} pair NAME` at that hub, use it here \
             with `{app} join`, and start this one without --upstream."
        ),
        code::TOO_MANY_STORES => "The hub has to make room.".to_owned(),
        _ => return None,
    };
    Some(format!("Your {} are kept. {way}", face.nouns.many))
}

/// Local date and time, such as 2026-03-01 14:02.
pub(crate) fn date_time(millis: u64) -> String {
    here(millis).map(|time| time.strftime("%Y-%m-%d %H:%M").to_string()).unwrap_or_default()
}

/// Local time of day, such as 14:02, with the date unless it is today.
fn clock_time(millis: u64) -> String {
    let Some(time) = here(millis) else { return String::new() };
    let is_today = here(clock::unix_millis()).is_some_and(|now| now.date() == time.date());
    time.strftime(if is_today { "%H:%M" } else { "%e %B, %H:%M" }).to_string().trim().to_owned()
}

/// The local time `millis` after the Unix epoch, or nothing if no calendar has it.
fn here(millis: u64) -> Option<jiff::ZonedDateTime> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(millis).ok()?).ok()?;
    Some(time.to_zoned_datetime(jiff::tz::TimeZone::system()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_where_their_readers_expect_them_and_come_back_alone() {
        let report = StatusReport {
            store: "likes".to_owned(),
            device: "here".parse().expect("a name"),
            version: "1.2.3".to_owned(),
            figures: Map::from_iter([("count".to_owned(), 7.into())]),
            head: 7,
            cursor: 7,
            pending: 0,
            set_aside: 0,
            skipped: 0,
            unknown: 0,
            log: None,
            schema: String::new(),
            upstream: (&LinkStatus::none()).into(),
            history: None,
            digests: Some(Digests { log_digest: "a".to_owned(), state_digest: "b".to_owned(), digest_seq: 7 }),
        };
        let text = serde_json::to_string(&report).expect("JSON");
        assert!(text.starts_with(r#"{"store":"likes","device":"here","count":7,"head":7,"#), "{text}");
        let back: StatusReport = serde_json::from_str(&text).expect("a report");
        assert_eq!(back.figures, report.figures);
        assert_eq!(back.digests.map(|digests| digests.log_digest), Some("a".to_owned()));
    }
}
