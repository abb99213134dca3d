//! The result of a decision and its reasons.

use serde::{Deserialize, Serialize};
use topology::{Plan, Reason, ReasonCode, RegionId};

use crate::{Memory, texts::helps};

/// The result of one decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The next plan; none when nothing changes.
    pub plan: Option<Plan>,
    /// The memory for the next decision.
    pub memory: Memory,
    /// The reasons.
    pub report: Report,
}

/// The reasons of a decision.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Changes of the plan or of the memory.
    pub changed: Vec<Reason>,
    /// Changes that a rule blocked.
    pub refused: Vec<Reason>,
    /// Changes that wait for time, evidence or a person.
    pub waiting: Vec<Reason>,
    /// Every safety rule that the decision asked, with its result.
    pub checks: Vec<Check>,
    /// Those of `refused` that keep the request of this decision from being carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<Reason>,
}

/// The result of one safety rule for one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The code with which the rule blocks a change.
    pub rule: ReasonCode,
    /// The region that would change.
    pub region: Option<RegionId>,
    /// False: the rule blocks the change.
    pub passed: bool,
    /// The comparison in words.
    pub text: String,
}

impl Report {
    pub(crate) fn change(&mut self, reason: Reason) {
        self.changed.push(reason);
    }

    pub(crate) fn refuse(&mut self, reason: Reason) {
        debug_assert!(helps(&reason.text), "{}: {}", reason.code, reason.text);
        self.refused.push(reason);
    }

    pub(crate) fn wait(&mut self, reason: Reason) {
        debug_assert!(helps(&reason.text), "{}: {}", reason.code, reason.text);
        self.waiting.push(reason);
    }

    /// Refuses the request of this decision.
    pub(crate) fn deny(&mut self, reason: Reason) {
        self.denied.push(reason.clone());
        self.refuse(reason);
    }
}

impl Check {
    pub(crate) fn of(rule: ReasonCode, region: &RegionId, passed: bool, text: impl Into<String>) -> Self {
        Self {
            rule,
            region: Some(region.clone()),
            passed,
            text: text.into(),
        }
    }
}
