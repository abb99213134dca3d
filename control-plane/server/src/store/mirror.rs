//! A local copy of everything below a prefix, for readers that must not wait for the store.
//!
//! Watches are fast but not reliable: clients and servers have lost events, and a cut-off member can stay silent for
//! ever. So the copy starts from a listing and follows a watch from there. It lists again when the watch ends, and from
//! time to time anyway, and compares: a change that the watch should have reported and did not is a divergence.
//! Divergences are counted, logged and repaired. The copy never goes back, unless the store itself was restored from an
//! older snapshot.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    backoff::{Backoff, spread},
    contract::Store,
    error::StoreError,
    transaction::{Entry, Listing},
    watch::{Batch, Changes, WatchEnd},
};
use crate::texts::log;

/// Listings in a row that must be older than the copy before they are believed. One may come from a member that is
/// behind; several mean that the store was restored.
const OLDER_LISTINGS: u32 = 3;

/// The intervals of following.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Interval of listings while the watch runs.
    pub relist_every: Duration,
    /// Time for the watch to report changes that a listing shows already.
    pub settle: Duration,
    /// Pauses after failures: the first and the longest. They double in between, each spread by half.
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
    /// A copy, and the follower that keeps it up to date; run the latter in a task.
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

    /// The contents, and their changes. At revision 0 nothing was read yet. `revision` is that of the last change in
    /// the copy, not of the store.
    pub fn contents(&self) -> watch::Receiver<Arc<Listing>> {
        self.0.contents.subscribe()
    }

    /// Time since the store confirmed that the copy is up to date; `None` before the first listing. The contents stay
    /// while the store is out of reach, so readers that need fresh data check this.
    pub fn staleness(&self) -> Option<Duration> {
        let heard = *self.0.heard.lock();
        heard.map(|heard| heard.elapsed())
    }

    /// Number of listings.
    pub fn listings(&self) -> u64 {
        self.0.listings.load(Ordering::Relaxed)
    }

    /// Number of listings that showed a change which the watch had missed. More than zero is a fault of the store or of
    /// this crate.
    pub fn divergences(&self) -> u64 {
        self.0.divergences.load(Ordering::Relaxed)
    }

    /// Number of times that the store went back to an older snapshot.
    pub fn restores(&self) -> u64 {
        self.0.restores.load(Ordering::Relaxed)
    }

    fn heard_now(&self) {
        *self.0.heard.lock() = Some(Instant::now());
    }
}

/// Keeps a [`Mirror`] up to date.
pub struct Follow {
    store: Arc<dyn Store>,
    prefix: String,
    settings: Settings,
    mirror: Mirror,
    /// The copy as followed so far. Its revision moves with every progress mark; that of the published contents only
    /// with changes.
    belief: Listing,
    /// Number of listings in a row that were older than the belief.
    older: u32,
    backoff: Backoff,
}

/// The reasons for which following starts again.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Watch(#[from] WatchEnd),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store is at revision {found}, but was at {seen} before")]
    Older { found: u64, seen: u64 },
    #[error("the watch missed changes")]
    Diverged,
}

impl Follow {
    /// Follows until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow_until_dropped() => {}
        }
    }

    async fn follow_until_dropped(&mut self) {
        loop {
            let Err(lost) = self.follow().await;
            let wait = self.backoff.next_wait();
            tracing::warn!(prefix = self.prefix, %lost, ?wait, "{}", log::MIRROR_LISTS);
            sleep(wait).await;
        }
    }

    /// Lists, and watches from there until an error.
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
                    // Only a watch that reports something counts as a success.
                    self.backoff.reset();
                }
                () = sleep_until(list_at.into()) => {
                    list_at = Instant::now() + spread(self.settings.relist_every);
                    self.verify(&mut changes).await?;
                }
            }
        }
    }

    /// Lists the store. An error if the listing is older than the belief.
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
        tracing::error!(prefix = self.prefix, found, seen, "{}", log::STORE_WENT_BACK);
        self.mirror.0.restores.fetch_add(1, Ordering::Relaxed);
        self.older = 0;
        // Nothing in the old belief is true of the restored store.
        self.belief = Listing::default();
        Ok(listed)
    }

    /// Compares with a listing while the watch runs. The listing may show changes that the watch is about to report, so
    /// the watch is read until it reaches the listing's revision or its time is over.
    async fn verify(&mut self, changes: &mut Changes) -> Result<(), Lost> {
        // The watch is not read meanwhile, so the listing is at least as new as the belief.
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
        // The watch may still report changes from before the listing. They must not take the copy back.
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
            // A listing showed this change already; later changes that it showed must stay.
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
        tracing::error!(prefix = self.prefix, revision, difference, "{}", log::MIRROR_DIFFERS);
    }
}

/// A change up to the belief's revision that the listing shows and the belief lacks. Of later changes the belief knows
/// nothing.
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
        .map(|(key, entry)| format!("{key} of revision {} is missing here", entry.revision))
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

/// The part of a batch up to a revision, and the rest if there is one.
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
mod tests;
