//! The libtorch speech engines, and the program that trains their models.
//!
//! Training and serving share the networks, so that a weight file fits both. A model is a folder with its weights
//! (`model.safetensors`) and its sidecar (`model.json`), which describes the weights and contains their hash.

pub mod acoustic;
pub mod alphabet;
mod bang;
pub mod conformer;
mod gate;
mod moonshine;
mod pool;
pub mod pronunciation;
mod recognizer;
pub mod sidecar;
mod synthesizer;
mod texts;

pub use moonshine::Moonshine;
pub use recognizer::TorchRecognizer;
pub use synthesizer::TorchSynthesizer;

/// The GPU if libtorch has one, otherwise the CPU.
pub fn best_device() -> tch::Device {
    tch::Device::cuda_if_available()
}

/// Limits libtorch to one thread per forward pass. These networks are so small that a second thread costs more in
/// waiting than it computes, and engines run in parallel on their own threads. Call it before any work; repeating it
/// has no effect.
pub fn use_one_thread() {
    tch::set_num_threads(1);
}
