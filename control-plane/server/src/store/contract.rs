//! The contract of every store.

use async_trait::async_trait;

use super::{
    error::StoreError,
    lead::{Candidate, LeaderRecord, Leadership},
    transaction::{Entry, Listing, Transaction},
    watch::{Changes, WatchEnd},
};

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
    /// a [`Mirror`](super::Mirror) for correctness: the mirror handles the end of a watch.
    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd>;
    /// Waits until no other candidate leads, then leads. Keeps trying while the store is out of reach or full. Drop the
    /// future to stop being a candidate.
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError>;
    /// The leader as the store knows it. It may have lost the leadership since.
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError>;
    /// Checks that the store takes writes, and returns its health.
    async fn health(&self) -> Result<Health, StoreError>;
}
