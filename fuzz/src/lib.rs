//! Fuzz targets for everything that strangers may send (`make fuzz`).
//!
//! A target is a function of bytes that panics on a fault. The fuzzer (`src/main.rs`) searches for such bytes, led by
//! coverage. The tests play the seeds of `corpus/`, which include every input that once failed.

mod targets {
    pub(crate) mod audit_logs;
    pub(crate) mod certificates;
    pub(crate) mod continuity;
    pub(crate) mod credentials;
    pub(crate) mod dns;
    pub(crate) mod frames;
    pub(crate) mod http;
    pub(crate) mod operators;
    pub(crate) mod orders;
    pub(crate) mod reports;
    pub(crate) mod scenarios;
    pub(crate) mod sealed_files;
    pub(crate) mod snapshots;
    pub(crate) mod tokens;
    pub(crate) mod topologies;
    pub(crate) mod wav;
}

/// A target: its name, which is also that of its folder of seeds, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by name.
pub const TARGETS: [Target; 23] = [
    ("audit-logs", targets::audit_logs::read),
    ("certificates", targets::certificates::read),
    ("checkpoints", gateway::fuzzing::checkpoint),
    ("clients", gateway::fuzzing::conversation),
    ("continuity", targets::continuity::continue_session),
    ("credentials", targets::credentials::recognise),
    ("dns", targets::dns::answer),
    ("frames", targets::frames::scan),
    ("http-requests", targets::http::pass_on_request),
    ("http-responses", targets::http::pass_on_response),
    ("identity-provider", oidc::fuzzing::answer),
    ("ogg-opus", gateway::fuzzing::ogg_opus),
    ("operators", targets::operators::read),
    ("orders", targets::orders::read),
    ("reports", targets::reports::judge),
    ("scenarios", targets::scenarios::read),
    ("sealed-files", targets::sealed_files::open),
    ("session-files", gateway::fuzzing::session_file),
    ("snapshots", targets::snapshots::take_into_force),
    ("tokens", targets::tokens::verify),
    ("topologies", targets::topologies::read),
    ("wav", targets::wav::decode),
    ("wyoming", gateway::fuzzing::wyoming_events),
];

/// Finds a target by name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|(known, _)| *known == name)
}
