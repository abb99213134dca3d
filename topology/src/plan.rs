//! The plan: the whole routing truth, immutable and numbered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{EdgeId, Level, Moment, Region, RegionId, Stack};

/// What makes one plan newer than another. A receiver refuses anything that is not strictly greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PlanNumber {
    /// Grows by one with every plan.
    pub generation: u64,
    /// Fencing token of the leader that wrote it.
    pub epoch: u64,
}

impl fmt::Display for PlanNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.generation, self.epoch)
    }
}

/// The whole routing truth. Maps are ordered, so the same plan is always the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Grows by one with every plan.
    pub generation: u64,
    /// Fencing token of the leader that wrote it.
    pub epoch: u64,
    /// When it was decided.
    pub created_at: Moment,
    /// Digest of the documents it was made for: one number never means two worlds ([`crate::snapshot::digest`]).
    pub documents: String,
    /// Every region of the topology.
    pub regions: BTreeMap<RegionId, RegionPlan>,
    /// For every primary: where sessions at home there go. Percentages sum to 100; the order is the overflow order.
    pub routes: BTreeMap<RegionId, Vec<Share>>,
    /// Every edge of the topology.
    pub edges: BTreeMap<EdgeId, EdgeState>,
    /// Stacks that get no sessions, though their regions may. No region has only such stacks.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained_stacks: BTreeSet<SocketAddr>,
    /// Replicated data whose writer is not its primary: for each such primary and data class, the region that writes it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub writers: BTreeMap<RegionId, BTreeMap<String, RegionId>>,
    /// The version of the stack that is being rolled out, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Why this plan differs from the one before.
    pub reasons: Vec<Reason>,
}

impl Plan {
    /// The stacks of a region that sessions are sent to, as edges do it: those that are not drained, of the version in service,
    /// which is that of the first of them that is not rolled out, and of the version that is rolled out to some. What happens to
    /// the others says nothing of the region.
    pub fn stacks_with_sessions<'r>(&self, region: &'r Region) -> Vec<&'r Stack> {
        let undrained = region
            .stacks
            .iter()
            .filter(|stack| !self.drained_stacks.contains(&stack.address));
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

/// What the plan says about one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPlan {
    /// Whether it takes sessions.
    pub state: RegionState,
    /// How far its service is degraded.
    pub level: Level,
    /// When `state` (or its restore step) last changed.
    pub since: Moment,
}

/// Whether a region takes sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionState {
    /// It takes every session planned for it.
    Serving,
    /// It takes none; its sessions went to its backups.
    Evacuated,
    /// It takes back this percentage (1..=99) of the sessions at home there.
    Restoring(u8),
    /// It still takes this percentage (1..=99) of the sessions at home there; the others left already.
    Draining(u8),
}

/// A version of the stack that a share of the users is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Which version.
    pub version: String,
    /// Users on it, in percent, by a stable hash of the user: 1..=100.
    pub percent: u8,
    /// When `percent` last changed.
    pub since: Moment,
    /// The action that carries it.
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

/// A part of a primary's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Where they go.
    pub region: RegionId,
    /// How many of them, in percent, 1..=100.
    pub percent: u8,
}

/// Whether DNS names an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EdgeState {
    /// Named in answers.
    Serving,
    /// Left out of answers.
    Drained,
}

impl fmt::Display for EdgeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serving => "serving",
            Self::Drained => "drained",
        })
    }
}

/// Why something changed, was refused, or waits. Machine-readable by its code, and in words.
///
/// Of a plan this is the part for people: no node routes by it. So a node reads codes and fields that it does not know, which
/// a newer control plane may write, and keeps its plan up to date; every other part of a plan has to be understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which rule spoke.
    pub code: ReasonCode,
    /// The region it is about, if one.
    pub region: Option<RegionId>,
    /// One sentence for people.
    pub text: String,
    /// What the rule saw, one fact a line.
    pub evidence: Vec<String>,
    /// For what waits, and for refusals that end by themselves: until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Moment>,
}

/// The rules that change plans, refuse changes, or wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonCode {
    /// The first plan of a deployment.
    Genesis,
    /// The topology changed.
    TopologyChanged,
    /// A trigger fired and the region's sessions move to its backups.
    Failover,
    /// An operator moved the region's sessions to its backups.
    ForcedFailover,
    /// The region takes back a step of its sessions.
    RestoreStep,
    /// The region has all its sessions back.
    RestoreDone,
    /// The returning region failed its guard and was evacuated again.
    RestoreAborted,
    /// An operator moves the region's sessions away in steps.
    Switchover,
    /// The region gives away another part of its sessions.
    DrainStep,
    /// Another region became the writer of the region's replicated data.
    Promoted,
    /// The region writes its replicated data itself again.
    Demoted,
    /// An edge is left out of DNS answers.
    EdgeDrained,
    /// An edge is named in DNS answers again.
    EdgeRestored,
    /// A stack gets no sessions.
    StackDrained,
    /// A stack gets sessions again.
    StackRestored,
    /// More users go to the version that is rolled out.
    RolloutStep,
    /// All users are on the version that was rolled out.
    RolloutDone,
    /// All users go to the old version again.
    RolledBack,
    /// Nodes refused the plan, so the last acknowledged one is in force again.
    PlanTakenBack,
    /// An operator lifted a hold-down.
    Acknowledged,
    /// A second person agreed.
    Approved,
    /// An operator stopped an action.
    Aborted,
    /// An operator ended every freeze.
    Unfrozen,
    /// A safety rule does not count for a time.
    RuleOverridden,
    /// What was asked for is the case already.
    AlreadySo,
    /// A request or a standing order ended by its own time.
    Expired,
    /// The degradation level changed.
    LevelChanged,
    /// Nodes held a newer plan than the store.
    PlanRecovered,
    /// Waits: nodes say that they hold a newer plan than the store, and too few hold the same.
    PlanUnproven,
    /// Waits: the document in force was taken by an older version, and is read within the limits of this one.
    OutdatedDocument,
    /// An edge is left out of DNS answers because nothing was heard of it.
    EdgeLost,
    /// An edge that was lost is named in DNS answers again.
    EdgeReturned,
    /// Waits: an edge is lost and stays in DNS answers, because too many others would be left out.
    EdgeFloor,
    /// The clock went back.
    ClockWentBack,
    /// Refused: no backup of the region is fit to take its sessions.
    NoFitBackup,
    /// Refused: the backups lack headroom for the region's sessions.
    NoHeadroom,
    /// Refused: everything looks dead, so weights are kept until an operator decides.
    EverythingLooksDead,
    /// Refused: two or more primaries turned bad together, so weights are kept until an operator decides.
    CorrelatedEvidence,
    /// Refused: as many regions as automation may leave are bad or moving already.
    EvacuationLimit,
    /// Refused: too few regions would be left serving.
    RegionsServingMin,
    /// Refused: automation is frozen.
    Frozen,
    /// Refused: the region is not healthy enough to return.
    NotHealthy,
    /// Refused: the policy turns automation off.
    AutomationOff,
    /// Refused: the region moved too often of late.
    HoldDown,
    /// A policy would loosen a safety rule.
    LooserPolicy,
    /// A topology would change where devices find the service.
    RiskyTopology,
    /// Refused: what is known is too old to act on.
    StaleSamples,
    /// Refused: more data would be lost than allowed.
    RpoExceeded,
    /// Refused: nodes refused the last plan, and automation waits for people.
    RefusedByNodes,
    /// Refused: no edge would be left in DNS answers.
    LastEdge,
    /// Refused: no stack of the region would be left.
    LastStack,
    /// Refused: nobody approves their own request.
    SamePerson,
    /// Refused: there is no such action, or it is over.
    NoSuchAction,
    /// Refused: another rollout runs.
    RolloutRunning,
    /// Refused: it makes no sense in this topology.
    BadRequest,
    /// Refused: the plan that would come of it cannot be applied. A fault of the planner, which so stays without effect.
    InvalidPlan,
    /// Waits: a second person has to agree.
    NeedsApproval,
    /// Waits: a trigger needs more bad ticks.
    TriggerPending,
    /// Waits: too little is known to judge.
    NoData,
    /// Waits: the current restore step is held to its end.
    RestoreHold,
    /// Waits: an evacuated region is healthy again, and an operator decides when it returns.
    RestoreReady,
    /// Waits: the current drain step is held to its end.
    DrainHold,
    /// Waits: a part of the sessions found no place yet.
    PartlyMoved,
    /// Waits: replicated data keeps its writer until an operator promotes another.
    PromotionHeld,
    /// Waits: the current rollout step is held to its end.
    RolloutHold,
    /// The clocks of a vantage and of the control plane are too far apart. Decisions go on.
    ClockSkew,
    /// One that a newer version wrote and this one does not know.
    #[serde(untagged)]
    Unknown(UnknownCode),
}

/// The name of a reason that this version does not know, kept as it was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownCode {
    bytes: [u8; Self::LENGTH_MAX],
    length: u8,
}

impl UnknownCode {
    /// Longer names are cut off: no code of ours comes near it.
    const LENGTH_MAX: usize = 32;

    /// It is printed on terminals and used as a label, so what no code has in it becomes a question mark.
    fn new(name: &str) -> Self {
        let mut bytes = [0; Self::LENGTH_MAX];
        let mut length = 0;
        for (byte, letter) in bytes.iter_mut().zip(name.chars()) {
            let is_plain = letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
            *byte = if is_plain { letter as u8 } else { b'?' };
            length += 1;
        }
        Self { bytes, length }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for UnknownCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Serialize for UnknownCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for UnknownCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Self::new(&name))
    }
}

impl ReasonCode {
    /// The code as it is written in documents.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Unknown(code) => code.as_str(),
            Self::Genesis => "genesis",
            Self::TopologyChanged => "topology-changed",
            Self::Failover => "failover",
            Self::ForcedFailover => "forced-failover",
            Self::RestoreStep => "restore-step",
            Self::RestoreDone => "restore-done",
            Self::RestoreAborted => "restore-aborted",
            Self::Switchover => "switchover",
            Self::DrainStep => "drain-step",
            Self::Promoted => "promoted",
            Self::Demoted => "demoted",
            Self::EdgeDrained => "edge-drained",
            Self::EdgeRestored => "edge-restored",
            Self::StackDrained => "stack-drained",
            Self::StackRestored => "stack-restored",
            Self::RolloutStep => "rollout-step",
            Self::RolloutDone => "rollout-done",
            Self::RolledBack => "rolled-back",
            Self::PlanTakenBack => "plan-taken-back",
            Self::Acknowledged => "acknowledged",
            Self::Approved => "approved",
            Self::Aborted => "aborted",
            Self::Unfrozen => "unfrozen",
            Self::RuleOverridden => "rule-overridden",
            Self::AlreadySo => "already-so",
            Self::Expired => "expired",
            Self::LevelChanged => "level-changed",
            Self::PlanRecovered => "plan-recovered",
            Self::PlanUnproven => "plan-unproven",
            Self::OutdatedDocument => "outdated-document",
            Self::EdgeLost => "edge-lost",
            Self::EdgeReturned => "edge-returned",
            Self::EdgeFloor => "edge-floor",
            Self::ClockWentBack => "clock-went-back",
            Self::NoFitBackup => "no-fit-backup",
            Self::NoHeadroom => "no-headroom",
            Self::EverythingLooksDead => "everything-looks-dead",
            Self::CorrelatedEvidence => "correlated-evidence",
            Self::EvacuationLimit => "evacuation-limit",
            Self::RegionsServingMin => "regions-serving-min",
            Self::Frozen => "frozen",
            Self::NotHealthy => "not-healthy",
            Self::AutomationOff => "automation-off",
            Self::HoldDown => "hold-down",
            Self::LooserPolicy => "looser-policy",
            Self::RiskyTopology => "risky-topology",
            Self::StaleSamples => "stale-samples",
            Self::RpoExceeded => "rpo-exceeded",
            Self::RefusedByNodes => "refused-by-nodes",
            Self::LastEdge => "last-edge",
            Self::LastStack => "last-stack",
            Self::SamePerson => "same-person",
            Self::NoSuchAction => "no-such-action",
            Self::RolloutRunning => "rollout-running",
            Self::BadRequest => "bad-request",
            Self::InvalidPlan => "invalid-plan",
            Self::NeedsApproval => "needs-approval",
            Self::TriggerPending => "trigger-pending",
            Self::NoData => "no-data",
            Self::RestoreHold => "restore-hold",
            Self::RestoreReady => "restore-ready",
            Self::DrainHold => "drain-hold",
            Self::PartlyMoved => "partly-moved",
            Self::PromotionHeld => "promotion-held",
            Self::RolloutHold => "rollout-hold",
            Self::ClockSkew => "clock-skew",
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Rollout {
    /// Whether a user is on the new version: the first eight bytes of the SHA-256 of version and user, as a share of all
    /// there are. The same user stays on it as the share grows, and another version begins with other users.
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
    /// What orders this plan among others.
    pub fn number(&self) -> PlanNumber {
        PlanNumber {
            generation: self.generation,
            epoch: self.epoch,
        }
    }

    /// Whether any session is planned into `region`.
    pub fn uses(&self, region: &RegionId) -> bool {
        self.routes.values().flatten().any(|share| &share.region == region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // Edges send everybody to what is left.
        assert_eq!(ports(&[3], Some(("2.4.0", 100))), [1, 2]);
        assert_eq!(ports(&[1, 2], None), [3]);
        assert_eq!(ports(&[], Some(("3.0.0", 50))), [1, 2]);
    }

    #[test]
    fn every_code_is_written_as_it_is_called_and_unknown_ones_are_kept() {
        for name in ["failover", "rollout-hold", "made-up-in-2031"] {
            let code: ReasonCode = serde_json::from_value(name.into()).unwrap();
            assert_eq!(code.as_str(), name);
            assert_eq!(serde_json::to_value(code).unwrap(), name);
            assert_eq!(matches!(code, ReasonCode::Unknown(_)), name.starts_with("made"));
        }
        let hostile = format!("\u{1b}[2J{}", "x".repeat(100));
        let code: ReasonCode = serde_json::from_value(hostile.into()).unwrap();
        assert_eq!(code.as_str(), format!("??2?{}", "x".repeat(28)));
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
