//! The last good snapshots on disk, from which a node serves when it starts without a control plane. Two are stored, so
//! that damage to the newer one costs one generation and not the service.
//!
//! A checksum finds damage. A code with a key of this node finds a plan that another writer put there, or that belongs to another node.
//! The key lies beside the plans, so it protects from those who can write there and cannot read this user's files; docs/security.md.

use std::{
    fs::{File, OpenOptions},
    io::{Error, ErrorKind, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ring::{
    hmac::{self, HMAC_SHA256},
    rand::{SecureRandom as _, SystemRandom},
};
use topology::{PlanNumber, Snapshot};

use crate::texts;

const KEY_BYTES: usize = 32;
/// Rights of others and of the file's group.
const OTHERS_AND_GROUP: u32 = 0o077;
/// The text before what a code is of, so that the key is good for nothing else.
const PURPOSE: &[u8] = b"meridian last-good plan 1\n";

/// A file with one snapshot (its checksum, a space, its code, a newline, its document), and a second file with the snapshot before it.
#[derive(Debug, Clone)]
pub struct LastGood(PathBuf);

impl LastGood {
    /// Uses this file, and files of the same name with other extensions. Their folder must exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The path of the newest snapshot.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn previous(&self) -> PathBuf {
        self.0.with_extension("previous")
    }

    fn key_file(&self) -> PathBuf {
        self.0.with_extension("key")
    }

    /// Reads the newest undamaged snapshot of this node. Renames any other file and logs it. `None` if no good file is left: a node
    /// without a plan can still get one from a control plane.
    ///
    /// A node without a key has never written a code: it takes what it finds, and its next plan has one.
    pub fn load(&self) -> Option<Snapshot> {
        let key = match read_key(&self.key_file()) {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(path = %self.key_file().display(), %error, "{}", texts::NO_PLAN_KEY);
                return None;
            }
        };
        let found = [&self.0, &self.previous()].map(|path| read_or_set_aside(path, key.as_ref()));
        found
            .into_iter()
            .flatten()
            .max_by_key(|snapshot| snapshot.plan.number())
    }

    /// Stores a snapshot, and keeps the one before it. A crash at any point leaves at least one of them whole. The
    /// stored plan never goes back: an older snapshot is an error, and storing the same one again changes nothing.
    pub fn save(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.adopt()?;
        let key = made_key(&self.key_file())?;
        let kept = self.load().map(|kept| kept.plan.number()).unwrap_or_default();
        let number = snapshot.plan.number();
        if number < kept {
            let text = texts::older_than_on_disk(number, kept);
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        if number == kept && number != PlanNumber::default() {
            return Ok(());
        }
        self.write(snapshot, &key)
    }

    /// Gives the plans on disk a code, if they are from before codes. A node calls this when it starts.
    pub fn adopt(&self) -> Result<(), Error> {
        if self.key_file().exists() {
            return Ok(());
        }
        let kept = self.load();
        let key = made_key(&self.key_file())?;
        let Some(kept) = kept else {
            return Ok(());
        };
        // Twice, so that the one before has a code as well.
        self.write(&kept, &key)?;
        self.write(&kept, &key)?;
        tracing::warn!(path = %self.0.display(), plan = %kept.plan.number(), "{}", texts::PLAN_WITHOUT_CODE);
        Ok(())
    }

    fn write(&self, snapshot: &Snapshot, key: &hmac::Key) -> Result<(), Error> {
        let (document, checksum) = snapshot.encode();
        let unfinished = self.0.with_extension("unfinished");
        let mut file = File::create(&unfinished)?;
        let code = hex::encode(hmac::sign(key, &coded(&document)));
        file.write_all(format!("{checksum} {code}\n").as_bytes())?;
        file.write_all(&document)?;
        file.sync_all()?;
        // `load` has renamed a damaged file, so only an undamaged one replaces the previous file.
        match std::fs::rename(&self.0, self.previous()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::rename(&unfinished, &self.0)?;
        // The names, too, must survive a power cut.
        match self.0.parent() {
            Some(folder) if folder != Path::new("") => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }
}

/// The bytes that a code is of.
fn coded(document: &[u8]) -> Vec<u8> {
    [PURPOSE, document].concat()
}

fn is_code(key: &hmac::Key, document: &[u8], written: &str) -> bool {
    hex::decode(written).is_ok_and(|code| hmac::verify(key, &coded(document), &code).is_ok())
}

/// The key of this node, if it has one.
fn read_key(path: &Path) -> Result<Option<hmac::Key>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mode = file.metadata()?.mode();
    if mode & OTHERS_AND_GROUP != 0 {
        return Err(Error::other(texts::plan_key_is_readable(mode & 0o7777)));
    }
    let mut text = String::new();
    file.take(2 * KEY_BYTES as u64 + 2).read_to_string(&mut text)?;
    match hex::decode(text.trim_end()) {
        Ok(key) if key.len() == KEY_BYTES => Ok(Some(hmac::Key::new(HMAC_SHA256, &key))),
        _ => Err(Error::other(texts::NOT_A_PLAN_KEY)),
    }
}

/// The key of this node, which is made if it has none. A crash leaves a whole key or none.
fn made_key(path: &Path) -> Result<hmac::Key, Error> {
    if let Some(key) = read_key(path)? {
        return Ok(key);
    }
    let mut key = [0; KEY_BYTES];
    let random = SystemRandom::new().fill(&mut key);
    random.map_err(|_| Error::other(texts::NO_RANDOM_NUMBERS))?;
    let unfinished = path.with_extension("key-unfinished");
    let _ = std::fs::remove_file(&unfinished);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(format!("{}\n", hex::encode(key)).as_bytes())?;
    file.sync_all()?;
    // Of two processes that share the folder for a moment, the first one's key stays.
    match std::fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::remove_file(&unfinished)?;
    read_key(path)?.ok_or_else(|| ErrorKind::NotFound.into())
}

fn read_or_set_aside(path: &Path, key: Option<&hmac::Key>) -> Option<Snapshot> {
    let shown = path.display();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %shown, %error, "{}", texts::CANNOT_LOAD);
            return None;
        }
    };
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, document) = bytes.split_at(split);
    let document = document.get(1..).unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let (checksum, written) = line.split_once(' ').unwrap_or((&line, ""));
    match Snapshot::decode(document, checksum) {
        Ok(_) if key.is_some_and(|key| !is_code(key, document, written)) => {
            tracing::error!(path = %shown, "{}", texts::PLAN_OF_ANOTHER);
            let _ = std::fs::rename(path, path.with_extension("foreign"));
            None
        }
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            tracing::warn!(path = %shown, %error, "{}", texts::DAMAGED);
            // The damaged file helps an investigation. Failing to keep it does no harm.
            let _ = std::fs::rename(path, path.with_extension("damaged"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::fixtures::three_primaries;

    fn generation(generation: u64) -> Snapshot {
        let mut snapshot = three_primaries();
        snapshot.plan.generation = generation;
        snapshot
    }

    fn damage(path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_saved_plan_is_found_again_and_a_damaged_one_is_not_served() {
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        assert_eq!(file.load(), None);
        file.save(&three_primaries()).unwrap();
        assert_eq!(file.load(), Some(three_primaries()));

        damage(file.path());
        assert_eq!(file.load(), None);
        assert!(folder.path().join("plan.damaged").exists());
        for nonsense in [&b""[..], b"\n", b"no newline"] {
            std::fs::write(file.path(), nonsense).unwrap();
            assert_eq!(file.load(), None);
        }
    }

    #[test]
    fn damage_to_the_newest_plan_costs_one_generation() {
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        for number in 1..=3 {
            file.save(&generation(number)).unwrap();
        }
        damage(file.path());
        assert_eq!(file.load(), Some(generation(2)));
        // The next plan replaces the damaged file, not the good one.
        file.save(&generation(4)).unwrap();
        damage(file.path());
        assert_eq!(file.load(), Some(generation(2)));
    }

    #[test]
    fn a_crash_between_the_two_names_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        file.save(&generation(1)).unwrap();
        std::fs::rename(file.path(), folder.path().join("plan.previous")).unwrap();
        assert_eq!(file.load(), Some(generation(1)));
        file.save(&generation(2)).unwrap();
        assert_eq!(file.load(), Some(generation(2)));
    }

    /// A writer who knows no key can compute a checksum.
    fn forge(path: &Path, snapshot: &Snapshot, code: &str) {
        let (document, checksum) = snapshot.encode();
        std::fs::write(path, [format!("{checksum}{code}\n").as_bytes(), &document].concat()).unwrap();
    }

    #[test]
    fn a_plan_that_another_wrote_is_not_taken() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = LastGood::at(folder.path().join("plan"));
        let others = LastGood::at(elsewhere.path().join("plan"));
        others.save(&generation(9)).unwrap();
        for number in 1..=2 {
            file.save(&generation(number)).unwrap();
        }
        let written = std::fs::read(file.path()).unwrap();
        let own_code = written.split(|byte| *byte == b'\n').next().unwrap();
        let own_code = std::str::from_utf8(own_code).unwrap().split_once(' ').unwrap().1;
        for code in [
            String::new(),
            " ".to_owned(),
            " 00ff".to_owned(),
            format!(" {own_code}"),
        ] {
            forge(file.path(), &generation(9), &code);
            assert_eq!(file.load(), Some(generation(1)), "{code:?}");
        }
        std::fs::copy(others.path(), file.path()).unwrap();
        assert_eq!(file.load(), Some(generation(1)), "of another node");
        assert!(folder.path().join("plan.foreign").exists(), "for an investigation");
        file.save(&generation(3)).unwrap();
        assert_eq!(file.load(), Some(generation(3)));
    }

    #[test]
    fn plans_from_before_codes_are_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        forge(file.path(), &generation(4), "");
        assert_eq!(file.load(), Some(generation(4)), "nobody makes a key by looking");
        assert_eq!(file.load(), Some(generation(4)));
        file.adopt().unwrap();
        assert_eq!(file.load(), Some(generation(4)));
        let written = std::fs::read_to_string(file.path()).unwrap();
        assert!(written.lines().next().unwrap().contains(' '), "it has a code now");
        file.adopt().unwrap();
        forge(file.path(), &generation(5), "");
        assert_eq!(file.load(), Some(generation(4)), "not a second time");

        // A node that has no time to start: the first plan that it saves does the same.
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        forge(file.path(), &generation(4), "");
        file.save(&generation(5)).unwrap();
        damage(file.path());
        assert_eq!(file.load(), Some(generation(4)));
    }

    #[test]
    fn the_key_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        file.save(&generation(1)).unwrap();
        let key = folder.path().join("plan.key");
        assert_eq!(std::fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&key).unwrap();
        for (mode, content) in [(0o640, text.as_str()), (0o600, "zz"), (0o600, "")] {
            std::fs::write(&key, content).unwrap();
            std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(file.load(), None, "{mode:o} {content:?}");
            assert!(file.save(&generation(2)).is_err());
        }
        std::fs::write(&key, text).unwrap();
        assert_eq!(file.load(), Some(generation(1)), "nothing was renamed meanwhile");
    }

    #[test]
    fn the_saved_plan_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        file.save(&generation(5)).unwrap();
        file.save(&generation(5)).unwrap();
        let error = file.save(&generation(4)).unwrap_err().to_string();
        assert!(error.contains("plan 4@1 is older than plan 5@1"), "{error}");
        assert_eq!(file.load(), Some(generation(5)));
    }
}
