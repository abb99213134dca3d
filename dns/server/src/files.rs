//! Files that others replace while the name server runs.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A file, and how it looked the last time.
#[derive(Debug)]
pub(crate) struct Watched {
    file: PathBuf,
    seen: Option<Look>,
}

/// Changes whenever a file is written or replaced. A rename brings another inode; the clock of a file system may be coarse, so the
/// length counts too.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    inode: u64,
    bytes: u64,
    written: (i64, i64),
}

impl Watched {
    /// The file as it is now.
    pub(crate) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            seen: look(file),
        }
    }

    /// True if the file was written or replaced since the last call. A file that is gone has not changed: its successor is on its way.
    pub(crate) fn has_changed(&mut self) -> bool {
        let now = look(&self.file);
        if now.is_none() || now == self.seen {
            return false;
        }
        self.seen = now;
        true
    }
}

fn look(file: &Path) -> Option<Look> {
    let facts = std::fs::metadata(file).ok()?;
    Some(Look {
        inode: facts.ino(),
        bytes: facts.len(),
        written: (facts.mtime(), facts.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_or_replaced_has_changed_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let mut watched = Watched::new(&file);
        assert!(!watched.has_changed(), "it is not there");
        std::fs::write(&file, "one").unwrap();
        assert!(watched.has_changed() && !watched.has_changed());
        std::fs::write(&file, "longer").unwrap();
        assert!(watched.has_changed() && !watched.has_changed());
        let beside = folder.path().join("beside");
        std::fs::write(&beside, "others").unwrap();
        std::fs::rename(&beside, &file).unwrap();
        assert!(watched.has_changed() && !watched.has_changed());
        std::fs::remove_file(&file).unwrap();
        assert!(!watched.has_changed());
    }
}
