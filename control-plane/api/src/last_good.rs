//! The last good snapshot on disk: what a node serves from when it starts without a control plane.

use std::{
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use topology::Snapshot;

/// A file that holds one snapshot: its checksum, a newline, its document.
#[derive(Debug, Clone)]
pub struct LastGood(PathBuf);

impl LastGood {
    /// Uses this file; its folder must exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The snapshot of the last run. `None` when there is none; a damaged file is set aside, said in the log, and
    /// counts as none, because a node without a plan can still ask for one.
    pub fn load(&self) -> Option<Snapshot> {
        let path = self.0.display();
        let bytes = match std::fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%path, %error, "the last good plan cannot be read");
                return None;
            }
        };
        let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (checksum, document) = bytes.split_at(split);
        let document = document.get(1..).unwrap_or_default();
        match Snapshot::decode(document, &String::from_utf8_lossy(checksum)) {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                tracing::warn!(%path, %error, "the last good plan is damaged; it is set aside");
                // Keeping it helps whoever asks what happened; failing to keep it harms nobody.
                let _ = std::fs::rename(&self.0, self.0.with_extension("damaged"));
                None
            }
        }
    }

    /// Keeps a snapshot, in one step: a crash leaves either the old one or the new one.
    pub fn save(&self, snapshot: &Snapshot) -> std::io::Result<()> {
        let (document, checksum) = snapshot.encode();
        let unfinished = self.0.with_extension("unfinished");
        let mut file = std::fs::File::create(&unfinished)?;
        file.write_all(checksum.as_bytes())?;
        file.write_all(b"\n")?;
        file.write_all(&document)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::fixtures::three_primaries;

    #[test]
    fn what_was_kept_is_found_again_and_damage_is_not_served() {
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::at(folder.path().join("plan"));
        assert_eq!(file.load(), None);
        file.save(&three_primaries()).unwrap();
        assert_eq!(file.load(), Some(three_primaries()));

        let mut bytes = std::fs::read(file.path()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file.path(), bytes).unwrap();
        assert_eq!(file.load(), None);
        assert!(folder.path().join("plan.damaged").exists());
        for nonsense in [&b""[..], b"\n", b"no newline"] {
            std::fs::write(file.path(), nonsense).unwrap();
            assert_eq!(file.load(), None);
        }
    }
}
