//! Every number that a decision uses, and the document that states them (configs/policy.toml). The defaults come from
//! the requirements of the product.

mod group;
mod groups;
#[cfg(test)]
mod tests;
mod two_person;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use groups::{
    DampingPolicy, DnsPolicy, DrainPolicy, EdgesPolicy, FRESHNESS_TICKS_MAX, FailoverPolicy, HealthPolicy, ProbePolicy,
    PublishPolicy, RestorePolicy, RolloutPolicy, RolloutStep, SafetyPolicy, TICKS_MAX,
};

pub use two_person::TwoPerson;

use self::group::Setting;
use crate::{
    Problem, Problems,
    document::{self, Section},
};

/// The complete policy: all rules and their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Probes of the regions by the nodes.
    pub probe: ProbePolicy,
    /// Limits at which a region is judged bad, and good again.
    pub health: HealthPolicy,
    /// Evacuation of a failed region.
    pub failover: FailoverPolicy,
    /// Gradual evacuation of a region, when there is time.
    pub drain: DrainPolicy,
    /// Return of an evacuated region.
    pub restore: RestorePolicy,
    /// Limits of automation, and the requests that need a second person.
    pub safety: SafetyPolicy,
    /// Hold-down of regions that move often.
    pub damping: DampingPolicy,
    /// Rollout of a new version of the stack.
    pub rollout: RolloutPolicy,
    /// Limits at which a refused plan is taken back.
    pub publish: PublishPolicy,
    /// The classes of data that regions replicate, one item per class.
    pub data: Vec<DataPolicy>,
    /// Settings of DNS answers.
    pub dns: DnsPolicy,
    /// Limits at which an edge counts as lost.
    pub edges: EdgesPolicy,
}

/// One class of data that regions replicate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPolicy {
    /// Name of the class, unique.
    pub class: String,
    /// The kind of replication between regions.
    pub replication: Replication,
    /// The newest data that may be lost (recovery point objective).
    pub rpo: Duration,
    /// The longest time until the data can be used in another region (recovery time objective). The duration of each
    /// order is compared with it.
    pub rto: Duration,
}

/// The kinds of replication between regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replication {
    /// One region writes; the others follow with a lag.
    Async,
    /// Every region writes.
    ActiveActive,
    /// Copied at intervals.
    Batch,
    /// Rebuilt from a log.
    Replay,
    /// The data never leaves its region. By policy, a failover loses it.
    RegionLocal,
}

impl DataPolicy {
    /// The losses of protection in `other`, for the same class. A change of replication counts, because replication
    /// decides whether a loss of data is checked at all.
    fn loosened_by(&self, other: &Self) -> Vec<String> {
        let Self {
            class,
            replication,
            rpo,
            rto,
        } = self;
        let mut loosened = Vec::new();
        if other.replication != *replication {
            loosened.push(format!(
                "the replication of {class} would change from {replication:?} to {:?}",
                other.replication
            ));
        }
        for (name, from, to) in [("RPO", rpo, other.rpo), ("RTO", rto, other.rto)] {
            if to > *from {
                loosened.push(format!(
                    "the {name} of {class} would change from {} to {} s",
                    from.as_secs(),
                    to.as_secs()
                ));
            }
        }
        loosened
    }
}

impl Default for Policy {
    fn default() -> Self {
        let data = |class: &str, replication, rpo_minutes: u64, rto_minutes: u64| DataPolicy {
            class: class.to_owned(),
            replication,
            rpo: Duration::from_secs(rpo_minutes * 60),
            rto: Duration::from_secs(rto_minutes * 60),
        };
        Self {
            probe: ProbePolicy::default(),
            health: HealthPolicy::default(),
            failover: FailoverPolicy::default(),
            drain: DrainPolicy::default(),
            restore: RestorePolicy::default(),
            safety: SafetyPolicy::default(),
            damping: DampingPolicy::default(),
            rollout: RolloutPolicy::default(),
            publish: PublishPolicy::default(),
            data: vec![
                data("profiles", Replication::Async, 60, 5),
                data("conversations", Replication::Async, 24 * 60, 60),
                data("skill-catalog", Replication::ActiveActive, 0, 5),
                data("recordings", Replication::Batch, 24 * 60, 4 * 60),
                data("device-registry", Replication::Async, 60, 15),
                data("analytics", Replication::Replay, 60, 60),
                data("sessions", Replication::RegionLocal, 0, 0),
            ],
            dns: DnsPolicy::default(),
            edges: EdgesPolicy::default(),
        }
    }
}

impl Policy {
    /// The safety that another policy would take away, one text per change. Empty when `other` is at least as strict.
    pub fn loosened_by(&self, other: &Self) -> Vec<String> {
        let mut loosened = Vec::new();
        let (before, after, default) = (self.settings(), other.settings(), Self::default().settings());
        for ((setting, after), default) in before.into_iter().zip(after).zip(default) {
            let Setting {
                name, looser, bound, ..
            } = setting;
            let (from, to) = (setting.value, after.value);
            if looser.is_looser(from, to) {
                loosened.push(format!("{name} would change from {from} to {to}"));
            } else if bound.is_some_and(|bound| bound.is_hasty(from, to, default.value)) {
                loosened.push(format!(
                    "{name} would change from {from} to {to}, at which a region that works may count as down"
                ));
            }
        }
        for what in &self.safety.two_person {
            if !other.safety.two_person.contains(what) {
                loosened.push(format!("safety.two_person would lose {what}"));
            }
        }
        for class in &self.data {
            let Some(after) = other.data.iter().find(|it| it.class == class.class) else {
                let (name, rpo) = (&class.class, class.rpo.as_secs());
                loosened.push(format!(
                    "data class {name} would be removed, and its RPO of {rpo} s with it"
                ));
                continue;
            };
            loosened.extend(class.loosened_by(after));
        }
        loosened
    }

    /// Reads a policy document. `file` is only the name that problems mention. A key that is left out keeps its
    /// default.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        document::read(file, text, |root| Some(read_policy(root)))
    }

    /// Reads a policy document that is in force, even when an older version accepted a value that this version rejects.
    /// The problems name each value that is out of range here, and the nearest value in range, which is used instead.
    pub fn parse_stored(file: &str, text: &str) -> Result<(Self, Vec<Problem>), Problems> {
        document::read_stored(file, text, |root| Some(read_policy(root)))
    }

    /// Every number, and the change of it that needs two people, in the same order for every policy.
    /// `safety.two_person` and the classes of data are compared separately ([`Policy::loosened_by`]). The test
    /// `every_field_has_a_direction` fails when a number is missing here.
    fn settings(&self) -> Vec<Setting> {
        [
            self.probe.settings(),
            self.health.settings(),
            self.failover.settings(),
            self.drain.settings(),
            self.restore.settings(),
            self.safety.settings(),
            self.damping.settings(),
            self.rollout.settings_of_steps().to_vec(),
            self.rollout.settings(),
            self.publish.settings(),
            self.edges.settings(),
            self.dns.settings(),
        ]
        .concat()
    }
}

fn read_policy(root: &mut Section<'_>) -> Policy {
    let mut policy = Policy::default();
    policy.probe.read(root, ProbePolicy::check);
    policy.health.read(root, HealthPolicy::check);
    policy.failover.read(root, |_, _| {});
    policy.drain.read(root, DrainPolicy::check);
    policy.restore.read(root, RestorePolicy::check);
    policy.safety.read(root, SafetyPolicy::check);
    policy.damping.read(root, DampingPolicy::check);
    policy.rollout.read(root, RolloutPolicy::check);
    policy.publish.read(root, |_, _| {});
    let data = read_data(root);
    if !data.is_empty() {
        policy.data = data;
    }
    policy.dns.read(root, |_, _| {});
    policy.edges.read(root, |_, _| {});
    policy
}

fn read_data(root: &mut Section<'_>) -> Vec<DataPolicy> {
    let mut data = Vec::<DataPolicy>::new();
    for mut section in root.sections("data") {
        let class: Option<String> = section.required("class", "\"profiles\"");
        let replication = section.required("replication", "\"async\"");
        let (rpo, rto) = (
            section.duration("rpo", Duration::ZERO),
            section.duration("rto", Duration::ZERO),
        );
        if let (Some(class), Some(replication)) = (class, replication) {
            if data.iter().any(|known| known.class == class) {
                section.report_at("class", &format!("\"{class}\" is defined twice; write each class once"));
            }
            data.push(DataPolicy {
                class,
                replication,
                rpo,
                rto,
            });
        }
        section.finish();
    }
    data
}
