//! The one connection that speaks for a session. A device that lost its network connects again while the stack still takes its old
//! connection for alive, and a device that was started twice has two connections. The newest one has the session; the stack sends the
//! others an error and closes them. Otherwise an alarm would ring on each, and the last to save would undo the changes of the others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// Time for the older connection to save the session.
const HANDOVER: Duration = Duration::from_millis(500);

/// The connected sessions, by name.
#[derive(Debug, Default)]
pub(crate) struct Live {
    claims: Mutex<HashMap<String, Marks>>,
}

#[derive(Debug, Clone, Default)]
struct Marks {
    /// A newer connection has the session.
    taken: CancellationToken,
    /// The connection has saved the session and left it.
    left: CancellationToken,
    /// The newer connection waits no longer for the older one.
    too_late: CancellationToken,
}

/// A connection's claim to a session, for as long as it exists.
#[derive(Debug)]
pub(crate) struct Claim {
    live: Arc<Live>,
    name: String,
    marks: Marks,
}

impl Live {
    /// Takes a session over from the connection that has it, and waits a moment until that connection has saved it.
    pub(crate) async fn claim(self: &Arc<Self>, name: &str) -> Claim {
        let claim = Claim {
            live: Arc::clone(self),
            name: name.to_owned(),
            marks: Marks::default(),
        };
        let before = {
            let mut claims = self.lock();
            let before = claims.insert(name.to_owned(), claim.marks.clone());
            // Under the lock: otherwise the end of the older claim might remove the new one.
            before.inspect(|before| before.taken.cancel())
        };
        if let Some(before) = before {
            let waited = tokio::time::timeout(HANDOVER, before.left.cancelled()).await;
            if waited.is_err() {
                before.too_late.cancel();
            }
        }
        claim
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Marks>> {
        self.claims.lock()
    }
}

impl Claim {
    /// Resolves when a newer connection has the session.
    pub(crate) async fn taken(&self) {
        self.marks.taken.cancelled().await;
    }

    /// Whether a newer connection has the session.
    pub(crate) fn is_taken(&self) -> bool {
        self.marks.taken.is_cancelled()
    }

    /// Whether the newer connection, if there is one, still waits for this one to save the session.
    pub(crate) fn may_save(&self) -> bool {
        !self.marks.too_late.is_cancelled()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.marks.left.cancel();
        let mut claims = self.live.lock();
        if !self.is_taken() {
            claims.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_newest_connection_has_the_session() {
        let live = Arc::new(Live::default());
        let first = live.claim("a").await;
        let other = live.claim("b").await;
        assert!(!first.is_taken());
        // The first connection does not leave; the second waits a moment for it and no longer.
        let second = live.claim("a").await;
        assert!(first.is_taken() && !second.is_taken() && !other.is_taken());
        assert!(!first.may_save() && second.may_save());
        drop(first);
        let third = live.claim("a").await;
        assert!(
            second.is_taken() && !third.is_taken(),
            "the first one's end took nothing from the second"
        );
        drop((second, third, other));
        assert!(live.lock().is_empty());
    }

    #[tokio::test]
    async fn the_newer_connection_waits_until_the_older_has_saved() {
        let live = Arc::new(Live::default());
        let first = live.claim("a").await;
        let older = tokio::spawn(async move {
            first.taken().await;
            // A connection saves the session at this point.
            tokio::task::yield_now().await;
            drop(first);
        });
        let _second = live.claim("a").await;
        hang_means_failure(older).await;
    }

    async fn hang_means_failure<T>(task: tokio::task::JoinHandle<T>) -> T {
        let waited = tokio::time::timeout(Duration::from_secs(10), task).await;
        waited.expect("the older one was told").expect("it does not panic")
    }
}
