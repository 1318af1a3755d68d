//! Reading cookies.

use axum::http::header::{self, HeaderMap};

/// Returns the values of all cookies `name`. Whoever can set a cookie for a part of the address, or for the hosts around this
/// one, can add one of the same name. A browser sends the one with the longest path first, so the first isn't always ours.
pub(super) fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|all| all.split(';')).filter_map(move |one| {
        let (shown, value) = one.trim().split_once('=')?;
        (shown == name).then_some(value)
    })
}
