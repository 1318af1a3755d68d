//! The README's story of two devices, done as it is written there.

use std::path::Path;
use std::process::Command;

use crate::common::{Server, code_block, likewise, wait_for};

const README: &str = include_str!("../../README.md");

/// A shell command in `dir`, in which `likewise` is the program under test.
fn shell(line: &str, dir: &Path) -> Command {
    let program = likewise();
    let mut command = Command::new("sh");
    command.args(["-ec", &format!("likewise() {{ {:?} \"$@\"; }}\n{line}", program.get_program())]);
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(dir);
    command
}

/// The server that a line of the documentation starts, on a free port.
fn serve(line: &str, dir: &Path) -> Server {
    let words = line.strip_prefix("likewise ").expect("the program").replace(":3001", ":0");
    let mut command = likewise();
    command.args(words.split(' ')).env("LIKEWISE_LISTEN", "127.0.0.1:0").current_dir(dir);
    Server::spawn(command, dir)
}

#[test]
fn a_laptop_joins_a_hub_as_the_readme_says() {
    let (_, story) = README.split_once("## My phone and my laptop").expect("the story");
    let hub_line = code_block(story, "One likewise is the *hub*", "sh");
    let (_, rest) = story.split_once(hub_line).expect("the block");
    let lines: Vec<&str> = code_block(rest, "```", "sh").lines().collect();
    let [join, laptop_line] = lines[..] else { panic!("{lines:?}") };

    let dir = tempfile::tempdir().expect("a directory");
    let hub = serve(hub_line, dir.path());
    let joined = shell(join, dir.path()).output().expect("a shell");
    assert!(joined.status.success(), "{joined:?}");
    let laptop = serve(laptop_line, dir.path());

    assert_eq!(laptop.post("/likes", "").status, 303);
    wait_for("the like at the hub", || (hub.count() == 1).then_some(()));
    assert_eq!(hub.post("/likes", "").status, 303);
    wait_for("the like at the laptop", || (laptop.count() == 2).then_some(()));
}
