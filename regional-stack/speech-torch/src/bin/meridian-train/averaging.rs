//! Keeps a running average of the weights, and writes it as a model.
//!
//! The average becomes the model: it makes a checkpoint from the middle of a run about as good as one at the end of the
//! learning rate's schedule, so that an interrupted run still leaves a usable model.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;
use speech_torch::sidecar::{self, SIDECAR, Sidecar, WEIGHTS};
use tch::{Tensor, nn};

use crate::texts;

/// Steps between two samples of the weights. Each sample costs a pass over them.
const EVERY: u64 = 5;
/// With one sample in five steps, the average reaches back about 500 steps.
const KEEP: f64 = 0.99;

/// Loads the weights of an earlier run, if `folder` names one.
pub(crate) fn start_from(variables: &mut nn::VarStore, folder: Option<&Path>) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    let weights = folder.join(WEIGHTS);
    variables
        .load(&weights)
        .with_context(|| texts::cannot_start_from(&weights))
}

pub(crate) struct Average {
    tensors: BTreeMap<String, Tensor>,
    looks: u64,
}

impl Average {
    pub(crate) fn new(variables: &nn::VarStore) -> Self {
        let tensors = variables
            .variables()
            .into_iter()
            .map(|(name, t)| (name, t.detach().copy()))
            .collect();
        Self { tensors, looks: 0 }
    }

    pub(crate) fn follow(&mut self, variables: &nn::VarStore, step: u64) {
        if !step.is_multiple_of(EVERY) {
            return;
        }
        self.looks += 1;
        // At the beginning, the random start must be forgotten quickly.
        let keep = KEEP.min((1.0 + self.looks as f64) / (10.0 + self.looks as f64));
        tch::no_grad(|| {
            for (name, now) in variables.variables() {
                if let Some(mean) = self.tensors.get_mut(&name) {
                    let _ = mean.g_mul_scalar_(keep).g_add_(&(now.detach() * (1.0 - keep)));
                }
            }
        });
    }

    /// Writes weights and sidecar into `folder`. Each file appears whole or not at all.
    pub(crate) fn save<C: Serialize>(&self, folder: &Path, mut sidecar: Sidecar<C>) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| texts::cannot_write(folder))?;
        let part = folder.join(format!("{WEIGHTS}.part"));
        let tensors: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        Tensor::write_safetensors(&tensors, &part)?;
        sidecar.weights_sha256 = sidecar::hash_of(&part)?;
        std::fs::rename(&part, folder.join(WEIGHTS))?;
        let part = folder.join(format!("{SIDECAR}.part"));
        std::fs::write(&part, serde_json::to_string_pretty(&sidecar)? + "\n")?;
        std::fs::rename(&part, folder.join(SIDECAR))?;
        Ok(())
    }
}
