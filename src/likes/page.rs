//! What people see of likes: the count, and the page with the heart.

use askama::Template;

use crate::Page;

/// The fragment that holds the count.
#[derive(Template)]
#[template(path = "likes/likes.html")]
pub(super) struct Likes {
    pub(super) count: u64,
}

/// The whole page.
#[derive(Template)]
#[template(path = "likes/page.html")]
pub(super) struct LikesPage {
    pub(super) page: Page,
}
