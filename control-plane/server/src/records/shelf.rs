//! Documents that are no longer in force. The audit log's entries name them, and a replay needs them, so each stays as
//! long as an entry that names it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Documents deleted in one commit, so that a commit that also removes a segment of the audit log writes at most as many
/// keys as a store takes at once.
const DELETED_AT_ONCE: usize = 8;
/// Documents on the shelf before the oldest audit entries go for them. The shelf is written whole with each change.
pub(super) const SHELVED_MAX: usize = 1_000;

/// The documents that were in force, by the time at which they were replaced. Documents that an earlier version of
/// Meridian replaced are not on it, and stay in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shelf {
    documents: VecDeque<Shelved>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shelved {
    version: String,
    /// Number of the last audit entry that names it.
    last: u64,
    /// Bytes of its text.
    bytes: u64,
}

impl Shelf {
    /// Shelves a document that another one replaces. `last` is the number of the newest audit entry before that.
    pub(super) fn put(&mut self, version: &str, last: u64, bytes: usize) {
        self.take(version);
        self.documents.push_back(Shelved {
            version: version.to_owned(),
            last,
            bytes: bytes as u64,
        });
    }

    /// Takes a document from the shelf, because it is in force again.
    pub(super) fn take(&mut self, version: &str) {
        self.documents.retain(|shelved| shelved.version != version);
    }

    /// Removes some of the documents that no entry names any more, given the oldest entry in the log. Returns their
    /// versions.
    pub(super) fn prune(&mut self, oldest: u64) -> Vec<String> {
        let unnamed = self.documents.iter().take_while(|shelved| shelved.last < oldest);
        let count = unnamed.count().min(DELETED_AT_ONCE);
        self.documents.drain(..count).map(|shelved| shelved.version).collect()
    }

    /// Bytes of all texts on the shelf.
    pub(super) fn bytes(&self) -> u64 {
        self.documents.iter().map(|shelved| shelved.bytes).sum()
    }

    /// Whether so many documents are on the shelf that the audit entries which name the oldest have to go.
    pub(super) fn is_full(&self) -> bool {
        self.documents.len() >= SHELVED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_stays_as_long_as_an_entry_names_it() {
        let mut shelf = Shelf::default();
        shelf.put("first", 10, 100);
        shelf.put("second", 20, 50);
        assert_eq!(shelf.bytes(), 150);
        assert!(shelf.prune(10).is_empty(), "entry 10 names the first");
        assert_eq!(shelf.prune(11), ["first"]);
        shelf.take("second");
        assert!(shelf.prune(1_000).is_empty(), "the second is in force again");
        shelf.put("second", 1_500, 50);
        shelf.put("second", 1_600, 50);
        assert!(shelf.prune(1_501).is_empty(), "it was replaced again later");
        assert_eq!(shelf.prune(1_601), ["second"]);
    }

    #[test]
    fn one_commit_removes_only_some() {
        let mut shelf = Shelf::default();
        for number in 0..20 {
            shelf.put(&format!("{number}"), number, 1);
        }
        assert_eq!(shelf.prune(100).len(), DELETED_AT_ONCE);
        assert_eq!(shelf.prune(100).len(), DELETED_AT_ONCE);
        assert_eq!(shelf.prune(100).len(), 4);
    }
}
