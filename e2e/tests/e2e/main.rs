//! Whole deployments of real processes, one after another.
//!
//! Needs the other programs: `cargo build --workspace --bins` (`make test` does it).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod lost_edge;
mod one_world;
mod three_replicas;
