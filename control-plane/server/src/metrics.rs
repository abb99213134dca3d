//! What the control plane measures. Names are constants, in one place.

use std::sync::atomic::AtomicU64;

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

use crate::store::Mirror;

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
/// Times a listing of the store showed what its watch had not told.
pub const STORE_DIVERGENCES: &str = "meridian_control_plane_store_divergences";
/// Seconds since the store said that our copy is up to date.
pub const STORE_STALENESS: &str = "meridian_control_plane_store_staleness_seconds";
/// Times the store went back to an older snapshot.
pub const STORE_RESTORES: &str = "meridian_control_plane_store_restores";

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

/// One label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Label {
    /// Value of the label "kind".
    pub kind: String,
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
    pub reports: Family<Label, Counter>,
    /// [`REPORTS_UNWANTED`].
    pub reports_unwanted: Counter,
    /// [`CLOCK_AHEAD`].
    pub clock_ahead: Family<Vantage, Gauge<f64, AtomicU64>>,
    /// [`DECISIONS`].
    pub decisions: Family<Label, Counter>,
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
        metrics
    }
}
