//! What decisions remember: actions with their owner and phase, penalties, arrivals. It is committed together with the
//! plan, so that whoever leads next goes on where the last leader stopped.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use topology::{Intent, IntentKind, Moment, RegionId};

use crate::Penalty;

/// How long ended actions are remembered: a token used again within it is recognised.
const ENDED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most actions remembered; the oldest ended ones go first.
pub(crate) const ACTIONS_MAX: usize = 256;

/// What earlier decisions left to remember.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Everything asked for and every automatic move, by id.
    pub actions: BTreeMap<String, Action>,
    /// How often regions moved of late.
    pub penalties: BTreeMap<RegionId, Penalty>,
    /// Sessions sent to regions within the current reconnect window.
    pub arrivals: BTreeMap<RegionId, Arrivals>,
    /// The last plan that was taken back because nodes refused it, while automation rests.
    pub taken_back: Option<TakenBack>,
}

/// Sessions sent to a region within one reconnect window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// When the last of them were sent.
    pub since: Moment,
    /// How many were sent, each less than a window after the ones before.
    pub sessions: u32,
}

/// A plan that nodes refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakenBack {
    /// Its generation.
    pub generation: u64,
    /// Until when automation rests.
    pub until: Moment,
    /// What the nodes said.
    pub why: String,
}

/// Something asked for, or done by automation, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What, by whom and why. Automatic moves have the author [`PLANNER`].
    pub intent: Intent,
    /// How far it is.
    pub phase: Phase,
    /// Fencing token of the leader that carries it.
    pub owner: u64,
    /// When its phase last changed.
    pub changed_at: Moment,
    /// Who agreed to it, besides its author.
    pub approved_by: Option<String>,
    /// What came of it so far, in words.
    pub text: String,
}

/// The author of what nobody asked for.
pub const PLANNER: &str = "planner";

/// How far an action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A second person has to agree.
    AwaitingApproval,
    /// It goes on, or stands.
    Running,
    /// It came to its end.
    Done,
    /// A rule refused it after it had been approved.
    Refused,
    /// It was stopped, by an operator or by events.
    Aborted,
    /// Its time was over.
    Expired,
}

impl Phase {
    /// Its name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AwaitingApproval => "awaiting-approval",
            Self::Running => "running",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Aborted => "aborted",
            Self::Expired => "expired",
        }
    }

    /// Whether nothing more will come of it.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::AwaitingApproval | Self::Running)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Memory {
    /// The standing orders and running actions of a kind.
    pub fn running(&self, of: impl Fn(&IntentKind) -> bool) -> impl Iterator<Item = &Action> {
        self.actions
            .values()
            .filter(move |action| action.phase == Phase::Running && of(&action.intent.kind))
    }

    /// The freeze that ends last, if automation is frozen.
    pub fn freeze(&self, now: Moment) -> Option<&Intent> {
        self.running(|kind| *kind == IntentKind::Freeze)
            .map(|action| &action.intent)
            .filter(|intent| intent.is_live(now))
            .max_by_key(|intent| intent.expires_at)
    }

    /// The action that moves a region now, if one does.
    pub fn moving(&self, region: &RegionId) -> Option<&Action> {
        self.running(|kind| kind.region() == Some(region)).next()
    }

    /// Forgets what ended long ago.
    pub(crate) fn forget(&mut self, now: Moment) {
        self.actions
            .retain(|_, action| !action.phase.is_final() || now.since(action.changed_at) < ENDED_KEPT);
        // One place is kept free: whoever asks in an emergency is not told that others asked before.
        while self.actions.len() >= ACTIONS_MAX {
            let ended = self.actions.iter().filter(|(_, action)| action.phase.is_final());
            let Some(oldest) = ended
                .min_by_key(|(_, action)| action.changed_at)
                .map(|(id, _)| id.clone())
            else {
                return;
            };
            self.actions.remove(&oldest);
        }
    }
}
