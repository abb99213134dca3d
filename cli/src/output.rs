//! Results of commands, on the standard output.

use clap::ValueEnum;

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Tables for people.
    Table,
    /// JSON for programs, with a schema number.
    Json,
}

/// Prints a result. The reader may have closed the pipe (`| head`); that is no failure of the command.
pub(crate) fn print(text: &str) {
    use std::io::Write as _;
    // Reasons and authors are other people's text: escape control characters.
    let text = topology::text::for_terminal(text.trim_end());
    let _ = writeln!(std::io::stdout(), "{text}");
}
