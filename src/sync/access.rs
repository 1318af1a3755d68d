//! Who may sync, as it is stored: tokens, and the links with which devices and browsers get theirs.

use serde::{Deserialize, Serialize};

use crate::engine::Device;
use crate::limits::sync::access::LASTS;

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// The device or browser that it names.
    pub(crate) device: Device,
    /// BLAKE3 of the token, in hexadecimal.
    pub(crate) hash: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub(crate) created: u64,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Purpose::is_sync")]
    pub(crate) purpose: Purpose,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Purpose {
    /// A device syncs with it.
    #[default]
    Sync,
    /// A watcher reads `/status` and `/metrics` with it, and nothing else.
    Read,
    /// A browser shows it in a cookie, and gets the page. Versions that don't know of browsers don't read the file at all.
    Browser,
}

impl Purpose {
    fn is_sync(&self) -> bool {
        *self == Self::Sync
    }
}

/// A pairing as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pairing {
    /// The name of the token that comes of it.
    pub(crate) name: Device,
    /// The hash of its secret.
    pub(crate) secret: String,
    /// The hash of its code.
    pub(crate) code: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub(crate) made: u64,
    /// The hash of the token that came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

impl Pairing {
    /// How long before `now` it was made, in milliseconds. A clock that was set back a little makes it no older.
    pub(crate) fn age(&self, now: u64) -> u128 {
        u128::from(now.abs_diff(self.made))
    }

    /// Whether it is too late for it.
    pub(crate) fn is_expired(&self, now: u64) -> bool {
        self.age(now) > LASTS.as_millis()
    }

    /// Whether somebody can still use it.
    pub(crate) fn is_open(&self, now: u64) -> bool {
        self.token.is_none() && !self.is_expired(now)
    }
}
