//! Observations in, verdicts out: windows over closed ticks, the triggers of the policy, and the evidence for each
//! verdict.
//!
//! Pure: no sockets, no clock. No decision is made on one vantage's word, and silence is never taken for failure.
//!
//! A trigger calls every closed tick of its component good, bad or unknown. It falls after so many bad ticks in a row and
//! rises after so many good ones:
//!
//! | trigger | a tick is bad when | falls | rises | asks for |
//! |---|---|---|---|---|
//! | gateway connections | fewer than 95 % succeed | 2 ticks | 3 ticks | failover |
//! | ASR errors | more than 10 % fail | 12 ticks | 3 ticks | failover |
//! | ASR latency | the P99 of all vantages together is above 2 s | 30 ticks | 3 ticks | failover |
//! | ASR degraded | its P95 is above 500 ms, or more than 10 % fail | 6 ticks | 12 ticks | L1, edge ASR |
//! | NLU errors | more than half fail | 6 ticks | 12 ticks | L2, pattern NLU |
//! | skills errors | more than half fail | 6 ticks | 12 ticks | L3, cached skills |
//!
//! As many bad ticks count as well when they are spread over a window (four of twelve of the gateway, of the others as many in
//! two and a half times the ticks), and so do errors that only the window shows: what failed in all its ticks together, past the
//! limit beyond doubt, also without the word of the vantage that accuses most.
//!
//! A gateway is judged stack by stack. Edges pass a dead stack over, so a region is bad when fewer of its stacks work than it
//! needs (`capacity_min`); until then it is degraded, and the evidence names the stack.
//!
//! Each number is one of the policy. In every case a tick is known only with enough samples from enough vantages, and bad
//! only if enough vantages see it bad for themselves. Unknown ticks freeze a trigger; too many of them are `blind`.
//!
//! A region's speech is recognised by the region while its ASR is available, by the edge while it is degraded, and by a
//! backup region when it is gone ([`Service`]). Errors count as degraded before they count as gone: one minute of them is
//! not "available", and the caller should not wait for the second. Errors of NLU and skills are held to a laxer limit
//! than those of ASR, because their levels take something from every caller, also from those who were answered well.

pub mod clocks;
mod correlation;
mod judge;
pub mod latency;
pub mod observation;
pub mod rounds;
mod run;
mod spread;
mod trigger;
mod verdict;
pub mod window;

pub use clocks::{Clock, Clocks};
pub use correlation::correlated;
pub use judge::judge;
pub use latency::Latency;
pub use observation::{
    FAILURE_LENGTH_MAX, Observation, Passive, ReplicationLag, Source, TickReport, TrafficSeen, VersionSeen,
};
pub use rounds::{Rounds, TICKS_AHEAD_MAX, Watch};
pub use trigger::Trigger;
pub use verdict::{Before, Fired, Health, Service, Verdict};
pub use window::{Unwanted, Windows};
