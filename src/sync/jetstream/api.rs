//! Requests to JetStream, and what the answers mean. Nothing here decides anything.
//!
//! Those about one message or the stream are answered by the stream's leader, those for many messages by any of its
//! replicas, which may be behind. What is said of a stream counts only from a leader that a majority of its servers
//! follows: a server that is cut off from the others goes on answering for a while.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::header::HeaderMap;
use async_nats::{Client, Message, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::limits::sync::nats::{ANSWER, QUORUM, READ_BYTES, READ_MESSAGES};

/// Why JetStream didn't do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// Nobody is connected, or no answer came. What was asked may have been done.
    #[error("{0}")]
    NoAnswer(String),
    /// JetStream refuses, with a code of its own and its words.
    #[error("{}", refused(*.0, .1))]
    Refused(u64, String),
    /// The answer is none of JetStream's.
    #[error("what answers as JetStream is not understood: {0}")]
    NotUnderstood(String),
}

fn refused(found: u64, why: &str) -> String {
    match found {
        code::UNAVAILABLE => format!(
            "JetStream says: {why} ({found}): too few of its servers reach each other, or their storage is full"
        ),
        found if code::FULL.contains(&found) => {
            format!("JetStream has no room: {why}. Raise its limit, or give its disk more room")
        }
        found => format!("JetStream says: {why} ({found})"),
    }
}

/// JetStream's own codes of errors.
pub(super) mod code {
    pub(in super::super) const STREAM_NOT_FOUND: u64 = 10_059;
    pub(in super::super) const MESSAGE_NOT_FOUND: u64 = 10_037;
    pub(in super::super) const NAME_IN_USE: u64 = 10_058;
    pub(in super::super) const WRONG_LAST_SEQUENCE: u64 = 10_071;
    /// The same, for a condition that another publish in flight makes uncertain.
    pub(in super::super) const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10_164;
    pub(in super::super) const NOT_ENABLED: u64 = 10_076;
    /// There is no leader, for any reason.
    pub(in super::super) const UNAVAILABLE: u64 = 10_008;
    pub(in super::super) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10_039;
    /// Codes that mean that there is no more room.
    pub(in super::super) const FULL: [u64; 6] = [10_023, 10_047, 10_077, 10_028, 10_002, 10_026];
    /// The replicas don't fit onto the servers: there are too few of them.
    pub(in super::super) const TOO_FEW_SERVERS: [u64; 3] = [10_074, 10_005, 10_052];
}

impl ApiError {
    pub(super) fn is(&self, code: u64) -> bool {
        matches!(self, Self::Refused(found, _) if *found == code)
    }

    /// The last sequence of the subject, if a publication was refused for it and the answer tells it.
    pub(super) fn last_sequence(&self) -> Option<u64> {
        match self {
            Self::Refused(code::WRONG_LAST_SEQUENCE, why) => why.rsplit(' ').next()?.parse().ok(),
            _ => None,
        }
    }
}

/// A stream, as JetStream describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamInfo {
    /// Its settings, in JetStream's own words.
    pub(super) config: Value,
    pub(super) created: String,
    pub(super) state: StreamState,
    /// How many subjects there are in all, where they were asked for.
    #[serde(default)]
    pub(super) total: u64,
    pub(super) cluster: Option<Peers>,
}

/// What a stream holds.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// When the last message was stored.
    #[serde(default)]
    pub(super) last_ts: String,
    #[serde(default)]
    pub(super) num_deleted: u64,
    /// How many messages each subject has, where they were asked for.
    #[serde(default)]
    pub(super) subjects: std::collections::BTreeMap<String, u64>,
}

impl StreamInfo {
    /// How many copies the stream is to have.
    pub(super) fn copies(&self) -> u64 {
        self.config["num_replicas"].as_u64().unwrap_or(1)
    }

    /// Returns since when this may be out of date: the time since a majority of the stream's servers followed the leader that
    /// told it.
    ///
    /// # Errors
    ///
    /// When none leads, or a leader is alone: another one may have been elected, and taken more messages since. Says which
    /// servers are missing.
    pub(super) fn age(&self) -> Result<Duration, String> {
        // A server without a cluster has nobody to agree with.
        let Some(peers) = &self.cluster else { return Ok(Duration::ZERO) };
        let others = usize::try_from(self.copies()).unwrap_or(usize::MAX).saturating_sub(1).max(peers.replicas.len());
        let mut ages: Vec<_> = peers
            .replicas
            .iter()
            .filter(|peer| !peer.is_missing())
            .map(|peer| Duration::from_nanos(peer.active))
            .collect();
        ages.sort();
        let needed = others.div_ceil(2);
        let age = if needed == 0 { Some(Duration::ZERO) } else { ages.get(needed - 1).copied() };
        if let Some(age) = age.filter(|_| !peers.leader.is_empty()) {
            return Ok(age);
        }
        let missing: Vec<_> =
            peers.replicas.iter().filter(|peer| peer.is_missing()).map(|peer| peer.name.as_str()).collect();
        Err(match missing.split_last() {
            None => "no server leads it at present, and electing one takes some seconds".to_owned(),
            Some((one, [])) => format!("no server leads it: {one} doesn't answer. Start it"),
            Some((last, more)) => {
                format!("no server leads it: {} and {last} don't answer. Start one of them", more.join(", "))
            }
        })
    }
}

/// The servers that hold a stream.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Peers {
    #[serde(default)]
    pub(super) leader: String,
    #[serde(default)]
    pub(super) replicas: Vec<Peer>,
}

/// A server that holds a copy of a stream, without the leader.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Peer {
    pub(super) name: String,
    #[serde(default)]
    pub(super) current: bool,
    #[serde(default)]
    pub(super) offline: bool,
    /// How long ago it was last heard of, in nanoseconds.
    #[serde(default)]
    pub(super) active: u64,
}

impl Peer {
    /// Whether it isn't there, rather than slow.
    pub(super) fn is_missing(&self) -> bool {
        self.offline || Duration::from_nanos(self.active) > QUORUM
    }
}

/// A message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
}

/// JetStream, over one connection.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    shortage: Shortage,
}

/// What JetStream last said of room that it lacks, until it stores a message again. Servers without room give up leading soon
/// after that, and then say nothing of the cause.
pub(super) type Shortage = Arc<Mutex<Option<String>>>;

impl Api {
    pub(super) fn new(client: Client, shortage: Shortage) -> Self {
        Self { client, shortage }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Describes a stream, as a leader with a majority knows it. `subjects` also counts the messages of each subject that matches
    /// it, from the one at `offset` on.
    pub(super) async fn info(&self, stream: &str, subjects: Option<(&str, u64)>) -> Result<StreamInfo, ApiError> {
        let asked = match subjects {
            Some((filter, offset)) => json!({ "subjects_filter": filter, "offset": offset }),
            None => json!({}),
        };
        let info: StreamInfo = self.request(&format!("STREAM.INFO.{stream}"), &asked).await?;
        info.age().map_err(|why| ApiError::NoAnswer(format!("the stream {stream} can't be used: {why}")))?;
        Ok(info)
    }

    /// Counts the messages of a subject.
    pub(super) async fn count(&self, stream: &str, subject: &str) -> Result<u64, ApiError> {
        let info = self.info(stream, Some((subject, 0))).await?;
        Ok(info.state.subjects.get(subject).copied().unwrap_or_default())
    }

    /// Makes a stream.
    pub(super) async fn create(&self, stream: &str, config: &Value) -> Result<StreamInfo, ApiError> {
        self.request(&format!("STREAM.CREATE.{stream}"), config).await
    }

    /// Returns the message with this sequence, from the leader.
    pub(super) async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, ApiError> {
        Ok(self.get(stream, &json!({ "seq": sequence })).await?.map(|(message, _)| message))
    }

    /// Returns the last message of a subject, from the leader.
    pub(super) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, ApiError> {
        Ok(self.last_with_time(stream, subject).await?.map(|(message, _)| message))
    }

    /// Works like [`last`](Self::last), and tells when the message was stored, in JetStream's words.
    pub(super) async fn last_with_time(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<(Stored, String)>, ApiError> {
        self.get(stream, &json!({ "last_by_subj": subject })).await
    }

    async fn get(&self, stream: &str, asked: &Value) -> Result<Option<(Stored, String)>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            message: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            subject: String,
            seq: u64,
            #[serde(default)]
            data: String,
            #[serde(default)]
            time: String,
        }
        match self.request::<Answer>(&format!("STREAM.MSG.GET.{stream}"), asked).await {
            Ok(Answer { message: Message { subject, seq, data, time } }) => {
                let payload = BASE64.decode(data).map_err(|error| ApiError::NotUnderstood(error.to_string()))?;
                Ok(Some((Stored { subject, sequence: seq, payload: payload.into() }, time)))
            }
            Err(error) if error.is(code::MESSAGE_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads messages of a subject from `sequence` on, in order. Any replica may answer, so the newest may be missing.
    pub(super) async fn read(&self, stream: &str, subject: &str, sequence: u64) -> Result<Vec<Stored>, ApiError> {
        let asked = json!({
            "next_by_subj": subject, "seq": sequence, "batch": READ_MESSAGES, "max_bytes": READ_BYTES,
        });
        let inbox = self.client.new_inbox();
        self.must_be_connected()?;
        let reading = async {
            let lost = |error: &dyn std::fmt::Display| ApiError::NoAnswer(format!("the request failed: {error}"));
            let mut answers = self.client.subscribe(inbox.clone()).await.map_err(|error| lost(&error))?;
            let subject = format!("$JS.API.DIRECT.GET.{stream}");
            let asked = serde_json::to_vec(&asked).expect("BUG: a request that isn't JSON").into();
            self.client.publish_with_reply(subject, inbox, asked).await.map_err(|error| lost(&error))?;
            let (mut messages, mut bytes) = (Vec::new(), 0);
            while let Ok(Some(answer)) = timeout(ANSWER, answers.next()).await {
                match answer.status.map(|status| status.as_u16()) {
                    // The end, and nothing at all.
                    Some(204 | 404) => return Ok(messages),
                    Some(503) => break,
                    Some(status) => {
                        let why = answer.description.unwrap_or_default();
                        return Err(ApiError::NotUnderstood(format!("it answers {status} to a read: {why}")));
                    }
                    None => {
                        bytes += answer.payload.len();
                        messages.push(stored(&answer)?);
                    }
                }
                // A server keeps to what it was asked for, up to the message that goes beyond.
                if messages.len() > READ_MESSAGES || bytes > 2 * READ_BYTES {
                    return Ok(messages);
                }
            }
            Err(ApiError::NoAnswer("no replica of the stream answers".to_owned()))
        };
        reading.await
    }

    /// Publishes a message, provided that the last one of its subject still has the sequence `after`. Returns its own.
    pub(super) async fn publish(&self, subject: &str, after: u64, payload: Bytes) -> Result<u64, ApiError> {
        #[derive(Deserialize)]
        struct Ack {
            seq: u64,
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", after.to_string());
        let request = Request::new().payload(payload).headers(headers);
        let Ack { seq } = self.ask(subject, request).await?;
        *self.shortage() = None;
        Ok(seq)
    }

    /// Asks JetStream something.
    pub(super) async fn request<T: DeserializeOwned>(&self, what: &str, asked: &impl Serialize) -> Result<T, ApiError> {
        let payload = serde_json::to_vec(asked).map_err(|error| ApiError::NotUnderstood(error.to_string()))?;
        self.ask(&format!("$JS.API.{what}"), Request::new().payload(payload.into())).await
    }

    async fn ask<T: DeserializeOwned>(&self, subject: &str, request: Request) -> Result<T, ApiError> {
        #[derive(Deserialize)]
        struct Problem {
            error: Refusal,
        }
        #[derive(Deserialize)]
        struct Refusal {
            #[serde(default)]
            err_code: u64,
            #[serde(default)]
            description: String,
        }
        self.must_be_connected()?;
        let request = request.timeout(Some(ANSWER));
        let answer = self.client.send_request(subject.to_owned(), request).await.map_err(|error| {
            use async_nats::client::RequestErrorKind as Kind;
            match error.kind() {
                Kind::NoResponders => ApiError::NoAnswer(
                    "nothing there answers for JetStream: it is not turned on, this account may not use it, or the stream \
                     has no leader at present"
                        .to_owned(),
                ),
                Kind::TimedOut => ApiError::NoAnswer(format!("no answer came within {} s", ANSWER.as_secs())),
                _ => ApiError::NoAnswer(format!("the request failed: {error}")),
            }
        })?;
        if let Ok(Problem { error: Refusal { err_code, description } }) = serde_json::from_slice(&answer.payload) {
            let refused = ApiError::Refused(err_code, description);
            if code::FULL.contains(&err_code) {
                *self.shortage() = Some(refused.to_string());
            }
            return Err(refused);
        }
        serde_json::from_slice(&answer.payload).map_err(|error| ApiError::NotUnderstood(error.to_string()))
    }

    fn shortage(&self) -> MutexGuard<'_, Option<String>> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails without a connection. The client would keep the request, and send it whenever it is connected again.
    fn must_be_connected(&self) -> Result<(), ApiError> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ => Err(ApiError::NoAnswer("there is no connection".to_owned())),
        }
    }
}

fn header<T: std::str::FromStr>(message: &Message, name: &str) -> Option<T> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}

fn stored(message: &Message) -> Result<Stored, ApiError> {
    let sequence = header(message, "Nats-Sequence");
    let subject = header(message, "Nats-Subject");
    let (Some(sequence), Some(subject)) = (sequence, subject) else {
        return Err(ApiError::NotUnderstood("a message without its sequence".to_owned()));
    };
    Ok(Stored { subject, sequence, payload: message.payload.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A stream of three copies. The servers beside the one that answers were last heard of so long ago, in nanoseconds.
    fn info(leader: &str, others: &[(&str, u64)]) -> StreamInfo {
        let replicas: Vec<_> = others.iter().map(|(name, active)| json!({ "name": name, "active": active })).collect();
        let info = json!({
            "config": { "num_replicas": 3 }, "created": "now",
            "state": { "messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0 },
            "cluster": { "leader": leader, "replicas": replicas },
        });
        serde_json::from_value(info).expect("a description")
    }

    #[test]
    fn only_a_leader_with_a_majority_is_heard() {
        let seconds = |age| Ok(Duration::from_secs(age));
        assert_eq!(info("n1", &[("n2", 3 * SECOND), ("n3", SECOND)]).age(), seconds(1));
        assert_eq!(info("n1", &[("n2", 3 * SECOND), ("n3", 60 * SECOND)]).age(), seconds(3));
        let alone = info("n1", &[("n2", 11 * SECOND), ("n3", 60 * SECOND)]).age().expect_err("alone");
        assert!(alone.contains("n2 and n3 don't answer"), "{alone}");
        let unled = info("", &[("n1", 0), ("n2", 3 * SECOND), ("n3", 60 * SECOND)]).age().expect_err("no leader");
        assert!(unled.contains("n3 doesn't answer"), "{unled}");
        assert!(info("", &[("n2", 0), ("n3", 0)]).age().is_err(), "an election");
        assert!(info("n1", &[]).age().is_err(), "it doesn't say who follows it");
        let mut single = info("n1", &[]);
        single.config = json!({ "num_replicas": 1 });
        assert_eq!(single.age(), seconds(0));
        single.cluster = None;
        assert_eq!(single.age(), seconds(0));
    }
}
