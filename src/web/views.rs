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
    let all = [
        (View::Page, base, "/", face.nouns.many_capitalized()),
        (View::History, base, "/history", "History".to_owned()),
        (View::Stores, face.base_path.as_str(), "/stores", "Stores".to_owned()),
    ];
    let link = |(view, base, path, words): (View, &str, &str, String)| {
        let current = if view == here { " aria-current=\"page\"" } else { "" };
        ["<a href=\"", base, path, "\"", current, ">", Html::text(words).as_str(), "</a>"].concat()
    };
    let links = all.into_iter().filter(|(view, ..)| here != View::Page || *view != View::Page).map(link);
    let links = links.collect::<Vec<_>>().join(" ");
    let version = match here {
        View::Page => {
            [" <small>", Html::text(face.title()).as_str(), " ", Html::text(face.version).as_str(), "</small>"].concat()
        }
        View::History | View::Stores => String::new(),
    };
    Html::trusted(["<nav class=\"views\" aria-label=\"Views\">", &links, &version, "</nav>"].concat())
}
