//! The control plane: it takes observations, judges health on closed ticks, asks `plan()` for a decision, commits it
//! with an audit entry, and streams the plan to edges and name servers. Operators force, stop and undo decisions here.
//!
//! One task ([`reconcile`]) owns all state and makes all decisions, one at a time. Every other part sends it messages.

#![expect(
    missing_docs,
    reason = "no other crate reads this one: its items are public for its own tests and benches"
)]

pub mod access;
mod audit_heads;
mod claims;
pub mod config;
mod dns_timing;
pub mod grpc;
pub mod metrics;
pub mod nodes;
mod operators;
mod pace;
mod readiness;
pub mod reconcile;
pub mod records;
pub mod serve;
mod sightings;
pub mod stacks;
pub mod store;
mod texts;
pub mod view;

pub use config::Config;
pub use serve::serve;
