//! Scenario files played against the real verdict and planning code in virtual time. The output is a transcript a
//! reviewer can read; the same scenario always gives the same transcript.

mod scenario;
mod world;

pub use scenario::{BadScenario, Event, Line, Scenario};
pub use world::play;
