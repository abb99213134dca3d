//! A process tells its supervisor the addresses on which it listens. Because processes listen on port 0 and announce
//! the port they got, any number of deployments share a machine without a list of ports.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::texts;

/// The file that a process writes once it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Name of the program.
    pub program: String,
    /// Process id.
    pub pid: u32,
    /// Bound addresses by purpose: "http", "admin", "grpc", "dns".
    pub addresses: BTreeMap<String, SocketAddr>,
}

impl Announcement {
    /// The announcement of this process.
    pub fn new(program: &str, addresses: &[(&str, SocketAddr)]) -> Self {
        Self {
            program: program.to_owned(),
            pid: std::process::id(),
            addresses: addresses
                .iter()
                .map(|(name, address)| ((*name).to_owned(), *address))
                .collect(),
        }
    }

    /// Writes the file in one step (write, then rename), so that a reader never sees half of it.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let unfinished = path.with_extension("unfinished");
        std::fs::write(&unfinished, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&unfinished, path))
            .with_context(|| texts::cannot_announce(path))
    }

    /// Reads the file. `None` while the process has not announced itself.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).with_context(|| texts::cannot_read_announcement(path))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| texts::cannot_read_announcement(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_absent_then_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.json");
        assert_eq!(Announcement::read(&path).unwrap(), None);
        let announcement = Announcement::new("edge", &[("http", "127.0.0.1:80".parse().unwrap())]);
        announcement.write(&path).unwrap();
        assert_eq!(Announcement::read(&path).unwrap(), Some(announcement));
    }
}
