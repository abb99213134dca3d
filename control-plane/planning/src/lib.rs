//! Decisions: what the plan should be, given what is believed and asked for. A pure function of its input and `now`, so
//! that every decision can be made again from the audit log, and simulated.

mod actions;
pub mod audit;
mod believed;
mod capacity;
mod damping;
mod data;
mod documents;
mod edges;
mod input;
pub mod invariants;
mod plan;
mod regions;
mod requests;
mod rollout;
mod settle;

pub use actions::{Action, Arrivals, Memory, PLANNER, Phase, RECOVERED, TakenBack};
pub use believed::Believed;
pub use capacity::{Load, Resource, loads};
pub use damping::Penalty;
pub use data::ANY_LOSS;
pub use documents::{problems, refuses_topology, risks};
pub use input::{Check, EdgeSeen, Input, Lag, Outcome, Refusal, Report, RolloutSeen};
pub use plan::{REQUEST_LIFE, automation, next_wake, plan};
