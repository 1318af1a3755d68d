//! The links between a store's page and the program's own views of it, for those whom the owner has let in.

use super::Html;
use super::face::Face;

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// The page of a store.
    Page,
    /// Who brought its events, and when.
    History,
    /// All stores.
    Stores,
}

/// Returns links to the views of the store whose addresses begin with `base`. On the page itself, the program's version
/// stands in place of the link to it.
pub(super) fn links(face: &Face, base: &str, here: View) -> Html {
    let mut html = String::with_capacity(256);
    html.push_str("<nav class=\"views\" aria-label=\"Views\">");
    let mut link = |view, base: &str, path, words: &str| {
        let current = if view == here { " aria-current=\"page\"" } else { "" };
        for text in ["<a href=\"", base, path, "\"", current, ">", words, "</a> "] {
            html.push_str(text);
        }
    };
    if here != View::Page {
        link(View::Page, base, "/", Html::text(face.nouns.many_capitalized()).as_str());
    }
    link(View::History, base, "/history", "History");
    link(View::Stores, face.base_path.as_str(), "/stores", "Stores");
    if here == View::Page {
        for text in ["<small>", Html::text(face.title()).as_str(), " ", Html::text(face.version).as_str(), "</small>"] {
            html.push_str(text);
        }
    }
    Html::trusted([html.trim_end(), "</nav>"].concat())
}
