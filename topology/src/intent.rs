//! What operators asked for.

use std::{fmt, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{EdgeId, Moment, ReasonCode, RegionId};

/// One request of an operator. A standing one (freeze, override, drained edge or stack) counts until `expires_at`, or for as long
/// from its approval; any other is carried out at once, waits a while for approval, or is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// Unique name; also the idempotency token of the request that made it.
    pub id: String,
    /// What is asked for.
    pub kind: IntentKind,
    /// Who asks.
    pub author: String,
    /// Why.
    pub reason: String,
    /// When it was accepted.
    pub created_at: Moment,
    /// When it stops counting.
    pub expires_at: Moment,
}

/// What an operator can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum IntentKind {
    /// Emergency: move a primary's sessions to its backups now, whatever its health.
    Failover {
        /// The primary to leave.
        region: RegionId,
        /// Also make a backup the writer of the region's replicated data.
        #[serde(default)]
        promote: bool,
        /// How much of the newest data may be lost by promoting; none means no more than each class's RPO.
        #[serde(default)]
        accept_loss: Option<Duration>,
        /// Pass over what speaks against it: backups believed unfit or full, too few regions left. Needs a second person
        /// where anything does.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Planned: move a healthy primary's sessions away in steps, each at a turn boundary of the sessions it moves.
    Switchover {
        /// The primary to leave.
        region: RegionId,
        /// Also make a backup the writer of the region's replicated data, which must have caught up.
        #[serde(default)]
        promote: bool,
    },
    /// Bring an evacuated primary back, in the steps of the policy.
    Restore {
        /// The primary to return to.
        region: RegionId,
        /// How much of the data written elsewhere may be lost by returning; none means no more than each class's RPO.
        #[serde(default)]
        accept_loss: Option<Duration>,
    },
    /// Leave an edge out of DNS answers while it lasts.
    DrainEdge {
        /// Which edge.
        edge: EdgeId,
    },
    /// Keep sessions off one stack of a region while it lasts; those it has leave it between turns.
    DrainStack {
        /// Its address.
        stack: SocketAddr,
    },
    /// Move a growing share of users to another version of the stack.
    Rollout {
        /// Which version.
        version: String,
    },
    /// No automatic change of plan while it lasts.
    Freeze,
    /// End every freeze.
    Unfreeze,
    /// One safety rule does not count while it lasts.
    Override {
        /// Which rule.
        rule: Rule,
    },
    /// Lift the hold-down of a region that moved too often.
    Ack {
        /// Which region.
        region: RegionId,
    },
    /// Agree to somebody else's request.
    Approve {
        /// Id of the action.
        action: String,
    },
    /// Stop an action: what it changed so far is taken back where that is safe.
    Abort {
        /// Id of the action.
        action: String,
    },
}

/// The safety rules an operator can override, with a second person's approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Assertion: enough regions stay serving.
    RegionsServingMin,
    /// At most so many automatic evacuations.
    EvacuationLimit,
    /// Primaries that turn bad together on the same evidence hold automation.
    CorrelatedEvidence,
    /// A region that moved too often stays away.
    HoldDown,
    /// A policy is not made looser.
    LooserPolicy,
    /// A topology does not change at once where devices find the service.
    RiskyTopology,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RegionsServingMin,
        Self::EvacuationLimit,
        Self::CorrelatedEvidence,
        Self::HoldDown,
        Self::LooserPolicy,
        Self::RiskyTopology,
    ];

    /// The code of its refusals, which is also its name.
    pub fn code(self) -> ReasonCode {
        match self {
            Self::RegionsServingMin => ReasonCode::RegionsServingMin,
            Self::EvacuationLimit => ReasonCode::EvacuationLimit,
            Self::CorrelatedEvidence => ReasonCode::CorrelatedEvidence,
            Self::HoldDown => ReasonCode::HoldDown,
            Self::LooserPolicy => ReasonCode::LooserPolicy,
            Self::RiskyTopology => ReasonCode::RiskyTopology,
        }
    }

    /// The rule of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.code().as_str() == name)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code().fmt(f)
    }
}

impl IntentKind {
    /// Its name, as commands have it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Failover { .. } => "failover",
            Self::Switchover { .. } => "switchover",
            Self::Restore { .. } => "restore",
            Self::DrainEdge { .. } | Self::DrainStack { .. } => "drain",
            Self::Rollout { .. } => "rollout",
            Self::Freeze => "freeze",
            Self::Unfreeze => "unfreeze",
            Self::Override { .. } => "override",
            Self::Ack { .. } => "ack",
            Self::Approve { .. } => "approve",
            Self::Abort { .. } => "abort",
        }
    }

    /// The region it is about, if one.
    pub fn region(&self) -> Option<&RegionId> {
        match self {
            Self::Failover { region, .. }
            | Self::Switchover { region, .. }
            | Self::Restore { region, .. }
            | Self::Ack { region } => Some(region),
            _ => None,
        }
    }

    /// What it is about, in a word.
    pub fn subject(&self) -> String {
        match self {
            Self::Failover { region, .. }
            | Self::Switchover { region, .. }
            | Self::Restore { region, .. }
            | Self::Ack { region } => region.to_string(),
            Self::DrainEdge { edge } => edge.to_string(),
            Self::DrainStack { stack } => stack.to_string(),
            Self::Rollout { version } => version.clone(),
            Self::Override { rule } => rule.to_string(),
            Self::Approve { action } | Self::Abort { action } => action.clone(),
            Self::Freeze | Self::Unfreeze => "automation".to_owned(),
        }
    }

    /// Whether it counts for a time rather than being carried out once.
    pub fn stands(&self) -> bool {
        matches!(
            self,
            Self::Freeze | Self::Override { .. } | Self::DrainEdge { .. } | Self::DrainStack { .. }
        )
    }
}

impl Intent {
    /// Whether it still counts.
    pub fn is_live(&self, now: Moment) -> bool {
        now < self.expires_at
    }
}
