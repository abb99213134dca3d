//! Marks of sessions that have a file, and of files that are out of date. They need no queue: a session that is saved ten times
//! before the writer gets to it is written once, so there are never more of them than sessions.

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
    /// The disk took not all of what was written last.
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

    /// Shows the counts from here on.
    pub(super) fn show_in(&self, metrics: &Metrics) {
        // Set once, by the one writer.
        let _ = self.shown.set(Shown {
            on_disk: metrics.sessions_on_disk.clone(),
            unwritten: metrics.sessions_unwritten.clone(),
        });
        self.show(&self.lock());
    }

    /// The memory of a session changed. It needs a file when it `owes_something`, and none otherwise.
    pub(super) fn changed(&self, session: &str, owes_something: bool) {
        let mut inner = self.lock();
        let needs_file = owes_something && is_session_name(session);
        if needs_file || inner.on_disk.contains(session) {
            inner.due.insert(session.to_owned());
            self.show(&inner);
            self.added.notify_one();
        }
    }

    /// These sessions are remembered no more.
    pub(super) fn dropped(&self, sessions: impl IntoIterator<Item = String>) {
        for session in sessions {
            self.changed(&session, false);
        }
    }

    /// No session has its file any more.
    pub(super) fn all_changed(&self) {
        let mut inner = self.lock();
        let Inner { on_disk, due, .. } = &mut *inner;
        due.extend(on_disk.iter().cloned());
        self.show(&inner);
        self.added.notify_one();
    }

    /// A file was found for the session.
    pub(super) fn found(&self, session: &str) {
        self.lock().on_disk.insert(session.to_owned());
    }

    /// Resolves when something was marked since it resolved last.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Hands over the sessions whose file is out of date. From here on each of these may have a file: one that changes while it is written is marked
    /// again.
    pub(super) fn take(&self) -> Vec<String> {
        let mut inner = self.lock();
        let due: Vec<String> = std::mem::take(&mut inner.due).into_iter().collect();
        inner.on_disk.extend(due.iter().cloned());
        inner.under_way = due.len();
        due
    }

    /// Takes back the outcome.
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
