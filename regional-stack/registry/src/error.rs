//! The faults of a fetch.

use std::{io, path::Path};

use url::Url;

use crate::{moonshine::ConvertError, texts};

/// A model could not be fetched. The model that was there is untouched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The model is part of Meridian.
    #[error("{}", texts::ships(name, folder))]
    Ships {
        /// The model.
        name: String,
        /// Its folder.
        folder: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{}", texts::disk(path, source))]
    Disk {
        /// The file or folder.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
    /// Another process fetches into the same folder.
    #[error("{}", texts::busy(folder))]
    Busy {
        /// The folder of models.
        folder: String,
    },
    /// The server gave no answer, or one that refuses.
    #[error("{}", texts::network(what, reason))]
    Network {
        /// The address.
        what: String,
        /// The cause.
        reason: String,
    },
    /// The address of the index does not lead to one.
    #[error("{}", texts::no_index(index))]
    Index {
        /// The address.
        index: String,
    },
    /// The index has no such file.
    #[error("{}", texts::missing(file, index))]
    Missing {
        /// Name of the file.
        file: String,
        /// Address of the package's page.
        index: String,
    },
    /// The connection ended early.
    #[error("{}", texts::cut(what, *have, *bytes))]
    Cut {
        /// The address.
        what: String,
        /// Bytes that came.
        have: u64,
        /// Size of the file.
        bytes: u64,
    },
    /// The server sends more than the file has.
    #[error("{}", texts::too_long(what, *bytes))]
    TooLong {
        /// The address.
        what: String,
        /// The limit.
        bytes: u64,
    },
    /// A file is another one than the manifest names.
    #[error("{}", texts::other_hash(what, found, wanted))]
    Hash {
        /// The file.
        what: String,
        /// The hash in the manifest.
        wanted: String,
        /// The hash of the file.
        found: String,
    },
    /// The package lacks a file, or is no archive.
    #[error("{}", texts::bad_archive(package, what))]
    Archive {
        /// The package.
        package: String,
        /// The fault.
        what: String,
    },
    /// The files cannot be converted.
    #[error("{}", texts::cannot_convert(package, source))]
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
