//! The control plane: it takes observations, judges health on closed ticks, asks `plan()` what to do, commits the answer
//! with an audit entry, and streams it to edges and DNS responders. Operators force, stop and undo decisions here.
//!
//! One task ([`reconcile`]) owns all state and makes all decisions, one at a time; everything else talks to it.

pub mod config;
mod heard;
pub mod metrics;
pub mod nodes;
pub mod operator;
pub mod reconcile;
pub mod records;
mod refusals;
pub mod serve;
mod sightings;
pub mod store;

pub use config::Config;
pub use serve::serve;
