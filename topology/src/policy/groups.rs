//! The groups of numbers of the policy.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    TwoPerson,
    group::{Looser, Setting, Value, group, largest_step, lasting, like, within},
};
use crate::{
    Tick,
    document::{Section, Span},
};

const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A region across an ocean takes about 200 ms to answer. With a shorter deadline, healthy regions would look dead.
const PROBE_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// Healthy recognition takes longer than this, so a smaller limit would always be exceeded.
const LATENCY_MIN: Duration = Duration::from_millis(50);
/// No user waits longer for an answer, so a greater limit would never be exceeded.
pub(super) const LATENCY_MAX: Duration = Duration::from_secs(60);
/// Most consecutive bad ticks before a trigger fires: a quarter of an hour. A trigger that takes longer is as good as
/// off.
const FALL_TICKS_MAX: u32 = 90;
/// Most ticks in any setting: one hour.
pub const TICKS_MAX: u32 = 360;
/// Fewest ticks before data is too old or missing. A report on a closed tick arrives during the next tick, so with one
/// tick every late report would stop automation.
const WAIT_TICKS_MIN: u32 = 2;
/// Most ticks by which a report may be late. The control plane stores that many ticks per region, component and
/// vantage.
pub const FRESHNESS_TICKS_MAX: u32 = 12;

group! {
    /// Probes of the regions by the nodes.
    ProbePolicy, "probe" {
        /// Deadline of one probe.
        // If longer, late answers count as successes. If shorter, healthy regions count as dead.
        timeout: Duration = 2 * SECOND => [lasting(PROBE_TIMEOUT_MIN..=Tick::LENGTH); Either];
        /// The time from the start of a tick to its probes. Probes start late in the tick, so that a region that dies
        /// during a tick is seen dead in that tick, unless it dies in the tick's last moments. They start early enough
        /// that a probe that reaches its deadline still counts.
        // Offset, timeout and one second for the report fit into the tick with every allowed value.
        offset: Duration = Duration::from_millis(6_500) => [Section::duration; Never];
    }
}

impl ProbePolicy {
    pub(super) fn check(&mut self, section: &mut Section<'_>) {
        if self.offset + self.timeout + SECOND > Tick::LENGTH {
            let text = format!(
                "offset ({}), timeout ({}) and 1s for the report are longer than a tick of 10s; write a shorter offset or \
                 timeout",
                Span(self.offset),
                Span(self.timeout)
            );
            section.report_at("offset", &text);
        }
    }
}

group! {
    /// Limits at which a region is judged bad, and good again. Ratios are 0..=1. Ticks are consecutive closed ticks, unless
    /// a field names a window.
    #[serde(default)]
    HealthPolicy, "health" {
        /// Fewest vantages that must agree before a region is bad.
        vantages_min: u32 = 2 => [within(2..=100); Either];
        /// Fewest samples of a tick, over all vantages, that suffice to judge it.
        samples_min: u32 = 2 => [within(1..=1_000); Either];
        /// Gateway: a tick is bad when fewer than this share of connections succeed.
        gateway_success_min: f64 = 0.95 => [within(0.5..=0.999); Less, HalfWay];
        /// Gateway: bad ticks before failover.
        gateway_ticks: u32 = 2 => [within(1..=FALL_TICKS_MAX); More, Ticks];
        /// Gateway: this many bad ticks within the window below also cause failover, although good ticks lie between them.
        // A third of two minutes. A deployment that restarts twice makes two bad ticks with a good one between them; it
        // does not make four.
        gateway_window_bad: u32 = 4 => [within(1..=FALL_TICKS_MAX); More, Ticks];
        /// Gateway: length of the window, in ticks.
        // With a shorter window, bad ticks are forgotten sooner.
        gateway_window_ticks: u32 = 12 => [within(1..=TICKS_MAX); Less, Twice];
        /// The share of a region's stacks that must work, 0..=1. A region is bad when fewer stacks work, or when the
        /// working stacks have too little room for its sessions.
        // Regions are sized so that one stack can be taken out for maintenance: one of two carries the region for that
        // long. With fewer than half of the stacks, the peak does not fit.
        // If smaller, a region that is too small for its users passes. If larger, one dead stack evacuates a region.
        capacity_min: f64 = 0.5 => [within(0.01..=1.0); Either];
        /// Every other trigger: its number of bad ticks also counts when they are spread over this multiple of that number.
        // Two minutes of bad recognition within five. At night the only samples are one probe per vantage and tick; a rate
        // of 30 % errors then takes that long to tell from chance.
        window_factor: f64 = 2.5 => [within(1.0..=10.0); Less, Twice];
        /// ASR: a tick is bad when more than this share of requests fail.
        asr_error_max: f64 = 0.10 => [within(0.01..=0.5); More, Half];
        /// ASR errors: bad ticks before failover.
        asr_error_ticks: u32 = 12 => [within(1..=FALL_TICKS_MAX); More, Ticks];
        /// ASR: a tick is bad when the P99 latency over all vantages is above this.
        asr_p99_max: Duration = 2 * SECOND => [lasting(LATENCY_MIN..=LATENCY_MAX); More, Half];
        /// ASR latency: bad ticks before failover.
        asr_p99_ticks: u32 = 30 => [within(1..=FALL_TICKS_MAX); More, Ticks];
        /// ASR: a tick is bad enough for edge ASR (L1) when the P95 latency is above this, or when errors exceed
        /// `asr_error_max`.
        edge_asr_p95_max: Duration = Duration::from_millis(500) => [lasting(LATENCY_MIN..=LATENCY_MAX); More, Half];
        /// Edge ASR: bad ticks before L1.
        edge_asr_ticks: u32 = 6 => [within(1..=FALL_TICKS_MAX); More, Ticks];
        /// Edge ASR: good ticks before L1 ends.
        // If fewer, a level comes and goes. If more, users keep the degraded service long after the cause has gone.
        edge_asr_recover_ticks: u32 = 12 => [within(1..=TICKS_MAX); Either];
        /// NLU: a tick is bad when more than this share of requests fail.
        // Half of the requests: the service is down, not only failing at times. The level degrades the service of every
        // user.
        nlu_error_max: f64 = 0.5 => [within(0.01..=0.95); More, Half];
        /// NLU errors: bad ticks before intents come from patterns (L2).
        nlu_error_ticks: u32 = 6 => [within(1..=FALL_TICKS_MAX); More, Ticks];
        /// NLU errors: good ticks before L2 ends.
        nlu_recover_ticks: u32 = 12 => [within(1..=TICKS_MAX); Either];
        /// Skills: a tick is bad when more than this share of requests fail.
        skills_error_max: f64 = 0.5 => [within(0.01..=0.95); More, Half];
        /// Skills errors: bad ticks before skills answer from caches (L3).
        skills_error_ticks: u32 = 6 => [within(1..=FALL_TICKS_MAX); More, Ticks];
        /// Skills errors: good ticks before L3 ends.
        skills_recover_ticks: u32 = 12 => [within(1..=TICKS_MAX); Either];
        /// Good ticks before a bad region counts as healthy again.
        // If more, a backup that works again counts as unhealthy for longer.
        recover_ticks: u32 = 3 => [within(1..=TICKS_MAX); Either];
        /// A report counts only if it is about one of this many newest closed ticks; an older one is too old to decide on.
        // If fewer, one late report makes all observations too old to act on: automation stops and no region fails over.
        freshness_ticks: u32 = 3 => [within(WAIT_TICKS_MIN..=FRESHNESS_TICKS_MAX); Either];
        /// A window is blind after this many consecutive ticks without data.
        blind_ticks: u32 = 3 => [within(WAIT_TICKS_MIN..=FRESHNESS_TICKS_MAX); Either];
    }
}

impl HealthPolicy {
    pub(super) fn check(&mut self, section: &mut Section<'_>) {
        if self.gateway_window_bad > self.gateway_window_ticks {
            let (bad, ticks) = (self.gateway_window_bad, self.gateway_window_ticks);
            let text = format!("{bad} is more than gateway_window_ticks ({ticks}); write at most {ticks}");
            section.report_at("gateway_window_bad", &text);
        }
    }
}

group! {
    /// Evacuation of a failed region.
    FailoverPolicy, "failover" {
        /// Most regions that may be bad or moving at once before automation stops evacuating.
        automatic_max: u32 = 1 => [within(1..=100); More];
        /// Whether automation stops when two or more primaries turn bad together.
        correlated_hold: bool = true => [like("true"); Less];
        /// Primaries turn bad together when they turned bad at most this many ticks apart. The gateway trigger takes two
        /// bad ticks, and the last reports of a tick may arrive in the next one. Failures further apart have separate
        /// causes.
        // If fewer, regions that fail from one cause are evacuated one by one. If more, unrelated failures block each other.
        correlated_ticks: u32 = 3 => [within(1..=TICKS_MAX); Either];
        /// The time within which the devices of an evacuated region reconnect. It converts moved sessions into connections
        /// per second.
        // If longer, more devices may come at once. If shorter, a backup may be sent fewer sessions.
        reconnect_window: Duration = 10 * SECOND => [lasting(SECOND..=10 * MINUTE); Either];
        /// Whether a backup with too little recognition, understanding or skills takes the sessions at a degradation level
        /// that works without them. If not, it does not take the sessions.
        // Neither value sends users to a region without room. The choice is between degraded service for some and none for
        // others.
        degrade_to_admit: bool = true => [like("true"); Never];
    }
}

group! {
    /// Gradual evacuation of a region, when there is time.
    DrainPolicy, "drain" {
        /// The percentage of its sessions that remain after each step; falls, and ends in 0.
        steps: Vec<u8> = vec![75, 50, 25, 0] => [like("[75, 50, 25, 0]"); More of largest_fall];
        /// Length of each step, while the backups stay healthy.
        step_hold: Duration = 30 * SECOND => [lasting(Duration::ZERO..=DAY); Less];
    }
}

fn largest_fall(steps: &[u8]) -> Value {
    largest_step(steps.iter().copied(), 100)
}

impl DrainPolicy {
    pub(super) fn check(&mut self, section: &mut Section<'_>) {
        let falling = self.steps.windows(2).all(|pair| pair[0] > pair[1]);
        if !falling || self.steps.first() > Some(&99) || self.steps.last() != Some(&0) {
            let text = format!(
                "{:?} does not fall to 0; write percentages that fall from 99 or less to 0, such as [75, 50, 25, 0]",
                self.steps
            );
            section.report_at("steps", &text);
        }
    }
}

group! {
    /// Return of an evacuated region. It begins only when an operator asks for it.
    RestorePolicy, "restore" {
        /// The percentage of its sessions in the region after each step; rises, and ends in 100.
        steps: Vec<u8> = vec![1, 5, 25, 50, 100] => [like("[1, 5, 25, 50, 100]"); More of largest_rise];
        /// Length of each step, while the region stays healthy.
        step_hold: Duration = MINUTE => [lasting(Duration::ZERO..=DAY); Less];
    }
}

fn largest_rise(steps: &[u8]) -> Value {
    largest_step(steps.iter().copied(), 0)
}

impl RestorePolicy {
    pub(super) fn check(&mut self, section: &mut Section<'_>) {
        let rising = self.steps.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || self.steps.first() == Some(&0) || self.steps.last() != Some(&100) {
            let text = format!(
                "{:?} does not rise to 100; write percentages that rise from 1 or more to 100, such as [1, 5, 25, 50, 100]",
                self.steps
            );
            section.report_at("steps", &text);
        }
    }
}

group! {
    /// Limits of automation, and the requests that need a second person.
    SafetyPolicy, "safety" {
        /// Assertion: this many regions must keep serving after any decision.
        // If fewer, one decision may evacuate more regions. If more, no failover leaves enough regions.
        regions_serving_min: u32 = 2 => [within(1..=1000); Either];
        /// Gating: whether automation may change anything. Operators switch it off for a time with a freeze.
        // Without automation, a dead region keeps its users. A freeze does that for a limited time.
        automation: bool = true => [like("true"); Less];
        /// The kinds of requests that need a second person.
        two_person: Vec<TwoPerson> =
            vec![TwoPerson::SecondEvacuation, TwoPerson::DataLoss, TwoPerson::Override] => [by hand];
    }
}

impl SafetyPolicy {
    pub(super) fn check(&mut self, section: &mut Section<'_>) {
        self.two_person = section.optional("two_person", std::mem::take(&mut self.two_person), "[\"override\"]");
    }
}

group! {
    /// Damping of regions that move often, after BGP route flap damping (RFC 2439). Every move adds a penalty that halves
    /// in each half-life. A region whose penalty reaches `suppress` may not return until the penalty is below `reuse`.
    // With too little damping, a region that flaps moves its users each time. With too much, a single move keeps it
    // evacuated.
    DampingPolicy, "damping" {
        /// The penalty of one move, away or back.
        per_move: u32 = 1000 => [within(1..=1_000_000); Either];
        /// The penalty from which a region stays evacuated.
        suppress: u32 = 2000 => [within(1..=1_000_000); Either];
        /// The penalty below which a region may return.
        reuse: u32 = 750 => [within(1..=1_000_000); Either];
        /// The time in which a penalty halves.
        half_life: Duration = 15 * MINUTE => [lasting(SECOND..=DAY); Either];
    }
}

impl DampingPolicy {
    pub(super) fn check(&mut self, section: &mut Section<'_>) {
        let suppress = self.suppress;
        // A single move is not flapping. With a greater penalty, the first failover of a region would hold it down.
        for (key, value) in [("reuse", self.reuse), ("per_move", self.per_move)] {
            if value > suppress {
                let text = format!("{value} is more than suppress ({suppress}); write at most {suppress}");
                section.report_rule(key, &text);
            }
        }
    }
}

group! {
    /// Rollout of a new version of the stack, and the limits at which it is rolled back.
    RolloutPolicy, "rollout" {
        /// The steps; their percentages rise and end in 100.
        steps: Vec<RolloutStep> = default_steps() => [by hand];
        /// Fewest sessions on the new version before it is judged.
        // A version that too few users see is not judged at all.
        sessions_min: u32 = 100 => [within(1..=1_000_000); Either];
        /// The version is judged by all turns since its step began, and also by those of the last `window`: a good day must
        /// not outweigh a bad hour.
        window: Duration = 10 * MINUTE => [lasting(MINUTE..=60 * MINUTE); More];
        /// The share of failed turns, 0..=1, above which the version is rolled back.
        error_rate_max: f64 = 0.01 => [within(0.0..=0.5); More];
        /// The growth of the P95 latency over the old version above which the version is rolled back. 0.5 means half as
        /// much again.
        latency_increase_max: f64 = 0.5 => [within(0.0..=10.0); More];
        /// Audio underruns per session above which the version is rolled back.
        underruns_per_session_max: f64 = 10.0 => [within(0.0..=1_000.0); More];
        /// GPU memory errors above which the version is rolled back.
        gpu_memory_errors_max: u32 = 0 => [within(0..=100); More];
    }
}

/// One step of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutStep {
    /// The percentage of users on the new version.
    pub percent: u8,
    /// Length of the step.
    pub hold: Duration,
}

fn default_steps() -> Vec<RolloutStep> {
    let steps = [(10, 3 * DAY), (25, 5 * DAY), (50, 7 * DAY), (100, Duration::ZERO)];
    steps.map(|(percent, hold)| RolloutStep { percent, hold }).to_vec()
}

impl RolloutPolicy {
    pub(super) fn check(&mut self, section: &mut Section<'_>) {
        let mut steps = Vec::new();
        for mut step in section.sections("step") {
            steps.push(RolloutStep {
                percent: step.in_range("percent", 0, 1..=100),
                hold: step.duration("hold", Duration::ZERO),
            });
            step.finish();
        }
        if !steps.is_empty() {
            self.steps = steps;
        }
        let rising = self.steps.windows(2).all(|pair| pair[0].percent < pair[1].percent);
        if !rising || self.steps.last().map(|step| step.percent) != Some(100) {
            section.report("the percentages of the steps do not rise to 100; write the last step with percent = 100");
        }
    }

    /// The steps as two numbers: the size of the largest, and the time of the shortest.
    pub(super) fn settings_of_steps(&self) -> [Setting; 2] {
        let setting = |name, value, looser| Setting {
            name,
            value,
            looser,
            bound: None,
        };
        let held = self.steps.iter().filter(|step| step.percent < 100);
        let shortest = held.map(|step| step.hold).min().unwrap_or_default();
        [
            setting(
                "rollout.steps",
                largest_step(self.steps.iter().map(|step| step.percent), 0),
                Looser::More,
            ),
            setting("rollout.steps.hold", Value::from(&shortest), Looser::Less),
        ]
    }
}

group! {
    /// Limits at which a refused plan is taken back.
    PublishPolicy, "publish" {
        /// The share of edges, 0..=1, whose refusal takes a plan back for all edges. At least half of the edges may always
        /// refuse, and so may any single edge: an edge that refuses keeps serving its last good plan, so a minority never
        /// decides for the others.
        // If more edges must refuse, a plan that no edge can apply stays in force longer.
        refusals_max: f64 = 0.5 => [within(0.0..=0.95); Either];
        /// Pause of automation after a plan was taken back.
        // Automation evacuates no region for this long.
        hold: Duration = 10 * MINUTE => [lasting(Duration::ZERO..=60 * MINUTE); Either];
    }
}

group! {
    /// The content of DNS answers.
    DnsPolicy, "dns" {
        /// Longest TTL of address records. It limits how long resolvers still name a lost edge; DNS uses less while a change
        /// is likely, and never more than 30 s. A region failover does not wait for DNS.
        // If longer, the caches of resolvers name a lost edge for longer.
        ttl: Duration = 15 * SECOND => [lasting(SECOND..=60 * MINUTE); More];
    }
}

impl DnsPolicy {
    /// The TTL in whole seconds, the unit of DNS.
    pub fn ttl_s(&self) -> u32 {
        u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX)
    }
}

group! {
    /// Limits at which an edge counts as lost, so that DNS answers leave it out.
    EdgesPolicy, "edges" {
        /// An edge is lost when it has neither followed plans nor reported for this long.
        // Three missing reports by default, two at least. An edge that is restarted is back sooner. If longer, DNS names a
        // lost edge for longer.
        lost_after: Duration = 30 * SECOND => [lasting(20 * SECOND..=60 * MINUTE); More, Half];
        /// DNS names a lost edge again after the control plane has heard from it for this long without a gap.
        // If shorter, DNS names an edge that restarts in a loop again and again. If longer, a working edge gets no devices.
        returned_after: Duration = 20 * SECOND => [lasting(Duration::ZERO..=60 * MINUTE); Either];
        /// The share of all edges, 0..=1, that DNS may leave out as lost. When more look lost, DNS leaves no further edge
        /// out.
        // If too small, DNS leaves no lost edge out. If too large, it may leave nearly all edges out.
        lost_max: f64 = 0.5 => [within(0.0..=0.9); Either];
    }
}
