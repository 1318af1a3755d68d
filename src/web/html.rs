//! HTML as a type of its own, so that text can't be taken for HTML by mistake.

use std::fmt::{self, Display};

use askama::{FastWritable, NO_VALUES, Values};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

/// A piece of HTML.
///
/// It comes from an askama template, from maud's `Markup`, or from [`Html::text`], which escapes. Templates of either
/// kind insert it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Html(String);

impl Html {
    /// HTML that shows `text` as it is.
    pub fn text(text: impl Display) -> Self {
        use askama::filters::{Html as Rules, escape};
        let text = text.to_string();
        let mut escaped = String::with_capacity(text.len());
        let Ok(text) = escape(text, Rules);
        text.write_into(&mut escaped, NO_VALUES).expect("BUG: a String takes all text");
        Self(escaped)
    }

    /// Takes `html` for HTML. The caller vouches for every character of it.
    pub fn trusted(html: impl Into<String>) -> Self {
        Self(html.into())
    }

    /// The HTML as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The answer that shows a page, which no cache keeps.
    pub(super) fn into_page(self) -> Response {
        let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_TYPE, "text/html; charset=utf-8")];
        (headers, self.0).into_response()
    }

    /// The HTML as text.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Display for Html {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An askama template doesn't escape it again.
impl askama::filters::HtmlSafe for Html {}

/// An askama template takes it without a detour over the formatter.
impl FastWritable for Html {
    fn write_into(&self, dest: &mut dyn fmt::Write, _: &dyn Values) -> askama::Result<()> {
        Ok(dest.write_str(&self.0)?)
    }
}

/// maud's `html!` doesn't escape it again.
impl maud::Render for Html {
    fn render_to(&self, buffer: &mut String) {
        buffer.push_str(&self.0);
    }
}

/// What can become HTML: an askama template, maud's `Markup`, or [`Html`] itself. `Kind` only tells these apart; you
/// never write it out.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not HTML",
    label = "pages and fragments are drawn as HTML, and this is a `{Self}`",
    note = "return maud's `Markup`, an askama template, or `likewise::Html`; `Html::text` shows a text as it is"
)]
pub trait IntoHtml<Kind> {
    /// The HTML.
    ///
    /// # Errors
    ///
    /// When a template can't be rendered: the reason.
    fn into_html(self) -> Result<Html, String>;
}

/// Marks askama templates.
#[derive(Debug)]
pub enum Askama {}

/// Marks maud's markup.
#[derive(Debug)]
pub enum Maud {}

/// Marks finished HTML.
#[derive(Debug)]
pub enum Made {}

impl<T: askama::Template> IntoHtml<Askama> for T {
    fn into_html(self) -> Result<Html, String> {
        self.render().map(Html).map_err(|error| error.to_string())
    }
}

impl IntoHtml<Maud> for maud::Markup {
    fn into_html(self) -> Result<Html, String> {
        Ok(Html(self.into_string()))
    }
}

impl IntoHtml<Made> for Html {
    fn into_html(self) -> Result<Html, String> {
        Ok(self)
    }
}
