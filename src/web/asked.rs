//! What an author's functions are given: the parameters of a page, who posts, what to render with.

use serde::de::DeserializeOwned;

use super::Html;

/// Why something an author's function was asked for can't be had, in words for people.
///
/// Every error converts into one with `?`.
#[derive(Debug, Clone)]
pub struct Refusal(String);

impl Refusal {
    /// A refusal that says `why`.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// The reason.
    pub fn why(&self) -> &str {
        &self.0
    }
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// The parameters in a page's address, what follows its `?`.
#[derive(Debug, Clone, Default)]
pub struct Params {
    text: String,
}

impl Params {
    /// The parameters as a `T`.
    ///
    /// # Errors
    ///
    /// When they aren't one: what is wrong, with which.
    pub fn get<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        Ok(serde_html_form::from_str(&self.text)?)
    }
}

/// Somebody who posts, told apart from others by a cookie.
#[derive(Debug, Clone)]
pub struct Visitor {}

/// What a fragment or a page is rendered with.
#[derive(Debug, Clone)]
pub struct Render {}

/// A page that is being made.
#[derive(Debug, Clone)]
pub struct Page {}

impl Page {
    /// The fragment `name` as it is now.
    pub fn live(&self, name: &str) -> Html {
        let _ = name;
        Html::default()
    }
}
