//! All stores, with their counts and the way to a new one. Strangers don't see them.
//!
//! The list has pages, and only the stores on the page that is shown are opened. Anything more would let a look at ten
//! thousand stores close those that are in use. Nothing is created here: a store begins with its first event.

use askama::Template;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Redirect, Response};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::embed::is_of_an_item;
use super::face::Face;
use super::problem::Problem;
use super::status::figures;
use super::views::{View, links};
use super::{App, Html, IntoHtml as _, Params, Services, Who};
use crate::engine::{Error, StoreId};
use crate::limits::web::stores::{LISTED, PATIENCE};

/// The view.
#[derive(Template)]
#[template(path = "stores.html")]
struct StoresView<'a> {
    face: &'a Face,
    home: String,
    links: Html,
    /// The address of this view.
    here: String,
    /// What was typed that isn't the name of a store.
    misnamed: Option<Misnamed>,
    /// Which names were asked for.
    find: String,
    /// Whether the list begins after some other store.
    is_later_page: bool,
    /// How many stores have such a name.
    found: usize,
    /// The stores on this page: first those that people made, and then those of other sites.
    lists: [(&'static str, Vec<Listed>); 2],
    /// The last store on this page, if there are more.
    last: Option<StoreId>,
}

struct Misnamed {
    name: String,
    /// A name that would do.
    instead: Option<StoreId>,
}

/// A store of the list.
struct Listed {
    id: StoreId,
    address: String,
    /// What it has, or why that isn't known now.
    words: String,
    /// How many events wait for the hub.
    pending: u64,
    is_in_trouble: bool,
}

impl Misnamed {
    fn new(name: String) -> Self {
        let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
        let words: String = name.chars().map(plain).collect();
        let words: Vec<&str> = words.split('-').filter(|word| !word.is_empty()).collect();
        let joined = words.join("-");
        let joined = joined.get(..63).unwrap_or(&joined).trim_end_matches('-');
        // In other scripts little would be left of the name.
        let instead = name.is_ascii().then(|| joined.parse().ok()).flatten();
        Self { name, instead }
    }
}

/// `GET /stores`
///
/// With `name`, leads to the store of that name. `find` selects stores by a part of their names, and `after` is where a
/// page of the list begins.
pub(crate) async fn stores(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let params = Params::new(query.as_deref().unwrap_or_default());
    let face = &app.face;
    let [name, find, after] = ["name", "find", "after"].map(|field| params.first(field).trim().to_owned());
    let misnamed = match name.parse::<StoreId>() {
        Ok(id) => return Ok(Redirect::to(&format!("{}/", face.base(&id))).into_response()),
        Err(_) if name.is_empty() => None,
        Err(_) => Some(Misnamed::new(name)),
    };
    let first: StoreId = face.store.parse().expect("BUG: an app was served whose store has no name");
    let mut all = app.stores.existing().borrow().clone();
    all.insert(first.clone());
    // The app's own store comes first. There may be many items, so they come last.
    let order = |id: &StoreId| (*id != first, is_of_an_item(id), id.clone());
    let wanted = find.to_lowercase();
    let mut found: Vec<_> = all.into_iter().filter(|id| id.as_str().contains(&wanted)).collect();
    found.sort_by_cached_key(order);
    let begin = after.parse().map_or(0, |after| found.partition_point(|id| order(id) <= order(&after)));
    let shown = &found[begin..found.len().min(begin + LISTED)];
    let listed = join_all(shown.iter().map(|id| listed(&app, id))).await;
    let (items, stores): (Vec<_>, Vec<_>) = listed.into_iter().partition(|listed| is_of_an_item(&listed.id));
    let view = StoresView {
        face,
        home: format!("{}/", face.base(&first)),
        links: links(face, &face.base(&first), View::Stores),
        here: format!("{}/stores", face.base_path),
        misnamed,
        find,
        is_later_page: begin > 0,
        found: found.len(),
        lists: [("", stores), ("Items on other sites", items)],
        last: shown.last().filter(|_| begin + LISTED < found.len()).cloned(),
    };
    Ok(view.into_html().map_err(Problem::internal)?.into_page())
}

async fn listed(app: &Services, id: &StoreId) -> Listed {
    let (words, pending, is_in_trouble) = match timeout(PATIENCE, standing(app, id)).await {
        Ok(Ok((words, pending))) => (words, pending, false),
        Ok(Err(Error::TooManyOpen)) => ("too many stores are open to look into this one".to_owned(), 0, false),
        Ok(Err(error)) => (error.to_string(), 0, true),
        Err(_) => ("opening…".to_owned(), 0, false),
    };
    let address = format!("{}/", app.face.base(id));
    Listed { id: id.clone(), address, words, pending, is_in_trouble }
}

/// Returns a store's figures in words, and how many of its events wait.
async fn standing(app: &Services, id: &StoreId) -> Result<(String, u64), Error> {
    // As little as a stranger: a look at the list must not keep anybody from a store.
    let store = app.stores.get_leaving(id, Who::Visitor.spare(app.stores.limits()))?;
    let health = store.healthy().await;
    if let Some(why) = health.trouble() {
        return Err(Error::Unavailable(why.into()));
    }
    let word = |(name, number): (&str, u64)| match name {
        // A count without a name of its own counts events.
        "count" => app.face.nouns.count(&number),
        name => format!("{name} {number}"),
    };
    let words: Vec<_> = figures(&app.face, &store).await?.into_iter().map(word).collect();
    Ok((words.join(", "), health.standing().map(|standing| standing.pending).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_leads_to_one_that_is_like_it() {
        let instead = |name: &str| Misnamed::new(name.to_owned()).instead.map(|id| id.to_string());
        assert_eq!(instead("My Store!").as_deref(), Some("my-store"));
        assert_eq!(instead("--a__b--").as_deref(), Some("a-b"));
        assert_eq!(instead(&"x ".repeat(40)).as_deref(), Some(&"x-".repeat(32)[..63]));
        assert_eq!(instead("café"), None);
        assert_eq!(instead("!?"), None);
    }
}
