//! The authoritative DNS responder of the service zone.
//!
//! It follows plans, compiles each plan into answers, and serves them over UDP and TCP. When the control plane fails,
//! it keeps answering from the newest plan that it has, even after its own restart. Before its first plan it does not
//! listen at all: resolvers remember a failure, but try another server at once when a port is closed.
//!
//! The sockets and the parser of queries are Meridian's own; hickory writes the replies. hickory's server would stop
//! its TCP side after one aborted connection, loses the OPT record of truncated replies, and logs every query. Its
//! parser refuses a message because of a single unknown option.

pub mod config;
mod datagram;
mod draft;
pub mod metrics;
mod networks;
pub mod reply;
pub mod serve;
mod slots;
pub mod texts;
mod wire;

pub use config::Config;
pub use metrics::Metrics;
pub use networks::Networks;
pub use reply::{Reply, Responder, Transport};
