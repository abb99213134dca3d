//! A real etcd cluster on this machine: one or three members that tests kill, freeze and restart.
//!
//! Every cluster takes a random /24 of the loopback network and writes it to its state folder, so that members keep
//! their addresses when they restart. The kernel kills the members when their supervisor dies, even by SIGKILL.

mod addresses;
mod error;
mod settings;
mod spawner;

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use identity::{Role, Service, Speaks, ca::Leaf, files::Files};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use self::{
    addresses::{ATTEMPTS_MAX, Addresses, claim_again},
    error::{failed, majority},
    spawner::Spawner,
};
pub use self::{
    error::EtcdError,
    settings::{Durability, EtcdAuthority, EtcdSettings, Size},
};
use crate::{authority, network::Network};

/// Keeps the addresses of a cluster, in its state folder.
const ADDRESSES_FILE: &str = "etcd.json";
/// Pause between two questions whether a member is ready.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for the answer of `/health`. A slower member counts as not healthy.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a process to take SIGSTOP: many turns of a busy scheduler.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
/// The name of this process towards members.
const ASKS_AS: &str = "supervisor";
/// Longest reply that is read; a status takes less than 1 KiB.
const REPLY_BYTES_MAX: u64 = 16 << 10;
/// Bytes read from the end of a log for an error message.
const LAST_BYTES: u64 = 2 << 10;

/// A member as its users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The member's name within the cluster.
    pub name: String,
    /// URL for clients.
    pub client_url: String,
    /// URL for the other members.
    pub peer_url: String,
    /// URL of its metrics, in plain text.
    pub metrics_url: String,
    /// Folder of its data.
    pub data_dir: PathBuf,
    /// Its log file.
    pub log: PathBuf,
    /// Its process id; `None` while it does not run.
    pub pid: Option<u32>,
}

/// A running cluster. Dropping it kills the members; their data stays.
#[derive(Debug)]
pub struct EtcdCluster {
    settings: EtcdSettings,
    program: PathBuf,
    guard: PathBuf,
    addresses: Vec<Addresses>,
    running: Vec<Option<Running>>,
    spawner: Spawner,
    /// Calls members that want to know who calls.
    service: Option<Service>,
    /// Claims the network of the members' addresses for as long as the cluster lives.
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
            let service = match &settings.authority {
                Some(authority) => Some(certificates(authority, &addresses)?),
                None => None,
            };
            let mut cluster = Self {
                service,
                running: addresses.iter().map(|_| None).collect(),
                settings: settings.clone(),
                program: program.clone(),
                guard: guard.clone(),
                addresses,
                spawner: Spawner::start()?,
                _network: network,
            };
            match cluster.start_all().await {
                // Another process took an address between our check and etcd's bind: try another network.
                Err(EtcdError::Died { last_words, .. })
                    if is_new && attempt < ATTEMPTS_MAX && last_words.contains("address already in use") =>
                {
                    attempt += 1;
                    for member in cluster.members() {
                        // A member that never ran has no folder.
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

    /// The certificates of the members, and of this process towards them, which the caller must keep alive.
    pub(crate) fn leaves(&self) -> Result<Vec<(Leaf, PathBuf)>, EtcdError> {
        let Some(authority) = &self.settings.authority else {
            return Ok(Vec::new());
        };
        let own = authority::client_leaf(&authority.zone, Role::Etcd(ASKS_AS.to_owned()))?;
        let mut leaves = member_leaves(authority, &self.addresses)?;
        leaves.push((own, authority.issued(ASKS_AS)));
        Ok(leaves)
    }

    /// All members, by index.
    pub fn members(&self) -> Vec<Member> {
        let scheme = if self.service.is_some() { "https" } else { "http" };
        let all = self.addresses.iter().zip(&self.running).enumerate();
        all.map(|(index, (addresses, running))| {
            let name = name(index);
            Member {
                client_url: format!("{scheme}://{}", addresses.client),
                peer_url: format!("{scheme}://{}", addresses.peer),
                metrics_url: format!("http://{}/metrics", addresses.metrics),
                data_dir: self.settings.state_dir.join(&name),
                log: self.settings.state_dir.join(format!("{name}.log")),
                pid: running.as_ref().map(|running| running.child.id()),
                name,
            }
        })
        .collect()
    }

    /// The value of etcd's `--initial-cluster`: names and peer URLs.
    pub fn initial_cluster(&self) -> String {
        let one = |member: Member| format!("{}={}", member.name, member.peer_url);
        self.members().into_iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Index of the leader, if the members agree on one. Frozen members cannot answer and are not asked.
    pub async fn leader(&self) -> Option<usize> {
        let mut ids = vec![None; self.addresses.len()];
        let mut leader = None;
        for (index, addresses) in self.addresses.iter().enumerate() {
            if self.running[index].as_ref().is_none_or(|running| running.frozen) {
                continue;
            }
            let Ok(reply) = self.ask(addresses.client, "POST /v3/maintenance/status", "{}").await else {
                continue;
            };
            let Ok(status) = serde_json::from_str::<serde_json::Value>(&reply) else {
                continue;
            };
            ids[index] = status["header"]["member_id"].as_str().map(str::to_owned);
            // JSON of protobuf leaves out zeros, so a member without a leader sends no such field.
            leader = status["leader"].as_str().map(str::to_owned).or(leader);
        }
        let leader = leader?;
        ids.iter().position(|id| id.as_ref() == Some(&leader))
    }

    /// Waits until every running member reports that the cluster takes its writes.
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

    /// Whether a running member reports that the cluster takes its writes. Fails if the member has ended, and if the
    /// deadline, counted from `began`, has passed.
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
        let reply = self.ask(self.addresses[index].client, "GET /health", "").await;
        if reply.is_ok_and(|reply| reply.contains(r#""health":"true""#)) {
            return Ok(true);
        }
        if began.elapsed() > self.settings.healthy_deadline {
            return Err(EtcdError::NotHealthy {
                name: member.name,
                waited: began.elapsed(),
                last_words: last_words(&member.log),
                log: member.log,
            });
        }
        Ok(false)
    }

    /// Fails if too few members run for writes. Frozen members do not count.
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

    /// Kills a member (SIGKILL) and waits for its end.
    pub fn kill(&mut self, index: usize) -> Result<(), EtcdError> {
        let mut running = self.running[index]
            .take()
            .ok_or_else(|| EtcdError::NotRunning(name(index)))?;
        running
            .signal(Signal::KILL)
            .map_err(|error| failed("kill a member", error))?;
        // A frozen process takes SIGKILL at once too.
        running
            .child
            .wait()
            .map_err(|error| failed("wait for a member", error))?;
        Ok(())
    }

    /// Freezes a member (SIGSTOP) and waits until its threads have stopped. It keeps its sockets.
    pub async fn stop(&mut self, index: usize) -> Result<(), EtcdError> {
        let running = self.running_mut(index)?;
        running
            .signal(Signal::STOP)
            .map_err(|error| failed("freeze a member", error))?;
        let began = Instant::now();
        // The system reports the stop once all threads have stopped. NOWAIT only looks, so the exit status stays for
        // `wait`.
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

    /// Lets a frozen member continue (SIGCONT).
    pub fn resume(&mut self, index: usize) -> Result<(), EtcdError> {
        let running = self.running_mut(index)?;
        running.frozen = false;
        running
            .signal(Signal::CONT)
            .map_err(|error| failed("resume a member", error))
    }

    /// Starts a killed member and waits until it is healthy.
    pub async fn restart(&mut self, index: usize) -> Result<(), EtcdError> {
        self.launch(index)?;
        self.member_healthy(index, Instant::now()).await
    }

    /// Starts a killed member without waiting for its health: after the loss of a quorum the first member cannot become
    /// healthy alone.
    pub fn launch(&mut self, index: usize) -> Result<(), EtcdError> {
        match self.running[index] {
            Some(_) => Err(EtcdError::Running(name(index))),
            None => self.spawn(index),
        }
    }

    /// Sends a member an HTTP request and returns the body of its reply.
    async fn ask(&self, address: SocketAddr, request: &str, body: &str) -> std::io::Result<String> {
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let asked = async {
            let tcp = TcpStream::connect(address).await?;
            match &self.service {
                Some(service) => {
                    let tls = service.connect(&address.ip().to_string(), tcp, Speaks::Http1).await?;
                    exchange(tls, &text).await
                }
                None => exchange(tcp, &text).await,
            }
        };
        let reply = tokio::time::timeout(ASK_TIMEOUT, asked).await??;
        let body = reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| std::io::Error::other("no HTTP reply"))
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
            .args(["--listen-metrics-urls", member.metrics_url.trim_end_matches("/metrics")])
            .args(["--listen-peer-urls", &member.peer_url])
            .args(["--initial-advertise-peer-urls", &member.peer_url])
            .args(["--initial-cluster", &self.initial_cluster()])
            .args(["--initial-cluster-state", "new"])
            // Without compaction etcd keeps every value ever written, until the quota stops all writes.
            .args(["--auto-compaction-mode", "periodic"])
            .args(["--auto-compaction-retention", "1h"])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            // An ETCD_* variable of the environment would set any option not given here.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C in a terminal goes to a whole process group. Only the supervisor may act on it, so members get a
            // group of their own.
            .process_group(0);
        if let Some(authority) = &self.settings.authority {
            let files = Files::in_folder(&authority.issued(&member.name));
            let roots = authority.folder.trust();
            command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
            for (option, file) in [
                ("--cert-file", &files.certificate),
                ("--key-file", &files.key),
                ("--trusted-ca-file", &roots),
                ("--peer-cert-file", &files.certificate),
                ("--peer-key-file", &files.key),
                ("--peer-trusted-ca-file", &roots),
            ] {
                command.arg(option).arg(file);
            }
        }
        if let Some(bytes) = self.settings.quota_bytes {
            command.args(["--quota-backend-bytes", &bytes.to_string()]);
        }
        if self.settings.durability == Durability::Unsynced {
            command.arg("--unsafe-no-fsync");
        }
        let child = self.spawner.spawn(command)?;
        // Nothing has waited for the child yet, so its process id cannot belong to another process.
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
            // Fails for members that do not run, which is fine here.
            let _ = self.kill(index);
        }
    }
}

impl Running {
    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            // ESRCH: the process ended just now, which is the aim of most signals.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
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

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut reply = Vec::new();
    stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

/// Issues the certificates of the members, and one with which this process asks them how they are.
fn certificates(authority: &EtcdAuthority, addresses: &[Addresses]) -> Result<Service, EtcdError> {
    let now = daemon::clock::now();
    let EtcdAuthority { folder, zone } = authority;
    for (leaf, into) in member_leaves(authority, addresses)? {
        folder.issue(&leaf, &into, now)?;
    }
    let own = authority::client_leaf(zone, Role::Etcd(ASKS_AS.to_owned()))?;
    let files = folder.issue(&own, &authority.issued(ASKS_AS), now)?;
    Service::load(files).map_err(|error| failed("show etcd a certificate", std::io::Error::other(error)))
}

/// The leaf of each member, and its folder.
fn member_leaves(authority: &EtcdAuthority, addresses: &[Addresses]) -> Result<Vec<(Leaf, PathBuf)>, EtcdError> {
    let leaves = addresses.iter().enumerate().map(|(index, addresses)| {
        let name = name(index);
        let leaf = authority::member_leaf(&authority.zone, &name, addresses.client.ip())?;
        Ok((leaf, authority.issued(&name)))
    });
    leaves.collect()
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
mod tests;
