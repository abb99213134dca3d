//! A real etcd cluster on this machine, of one or three members that can be killed, frozen and brought back.
//!
//! Every cluster takes a random /24 of the loopback network and keeps it in its state folder, so that members find each
//! other again after a restart. The kernel kills the members when whoever supervises them is gone, however it went.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::network::Network;

// etcd's own; like those of a world they are below the ephemeral ports, which somebody's connection may take.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// Networks tried before giving up. One suffices unless somebody listens on all addresses at one of the ports.
const ATTEMPTS_MAX: u16 = 16;
/// Where the addresses of a cluster are kept.
const ADDRESSES_FILE: &str = "etcd.json";
/// How often a member is asked whether it is ready.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A member that needs longer to say whether it is healthy is not.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a process to take SIGSTOP: many turns of a busy scheduler.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
/// Enough for a status.
const REPLY_BYTES_MAX: u64 = 16 << 10;
/// Read from the end of a log for an error message.
const LAST_BYTES: u64 = 2 << 10;

/// How many members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One, which is no cluster but behaves like one.
    One,
    /// Three, of which one may be lost.
    Three,
}

/// Whether what was written survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Every write is on disk before it is acknowledged.
    Synced,
    /// Writes survive the process, not the machine: for tests, which are many times faster with it.
    Unsynced,
}

/// What a cluster is like.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// How many members.
    pub size: Size,
    /// Where data, logs and addresses are; made when missing. What is there already goes on.
    pub state_dir: PathBuf,
    /// Whether to wait for the disk.
    pub durability: Durability,
    /// Bytes after which it takes no more writes; etcd's default of 2 GiB if none.
    pub quota_bytes: Option<u64>,
    /// How long members may take to be healthy.
    pub patience: Duration,
}

impl EtcdSettings {
    /// A cluster for tests in a folder of its own.
    pub fn for_tests(size: Size, state_dir: &Path) -> Self {
        Self {
            size,
            state_dir: state_dir.to_owned(),
            durability: Durability::Unsynced,
            quota_bytes: None,
            // Tests share two cores with a compiler.
            patience: Duration::from_secs(60),
        }
    }
}

/// Why a cluster cannot be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A program is not installed.
    #[error("cannot find the program \"{program}\"; install {package}")]
    NoProgram {
        /// Which.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The system refused.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A member ended before it was healthy.
    #[error("{name} ended before it was healthy ({status}); log {}:\n{last_words}", log.display())]
    Died {
        /// Which.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The end of the log.
        last_words: String,
    },
    /// A member was not healthy in time.
    #[error("{name} was not healthy after {:.0} s; log {}:\n{last_words}", waited.as_secs_f64(), log.display())]
    NotHealthy {
        /// Which.
        name: String,
        /// How long it was waited for.
        waited: Duration,
        /// Its log.
        log: PathBuf,
        /// The end of the log.
        last_words: String,
    },
    /// The member does not run.
    #[error("{0} is not running; restart it first")]
    NotRunning(String),
    /// The member was started already.
    #[error("{0} was started already; kill it first")]
    Running(String),
    /// The member runs, and etcd takes no writes before more members do.
    #[error(
        "{name} runs and takes no writes yet: {} of the {members} members must run (now {running}); restart another one",
        majority(*members)
    )]
    NoQuorum {
        /// Which.
        name: String,
        /// Members that run, this one included.
        running: usize,
        /// All members.
        members: usize,
    },
}

fn failed(action: impl Into<String>, source: impl Into<std::io::Error>) -> EtcdError {
    EtcdError::System {
        action: action.into(),
        source: source.into(),
    }
}

/// Where a member listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Addresses {
    client: SocketAddr,
    peer: SocketAddr,
}

impl Addresses {
    /// Those of a random network in which all are free.
    fn choose(size: Size) -> Result<(Vec<Self>, Network), EtcdError> {
        let mut attempt = 0;
        loop {
            let network = Network::claim_any().map_err(|error| failed("claim a loopback network", error))?;
            let [a, b, c] = network.prefix();
            let members = 1..=if size == Size::One { 1 } else { 3 };
            let all: Vec<Self> = members
                .map(|host| {
                    let ip = Ipv4Addr::new(a, b, c, host);
                    let (client, peer) = (CLIENT_PORT + 2 * attempt, PEER_PORT + 2 * attempt);
                    Self {
                        client: (ip, client).into(),
                        peer: (ip, peer).into(),
                    }
                })
                .collect();
            let mut sockets = all.iter().flat_map(|member| [member.client, member.peer]);
            attempt += 1;
            match sockets.try_for_each(|address| TcpListener::bind(address).map(drop)) {
                Ok(()) => return Ok((all, network)),
                Err(_) if attempt < ATTEMPTS_MAX => {}
                Err(error) => return Err(failed("find free loopback addresses", error)),
            }
        }
    }
}

/// A member, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name within the cluster.
    pub name: String,
    /// Where clients reach it.
    pub client_url: String,
    /// Where the others reach it.
    pub peer_url: String,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its process, while it runs.
    pub pid: Option<u32>,
}

/// A running cluster. It ends when it is dropped; its data stays.
#[derive(Debug)]
pub struct EtcdCluster {
    settings: EtcdSettings,
    program: PathBuf,
    guard: PathBuf,
    addresses: Vec<Addresses>,
    running: Vec<Option<Running>>,
    spawner: Spawner,
    /// Where the addresses are.
    _network: Network,
}

#[derive(Debug)]
struct Running {
    child: Child,
    pidfd: OwnedFd,
    frozen: bool,
}

impl EtcdCluster {
    /// Starts all members and waits until they are healthy.
    pub async fn start(settings: EtcdSettings) -> Result<Self, EtcdError> {
        let program = find("etcd", "etcd-server")?;
        let guard = find("setpriv", "util-linux")?;
        std::fs::create_dir_all(&settings.state_dir)
            .map_err(|error| failed(format!("make {}", settings.state_dir.display()), error))?;
        let file = settings.state_dir.join(ADDRESSES_FILE);
        let known: Option<Vec<Addresses>> = match std::fs::read(&file) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes).map_err(|error| failed(format!("read {}", file.display()), error))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(format!("read {}", file.display()), error)),
        };
        let mut attempt = 1;
        loop {
            let is_new = known.is_none();
            let (addresses, network) = match &known {
                Some(addresses) => (addresses.clone(), claim_again(addresses)?),
                None => Addresses::choose(settings.size)?,
            };
            let mut cluster = Self {
                running: addresses.iter().map(|_| None).collect(),
                settings: settings.clone(),
                program: program.clone(),
                guard: guard.clone(),
                addresses,
                spawner: Spawner::start()?,
                _network: network,
            };
            match cluster.start_all().await {
                // Somebody took an address between our look and etcd's.
                Err(EtcdError::Died { last_words, .. })
                    if is_new && attempt < ATTEMPTS_MAX && last_words.contains("address already in use") =>
                {
                    attempt += 1;
                    for member in cluster.members() {
                        // A member that never ran has none.
                        let _ = std::fs::remove_dir_all(member.data_dir);
                    }
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    let text = serde_json::to_vec(&cluster.addresses).expect("addresses are plain JSON");
                    std::fs::write(&file, text).map_err(|error| failed(format!("write {}", file.display()), error))?;
                    return Ok(cluster);
                }
            }
        }
    }

    async fn start_all(&mut self) -> Result<(), EtcdError> {
        for index in 0..self.addresses.len() {
            self.spawn(index)?;
        }
        self.healthy().await
    }

    /// Client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        self.members().into_iter().map(|member| member.client_url).collect()
    }

    /// All members, by index.
    pub fn members(&self) -> Vec<Member> {
        let all = self.addresses.iter().zip(&self.running).enumerate();
        all.map(|(index, (addresses, running))| {
            let name = name(index);
            Member {
                client_url: format!("http://{}", addresses.client),
                peer_url: format!("http://{}", addresses.peer),
                data_dir: self.settings.state_dir.join(&name),
                log: self.settings.state_dir.join(format!("{name}.log")),
                pid: running.as_ref().map(|running| running.child.id()),
                name,
            }
        })
        .collect()
    }

    /// What etcd calls the initial cluster: names and peer URLs.
    pub fn initial_cluster(&self) -> String {
        let one = |member: Member| format!("{}={}", member.name, member.peer_url);
        self.members().into_iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Which member the others follow, if they agree on one. Frozen members are not asked.
    pub async fn leader(&self) -> Option<usize> {
        let mut ids = vec![None; self.addresses.len()];
        let mut leader = None;
        for (index, addresses) in self.addresses.iter().enumerate() {
            if self.running[index].as_ref().is_none_or(|running| running.frozen) {
                continue;
            }
            let Ok(reply) = ask(addresses.client, "POST /v3/maintenance/status", "{}").await else {
                continue;
            };
            let Ok(status) = serde_json::from_str::<serde_json::Value>(&reply) else {
                continue;
            };
            ids[index] = status["header"]["member_id"].as_str().map(str::to_owned);
            // The protocol leaves out zeros: no leader, no field.
            leader = status["leader"].as_str().map(str::to_owned).or(leader);
        }
        let leader = leader?;
        ids.iter().position(|id| id.as_ref() == Some(&leader))
    }

    /// Waits until every member that runs says that the cluster takes its writes.
    pub async fn healthy(&mut self) -> Result<(), EtcdError> {
        let began = Instant::now();
        for index in 0..self.addresses.len() {
            self.member_healthy(index, began).await?;
        }
        Ok(())
    }

    async fn member_healthy(&mut self, index: usize, began: Instant) -> Result<(), EtcdError> {
        while self.running[index].is_some() && !self.is_healthy(index, began).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Whether a member that runs says that the cluster takes its writes. Fails when the member ended, and when it was waited
    /// for too long since `began`.
    pub(crate) async fn is_healthy(&mut self, index: usize, began: Instant) -> Result<bool, EtcdError> {
        let member = self.members().swap_remove(index);
        if let Ok(Some(status)) = self.running_mut(index)?.child.try_wait() {
            self.running[index] = None;
            return Err(EtcdError::Died {
                name: member.name,
                status,
                last_words: last_words(&member.log),
                log: member.log,
            });
        }
        let reply = ask(self.addresses[index].client, "GET /health", "").await;
        if reply.is_ok_and(|reply| reply.contains(r#""health":"true""#)) {
            return Ok(true);
        }
        if began.elapsed() > self.settings.patience {
            return Err(EtcdError::NotHealthy {
                name: member.name,
                waited: began.elapsed(),
                last_words: last_words(&member.log),
                log: member.log,
            });
        }
        Ok(false)
    }

    /// Fails when too few members run for any of them to take writes. A frozen one does not count.
    pub(crate) fn has_quorum(&self, index: usize) -> Result<(), EtcdError> {
        let (members, running) = (self.running.len(), self.running.iter().flatten());
        let running = running.filter(|running| !running.frozen).count();
        if running >= majority(members) {
            return Ok(());
        }
        Err(EtcdError::NoQuorum {
            name: name(index),
            running,
            members,
        })
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self, index: usize) -> Result<(), EtcdError> {
        let mut running = self.running[index]
            .take()
            .ok_or_else(|| EtcdError::NotRunning(name(index)))?;
        running
            .signal(Signal::KILL)
            .map_err(|error| failed("kill a member", error))?;
        // Even a frozen process takes this signal at once.
        running
            .child
            .wait()
            .map_err(|error| failed("wait for a member", error))?;
        Ok(())
    }

    /// SIGSTOP, and waits until it does nothing more: it keeps its sockets.
    pub async fn stop(&mut self, index: usize) -> Result<(), EtcdError> {
        let running = self.running_mut(index)?;
        running
            .signal(Signal::STOP)
            .map_err(|error| failed("freeze a member", error))?;
        let began = Instant::now();
        // The system reports the stop when all threads have stopped. Only looked at: whoever waits for the end still finds it.
        let look = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            let state = waitid(WaitId::PidFd(running.pidfd.as_fd()), look);
            match state.map_err(|error| failed("freeze a member", error))? {
                Some(state) if state.stopped() => break,
                Some(_) => return Err(EtcdError::NotRunning(name(index))),
                None if began.elapsed() > FREEZE_TIMEOUT => {
                    let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
                    return Err(failed("freeze a member", source));
                }
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        running.frozen = true;
        Ok(())
    }

    /// SIGCONT.
    pub fn resume(&mut self, index: usize) -> Result<(), EtcdError> {
        let running = self.running_mut(index)?;
        running.frozen = false;
        running
            .signal(Signal::CONT)
            .map_err(|error| failed("resume a member", error))
    }

    /// Starts a member that was killed, and waits until it is healthy.
    pub async fn restart(&mut self, index: usize) -> Result<(), EtcdError> {
        self.launch(index)?;
        self.member_healthy(index, Instant::now()).await
    }

    /// Starts a member that was killed, without waiting: when most of them were killed the first cannot be healthy.
    pub fn launch(&mut self, index: usize) -> Result<(), EtcdError> {
        match self.running[index] {
            Some(_) => Err(EtcdError::Running(name(index))),
            None => self.spawn(index),
        }
    }

    fn running_mut(&mut self, index: usize) -> Result<&mut Running, EtcdError> {
        self.running[index]
            .as_mut()
            .ok_or_else(|| EtcdError::NotRunning(name(index)))
    }

    fn spawn(&mut self, index: usize) -> Result<(), EtcdError> {
        let member = self.members().swap_remove(index);
        let log = File::options().create(true).append(true).open(&member.log);
        let log = log.map_err(|error| failed(format!("open {}", member.log.display()), error))?;
        let mut command = Command::new(&self.guard);
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(&member.data_dir)
            .args(["--listen-client-urls", &member.client_url])
            .args(["--advertise-client-urls", &member.client_url])
            .args(["--listen-peer-urls", &member.peer_url])
            .args(["--initial-advertise-peer-urls", &member.peer_url])
            .args(["--initial-cluster", &self.initial_cluster()])
            .args(["--initial-cluster-state", "new"])
            // Without it every value that was ever written is kept, until the quota stops all writes.
            .args(["--auto-compaction-mode", "periodic"])
            .args(["--auto-compaction-retention", "1h"])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            // Settings for another etcd in the environment would win over what is not given here.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C in a terminal reaches a whole process group; only the supervisor shall act on it.
            .process_group(0);
        if let Some(bytes) = self.settings.quota_bytes {
            command.args(["--quota-backend-bytes", &bytes.to_string()]);
        }
        if self.settings.durability == Durability::Unsynced {
            command.arg("--unsafe-no-fsync");
        }
        let child = self.spawner.spawn(command)?;
        // Nobody waits for the child before we do, so the number is still its own.
        let pidfd = Pid::from_raw(child.id().cast_signed())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|error| failed("watch a member", error))?;
        self.running[index] = Some(Running {
            child,
            pidfd,
            frozen: false,
        });
        Ok(())
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for index in 0..self.running.len() {
            // Those that do not run need no end.
            let _ = self.kill(index);
        }
    }
}

impl Running {
    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            // It ended just now, which is what most signals want.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Starts processes on a thread of its own. The kernel kills them when that thread ends, and those of a runtime may end
/// early.
#[derive(Debug)]
struct Spawner {
    /// Given up first when dropped, which ends the thread.
    wanted: Option<mpsc::Sender<Wanted>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Wanted = (Command, mpsc::Sender<std::io::Result<Child>>);

impl Spawner {
    fn start() -> Result<Self, EtcdError> {
        let (wanted, wishes) = mpsc::channel::<Wanted>();
        let thread = thread::Builder::new()
            .name("etcd spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in wishes {
                    // A child that nobody takes ends with this thread.
                    let _ = reply.send(command.spawn());
                }
            })
            .map_err(|error| failed("start a thread", error))?;
        Ok(Self {
            wanted: Some(wanted),
            thread: Some(thread),
        })
    }

    /// Returns when the program runs or could not be run: a matter of milliseconds.
    fn spawn(&self, command: Command) -> Result<Child, EtcdError> {
        let (reply, answer) = mpsc::channel();
        let gone = || failed("start etcd", std::io::Error::other("the spawning thread is gone"));
        let wanted = self.wanted.as_ref().ok_or_else(gone)?;
        wanted.send((command, reply)).map_err(|_| gone())?;
        let child = answer.recv().map_err(|_| gone())?;
        child.map_err(|error| failed("start etcd", error))
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

/// The network of addresses from before a restart.
fn claim_again(addresses: &[Addresses]) -> Result<Network, EtcdError> {
    let prefix = match addresses.first().map(|member| member.client.ip()) {
        Some(IpAddr::V4(ip)) => ip.octets(),
        Some(IpAddr::V6(_)) | None => Ipv4Addr::LOCALHOST.octets(),
    };
    let [a, b, c, _] = prefix;
    Network::claim([a, b, c]).map_err(|error| failed(format!("claim the network {a}.{b}.{c}.0/24 again"), error))
}

/// How many of so many members must run.
fn majority(members: usize) -> usize {
    members / 2 + 1
}

fn name(index: usize) -> String {
    format!("etcd-{}", index + 1)
}

fn find(program: &'static str, package: &'static str) -> Result<PathBuf, EtcdError> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&folders).map(|folder| folder.join(program));
    candidates
        .find(|candidate| candidate.is_file())
        .ok_or(EtcdError::NoProgram { program, package })
}

/// Asks a member over HTTP, and returns the body of its reply.
async fn ask(address: SocketAddr, request: &str, body: &str) -> std::io::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await?;
        let mut reply = Vec::new();
        stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&reply).into_owned())
    };
    let reply = tokio::time::timeout(ASK_TIMEOUT, asked).await??;
    let body = reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other("no HTTP reply"))
}

fn last_words(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn in_folder(folder: &tempfile::TempDir, size: Size) -> EtcdSettings {
        EtcdSettings::for_tests(size, folder.path())
    }

    /// Whether a process runs. Its number may be that of another soon, so it is asked for its name too.
    fn is_etcd(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "etcd")
    }

    #[tokio::test]
    async fn three_members_elect_a_leader_lose_it_and_get_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = EtcdCluster::start(in_folder(&folder, Size::Three)).await.unwrap();
        let pids: Vec<u32> = cluster.members().iter().filter_map(|member| member.pid).collect();
        assert_eq!(pids.len(), 3);
        let first = cluster.leader().await.unwrap();
        cluster.kill(first).unwrap();
        assert!(!is_etcd(pids[first]));
        assert!(matches!(cluster.kill(first), Err(EtcdError::NotRunning(_))));
        assert!(matches!(cluster.launch((first + 1) % 3), Err(EtcdError::Running(_))));
        cluster.healthy().await.unwrap();
        let second = loop {
            match cluster.leader().await {
                Some(leader) => break leader,
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        assert_ne!(first, second);
        cluster.restart(first).await.unwrap();
        assert_eq!(cluster.leader().await, Some(second));
        let follower = 3 - first - second;
        cluster.stop(follower).await.unwrap();
        let address = cluster.addresses[follower].client;
        assert!(
            ask(address, "GET /health", "").await.is_err(),
            "a frozen member says nothing"
        );
        cluster.resume(follower).unwrap();
        cluster.healthy().await.unwrap();
        let pids: Vec<u32> = cluster.members().iter().filter_map(|member| member.pid).collect();
        drop(cluster);
        assert!(!pids.into_iter().any(is_etcd), "nothing outlives a cluster");
    }

    #[tokio::test]
    async fn a_cluster_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let settings = in_folder(&folder, Size::One);
        let cluster = EtcdCluster::start(settings.clone()).await.unwrap();
        let endpoints = cluster.endpoints();
        // "a" and "b" in base64.
        let put = r#"{"key":"YQ==","value":"Yg=="}"#;
        ask(cluster.addresses[0].client, "POST /v3/kv/put", put).await.unwrap();
        drop(cluster);
        let cluster = EtcdCluster::start(settings).await.unwrap();
        assert_eq!(cluster.endpoints(), endpoints);
        let range = ask(cluster.addresses[0].client, "POST /v3/kv/range", r#"{"key":"YQ=="}"#);
        assert!(range.await.unwrap().contains(r#""value":"Yg==""#));
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_with_etcds_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let settings = in_folder(&folder, Size::One);
        let address = EtcdCluster::start(settings.clone()).await.unwrap().addresses[0].client;
        let _taken = TcpListener::bind(address).unwrap();
        let error = EtcdCluster::start(settings).await.unwrap_err().to_string();
        assert!(error.contains("address already in use"), "{error}");
    }

    #[test]
    fn a_missing_program_names_the_package() {
        let error = find("no-such-program", "etcd-server").unwrap_err().to_string();
        assert!(error.contains("install etcd-server"), "{error}");
    }

    /// Says where its member is, and waits to be killed: the other half of the next test.
    const SUPERVISOR: &str = "MERIDIAN_TEST_ETCD_SUPERVISOR";

    #[tokio::test]
    async fn a_killed_supervisor_leaves_nothing_behind() {
        if let Some(folder) = std::env::var_os(SUPERVISOR) {
            let settings = EtcdSettings::for_tests(Size::One, Path::new(&folder));
            let cluster = EtcdCluster::start(settings).await.unwrap();
            println!("pid={}", cluster.members()[0].pid.unwrap());
            std::io::stdout().flush().unwrap();
            std::future::pending::<()>().await;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut supervisor = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "etcd::tests::a_killed_supervisor_leaves_nothing_behind",
            ])
            .env(SUPERVISOR, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = std::io::BufReader::new(supervisor.stdout.take().unwrap());
        let mut lines = std::io::BufRead::lines(said).map(Result::unwrap);
        let pid = lines.find_map(|line| line.split_once("pid=").map(|(_, pid)| pid.trim().to_owned()));
        let pid: u32 = pid.unwrap().parse().unwrap();
        assert!(is_etcd(pid));
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        let began = Instant::now();
        while is_etcd(pid) {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "etcd outlives its supervisor"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
