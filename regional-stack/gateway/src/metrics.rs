//! Metrics of the stack: every name, and the handles to count with.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::queue::Class;

const TURNS: &str = "meridian_stack_turns";
const STAGE_SECONDS: &str = "meridian_stack_stage_seconds";
const SESSIONS: &str = "meridian_stack_sessions";
const SESSIONS_CLOSED: &str = "meridian_stack_sessions_closed";
const QUEUE_DEPTH: &str = "meridian_stack_queue_depth";
const ENGINE_JOBS: &str = "meridian_stack_engine_jobs";
const JOB_SECONDS: &str = "meridian_stack_engine_job_seconds";
const SESSIONS_ON_DISK: &str = "meridian_stack_sessions_on_disk";
const SESSIONS_UNWRITTEN: &str = "meridian_stack_sessions_unwritten";
const DISK_ERRORS: &str = "meridian_stack_disk_errors";
const HTTP_REQUESTS: &str = "meridian_stack_http_requests";
const CONNECTIONS: &str = "meridian_stack_connections";
const WYOMING_CONNECTIONS: &str = "meridian_stack_wyoming_connections";
const WYOMING_REQUESTS: &str = "meridian_stack_wyoming_requests";

/// Handles to all metrics; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) turns: Family<TurnLabels, Counter>,
    pub(crate) stages: Family<StageLabels, Histogram, fn() -> Histogram>,
    pub(crate) sessions: Gauge,
    pub(crate) sessions_closed: Family<ClosedLabels, Counter>,
    pub(crate) sessions_on_disk: Gauge,
    pub(crate) sessions_unwritten: Gauge,
    pub(crate) disk_errors: Counter,
    pub(crate) queue_depth: Family<EngineLabels, Gauge>,
    pub(crate) engine_jobs: Family<JobLabels, Counter>,
    pub(crate) job_seconds: Family<JobSecondsLabels, Histogram, fn() -> Histogram>,
    pub(crate) http_requests: Family<HttpLabels, Counter<u64, AtomicU64>>,
    pub(crate) connections: Family<ConnectionLabels, Counter>,
    pub(crate) wyoming_connections: Gauge,
    pub(crate) wyoming_requests: Family<WyomingLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ConnectionLabels {
    /// A name of [`identity::Event`], of which there are few.
    pub(crate) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TurnLabels {
    pub(crate) outcome: TurnOutcome,
}

/// The end of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum TurnOutcome {
    Completed,
    Cancelled,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StageLabels {
    pub(crate) stage: Stage,
}

/// A part of a turn whose time is measured. Engine stages include waiting for a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Stage {
    Asr,
    Nlu,
    Skill,
    Tts,
    /// From the end of speech to the first audio of the reply.
    FirstAudio,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ClosedLabels {
    pub(crate) reason: ClosedReason,
}

/// The reason for the end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum ClosedReason {
    Client,
    Lost,
    Idle,
    SlowClient,
    Oversize,
    /// No room for a long message.
    NoRoom,
    /// A message did not end in time.
    Unfinished,
    Protocol,
    Draining,
    /// An edge carried it here, and it could not be restored.
    NotResumed,
    /// A newer connection resumed it.
    TakenOver,
    /// An edge carried it elsewhere.
    Moved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EngineLabels {
    pub(crate) engine: EngineName,
}

/// The engine of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum EngineName {
    Asr,
    Tts,
    /// The threads that decode uploaded files; they queue like an engine's.
    Decoder,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct JobLabels {
    pub(crate) engine: EngineName,
    pub(crate) outcome: JobOutcome,
}

/// The outcome of an engine's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum JobOutcome {
    Done,
    Failed,
    /// Its caller went away before a thread was free.
    Cancelled,
    /// The queue was full.
    Rejected,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct JobSecondsLabels {
    pub(crate) engine: EngineName,
    pub(crate) class: Class,
    pub(crate) part: JobPart,
}

/// A part of a job's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum JobPart {
    /// In the queue.
    Waiting,
    /// On a thread.
    Working,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct WyomingLabels {
    pub(crate) request: WyomingRequest,
    pub(crate) outcome: WyomingOutcome,
}

/// A request of the Wyoming protocol, which may take several events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum WyomingRequest {
    Ping,
    Describe,
    Transcribe,
    Assist,
    Synthesize,
}

impl WyomingRequest {
    /// The request that an event is part of; `None` for an event that the stack does not know.
    pub(crate) fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "ping" => Self::Ping,
            "describe" => Self::Describe,
            "transcribe" | "audio-start" | "audio-chunk" | "audio-stop" => Self::Transcribe,
            "transcript" | "recognize" => Self::Assist,
            "synthesize" | "synthesize-start" | "synthesize-chunk" | "synthesize-stop" => Self::Synthesize,
            _ => return None,
        })
    }
}

/// The end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum WyomingOutcome {
    Answered,
    /// The assistant said that it cannot, or did not understand.
    Declined,
    /// An `error` event was the answer.
    Refused,
    /// Its client left before the answer.
    Abandoned,
}

daemon::label_values!(
    TurnOutcome,
    Stage,
    ClosedReason,
    EngineName,
    JobOutcome,
    JobPart,
    WyomingRequest,
    WyomingOutcome
);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HttpLabels {
    /// The pattern of the route. The path of a client would let clients make metrics.
    pub(crate) route: String,
    pub(crate) code: u16,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            turns: Family::default(),
            stages: Family::new_with_constructor(stage_histogram),
            sessions: Gauge::default(),
            sessions_closed: Family::default(),
            sessions_on_disk: Gauge::default(),
            sessions_unwritten: Gauge::default(),
            disk_errors: Counter::default(),
            queue_depth: Family::default(),
            engine_jobs: Family::default(),
            job_seconds: Family::new_with_constructor(stage_histogram),
            http_requests: Family::default(),
            connections: Family::default(),
            wyoming_connections: Gauge::default(),
            wyoming_requests: Family::default(),
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
            SESSIONS_ON_DISK,
            "Sessions with alarms or timers that have a file in the state folder, or are to have one",
            metrics.sessions_on_disk.clone(),
        );
        registry.register(
            SESSIONS_UNWRITTEN,
            "Sessions whose file in the state folder is out of date",
            metrics.sessions_unwritten.clone(),
        );
        registry.register(
            DISK_ERRORS,
            "Files of sessions that could not be written or removed, each try",
            metrics.disk_errors.clone(),
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
            JOB_SECONDS,
            "Seconds of jobs given to an engine, waiting and at work, by who they are for",
            metrics.job_seconds.clone(),
        );
        registry.register(
            HTTP_REQUESTS,
            "HTTP requests by route and status",
            metrics.http_requests.clone(),
        );
        registry.register(
            CONNECTIONS,
            "Connections accepted (proven: with a certificate, plain: without), or refused with this reason",
            metrics.connections.clone(),
        );
        registry.register(
            WYOMING_CONNECTIONS,
            "Open connections of the Wyoming protocol",
            metrics.wyoming_connections.clone(),
        );
        registry.register(
            WYOMING_REQUESTS,
            "Requests of the Wyoming protocol, by what became of them",
            metrics.wyoming_requests.clone(),
        );
        metrics
    }
}

/// From 1 ms (pattern matching) to 10 s (longer than anybody waits). The policy's limits of 0.5 s and 2 s are bucket edges, so that
/// shares above them are exact.
fn stage_histogram() -> Histogram {
    Histogram::new([
        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_in_lower_case() {
        use JobOutcome::{Cancelled, Done, Failed, Rejected};
        let engines = [EngineName::Asr, EngineName::Tts, EngineName::Decoder];
        assert_eq!(engines.map(<&str>::from), ["asr", "tts", "decoder"]);
        let outcomes = [Done, Failed, Cancelled, Rejected].map(<&str>::from);
        assert_eq!(outcomes, ["done", "failed", "cancelled", "rejected"]);
        assert_eq!(
            [JobPart::Waiting, JobPart::Working].map(<&str>::from),
            ["waiting", "working"]
        );
        use ClosedReason as Reason;
        for (reason, value) in [
            (Reason::Client, "client"),
            (Reason::Lost, "lost"),
            (Reason::Idle, "idle"),
            (Reason::SlowClient, "slow_client"),
            (Reason::Oversize, "oversize"),
            (Reason::NoRoom, "no_room"),
            (Reason::Unfinished, "unfinished"),
            (Reason::Protocol, "protocol"),
            (Reason::Draining, "draining"),
            (Reason::NotResumed, "not_resumed"),
            (Reason::TakenOver, "taken_over"),
            (Reason::Moved, "moved"),
        ] {
            assert_eq!(<&str>::from(reason), value);
        }
        let stages = [Stage::Asr, Stage::Nlu, Stage::Skill, Stage::Tts, Stage::FirstAudio].map(<&str>::from);
        assert_eq!(stages, ["asr", "nlu", "skill", "tts", "first_audio"]);
        let requests = ["ping", "describe", "audio-start", "recognize", "synthesize-chunk"];
        let requests = requests.map(|kind| WyomingRequest::of(kind).map(<&str>::from));
        let expected = ["ping", "describe", "transcribe", "assist", "synthesize"];
        assert_eq!(requests, expected.map(Some));
        use WyomingOutcome as Ends;
        let outcomes = [Ends::Answered, Ends::Declined, Ends::Refused, Ends::Abandoned].map(<&str>::from);
        assert_eq!(outcomes, ["answered", "declined", "refused", "abandoned"]);
        let outcomes = [TurnOutcome::Completed, TurnOutcome::Cancelled, TurnOutcome::Failed].map(<&str>::from);
        assert_eq!(outcomes, ["completed", "cancelled", "failed"]);
    }
}
