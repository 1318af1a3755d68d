//! The path of a site under which the program is. It is stripped from each request before anything looks at the address, so
//! only what makes addresses knows of it.

use std::fmt;
use std::str::FromStr;

use axum::http::Uri;

/// The path of a site under which a server has all of its addresses, such as `/likes`. The default is the whole site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BasePath(String);

/// The value of `--base-path` isn't a path.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a base path: write it like `/likes` or `/tools/likes`, beginning with a slash, in letters, digits, `-`, \
     `.`, `_` and `~`; no empty part, no `.` or `..`, no host, no query"
)]
pub struct InvalidBasePath(String);

impl FromStr for BasePath {
    type Err = InvalidBasePath;

    /// A slash at the end doesn't count.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The other characters would have to be escaped somewhere: in an address, a cookie, or HTML.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_plain);
        let path = text.strip_suffix('/').unwrap_or(text);
        match path.strip_prefix('/') {
            Some(parts) if parts.split('/').all(is_part) => Ok(Self(path.to_owned())),
            None if text == "/" => Ok(Self::default()),
            _ => Err(InvalidBasePath(text.to_owned())),
        }
    }
}

impl fmt::Display for BasePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an address is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Under the base path. This is the address without it.
    Within(Uri),
    /// At the base path itself, without the slash that the start page has.
    Door,
    /// Anywhere else.
    Outside,
}

impl BasePath {
    /// Where `uri` is. Paths are compared as they stand: a browser doesn't escape what a base path may hold.
    pub(super) fn place(&self, uri: &Uri) -> Place {
        if self.0.is_empty() {
            return Place::Within(uri.clone());
        }
        let Some(rest) = uri.path_and_query().and_then(|all| all.as_str().strip_prefix(&self.0)) else {
            return Place::Outside;
        };
        if rest.is_empty() || rest.starts_with('?') {
            return Place::Door;
        }
        let within = || {
            let mut parts = uri.clone().into_parts();
            parts.path_and_query = Some(rest.parse().ok()?);
            Uri::from_parts(parts).ok()
        };
        within().filter(|_| rest.starts_with('/')).map_or(Place::Outside, Place::Within)
    }

    /// What addresses begin with. It is empty for the whole site.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of the start page, which is also the path of cookies.
    pub(crate) fn home(&self) -> String {
        [&self.0, "/"].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_paths_are_plain_paths() {
        for (text, expected) in
            [("/likes", "/likes"), ("/likes/", "/likes"), ("/a/b.c/~d_e-F1", "/a/b.c/~d_e-F1"), ("/", "")]
        {
            assert_eq!(text.parse::<BasePath>().expect(text).to_string(), expected);
        }
        for text in [
            "",
            "likes",
            "//",
            "//likes",
            "/a//b",
            "/likes//",
            "/../likes",
            "/likes/..",
            "/./likes",
            "/likes?x",
            "/likes#x",
            "/li kes",
            "/a%20b",
            "/a;b",
            "/\u{e9}",
            "/a\"b",
            "/a\\b",
            "http://example.org/likes",
        ] {
            let error = text.parse::<BasePath>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("{text:?} is not a base path: write it like `/likes`")), "{error}");
        }
    }

    #[test]
    fn the_base_path_is_stripped_once_and_as_a_whole() {
        let base: BasePath = "/likes".parse().expect("a path");
        let within = |uri: &'static str| Place::Within(Uri::from_static(uri));
        for (uri, expected) in [
            ("/likes/", within("/")),
            ("/likes/?q=/likes", within("/?q=/likes")),
            ("/likes/likes", within("/likes")),
            ("/likes/s/work/live?a=b", within("/s/work/live?a=b")),
            ("http://localhost/likes/live", within("http://localhost/live")),
            ("/likes", Place::Door),
            ("/likes?q", Place::Door),
            ("/", Place::Outside),
            ("/likesome/", Place::Outside),
            ("/Likes/", Place::Outside),
            ("/%6cikes/", Place::Outside),
            ("/other/likes/", Place::Outside),
            ("*", Place::Outside),
        ] {
            assert_eq!(base.place(&Uri::from_static(uri)), expected, "{uri}");
        }
        assert_eq!(BasePath::default().place(&Uri::from_static("/live?a")), within("/live?a"));
    }
}
