//! Which region a session goes to, and why.
//!
//! Pure: a [`Table`] is compiled once per plan, [`pick`](pick::pick) is asked once per attempt, and both the time and
//! everything the edge has measured are arguments. A decision carries its reasons as data, so that `/explain`, the log
//! and a drill report tell the same story.

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
pub mod stack;
pub mod table;
pub mod upstream;
pub mod user;

pub use affinity::{Affinity, AffinityError, Key};
pub use continuity::Continuity;
pub use eject::Ejection;
pub use pick::{Because, Decision, Request, Skipped, Tried, Why, pick};
pub use policy::Policy;
pub use stack::{Stack, Stacks};
pub use table::{Standing, Table};
pub use user::User;
