//! The record that a running world leaves in its state folder, and the lock that shows that it runs.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use topology::Moment;

use crate::texts;

/// Version of [`Record`].
pub const RECORD_SCHEMA: u32 = 3;

/// The addresses and processes of a running world (`world.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_SCHEMA`] of the version that wrote it.
    pub schema: u32,
    /// Process id of the supervisor.
    pub pid: u32,
    /// Time of the start.
    pub started_at_ms: Moment,
    /// The DNS zone of the service.
    pub zone: String,
    /// gRPC URLs of all control planes.
    pub control_planes: Vec<String>,
    /// Folder of the credential of the person who started the world.
    pub operator: PathBuf,
    /// Client URLs of etcd's members, by name; empty if the one control plane keeps its decisions in a file.
    pub etcd: BTreeMap<String, String>,
    /// Address of the name server, UDP and TCP.
    pub dns: SocketAddr,
    /// The TCP port of all edges. DNS address records carry no port.
    pub edge_port: u16,
    /// URL of each edge, by name.
    pub edges: BTreeMap<String, String>,
    /// URL of each region's stack, for calls that bypass the edges.
    pub stacks: BTreeMap<String, String>,
    /// URL of each process's metrics, by name.
    pub metrics: BTreeMap<String, String>,
    /// Process ids, by name.
    pub processes: BTreeMap<String, u32>,
}

/// Errors of using a state folder.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A world already runs there.
    #[error("{}", texts::already_running(state_dir, pid, since))]
    AlreadyRunning {
        /// State folder of the world.
        state_dir: PathBuf,
        /// Process id of its supervisor.
        pid: String,
        /// Time of its start.
        since: String,
    },
    /// No world runs there.
    #[error("{}", texts::not_running(state_dir))]
    NotRunning {
        /// State folder without a world.
        state_dir: PathBuf,
    },
    /// A world is being started there.
    #[error("{}", texts::still_starting(state_dir))]
    Starting {
        /// State folder of the world.
        state_dir: PathBuf,
    },
    /// Another version of the command runs the world.
    #[error("{}", texts::other_version(state_dir, *found, RECORD_SCHEMA))]
    OtherVersion {
        /// State folder of the world.
        state_dir: PathBuf,
        /// Schema number of its record.
        found: u32,
    },
    /// A file cannot be read or written.
    #[error("{}", texts::cannot_use(path))]
    Io {
        /// The file's path.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
}

const RECORD: &str = "world.json";
const LOCK: &str = "lock";
/// `find` takes the lock for a moment to see whether a world holds it. That must not stop an `up`, which therefore
/// retries.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// The lock file's text: the process that holds the lock.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    since: Moment,
}

/// Holds the state folder for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    record: PathBuf,
}

impl Lock {
    /// Locks the folder, or returns the holder in the error.
    pub(crate) fn take(state_dir: &Path, now: Moment) -> Result<Self, RecordError> {
        let path = state_dir.join(LOCK);
        let io = |source| RecordError::Io {
            path: path.clone(),
            source,
        };
        let mut file = open_lock(&path).map_err(io)?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < LOCK_ATTEMPTS => std::thread::sleep(LOCK_AGAIN),
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text).map_err(io)?;
                    let holder: Option<Holder> = serde_json::from_str(&text).ok();
                    return Err(RecordError::AlreadyRunning {
                        state_dir: state_dir.to_owned(),
                        pid: holder
                            .as_ref()
                            .map_or("unknown".into(), |holder| holder.pid.to_string()),
                        since: holder.map_or("an unknown time".into(), |holder| holder.since.to_string()),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
        }
        let holder = Holder {
            pid: std::process::id(),
            since: now,
        };
        let holder = serde_json::to_vec(&holder).expect("two numbers can be written as JSON");
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(&holder))
            .map_err(io)?;
        let record = state_dir.join(RECORD);
        Ok(Self { _file: file, record })
    }

    /// Writes the record atomically: readers see all of it or the old one.
    pub(crate) fn publish(&self, record: &Record) -> Result<(), RecordError> {
        let unfinished = self.record.with_extension("unfinished");
        let text = serde_json::to_vec_pretty(record).expect("a record has only text keys, which JSON can write");
        std::fs::write(&unfinished, text)
            .and_then(|()| std::fs::rename(&unfinished, &self.record))
            .map_err(|source| RecordError::Io {
                path: self.record.clone(),
                source,
            })
    }

    /// Processes of an earlier world that ran here and did not shut down. Any version of the record will do.
    pub(crate) fn left_behind(&self) -> BTreeMap<String, u32> {
        /// The part of a record that stays the same in every version.
        #[derive(Deserialize)]
        struct Processes {
            processes: BTreeMap<String, u32>,
        }
        let text = std::fs::read(&self.record).unwrap_or_default();
        let read = serde_json::from_slice(&text);
        read.map_or_else(|_| BTreeMap::new(), |Processes { processes }| processes)
    }

    /// Removes the record at the end of the world.
    pub(crate) fn withdraw(&self) {
        // Fails if the world never became ready and wrote no record.
        let _ = std::fs::remove_file(&self.record);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// The part that tells the version of a record.
#[derive(Debug, Deserialize)]
struct Version {
    schema: u32,
}

/// Finds the world that runs in a state folder.
pub fn find(state_dir: &Path) -> Result<Record, RecordError> {
    let not_running = || RecordError::NotRunning {
        state_dir: state_dir.to_owned(),
    };
    let path = state_dir.join(LOCK);
    let file = match File::options().read(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(not_running()),
        Err(source) => return Err(RecordError::Io { path, source }),
    };
    match file.try_lock_shared() {
        // The lock is free: a record beside it is from a world that was killed.
        Ok(()) => return Err(not_running()),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(RecordError::Io { path, source }),
    }
    let path = state_dir.join(RECORD);
    match std::fs::read(&path) {
        Ok(text) => {
            let nonsense = |error: serde_json::Error| RecordError::Io {
                path: path.clone(),
                source: error.into(),
            };
            let Version { schema: found } = serde_json::from_slice(&text).map_err(nonsense)?;
            if found != RECORD_SCHEMA {
                let state_dir = state_dir.to_owned();
                return Err(RecordError::OtherVersion { state_dir, found });
            }
            serde_json::from_slice(&text).map_err(nonsense)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(RecordError::Starting {
            state_dir: state_dir.to_owned(),
        }),
        Err(source) => Err(RecordError::Io { path, source }),
    }
}

/// Kills the processes that remain of a killed world. They stop by themselves when their pipe closes, except a frozen
/// one: it would stay, and run on after a SIGCONT.
pub(crate) fn sweep(processes: &BTreeMap<String, u32>, state_dir: &Path) {
    for (name, pid) in processes {
        let Some(number) = Pid::from_raw(pid.cast_signed()) else {
            continue;
        };
        // The pidfd is opened before the command line is read, so both are about the same process.
        let Ok(pidfd) = pidfd_open(number, PidfdFlags::empty()) else {
            continue;
        };
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Matches "--config", "/folder/edge.toml" as well as "--data-dir=/folder/etcd-1".
        let ours = String::from_utf8_lossy(&command)
            .split(['\0', '='])
            .any(|argument| Path::new(argument).starts_with(state_dir));
        if ours && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            tracing::info!(process = name.as_str(), pid, "{}", texts::LEFT_BEHIND_ENDED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            schema: RECORD_SCHEMA,
            pid: std::process::id(),
            started_at_ms: Moment(45_296_789),
            zone: "voice.meridian.test".into(),
            control_planes: vec!["https://127.9.7.61:7070".into()],
            operator: "/state/operators/alice".into(),
            etcd: BTreeMap::new(),
            dns: "127.9.7.53:5300".parse().unwrap(),
            edge_port: 8080,
            edges: BTreeMap::new(),
            stacks: BTreeMap::new(),
            metrics: BTreeMap::new(),
            processes: BTreeMap::new(),
        }
    }

    #[test]
    fn a_world_is_found_while_it_runs_and_only_one_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(find(folder.path()), Err(RecordError::NotRunning { .. })));
        let lock = Lock::take(folder.path(), Moment(45_296_789)).unwrap();
        assert!(matches!(find(folder.path()), Err(RecordError::Starting { .. })));
        lock.publish(&record()).unwrap();
        assert_eq!(find(folder.path()).unwrap(), record());
        let error = Lock::take(folder.path(), Moment(0)).unwrap_err().to_string();
        let expected = format!("process {}, since 12:34:56.789 UTC", std::process::id());
        assert!(error.contains(&expected), "{error}");
        drop(lock);
        assert!(matches!(find(folder.path()), Err(RecordError::NotRunning { .. })));
        Lock::take(folder.path(), Moment(0)).unwrap();
    }

    #[test]
    fn a_record_without_a_lock_is_left_by_a_dead_world() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LOCK), "{}").unwrap();
        std::fs::write(folder.path().join(RECORD), serde_json::to_vec(&record()).unwrap()).unwrap();
        assert!(matches!(find(folder.path()), Err(RecordError::NotRunning { .. })));
        let lock = Lock::take(folder.path(), Moment(0)).unwrap();
        assert_eq!(lock.left_behind(), record().processes);
    }

    #[test]
    fn a_world_of_another_version_is_named_and_swept() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path(), Moment(0)).unwrap();
        let older = r#"{"schema":1,"control_plane":"http://127.9.7.3:7070","processes":{"edge-iad":7}}"#;
        std::fs::write(folder.path().join(RECORD), older).unwrap();
        let error = find(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("another version of meridian (record 1, not 3)"),
            "{error}"
        );
        assert_eq!(lock.left_behind(), BTreeMap::from([("edge-iad".to_owned(), 7)]));
        std::fs::write(folder.path().join(RECORD), "nonsense").unwrap();
        assert!(matches!(find(folder.path()), Err(RecordError::Io { .. })));
        assert!(lock.left_behind().is_empty());
    }

    #[test]
    fn only_processes_of_the_world_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let sleep = |argument: &Path| {
            std::process::Command::new("sh")
                .args(["-c", "read _", "sh"])
                .arg(argument)
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut ours = sleep(&folder.path().join("edge.toml"));
        let mut other = sleep(Path::new("/elsewhere/edge.toml"));
        let mut etcd = sleep(Path::new(&format!(
            "--data-dir={}",
            folder.path().join("etcd-1").display()
        )));
        let processes = [
            ("edge-iad".to_owned(), ours.id()),
            ("edge-dub".to_owned(), other.id()),
            ("etcd-1".to_owned(), etcd.id()),
        ];
        sweep(&processes.into(), folder.path());
        assert!(!ours.wait().unwrap().success());
        assert!(!etcd.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "not a process of this world");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
