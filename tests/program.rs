//! Whole programs of other apps: a to-do app with its own name, and the tutorial's shopping list.
//!
//! The tests need programs that they can start, so this file is both. When a test starts it, it is the app.

#[path = "common/mod.rs"]
mod common;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use likewise::engine::{Event, Query, Schema};
use likewise::sync::{TokenSource, UpstreamOptions};
use likewise::{App, BoxError, Context, Html, Node, Options};
use serde::{Deserialize, Serialize};

use common::{Server, code_block, data_dir, errors, printed, wait_for};

/// The program that `docs/tutorial.md` leads to.
#[allow(dead_code, unused_imports, clippy::items_after_test_module, reason = "its own tests don't run here")]
mod groceries {
    include!("../examples/groceries.rs");

    pub(super) fn run() -> ExitCode {
        main()
    }
}

/// Names the program to be, when this is started as one.
const ROLE: &str = "LIKEWISE_TEST_ROLE";

#[derive(Serialize, Deserialize)]
struct TodoAdded {
    title: String,
}

impl Event for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}

fn schema() -> Schema {
    Schema::new("CREATE TABLE todo (n INTEGER PRIMARY KEY, title TEXT NOT NULL CHECK (title <> '')) STRICT")
        .on(|TodoAdded { title }, db| db.execute("INSERT INTO todo (title) VALUES (?1)", [title]))
}

fn titles() -> Query<Vec<String>> {
    Query::rows("SELECT title FROM todo ORDER BY n", |row| Ok(row.get("title")?))
}

fn todo() -> App {
    let add = clap::Command::new("add").about("Add a to-do").arg(clap::Arg::new("title").required(true));
    App::new("to-do", schema)
        .version("1.2.3")
        .about("What is to be done.")
        .nouns("to-do", "to-dos")
        .figure("left", || Query::first("SELECT count(*) FROM todo"))
        .page(|_| Html::text("to-dos"))
        .command(add, async |matches, context: Context| {
            let title = matches.get_one::<String>("title").ok_or("no title")?.clone();
            let id = context.commit(TodoAdded { title }).await?;
            println!("{id}");
            Ok::<_, BoxError>(ExitCode::SUCCESS)
        })
        .command(clap::Command::new("list"), async |_, context: Context| {
            let titles = context.read(titles()).await?;
            titles.iter().for_each(|title| println!("{title}"));
            Ok::<_, BoxError>(if titles.is_empty() { ExitCode::from(3) } else { ExitCode::SUCCESS })
        })
}

/// An app whose author chose a taken name.
fn wrong() -> App {
    todo().command(clap::Command::new("verify"), async |_, _| Ok::<_, BoxError>(ExitCode::SUCCESS))
}

/// A newer version, with other tables and a stricter rule.
fn newer() -> App {
    let schema = || {
        Schema::new("CREATE TABLE thing (title TEXT NOT NULL CHECK (title <> 'two')) STRICT")
            .on(|TodoAdded { title }, db| db.execute("INSERT INTO thing VALUES (?1)", [title]))
    };
    App::new("to-do", schema).nouns("thing", "things")
}

/// The program, with its data in `data`. It doesn't see the variables of the person who runs the tests.
fn program(data: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    for (name, _) in std::env::vars_os() {
        if ["LIKEWISE_", "TO_DO_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.env(ROLE, "to-do").env("TO_DO_DATA", data).stdin(Stdio::null());
    command
}

fn run(data: &Path, arguments: &[&str]) -> Output {
    program(data).args(arguments).output().expect("the program starts")
}

fn serve(data: &Path) -> Server {
    let mut command = program(data);
    command.env("TO_DO_LISTEN", "127.0.0.1:0").env("LIKEWISE_LISTEN", "nonsense");
    Server::spawn(command, data)
}

fn own_commands_work_whether_or_not_a_process_serves() {
    let data = data_dir();
    let empty = run(data.path(), &["list"]);
    assert_eq!(empty.status.code(), Some(3), "the command's own code: {}", errors(&empty));
    let id = printed(run(data.path(), &["add", "one"]));
    assert_eq!(id.trim().len(), 36, "an id: {id}");
    let server = serve(data.path());
    printed(run(data.path(), &["add", "two"]));
    printed(run(data.path(), &["add", "elsewhere", "--store", "work"]));
    assert_eq!(printed(run(data.path(), &["list"])), "one\ntwo\n");
    assert!(printed(run(data.path(), &["verify"])).contains("all is well"), "by the server, with the app's schema");
    let refused = run(data.path(), &["add", ""]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors(&refused).starts_with("to-do: TodoAdded can't be applied: "), "{}", errors(&refused));
    assert!(server.terminate().success());
    let refused = run(data.path(), &["add", ""]);
    assert!(errors(&refused).starts_with("to-do: TodoAdded can't be applied: "), "{}", errors(&refused));
    assert_eq!(printed(run(data.path(), &["list"])), "one\ntwo\n");
    assert_eq!(printed(run(data.path(), &["list", "--store", "work"])), "elsewhere\n");
    assert!(printed(run(data.path(), &["verify", "--store", "work"])).contains("all is well"));
}

fn the_program_goes_by_the_apps_name() {
    let home = data_dir();
    let help = printed(run(home.path(), &["--help"]));
    for words in ["What is to be done.", "Add a to-do", "TO_DO_LISTEN", "Usage: to-do"] {
        assert!(help.contains(words), "{words}: {help}");
    }
    assert_eq!(printed(run(home.path(), &["--version"])), "to-do 1.2.3\n");
    let mut command = program(home.path());
    let command = command.env_remove("TO_DO_DATA").env("HOME", home.path()).env("XDG_DATA_HOME", home.path());
    printed(command.args(["add", "one"]).output().expect("the program starts"));
    assert!(home.path().join("to-do/stores/to-do/eventlog.db").exists(), "the data is in a place of the app's own");
    let nothing = run(&home.path().join("missing"), &["status"]);
    assert!(errors(&nothing).contains("run `to-do`"), "{}", errors(&nothing));
    let status = printed(run(&home.path().join("to-do"), &["status"]));
    assert!(status.contains("left       1\n"), "{status}");
}

fn status_says_which_events_have_no_effect_and_why() {
    let data = data_dir();
    let event = |name: &str, args: &str| {
        format!("{{\"id\":\"{}\",\"name\":\"{name}\",\"args\":{args}}}\n", uuid::Uuid::now_v7())
    };
    let bad = "\"{\\\"title\\\":\\\"\\\"}\"";
    let input = event("TodoAdded", bad) + &event("TodoAdded", bad) + &event("TodoBurnt", "null");
    let mut import = program(data.path());
    let mut import = import.arg("import").stdin(Stdio::piped()).spawn().expect("the program starts");
    std::io::Write::write_all(&mut import.stdin.take().expect("its input"), input.as_bytes()).expect("it reads");
    assert!(import.wait().expect("its end").success());
    let unserved = printed(run(data.path(), &["status"]));
    for words in [
        "2 skipped, because they could not be applied\n",
        "1 of kinds that this program doesn't know: of a newer to-do, of another app, or renamed here (an event keeps \
         its NAME)\n",
        "TodoAdded can't be applied: CHECK constraint failed: title <> ''",
        " (2)\n",
        "TodoBurnt: nothing here knows this name (1)\n",
    ] {
        assert!(unserved.contains(words), "{words}: {unserved}");
    }
    let _server = serve(data.path());
    assert_eq!(printed(run(data.path(), &["status"])), unserved, "a server says the same");
}

fn a_command_of_a_name_that_is_taken_is_refused_at_the_start() {
    let data = data_dir();
    let output = program(data.path()).env(ROLE, "wrong").arg("list").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("`verify` can't be the name of a command"), "{}", errors(&output));
}

fn a_node_syncs_without_a_server_and_has_its_data_alone() {
    let (hub, device) = (data_dir(), data_dir());
    let token = printed(run(hub.path(), &["token", "add", "desk"]));
    let hub_server = serve(hub.path());
    let options = Options {
        data: Some(device.path().to_owned()),
        device: Some("desk".parse().expect("a name")),
        upstream: Some(UpstreamOptions {
            url: hub_server.url.clone(),
            token: TokenSource::Given(token),
            root_certificate: None,
        }),
        ..Options::default()
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let node: Node = todo().open(options.clone()).expect("a node");
        let store = node.store("to-do").expect("a store");
        store.commit(TodoAdded { title: "from the desk".to_owned() }).await.expect("stored");
        let second = todo().open(options.clone()).expect_err("the directory is taken").to_string();
        assert!(second.contains("in use by"), "{second}");
        assert!(node.store("No Store").is_err());
        wait_for("the hub to have the event", || {
            printed_or_empty(run(hub.path(), &["list"])).contains("from the desk").then_some(())
        });
        let provider = rustls::crypto::CryptoProvider::get_default();
        assert!(provider.is_none(), "which one this process has is the choice of its author");
        node.close().await;
        assert!(store.commit(TodoAdded { title: "too late".to_owned() }).await.is_err(), "a closed store");
        // Dropping a node without closing it frees the directory, too.
        drop(todo().open(options.clone()).expect("free again"));
        wait_for("the directory to be free", || todo().open(options.clone()).ok()).close().await;
    });
    assert_eq!(printed(run(device.path(), &["list"])), "from the desk\n");
}

/// Runs the commands of `docs/evolution.md`.
fn a_new_version_is_tried_on_a_copy_of_the_data() {
    let (home, data) = (data_dir(), data_dir());
    for title in ["one", "two", "three"] {
        printed(run(data.path(), &["add", title]));
    }
    let _server = serve(data.path());
    let block = code_block(include_str!("../docs/evolution.md"), "", "sh");
    let mut said = String::new();
    for line in block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim()) {
        let (first, arguments) = line.split_once(' ').expect("a command");
        let role = match first {
            "todo" => "to-do",
            "todo-new" => "newer",
            _ => {
                assert!(
                    Command::new("sh").args(["-c", line]).current_dir(home.path()).status().expect("a shell").success()
                );
                continue;
            }
        };
        let mut command = program(data.path());
        command.args(arguments.split_whitespace()).env(ROLE, role).current_dir(home.path());
        if role == "newer" {
            command.env_remove("TO_DO_DATA");
        }
        said += &printed(command.output().expect("the program starts"));
    }
    assert!(said.contains("1 skipped, because they could not be applied"), "{said}");
    assert!(said.contains("all is well"), "{said}");
    assert_eq!(printed(run(data.path(), &["list"])), "one\ntwo\nthree\n", "the data itself is as it was");
}

/// What a command printed, even if its exit code says that there is nothing.
fn printed_or_empty(output: Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn an_app_serves_on_a_listener_until_it_is_told_to_stop() {
    let data = data_dir();
    let options = Options { data: Some(data.path().to_owned()), ..Options::default() };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let serving = runtime.spawn(async move {
        let shutdown = async { stopped.await.unwrap_or_default() };
        todo().serve(options, listener, shutdown).await
    });
    wait_for("the server", || run(data.path(), &["add", "one"]).status.success().then_some(()));
    stop.send(()).expect("it listens");
    runtime.block_on(serving).expect("no panic").expect("a good end");
    assert_eq!(printed(run(data.path(), &["list"])), "one\n");
}

/// The tutorial's code blocks of this kind.
fn blocks(kind: &str) -> Vec<&'static str> {
    let tutorial = include_str!("../docs/tutorial.md");
    let blocks = tutorial.split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n')).collect()
}

fn the_tutorial_has_all_of_its_program() {
    let (_, program) = include_str!("../examples/groceries.rs").split_once("\n\n").expect("a comment at its head");
    assert!(blocks("rust").join("\n\n") + "\n" == program, "docs/tutorial.md and examples/groceries.rs differ");
}

/// Runs the tutorial's commands, except on other ports: those may be taken here.
fn the_tutorial_leads_to_two_devices_with_one_list() {
    let home = data_dir();
    let commands = blocks("sh").into_iter().flat_map(str::lines).filter_map(|line| line.strip_prefix("cargo run -- "));
    let groceries = || {
        let mut command = program(home.path());
        command.env(ROLE, "groceries").current_dir(home.path());
        command
    };
    let mut servers: Vec<Server> = Vec::new();
    for line in commands {
        let words = line.split_whitespace();
        if line.starts_with("token ") {
            printed(groceries().args(words).output().expect("the program starts"));
        } else {
            let hub = servers.first().map(|hub| hub.url.clone());
            let port = |word: &str| match word {
                "http://127.0.0.1:4000" => hub.clone().expect("the hub comes first"),
                _ if word.starts_with("127.0.0.1:") => "127.0.0.1:0".to_owned(),
                _ => word.to_owned(),
            };
            let mut command = groceries();
            command.args(words.map(port));
            servers.push(Server::spawn(command, home.path()));
        }
    }
    let [_, laptop, phone] = &servers[..] else { panic!("a hub and two devices, not {}", servers.len()) };
    let add = |device: &Server, name: &str| {
        let body = format!("name={name}");
        let request = ureq::post(format!("{}/add", device.url)).content_type("application/x-www-form-urlencoded");
        request.send(body).expect("it is added");
    };
    let until_there = |device: &Server, name: &str| {
        wait_for(name, || {
            let page = ureq::get(&device.url).call().ok()?.body_mut().read_to_string().ok()?;
            page.contains(&format!("<li>{name}")).then_some(())
        });
    };
    add(laptop, "milk");
    until_there(phone, "milk");
    add(phone, "bread");
    until_there(laptop, "bread");
}

const TESTS: [(&str, fn()); 9] = [
    ("a_new_version_is_tried_on_a_copy_of_the_data", a_new_version_is_tried_on_a_copy_of_the_data),
    ("status_says_which_events_have_no_effect_and_why", status_says_which_events_have_no_effect_and_why),
    ("the_tutorial_has_all_of_its_program", the_tutorial_has_all_of_its_program),
    ("the_tutorial_leads_to_two_devices_with_one_list", the_tutorial_leads_to_two_devices_with_one_list),
    ("own_commands_work_whether_or_not_a_process_serves", own_commands_work_whether_or_not_a_process_serves),
    ("the_program_goes_by_the_apps_name", the_program_goes_by_the_apps_name),
    (
        "a_command_of_a_name_that_is_taken_is_refused_at_the_start",
        a_command_of_a_name_that_is_taken_is_refused_at_the_start,
    ),
    ("a_node_syncs_without_a_server_and_has_its_data_alone", a_node_syncs_without_a_server_and_has_its_data_alone),
    ("an_app_serves_on_a_listener_until_it_is_told_to_stop", an_app_serves_on_a_listener_until_it_is_told_to_stop),
];

fn main() -> ExitCode {
    match std::env::var(ROLE).ok().as_deref() {
        Some("to-do") => return todo().main(),
        Some("groceries") => return groceries::run(),
        Some("newer") => return newer().main(),
        Some(_) => return wrong().main(),
        None => {}
    }
    // What `cargo test` expects of a test program: words are filters, and the end says how many passed and failed.
    let words: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let is_list = words.iter().any(|word| word == "--list");
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        if is_list {
            println!("{name}: test");
            continue;
        }
        let result: Result<(), Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(test));
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        if result.is_ok() { passed += 1 } else { failed += 1 }
    }
    if !is_list {
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
