//! What every store must do, whatever is behind it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use server::store::{Embedded, Entry, Store, StoreError, Transaction, VALUE_BYTES_MAX};

fn put(key: &str, value: &str, expected: Option<u64>) -> Transaction {
    Transaction {
        expect: vec![(key.to_owned(), expected)],
        put: vec![(key.to_owned(), value.as_bytes().to_vec())],
        delete: vec![],
    }
}

async fn contract(store: &dyn Store) {
    // A key that was never written is not there, and can be expected not to be.
    assert_eq!(store.get("/a/1").await.unwrap(), None);
    let first = store.commit(put("/a/1", "one", None)).await.unwrap();
    assert_eq!(
        store.get("/a/1").await.unwrap(),
        Some(Entry {
            value: b"one".to_vec(),
            revision: first
        })
    );

    // Writing over what has changed since is refused, and changes nothing.
    let second = store.commit(put("/a/1", "uno", Some(first))).await.unwrap();
    assert!(second > first, "revisions grow");
    let error = store.commit(put("/a/1", "eins", Some(first))).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Conflict { key, .. } if key == "/a/1"),
        "{error}"
    );
    assert!(store.commit(put("/a/1", "eins", None)).await.is_err());
    assert_eq!(store.get("/a/1").await.unwrap().unwrap().value, b"uno");

    // All or nothing: one unmet expectation stops every write of the transaction.
    let mut both = put("/a/2", "two", None);
    both.expect.push(("/a/1".to_owned(), Some(first)));
    assert!(store.commit(both.clone()).await.is_err());
    assert_eq!(store.get("/a/2").await.unwrap(), None);
    both.expect[1].1 = Some(second);
    both.delete.push("/a/1".to_owned());
    store.commit(both).await.unwrap();
    assert_eq!(store.get("/a/1").await.unwrap(), None);

    // Lists keep to their prefix and to the order of keys.
    for key in ["/b/3", "/b/1", "/b/2", "/bb/0", "/c"] {
        store.commit(put(key, key, None)).await.unwrap();
    }
    let keys = |entries: Vec<(String, Entry)>| entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(store.list("/b/").await.unwrap()), ["/b/1", "/b/2", "/b/3"]);
    assert_eq!(keys(store.newest("/b/", 2).await.unwrap()), ["/b/3", "/b/2"]);
    assert!(store.list("/nothing/").await.unwrap().is_empty());

    // A value that is too large is refused before anything is written.
    let mut large = put("/large", "", None);
    large.put[0].1 = vec![0; VALUE_BYTES_MAX + 1];
    assert!(matches!(store.commit(large).await, Err(StoreError::TooLarge { .. })));
    assert_eq!(store.get("/large").await.unwrap(), None);
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("meridian.redb");
    contract(&Embedded::open(&file).unwrap()).await;
    let reopened = Embedded::open(&file).unwrap();
    assert_eq!(reopened.get("/c").await.unwrap().unwrap().value, b"/c");
}

#[tokio::test]
async fn a_second_control_plane_cannot_open_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("meridian.redb");
    let _first = Embedded::open(&file).unwrap();
    let error = Embedded::open(&file).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("held by another control plane"), "{error}");
    let nowhere = Embedded::open(Path::new("/nowhere/meridian.redb"))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(nowhere.contains("/nowhere/meridian.redb"), "{nowhere}");
}
