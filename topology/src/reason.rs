//! The reasons for which something changed, was refused, or waits. Each has a code for programs and a text for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Moment, RegionId};

/// The reason for a change, a refusal or a wait: a code for programs and a text for people.
///
/// Reasons are the part of a plan for people; no node routes by them. A node therefore reads codes and fields that it
/// does not know, which a newer control plane may write, and keeps its plan up to date. It must understand every other
/// part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule that gives this reason.
    pub code: ReasonCode,
    /// The region that the reason is about, if it is about one.
    pub region: Option<RegionId>,
    /// One sentence for people.
    pub text: String,
    /// The facts that the rule saw, one per item.
    pub evidence: Vec<String>,
    /// End of a wait, or of a refusal that ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Moment>,
}

impl Reason {
    /// A reason about no region, without evidence and without an end.
    pub fn of(code: ReasonCode, text: impl Into<String>) -> Self {
        Self {
            code,
            region: None,
            text: text.into(),
            evidence: Vec::new(),
            until: None,
        }
    }

    /// The same about a region, if there is one.
    #[must_use]
    pub fn about<'r>(self, region: impl Into<Option<&'r RegionId>>) -> Self {
        Self {
            region: region.into().cloned(),
            ..self
        }
    }

    /// The same with further evidence after what it has.
    #[must_use]
    pub fn with(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    /// The same with an end, if there is one.
    #[must_use]
    pub fn until(self, end: impl Into<Option<Moment>>) -> Self {
        Self {
            until: end.into(),
            ..self
        }
    }
}

/// The rules that change a plan, refuse a change, or wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::AsRefStr)]
#[strum(serialize_all = "kebab-case")]
pub enum ReasonCode {
    /// The first plan of a deployment.
    Genesis,
    /// The topology changed.
    TopologyChanged,
    /// A trigger fired, and the sessions of the region move to its backups.
    Failover,
    /// An operator moved the sessions of the region to its backups.
    ForcedFailover,
    /// The region takes back one step of its sessions.
    RestoreStep,
    /// The region has all of its sessions back.
    RestoreDone,
    /// The returning region failed its health check and was evacuated again.
    RestoreAborted,
    /// An operator moves the sessions of the region away in steps.
    Switchover,
    /// The region gives away another step of its sessions.
    DrainStep,
    /// Another region became the writer of the region's replicated data.
    Promoted,
    /// The region writes its own replicated data again.
    Demoted,
    /// An edge is left out of DNS answers.
    EdgeDrained,
    /// An edge is named in DNS answers again.
    EdgeRestored,
    /// A stack gets no sessions.
    StackDrained,
    /// A stack gets sessions again.
    StackRestored,
    /// More users go to the version that is being rolled out.
    RolloutStep,
    /// All users are on the version that was rolled out.
    RolloutDone,
    /// The rollout ended; all users go to the old version again.
    RolledBack,
    /// Nodes refused the plan, so the last acknowledged plan is in force again.
    PlanTakenBack,
    /// An operator lifted a hold-down.
    Acknowledged,
    /// A second person approved a request.
    Approved,
    /// An operator stopped an action.
    Aborted,
    /// An operator ended every freeze.
    Unfrozen,
    /// A safety rule is off for a time.
    RuleOverridden,
    /// The requested state exists already.
    AlreadySo,
    /// A request or a standing order reached the end of its time.
    Expired,
    /// The degradation level changed.
    LevelChanged,
    /// Nodes had a newer plan than the store, and it is in force again.
    PlanRecovered,
    /// Waits: nodes report a newer plan than the store has, but too few of them report the same one.
    PlanUnproven,
    /// Waits: an older version accepted the document in force. This version reads it within its own limits.
    OutdatedDocument,
    /// DNS answers leave an edge out because the control plane has not heard from it.
    EdgeLost,
    /// DNS answers name an edge again that was lost.
    EdgeReturned,
    /// A new edge waits until it is seen to work, or DNS answers name it since it was.
    EdgeNew,
    /// Waits: an edge is lost but stays in DNS answers, because too many edges would be left out.
    EdgeFloor,
    /// Most edges apply the plan that carries out an order.
    OrderDone,
    /// The wall clock was set back.
    ClockWentBack,
    /// Refused: no backup of the region is healthy enough to take its sessions.
    NoFitBackup,
    /// Refused: the backups lack room for the sessions of the region.
    NoHeadroom,
    /// Refused: no region looks healthy. The view of the control plane may be broken, so nothing moves until an
    /// operator decides.
    EverythingLooksDead,
    /// Refused: two or more primaries turned bad together, so nothing moves until an operator decides.
    CorrelatedEvidence,
    /// Refused: as many regions are bad or moving already as automation may evacuate at once.
    EvacuationLimit,
    /// Refused: too few regions would keep serving.
    RegionsServingMin,
    /// Refused: a freeze stops automation.
    Frozen,
    /// Refused: the region is not healthy enough to return.
    NotHealthy,
    /// Refused: the policy switches automation off.
    AutomationOff,
    /// Refused: the region moved too often recently.
    HoldDown,
    /// Refused: the policy would loosen a safety rule.
    LooserPolicy,
    /// Refused: the topology would change the addresses at which devices find the service.
    RiskyTopology,
    /// Refused: the newest observations are too old to act on.
    StaleSamples,
    /// Refused: more data would be lost than is allowed.
    RpoExceeded,
    /// Refused: nodes refused the last plan, and automation waits for an operator.
    RefusedByNodes,
    /// Refused: DNS answers would name no edge.
    LastEdge,
    /// Refused: the region would have no stack that takes sessions.
    LastStack,
    /// Refused: the same request is waiting for a second person already.
    AskedAlready,
    /// Refused: an author cannot approve their own request.
    SamePerson,
    /// Refused: an approval names other effects than those that the request waits with.
    ShownChanged,
    /// Refused: no such action exists, or it is over.
    NoSuchAction,
    /// Refused: another rollout is running.
    RolloutRunning,
    /// Refused: the request does not make sense in this topology.
    BadRequest,
    /// Refused: the resulting plan could not be applied. This is a fault of the planner, and the refusal keeps it
    /// without effect.
    InvalidPlan,
    /// Waits: a second person must approve.
    NeedsApproval,
    /// Waits: a trigger needs more bad ticks.
    TriggerPending,
    /// Waits: too little data to judge.
    NoData,
    /// Waits: the current restore step lasts until its hold time ends.
    RestoreHold,
    /// Waits: an evacuated region is healthy again. An operator decides when it returns.
    RestoreReady,
    /// Waits: the current drain step lasts until its hold time ends.
    DrainHold,
    /// Waits: some of the sessions have no region with room yet.
    PartlyMoved,
    /// Waits: replicated data keeps its writer until an operator promotes another region.
    PromotionHeld,
    /// Waits: the current rollout step lasts until its hold time ends.
    RolloutHold,
    /// Waits: a stack answers but fails. Its region keeps it until an operator drains it.
    StackFails,
    /// The clocks of a vantage and of the control plane differ too much. Decisions go on.
    ClockSkew,
    /// A vantage contradicts all others about a region. Its word counts only where another one agrees.
    VantageSuspect,
    /// A code that a newer version wrote and this version does not know.
    #[serde(untagged)]
    #[strum(transparent)]
    Unknown(UnknownCode),
}

/// The name of a reason that this version does not know: at most 32 bytes, with a question mark for every character
/// that no code contains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownCode {
    bytes: [u8; Self::LENGTH_MAX],
    length: u8,
}

impl UnknownCode {
    /// Longest name, in bytes; a longer one is cut. No code of this product comes near it.
    const LENGTH_MAX: usize = 32;

    /// Terminals print the name and metrics use it as a label, so every character that no code contains becomes a
    /// question mark.
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
}

impl AsRef<str> for UnknownCode {
    fn as_ref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for UnknownCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

impl Serialize for UnknownCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_ref())
    }
}

impl<'de> Deserialize<'de> for UnknownCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Self::new(&name))
    }
}

impl ReasonCode {
    /// The code as documents write it.
    pub fn as_str(&self) -> &str {
        self.as_ref()
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_name_in_documents() {
        for code in crate::reasons::PAGES.iter().map(|page| page.code) {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert_eq!(format!("{code:>30}"), format!("{:>30}", code.as_str()), "tables pad it");
        }
    }

    #[test]
    fn every_code_is_written_as_it_is_called_and_unknown_ones_are_kept() {
        for name in ["failover", "rollout-hold", "made-up-in-2031"] {
            let code: ReasonCode = serde_json::from_value(name.into()).unwrap();
            assert_eq!((code.as_str(), code.to_string().as_str()), (name, name));
            assert_eq!(serde_json::to_value(code).unwrap(), name);
            assert_eq!(matches!(code, ReasonCode::Unknown(_)), name.starts_with("made"));
        }
        let hostile = format!("\u{1b}[2J{}", "x".repeat(100));
        let code: ReasonCode = serde_json::from_value(hostile.into()).unwrap();
        assert_eq!(code.as_str(), format!("??2?{}", "x".repeat(28)));
    }
}
