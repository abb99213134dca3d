//! Encrypted files of the command: an audit log that leaves the machine names people, addresses and plans.

use std::{io, path::Path};

use daemon::sealed::{Keys, is_sealed, open, seal};

use crate::texts;

/// Writes a file, encrypted to the keys in a key file if there is one.
pub(crate) fn write(file: &Path, plain: &[u8], encrypt_to: Option<&Path>) -> anyhow::Result<()> {
    let sealed;
    let bytes = match encrypt_to {
        None => plain,
        Some(keys) => {
            sealed = seal(plain, &Keys::in_file(keys)?)?;
            &sealed[..]
        }
    };
    Ok(std::fs::write(file, bytes)?)
}

/// Reads a file, which may be encrypted.
pub(crate) fn read(file: &Path, keys: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(file)?;
    match keys {
        _ if !is_sealed(&bytes) => Ok(bytes),
        Some(keys) => Ok(open(&bytes, &Keys::in_file(keys)?)?),
        None => Err(io::Error::other(texts::SEALED_NEEDS_KEY).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_encrypted_file_needs_its_key_and_a_plain_one_needs_none() {
        let place = tempfile::tempdir().unwrap();
        let (file, keys) = (place.path().join("log"), place.path().join("keys"));
        std::fs::write(&keys, "01".repeat(32)).unwrap();
        std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o600)).unwrap();
        write(&file, b"a log", Some(&keys)).unwrap();
        let error = read(&file, None).unwrap_err().to_string();
        assert!(error.contains("--key KEYFILE"), "{error}");
        assert_eq!(read(&file, Some(&keys)).unwrap(), b"a log");
        write(&file, b"a log", None).unwrap();
        assert_eq!(read(&file, None).unwrap(), b"a log");
    }
}
