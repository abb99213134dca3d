//! Decisions, told as stories and searched at random.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod documents;
mod histories;
mod limits;
mod orders;
mod records;
mod refusals;
mod stories;
mod troubles;
mod world;
