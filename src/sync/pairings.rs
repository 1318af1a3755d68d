//! Pairings: links, each good once, with which a device or a browser gets a token.
//!
//! A pairing is a secret and a name. Whoever shows the secret within ten minutes gets a token of that name. They also send a
//! nonce of their own, and the token follows from both. So an answer that was lost can be asked for again with the same
//! nonce, and the hub needs to keep nothing that opens anything: it stores hashes, as it does of tokens. Pairings are in a
//! file, so they outlive a restart, and a command can make one whether or not the hub is running.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::access::{Pairing, Purpose, Token};
use super::tokens::{TokenFile, must_be_free, now, read, replace};
use crate::engine::Device;
use crate::limits::sync::access::{OPEN, REMEMBERED};
use crate::limits::sync::pairing::{LONGEST_NONCE, SHORTEST_NONCE};
use crate::random;

/// What the holder of a pairing is given. It is kept nowhere else.
#[derive(Debug)]
pub(crate) struct Invitation {
    /// The part of the link after `#`: 128 random bits in hexadecimal.
    pub(crate) secret: String,
    /// The short code: 40 random bits in eight characters, which a person can type.
    pub(crate) code: String,
}

/// What somebody shows to get a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    Secret(String),
    Code(String),
}

/// What they get for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Paired {
    /// The name that the log shows with what they do.
    #[serde(rename = "name")]
    pub(crate) device: Device,
    pub(crate) token: String,
}

/// Why they get nothing.
#[derive(Debug)]
pub(crate) enum NotPaired {
    /// The nonce isn't one that is hard to guess.
    BadNonce,
    /// There is no such pairing.
    Unknown,
    /// It is too late.
    Expired,
    /// Somebody else was paired with it, or its token is revoked.
    Used,
    /// The name got a token in another way.
    Taken(Device),
    /// The files can't be read or written.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for NotPaired {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// The file of pairings in a data directory.
#[derive(Debug, Clone)]
pub(crate) struct PairingFile {
    dir: PathBuf,
}

impl PairingFile {
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.join("pairings.json")
    }

    /// Makes a pairing for `name`. An earlier one of that name is no longer good.
    ///
    /// # Errors
    ///
    /// When there is a token of that name, or too many pairings are good now.
    pub(crate) fn open(&self, name: Device) -> anyhow::Result<Invitation> {
        let tokens = TokenFile::in_dir(&self.dir);
        let _lock = tokens.lock()?;
        must_be_free(&tokens.list()?, &name)?;
        let mut pairings = self.list()?;
        let now = now();
        pairings.retain(|pairing| {
            pairing.age(now) < REMEMBERED.as_millis() && (pairing.name != name || !pairing.is_open(now))
        });
        if pairings.iter().filter(|pairing| pairing.is_open(now)).count() >= OPEN {
            bail!(
                "{OPEN} links are good at this moment, which is the limit; wait until some of them are used or ten minutes old"
            );
        }
        // What is no longer good is only remembered to tell people why.
        if pairings.len() >= 2 * OPEN
            && let Some(oldest) = pairings.iter().position(|pairing| !pairing.is_open(now))
        {
            pairings.remove(oldest);
        }
        let invitation = Invitation { secret: random::hex::<16>(), code: random_code() };
        let (secret, code) = (hash_of_secret(&invitation.secret), hash_of_code(&invitation.code));
        pairings.push(Pairing { name, secret, code, made: now, token: None });
        self.write(&pairings)?;
        Ok(invitation)
    }

    /// Gives the token for what was shown, to whoever asks first. The same nonce gets the same answer again.
    ///
    /// # Errors
    ///
    /// See [`NotPaired`].
    pub(crate) fn redeem(&self, shown: &Shown, nonce: &str, purpose: Purpose) -> Result<Paired, NotPaired> {
        let is_hard_to_guess = (SHORTEST_NONCE..=LONGEST_NONCE).contains(&nonce.len());
        if !is_hard_to_guess || !nonce.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(NotPaired::BadNonce);
        }
        // Strangers who guess take no lock.
        find(&mut self.list()?, shown).ok_or(NotPaired::Unknown)?;
        let file = TokenFile::in_dir(&self.dir);
        let _lock = file.lock()?;
        let mut pairings = self.list()?;
        let pairing = find(&mut pairings, shown).ok_or(NotPaired::Unknown)?;
        if pairing.is_expired(now()) {
            return Err(NotPaired::Expired);
        }
        let mut tokens = file.list()?;
        let device = pairing.name.clone();
        let token = token(shown, nonce, purpose);
        let hash = purpose.hash(&token);
        let known = tokens.iter().find(|known| known.device == device);
        match (&pairing.token, known) {
            // It is the same request again. After a crash between the two files, only the first knows of it.
            (_, Some(known)) if known.hash == hash => {}
            (Some(_), _) => return Err(NotPaired::Used),
            (None, Some(_)) => return Err(NotPaired::Taken(device)),
            (None, None) => {
                tokens.push(Token { device: device.clone(), hash: hash.clone(), created: now(), purpose });
                file.write(&tokens)?;
            }
        }
        if pairing.token.is_none() {
            pairing.token = Some(hash);
            self.write(&pairings)?;
        }
        Ok(Paired { device, token })
    }

    pub(super) fn list(&self) -> anyhow::Result<Vec<Pairing>> {
        let path = self.path();
        match read(&path)? {
            Some(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged; delete it, and make new links", path.display())),
            None => Ok(Vec::new()),
        }
    }

    /// Replaces the pairings. The caller holds the lock of the tokens.
    pub(super) fn write(&self, pairings: &[Pairing]) -> anyhow::Result<()> {
        replace(&self.path(), &serde_json::to_vec_pretty(pairings)?)
    }
}

/// Finds the pairing that was shown. A wrong secret takes as long as a right one.
fn find<'a>(pairings: &'a mut [Pairing], shown: &Shown) -> Option<&'a mut Pairing> {
    let hash = match shown {
        Shown::Secret(secret) => hash_of_secret(secret),
        Shown::Code(code) => hash_of_code(code),
    };
    let mut found = None;
    for pairing in pairings {
        let stored = match shown {
            Shown::Secret(_) => &pairing.secret,
            Shown::Code(_) => &pairing.code,
        };
        if stored.as_bytes().ct_eq(hash.as_bytes()).into() {
            found = Some(pairing);
        }
    }
    found
}

/// The token for what was shown and a nonce. Whoever typed the code has a token as good as its nonce.
fn token(shown: &Shown, nonce: &str, purpose: Purpose) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("likewise 2026-11 token of a pairing");
    let code;
    let shown = match shown {
        Shown::Secret(secret) => secret,
        Shown::Code(typed) => {
            code = tidy(typed);
            &code
        }
    };
    for part in [purpose.as_str(), shown, nonce] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    format!("lw_{}", hasher.finalize().to_hex())
}

fn hash_of_secret(secret: &str) -> String {
    blake3::Hash::from(blake3::derive_key("likewise 2026-11 secret of a pairing", secret.as_bytes()))
        .to_hex()
        .to_string()
}

fn hash_of_code(code: &str) -> String {
    let code = tidy(code);
    blake3::Hash::from(blake3::derive_key("likewise 2026-11 code of a pairing", code.as_bytes())).to_hex().to_string()
}

/// The characters of codes (Crockford's): none looks like another.
const CHARACTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A new code, such as `K7QM-3F9T`.
fn random_code() -> String {
    let mut code: String =
        random::bytes::<8>().iter().map(|byte| char::from(CHARACTERS[usize::from(byte % 32)])).collect();
    code.insert(4, '-');
    code
}

/// A code as it was meant: without spaces and dashes, in capitals, and with digits for the letters that look like them.
fn tidy(code: &str) -> String {
    let meant = |typed: char| match typed.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    code.chars().filter(|typed| !typed.is_whitespace() && *typed != '-').map(meant).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fuzz::{fuzz, outcome};
    use crate::limits::sync::access::LASTS;

    const NONCE: &str = "00112233445566778899aabbccddeeff";
    const OTHER: &str = "ffeeddccbbaa99887766554433221100";

    fn phone() -> Device {
        "phone".parse().unwrap()
    }

    fn secret(invitation: &Invitation) -> Shown {
        Shown::Secret(invitation.secret.clone())
    }

    /// Makes all pairings this much older.
    fn age(file: &PairingFile, millis: u64) {
        let mut pairings = file.list().unwrap();
        pairings.iter_mut().for_each(|pairing| pairing.made -= millis);
        file.write(&pairings).unwrap();
    }

    #[test]
    fn a_pairing_is_good_once_and_its_answer_can_be_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        let invitation = file.open(phone()).unwrap();
        let first = file.redeem(&secret(&invitation), NONCE, Purpose::Browser).unwrap();
        assert_eq!(first.device, phone());
        let again = file.redeem(&secret(&invitation), NONCE, Purpose::Browser).unwrap();
        assert_eq!(again, first);
        let typed = Shown::Code(invitation.code.clone());
        for (shown, nonce, purpose) in [
            (&secret(&invitation), OTHER, Purpose::Browser),
            (&secret(&invitation), NONCE, Purpose::Sync),
            (&typed, NONCE, Purpose::Browser),
        ] {
            assert!(matches!(file.redeem(shown, nonce, purpose), Err(NotPaired::Used)), "{shown:?} {nonce}");
        }
        let tokens = TokenFile::in_dir(dir.path());
        assert_eq!(tokens.list().unwrap().len(), 1);
        tokens.revoke(&phone()).unwrap();
        let after = file.redeem(&secret(&invitation), NONCE, Purpose::Browser);
        assert!(matches!(after, Err(NotPaired::Used)), "a revoked token comes back for nobody: {after:?}");
    }

    #[test]
    fn only_hashes_are_stored() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        let invitation = file.open(phone()).unwrap();
        let paired = file.redeem(&secret(&invitation), NONCE, Purpose::Sync).unwrap();
        for name in ["pairings.json", "tokens.json"] {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            for hidden in [&invitation.secret, &invitation.code, &paired.token[3..], NONCE] {
                assert!(!text.contains(hidden), "{name}: {text}");
            }
        }
    }

    #[test]
    fn a_code_may_be_typed_in_any_way() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        let code = file.open(phone()).unwrap().code;
        assert_eq!(code.len(), 9);
        let typed = format!(" {} ", code.to_lowercase().replace('-', "").replace('0', "o").replace('1', "l"));
        assert!(file.redeem(&Shown::Code(typed), NONCE, Purpose::Browser).is_ok());
    }

    #[test]
    fn after_ten_minutes_it_is_too_late() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        let invitation = file.open(phone()).unwrap();
        age(&file, 9 * 60 * 1_000);
        file.redeem(&secret(&invitation), NONCE, Purpose::Browser).unwrap();
        age(&file, 2 * 60 * 1_000);
        let late = file.redeem(&secret(&invitation), NONCE, Purpose::Browser);
        assert!(matches!(late, Err(NotPaired::Expired)), "{late:?}");
        age(&file, 60 * 60 * 1_000);
        file.open("laptop".parse().unwrap()).unwrap();
        let forgotten = file.redeem(&secret(&invitation), NONCE, Purpose::Browser);
        assert!(matches!(forgotten, Err(NotPaired::Unknown)), "{forgotten:?}");
    }

    #[test]
    fn a_name_has_one_link_and_one_token() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        let lost = file.open(phone()).unwrap();
        let second = file.open(phone()).unwrap();
        let redeem = |shown| file.redeem(&shown, NONCE, Purpose::Sync);
        assert!(matches!(redeem(secret(&lost)), Err(NotPaired::Unknown)));
        TokenFile::in_dir(dir.path()).add(phone(), Purpose::Read).unwrap();
        assert!(matches!(redeem(secret(&second)), Err(NotPaired::Taken(name)) if name == phone()));
        assert!(file.open(phone()).unwrap_err().to_string().contains("has a token already"));
    }

    #[test]
    fn their_number_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        for n in 0..OPEN {
            file.open(format!("device-{n}").parse().unwrap()).unwrap();
        }
        assert!(file.open(phone()).unwrap_err().to_string().contains("which is the limit"));
        for round in 0..3_u64 {
            age(&file, LASTS.as_millis() as u64 + 1);
            for n in 0..OPEN {
                file.open(format!("round-{round}-{n}").parse().unwrap()).unwrap();
            }
            assert!(file.list().unwrap().len() <= 2 * OPEN);
        }
    }

    #[test]
    fn a_crash_between_the_two_files_leaves_an_answer_that_can_be_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        let invitation = file.open(phone()).unwrap();
        let before = file.list().unwrap();
        let paired = file.redeem(&secret(&invitation), NONCE, Purpose::Sync).unwrap();
        file.write(&before).unwrap();
        assert!(matches!(file.redeem(&secret(&invitation), OTHER, Purpose::Sync), Err(NotPaired::Taken(_))));
        assert_eq!(file.redeem(&secret(&invitation), NONCE, Purpose::Sync).unwrap(), paired);
        assert!(matches!(file.redeem(&secret(&invitation), OTHER, Purpose::Sync), Err(NotPaired::Used)));
    }

    #[test]
    fn nonces_that_can_be_guessed_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        let shown = secret(&file.open(phone()).unwrap());
        for nonce in ["", "1", &NONCE[1..], &NONCE.replace('0', "-"), &NONCE.repeat(5)] {
            assert!(matches!(file.redeem(&shown, nonce, Purpose::Sync), Err(NotPaired::BadNonce)), "{nonce}");
        }
    }

    #[test]
    fn trust_38_fuzzed_codes_and_files_of_pairings_open_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = PairingFile::in_dir(dir.path());
        file.open(phone()).unwrap();
        let mut pairings = file.list().unwrap();
        fuzz("code", &["-", " ", "O", "l", "K7QM-3F9T"], |input| {
            let typed = String::from_utf8_lossy(input).into_owned();
            assert!(find(&mut pairings, &Shown::Code(typed.clone())).is_none());
            assert!(find(&mut pairings, &Shown::Secret(typed)).is_none());
            outcome(&serde_json::from_slice::<Vec<Pairing>>(input).map(|pairings| pairings.len()))
        });
    }
}
