//! The triggers of the policy: what makes a tick bad, and for how long it has to be.

use std::fmt;

use serde::{Deserialize, Serialize};
use topology::{Component, Level, NodeId, policy::HealthPolicy};

use crate::{
    Observation,
    run::{Called, Patience},
    window::{Counts, TickSeen},
};

/// A rule of the policy that can fire. Some move a region's sessions away, the others degrade its service by a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Too few connections to the gateway succeed: failover.
    GatewayConnections,
    /// Too many recognitions fail: failover.
    AsrErrors,
    /// Recognition is far too slow: failover.
    AsrLatency,
    /// Recognition is slow, or fails too often and not yet for long enough to leave the region: L1.
    AsrDegraded,
    /// Most of what was heard is not understood: L2.
    NluErrors,
    /// Most skills do not answer: L3.
    SkillsErrors,
}

impl Trigger {
    /// Every trigger, failovers first and levels upwards.
    pub const ALL: [Trigger; 6] = [
        Self::GatewayConnections,
        Self::AsrErrors,
        Self::AsrLatency,
        Self::AsrDegraded,
        Self::NluErrors,
        Self::SkillsErrors,
    ];

    /// What it watches.
    pub fn component(self) -> Component {
        match self {
            Self::GatewayConnections => Component::Gateway,
            Self::AsrErrors | Self::AsrLatency | Self::AsrDegraded => Component::Asr,
            Self::NluErrors => Component::Nlu,
            Self::SkillsErrors => Component::Skills,
        }
    }

    /// The level it asks for; none when it asks for a failover.
    pub fn level(self) -> Option<Level> {
        match self {
            Self::GatewayConnections | Self::AsrErrors | Self::AsrLatency => None,
            Self::AsrDegraded => Some(Level::L1),
            Self::NluErrors => Some(Level::L2),
            Self::SkillsErrors => Some(Level::L3),
        }
    }

    pub(crate) fn patience(self, policy: &HealthPolicy) -> Patience {
        let (fall, rise) = match self {
            Self::GatewayConnections => (policy.gateway_ticks, policy.recover_ticks),
            Self::AsrErrors => (policy.asr_error_ticks, policy.recover_ticks),
            Self::AsrLatency => (policy.asr_p99_ticks, policy.recover_ticks),
            Self::AsrDegraded => (policy.edge_asr_ticks, policy.edge_asr_recover_ticks),
            Self::NluErrors => (policy.nlu_error_ticks, policy.nlu_recover_ticks),
            Self::SkillsErrors => (policy.skills_error_ticks, policy.skills_recover_ticks),
        };
        let blind = policy.blind_ticks;
        Patience { fall, rise, blind }
    }

    /// Any of these makes a tick bad.
    fn limits(self, policy: &HealthPolicy) -> Vec<Limit> {
        let p95 = Limit::LatencyAbove(0.95, policy.edge_asr_p95_max.as_secs_f64() * 1000.0);
        let p99 = Limit::LatencyAbove(0.99, policy.asr_p99_max.as_secs_f64() * 1000.0);
        let asr_errors = Limit::ErrorsAbove(policy.asr_error_max);
        match self {
            Self::GatewayConnections => vec![Limit::SuccessBelow(policy.gateway_success_min)],
            Self::AsrErrors => vec![asr_errors],
            Self::AsrLatency => vec![p99],
            Self::AsrDegraded => vec![p95, asr_errors],
            Self::NluErrors => vec![Limit::ErrorsAbove(policy.nlu_error_max)],
            Self::SkillsErrors => vec![Limit::ErrorsAbove(policy.skills_error_max)],
        }
    }

    pub(crate) fn call(self, seen: TickSeen<'_>, policy: &HealthPolicy) -> Called {
        let mut called = Called::Unknown;
        for limit in self.limits(policy) {
            match limit.call(seen, policy) {
                Called::Bad => return Called::Bad,
                Called::Good => called = Called::Good,
                Called::Unknown => {}
            }
        }
        called
    }

    /// What is bad about a bad tick, and by whose word.
    pub(crate) fn accuse(self, seen: TickSeen<'_>, policy: &HealthPolicy) -> Accusation {
        let limits = self.limits(policy);
        let passed: Vec<Limit> = limits
            .into_iter()
            .filter(|limit| limit.call(seen, policy).is_bad())
            .collect();
        let accuses = |saw: &Observation| passed.iter().any(|limit| limit.is_passed(saw.into()));
        let mut vantages: Vec<NodeId> = seen
            .vantages()
            .filter(|(_, saw)| accuses(saw))
            .map(|(vantage, _)| vantage.clone())
            .collect();
        vantages.sort_unstable();
        let passed: Vec<String> = passed.iter().map(ToString::to_string).collect();
        Accusation {
            what: self.describe(&passed.join(" and ")),
            vantages,
        }
    }

    /// What makes a tick bad, in words.
    pub(crate) fn condition(self, policy: &HealthPolicy) -> String {
        let limits: Vec<String> = self.limits(policy).iter().map(ToString::to_string).collect();
        self.describe(&limits.join(" or "))
    }

    fn describe(self, limits: &str) -> String {
        match self {
            Self::GatewayConnections => format!("gateway connection {limits}"),
            _ => format!("{} {limits}", self.component()),
        }
    }
}

/// What is bad about a tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accusation {
    pub(crate) what: String,
    /// Who saw it so, in the order of names.
    pub(crate) vantages: Vec<NodeId>,
}

/// A limit of the policy. Exactly at it is not past it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    SuccessBelow(f64),
    ErrorsAbove(f64),
    /// A percentile (0..=1) above so many milliseconds.
    LatencyAbove(f64, f64),
}

impl Limit {
    /// A tick is bad when it is so over all vantages together and for enough of them alone: one vantage alone may be the
    /// one that is cut off. Too few samples, or too few vantages that have any, and nothing is known.
    pub(crate) fn call(self, seen: TickSeen<'_>, policy: &HealthPolicy) -> Called {
        let enough = |holds: &dyn Fn(Counts<'_>) -> bool| {
            let those = seen.vantages().filter(|(_, saw)| holds((*saw).into()));
            // No need to ask a thousand when two will do.
            those.take(policy.vantages_min as usize).count() >= policy.vantages_min as usize
        };
        if self.volume(seen.total()) < u64::from(policy.samples_min) || !enough(&|it| self.volume(it) > 0) {
            Called::Unknown
        } else if self.is_passed(seen.total()) && enough(&|it| self.is_passed(it)) {
            Called::Bad
        } else {
            Called::Good
        }
    }

    fn volume(self, counts: Counts<'_>) -> u64 {
        match self {
            Self::SuccessBelow(_) | Self::ErrorsAbove(_) => counts.samples(),
            Self::LatencyAbove(..) => counts.latency.count(),
        }
    }

    fn is_passed(self, counts: Counts<'_>) -> bool {
        let share = |of: u64| of as f64 / counts.samples() as f64;
        match self {
            Self::SuccessBelow(_) | Self::ErrorsAbove(_) if counts.samples() == 0 => false,
            Self::SuccessBelow(min) => share(counts.succeeded) < min,
            Self::ErrorsAbove(max) => share(counts.failed) > max,
            Self::LatencyAbove(q, max_ms) => counts.latency.quantile(q).is_some_and(|ms| ms > max_ms),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| (share * 1000.0).round() / 10.0;
        match self {
            Self::SuccessBelow(min) => write!(f, "success below {} %", percent(*min)),
            Self::ErrorsAbove(max) => write!(f, "errors above {} %", percent(*max)),
            Self::LatencyAbove(q, max_ms) => write!(f, "p{} above {max_ms:.0} ms", percent(*q)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_the_order_of_their_numbers() {
        // Both are used as indices.
        assert!(Trigger::ALL.iter().enumerate().all(|(at, it)| *it as usize == at));
        assert!(Component::ALL.iter().enumerate().all(|(at, it)| *it as usize == at));
    }

    #[test]
    fn limits_read_well() {
        let policy = HealthPolicy {
            nlu_error_max: 0.075,
            ..HealthPolicy::default()
        };
        let conditions = Trigger::ALL.map(|trigger| trigger.condition(&policy));
        assert_eq!(
            conditions,
            [
                "gateway connection success below 95 %",
                "asr errors above 10 %",
                "asr p99 above 2000 ms",
                "asr p95 above 500 ms or errors above 10 %",
                "nlu errors above 7.5 %",
                "skills errors above 50 %",
            ]
        );
    }
}
