//! This edge's knowledge of the stacks, from its own traffic and its probes, and its report of that.

pub mod fleet_view;
pub mod traffic;
