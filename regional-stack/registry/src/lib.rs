//! The registry of speech models: which models there are ([`manifest`]), how one gets into the folder of models
//! ([`fetch()`]), and which of them are there ([`installed`]).
//!
//! No model runs here, and nothing links libtorch: the command that fetches models must start on any machine.

mod download;
pub mod fetch;
mod flatbuffer;
pub mod installed;
pub mod manifest;
mod moonshine;
mod safetensors;

pub use fetch::{FetchError, Progress, fetch};
pub use installed::{IN_USE, InUse, State};
pub use manifest::{Manifest, Model};
