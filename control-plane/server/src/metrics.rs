//! The metrics of the control plane. All names are constants in this file.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};

use tokio::sync::watch;
use topology::{Moment, ReasonCode, RegionId, RegionState};
use verdict::Health;

use crate::{dns_timing::DnsTiming, nodes::Nodes, store::Mirror, view::View};

/// Generation of the plan in force.
pub const PLAN_GENERATION: &str = "meridian_control_plane_plan_generation";
/// Ends of the certificates of etcd's authority.
pub const ETCD_EXPIRES: &str = "meridian_control_plane_etcd_expires_timestamp_seconds";
/// Reports that counted, by vantage.
pub const REPORTS: &str = "meridian_control_plane_reports";
/// Reports that did not count.
pub const REPORTS_UNWANTED: &str = "meridian_control_plane_reports_unwanted";
/// Calls that the caller's certificate does not allow, by kind.
pub const CALLS_DENIED: &str = "meridian_control_plane_calls_denied";
/// Calls with a sealed credential.
pub const BREAK_GLASS: &str = "meridian_control_plane_break_glass_calls";
/// Connections, by how they were accepted or why they were refused.
pub const CONNECTIONS: &str = "meridian_control_plane_connections";
/// Seconds by which a vantage's clock is ahead of this control plane's; negative if it is behind.
pub const CLOCK_AHEAD: &str = "meridian_control_plane_vantage_clock_ahead_seconds";
/// Reports that claimed more than their vantage can have seen, by vantage.
pub const REPORTS_CUT: &str = "meridian_control_plane_reports_cut";
/// 1 for a vantage that contradicts all others.
pub const VANTAGE_SUSPECT: &str = "meridian_control_plane_vantage_suspect";
/// Decisions, by the code of their reason.
pub const DECISIONS: &str = "meridian_control_plane_decisions";
/// Health of every region: 1 for the present health, 0 for the others.
pub const REGION_HEALTH: &str = "meridian_control_plane_region_health";
/// Nodes that follow plans now.
pub const FOLLOWERS: &str = "meridian_control_plane_followers";
/// Plans that a node refused.
pub const REFUSALS: &str = "meridian_control_plane_plan_refusals";

/// 1 while this replica leads, else 0.
pub const LEADING: &str = "meridian_control_plane_leading";
/// Commits that the store did not take.
pub const STORE_ERRORS: &str = "meridian_control_plane_store_errors";
/// Refused requests and denied calls that are not in the audit log, because too many were refused in a short time.
pub const REFUSALS_UNRECORDED: &str = "meridian_control_plane_refusals_unrecorded";
/// Listings of the store that showed changes which the watch had not reported.
pub const STORE_DIVERGENCES: &str = "meridian_control_plane_store_divergences";
/// Seconds since the store confirmed that the local copy is up to date.
pub const STORE_STALENESS: &str = "meridian_control_plane_store_staleness_seconds";
/// Times that the store was restored from an older snapshot.
pub const STORE_RESTORES: &str = "meridian_control_plane_store_restores";

/// Seconds since the signed head of the audit log was written.
pub const AUDIT_HEAD_AGE: &str = "meridian_control_plane_audit_head_age_seconds";

/// Seconds for which decisions could not be written; 0 while they can.
pub const UNWRITTEN: &str = "meridian_control_plane_decisions_unwritten_seconds";
/// Seconds for which this replica has known no leader; 0 while it leads or knows one.
pub const LEADERLESS: &str = "meridian_control_plane_leaderless_seconds";
/// Seconds since the end of the newest tick that was judged.
pub const JUDGED_AGE: &str = "meridian_control_plane_judged_age_seconds";
/// Nodes of the topology that do not apply the plan in force.
pub const NODES_BEHIND: &str = "meridian_control_plane_nodes_behind";
/// 1 while automation is stopped by a freeze, by the policy, or by nodes that refused a plan.
pub const AUTOMATION_STOPPED: &str = "meridian_control_plane_automation_stopped";
/// 1 while an operator's freeze is in force.
pub const FROZEN: &str = "meridian_control_plane_frozen";
/// Regions that a rule blocks from moving although the planner or an operator wants them to move.
pub const REGIONS_HELD: &str = "meridian_control_plane_regions_held";
/// Primaries that are down and still have sessions planned for them.
pub const REGIONS_DOWN_UNMOVED: &str = "meridian_control_plane_regions_down_and_not_moved";
/// Edges left out of DNS because they are lost.
pub const EDGES_LOST: &str = "meridian_control_plane_edges_lost";
/// Longest time from the death of an edge to the last DNS answer that names it, in seconds.
pub const LOST_EDGE_BOUND: &str = "meridian_control_plane_lost_edge_bound_seconds";
/// Stacks that fail, to answer or in a component, while others of their region serve.
pub const STACKS_FAILING: &str = "meridian_control_plane_stacks_failing";

/// Metrics of the newest view, read at each scrape. `status` and readiness use the same view.
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
        let failing = |it: &verdict::Verdict| {
            let ailing = it.ailing_stacks.keys().filter(|stack| !it.dead_stacks.contains(*stack));
            it.dead_stacks.len() + ailing.count()
        };
        let failing = input.verdicts.values().map(failing).sum::<usize>();
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
                LEADERLESS,
                "seconds for which this control plane has known no leader, 0 while it leads or knows one",
                progress.leaderless_since.map(since).unwrap_or_default(),
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
                "regions that a safety rule blocks from moving",
                held.len() as f64,
            ),
            (
                EDGES_LOST,
                "edges left out of DNS because they are lost",
                input.memory.lost_edges.len() as f64,
            ),
            (
                LOST_EDGE_BOUND,
                "longest time in seconds from the death of an edge to the last DNS answer that names it",
                DnsTiming::of(input, now).map_or(0.0, |timing| timing.lost_edge_bound.as_secs_f64()),
            ),
            (
                REGIONS_DOWN_UNMOVED,
                "primaries that are down and still have sessions planned for them",
                unmoved as f64,
            ),
            (
                STACKS_FAILING,
                "stacks that fail, to answer or in a component, while others of their region serve",
                failing as f64,
            ),
        ];
        // Before the first judgement there is no age: a 0 would claim that a tick was judged just now.
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

/// Metrics of the local copy of the store, read at each scrape.
#[derive(Debug)]
pub struct MirrorMetrics(pub Mirror);

impl Collector for MirrorMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(mirror) = self;
        for (name, help, count) in [
            (
                STORE_DIVERGENCES,
                "times a listing of the store showed changes that its watch had missed",
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
        // Before the first listing there is no copy whose age could be reported.
        if let Some(staleness) = mirror.staleness() {
            let gauge = ConstGauge::new(staleness.as_secs_f64());
            let help = "seconds since the store confirmed that the local copy is up to date";
            gauge.encode(encoder.encode_descriptor(STORE_STALENESS, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Ends of the certificates between this process and etcd, read at each scrape; none without TLS.
#[derive(Debug)]
pub struct EtcdExpiry(pub Option<Arc<identity::Service>>);

impl Collector for EtcdExpiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(Some(etcd)) = self else { return Ok(()) };
        let help = "Unix time at which a certificate of etcd's authority expires: this process's own, an issuer's, a root's, or that \
                    of a member";
        let mut family = encoder.encode_descriptor(ETCD_EXPIRES, help, None, MetricType::Gauge)?;
        for (kind, until) in etcd.expiry() {
            let labels = [("certificate", kind)];
            ConstGauge::new(until.0 as f64 / 1_000.0).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The label of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Code of the reason.
    pub reason: String,
}

/// The label of a denied call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabel {
    /// follow, report, look, order, approve, rule or renew.
    pub call: &'static str,
}

/// The label of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabel {
    /// `proven`, `plain`, `ended`, or the reason of a refusal, such as `expired`.
    pub outcome: &'static str,
}

/// The label of a vantage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Vantage {
    /// Name of the edge or control plane.
    pub vantage: String,
}

/// The labels of a region's health.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RegionHealth {
    pub region: String,
    pub health: &'static str,
}

/// Handles of all metrics that the control plane counts as it goes.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// [`PLAN_GENERATION`].
    pub plan_generation: Gauge,
    /// [`REPORTS`].
    pub reports: Family<Vantage, Counter>,
    /// [`REPORTS_UNWANTED`].
    pub reports_unwanted: Counter,
    /// [`CALLS_DENIED`].
    pub calls_denied: Family<CallLabel, Counter>,
    /// [`BREAK_GLASS`].
    pub break_glass: Counter,
    /// [`CONNECTIONS`].
    pub connections: Family<ConnectionLabel, Counter>,
    /// [`CLOCK_AHEAD`].
    pub clock_ahead: Family<Vantage, Gauge<f64, AtomicU64>>,
    /// [`REPORTS_CUT`].
    pub reports_cut: Family<Vantage, Counter>,
    /// [`VANTAGE_SUSPECT`].
    pub vantage_suspect: Family<Vantage, Gauge>,
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
    /// Registers all of them.
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
            CALLS_DENIED,
            "calls that the caller's certificate does not allow",
            metrics.calls_denied.clone(),
        );
        registry.register(
            BREAK_GLASS,
            "calls with a credential that lies sealed for emergencies",
            metrics.break_glass.clone(),
        );
        registry.register(
            CONNECTIONS,
            "connections accepted (proven: with a certificate, plain: without), ended, or refused with this reason",
            metrics.connections.clone(),
        );
        registry.register(
            CLOCK_AHEAD,
            "seconds by which the clock of a vantage is ahead of this control plane's",
            metrics.clock_ahead.clone(),
        );
        registry.register(
            REPORTS_CUT,
            "reports that claimed more than their vantage can have seen; they count for what it can",
            metrics.reports_cut.clone(),
        );
        registry.register(
            VANTAGE_SUSPECT,
            "1 for a vantage that contradicts all others, whose word counts only where another agrees",
            metrics.vantage_suspect.clone(),
        );
        registry.register(
            DECISIONS,
            "decisions, by the code of their reason",
            metrics.decisions.clone(),
        );
        registry.register(
            REGION_HEALTH,
            "1 for the present health of a region, 0 for the others",
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
            "refused requests and denied calls that are not in the audit log, because too many were refused together",
            metrics.refusals_unrecorded.clone(),
        );
        metrics
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use topology::{Moment, NodeId};

    use super::*;
    use crate::{
        reconcile::{Reconciler, Settings},
        records::{Document, DocumentKind},
        store::{Candidate, Embedded},
    };

    /// The view of a control plane that has seen no report yet.
    pub(crate) fn first_view() -> View {
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
        View::clone(&reconciler.views().borrow())
    }

    fn page(view: &View) -> String {
        let mut registry = Registry::default();
        let (_, views) = watch::channel(Arc::new(view.clone()));
        registry.register_collector(Box::new(ViewMetrics(views, Nodes::default())));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn stacks_that_fail_are_counted() {
        let mut view = first_view();
        let count = |view: &View| {
            let page = page(view);
            let line = page.lines().find(|line| line.starts_with(STACKS_FAILING));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        assert_eq!(count(&view), Some(0.0));
        let region = RegionId::new("us-east").unwrap();
        let (mut windows, policy) = (verdict::Windows::default(), topology::policy::HealthPolicy::default());
        for tick in (1..=3).map(topology::Tick) {
            for vantage in ["edge-a", "edge-b", "edge-c"] {
                let see = |port: u16| {
                    let mut seen =
                        verdict::Observation::new(region.clone(), topology::Component::Gateway, verdict::Source::Probe);
                    seen.stack = Some(([127, 0, 0, 1], port).into());
                    (0..3).for_each(|_| {
                        if port == 1 {
                            seen.fail("refused");
                        } else {
                            seen.succeed(1.0);
                        }
                    });
                    seen
                };
                let vantage = NodeId::new(vantage).unwrap();
                let report = verdict::TickReport::new(vantage, tick, vec![see(1), see(2)]);
                windows.take(report, tick, &policy).unwrap();
            }
        }
        view.input.verdicts = verdict::judge([&region], &windows, &policy, topology::Tick(3), &Default::default());
        assert_eq!(count(&view), Some(1.0));
    }

    #[test]
    fn a_metric_tells_for_how_long_nobody_leads() {
        let mut view = first_view();
        let told = |view: &View| {
            let page = page(view);
            let line = page.lines().find(|line| line.starts_with(LEADERLESS));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        let before = Moment(daemon::clock::now().0 - 60_000);
        view.progress.leaderless_since = Some(before);
        assert!(told(&view) >= Some(60.0), "{:?}", told(&view));
        view.progress.leaderless_since = None;
        assert_eq!(told(&view), Some(0.0));
    }

    #[test]
    fn the_age_of_a_judgement_has_no_sample_before_the_first() {
        let mut view = first_view();
        let samples = |page: &str| page.lines().filter(|line| line.starts_with(JUDGED_AGE)).count();
        assert_eq!(samples(&page(&view)), 0);
        let now = daemon::clock::now();
        view.progress.judged = Some((now.tick(), now));
        assert_eq!(samples(&page(&view)), 1);
    }
}
