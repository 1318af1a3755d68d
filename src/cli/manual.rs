//! `completions` and `man`: the command line, for shells and for readers.

use std::io::{self, Write};
use std::process::ExitCode;

use super::arguments::command_line;
use crate::app::App;

pub(super) fn completions(app: &App, shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line(app), app.name(), &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints one page that has all commands, each in a section of its own.
pub(super) fn page(app: &App) -> anyhow::Result<ExitCode> {
    // The page is for every machine, and the default is this one's.
    let command = command_line(app).mut_arg("data", |data| data.help("Directory of all data, made if need be"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        writeln!(page, ".SH {} {}", app.name().to_uppercase(), command.get_name().to_uppercase())?;
        let man = clap_mangen::Man::new(command.clone());
        let mut section = Vec::new();
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        // Its sections are parts of this one.
        page.extend(String::from_utf8_lossy(&section).replace(".SH ", ".SS ").into_bytes());
    }
    io::stdout().write_all(&page)?;
    Ok(ExitCode::SUCCESS)
}
