//! The parameters of a page, and how an author's function refuses.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;

use super::fields;

/// Why an author's function refuses, in words for people. Any error becomes one with `?`.
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

/// The parameters in a page's address: what follows its `?`.
#[derive(Debug, Default)]
pub struct Params {
    text: String,
    is_read: AtomicBool,
}

impl Params {
    /// The parameters in `query`, the part of an address after the `?`.
    pub(crate) fn new(query: &str) -> Self {
        Self { text: query.to_owned(), is_read: AtomicBool::new(false) }
    }

    /// The parameters as a `T`. A field that the address may lack has to be an `Option`, or have a `#[serde(default)]`.
    ///
    /// # Errors
    ///
    /// When they don't fit: which one, and what is wrong with it.
    pub fn get<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        self.is_read.store(true, Ordering::Relaxed);
        fields::parse(&self.text).map_err(|misfit| Refusal(misfit.sentence()))
    }

    /// The first parameter called `name`, or an empty text.
    pub fn first(&self, name: &str) -> String {
        self.is_read.store(true, Ordering::Relaxed);
        let mut pairs = form_urlencoded::parse(self.text.as_bytes());
        pairs.find(|(found, _)| found == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
    }

    /// Whether the page used any of them.
    pub(crate) fn are_read(&self) -> bool {
        self.is_read.load(Ordering::Relaxed)
    }
}
