//! The `likewise` program: likes, and all that every app has.

use std::process::ExitCode;

fn main() -> ExitCode {
    likewise::likes::app().main()
}
