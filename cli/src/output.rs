//! Results of commands, on the standard output, and their complaints, on the standard error. No other file prints, because the text
//! may be another person's: a reason, an author, the answer of a server.

use std::ffi::OsString;

use clap::{Parser, ValueEnum};
use topology::text::for_terminal;

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
    let text = for_terminal(text.trim_end());
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints an error, or what the person should know beside the result.
pub(crate) fn complain(text: &str) {
    use std::io::Write as _;
    let text = for_terminal(text.trim_end());
    let _ = writeln!(std::io::stderr(), "meridian: {text}");
}

/// Asks the person at the terminal. `None` if there is no terminal.
///
/// # Errors
///
/// The terminal's.
pub(crate) fn ask(question: &str) -> std::io::Result<Option<String>> {
    use std::io::{IsTerminal as _, Write as _};
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    write!(std::io::stderr(), "{}", for_terminal(question))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(Some(answer.trim().to_owned()))
}

/// Reads the command line. A wrong one, or a request for help, is answered here and ends the process.
pub(crate) fn options<O: Parser>() -> O {
    let error = match O::try_parse() {
        Ok(options) => return options,
        Err(error) => error,
    };
    let is_hidden = |argument: OsString| argument.to_string_lossy().contains(topology::text::is_hidden);
    if error.use_stderr() && std::env::args_os().skip(1).any(is_hidden) {
        use std::io::Write as _;
        // clap colours its answer and quotes the argument as it is. Without colours nothing else in it moves the cursor.
        let _ = writeln!(std::io::stderr(), "{}", for_terminal(error.to_string().trim_end()));
        std::process::exit(error.exit_code());
    }
    error.exit()
}
