//! What the responder measures. Names are constants, in one place; counters get `_total` when they are written.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Queries answered, by type, response code and transport.
pub const QUERIES: &str = "meridian_dns_queries";
/// Messages that deserve no answer: too short, or answers themselves.
pub const DROPPED: &str = "meridian_dns_dropped";
/// Answers over UDP that did not fit; the client asks again over TCP.
pub const TRUNCATED: &str = "meridian_dns_truncated";
/// TCP connections open right now.
pub const TCP_CONNECTIONS: &str = "meridian_dns_tcp_connections";
/// TCP connections that were closed because another client needed the place.
pub const TCP_EVICTED: &str = "meridian_dns_tcp_evicted";
/// Generation of the plan the answers come from.
pub const PLAN_GENERATION: &str = "meridian_dns_plan_generation";
/// When the plan the answers come from was decided, in seconds since the epoch: its age is now minus this.
pub const PLAN_CREATED: &str = "meridian_dns_plan_created_timestamp_seconds";
/// When the answers were compiled, in seconds since the epoch: their age is now minus this.
pub const ANSWERS_COMPILED: &str = "meridian_dns_answers_compiled_timestamp_seconds";

/// The type of a question as a label; the rest is one, or strangers could make as many series as there are types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "the names say it")]
#[expect(non_camel_case_types, reason = "the names are the label values")]
pub enum QueryType {
    a,
    aaaa,
    ns,
    soa,
    any,
    other,
    /// The question could not be read.
    none,
}

/// A response code as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "the names are those of RFC 6895")]
#[expect(non_camel_case_types, reason = "the names are the label values")]
pub enum Rcode {
    noerror,
    formerr,
    nxdomain,
    notimp,
    refused,
    notauth,
    badvers,
}

/// A transport as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "the names say it")]
#[expect(non_camel_case_types, reason = "the names are the label values")]
pub enum TransportLabel {
    udp,
    tcp,
}

/// Labels of [`QUERIES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    /// What was asked for.
    pub qtype: QueryType,
    /// What came of it.
    pub rcode: Rcode,
    /// Over what.
    pub transport: TransportLabel,
}

/// Handles on every metric.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// [`QUERIES`].
    pub queries: Family<QueryLabels, Counter>,
    /// [`DROPPED`].
    pub dropped: Counter,
    /// [`TRUNCATED`].
    pub truncated: Counter,
    /// [`TCP_CONNECTIONS`].
    pub tcp_connections: Gauge,
    /// [`TCP_EVICTED`].
    pub tcp_evicted: Counter,
    /// [`PLAN_GENERATION`].
    pub plan_generation: Gauge,
    /// [`PLAN_CREATED`].
    pub plan_created: Gauge,
    /// [`ANSWERS_COMPILED`].
    pub answers_compiled: Gauge,
}

impl Metrics {
    /// Registers them all.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(QUERIES, "Queries answered", self.queries.clone());
        registry.register(DROPPED, "Messages that deserve no answer", self.dropped.clone());
        registry.register(TRUNCATED, "UDP answers that did not fit", self.truncated.clone());
        registry.register(TCP_CONNECTIONS, "TCP connections open", self.tcp_connections.clone());
        registry.register(
            TCP_EVICTED,
            "TCP connections closed because another client needed the place",
            self.tcp_evicted.clone(),
        );
        registry.register(PLAN_GENERATION, "Generation of the plan", self.plan_generation.clone());
        registry.register(PLAN_CREATED, "When the plan was decided", self.plan_created.clone());
        registry.register(
            ANSWERS_COMPILED,
            "When the answers were compiled",
            self.answers_compiled.clone(),
        );
    }
}
