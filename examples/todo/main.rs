//! To-dos: a list that several people keep on several devices, online or not.
//!
//! It is the size of a small real app: events with payloads, three tables, four forms, a search, an order that people
//! change, a stylesheet, and a command of its own. `feature.rs` says what happens and what it means, `page.rs` what people
//! see; this file puts them together. Run it with
//!
//! ```sh
//! cargo run --example todo              # serves the page on http://127.0.0.1:3000
//! cargo run --example todo -- add Milk  # from another terminal: it shows on the page at once
//! cargo run --example todo -- --help
//! ```

mod feature;
mod page;

use std::process::ExitCode;

use likewise::clap::{Arg, ArgMatches, Command};
use likewise::{App, Context, Page};

use feature::{Search, TodoAdded, TodoFinished, TodoMoved, TodoRenamed};

/// The whole app.
pub(crate) fn app() -> App {
    App::new("todo", feature::schema)
        .about("What is to be done, on all your devices.")
        .nouns("to-do", "to-dos")
        .form::<TodoAdded>("add")
        .form::<TodoFinished>("finish")
        .form::<TodoMoved>("move")
        .form::<TodoRenamed>("rename")
        .live("left", |_| Ok(feature::left()), |left, _| page::left(left))
        .live("tags", |_| Ok(feature::tags()), page::tags)
        .live("open", |params| Ok(feature::open(&params.get::<Search>()?)), page::open)
        .live("finished", |params| Ok(feature::finished(&params.get::<Search>()?)), page::finished)
        .page(|page: Page| page::page(&page))
        .figure("left", feature::left)
        .asset("todo.css", "text/css; charset=utf-8", include_str!("todo.css"))
        .asset("todo.js", "text/javascript; charset=utf-8", include_str!("todo.js"))
        .asset("favicon.svg", "image/svg+xml", include_str!("todo.svg"))
        .command(Command::new("add").about("Add a to-do").arg(Arg::new("title").required(true)), add)
}

/// `todo add TITLE`
async fn add(matches: ArgMatches, context: Context) -> Result<ExitCode, likewise::NodeError> {
    let title = matches.get_one::<String>("title").cloned().unwrap_or_default();
    context.commit(TodoAdded { title }).await?;
    println!("{} left", context.read(feature::left()).await?);
    Ok(ExitCode::SUCCESS)
}

#[allow(dead_code, reason = "the browser's tests serve the app themselves")]
fn main() -> ExitCode {
    app().main()
}
