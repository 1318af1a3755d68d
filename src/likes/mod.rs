//! Likes, an app like any other: one event, one materializer, one query, and their page. It uses only the public face.

mod page;

use serde::{Deserialize, Serialize};

use crate::App;
use crate::engine::{Event, Query, Schema};

/// Somebody likes it. It has no fields, because the event itself is the like.
#[derive(Debug, Serialize, Deserialize)]
pub struct LikeAdded {}

impl Event for LikeAdded {
    const NAME: &'static str = "LikeAdded";
}

/// The state of likes: one row that counts them.
pub fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE likes (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
         INSERT INTO likes VALUES (1, 0);",
    )
    .on(|_: LikeAdded, db| db.execute("UPDATE likes SET count = count + 1 WHERE id = 1", ()))
}

/// How many likes there are.
pub fn count() -> Query<u64> {
    Query::first("SELECT count FROM likes WHERE id = 1")
}

/// The longest form, in bytes. A like is an id, and whatever else a client sends along is small.
const LONGEST_FORM: u64 = 4 * 1024;

/// The app: likes with their page, as the program `likewise`.
pub fn app() -> App {
    App::new("likewise", schema)
        .about(
            "Likes that are always fast, always there and never wrong.\n\n\
             Run `likewise`, open the address that it prints in a browser, and click. Likes are stored on this machine \
             before the click is answered, and the count changes at once in every open tab.",
        )
        .nouns("like", "likes")
        .store("likes")
        .lost("Nothing here to like")
        .background("#fbf5ec")
        .form::<LikeAdded>("likes")
        .longest_form(LONGEST_FORM)
        .live("likes", |_| Ok(count()), |count, _| page::Likes { count })
        .page(|page| page::LikesPage { page })
        .asset("likes.js", "text/javascript; charset=utf-8", include_bytes!("likes.js"))
        .asset("likewise.css", "text/css; charset=utf-8", include_bytes!("likewise.css"))
        .asset("favicon.svg", "image/svg+xml", include_bytes!("favicon.svg"))
        .asset("icon-192.png", "image/png", include_bytes!("icon-192.png"))
        .asset("icon-512.png", "image/png", include_bytes!("icon-512.png"))
        .asset("icon-maskable.png", "image/png", include_bytes!("icon-maskable.png"))
        .figure("count", count)
        .embed::<LikeAdded>(count)
}
