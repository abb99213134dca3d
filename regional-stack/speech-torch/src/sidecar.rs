//! The file beside the weights, which describes them, their training and their hash.

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::texts;

/// Name of the weight file in the folder of a model.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the sidecar in the folder of a model.
pub const SIDECAR: &str = "model.json";

/// Everything that a reader of the weights needs. `C` is the configuration of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar<C> {
    /// `recognizer` or `synthesizer`.
    pub kind: String,
    /// Version of the model, for people and for the model version that gateways report.
    pub version: String,
    /// Samples per second of the model's audio.
    pub sample_rate: u32,
    /// Sizes of the network.
    pub network: C,
    /// The symbols that the network's numbers stand for, in order.
    pub vocabulary: Vec<String>,
    /// Seed of the training run.
    pub seed: u64,
    /// Number of training steps.
    pub steps: u64,
    /// SHA-256 of the weight file, in hexadecimal.
    pub weights_sha256: String,
}

/// The reason for which the folder of a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("{}", texts::cannot_read(path, source, [WEIGHTS, SIDECAR]))]
    Read {
        /// Path of the file.
        path: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is not a sidecar.
    #[error("{}", texts::not_a_sidecar(path, source))]
    Sidecar {
        /// Path of the file.
        path: String,
        /// The error of the parser.
        source: serde_json::Error,
    },
    /// Weights and sidecar come from different runs, or the weights were damaged in transfer.
    #[error("{}", texts::other_hash(path))]
    Hash {
        /// Path of the weight file.
        path: String,
    },
    /// The model is of another kind than the caller needs.
    #[error("{}", texts::other_kind(path, found, wanted))]
    Kind {
        /// Path of the sidecar.
        path: String,
        /// The kind in the sidecar.
        found: String,
        /// The kind that the caller needs.
        wanted: &'static str,
    },
    /// The model was made for other audio or other symbols than this program uses.
    #[error("{}", texts::unfit(path, what))]
    Unfit {
        /// Path of the sidecar.
        path: String,
        /// The difference.
        what: String,
    },
    /// libtorch refused the weights.
    #[error("{}", texts::torch_refuses(path, source))]
    Torch {
        /// Path of the weight file.
        path: String,
        /// The error of libtorch.
        source: tch::TchError,
    },
}

/// Reads the sidecar of a model and checks the weights against it. `wanted` is the kind that the caller needs.
pub fn read<C: DeserializeOwned>(folder: &Path, wanted: &'static str) -> Result<Sidecar<C>, ModelError> {
    let sidecar: Sidecar<C> = read_as(&folder.join(SIDECAR), wanted)?;
    check_hash(&folder.join(WEIGHTS), &sidecar.weights_sha256)?;
    Ok(sidecar)
}

/// Reads the sidecar at `path`, in the form of its kind.
pub(crate) fn read_as<T: DeserializeOwned>(path: &Path, wanted: &'static str) -> Result<T, ModelError> {
    let text = bytes_of(path)?;
    let unread = |source| ModelError::Sidecar {
        path: path.display().to_string(),
        source,
    };
    // Kind and rate are checked first: the rest of another kind's sidecar is unreadable here, and its error would be
    // puzzling.
    let Head { kind, sample_rate } = serde_json::from_slice(&text).map_err(unread)?;
    if kind != wanted {
        return Err(ModelError::Kind {
            path: path.display().to_string(),
            found: kind,
            wanted,
        });
    }
    if sample_rate != speech::SAMPLE_RATE {
        let what = format!(
            "the model has audio of {sample_rate} Hz, and this version needs {} Hz",
            speech::SAMPLE_RATE
        );
        return Err(ModelError::Unfit {
            path: path.display().to_string(),
            what,
        });
    }
    serde_json::from_slice(&text).map_err(unread)
}

/// Fails unless the file at `path` has this SHA-256.
pub(crate) fn check_hash(path: &Path, sha256: &str) -> Result<(), ModelError> {
    if hash_of(path)? == sha256 {
        return Ok(());
    }
    Err(ModelError::Hash {
        path: path.display().to_string(),
    })
}

#[derive(Deserialize)]
struct Head {
    kind: String,
    sample_rate: u32,
}

/// SHA-256 of a file in hexadecimal, as a sidecar contains it.
pub fn hash_of(path: &Path) -> Result<String, ModelError> {
    Ok(hex::encode(Sha256::digest(bytes_of(path)?)))
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| ModelError::Read {
        path: path.display().to_string(),
        source,
    })
}
