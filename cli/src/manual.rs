//! Completions for shells and man pages, made from the commands themselves, so that neither can lag behind them.

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::{exit::Failure, options::Options};

pub(crate) fn print_completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Options::command(), "meridian", &mut script);
    // The reader of a pipe may have left (`| head`): that is no failure of this command.
    let _ = std::io::stdout().write_all(&script);
    Ok(ExitCode::SUCCESS)
}

/// Writes `meridian.1` and a page for each command, `meridian-COMMAND.1`, into the folder.
pub(crate) fn write_pages(dir: &Path) -> Result<ExitCode, Failure> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Options::command(), dir))
        .with_context(|| format!("cannot write the man pages into {}", dir.display()))
        .map_err(Failure::failed)?;
    crate::output::print(&format!(
        "the man pages are in {0}; read one: man {0}/meridian.1",
        dir.display()
    ));
    Ok(ExitCode::SUCCESS)
}
