//! What is in `packaging/`, tried as far as a machine without systemd, root on a network or a container engine can.
//!
//! A test whose program is missing fails with a sentence that says how to get it. `tests/all` gets them all.

#[path = "../common/mod.rs"]
mod common;

mod archive;
mod completions;
mod debian;
mod units;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A file in `packaging/`.
fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

/// The result of a program that this machine may lack.
fn output_of(command: &mut Command, how_to_get_it: &str) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|why| panic!("this test needs {program} ({why}): {how_to_get_it}"))
}

/// Everything that a program said.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The program under test, as a path.
fn program() -> PathBuf {
    common::likewise().get_program().into()
}
