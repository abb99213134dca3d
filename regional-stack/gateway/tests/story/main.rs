//! A whole regional stack in this process, with scripted engines, called over real sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod continuity;
mod grpc;
mod http;
mod realtime;
mod region;
mod turns;
