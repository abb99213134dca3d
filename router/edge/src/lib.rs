//! The edge: terminates devices' connections, opens each voice session in the region the plan and the network choose,
//! and relays its frames verbatim; HTTP requests take the same choice through pingora.
//!
//! It serves from its last good plan with the control plane gone, also after its own restart. It moves its own sessions
//! by what it sees itself and never the fleet.

pub mod admin;
pub mod admission;
pub mod answer;
pub mod attempts;
pub mod config;
pub mod connection;
pub mod edge;
pub mod exchange;
pub mod fault;
pub mod forward;
pub mod frames;
pub mod grpc;
pub mod handover;
pub mod head;
pub mod http1;
pub mod idle;
pub mod kept;
pub mod lag;
pub mod listener;
pub mod metrics;
pub mod patience;
pub mod proxy;
pub mod relay;
pub mod requests;
pub mod run;
pub mod seen;
pub mod sessions;
pub mod tls;
pub mod traffic;
pub mod transport;
pub mod tunnel;
pub mod workers;

pub use config::Config;
pub use edge::Edge;
pub use run::run;
