//! One supervised process: start it, wait until it is ready, signal it, notice its end.
//!
//! Signals go through a pidfd, so they cannot reach another process that got the same process id.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use daemon::Announcement;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    process::{ChildStdin, Command},
    sync::{broadcast, watch},
};

use crate::{etcd::EtcdError, ready, texts};

/// A supervised process, running or not.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    program: PathBuf,
    configuration: PathBuf,
    announcement: PathBuf,
    log: PathBuf,
    deaths: broadcast::Sender<Death>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    pid: u32,
    pidfd: OwnedFd,
    started: Instant,
    /// Dropping this end of the pipe tells the process to stop.
    _stdin: Option<ChildStdin>,
    ended: watch::Receiver<Option<ExitStatus>>,
    /// Set before the supervisor itself ends the process.
    expected: Arc<AtomicBool>,
}

/// The end of a process that the world did not ask for.
#[derive(Debug, Clone)]
pub struct Death {
    /// The process's name.
    pub name: String,
    /// Its exit code or signal.
    pub how: String,
    /// Its log file.
    pub log: PathBuf,
    /// The end of the log.
    pub last_words: String,
}

impl Death {
    /// Logs a death and tells those who watch.
    pub(crate) fn report(name: String, how: String, log: PathBuf, deaths: &broadcast::Sender<Self>) {
        tracing::warn!(process = name, how, "{}", texts::PROCESS_DIED);
        let last_words = last_words(&log);
        // Sending fails if nobody subscribed, which is fine.
        let _ = deaths.send(Self {
            name,
            how,
            log,
            last_words,
        });
    }
}

/// Errors of starting a process or talking to it.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No process has this name.
    #[error("{}", texts::no_process(name, known))]
    Unknown {
        /// The name that was given.
        name: String,
        /// The names of all processes.
        known: String,
    },
    /// The program's file is missing.
    #[error("{}", texts::no_program(program))]
    NoProgram {
        /// The path that was looked at.
        program: PathBuf,
    },
    /// A system call failed.
    #[error("{}", texts::cannot(action, name))]
    System {
        /// The action that failed, as in "start".
        action: &'static str,
        /// The process's name.
        name: String,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The process ended before it was ready.
    #[error("{}", texts::ended_before_ready(name, how, log, last_words))]
    Died {
        /// The process's name.
        name: String,
        /// Its exit code or signal.
        how: String,
        /// Its log file.
        log: PathBuf,
        /// The end of the log.
        last_words: String,
    },
    /// The process missed its deadline for becoming ready.
    #[error("{}", texts::not_ready(name, *waited, missing, log, last_words))]
    NotReady {
        /// The process's name.
        name: String,
        /// Time since the process was started.
        waited: Duration,
        /// The condition that it did not meet.
        missing: String,
        /// Its log file.
        log: PathBuf,
        /// The end of the log.
        last_words: String,
    },
    /// The process does not run.
    #[error("{}", texts::process_not_running(name))]
    NotRunning {
        /// The process's name.
        name: String,
    },
    /// An error of etcd's members.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

/// Longest wait for a process to take SIGSTOP: many turns of a busy scheduler.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks at the announcement or the ready page.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Supervised {
    /// A process that is not started yet. In the state folder, its log is `<name>.log` and its announcement
    /// `<name>.json`.
    pub fn new(
        name: &str,
        program: PathBuf,
        configuration: PathBuf,
        state_dir: &Path,
        deaths: broadcast::Sender<Death>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            program,
            configuration,
            announcement: state_dir.join(format!("{name}.json")),
            log: state_dir.join(format!("{name}.log")),
            deaths,
            running: None,
        }
    }

    /// Its process id; `None` while it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.running
            .as_ref()
            .filter(|running| running.ended.borrow().is_none())
            .map(|running| running.pid)
    }

    /// Starts the process. A log from before is appended to.
    pub fn start(&mut self) -> Result<(), ProcessError> {
        if !self.program.is_file() {
            return Err(ProcessError::NoProgram {
                program: self.program.clone(),
            });
        }
        match std::fs::remove_file(&self.announcement) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(self.failed("remove the old announcement of", source));
            }
            _ => {}
        }
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|source| self.failed("open the log of", source))?;
        let mut child = Command::new(&self.program)
            .arg("--config")
            .arg(&self.configuration)
            .arg("--announce")
            .arg(&self.announcement)
            .args(["--supervised", "--log-format", "json"])
            // Six stacks share the machine; with the defaults each would run a thread per core for every utterance.
            .envs([("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C in a terminal goes to a whole process group. Only the supervisor may act on it, so processes get a
            // group of their own.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| self.failed("start", source))?;
        let started = Instant::now();
        let pid = child.id().expect("a child that was not waited for has an id");
        // Nothing waits for the child before the task below does, so its process id cannot belong to another process.
        let pidfd = Pid::from_raw(pid.cast_signed())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|error| self.failed("watch", error.into()))?;
        let (tell, ended) = watch::channel(None);
        let expected = Arc::new(AtomicBool::new(false));
        self.running = Some(Running {
            pid,
            pidfd,
            started,
            // Taken out before `wait`, which closes the child's standard input.
            _stdin: child.stdin.take(),
            ended,
            expected: expected.clone(),
        });
        let (name, log, deaths) = (self.name.clone(), self.log.clone(), self.deaths.clone());
        // The task ends with the process, and the process ends at the latest when this task is dropped
        // (`kill_on_drop`).
        tokio::spawn(async move {
            let status = child.wait().await;
            if !expected.load(Ordering::SeqCst) {
                let how = status.as_ref().map_or_else(ToString::to_string, describe);
                Death::report(name, how, log, &deaths);
            }
            let _ = tell.send(Some(status.unwrap_or_default()));
        });
        Ok(())
    }

    /// Waits until the process has announced its addresses and its ready page says that it takes work. Returns the time
    /// that took.
    pub async fn ready(&mut self, timeout: Duration) -> Result<Duration, ProcessError> {
        self.starting()?.ready(timeout).await
    }

    /// The parts needed to wait for the process, without a borrow: others may signal it meanwhile.
    pub(crate) fn starting(&mut self) -> Result<Starting, ProcessError> {
        let running = self.running_mut()?;
        let (pid, started, ended) = (running.pid, running.started, running.ended.clone());
        Ok(Starting {
            pid,
            started,
            ended,
            name: self.name.clone(),
            announcement: self.announcement.clone(),
            log: self.log.clone(),
        })
    }

    /// Kills the process (SIGKILL) and waits for its end.
    pub async fn kill(&mut self) -> Result<(), ProcessError> {
        self.expect_end()?;
        self.signal("kill", Signal::KILL)?;
        self.wait_for_end().await;
        Ok(())
    }

    /// Asks the process to stop (SIGTERM) and kills it after `grace`. Returns whether it stopped by itself.
    pub async fn terminate(&mut self, grace: Duration) -> Result<bool, ProcessError> {
        self.ask_to_stop()?;
        let stopped = tokio::time::timeout(grace, self.wait_for_end()).await.is_ok();
        if !stopped {
            self.kill().await?;
        }
        Ok(stopped)
    }

    /// Asks the process to stop (SIGTERM) without waiting.
    pub fn ask_to_stop(&mut self) -> Result<(), ProcessError> {
        self.expect_end()?;
        self.signal("terminate", Signal::TERM)?;
        // A frozen process handles SIGTERM only once it runs again.
        self.signal("resume", Signal::CONT)
    }

    /// Freezes the process (SIGSTOP) and waits until every thread has stopped. It keeps its sockets.
    pub async fn freeze(&mut self) -> Result<(), ProcessError> {
        self.signal("freeze", Signal::STOP)?;
        let pid = self.running_mut()?.pid;
        let began = Instant::now();
        // One thread takes the signal and stops the others; on a busy machine they keep serving until it gets its turn.
        while !all_threads_stopped(pid) {
            if began.elapsed() > FREEZE_TIMEOUT {
                let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "its threads do not stop");
                return Err(self.failed("freeze", source));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Lets a frozen process continue (SIGCONT).
    pub fn resume(&mut self) -> Result<(), ProcessError> {
        self.signal("resume", Signal::CONT)
    }

    /// Kills the process (SIGKILL) without waiting, for when the world is dropped.
    pub fn kill_now(&mut self) {
        if self.expect_end().is_ok() {
            let _ = self.signal("kill", Signal::KILL);
        }
    }

    fn expect_end(&mut self) -> Result<(), ProcessError> {
        self.running_mut()?.expected.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn signal(&mut self, action: &'static str, signal: Signal) -> Result<(), ProcessError> {
        let result = pidfd_send_signal(&self.running_mut()?.pidfd, signal);
        match result {
            // ESRCH: the process ended just now, which is the aim of most signals.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(self.failed(action, error.into())),
        }
    }

    async fn wait_for_end(&mut self) {
        if let Some(running) = &mut self.running {
            // An error means that the watching task is gone, and the process with it.
            let _ = running.ended.wait_for(Option::is_some).await;
        }
    }

    fn running_mut(&mut self) -> Result<&mut Running, ProcessError> {
        let name = &self.name;
        self.running
            .as_mut()
            .filter(|running| running.ended.borrow().is_none())
            .ok_or_else(|| ProcessError::NotRunning { name: name.clone() })
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> ProcessError {
        ProcessError::System {
            action,
            name: self.name.clone(),
            source,
        }
    }
}

/// A started process that may not be ready yet.
#[derive(Debug)]
pub(crate) struct Starting {
    name: String,
    pid: u32,
    started: Instant,
    ended: watch::Receiver<Option<ExitStatus>>,
    announcement: PathBuf,
    log: PathBuf,
}

impl Starting {
    /// See [`Supervised::ready`].
    pub(crate) async fn ready(mut self, timeout: Duration) -> Result<Duration, ProcessError> {
        let mut missing = "it has not announced where it listens".to_owned();
        while self.started.elapsed() < timeout {
            if let Ok(Some(announcement)) = Announcement::read(&self.announcement)
                && announcement.pid == self.pid
            {
                match announcement.addresses.get("admin") {
                    None => return Ok(self.started.elapsed()),
                    Some(admin) => match ready::is_ready(*admin).await {
                        Ok(()) => return Ok(self.started.elapsed()),
                        Err(reason) => missing = reason,
                    },
                }
            }
            if let Ok(Ok(status)) = tokio::time::timeout(LOOK_AGAIN, self.ended.wait_for(Option::is_some)).await {
                return Err(ProcessError::Died {
                    name: self.name,
                    how: status.as_ref().map(describe).unwrap_or_default(),
                    last_words: last_words(&self.log),
                    log: self.log,
                });
            }
        }
        Err(ProcessError::NotReady {
            name: self.name,
            waited: self.started.elapsed(),
            missing,
            last_words: last_words(&self.log),
            log: self.log,
        })
    }
}

/// Whether no thread of a process runs any more. Nothing has waited for the process yet, so the id is still its own.
fn all_threads_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        // The process is gone, so no thread of it runs.
        return true;
    };
    threads.flatten().all(|thread| {
        // A thread that ended since the listing does not run either.
        std::fs::read_to_string(thread.path().join("status")).map_or(true, |status| {
            let state = status.lines().find_map(|line| line.strip_prefix("State:"));
            state.is_none_or(|state| matches!(state.trim_start().chars().next(), Some('T' | 't' | 'Z' | 'X')))
        })
    })
}

fn describe(status: &ExitStatus) -> String {
    // "exit status: 1" or "signal: 9 (SIGKILL)".
    status.to_string()
}

/// Lines of a log in an error message: enough for the error and its cause.
const LAST_LINES: usize = 8;
/// Bytes read from the end of a log.
const LAST_BYTES: u64 = 16 << 10;

/// The last lines of a log, with JSON lines made readable.
pub(crate) fn last_words(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            let readable: Vec<String> = last.iter().map(|line| format!("  {}", readable(line))).collect();
            if readable.is_empty() {
                "  (the log is empty)".to_owned()
            } else {
                readable.join("\n")
            }
        }
        Err(error) => format!("  (the log cannot be read: {error})"),
    }
}

fn readable(line: &str) -> String {
    let Ok(serde_json::Value::Object(mut event)) = serde_json::from_str(line) else {
        return line.to_owned();
    };
    let mut text = |key: &str| match event.remove(key) {
        Some(serde_json::Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (_, level, message, _) = (text("timestamp"), text("level"), text("message"), text("target"));
    let fields: Vec<String> = event.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{level} {message} {}", fields.join(" ")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A script that behaves as every Meridian process does towards its supervisor. `body` runs after its announcement.
    fn program(folder: &Path, body: &str) -> PathBuf {
        let path = folder.join("program");
        let announce = r#"printf '{"program":"p","pid":%d,"addresses":{}}' $$ > "$4.new"; mv "$4.new" "$4""#;
        std::fs::write(&path, format!("#!/bin/sh\n{announce}\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn supervised(folder: &Path, body: &str) -> (Supervised, broadcast::Receiver<Death>) {
        let (deaths, died) = broadcast::channel(4);
        let config = folder.join("config.toml");
        let process = Supervised::new("us-east", program(folder, body), config, folder, deaths);
        (process, died)
    }

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_process_is_ready_is_killed_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, mut died) = supervised(folder.path(), "cat >/dev/null");
        for _ in 0..2 {
            process.start().unwrap();
            process.ready(DEADLINE).await.unwrap();
            assert!(process.pid().is_some());
            process.kill().await.unwrap();
            assert_eq!(process.pid(), None);
        }
        assert!(matches!(process.kill().await, Err(ProcessError::NotRunning { .. })));
        assert!(died.try_recv().is_err(), "a death that was asked for is no news");
    }

    #[tokio::test]
    async fn an_unexpected_death_is_reported_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let line = r#"{"timestamp":"t","level":"ERROR","message":"out of luck","region":"us-east","target":"x"}"#;
        let (mut process, mut died) = supervised(folder.path(), &format!("echo '{line}' >&2; read _; exit 3"));
        process.start().unwrap();
        process.ready(DEADLINE).await.unwrap();
        process.running.as_mut().unwrap()._stdin = None;
        let death = died.recv().await.unwrap();
        assert_eq!(death.how, "exit status: 3");
        assert_eq!(death.last_words, "  ERROR out of luck region=\"us-east\"");
    }

    #[tokio::test]
    async fn an_end_before_ready_is_an_error_that_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, _died) = supervised(folder.path(), "rm \"$4\"; echo 'no such model' >&2; exit 1");
        process.start().unwrap();
        let error = loop {
            // The supervisor may see the announcement just before the program removes it.
            if let Err(error) = process.ready(DEADLINE).await {
                break error.to_string();
            }
        };
        assert!(
            error.contains("no such model") || error.contains("is not running"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_deaf_or_frozen_process_is_killed_after_its_grace_period() {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, _died) = supervised(folder.path(), "trap '' TERM; read _");
        process.start().unwrap();
        process.ready(DEADLINE).await.unwrap();
        process.freeze().await.unwrap();
        assert!(all_threads_stopped(process.pid().unwrap()));
        assert!(!process.terminate(Duration::from_millis(50)).await.unwrap());
        assert_eq!(process.pid(), None);
    }

    #[tokio::test]
    async fn a_missing_program_names_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let (deaths, _) = broadcast::channel(1);
        let nowhere = folder.path().join("meridian-stack");
        let mut process = Supervised::new("us-east", nowhere, PathBuf::new(), folder.path(), deaths);
        let error = process.start().unwrap_err().to_string();
        assert!(error.contains("cargo build --workspace --bins"), "{error}");
    }
}
