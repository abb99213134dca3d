//! The errors of a cluster.

use std::{path::PathBuf, process::ExitStatus, time::Duration};

use crate::texts;

/// Errors of starting or changing a cluster.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A program is not installed.
    #[error("{}", texts::no_etcd_program(program, package))]
    NoProgram {
        /// The program's name.
        program: &'static str,
        /// The Debian package that contains it.
        package: &'static str,
    },
    /// A certificate cannot be made.
    #[error(transparent)]
    Authority(#[from] crate::authority::AuthorityError),
    /// A system call failed.
    #[error("{}", texts::cannot_in_etcd(action))]
    System {
        /// The action that failed, as in "start etcd".
        action: String,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// A member ended before it was healthy.
    #[error("{}", texts::ended_before_ready(name, status, log, last_words))]
    Died {
        /// The member's name.
        name: String,
        /// Its exit code or signal.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The end of the log.
        last_words: String,
    },
    /// A member missed its deadline for becoming healthy.
    #[error("{}", texts::not_ready(name, *waited, "it does not say that it is healthy", log, last_words))]
    NotHealthy {
        /// The member's name.
        name: String,
        /// Time since the wait began.
        waited: Duration,
        /// Its log file.
        log: PathBuf,
        /// The end of the log.
        last_words: String,
    },
    /// The member does not run.
    #[error("{}", texts::process_not_running(.0))]
    NotRunning(String),
    /// The member already runs.
    #[error("{}", texts::member_runs(.0))]
    Running(String),
    /// The member runs, but etcd takes no writes until more members run.
    #[error("{}", texts::no_quorum(name, majority(*members), *members, *running))]
    NoQuorum {
        /// The member's name.
        name: String,
        /// Number of members that run, this one included.
        running: usize,
        /// Number of all members.
        members: usize,
    },
}

pub(super) fn failed(action: impl Into<String>, source: impl Into<std::io::Error>) -> EtcdError {
    EtcdError::System {
        action: action.into(),
        source: source.into(),
    }
}

/// The number of members that make a majority.
pub(super) fn majority(members: usize) -> usize {
    members / 2 + 1
}
