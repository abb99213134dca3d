//! Sessions in memory; those with an alarm or a timer are on disk as well. The memory is in force, and one task makes the folder
//! follow it. A full or lost disk costs no caller anything: the writer tries again until the disk takes the files.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use daemon::sealed::Keys;
use dialogue::City;
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use topology::Moment;

use super::{
    Durability, Memory, MemoryStore, SessionStore,
    folder::{Folder, FolderError},
    marks::Marks,
};
use crate::{metrics::Metrics, seal::CheckpointKey, texts};

/// Period at which the files of sessions that are over are removed. They no longer matter, so this only frees space.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// First wait of the writer after a failure. Each further wait is longer: people make room on a full disk.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Sessions in memory and on disk.
#[derive(Debug)]
pub(crate) struct DurableStore {
    memory: Arc<MemoryStore>,
    marks: Arc<Marks>,
}

/// Makes the folder follow the memory.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Locked by one thread at a time, while it writes.
    folder: Arc<Mutex<Folder>>,
    memory: Arc<MemoryStore>,
    marks: Arc<Marks>,
}

impl DurableStore {
    /// Reads the sessions of the folder, and returns them with the writer that keeps it up to date. The keys seal and encrypt its files.
    /// `home` stands for a city that this release does not know. An error when another process uses the folder; any other fault is
    /// logged, and tried again.
    pub(crate) fn open(
        memory: MemoryStore,
        path: PathBuf,
        (key, encrypts): (CheckpointKey, Option<Keys>),
        home: City,
        now: Moment,
    ) -> Result<(Self, Writer), FolderError> {
        let mut folder = Folder::at(path, key, encrypts, home);
        let marks = Marks::default();
        let read = match folder.prepare() {
            Ok(_) => read(&folder, &memory, &marks, now).map_err(FolderError::from),
            Err(FolderError::InUse) => return Err(FolderError::InUse),
            Err(error) => Err(error),
        };
        if let Err(error) = read {
            marks.set_failing(true);
            let folder = folder.path().display();
            tracing::error!(
                %folder, %error,
                "{}", texts::FOLDER_UNUSABLE
            );
        }
        let (memory, marks) = (Arc::new(memory), Arc::new(marks));
        let writer = Writer {
            folder: Arc::new(Mutex::new(folder)),
            memory: Arc::clone(&memory),
            marks: Arc::clone(&marks),
        };
        Ok((Self { memory, marks }, writer))
    }
}

/// Takes in the sessions of the folder, and marks those whose file must be removed or written anew.
fn read(folder: &Folder, memory: &MemoryStore, marks: &Marks, now: Moment) -> std::io::Result<()> {
    let mut sessions = 0;
    let reading = folder.read(now, |parked| {
        sessions += 1;
        marks.found(&parked.name);
        let dropped = memory.keep(&parked.name, parked.memory, parked.saved_at, now);
        marks.dropped(dropped);
        if parked.is_of_old_key {
            marks.changed(&parked.name, true);
        }
    });
    let expired = memory.expire(now);
    let over = expired.len();
    marks.dropped(expired);
    let reading = reading?;
    let folder = folder.path().display();
    if let Some(first) = reading.first {
        let skipped = reading.skipped;
        tracing::warn!(
            %folder, skipped, first,
            "{}", texts::FILES_LEFT_ALONE
        );
    }
    if sessions > 0 {
        tracing::info!(%folder, sessions, over, "sessions with alarms and timers are back from disk");
    }
    Ok(())
}

#[async_trait]
impl SessionStore for DurableStore {
    async fn load(&self, session: &str, now: Moment) -> anyhow::Result<Option<Memory>> {
        self.memory.load(session, now).await
    }

    async fn save(&self, session: &str, memory: Memory, now: Moment) -> anyhow::Result<()> {
        let owes_something = memory.owes_something();
        let dropped = self.memory.keep(session, memory, now, now);
        self.marks.changed(session, owes_something);
        self.marks.dropped(dropped);
        Ok(())
    }

    async fn touch(&self, session: &str, now: Moment) -> anyhow::Result<()> {
        self.memory.touch(session, now).await
    }

    async fn forget(&self, session: &str, revision: Moment) -> anyhow::Result<()> {
        self.memory.forget(session, revision).await?;
        self.marks.changed(session, false);
        Ok(())
    }

    fn durability(&self) -> Durability {
        self.marks.durability()
    }
}

/// The outcome of one pass over the marked sessions.
#[derive(Debug, Default)]
struct Pass {
    removed: Vec<String>,
    failed: Vec<String>,
    /// The folder was made anew, without the files of all other sessions.
    is_folder_new: bool,
    /// The fault of the last one that failed.
    error: Option<String>,
}

impl Writer {
    /// Writes until it is stopped, and at the end the files that are still out of date.
    pub(crate) async fn run(self, metrics: Metrics, stop: CancellationToken) {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = RETRY_FIRST;
        self.marks.show_in(&metrics);
        loop {
            let is_last = stop.is_cancelled();
            let is_well = self.pass(&metrics).await;
            let due = self.marks.unwritten();
            match (is_last, is_well) {
                (true, true) if due == 0 => return,
                (true, true) => {}
                (true, false) => {
                    tracing::error!(sessions = due, "{}", texts::UNSAVED_AT_THE_END);
                    return;
                }
                (false, true) => {
                    retry = RETRY_FIRST;
                    tokio::select! {
                        () = self.marks.added() => {}
                        _ = sweep.tick() => self.marks.dropped(self.memory.expire(daemon::clock::now())),
                        () = stop.cancelled() => {}
                    }
                }
                (false, false) => {
                    tokio::select! {
                        () = sleep(retry) => {}
                        () = stop.cancelled() => {}
                    }
                    retry = RETRY_MAX.min(2 * retry);
                }
            }
        }
    }

    /// Writes the files that are out of date. Returns whether the disk took all of them.
    async fn pass(&self, metrics: &Metrics) -> bool {
        let was_failing = self.marks.is_failing();
        let due = self.marks.take();
        if due.is_empty() && !was_failing {
            return true;
        }
        let (folder, memory, sessions) = (Arc::clone(&self.folder), Arc::clone(&self.memory), due.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut folder = folder.lock();
            write(&mut folder, &memory, sessions, daemon::clock::now())
        });
        let pass = written.await.unwrap_or_else(|panic| Pass {
            failed: due,
            error: Some(panic.to_string()),
            ..Pass::default()
        });
        let failed = pass.failed.len();
        self.marks.done(&pass.removed, pass.failed);
        if pass.is_folder_new {
            self.marks.all_changed();
        }
        self.marks.set_failing(pass.error.is_some());
        match &pass.error {
            None if was_failing => tracing::info!("sessions with alarms and timers are written to disk again"),
            None => {}
            Some(error) => {
                metrics.disk_errors.inc_by(failed.max(1) as u64);
                if !was_failing {
                    tracing::error!(error, sessions = failed, "{}", texts::DISK_REFUSES);
                }
            }
        }
        pass.error.is_none()
    }
}

/// Makes the files of these sessions equal to the memory.
fn write(folder: &mut Folder, memory: &MemoryStore, sessions: Vec<String>, now: Moment) -> Pass {
    let mut pass = Pass::default();
    match folder.prepare() {
        Ok(is_new) => pass.is_folder_new = is_new,
        Err(error) => {
            (pass.failed, pass.error) = (sessions, Some(error.to_string()));
            return pass;
        }
    }
    let mut written = Vec::new();
    for session in sessions {
        let owing = memory.get(&session, now).filter(Memory::owes_something);
        let outcome = match &owing {
            Some(memory) => folder.write(&session, memory, now),
            None => folder.remove(&session),
        };
        match (outcome, owing) {
            (Ok(()), Some(_)) => written.push(session),
            (Ok(()), None) => pass.removed.push(session),
            (Err(error), _) => {
                pass.error = Some(error.to_string());
                pass.failed.push(session);
            }
        }
    }
    // Once for all files: their names have to reach the disk.
    if let Err(error) = folder.sync() {
        pass.error = Some(error.to_string());
        pass.failed.append(&mut written);
        pass.failed.append(&mut pass.removed);
    }
    pass
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dialogue::DialogueState;
    use prometheus_client::registry::Registry;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A stack's sessions, of which some are on disk.
    struct Disk {
        store: DurableStore,
        writer: Writer,
        metrics: Metrics,
    }

    impl Disk {
        fn open(folder: &Path, kept_max: usize, keys: &[&str]) -> Self {
            let keys: Vec<String> = keys.iter().map(|key| key.repeat(32)).collect();
            let key = serde_json::from_value(keys.into()).unwrap();
            let memory = MemoryStore::new(kept_max, MINUTE);
            let now = daemon::clock::now();
            let (store, writer) = DurableStore::open(memory, folder.to_owned(), (key, None), City::Rome, now).unwrap();
            let metrics = Metrics::register(&mut Registry::default());
            store.marks.show_in(&metrics);
            Self { store, writer, metrics }
        }

        async fn save(&self, session: &str, memory: Memory) {
            self.store.save(session, memory, daemon::clock::now()).await.unwrap();
        }

        async fn load(&self, session: &str) -> Option<Memory> {
            self.store.load(session, daemon::clock::now()).await.unwrap()
        }

        /// Writes to a disk that works.
        async fn write(&self) {
            assert!(self.writer.pass(&self.metrics).await);
        }
    }

    /// A timer of ten minutes, set so long ago.
    fn with_timer(ago: Duration) -> Memory {
        let mut dialogue = DialogueState::new(City::Rome);
        let ago = u64::try_from(ago.as_millis()).unwrap();
        let set_at = Moment(daemon::clock::now().0 - ago);
        dialogue::act(
            &mut dialogue,
            &dialogue::interpret("set a timer for ten minutes"),
            set_at,
        );
        Memory { dialogue, ..nothing() }
    }

    fn nothing() -> Memory {
        Memory {
            dialogue: DialogueState::new(City::Rome),
            session: None,
            revision: Moment(5),
            may_go_on_elsewhere: false,
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "lock").collect();
        names.sort_unstable();
        names
    }

    #[tokio::test]
    async fn a_session_is_on_disk_while_it_owes_something() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), 10, &["ab"]);
        disk.save("sess_1", nothing()).await;
        disk.save("sess_2", with_timer(MINUTE)).await;
        disk.save("sess_3", with_timer(MINUTE)).await;
        disk.save("not a name", with_timer(MINUTE)).await;
        disk.write().await;
        assert_eq!(files(folder.path()), ["sess_2.session", "sess_3.session"]);
        assert_eq!(disk.metrics.sessions_on_disk.get(), 2);
        assert_eq!(disk.store.durability(), Durability::OnDisk);

        // One was cancelled, and another goes on in another stack. The third came back since, and stays.
        disk.save("sess_2", nothing()).await;
        disk.store.forget("sess_3", Moment(4)).await.unwrap();
        disk.write().await;
        assert_eq!(files(folder.path()), ["sess_3.session"]);
        disk.store.forget("sess_3", Moment(5)).await.unwrap();
        disk.write().await;
        assert!(files(folder.path()).is_empty());
        assert_eq!(disk.metrics.sessions_on_disk.get(), 0);
    }

    #[tokio::test]
    async fn the_next_process_has_them_and_cannot_know_whether_they_went_on_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(86_400);
        let (ahead, overdue) = (with_timer(MINUTE), with_timer(12 * MINUTE));
        {
            let disk = Disk::open(folder.path(), 10, &["ab"]);
            disk.save("sess_ahead", ahead.clone()).await;
            disk.save("sess_overdue", overdue.clone()).await;
            disk.write().await;
        }
        // A process that was down for long.
        let over = with_timer(2 * day);
        let old = Moment(daemon::clock::now().0 - 2 * 86_400_000);
        let key = serde_json::from_value("ab".repeat(32).into()).unwrap();
        let mut by_hand = Folder::at(folder.path().to_owned(), key, None, City::Rome);
        by_hand.prepare().unwrap();
        by_hand.write("sess_over", &over, old).unwrap();
        drop(by_hand);

        let disk = Disk::open(folder.path(), 10, &["ab"]);
        for (session, memory) in [("sess_ahead", ahead), ("sess_overdue", overdue)] {
            let there = Memory {
                may_go_on_elsewhere: true,
                ..memory
            };
            assert_eq!(disk.load(session).await, Some(there));
        }
        assert_eq!(disk.load("sess_over").await, None);
        disk.write().await;
        assert!(!files(folder.path()).contains(&"sess_over.session".to_owned()));
        assert_eq!(disk.metrics.sessions_on_disk.get(), 2);
    }

    #[tokio::test]
    async fn no_more_are_on_disk_than_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), 10, &["ab"]);
        for session in 0..50 {
            disk.save(&format!("sess_{session}"), with_timer(MINUTE)).await;
            if session % 7 == 0 {
                disk.write().await;
            }
        }
        disk.write().await;
        assert_eq!(files(folder.path()).len(), 10);
        drop(disk);
        let disk = Disk::open(folder.path(), 5, &["ab"]);
        disk.write().await;
        assert_eq!(files(folder.path()).len(), 5);
    }

    #[tokio::test]
    async fn files_of_the_old_key_are_sealed_anew() {
        let folder = tempfile::tempdir().unwrap();
        let first = Disk::open(folder.path(), 10, &["ab"]);
        first.save("sess_1", with_timer(MINUTE)).await;
        first.write().await;
        drop(first);
        for keys in [&["cd", "ab"][..], &["cd"]] {
            let disk = Disk::open(folder.path(), 10, keys);
            disk.write().await;
            assert!(disk.load("sess_1").await.is_some(), "{keys:?}");
        }
    }

    #[tokio::test]
    async fn a_disk_that_fails_takes_nothing_away_and_is_written_when_it_is_well() {
        let place = tempfile::tempdir().unwrap();
        let (in_the_way, folder) = (place.path().join("state"), place.path().join("state/stack"));
        std::fs::write(&in_the_way, b"a file where the folder is to be").unwrap();
        let disk = Disk::open(&folder, 10, &["ab"]);
        assert_eq!(disk.store.durability(), Durability::Failing { unwritten: 0 });
        disk.save("sess_1", with_timer(MINUTE)).await;
        assert!(!disk.writer.pass(&disk.metrics).await);
        assert!(!disk.writer.pass(&disk.metrics).await);
        assert_eq!(disk.store.durability(), Durability::Failing { unwritten: 1 });
        assert_eq!(
            (disk.metrics.sessions_unwritten.get(), disk.metrics.disk_errors.get()),
            (1, 2)
        );
        assert!(disk.load("sess_1").await.is_some());

        std::fs::remove_file(&in_the_way).unwrap();
        disk.write().await;
        assert_eq!(disk.store.durability(), Durability::OnDisk);
        assert_eq!(files(&folder), ["sess_1.session"]);

        // Somebody emptied the folder: the writer writes everything again.
        std::fs::remove_dir_all(&folder).unwrap();
        disk.save("sess_4", with_timer(MINUTE)).await;
        disk.write().await;
        disk.write().await;
        assert_eq!(files(&folder), ["sess_1.session", "sess_4.session"]);

        // A file that cannot be written does not hold up the others.
        std::fs::create_dir(folder.join("sess_2.session")).unwrap();
        for session in ["sess_2", "sess_3"] {
            disk.save(session, with_timer(MINUTE)).await;
        }
        assert!(!disk.writer.pass(&disk.metrics).await);
        assert!(files(&folder).contains(&"sess_3.session".to_owned()));
        assert_eq!(disk.store.durability(), Durability::Failing { unwritten: 1 });
    }

    #[tokio::test]
    async fn what_is_saved_before_the_end_is_written_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let Disk { store, writer, metrics } = Disk::open(folder.path(), 10, &["ab"]);
        let stop = CancellationToken::new();
        let run = tokio::spawn(writer.run(metrics, stop.clone()));
        store
            .save("sess_1", with_timer(MINUTE), daemon::clock::now())
            .await
            .unwrap();
        stop.cancel();
        tokio::time::timeout(MINUTE, run).await.expect("it ends").unwrap();
        assert_eq!(files(folder.path()), ["sess_1.session"]);
    }
}
