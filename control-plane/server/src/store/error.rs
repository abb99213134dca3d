//! The errors of the store. Each says what is wrong; the sentences about what to do are in `texts`.

use super::limits::{OPERATIONS_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};

/// The outcome of a commit that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was written: the call only read, or the request was never sent.
    NothingWritten,
    /// The commit may have been written, or may still be. Read again before deciding anything from it.
    Unknown,
}

/// Errors of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another writer changed an expected key. Nothing was written.
    #[error("another control plane wrote {key} first (found {}, expected {})", value_at(*found), value_at(*expected))]
    Conflict {
        key: String,
        /// Its revision; `None` if it does not exist.
        found: Option<u64>,
        /// The revision that was expected.
        expected: Option<u64>,
    },
    /// A value is over [`VALUE_BYTES_MAX`]. Nothing was written.
    #[error("the value of {key} is {bytes} bytes, the limit is {VALUE_BYTES_MAX}")]
    TooLarge {
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// A transaction is over [`OPERATIONS_MAX`] or [`TRANSACTION_BYTES_MAX`]. Nothing was written.
    #[error(
        "the transaction has {operations} operations and {bytes} bytes, \
         the limits are {OPERATIONS_MAX} and {TRANSACTION_BYTES_MAX}"
    )]
    TransactionTooLarge {
        /// Number of keys that it expects or writes, whichever is more.
        operations: usize,
        /// Its keys and values together.
        bytes: usize,
    },
    /// No quorum, no connection, or no answer in time.
    #[error(
        "the store cannot be reached: {reason}{}",
        if *outcome == Outcome::Unknown { "; whether it was written is unknown" } else { "" }
    )]
    Unavailable {
        /// The attempts and their errors.
        reason: String,
        /// Whether the commit may have been written.
        outcome: Outcome,
    },
    /// The store is full and takes no writes; it can still be read. Nothing was written.
    #[error("the store is full: {0}")]
    NoSpace(String),
    /// The store answers, and holds what this version of Meridian cannot read. Nothing was written.
    #[error("{key}: cannot read the document: {problem}; start the version that wrote it, or a later one")]
    Unreadable { key: String, problem: String },
    /// The store itself failed, or cannot do what the call asked. Whether a commit happened is unknown.
    #[error("the store failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// The same error for a later call that was not sent because of it.
    pub(crate) fn with_nothing_written(self) -> Self {
        match self {
            Self::Unavailable { reason, .. } => Self::unreachable(reason),
            other => other,
        }
    }

    /// An error of a read, or of a write that was never sent.
    pub(super) fn unreachable(reason: impl Into<String>) -> Self {
        let (reason, outcome) = (reason.into(), Outcome::NothingWritten);
        Self::Unavailable { reason, outcome }
    }
}

fn value_at(revision: Option<u64>) -> String {
    revision.map_or_else(|| "no value".to_owned(), |revision| format!("revision {revision}"))
}
