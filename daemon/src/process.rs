//! The frame of a process: command line, configuration, logs, runtime, exit code.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser};
use serde::de::DeserializeOwned;

use crate::{Announcement, config, telemetry};

/// The command line of every server process.
#[derive(Debug, Clone, Parser)]
pub struct Options<A: Args> {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How logs are written to standard error.
    #[arg(long, value_enum, default_value_t = telemetry::Format::Pretty)]
    log_format: telemetry::Format,
    /// Once ready, write the bound addresses and the process id to this file (JSON).
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
    /// Stop when standard input ends: the supervisor holds its other end, so no process outlives it.
    #[arg(long)]
    supervised: bool,
    #[command(flatten)]
    own: A,
}

/// The options of a process that has none of its own.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct NoOptions {}

/// What a process knows about how it was started.
#[derive(Debug, Clone)]
pub struct Process {
    name: &'static str,
    announce: Option<PathBuf>,
    config_path: PathBuf,
}

impl Process {
    /// Tells whoever started the process that it is ready, and where it listens.
    pub fn announce(&self, addresses: &[(&str, SocketAddr)]) -> anyhow::Result<()> {
        let announcement = Announcement::new(self.name, addresses);
        tracing::info!(addresses = ?announcement.addresses, "ready");
        match &self.announce {
            Some(path) => announcement.write(path),
            None => Ok(()),
        }
    }

    /// The configuration file; paths inside it are relative to its folder.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }
}

/// Runs a server process: reads the command line and configuration `C`, starts logs and the runtime, runs `body`, and
/// turns its result into an exit code (0 fine, 1 failed, 2 bad command line).
pub fn main<C, F>(name: &'static str, body: impl FnOnce(Process, C) -> F) -> ExitCode
where
    C: DeserializeOwned,
    F: Future<Output = anyhow::Result<()>>,
{
    main_with(name, |process, _: NoOptions, config| body(process, config))
}

/// As [`main`], for a process with options `A` of its own.
pub fn main_with<A, C, F>(name: &'static str, body: impl FnOnce(Process, A, C) -> F) -> ExitCode
where
    A: Args,
    C: DeserializeOwned,
    F: Future<Output = anyhow::Result<()>>,
{
    let options = Options::<A>::parse();
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
        // Whatever still blocks a worker thread after the tasks were joined must not keep a dead process alive.
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
