//! `plan(input, now)`: the next plan or none, always with a report of why.
//!
//! Pure and total: the same input and `now` give the same bytes, on every machine, in production, in the simulator and in
//! a replay of the audit log. A new fact a decision needs becomes part of [`Input`]; it is never fetched.

mod plan;
mod routes;

pub use plan::{Input, Outcome, REQUEST_LIFE, Report, next_wake, plan};
