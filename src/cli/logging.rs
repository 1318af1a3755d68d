//! The log on standard error: what is logged, and in which form.

use std::env;
use std::io::{self, IsTerminal};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::arguments;
use crate::app::App;
use crate::sync::plain;

/// The form of the log's lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// What is logged unless somebody says otherwise. A gateway tells in its own words what the client of NATS tells, and whoever
/// connects tells once what is wrong with a certificate, which its verifier tells at every attempt.
const USUAL: &str = "info,async_nats=off,rustls_platform_verifier=off";

/// Writes the log to standard error, as far as the program's own variable asks for it.
pub(super) fn log_to_stderr(app: &App, format: LogFormat) -> anyhow::Result<()> {
    let variable = arguments::log_variable(app);
    let asked = env::var(&variable).ok().filter(|filter| !filter.trim().is_empty());
    let filter = log_filter(asked.as_deref().unwrap_or(USUAL)).with_context(|| {
        format!(
            "{variable} says what is logged: error, warn, info, debug, trace or off, or for a part alone, as in \
             `info,{}=debug`",
            env!("CARGO_PKG_NAME")
        )
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        // Its own errors would go to standard error, too, and panic when that is what fails.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => {
            // A reader that takes every line for JSON gets panics as such, too.
            std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
            log.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
    }
    Ok(())
}

/// Says why the program ends, in the form of the log.
pub(super) fn say_last(app: &App, format: LogFormat, why: &str) {
    match format {
        // A server that was asked may have said part of it.
        LogFormat::Text => eprintln!("{}: {}", app.name(), plain(why)),
        LogFormat::Json => tracing::error!("{why}"),
    }
}

/// Which lines are logged. A bare word has to be a level: the filter itself would take a misspelled one for the name of a
/// part, and log nothing else.
fn log_filter(text: &str) -> anyhow::Result<EnvFilter> {
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    let is_fine = |part: &&str| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok();
    if let Some(wrong) = parts.iter().find(|part| !is_fine(part)) {
        bail!("{wrong:?} is no level");
    }
    parts.join(",").parse().with_context(|| format!("{text:?} is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_level_of_the_log_is_an_error() {
        for fine in ["info", "WARN", "off", "debug,hyper=info", "likewise=trace", " warn , hyper=off "] {
            assert!(log_filter(fine).is_ok(), "{fine}");
        }
        for wrong in ["warning", "verbose", "info,loud", "likewise=loud", "="] {
            assert!(log_filter(wrong).is_err(), "{wrong}");
        }
    }
}
