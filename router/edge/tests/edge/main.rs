//! Stories of one edge between played devices and played stacks.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admission;
mod blame;
mod blame_http;
mod browsers;
mod continuity;
mod devices;
mod exhausted_http;
mod exhaustion;
mod fleet;
mod forwarding;
mod http2;
mod load;
mod odd_answers;
mod own_network;
mod picking;
mod processes;
mod proof;
mod request_ids;
mod requests;
mod resilience;
mod sessions;
mod support;
mod tls;
mod uploads;
mod versions;
