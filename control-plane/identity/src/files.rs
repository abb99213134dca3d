//! Certificates, keys and trust in files, written so that no reader sees half of one.

use std::{
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{ca::Credential, texts};

/// Rights of others that a key file must not have.
const OTHERS: u32 = 0o077;
/// Largest file that is read: a bundle of a hundred certificates has a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The files of one identity, as `[identity]` names them. Others may replace them while the process runs: the process looks
/// at them every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The leaf, then the issuers above it, in PEM.
    pub certificate: PathBuf,
    /// The private key of the leaf, in PEM. Only its owner may read it.
    pub key: PathBuf,
    /// The roots that this process trusts, in PEM.
    pub trust: PathBuf,
}

/// The content of [`Files`].
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// As in [`Files`].
    pub certificate: String,
    /// As in [`Files`].
    pub key: String,
    /// As in [`Files`].
    pub trust: String,
}

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("{}", texts::file_failed(verb, path.display(), source))]
    Io {
        /// Read or write.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Other users may read the key.
    #[error("{}", texts::key_readable(path.display(), *mode))]
    Readable {
        /// The key file.
        path: PathBuf,
        /// Its rights.
        mode: u32,
    },
    /// The file is too long for what it should hold.
    #[error("{}", texts::file_too_long(path.display(), *bytes))]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

impl Files {
    /// The usual names in one folder: `identity.crt`, `identity.key` and `trust.crt`.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            certificate: folder.join("identity.crt"),
            key: folder.join("identity.key"),
            trust: folder.join("trust.crt"),
        }
    }

    /// The paths, so that a configuration can make them absolute.
    pub fn paths(&mut self) -> [&mut PathBuf; 3] {
        [&mut self.certificate, &mut self.key, &mut self.trust]
    }

    /// The same files, looked for in this folder unless their paths are absolute.
    pub fn relative_to(mut self, folder: &Path) -> Self {
        for path in self.paths() {
            *path = folder.join(&*path);
        }
        self
    }

    /// Reads all three.
    ///
    /// # Errors
    ///
    /// One cannot be read, is too long, or is a key that others can read.
    pub fn read(&self) -> Result<Pem, FileError> {
        Ok(Pem {
            certificate: read(&self.certificate)?,
            key: read_key(&self.key)?,
            trust: read(&self.trust)?,
        })
    }

    /// Writes a new certificate with its key. The key comes first: between the two a reader finds a pair that does not fit,
    /// keeps what it has, and looks again.
    ///
    /// # Errors
    ///
    /// One cannot be written.
    pub fn write(&self, credential: &Credential) -> Result<(), FileError> {
        // Both lie beside their places before either moves: an interruption leaves what `finish_writing` needs.
        let certificate = stage(&self.certificate, &credential.certificate, 0o644)?;
        let key = stage(&self.key, &credential.key, 0o600)?;
        put(&key, &self.key)?;
        put(&certificate, &self.certificate)
    }

    /// Ends a writing that was interrupted after the key: `fits` judges the key with the certificate that lies beside its place.
    pub(crate) fn finish_writing<T>(&self, pem: &mut Pem, fits: impl FnOnce(&Pem) -> Option<T>) -> Option<T> {
        let beside = beside(&self.certificate);
        pem.certificate = read(&beside).ok()?;
        let fits = fits(pem)?;
        put(&beside, &self.certificate).ok()?;
        Some(fits)
    }
}

/// Reads a certificate and its key.
///
/// # Errors
///
/// As [`Files::read`].
pub fn read_credential(certificate: &Path, key: &Path) -> Result<Credential, FileError> {
    Ok(Credential {
        certificate: read(certificate)?,
        key: read_key(key)?,
    })
}

/// Reads a file of certificates.
///
/// # Errors
///
/// It cannot be read, or is too long.
pub fn read(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        let path = path.to_owned();
        return Err(FileError::TooLong { path, bytes });
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Reads a private key.
///
/// # Errors
///
/// It cannot be read, is too long, or others can read it.
pub fn read_key(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    };
    let mode = std::fs::metadata(path).map_err(failed)?.mode() & 0o7777;
    // systemd gives its credentials to a service by an access list, which shows as rights of the group.
    let is_credential = std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|folder| path.starts_with(folder));
    let forbidden = if is_credential { OTHERS & 0o007 } else { OTHERS };
    if mode & forbidden != 0 {
        let path = path.to_owned();
        return Err(FileError::Readable { path, mode });
    }
    read(path)
}

/// Writes a file beside its place and moves it there.
///
/// # Errors
///
/// The system refuses; the old file is as it was.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    put(&stage(path, text, mode)?, path)
}

/// The place beside a file where the next one is written.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    beside.into()
}

fn stage(path: &Path, text: &str, mode: u32) -> Result<PathBuf, FileError> {
    let beside = beside(path);
    let written = (|| {
        // Left over from a process that was killed; it may have other rights.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })();
    written.map_err(|source| FileError::Io {
        verb: "write",
        path: beside.clone(),
        source,
    })?;
    Ok(beside)
}

fn put(staged: &Path, path: &Path) -> Result<(), FileError> {
    std::fs::rename(staged, path).map_err(|source| FileError::Io {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::in_folder(folder.path());
        write(&files.trust, "trust", 0o644).unwrap();
        let credential = Credential {
            certificate: "certificate".to_owned(),
            key: "hush".to_owned(),
        };
        files.write(&credential).unwrap();
        let pem = files.read().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (&*pem.certificate, &*pem.key, &*pem.trust),
            ("certificate", "hush", "trust")
        );
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o640)).unwrap();
        let Err(error) = files.read() else {
            panic!("the key was read");
        };
        assert!(error.to_string().contains("(mode 0640)"), "{error}");
        assert!(
            error
                .to_string()
                .ends_with(&format!("chmod 600 {}", files.key.display())),
            "{error}"
        );
        assert!(!format!("{credential:?}").contains("hush"));
    }
}
