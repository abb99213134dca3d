//! The contract of every store, embedded or etcd.

use std::{path::Path, sync::Arc, time::Duration};

use crate::etcd_support::{candidate, cluster, put, soon};
use server::store::{
    Change, Embedded, Entry, OPERATIONS_MAX, Store, StoreError, Transaction, VALUE_BYTES_MAX, WatchEnd,
};
use world::etcd::Size;

/// The effect of a second candidate on the leader.
#[derive(Clone, Copy, PartialEq)]
enum Succession {
    /// The second candidate waits.
    ByTurns,
    /// The second candidate takes over: both can only be parts of one process.
    AtOnce,
}

async fn contract(store: Arc<dyn Store>, succession: Succession) {
    writes(&*store).await;
    limits(&*store).await;
    watches(&*store).await;
    leads(&store, succession).await;
    store.health().await.unwrap();
}

async fn writes(store: &dyn Store) {
    // A key that was never written does not exist, and a transaction may expect so.
    assert_eq!(store.get("/a/1").await.unwrap(), None);
    let first = store.commit(put("/a/1", "one", None)).await.unwrap();
    assert_eq!(
        store.get("/a/1").await.unwrap(),
        Some(Entry {
            value: b"one".to_vec(),
            revision: first
        })
    );

    // A write that expects an older revision is refused, and changes nothing.
    let second = store.commit(put("/a/1", "uno", Some(first))).await.unwrap();
    assert!(second > first, "revisions grow");
    let error = store.commit(put("/a/1", "eins", Some(first))).await.unwrap_err();
    let conflict = StoreError::Conflict {
        key: "/a/1".to_owned(),
        found: Some(second),
        expected: Some(first),
    };
    assert_eq!(error, conflict);
    assert!(store.commit(put("/a/1", "eins", None)).await.is_err());
    assert_eq!(store.get("/a/1").await.unwrap().unwrap().value, b"uno");

    // All or nothing: one unmet expectation stops every write of the transaction.
    let mut both = put("/a/2", "two", None);
    both.expect.push(("/a/1".to_owned(), Some(first)));
    assert!(store.commit(both.clone()).await.is_err());
    assert_eq!(store.get("/a/2").await.unwrap(), None);
    both.expect[1].1 = Some(second);
    both.delete.push("/a/1".to_owned());
    let third = store.commit(both).await.unwrap();
    assert_eq!(store.get("/a/1").await.unwrap(), None);
    assert_eq!(store.get("/a/2").await.unwrap().unwrap().revision, third);

    // A transaction that only expects writes nothing, and neither does one that removes a missing key.
    let mut nothing = Transaction::default();
    nothing.expect.push(("/a/2".to_owned(), Some(third)));
    nothing.delete.push("/a/1".to_owned());
    assert_eq!(store.commit(nothing).await.unwrap(), third);

    // A listing has only keys of its prefix, in order, and the revision of the read.
    let mut last = 0;
    for key in ["/b/3", "/b/1", "/b/2", "/bb/0", "/c"] {
        last = store.commit(put(key, key, None)).await.unwrap();
    }
    let listing = store.list("/b/").await.unwrap();
    assert_eq!(listing.revision, last);
    assert_eq!(listing.entries.keys().collect::<Vec<_>>(), ["/b/1", "/b/2", "/b/3"]);
    assert_eq!(listing.entries["/b/2"].value, b"/b/2");
    assert!(store.list("/nothing/").await.unwrap().entries.is_empty());
}

async fn limits(store: &dyn Store) {
    let revision = store.list("/limits/").await.unwrap().revision;

    // The longest value fits; one that is too long is refused before anything is written.
    let mut large = put("/limits/value", "", None);
    large.put[0].1 = vec![0; VALUE_BYTES_MAX + 1];
    let error = store.commit(large.clone()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::TooLarge { key, .. } if key == "/limits/value"),
        "{error}"
    );
    large.put[0].1.pop();
    store.commit(large.clone()).await.unwrap();

    // Many of the longest values are listed and watched together, although each would fill an answer of the usual size.
    for number in 0..4 {
        let key = format!("/limits/large/{number}");
        store
            .commit(put(&key, &"x".repeat(VALUE_BYTES_MAX), None))
            .await
            .unwrap();
    }
    assert_eq!(store.list("/limits/large/").await.unwrap().entries.len(), 4);
    let mut changes = store.watch("/limits/large/", revision).await.unwrap();
    let mut told = 0;
    while told < 4 {
        told += soon("large changes", changes.next()).await.unwrap().changes.len();
    }

    // Values that each fit do not fit into one transaction.
    large.put.push(("/limits/other".to_owned(), vec![0; VALUE_BYTES_MAX]));
    let error = store.commit(large).await.unwrap_err();
    assert!(
        matches!(error, StoreError::TransactionTooLarge { operations: 2, .. }),
        "{error}"
    );

    // The same holds for keys: the greatest number that fits is written and read back, page by page where a store has pages.
    let mut many = Transaction::default();
    for number in 0..OPERATIONS_MAX {
        let key = format!("/limits/many/{number:03}");
        many.expect.push((key.clone(), None));
        many.put.push((key, vec![]));
    }
    store.commit(many.clone()).await.unwrap();
    assert_eq!(store.list("/limits/many/").await.unwrap().entries.len(), OPERATIONS_MAX);
    many.put.push(("/limits/one-more".to_owned(), vec![]));
    let error = store.commit(many).await.unwrap_err().to_string();
    assert!(error.contains("129 operations") && error.contains("128"), "{error}");

    let mut twice = put("/limits/twice", "once", None);
    twice.delete.push("/limits/twice".to_owned());
    let error = store.commit(twice).await.unwrap_err().to_string();
    assert!(error.contains("/limits/twice is written twice"), "{error}");
    assert_eq!(
        store.list("/limits/").await.unwrap().revision,
        revision + 6,
        "only six were written"
    );
}

async fn watches(store: &dyn Store) {
    let start = store.list("/watch/").await.unwrap().revision;
    let mut expected = Vec::new();
    for round in 0..8 {
        let key = |name: &str| format!("/watch/{name}/{}", round % 3);
        let mut transaction = Transaction::default();
        transaction.put.push((key("one"), format!("{round}").into_bytes()));
        transaction.put.push((key("two"), vec![]));
        transaction.put.push((format!("/elsewhere/{round}"), vec![]));
        let revision = store.commit(transaction.clone()).await.unwrap();
        for (key, value) in transaction.put.into_iter().take(2) {
            let value = Some(value);
            expected.push(Change { revision, key, value });
        }
        let delete = vec![key("two")];
        let revision = store
            .commit(Transaction {
                delete,
                ..Transaction::default()
            })
            .await
            .unwrap();
        let (key, value) = (key("two"), None);
        expected.push(Change { revision, key, value });
    }

    // A watch reports every change after any revision, once and in order; a reader that paused continues where it was.
    let mut seen = Vec::new();
    let mut position = start;
    while seen.len() < expected.len() {
        let mut changes = store.watch("/watch/", position).await.unwrap();
        for _ in 0..2 {
            let batch = soon("the watch tells", changes.next()).await.unwrap();
            assert!(batch.revision >= position, "positions only grow");
            assert!(batch.changes.iter().all(|change| change.revision <= batch.revision));
            position = batch.revision;
            seen.extend(batch.changes);
        }
    }
    assert_eq!(seen, expected);

    // Another watch starts in the middle: it reports the rest, and then the new changes.
    let middle = expected[expected.len() / 2].revision;
    let mut changes = store.watch("/watch/", middle).await.unwrap();
    let late = put("/watch/late", "", None);
    let revision = store.commit(late).await.unwrap();
    let (key, value) = ("/watch/late".to_owned(), Some(vec![]));
    expected.push(Change { revision, key, value });
    let mut seen = Vec::new();
    while seen.last() != expected.last() {
        seen.extend(soon("the watch tells", changes.next()).await.unwrap().changes);
    }
    expected.retain(|change| change.revision > middle);
    assert_eq!(seen, expected);

    // A watch without changes sends progress marks.
    let quiet = soon("a mark", changes.next()).await.unwrap();
    assert!(quiet.changes.is_empty() && quiet.revision >= revision, "{quiet:?}");
}

async fn leads(store: &Arc<dyn Store>, succession: Succession) {
    assert_eq!(store.leader().await.unwrap(), None);
    // Longer than the test: no lease runs out during it.
    let ttl = Duration::from_secs(600);
    let fenced = |(key, revision): (String, Option<u64>), name: &str| {
        let mut transaction = put(name, "", None);
        transaction.expect.push((key, revision));
        transaction
    };

    let first = soon("the first leads", store.campaign(&candidate("first", ttl)))
        .await
        .unwrap();
    assert!(first.is_valid());
    let record = store.leader().await.unwrap().unwrap();
    assert_eq!(
        (record.node.as_str(), record.url.as_str()),
        ("first", "http://first:7070")
    );
    assert_eq!(record.epoch, first.epoch());
    store.commit(fenced(first.fence(), "/lead/first")).await.unwrap();

    let (other, rival) = (store.clone(), candidate("second", ttl));
    let second = tokio::spawn(async move { other.campaign(&rival).await.unwrap() });
    if succession == Succession::ByTurns {
        // The second candidate tries at least once while the first leads.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(first.is_valid() && !second.is_finished());
        assert_eq!(store.leader().await.unwrap().unwrap().node.as_str(), "first");
        first.resign().await.unwrap();
    }
    let second = soon("the second leads", second).await.unwrap();
    soon("the first knows", first.lost()).await;
    assert!(!first.is_valid() && second.is_valid());
    assert!(second.epoch() > first.epoch(), "epochs grow");
    assert_eq!(store.leader().await.unwrap().unwrap().node.as_str(), "second");

    // The store refuses all commits of the old leader, even if that one still believes to lead.
    let error = store.commit(fenced(first.fence(), "/lead/stale")).await.unwrap_err();
    let (fence, _) = first.fence();
    assert!(
        matches!(&error, StoreError::Conflict { key, .. } if *key == fence),
        "{error}"
    );
    assert_eq!(store.get("/lead/stale").await.unwrap(), None);
    store.commit(fenced(second.fence(), "/lead/second")).await.unwrap();
    first.resign().await.unwrap();
    assert!(second.is_valid(), "who lost a lead cannot end another's");

    second.resign().await.unwrap();
    assert!(!second.is_valid());
    assert_eq!(store.leader().await.unwrap(), None);
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("meridian.redb");
    let store = Arc::new(Embedded::open(&file).unwrap());
    contract(store.clone(), Succession::AtOnce).await;
    let before = store.list("/").await.unwrap();
    let epoch = store
        .campaign(&candidate("third", Duration::ZERO))
        .await
        .unwrap()
        .epoch();
    drop(store);

    let reopened = Embedded::open(&file).unwrap();
    let after = reopened.list("/").await.unwrap();
    assert_eq!(after.revision, before.revision + 1);
    for (key, entry) in before.entries.iter().filter(|(key, _)| !key.ends_with("/epoch")) {
        assert_eq!(after.entries.get(key), Some(entry));
    }
    let next = reopened.campaign(&candidate("fourth", Duration::ZERO)).await.unwrap();
    assert_eq!(next.epoch(), epoch + 1, "epochs are not used twice");

    // The store remembers no changes from before it was opened.
    let end = reopened.watch("/", before.revision).await.unwrap_err();
    assert_eq!(
        end,
        WatchEnd::Compacted {
            oldest: after.revision + 1
        }
    );
    reopened.watch("/", after.revision).await.unwrap();
}

#[tokio::test]
async fn an_embedded_watch_that_sleeps_too_long_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("meridian.redb")).unwrap();
    let start = store.list("/").await.unwrap().revision;
    let mut changes = store.watch("/", start).await.unwrap();
    // More bytes than the store remembers for watches.
    for number in 0..26 {
        let mut large = put(&format!("/{number}"), "", None);
        large.put[0].1 = vec![0; VALUE_BYTES_MAX];
        store.commit(large).await.unwrap();
    }
    let end = changes.next().await.unwrap_err();
    assert!(matches!(end, WatchEnd::Compacted { oldest } if oldest > start), "{end}");
    assert_eq!(changes.next().await, Err(WatchEnd::Ended));
    assert_eq!(store.list("/").await.unwrap().entries.len(), 26, "only watches forget");
}

#[tokio::test]
async fn one_member_of_etcd_keeps_the_contract() {
    let cluster = cluster(Size::One).await;
    let store = Arc::new(cluster.store().await);
    contract(store.clone(), Succession::ByTurns).await;

    // A watch from a compacted revision ends, and the error names the oldest revision to watch from.
    let start = store.list("/").await.unwrap().revision;
    let first = store.commit(put("/compacted", "1", None)).await.unwrap();
    let second = store.commit(put("/compacted", "2", Some(first))).await.unwrap();
    let mut client = etcd_client::Client::connect(cluster.etcd.endpoints(), None)
        .await
        .unwrap();
    client.compact(second.cast_signed(), None).await.unwrap();
    let end = match store.watch("/", start).await {
        Ok(mut changes) => loop {
            match soon("the watch ends", changes.next()).await {
                Ok(batch) => assert!(batch.changes.is_empty(), "{batch:?}"),
                Err(end) => break end,
            }
        },
        Err(end) => end,
    };
    assert_eq!(end, WatchEnd::Compacted { oldest: second });
    let mut changes = store.watch("/", second - 1).await.unwrap();
    let batch = soon("the watch tells", changes.next()).await.unwrap();
    assert_eq!(batch.revision, second);
}

#[tokio::test]
async fn three_members_of_etcd_keep_the_contract() {
    let cluster = cluster(Size::Three).await;
    contract(Arc::new(cluster.store().await), Succession::ByTurns).await;
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
