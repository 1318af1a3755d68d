//! Joining a hub: what a device does with a pairing link, and what its data directory then knows of the hub.
//!
//! Three files stand in the directory: `upstream.json` with the hub's address, `upstream.token` with this device's token, and
//! `upstream.pem` if the hub's certificate needs more than the system's authorities. The address is written last, so it
//! never stands there without its token.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use reqwest::{Response, Url, header};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::http::{TokenSource, UpstreamOptions, checked, connect};
use super::pairings::Paired;
use super::protocol::words;
use super::tokens::{read, replace};
use crate::engine::{Device, sync_dir};
use crate::limits::sync::http::ANSWER;
use crate::limits::sync::pairing::{ANSWER_BYTES, ASKED, PAUSE};
use crate::random;

/// A pairing link, as `pair` makes it at a hub.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    hub: Url,
    secret: String,
}

impl FromStr for Link {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let malformed = || {
            anyhow!(
                "{text:?} is not a link for pairing: it looks like https://likes.example.org/pair#0123…, and the part after \
                 the # belongs to it; put it into quotes"
            )
        };
        let mut hub = Url::parse(text).map_err(|_| malformed())?;
        let secret = hub.fragment().filter(|secret| !secret.is_empty()).ok_or_else(malformed)?.to_owned();
        hub.set_fragment(None);
        let path = hub.path().strip_suffix("/pair").ok_or_else(malformed)?.to_owned();
        hub.set_path(&path);
        Ok(Self { hub: checked(hub.as_str())?, secret })
    }
}

impl Link {
    /// Returns the address of the hub, without a slash at the end.
    pub(crate) fn hub(&self) -> &str {
        self.hub.as_str().trim_end_matches('/')
    }

    /// Redeems the link, and makes the data directory `data` a device of that hub. Returns its name there, and the name that
    /// it had before, if that is another.
    ///
    /// # Errors
    ///
    /// When the hub doesn't answer or refuses, or the files can't be written. After an answer that was lost, the same link
    /// can be tried again here.
    pub(crate) async fn join(&self, data: &Path, certificates: Option<&Path>) -> anyhow::Result<Joined> {
        let nonce = Nonce::in_dir(data);
        let Paired { device, token } = self.redeem(&nonce.get(self)?, certificates).await?;
        let files = Files::in_dir(data);
        match certificates {
            Some(path) => {
                replace(
                    &files.certificates,
                    &fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
                )?;
            }
            None => remove(&files.certificates)?,
        }
        let before = hub_in(&files)?.and_then(|hub| hub.device).filter(|before| *before != device);
        replace(&files.token, format!("{token}\n").as_bytes())?;
        let hub = Hub { url: self.hub().to_owned(), device: Some(device.clone()) };
        replace(&files.hub, &serde_json::to_vec_pretty(&hub)?)?;
        nonce.forget()?;
        Ok(Joined { device, before })
    }

    /// Tells this link from any other, and says nothing of it.
    fn hash(&self) -> String {
        let link = format!("{}/pair#{}", self.hub(), self.secret);
        blake3::Hash::from(blake3::derive_key("likewise 2026-11 link of a join", link.as_bytes())).to_hex().to_string()
    }

    /// Asks the hub for the token, again if no answer comes.
    async fn redeem(&self, nonce: &str, certificates: Option<&Path>) -> anyhow::Result<Paired> {
        let (_, client) = connect(&self.hub, certificates)?;
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("kind", "device"), ("secret", &self.secret), ("nonce", nonce)])
            .finish();
        let mut asked = 0;
        loop {
            let request = client
                .post(format!("{}/pair", self.hub()))
                .header(header::ACCEPT, "application/json")
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone())
                .timeout(ANSWER);
            asked += 1;
            match answer(request.send().await, self.hub()).await {
                Err(NoAnswer::Lost(_) | NoAnswer::Unreached(_)) if asked < ASKED => sleep(PAUSE).await,
                Err(NoAnswer::Unreached(why)) => bail!(
                    "{why}. The link is still good. If the hub's certificate is signed by an authority of its own, name that with \
                     --root-certificate"
                ),
                Err(NoAnswer::Lost(why)) => {
                    bail!("{why}; try again with the same link, which this may have used up for others")
                }
                Err(NoAnswer::Refused(why)) => bail!(why),
                Ok(paired) => return Ok(paired),
            }
        }
    }
}

/// Why a hub gave no token.
enum NoAnswer {
    /// There was no connection, so nothing was asked.
    Unreached(String),
    /// There was no answer of a hub. It may have been lost.
    Lost(String),
    Refused(String),
}

/// What the hub answered.
async fn answer(answer: reqwest::Result<Response>, hub: &str) -> Result<Paired, NoAnswer> {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
        #[serde(default)]
        advice: String,
    }
    let lost = |error: reqwest::Error| {
        let is_unreached = error.is_connect();
        let why = format!("cannot ask {hub}: {:#}", anyhow::Error::from(error.without_url()));
        if is_unreached { NoAnswer::Unreached(why) } else { NoAnswer::Lost(why) }
    };
    let mut answer = answer.map_err(lost)?;
    let status = answer.status();
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(lost)? {
        text.extend_from_slice(&piece);
        if text.len() > ANSWER_BYTES {
            break;
        }
    }
    if status.is_success() {
        let odd = |_| NoAnswer::Refused(format!("{hub} answered something else than a hub does; check the address"));
        return serde_json::from_slice(&text).map_err(odd);
    }
    match serde_json::from_slice(&text) {
        Ok(Problem { detail, advice }) => {
            Err(NoAnswer::Refused(format!("{} {}", words(&detail), words(&advice)).trim_end().to_owned()))
        }
        Err(_) if status.is_server_error() => Err(NoAnswer::Lost(format!("{hub} answered {status}"))),
        Err(_) => Err(NoAnswer::Refused(format!("{hub} answered {status}, which no hub does; check the address"))),
    }
}

/// The nonce of a join that is under way. It is in a file, so that a command that is run again asks for the same answer.
///
/// With a hash of the link beside it, it goes for that link alone. A token follows from the link and the nonce. So a hub that
/// knows a nonce, and another hub's link, would know the token that the other hub gives for it.
struct Nonce(PathBuf);

impl Nonce {
    fn in_dir(data: &Path) -> Self {
        Self(data.join("join.nonce"))
    }

    fn get(&self, link: &Link) -> anyhow::Result<String> {
        let link = link.hash();
        if let Some(text) = read(&self.0)?
            && let Ok(text) = String::from_utf8(text)
            && let Some((nonce, of)) = text.split_once(' ')
            && of == link
        {
            return Ok(nonce.to_owned());
        }
        let nonce = random::hex::<32>();
        replace(&self.0, format!("{nonce} {link}").as_bytes())?;
        Ok(nonce)
    }

    fn forget(&self) -> anyhow::Result<()> {
        remove(&self.0)
    }
}

/// The files of a directory that was joined to a hub.
struct Files {
    hub: PathBuf,
    token: PathBuf,
    certificates: PathBuf,
}

impl Files {
    fn in_dir(data: &Path) -> Self {
        let file = |name| data.join(name);
        Self { hub: file("upstream.json"), token: file("upstream.token"), certificates: file("upstream.pem") }
    }
}

/// What `upstream.json` holds.
#[derive(Serialize, Deserialize)]
struct Hub {
    url: String,
    /// The name that this device has there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<Device>,
}

/// What came of joining a hub.
pub(crate) struct Joined {
    /// The name of this device at the hub.
    pub(crate) device: Device,
    /// The name that it had there before. The hub still has a token for it.
    pub(crate) before: Option<Device>,
}

fn hub_in(files: &Files) -> anyhow::Result<Option<Hub>> {
    let Some(text) = read(&files.hub)? else { return Ok(None) };
    let hub = serde_json::from_slice(&text);
    hub.map(Some).with_context(|| format!("{} is damaged; delete it, and join the hub again", files.hub.display()))
}

/// Returns the hub that the data directory `data` was joined to, and how to be let in there.
///
/// # Errors
///
/// When the file can't be read.
pub(crate) fn joined(data: &Path) -> anyhow::Result<Option<UpstreamOptions>> {
    let files = Files::in_dir(data);
    let Some(Hub { url, .. }) = hub_in(&files)? else { return Ok(None) };
    let root_certificate = files.certificates.exists().then_some(files.certificates);
    Ok(Some(UpstreamOptions { url, token: TokenSource::File(files.token), root_certificate }))
}

/// Returns the name that the data directory `data` has at the hub that it was joined to, if that is known.
///
/// # Errors
///
/// When the file can't be read.
pub(crate) fn joined_as(data: &Path) -> anyhow::Result<Option<Device>> {
    Ok(hub_in(&Files::in_dir(data))?.and_then(|hub| hub.device))
}

/// Makes the data directory `data` no hub's device. What it has of the hub's log stays.
///
/// # Errors
///
/// When a file can't be deleted.
pub(crate) fn leave(data: &Path) -> anyhow::Result<()> {
    let files = Files::in_dir(data);
    for file in [&files.hub, &files.token, &files.certificates] {
        remove(file)?;
    }
    Ok(())
}

/// Deletes a file, if it is there.
fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot delete {}", path.display())),
        Ok(()) => Ok(path.parent().map_or(Ok(()), sync_dir)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_link_has_another_nonce() {
        let dir = tempfile::tempdir().unwrap();
        let nonce = Nonce::in_dir(dir.path());
        let of = |link: &str| nonce.get(&link.parse().unwrap()).unwrap();
        let first = of("https://likes.example.org/pair#0123");
        assert_eq!(of("https://likes.example.org/pair#0123"), first);
        let kept = fs::read_to_string(dir.path().join("join.nonce")).unwrap();
        assert!(!kept.contains("0123 ") && !kept.contains("example"), "{kept}");
        let other_hub = of("https://evil.example.org/pair#0123");
        let other_secret = of("https://evil.example.org/pair#4567");
        assert!(first != other_hub && other_hub != other_secret, "{first} {other_hub} {other_secret}");
        // An earlier version kept the nonce alone.
        fs::write(dir.path().join("join.nonce"), &first).unwrap();
        assert_ne!(of("https://likes.example.org/pair#0123"), first);
    }

    #[test]
    fn a_link_names_a_hub_to_which_a_secret_may_be_sent() {
        for (text, hub) in [
            ("https://likes.example.org/pair#0123", "https://likes.example.org"),
            ("https://example.org/likes/pair#0123", "https://example.org/likes"),
            ("http://127.0.0.1:3000/pair#0123", "http://127.0.0.1:3000"),
        ] {
            let link: Link = text.parse().expect(text);
            assert_eq!((link.hub(), link.secret.as_str()), (hub, "0123"));
        }
        for text in [
            "",
            "https://likes.example.org/pair",
            "https://likes.example.org/pair#",
            "https://likes.example.org/#0123",
            "http://likes.example.org/pair#0123",
            "https://me@likes.example.org/pair#0123",
            "https://likes.example.org/pair?a#0123",
        ] {
            assert!(text.parse::<Link>().is_err(), "{text}");
        }
    }
}
