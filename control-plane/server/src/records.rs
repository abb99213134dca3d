//! The documents in the store, and their keys. Everything that is in force lies under [`STATE`], small enough to be mirrored
//! whole; what is kept for the record lies beside it.

use std::collections::{BTreeMap, VecDeque};

use futures_util::future::join_all;
use planning::{Memory, audit};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use topology::{Moment, Plan, Policy, Problem, Problems, Topology};

use crate::store::{Entry, Listing, Store, StoreError};

/// Below it lies all that is in force.
pub const STATE: &str = "/meridian/v1/state/";
/// The plan in force.
pub const PLAN: &str = "/meridian/v1/state/plan";
/// Intents and what else decisions remember.
pub const MEMORY: &str = "/meridian/v1/state/memory";
/// The topology document in force.
pub const TOPOLOGY: &str = "/meridian/v1/state/topology";
/// The policy document in force.
pub const POLICY: &str = "/meridian/v1/state/policy";
/// Hash and number of the newest audit entry.
pub const AUDIT_HEAD: &str = "/meridian/v1/audit-head";
/// Audit entries, by number; numbers are padded, so that the order of keys is the order of time.
pub const AUDIT: &str = "/meridian/v1/audit/";
/// Every document that was ever in force, by its version.
pub const DOCUMENTS: &str = "/meridian/v1/documents/";
/// Audit entries asked for at once: a store far away answers many as soon as one.
const READ_AT_ONCE: u64 = 20;

/// Which of the two documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DocumentKind {
    /// What exists.
    Topology,
    /// The rules.
    Policy,
}

impl DocumentKind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topology => "topology",
            Self::Policy => "policy",
        }
    }

    /// Where the one in force lies.
    pub fn key(self) -> &'static str {
        match self {
            Self::Topology => TOPOLOGY,
            Self::Policy => POLICY,
        }
    }
}

/// A document people wrote, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Which.
    pub kind: DocumentKind,
    /// The TOML text.
    pub text: String,
    /// SHA-256 of the text, in hex.
    pub version: String,
    /// Who applied it.
    pub author: String,
    /// Why, in the author's words; empty for the files a store began with.
    #[serde(default)]
    pub reason: String,
    /// When.
    pub applied_at: Moment,
}

impl Document {
    /// A document that is applied now.
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

    /// The same for a reason.
    #[must_use]
    pub fn because(self, reason: String) -> Self {
        Self { reason, ..self }
    }
}

/// The newest audit entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHead {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: String,
    /// What is kept, oldest first; empty in a log of before this was recorded.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub segments: VecDeque<Segment>,
}

/// Some entries of the audit log that follow each other. They are pruned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Number of the first.
    pub first: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Entries of a segment. One commit removes one segment at most, and writes at most 128 keys with it.
pub const SEGMENT: u64 = 100;
/// Most bytes of all entries: an eighth of what etcd takes by default, which keeps old values until it compacts.
pub const AUDIT_BYTES_MAX: u64 = 256 << 20;
/// What an entry is taken for that was written before sizes were recorded.
const ENTRY_BYTES_ASSUMED: u64 = 8 << 10;

impl AuditHead {
    /// The oldest entry that is kept; 1 before the first.
    pub fn oldest(&self) -> u64 {
        let known = self.segments.front().map(|segment| segment.first);
        known.unwrap_or_else(|| self.number.saturating_sub(audit::KEPT - 1).max(1))
    }

    /// Makes room for an entry of about so many bytes; the numbers of the entries that go. Until there is room, each commit
    /// removes one segment.
    pub fn make_room(&mut self, bytes: usize) -> std::ops::Range<u64> {
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
        let is_full = kept >= audit::KEPT + SEGMENT || all + bytes as u64 > AUDIT_BYTES_MAX;
        // The newest segment stays whatever its size: it is what people look at.
        let removed = if is_full && self.segments.len() > 1 {
            self.segments.pop_front()
        } else {
            None
        };
        removed.map_or(0..0, |removed| removed.first..self.oldest())
    }

    /// The head with another entry, whose bytes these are.
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

/// Everything that is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The plan and the revision it was written by; none before the first.
    pub plan: Option<(Plan, u64)>,
    /// What earlier decisions left to remember, and the revision it was written by; none before anything was.
    pub memory: (Memory, Option<u64>),
    /// The topology document and what it says.
    pub topology: (Document, Topology),
    /// The policy document and what it says.
    pub policy: (Document, Policy),
    /// What this version would not take of the two documents, and reads within its own limits.
    pub outdated: Vec<(DocumentKind, Problem)>,
}

/// A document that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not what its key says.
    #[error("{key} holds no readable document: {problem}")]
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        problem: String,
    },
}

impl From<RecordError> for StoreError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Store(error) => error,
            RecordError::Unreadable { key, problem } => Self::Unreadable { key, problem },
        }
    }
}

/// Everything a leader begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// What is in force; none before anything is.
    pub state: Option<State>,
    /// The newest audit entry, and the revision its number and hash were written by.
    pub audit: (AuditHead, Option<u64>),
}

/// Reads everything a leader begins with.
pub async fn read(store: &dyn Store) -> Result<Stored, RecordError> {
    let listing = store.list(STATE).await?;
    let audit = audit_head(store).await?;
    let state = state(&listing)?;
    Ok(Stored { state, audit })
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

/// A document as bytes.
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

/// What is in force according to a listing of [`STATE`]; none before anything was.
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
        parse: impl Fn(&str, &str) -> Result<(T, Vec<Problem>), Problems>,
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

/// The newest audit entry's number and hash, and the revision they were written by; none before the first entry.
pub async fn audit_head(store: &dyn Store) -> Result<(AuditHead, Option<u64>), RecordError> {
    match store.get(AUDIT_HEAD).await? {
        Some(entry) => Ok((decode(AUDIT_HEAD, &entry)?, Some(entry.revision))),
        None => Ok((AuditHead::default(), None)),
    }
}

/// The newest audit entries for which `wanted` holds, newest first: at most `limit` of the newest `scanned`.
pub async fn newest_audit(
    store: &dyn Store,
    limit: usize,
    scanned: u64,
    wanted: impl Fn(&audit::Entry) -> bool,
) -> Result<Vec<audit::Entry>, RecordError> {
    let (AuditHead { number: newest, .. }, _) = audit_head(store).await?;
    let oldest = newest.saturating_sub(scanned);
    let mut found = Vec::new();
    let mut number = newest;
    while number > oldest && found.len() < limit {
        let batch = number.saturating_sub(READ_AT_ONCE).max(oldest) + 1..=number;
        let entries = join_all(batch.clone().rev().map(|number| audit_entry(store, number))).await;
        for (number, bytes) in batch.rev().zip(entries) {
            // What lies before a pruned one was pruned, too.
            let Some(bytes) = bytes? else { return Ok(found) };
            let entry: audit::Entry = serde_json::from_slice(&bytes)
                .map_err(|problem| RecordError::unreadable(&audit_key(number), &problem))?;
            if found.len() < limit && wanted(&entry) {
                found.push(entry);
            }
        }
        number = number.saturating_sub(READ_AT_ONCE);
    }
    Ok(found)
}

/// The bytes of one audit entry; none when it was pruned or never written.
pub async fn audit_entry(store: &dyn Store, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(store.get(&audit_key(number)).await?.map(|entry| entry.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with so many entries of a size: the numbers that are left, and the head.
    fn written(entries: u64, bytes: usize) -> (std::collections::BTreeSet<u64>, AuditHead) {
        let (mut left, mut head) = (std::collections::BTreeSet::new(), AuditHead::default());
        for number in 1..=entries {
            for gone in head.make_room(bytes) {
                assert!(left.remove(&gone), "{gone} was there");
            }
            head = head.with(&vec![b'x'; bytes]);
            assert_eq!(head.number, number);
            left.insert(number);
        }
        (left, head)
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
        assert_eq!(head.make_room(10), 0..0);
        for _ in 0..SEGMENT {
            head.make_room(10);
            head = head.with(b"entry");
        }
        assert_eq!(head.make_room(10), oldest..oldest + SEGMENT);
    }
}
