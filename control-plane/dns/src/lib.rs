//! The authoritative DNS responder of the service zone.
//!
//! It follows plans, compiles each to answers, and serves them over UDP and TCP. Whatever happens to the control plane, it
//! answers from the newest plan it has, also after its own restart; before its first plan it does not listen at all,
//! because resolvers remember a failure and go elsewhere when a port is closed.
//!
//! Sockets and the reader of queries are our own; hickory writes the replies. hickory's server would end its TCP side on one
//! aborted connection, loses the OPT record of truncated replies, and logs every query; its reader refuses a message for one
//! option that it does not know.

pub mod config;
mod datagram;
mod draft;
pub mod metrics;
mod networks;
mod places;
pub mod reply;
pub mod serve;
mod wire;

pub use config::Config;
pub use metrics::Metrics;
pub use networks::Networks;
pub use reply::{Reply, Responder, Transport};
