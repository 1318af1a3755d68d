//! HTML as a type of its own, so that text can't be taken for HTML by mistake.

use std::fmt::{self, Display};

/// A piece of HTML.
///
/// It comes from a template of askama's, from maud's `Markup`, or from [`Html::text`], which escapes. Inside a template of
/// either kind it stands as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Html(String);

impl Html {
    /// HTML that shows `text` as it is.
    pub fn text(text: impl Display) -> Self {
        use askama::filters::{Html as Rules, escape};
        Self(match escape(text.to_string(), Rules) {
            Ok(escaped) => escaped.to_string(),
            Err(never) => match never {},
        })
    }

    /// Takes `html` for HTML. Whoever calls this vouches for every character of it.
    pub fn trusted(html: impl Into<String>) -> Self {
        Self(html.into())
    }

    /// The HTML as text.
    pub fn as_str(&self) -> &str {
        &self.0
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

/// Inside a template of askama's it isn't escaped once more.
impl askama::filters::HtmlSafe for Html {}

/// Inside maud's `html!` it isn't escaped once more.
impl maud::Render for Html {
    fn render_to(&self, buffer: &mut String) {
        buffer.push_str(&self.0);
    }
}

/// What becomes HTML: a template of askama's, maud's `Markup`, or [`Html`] itself. `Kind` only tells these apart, and is
/// never written out.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not HTML",
    label = "pages and fragments are drawn as HTML, and this is a `{Self}`",
    note = "return maud's `Markup`, a template of askama's, or `likewise::Html`; `Html::text` shows a text as it is"
)]
pub trait IntoHtml<Kind> {
    /// The HTML.
    ///
    /// # Errors
    ///
    /// When a template can't be rendered: the reason.
    fn into_html(self) -> Result<Html, String>;
}

/// Marks what askama makes.
#[derive(Debug)]
pub enum Askama {}

/// Marks what maud makes.
#[derive(Debug)]
pub enum Maud {}

/// Marks HTML that is made already.
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
