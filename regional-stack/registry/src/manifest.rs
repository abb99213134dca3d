//! The manifest of models, `configs/models.toml`: each model, the package that carries it, and the hash of every file.

use std::{collections::BTreeSet, path::Path};

use anyhow::Context as _;
use daemon::config::{Problems, Rules};
use serde::{Deserialize, Serialize};

use crate::texts;

/// The manifest that this version was built with.
const BUILT_IN: &str = include_str!("../../../configs/models.toml");

/// Largest file. A larger one is no speech model of this kind; the limit bounds the download of a wrong manifest.
const BYTES_MAX: u64 = 4 << 30;

/// All known models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// In the order of the file.
    #[serde(rename = "model")]
    pub models: Vec<Model>,
}

/// One model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Unique name, and the name of its folder unless `folder` gives another.
    pub name: String,
    /// Its work.
    pub task: Task,
    /// The release, such as `0.0.73`.
    pub version: String,
    /// SPDX identifier.
    pub licence: String,
    /// One sentence for people.
    pub about: String,
    /// Number of weights.
    pub parameters: u64,
    /// Samples per second of its audio.
    pub sample_rate: u32,
    /// Type of the weights on disk.
    pub dtype: Dtype,
    /// Folder below the folder of models, when it is not called like the model.
    #[serde(default)]
    pub folder: Option<String>,
    /// Whether `meridian models fetch` without a name fetches it.
    #[serde(default)]
    pub default: bool,
    /// The package that carries it. A model without one ships with Meridian.
    #[serde(default)]
    pub package: Option<Package>,
    /// Files of its folder.
    #[serde(rename = "file")]
    pub files: Vec<File>,
}

/// The work of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Speech to text.
    Recognition,
    /// Text to speech.
    Synthesis,
}

/// Type of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
}

/// A package of the publisher, in an index of Python packages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name in the index.
    pub name: String,
    /// Name of the file in the index.
    pub file: String,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// The conversion of the members into the files of the model.
    pub conversion: Conversion,
    /// Members that the conversion needs.
    #[serde(rename = "member")]
    pub members: Vec<Member>,
}

/// The conversion of a package into a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conversion {
    /// Moonshine's two ONNX Runtime graphs with 8-bit weights and its tokenizer, to plain 32-bit tensors and a list of tokens.
    MoonshineOrt,
}

/// A file inside a package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Path in the archive.
    pub path: String,
    /// Size, unpacked.
    pub bytes: u64,
    /// SHA-256 of the unpacked file, in hexadecimal.
    pub sha256: String,
}

/// A file of an installed model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Name in the folder of the model.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// The manifest that this version was built with.
    pub fn built_in() -> Self {
        daemon::config::read("configs/models.toml", BUILT_IN).expect("a test parses the manifest that is built in")
    }

    /// Reads a manifest from a file. Errors name the file, the line and the key.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| texts::no_manifest(path))?;
        Ok(daemon::config::read(&path.display().to_string(), &text)?)
    }

    /// The model of this name; the error names those that there are.
    pub fn find(&self, name: &str) -> anyhow::Result<&Model> {
        self.models.iter().find(|model| model.name == name).with_context(|| {
            let names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
            texts::no_such_model(name, &names)
        })
    }
}

impl Model {
    /// Name of its folder below the folder of models.
    pub fn folder(&self) -> &str {
        self.folder.as_deref().unwrap_or(&self.name)
    }

    /// Size of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl Package {
    /// The member whose path ends with `/name`.
    pub fn member(&self, name: &str) -> Option<&Member> {
        let ends = |member: &&Member| member.path.rsplit('/').next() == Some(name);
        self.members.iter().find(ends)
    }
}

impl Rules for Manifest {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let mut names = BTreeSet::new();
        for (at, model) in self.models.iter().enumerate() {
            let key = |rest: &str| format!("model[{at}].{rest}");
            if !names.insert(&model.name) {
                problems.add(
                    key("name"),
                    format!("\"{}\" is there twice; give each model its own name", model.name),
                );
            }
            for (field, name) in [("name", model.name.as_str()), ("folder", model.folder())] {
                if !is_plain(name) {
                    let text =
                        format!("\"{name}\" is no plain name; write lower-case letters, digits, dots and hyphens");
                    problems.add(key(field), text);
                }
            }
            if model.files.is_empty() {
                problems.add(
                    key("file"),
                    "there is none; name the files of the model, each with its hash",
                );
            }
            for (number, file) in model.files.iter().enumerate() {
                let key = |field: &str| key(&format!("file[{number}].{field}"));
                if !is_plain(&file.name) {
                    problems.add(key("name"), format!("\"{}\" is no plain file name", file.name));
                }
                check_file(&mut problems, key, file.bytes, &file.sha256);
            }
            let Some(package) = &model.package else { continue };
            check_file(
                &mut problems,
                |field| key(&format!("package.{field}")),
                package.bytes,
                &package.sha256,
            );
            for (number, member) in package.members.iter().enumerate() {
                let key = |field: &str| key(&format!("package.member[{number}].{field}"));
                check_file(&mut problems, key, member.bytes, &member.sha256);
            }
        }
        problems
    }
}

fn check_file(problems: &mut Problems, key: impl Fn(&str) -> String, bytes: u64, sha256: &str) {
    problems.add_unless_within(&key("bytes"), &bytes, 1..=BYTES_MAX);
    if sha256.len() != 64 || !sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        problems.add(
            key("sha256"),
            "is no SHA-256; write 64 digits of lower-case hexadecimal",
        );
    }
}

/// Whether `name` is one step of a path that stays in its folder.
fn is_plain(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_manifest_is_in_order() {
        let manifest = Manifest::built_in();
        assert!(manifest.models.iter().any(|model| model.default));
        for model in &manifest.models {
            let weights = model.files.iter().find(|file| file.name == "model.safetensors");
            let width = match model.dtype {
                Dtype::F32 => 4,
                Dtype::F16 => 2,
            };
            // The rest of the file is its table of tensors.
            let (bytes, least) = (weights.unwrap().bytes, width * model.parameters);
            assert!((least..least + (64 << 10)).contains(&bytes), "{}", model.name);
        }
    }

    #[test]
    fn a_manifest_that_cannot_be_trusted_is_refused_all_at_once() {
        let text = BUILT_IN
            .replacen("model.safetensors", "../model.safetensors", 1)
            .replacen("bytes = ", "bytes = -", 1);
        assert!(daemon::config::read::<Manifest>("models.toml", &text).is_err());
        let text = BUILT_IN.replacen("name = \"model.safetensors\"", "name = \"../model.safetensors\"", 1);
        let text = text.replacen("sha256 = \"", "sha256 = \"X", 1);
        let error = daemon::config::read::<Manifest>("models.toml", &text)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is no plain file name"), "{error}");
        assert!(error.contains("is no SHA-256"), "{error}");
        assert!(error.starts_with("models.toml:"), "{error}");
    }
}
