//! The file beside the weights: what they are, how they were made, and their hash.

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// Name of the weight file in a model's folder.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the sidecar in a model's folder.
pub const SIDECAR: &str = "model.json";

/// Everything a reader of the weights needs; `C` is the network's own configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar<C> {
    /// `recognizer` or `synthesizer`.
    pub kind: String,
    /// Version of this model, for people and for the model version that gateways report.
    pub version: String,
    /// Samples per second of the audio it takes or gives.
    pub sample_rate: u32,
    /// Sizes of the network.
    pub network: C,
    /// The symbols that its numbers stand for, in order.
    pub vocabulary: Vec<String>,
    /// Seed of the training run.
    pub seed: u64,
    /// Steps trained.
    pub steps: u64,
    /// SHA-256 of the weight file, in hexadecimal.
    pub weights_sha256: String,
}

/// Why a model's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("cannot read {path}: {source}; point the model setting at a folder with {WEIGHTS} and {SIDECAR}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The sidecar is not one.
    #[error("{path} is not a model sidecar: {source}")]
    Sidecar {
        /// The file.
        path: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Weights and sidecar are from different runs, or the weights were damaged on the way.
    #[error("{path} does not have the hash its sidecar names; fetch the model again, both files together")]
    Hash {
        /// The weight file.
        path: String,
    },
    /// The model does something else than is wanted of it.
    #[error("{path} describes a {found}, a {wanted} is needed here")]
    Kind {
        /// The sidecar.
        path: String,
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The model was made for other audio or other symbols than this program handles.
    #[error("{path} does not fit this version of meridian: {what}; use the model that ships with it")]
    Unfit {
        /// The sidecar.
        path: String,
        /// The difference.
        what: String,
    },
    /// libtorch refused the weights.
    #[error("libtorch cannot load {path}: {source}")]
    Torch {
        /// The weight file.
        path: String,
        /// What it said.
        source: tch::TchError,
    },
}

/// Reads a model's sidecar and checks the weights against it.
pub fn read<C: DeserializeOwned>(folder: &Path, wanted: &'static str) -> Result<Sidecar<C>, ModelError> {
    let path = folder.join(SIDECAR);
    let text = bytes_of(&path)?;
    let unread = |source| ModelError::Sidecar {
        path: path.display().to_string(),
        source,
    };
    // The kind first: the rest of another kind's sidecar cannot be read here, and would be a puzzling complaint.
    let Kind { kind } = serde_json::from_slice(&text).map_err(unread)?;
    if kind != wanted {
        return Err(ModelError::Kind {
            path: path.display().to_string(),
            found: kind,
            wanted,
        });
    }
    let sidecar: Sidecar<C> = serde_json::from_slice(&text).map_err(unread)?;
    if sidecar.sample_rate != speech::SAMPLE_RATE {
        let what = format!("its audio has {} Hz, ours {}", sidecar.sample_rate, speech::SAMPLE_RATE);
        return Err(ModelError::Unfit {
            path: path.display().to_string(),
            what,
        });
    }
    let weights = folder.join(WEIGHTS);
    if hex::encode(Sha256::digest(bytes_of(&weights)?)) != sidecar.weights_sha256 {
        return Err(ModelError::Hash {
            path: weights.display().to_string(),
        });
    }
    Ok(sidecar)
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

/// Hash of a file, as a sidecar carries it.
pub fn hash_of(path: &Path) -> Result<String, ModelError> {
    Ok(hex::encode(Sha256::digest(bytes_of(path)?)))
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| ModelError::Read {
        path: path.display().to_string(),
        source,
    })
}
