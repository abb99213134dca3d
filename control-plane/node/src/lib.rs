//! The parts that every node runs beside its own work: [`Follower`] follows the plans of all control planes, [`LastGood`]
//! stores the last good plans on disk, and [`Reporter`] sends the observations of a vantage.
//!
//! A node proves who it is with its certificate, which [`renew`] keeps fresh.

pub mod follow;
pub mod last_good;
pub mod renew;
pub mod report;
mod texts;

#[cfg(test)]
mod testing;

pub use follow::{Contact, Follower};
pub use last_good::LastGood;
pub use report::{Report, Reporter, report_queue};
