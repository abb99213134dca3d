//! Decisions: the next plan, from the beliefs about regions and the requests of operators. A decision is a pure
//! function of its input and `now`, so that every decision can be made again from the audit log, and simulated.

mod actions;
pub mod audit;
mod believed;
mod capacity;
mod damping;
mod documents;
mod draft;
mod facts;
mod gate;
mod input;
pub mod invariants;
mod placing;
mod plan;
mod report;
mod rules;
mod shares;
pub mod signs_of_life;
mod steps;
mod texts;
mod wake;

pub use actions::{Action, Arrivals, Memory, PLANNER, Phase, RECOVERED, TakenBack};
pub use believed::Believed;
pub use capacity::{Load, Resource, loads};
pub use damping::Penalty;
pub use documents::{differences, problems, refuses_topology, risks};
pub use input::{ANY_LOSS, EdgeSeen, Input, Lag, Refusal, RolloutSeen};
pub use plan::{automation, plan};
pub use report::{Check, Outcome, Report};
pub use steps::spread::waited_for;
pub use wake::{REQUEST_LIFE, next_wake};
