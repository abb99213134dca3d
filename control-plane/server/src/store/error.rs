//! The errors of the store, with what to do about each. The sentences are in [`crate::texts::store`].

use super::limits::{OPERATIONS_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use crate::texts::store as texts;

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
    #[error("{}", texts::conflict(key, *found, *expected))]
    Conflict {
        key: String,
        /// Its revision; `None` if it does not exist.
        found: Option<u64>,
        /// The revision that was expected.
        expected: Option<u64>,
    },
    /// A value is over [`VALUE_BYTES_MAX`]. Nothing was written.
    #[error("{}", texts::value_too_large(key, *bytes, VALUE_BYTES_MAX))]
    TooLarge {
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// A transaction is over [`OPERATIONS_MAX`] or [`TRANSACTION_BYTES_MAX`]. Nothing was written.
    #[error("{}", texts::transaction_too_large(*operations, *bytes, (OPERATIONS_MAX, TRANSACTION_BYTES_MAX)))]
    TransactionTooLarge {
        /// Number of keys that it expects or writes, whichever is more.
        operations: usize,
        /// Its keys and values together.
        bytes: usize,
    },
    /// No quorum, no connection, or no answer in time.
    #[error("{}", texts::unreachable(reason, *outcome == Outcome::Unknown))]
    Unavailable {
        /// The attempts and their errors.
        reason: String,
        /// Whether the commit may have been written.
        outcome: Outcome,
    },
    /// The store is full and takes no writes; it can still be read. Nothing was written.
    #[error("{}", texts::full(.0))]
    NoSpace(String),
    /// The store answers, and holds what this version of Meridian cannot read. Nothing was written.
    #[error("{}", texts::unreadable(key, problem))]
    Unreadable { key: String, problem: String },
    /// The store itself failed, or cannot do what the call asked. Whether a commit happened is unknown.
    #[error("{}", texts::failed(.0))]
    Failed(String),
}

impl StoreError {
    /// The advice to operators.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::NoSpace(_) => texts::make_room(),
            Self::Unavailable { .. } | Self::Conflict { .. } => texts::check_members(),
            Self::TooLarge { .. } | Self::TransactionTooLarge { .. } => texts::shorten_document(),
            Self::Unreadable { .. } => texts::other_version(),
            Self::Failed(_) => texts::look_at_store(),
        }
    }

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
