use std::{
    collections::BTreeMap,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};

use super::{
    super::{Candidate, Embedded, Health, LeaderRecord, Leadership, Outcome, Transaction, watch::Source},
    *,
};

/// A key whose changes the faulty watch does not report.
const UNTOLD: &str = "/m/untold";

/// A store with faults that real stores have had.
struct Faulty {
    store: Embedded,
    away: Arc<AtomicBool>,
    /// Delay of the watch.
    late: Duration,
    /// Listings to return instead of the true ones.
    older: Mutex<Vec<Listing>>,
}

struct FaultyWatch {
    changes: Changes,
    away: Arc<AtomicBool>,
    late: Duration,
    held: Option<(Instant, Batch)>,
}

#[async_trait]
impl Source for FaultyWatch {
    async fn next(&mut self) -> Result<Batch, WatchEnd> {
        if self.held.is_none() {
            let mut batch = self.changes.next().await?;
            batch.changes.retain(|change| change.key != UNTOLD);
            self.held = Some((Instant::now() + self.late, batch));
        }
        if let Some((due, _)) = &self.held {
            sleep_until((*due).into()).await;
        }
        if self.away.load(Ordering::SeqCst) {
            return Err(WatchEnd::Unavailable("away".to_owned()));
        }
        self.held.take().map(|(_, batch)| batch).ok_or(WatchEnd::Ended)
    }
}

#[async_trait]
impl Store for Faulty {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        if self.away.load(Ordering::SeqCst) {
            let (reason, outcome) = ("away".to_owned(), Outcome::NothingWritten);
            return Err(StoreError::Unavailable { reason, outcome });
        }
        let older = self.older.lock().pop();
        match older {
            Some(older) => Ok(older),
            None => self.store.list(prefix).await,
        }
    }
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        self.store.commit(transaction).await
    }
    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
        let changes = self.store.watch(prefix, after_revision).await?;
        Ok(Changes::new(FaultyWatch {
            changes,
            away: self.away.clone(),
            late: self.late,
            held: None,
        }))
    }
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        self.store.campaign(candidate).await
    }
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        self.store.leader().await
    }
    async fn health(&self) -> Result<Health, StoreError> {
        self.store.health().await
    }
}

/// A mirror of a faulty store.
struct Scene {
    store: Arc<Faulty>,
    mirror: Mirror,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _folder: TempDir,
}

fn scene(late: Duration) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Faulty {
        store: Embedded::open(&folder.path().join("store")).unwrap(),
        away: Arc::default(),
        late,
        older: Mutex::default(),
    });
    let settings = Settings {
        relist_every: Duration::from_millis(50),
        settle: if late.is_zero() {
            Duration::from_secs(2)
        } else {
            Duration::from_secs(20)
        },
        backoff: (Duration::from_millis(5), Duration::from_millis(20)),
    };
    let (mirror, follow) = Mirror::new(store.clone(), "/m/", settings);
    let stop = CancellationToken::new();
    Scene {
        task: tokio::spawn(follow.run(stop.clone())),
        store,
        mirror,
        stop,
        _folder: folder,
    }
}

impl Scene {
    async fn put(&self, key: &str, value: &str) -> u64 {
        let transaction = Transaction {
            put: vec![(key.to_owned(), value.as_bytes().to_vec())],
            ..Transaction::default()
        };
        self.store.commit(transaction).await.unwrap()
    }

    /// Waits until the copy equals the store.
    async fn same(&self) {
        let truth = self.store.store.list("/m/").await.unwrap().entries;
        let mut contents = self.mirror.contents();
        let same = contents.wait_for(|listing| listing.revision > 0 && listing.entries == truth);
        timeout(Duration::from_secs(20), same).await.unwrap().unwrap();
    }

    async fn until(&self, what: impl Fn(&Mirror) -> bool) {
        let began = Instant::now();
        while !what(&self.mirror) {
            assert!(began.elapsed() < Duration::from_secs(20), "in vain");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops, and returns the numbers of divergences and restores.
    async fn end(self) -> (u64, u64) {
        self.stop.cancel();
        self.task.await.unwrap();
        (self.mirror.divergences(), self.mirror.restores())
    }
}

#[tokio::test]
async fn a_change_that_the_watch_missed_is_found_counted_and_repaired() {
    let scene = scene(Duration::ZERO);
    scene.put("/m/told", "1").await;
    scene.same().await;
    assert_eq!(scene.mirror.divergences(), 0);
    scene.put(UNTOLD, "1").await;
    scene.same().await;
    scene.put("/m/told", "2").await;
    scene.same().await;
    assert_eq!(scene.end().await, (1, 0));
}

#[tokio::test]
async fn a_watch_that_tells_late_is_no_divergence_and_is_never_seen_to_go_back() {
    let scene = scene(Duration::from_millis(70));
    let mut contents = scene.mirror.contents();
    let reader = tokio::spawn(async move {
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        while contents.changed().await.is_ok() {
            let listing = contents.borrow_and_update().clone();
            for (key, entry) in &listing.entries {
                let before = seen.insert(key.clone(), entry.revision).unwrap_or(0);
                assert!(entry.revision >= before, "{key} went back");
            }
            if listing.entries.contains_key("/m/end") {
                return;
            }
        }
    });
    for round in 0..60 {
        scene.put(&format!("/m/{}", round % 4), "x").await;
        scene.put("/other", "x").await;
        sleep(Duration::from_millis(7)).await;
    }
    scene.put("/m/end", "x").await;
    scene.same().await;
    reader.await.unwrap();
    assert!(scene.mirror.listings() > 5, "it listed while the watch was behind");
    assert_eq!(scene.end().await, (0, 0));
}

#[tokio::test]
async fn one_older_listing_is_not_believed_and_many_are_a_restore() {
    let scene = scene(Duration::ZERO);
    scene.put("/m/a", "old").await;
    let old = scene.store.list("/m/").await.unwrap();
    scene.put("/m/a", "new").await;
    scene.same().await;
    *scene.store.older.lock() = vec![old.clone(); 2];
    scene.until(|_| scene.store.older.lock().is_empty()).await;
    scene.same().await;
    assert_eq!(scene.mirror.restores(), 0);

    let mut contents = scene.mirror.contents();
    *scene.store.older.lock() = vec![old; 3];
    let back = contents.wait_for(|listing| listing.entries["/m/a"].value == b"old");
    drop(timeout(Duration::from_secs(20), back).await.unwrap().unwrap());
    scene.same().await;
    assert_eq!(scene.end().await, (0, 1));
}

#[tokio::test]
async fn without_the_store_the_copy_stays_and_grows_stale() {
    let scene = scene(Duration::ZERO);
    scene.put("/m/a", "1").await;
    scene.same().await;
    scene.store.away.store(true, Ordering::SeqCst);
    scene.put("/m/a", "2").await;
    let stale = |mirror: &Mirror| mirror.staleness().is_some_and(|age| age > Duration::from_millis(1_300));
    // An embedded watch sends a progress mark every second.
    scene.until(stale).await;
    assert_eq!(scene.mirror.contents().borrow().entries["/m/a"].value, b"1");
    scene.store.away.store(false, Ordering::SeqCst);
    scene.same().await;
    scene.until(|mirror| !stale(mirror)).await;
    assert_eq!(scene.end().await, (0, 0));
}

#[test]
fn a_listing_contradicts_only_what_was_known_when_it_was_made() {
    let listing = |revision, entries: &[(&str, u64)]| Listing {
        revision,
        entries: (entries.iter())
            .map(|&(key, revision)| {
                (
                    key.to_owned(),
                    Entry {
                        value: vec![],
                        revision,
                    },
                )
            })
            .collect(),
    };
    let belief = listing(5, &[("a", 2), ("b", 5)]);
    for (listed, contradicts) in [
        (listing(5, &[("a", 2), ("b", 5)]), false),
        (listing(5, &[("a", 2)]), true),
        (listing(6, &[("a", 2)]), false),
        (listing(7, &[("a", 2), ("b", 7), ("c", 6)]), false),
        (listing(7, &[("a", 3), ("b", 5)]), true),
        (listing(7, &[("a", 2), ("c", 4)]), true),
    ] {
        assert_eq!(contradiction(&belief, &listed).is_some(), contradicts, "{listed:?}");
        assert_eq!(contradiction(&Listing::default(), &listed), None);
    }
}
