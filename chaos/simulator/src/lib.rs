//! Scenario files played against the real verdict and planning code in virtual time. The output is a transcript a
//! reviewer can read; the same scenario always gives the same transcript.

pub mod expect;
mod fleet;
pub mod record;
pub mod resolvers;
pub mod scenario;
mod subjects;
mod texts;
mod transcript;
mod truth;
mod version;
pub mod why;
mod world;

pub use record::Record;
pub use scenario::{BadScenario, Scenario};
pub use why::{Why, why};
pub use world::play;
