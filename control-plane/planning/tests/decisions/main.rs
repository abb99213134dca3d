//! Decisions in stories and in random histories.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod automation;
mod documents;
mod edges;
mod histories;
mod leaders;
mod limits;
mod moves;
mod orders;
mod records;
mod refusals;
mod spread;
mod stories;
mod troubles;
mod world;
