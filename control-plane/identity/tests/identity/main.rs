//! Identities of real peers, on real sockets and in real files.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod expired;
mod files;
mod listener;
mod stacks;
mod support;
mod tls;
