//! The reports of one session to the edge that holds its device, each only if that edge asked for it.

use super::{
    reports::{CheckpointReports, LoadReports},
    turns::TurnReports,
};

/// The reports that an edge asked for in the headers of the upgrade.
#[derive(Clone, Copy)]
pub(super) struct AskedReports {
    pub(super) load: bool,
    pub(super) turns: bool,
}

#[derive(Default)]
pub(super) struct EdgeReports {
    /// The outcome of turns.
    pub(super) turns: TurnReports,
    /// Checkpoints, for an edge that can carry the session to another region.
    pub(super) checkpoints: Option<CheckpointReports>,
    /// The load of the stack.
    pub(super) load: Option<LoadReports>,
}
