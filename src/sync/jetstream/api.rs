//! Requests to JetStream, and what the answers mean. Nothing here decides anything.
//!
//! Those about one message or the stream are answered by the stream's leader, those for many messages by any of its
//! replicas, which may be behind.

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

use crate::limits::sync::nats::{ANSWER, READ_BYTES, READ_MESSAGES};

/// Why JetStream didn't do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// Nobody is connected, or no answer came. What was asked may have been done.
    #[error("{0}")]
    NoAnswer(String),
    /// JetStream refuses, with a code of its own and its words.
    #[error("JetStream says: {1} ({0})")]
    Refused(u64, String),
    /// The answer is none of JetStream's.
    #[error("what answers as JetStream is not understood: {0}")]
    NotUnderstood(String),
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
    /// How many operations it is behind.
    #[serde(default)]
    pub(super) lag: u64,
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
}

impl Api {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Describes a stream. `subjects` also counts the messages of each subject that matches it, from the one at `offset` on.
    pub(super) async fn info(&self, stream: &str, subjects: Option<(&str, u64)>) -> Result<StreamInfo, ApiError> {
        let asked = match subjects {
            Some((filter, offset)) => json!({ "subjects_filter": filter, "offset": offset }),
            None => json!({}),
        };
        self.request(&format!("STREAM.INFO.{stream}"), &asked).await
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
        Ok(self.ask::<Ack>(subject, request).await?.seq)
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
            return Err(ApiError::Refused(err_code, description));
        }
        serde_json::from_slice(&answer.payload).map_err(|error| ApiError::NotUnderstood(error.to_string()))
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
