//! Tokens: which devices may sync with this hub, and which browsers may see its page. A token names its device or browser,
//! so none can speak for another. Only hashes are stored; a token has 256 bits that nobody can guess, so one round of a
//! fast hash is enough.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use super::access::{Purpose, Token};
use crate::engine::{Device, Seq, open_private_file, open_to_read, sync_dir};
use crate::limits::sync::tokens::{LOOK_EVERY, MAX_TOKEN};
use crate::{clock, random};

impl Token {
    /// Whether it is the one whose text this is.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.hash == self.purpose.hash(text)
    }
}

impl Purpose {
    /// The word for it in a list.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "device",
            Self::Read => "read",
            Self::Browser => "browser",
        }
    }

    /// Hashes a token for this purpose, so that it opens nothing else. Versions that don't know of purposes hash as for
    /// sync.
    pub(super) fn hash(self, token: &str) -> String {
        let hash = match self {
            Self::Sync => blake3::hash(token.as_bytes()),
            Self::Read => blake3::derive_key("likewise 2026-11 token for reading", token.as_bytes()).into(),
            Self::Browser => blake3::derive_key("likewise 2026-11 token of a browser", token.as_bytes()).into(),
        };
        hash.to_hex().to_string()
    }
}

/// The file of tokens in a data directory.
#[derive(Debug, Clone)]
pub(crate) struct TokenFile {
    dir: PathBuf,
}

impl TokenFile {
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.join("tokens.json")
    }

    /// Returns all tokens, in the order in which they were added.
    pub(crate) fn list(&self) -> anyhow::Result<Vec<Token>> {
        Ok(self.list_if_any()?.unwrap_or_default())
    }

    /// Works like [`list`](Self::list), but returns `None` if there is no file.
    pub(super) fn list_if_any(&self) -> anyhow::Result<Option<Vec<Token>>> {
        let path = self.path();
        let parse = |text: Vec<u8>| serde_json::from_slice(&text);
        read(&path)?.map(parse).transpose().with_context(|| format!("{} is damaged", path.display()))
    }

    /// Makes a token for `device`, and returns the token itself, which is kept nowhere else.
    pub(crate) fn add(&self, device: Device, purpose: Purpose) -> anyhow::Result<String> {
        self.change(|tokens| {
            must_be_free(tokens, &device)?;
            let token = format!("lw_{}", random::hex::<32>());
            tokens.push(Token { device, hash: purpose.hash(&token), created: now(), purpose });
            Ok(token)
        })
    }

    /// Makes the token of `device` invalid. Returns what it was for.
    pub(crate) fn revoke(&self, device: &Device) -> anyhow::Result<Purpose> {
        self.change(|tokens| {
            let Some(place) = tokens.iter().position(|token| token.device == *device) else {
                bail!("there is no token of a device {}; `token list` shows all", device.as_str());
            };
            Ok(tokens.remove(place).purpose)
        })
    }

    /// Makes the file durable as it is. Its writer may not have got that far, and a device that was let in would be
    /// locked out after a power cut.
    pub(crate) fn secure(&self) -> anyhow::Result<()> {
        if self.list()?.is_empty() { Ok(()) } else { self.change(|_| Ok(())) }
    }

    /// Copies the tokens to another data directory, if there are any.
    pub(crate) fn copy_to(&self, dir: &Path) -> anyhow::Result<()> {
        let tokens = self.list()?;
        if tokens.is_empty() {
            return Ok(());
        }
        replace(&Self::in_dir(dir).path(), &serde_json::to_vec_pretty(&tokens)?)
    }

    /// Changes the file, under a lock that other commands wait for. Readers see either the old file or the new one.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Token>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let _lock = self.lock()?;
        let mut tokens = self.list()?;
        let result = change(&mut tokens)?;
        self.write(&tokens)?;
        Ok(result)
    }

    /// Keeps others from changing the file, and the pairings that become tokens, until the returned file is dropped.
    pub(super) fn lock(&self) -> anyhow::Result<File> {
        let lock = open_private_file(&self.dir.join("tokens.lock"))?;
        lock.lock().context("cannot lock the tokens")?;
        Ok(lock)
    }

    /// Replaces the tokens. The caller holds the lock.
    pub(super) fn write(&self, tokens: &[Token]) -> anyhow::Result<()> {
        replace(&self.path(), &serde_json::to_vec_pretty(tokens)?)
    }
}

/// Fails if one of the `tokens` has that name.
pub(super) fn must_be_free(tokens: &[Token], device: &Device) -> anyhow::Result<()> {
    if tokens.iter().any(|token| token.device == *device) {
        bail!(
            "the device {0} has a token already; revoke it first with `token revoke {0}`, or choose another name",
            device.as_str()
        );
    }
    Ok(())
}

/// Reads one of our own files, if it exists.
pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(mut file) = open_to_read(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    // Some editors begin a text with a byte-order mark.
    Ok(Some(bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes)))
}

/// Replaces the content of a file with `bytes`, completely or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = |mut file: File| {
        file.set_len(0)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write(open_private_file(&new)?).with_context(|| format!("cannot write {}", path.display()))?;
    path.parent().map(sync_dir).transpose()?;
    Ok(())
}

/// The tokens of a running hub, kept up to date with the file.
#[derive(Clone)]
pub(crate) struct Tokens {
    shared: Arc<Shared>,
}

struct Shared {
    file: TokenFile,
    list: watch::Sender<Vec<Token>>,
    last: Mutex<LastLook>,
}

/// The result of the last look at the file.
#[derive(Default)]
struct LastLook {
    /// When the file was last changed, and its length then.
    stamp: Option<Stamp>,
    /// Why it couldn't be read.
    trouble: Option<String>,
}

pub(super) type Stamp = (Option<SystemTime>, u64);

/// When a file was last changed, and its length then, if it is there.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.modified().ok(), meta.len()))
}

impl Tokens {
    /// Reads the file, and keeps looking for changes until `shutdown`.
    pub(crate) fn follow(file: TokenFile, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let list = watch::channel(Vec::new()).0;
        file.secure()?;
        let shared = Arc::new(Shared { file, list, last: Mutex::default() });
        shared.look();
        if let Some(trouble) = &shared.lock().trouble {
            bail!("{trouble}");
        }
        let looking = Arc::clone(&shared);
        tokio::spawn(async move {
            while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
                looking.look();
            }
        });
        Ok(Self { shared })
    }

    /// Returns the token that was shown, if it is one of ours for this purpose. A wrong token takes as long as a right
    /// one.
    pub(crate) fn find(&self, shown: &[u8], purpose: Purpose) -> Option<Token> {
        let shown = std::str::from_utf8(shown).ok().filter(|text| text.len() <= MAX_TOKEN).unwrap_or_default();
        let shown = purpose.hash(shown);
        self.shared.find(&shown).or_else(|| {
            // Without this look, a device whose token was added a moment ago would be told to go away, and would do so.
            self.shared.look();
            self.shared.find(&shown)
        })
    }

    /// Returns how many tokens for this purpose there are.
    pub(crate) fn count(&self, purpose: Purpose) -> usize {
        self.shared.list.borrow().iter().filter(|token| token.purpose == purpose).count()
    }

    /// Returns whether `token` is still valid according to the file as it is now.
    pub(crate) fn is_still_valid(&self, token: &Token) -> bool {
        self.shared.look();
        self.is_valid(token)
    }

    /// Returns why the list may differ from the one in the file.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared.look();
        self.shared.lock().trouble.clone()
    }

    /// Returns whether `token` is still valid.
    pub(crate) fn is_valid(&self, token: &Token) -> bool {
        self.shared.list.borrow().contains(token)
    }

    /// Returns when `token` is no longer valid.
    pub(crate) async fn revoked(&self, token: &Token) {
        let mut list = self.shared.list.subscribe();
        let gone = list.wait_for(|tokens| !tokens.contains(token)).await;
        drop(gone.expect("BUG: the list outlives who holds it"));
    }
}

impl Shared {
    /// Reads the file again if it has changed. If it can't be read, the known tokens stay valid, so a slip in the file
    /// locks nobody out. But the trouble is reported, because a token that was revoked in the file stays valid, too.
    fn look(&self) {
        let mut last = self.lock();
        let now = stamp(&self.file.path());
        // The cause of the trouble, such as the file's owner, may be fixed without a change of its text.
        if now == last.stamp && last.trouble.is_none() {
            return;
        }
        last.stamp = now;
        match self.file.list() {
            Ok(tokens) => {
                last.trouble = None;
                self.list.send_if_modified(|list| {
                    let is_new = *list != tokens;
                    *list = tokens;
                    is_new
                });
            }
            Err(error) => {
                let trouble = format!("the tokens stay as they were: {error:#}");
                if last.trouble.as_ref() != Some(&trouble) {
                    tracing::error!("{trouble}");
                }
                last.trouble = Some(trouble);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LastLook> {
        self.last.lock().expect("BUG: reading the tokens panicked")
    }

    fn find(&self, hash: &str) -> Option<Token> {
        let mut found = None;
        for token in self.list.borrow().iter() {
            let is_equal: Choice = token.hash.as_bytes().ct_eq(hash.as_bytes());
            if is_equal.into() {
                found = Some(token.clone());
            }
        }
        found
    }
}

/// Returns the time in milliseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    clock::unix_millis()
}

/// When a device was last seen at this hub, and how far it has pulled each store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// In milliseconds since the Unix epoch.
    pub(crate) at: u64,
    pub(crate) pulled: BTreeMap<String, Seq>,
    /// How many stores it has made.
    #[serde(default)]
    pub(crate) made: u64,
}

impl Seen {
    /// Reads what the hub last recorded about each device.
    pub(crate) fn read(dir: &Path) -> BTreeMap<String, Self> {
        // This is a courtesy to people. Nothing depends on it, so a damaged file counts as none.
        let text = read(&dir.join("devices.json")).ok().flatten();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Records what is known about each device.
    pub(crate) fn write(dir: &Path, devices: &BTreeMap<String, Self>) -> anyhow::Result<()> {
        replace(&dir.join("devices.json"), &serde_json::to_vec_pretty(devices)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, outcome};

    #[test]
    fn only_a_hash_is_stored_and_names_are_unique() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::in_dir(dir.path());
        let token = file.add("phone".parse().unwrap(), Purpose::Sync).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(!text.contains(&token) && !text.contains(token.trim_start_matches("lw_")), "{text}");
        assert!(file.add("phone".parse().unwrap(), Purpose::Sync).is_err());
        file.revoke(&"phone".parse().unwrap()).unwrap();
        assert!(file.revoke(&"phone".parse().unwrap()).is_err());
        assert_eq!(file.list().unwrap(), []);
    }

    #[tokio::test]
    async fn a_token_for_reading_syncs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::in_dir(dir.path());
        let token = |name: &str, purpose| file.add(name.parse().unwrap(), purpose).unwrap();
        let (phone, watcher) = (token("phone", Purpose::Sync), token("watcher", Purpose::Read));
        let tokens = Tokens::follow(file.clone(), CancellationToken::new()).unwrap();
        let opens = |token: &str, purpose| tokens.find(token.as_bytes(), purpose).is_some();
        assert!(opens(&phone, Purpose::Sync) && !opens(&phone, Purpose::Read));
        assert!(opens(&watcher, Purpose::Read) && !opens(&watcher, Purpose::Sync));
        let text = fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.matches("purpose").count(), 1, "older versions read the rest as they always did: {text}");
    }

    #[tokio::test]
    async fn a_running_hub_notices_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::in_dir(dir.path());
        let tokens = Tokens::follow(file.clone(), CancellationToken::new()).unwrap();
        let shown = file.add("phone".parse().unwrap(), Purpose::Sync).unwrap();
        let token = tokens.find(shown.as_bytes(), Purpose::Sync).expect("known from the start");
        assert_eq!(token.device.as_str(), "phone");
        for wrong in [&shown[1..], &shown[..shown.len() - 1], &format!("{shown}{shown}"), "", &"x".repeat(10_000)] {
            assert_eq!(tokens.find(wrong.as_bytes(), Purpose::Sync), None, "{wrong}");
        }
        file.revoke(&token.device).unwrap();
        tokens.revoked(&token).await;
    }

    #[tokio::test]
    async fn a_damaged_file_is_told_of_and_locks_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::in_dir(dir.path());
        let shown = file.add("phone".parse().unwrap(), Purpose::Sync).unwrap();
        let tokens = Tokens::follow(file.clone(), CancellationToken::new()).unwrap();
        fs::write(file.path(), "no tokens").unwrap();
        assert!(tokens.trouble().is_some_and(|trouble| trouble.contains("is damaged")));
        let token = tokens.find(shown.as_bytes(), Purpose::Sync).expect("still valid");
        assert!(tokens.is_valid(&token));
        fs::remove_file(file.path()).unwrap();
        assert_eq!(tokens.trouble(), None);
        assert!(!tokens.is_valid(&token));
    }

    #[tokio::test]
    async fn a_file_that_is_mended_is_read_whatever_its_stamp_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::in_dir(dir.path());
        let shown = file.add("phone".parse().unwrap(), Purpose::Sync).unwrap();
        let whole = fs::read_to_string(file.path()).unwrap();
        let tokens = Tokens::follow(file.clone(), CancellationToken::new()).unwrap();
        fs::write(file.path(), whole.replace('[', "x")).unwrap();
        assert!(tokens.trouble().is_some());
        let changed = fs::metadata(file.path()).unwrap().modified().unwrap();
        fs::write(file.path(), &whole).unwrap();
        File::options().write(true).open(file.path()).unwrap().set_modified(changed).unwrap();
        assert_eq!(tokens.trouble(), None);
        assert!(tokens.find(shown.as_bytes(), Purpose::Sync).is_some());
    }

    #[test]
    fn trust_38_fuzzed_token_files_are_read_or_refused() {
        fuzz("tokens-file", &["\"device\":", "\"hash\":", "\"created\":", "[{"], |input| {
            let tokens = serde_json::from_slice::<Vec<Token>>(input);
            if let Ok(tokens) = &tokens {
                let again: Vec<Token> =
                    serde_json::from_slice(&serde_json::to_vec(tokens).expect("JSON")).expect("tokens");
                assert_eq!(again, *tokens);
            }
            outcome(&tokens)
        });
    }
}
