//! Where intents, plans and audit entries live. One trait, so that the embedded file and a cluster behave alike; one suite
//! of contract tests says what "alike" means (tests/store_contract.rs).

mod embedded;

use async_trait::async_trait;

pub use embedded::Embedded;

/// Longest value, in bytes: the limit etcd sets on a request by default, less room for keys.
pub const VALUE_BYTES_MAX: usize = 1_400_000;

/// A value and the revision of the store that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the commit that wrote it; revisions grow with every commit of the store.
    pub revision: u64,
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

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
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
    /// The store itself failed; whether a commit happened is unknown.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A store of documents under keys.
#[async_trait]
pub trait Store: Send + Sync {
    /// The value of a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// The newest `limit` entries whose keys begin with `prefix`, greatest key first.
    async fn newest(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Entry)>, StoreError>;
    /// Every entry whose key begins with `prefix`, in the order of keys.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError>;
    /// Writes all or nothing; durable when it returns. Returns the revision of the commit.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;
}
