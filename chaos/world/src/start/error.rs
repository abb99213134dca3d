//! The errors of starting a world.

use std::{path::PathBuf, time::Duration};

use crate::{
    ProcessError, authority::AuthorityError, etcd::EtcdError, layout::NoAddresses, record::RecordError, texts,
};

/// Errors of starting a world.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another world uses the state folder, or the folder is unusable.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The state folder cannot be prepared.
    #[error("{}", texts::cannot_prepare(path))]
    Io {
        /// The folder's path.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The certificates of its processes cannot be made or used.
    #[error("{}", texts::no_certificates(.0))]
    Authority(String),
    /// The speech models are missing.
    #[error("{}", texts::no_models(models_dir))]
    NoModels {
        /// The folder that was looked at.
        models_dir: PathBuf,
    },
    /// etcd's programs are not installed.
    #[error("{}", texts::etcd_not_installed(program, package))]
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
    #[error("{}", texts::world_not_healthy(*waited, missing, state_dir))]
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
