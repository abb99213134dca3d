//! Requests of operators.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{EdgeId, Moment, ReasonCode, RegionId};

/// One request of an operator. A standing order (freeze, override, drained edge or stack) is in force until
/// `expires_at`; where it needs an approval, its whole lifetime begins with the approval. Every other request is
/// carried out at once, waits a limited time for an approval, or is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// Unique. Also the idempotency token of the call that created the request.
    pub id: String,
    /// The requested change.
    pub kind: IntentKind,
    /// The operator who made the request.
    pub author: String,
    /// The operator's reason, as free text.
    pub reason: String,
    /// Time at which the control plane accepted the request.
    pub created_at: Moment,
    /// End of the order, or of the wait for an approval.
    pub expires_at: Moment,
}

/// Every request that an operator can make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum IntentKind {
    /// Emergency: move the sessions of a primary to its backups now, even if it looks healthy.
    Failover {
        /// The primary that sessions leave.
        region: RegionId,
        /// Also make a backup the writer of the region's replicated data.
        #[serde(default)]
        promote: bool,
        /// The newest data that the promotion may lose, as a time. `None`: no more than the RPO of each data class.
        #[serde(default)]
        accept_loss: Option<Duration>,
        /// Proceed although backups look unhealthy or full, or too few regions would keep serving. Needs a second
        /// person if any of these is the case.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Planned: move the sessions of a healthy primary away in steps. Each session moves between two of its turns.
    Switchover {
        /// The primary that sessions leave.
        region: RegionId,
        /// Also make a backup the writer of the region's replicated data. The backup must have caught up.
        #[serde(default)]
        promote: bool,
    },
    /// Bring an evacuated primary back, in the steps of the policy.
    Restore {
        /// The primary that sessions return to.
        region: RegionId,
        /// The newest data, written elsewhere, that the return may lose, as a time. `None`: no more than the RPO of
        /// each data class.
        #[serde(default)]
        accept_loss: Option<Duration>,
    },
    /// Leave an edge out of DNS answers while the order is in force.
    DrainEdge {
        /// The edge to leave out.
        edge: EdgeId,
    },
    /// Keep sessions off one stack of a region while the order is in force. Its sessions leave it between turns.
    DrainStack {
        /// Address of the stack.
        stack: SocketAddr,
    },
    /// Send a growing share of users to another version of the stack.
    Rollout {
        /// The version to send users to.
        version: String,
    },
    /// Stop all automatic changes of the plan while the order is in force.
    Freeze,
    /// End every freeze.
    Unfreeze,
    /// Switch one safety rule off while the order is in force.
    Override {
        /// The rule to switch off.
        rule: Rule,
    },
    /// Lift the hold-down of a region that moved too often.
    Ack {
        /// The region that may return.
        region: RegionId,
    },
    /// Approve another person's request.
    Approve {
        /// Id of the action to approve.
        action: String,
        /// The digest of what the approver was shown. `None` in approvals from before the digest was asked for; such an approval is
        /// refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown: Option<String>,
    },
    /// Stop an action, and take its changes back where that is safe.
    Abort {
        /// Id of the action to stop.
        action: String,
    },
}

/// The safety rules that an operator can override, with a second person's approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::Display, strum::EnumString, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Rule {
    /// Every decision leaves at least `safety.regions_serving_min` regions serving.
    RegionsServingMin,
    /// Automation evacuates at most `failover.automatic_max` regions at once.
    EvacuationLimit,
    /// Automation stops when several primaries turn bad together on the same evidence.
    CorrelatedEvidence,
    /// A region that moved too often stays evacuated until its penalty has decayed.
    HoldDown,
    /// A new policy loosens no safety rule.
    LooserPolicy,
    /// A new topology does not suddenly change the addresses at which devices find the service.
    RiskyTopology,
}

impl Rule {
    /// Every rule.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// The code of the refusals that this rule gives. It is also the name of the rule.
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

    /// The rule with this name, as [`Rule::code`] writes it.
    pub fn named(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}

impl IntentKind {
    /// The name of the command.
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

    /// The region that the request names, if any.
    pub fn region(&self) -> Option<&RegionId> {
        match self {
            Self::Failover { region, .. }
            | Self::Switchover { region, .. }
            | Self::Restore { region, .. }
            | Self::Ack { region } => Some(region),
            _ => None,
        }
    }

    /// The region, edge, stack, version, rule or action that the request names, as text.
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
            Self::Approve { action, .. } | Self::Abort { action } => action.clone(),
            Self::Freeze | Self::Unfreeze => "automation".to_owned(),
        }
    }

    /// Whether the request is a standing order, in force for a time, instead of being carried out once.
    pub fn stands(&self) -> bool {
        matches!(
            self,
            Self::Freeze | Self::Override { .. } | Self::DrainEdge { .. } | Self::DrainStack { .. }
        )
    }
}

impl Intent {
    /// Whether the request has not expired.
    pub fn is_live(&self, now: Moment) -> bool {
        now < self.expires_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_the_name_of_its_code() {
        let names = [
            "regions-serving-min",
            "evacuation-limit",
            "correlated-evidence",
            "hold-down",
            "looser-policy",
            "risky-topology",
        ];
        assert_eq!(Rule::ALL.len(), names.len());
        for (rule, name) in Rule::ALL.iter().zip(names) {
            assert_eq!((rule.to_string().as_str(), rule.code().as_str()), (name, name));
            assert_eq!(serde_json::to_value(rule).unwrap(), name);
            assert_eq!(Rule::named(name), Some(*rule));
        }
        for other in ["frozen", "HoldDown", ""] {
            assert_eq!(Rule::named(other), None, "{other}");
        }
    }
}
