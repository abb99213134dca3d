//! Metrics of an edge. Label values are regions of the plan and variants of enums, never text of a device.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use topology::RegionId;

/// Live sessions, by region.
pub const SESSIONS: &str = "meridian_edge_sessions";
/// Ended sessions, by region and end. A counter: `_total` is appended. It cannot share its name with the gauge above.
pub const SESSIONS_ENDED: &str = "meridian_edge_sessions_ended";
/// Attempts to open a session or connection in a region, by outcome. `_total` is appended.
pub const CONNECTS: &str = "meridian_edge_connects";
/// Time until a region accepted a TCP connection.
pub const CONNECT_SECONDS: &str = "meridian_edge_connect_seconds";
/// Failures at the stacks of a region, by the party at fault: only those of the region count against it. `_total` is
/// appended.
pub const FAULTS: &str = "meridian_edge_faults";
/// Connections that failed because this edge and a stack do not believe each other, by whose certificate it is. `_total` is
/// appended.
pub const DISTRUST: &str = "meridian_edge_distrust";
/// Times this edge ejected a stack, by its region. `_total` is appended.
pub const EJECTIONS: &str = "meridian_edge_ejections";
/// Sessions and requests that this edge sent to ejected stacks, because most or all stacks were ejected; by which of the two.
/// `_total` is appended. More than a few mean that this edge cannot reach the regions.
pub const EJECTION_IGNORED: &str = "meridian_edge_ejection_ignored";
/// Generation of the plan in force.
pub const PLAN_GENERATION: &str = "meridian_edge_plan_generation";
/// When the plan in force was decided, seconds since the epoch: its age is `time()` minus this.
pub const PLAN_CREATED: &str = "meridian_edge_plan_created_timestamp_seconds";
/// Plans that the edge refused because they would leave sessions without a stack. `_total` is appended.
pub const PLANS_REFUSED: &str = "meridian_edge_plans_refused";
/// Control planes that this edge follows now.
pub const CONTROL_PLANES: &str = "meridian_edge_control_planes_followed";
/// Seconds since this edge last followed a control plane: the plan in force may be out of date by that time. 0 while it follows
/// one.
pub const PLAN_STALE: &str = "meridian_edge_plan_stale_seconds";
/// Bytes of sessions, by direction. `_total` is appended.
pub const RELAYED_BYTES: &str = "meridian_edge_relayed_bytes";
/// HTTP requests, by route and class of status. `_total` is appended.
pub const HTTP_REQUESTS: &str = "meridian_edge_http_requests";
/// Most connections of devices at once: `limits.connections_max`, or fewer if the open files are not enough.
pub const CONNECTIONS_MAX: &str = "meridian_edge_connections_max";
/// Requests that the edge refused before it asked a region, by reason. `_total` is appended.
pub const REFUSED: &str = "meridian_edge_refused";

/// Retries of HTTP requests, by whether the budget had one. `_total` is appended.
pub const RETRIES: &str = "meridian_edge_retries";
/// Second copies of transcriptions, by outcome. `_total` is appended.
pub const HEDGES: &str = "meridian_edge_hedges";
/// Requests that found a region at one of its limits, by region and limit. `_total` is appended.
pub const BREAKER_OPEN: &str = "meridian_edge_breaker_open";
/// Times the edge marked a server of an operator's path down, by the configured path. `_total` is appended.
pub const UPSTREAM_DOWN: &str = "meridian_edge_upstream_down";
/// TLS handshakes, by outcome. `_total` is appended.
pub const TLS_HANDSHAKES: &str = "meridian_edge_tls_handshakes";
/// Expiry of the certificate in use, seconds since the epoch.
pub const CERTIFICATE_EXPIRES: &str = "meridian_edge_certificate_expires_timestamp_seconds";
/// Changes of the certificate's files, by whether the edge took the new certificate. `_total` is appended.
pub const CERTIFICATE_RELOADS: &str = "meridian_edge_certificate_reloads";

/// Sessions that went on in another region, by the reason for which they left theirs. `_total` is appended.
pub const SESSIONS_RESUMED: &str = "meridian_edge_sessions_resumed";
/// Time from the moment at which a session left its region until the next region confirmed that it goes on.
pub const RESUME_SECONDS: &str = "meridian_edge_resume_seconds";
/// Bytes of devices that the edge sent to a region a second time. `_total` is appended.
pub const REPLAYED_BYTES: &str = "meridian_edge_replayed_bytes";
/// Sessions that went on and whose user has to repeat the last words. `_total` is appended.
pub const REPEATS: &str = "meridian_edge_repeats_asked";

/// Sessions that the predecessor still has, after this edge took over.
pub const PREDECESSOR_SESSIONS: &str = "meridian_edge_predecessor_sessions";
/// Sessions and requests that got a stack of another version than the plan gives them, by region and the planned version.
/// `_total` is appended.
pub const VERSION_MISSED: &str = "meridian_edge_version_missed";

/// Live sessions by tenant, where this edge recognises devices.
pub const TENANT_SESSIONS: &str = "meridian_edge_tenant_sessions";
/// Documents of devices and sets of keys that the edge did not take, because they are not valid or did not come. `_total` is
/// appended.
pub const AUTH_DOCUMENTS_REFUSED: &str = "meridian_edge_auth_documents_refused";

/// From a millisecond (a region next door) to ten seconds (the default of `continuity.deadline`); 1 s and 3 s are the goals.
const RESUME_BUCKETS: [f64; 13] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 10.0,
];

/// From a tenth of a millisecond (same rack) doubling to two seconds (past every timeout).
const CONNECT_BUCKETS: [f64; 15] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0,
];

/// All metrics of an edge.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) sessions: Family<ByRegion, Gauge>,
    pub(crate) sessions_ended: Family<ByEnd, Counter>,
    connects: Family<ByOutcome, Counter>,
    connect_seconds: Family<ByRegion, Histogram, fn() -> Histogram>,
    faults: Family<ByFault, Counter>,
    distrust: Family<ByHolder, Counter>,
    connections_max: Gauge,
    ejections: Family<ByRegion, Counter>,
    ejection_ignored: Family<ByReason, Counter>,
    plan_generation: Gauge,
    plans_refused: Counter,
    control_planes: Gauge,
    plan_stale: Gauge<f64, AtomicU64>,
    plan_created: Gauge<f64, AtomicU64>,
    relayed_bytes: Family<ByDirection, Counter>,
    http_requests: Family<ByRoute, Counter>,
    refused: Family<ByReason, Counter>,
    sessions_resumed: Family<ByReason, Counter>,
    resume_seconds: Histogram,
    replayed_bytes: Counter,
    repeats: Counter,
    predecessor_sessions: Gauge,
    retries: Family<ByResult, Counter>,
    hedges: Family<ByResult, Counter>,
    breaker_open: Family<ByLimit, Counter>,
    upstream_down: Family<ByPath, Counter>,
    tls_handshakes: Family<ByResult, Counter>,
    certificate_expires: Gauge<f64, AtomicU64>,
    certificate_reloads: Family<ByResult, Counter>,
    version_missed: Family<ByVersion, Counter>,
    tenant_sessions: Family<ByTenant, Gauge>,
    auth_documents_refused: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByTenant {
    tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByRegion {
    region: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByEnd {
    region: String,
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByOutcome {
    region: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByFault {
    region: String,
    fault: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByHolder {
    region: String,
    /// The side whose certificate the other does not believe: `edge` or `stack`.
    of: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByDirection {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByRoute {
    route: &'static str,
    status: &'static str,
}

/// Versions are those of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByVersion {
    region: String,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByResult {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByLimit {
    region: String,
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByPath {
    path: String,
}

impl Metrics {
    /// Registers all metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let connect_seconds: fn() -> Histogram = || Histogram::new(CONNECT_BUCKETS);
        let metrics = Self {
            sessions: Family::default(),
            sessions_ended: Family::default(),
            connects: Family::default(),
            connect_seconds: Family::new_with_constructor(connect_seconds),
            faults: Family::default(),
            distrust: Family::default(),
            connections_max: Gauge::default(),
            ejections: Family::default(),
            ejection_ignored: Family::default(),
            plan_generation: Gauge::default(),
            plans_refused: Counter::default(),
            control_planes: Gauge::default(),
            plan_stale: Gauge::default(),
            plan_created: Gauge::default(),
            relayed_bytes: Family::default(),
            http_requests: Family::default(),
            refused: Family::default(),
            sessions_resumed: Family::default(),
            resume_seconds: Histogram::new(RESUME_BUCKETS),
            replayed_bytes: Counter::default(),
            repeats: Counter::default(),
            predecessor_sessions: Gauge::default(),
            retries: Family::default(),
            hedges: Family::default(),
            breaker_open: Family::default(),
            upstream_down: Family::default(),
            tls_handshakes: Family::default(),
            certificate_expires: Gauge::default(),
            certificate_reloads: Family::default(),
            version_missed: Family::default(),
            tenant_sessions: Family::default(),
            auth_documents_refused: Counter::default(),
        };
        registry.register(
            TENANT_SESSIONS,
            "Live sessions by tenant",
            metrics.tenant_sessions.clone(),
        );
        registry.register(
            AUTH_DOCUMENTS_REFUSED,
            "Documents of devices and sets of keys that the edge did not take",
            metrics.auth_documents_refused.clone(),
        );
        registry.register(SESSIONS, "Live sessions by region", metrics.sessions.clone());
        registry.register(
            SESSIONS_ENDED,
            "Sessions ended by region and end",
            metrics.sessions_ended.clone(),
        );
        registry.register(
            CONNECTS,
            "Attempts to reach a region by outcome",
            metrics.connects.clone(),
        );
        registry.register(
            CONNECT_SECONDS,
            "Time until a region accepted a connection",
            metrics.connect_seconds.clone(),
        );
        registry.register(
            FAULTS,
            "Failures at a region's stacks by the party at fault",
            metrics.faults.clone(),
        );
        registry.register(
            DISTRUST,
            "Connections that failed because a stack refused this edge's certificate (of edge), or did not prove its region (of stack)",
            metrics.distrust.clone(),
        );
        registry.register(
            CONNECTIONS_MAX,
            "Most connections of devices at once",
            metrics.connections_max.clone(),
        );
        registry.register(EJECTIONS, "Times a stack was ejected", metrics.ejections.clone());
        registry.register(
            EJECTION_IGNORED,
            "Sessions and requests sent to ejected stacks",
            metrics.ejection_ignored.clone(),
        );
        registry.register(
            PLAN_GENERATION,
            "Generation of the plan in force",
            metrics.plan_generation.clone(),
        );
        registry.register(
            PLANS_REFUSED,
            "Refused plans that would leave sessions without a stack",
            metrics.plans_refused.clone(),
        );
        registry.register(
            CONTROL_PLANES,
            "Control planes that this edge follows now",
            metrics.control_planes.clone(),
        );
        registry.register(
            PLAN_STALE,
            "Seconds without any control plane, so that the plan may be out of date",
            metrics.plan_stale.clone(),
        );
        registry.register(
            PLAN_CREATED,
            "When the plan in force was decided",
            metrics.plan_created.clone(),
        );
        registry.register(
            RELAYED_BYTES,
            "Bytes of sessions by direction",
            metrics.relayed_bytes.clone(),
        );
        registry.register(
            HTTP_REQUESTS,
            "HTTP requests by route and status",
            metrics.http_requests.clone(),
        );
        registry.register(
            REFUSED,
            "Requests that the edge refused before it asked a region",
            metrics.refused.clone(),
        );
        registry.register(
            SESSIONS_RESUMED,
            "Sessions that went on in another region",
            metrics.sessions_resumed.clone(),
        );
        registry.register(
            RESUME_SECONDS,
            "Time until a session went on in another region",
            metrics.resume_seconds.clone(),
        );
        registry.register(
            REPLAYED_BYTES,
            "Bytes of devices sent to a region a second time",
            metrics.replayed_bytes.clone(),
        );
        registry.register(
            REPEATS,
            "Sessions whose user has to repeat the last words",
            metrics.repeats.clone(),
        );
        registry.register(
            PREDECESSOR_SESSIONS,
            "Sessions that the predecessor still has",
            metrics.predecessor_sessions.clone(),
        );
        registry.register(
            RETRIES,
            "Retries by whether the budget granted them",
            metrics.retries.clone(),
        );
        registry.register(
            HEDGES,
            "Second copies of transcriptions by outcome",
            metrics.hedges.clone(),
        );
        registry.register(
            BREAKER_OPEN,
            "Requests that found a region at its limit",
            metrics.breaker_open.clone(),
        );
        registry.register(
            UPSTREAM_DOWN,
            "Times a server of a path was marked down",
            metrics.upstream_down.clone(),
        );
        registry.register(
            TLS_HANDSHAKES,
            "TLS handshakes by outcome",
            metrics.tls_handshakes.clone(),
        );
        registry.register(
            CERTIFICATE_EXPIRES,
            "When the certificate in use expires",
            metrics.certificate_expires.clone(),
        );
        registry.register(
            CERTIFICATE_RELOADS,
            "Changes of the certificate's files by outcome",
            metrics.certificate_reloads.clone(),
        );
        registry.register(
            VERSION_MISSED,
            "Sessions and requests that got another version than planned",
            metrics.version_missed.clone(),
        );
        // Without a certificate none expires, so there is no value that an alert could fire on.
        metrics.certificate_expires.set(f64::INFINITY);
        metrics
    }

    pub(crate) fn predecessor(&self, sessions: u64) {
        self.predecessor_sessions
            .set(i64::try_from(sessions).unwrap_or(i64::MAX));
    }

    pub(crate) fn plan(&self, generation: u64, created_at: topology::Moment) {
        self.plan_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.plan_created.set(created_at.0 as f64 / 1000.0);
    }

    pub(crate) fn plan_refused(&self) {
        self.plans_refused.inc();
    }

    pub(crate) fn contact(&self, control_planes: usize, stale: Duration) {
        self.control_planes
            .set(i64::try_from(control_planes).unwrap_or(i64::MAX));
        self.plan_stale.set(stale.as_secs_f64());
    }

    pub(crate) fn connect(&self, region: &RegionId, outcome: &'static str) {
        let region = region.to_string();
        self.connects.get_or_create(&ByOutcome { region, outcome }).inc();
    }

    pub(crate) fn connect_took(&self, region: &RegionId, took: Duration) {
        self.connect_seconds
            .get_or_create(&by_region(region))
            .observe(took.as_secs_f64());
    }

    pub(crate) fn connections_max(&self, connections: usize) {
        self.connections_max.set(i64::try_from(connections).unwrap_or(i64::MAX));
    }

    pub(crate) fn fault(&self, region: &RegionId, fault: &'static str) {
        let region = region.to_string();
        self.faults.get_or_create(&ByFault { region, fault }).inc();
    }

    pub(crate) fn distrust(&self, region: &RegionId, of: &'static str) {
        let region = region.to_string();
        self.distrust.get_or_create(&ByHolder { region, of }).inc();
    }

    pub(crate) fn ejected(&self, region: &RegionId) {
        self.ejections.get_or_create(&by_region(region)).inc();
    }

    pub(crate) fn ejection_ignored(&self, reason: &'static str) {
        self.ejection_ignored.get_or_create(&ByReason { reason }).inc();
    }

    pub(crate) fn session_began(&self, region: &RegionId) {
        self.sessions.get_or_create(&by_region(region)).inc();
    }

    pub(crate) fn session_gone(&self, region: &RegionId) {
        self.sessions.get_or_create(&by_region(region)).dec();
    }

    pub(crate) fn session_ended(&self, region: &RegionId, end: &'static str, from_device: u64, from_region: u64) {
        let region = region.to_string();
        self.sessions_ended.get_or_create(&ByEnd { region, end }).inc();
        for (direction, bytes) in [("to-region", from_device), ("to-device", from_region)] {
            self.relayed_bytes
                .get_or_create(&ByDirection { direction })
                .inc_by(bytes);
        }
    }

    pub(crate) fn http(&self, route: &'static str, status: u16) {
        let status = match status {
            100..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            500..600 => "5xx",
            _ => "none",
        };
        self.http_requests.get_or_create(&ByRoute { route, status }).inc();
    }

    /// Counts a session that the edge handed to another region.
    pub(crate) fn handed_over(&self, replayed: usize, is_broken: bool) {
        self.replayed_bytes.inc_by(replayed as u64);
        self.repeats.inc_by(u64::from(is_broken));
    }

    /// Counts a session that the other region confirmed.
    pub(crate) fn resumed(&self, reason: &'static str, took: Duration) {
        self.sessions_resumed.get_or_create(&ByReason { reason }).inc();
        self.resume_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn retry(&self, outcome: &'static str) {
        self.retries.get_or_create(&ByResult { outcome }).inc();
    }

    pub(crate) fn hedge(&self, outcome: &'static str) {
        self.hedges.get_or_create(&ByResult { outcome }).inc();
    }

    pub(crate) fn breaker_open(&self, region: &RegionId, limit: &'static str) {
        let region = region.to_string();
        self.breaker_open.get_or_create(&ByLimit { region, limit }).inc();
    }

    pub(crate) fn upstream_down(&self, path: &str) {
        let path = path.to_owned();
        self.upstream_down.get_or_create(&ByPath { path }).inc();
    }

    pub(crate) fn handshake(&self, outcome: &'static str) {
        self.tls_handshakes.get_or_create(&ByResult { outcome }).inc();
    }

    pub(crate) fn certificate_expires(&self, at: topology::Moment) {
        self.certificate_expires.set(at.0 as f64 / 1000.0);
    }

    pub(crate) fn certificate_reload(&self, outcome: &'static str) {
        self.certificate_reloads.get_or_create(&ByResult { outcome }).inc();
    }

    pub(crate) fn version_missed(&self, region: &RegionId, version: &str) {
        let (region, version) = (region.to_string(), version.to_owned());
        self.version_missed.get_or_create(&ByVersion { region, version }).inc();
    }

    pub(crate) fn forget_tenants(&self) {
        self.tenant_sessions.clear();
    }

    pub(crate) fn tenant(&self, tenant: &str, sessions: u32) {
        let tenant = tenant.to_owned();
        self.tenant_sessions
            .get_or_create(&ByTenant { tenant })
            .set(sessions.into());
    }

    pub(crate) fn auth_document_refused(&self) {
        self.auth_documents_refused.inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ByReason { reason }).inc();
    }
}

fn by_region(region: &RegionId) -> ByRegion {
    ByRegion {
        region: region.to_string(),
    }
}
