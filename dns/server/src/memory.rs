//! The memory of a name server over its restart, beside the last good plan: the edges that are on their way back. A small file; losing it
//! only gives such an edge its clients at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use steering::Memory;
use tokio::sync::watch;
use topology::{EdgeId, EdgeState, Moment};

use crate::texts;

/// Largest file. A hundred bytes for each of thousands of edges are less.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    states: BTreeMap<EdgeId, EdgeState>,
    since: BTreeMap<EdgeId, Moment>,
    last_good: BTreeSet<EdgeId>,
}

/// Reads the memory. `None` without a file, and with one that cannot be read, which is logged.
pub fn read(file: &Path) -> Option<Memory> {
    match read_whole(file) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(Document {
                states,
                since,
                last_good,
            }) => Some(Memory {
                states,
                since,
                last_good,
            }),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "{}", texts::MEMORY_UNREADABLE);
                None
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "{}", texts::MEMORY_UNREADABLE);
            None
        }
    }
}

fn read_whole(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Saves each new memory, until its sender is gone. A disk that hangs delays no plan: this task waits alone.
pub async fn keep_saved(file: PathBuf, mut memory: watch::Receiver<Memory>) {
    while memory.changed().await.is_ok() {
        let (newest, file) = (memory.borrow_and_update().clone(), file.clone());
        let saved = tokio::task::spawn_blocking(move || save(&file, newest)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "{}", texts::MEMORY_NOT_SAVED);
        }
    }
}

fn save(file: &Path, memory: Memory) -> io::Result<()> {
    let Memory {
        states,
        since,
        last_good,
    } = memory;
    let document = Document {
        states,
        since,
        last_good,
    };
    let unfinished = file.with_extension("unfinished");
    let mut out = File::create(&unfinished)?;
    serde_json::to_writer(&mut out, &document)?;
    out.flush()?;
    out.sync_all()?;
    std::fs::rename(&unfinished, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_memory_is_read_as_it_was_saved_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("returning");
        assert_eq!(read(&file), None);
        let dublin = EdgeId::new("edge-dub").unwrap();
        let memory = Memory {
            states: BTreeMap::from([(dublin.clone(), EdgeState::Serving)]),
            since: BTreeMap::from([(dublin.clone(), Moment(1_700_000_000_000))]),
            last_good: BTreeSet::from([dublin]),
        };
        let (sender, receiver) = watch::channel(Memory::default());
        let saving = tokio::spawn(keep_saved(file.clone(), receiver));
        sender.send_replace(memory.clone());
        while read(&file).is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(read(&file), Some(memory));
        drop(sender);
        saving.await.unwrap();
        for damaged in [
            "",
            "{}",
            "{\"states\":{\"Not An Edge\":\"serving\"},\"since\":{},\"last_good\":[]}",
        ] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(read(&file), None, "{damaged}");
        }
    }
}
