//! The address under which others reach a hub. The hub can't know it by itself: a proxy in front has the name and the
//! certificate.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::{AllowedHost, BasePath};
use crate::sync::is_local;

/// The address under which others reach this server, such as `https://likes.example.org`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(Url);

/// The value of `--public-url` isn't an address.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not the address of a server: write it as a browser shows it, like `https://likes.example.org` or \
     `https://example.org/likes`; no user, no query, nothing after `#`"
)]
pub struct InvalidPublicUrl(String);

impl FromStr for PublicUrl {
    type Err = InvalidPublicUrl;

    /// A slash at the end doesn't count.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPublicUrl(text.to_owned());
        let mut url = Url::parse(text).map_err(|_| invalid())?;
        let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let is_base_path = url.path().parse::<BasePath>().is_ok();
        if !matches!(url.scheme(), "http" | "https") || !is_plain || url.password().is_some() || !is_base_path {
            return Err(invalid());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        let url = Self(url);
        if url.host().is_none() && !is_local(&url.0) { Err(invalid()) } else { Ok(url) }
    }
}

impl fmt::Display for PublicUrl {
    /// Writes it without a slash at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl PublicUrl {
    /// The address of a server that has all of its addresses under `base`. The path may already be part of this.
    ///
    /// # Errors
    ///
    /// When this has another path.
    pub(crate) fn under(mut self, base: &BasePath) -> anyhow::Result<Self> {
        match self.0.path().trim_end_matches('/') {
            "" => self.0.set_path(&base.to_string()),
            path if path == base.to_string() => {}
            path => anyhow::bail!(
                "the public address {self} has the path {path}, and everything of this program is under {}; give the same path \
                 with --base-path, or leave it out here",
                base.home()
            ),
        }
        Ok(self)
    }

    /// The name under which others ask for this server. `None` if it is one of this machine's own, for nobody else can.
    pub(crate) fn host(&self) -> Option<AllowedHost> {
        if is_local(&self.0) { None } else { self.0.host_str()?.parse().ok() }
    }

    /// Whether it is an address of this machine alone.
    pub(crate) fn is_local(&self) -> bool {
        is_local(&self.0)
    }

    /// Whether requests to it are encrypted.
    pub(crate) fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether nobody on the way can read what is sent there.
    pub(crate) fn is_private(&self) -> bool {
        self.is_https() || self.is_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_address_is_a_place_of_a_server_and_nothing_more() {
        for (text, shown, host) in [
            ("https://Likes.Example.org/", "https://likes.example.org", Some("likes.example.org")),
            ("https://likes.example.org:8443", "https://likes.example.org:8443", Some("likes.example.org")),
            ("https://example.org/likes/", "https://example.org/likes", Some("example.org")),
            ("http://[fd00::1]:3000", "http://[fd00::1]:3000", Some("[fd00::1]")),
            ("http://localhost:3000", "http://localhost:3000", None),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000", None),
        ] {
            let url: PublicUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.host().map(|host| host.to_string()).as_deref(), host, "{text}");
        }
        for text in [
            "",
            "likes.example.org",
            "ftp://likes.example.org",
            "https://me@likes.example.org",
            "https://likes.example.org/?a",
            "https://likes.example.org/#a",
            "https://likes.example.org/a b",
            "https://likes.example.org./",
            "https://",
        ] {
            let error = text.parse::<PublicUrl>().expect_err(text).to_string();
            assert!(error.contains("is not the address of a server"), "{error}");
        }
    }

    #[test]
    fn the_base_path_is_added_once() {
        let base: BasePath = "/likes".parse().expect("a path");
        let under = |text: &str, base: &BasePath| text.parse::<PublicUrl>().expect(text).under(base);
        for text in ["https://example.org", "https://example.org/likes", "https://example.org/likes/"] {
            assert_eq!(under(text, &base).expect(text).to_string(), "https://example.org/likes");
        }
        assert_eq!(under("https://a.example", &BasePath::default()).expect("fine").to_string(), "https://a.example");
        assert!(under("https://example.org/other", &base).is_err());
        assert!(under("https://example.org/likes", &BasePath::default()).is_err());
    }
}
