//! Metrics of the stack: every name, and the handles to count with.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

const TURNS: &str = "meridian_stack_turns";
const STAGE_SECONDS: &str = "meridian_stack_stage_seconds";
const SESSIONS: &str = "meridian_stack_sessions";
const SESSIONS_CLOSED: &str = "meridian_stack_sessions_closed";
const QUEUE_DEPTH: &str = "meridian_stack_queue_depth";
const ENGINE_JOBS: &str = "meridian_stack_engine_jobs";
const HTTP_REQUESTS: &str = "meridian_stack_http_requests";

/// Handles to all metrics; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) turns: Family<TurnLabels, Counter>,
    pub(crate) stages: Family<StageLabels, Histogram, fn() -> Histogram>,
    pub(crate) sessions: Gauge,
    pub(crate) sessions_closed: Family<ClosedLabels, Counter>,
    pub(crate) queue_depth: Family<EngineLabels, Gauge>,
    pub(crate) engine_jobs: Family<JobLabels, Counter>,
    pub(crate) http_requests: Family<HttpLabels, Counter<u64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TurnLabels {
    pub(crate) outcome: TurnOutcome,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(
    non_camel_case_types,
    reason = "label values are lower case, and the derive writes variant names as they are"
)]
pub(crate) enum TurnOutcome {
    completed,
    cancelled,
    failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StageLabels {
    pub(crate) stage: Stage,
}

/// A part of a turn whose time is measured. Engine stages include waiting for a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(
    non_camel_case_types,
    reason = "label values are lower case, and the derive writes variant names as they are"
)]
pub(crate) enum Stage {
    asr,
    nlu,
    skill,
    tts,
    /// From the end of speech to the first audio of the reply.
    first_audio,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ClosedLabels {
    pub(crate) reason: ClosedReason,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(
    non_camel_case_types,
    reason = "label values are lower case, and the derive writes variant names as they are"
)]
pub(crate) enum ClosedReason {
    client,
    lost,
    idle,
    slow_client,
    oversize,
    protocol,
    draining,
    /// An edge carried it here, and it could not be restored.
    not_resumed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EngineLabels {
    pub(crate) engine: EngineName,
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(
    non_camel_case_types,
    reason = "label values are lower case, and the derive writes variant names as they are"
)]
pub(crate) enum EngineName {
    asr,
    tts,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct JobLabels {
    pub(crate) engine: EngineName,
    pub(crate) outcome: JobOutcome,
}

/// What became of a job given to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(
    non_camel_case_types,
    reason = "label values are lower case, and the derive writes variant names as they are"
)]
pub(crate) enum JobOutcome {
    done,
    failed,
    /// Its caller went away before a thread was free.
    cancelled,
    /// The queue was full.
    rejected,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HttpLabels {
    /// The route's pattern, never the path a client sent: that would let clients make metrics.
    pub(crate) route: String,
    pub(crate) code: u16,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            turns: Family::default(),
            stages: Family::new_with_constructor(stage_histogram),
            sessions: Gauge::default(),
            sessions_closed: Family::default(),
            queue_depth: Family::default(),
            engine_jobs: Family::default(),
            http_requests: Family::default(),
        };
        registry.register(TURNS, "Turns by how they ended", metrics.turns.clone());
        registry.register(STAGE_SECONDS, "Seconds per stage of a turn", metrics.stages.clone());
        registry.register(SESSIONS, "Open Realtime sessions", metrics.sessions.clone());
        registry.register(
            SESSIONS_CLOSED,
            "Realtime sessions ended, by reason",
            metrics.sessions_closed.clone(),
        );
        registry.register(
            QUEUE_DEPTH,
            "Jobs waiting for an engine thread",
            metrics.queue_depth.clone(),
        );
        registry.register(
            ENGINE_JOBS,
            "Jobs given to an engine, by what became of them",
            metrics.engine_jobs.clone(),
        );
        registry.register(
            HTTP_REQUESTS,
            "HTTP requests by route and status",
            metrics.http_requests.clone(),
        );
        metrics
    }
}

/// 1 ms (pattern matching) to 10 s (past any patience); the policy's limits of 0.5 s and 2 s are bucket edges, so that
/// shares above them are exact.
fn stage_histogram() -> Histogram {
    Histogram::new([
        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0,
    ])
}
