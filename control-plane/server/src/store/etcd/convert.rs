//! Our transactions and entries as messages of etcd, and back.

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, ResponseHeader, Txn, TxnOp, TxnOpResponse};

use super::super::{
    error::StoreError,
    transaction::{Entry, Transaction},
};
use crate::texts::store as texts;

pub(super) fn txn(transaction: &Transaction) -> Txn {
    // The revision of a missing key is zero.
    let compare = |(key, expected): &(String, Option<u64>)| {
        Compare::mod_revision(key.as_str(), CompareOp::Equal, expected.unwrap_or(0).cast_signed())
    };
    let look = |(key, _): &(String, Option<u64>)| TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()));
    let puts = transaction
        .put
        .iter()
        .map(|(key, value)| TxnOp::put(key.as_str(), value.as_slice(), None));
    let deletes = transaction.delete.iter().map(|key| TxnOp::delete(key.as_str(), None));
    Txn::new()
        .when(transaction.expect.iter().map(compare).collect::<Vec<_>>())
        .and_then(puts.chain(deletes).collect::<Vec<_>>())
        .or_else(transaction.expect.iter().map(look).collect::<Vec<_>>())
}

/// The first expectation that failed, from the keys that the transaction read instead.
pub(super) fn conflict(transaction: Transaction, found: &[TxnOpResponse]) -> StoreError {
    let found = found.iter().map(|response| match response {
        TxnOpResponse::Get(response) => response.kvs().first().map(|found| as_u64(found.mod_revision())),
        _ => None,
    });
    let mut unmet = transaction.expect.into_iter().zip(found);
    match unmet.find(|((_, expected), found)| expected != found) {
        Some(((key, expected), found)) => StoreError::Conflict { key, found, expected },
        None => StoreError::Failed(texts::refused_for_nothing().to_owned()),
    }
}

pub(super) fn row(found: &KeyValue) -> Result<(String, Entry), StoreError> {
    let key = found
        .key_str()
        .map_err(|_| StoreError::Failed(texts::key_is_no_text().to_owned()))?;
    Ok((key.to_owned(), entry_of(found)))
}

pub(super) fn entry_of(found: &KeyValue) -> Entry {
    Entry {
        value: found.value().to_vec(),
        revision: as_u64(found.mod_revision()),
    }
}

/// The first key after all keys with `prefix`; the end of the key space for an empty prefix.
pub(super) fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

pub(super) fn as_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Converts etcd's signed numbers, which are never negative.
pub(super) fn as_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

pub(super) fn header_revision(header: Option<&ResponseHeader>) -> Result<u64, StoreError> {
    let revision = header.map(|header| as_u64(header.revision()));
    revision.ok_or_else(|| StoreError::Failed(texts::no_revision().to_owned()))
}
