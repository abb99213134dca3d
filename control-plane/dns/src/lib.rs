//! The authoritative DNS responder of the service zone.
//!
//! It follows plans, compiles each to answers, and serves them over UDP and TCP. Whatever happens to the control plane, it
//! answers from the newest plan it has, also after its own restart; before its first plan it does not listen at all,
//! because resolvers remember a failure and go elsewhere when a port is closed.
//!
//! Sockets and replies are our own; only the message format comes from hickory. Its server would end its TCP side on one
//! aborted connection, loses the OPT record of truncated replies, and logs every query.

pub mod config;
pub mod metrics;
mod networks;
pub mod reply;
pub mod serve;

pub use config::Config;
pub use metrics::Metrics;
pub use networks::Networks;
pub use reply::{Reply, Responder, Transport};
