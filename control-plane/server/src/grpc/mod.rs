//! The gRPC services: nodes follow plans, vantages report, and operators ask and order. Each translates messages; the
//! deciding task answers them.

pub(crate) mod certificates;
pub mod guard;
pub(crate) mod joining;
pub(crate) mod observations;
pub mod operator;
mod parse;
pub(crate) mod plans;
pub mod replies;
mod tokens;
