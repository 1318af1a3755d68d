//! Reactions to posts: one a visitor and post, which can be changed and taken back.
//!
//! What many people do to many things is rows of one store, with the thing and the person in their key. A store for each
//! post would have an order, a sync and a page of its own, and no query could see two of them.
//!
//! Who reacts is no field of the form, which anybody could fill in with another's name: the server adds it, from a cookie.
//! What is stored is a hash that leads nobody back to the cookie. Run it with `cargo run --example reactions`.

use std::process::ExitCode;

use likewise::engine::{Db, DbError, Event, EventId, Query, Schema};
use likewise::{App, Page, Refusal, Render, Visitor};
use maud::{DOCTYPE, Markup, html};
use serde::{Deserialize, Serialize};

/// Somebody wrote a post.
#[derive(Debug, Serialize, Deserialize)]
struct PostWritten {
    text: String,
}

/// A visitor reacts to a post. Whatever they thought of it before, they don't any more.
#[derive(Debug, Serialize, Deserialize)]
struct Reacted {
    post: EventId,
    visitor: String,
    kind: Kind,
}

/// A visitor takes their reaction to a post back.
#[derive(Debug, Serialize, Deserialize)]
struct ReactionTakenBack {
    post: EventId,
    visitor: String,
}

impl Event for PostWritten {
    const NAME: &'static str = "PostWritten";
}
impl Event for Reacted {
    const NAME: &'static str = "Reacted";
}
impl Event for ReactionTakenBack {
    const NAME: &'static str = "ReactionTakenBack";
}

/// What one can think of a post. The names are stored, the signs only shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Like,
    Joy,
    Wonder,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Like, Self::Joy, Self::Wonder];

    fn name(self) -> &'static str {
        match self {
            Self::Like => "like",
            Self::Joy => "joy",
            Self::Wonder => "wonder",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Like => "👍",
            Self::Joy => "😄",
            Self::Wonder => "😮",
        }
    }
}

fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE post (id TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT;
         CREATE TABLE reaction (
             post TEXT REFERENCES post (id),
             visitor TEXT,
             kind TEXT NOT NULL,
             PRIMARY KEY (post, visitor)
         ) STRICT, WITHOUT ROWID;",
    )
    .on(|PostWritten { text }, db| match text.trim() {
        "" => Err(DbError::refuse("A post needs a text.")),
        text => db.execute("INSERT INTO post (id, text) VALUES (?1, ?2)", (db.id(), text)),
    })
    .on(|Reacted { post, visitor, kind }, db| {
        check_post(db, post)?;
        let sql = "INSERT INTO reaction (post, visitor, kind) VALUES (?1, ?2, ?3)
                   ON CONFLICT DO UPDATE SET kind = excluded.kind";
        db.execute(sql, (post, visitor, kind.name()))
    })
    // Taking back what isn't there is no mistake: two tabs may do so, and both get what they want.
    .on(|ReactionTakenBack { post, visitor }, db| {
        db.execute("DELETE FROM reaction WHERE post = ?1 AND visitor = ?2", (post, visitor))
    })
}

fn check_post(db: &Db<'_>, post: EventId) -> Result<(), DbError> {
    let found = db.first("SELECT 1 FROM post WHERE id = ?1", [post], |_| Ok(()))?;
    found.ok_or_else(|| DbError::refuse("This post isn't here. Reload the page."))
}

/// A post and how many visitors reacted, in each way of [`Kind::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Post {
    id: EventId,
    text: String,
    reactions: [u64; 3],
}

fn posts() -> Query<Vec<Post>> {
    Query::rows(
        "SELECT id, text, count(*) FILTER (WHERE kind = 'like') AS likes, count(*) FILTER (WHERE kind = 'joy') AS joys,
                count(*) FILTER (WHERE kind = 'wonder') AS wonders
         FROM post LEFT JOIN reaction ON post = id GROUP BY id ORDER BY id DESC LIMIT 100",
        |row| {
            let reactions = [row.get("likes")?, row.get("joys")?, row.get("wonders")?];
            Ok(Post { id: row.get("id")?, text: row.get("text")?, reactions })
        },
    )
}

/// What the form of a reaction says itself.
#[derive(Deserialize)]
struct ReactFields {
    post: EventId,
    kind: Kind,
}

/// What the form says itself that takes one back.
#[derive(Deserialize)]
struct TakeBackFields {
    post: EventId,
}

fn react(ReactFields { post, kind }: ReactFields, visitor: &Visitor) -> Result<Reacted, Refusal> {
    Ok(Reacted { post, visitor: visitor.hash().to_owned(), kind })
}

fn take_back(TakeBackFields { post }: TakeBackFields, visitor: &Visitor) -> Result<ReactionTakenBack, Refusal> {
    Ok(ReactionTakenBack { post, visitor: visitor.hash().to_owned() })
}

/// The posts. This is one text for all who look, so it can't say which reaction is whose.
fn list(posts: Vec<Post>, r: Render) -> Markup {
    html! {
        @for post in posts {
            article id={ "post-" (post.id) } {
                p { (post.text) }
                form method="post" action=(r.to("react")) {
                    (r.id())
                    input type="hidden" name="post" value=(post.id);
                    @for (kind, count) in Kind::ALL.into_iter().zip(post.reactions) {
                        button name="kind" value=(kind.name()) aria-label=(kind.name()) { (kind.sign()) " " (count) }
                    }
                }
                form method="post" action=(r.to("take-back")) {
                    (r.id())
                    input type="hidden" name="post" value=(post.id);
                    button { "Take mine back" }
                }
            }
        }
    }
}

fn page(page: Page) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head { (page.head()) meta name="color-scheme" content="light dark"; title { "Reactions" } }
            body {
                h1 { "Reactions" }
                form method="post" action=(page.to("write")) {
                    (page.id())
                    textarea name="text" aria-label="Text" required {}
                    button { "Post" }
                }
                (page.message())
                (page.live("posts"))
                footer { (page.status()) }
            }
        }
    }
}

fn app() -> App {
    App::new("reactions", schema)
        .form::<PostWritten>("write")
        .form_with("react", react)
        .form_with("take-back", take_back)
        .live("posts", |_| Ok(posts()), list)
        .page(page)
        .figure("reactions", || Query::first("SELECT count(*) FROM reaction"))
}

fn main() -> ExitCode {
    app().main()
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use likewise::Options;
    use likewise::engine::{Setup, StoreLimits, Stores};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    use super::*;

    /// A browser that keeps its cookie, or a new one each time.
    struct Browser {
        url: String,
        cookie: Option<String>,
    }

    impl Browser {
        fn post(&mut self, form: &str, fields: &[(&str, &str)]) {
            let request = ureq::post(format!("{}/{form}", self.url)).header("accept", "application/json");
            let request = match &self.cookie {
                Some(cookie) => request.header("cookie", cookie),
                None => request,
            };
            let answer = request.send_form(fields.iter().copied()).unwrap();
            let cookie = answer.headers().get("set-cookie").map(|cookie| cookie.to_str().unwrap());
            self.cookie = cookie.and_then(|cookie| cookie.split(';').next()).map(str::to_owned);
        }
    }

    #[test]
    fn the_app_keeps_the_rules() {
        app().check().unwrap();
    }

    #[tokio::test]
    async fn each_visitor_has_a_reaction_of_their_own() -> Result<(), Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        let stores = Stores::open(dir.path(), Setup::new(schema(), "here".parse()?)?, StoreLimits::default())?;
        let store = stores.get(&"reactions".parse()?)?;
        let post = store.commit(PostWritten { text: "Hello".to_owned() }).await?.id;
        for (visitor, kind) in [("anna", Kind::Like), ("ben", Kind::Joy), ("anna", Kind::Wonder)] {
            store.commit(react(ReactFields { post, kind }, &Visitor::for_test(visitor)).unwrap()).await?;
        }
        assert_eq!(store.read(posts()).await?[0].reactions, [0, 1, 1]);
        store.commit(take_back(TakeBackFields { post }, &Visitor::for_test("ben")).unwrap()).await?;
        assert_eq!(store.read(posts()).await?[0].reactions, [0, 0, 1]);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_visitor_has_one_reaction_to_a_post_and_can_take_it_back() -> Result<(), Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let options = Options { data: Some(dir.path().to_owned()), ..Options::default() };
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(async move { app().serve(options, listener, async { drop(ended.await) }).await });

        let visit = move || -> Result<(), Box<dyn Error + Send + Sync>> {
            let [mut anna, mut ben] = [(); 2].map(|()| Browser { url: url.clone(), cookie: None });
            let post = EventId::now().to_string();
            anna.post("write", &[("id", &post), ("text", "Hello")]);
            let shown = || -> Result<String, ureq::Error> {
                let page = ureq::get(format!("{url}/")).call()?.body_mut().read_to_string()?;
                let counts = ["👍 ", "😄 ", "😮 "].map(|sign| page.split(sign).nth(1).map(|rest| &rest[..1]));
                Ok(counts.map(Option::unwrap_or_default).join(" "))
            };
            assert_eq!(shown()?, "0 0 0");
            anna.post("react", &[("post", &post), ("kind", "like")]);
            ben.post("react", &[("post", &post), ("kind", "joy")]);
            assert_eq!(shown()?, "1 1 0");
            anna.post("react", &[("post", &post), ("kind", "wonder")]);
            anna.post("react", &[("post", &post), ("kind", "wonder")]);
            assert_eq!(shown()?, "0 1 1");
            for _ in 0..2 {
                ben.post("take-back", &[("post", &post)]);
                assert_eq!(shown()?, "0 0 1");
            }
            Ok(())
        };
        tokio::task::spawn_blocking(visit).await?.map_err(|why| why.to_string())?;
        drop(end);
        server.await??;
        Ok(())
    }
}
