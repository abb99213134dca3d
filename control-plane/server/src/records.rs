//! The documents in the store, and their keys.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use topology::{Intent, Moment, Plan, Reason};

use crate::store::{Entry, Store, StoreError, Transaction};

/// The plan in force.
pub const PLAN: &str = "/meridian/v1/plan";
/// Intents, by id.
pub const INTENTS: &str = "/meridian/v1/intents/";
/// Audit entries, by number; numbers are padded, so that the order of keys is the order of time.
pub const AUDIT: &str = "/meridian/v1/audit/";
/// Fencing token of the newest control plane that opened the store.
pub const EPOCH: &str = "/meridian/v1/epoch";

/// One decision or refusal, with everything it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Grows by one.
    pub number: u64,
    /// When.
    pub at: Moment,
    /// Who: the planner, or an operator by name.
    pub actor: String,
    /// The plan that came of it; none for a refusal.
    pub plan: Option<Plan>,
    /// Why.
    pub reasons: Vec<Reason>,
    /// What it was decided from; the same input and `at` give the same plan again.
    pub input: planning::Input,
}

/// A document that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not what its key says.
    #[error("{key} holds no readable document: {source}")]
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

fn decode<T: DeserializeOwned>(key: &str, entry: &Entry) -> Result<T, RecordError> {
    serde_json::from_slice(&entry.value).map_err(|source| RecordError::Unreadable {
        key: key.to_owned(),
        source,
    })
}

/// A document as bytes.
pub fn encode<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).expect("documents hold only maps with text keys, which JSON can write")
}

/// The key of an audit entry.
pub fn audit_key(number: u64) -> String {
    format!("{AUDIT}{number:020}")
}

/// The key of an intent.
pub fn intent_key(id: &str) -> String {
    format!("{INTENTS}{id}")
}

/// The plan in force and its revision.
pub async fn read_plan(store: &dyn Store) -> Result<(Option<Plan>, Option<u64>), RecordError> {
    match store.get(PLAN).await? {
        Some(entry) => Ok((Some(decode(PLAN, &entry)?), Some(entry.revision))),
        None => Ok((None, None)),
    }
}

/// All intents.
pub async fn read_intents(store: &dyn Store) -> Result<Vec<Intent>, RecordError> {
    store
        .list(INTENTS)
        .await?
        .entries
        .iter()
        .map(|(key, entry)| decode(key, entry))
        .collect()
}

/// The newest audit entries, newest first.
pub async fn read_audit(store: &dyn Store, limit: usize) -> Result<Vec<AuditEntry>, RecordError> {
    store
        .newest(AUDIT, limit)
        .await?
        .iter()
        .map(|(key, entry)| decode(key, entry))
        .collect()
}

/// Number of the newest audit entry, from its key: what an entry says may have been written by another version.
pub async fn newest_audit_number(store: &dyn Store) -> Result<u64, RecordError> {
    let newest = store.newest(AUDIT, 1).await?;
    Ok(newest
        .first()
        .and_then(|(key, _)| key.strip_prefix(AUDIT)?.parse().ok())
        .unwrap_or(0))
}

/// Takes the next fencing token, and returns it with the revision every later commit must expect [`EPOCH`] to have: from
/// now on, whoever holds an earlier token cannot write.
pub async fn next_epoch(store: &dyn Store) -> Result<(u64, u64), RecordError> {
    let entry = store.get(EPOCH).await?;
    let (last, revision): (u64, _) = match &entry {
        Some(entry) => (decode(EPOCH, entry)?, Some(entry.revision)),
        None => (0, None),
    };
    let put = vec![(EPOCH.to_owned(), encode(&(last + 1)))];
    let transaction = Transaction {
        expect: vec![(EPOCH.to_owned(), revision)],
        put,
        delete: vec![],
    };
    Ok((last + 1, store.commit(transaction).await?))
}
