//! The plans of this edge: the one in force, and the one before for questions about its choices.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use routing::{Role, Table, continuity::LeaveReason};
use tokio::sync::watch;
use topology::RegionId;

/// The plan in force and the one before, compiled.
#[derive(Debug)]
pub struct Plans {
    /// `None` only until the first plan; the edge accepts no device before that.
    in_force: ArcSwapOption<Table>,
    previous: ArcSwapOption<Table>,
    /// Changes whenever a plan comes in force.
    changed: watch::Sender<()>,
}

impl Default for Plans {
    fn default() -> Self {
        Self {
            in_force: ArcSwapOption::empty(),
            previous: ArcSwapOption::empty(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Plans {
    /// Puts a plan in force by one swap of a pointer. A reader of the old plan keeps it until its session or request ends.
    pub(crate) fn put(&self, table: Table) {
        self.previous.store(self.in_force.swap(Some(Arc::new(table))));
        self.changed.send_replace(());
    }

    /// The plan in force. Take it once and keep it for the entire session or request.
    pub fn in_force(&self) -> Option<Arc<Table>> {
        self.in_force.load_full()
    }

    /// The plan in force and the one before.
    pub fn all(&self) -> impl Iterator<Item = Arc<Table>> {
        [self.in_force.load_full(), self.previous.load_full()]
            .into_iter()
            .flatten()
    }

    /// The plan of a generation, if it is the one in force or the one before.
    pub fn of_generation(&self, generation: u64) -> Option<Arc<Table>> {
        self.all().find(|table| table.number().generation == generation)
    }

    /// Resolves when the plan wants the sessions of a region, or of one of its stacks, gone.
    ///
    /// Sessions that fled to a region that no plan gave them stay there. A session of the home `guest_of` was resumed in the region for
    /// its memory, and leaves unless the plan sends sessions of that home there. When the region was evacuated before, it leaves
    /// between turns, because its stack works. With `newer` only a later plan than the one in force counts.
    pub async fn asks_to_leave(
        &self,
        region: RegionId,
        stack: SocketAddr,
        guest_of: Option<RegionId>,
        newer: bool,
    ) -> LeaveReason {
        let is_guest = |table: &Table| guest_of.as_ref().is_some_and(|home| !table.sends(home, &region));
        let mut changes = self.changed.subscribe();
        let mut was_planned = guest_of.is_some();
        let mut counts = !newer;
        let mut is_first = true;
        loop {
            if let Some(table) = self.in_force() {
                match table.role(&region) {
                    Role::Evacuated if counts && is_first && guest_of.is_some() => return LeaveReason::Drained,
                    Role::Evacuated if counts => return LeaveReason::Evacuated,
                    Role::Unplanned if counts && was_planned => return LeaveReason::Drained,
                    _ if counts && !table.serves(&region, stack) => return LeaveReason::Drained,
                    Role::Planned if counts && is_guest(&table) => return LeaveReason::Drained,
                    Role::Planned => was_planned = true,
                    Role::Evacuated | Role::Unplanned => {}
                }
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            (counts, is_first) = (true, false);
        }
    }
}
