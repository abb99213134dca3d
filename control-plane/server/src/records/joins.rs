//! The tokens with which new processes join, as the store keeps them: under the hash of the secret, until they end. Every control plane
//! makes and takes them, so no leadership fences their commits: a token is used by one process because one commit names its key.
//!
//! The store itself proves nothing: the control plane that makes a token signs the record, and the one that takes it verifies that.

use identity::signature::Signature;
use planning::audit::Access;
use serde::{Deserialize, Serialize};
use topology::Moment;

use super::{RecordError, decode, encode};
use crate::store::{Store, StoreError, Transaction};

/// Prefix of tokens, by the hash of their secret.
pub const JOINS: &str = "/meridian/v1/joins/";
/// Tokens that have not ended, all together: one adds a rack in an hour and not a fleet. Used ones make room for new ones.
pub const JOINS_MAX: usize = 64;

/// A token. `role`, `until` and `by` are under the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// The process that it is for, as in `edge/edge-dub`.
    pub role: String,
    /// End of its life.
    pub until: Moment,
    /// Id of the admin who made it.
    pub by: String,
    /// Certificate of the control plane that made it, and the issuers above, in PEM.
    pub certificate: String,
    /// Its signature over [`join_statement`], in hex.
    pub signature: String,
    /// Its use by a process, which may show it again: the answer may have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

/// The use of a token by the process that has this key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Hash of its public key.
    pub by: String,
    pub times: u32,
}

/// The bytes that a control plane signs to vouch for a token: the hash of its secret is among them, so that no record stands in for another.
/// No signature for anything else begins like this.
pub fn join_statement(hash: &str, role: &str, until: Moment, by: &str) -> Vec<u8> {
    format!("meridian join token 1\n{hash}\n{role}\n{}\n{by}\n", until.0).into_bytes()
}

impl JoinToken {
    /// The signature with its statement, for the token with this hash. A signature that is no hex is empty, and nobody's.
    pub fn signed(&self, hash: &str) -> (Vec<u8>, Signature) {
        let signature = Signature {
            certificate: self.certificate.clone(),
            bytes: hex::decode(&self.signature).unwrap_or_default(),
        };
        (join_statement(hash, &self.role, self.until, &self.by), signature)
    }
}

/// A token as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptToken {
    pub token: JoinToken,
    key: String,
    revision: u64,
}

/// The key of a token.
pub fn join_key(hash: &str) -> String {
    format!("{JOINS}{hash}")
}

/// Looks for a token by the hash of its secret.
pub async fn join_token(store: &dyn Store, hash: &str) -> Result<Option<KeptToken>, RecordError> {
    let key = join_key(hash);
    let Some(entry) = store.get(&key).await? else {
        return Ok(None);
    };
    Ok(Some(KeptToken {
        token: decode(&key, &entry)?,
        key,
        revision: entry.revision,
    }))
}

/// Keeps a new token, with the record that tells of it. Removes tokens that have ended. Returns false if too many wait.
pub async fn keep_join_token(
    store: &dyn Store,
    hash: &str,
    token: &JoinToken,
    told: (String, &Access),
    now: Moment,
) -> Result<bool, RecordError> {
    let listing = store.list(JOINS).await?;
    let (mut delete, mut used) = (Vec::new(), Vec::new());
    for (key, entry) in &listing.entries {
        match decode::<JoinToken>(key, entry) {
            Ok(kept) if kept.until > now && kept.used.is_none() => {}
            Ok(kept) if kept.until > now => used.push((kept.until, key.clone())),
            // One that cannot be read is worth nothing, and must not stop all others.
            Ok(_) | Err(_) => delete.push(key.clone()),
        }
    }
    let over = (listing.entries.len() - delete.len() + 1).saturating_sub(JOINS_MAX);
    if over > used.len() {
        return Ok(false);
    }
    used.sort();
    delete.extend(used.into_iter().take(over).map(|(_, key)| key));
    let (key, (told_key, access)) = (join_key(hash), told);
    let transaction = Transaction {
        expect: vec![(key.clone(), None)],
        put: vec![(key, encode(token)), (told_key, encode(access))],
        delete,
    };
    store.commit(transaction).await?;
    Ok(true)
}

/// Binds a token to the key with this hash, which nobody else has used it with, with the record that tells of its use. Returns false if the token changed meanwhile.
pub async fn use_join_token(
    store: &dyn Store,
    kept: &KeptToken,
    by: &str,
    told: (String, &Access),
) -> Result<bool, StoreError> {
    let (told_key, access) = told;
    let times = kept.token.used.as_ref().map_or(1, |used| used.times.saturating_add(1));
    let used = JoinToken {
        used: Some(Used {
            by: by.to_owned(),
            times,
        }),
        ..kept.token.clone()
    };
    let transaction = Transaction {
        expect: vec![(kept.key.clone(), Some(kept.revision))],
        put: vec![(kept.key.clone(), encode(&used)), (told_key, encode(access))],
        delete: Vec::new(),
    };
    match store.commit(transaction).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use planning::audit::AccessKind;

    use super::*;
    use crate::store::Embedded;

    const NOW: Moment = Moment(1_700_000_000_000);

    fn told(number: u32) -> (String, Access) {
        let access = Access::once(AccessKind::TokenMade, "cp-1", None, "a token", NOW);
        (super::super::access_key(NOW, "cp-1", number), access)
    }

    fn token(seconds: u64) -> JoinToken {
        JoinToken {
            role: "edge/edge-dub".to_owned(),
            until: NOW + Duration::from_secs(seconds),
            by: "spiffe://z/operator/ada".to_owned(),
            certificate: String::new(),
            signature: String::new(),
            used: None,
        }
    }

    #[tokio::test]
    async fn a_token_is_used_by_one_of_those_who_show_it_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        let token = token(900);
        let (key, access) = told(1);
        assert!(
            keep_join_token(&store, "aa", &token, (key, &access), NOW)
                .await
                .unwrap()
        );
        assert_eq!(join_token(&store, "bb").await.unwrap(), None);
        let kept = join_token(&store, "aa").await.unwrap().unwrap();
        assert_eq!(kept.token, token);
        let mut used = 0;
        for number in 2..5 {
            let (key, access) = told(number);
            let is_used = use_join_token(&store, &kept, &format!("key {number}"), (key, &access)).await;
            used += u32::from(is_used.unwrap());
        }
        assert_eq!(used, 1);
        let kept = join_token(&store, "aa").await.unwrap().unwrap();
        let used = kept.token.used.unwrap();
        assert_eq!((&*used.by, used.times), ("key 2", 1));
        let told = super::super::waiting_access(&store).await.unwrap();
        assert_eq!(told.len(), 2, "one tells of its making and one of its use");
    }

    #[tokio::test]
    async fn so_many_tokens_wait_and_ended_or_used_ones_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        for number in 0..JOINS_MAX as u32 {
            let (key, access) = told(number);
            let life = if number == 0 { 1 } else { 900 };
            let is_kept = keep_join_token(&store, &format!("{number}"), &token(life), (key, &access), NOW).await;
            assert!(is_kept.unwrap());
        }
        let later = NOW + Duration::from_secs(2);
        let more = async |name: &str, now: Moment| {
            let (key, access) = told(name.len() as u32 + 1_000);
            keep_join_token(&store, name, &token(900), (key, &access), now)
                .await
                .unwrap()
        };
        assert!(!more("a", NOW).await);
        assert!(more("ab", later).await, "one has ended");
        assert!(!more("abc", later).await);
        let kept = join_token(&store, "1").await.unwrap().unwrap();
        let (key, access) = told(2_000);
        assert!(use_join_token(&store, &kept, "a key", (key, &access)).await.unwrap());
        assert!(more("abcd", later).await, "one is used");
        assert_eq!(join_token(&store, "1").await.unwrap(), None);
        assert!(!more("abcde", later).await);
    }
}
