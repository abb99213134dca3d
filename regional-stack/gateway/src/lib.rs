//! The regional gateway: the service that a device reaches when it speaks to a region.
//!
//! It speaks HTTP and the Realtime WebSocket in the shapes of the OpenAI API, gRPC, and Wyoming. Behind all of them each turn takes one way:
//! recognise, interpret, act, speak. Engines run on threads of their own; everything else is async, and its queues are bounded.

#![expect(
    missing_docs,
    reason = "the binary, the fuzzer and the benches are the only readers of this crate"
)]

mod caller;
pub mod config;
mod encoding;
mod error;
mod form;
pub mod fuzzing;
mod grpc;
mod health;
mod http;
mod ids;
mod live;
mod metrics;
mod place;
mod queue;
mod realtime;
mod recording;
mod room;
mod script;
mod seal;
mod serve;
mod spoken;
mod stack;
pub mod store;
mod texts;
mod transcribing;
mod workers;
mod wyoming;

/// Generated from proto/meridian/voice/v1/voice.proto.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod voice {
    tonic::include_proto!("meridian.voice.v1");
}

pub use config::{Config, EngineKind, Limits};
pub use seal::CheckpointKey;
pub use serve::{Addresses, start};
pub use stack::Engines;
