//! What people see of likes: the count, and the page with the heart.

use askama::Template;

use crate::{Html, Page};

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

impl LikesPage {
    fn is_first_store(&self) -> bool {
        self.page.store() == "likes"
    }

    fn title(&self) -> Html {
        let store = if self.is_first_store() { String::new() } else { format!("{} · ", self.page.store()) };
        self.page.title(&format!("{store}Likewise"))
    }
}
