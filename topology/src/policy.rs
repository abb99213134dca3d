//! Every number a decision uses, and the document it is written in (configs/policy.toml). Defaults come from the source
//! documents of the product.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Problem, Problems, Tick,
    document::{self, Section},
};

/// All rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// How health is probed.
    pub probe: ProbePolicy,
    /// When a region is judged bad, and good again.
    pub health: HealthPolicy,
    /// When and how sessions are moved.
    pub failover: FailoverPolicy,
    /// How a region is left when there is time.
    pub drain: DrainPolicy,
    /// How an evacuated region returns.
    pub restore: RestorePolicy,
    /// What nobody may do alone, or at all.
    pub safety: SafetyPolicy,
    /// How long a region that moved often stays where it is.
    pub damping: DampingPolicy,
    /// How a new version of the stack reaches users.
    pub rollout: RolloutPolicy,
    /// What happens when nodes refuse a plan.
    pub publish: PublishPolicy,
    /// The classes of data that regions replicate.
    pub data: Vec<DataPolicy>,
    /// What DNS answers carry.
    pub dns: DnsPolicy,
    /// When an edge counts as lost.
    pub edges: EdgesPolicy,
}

/// How health is probed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbePolicy {
    /// Longest wait for one probe.
    pub timeout: Duration,
    /// How far into each tick the probes start. Late in the tick, so that a region that dies in a tick is also seen dead
    /// in that tick unless it died in the tick's last moments; early enough that a probe that times out still counts.
    pub offset: Duration,
}

/// When a region is judged bad, and good again. Ratios are 0..=1, ticks are closed ticks in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthPolicy {
    /// Vantages that must agree before a region is bad.
    pub vantages_min: u32,
    /// Fewest samples a tick needs, over all vantages, to be judged.
    pub samples_min: u32,
    /// Gateway: a tick is bad when fewer than this share of connections succeed.
    pub gateway_success_min: f64,
    /// Gateway: bad ticks until failover.
    pub gateway_ticks: u32,
    /// Gateway: bad ticks of the window below that count like bad ticks in a row.
    pub gateway_window_bad: u32,
    /// Gateway: the window, in ticks.
    pub gateway_window_ticks: u32,
    /// Gateway: the share of a region's stacks that it cannot do without. With fewer that work it is bad.
    pub capacity_min: f64,
    /// The other triggers: as many bad ticks count also when they are spread over so many times the ticks.
    pub window_factor: f64,
    /// ASR: a tick is bad when more than this share of requests fail.
    pub asr_error_max: f64,
    /// ASR errors: bad ticks until failover.
    pub asr_error_ticks: u32,
    /// ASR: a tick is bad when the P99 latency over all vantages is above this.
    pub asr_p99_max: Duration,
    /// ASR latency: bad ticks until failover.
    pub asr_p99_ticks: u32,
    /// ASR: P95 latency above which a tick is bad enough for edge ASR (L1); so is one with errors above `asr_error_max`.
    pub edge_asr_p95_max: Duration,
    /// Edge ASR: bad ticks until L1.
    pub edge_asr_ticks: u32,
    /// Edge ASR: good ticks until it ends.
    pub edge_asr_recover_ticks: u32,
    /// NLU: a tick is bad when more than this share of requests fail.
    pub nlu_error_max: f64,
    /// NLU errors: bad ticks until intents come from patterns (L2).
    pub nlu_error_ticks: u32,
    /// NLU errors: good ticks until that ends.
    pub nlu_recover_ticks: u32,
    /// Skills: a tick is bad when more than this share of requests fail.
    pub skills_error_max: f64,
    /// Skills errors: bad ticks until skills answer from caches (L3).
    pub skills_error_ticks: u32,
    /// Skills errors: good ticks until that ends.
    pub skills_recover_ticks: u32,
    /// Good ticks until a bad region counts as healthy again.
    pub recover_ticks: u32,
    /// A report on any but the newest so many closed ticks is too old to decide on.
    pub freshness_ticks: u32,
    /// A window with no data for this many ticks in a row is blind.
    pub blind_ticks: u32,
}

/// When and how sessions are moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverPolicy {
    /// Regions that may be bad or moving at once by automatic decision.
    pub automatic_max: u32,
    /// Whether two or more primaries turning bad together holds automation.
    pub correlated_hold: bool,
    /// Primaries turn bad together when they turned from good to bad at most so many ticks apart. The gateway trigger takes
    /// two bad ticks, and the last reports of a tick may fall into the next. What lies further apart has causes of its own.
    pub correlated_ticks: u32,
    /// Devices of a region that is left come back within this time; it turns sessions moved into connections per second.
    pub reconnect_window: Duration,
    /// Whether a backup whose recognition, understanding or skills are too small takes the sessions at a degradation level
    /// that does without them, rather than not at all.
    pub degrade_to_admit: bool,
}

/// How a region is left when there is time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainPolicy {
    /// Percent of its sessions left after each step, falling, ending in 0.
    pub steps: Vec<u8>,
    /// How long each step is held while the backups stay healthy.
    pub step_hold: Duration,
}

/// What nobody may do alone, or at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafetyPolicy {
    /// Assertion: regions that must stay serving after any decision.
    pub regions_serving_min: u32,
    /// Gating: whether anything changes without being asked for. Operators turn it off for a time by a freeze.
    pub automation: bool,
    /// What needs a second person.
    pub two_person: Vec<TwoPerson>,
}

/// What can need a second person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TwoPerson {
    /// Leaving a region while another one is away.
    SecondEvacuation,
    /// Losing more data than a class's RPO.
    DataLoss,
    /// Overriding a safety rule.
    Override,
}

impl std::fmt::Display for TwoPerson {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::SecondEvacuation => "second-evacuation",
            Self::DataLoss => "data-loss",
            Self::Override => "override",
        })
    }
}

/// Damping of regions that move often, in the manner of BGP route flap damping (RFC 2439): every move adds a penalty that
/// decays by half in each half-life; a region above `suppress` may not return until it is below `reuse`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DampingPolicy {
    /// Penalty of one move.
    pub per_move: u32,
    /// Penalty from which the region stays away.
    pub suppress: u32,
    /// Penalty below which it may return.
    pub reuse: u32,
    /// Time in which a penalty halves.
    pub half_life: Duration,
}

/// How a new version of the stack reaches users, and what sends them back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutPolicy {
    /// The steps, rising, ending in 100 %.
    pub steps: Vec<RolloutStep>,
    /// Fewest sessions on the new version before it is judged.
    pub sessions_min: u32,
    /// It is judged by everything since its step began, and by the last so much time: a good day must not outweigh a bad hour.
    pub window: Duration,
    /// Share of failed turns, 0..=1, above which it is rolled back.
    pub error_rate_max: f64,
    /// Growth of the P95 latency against the old version, 0.5 for half as much again, above which it is rolled back.
    pub latency_increase_max: f64,
    /// Audio underruns per session above which it is rolled back.
    pub underruns_per_session_max: f64,
    /// GPU memory errors above which it is rolled back.
    pub gpu_memory_errors_max: u32,
}

/// One step of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutStep {
    /// Users on the new version, in percent.
    pub percent: u8,
    /// How long it is held.
    pub hold: Duration,
}

/// What happens when nodes refuse a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishPolicy {
    /// Share of the edges that may refuse a plan before it is taken back for all of them. Whatever it says, half of them and one
    /// edge may: a node that refuses serves its last good plan in any case, so a minority never decides for the others.
    pub refusals_max: f64,
    /// How long automation rests after a plan was taken back.
    pub hold: Duration,
}

/// One class of data that regions replicate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPolicy {
    /// Its name.
    pub class: String,
    /// How it is replicated.
    pub replication: Replication,
    /// Most of the newest data that may be lost (recovery point objective).
    pub rpo: Duration,
    /// Longest time until it can be used elsewhere (recovery time objective).
    pub rto: Duration,
}

/// How a class of data is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replication {
    /// One region writes; others follow with a lag.
    Async,
    /// Every region writes.
    ActiveActive,
    /// Copied now and then.
    Batch,
    /// Made again from a log.
    Replay,
    /// Never leaves its region: a failover loses it, by policy.
    RegionLocal,
}

/// How an evacuated region returns. It never does so without being told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePolicy {
    /// Percent of its sessions after each step, rising, ending in 100.
    pub steps: Vec<u8>,
    /// How long each step is held while the region stays healthy.
    pub step_hold: Duration,
}

/// What DNS answers carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsPolicy {
    /// TTL of address records. It bounds how long a lost edge is still named; region loss never waits for DNS.
    pub ttl: Duration,
}

impl DataPolicy {
    /// The same for one class of data: by its replication it is decided whether a loss is looked at at all.
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
                "the replication of {class} would go from {replication:?} to {:?}",
                other.replication
            ));
        }
        for (name, from, to) in [("RPO", rpo, other.rpo), ("RTO", rto, other.rto)] {
            if to > *from {
                loosened.push(format!(
                    "the {name} of {class} would go from {} to {} s",
                    from.as_secs(),
                    to.as_secs()
                ));
            }
        }
        loosened
    }
}

/// Which change of a number makes the policy looser: takes protection away, or makes the control plane see or do less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looser {
    /// A greater one.
    More,
    /// A smaller one.
    Less,
    /// Any other one: too small it believes anybody, too large it never believes anything.
    Either,
    /// Neither.
    Never,
}

/// A number of the policy, as it is compared and told.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Value {
    Number(f64),
    Seconds(f64),
    Switch(bool),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Seconds(seconds) => write!(f, "{seconds} s"),
            Self::Switch(is_on) => f.pad(if *is_on { "on" } else { "off" }),
        }
    }
}

fn number(number: impl Into<f64>) -> Value {
    Value::Number(number.into())
}

fn seconds(time: Duration) -> Value {
    Value::Seconds(time.as_secs_f64())
}

/// The most that one step moves.
fn largest_step(percents: impl IntoIterator<Item = u8>, from: u8) -> Value {
    let mut before = from;
    let steps = percents.into_iter().map(|percent| {
        let step = percent.abs_diff(before);
        before = percent;
        step
    });
    number(steps.max().unwrap_or_default())
}

/// A number's name in documents, which change of it needs two people, and where it is found.
type Field = (&'static str, Looser, fn(&Policy) -> Value);

/// Every number of the policy and which change of it needs two people; `safety.two_person` and the classes of data are
/// compared one by one ([`Policy::loosened_by`]). A test knows when one is missing.
const FIELDS: &[Field] = &[
    // Longer, what answers late counts as well; shorter, what is well counts as dead.
    ("probe.timeout", Looser::Either, |it| seconds(it.probe.timeout)),
    // When in the tick: it fits into it either way.
    ("probe.offset", Looser::Never, |it| seconds(it.probe.offset)),
    ("health.vantages_min", Looser::Either, |it| {
        number(it.health.vantages_min)
    }),
    ("health.samples_min", Looser::Either, |it| number(it.health.samples_min)),
    ("health.gateway_success_min", Looser::Less, |it| {
        number(it.health.gateway_success_min)
    }),
    ("health.gateway_ticks", Looser::More, |it| {
        number(it.health.gateway_ticks)
    }),
    ("health.gateway_window_bad", Looser::More, |it| {
        number(it.health.gateway_window_bad)
    }),
    // Bad ticks are forgotten sooner in a shorter window.
    ("health.gateway_window_ticks", Looser::Less, |it| {
        number(it.health.gateway_window_ticks)
    }),
    ("health.capacity_min", Looser::Less, |it| number(it.health.capacity_min)),
    ("health.window_factor", Looser::Less, |it| {
        number(it.health.window_factor)
    }),
    ("health.asr_error_max", Looser::More, |it| {
        number(it.health.asr_error_max)
    }),
    ("health.asr_error_ticks", Looser::More, |it| {
        number(it.health.asr_error_ticks)
    }),
    ("health.asr_p99_max", Looser::More, |it| seconds(it.health.asr_p99_max)),
    ("health.asr_p99_ticks", Looser::More, |it| {
        number(it.health.asr_p99_ticks)
    }),
    ("health.edge_asr_p95_max", Looser::More, |it| {
        seconds(it.health.edge_asr_p95_max)
    }),
    ("health.edge_asr_ticks", Looser::More, |it| {
        number(it.health.edge_asr_ticks)
    }),
    ("health.edge_asr_recover_ticks", Looser::Less, |it| {
        number(it.health.edge_asr_recover_ticks)
    }),
    ("health.nlu_error_max", Looser::More, |it| {
        number(it.health.nlu_error_max)
    }),
    ("health.nlu_error_ticks", Looser::More, |it| {
        number(it.health.nlu_error_ticks)
    }),
    ("health.nlu_recover_ticks", Looser::Less, |it| {
        number(it.health.nlu_recover_ticks)
    }),
    ("health.skills_error_max", Looser::More, |it| {
        number(it.health.skills_error_max)
    }),
    ("health.skills_error_ticks", Looser::More, |it| {
        number(it.health.skills_error_ticks)
    }),
    ("health.skills_recover_ticks", Looser::Less, |it| {
        number(it.health.skills_recover_ticks)
    }),
    ("health.recover_ticks", Looser::Less, |it| {
        number(it.health.recover_ticks)
    }),
    ("health.freshness_ticks", Looser::More, |it| {
        number(it.health.freshness_ticks)
    }),
    ("health.blind_ticks", Looser::More, |it| number(it.health.blind_ticks)),
    ("failover.automatic_max", Looser::More, |it| {
        number(it.failover.automatic_max)
    }),
    ("failover.correlated_hold", Looser::Less, |it| {
        Value::Switch(it.failover.correlated_hold)
    }),
    ("failover.correlated_ticks", Looser::Less, |it| {
        number(it.failover.correlated_ticks)
    }),
    // The longer the window, the more devices come at once.
    ("failover.reconnect_window", Looser::More, |it| {
        seconds(it.failover.reconnect_window)
    }),
    // Either way nobody is sent where there is no room: it chooses between less service for some and none for others.
    ("failover.degrade_to_admit", Looser::Never, |it| {
        Value::Switch(it.failover.degrade_to_admit)
    }),
    ("drain.steps", Looser::More, |it| {
        largest_step(it.drain.steps.iter().copied(), 100)
    }),
    ("drain.step_hold", Looser::Less, |it| seconds(it.drain.step_hold)),
    ("restore.steps", Looser::More, |it| {
        largest_step(it.restore.steps.iter().copied(), 0)
    }),
    ("restore.step_hold", Looser::Less, |it| seconds(it.restore.step_hold)),
    ("safety.regions_serving_min", Looser::Less, |it| {
        number(it.safety.regions_serving_min)
    }),
    // Without it a dead region keeps its callers. A freeze does that for a time.
    ("safety.automation", Looser::Less, |it| {
        Value::Switch(it.safety.automation)
    }),
    ("damping.per_move", Looser::Less, |it| number(it.damping.per_move)),
    ("damping.suppress", Looser::More, |it| number(it.damping.suppress)),
    ("damping.reuse", Looser::More, |it| number(it.damping.reuse)),
    ("damping.half_life", Looser::Less, |it| seconds(it.damping.half_life)),
    ("rollout.steps", Looser::More, |it| {
        largest_step(it.rollout.steps.iter().map(|step| step.percent), 0)
    }),
    ("rollout.steps.hold", Looser::Less, |it| {
        let held = it
            .rollout
            .steps
            .iter()
            .filter(|step| step.percent < 100)
            .map(|step| step.hold);
        seconds(held.min().unwrap_or_default())
    }),
    // A version that is seen by fewer is not judged at all.
    ("rollout.sessions_min", Looser::Either, |it| {
        number(it.rollout.sessions_min)
    }),
    ("rollout.window", Looser::More, |it| seconds(it.rollout.window)),
    ("rollout.error_rate_max", Looser::More, |it| {
        number(it.rollout.error_rate_max)
    }),
    ("rollout.latency_increase_max", Looser::More, |it| {
        number(it.rollout.latency_increase_max)
    }),
    ("rollout.underruns_per_session_max", Looser::More, |it| {
        number(it.rollout.underruns_per_session_max)
    }),
    ("rollout.gpu_memory_errors_max", Looser::More, |it| {
        number(it.rollout.gpu_memory_errors_max)
    }),
    // The more have to refuse, the longer a plan that nobody can apply stays in force.
    ("publish.refusals_max", Looser::Either, |it| {
        number(it.publish.refusals_max)
    }),
    ("publish.hold", Looser::Less, |it| seconds(it.publish.hold)),
    // A lost edge is named for longer.
    ("edges.lost_after", Looser::More, |it| seconds(it.edges.lost_after)),
    ("edges.returned_after", Looser::Less, |it| {
        seconds(it.edges.returned_after)
    }),
    // With too little no lost edge is left out, with too much nearly all of them may be.
    ("edges.lost_max", Looser::Either, |it| number(it.edges.lost_max)),
    // And longer still in the caches of resolvers.
    ("dns.ttl", Looser::More, |it| seconds(it.dns.ttl)),
];

impl DnsPolicy {
    /// The TTL in the whole seconds that DNS knows.
    pub fn ttl_s(&self) -> u32 {
        u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX)
    }
}

/// When an edge counts as lost, so that DNS names it no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgesPolicy {
    /// An edge is lost when it followed no plans and sent no report for so long.
    pub lost_after: Duration,
    /// A lost edge is named again when it was heard of for so long without a gap.
    pub returned_after: Duration,
    /// Share of all edges, 0..=1, that may be left out for being lost. When more look lost, none more is left out.
    pub lost_max: f64,
}

impl Default for EdgesPolicy {
    fn default() -> Self {
        // Three reports that did not come; an edge that is restarted is back before.
        Self {
            lost_after: Duration::from_secs(30),
            returned_after: Duration::from_secs(20),
            lost_max: 0.5,
        }
    }
}

impl Default for ProbePolicy {
    fn default() -> Self {
        // Offset + timeout + a second for the report must fit into the tick.
        Self {
            timeout: Duration::from_secs(2),
            offset: Duration::from_millis(6_500),
        }
    }
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            vantages_min: 2,
            samples_min: 2,
            gateway_success_min: 0.95,
            gateway_ticks: 2,
            // A third of two minutes. Two bad ticks with a good one between are a deploy that restarts twice; four are not.
            gateway_window_bad: 4,
            gateway_window_ticks: 12,
            // Regions are sized so that a stack can be taken out for maintenance: half of two carries the region for as long.
            // With less than half of them left, the peak finds no room.
            capacity_min: 0.5,
            // Five minutes for two of bad recognition: at night, when a probe of each vantage is all there is, 30 % of errors
            // need that long to be told from chance.
            window_factor: 2.5,
            asr_error_max: 0.10,
            asr_error_ticks: 12,
            asr_p99_max: Duration::from_secs(2),
            asr_p99_ticks: 30,
            edge_asr_p95_max: Duration::from_millis(500),
            edge_asr_ticks: 6,
            edge_asr_recover_ticks: 12,
            // The service is down, not merely failing at times: the level takes something from every caller.
            nlu_error_max: 0.5,
            nlu_error_ticks: 6,
            nlu_recover_ticks: 12,
            skills_error_max: 0.5,
            skills_error_ticks: 6,
            skills_recover_ticks: 12,
            recover_ticks: 3,
            freshness_ticks: 3,
            blind_ticks: 3,
        }
    }
}

impl Default for FailoverPolicy {
    fn default() -> Self {
        Self {
            automatic_max: 1,
            correlated_hold: true,
            correlated_ticks: 3,
            reconnect_window: Duration::from_secs(10),
            degrade_to_admit: true,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let data = |class: &str, replication, rpo, rto| DataPolicy {
            class: class.to_owned(),
            replication,
            rpo,
            rto,
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
                data("profiles", Replication::Async, hours(1), minutes(5)),
                data("conversations", Replication::Async, hours(24), hours(1)),
                data("skill-catalog", Replication::ActiveActive, Duration::ZERO, minutes(5)),
                data("recordings", Replication::Batch, hours(24), hours(4)),
                data("device-registry", Replication::Async, hours(1), minutes(15)),
                data("analytics", Replication::Replay, hours(1), hours(1)),
                data("sessions", Replication::RegionLocal, Duration::ZERO, Duration::ZERO),
            ],
            dns: DnsPolicy::default(),
            edges: EdgesPolicy::default(),
        }
    }
}

impl Default for DrainPolicy {
    fn default() -> Self {
        Self {
            steps: vec![75, 50, 25, 0],
            step_hold: Duration::from_secs(30),
        }
    }
}

impl Default for SafetyPolicy {
    fn default() -> Self {
        Self {
            regions_serving_min: 2,
            automation: true,
            two_person: vec![TwoPerson::SecondEvacuation, TwoPerson::DataLoss, TwoPerson::Override],
        }
    }
}

impl Default for DampingPolicy {
    fn default() -> Self {
        Self {
            per_move: 1000,
            suppress: 2000,
            reuse: 750,
            half_life: Duration::from_secs(15 * 60),
        }
    }
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        let step = |percent, hold| RolloutStep { percent, hold };
        Self {
            steps: vec![
                step(10, days(3)),
                step(25, days(5)),
                step(50, days(7)),
                step(100, Duration::ZERO),
            ],
            sessions_min: 100,
            window: Duration::from_secs(600),
            error_rate_max: 0.01,
            latency_increase_max: 0.5,
            underruns_per_session_max: 10.0,
            gpu_memory_errors_max: 0,
        }
    }
}

impl Default for PublishPolicy {
    fn default() -> Self {
        Self {
            refusals_max: 0.5,
            hold: Duration::from_secs(600),
        }
    }
}

impl Default for RestorePolicy {
    fn default() -> Self {
        Self {
            steps: vec![1, 5, 25, 50, 100],
            step_hold: Duration::from_secs(60),
        }
    }
}

impl Default for DnsPolicy {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(15),
        }
    }
}

impl Policy {
    /// What another policy would loosen, one line each; none when it is as strict.
    pub fn loosened_by(&self, other: &Self) -> Vec<String> {
        let mut loosened = Vec::new();
        for (name, looser, value) in FIELDS {
            let (from, to) = (value(self), value(other));
            let is_looser = match looser {
                Looser::More => to > from,
                Looser::Less => to < from,
                Looser::Either => to != from,
                Looser::Never => false,
            };
            if is_looser {
                loosened.push(format!("{name} would go from {from} to {to}"));
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
                    "data class {name} would be gone, and its RPO of {rpo} s with it"
                ));
                continue;
            };
            loosened.extend(class.loosened_by(after));
        }
        loosened
    }

    /// Reads a policy document; `file` only names it in problems. What is left out keeps its default.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        document::read(file, text, |root| Some(read_policy(root)))
    }

    /// Reads a policy document that is in force, also where an older version took what this one refuses. The problems name
    /// each value that is out of range here, and the nearest one that is used for it.
    pub fn parse_stored(file: &str, text: &str) -> Result<(Self, Vec<Problem>), Problems> {
        document::read_stored(file, text, |root| Some(read_policy(root)))
    }
}

fn read_policy(root: &mut Section<'_>) -> Policy {
    let mut policy = Policy::default();
    if let Some(mut section) = root.section("probe") {
        let probe = &mut policy.probe;
        probe.timeout = section.duration_in_range("timeout", probe.timeout, PROBE_TIMEOUT_MIN..=Tick::LENGTH);
        probe.offset = section.duration("offset", probe.offset);
        if probe.offset + probe.timeout + Duration::from_secs(1) > Tick::LENGTH {
            section.report("offset + timeout + 1 s must fit into a tick of 10 s");
        }
        section.finish();
    }
    if let Some(mut section) = root.section("health") {
        let health = &mut policy.health;
        health.vantages_min = section.in_range("vantages_min", health.vantages_min, 2..=100);
        health.samples_min = section.in_range("samples_min", health.samples_min, 1..=1_000);
        health.gateway_success_min = section.in_range("gateway_success_min", health.gateway_success_min, 0.5..=1.0);
        health.gateway_ticks = section.in_range("gateway_ticks", health.gateway_ticks, 1..=FALL_TICKS_MAX);
        health.gateway_window_bad =
            section.in_range("gateway_window_bad", health.gateway_window_bad, 1..=FALL_TICKS_MAX);
        health.gateway_window_ticks =
            section.in_range("gateway_window_ticks", health.gateway_window_ticks, 1..=TICKS_MAX);
        health.capacity_min = section.in_range("capacity_min", health.capacity_min, 0.01..=1.0);
        health.window_factor = section.in_range("window_factor", health.window_factor, 1.0..=10.0);
        health.asr_error_max = section.in_range("asr_error_max", health.asr_error_max, 0.01..=0.5);
        health.asr_error_ticks = section.in_range("asr_error_ticks", health.asr_error_ticks, 1..=FALL_TICKS_MAX);
        health.asr_p99_max = section.duration_in_range("asr_p99_max", health.asr_p99_max, LATENCY_MIN..=LATENCY_MAX);
        health.asr_p99_ticks = section.in_range("asr_p99_ticks", health.asr_p99_ticks, 1..=FALL_TICKS_MAX);
        health.edge_asr_p95_max =
            section.duration_in_range("edge_asr_p95_max", health.edge_asr_p95_max, LATENCY_MIN..=LATENCY_MAX);
        health.edge_asr_ticks = section.in_range("edge_asr_ticks", health.edge_asr_ticks, 1..=FALL_TICKS_MAX);
        health.edge_asr_recover_ticks =
            section.in_range("edge_asr_recover_ticks", health.edge_asr_recover_ticks, 1..=TICKS_MAX);
        health.nlu_error_max = section.in_range("nlu_error_max", health.nlu_error_max, 0.0..=0.95);
        health.nlu_error_ticks = section.in_range("nlu_error_ticks", health.nlu_error_ticks, 1..=FALL_TICKS_MAX);
        health.nlu_recover_ticks = section.in_range("nlu_recover_ticks", health.nlu_recover_ticks, 1..=TICKS_MAX);
        health.skills_error_max = section.in_range("skills_error_max", health.skills_error_max, 0.0..=0.95);
        health.skills_error_ticks =
            section.in_range("skills_error_ticks", health.skills_error_ticks, 1..=FALL_TICKS_MAX);
        health.skills_recover_ticks =
            section.in_range("skills_recover_ticks", health.skills_recover_ticks, 1..=TICKS_MAX);
        health.recover_ticks = section.in_range("recover_ticks", health.recover_ticks, 1..=TICKS_MAX);
        health.freshness_ticks = section.in_range("freshness_ticks", health.freshness_ticks, 1..=FRESHNESS_TICKS_MAX);
        health.blind_ticks = section.in_range("blind_ticks", health.blind_ticks, 1..=FRESHNESS_TICKS_MAX);
        if health.gateway_window_bad > health.gateway_window_ticks {
            section.report_at(
                "gateway_window_bad",
                "a window of gateway_window_ticks has no more ticks than that",
            );
        }
        section.finish();
    }
    if let Some(mut section) = root.section("failover") {
        let failover = &mut policy.failover;
        failover.automatic_max = section.in_range("automatic_max", failover.automatic_max, 1..=100);
        failover.correlated_hold = section.optional("correlated_hold", failover.correlated_hold);
        failover.correlated_ticks = section.in_range("correlated_ticks", failover.correlated_ticks, 1..=TICKS_MAX);
        let window = failover.reconnect_window;
        failover.reconnect_window = section.duration_in_range("reconnect_window", window, MS..=10 * MINUTE);
        failover.degrade_to_admit = section.optional("degrade_to_admit", failover.degrade_to_admit);
        section.finish();
    }
    if let Some(mut section) = root.section("drain") {
        let drain = &mut policy.drain;
        drain.steps = section.optional("steps", drain.steps.clone());
        drain.step_hold = section.duration("step_hold", drain.step_hold);
        let falling = drain.steps.windows(2).all(|pair| pair[0] > pair[1]);
        if !falling || drain.steps.first() > Some(&99) || drain.steps.last() != Some(&0) {
            section.report_at("steps", "steps must fall from at most 99 and end in 0");
        }
        section.finish();
    }
    if let Some(mut section) = root.section("restore") {
        let restore = &mut policy.restore;
        restore.steps = section.optional("steps", restore.steps.clone());
        restore.step_hold = section.duration("step_hold", restore.step_hold);
        let rising = restore.steps.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || restore.steps.first() == Some(&0) || restore.steps.last() != Some(&100) {
            section.report_at("steps", "steps must rise from at least 1 and end in 100");
        }
        section.finish();
    }
    if let Some(mut section) = root.section("safety") {
        let safety = &mut policy.safety;
        safety.regions_serving_min = section.in_range("regions_serving_min", safety.regions_serving_min, 1..=1000);
        safety.automation = section.optional("automation", safety.automation);
        safety.two_person = section.optional("two_person", safety.two_person.clone());
        section.finish();
    }
    if let Some(mut section) = root.section("damping") {
        let damping = &mut policy.damping;
        damping.per_move = section.in_range("per_move", damping.per_move, 1..=1_000_000);
        damping.suppress = section.in_range("suppress", damping.suppress, 1..=1_000_000);
        damping.reuse = section.in_range("reuse", damping.reuse, 1..=1_000_000);
        damping.half_life = section.duration("half_life", damping.half_life);
        if damping.reuse > damping.suppress || damping.half_life.is_zero() {
            section.report("reuse is at most suppress, and the half-life is longer than nothing");
        }
        section.finish();
    }
    if let Some(mut section) = root.section("rollout") {
        let rollout = &mut policy.rollout;
        rollout.sessions_min = section.in_range("sessions_min", rollout.sessions_min, 1..=1_000_000);
        rollout.window = section.duration_in_range("window", rollout.window, MINUTE..=60 * MINUTE);
        rollout.error_rate_max = section.in_range("error_rate_max", rollout.error_rate_max, 0.0..=0.5);
        rollout.latency_increase_max =
            section.in_range("latency_increase_max", rollout.latency_increase_max, 0.0..=10.0);
        rollout.underruns_per_session_max = section.in_range(
            "underruns_per_session_max",
            rollout.underruns_per_session_max,
            0.0..=1_000.0,
        );
        rollout.gpu_memory_errors_max =
            section.in_range("gpu_memory_errors_max", rollout.gpu_memory_errors_max, 0..=100);
        let mut steps = Vec::new();
        for mut step in section.sections("step") {
            steps.push(RolloutStep {
                percent: step.in_range("percent", 0, 1..=100),
                hold: step.duration("hold", Duration::ZERO),
            });
            step.finish();
        }
        if !steps.is_empty() {
            rollout.steps = steps;
        }
        let rising = rollout.steps.windows(2).all(|pair| pair[0].percent < pair[1].percent);
        if !rising || rollout.steps.last().map(|step| step.percent) != Some(100) {
            section.report("the steps' percentages must rise and end in 100");
        }
        section.finish();
    }
    if let Some(mut section) = root.section("publish") {
        let publish = &mut policy.publish;
        publish.refusals_max = section.in_range("refusals_max", publish.refusals_max, 0.0..=0.95);
        publish.hold = section.duration("hold", publish.hold);
        section.finish();
    }
    let mut data = Vec::<DataPolicy>::new();
    for mut section in root.sections("data") {
        let class: Option<String> = section.required("class");
        let replication = section.required("replication");
        let (rpo, rto) = (
            section.duration("rpo", Duration::ZERO),
            section.duration("rto", Duration::ZERO),
        );
        if let (Some(class), Some(replication)) = (class, replication) {
            if data.iter().any(|known| known.class == class) {
                section.report_at("class", &format!("data class {class} is defined twice"));
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
    if !data.is_empty() {
        policy.data = data;
    }
    if let Some(mut section) = root.section("dns") {
        policy.dns.ttl = section.duration_in_range("ttl", policy.dns.ttl, SECOND..=60 * MINUTE);
        section.finish();
    }
    if let Some(mut section) = root.section("edges") {
        let edges = &mut policy.edges;
        // At least two reports.
        edges.lost_after = section.duration_in_range("lost_after", edges.lost_after, 20 * SECOND..=60 * MINUTE);
        edges.returned_after =
            section.duration_in_range("returned_after", edges.returned_after, Duration::ZERO..=60 * MINUTE);
        edges.lost_max = section.in_range("lost_max", edges.lost_max, 0.0..=0.9);
        section.finish();
    }
    policy
}

const MS: Duration = Duration::from_millis(1);
/// A region across an ocean needs some 200 ms to answer; with less than this, regions that are well look dead.
const PROBE_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// Recognition that is well takes longer than this, so a limit below it would always be passed.
const LATENCY_MIN: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// No caller waits longer for an answer, so a limit above it would never be passed.
const LATENCY_MAX: Duration = Duration::from_secs(60);
/// Longest run of bad ticks before a trigger fires, a quarter of an hour: with a longer one it is as good as off.
const FALL_TICKS_MAX: u32 = 90;
/// Longest run of ticks: an hour.
pub const TICKS_MAX: u32 = 360;
/// Most ticks on which reports may come late: they are held in memory per region, component and vantage.
pub const FRESHNESS_TICKS_MAX: u32 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_document_is_the_default_policy() {
        assert_eq!(Policy::parse("policy.toml", ""), Ok(Policy::default()));
    }

    #[test]
    fn the_shipped_policy_states_the_defaults() {
        let shipped = include_str!("../../configs/policy.toml");
        assert_eq!(Policy::parse("policy.toml", shipped), Ok(Policy::default()));
    }

    #[test]
    fn no_time_is_longer_than_ten_years() {
        let longest = Policy::parse("p.toml", "[damping]\nhalf_life = \"3650d\"");
        assert_eq!(longest.unwrap().damping.half_life, Duration::from_secs(3650 * 86_400));
        let text = "[restore]\nstep_hold = \"3651d\"\n[probe]\noffset = \"18446744073709551615ms\"";
        let problems = Policy::parse("p.toml", text).unwrap_err().to_string();
        for complaint in [
            "p.toml:2: restore: \"step_hold\" is longer than ten years (3650d)",
            "p.toml:4: probe: \"offset\" is longer than ten years",
        ] {
            assert!(problems.contains(complaint), "{complaint}\nnot in\n{problems}");
        }
    }

    /// Whoever adds a number says which change of it needs two people.
    #[test]
    fn every_number_has_a_direction() {
        let policy = serde_json::to_value(Policy::default()).unwrap();
        let mut missing = Vec::new();
        let by_themselves = ["safety.two_person"];
        for (section, fields) in policy.as_object().unwrap() {
            let Some(fields) = fields.as_object() else {
                assert_eq!(section, "data", "DataPolicy::loosened_by takes its fields apart");
                continue;
            };
            for field in fields.keys() {
                let name = format!("{section}.{field}");
                let is_known =
                    FIELDS.iter().any(|(known, ..)| *known == name) || by_themselves.contains(&name.as_str());
                if !is_known {
                    missing.push(name);
                }
            }
        }
        assert_eq!(missing, [""; 0]);
        let mut names: Vec<&str> = FIELDS.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        let twice: Vec<&str> = names.windows(2).filter(|it| it[0] == it[1]).map(|it| it[0]).collect();
        assert_eq!(twice, [""; 0], "a change of it would be named twice");
    }

    #[test]
    fn nobody_loosens_anything_alone() {
        let default = Policy::default();
        let loosened = |text: &str| {
            let problems = |it| panic!("{text}: {it}");
            default.loosened_by(&Policy::parse("p", text).unwrap_or_else(problems))
        };
        let sets = |section: &str, line: &str| loosened(&format!("[{section}]\n{line}"));
        for (section, line) in [
            ("probe", "timeout = \"2500ms\""),
            ("health", "vantages_min = 3"),
            ("health", "samples_min = 1"),
            ("health", "samples_min = 500"),
            ("health", "gateway_success_min = 0.9"),
            ("health", "gateway_ticks = 3"),
            ("health", "asr_p99_max = \"3s\""),
            ("health", "recover_ticks = 2"),
            ("health", "blind_ticks = 4"),
            ("failover", "automatic_max = 2"),
            ("failover", "correlated_hold = false"),
            ("failover", "correlated_ticks = 1"),
            ("failover", "reconnect_window = \"11s\""),
            ("drain", "steps = [50, 0]"),
            ("drain", "step_hold = \"1s\""),
            ("restore", "steps = [100]"),
            ("restore", "step_hold = \"1s\""),
            ("safety", "regions_serving_min = 1"),
            ("safety", "automation = false"),
            ("safety", "two_person = [\"override\"]"),
            ("damping", "per_move = 1"),
            ("damping", "suppress = 2001"),
            ("damping", "reuse = 751"),
            ("damping", "half_life = \"1m\""),
            ("rollout", "window = \"20m\""),
            ("rollout", "error_rate_max = 0.02"),
            ("rollout", "sessions_min = 1000"),
            ("rollout", "step = [{ percent = 100 }]"),
            ("publish", "refusals_max = 0.9"),
            ("publish", "hold = \"1s\""),
            ("dns", "ttl = \"1h\""),
        ] {
            assert!(!sets(section, line).is_empty(), "{section}: {line}");
        }
        for (section, line) in [
            ("health", "gateway_success_min = 0.99"),
            ("failover", "correlated_ticks = 6"),
            ("failover", "degrade_to_admit = false"),
            ("restore", "steps = [1, 5, 25, 50, 75, 100]"),
            ("damping", "suppress = 1999"),
        ] {
            assert_eq!(sets(section, line), [""; 0], "{section}: {line}");
        }
        let mut other = default.clone();
        for class in &mut other.data {
            class.replication = Replication::ActiveActive;
        }
        let said = default.loosened_by(&other);
        let line = "the replication of profiles would go from Async to ActiveActive".to_owned();
        assert!(said.contains(&line), "{said:?}");
        let line = "damping.suppress would go from 2000 to 3000".to_owned();
        assert_eq!(sets("damping", "suppress = 3000"), [line]);
    }

    /// A limit that nothing can pass is no limit, whoever agrees to it.
    #[test]
    fn no_number_turns_detection_off() {
        for text in [
            "[health]\ngateway_success_min = 0.0",
            "[probe]\ntimeout = \"10ms\"",
            "[failover]\nautomatic_max = 0",
            "[health]\nasr_error_max = 0.0",
            "[health]\nasr_p99_max = \"1ms\"",
            "[health]\nedge_asr_p95_max = \"1ms\"",
            "[health]\nasr_error_max = 1.0",
            "[health]\nnlu_error_max = 1.0",
            "[health]\nskills_error_max = 1.0",
            "[health]\nasr_p99_max = \"1h\"",
            "[health]\nblind_ticks = 360",
            "[health]\nsamples_min = 1000000",
            "[failover]\nreconnect_window = \"3650d\"",
            "[failover]\nreconnect_window = \"0s\"",
            "[damping]\nper_move = 0",
            "[rollout]\nerror_rate_max = 1.0",
            "[rollout]\nwindow = \"3d\"",
            "[publish]\nrefusals_max = 1.0",
        ] {
            assert!(Policy::parse("p", text).is_err(), "{text}");
        }
    }

    /// Earlier versions had wider limits. A policy that one of them took must not stop this version from deciding.
    #[test]
    fn a_stored_policy_that_an_older_version_took_is_read_within_todays_limits() {
        let text = "[health]\nsamples_min = 1_000_000\ngateway_success_min = 0.0\ngateway_ticks = 360\nasr_error_max = 1.0\n\
                    asr_p99_max = \"1h\"\nnlu_error_max = 1.0\nblind_ticks = 360\n[failover]\nreconnect_window = \"1d\"\n\
                    [damping]\nper_move = 0\n[rollout]\nerror_rate_max = 1.0\nlatency_increase_max = 100.0\n\
                    underruns_per_session_max = 1e6\ngpu_memory_errors_max = 1_000_000\n[publish]\nrefusals_max = 1.0\n";
        Policy::parse("policy", text).unwrap_err();
        let (policy, told) = Policy::parse_stored("policy", text).unwrap();
        let health = &policy.health;
        assert_eq!((health.samples_min, health.gateway_success_min), (1_000, 0.5));
        assert_eq!((health.gateway_ticks, health.blind_ticks), (90, 12));
        assert_eq!((health.asr_p99_max, health.nlu_error_max), (LATENCY_MAX, 0.95));
        assert_eq!(policy.failover.reconnect_window, 10 * MINUTE);
        assert_eq!((policy.damping.per_move, policy.publish.refusals_max), (1, 0.95));
        assert_eq!(told.len(), 14, "{told:?}");
        let line = "policy:8: health: \"blind_ticks\" is 360, allowed is 1 to 12; 12 is used";
        assert!(told.iter().any(|it| it.to_string() == line), "{told:?}");
        // What nobody can read stays a problem.
        Policy::parse_stored("policy", "[health]\nblind_ticks = \"many\"").unwrap_err();
        Policy::parse_stored("policy", "[health]\ncolour = 1").unwrap_err();
        // A document within the limits is read alike by both.
        let shipped = include_str!("../../configs/policy.toml");
        assert_eq!(Policy::parse_stored("policy", shipped), Ok((Policy::default(), vec![])));
    }

    #[test]
    fn numbers_out_of_range_are_all_reported() {
        let text = "[health]\ngateway_success_min = 1.5\ngateway_ticks = 0\n[restore]\nsteps = [5, 1]\n[dns]\nttl = \"0s\"\n[probe]\ntimeout = \"9s\"\n[failover]\nmax = 1";
        let problems = Policy::parse("p.toml", text).unwrap_err().to_string();
        for complaint in [
            "p.toml:2: health: \"gateway_success_min\" is 1.5, allowed is 0.5 to 1",
            "p.toml:3: health: \"gateway_ticks\" is 0, allowed is 1 to 90",
            "p.toml:5: restore: steps must rise",
            "p.toml:7: dns: \"ttl\" is 0 s, allowed is 1 s to 3600 s",
            "p.toml:8: probe: offset + timeout",
            "p.toml:11: failover.max: unknown key",
        ] {
            assert!(problems.contains(complaint), "{complaint}\nnot in\n{problems}");
        }
    }
}
