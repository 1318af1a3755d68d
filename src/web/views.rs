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

/// More bytes than the links to them usually take.
const LENGTH: usize = 256;

/// Returns links to the views of the store whose addresses begin with `base`. On the page itself, the program's version
/// stands in place of the link to it.
pub(super) fn links(face: &Face, base: &str, here: View) -> Html {
    let all = [
        (View::Page, base, "/", face.nouns.many_capitalized()),
        (View::History, base, "/history", "History".to_owned()),
        (View::Stores, face.base_path.as_str(), "/stores", "Stores".to_owned()),
    ];
    let mut html = String::with_capacity(LENGTH);
    html.push_str("<nav class=\"views\" aria-label=\"Views\">");
    for (view, base, path, words) in all {
        if view == View::Page && here == View::Page {
            continue;
        }
        let current = if view == here { " aria-current=\"page\"" } else { "" };
        let words = Html::text(words);
        for part in ["<a href=\"", base, path, "\"", current, ">", words.as_str(), "</a> "] {
            html.push_str(part);
        }
    }
    match here {
        View::Page => {
            let (title, version) = (Html::text(face.title()), Html::text(face.version));
            for part in ["<small>", title.as_str(), " ", version.as_str(), "</small>"] {
                html.push_str(part);
            }
        }
        // No space behind the last link.
        View::History | View::Stores => drop(html.pop()),
    }
    html.push_str("</nav>");
    Html::trusted(html)
}
