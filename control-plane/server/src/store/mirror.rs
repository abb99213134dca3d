//! A local copy of everything below a prefix, for readers that must not wait for the store.
//!
//! Watches are fast and not to be trusted: clients and servers have lost events, and a member that is cut off can be
//! silent for ever. So the copy starts from a listing, follows a watch from there, lists again whenever the watch ends and
//! once in a while anyway, and compares: whatever the watch should have told and did not is a divergence, which is counted,
//! logged and repaired. The copy never goes back, unless the store itself was restored from an older snapshot.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Batch, Changes, Entry, Listing, Store, StoreError, WatchEnd,
    backoff::{Backoff, spread},
};

/// A listing older than the copy is believed after this many in a row: one may come from a member with a wrong idea, so
/// many mean that the store was restored.
const OLDER_LISTINGS: u32 = 3;

/// How closely to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How often to list although the watch runs.
    pub relist_every: Duration,
    /// How long the watch may take to tell what a listing shows already.
    pub settle: Duration,
    /// Waits between failures: the first, doubling up to the last, each spread by half.
    pub backoff: (Duration, Duration),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            relist_every: Duration::from_secs(60),
            settle: Duration::from_secs(5),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }
}

/// The copy, for any number of readers.
#[derive(Clone)]
pub struct Mirror(Arc<Shared>);

struct Shared {
    contents: watch::Sender<Arc<Listing>>,
    heard: Mutex<Option<Instant>>,
    listings: AtomicU64,
    divergences: AtomicU64,
    restores: AtomicU64,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror")
            .field("staleness", &self.staleness())
            .finish_non_exhaustive()
    }
}

impl Mirror {
    /// A copy, and what keeps it up to date; give the latter to a task.
    pub fn new(store: Arc<dyn Store>, prefix: &str, settings: Settings) -> (Self, Follow) {
        let mirror = Self(Arc::new(Shared {
            contents: watch::Sender::new(Arc::default()),
            heard: Mutex::default(),
            listings: AtomicU64::new(0),
            divergences: AtomicU64::new(0),
            restores: AtomicU64::new(0),
        }));
        let follow = Follow {
            store,
            prefix: prefix.to_owned(),
            settings,
            mirror: mirror.clone(),
            belief: Listing::default(),
            older: 0,
            backoff: Backoff::new(settings.backoff.0, settings.backoff.1),
        };
        (mirror, follow)
    }

    /// The contents as they change. At revision 0 nothing was read yet; `revision` is that of the last change seen here,
    /// not of the store.
    pub fn contents(&self) -> watch::Receiver<Arc<Listing>> {
        self.0.contents.subscribe()
    }

    /// How long ago the store said that the copy is up to date; `None` before the first listing. The contents stay as they
    /// are while the store is away, so readers that need fresh ones look here.
    pub fn staleness(&self) -> Option<Duration> {
        let heard = *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|heard| heard.elapsed())
    }

    /// How often the store was listed.
    pub fn listings(&self) -> u64 {
        self.0.listings.load(Ordering::Relaxed)
    }

    /// How often a listing showed that a watch had not told everything. Anything but zero is a fault of the store, or ours.
    pub fn divergences(&self) -> u64 {
        self.0.divergences.load(Ordering::Relaxed)
    }

    /// How often the store went back to an older snapshot.
    pub fn restores(&self) -> u64 {
        self.0.restores.load(Ordering::Relaxed)
    }

    fn heard_now(&self) {
        *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Keeps a [`Mirror`] up to date.
pub struct Follow {
    store: Arc<dyn Store>,
    prefix: String,
    settings: Settings,
    mirror: Mirror,
    /// What we hold to be true; its revision moves on with every mark, that of the published contents with every change.
    belief: Listing,
    /// Listings older than the belief, in a row.
    older: u32,
    backoff: Backoff,
}

/// Why following has to start again.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Watch(#[from] WatchEnd),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store is at revision {found}, but was at {seen} before")]
    Older { found: u64, seen: u64 },
    #[error("the watch did not tell everything")]
    Diverged,
}

impl Follow {
    /// Follows until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow_for_ever() => {}
        }
    }

    async fn follow_for_ever(&mut self) {
        loop {
            let Err(lost) = self.follow().await;
            let wait = self.backoff.next_wait();
            tracing::warn!(prefix = self.prefix, %lost, ?wait, "the mirror lists again");
            sleep(wait).await;
        }
    }

    /// Lists, and watches from there until something goes wrong.
    async fn follow(&mut self) -> Result<std::convert::Infallible, Lost> {
        let listed = self.list().await?;
        if let Some(difference) = contradiction(&self.belief, &listed) {
            self.diverged(&difference);
        }
        self.adopt(listed);
        let mut changes = self.store.watch(&self.prefix, self.belief.revision).await?;
        let mut list_at = Instant::now() + spread(self.settings.relist_every);
        loop {
            tokio::select! {
                biased;
                batch = changes.next() => {
                    self.apply(batch?);
                    // Only a watch that tells something is a success.
                    self.backoff.reset();
                }
                () = sleep_until(list_at.into()) => {
                    list_at = Instant::now() + spread(self.settings.relist_every);
                    self.verify(&mut changes).await?;
                }
            }
        }
    }

    /// A listing that is not older than what we have.
    async fn list(&mut self) -> Result<Listing, Lost> {
        let listed = self.store.list(&self.prefix).await?;
        self.mirror.0.listings.fetch_add(1, Ordering::Relaxed);
        let (found, seen) = (listed.revision, self.belief.revision);
        if found >= seen {
            self.older = 0;
            return Ok(listed);
        }
        self.older += 1;
        if self.older < OLDER_LISTINGS {
            return Err(Lost::Older { found, seen });
        }
        tracing::error!(
            prefix = self.prefix,
            found,
            seen,
            "the store went back to an older state, as after a restore from a snapshot; following it from there"
        );
        self.mirror.0.restores.fetch_add(1, Ordering::Relaxed);
        self.older = 0;
        // Nothing that was believed says anything about the restored store.
        self.belief = Listing::default();
        Ok(listed)
    }

    /// Compares with a listing while the watch runs. The listing may show what the watch is about to tell, so it is heard
    /// until it told everything up to the listing's revision, or had its time.
    async fn verify(&mut self, changes: &mut Changes) -> Result<(), Lost> {
        // The watch is not heard meanwhile: the listing is at least as new as the belief.
        let listed = self.list().await?;
        if let Some(difference) = contradiction(&self.belief, &listed) {
            self.diverged(&difference);
            self.adopt(listed);
            return Err(Lost::Diverged);
        }
        let deadline = Instant::now() + self.settings.settle;
        let mut later = None;
        while self.belief.entries != listed.entries && later.is_none() {
            let Ok(batch) = timeout_at(deadline.into(), changes.next()).await else {
                break;
            };
            let (until, after) = split(batch?, listed.revision);
            self.apply(until);
            later = after;
        }
        let difference = difference(&self.belief.entries, &listed.entries);
        // What is still to come from before the listing changes nothing any more, and must not be seen to go back.
        self.adopt(listed);
        if let Some(difference) = difference {
            self.diverged(&difference);
            return Err(Lost::Diverged);
        }
        if let Some(later) = later {
            self.apply(later);
        }
        Ok(())
    }

    fn apply(&mut self, batch: Batch) {
        self.mirror.heard_now();
        let mut changed = false;
        for change in batch.changes {
            let revision = change.revision;
            // A listing showed it already; what it showed of later must not be undone.
            if revision <= self.belief.revision {
                continue;
            }
            changed = true;
            match change.value {
                Some(value) => drop(self.belief.entries.insert(change.key, Entry { value, revision })),
                None => drop(self.belief.entries.remove(&change.key)),
            }
        }
        self.belief.revision = self.belief.revision.max(batch.revision);
        if changed {
            self.publish();
        }
    }

    fn adopt(&mut self, listed: Listing) {
        self.mirror.heard_now();
        let is_news = self.mirror.0.contents.borrow().revision == 0 || self.belief.entries != listed.entries;
        self.belief = listed;
        if is_news {
            self.publish();
        }
    }

    fn publish(&self) {
        self.mirror.0.contents.send_replace(Arc::new(self.belief.clone()));
    }

    fn diverged(&self, difference: &str) {
        self.mirror.0.divergences.fetch_add(1, Ordering::Relaxed);
        let revision = self.belief.revision;
        tracing::error!(
            prefix = self.prefix,
            revision,
            difference,
            "the mirror differs from the store"
        );
    }
}

/// What the listing shows of the belief's time that the belief does not have. Of what came later nothing is known.
fn contradiction(belief: &Listing, listed: &Listing) -> Option<String> {
    if belief.revision == 0 {
        return None;
    }
    if belief.revision == listed.revision {
        return difference(&belief.entries, &listed.entries);
    }
    let known = |(_, entry): &(&String, &Entry)| entry.revision <= belief.revision;
    let mut old = listed.entries.iter().filter(known);
    old.find(|(key, entry)| belief.entries.get(*key) != Some(*entry))
        .map(|(key, entry)| format!("{key} of revision {} was not known", entry.revision))
}

fn difference(
    belief: &std::collections::BTreeMap<String, Entry>,
    listed: &std::collections::BTreeMap<String, Entry>,
) -> Option<String> {
    let revision = |entry: Option<&Entry>| entry.map(|entry| entry.revision);
    belief
        .keys()
        .chain(listed.keys())
        .find(|key| belief.get(*key) != listed.get(*key))
        .map(|key| {
            let (ours, theirs) = (revision(belief.get(key)), revision(listed.get(key)));
            format!("{key} is of revision {ours:?} here and {theirs:?} there")
        })
}

/// A batch up to a revision, and the rest if it goes beyond.
fn split(batch: Batch, revision: u64) -> (Batch, Option<Batch>) {
    if batch.revision <= revision {
        return (batch, None);
    }
    let (until, after) = batch
        .changes
        .into_iter()
        .partition(|change| change.revision <= revision);
    let after = Batch {
        revision: batch.revision,
        changes: after,
    };
    let changes = until;
    (Batch { revision, changes }, Some(after))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::AtomicBool,
        time::{Duration, Instant},
    };

    use async_trait::async_trait;
    use tempfile::TempDir;
    use tokio::{task::JoinHandle, time::timeout};

    use super::{
        super::{Candidate, Embedded, Health, Lead, LeaderRecord, Outcome, Transaction, watch::Source},
        *,
    };

    /// A key whose changes the watch does not tell.
    const UNTOLD: &str = "/m/untold";

    /// A store with the faults that stores have had.
    struct Faulty {
        store: Embedded,
        away: Arc<AtomicBool>,
        /// How much later the watch tells.
        late: Duration,
        /// Listings, instead of the true ones.
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
            let older = self.older.lock().unwrap().pop();
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
        async fn campaign(&self, candidate: &Candidate) -> Result<Lead, StoreError> {
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
                Duration::from_millis(200)
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

        /// Waits until the copy is what the store has.
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

        /// Stops, and says how often the mirror diverged and the store was restored.
        async fn end(self) -> (u64, u64) {
            self.stop.cancel();
            self.task.await.unwrap();
            (self.mirror.divergences(), self.mirror.restores())
        }
    }

    #[tokio::test]
    async fn what_the_watch_did_not_tell_is_found_counted_and_repaired() {
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
        *scene.store.older.lock().unwrap() = vec![old.clone(); 2];
        scene.until(|_| scene.store.older.lock().unwrap().is_empty()).await;
        scene.same().await;
        assert_eq!(scene.mirror.restores(), 0);

        let mut contents = scene.mirror.contents();
        *scene.store.older.lock().unwrap() = vec![old; 3];
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
        // A watch in the process marks every second that it lives.
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
}
