//! The edge: terminates devices' connections, opens each voice session in the region that the plan and the network choose,
//! and relays its frames verbatim; HTTP requests take the same choice.
//!
//! An edge serves from its last good plan with the control plane gone, also after its own restart. It moves its own sessions
//! by what it sees itself, and never the fleet.
//!
//! A connection comes in through [`accept`]. [`http1`] reads its messages. [`session`] serves voice sessions and [`request`]
//! everything else. [`stacks`] has what this edge knows of the stacks that it chooses from.

#![expect(missing_docs, reason = "only the binary and the tests of this crate read it")]

pub mod accept;
pub mod admin;
pub mod affinity_tokens;
pub mod answer;
pub mod config;
pub mod cors;
pub mod deadline;
pub mod device;
pub mod edge;
pub mod fault;
pub mod http1;
pub mod metrics;
pub mod request;
pub mod request_id;
pub mod run;
pub mod session;
pub mod stacks;
pub mod stamp;
mod texts;

pub use config::Config;
pub use edge::Edge;
pub use run::run;
