//! Stories that only an edge on time tells: a late one blames itself for what did not come in time, and is right.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::World;

/// The edge remembers its own lateness for two seconds at least.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// No edge forgives itself a shorter deadline for less than this one.
const SHORTEST_DEADLINE: Duration = Duration::from_secs(1);
/// A machine that makes every edge late so often is too busy for any test.
const TRIES_MAX: usize = 10;

/// Notices when the edges of a story are late.
#[derive(Default)]
pub struct Lateness {
    was_late: Arc<AtomicBool>,
    watching: Mutex<JoinSet<()>>,
}

impl Lateness {
    /// Watches the edge of this world until the story ends.
    pub fn of(&self, world: World) -> World {
        let (edge, was_late) = (world.edge.clone(), self.was_late.clone());
        self.watching.lock().spawn(async move {
            loop {
                was_late.fetch_or(edge.lag.is_late_for(SHORTEST_DEADLINE), Ordering::Relaxed);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        world
    }
}

/// Tells a story that fails again, from its beginning, if an edge of it was late. A story that fails with edges on time
/// fails the test at once.
pub async fn unless_late(story: impl AsyncFn(&Lateness)) {
    for tries_left in (0..TRIES_MAX).rev() {
        let lateness = Lateness::default();
        // The story begins anew, with nothing that a failure could have left half done.
        let Err(failed) = AssertUnwindSafe(story(&lateness)).catch_unwind().await else {
            return;
        };
        // The watch looks once more: this thread may have been as late as the edge.
        tokio::time::sleep(2 * LOOK_EVERY).await;
        if tries_left == 0 || !lateness.was_late.load(Ordering::Relaxed) {
            resume_unwind(failed);
        }
        eprintln!("The edge was late; the story is told again.");
    }
}
