//! The authoritative DNS responder of the service zone.
//!
//! It follows plans, compiles each plan into answers, and serves them over UDP and TCP. When the control plane fails,
//! it keeps answering from the newest plan that it has, even after its own restart. Before its first plan it does not
//! listen at all: resolvers remember a failure, but try another server at once when a port is closed.
//!
//! The sockets and the parser of queries are Meridian's own. Usual questions are answered with bytes that were written when
//! the plan was compiled; hickory writes the other replies. hickory's server would stop
//! its TCP side after one aborted connection, loses the OPT record of truncated replies, and logs every query. Its
//! parser refuses a message because of a single unknown option.

mod batch;
pub mod config;
mod cookie;
mod draft;
mod ecs;
mod fast;
mod files;
pub mod geo;
mod limit;
pub mod measure;
pub mod memory;
pub mod metrics;
pub mod networks;
pub mod pages;
pub mod places;
pub mod reply;
pub mod report;
pub mod serve;
pub mod signer;
mod slots;
pub mod texts;
pub mod tls;
mod udp;
mod wire;

pub use config::Config;
pub use metrics::Metrics;
pub use reply::{Received, Reply, Responder, Transport};
pub use serve::RateLimit;
pub use signer::Signer;
