//! The places of clients: the operator's networks, and below them the database, which is read again when its file changes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use steering::{Geography, Prefix};
use tokio::{sync::watch, time::sleep};
use topology::Location;

use crate::{
    files::Watched,
    geo,
    networks::{self, Network},
    texts,
};

/// Pause between two looks at the file.
const LOOKS_EVERY: Duration = Duration::from_secs(5);

/// The sources of places.
#[derive(Debug)]
pub struct Places {
    networks: Vec<(Prefix, Location)>,
    database: Option<(PathBuf, Watched)>,
}

impl Places {
    /// The sources of a configuration.
    pub fn new(networks: &[Network], database: Option<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self {
            networks: networks::read(networks)?,
            // Looked at before it is read: a file that is replaced meanwhile is read again.
            database: database.map(|file| (file.clone(), Watched::new(&file))),
        })
    }

    /// Reads the database.
    pub fn read(&self) -> anyhow::Result<Geography> {
        read(&self.networks, self.database.as_ref().map(|(file, _)| file))
    }

    /// Reads the database again whenever its file changes. A file that cannot be used changes nothing. Never returns.
    pub async fn keep_current(mut self, geography: watch::Sender<Arc<Geography>>) {
        loop {
            sleep(LOOKS_EVERY).await;
            self.look(&geography).await;
        }
    }

    /// Looks at the file once.
    async fn look(&mut self, geography: &watch::Sender<Arc<Geography>>) {
        let Some((file, watched)) = &mut self.database else {
            return;
        };
        if !watched.has_changed() {
            return;
        }
        let (networks, file) = (self.networks.clone(), file.clone());
        // Half a million networks take seconds.
        let read = tokio::task::spawn_blocking(move || read(&networks, Some(&file))).await;
        match read.map_err(Into::into).and_then(|read| read) {
            Ok(newest) => {
                geography.send_replace(Arc::new(newest));
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "{}", texts::PLACES_REFUSED),
        }
    }
}

fn read(networks: &[(Prefix, Location)], database: Option<&PathBuf>) -> anyhow::Result<Geography> {
    let database = database.map(|file| geo::read(file)).transpose()?;
    let geography = Geography::new(networks, database.unwrap_or_default());
    tracing::info!(networks = geography.networks(), "read the places of clients");
    Ok(geography)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geo::tests::database;

    #[tokio::test]
    async fn a_new_database_counts_and_one_that_cannot_be_used_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("city.mmdb");
        std::fs::write(&file, database(&[("10.0.0.0", 8, 51.5, -0.1)])).unwrap();
        let mut places = Places::new(&[], Some(file.clone())).unwrap();
        let geography = watch::Sender::new(Arc::new(places.read().unwrap()));
        let networks = || geography.borrow().networks();
        let first = networks();
        std::fs::write(
            &file,
            &database(&[("10.0.0.0", 8, 51.5, -0.1), ("11.0.0.0", 8, 40.0, 1.0)])[..100],
        )
        .unwrap();
        places.look(&geography).await;
        assert_eq!(networks(), first, "half a file");
        std::fs::write(
            &file,
            database(&[("10.0.0.0", 8, 51.5, -0.1), ("11.0.0.0", 8, 40.0, 1.0)]),
        )
        .unwrap();
        places.look(&geography).await;
        let second = networks();
        assert!(second > first, "{second}");
        std::fs::remove_file(&file).unwrap();
        places.look(&geography).await;
        assert_eq!(networks(), second);
    }
}
