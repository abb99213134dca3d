//! The models of a folder, their state, and the chosen one.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    hash::hash_of,
    manifest::{Model, Task},
    texts,
};

/// Name of the file below the folder of models with the chosen models.
pub const IN_USE: &str = "in-use.toml";

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Every file is there with its size. [`verify`] looks at the hashes too.
    Ready,
    /// No file of it is there.
    Missing,
    /// A file is missing, cut short or another one; the text says which.
    Damaged(String),
}

/// The models that were chosen with `meridian models use`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InUse {
    /// Name of the recognition model. Without it the stack decides by the models that are there.
    #[serde(default)]
    pub recognition: Option<String>,
}

impl daemon::config::Rules for InUse {
    fn problems(&self) -> daemon::config::Problems {
        daemon::config::Problems::default()
    }
}

/// Looks at the names and sizes of a model's files, and reads none: the question costs nothing.
pub fn state(model: &Model, models_dir: &Path) -> State {
    let folder = models_dir.join(model.folder());
    if !folder.exists() {
        return State::Missing;
    }
    for file in &model.files {
        match fs::metadata(folder.join(&file.name)) {
            Ok(found) if found.len() == file.bytes => {}
            Ok(found) => {
                let text = format!("{} has {} bytes and should have {}", file.name, found.len(), file.bytes);
                return State::Damaged(text);
            }
            Err(error) => return State::Damaged(format!("{}: {error}", file.name)),
        }
    }
    State::Ready
}

/// Looks at sizes and hashes: reads every file of the model.
pub fn verify(model: &Model, models_dir: &Path) -> State {
    let state = state(model, models_dir);
    if state != State::Ready {
        return state;
    }
    for file in &model.files {
        match hash_of(&models_dir.join(model.folder()).join(&file.name)) {
            Ok(found) if found == file.sha256 => {}
            Ok(found) => {
                return State::Damaged(format!(
                    "{} has the hash {found} and should have {}",
                    file.name, file.sha256
                ));
            }
            Err(error) => return State::Damaged(error.to_string()),
        }
    }
    State::Ready
}

/// The chosen models; none chosen when the file is missing.
pub fn in_use(models_dir: &Path) -> anyhow::Result<InUse> {
    let path = models_dir.join(IN_USE);
    if !path.exists() {
        return Ok(InUse::default());
    }
    daemon::config::load(&path)
}

/// Chooses a whole model. A stack loads it at its next start.
pub fn choose(model: &Model, models_dir: &Path) -> anyhow::Result<()> {
    if model.task != Task::Recognition {
        anyhow::bail!(texts::not_a_recognizer(&model.name));
    }
    match verify(model, models_dir) {
        State::Ready => {}
        State::Missing => anyhow::bail!(texts::not_here(&model.name)),
        State::Damaged(what) => anyhow::bail!(texts::damaged(&model.name, &what)),
    }
    let chosen = InUse {
        recognition: Some(model.name.clone()),
    };
    let text = format!("# Written by `meridian models use`.\n{}", document(&chosen));
    // A stack that starts meanwhile must not read half a file.
    let (path, fresh) = (models_dir.join(IN_USE), models_dir.join(".in-use.toml.new"));
    fs::write(&fresh, text)?;
    fs::rename(&fresh, &path)?;
    Ok(())
}

fn document(chosen: &InUse) -> String {
    match &chosen.recognition {
        Some(name) => format!("recognition = \"{name}\"\n"),
        None => String::new(),
    }
}
