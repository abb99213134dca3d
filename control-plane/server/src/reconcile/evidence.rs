//! The evidence about regions and edges: reports, rounds, clocks and signs of life. Leaders and followers gather it alike,
//! and judge the health of regions once the reports of a tick are in.

use std::{collections::BTreeMap, mem::take};

use planning::{EdgeSeen, Input, signs_of_life::SignsOfLife};
use tokio::time::Instant;
use topology::{EdgeId, Moment, NodeId, RegionId, RegionPlan, RegionState, Tick};
use verdict::{Before, Bounds, Clocks, Health, Rounds, Suspects, Testimony, TickReport, Unwanted, Verdict, Watch};

use super::Arrival;
use crate::{
    metrics::{Metrics, RegionHealth, Vantage},
    nodes::Nodes,
    sightings::Sightings,
    texts::log,
};

/// Everything that vantages and nodes let this replica see.
pub(super) struct Evidence {
    /// This control plane's own name as a vantage.
    own: NodeId,
    nodes: Nodes,
    metrics: Metrics,
    rounds: Rounds,
    pub(super) bounds: Bounds,
    pub(super) clocks: Clocks,
    /// Start of the monotonic clock that closes rounds.
    started: Instant,
    pub(super) sightings: Sightings,
    pub(super) heard: SignsOfLife,
}

impl Evidence {
    /// None yet. An edge that never gives a sign of life is silent since `now`.
    pub(super) fn new(own: NodeId, nodes: Nodes, metrics: Metrics, now: Moment) -> Self {
        Self {
            own,
            nodes,
            metrics,
            rounds: Rounds::default(),
            bounds: Bounds::default(),
            clocks: Clocks::default(),
            started: Instant::now(),
            sightings: Sightings::default(),
            heard: SignsOfLife::since(now),
        }
    }

    /// Judges the newest round that is complete or past its deadline ([`verdict::Rounds`]). Returns its tick and the
    /// verdicts; `None` if no round is due.
    pub(super) fn judge_if_due(&mut self, input: &Input, now: Moment) -> Option<(Tick, BTreeMap<RegionId, Verdict>)> {
        let (watch, policy) = (self.watch(input, now), &input.policy.health);
        if self.rounds.look(watch, policy) {
            tracing::warn!(%now, "{}", log::CLOCK_WENT_BACK);
            self.heard.reach.forget();
            self.bounds = Bounds::default();
            self.sightings.forget_times();
        }
        let tick = self.rounds.due(watch, policy)?;
        let Input { topology, policy, .. } = input;
        if let Some(plan) = &input.current {
            self.rounds.know_rooms(plan, topology);
        }
        let regions = topology.regions.keys();
        let verdicts = self.rounds.judge(tick, regions, &policy.health, &before(input));
        self.heard.reach.judge(tick, policy.health.freshness_ticks);
        self.know_bounds(input);
        let exists = |vantage: &NodeId| topology.edges.keys().any(|edge| edge.as_str() == vantage.as_str());
        self.clocks.retain(exists);
        self.show_suspects(input);
        for (region, verdict) in &verdicts {
            for health in [
                Health::Healthy,
                Health::Suspect,
                Health::Degraded,
                Health::Down,
                Health::NoData,
                Health::Blind,
            ] {
                let labels = RegionHealth {
                    region: region.to_string(),
                    health: health.as_str(),
                };
                self.metrics
                    .region_health
                    .get_or_create(&labels)
                    .set(i64::from(verdict.health == health));
            }
        }
        Some((tick, verdicts))
    }

    /// The vantages that contradict all others.
    pub(super) fn suspects(&self) -> &Suspects {
        self.rounds.suspects()
    }

    /// Brings the metric up to date. Logs each suspect once, when it becomes one.
    fn show_suspects(&self, input: &Input) {
        for vantage in input.topology.edges.keys().map(NodeId::from).chain([self.own.clone()]) {
            let is_suspect = self.rounds.suspects().is_suspect(&vantage);
            let label = Vantage {
                vantage: vantage.to_string(),
            };
            let gauge = self.metrics.vantage_suspect.get_or_create(&label);
            if gauge.set(i64::from(is_suspect)) == 0 && is_suspect {
                tracing::warn!(%vantage, "{}", log::VANTAGE_IS_SUSPECT);
            }
        }
    }

    /// The newest tick that was judged; the first if none was.
    pub(super) fn judged(&self) -> Tick {
        self.rounds.judged().unwrap_or_default()
    }

    /// Time of the next judgement even if no report arrives: the end of the tick, or the deadline of an open round.
    pub(super) fn next_judgement(&self, now: Moment) -> Moment {
        let end = now.tick().end();
        let wake = self.rounds.wakes_at();
        wake.map_or(end, |wake| end.min(now + wake.saturating_sub(self.started.elapsed())))
    }

    fn watch(&self, input: &Input, now: Moment) -> Watch {
        Watch {
            closed: now.tick().back(1),
            at: self.started.elapsed(),
            vantages: input.topology.edges.len() + 1,
        }
    }

    /// Whether reports of this node count: it is an edge of the topology or this control plane.
    fn is_vantage(&self, input: &Input, node: &NodeId) -> bool {
        let mut edges = input.topology.edges.keys();
        *node == self.own || edges.any(|edge| edge.as_str() == node.as_str())
    }

    /// Takes a report and tells its vantage whether it counts.
    pub(super) fn observe(&mut self, input: &Input, arrival: Arrival) {
        let Arrival {
            report,
            ahead_ms,
            reply,
        } = arrival;
        let taken = self.take_report(input, report, ahead_ms, daemon::clock::now());
        if let Err(unwanted) = &taken {
            self.metrics.reports_unwanted.inc();
            tracing::warn!(%unwanted, "{}", log::REPORT_UNWANTED);
        }
        // Sending fails if the vantage disconnected, which is fine.
        let _ = reply.map(|reply| reply.send(taken.err()));
    }

    pub(super) fn take_report(
        &mut self,
        input: &Input,
        mut report: TickReport,
        ahead_ms: Option<i64>,
        now: Moment,
    ) -> Result<(), Unwanted> {
        if !self.is_vantage(input, &report.vantage) {
            return Err(Unwanted::Stranger(report.vantage));
        }
        let (vantage, tick) = (report.vantage.clone(), report.tick);
        if let Some(ahead_ms) = ahead_ms {
            self.compare_clocks(&vantage, ahead_ms);
        }
        if let Ok(edge) = EdgeId::new(vantage.as_str()) {
            // A report is a sign of life even if the edge's clock is wrong.
            self.heard.hear(&edge, input.policy.edges.lost_after, now);
        }
        let before = self.bounds.before(&vantage);
        self.cut(input, &mut report);
        let (replication, versions) = (take(&mut report.replication), take(&mut report.versions));
        let watch = self.watch(input, now);
        let of_edges = Testimony::of(&mut report);
        self.rounds
            .take(report, watch, &input.policy.health)
            .inspect_err(|_| self.bounds.take_back(&vantage, before))?;
        let edges = &input.topology.edges;
        self.heard.reach.take(of_edges, |edge| edges.contains_key(edge));
        let Input { topology, policy, .. } = input;
        self.sightings.start_step_of(input.current.as_ref());
        // A vantage whose clock is ahead cannot have measured later than the newest closed tick.
        let measured = tick.min(watch.closed);
        self.sightings.take(measured, &replication, &versions, |region, class| {
            topology.regions.contains_key(region) && policy.data.iter().any(|known| known.class == class)
        });
        let vantage = vantage.to_string();
        self.metrics.reports.get_or_create(&Vantage { vantage }).inc();
        Ok(())
    }

    fn know_bounds(&mut self, input: &Input) {
        let Self { own, bounds, .. } = self;
        let is_edge = |vantage: &NodeId| {
            input
                .topology
                .edges
                .keys()
                .any(|edge| edge.as_str() == vantage.as_str())
        };
        bounds.know(input.current.as_ref(), &input.topology, |vantage| {
            *vantage == *own || is_edge(vantage)
        });
    }

    /// Leaves in a report what its vantage can have seen.
    fn cut(&mut self, input: &Input, report: &mut TickReport) {
        if let Some(plan) = &input.current {
            report.keep_stacks_with_sessions(plan, &input.topology);
        }
        if self.bounds.is_empty() {
            self.know_bounds(input);
        }
        if self.bounds.cut(report) {
            let vantage = report.vantage.to_string();
            tracing::debug!(vantage, "a report claims more than its vantage can have seen");
            self.metrics.reports_cut.get_or_create(&Vantage { vantage }).inc();
        }
    }

    /// Notes the difference between a vantage's clock and this one. Decisions tolerate it; operators must repair it.
    fn compare_clocks(&mut self, vantage: &NodeId, ahead_ms: i64) {
        if self.clocks.note(vantage, ahead_ms) {
            tracing::warn!(%vantage, ahead_ms, "{}", log::CLOCKS_APART);
        }
        let label = Vantage {
            vantage: vantage.to_string(),
        };
        let ahead_s = ahead_ms as f64 / 1000.0;
        self.metrics.clock_ahead.get_or_create(&label).set(ahead_s);
    }

    /// The signs of life of all edges. A connected edge counts as heard now.
    pub(super) fn signs_of_life(&mut self, input: &Input, now: Moment) -> BTreeMap<EdgeId, EdgeSeen> {
        let Input { topology, policy, .. } = input;
        for edge in topology
            .edges
            .keys()
            .filter(|edge| self.nodes.is_connected(edge.as_str()))
        {
            self.heard.hear(edge, policy.edges.lost_after, now);
        }
        self.heard.all(topology, now)
    }
}

/// The verdicts before this tick; after a restart, those that the plan and the memory imply.
fn before(input: &Input) -> BTreeMap<RegionId, Before> {
    if !input.verdicts.is_empty() {
        let verdicts = input.verdicts.iter();
        return verdicts
            .map(|(region, verdict)| (region.clone(), verdict.into()))
            .collect();
    }
    let planned = input.current.iter().flat_map(|plan| &plan.regions);
    let believed = |plan: &RegionPlan| Before::planned(plan.state == RegionState::Evacuated, plan.level);
    let planned = planned.map(|(region, plan)| (region.clone(), believed(plan)));
    // The last leader's memory tells more than its plan.
    planned.chain(input.memory.before()).collect()
}
