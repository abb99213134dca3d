//! A whole regional stack in this process, with scripted engines, called over real sockets.
//!
//! Some stories put a real edge before the stack (`edges`): those about clients' own packages, about the memory of sessions, about their
//! owners, and about a stack that is killed. They stay here, and not in `e2e`, for three reasons. They share the region and the device of
//! the stories without an edge. In `e2e` a second program would link libtorch and the edge. And the worlds of `e2e` measure the time in
//! which they recover, for which the processors must be theirs.

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
mod wyoming;
