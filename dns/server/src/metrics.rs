//! The metrics of the responder. Their names are constants in this file. The encoder adds `_total` to the names of
//! counters.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Queries answered, by type, response code and transport.
pub const QUERIES: &str = "meridian_dns_queries";
/// Messages that get no answer: they are too short for a header, or are answers themselves.
pub const DROPPED: &str = "meridian_dns_dropped";
/// Answers over UDP that did not fit. The client asks again over TCP.
pub const TRUNCATED: &str = "meridian_dns_truncated";
/// Open TCP connections.
pub const TCP_CONNECTIONS: &str = "meridian_dns_tcp_connections";
/// TCP connections that were closed because another client needed the slot.
pub const TCP_EVICTED: &str = "meridian_dns_tcp_evicted";
/// Generation of the plan behind the answers.
pub const PLAN_GENERATION: &str = "meridian_dns_plan_generation";
/// Time at which that plan was decided, in seconds since the epoch. Its age is the current time minus this.
pub const PLAN_CREATED: &str = "meridian_dns_plan_created_timestamp_seconds";
/// Time at which the answers were compiled, in seconds since the epoch. Their age is the current time minus this.
pub const ANSWERS_COMPILED: &str = "meridian_dns_answers_compiled_timestamp_seconds";

/// The type of a question as a label. Rare types share one value; otherwise strangers could create a series per type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[expect(missing_docs, reason = "the names say it")]
#[strum(serialize_all = "lowercase")]
pub enum QueryType {
    A,
    Aaaa,
    Ns,
    Soa,
    Any,
    Other,
    /// The question could not be read.
    None,
}

/// A response code as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[expect(missing_docs, reason = "the names are those of RFC 6895")]
#[strum(serialize_all = "lowercase")]
pub enum Rcode {
    NoError,
    FormErr,
    NxDomain,
    NotImp,
    Refused,
    NotAuth,
    BadVers,
}

/// A transport as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[expect(missing_docs, reason = "the names say it")]
#[strum(serialize_all = "lowercase")]
pub enum TransportLabel {
    Udp,
    Tcp,
}

daemon::label_values!(QueryType, Rcode, TransportLabel);

/// Labels of [`QUERIES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    /// The type of the question.
    pub qtype: QueryType,
    /// The response code of the answer.
    pub rcode: Rcode,
    /// The transport of both.
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
    /// Registers every metric.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(QUERIES, "Queries answered", self.queries.clone());
        registry.register(
            DROPPED,
            "Messages without an answer: too short, or answers themselves",
            self.dropped.clone(),
        );
        registry.register(
            TRUNCATED,
            "UDP answers that were too long, so that the client asks again over TCP",
            self.truncated.clone(),
        );
        registry.register(TCP_CONNECTIONS, "Open TCP connections", self.tcp_connections.clone());
        registry.register(
            TCP_EVICTED,
            "TCP connections closed because another client needed the slot",
            self.tcp_evicted.clone(),
        );
        registry.register(
            PLAN_GENERATION,
            "Generation of the plan behind the answers",
            self.plan_generation.clone(),
        );
        registry.register(
            PLAN_CREATED,
            "Time at which the plan was decided",
            self.plan_created.clone(),
        );
        registry.register(
            ANSWERS_COMPILED,
            "Time at which the answers were compiled",
            self.answers_compiled.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn label_values_are_in_lower_case() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let (udp, tcp) = (TransportLabel::Udp, TransportLabel::Tcp);
        for (qtype, rcode, transport, names) in [
            (QueryType::A, Rcode::NoError, udp, ["a", "noerror", "udp"]),
            (QueryType::Aaaa, Rcode::FormErr, tcp, ["aaaa", "formerr", "tcp"]),
            (QueryType::Ns, Rcode::NxDomain, udp, ["ns", "nxdomain", "udp"]),
            (QueryType::Soa, Rcode::NotImp, udp, ["soa", "notimp", "udp"]),
            (QueryType::Any, Rcode::Refused, udp, ["any", "refused", "udp"]),
            (QueryType::Other, Rcode::NotAuth, udp, ["other", "notauth", "udp"]),
            (QueryType::None, Rcode::BadVers, udp, ["none", "badvers", "udp"]),
        ] {
            let labels = QueryLabels {
                qtype,
                rcode,
                transport,
            };
            metrics.queries.get_or_create(&labels).inc();
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let [qtype, rcode, transport] = names;
            let series = format!("{{qtype=\"{qtype}\",rcode=\"{rcode}\",transport=\"{transport}\"}} 1");
            assert!(text.contains(&series), "{series}: {text}");
        }
    }
}
