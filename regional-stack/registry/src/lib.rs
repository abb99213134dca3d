//! The registry of speech models: the list of models ([`manifest`]), the way of one into the folder of models ([`fetch()`]), and the
//! models in that folder ([`installed`]).
//!
//! No model runs here, and nothing links libtorch: the command that fetches models must start on any machine.

mod download;
mod error;
pub mod fetch;
mod flatbuffer;
mod hash;
pub mod installed;
pub mod manifest;
mod moonshine;
mod progress;
mod safetensors;
mod texts;

pub use error::FetchError;
pub use fetch::fetch;
pub use installed::{IN_USE, InUse, State};
pub use manifest::{Manifest, Model};
pub use progress::Progress;
