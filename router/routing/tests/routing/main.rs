//! Properties of routing over many histories.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod names;
mod picking;
mod requests;
