//! The last good snapshots on disk, from which a node serves when it starts without a control plane. Two are stored, so
//! that damage to the newer one costs one generation and not the service.

use std::{
    fs::File,
    io::{Error, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use topology::{PlanNumber, Snapshot};

use crate::texts;

/// A file with one snapshot (its checksum, a newline, its document), and a second file with the snapshot before it.
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

    /// Reads the newest undamaged snapshot. Renames a damaged file and logs it. `None` if no good file is left: a node
    /// without a plan can still get one from a control plane.
    pub fn load(&self) -> Option<Snapshot> {
        let found = [read_or_set_aside(&self.0), read_or_set_aside(&self.previous())];
        found
            .into_iter()
            .flatten()
            .max_by_key(|snapshot| snapshot.plan.number())
    }

    /// Stores a snapshot, and keeps the one before it. A crash at any point leaves at least one of them whole. The
    /// stored plan never goes back: an older snapshot is an error, and storing the same one again changes nothing.
    pub fn save(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let kept = self.load().map(|kept| kept.plan.number()).unwrap_or_default();
        let number = snapshot.plan.number();
        if number < kept {
            let text = texts::older_than_on_disk(number, kept);
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        if number == kept && number != PlanNumber::default() {
            return Ok(());
        }
        let (document, checksum) = snapshot.encode();
        let unfinished = self.0.with_extension("unfinished");
        let mut file = File::create(&unfinished)?;
        file.write_all(checksum.as_bytes())?;
        file.write_all(b"\n")?;
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

fn read_or_set_aside(path: &Path) -> Option<Snapshot> {
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
    let (checksum, document) = bytes.split_at(split);
    let document = document.get(1..).unwrap_or_default();
    match Snapshot::decode(document, &String::from_utf8_lossy(checksum)) {
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
