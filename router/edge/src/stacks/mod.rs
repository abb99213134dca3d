//! This edge's view of the stacks, from its own traffic and its probes, and its report of that view.

pub mod fleet_view;
pub mod plans;
pub mod traffic;
