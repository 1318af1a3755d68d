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
        (View::Page, format!("{base}/"), face.nouns.many_capitalized()),
        (View::History, format!("{base}/history"), "History".to_owned()),
        (View::Stores, format!("{}/stores", face.base_path), "Stores".to_owned()),
    ];
    let link = |(view, address, words): (View, String, String)| {
        let current = if view == here { " aria-current=\"page\"" } else { "" };
        format!("<a href=\"{address}\"{current}>{}</a>", Html::text(words))
    };
    let links = all.into_iter().filter(|(view, ..)| here != View::Page || *view != View::Page).map(link);
    let links = links.collect::<Vec<_>>().join(" ");
    let version = match here {
        View::Page => format!(" <small>{} {}</small>", Html::text(face.title()), Html::text(face.version)),
        View::History | View::Stores => String::new(),
    };
    Html::trusted(format!("<nav class=\"views\" aria-label=\"Views\">{links}{version}</nav>"))
}
