//! The standing of a replica: whether it leads, and how far the steps of its decisions come.

use topology::{Moment, Reason};

use crate::{
    store::StoreError,
    texts::log,
    view::{Leader, Progress, Role, Unwritten},
};

pub(super) struct Standing {
    pub(super) role: Role,
    pub(super) progress: Progress,
}

impl Standing {
    /// A replica that knows no leader yet.
    pub(super) fn new(now: Moment) -> Self {
        Self {
            role: Role::Following(Leader::Nobody),
            progress: Progress {
                leaderless_since: Some(now),
                ..Progress::default()
            },
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.role == Role::Leading
    }

    pub(super) fn set_role(&mut self, role: Role, now: Moment) {
        let known_since = self.progress.leaderless_since;
        self.progress.leaderless_since = match role {
            Role::Leading | Role::Following(Leader::Known(_)) => None,
            Role::Following(_) => known_since.or(Some(now)),
        };
        self.role = role;
    }

    /// Notes that decisions cannot be written. Logs each kind of error once.
    pub(super) fn note_unwritable(&mut self, error: StoreError, pending: Vec<Reason>, is_retried: bool, now: Moment) {
        let known = self.progress.unwritten.as_ref();
        let is_news = known.is_none_or(|known| std::mem::discriminant(&known.error) != std::mem::discriminant(&error));
        if is_news {
            tracing::error!(%error, "{}", log::CANNOT_WRITE);
        } else {
            tracing::debug!(%error, "decisions still cannot be written");
        }
        self.progress.unwritten = Some(Unwritten {
            since: known.map_or(now, |known| known.since),
            is_retried: is_retried || known.is_some_and(|known| known.is_retried),
            error,
            pending,
        });
    }

    /// Notes that decisions can be written. Returns whether they could not be before.
    pub(super) fn note_writable(&mut self) -> bool {
        let Some(unwritten) = self.progress.unwritten.take() else {
            return false;
        };
        tracing::info!(since = %unwritten.since, "decisions can be written again");
        true
    }

    /// Notes that the store took a write, or that nothing had to be written: no decision waits for it any more. Its health check
    /// finds out whether it takes writes.
    pub(super) fn note_nothing_waits(&mut self) {
        if let Some(unwritten) = &mut self.progress.unwritten {
            unwritten.is_retried = false;
            unwritten.pending.clear();
        }
    }

    /// The decisions that wait for the store, to be noted again with its next error.
    pub(super) fn take_pending(&mut self) -> Vec<Reason> {
        let unwritten = self.progress.unwritten.as_mut();
        unwritten.map(|it| std::mem::take(&mut it.pending)).unwrap_or_default()
    }
}
