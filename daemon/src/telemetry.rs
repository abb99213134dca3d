//! Logs: to standard error, for people or as JSON. `RUST_LOG` chooses what is logged; `info` when unset.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line an event, for people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Starts logging. Only the first call counts, so tests may call it freely.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal();
    // An error here means that logging runs already.
    let _ = match format {
        Format::Pretty => logs.with_ansi(colours).try_init(),
        Format::Json => logs.json().flatten_event(true).try_init(),
    };
}
