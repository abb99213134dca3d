//! A whole regional stack in this process, with scripted engines, called over real sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[expect(unreachable_pub, reason = "shared with the tests of the edge")]
#[path = "../../../../router/edge/tests/edge/support/alone.rs"]
mod alone;
mod clients;
mod continuity;
mod edges;
mod grpc;
mod http;
mod idle;
mod killed;
mod load;
mod memory;
mod owners;
mod proof;
mod realtime;
mod region;
mod request_id;
mod turns;
