//! What people see: the page and its fragments.
//!
//! Every button is a form of its own, so all of it works without JavaScript, too. `r.id()` stands in each form, so that
//! each post counts once.

use likewise::engine::EventId;
use likewise::{Html, Page, Render};
use maud::{DOCTYPE, Markup, html};

use super::feature::Todo;

/// The whole page.
pub(crate) fn page(page: &Page) -> Markup {
    let (q, tag) = (page.param("q"), page.param("tag"));
    let home = format!("{}/", page.base());
    let store = if page.store() == "todo" { String::new() } else { format!(" · {}", page.store()) };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (page.head())
                meta name="color-scheme" content="light dark";
                (page.title(&format!("To do{store}")))
                link rel="icon" type="image/svg+xml" href=(page.asset("favicon.svg"));
                link rel="stylesheet" href=(page.asset("todo.css"));
                script type="module" src=(page.asset("todo.js")) {}
            }
            body {
                header {
                    h1 { a href=(home) { "To do" } " " (page.live("left")) }
                    form role="search" action=(home) {
                        input type="search" name="q" value=(q) placeholder="Search" aria-label="Search" autocomplete="off";
                    }
                }
                main {
                    form.add method="post" action=(page.to("add")) {
                        (page.id())
                        input name="title" placeholder="Buy milk #shop" aria-label="New to-do" autocomplete="off" required autofocus[q.is_empty()];
                        button { "Add" }
                    }
                    (page.message())
                    @if !q.is_empty() || !tag.is_empty() {
                        p.filter {
                            "Only "
                            @if !q.is_empty() { "“" (q) "”" }
                            @if !tag.is_empty() { " #" (tag) }
                            ". " a href=(home) { "Show all" }
                        }
                    }
                    (page.live("tags"))
                    ul.waiting data-waiting="add" hidden {}
                    (page.live("open"))
                    (page.live("finished"))
                }
                footer { (page.status()) (page.views()) }
            }
        }
    }
}

/// How many are left, in the heading. A fragment may stand wherever what it draws may. The title begins with the summary, and
/// screen readers say it now and then, instead of each change.
pub(crate) fn left(left: u64) -> Markup {
    html! { output.left aria-live="off" aria-label={ (left) " left" } data-summary={ (left) " left" } data-numbers { (left) } }
}

/// The tags of what is left, each a link to the to-dos that have it.
pub(crate) fn tags(tags: Vec<(String, u64)>, _: Render) -> Markup {
    html! {
        @if !tags.is_empty() {
            nav.tags aria-label="Tags" {
                @for (name, count) in tags { a href={ "?tag=" (escaped(&name)) } { "#" (name) " " small { (count) } } }
            }
        }
    }
}

/// What is left to do.
pub(crate) fn open(todos: Vec<Todo>, r: Render) -> Markup {
    let neighbour = |at: Option<usize>| at.and_then(|at| todos.get(at)).map(|todo| todo.id);
    html! {
        @if todos.is_empty() { p.nothing { "Nothing here. Good." } }
        ol.todos #open {
            @for (at, todo) in todos.iter().enumerate() {
                li id={ "todo-" (todo.id) } {
                    form method="post" action=(r.to("finish")) {
                        (r.id()) (about(todo.id))
                        button.check aria-label={ "Finish " (todo.title) } {}
                    }
                    details {
                        summary draggable="true" { (title(&todo.title)) }
                        form.rename method="post" action=(r.to("rename")) {
                            (r.id()) (about(todo.id))
                            input name="title" value=(todo.title) aria-label="Title" autocomplete="off" required;
                            button { "Save" }
                        }
                    }
                    div.moves {
                        (step(todo, "before", neighbour(at.checked_sub(1)), &r))
                        (step(todo, "after", neighbour(Some(at + 1)), &r))
                    }
                }
            }
        }
    }
}

/// What was finished last, each with a way back.
pub(crate) fn finished(todos: Vec<Todo>, r: Render) -> Markup {
    html! {
        @if !todos.is_empty() {
            h2 { "Finished" }
            ul.todos #finished {
                @for todo in todos {
                    li id={ "todo-" (todo.id) } {
                        form method="post" action=(r.to("finish")) {
                            (r.id()) (about(todo.id))
                            input type="hidden" name="undo" value="true";
                            button.check aria-label={ "Reopen " (todo.title) } {}
                        }
                        span { (title(&todo.title)) }
                    }
                }
            }
        }
    }
}

/// The button that moves a to-do past its neighbour, where it has one.
fn step(todo: &Todo, side: &str, neighbour: Option<EventId>, r: &Render) -> Markup {
    let (name, arrow) = if side == "before" { ("up", "↑") } else { ("down", "↓") };
    html! {
        form method="post" action=(r.to("move")) {
            (r.id()) (about(todo.id))
            input type="hidden" name="side" value=(side);
            @if let Some(other) = neighbour { input type="hidden" name="other" value=(other); }
            button disabled[neighbour.is_none()] aria-label={ "Move " (todo.title) " " (name) } { (arrow) }
        }
    }
}

/// The hidden field that says which to-do a form is about.
fn about(todo: EventId) -> Markup {
    html! { input type="hidden" name="todo" value=(todo); }
}

/// A title whose tags stand out.
fn title(title: &str) -> Markup {
    html! {
        @for word in title.split_whitespace() {
            @if word.len() > 1 && word.starts_with('#') { span.tag { (word) } " " } @else { (word) " " }
        }
    }
}

/// Text as a value in an address.
fn escaped(text: &str) -> Html {
    Html::trusted(form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>())
}
