//! The `likewise` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    likewise::cli::main()
}
