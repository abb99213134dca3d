//! The libtorch engines, and the program that trains their models.
//!
//! Training and serving share the networks, so a weight file fits both. A model is a folder with its weights
//! (`model.safetensors`) and its sidecar (`model.json`), which says what the weights are and carries their hash.

pub mod acoustic;
pub mod alphabet;
pub mod conformer;
mod pool;
pub mod pronunciation;
mod recognizer;
pub mod sidecar;
mod synthesizer;

pub use recognizer::TorchRecognizer;
pub use synthesizer::TorchSynthesizer;

/// The GPU when libtorch has one, else the CPU.
pub fn best_device() -> tch::Device {
    tch::Device::cuda_if_available()
}

/// One thread per forward pass: these networks are so small that a second thread costs more in waiting than it computes,
/// and engines run in parallel on threads of their own. Called before any work; repeating it does nothing.
pub fn use_one_thread() {
    tch::set_num_threads(1);
}
