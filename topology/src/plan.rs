//! The plan: where every session goes. A plan is immutable and numbered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{EdgeId, Level, Moment, Reason, Region, RegionId, Stack};

/// The order of plans: generation first, then epoch. A receiver refuses a plan whose number is not strictly greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PlanNumber {
    /// Grows by one with every plan.
    pub generation: u64,
    /// Fencing token of the leader that wrote the plan.
    pub epoch: u64,
}

impl fmt::Display for PlanNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.generation, self.epoch)
    }
}

/// The regions for the sessions of every primary. All maps are ordered, so that equal plans have equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Grows by one with every plan.
    pub generation: u64,
    /// Fencing token of the leader that wrote the plan.
    pub epoch: u64,
    /// Time at which the leader decided on the plan.
    pub created_at: Moment,
    /// Digest of the documents that the plan was made for ([`crate::snapshot::digest`]), so that one number cannot
    /// stand for two topologies.
    pub documents: String,
    /// The state of every region of the topology.
    pub regions: BTreeMap<RegionId, RegionPlan>,
    /// For every primary, the regions that get its sessions. The percentages sum to 100; the order is the order of
    /// overflow.
    pub routes: BTreeMap<RegionId, Vec<Share>>,
    /// The state of every edge of the topology.
    pub edges: BTreeMap<EdgeId, EdgeState>,
    /// Stacks that get no sessions although their regions may. No region has only such stacks.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained_stacks: BTreeSet<SocketAddr>,
    /// Replicated data that is not written by its primary: for each primary and data class, the region that writes it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub writers: BTreeMap<RegionId, BTreeMap<String, RegionId>>,
    /// The version of the stack that is being rolled out, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// The reasons for the differences from the plan before.
    pub reasons: Vec<Reason>,
}

impl Plan {
    /// The stacks of a region to which edges send sessions: the undrained stacks of the version in service, and those
    /// of the version that is being rolled out. In service is the version of the first undrained stack that is not of
    /// the rolled-out version. The health of the other stacks says nothing about the region.
    pub fn stacks_with_sessions<'r>(&self, region: &'r Region) -> Vec<&'r Stack> {
        self.stacks_in_use(region, &self.drained_stacks)
    }

    /// The stacks of a region that would get sessions if no stack were drained. The capacity of the region refers to
    /// these.
    pub fn stacks_at_full_strength<'r>(&self, region: &'r Region) -> Vec<&'r Stack> {
        self.stacks_in_use(region, &BTreeSet::new())
    }

    fn stacks_in_use<'r>(&self, region: &'r Region, drained: &BTreeSet<SocketAddr>) -> Vec<&'r Stack> {
        let undrained = region.stacks.iter().filter(|stack| !drained.contains(&stack.address));
        let undrained: Vec<&Stack> = undrained.collect();
        let rolled_out = self.rollout.as_ref().map(|it| it.version.as_str());
        let in_service = undrained
            .iter()
            .map(|stack| stack.version())
            .find(|it| Some(*it) != rolled_out);
        let is_everywhere = self.rollout.as_ref().is_some_and(|it| it.percent >= 100)
            && undrained.iter().any(|stack| Some(stack.version()) == rolled_out);
        let gets_some = |stack: &&Stack| {
            let version = Some(stack.version());
            version == rolled_out || (version == in_service && !is_everywhere)
        };
        undrained.into_iter().filter(gets_some).collect()
    }
}

/// The plan for one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPlan {
    /// Whether the region takes sessions, and which part of them.
    pub state: RegionState,
    /// The degradation of the region's service.
    pub level: Level,
    /// Time of the last change of `state`, including a change of its percentage.
    pub since: Moment,
}

/// Whether a region takes sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionState {
    /// The region takes every session planned for it.
    Serving,
    /// The region takes no sessions; its sessions went to its backups.
    Evacuated,
    /// The region has taken back this percentage (1..=99) of its own sessions.
    Restoring(u8),
    /// The region still has this percentage (1..=99) of its own sessions; the others have left already.
    Draining(u8),
}

/// A version of the stack that gets a share of the users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The version of the stack, as the topology names it.
    pub version: String,
    /// The percentage of users on the version, 1..=100, chosen by a stable hash of the user.
    pub percent: u8,
    /// Time of the last change of `percent`.
    pub since: Moment,
    /// Id of the action that runs the rollout.
    pub action: String,
}

impl fmt::Display for RegionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.pad("serving"),
            Self::Evacuated => f.pad("evacuated"),
            Self::Restoring(percent) => f.pad(&format!("restoring {percent} %")),
            Self::Draining(percent) => f.pad(&format!("draining {percent} %")),
        }
    }
}

/// One region's part of the sessions of a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The region that gets the sessions.
    pub region: RegionId,
    /// Its part of the sessions, in percent, 1..=100.
    pub percent: u8,
}

/// Whether DNS names an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub enum EdgeState {
    /// DNS answers name the edge.
    Serving,
    /// DNS answers leave the edge out.
    Drained,
}

impl Rollout {
    /// Whether a user is on the new version: the first eight bytes of the SHA-256 of version and user, as a fraction of
    /// their range, are below `percent`. A user stays on the version as the share grows. Another version begins with
    /// other users.
    pub fn takes(&self, user: &str) -> bool {
        let digest = Sha256::new()
            .chain_update(&self.version)
            .chain_update([0])
            .chain_update(user)
            .finalize();
        let head = digest.first_chunk().expect("a digest has 32 bytes");
        u64::from_be_bytes(*head) % 100 < u64::from(self.percent)
    }
}

impl Plan {
    /// The number that orders this plan among others.
    pub fn number(&self) -> PlanNumber {
        PlanNumber {
            generation: self.generation,
            epoch: self.epoch,
        }
    }

    /// Whether the plan sends any session to `region`.
    pub fn uses(&self, region: &RegionId) -> bool {
        self.routes.values().flatten().any(|share| &share.region == region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_an_edge_has_its_name_in_documents() {
        let states = [EdgeState::Serving, EdgeState::Drained];
        assert_eq!(states.map(|it| format!("{it:>8}")), [" serving", " drained"]);
        assert_eq!(
            states.map(|it| serde_json::to_value(it).unwrap()),
            ["serving", "drained"]
        );
    }

    #[test]
    fn sessions_go_to_stacks_that_are_not_drained_and_of_a_version_with_users() {
        let snapshot = crate::fixtures::three_primaries();
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (mut region, mut plan) = (
            snapshot.topology.regions.values().next().unwrap().clone(),
            snapshot.plan,
        );
        region.stacks = vec![
            address(1).into(),
            address(2).into(),
            Stack::of_version(address(3), "2.4.0").unwrap(),
            Stack::of_version(address(4), "2.5.0").unwrap(),
        ];
        let mut ports = |drained: &[u16], rollout: Option<(&str, u8)>| -> Vec<u16> {
            plan.drained_stacks = drained.iter().map(|port| address(*port)).collect();
            plan.rollout = rollout.map(|(version, percent)| Rollout {
                version: version.to_owned(),
                percent,
                since: Moment(0),
                action: "a1".into(),
            });
            let stacks = plan.stacks_with_sessions(&region);
            stacks.iter().map(|stack| stack.address.port()).collect()
        };
        assert_eq!(ports(&[], None), [1, 2]);
        assert_eq!(ports(&[1], None), [2]);
        assert_eq!(ports(&[], Some(("2.4.0", 10))), [1, 2, 3]);
        assert_eq!(ports(&[], Some(("2.4.0", 100))), [3]);
        // With the new version drained, edges send every user to the remaining stacks.
        assert_eq!(ports(&[3], Some(("2.4.0", 100))), [1, 2]);
        assert_eq!(ports(&[1, 2], None), [3]);
        assert_eq!(ports(&[], Some(("3.0.0", 50))), [1, 2]);
    }

    #[test]
    fn users_stay_on_a_version_as_its_share_grows() {
        let rollout = |version: &str, percent| Rollout {
            version: version.to_owned(),
            percent,
            since: Moment(0),
            action: String::new(),
        };
        let users: Vec<String> = (0..10_000).map(|user| format!("user-{user}")).collect();
        let on = |rollout: &Rollout| users.iter().filter(|user| rollout.takes(user)).collect::<Vec<_>>();
        let mut before = Vec::new();
        for percent in [10, 25, 50, 100] {
            let now = on(&rollout("v2", percent));
            assert!(
                now.len().abs_diff(usize::from(percent) * 100) < 200,
                "{percent} %: {}",
                now.len()
            );
            assert!(
                before.iter().all(|user| now.contains(user)),
                "somebody left at {percent} %"
            );
            before = now;
        }
        let (two, three) = (on(&rollout("v2", 10)), on(&rollout("v3", 10)));
        let both = two.iter().filter(|user| three.contains(user)).count();
        assert!(
            both < 200,
            "another version begins with other users, but {both} are the same"
        );
    }
}
