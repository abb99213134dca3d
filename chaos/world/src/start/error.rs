//! The errors of starting a world.

use std::{path::PathBuf, time::Duration};

use crate::{ProcessError, authority::AuthorityError, etcd::EtcdError, layout::NoAddresses, record::RecordError};

/// Errors of starting a world.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another world uses the state folder, or the folder is unusable.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The state folder cannot be prepared.
    #[error("cannot prepare {}", path.display())]
    Io {
        /// The folder's path.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The certificates of its processes cannot be made or used.
    #[error("the world has no certificates: {0}")]
    Authority(String),
    /// The speech models are missing.
    #[error("there are no speech models in {}; give their folder with --models-dir", models_dir.display())]
    NoModels {
        /// The folder that was looked at.
        models_dir: PathBuf,
    },
    /// etcd's programs are not installed.
    #[error(
        "--store etcd needs {program}, which is not installed: sudo apt-get install {package}, or leave out --store etcd"
    )]
    NotInstalled {
        /// The program that is missing.
        program: &'static str,
        /// The Debian package that contains it.
        package: &'static str,
    },
    /// etcd did not start.
    #[error(transparent)]
    Etcd(EtcdError),
    /// No loopback addresses are free.
    #[error(transparent)]
    Addresses(#[from] NoAddresses),
    /// A process did not start.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// All processes run, but the control plane does not report every region healthy and every node up to date.
    #[error("the world was not healthy after {:.0} s: {missing}; the logs are in {}", waited.as_secs_f64(), state_dir.display())]
    NotHealthy {
        /// Time since the wait began.
        waited: Duration,
        /// The condition that was not met.
        missing: String,
        /// Folder of the logs.
        state_dir: PathBuf,
    },
}

impl From<AuthorityError> for StartError {
    fn from(error: AuthorityError) -> Self {
        Self::Authority(error.to_string())
    }
}

impl From<EtcdError> for StartError {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::NoProgram { program, package } => Self::NotInstalled { program, package },
            error => Self::Etcd(error),
        }
    }
}
