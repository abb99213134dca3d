//! What we believe about a region, and why.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};
use topology::{Level, Moment, NodeId, RegionId, Tick};

use crate::Trigger;

/// What we believe about a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which region.
    pub region: RegionId,
    /// What we believe.
    pub health: Health,
    /// How far its service should be degraded: the highest level that holds.
    pub level: Level,
    /// The failover trigger that fired, while `health` is down.
    pub trigger: Option<Trigger>,
    /// Whether it was still bad in the newest tick. A region that is down and no longer failing is on its way back.
    pub failing: bool,
    /// Every trigger that has fired and not cleared, failovers first and levels upwards.
    pub fired: Vec<Fired>,
    /// By whose word it is down or suspect: the vantages that saw the newest bad tick bad, in the order of names. None
    /// when it is neither, or when it fell before anything was seen here.
    pub bad_from: Vec<NodeId>,
    /// Since when every tick was known and good; none while the newest was not.
    pub healthy_since: Option<Moment>,
    /// Stacks that failed in so many ticks in a row as make a region bad, while others of the region served. A planner counts
    /// them out of the region's capacity; one bad tick of a stack that restarts moves nobody.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dead_stacks: BTreeSet<SocketAddr>,
    /// The tick that decided it.
    pub tick: Tick,
    /// One sentence for people.
    pub summary: String,
    /// What was seen, one fact a line.
    pub evidence: Vec<String>,
}

/// A trigger that has fired and not cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    /// Which.
    pub trigger: Trigger,
    /// Whether it was still bad when it was last known.
    pub failing: bool,
    /// Why it fired, or why it still holds.
    pub why: String,
}

/// What we believe about a region, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Every component works.
    Healthy,
    /// Something was bad in the last tick, and no trigger has fired.
    Suspect,
    /// It serves, with less: see the level.
    Degraded,
    /// A failover trigger has fired.
    Down,
    /// Too little was seen in the last tick to say; the verdict before it stands.
    NoData,
    /// Nothing has been seen for so long that nothing may be decided.
    Blind,
}

impl Health {
    /// The name used in tables and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::NoData => "no-data",
            Self::Blind => "blind",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who recognises a region's speech: the three ways out of the question "is ASR available?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// It is available: the region does.
    Normal,
    /// It is degraded: the edge does, with a smaller model.
    EdgeAsr,
    /// It is gone: a backup region does, and the user is told.
    BackupRegion,
}

impl Verdict {
    /// Who should recognise the region's speech. None while blind: nobody knows, and what was stays.
    pub fn service(&self) -> Option<Service> {
        match self.health {
            Health::Blind => None,
            Health::Down => Some(Service::BackupRegion),
            _ if self.has_fired(Trigger::AsrDegraded) => Some(Service::EdgeAsr),
            _ => Some(Service::Normal),
        }
    }

    /// The levels that hold and why, upwards. More than one can hold: a region whose recognition is slow and whose skills
    /// are gone needs both measures.
    pub fn levels(&self) -> impl Iterator<Item = (Level, &Fired)> {
        self.fired
            .iter()
            .filter_map(|fired| fired.trigger.level().map(|level| (level, fired)))
    }

    /// Whether a trigger has fired and not cleared.
    pub fn has_fired(&self, trigger: Trigger) -> bool {
        self.fired.iter().any(|fired| fired.trigger == trigger)
    }
}

/// What was believed before the ticks at hand. What had fallen has to rise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Before {
    /// The triggers that had fired and not cleared.
    pub fallen: BTreeSet<Trigger>,
}

impl Before {
    /// What a plan lets us believe after a restart: whether the region was evacuated, and the level it is served at. The
    /// plan does not say which failover trigger had fired; the gateway's is the one that every region can clear. Nor does it
    /// say which levels held below the highest; those have to fall again.
    pub fn planned(evacuated: bool, level: Level) -> Self {
        let held = |trigger: &Trigger| match trigger.level() {
            Some(asked) => asked == level,
            None => evacuated && *trigger == Trigger::GatewayConnections,
        };
        let fallen = Trigger::ALL.into_iter().filter(held).collect();
        Self { fallen }
    }
}

impl From<&Verdict> for Before {
    fn from(verdict: &Verdict) -> Self {
        let fallen = verdict.fired.iter().map(|fired| fired.trigger).collect();
        Self { fallen }
    }
}
