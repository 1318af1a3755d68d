//! The bucket that all gateways share, and this gateway's copy of it in its data directory.
//!
//! Commands and links work on the files of the data directory, with or without a process, as they do at a hub: the tokens,
//! the pairings, the key of the visitors' hashes. What changed there since the bucket was last read goes to the bucket, and
//! what changed in the bucket goes to the files. So the other gateways learn of a command that ran while this one was
//! stopped as soon as it starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::super::pairings::PairingFile;
use super::super::tokens::{Token, TokenFile, now, read, replace};
use super::api::{Api, ApiError, StreamInfo, code};
use super::shared::{Loss, Shared};
use crate::data_dir::DataDir;
use crate::engine::{LogId, StoreId};
use crate::limits::sync::nats::{BUCKET_MESSAGE, SWAPS};
use crate::random;

/// The key under which the document is.
const KEY: &str = "gateways";

/// Why the bucket and this gateway's copy aren't level.
#[derive(Debug, thiserror::Error)]
pub(super) enum BucketError {
    #[error("the bucket can't be read: {0}")]
    Api(#[from] ApiError),
    /// What is in the bucket can't be used.
    #[error("{0}")]
    Unfit(String),
    /// What would be in the bucket is too much for it. What is there holds, and what was added here is known here alone.
    #[error("{0}")]
    Full(String),
    /// The files of the data directory.
    #[error("{0:#}")]
    Files(anyhow::Error),
}

/// Where a document is in the bucket. Another value at the same place is another document: the bucket lost one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Revision {
    /// When the bucket was made.
    bucket: String,
    sequence: u64,
}

/// What a gateway remembers of its cluster, in its data directory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Copy {
    /// The id of the stream.
    #[serde(default)]
    stream: Option<String>,
    #[serde(default)]
    revision: Revision,
    #[serde(default)]
    shared: Option<Shared>,
}

/// The bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    data: PathBuf,
    stream: String,
    subject: String,
    copy: Mutex<Copy>,
    /// Only one at a time makes the copy and the bucket level.
    levelling: tokio::sync::Mutex<()>,
    /// When the bucket was last heard of, and told the truth.
    heard: Mutex<Option<Instant>>,
    /// The run, once it is known.
    run: watch::Sender<Option<Arc<str>>>,
}

impl Bucket {
    /// The bucket `stream` with this prefix, and the copy of it in `data`.
    ///
    /// # Errors
    ///
    /// When the copy can't be read.
    pub(super) fn new(data: &Path, stream: String, prefix: &str) -> anyhow::Result<Self> {
        let path = DataDir::gateways(data);
        let copy: Copy = match read(&path)? {
            Some(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{} is damaged; delete it, and this gateway asks its cluster again", path.display())
            })?,
            None => Copy::default(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                data: data.to_owned(),
                stream,
                subject: format!("$KV.{prefix}.{KEY}"),
                copy: Mutex::new(copy),
                levelling: tokio::sync::Mutex::default(),
                heard: Mutex::default(),
                run: watch::channel(None).0,
            }),
        })
    }

    /// The id of the stream that this gateway knows, if it knows one.
    pub(super) fn known_stream(&self) -> Option<String> {
        self.copy().stream.clone()
    }

    /// Remembers the id of the stream.
    pub(super) fn meet_stream(&self, id: &str) -> anyhow::Result<()> {
        let mut copy = self.copy();
        if copy.stream.as_deref() == Some(id) {
            return Ok(());
        }
        let met = Copy { stream: Some(id.to_owned()), ..copy.clone() };
        self.write(&met)?;
        *copy = met;
        Ok(())
    }

    /// The run that this gateway serves under, once the bucket was heard of.
    pub(super) fn run(&self) -> Option<Arc<str>> {
        self.inner.run.borrow().clone()
    }

    /// Watches the run.
    pub(super) fn runs(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.inner.run.subscribe()
    }

    /// The number of the last run that is known, and the losses for which runs began.
    pub(super) fn losses(&self) -> (u64, Vec<Loss>) {
        let copy = self.copy();
        copy.shared.as_ref().map(|shared| (shared.run.number, shared.losses.clone())).unwrap_or_default()
    }

    /// The id that the log of a store brought along, if it was moved here.
    pub(super) fn moved(&self, store: &StoreId) -> Option<LogId> {
        self.copy().shared.as_ref()?.logs.get(store.as_str()).copied()
    }

    /// When the bucket was last heard of.
    pub(super) fn heard(&self) -> Option<Instant> {
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, Copy> {
        self.inner.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, copy: &Copy) -> anyhow::Result<()> {
        replace(&DataDir::gateways(&self.inner.data), &serde_json::to_vec_pretty(copy)?)
    }

    /// Makes the bucket, this copy and the files level. `info` describes the bucket as it was after `began`. If nothing changed
    /// there or here, no more is asked.
    pub(super) async fn level(&self, api: &Api, info: &StreamInfo, began: Instant) -> Result<(), BucketError> {
        let _alone = self.inner.levelling.lock().await;
        self.level_with(api, info, began).await
    }

    /// Asks for the bucket, and makes it level. All who ask at the same moment are served by one question.
    pub(super) async fn level_now(&self, api: &Api) -> Result<(), BucketError> {
        let came = Instant::now();
        let _alone = self.inner.levelling.lock().await;
        if self.heard().is_some_and(|heard| heard >= came) && !self.has_changes()? {
            return Ok(());
        }
        let began = Instant::now();
        let info = api.info(&self.inner.stream, None).await?;
        self.level_with(api, &info, began).await
    }

    async fn level_with(&self, api: &Api, info: &StreamInfo, began: Instant) -> Result<(), BucketError> {
        let there = Revision { bucket: info.created.clone(), sequence: info.state.last_seq };
        let is_level = {
            let copy = self.copy();
            copy.shared.is_some() && copy.revision == there
        };
        if is_level && !self.has_changes()? {
            self.hear(began);
            return Ok(());
        }
        self.swap(api, &info.created, began, |_| {}).await
    }

    /// Begins a new run for each of these stores, of which the stream lost something. Each comes with the number of the run
    /// in which that was found.
    pub(super) async fn begin_runs(&self, api: &Api, lost: &BTreeMap<StoreId, u64>) -> Result<(), BucketError> {
        let _alone = self.inner.levelling.lock().await;
        let began = Instant::now();
        let info = api.info(&self.inner.stream, None).await?;
        let begin = |shared: &mut Shared| lost.iter().for_each(|(store, seen)| shared.lose(store, *seen));
        self.swap(api, &info.created, began, begin).await
    }

    /// Notes which logs stores bring along into the stream, before they do.
    pub(super) async fn bring(&self, api: &Api, logs: &BTreeMap<StoreId, LogId>) -> Result<(), BucketError> {
        let _alone = self.inner.levelling.lock().await;
        let began = Instant::now();
        let info = api.info(&self.inner.stream, None).await?;
        let logs = |shared: &mut Shared| {
            for (store, log) in logs {
                shared.logs.entry(store.as_str().to_owned()).or_insert(*log);
            }
        };
        self.swap(api, &info.created, began, logs).await
    }

    /// Reads the document, merges what is known here into it with `change`, and writes it back, again and again until no
    /// other gateway is faster.
    async fn swap(
        &self,
        api: &Api,
        bucket: &str,
        began: Instant,
        change: impl Fn(&mut Shared),
    ) -> Result<(), BucketError> {
        let Inner { stream, subject, .. } = &*self.inner;
        for _ in 0..SWAPS {
            let found = api.last(stream, subject).await?;
            let sequence = found.as_ref().map_or(0, |found| found.sequence);
            let there = found.map(|found| Shared::read(&found.payload).map_err(BucketError::Unfit)).transpose()?;
            let before = self.copy().clone();
            let known = before.shared.clone().unwrap_or_default();
            let mut next = there.clone().unwrap_or_else(Shared::new);
            // The first document of a bucket that this gateway never knew is nobody's loss.
            let is_lost = before.shared.is_some() && there.as_ref().is_none_or(|there| !there.includes(&known));
            next.merge(&known, now());
            let files = Files::of(&self.inner.data).map_err(BucketError::Files)?;
            next.change(&known, files.tokens_of(&known), &files.pairings, now());
            if next.visitors.is_none() {
                next.visitors = Some(files.visitors.clone().unwrap_or_else(random::hex::<32>));
            }
            if is_lost {
                next.run = next.run.next();
            }
            change(&mut next);
            let mut revision = Revision { bucket: bucket.to_owned(), sequence };
            if there.as_ref() != Some(&next) {
                let bytes = next.to_bytes();
                if bytes.len() > BUCKET_MESSAGE {
                    if let Some(there) = there {
                        self.keep(&known, there, revision).map_err(BucketError::Files)?;
                        self.hear(began);
                    }
                    return Err(BucketError::Full(format!(
                        "the gateways share {} bytes of tokens and links, and {BUCKET_MESSAGE} is the limit, so what was added \
                         here is known here alone; revoke what nobody uses",
                        bytes.len()
                    )));
                }
                match api.publish(subject, sequence, bytes.into()).await {
                    Ok(sequence) => revision.sequence = sequence,
                    // Another gateway was faster.
                    Err(error)
                        if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRONG_LAST_SEQUENCE_CONSTANT) =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            self.keep(&known, next, revision).map_err(BucketError::Files)?;
            if is_lost {
                tracing::warn!(
                    "the bucket of the gateways had lost its newest changes; they are there again, and a new run begins"
                );
            }
            self.hear(began);
            return Ok(());
        }
        Err(BucketError::Full("other gateways change the bucket without pause; this one tries again".to_owned()))
    }

    /// Writes the document into the files of the data directory, and then into the copy. In this order a crash makes the
    /// next process find changes that the bucket has already.
    fn keep(&self, before: &Shared, shared: Shared, revision: Revision) -> anyhow::Result<()> {
        let data = &self.inner.data;
        let tokens = TokenFile::in_dir(data);
        let pairings = PairingFile::in_dir(data);
        let lock = tokens.lock()?;
        // Somebody may have changed them meanwhile.
        let found = Files::of(data)?;
        let mut kept = shared.clone();
        kept.change(before, found.tokens_of(before), &found.pairings, now());
        if found.tokens.as_deref().unwrap_or_default() != kept.tokens {
            tokens.write(&kept.tokens)?;
        }
        if found.pairings != kept.pairings {
            pairings.write(&kept.pairings)?;
        }
        if let Some(key) = kept.visitors.as_ref().filter(|key| found.visitors.as_ref() != Some(key)) {
            replace(&DataDir::visitor_key(data), format!("{key}\n").as_bytes())?;
        }
        let mut copy = self.copy();
        let next = Copy { stream: copy.stream.clone(), revision, shared: Some(shared) };
        if copy.revision != next.revision || copy.shared != next.shared {
            self.write(&next)?;
            *copy = next;
        }
        drop(lock);
        Ok(())
    }

    /// Whether the files differ from the copy.
    fn has_changes(&self) -> Result<bool, BucketError> {
        let files = Files::of(&self.inner.data).map_err(BucketError::Files)?;
        let copy = self.copy();
        let Some(shared) = &copy.shared else { return Ok(true) };
        let tokens = files.tokens.as_deref().unwrap_or_default();
        Ok(tokens != shared.tokens || files.pairings != shared.pairings || files.visitors != shared.visitors)
    }

    /// Notes that the bucket was heard of, as of a moment before it was asked.
    fn hear(&self, began: Instant) {
        let run = self.copy().shared.as_ref().map(|shared| Arc::from(&*shared.run.id));
        self.inner.run.send_if_modified(|known| {
            let is_new = *known != run;
            *known = run;
            is_new
        });
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(began);
    }
}

/// What commands change in a data directory.
struct Files {
    /// `None` if there is no such file: then nothing was revoked by leaving it out.
    tokens: Option<Vec<Token>>,
    pairings: Vec<super::super::pairings::Pairing>,
    visitors: Option<String>,
}

impl Files {
    /// The tokens in the file, or those that are known if there is none.
    fn tokens_of<'a>(&'a self, known: &'a Shared) -> &'a [Token] {
        self.tokens.as_deref().unwrap_or(&known.tokens)
    }

    fn of(data: &Path) -> anyhow::Result<Self> {
        let visitors = read(&DataDir::visitor_key(data))?;
        let visitors = visitors.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
        Ok(Self {
            tokens: TokenFile::in_dir(data).list_if_any()?,
            pairings: PairingFile::in_dir(data).list()?,
            visitors: visitors.filter(|key| blake3::Hash::from_hex(key).is_ok()),
        })
    }
}
