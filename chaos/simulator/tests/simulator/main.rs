//! Worlds in virtual time: those that were written down and those that were drawn.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod scenarios;
mod sweep;
