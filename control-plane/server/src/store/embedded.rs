//! The store in one file (redb), for one control plane on one machine.
//!
//! A bounded memory of the newest commits feeds watches. A watch that asks for older changes is refused and has to list
//! again, as with a compacted etcd. Only one process can open the file, so a candidate leads at once and replaces an
//! earlier leader of the same process.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::watch;

use super::{
    contract::{Health, Store},
    error::StoreError,
    lead::{Candidate, LeaderRecord, Leadership, Term, Validity},
    transaction::{Entry, Listing, Transaction},
    watch::{Batch, Change, Changes, Source, WatchEnd},
};
use crate::texts::store as texts;

/// Key → revision and value of a document.
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// The store's own numbers.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
/// Revision of an empty store; etcd begins at one too.
const REVISION_FIRST: u64 = 1;
/// Key of the newest epoch.
const EPOCH: &str = "/meridian/v1/epoch";
/// Commits remembered for watches: minutes of a busy control plane, and more than a reader in the same process lags.
const COMMITS_MAX: usize = 1_024;
/// Bytes remembered for watches: a few dozen plans of the largest fleet.
const COMMITS_BYTES_MAX: usize = 32 << 20;
/// Interval of a watch's progress marks.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// A store in one file. A commit is on disk when it returns.
#[derive(Clone)]
pub struct Embedded(Arc<Shared>);

struct Shared {
    database: Database,
    /// Locked from the beginning of a commit until watches know of it, so that they see commits in order. Only blocking
    /// threads take it.
    writing: Mutex<()>,
    commits: Mutex<Commits>,
    /// Revision of the newest commit that watches know of.
    published: watch::Sender<u64>,
    leader: Mutex<Option<Leading>>,
}

/// The newest commits, for watches.
struct Commits {
    /// Changes up to this revision are forgotten.
    forgotten: u64,
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
}

impl Commits {
    fn push(&mut self, batch: Batch) {
        self.bytes += bytes(&batch);
        self.batches.push_back(Arc::new(batch));
        while self.batches.len() > COMMITS_MAX || self.bytes > COMMITS_BYTES_MAX {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.bytes -= bytes(&oldest);
            self.forgotten = oldest.revision;
        }
    }

    fn after(&self, revision: u64) -> Result<Vec<Arc<Batch>>, WatchEnd> {
        if revision < self.forgotten {
            let oldest = self.forgotten + 1;
            return Err(WatchEnd::Compacted { oldest });
        }
        let newer = self.batches.iter().rev().take_while(|batch| batch.revision > revision);
        let mut newer: Vec<Arc<Batch>> = newer.cloned().collect();
        newer.reverse();
        Ok(newer)
    }
}

fn bytes(batch: &Batch) -> usize {
    let one = |change: &Change| change.key.len() + change.value.as_ref().map_or(0, Vec::len);
    batch.changes.iter().map(one).sum()
}

impl Embedded {
    /// Opens the file, or creates it. Only one process can open it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Failed(texts::file_is_held(path)),
            error => StoreError::Failed(texts::at(path.display(), error)),
        })?;
        make_tables(&database).map_err(failed)?;
        let newest = revision(&database).map_err(failed)?;
        let commits = Commits {
            forgotten: newest,
            batches: VecDeque::new(),
            bytes: 0,
        };
        Ok(Self(Arc::new(Shared {
            database,
            writing: Mutex::default(),
            commits: Mutex::new(commits),
            published: watch::Sender::new(newest),
            leader: Mutex::default(),
        })))
    }

    /// Runs `work` on a blocking thread, because redb waits for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.0.clone();
        let joined = tokio::task::spawn_blocking(move || work(&shared)).await;
        joined.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

impl Shared {
    fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let _one_at_a_time = self.writing.lock();
        let batch = write(&self.database, transaction)?;
        let revision = batch.revision;
        if !batch.changes.is_empty() {
            self.commits.lock().push(batch);
            self.published.send_replace(revision);
        }
        Ok(revision)
    }
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(NUMBERS)?;
    transaction.commit()?;
    Ok(())
}

fn revision(database: &Database) -> Result<u64, redb::Error> {
    let numbers = database.begin_read()?.open_table(NUMBERS)?;
    let number = numbers.get(REVISION)?;
    Ok(number.map_or(REVISION_FIRST, |number| number.value()))
}

/// Writes all or nothing. An empty transaction makes no new revision.
fn write(database: &Database, transaction: Transaction) -> Result<Batch, StoreError> {
    // Dropping an uncommitted write transaction rolls it back.
    let write = database.begin_write().map_err(failed)?;
    let batch = {
        let mut entries = write.open_table(ENTRIES).map_err(failed)?;
        let mut numbers = write.open_table(NUMBERS).map_err(failed)?;
        for (key, expected) in transaction.expect {
            let found = entries.get(key.as_str()).map_err(failed)?.map(|entry| entry.value().0);
            if found != expected {
                return Err(StoreError::Conflict { key, found, expected });
            }
        }
        let last = numbers.get(REVISION).map_err(failed)?;
        let last = last.map_or(REVISION_FIRST, |number| number.value());
        let revision = last + 1;
        let mut changes = Vec::new();
        for (key, value) in transaction.put {
            entries
                .insert(key.as_str(), (revision, value.as_slice()))
                .map_err(failed)?;
            let value = Some(value);
            changes.push(Change { revision, key, value });
        }
        for key in transaction.delete {
            if entries.remove(key.as_str()).map_err(failed)?.is_some() {
                let value = None;
                changes.push(Change { revision, key, value });
            }
        }
        if changes.is_empty() {
            let revision = last;
            return Ok(Batch { revision, changes });
        }
        numbers.insert(REVISION, revision).map_err(failed)?;
        Batch { revision, changes }
    };
    write.commit().map_err(failed)?;
    Ok(batch)
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    let error = error.into();
    match &error {
        redb::Error::Io(cause) if cause.kind() == std::io::ErrorKind::StorageFull => {
            StoreError::NoSpace(texts::disk_is_full(&error))
        }
        _ => StoreError::Failed(error.to_string()),
    }
}

/// The first key after all keys with `prefix`. Keys are ASCII, so the greatest character ends their range.
fn after(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}

/// A key and its row, as redb lends them.
type Row<'r> = (
    redb::AccessGuard<'r, &'static str>,
    redb::AccessGuard<'r, (u64, &'static [u8])>,
);

fn take(row: Result<Row<'_>, redb::StorageError>) -> Result<(String, Entry), redb::Error> {
    let (key, entry) = row?;
    Ok((key.value().to_owned(), entry_of(&entry)))
}

fn entry_of(found: &redb::AccessGuard<'_, (u64, &'static [u8])>) -> Entry {
    let (revision, value) = found.value();
    let value = value.to_vec();
    Entry { value, revision }
}

fn get(database: &Database, key: &str) -> Result<Option<Entry>, redb::Error> {
    let table = database.begin_read()?.open_table(ENTRIES)?;
    let found = table.get(key)?;
    Ok(found.map(|found| entry_of(&found)))
}

fn list(database: &Database, prefix: &str) -> Result<Listing, redb::Error> {
    // One read transaction, so that the revision is that of the entries.
    let read = database.begin_read()?;
    let number = read.open_table(NUMBERS)?.get(REVISION)?;
    let revision = number.map_or(REVISION_FIRST, |number| number.value());
    let table = read.open_table(ENTRIES)?;
    let rows = table.range::<&str>(prefix..after(prefix).as_str())?;
    let entries = rows.map(take).collect::<Result<_, _>>()?;
    Ok(Listing { revision, entries })
}

/// A watch over the memory of commits.
struct Watching {
    store: Embedded,
    published: watch::Receiver<u64>,
    prefix: String,
    /// Changes up to this revision were returned.
    position: u64,
    ended: bool,
}

impl Watching {
    /// The commits since the last batch, as one batch; `None` if there are none.
    fn newer(&mut self) -> Result<Option<Batch>, WatchEnd> {
        let newer = self.store.0.commits.lock().after(self.position)?;
        let Some(newest) = newer.last() else { return Ok(None) };
        self.position = newest.revision;
        let ours = |change: &&Change| change.key.starts_with(&self.prefix);
        let changes = newer
            .iter()
            .flat_map(|batch| batch.changes.iter().filter(ours).cloned());
        Ok(Some(Batch {
            revision: self.position,
            changes: changes.collect(),
        }))
    }

    fn mark(&self) -> Batch {
        Batch {
            revision: self.position,
            changes: Vec::new(),
        }
    }
}

#[async_trait]
impl Source for Watching {
    async fn next(&mut self) -> Result<Batch, WatchEnd> {
        if self.ended {
            return Err(WatchEnd::Ended);
        }
        self.published.mark_unchanged();
        match self.newer() {
            Ok(Some(batch)) => return Ok(batch),
            Ok(None) => {}
            Err(end) => {
                self.ended = true;
                return Err(end);
            }
        }
        tokio::select! {
            // `changed` cannot fail: the sender is in the store that this watch holds.
            _ = self.published.changed() => match self.newer() {
                Ok(batch) => Ok(batch.unwrap_or_else(|| self.mark())),
                Err(end) => {
                    self.ended = true;
                    Err(end)
                }
            },
            () = tokio::time::sleep(MARK_EVERY) => Ok(self.mark()),
        }
    }
}

/// A leadership of this process.
struct Leading {
    record: LeaderRecord,
    validity: Arc<watch::Sender<Validity>>,
}

/// Ends one leadership.
struct EmbeddedTerm {
    store: Embedded,
    epoch: u64,
}

#[async_trait]
impl Term for EmbeddedTerm {
    async fn resign(&self) -> Result<(), StoreError> {
        let mut leader = self.store.0.leader.lock();
        if leader.as_ref().is_some_and(|leader| leader.record.epoch == self.epoch) {
            *leader = None;
        }
        Ok(())
    }
}

/// Writes the next epoch. Returns it with the revision of the commit, which the fence expects.
fn next_epoch(shared: &Shared) -> Result<(u64, u64), StoreError> {
    loop {
        let entry = get(&shared.database, EPOCH).map_err(failed)?;
        let last: u64 = match &entry {
            Some(entry) => serde_json::from_slice(&entry.value)
                .map_err(|error| StoreError::Failed(texts::no_number(EPOCH, error)))?,
            None => 0,
        };
        let committed = shared.commit(Transaction {
            expect: vec![(EPOCH.to_owned(), entry.map(|entry| entry.revision))],
            put: vec![(EPOCH.to_owned(), (last + 1).to_string().into_bytes())],
            delete: vec![],
        });
        match committed {
            // Another candidate of this process took the number. There are few of them.
            Err(StoreError::Conflict { .. }) => {}
            other => return other.map(|revision| (last + 1, revision)),
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.blocking(move |shared| get(&shared.database, &key).map_err(failed))
            .await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |shared| list(&shared.database, &prefix).map_err(failed))
            .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        transaction.check()?;
        self.blocking(move |shared| shared.commit(transaction)).await
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
        self.0.commits.lock().after(after_revision)?;
        Ok(Changes::new(Watching {
            store: self.clone(),
            published: self.0.published.subscribe(),
            prefix: prefix.to_owned(),
            position: after_revision,
            ended: false,
        }))
    }

    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        let (epoch, revision) = self.blocking(next_epoch).await?;
        let validity = Arc::new(watch::Sender::new(Validity::Unlimited));
        let record = LeaderRecord {
            node: candidate.node.clone(),
            url: candidate.url.clone(),
            epoch,
        };
        let leading = Leading {
            record,
            validity: validity.clone(),
        };
        let mut leader = self.0.leader.lock();
        if leader.as_ref().is_none_or(|leader| leader.record.epoch < epoch) {
            if let Some(before) = leader.replace(leading) {
                before.validity.send_replace(Validity::Lost);
            }
        } else {
            // Another candidate took a later epoch while this one was being written.
            validity.send_replace(Validity::Lost);
        }
        drop(leader);
        let term = EmbeddedTerm {
            store: self.clone(),
            epoch,
        };
        Ok(Leadership::new(
            epoch,
            (EPOCH.to_owned(), Some(revision)),
            validity,
            term,
        ))
    }

    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        Ok(self.0.leader.lock().as_ref().map(|leader| leader.record.clone()))
    }

    async fn health(&self) -> Result<Health, StoreError> {
        self.blocking(|shared| {
            let revision = revision(&shared.database).map_err(failed)?;
            let write = shared.database.begin_write().map_err(failed)?;
            let pages = write.stats().map_err(failed)?;
            let bytes = pages.allocated_pages() * u64::try_from(pages.page_size()).unwrap_or(u64::MAX);
            write.abort().map_err(failed)?;
            let unreachable = Vec::new();
            Ok(Health {
                revision,
                bytes,
                unreachable,
            })
        })
        .await
    }
}
