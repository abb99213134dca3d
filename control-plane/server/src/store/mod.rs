//! Where intents, plans and audit entries live, and who may write them. One trait, so that the embedded file and a cluster
//! behave alike; one suite of contract tests says what "alike" means (tests/store_contract.rs).

mod backoff;
mod embedded;
pub mod etcd;
mod lead;
pub mod mirror;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

pub use embedded::Embedded;
pub use etcd::Etcd;
pub use lead::{Candidate, Lead, LeaderRecord};
pub use mirror::Mirror;
pub use watch::{Batch, Change, Changes, WatchEnd};

/// Longest value, in bytes: the limit etcd sets on a request by default, less room for keys.
pub const VALUE_BYTES_MAX: usize = 1_400_000;
/// Longest transaction, keys and values together: the same limit, less what etcd's own fields take.
pub const TRANSACTION_BYTES_MAX: usize = 1_500_000;
/// Most keys a transaction may expect, and most that it may write: etcd's limit by default.
pub const OPERATIONS_MAX: usize = 128;

/// A value and the revision of the store that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the commit that wrote it; revisions grow with every commit of the store.
    pub revision: u64,
}

/// Everything below a prefix at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision when it was read. Every later change has a greater one.
    pub revision: u64,
    /// What was there.
    pub entries: BTreeMap<String, Entry>,
}

/// Writes that happen all or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Keys that must still have been written by this revision; `None` means that the key must not exist.
    pub expect: Vec<(String, Option<u64>)>,
    /// Keys to write.
    pub put: Vec<(String, Vec<u8>)>,
    /// Keys to remove.
    pub delete: Vec<String>,
}

impl Transaction {
    /// Refuses what some store could not take, so that all refuse the same.
    fn check(&self) -> Result<(), StoreError> {
        if let Some((key, value)) = self.put.iter().find(|(_, value)| value.len() > VALUE_BYTES_MAX) {
            let (key, bytes) = (key.clone(), value.len());
            return Err(StoreError::TooLarge { key, bytes });
        }
        let operations = self.expect.len().max(self.put.len() + self.delete.len());
        let expected: usize = self.expect.iter().map(|(key, _)| key.len()).sum();
        let written: usize = self.put.iter().map(|(key, value)| key.len() + value.len()).sum();
        let deleted: usize = self.delete.iter().map(String::len).sum();
        let bytes = expected + written + deleted;
        if operations > OPERATIONS_MAX || bytes > TRANSACTION_BYTES_MAX {
            return Err(StoreError::TransactionTooLarge { operations, bytes });
        }
        let mut written = BTreeSet::new();
        let mut keys = self.put.iter().map(|(key, _)| key).chain(&self.delete);
        match keys.find(|key| !written.insert(*key)) {
            Some(key) => Err(StoreError::Failed(format!("{key} is written twice in one transaction"))),
            None => Ok(()),
        }
    }
}

/// What is known about a commit that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was written: it was only read, or the request never left.
    NothingWritten,
    /// It may have been written, or may still be: read again before deciding anything from it.
    Unknown,
}

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody wrote an expected key in the meantime. Nothing was written.
    #[error("{key} was changed by somebody else (revision {found:?}, expected {expected:?})")]
    Conflict {
        /// Which key.
        key: String,
        /// Its revision.
        found: Option<u64>,
        /// The revision that was expected.
        expected: Option<u64>,
    },
    /// A value is over [`VALUE_BYTES_MAX`]. Nothing was written.
    #[error("the value of {key} has {bytes} bytes, the limit is {VALUE_BYTES_MAX}")]
    TooLarge {
        /// Which key.
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
        /// How many keys it expects or writes, whichever are more.
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
        /// What was tried and what came of it.
        reason: String,
        /// What is known about the write.
        outcome: Outcome,
    },
    /// The store is full and takes no writes; it can still be read. Nothing was written.
    #[error("the store is full: {0}")]
    NoSpace(String),
    /// The store answers, and holds what this version of Meridian cannot read. Nothing was written.
    #[error("{key} holds no readable document: {problem}")]
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        problem: String,
    },
    /// The store itself failed, or cannot do what it was asked; whether a commit happened is unknown.
    #[error("the store failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// The same about something else that was not even sent because of it.
    pub(crate) fn with_nothing_written(self) -> Self {
        match self {
            Self::Unavailable { reason, .. } => Self::unreachable(reason),
            other => other,
        }
    }

    /// A read, or a write that never left, found nobody.
    fn unreachable(reason: impl Into<String>) -> Self {
        let (reason, outcome) = (reason.into(), Outcome::NothingWritten);
        Self::Unavailable { reason, outcome }
    }
}

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Revision of the newest commit.
    pub revision: u64,
    /// What the store takes on disk.
    pub bytes: u64,
    /// Members that do not answer, though enough others do.
    pub unreachable: Vec<String>,
}

/// A store of documents under keys.
#[async_trait]
pub trait Store: Send + Sync {
    /// The value of a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// Every entry whose key begins with `prefix`, all as of one revision, which is not older than any commit that was
    /// acknowledged before the call.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;
    /// Writes all or nothing; durable when it returns. Returns the revision of the commit.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;
    /// Every change below `prefix` after a revision, each exactly once and in order. A watch is for hearing early, not for
    /// relying on: follow with a [`Mirror`], which knows what to do when it ends.
    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd>;
    /// Waits until nobody else leads, then leads. Keeps trying while the store is unavailable or full; drop the future to
    /// stop being a candidate.
    async fn campaign(&self, candidate: &Candidate) -> Result<Lead, StoreError>;
    /// Who leads, as far as the store knows; it may have lost its lead already.
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError>;
    /// Whether the store can take writes, and how it is.
    async fn health(&self) -> Result<Health, StoreError>;
}
