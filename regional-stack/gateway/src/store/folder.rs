//! The folder of sessions with an alarm or a timer: one file for each, so that alarms and timers outlive the process. A file is sealed
//! like a checkpoint, and holds the memory of the session, deflated. With a key for it (`state_key`) each file is encrypted as well: it
//! holds what a person said and asked for.
//!
//! The stack changes its own files only, and leaves others in the folder alone. Hand-written: a store of keys and values would bring one
//! file that a crash can spoil for all sessions; here each session is one rename.

use std::{
    fs::{DirBuilder, DirEntry, File, OpenOptions, TryLockError},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use daemon::sealed::{self, Keys};
use dialogue::{City, DialogueState};
use serde::{Deserialize, Serialize};
use topology::Moment;

use super::Memory;
use crate::{
    form::{self, FormError, Packing, Remembered},
    ids::is_session_name,
    seal::{CheckpointKey, SealError},
};

/// Largest file. The settings and items of a session have at most so many bytes before they are deflated, except with the longest
/// instructions; then the file holds the alarms alone.
const FILE_BYTES_MAX: usize = 64 << 10;
/// Largest file when it is encrypted.
const ENCRYPTED_BYTES_MAX: usize = FILE_BYTES_MAX + sealed::added_bytes_max(FILE_BYTES_MAX);
/// An unreadable file is kept for this long: the key or the release that reads it may come back. Afterwards no alarm in it matters.
const UNREADABLE_AGE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// The end of a file's name, which begins with the name of its session.
const EXTENSION: &str = "session";
/// The end of the name of a file that is being written.
const UNFINISHED: &str = "unfinished";
/// The lock of the process that uses the folder.
const LOCK: &str = "lock";

/// The form that this release writes. Every change of the written fields counts it up.
const FORM: u32 = 1;
/// Releases that read this form, or a later one, understand the files of this release.
const FORM_NEEDED: u32 = 1;

/// The content of a file, as this release writes it.
#[derive(Serialize)]
struct Written<'a> {
    form: u32,
    form_needed: u32,
    session: &'a str,
    revision: Moment,
    memory: &'a DialogueState,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<&'a str>,
}

/// The content of a file of this release or a later one, as this release reads it.
#[derive(Deserialize)]
struct Found {
    form_needed: u32,
    session: String,
    revision: Moment,
    memory: Remembered,
    #[serde(default)]
    conversation: Option<Arc<str>>,
}

/// A session that was read.
#[derive(Debug, PartialEq)]
pub(super) struct Parked {
    pub(super) name: String,
    pub(super) memory: Memory,
    pub(super) saved_at: Moment,
    /// The old one of two keys sealed or encrypted it, or it is not encrypted and is to be: it must be written anew.
    pub(super) is_of_old_key: bool,
}

/// The files that held no session.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Unreadable files, and files of others.
    pub(super) skipped: usize,
    /// The fault of the first.
    pub(super) first: Option<String>,
}

/// The reason why a file holds no session for this stack.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it has more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error(
        "it is damaged, or sealed with another key; if checkpoint_key was exchanged, list the old key second and restart"
    )]
    Seal(#[from] SealError),
    #[error("it is encrypted, and this stack has no key for it; write state_key and restart")]
    NoKey,
    #[error(
        "it is damaged, or encrypted with another key; if state_key was exchanged, list the old key second and restart"
    )]
    Encrypted,
    #[error(transparent)]
    Form(#[from] FormError),
    #[error("what is in it cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a newer release wrote it")]
    Newer,
    #[error("its name is not that of the session in it")]
    OtherSession,
    #[error("it is no file of a stack")]
    Foreign,
}

/// The reason why the folder cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("another process uses it; give each stack a folder of its own")]
    InUse,
}

/// The folder, used by this process alone.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    key: CheckpointKey,
    encrypts: Option<Keys>,
    home: City,
    lock: Option<File>,
}

impl Folder {
    /// A folder; [`Self::prepare`] takes it into use. `encrypts` has the keys of its files; without any they are not encrypted. `home`
    /// stands for a city that this release does not know.
    pub(super) fn at(path: PathBuf, key: CheckpointKey, encrypts: Option<Keys>, home: City) -> Self {
        Self {
            path,
            key,
            encrypts,
            home,
            lock: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder if it is missing, and locks it for this process. Returns whether it had to be made: a folder that somebody
    /// removed is new, and has none of the files that were written.
    pub(super) fn prepare(&mut self) -> Result<bool, FolderError> {
        if self.lock.is_some() && self.path.join(LOCK).exists() {
            return Ok(false);
        }
        // A device resumes a session at this stack by its name alone, so names are secrets.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let lock = private().truncate(false).open(self.path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => self.lock = Some(lock),
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Reads the sessions in the folder. Removes files that a write left unfinished, and unreadable ones that are too old to matter.
    pub(super) fn read(&self, now: Moment, mut take: impl FnMut(Parked)) -> std::io::Result<Reading> {
        let mut reading = Reading::default();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let (name, extension) = split(&file_name);
            let outcome = match extension {
                _ if file_name == LOCK => continue,
                Some(UNFINISHED) if is_file(&entry) => {
                    // It was never a session's file, so nothing is lost. The next write would replace it anyway.
                    let _ = std::fs::remove_file(entry.path());
                    continue;
                }
                Some(EXTENSION) if is_file(&entry) => self.read_one(&entry.path(), name, now),
                _ => Err(FileError::Foreign),
            };
            match outcome {
                Ok(parked) => take(parked),
                Err(error) => {
                    if !matches!(error, FileError::Foreign) && is_too_old(&entry, now) {
                        let _ = std::fs::remove_file(entry.path());
                        continue;
                    }
                    reading.skipped += 1;
                    // Logs must not show the name of a session.
                    let which = match error {
                        FileError::Foreign => format!("{}: ", file_name.display()),
                        _ => String::new(),
                    };
                    reading.first.get_or_insert_with(|| format!("{which}{error}"));
                }
            }
        }
        Ok(reading)
    }

    fn read_one(&self, path: &Path, name: &str, now: Moment) -> Result<Parked, FileError> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(ENCRYPTED_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)?;
        self.parse(&bytes, name, now)
    }

    fn parse(&self, bytes: &[u8], name: &str, now: Moment) -> Result<Parked, FileError> {
        let is_encrypted = sealed::is_sealed(bytes);
        let bytes_max = match is_encrypted {
            true => ENCRYPTED_BYTES_MAX,
            false => FILE_BYTES_MAX,
        };
        if bytes.len() > bytes_max {
            return Err(FileError::TooLarge);
        }
        let (plain, is_as_written);
        let bytes = match (&self.encrypts, is_encrypted) {
            (Some(keys), true) => {
                is_as_written = keys.is_newest_of(bytes);
                plain = sealed::open(bytes, keys).map_err(|_| FileError::Encrypted)?;
                &plain[..]
            }
            (None, true) => return Err(FileError::NoKey),
            (keys, false) => {
                is_as_written = keys.is_none();
                bytes
            }
        };
        let opened = self.key.open_of_any_age(bytes)?;
        let (session, memory) = read_state(opened.state, self.home)?;
        if session != name {
            return Err(FileError::OtherSession);
        }
        Ok(Parked {
            name: session,
            memory,
            // A clock that was ahead must not keep a session for ever.
            saved_at: opened.sealed_at.min(now),
            is_of_old_key: opened.is_of_old_key || !is_as_written,
        })
    }

    /// Writes a session's file, or replaces it: readers find the old file or the new one, also after a crash. Until [`Folder::sync`] a
    /// power cut can still take it back.
    pub(super) fn write(&self, name: &str, memory: &Memory, now: Moment) -> std::io::Result<()> {
        let state = write_state(name, memory).ok_or(ErrorKind::FileTooLarge)?;
        let mut file = self.key.seal(&state, now);
        if let Some(keys) = &self.encrypts {
            // The whole file with a key of its own, each time: far less work than the disk has with it.
            file = sealed::seal(&file, keys).map_err(std::io::Error::other)?;
        }
        let unfinished = self.file(name, UNFINISHED)?;
        let written = write_file(&unfinished, &file);
        let finished = written.and_then(|()| std::fs::rename(&unfinished, self.file(name, EXTENSION)?));
        if finished.is_err() {
            // A full disk must not keep half a file as well.
            let _ = std::fs::remove_file(&unfinished);
        }
        finished
    }

    /// Removes a session's file, if there is one.
    pub(super) fn remove(&self, name: &str) -> std::io::Result<()> {
        match std::fs::remove_file(self.file(name, EXTENSION)?) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes everything that was written and removed survive a power cut.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// The path of a session's file. Names come from edges and from checkpoints too, and must not lead out of the folder.
    fn file(&self, name: &str, extension: &str) -> std::io::Result<PathBuf> {
        match is_session_name(name) {
            true => Ok(self.path.join(format!("{name}.{extension}"))),
            false => Err(ErrorKind::InvalidFilename.into()),
        }
    }
}

/// The session in an opened state, and its memory.
pub(crate) fn read_state(state: &[u8], home: City) -> Result<(String, Memory), FileError> {
    let plain = form::unpack(state)?;
    let found: Found = serde_json::from_slice(&plain)?;
    if found.form_needed > FORM {
        return Err(FileError::Newer);
    }
    let memory = Memory {
        dialogue: found.memory.at(home),
        session: found.conversation,
        revision: found.revision,
        // While no process ran here, an edge may have resumed its checkpoint elsewhere.
        may_go_on_elsewhere: true,
    };
    Ok((found.session, memory))
}

/// The state of a session's file: all of its memory, or the alarms alone when all of it does not fit.
pub(crate) fn write_state(name: &str, memory: &Memory) -> Option<Vec<u8>> {
    let packed = |conversation| {
        let written = Written {
            form: FORM,
            form_needed: FORM_NEEDED,
            session: name,
            revision: memory.revision,
            memory: &memory.dialogue,
            conversation,
        };
        let state = Packing::Deflated.pack(serde_json::to_vec(&written).ok()?)?;
        (state.len() + crate::seal::SEAL_BYTES <= FILE_BYTES_MAX).then_some(state)
    };
    let conversation = memory.session.as_deref();
    packed(conversation).or_else(|| conversation.and_then(|_| packed(None)))
}

fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = private().truncate(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// The session's name and the ending of a file's name, if it has both.
fn split(file_name: &std::ffi::OsStr) -> (&str, Option<&str>) {
    let parts = file_name.to_str().and_then(|text| text.split_once('.'));
    match parts {
        Some((name, extension)) if is_session_name(name) => (name, Some(extension)),
        _ => ("", None),
    }
}

/// Refuses anything but plain files: a pipe would hold up the reader.
fn is_file(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file())
}

fn is_too_old(entry: &DirEntry, now: Moment) -> bool {
    let changed = entry.metadata().and_then(|metadata| metadata.modified());
    let since_epoch = changed
        .ok()
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let changed = since_epoch.and_then(|since| u64::try_from(since.as_millis()).ok());
    changed.is_some_and(|at| now.since(Moment(at)) > UNREADABLE_AGE_MAX)
}

#[cfg(test)]
mod tests;
