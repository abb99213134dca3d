//! The frame of every server process: command line, configuration, logs, runtime and exit code.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};
use serde::de::DeserializeOwned;

use crate::{
    Announcement,
    config::{self, Rules},
    telemetry,
};

/// The command line of every server process.
#[derive(Debug, Clone, Parser)]
pub struct Options<A: Args> {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Format of the logs on standard error.
    #[arg(long, value_enum, default_value_t = telemetry::Format::Pretty)]
    log_format: telemetry::Format,
    /// Once ready, write the bound addresses and the process id to this file (JSON).
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
    /// Stop when standard input ends. The supervisor holds its other end, so that no process outlives the supervisor.
    #[arg(long)]
    supervised: bool,
    #[command(flatten)]
    own: A,
}

/// The type of options for a process without options of its own.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct NoOptions {}

/// The name and the command line of this process.
#[derive(Debug, Clone)]
pub struct Process {
    name: &'static str,
    announce: Option<PathBuf>,
    config_path: PathBuf,
}

impl Process {
    /// Reports that the process is ready: logs the bound addresses and, with `--announce`, writes the file.
    pub fn announce(&self, addresses: &[(&str, SocketAddr)]) -> anyhow::Result<()> {
        let announcement = Announcement::new(self.name, addresses);
        tracing::info!(addresses = ?announcement.addresses, "ready");
        match &self.announce {
            Some(path) => announcement.write(path),
            None => Ok(()),
        }
    }

    /// Path of the configuration file. Paths inside the file are relative to its folder.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }
}

/// Runs a server process: reads the command line and the configuration `C`, starts logs and the runtime, runs `body`,
/// and turns its result into an exit code (0 success, 1 failure, 2 bad command line). `about`: what the process does, for
/// `--help`.
pub fn main<C, F>(name: &'static str, about: &'static str, body: impl FnOnce(Process, C) -> F) -> ExitCode
where
    C: DeserializeOwned + Rules,
    F: Future<Output = anyhow::Result<()>>,
{
    main_with(name, about, |process, _: NoOptions, config| body(process, config))
}

/// As [`main`], for a process with options `A` of its own.
pub fn main_with<A, C, F>(name: &'static str, about: &'static str, body: impl FnOnce(Process, A, C) -> F) -> ExitCode
where
    A: Args,
    C: DeserializeOwned + Rules,
    F: Future<Output = anyhow::Result<()>>,
{
    let matches = Options::<A>::command().about(about).get_matches();
    let options = Options::<A>::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    telemetry::init(options.log_format);
    let result = config::load(&options.config).and_then(|config| {
        if options.supervised {
            crate::tasks::stop_when_stdin_ends();
        }
        let process = Process {
            name,
            announce: options.announce,
            config_path: options.config,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name(name)
            .build()?;
        let result = runtime.block_on(body(process, options.own, config));
        // A thread that still blocks after the tasks were joined must not keep a stopped process alive.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
