//! The entries of a store, and the transactions that write them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    error::StoreError,
    limits::{OPERATIONS_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX},
};
use crate::texts::store as texts;

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
    pub(super) fn check(&self) -> Result<(), StoreError> {
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
            Some(key) => Err(StoreError::Failed(texts::written_twice(key))),
            None => Ok(()),
        }
    }
}
