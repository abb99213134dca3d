//! The tokens with which new processes join, as the store keeps them: under the hash of the secret, until they are used or end. Every
//! control plane makes and takes them, so no leadership fences their commits: a token is used once because its key is removed once.

use planning::audit::Access;
use serde::{Deserialize, Serialize};
use topology::Moment;

use super::{RecordError, decode, encode};
use crate::store::{Store, StoreError, Transaction};

/// Prefix of tokens, by the hash of their secret.
pub const JOINS: &str = "/meridian/v1/joins/";
/// Tokens that wait to be used, all together: one adds a rack in an hour and not a fleet.
pub const JOINS_MAX: usize = 64;

/// A token that was not used yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// The process that it is for, as in `edge/edge-dub`.
    pub role: String,
    /// End of its life.
    pub until: Moment,
    /// Id of the admin who made it.
    pub by: String,
}

/// A token that is kept.
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
    let mut delete = Vec::new();
    for (key, entry) in &listing.entries {
        // One that cannot be read is worth nothing, and must not stop all others.
        let is_over = decode::<JoinToken>(key, entry).map_or(true, |kept| kept.until <= now);
        if is_over {
            delete.push(key.clone());
        }
    }
    if listing.entries.len() - delete.len() >= JOINS_MAX {
        return Ok(false);
    }
    let (key, (told_key, access)) = (join_key(hash), told);
    let transaction = Transaction {
        expect: vec![(key.clone(), None)],
        put: vec![(key, encode(token)), (told_key, encode(access))],
        delete,
    };
    store.commit(transaction).await?;
    Ok(true)
}

/// Uses a token up, with the record that tells of it. Returns false if somebody else used it meanwhile.
pub async fn use_join_token(store: &dyn Store, kept: &KeptToken, told: (String, &Access)) -> Result<bool, StoreError> {
    let (told_key, access) = told;
    let transaction = Transaction {
        expect: vec![(kept.key.clone(), Some(kept.revision))],
        put: vec![(told_key, encode(access))],
        delete: vec![kept.key.clone()],
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

    #[tokio::test]
    async fn a_token_is_used_once_by_one_of_those_who_show_it_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        let token = JoinToken {
            role: "edge/edge-dub".to_owned(),
            until: NOW + Duration::from_secs(900),
            by: "spiffe://z/operator/ada".to_owned(),
        };
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
            used += u32::from(use_join_token(&store, &kept, (key, &access)).await.unwrap());
        }
        assert_eq!(used, 1);
        assert_eq!(join_token(&store, "aa").await.unwrap(), None);
        let told = super::super::waiting_access(&store).await.unwrap();
        assert_eq!(told.len(), 2, "one tells of its making and one of its use");
    }

    #[tokio::test]
    async fn so_many_tokens_wait_and_ended_ones_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        let token = |seconds: u64| JoinToken {
            role: "edge/edge-dub".to_owned(),
            until: NOW + Duration::from_secs(seconds),
            by: String::new(),
        };
        for number in 0..JOINS_MAX as u32 {
            let (key, access) = told(number);
            let life = if number == 0 { 1 } else { 900 };
            let is_kept = keep_join_token(&store, &format!("{number}"), &token(life), (key, &access), NOW).await;
            assert!(is_kept.unwrap());
        }
        let (key, access) = told(1_000);
        let later = NOW + Duration::from_secs(2);
        assert!(
            !keep_join_token(&store, "more", &token(900), (key.clone(), &access), NOW)
                .await
                .unwrap()
        );
        assert!(
            keep_join_token(&store, "more", &token(900), (key, &access), later)
                .await
                .unwrap()
        );
    }
}
