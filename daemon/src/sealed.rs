//! Encrypted files: what a file says about people stays with those who have its key, also on a lost disk, a shared volume or a backup.
//!
//! Each file has a key of its own, which a key service wraps; the file begins with a line that holds it. The content follows in chunks
//! of 64 KiB, sealed with AES-256-GCM in the manner of STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, 2015): the nonce counts the chunks and
//! marks the last one, so that a file that was cut short, extended or put in another order does not open. The first line is bound to
//! every chunk.
//!
//! Own code around ring, which is here already: the crate age brings 59 others.
//!
//! Why it is so: docs/decisions/33-files-at-rest.md.

use std::{fmt, path::Path, sync::Arc};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{secrets::Secrets, texts};

/// The first word of an encrypted file, with the version of this form.
const MAGIC: &str = "meridian-sealed-1";
/// Length of a chunk before it is sealed.
const CHUNK_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// Longest first line: the magic word, the name of a key, and a wrapped key in hex.
const LINE_BYTES_MAX: usize = 256;

/// Bytes that encryption adds to a file of so many bytes, at most.
pub const fn added_bytes_max(plain_bytes: usize) -> usize {
    LINE_BYTES_MAX + TAG_BYTES * (plain_bytes / CHUNK_BYTES + 1)
}

/// Wraps the keys of files. A key service of a cloud does so without giving its own key away.
pub trait KeyService {
    /// Wraps the key of a file with the newest key of the service. Returns the name of that key, too.
    ///
    /// # Errors
    ///
    /// The service has no key, or does not answer.
    fn wrap(&self, key: &[u8; KEY_BYTES]) -> Result<(String, Vec<u8>), SealError>;
    /// Unwraps the key of a file that the key of this name wrapped.
    ///
    /// # Errors
    ///
    /// The service has no key of this name, or another key wrapped it.
    fn unwrap(&self, name: &str, wrapped: &[u8]) -> Result<[u8; KEY_BYTES], SealError>;
}

/// A key service of one key, or the new and the old one: those of a file that only its owner can read, or of a configuration.
#[derive(Clone)]
pub struct Keys(Arc<[(String, LessSafeKey)]>);

/// A file cannot be encrypted or opened. No variant holds a key.
#[derive(Debug)]
pub enum SealError {
    /// The key file is no good.
    Key(String),
    /// No key of this name is known; those are.
    Unknown(String, Vec<String>),
    /// The text is not what was sealed.
    Changed,
    /// The system has no random numbers.
    Random,
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(problem) => f.write_str(problem),
            Self::Unknown(wanted, known) => f.write_str(&texts::sealed_with_another_key(wanted, known)),
            Self::Changed => f.write_str(texts::SEALED_CHANGED),
            Self::Random => f.write_str(texts::NO_RANDOM_NUMBERS),
        }
    }
}

impl std::error::Error for SealError {}

impl Keys {
    /// Reads a key file.
    ///
    /// # Errors
    ///
    /// There is no such file, others can read it, or its keys are none.
    pub fn in_file(path: &Path) -> Result<Self, SealError> {
        let secrets = Secrets::in_file(path).map_err(SealError::Key)?;
        Self::of(&secrets).map_err(|bytes| SealError::Key(texts::sealing_key_has_other_length(path, bytes, KEY_BYTES)))
    }

    /// Keys for AES-256; the error is the length of a key that has another one.
    fn of(secrets: &Secrets) -> Result<Self, usize> {
        let keys = [Some(&secrets.signs), secrets.also_accepted.as_ref()];
        let keys = keys.into_iter().flatten().map(|key| {
            let unbound = UnboundKey::new(&AES_256_GCM, key).map_err(|_| key.len())?;
            let name = hex::encode(&digest(&SHA256, key).as_ref()[..4]);
            Ok((name, LessSafeKey::new(unbound)))
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// Whether the newest key wrapped that of a file. A file of the old one must be written anew before operators take that key away.
    pub fn is_newest_of(&self, file: &[u8]) -> bool {
        let newest = self.0.first().map(|(name, _)| format!("{MAGIC} {name} "));
        newest.is_some_and(|start| file.starts_with(start.as_bytes()))
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secrets = Secrets::deserialize(deserializer)?;
        Self::of(&secrets).map_err(|bytes| D::Error::custom(texts::key_has_other_length(bytes, KEY_BYTES)))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(hidden)")
    }
}

impl KeyService for Keys {
    fn wrap(&self, key: &[u8; KEY_BYTES]) -> Result<(String, Vec<u8>), SealError> {
        let (name, with) = self.0.first().ok_or(SealError::Random)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = key.to_vec();
        let aad = Aad::from(name.as_bytes());
        with.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .map_err(|_| SealError::Random)?;
        Ok((name.clone(), [&nonce[..], &sealed].concat()))
    }

    fn unwrap(&self, name: &str, wrapped: &[u8]) -> Result<[u8; KEY_BYTES], SealError> {
        let known = || self.0.iter().map(|(name, _)| name.clone()).collect();
        let (_, with) = self
            .0
            .iter()
            .find(|(known, _)| known == name)
            .ok_or_else(|| SealError::Unknown(name.to_owned(), known()))?;
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Changed)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = with.open_in_place(nonce, Aad::from(name.as_bytes()), &mut sealed);
        opened
            .ok()
            .and_then(|key| <[u8; KEY_BYTES]>::try_from(&*key).ok())
            .ok_or(SealError::Changed)
    }
}

/// Whether bytes are an encrypted file.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes
        .strip_prefix(MAGIC.as_bytes())
        .is_some_and(|rest| rest.first() == Some(&b' '))
}

/// Encrypts a file.
///
/// # Errors
///
/// There is no key, or no random number.
pub fn seal(plain: &[u8], keys: &dyn KeyService) -> Result<Vec<u8>, SealError> {
    let mut key = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut key).map_err(|_| SealError::Random)?;
    let (name, wrapped) = keys.wrap(&key)?;
    let line = format!("{MAGIC} {name} {}\n", hex::encode(wrapped));
    let with = cipher(&key);
    let mut file = line.clone().into_bytes();
    // An empty file has one chunk, too: its end must be proven like any other.
    let count = plain.len().div_ceil(CHUNK_BYTES).max(1);
    for number in 0..count {
        let from = number * CHUNK_BYTES;
        let mut chunk = plain[from..plain.len().min(from + CHUNK_BYTES)].to_vec();
        let nonce = nonce(number, number + 1 == count).ok_or(SealError::Random)?;
        with.seal_in_place_append_tag(nonce, Aad::from(line.as_bytes()), &mut chunk)
            .map_err(|_| SealError::Random)?;
        file.extend_from_slice(&chunk);
    }
    Ok(file)
}

/// Opens an encrypted file. Nothing of it is returned before all of it is known to be whole.
///
/// # Errors
///
/// It is not whole, or none of the keys opens it.
pub fn open(file: &[u8], keys: &dyn KeyService) -> Result<Vec<u8>, SealError> {
    let end = file.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n');
    let (line, rest) = file.split_at(end.ok_or(SealError::Changed)? + 1);
    let text = std::str::from_utf8(line).map_err(|_| SealError::Changed)?;
    let mut words = text.trim_end_matches('\n').split(' ');
    let (Some(MAGIC), Some(name), Some(wrapped), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(SealError::Changed);
    };
    let wrapped = hex::decode(wrapped).map_err(|_| SealError::Changed)?;
    let with = cipher(&keys.unwrap(name, &wrapped)?);
    let mut plain = Vec::with_capacity(rest.len());
    let mut chunks = rest.chunks(CHUNK_BYTES + TAG_BYTES).enumerate().peekable();
    if chunks.peek().is_none() {
        return Err(SealError::Changed);
    }
    while let Some((number, chunk)) = chunks.next() {
        let nonce = nonce(number, chunks.peek().is_none()).ok_or(SealError::Changed)?;
        let mut chunk = chunk.to_vec();
        let opened = with.open_in_place(nonce, Aad::from(line), &mut chunk);
        plain.extend_from_slice(opened.map_err(|_| SealError::Changed)?);
    }
    Ok(plain)
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has the length of AES-256"))
}

/// Seven zeros, since the key is of this file alone; the number of the chunk; and whether it is the last. `None` beyond 2^32 chunks.
fn nonce(number: usize, is_last: bool) -> Option<Nonce> {
    let mut nonce = [0; NONCE_LEN];
    nonce[7..11].copy_from_slice(&u32::try_from(number).ok()?.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Some(Nonce::assume_unique_for_key(nonce))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Files in a folder.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn key_file(&self, name: &str, keys: &[u8]) -> std::path::PathBuf {
            let path = self.0.path().join(name);
            let lines: Vec<String> = keys.iter().map(|key| hex::encode([*key; KEY_BYTES])).collect();
            std::fs::write(&path, lines.join("\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            path
        }

        fn keys(&self, keys: &[u8]) -> Keys {
            Keys::in_file(&self.key_file("keys", keys)).unwrap()
        }
    }

    #[test]
    fn a_file_of_any_length_opens_with_its_key() {
        let place = Place::new();
        let keys = place.keys(&[1]);
        for length in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            2 * CHUNK_BYTES,
            200_000,
        ] {
            let plain: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sealed = seal(&plain, &keys).unwrap();
            assert!(is_sealed(&sealed));
            assert!(
                length < 100 || !sealed.windows(16).any(|window| window == &plain[..16]),
                "nothing shows"
            );
            assert_eq!(open(&sealed, &keys).unwrap(), plain, "{length} bytes");
        }
    }

    #[test]
    fn a_changed_shortened_or_rearranged_file_does_not_open() {
        let place = Place::new();
        let keys = place.keys(&[1]);
        let plain = vec![7; 3 * CHUNK_BYTES];
        let sealed = seal(&plain, &keys).unwrap();
        let start = sealed.len() - 3 * (CHUNK_BYTES + TAG_BYTES);
        let chunk = |number: usize| &sealed[start + number * (CHUNK_BYTES + TAG_BYTES)..][..CHUNK_BYTES + TAG_BYTES];
        let line = &sealed[..start];
        let other = seal(&plain, &keys).unwrap();
        let cases: [(&str, Vec<u8>); 8] = [
            ("nothing", Vec::new()),
            ("the line alone", line.to_vec()),
            ("without the last chunk", [line, chunk(0), chunk(1)].concat()),
            ("with one chunk twice", [line, chunk(0), chunk(0), chunk(2)].concat()),
            ("in another order", [line, chunk(1), chunk(0), chunk(2)].concat()),
            ("with more behind it", [&sealed[..], chunk(2)].concat()),
            ("a byte less", sealed[..sealed.len() - 1].to_vec()),
            (
                "under the line of another file",
                [&other[..start], &sealed[start..]].concat(),
            ),
        ];
        for (what, file) in cases {
            assert!(matches!(open(&file, &keys), Err(SealError::Changed)), "{what}");
        }
        for at in (0..sealed.len()).step_by(997).chain(0..start) {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&changed, &keys).is_err(), "byte {at}");
        }
    }

    #[test]
    fn keys_are_exchanged_with_both_in_the_file_and_a_foreign_key_is_named() {
        let place = Place::new();
        let old = seal(b"plan", &place.keys(&[1])).unwrap();
        let both = place.keys(&[2, 1]);
        assert_eq!(open(&old, &both).unwrap(), b"plan");
        let new = seal(b"plan", &both).unwrap();
        assert_eq!(open(&new, &place.keys(&[2])).unwrap(), b"plan");
        assert!(both.is_newest_of(&new) && !both.is_newest_of(&old));
        let error = open(&new, &place.keys(&[1])).unwrap_err().to_string();
        assert!(
            error.contains("encrypted with the key") && error.contains("name the file"),
            "{error}"
        );
    }

    #[test]
    fn a_key_of_the_wrong_length_is_refused_with_the_remedy() {
        let place = Place::new();
        let keys = place.0.path().join("short");
        std::fs::write(&keys, "00ff").unwrap();
        std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o600)).unwrap();
        let error = Keys::in_file(&keys).err().unwrap().to_string();
        assert!(error.contains("has 2 bytes and needs 32; make one: "), "{error}");
        let error = serde_json::from_value::<Keys>("00ff".into()).unwrap_err().to_string();
        assert!(error.contains("has 2 bytes and needs 32; make one with"), "{error}");
    }

    #[test]
    fn encryption_adds_no_more_than_it_says() {
        let keys = Place::new().keys(&[1]);
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 5 * CHUNK_BYTES + 1] {
            let added = seal(&vec![0; length], &keys).unwrap().len() - length;
            assert!(added <= added_bytes_max(length), "{added} for {length}");
        }
    }
}
