//! The regional gateway: what a device reaches when it speaks to a region.
//!
//! HTTP and the Realtime WebSocket in the shapes of the OpenAI API, and behind them one pipeline per turn: recognise,
//! interpret, act, speak. Engines run on threads of their own; everything else is async and holds bounded queues only.

pub mod config;
mod error;
mod http;
mod metrics;
mod realtime;
mod seal;
mod serve;
mod spoken;
mod stack;
pub mod store;
mod workers;

pub use config::{Config, EngineKind, Limits};
pub use seal::CheckpointKey;
pub use serve::{Addresses, start};
pub use stack::Engines;
