//! Marks of sessions that have a file, and of files that are out of date. No queue is needed: the writer writes a session once that was
//! saved ten times before, so there are never more marks than sessions.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use super::Durability;
use crate::{ids::is_session_name, metrics::Metrics};

/// The marks of one folder.
#[derive(Debug, Default)]
pub(super) struct Marks {
    inner: Mutex<Inner>,
    added: Notify,
    /// Whether the disk refused a part of the last write.
    is_failing: AtomicBool,
    shown: OnceLock<Shown>,
}

/// The counts, as metrics.
#[derive(Debug)]
struct Shown {
    on_disk: Gauge,
    unwritten: Gauge,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sessions that have a file, or may have one.
    on_disk: HashSet<String>,
    /// Sessions whose file is out of date.
    due: BTreeSet<String>,
    /// Sessions whose file is being written or removed.
    under_way: usize,
}

impl Inner {
    fn unwritten(&self) -> usize {
        self.due.len() + self.under_way
    }
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    fn show(&self, inner: &Inner) {
        let Some(shown) = self.shown.get() else { return };
        let shows = |gauge: &Gauge, count: usize| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        shows(&shown.on_disk, inner.on_disk.len());
        shows(&shown.unwritten, inner.unwritten());
    }

    /// Shows the counts as metrics from here on.
    pub(super) fn show_in(&self, metrics: &Metrics) {
        // The one writer sets it once.
        let _ = self.shown.set(Shown {
            on_disk: metrics.sessions_on_disk.clone(),
            unwritten: metrics.sessions_unwritten.clone(),
        });
        self.show(&self.lock());
    }

    /// Notes that the memory of a session changed. The session needs a file if it `owes_something`, and none otherwise.
    pub(super) fn changed(&self, session: &str, owes_something: bool) {
        let mut inner = self.lock();
        let needs_file = owes_something && is_session_name(session);
        if needs_file || inner.on_disk.contains(session) {
            inner.due.insert(session.to_owned());
            self.show(&inner);
            self.added.notify_one();
        }
    }

    /// Notes that the store forgot these sessions.
    pub(super) fn dropped(&self, sessions: impl IntoIterator<Item = String>) {
        for session in sessions {
            self.changed(&session, false);
        }
    }

    /// Notes that every file is lost.
    pub(super) fn all_changed(&self) {
        let mut inner = self.lock();
        let Inner { on_disk, due, .. } = &mut *inner;
        due.extend(on_disk.iter().cloned());
        self.show(&inner);
        self.added.notify_one();
    }

    /// Notes that the folder has a file of the session.
    pub(super) fn found(&self, session: &str) {
        self.lock().on_disk.insert(session.to_owned());
    }

    /// Resolves when a session was marked since it last resolved.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Hands over the sessions whose file is out of date. From here on each of them may have a file. A session that changes during the
    /// write is marked again.
    pub(super) fn take(&self) -> Vec<String> {
        let mut inner = self.lock();
        let due: Vec<String> = std::mem::take(&mut inner.due).into_iter().collect();
        inner.on_disk.extend(due.iter().cloned());
        inner.under_way = due.len();
        due
    }

    /// Takes the outcome of the write.
    pub(super) fn done(&self, removed: &[String], failed: Vec<String>) {
        let mut inner = self.lock();
        for session in removed {
            inner.on_disk.remove(session);
        }
        inner.due.extend(failed);
        inner.under_way = 0;
        self.show(&inner);
    }

    pub(super) fn set_failing(&self, is_failing: bool) {
        self.is_failing.store(is_failing, Ordering::Relaxed);
    }

    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Sessions whose file is out of date.
    pub(super) fn unwritten(&self) -> usize {
        self.lock().unwritten()
    }

    pub(super) fn durability(&self) -> Durability {
        match self.is_failing() {
            true => Durability::Failing {
                unwritten: self.unwritten(),
            },
            false => Durability::OnDisk,
        }
    }
}
