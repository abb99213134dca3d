//! The store in one file (redb): for one control plane on one machine.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::{Entry, Store, StoreError, Transaction, VALUE_BYTES_MAX};

/// Key → revision and value.
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// The single row of the store's own numbers.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";

/// A store in one file. Every commit is on disk when it returns.
#[derive(Clone)]
pub struct Embedded(Arc<Database>);

impl Embedded {
    /// Opens the file, or makes it. Only one process can hold it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Failed(format!(
                "{} is held by another control plane; stop it first",
                path.display()
            )),
            error => StoreError::Failed(format!("{}: {error}", path.display())),
        })?;
        let store = Self(Arc::new(database));
        store.make_tables().map_err(failed)?;
        Ok(store)
    }

    fn make_tables(&self) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        transaction.open_table(ENTRIES)?;
        transaction.open_table(NUMBERS)?;
        transaction.commit()?;
        Ok(())
    }

    /// redb blocks on the disk, which must not hold up a task.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = self.0.clone();
        let joined = tokio::task::spawn_blocking(move || work(&database)).await;
        joined.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Failed(error.into().to_string())
}

/// The first key after all that begin with `prefix`. Keys are ASCII, so the greatest character ends them.
fn after(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}

/// A key and what is under it, as redb lends them.
type Row<'r> = (
    redb::AccessGuard<'r, &'static str>,
    redb::AccessGuard<'r, (u64, &'static [u8])>,
);

fn range(database: &Database, prefix: &str, newest: Option<usize>) -> Result<Vec<(String, Entry)>, StoreError> {
    let read = || -> Result<_, redb::Error> {
        let table = database.begin_read()?.open_table(ENTRIES)?;
        let entries = table.range::<&str>(prefix..after(prefix).as_str())?;
        let take = |row: Result<Row<'_>, redb::StorageError>| {
            let (key, entry) = row?;
            let (revision, value) = entry.value();
            Ok((
                key.value().to_owned(),
                Entry {
                    value: value.to_vec(),
                    revision,
                },
            ))
        };
        match newest {
            Some(limit) => entries.rev().take(limit).map(take).collect(),
            None => entries.map(take).collect(),
        }
    };
    read().map_err(failed)
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.blocking(move |database| {
            let read = || -> Result<_, redb::Error> {
                let table = database.begin_read()?.open_table(ENTRIES)?;
                let entry = table.get(key.as_str())?;
                Ok(entry.map(|entry| {
                    let (revision, value) = entry.value();
                    Entry {
                        value: value.to_vec(),
                        revision,
                    }
                }))
            };
            read().map_err(failed)
        })
        .await
    }

    async fn newest(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Entry)>, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |database| range(database, &prefix, Some(limit)))
            .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |database| range(database, &prefix, None)).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        for (key, value) in &transaction.put {
            if value.len() > VALUE_BYTES_MAX {
                return Err(StoreError::TooLarge {
                    key: key.clone(),
                    bytes: value.len(),
                });
            }
        }
        self.blocking(move |database| {
            // Dropping a write transaction that was not committed rolls it back.
            let write = database.begin_write().map_err(failed)?;
            let revision = {
                let mut entries = write.open_table(ENTRIES).map_err(failed)?;
                let mut numbers = write.open_table(NUMBERS).map_err(failed)?;
                for (key, expected) in transaction.expect {
                    let found = entries.get(key.as_str()).map_err(failed)?.map(|entry| entry.value().0);
                    if found != expected {
                        return Err(StoreError::Conflict { key, found, expected });
                    }
                }
                let revision = numbers
                    .get(REVISION)
                    .map_err(failed)?
                    .map_or(0, |number| number.value())
                    + 1;
                numbers.insert(REVISION, revision).map_err(failed)?;
                for (key, value) in &transaction.put {
                    entries
                        .insert(key.as_str(), (revision, value.as_slice()))
                        .map_err(failed)?;
                }
                for key in &transaction.delete {
                    entries.remove(key.as_str()).map_err(failed)?;
                }
                revision
            };
            write.commit().map_err(failed)?;
            Ok(revision)
        })
        .await
    }
}
