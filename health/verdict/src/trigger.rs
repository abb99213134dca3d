//! The triggers of the policy: the limits that make a tick bad, and the number of bad ticks that fires.

use serde::{Deserialize, Serialize};
use topology::{Component, Level, NodeId, Tick, policy::HealthPolicy};

use crate::{
    limit::Limit,
    region_seen::{Counts, TickSeen},
    run::{Called, RunLengths},
    spread::{Remembered, Window},
    standing::Standing,
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
    /// Recognition is slow, or fails too often but not yet for long enough to leave the region: L1.
    AsrDegraded,
    /// NLU does not understand most utterances: L2.
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

    /// The component that it watches.
    pub fn component(self) -> Component {
        match self {
            Self::GatewayConnections => Component::Gateway,
            Self::AsrErrors | Self::AsrLatency | Self::AsrDegraded => Component::Asr,
            Self::NluErrors => Component::Nlu,
            Self::SkillsErrors => Component::Skills,
        }
    }

    /// The level that it asks for; none when it asks for a failover.
    pub fn level(self) -> Option<Level> {
        match self {
            Self::GatewayConnections | Self::AsrErrors | Self::AsrLatency => None,
            Self::AsrDegraded => Some(Level::L1),
            Self::NluErrors => Some(Level::L2),
            Self::SkillsErrors => Some(Level::L3),
        }
    }

    pub(crate) fn run_lengths(self, policy: &HealthPolicy) -> RunLengths {
        let (fall, rise) = match self {
            Self::GatewayConnections => (policy.gateway_ticks, policy.recover_ticks),
            Self::AsrErrors => (policy.asr_error_ticks, policy.recover_ticks),
            Self::AsrLatency => (policy.asr_p99_ticks, policy.recover_ticks),
            Self::AsrDegraded => (policy.edge_asr_ticks, policy.edge_asr_recover_ticks),
            Self::NluErrors => (policy.nlu_error_ticks, policy.nlu_recover_ticks),
            Self::SkillsErrors => (policy.skills_error_ticks, policy.skills_recover_ticks),
        };
        let blind = policy.blind_ticks;
        RunLengths { fall, rise, blind }
    }

    /// The window in which bad ticks count though they are not in a row.
    pub(crate) fn window(self, policy: &HealthPolicy) -> Window {
        let fall = self.run_lengths(policy).fall;
        let (ticks, bad) = match self {
            Self::GatewayConnections => (policy.gateway_window_ticks, policy.gateway_window_bad.max(fall)),
            _ => ((f64::from(fall) * policy.window_factor) as u32, fall),
        };
        let errors_max = match self {
            Self::GatewayConnections => Some(1.0 - policy.gateway_success_min),
            Self::AsrErrors | Self::AsrDegraded => Some(policy.asr_error_max),
            Self::AsrLatency => None,
            Self::NluErrors => Some(policy.nlu_error_max),
            Self::SkillsErrors => Some(policy.skills_error_max),
        };
        Window {
            ticks,
            bad,
            errors_max,
            vantages_min: policy.vantages_min as usize,
        }
    }

    /// The part of a tick that a window remembers.
    pub(crate) fn remember(
        self,
        tick: Tick,
        called: Called,
        seen: TickSeen<'_>,
        standing: &Standing,
        policy: &HealthPolicy,
    ) -> Remembered {
        let is_bad = called.is_bad();
        let Some(max) = self.window(policy).errors_max else {
            return Remembered::new(tick, is_bad, false, std::iter::empty());
        };
        let counts = |(vantage, it): (_, Counts<'_>)| (vantage, it.failed, it.samples());
        let mut tick = match standing.needed(seen, self.component(), &self.limits(policy), policy) {
            Some(needed) => {
                let needed = needed.iter().map(|(vantage, it)| (*vantage, it.counts()));
                Remembered::new(tick, is_bad, false, needed.map(counts))
            }
            // The usual case, and a fleet has a thousand vantages.
            None if seen.total().failed == 0 => Remembered {
                samples: seen.total().samples(),
                ..Remembered::new(tick, is_bad, false, std::iter::empty())
            },
            None => {
                let all = seen.vantages().map(|(vantage, saw)| counts((vantage, saw.into())));
                Remembered::new(tick, is_bad, false, all)
            }
        };
        tick.is_past = tick.failed as f64 > tick.samples as f64 * max;
        tick
    }

    /// The limits. A tick is bad when any of them is exceeded.
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

    pub(crate) fn call(self, seen: TickSeen<'_>, standing: &Standing, policy: &HealthPolicy) -> Called {
        let limits = self.limits(policy);
        let needed = standing.needed(seen, self.component(), &limits, policy);
        let mut called = Called::Unknown;
        for limit in limits {
            match limit.call(seen, needed.as_ref(), policy) {
                Called::Bad => return Called::Bad,
                Called::Good => called = Called::Good,
                Called::Unknown => {}
            }
        }
        called
    }

    /// The accusation of a bad tick, and the vantages behind it.
    pub(crate) fn accuse(self, seen: TickSeen<'_>, standing: &Standing, policy: &HealthPolicy) -> Accusation {
        let limits = self.limits(policy);
        let needed = standing.needed(seen, self.component(), &limits, policy);
        let passed: Vec<Limit> = limits
            .into_iter()
            .filter(|limit| limit.call(seen, needed.as_ref(), policy).is_bad())
            .collect();
        let accuses = |saw: Counts<'_>| passed.iter().any(|limit| limit.is_seen_past(saw));
        let mut vantages: Vec<NodeId> = match &needed {
            Some(needed) => {
                let accusers = needed.iter().filter(|(_, it)| accuses(it.counts()));
                accusers.map(|(vantage, _)| (*vantage).clone()).collect()
            }
            None => {
                let accusers = seen.vantages().filter(|(_, saw)| accuses((*saw).into()));
                accusers.map(|(vantage, _)| vantage.clone()).collect()
            }
        };
        vantages.sort_unstable();
        let passed: Vec<String> = passed.iter().map(ToString::to_string).collect();
        Accusation {
            what: self.describe(&passed.join(" and ")),
            vantages,
        }
    }

    /// The condition of a bad tick, in words.
    pub(crate) fn condition(self, policy: &HealthPolicy) -> String {
        let limits: Vec<String> = self.limits(policy).iter().map(ToString::to_string).collect();
        self.describe(&limits.join(" or "))
    }

    /// The condition of a bad window, in words: its errors, and no latency.
    pub(crate) fn errors(self, policy: &HealthPolicy) -> String {
        let limits = self.limits(policy).into_iter();
        let errors = limits.filter(|limit| !matches!(limit, Limit::LatencyAbove(..)));
        let errors: Vec<String> = errors.map(|limit| limit.to_string()).collect();
        self.describe(&errors.join(" or "))
    }

    fn describe(self, limits: &str) -> String {
        match self {
            Self::GatewayConnections => format!("gateway connection {limits}"),
            _ => format!("{} {limits}", self.component()),
        }
    }
}

/// The accusation of a bad tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accusation {
    pub(crate) what: String,
    /// The vantages that saw it bad, in the order of names.
    pub(crate) vantages: Vec<NodeId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_the_order_of_their_numbers() {
        // Both serve as indices.
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
