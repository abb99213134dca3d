//! The faults of a fetch. Each text says what is wrong, what became of the model, and what to type.

use std::{io, path::Path};

use url::Url;

use crate::moonshine::ConvertError;

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
    #[error("cannot use {path}: {source}; check the space (`df`) and the rights of the folder (`ls -l`)")]
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
    /// The server gave no answer, or one that refuses.
    #[error(
        "cannot get {what}: {reason}; check the network and the address of the index (--index, PIP_INDEX_URL), and run the command again: it goes on where it stopped"
    )]
    Network {
        /// The address.
        what: String,
        /// The cause.
        reason: String,
    },
    /// The address of the index does not lead to one.
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
    #[error(
        "cannot convert {package}: {source}; the model that was there stays. Name a package of the manifest's kind, or update Meridian"
    )]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_says_what_is_wrong_and_what_to_type() {
        let text = || "moonshine-tiny-en".to_owned();
        let faults = [
            FetchError::Ships {
                name: text(),
                folder: text(),
            },
            FetchError::Disk {
                path: text(),
                source: io::ErrorKind::StorageFull.into(),
            },
            FetchError::Busy { folder: text() },
            FetchError::Network {
                what: text(),
                reason: text(),
            },
            FetchError::Index { index: text() },
            FetchError::Missing {
                file: text(),
                index: text(),
            },
            FetchError::Cut {
                what: text(),
                have: 1,
                bytes: 2,
            },
            FetchError::TooLong { what: text(), bytes: 2 },
            FetchError::Hash {
                what: text(),
                wanted: text(),
                found: text(),
            },
            FetchError::Archive {
                package: text(),
                what: text(),
            },
            FetchError::Convert {
                package: text(),
                source: ConvertError::Tokens(7),
            },
        ];
        for fault in faults {
            let text = fault.to_string();
            assert!(text.contains("; ") && !text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
