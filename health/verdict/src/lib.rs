//! Judgement of regions: from observations to verdicts, by windows over closed ticks, the triggers of the policy, and
//! the evidence for each verdict.
//!
//! Pure: no sockets, no clock. One vantage alone decides nothing, and silence never counts as failure. A report counts for no
//! more than its vantage can have seen ([`bounds`]), and a vantage that contradicts all others is left out where it is alone
//! ([`suspects`]).
//!
//! A trigger calls every closed tick of its component good, bad or unknown. It falls after a number of bad ticks in a
//! row and rises after a number of good ones:
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
//! As many bad ticks also count when they are spread over a window: four of twelve for the gateway; for the others as
//! many bad ticks in two and a half times the ticks. So do errors that only the window shows: the failures of all its
//! ticks together are past the limit beyond doubt, also without the vantage that accuses most.
//!
//! Every component is judged stack by stack, where vantages name the stack. A region is bad when the stacks that are
//! left cannot serve its need: when fewer of them work than its sessions fill, or than `capacity_min` demands. Until
//! then it is degraded, and the evidence names the failing stack.
//!
//! Each number is one of the policy. In every case a tick is known only with enough samples from enough vantages, and
//! bad only if enough vantages see it bad for themselves. Unknown ticks freeze a trigger; too many of them are `blind`.
//!
//! The region recognises its own speech while its ASR is available, the edge while it is degraded, and a backup region
//! when it is gone ([`Service`]). Errors count as degraded before they count as gone: one minute of errors is not
//! "available", and the caller should not wait for the second. Errors of NLU and skills have a laxer limit than those
//! of ASR, because their levels take something from every caller, also from those who got good answers.

pub mod bounds;
pub mod clocks;
mod correlation;
mod judge;
pub mod latency;
mod limit;
pub mod observation;
pub mod reach;
mod region_seen;
pub mod rounds;
mod run;
mod spread;
mod standing;
pub mod suspects;
mod texts;
mod trigger;
mod verdict;
pub mod window;

pub use bounds::Bounds;
pub use clocks::{Clock, Clocks};
pub use correlation::correlated;
pub use judge::judge;
pub use latency::Latency;
pub use observation::{
    EdgeProbe, FAILURE_LENGTH_MAX, Observation, Passive, ReplicationLag, Source, TickReport, TrafficSeen, VersionSeen,
};
pub use reach::{Reach, Reached, Testimony, Unreached};
pub use rounds::{Rounds, TICKS_AHEAD_MAX, Watch};
pub use suspects::Suspects;
pub use trigger::Trigger;
pub use verdict::{Ailment, Before, Fired, Health, Service, Trouble, Verdict};
pub use window::{Unwanted, Windows};
