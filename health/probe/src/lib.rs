//! Active probes of the regional stacks and of the other edges.
//!
//! [`run`] probes every region in every tick, tries the public addresses of other edges, and reports the results
//! together with the node's real traffic.
//!
//! A probe reports only its own observations. A component behind a broken gateway gets no observation, because silence
//! is not failure. A probe that fails because the prober itself lacks descriptors or time does not count against a
//! stack or an edge.

mod cause;
mod edge_probe;
mod lateness;
mod run;
mod stack;
mod texts;

pub use cause::Cause;
pub use edge_probe::QUESTION as EDGE_PROBE_REQUEST;
pub use lateness::Lateness;
pub use run::{Probed, Settings, run};
pub use stack::probe_once;
