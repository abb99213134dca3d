//! The documents in the store, and their keys. Everything in force lies under [`STATE`], small enough to be mirrored
//! whole; the audit log and old documents lie beside it.

mod access;
mod joins;
mod shelf;
mod transaction;

use std::collections::{BTreeMap, VecDeque};

use futures_util::future::join_all;
use planning::{
    Memory,
    audit::{self, AnyEntry},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use topology::{Moment, Plan, Policy, Problem, Problems, Topology};

pub use access::{ACCESS, Waiting, access_key, access_transaction, waiting_access};
pub use joins::{
    JOINS, JOINS_MAX, JoinToken, KeptToken, Used, join_key, join_statement, join_token, keep_join_token, use_join_token,
};
pub use shelf::Shelf;
pub use transaction::{Actor, After, Decision, Documents, Known, reasons_to_record, transaction};

use crate::store::{Entry, Listing, Store, StoreError};

/// Prefix of everything in force.
pub const STATE: &str = "/meridian/v1/state/";
/// The plan in force.
pub const PLAN: &str = "/meridian/v1/state/plan";
/// The memory of decisions: actions, penalties, lost edges.
pub const MEMORY: &str = "/meridian/v1/state/memory";
/// The topology document in force.
pub const TOPOLOGY: &str = "/meridian/v1/state/topology";
/// The policy document in force.
pub const POLICY: &str = "/meridian/v1/state/policy";
/// Number and hash of the newest audit entry.
pub const AUDIT_HEAD: &str = "/meridian/v1/audit-head";
/// Prefix of audit entries. Numbers are padded with zeros, so that keys sort by time.
pub const AUDIT: &str = "/meridian/v1/audit/";
/// The list of documents that were in force and that audit entries still name.
pub const SHELF: &str = "/meridian/v1/shelf";
/// Prefix of every document that is in force or on the shelf, by its version.
pub const DOCUMENTS: &str = "/meridian/v1/documents/";
/// Audit entries read in one request: at a distant store many take as long as one.
const READ_AT_ONCE: u64 = 20;

/// The kinds of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DocumentKind {
    /// Regions, edges and name servers.
    Topology,
    /// The numbers that decisions use.
    Policy,
}

impl DocumentKind {
    /// "topology" or "policy".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topology => "topology",
            Self::Policy => "policy",
        }
    }

    /// Key of the document in force.
    pub fn key(self) -> &'static str {
        match self {
            Self::Topology => TOPOLOGY,
            Self::Policy => POLICY,
        }
    }
}

/// A document as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    pub kind: DocumentKind,
    /// The TOML text.
    pub text: String,
    /// SHA-256 of the text, in hex.
    pub version: String,
    /// The operator who applied it.
    pub author: String,
    /// The author's reason; empty for the files that a store began with.
    #[serde(default)]
    pub reason: String,
    pub applied_at: Moment,
}

impl Document {
    /// A document applied now.
    pub fn new(kind: DocumentKind, text: String, author: &str, applied_at: Moment) -> Self {
        Self {
            kind,
            version: audit::hash(text.as_bytes()),
            text,
            author: author.to_owned(),
            reason: String::new(),
            applied_at,
        }
    }

    /// Adds the author's reason.
    #[must_use]
    pub fn because(self, reason: String) -> Self {
        Self { reason, ..self }
    }
}

/// The head of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHead {
    /// Number of the newest entry.
    pub number: u64,
    /// Hash of the newest entry.
    pub hash: String,
    /// The segments in the log, oldest first; empty in logs from before segments were recorded.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub segments: VecDeque<Segment>,
}

/// Consecutive entries of the audit log, which are pruned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Number of the first entry.
    pub first: u64,
    /// Bytes of all its entries.
    pub bytes: u64,
}

/// Entries of a segment. One commit removes one segment at most, and writes at most 128 keys with it.
pub const SEGMENT: u64 = 100;
/// Most bytes of all entries and of the documents on the shelf: an eighth of etcd's default quota, because etcd keeps old values until it compacts.
pub const AUDIT_BYTES_MAX: u64 = 256 << 20;
/// Assumed size of an entry from before sizes were recorded.
const ENTRY_BYTES_ASSUMED: u64 = 8 << 10;

impl AuditHead {
    /// Number of the oldest entry in the log; 1 before the first.
    pub fn oldest(&self) -> u64 {
        let known = self.segments.front().map(|segment| segment.first);
        known.unwrap_or_else(|| self.number.saturating_sub(audit::KEPT - 1).max(1))
    }

    /// Makes room for an entry of about `bytes` beside the documents that the entries name. Returns the numbers of the
    /// entries to delete. Each commit removes one segment at most, until there is room.
    pub fn make_room(&mut self, bytes: usize, shelf: &Shelf) -> std::ops::Range<u64> {
        if self.segments.is_empty() && self.number > 0 {
            let firsts = (self.oldest()..=self.number).step_by(SEGMENT as usize);
            self.segments = firsts
                .map(|first| Segment {
                    first,
                    bytes: SEGMENT.min(self.number - first + 1) * ENTRY_BYTES_ASSUMED,
                })
                .collect();
        }
        let kept = self.number + 1 - self.oldest();
        let all: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let is_full =
            kept >= audit::KEPT + SEGMENT || all + shelf.bytes() + bytes as u64 > AUDIT_BYTES_MAX || shelf.is_full();
        // The newest segment stays even if it is large, because operators look at it.
        let removed = if is_full && self.segments.len() > 1 {
            self.segments.pop_front()
        } else {
            None
        };
        removed.map_or(0..0, |removed| removed.first..self.oldest())
    }

    /// The head after one more entry, given its bytes.
    pub fn with(mut self, entry: &[u8]) -> Self {
        self.number += 1;
        self.hash = audit::hash(entry);
        let bytes = entry.len() as u64;
        match self.segments.back_mut() {
            Some(newest) if self.number < newest.first + SEGMENT => newest.bytes += bytes,
            _ => self.segments.push_back(Segment {
                first: self.number,
                bytes,
            }),
        }
        self
    }
}

impl Default for AuditHead {
    fn default() -> Self {
        Self {
            number: 0,
            hash: audit::FIRST.to_owned(),
            segments: VecDeque::new(),
        }
    }
}

/// Everything in force.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The plan and the revision that wrote it; `None` before the first.
    pub plan: Option<(Plan, u64)>,
    /// The decisions' memory and the revision that wrote it; `None` before the first.
    pub memory: (Memory, Option<u64>),
    /// The topology document and its parsed form.
    pub topology: (Document, Topology),
    /// The policy document and its parsed form.
    pub policy: (Document, Policy),
    /// Problems in the two documents that this version would refuse in a new one. It reads such values within its own
    /// limits.
    pub outdated: Vec<(DocumentKind, Problem)>,
}

/// Revisions of the records that change with decisions, as last read or written; `None` for those that do not exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revisions {
    pub plan: Option<u64>,
    pub memory: Option<u64>,
    pub audit: Option<u64>,
}

/// Errors of reading a document.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The value under a key is not the expected document.
    #[error("{}", crate::texts::store::unreadable(key, problem))]
    Unreadable { key: String, problem: String },
}

impl From<RecordError> for StoreError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Store(error) => error,
            RecordError::Unreadable { key, problem } => Self::Unreadable { key, problem },
        }
    }
}

/// The state with which a leader begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Everything in force; `None` in a new store.
    pub state: Option<State>,
    /// The audit head and the revision that wrote it.
    pub audit: (AuditHead, Option<u64>),
    /// The documents that were in force.
    pub shelf: Shelf,
}

/// Reads the state with which a leader begins.
pub async fn read(store: &dyn Store) -> Result<Stored, RecordError> {
    let listing = store.list(STATE).await?;
    let audit = audit_head(store).await?;
    let shelf = match store.get(SHELF).await? {
        Some(entry) => decode(SHELF, &entry)?,
        None => Shelf::default(),
    };
    let state = state(&listing)?;
    Ok(Stored { state, audit, shelf })
}

impl RecordError {
    fn unreadable(key: &str, problem: &impl ToString) -> Self {
        Self::Unreadable {
            key: key.to_owned(),
            problem: problem.to_string(),
        }
    }
}

fn decode<T: DeserializeOwned>(key: &str, entry: &Entry) -> Result<T, RecordError> {
    serde_json::from_slice(&entry.value).map_err(|error| RecordError::unreadable(key, &error))
}

/// A document as JSON bytes.
pub fn encode<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).expect("documents hold only maps with text keys, which JSON can write")
}

/// The key of an audit entry.
pub fn audit_key(number: u64) -> String {
    format!("{AUDIT}{number:020}")
}

/// The key of a document that was in force.
pub fn document_key(version: &str) -> String {
    format!("{DOCUMENTS}{version}")
}

/// Everything in force, from a listing of [`STATE`]; `None` in a new store.
pub fn state(listing: &Listing) -> Result<Option<State>, RecordError> {
    fn read<T: DeserializeOwned>(
        entries: &BTreeMap<String, Entry>,
        key: &str,
    ) -> Result<Option<(T, u64)>, RecordError> {
        let Some(entry) = entries.get(key) else {
            return Ok(None);
        };
        Ok(Some((decode(key, entry)?, entry.revision)))
    }
    fn parsed<T>(
        document: Document,
        outdated: &mut Vec<(DocumentKind, Problem)>,
        parse: impl FnOnce(&str, &str) -> Result<(T, Vec<Problem>), Problems>,
    ) -> Result<(Document, T), RecordError> {
        let kind = document.kind;
        let (value, told) =
            parse(kind.as_str(), &document.text).map_err(|it| RecordError::unreadable(kind.key(), &it))?;
        outdated.extend(told.into_iter().map(|problem| (kind, problem)));
        Ok((document, value))
    }
    let entries = &listing.entries;
    let (Some((topology, _)), Some((policy, _))) = (read(entries, TOPOLOGY)?, read(entries, POLICY)?) else {
        return Ok(None);
    };
    let mut outdated = Vec::new();
    Ok(Some(State {
        plan: read(entries, PLAN)?,
        memory: read(entries, MEMORY)?.map_or_else(Default::default, |(memory, revision)| (memory, Some(revision))),
        topology: parsed(topology, &mut outdated, Topology::parse_stored)?,
        policy: parsed(policy, &mut outdated, Policy::parse_stored)?,
        outdated,
    }))
}

/// The audit head and the revision that wrote it; the default and `None` before the first entry.
pub async fn audit_head(store: &dyn Store) -> Result<(AuditHead, Option<u64>), RecordError> {
    match store.get(AUDIT_HEAD).await? {
        Some(entry) => Ok((decode(AUDIT_HEAD, &entry)?, Some(entry.revision))),
        None => Ok((AuditHead::default(), None)),
    }
}

/// The newest audit entries for which `wanted` holds, newest first: at most `limit`, among the newest `scanned`.
pub async fn newest_audit(
    store: &dyn Store,
    limit: usize,
    scanned: u64,
    wanted: impl Fn(&AnyEntry) -> bool,
) -> Result<Vec<AnyEntry>, RecordError> {
    let (AuditHead { number: newest, .. }, _) = audit_head(store).await?;
    let oldest = newest.saturating_sub(scanned);
    let mut found = Vec::new();
    let mut number = newest;
    while number > oldest && found.len() < limit {
        let batch = number.saturating_sub(READ_AT_ONCE).max(oldest) + 1..=number;
        let entries = join_all(batch.clone().rev().map(|number| audit_entry(store, number))).await;
        for (number, bytes) in batch.rev().zip(entries) {
            // Pruning removes oldest entries first, so none is left before a pruned one.
            let Some(bytes) = bytes? else { return Ok(found) };
            let entry =
                AnyEntry::read(&bytes).map_err(|problem| RecordError::unreadable(&audit_key(number), &problem))?;
            if found.len() < limit && wanted(&entry) {
                found.push(entry);
            }
        }
        number = number.saturating_sub(READ_AT_ONCE);
    }
    Ok(found)
}

/// The audit log's verdict on a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audited {
    /// The log has this plan under its number, or none.
    Possible,
    /// The log has another plan under its number.
    Contradicted,
    /// An entry cannot be read, so there is no verdict. The text names the entry and the error.
    Unreadable(String),
}

/// Looks for a plan's number among the newest audit entries, at most `scanned` of them.
pub async fn audited(store: &dyn Store, plan: &Plan, scanned: u64) -> Result<Audited, StoreError> {
    let number = plan.number();
    let its_plan = |entry: &AnyEntry| match entry {
        AnyEntry::Decision(entry) => entry.plan.clone(),
        AnyEntry::Access(_) => None,
    };
    let has_number = |entry: &AnyEntry| its_plan(entry).as_ref().map(Plan::number) == Some(number);
    match newest_audit(store, 1, scanned, has_number).await {
        Ok(entries) if entries.iter().all(|entry| its_plan(entry).as_ref() == Some(plan)) => Ok(Audited::Possible),
        Ok(_) => Ok(Audited::Contradicted),
        Err(error @ RecordError::Unreadable { .. }) => Ok(Audited::Unreadable(error.to_string())),
        Err(RecordError::Store(error)) => Err(error),
    }
}

/// The bytes of an audit entry; `None` if it was pruned or never written.
pub async fn audit_entry(store: &dyn Store, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(store.get(&audit_key(number)).await?.map(|entry| entry.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a log of `entries` entries of a size. Returns the numbers that remain, and the head.
    fn written(entries: u64, bytes: usize) -> (std::collections::BTreeSet<u64>, AuditHead) {
        let (mut left, mut head) = (std::collections::BTreeSet::new(), AuditHead::default());
        for number in 1..=entries {
            for gone in head.make_room(bytes, &Shelf::default()) {
                assert!(left.remove(&gone), "{gone} was there");
            }
            head = head.with(&vec![b'x'; bytes]);
            assert_eq!(head.number, number);
            left.insert(number);
        }
        (left, head)
    }

    /// An unreadable log must not stop the control plane from deciding.
    #[tokio::test]
    async fn a_log_that_cannot_be_read_neither_proves_a_plan_nor_fails() {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::store::Embedded::open(&folder.path().join("store")).unwrap();
        let plan = topology::fixtures::three_primaries().plan;
        assert_eq!(audited(&store, &plan, 10).await, Ok(Audited::Possible));
        let garbage = crate::store::Transaction {
            put: vec![
                (AUDIT_HEAD.to_owned(), encode(&AuditHead::default().with(b"garbage"))),
                (audit_key(1), b"garbage".to_vec()),
            ],
            ..Default::default()
        };
        store.commit(garbage).await.unwrap();
        let said = audited(&store, &plan, 10).await.unwrap();
        assert!(
            matches!(&said, Audited::Unreadable(why) if why.contains(&audit_key(1))),
            "{said:?}"
        );
    }

    #[test]
    fn the_oldest_entries_go_and_the_newest_stay() {
        let entries = audit::KEPT + 5 * SEGMENT;
        let (left, head) = written(entries, 10);
        let kept = left.len() as u64;
        assert!((audit::KEPT..=audit::KEPT + SEGMENT).contains(&kept), "{kept}");
        assert_eq!(left.first().copied(), Some(head.oldest()));
        assert_eq!(left, (head.oldest()..=entries).collect());
        assert!(encode(&head).len() < 16 << 10, "it is written with each entry");
    }

    #[test]
    fn entries_that_are_large_together_go_earlier() {
        let bytes = 1 << 20;
        let entries = AUDIT_BYTES_MAX / bytes + 3 * SEGMENT;
        let (left, head) = written(entries, bytes as usize);
        assert!(left.len() as u64 * bytes <= AUDIT_BYTES_MAX, "{}", left.len());
        assert!(left.len() as u64 > AUDIT_BYTES_MAX / bytes - 2 * SEGMENT);
        assert_eq!(left.first().copied(), Some(head.oldest()));
    }

    #[test]
    fn a_log_of_before_is_pruned_like_any_other() {
        let mut head = AuditHead {
            number: 40_000,
            ..AuditHead::default()
        };
        let oldest = head.oldest();
        assert_eq!(oldest, 40_001 - audit::KEPT);
        assert_eq!(head.make_room(10, &Shelf::default()), 0..0);
        for _ in 0..SEGMENT {
            head.make_room(10, &Shelf::default());
            head = head.with(b"entry");
        }
        assert_eq!(head.make_room(10, &Shelf::default()), oldest..oldest + SEGMENT);
    }
}
