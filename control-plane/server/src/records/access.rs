//! Records of access on their way into the audit log. Any control plane puts them into the store, and the leader, who alone writes the
//! log, takes them over: first come, first served.

use planning::audit::{Access, AccessEntry};
use topology::Moment;

use super::{AUDIT_HEAD, Known, RecordError, audit_key, encode, transaction::with_room};
use crate::store::{Store, Transaction};

/// Prefix of records that are not in the audit log yet.
pub const ACCESS: &str = "/meridian/v1/access/";

/// A record that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub key: String,
    /// Revision of its key.
    pub revision: u64,
    pub access: Access,
}

/// The key of a record. Keys sort by time; the number keeps those of one moment apart.
pub fn access_key(at: Moment, control_plane: &str, number: u32) -> String {
    format!("{ACCESS}{:020}-{control_plane}-{number:08x}", at.0)
}

/// The records that wait, oldest first. One that this version cannot read stays for the version that wrote it.
pub async fn waiting_access(store: &dyn Store) -> Result<Vec<Waiting>, RecordError> {
    let listing = store.list(ACCESS).await?;
    let read = listing.entries.into_iter().filter_map(|(key, entry)| {
        let access = serde_json::from_slice(&entry.value)
            .inspect_err(|error| tracing::debug!(key, %error, "a record of access cannot be read; it stays"))
            .ok()?;
        Some(Waiting {
            key,
            revision: entry.revision,
            access,
        })
    });
    Ok(read.collect())
}

/// The transaction that moves a record into the audit log, and the records of the leader after it, but for the revision of the commit.
pub fn access_transaction(known: &Known, waiting: &Waiting, now: Moment) -> (Transaction, Known) {
    let mut transaction = Transaction {
        expect: vec![
            (AUDIT_HEAD.to_owned(), known.revisions.audit),
            (waiting.key.clone(), Some(waiting.revision)),
        ],
        put: Vec::new(),
        delete: vec![waiting.key.clone()],
    };
    let mut after = known.clone();
    let bytes = serde_json::to_vec(&waiting.access).map_or(0, |bytes| bytes.len());
    let head = with_room(known, &mut after.shelf, bytes, &mut transaction);
    let entry = AccessEntry {
        number: known.audit.number + 1,
        previous: known.audit.hash.clone(),
        at: now,
        access: waiting.access.clone(),
        oldest: head.oldest(),
    };
    let bytes = entry.encode();
    after.audit = head.with(&bytes);
    transaction.put.extend([
        (AUDIT_HEAD.to_owned(), encode(&after.audit)),
        (audit_key(after.audit.number), bytes),
    ]);
    (transaction, after)
}
