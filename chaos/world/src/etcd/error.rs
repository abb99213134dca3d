//! The errors of a cluster.

use std::{path::PathBuf, process::ExitStatus, time::Duration};

/// Errors of starting or changing a cluster.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A program is not installed.
    #[error("cannot find the program \"{program}\"; install {package}")]
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
    #[error("cannot {action}")]
    System {
        /// The action that failed, as in "start etcd".
        action: String,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// A member ended before it was healthy.
    #[error("{name} ended before it was healthy ({status}); log {}:\n{last_words}", log.display())]
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
    #[error("{name} was not healthy after {:.0} s; log {}:\n{last_words}", waited.as_secs_f64(), log.display())]
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
    #[error("{0} is not running; restart it first")]
    NotRunning(String),
    /// The member already runs.
    #[error("{0} was started already; kill it first")]
    Running(String),
    /// The member runs, but etcd takes no writes until more members run.
    #[error(
        "{name} runs and takes no writes yet: {} of the {members} members must run (now {running}); restart another one",
        majority(*members)
    )]
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
