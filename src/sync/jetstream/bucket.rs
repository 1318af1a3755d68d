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
use tokio::sync::watch;

use super::super::gateway::shared::{Merged, Own, Revision, Runs, Shared, SharedCopy};
use super::super::pairings::PairingFile;
use super::super::tokens::{Stamp, TokenFile, now, read, replace, stamp};
use super::api::{Api, ApiError, StreamInfo, code};
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

/// The bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    data: PathBuf,
    stream: String,
    subject: String,
    copy: Mutex<SharedCopy>,
    /// Only one at a time makes the copy and the bucket level.
    levelling: tokio::sync::Mutex<()>,
    /// When the bucket was last heard of, and told the truth.
    heard: Mutex<Option<Heard>>,
    /// The files as they were when they held what the copy has. None of them is read again until one of them changes, or the
    /// copy does.
    level: Mutex<Option<Stamps>>,
    /// The run, once it is known.
    run: watch::Sender<Option<Arc<str>>>,
}

/// A word of the bucket's leader.
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// A moment before it was asked.
    asked: Instant,
    /// When a majority of its servers was last known to follow it. Another leader may have taken changes since.
    as_of: Instant,
}

impl Heard {
    /// What `info` tells, which was asked for after `asked`.
    fn of(info: &StreamInfo, asked: Instant) -> Self {
        // Whoever just made the bucket isn't told when its servers were last heard of.
        let age = info.age().unwrap_or_default();
        Self { asked, as_of: asked.checked_sub(age).unwrap_or(asked) }
    }
}

/// The stamps of the files of tokens, pairings and the visitors' key.
type Stamps = [Option<Stamp>; 3];

impl Bucket {
    /// The bucket `stream` with this prefix, and the copy of it in `data`.
    ///
    /// # Errors
    ///
    /// When the copy can't be read.
    pub(super) fn new(data: &Path, stream: String, prefix: &str) -> anyhow::Result<Self> {
        let path = DataDir::gateways(data);
        let copy: SharedCopy = match read(&path)? {
            Some(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{} is damaged; delete it, and this gateway asks its cluster again", path.display())
            })?,
            None => SharedCopy::default(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                data: data.to_owned(),
                stream,
                subject: format!("$KV.{prefix}.{KEY}"),
                copy: Mutex::new(copy),
                levelling: tokio::sync::Mutex::default(),
                heard: Mutex::default(),
                level: Mutex::default(),
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
        let met = SharedCopy { stream: Some(id.to_owned()), ..copy.clone() };
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

    /// The runs that have begun, as far as is known.
    pub(super) fn begun(&self) -> Runs {
        self.copy().shared.as_ref().map(Shared::runs).unwrap_or_default()
    }

    /// The id that the log of a store brought along, if it was moved here.
    pub(super) fn moved(&self, store: &StoreId) -> Option<LogId> {
        self.copy().shared.as_ref()?.logs.get(store.as_str()).copied()
    }

    /// Since when what is known of the bucket may be out of date, once it was heard of.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.last_heard().map(|heard| heard.as_of)
    }

    fn last_heard(&self) -> Option<Heard> {
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, SharedCopy> {
        self.inner.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, copy: &SharedCopy) -> anyhow::Result<()> {
        *self.level_files() = None;
        replace(&DataDir::gateways(&self.inner.data), &serde_json::to_vec_pretty(copy)?)
    }

    /// Returns the document that the bucket has, if there are both.
    pub(super) async fn glance(&self, api: &Api) -> Result<Option<Shared>, BucketError> {
        match api.last(&self.inner.stream, &self.inner.subject).await {
            Ok(found) => found.map(|found| Shared::read(&found.payload).map_err(BucketError::Unfit)).transpose(),
            Err(error) if error.is(code::STREAM_NOT_FOUND) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn level_files(&self) -> MutexGuard<'_, Option<Stamps>> {
        self.inner.level.lock().unwrap_or_else(PoisonError::into_inner)
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
        if self.last_heard().is_some_and(|heard| heard.asked >= came) && !self.has_changes()? {
            return Ok(());
        }
        let began = Instant::now();
        let info = api.info(&self.inner.stream, None).await?;
        self.level_with(api, &info, began).await
    }

    async fn level_with(&self, api: &Api, info: &StreamInfo, began: Instant) -> Result<(), BucketError> {
        let StreamInfo { created, state, .. } = info;
        let end = Revision { bucket: created.clone(), sequence: state.last_seq, time: state.last_ts.clone() };
        let heard = Heard::of(info, began);
        let is_level = self.copy().is_of(&end);
        if is_level && !self.has_changes()? {
            self.hear(heard);
            return Ok(());
        }
        self.swap(api, created, heard, |_| {}).await
    }

    /// Begins a new run for each of these stores, of which the stream lost something. Each comes with the number of the run
    /// in which that was found.
    pub(super) async fn begin_runs(&self, api: &Api, lost: &BTreeMap<StoreId, u64>) -> Result<(), BucketError> {
        let _alone = self.inner.levelling.lock().await;
        let began = Instant::now();
        let info = api.info(&self.inner.stream, None).await?;
        let begin = |shared: &mut Shared| lost.iter().for_each(|(store, seen)| shared.lose(store, *seen, new_id));
        self.swap(api, &info.created, Heard::of(&info, began), begin).await
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
        self.swap(api, &info.created, Heard::of(&info, began), logs).await
    }

    /// Reads the document, merges what is known here into it with `change`, and writes it back, again and again until no
    /// other gateway is faster.
    async fn swap(
        &self,
        api: &Api,
        bucket: &str,
        heard: Heard,
        change: impl Fn(&mut Shared),
    ) -> Result<(), BucketError> {
        let Inner { stream, subject, .. } = &*self.inner;
        for _ in 0..SWAPS {
            let found = api.last_with_time(stream, subject).await?;
            let (there, sequence, time) = match found {
                Some((found, time)) => {
                    (Some(Shared::read(&found.payload).map_err(BucketError::Unfit)?), found.sequence, time)
                }
                None => Default::default(),
            };
            let own = own(&self.inner.data).map_err(BucketError::Files)?;
            let before = self.offer(&own).map_err(BucketError::Files)?;
            let Merged { shared: mut next, has_lost } = before.merged(there.as_ref(), &own, now(), new_id);
            next.visitors.get_or_insert_with(random::hex::<32>);
            change(&mut next);
            let mut revision = Revision { bucket: bucket.to_owned(), sequence, time };
            if there.as_ref() != Some(&next) {
                let bytes = next.to_bytes();
                if bytes.len() > BUCKET_MESSAGE {
                    if let Some(there) = there {
                        self.keep(&before, there, revision).map_err(BucketError::Files)?;
                        self.hear(heard);
                    }
                    return Err(BucketError::Full(format!(
                        "the gateways share {} bytes of tokens and links, and {BUCKET_MESSAGE} is the limit, so what was added \
                         here is known here alone; revoke what nobody uses",
                        bytes.len()
                    )));
                }
                match api.publish(subject, sequence, bytes.into()).await {
                    // The next look tells when.
                    Ok(sequence) => (revision.sequence, revision.time) = (sequence, String::new()),
                    // Another gateway was faster.
                    Err(error)
                        if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRONG_LAST_SEQUENCE_CONSTANT) =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            self.keep(&before, next, revision).map_err(BucketError::Files)?;
            if has_lost {
                tracing::warn!(
                    "the bucket of the gateways had lost its newest changes; they are there again, and a new run begins"
                );
            }
            self.hear(heard);
            return Ok(());
        }
        Err(BucketError::Full("other gateways change the bucket without pause; this one tries again".to_owned()))
    }

    /// Notes in the copy what the files offer, before the bucket has it. Returns the copy.
    fn offer(&self, own: &Own) -> anyhow::Result<SharedCopy> {
        let mut copy = self.copy();
        let mut next = copy.clone();
        if next.offer(own) {
            self.write(&next)?;
            *copy = next;
        }
        Ok(copy.clone())
    }

    /// Writes the document into the files of the data directory, and then into the copy. In this order a crash makes the
    /// next process find changes that the bucket has already.
    fn keep(&self, before: &SharedCopy, shared: Shared, revision: Revision) -> anyhow::Result<()> {
        let data = &self.inner.data;
        let tokens = TokenFile::in_dir(data);
        let lock = tokens.lock()?;
        // Somebody may have changed them meanwhile.
        let found = own(data)?;
        let kept = before.kept(&shared, &found, now());
        if found.tokens.as_deref().unwrap_or_default() != kept.tokens.as_deref().unwrap_or_default() {
            tokens.write(kept.tokens.as_deref().unwrap_or_default())?;
        }
        if found.pairings != kept.pairings {
            PairingFile::in_dir(data).write(&kept.pairings)?;
        }
        if let Some(key) = kept.visitors.filter(|key| found.visitors.as_ref() != Some(key)) {
            replace(&DataDir::visitor_key(data), format!("{key}\n").as_bytes())?;
        }
        let mut copy = self.copy();
        let mut next = copy.clone();
        next.keep(shared, revision);
        if *copy != next {
            self.write(&next)?;
            *copy = next;
        }
        drop(lock);
        Ok(())
    }

    /// Whether the files differ from the copy.
    fn has_changes(&self) -> Result<bool, BucketError> {
        // Whoever shows a wrong token has this asked.
        let now = self.stamps();
        if *self.level_files() == Some(now) {
            return Ok(false);
        }
        let own = own(&self.inner.data).map_err(BucketError::Files)?;
        let copy = self.copy();
        let is_level = copy.is_in(&own);
        *self.level_files() = is_level.then_some(now);
        Ok(!is_level)
    }

    fn stamps(&self) -> Stamps {
        let data = &self.inner.data;
        [TokenFile::in_dir(data).path(), PairingFile::in_dir(data).path(), DataDir::visitor_key(data)]
            .map(|path| stamp(&path))
    }

    /// Notes that the bucket was heard of.
    fn hear(&self, heard: Heard) {
        let run = self.copy().shared.as_ref().map(|shared| Arc::from(&*shared.run.id));
        self.inner.run.send_if_modified(|known| {
            let is_new = *known != run;
            *known = run;
            is_new
        });
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }
}

/// Makes up the id of a run.
fn new_id() -> String {
    random::hex::<16>()
}

/// What the files of a data directory hold.
fn own(data: &Path) -> anyhow::Result<Own> {
    let visitors = read(&DataDir::visitor_key(data))?;
    let visitors = visitors.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    Ok(Own {
        tokens: TokenFile::in_dir(data).list_if_any()?,
        pairings: PairingFile::in_dir(data).list()?,
        visitors: visitors.filter(|key| blake3::Hash::from_hex(key).is_ok()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::access::Purpose;
    use super::*;

    #[test]
    fn files_are_read_again_only_after_they_or_the_copy_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path();
        let bucket = Bucket::new(data, "KV_likewise".to_owned(), "likewise").expect("a bucket");
        let file = TokenFile::in_dir(data);
        file.add("phone".parse().expect("a name"), Purpose::Sync).expect("a token");
        let changed = || bucket.has_changes().expect("files");
        assert!(changed(), "the bucket doesn't know the token");
        let mut shared = Shared::new(new_id());
        shared.tokens = file.list().expect("the tokens");
        let before = bucket.copy().clone();
        bucket.keep(&before, shared, Revision::default()).expect("a copy");
        assert!(!changed());
        bucket.meet_stream("another").expect("a copy");
        assert_eq!(*bucket.level_files(), None, "the copy was written");
        assert!(!changed());
        // What is written without a trace isn't read, and damage would be an error.
        let written = fs::metadata(file.path()).expect("a file");
        fs::write(file.path(), vec![b'x'; usize::try_from(written.len()).expect("a length")]).expect("a file");
        let text = fs::File::options().append(true).open(file.path()).expect("a file");
        text.set_modified(written.modified().expect("a time")).expect("a time");
        assert!(!changed());
        fs::remove_file(file.path()).expect("a file");
        assert!(changed());
    }
}
