//! The store of intents, plans and audit entries, and the election of its writer. One trait, so that the embedded file
//! and an etcd cluster behave alike; one contract suite defines "alike" (tests/store_contract.rs).

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
pub use lead::{Candidate, LeaderRecord, Leadership};
pub use mirror::Mirror;
pub use watch::{Batch, Change, Changes, WatchEnd};

/// Longest value, in bytes: etcd's default limit on a request, less room for keys.
pub const VALUE_BYTES_MAX: usize = 1_400_000;
/// Longest transaction, keys and values together: the same limit, less the size of etcd's own fields.
pub const TRANSACTION_BYTES_MAX: usize = 1_500_000;
/// Most keys that a transaction may expect, and most that it may write: etcd's default limit.
pub const OPERATIONS_MAX: usize = 128;

/// A value, and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub value: Vec<u8>,
    /// Revision of the commit that wrote it; revisions grow with every commit of the store.
    pub revision: u64,
}

/// Everything below a prefix at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision at the time of reading. Every later change has a greater one.
    pub revision: u64,
    /// The entries, by key.
    pub entries: BTreeMap<String, Entry>,
}

/// Writes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Keys that must still have this revision; `None` means that the key must not exist.
    pub expect: Vec<(String, Option<u64>)>,
    /// Keys and values to write.
    pub put: Vec<(String, Vec<u8>)>,
    /// Keys to remove.
    pub delete: Vec<String>,
}

impl Transaction {
    /// Refuses a transaction that some store could not take, so that all stores refuse the same.
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
    fn unreachable(reason: impl Into<String>) -> Self {
        let (reason, outcome) = (reason.into(), Outcome::NothingWritten);
        Self::Unavailable { reason, outcome }
    }
}

fn value_at(revision: Option<u64>) -> String {
    revision.map_or_else(|| "no value".to_owned(), |revision| format!("revision {revision}"))
}

/// The health of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Revision of the newest commit.
    pub revision: u64,
    /// Size of the store on disk, in bytes.
    pub bytes: u64,
    /// Members that do not answer although a quorum does.
    pub unreachable: Vec<String>,
}

/// A store of documents under keys.
#[async_trait]
pub trait Store: Send + Sync {
    /// Reads the value of a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// Reads every entry whose key begins with `prefix`, all at one revision, which is not older than any commit
    /// acknowledged before the call.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;
    /// Writes all or nothing. Durable when it returns. Returns the revision of the commit.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;
    /// Reports every change below `prefix` after a revision, each exactly once and in order. Use a watch for speed and
    /// a [`Mirror`] for correctness: the mirror handles the end of a watch.
    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd>;
    /// Waits until no other candidate leads, then leads. Keeps trying while the store is out of reach or full. Drop the
    /// future to stop being a candidate.
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError>;
    /// The leader as the store knows it. It may have lost the leadership since.
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError>;
    /// Checks that the store takes writes, and returns its health.
    async fn health(&self) -> Result<Health, StoreError>;
}
