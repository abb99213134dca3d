//! The hash of a file.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::error::FetchError;

/// SHA-256 of a file in hexadecimal.
pub(crate) fn hash_of(path: &Path) -> Result<String, FetchError> {
    let hash = || -> io::Result<String> {
        let mut file = fs::File::open(path)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex::encode(hasher.finalize())),
                read => hasher.update(&buffer[..read]),
            }
        }
    };
    hash().map_err(FetchError::disk(path))
}
