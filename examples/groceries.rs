// A shopping list that a household shares: the program of `docs/tutorial.md`, which tells how it comes about.

use std::process::ExitCode;

use likewise::engine::{DbError, Event, EventId, Query, Schema};
use likewise::{App, Page, Render};
use maud::{DOCTYPE, Markup, html};
use serde::{Deserialize, Serialize};

/// Somebody wrote something on the list.
#[derive(Serialize, Deserialize)]
struct ItemAdded {
    name: String,
}

impl Event for ItemAdded {
    const NAME: &'static str = "ItemAdded";
}

/// Somebody has it in the basket.
#[derive(Serialize, Deserialize)]
struct ItemBought {
    item: EventId,
}

impl Event for ItemBought {
    const NAME: &'static str = "ItemBought";
}

fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE item (
             id     TEXT PRIMARY KEY,
             name   TEXT NOT NULL,
             bought INTEGER NOT NULL DEFAULT 0
         ) STRICT",
    )
    .on(|ItemAdded { name }, db| match name.trim() {
        "" => Err(DbError::refuse("An item needs a name.")),
        name => db.execute("INSERT INTO item (id, name) VALUES (?1, ?2)", (db.id(), name)),
    })
    .on(|ItemBought { item }, db| db.execute("UPDATE item SET bought = 1 WHERE id = ?1", [item]))
}

#[derive(Clone, PartialEq)]
struct Item {
    id: EventId,
    name: String,
}

fn needed() -> Query<Vec<Item>> {
    Query::rows("SELECT id, name FROM item WHERE NOT bought ORDER BY id", |row| {
        Ok(Item { id: row.get("id")?, name: row.get("name")? })
    })
}

fn list(items: Vec<Item>, r: Render) -> Markup {
    html! {
        ul {
            @for item in items {
                li {
                    (item.name)
                    form method="post" action=(r.to("bought")) {
                        (r.id())
                        input type="hidden" name="item" value=(item.id);
                        button { "Got it" }
                    }
                }
            }
        }
    }
}

fn page(page: Page) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head { (page.head()) title { "Groceries" } }
            body {
                h1 { "Groceries" }
                form method="post" action=(page.to("add")) {
                    (page.id())
                    input name="name" aria-label="Item" required;
                    button { "Add" }
                }
                (page.message())
                ul data-waiting="add" {}
                (page.live("needed"))
                footer { (page.status()) }
            }
        }
    }
}

fn app() -> App {
    App::new("groceries", schema)
        .nouns("change", "changes")
        .form::<ItemAdded>("add")
        .form::<ItemBought>("bought")
        .live("needed", |_| Ok(needed()), list)
        .page(page)
}

fn main() -> ExitCode {
    app().main()
}

#[cfg(test)]
mod tests {
    use super::*;
    use likewise::engine::{Error, Setup, StoreLimits, Stores};

    #[test]
    fn the_app_keeps_the_rules() {
        app().check().unwrap();
    }

    #[tokio::test]
    async fn what_was_bought_leaves_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(schema(), "kitchen".parse().unwrap()).unwrap();
        let stores = Stores::open(dir.path(), setup, StoreLimits::default()).unwrap();
        let store = stores.get(&"groceries".parse().unwrap()).unwrap();
        let milk = store.commit(ItemAdded { name: "milk".into() }).await.unwrap();
        store.commit(ItemAdded { name: "bread".into() }).await.unwrap();
        store.commit(ItemBought { item: milk.id }).await.unwrap();
        let names: Vec<_> = store.read(needed()).await.unwrap().into_iter().map(|item| item.name).collect();
        assert_eq!(names, ["bread"]);
        let nothing = store.commit(ItemAdded { name: " ".into() }).await;
        assert!(matches!(nothing, Err(Error::Refused(why)) if why == "An item needs a name."));
    }
}
