//! What strangers may send, tried by the million (`make fuzz`).
//!
//! A target is a function of bytes that panics when something is wrong. The fuzzer (`src/main.rs`) looks for such bytes, led by
//! which ways the code goes; the tests play the seeds of `corpus/`, among them everything that once went wrong.

mod targets {
    pub(crate) mod dns;
    pub(crate) mod frames;
    pub(crate) mod http;
    pub(crate) mod reports;
    pub(crate) mod snapshots;
    pub(crate) mod topologies;
    pub(crate) mod words;
}

/// A target: its name, which is that of its folder of seeds, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("dns", targets::dns::answer),
    ("frames", targets::frames::scan),
    ("http-requests", targets::http::pass_on_request),
    ("http-responses", targets::http::pass_on_response),
    ("reports", targets::reports::judge),
    ("snapshots", targets::snapshots::take_into_force),
    ("topologies", targets::topologies::read),
    ("words", targets::words::continue_session),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|(known, _)| *known == name)
}
