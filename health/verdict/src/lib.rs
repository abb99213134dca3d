//! Observations in, verdicts out: windows over closed ticks, the triggers of the policy, and the evidence for each
//! verdict.
//!
//! Pure: no sockets, no clock. No decision is made on one vantage's word, and silence is never taken for failure.

pub mod judge;
pub mod latency;
pub mod observation;
pub mod window;

pub use judge::{Before, Health, Trigger, Verdict, judge};
pub use latency::Latency;
pub use observation::{FAILURE_LENGTH_MAX, Observation, ReplicationLag, Source, TickReport, VersionSeen};
pub use window::{TickSeen, Unwanted, Windows};
