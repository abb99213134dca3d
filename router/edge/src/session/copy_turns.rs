//! Turns at copying sessions to other stacks ([`super::copies`]).

use tokio::sync::{Semaphore, SemaphorePermit};

/// Most sessions whose copies are under way at once. When an edge stops, thousands of sessions end together, and their devices return at
/// once: their copies are not worth a rush on the stacks.
pub(super) const AT_ONCE_MAX: usize = 64;

/// Limits the copies that are under way.
#[derive(Debug)]
pub struct CopyTurns(Semaphore);

impl CopyTurns {
    /// Waits for a turn, which lasts until the result is dropped. `None` never comes: nobody closes the semaphore.
    pub(super) async fn next(&self) -> Option<SemaphorePermit<'_>> {
        self.0.acquire().await.ok()
    }
}

impl Default for CopyTurns {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE_MAX))
    }
}
