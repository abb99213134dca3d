//! The metrics of the responder. Their names are constants in this file. The encoder adds `_total` to the names of
//! counters.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use api::convert::NamesSeen;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use steering::Type;
use strum::{EnumCount as _, IntoEnumIterator as _};
use verdict::Latency;

/// Queries answered, by type, response code and transport.
pub const QUERIES: &str = "meridian_dns_queries";
/// Messages that get no answer: they are too short for a header, or are answers themselves.
pub const DROPPED: &str = "meridian_dns_dropped";
/// Answers over UDP that did not fit. The client asks again over TCP.
pub const TRUNCATED: &str = "meridian_dns_truncated";
/// Questions that went the long way, because they are no plain questions about the zone or have no short answer.
pub const UNUSUAL: &str = "meridian_dns_unusual";
/// Replies over UDP that were cut or dropped, because their network gets too many.
pub const LIMITED: &str = "meridian_dns_limited";
/// Replies over UDP that the system did not take.
pub const UNSENT: &str = "meridian_dns_unsent";
/// Longest TTL of answers for the service, in seconds: the part of a lost edge's bound that caches add.
pub const TTL: &str = "meridian_dns_ttl_seconds";
/// Time that the newest answers took to compile, in seconds.
pub const COMPILE_TIME: &str = "meridian_dns_compile_seconds";
/// Open TCP connections.
pub const TCP_CONNECTIONS: &str = "meridian_dns_tcp_connections";
/// TCP connections that were closed because another client needed the slot.
pub const TCP_EVICTED: &str = "meridian_dns_tcp_evicted";
/// Signatures that were made, ahead of questions and for them.
pub const SIGNATURES: &str = "meridian_dns_signatures";
/// Signatures in memory.
pub const SIGNATURES_KEPT: &str = "meridian_dns_signatures_kept";
/// Generation of the plan behind the answers.
pub const PLAN_GENERATION: &str = "meridian_dns_plan_generation";
/// Time at which that plan was decided, in seconds since the epoch. Its age is the current time minus this.
pub const PLAN_CREATED: &str = "meridian_dns_plan_created_timestamp_seconds";
/// Time at which the answers were compiled, in seconds since the epoch. Their age is the current time minus this.
pub const ANSWERS_COMPILED: &str = "meridian_dns_answers_compiled_timestamp_seconds";

/// The type of a question as a label. Rare types share one value; otherwise strangers could create a series per type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumIter, strum::EnumCount)]
#[expect(missing_docs, reason = "the names say it")]
#[strum(serialize_all = "lowercase")]
pub enum QueryType {
    A,
    Aaaa,
    Ns,
    Soa,
    Txt,
    Caa,
    Svcb,
    Https,
    Any,
    Other,
    /// The question could not be read.
    None,
}

impl QueryType {
    /// The label of a type.
    pub fn of(kind: Type) -> Self {
        match kind {
            Type::A => Self::A,
            Type::AAAA => Self::Aaaa,
            Type::NS => Self::Ns,
            Type::SOA => Self::Soa,
            Type::TXT => Self::Txt,
            Type::CAA => Self::Caa,
            Type::SVCB => Self::Svcb,
            Type::HTTPS => Self::Https,
            Type::ANY => Self::Any,
            _ => Self::Other,
        }
    }
}

/// A response code as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumIter, strum::EnumCount)]
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
    Tls,
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

/// Parts of a doubling of time that have a bin of their own: 19 % apart.
const BINS_IN_DOUBLING: u64 = 4;
/// Bins of times: up to an hour.
const BINS: usize = 128;

/// The counts since the last report to control planes.
#[derive(Debug)]
pub struct Seen {
    answered: AtomicU64,
    refused: AtomicU64,
    limited: AtomicU64,
    failed: AtomicU64,
    /// Replies by the logarithm of the time that they took.
    times: [AtomicU64; BINS],
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            answered: AtomicU64::default(),
            refused: AtomicU64::default(),
            limited: AtomicU64::default(),
            failed: AtomicU64::default(),
            times: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl Seen {
    /// Counts replies that took this long from the question until they were with the system.
    pub(crate) fn took(&self, time: Duration, replies: u64) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let doublings = u64::from(us.ilog2());
        // The first two bits behind the highest one.
        let part = if doublings < 2 {
            us << (2 - doublings)
        } else {
            us >> (doublings - 2)
        } - BINS_IN_DOUBLING;
        let bin = usize::try_from(doublings * BINS_IN_DOUBLING + part)
            .unwrap_or(BINS)
            .min(BINS - 1);
        self.times[bin].fetch_add(replies, Relaxed);
    }

    fn count(&self, rcode: Rcode, count: u64) {
        self.answered.fetch_add(count, Relaxed);
        if !matches!(rcode, Rcode::NoError | Rcode::NxDomain) {
            self.refused.fetch_add(count, Relaxed);
        }
    }

    /// The counts, which begin anew.
    pub(crate) fn take(&self) -> NamesSeen {
        let taken = |counter: &AtomicU64| counter.swap(0, Relaxed);
        let mut latency = Latency::default();
        for (bin, counter) in (0..).zip(&self.times) {
            let (doublings, part) = (bin / BINS_IN_DOUBLING, bin % BINS_IN_DOUBLING);
            let us = (1_u64 << doublings) as f64 * (1.0 + (part as f64 + 0.5) / BINS_IN_DOUBLING as f64);
            latency.add_many(us / 1000.0, taken(counter));
        }
        NamesSeen {
            answered: taken(&self.answered),
            refused: taken(&self.refused),
            limited: taken(&self.limited),
            failed: taken(&self.failed),
            latency,
        }
    }
}

/// Handles on every metric.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// The counts for control planes.
    pub seen: Arc<Seen>,
    /// [`QUERIES`].
    pub queries: Family<QueryLabels, Counter>,
    /// [`DROPPED`].
    pub dropped: Counter,
    /// [`TRUNCATED`].
    pub truncated: Counter,
    /// [`UNUSUAL`].
    pub unusual: Counter,
    /// [`LIMITED`].
    pub limited: Counter,
    /// [`UNSENT`].
    pub unsent: Counter,
    /// [`TTL`].
    pub ttl: Gauge,
    /// [`COMPILE_TIME`].
    pub compile_time: Gauge<f64, AtomicU64>,
    /// [`TCP_CONNECTIONS`].
    pub tcp_connections: Gauge,
    /// [`TCP_EVICTED`].
    pub tcp_evicted: Counter,
    /// [`SIGNATURES`].
    pub signatures: Counter,
    /// [`SIGNATURES_KEPT`].
    pub signatures_kept: Gauge,
    /// [`PLAN_GENERATION`].
    pub plan_generation: Gauge,
    /// [`PLAN_CREATED`].
    pub plan_created: Gauge,
    /// [`ANSWERS_COMPILED`].
    pub answers_compiled: Gauge,
}

impl Metrics {
    /// Counts a reply over a stream.
    pub(crate) fn count(&self, labels: QueryLabels, took: Duration) {
        self.queries.get_or_create(&labels).inc();
        self.seen.count(labels.rcode, 1);
        self.seen.took(took, 1);
    }

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
        registry.register(
            UNUSUAL,
            "Questions that went the long way to their reply",
            self.unusual.clone(),
        );
        registry.register(
            LIMITED,
            "UDP replies cut or dropped by the rate limit",
            self.limited.clone(),
        );
        registry.register(UNSENT, "UDP replies that the system did not take", self.unsent.clone());
        registry.register(TTL, "Longest TTL of answers for the service", self.ttl.clone());
        registry.register(
            COMPILE_TIME,
            "Time that the newest answers took to compile",
            self.compile_time.clone(),
        );
        registry.register(TCP_CONNECTIONS, "Open TCP connections", self.tcp_connections.clone());
        registry.register(
            TCP_EVICTED,
            "TCP connections closed because another client needed the slot",
            self.tcp_evicted.clone(),
        );
        registry.register(SIGNATURES, "Signatures made", self.signatures.clone());
        registry.register(SIGNATURES_KEPT, "Signatures in memory", self.signatures_kept.clone());
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

/// The counts of one thread, passed on once for each batch.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    queries: [[u64; Rcode::COUNT]; QueryType::COUNT],
    /// The counters behind `queries`, looked up once.
    counters: Box<[[Option<Counter>; Rcode::COUNT]; QueryType::COUNT]>,
    pub(crate) dropped: u64,
    pub(crate) truncated: u64,
    pub(crate) unusual: u64,
    pub(crate) limited: u64,
    pub(crate) unsent: u64,
}

impl Tally {
    /// Counts one reply over UDP.
    pub(crate) fn count(&mut self, qtype: QueryType, rcode: Rcode) {
        self.queries[qtype as usize][rcode as usize] += 1;
    }

    /// Adds the counts to the metrics and begins anew.
    pub(crate) fn flush(&mut self, metrics: &Metrics) {
        for (qtype, (counts, counters)) in QueryType::iter().zip(self.queries.iter_mut().zip(self.counters.iter_mut()))
        {
            for (rcode, (count, counter)) in Rcode::iter().zip(counts.iter_mut().zip(counters)) {
                if *count == 0 {
                    continue;
                }
                let labels = QueryLabels {
                    qtype,
                    rcode,
                    transport: TransportLabel::Udp,
                };
                let counter = counter.get_or_insert_with(|| metrics.queries.get_or_create(&labels).clone());
                metrics.seen.count(rcode, *count);
                counter.inc_by(std::mem::take(count));
            }
        }
        metrics.seen.limited.fetch_add(self.limited, Relaxed);
        metrics.seen.failed.fetch_add(self.unsent, Relaxed);
        for (count, counter) in [
            (&mut self.dropped, &metrics.dropped),
            (&mut self.truncated, &metrics.truncated),
            (&mut self.unusual, &metrics.unusual),
            (&mut self.limited, &metrics.limited),
            (&mut self.unsent, &metrics.unsent),
        ] {
            if *count > 0 {
                counter.inc_by(std::mem::take(count));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn counts_for_control_planes_begin_anew_with_each_report() {
        let seen = Seen::default();
        for us in [0, 1, 2, 3, 7, 100, 5_000, 300_000_000] {
            let times = Seen::default();
            times.took(Duration::from_micros(us), 3);
            let told = times.take().latency;
            let ms = us.max(1) as f64 / 1000.0;
            let near = told.quantile(0.5).unwrap() / ms;
            assert!(
                told.count() == 3 && (0.85..1.2).contains(&near),
                "{us} µs are told as {near} times of that"
            );
        }
        seen.took(Duration::MAX, 1);
        seen.count(Rcode::NoError, 5);
        seen.count(Rcode::FormErr, 2);
        let told = seen.take();
        assert_eq!((told.answered, told.refused, told.latency.count()), (7, 2, 1));
        assert_eq!(seen.take(), NamesSeen::default());
    }

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
