//! Chooses the region and the stack of a session, and explains the choice.
//!
//! This crate is pure: a [`Table`] is compiled once per plan and [`pick`](pick::pick) runs once per attempt. The time
//! and everything that the edge has measured are arguments. A decision carries its reasons as data, so that `/explain`,
//! the log and a drill report tell the same story.

pub mod admit;
pub mod affinity;
pub mod breaker;
pub mod budget;
pub mod continuity;
pub mod eject;
pub mod hedge;
pub mod latency;
pub mod pace;
pub mod pick;
pub mod policy;
pub mod retry;
pub mod session;
pub mod stack;
pub mod table;
mod texts;
pub mod upstream;
pub mod user;

pub use affinity::{Affinity, AffinityError, Key};
pub use continuity::Continuity;
pub use eject::Ejection;
pub use pick::{Decision, Request, Rule, SkipReason, Skipped, Tried, pick};
pub use policy::Policy;
pub use stack::{Stack, Stacks};
pub use table::{Role, Table};
pub use user::User;
