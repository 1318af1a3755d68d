//! Who posts: visitors, told apart by a cookie.
//!
//! The cookie says only that two posts come from one browser. A reader of the events learns even less: an app stores a
//! keyed hash, which can't be turned back into the cookie.

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context as _, anyhow, bail};
use axum::http::header::{HeaderMap, HeaderValue};

use super::cookies;
use super::face::Face;
use crate::data_dir::DataDir;
use crate::limits::web::visitor::KEPT;
use crate::random;
use crate::sync::tokens::{read, replace};

/// Bytes of a visitor's id: so many that nobody guesses another's.
const ID: usize = 16;

/// Somebody who posts. A cookie tells them apart from others.
#[derive(Clone, PartialEq, Eq)]
pub struct Visitor {
    hash: String,
}

impl Visitor {
    /// A visitor for a test of a function that takes one, such as the function of
    /// [`App::form_with`](crate::App::form_with). The same name gives the same visitor.
    ///
    /// ```
    /// # use likewise::Visitor;
    /// assert_eq!(Visitor::for_test("ann"), Visitor::for_test("ann"));
    /// assert_ne!(Visitor::for_test("ann").hash(), Visitor::for_test("ben").hash());
    /// ```
    pub fn for_test(name: &str) -> Self {
        Self { hash: shortened(blake3::hash(name.as_bytes())) }
    }

    /// What an app may store about the visitor: 32 hexadecimal digits, the same for all posts of one browser. Nobody
    /// can pose as the visitor with them.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Visitor").field(&self.hash).finish()
    }
}

/// The key of the hashes. It is made in the data directory when an app first asks who posts.
pub(crate) struct VisitorKey {
    path: PathBuf,
    /// Whether all gateways to a cluster share it. Then it comes from there.
    is_shared: bool,
    key: Mutex<Option<[u8; blake3::KEY_LEN]>>,
}

impl VisitorKey {
    /// The key in the data directory `data`.
    pub(crate) fn in_dir(data: &std::path::Path, is_shared: bool) -> Self {
        Self { path: DataDir::visitor_key(data), is_shared, key: Mutex::default() }
    }

    /// Who sent a request with these headers, and the cookie that identifies their browser from now on.
    ///
    /// # Errors
    ///
    /// When the key can't be read, or made.
    pub(crate) fn who(&self, face: &Face, headers: &HeaderMap) -> anyhow::Result<(Visitor, HeaderValue)> {
        let cookie = cookie_name(face.name);
        let id = shown(headers, &cookie).unwrap_or_else(random::hex::<ID>);
        let hash = shortened(blake3::keyed_hash(&self.get()?, id.as_bytes()));
        let path = face.base_path.home();
        let cookie = format!("{cookie}={id}; Path={path}; Max-Age={KEPT}; HttpOnly; SameSite=Lax");
        Ok((Visitor { hash }, cookie.try_into().context("BUG: a cookie that can't be a header")?))
    }

    /// The key, made if there is none. A damaged key is never replaced, because every visitor would become another.
    fn get(&self) -> anyhow::Result<[u8; blake3::KEY_LEN]> {
        let mut known = self.key.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(key) = *known {
            return Ok(key);
        }
        let path = self.path.display();
        let key = match read(&self.path)? {
            Some(text) => *blake3::Hash::from_hex(text.trim_ascii())
                .map_err(|why| anyhow!("{path} is damaged ({why}); put it back from a backup"))?
                .as_bytes(),
            None if self.is_shared => {
                bail!("this gateway has not reached its cluster yet, so it can't tell visitors apart as the others do")
            }
            None => {
                let key = random::bytes();
                replace(&self.path, format!("{}\n", blake3::Hash::from_bytes(key).to_hex()).as_bytes())
                    .with_context(|| format!("cannot write {path}"))?;
                key
            }
        };
        *known = Some(key);
        Ok(key)
    }
}

/// The part of a hash that an app gets.
fn shortened(hash: blake3::Hash) -> String {
    hash.to_hex()[..2 * ID].to_owned()
}

/// The name of an app's cookie. Cookies ignore ports, so the apps on one machine would share any other name.
fn cookie_name(app: &str) -> String {
    format!("{app}-visitor")
}

/// The id that a browser sends, if it has the form of ours.
fn shown(headers: &HeaderMap, cookie: &str) -> Option<String> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_ours = |id: &&str| id.len() == 2 * ID && id.bytes().all(is_digit);
    cookies::cookies(headers, cookie).find(is_ours).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use axum::http::header;

    use super::*;

    fn todo() -> Face {
        Face::new("todo")
    }

    fn with_cookie(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::try_from(cookie).expect("a header"))])
    }

    #[test]
    fn a_visitor_is_the_same_over_restarts_and_another_elsewhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = VisitorKey::in_dir(dir.path(), false);
        let (first, cookie) = key.who(&todo(), &HeaderMap::new()).expect("a visitor");
        let cookie = cookie.to_str().expect("text").split(';').next().expect("a cookie").to_owned();
        assert!(cookie.starts_with("todo-visitor="), "{cookie}");
        let (again, _) = key.who(&todo(), &with_cookie(&format!("a=b; todo-visitor=x; {cookie}"))).expect("a visitor");
        assert_eq!(again, first);
        let (restarted, _) =
            VisitorKey::in_dir(dir.path(), false).who(&todo(), &with_cookie(&cookie)).expect("a visitor");
        assert_eq!(restarted, first);
        let (other, _) = key.who(&todo(), &HeaderMap::new()).expect("a visitor");
        assert_ne!(other, first);
        let (elsewhere, _) = key.who(&Face::new("notes"), &with_cookie(&cookie)).expect("a visitor");
        assert_ne!(elsewhere, first, "the cookie of another app");
        let other_dir = tempfile::tempdir().expect("a directory");
        let (there, _) =
            VisitorKey::in_dir(other_dir.path(), false).who(&todo(), &with_cookie(&cookie)).expect("a visitor");
        assert_ne!(there, first, "the hash depends on the key");
    }

    #[test]
    fn a_cookie_that_is_not_ours_makes_a_new_visitor_and_a_damaged_key_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = VisitorKey::in_dir(dir.path(), false);
        for cookie in ["todo-visitor=me", "todo-visitor=", "todo-visitor=ABCDEF00112233445566778899AABBCC", "="] {
            let (_, given) = key.who(&todo(), &with_cookie(cookie)).expect("a visitor");
            assert!(!given.to_str().expect("text").contains(&format!("{cookie};")), "{cookie}");
        }
        fs::write(dir.path().join("visitor.key"), "damaged").expect("written");
        assert!(VisitorKey::in_dir(dir.path(), false).who(&todo(), &HeaderMap::new()).is_err());
        assert_eq!(fs::read(dir.path().join("visitor.key")).expect("read"), b"damaged");
    }
}
