//! What the control plane measures. Names are constants, in one place.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};

use tokio::sync::watch;
use topology::{Moment, ReasonCode, RegionId, RegionState};
use verdict::Health;

use crate::{nodes::Nodes, reconcile::View, store::Mirror};

/// Generation of the plan in force.
pub const PLAN_GENERATION: &str = "meridian_control_plane_plan_generation";
/// Reports taken, by vantage.
pub const REPORTS: &str = "meridian_control_plane_reports";
/// Reports that did not count, by reason.
pub const REPORTS_UNWANTED: &str = "meridian_control_plane_reports_unwanted";
/// How far the clock of a vantage is ahead of ours, in seconds; negative when it is behind.
pub const CLOCK_AHEAD: &str = "meridian_control_plane_vantage_clock_ahead_seconds";
/// Decisions, by the code of their reason.
pub const DECISIONS: &str = "meridian_control_plane_decisions";
/// Health of every region: 1 for the one that holds.
pub const REGION_HEALTH: &str = "meridian_control_plane_region_health";
/// Nodes that follow plans right now.
pub const FOLLOWERS: &str = "meridian_control_plane_followers";
/// Plans a node refused.
pub const REFUSALS: &str = "meridian_control_plane_plan_refusals";

/// Whether this replica leads.
pub const LEADING: &str = "meridian_control_plane_leading";
/// Decisions that the store did not take.
pub const STORE_ERRORS: &str = "meridian_control_plane_store_errors";
/// Requests that were refused and are not in the audit log, because too many were refused together.
pub const REFUSALS_UNRECORDED: &str = "meridian_control_plane_refusals_unrecorded";
/// Times a listing of the store showed what its watch had not told.
pub const STORE_DIVERGENCES: &str = "meridian_control_plane_store_divergences";
/// Seconds since the store said that our copy is up to date.
pub const STORE_STALENESS: &str = "meridian_control_plane_store_staleness_seconds";
/// Times the store went back to an older snapshot.
pub const STORE_RESTORES: &str = "meridian_control_plane_store_restores";

/// Seconds since which decisions cannot be written; 0 while they can.
pub const UNWRITTEN: &str = "meridian_control_plane_decisions_unwritten_seconds";
/// Seconds since the end of the newest tick that was judged.
pub const JUDGED_AGE: &str = "meridian_control_plane_judged_age_seconds";
/// Nodes of the topology that do not apply the plan in force.
pub const NODES_BEHIND: &str = "meridian_control_plane_nodes_behind";
/// Whether automation is stopped: by a freeze, the policy, or nodes that refused a plan.
pub const AUTOMATION_STOPPED: &str = "meridian_control_plane_automation_stopped";
/// Whether an operator's freeze is in force.
pub const FROZEN: &str = "meridian_control_plane_frozen";
/// Regions that a rule holds where they are although something else was wanted.
pub const REGIONS_HELD: &str = "meridian_control_plane_regions_held";
/// Primaries that are down and still have sessions planned for them.
pub const REGIONS_DOWN_UNMOVED: &str = "meridian_control_plane_regions_down_and_not_moved";
/// Edges that DNS does not name because nothing is heard of them.
pub const EDGES_LOST: &str = "meridian_control_plane_edges_lost";

/// What the newest view says, read whenever somebody asks: the same view that `status` and readiness are made from.
#[derive(Debug)]
pub struct ViewMetrics(pub watch::Receiver<Arc<View>>, pub Nodes);

impl Collector for ViewMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(views, nodes) = self;
        let (view, now) = (views.borrow().clone(), daemon::clock::now());
        let (input, progress) = (&view.input, &view.progress);
        let plan = input.current.as_ref();
        let since = |at: Moment| now.since(at).as_secs_f64();
        let applied = plan.map_or(0, |plan| nodes.acknowledged(plan.number()).len());
        let known = input.topology.edges.len() + input.topology.name_servers.len();
        let held: BTreeSet<_> = view
            .report
            .refused
            .iter()
            .filter_map(|reason| reason.region.as_ref())
            .collect();
        let takes = |region: &RegionId| {
            let planned = plan.and_then(|plan| plan.regions.get(region));
            planned.is_some_and(|it| it.state != RegionState::Evacuated)
        };
        let is_down = |region: &RegionId| matches!(input.verdicts.get(region), Some(it) if it.health == Health::Down);
        let primaries = input.topology.primaries().map(|region| &region.id);
        let unmoved = primaries.filter(|region| is_down(region) && takes(region)).count();
        let stopped = planning::automation(input, now);
        let gauges = [
            (
                UNWRITTEN,
                "seconds since which decisions cannot be written, 0 while they can",
                progress
                    .unwritten
                    .as_ref()
                    .map(|it| since(it.since))
                    .unwrap_or_default(),
            ),
            (
                NODES_BEHIND,
                "nodes of the topology that do not apply the plan in force",
                known.saturating_sub(applied) as f64,
            ),
            (
                AUTOMATION_STOPPED,
                "1 while a freeze, the policy or nodes that refused a plan stop automation",
                f64::from(u8::from(stopped.is_some())),
            ),
            (
                FROZEN,
                "1 while an operator's freeze is in force",
                f64::from(u8::from(stopped.is_some_and(|it| it.code == ReasonCode::Frozen))),
            ),
            (
                REGIONS_HELD,
                "regions that a safety rule holds where they are",
                held.len() as f64,
            ),
            (
                EDGES_LOST,
                "edges that DNS does not name because nothing is heard of them",
                input.memory.lost_edges.len() as f64,
            ),
            (
                REGIONS_DOWN_UNMOVED,
                "primaries that are down and still have sessions planned for them",
                unmoved as f64,
            ),
        ];
        // Before the first judgement there is no age: 0 would say that one was made just now.
        let judged = progress.judged.map(|(tick, _)| {
            let help = "seconds since the end of the newest tick that was judged";
            (JUDGED_AGE, help, since(tick.end()))
        });
        for (name, help, value) in gauges.into_iter().chain(judged) {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// What the copy of the store says of itself, read whenever somebody asks.
#[derive(Debug)]
pub struct MirrorMetrics(pub Mirror);

impl Collector for MirrorMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(mirror) = self;
        for (name, help, count) in [
            (
                STORE_DIVERGENCES,
                "times a listing of the store showed what its watch had not told",
                mirror.divergences(),
            ),
            (
                STORE_RESTORES,
                "times the store went back to an older snapshot",
                mirror.restores(),
            ),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        // Before the first listing there is no copy that could be old.
        if let Some(staleness) = mirror.staleness() {
            let gauge = ConstGauge::new(staleness.as_secs_f64());
            let help = "seconds since the store said that our copy is up to date";
            gauge.encode(encoder.encode_descriptor(STORE_STALENESS, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Why something was decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Its code.
    pub reason: String,
}

/// A vantage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Vantage {
    /// Its name.
    pub vantage: String,
}

/// A region and one of the healths it may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RegionHealth {
    /// Which region.
    pub region: String,
    /// Which health.
    pub health: &'static str,
}

/// Handles on every metric.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// [`PLAN_GENERATION`].
    pub plan_generation: Gauge,
    /// [`REPORTS`].
    pub reports: Family<Vantage, Counter>,
    /// [`REPORTS_UNWANTED`].
    pub reports_unwanted: Counter,
    /// [`CLOCK_AHEAD`].
    pub clock_ahead: Family<Vantage, Gauge<f64, AtomicU64>>,
    /// [`DECISIONS`].
    pub decisions: Family<ReasonLabel, Counter>,
    /// [`REGION_HEALTH`].
    pub region_health: Family<RegionHealth, Gauge>,
    /// [`FOLLOWERS`].
    pub followers: Gauge,
    /// [`REFUSALS`].
    pub refusals: Counter,
    /// [`LEADING`].
    pub leading: Gauge,
    /// [`STORE_ERRORS`].
    pub store_errors: Counter,
    /// [`REFUSALS_UNRECORDED`].
    pub refusals_unrecorded: Counter,
}

impl Metrics {
    /// Registers them all.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            PLAN_GENERATION,
            "generation of the plan in force",
            metrics.plan_generation.clone(),
        );
        registry.register(REPORTS, "reports taken, by vantage", metrics.reports.clone());
        registry.register(
            REPORTS_UNWANTED,
            "reports too old, too early or malformed",
            metrics.reports_unwanted.clone(),
        );
        registry.register(
            CLOCK_AHEAD,
            "seconds that the clock of a vantage is ahead of ours",
            metrics.clock_ahead.clone(),
        );
        registry.register(
            DECISIONS,
            "decisions, by the code of their reason",
            metrics.decisions.clone(),
        );
        registry.register(
            REGION_HEALTH,
            "1 for the health a region has",
            metrics.region_health.clone(),
        );
        registry.register(FOLLOWERS, "nodes that follow plans now", metrics.followers.clone());
        registry.register(REFUSALS, "plans that nodes refused", metrics.refusals.clone());
        registry.register(LEADING, "1 when this replica leads", metrics.leading.clone());
        registry.register(
            STORE_ERRORS,
            "decisions that the store did not take",
            metrics.store_errors.clone(),
        );
        registry.register(
            REFUSALS_UNRECORDED,
            "refused requests that are not in the audit log, because too many were refused together",
            metrics.refusals_unrecorded.clone(),
        );
        metrics
    }
}

#[cfg(test)]
mod tests {
    use topology::{Moment, NodeId};

    use super::*;
    use crate::{
        reconcile::{Reconciler, Settings},
        records::{Document, DocumentKind},
        store::{Candidate, Embedded},
    };

    #[test]
    fn the_age_of_a_judgement_has_no_sample_before_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&folder.path().join("store")).unwrap());
        let document = |kind, text: &str| Document::new(kind, text.to_owned(), "tester", Moment(0));
        let settings = Settings {
            candidate: Candidate {
                node: NodeId::new("control-plane").unwrap(),
                url: String::new(),
                lease_ttl: std::time::Duration::MAX,
            },
            topology: document(DocumentKind::Topology, include_str!("../../../configs/topology.toml")),
            policy: document(DocumentKind::Policy, ""),
        };
        let reconciler = Reconciler::new(settings, store, Nodes::default(), Metrics::default()).unwrap();
        let mut view = View::clone(&reconciler.views().borrow());
        let page = |view: &View| {
            let mut registry = Registry::default();
            let (_, views) = watch::channel(Arc::new(view.clone()));
            registry.register_collector(Box::new(ViewMetrics(views, Nodes::default())));
            let mut page = String::new();
            prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
            page
        };
        let samples = |page: &str| page.lines().filter(|line| line.starts_with(JUDGED_AGE)).count();
        assert_eq!(samples(&page(&view)), 0);
        let now = daemon::clock::now();
        view.progress.judged = Some((now.tick(), now));
        assert_eq!(samples(&page(&view)), 1);
    }
}
