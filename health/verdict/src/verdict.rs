//! The belief about a region, and its reasons.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};
use topology::{Component, Level, Moment, NodeId, RegionId, Tick};

use crate::Trigger;

/// The belief about a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The region.
    pub region: RegionId,
    /// The health in one word.
    pub health: Health,
    /// The highest level of degradation that holds.
    pub level: Level,
    /// The failover trigger that fired, while `health` is down.
    pub trigger: Option<Trigger>,
    /// Whether that trigger was still bad in the newest tick. A region that is down and no longer failing is
    /// recovering.
    pub failing: bool,
    /// Every trigger that has fired and not cleared, failovers first and levels upwards.
    pub fired: Vec<Fired>,
    /// The vantages that saw the newest bad tick bad, in the order of names. Empty when the region is neither down nor
    /// suspect, or when it fell before this process saw it.
    pub bad_from: Vec<NodeId>,
    /// Begin of the time in which every tick was known and good; none while the newest was not.
    pub healthy_since: Option<Moment>,
    /// Stacks that failed, in gateway or recognition, in as many ticks in a row as make a gateway bad, while others of
    /// the region served. A planner subtracts them from the region's capacity; one bad tick of a restarting stack moves
    /// no session.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dead_stacks: BTreeSet<SocketAddr>,
    /// Stacks that answer and failed in a component for as long. Their callers notice, and no rule moves these
    /// sessions: for every check from outside, the stack takes them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ailing_stacks: BTreeMap<SocketAddr, Ailment>,
    /// The first component without any trigger in which the region as a whole failed for as long: too few of its stacks
    /// work in it. Draining one of them does not help then, and no rule acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<Component>,
    /// The newest tick of the verdict.
    pub tick: Tick,
    /// One sentence for people.
    pub summary: String,
    /// The facts, one a line.
    pub evidence: Vec<String>,
}

/// The trouble of a stack that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ailment {
    /// The component in trouble. If there are several, recognition comes first, because callers cannot do without it.
    pub component: Component,
    /// Errors or slowness.
    pub trouble: Trouble,
}

/// The trouble of a component of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// It fails too often.
    Fails,
    /// It takes too long.
    Slow,
}

/// A trigger that has fired and not cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    /// The trigger.
    pub trigger: Trigger,
    /// Whether it was still bad in the newest known tick.
    pub failing: bool,
    /// The reason for which it fired, or for which it still holds.
    pub why: String,
}

/// The belief about a region, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Health {
    /// Every component works.
    Healthy,
    /// A tick was bad, and no trigger has fired.
    Suspect,
    /// The region serves, with less: see the level.
    Degraded,
    /// A failover trigger has fired.
    Down,
    /// Too few samples in the last tick; the verdict before it stands.
    NoData,
    /// No samples for so long that nothing may be decided.
    Blind,
}

impl Health {
    /// The name used in tables and documents.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The place that recognises a region's speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// ASR is available: the region itself.
    Normal,
    /// ASR is degraded: the edge, with a smaller model.
    EdgeAsr,
    /// ASR is gone: a backup region, and the user is told.
    BackupRegion,
}

impl Verdict {
    /// The place that should recognise the region's speech. None while blind: the place before stays.
    pub fn service(&self) -> Option<Service> {
        match self.health {
            Health::Blind => None,
            Health::Down => Some(Service::BackupRegion),
            _ if self.has_fired(Trigger::AsrDegraded) => Some(Service::EdgeAsr),
            _ => Some(Service::Normal),
        }
    }

    /// The levels that hold, each with its trigger, upwards. More than one can hold: a region with slow recognition and
    /// dead skills needs both measures.
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

/// The belief before these ticks. A fallen trigger has to rise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Before {
    /// The triggers that had fired and not cleared.
    pub fallen: BTreeSet<Trigger>,
}

impl Before {
    /// The belief of a plan, after a restart: the region was evacuated or not, and its level. The plan does not name
    /// the failover trigger that had fired; the gateway's is the one that every region can clear. Nor does it name the
    /// levels that held below the highest; their triggers have to fall again.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_has_its_name_in_documents() {
        for (health, name) in [
            (Health::Healthy, "healthy"),
            (Health::Suspect, "suspect"),
            (Health::Degraded, "degraded"),
            (Health::Down, "down"),
            (Health::NoData, "no-data"),
            (Health::Blind, "blind"),
        ] {
            assert_eq!(
                (health.as_str(), serde_json::to_value(health).unwrap()),
                (name, name.into())
            );
            assert_eq!(format!("{health:>9}"), format!("{name:>9}"), "tables pad it");
        }
    }
}
