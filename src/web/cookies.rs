//! Reading cookies.

use axum::http::header::{self, HeaderMap};

/// Returns the value of the cookie `name`. Of several cookies of that name, a browser sends the one with the longest path
/// first.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|all| all.split(';')).find_map(|one| {
        let (shown, value) = one.trim().split_once('=')?;
        (shown == name).then_some(value)
    })
}
