//! What decisions remember: actions with their owner and phase, penalties, arrivals. It is committed together with the
//! plan, so that whoever leads next goes on where the last leader stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use topology::{EdgeId, Intent, IntentKind, Moment, RegionId};

use crate::{Believed, Penalty};

/// How long ended actions are remembered: a token used again within it is recognised.
const ENDED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most actions remembered; the oldest ended ones go first.
pub(crate) const ACTIONS_MAX: usize = 256;
/// Most that ended actions may take in a document. It is written three times with each plan, so it takes a fifth of what the
/// store holds at most.
const ENDED_BYTES_MAX: usize = 96 << 10;
/// Most orders that stand or wait for approval: far more than people can keep in mind, and far below `ACTIONS_MAX`, so that
/// they crowd out neither those that move regions nor the memory of those that ended.
pub(crate) const STANDING_MAX: usize = 64;

/// What earlier decisions left to remember.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Everything asked for and every automatic move, by id.
    pub actions: BTreeMap<String, Action>,
    /// How often regions moved of late.
    pub penalties: BTreeMap<RegionId, Penalty>,
    /// Sessions sent to regions that limit their connections, while they are still coming.
    pub arrivals: BTreeMap<RegionId, Arrivals>,
    /// The last plan that was taken back because nodes refused it, while automation rests.
    pub taken_back: Option<TakenBack>,
    /// How each region was when it was last seen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub believed: BTreeMap<RegionId, Believed>,
    /// Regions that are away because a person emptied them while they were well.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub on_purpose: BTreeSet<RegionId>,
    /// Edges that DNS does not name because nothing is heard of them, and since when.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost_edges: BTreeMap<EdgeId, Moment>,
}

/// Sessions sent to a region that are still coming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// When the last of them were sent.
    pub since: Moment,
    /// How many were sent, each less than a window after the ones before.
    pub sessions: u32,
}

impl Arrivals {
    /// When all of them are there: after a reconnect window, or after as long as the region takes to accept them.
    pub(crate) fn end(&self, per_second: u32, window: Duration) -> Moment {
        let takes = Duration::from_millis((u64::from(self.sessions) * 1000).div_ceil(u64::from(per_second.max(1))));
        self.since + window.max(takes)
    }
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
    /// What whoever approves it is shown, and agrees to: by what it is, in words. What is not in it asks again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shown: BTreeMap<String, String>,
}

/// The author of what nobody asked for.
pub const PLANNER: &str = "planner";

/// The author of orders that only a recovered plan still shows: the store forgot who gave them.
pub const RECOVERED: &str = "recovered";

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

    /// Whether a safety rule does not count now.
    pub fn overrides(&self, rule: topology::Rule, now: Moment) -> bool {
        let of = |kind: &IntentKind| matches!(kind, IntentKind::Override { rule: it } if *it == rule);
        self.running(of).any(|action| action.intent.is_live(now))
    }

    /// The action that moves a region now, if one does.
    pub fn moving(&self, region: &RegionId) -> Option<&Action> {
        self.running(|kind| kind.region() == Some(region)).next()
    }

    /// Forgets what ended long ago, and the oldest of what is more than can be kept.
    pub(crate) fn forget(&mut self, now: Moment) {
        let ended = self.actions.values().filter(|action| action.phase.is_final());
        let mut ended: Vec<(Moment, String)> = ended.map(|it| (it.changed_at, it.intent.id.clone())).collect();
        ended.sort();
        let (mut kept, mut bytes) = (self.actions.len() - ended.len(), 0);
        for (changed_at, id) in ended.into_iter().rev() {
            // One place is kept free: whoever asks in an emergency is not told that others asked before.
            let fits = kept + 1 < ACTIONS_MAX && bytes < ENDED_BYTES_MAX;
            if !fits || now.since(changed_at) >= ENDED_KEPT {
                self.actions.remove(&id);
                continue;
            }
            kept += 1;
            bytes += self.actions.get(&id).map_or(0, Action::bytes);
        }
    }
}

impl Action {
    /// About what it takes in a document.
    fn bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |bytes| bytes.len())
    }
}
