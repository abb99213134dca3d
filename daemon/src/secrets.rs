//! Secrets of a configuration: keys as text or in files of their own, two at once while one is exchanged, and none that others can
//! read.
//!
//! Written by hand, without the crate secrecy: these bytes become a key of HMAC at once, and what would have to be
//! wiped lies inside of that.

use std::{
    cell::RefCell,
    env, fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::texts;

/// The folder in which systemd lays the credentials of a service (LoadCredential=), as configurations write it.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Rights of other users on a file.
const OTHERS: u32 = 0o007;
/// Rights of others and of the file's group.
const OTHERS_AND_GROUP: u32 = 0o077;
/// Largest key file: two keys and a comment have a tenth of it.
const FILE_BYTES_MAX: u64 = 4096;
/// Keys that everybody can read in configs/. A process that used one would believe everybody.
const PUBLISHED: [&str; 2] = [
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100",
];

/// A key, or two during an exchange: `"HEX"`, `["NEW", "OLD"]`, or `{ file = "PATH" }` for a file with one or two lines in hex.
/// `Debug` output hides it, and errors never repeat it, because errors are logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The key that signs.
    pub signs: Vec<u8>,
    /// A second key whose signatures are accepted: the old key, or one that other processes sign with already.
    pub also_accepted: Option<Vec<u8>>,
}

/// The facts about the configuration file that this thread reads now. A process is strict about its own: tests and examples are
/// read without this.
struct Reading {
    folder: PathBuf,
    /// Whether a key stands in the file itself.
    has_keys: bool,
}

thread_local! {
    // Serde hands no context to a value, and a problem must name the line of its key.
    static READING: RefCell<Option<Reading>> = const { RefCell::new(None) };
}

/// Calls `read`, in which secrets are those of a process whose configuration lies in `folder`. Says whether the configuration itself
/// holds a key.
pub(crate) fn of_a_process<T>(folder: &Path, read: impl FnOnce() -> T) -> (T, bool) {
    let reading = Reading {
        folder: folder.to_owned(),
        has_keys: false,
    };
    READING.set(Some(reading));
    let result = read();
    let has_keys = READING.take().is_some_and(|reading| reading.has_keys);
    (result, has_keys)
}

/// A path of a configuration in `folder`: relative to it, or below `$CREDENTIALS_DIRECTORY`.
pub(crate) fn place(folder: &Path, path: &Path) -> Result<PathBuf, SecretError> {
    match path.strip_prefix(format!("${CREDENTIALS}")) {
        Ok(name) => credentials().map(|credentials| credentials.join(name)),
        Err(_) => Ok(folder.join(path)),
    }
}

fn credentials() -> Result<PathBuf, SecretError> {
    env::var_os(CREDENTIALS)
        .map(PathBuf::from)
        .ok_or(SecretError::NoCredentials)
}

/// Why a secret is not usable.
#[derive(Debug)]
pub enum SecretError {
    /// `$CREDENTIALS_DIRECTORY` is not set.
    NoCredentials,
    /// A file cannot be read.
    Io(PathBuf, io::Error),
    /// Others can read a file: its mode.
    Readable(PathBuf, u32),
    /// A file is longer than any key.
    TooLong(PathBuf, u64),
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::NoCredentials => texts::no_credentials(CREDENTIALS),
            Self::Io(path, error) if error.kind() == io::ErrorKind::NotFound => texts::no_key_file(path),
            Self::Io(path, error) => texts::cannot_read_key(path, error),
            Self::Readable(path, mode) => texts::key_readable(path, *mode),
            Self::TooLong(path, bytes) => texts::key_file_too_long(path, *bytes),
        };
        f.write_str(&text)
    }
}

impl std::error::Error for SecretError {}

/// Refuses a file that is there and that every user of the machine can read. Its group may: web servers share their keys so.
///
/// # Errors
///
/// Every user can read the file.
pub fn refuse_readable_by_all(path: &Path) -> Result<(), SecretError> {
    match fs::metadata(path) {
        Ok(file) if file.mode() & OTHERS != 0 => Err(SecretError::Readable(path.to_owned(), file.mode() & 0o7777)),
        _ => Ok(()),
    }
}

fn read_private(path: &Path) -> Result<String, SecretError> {
    let failed = |error| SecretError::Io(path.to_owned(), error);
    let file = fs::metadata(path).map_err(failed)?;
    // systemd gives its credentials to a service by an access list, which shows as rights of the group; nobody else reaches them.
    let is_credential = env::var_os(CREDENTIALS).is_some_and(|folder| path.starts_with(folder));
    let forbidden = if is_credential { OTHERS } else { OTHERS_AND_GROUP };
    if file.mode() & forbidden != 0 {
        return Err(SecretError::Readable(path.to_owned(), file.mode() & 0o7777));
    }
    if file.len() > FILE_BYTES_MAX {
        return Err(SecretError::TooLong(path.to_owned(), file.len()));
    }
    fs::read_to_string(path).map_err(failed)
}

impl<'de> Deserialize<'de> for Secrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct InFile {
            file: PathBuf,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(String),
            Some(Vec<String>),
            File(InFile),
        }
        let written = Written::deserialize(deserializer).map_err(|_| D::Error::custom(texts::KEY_SHAPE))?;
        let keys = match written {
            Written::One(key) => vec![key],
            Written::Some(keys) => keys,
            Written::File(InFile { file }) => return Self::in_file(&file).map_err(D::Error::custom),
        };
        READING.with_borrow_mut(|reading| {
            if let Some(reading) = reading {
                reading.has_keys = true;
            }
        });
        Self::of(&keys).map_err(D::Error::custom)
    }
}

impl Secrets {
    /// Reads a key file. The error says what is wrong with it and what to type.
    ///
    /// # Errors
    ///
    /// There is no such file, others can read it, or it holds no key.
    pub fn in_file(path: &Path) -> Result<Self, String> {
        let folder = READING.with_borrow(|reading| reading.as_ref().map(|it| it.folder.clone()));
        let path = place(&folder.unwrap_or_default(), path).map_err(|error| error.to_string())?;
        let text = read_private(&path).map_err(|error| error.to_string())?;
        let lines = text.lines().map(str::trim);
        let keys: Vec<String> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        if keys.is_empty() {
            return Err(texts::key_file_empty(&path));
        }
        // A file is a person's own, so the published keys of the examples have no business in it.
        Self::checked(&keys, true).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn of(keys: &[String]) -> Result<Self, String> {
        Self::checked(keys, READING.with_borrow(Option::is_some))
    }

    fn checked(keys: &[String], is_strict: bool) -> Result<Self, String> {
        let decode = |text: &String| {
            if is_strict && PUBLISHED.contains(&text.to_ascii_lowercase().as_str()) {
                return Err(texts::key_is_published());
            }
            hex::decode(text).map_err(|_| texts::key_is_not_hex())
        };
        let mut keys = keys.iter().map(decode).collect::<Result<Vec<_>, _>>()?.into_iter();
        match (keys.next(), keys.next(), keys.next()) {
            (Some(signs), also_accepted, None) => Ok(Self { signs, also_accepted }),
            _ => Err(texts::KEY_SHAPE.to_owned()),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(hidden)")
    }
}
