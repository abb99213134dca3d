//! The proxies of the comparison. Each starts with its own configuration in its own folder; the bench measures it from outside,
//! through /proc.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bench::{memory_kib, stack::identity_section, texts};
use identity::files::Files;
use node::LastGood;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::{
    net::TcpStream,
    process::{Child, ChildStdin, Command},
};
use topology::Snapshot;

use crate::tls::Certificate;

/// The kind of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The edge.
    Meridian,
    Nginx,
    Haproxy,
}

impl Kind {
    /// All kinds, in the order of the tables.
    pub(crate) const ALL: [Self; 3] = [Self::Meridian, Self::Nginx, Self::Haproxy];

    /// Its name in tables and files.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Meridian => "meridian",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

/// The transport between devices and a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Over {
    Plain,
    Tls,
}

/// The folder of the proxies' files, and the certificates that they show.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    /// The certificate for devices.
    pub(crate) certificate: Certificate,
    /// The certificate with which edges prove to stacks who they are; `None` for plain text.
    pub(crate) to_stacks: Option<Files>,
}

impl Place {
    /// A folder inside of this one, for a second proxy of a kind.
    pub(crate) fn within(&self, name: &str) -> Self {
        Self {
            folder: self.folder.join(name),
            ..self.clone()
        }
    }
}

struct Listen<'a> {
    plain: SocketAddr,
    tls: SocketAddr,
    certificate: &'a Certificate,
}

/// A proxy that runs.
pub(crate) struct Proxy {
    kind: Kind,
    plain: SocketAddr,
    tls: SocketAddr,
    /// The certificate that devices trust.
    trusted: PathBuf,
    processes: Group,
    /// Dropping this ends the edge.
    _supervision: Option<ChildStdin>,
}

/// The processes of a proxy, in a group of their own. nginx's workers survive the death of their master, so dropping this ends the whole
/// group, however the bench ends.
struct Group {
    /// The leader. Its id is also that of the group, and stays its own until something waits for it.
    leader: Child,
}

impl Group {
    fn start(command: &mut Command) -> std::io::Result<Self> {
        let leader = command.process_group(0).kill_on_drop(true).spawn()?;
        Ok(Self { leader })
    }

    fn signal(&self, signal: Signal) {
        let leader = self.leader.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(group) = leader {
            // An error means that all processes have ended.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    /// The id of the group; none after a wait for the leader, because the kernel may have given the id to another process.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Most connections of devices at one proxy: each takes two descriptors, of the 20,000 that a process commonly has.
pub(crate) const CONNECTIONS_MAX: usize = 9_900;
/// Longest wait for a proxy to listen.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a proxy to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Ticks of the times in /proc/PID/stat: 100 a second on every Linux of today (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

impl Proxy {
    /// Starts a proxy in front of these stacks. The first takes every session; the others are its backups.
    pub(crate) async fn start(kind: Kind, stacks: &[SocketAddr], place: &Place) -> anyhow::Result<Self> {
        Self::start_at(kind, free_address()?, stacks, place).await
    }

    /// The same at a given address.
    pub(crate) async fn start_at(
        kind: Kind,
        address: SocketAddr,
        stacks: &[SocketAddr],
        place: &Place,
    ) -> anyhow::Result<Self> {
        let folder = &place.folder.join(kind.as_str());
        let listen = Listen {
            plain: address,
            tls: free_address()?,
            certificate: &place.certificate,
        };
        // Without this the edge would go on with the plan of an earlier one.
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder).with_context(|| texts::cannot_make(folder))?;
        let mut command = match kind {
            Kind::Meridian => edge(&listen, stacks, place.to_stacks.as_ref(), folder)?,
            Kind::Nginx => nginx(&listen, stacks, folder)?,
            Kind::Haproxy => haproxy(&listen, stacks, folder)?,
        };
        let log = std::fs::File::create(folder.join("log")).context("cannot make the log of a proxy")?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut processes = Group::start(&mut command).with_context(|| texts::cannot_start(kind.as_str()))?;
        let supervision = processes.leader.stdin.take();
        let proxy = Self {
            kind,
            plain: listen.plain,
            tls: listen.tls,
            trusted: place.certificate.trusted.clone(),
            processes,
            _supervision: supervision,
        };
        proxy.ready(folder).await?;
        Ok(proxy)
    }

    async fn ready(&self, folder: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while TcpStream::connect(self.plain).await.is_err() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                bail!("{} does not listen at {}: {log}", self.kind.as_str(), self.plain);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The address to which devices connect.
    pub(crate) fn address(&self, over: Over) -> SocketAddr {
        match over {
            Over::Plain => self.plain,
            Over::Tls => self.tls,
        }
    }

    /// The certificate that devices trust; none without TLS.
    pub(crate) fn trusted(&self, over: Over) -> Option<PathBuf> {
        (over == Over::Tls).then(|| self.trusted.clone())
    }

    /// Its processes: nginx has workers.
    fn pids(&self) -> Vec<u32> {
        let Some(pid) = self.processes.leader.id() else {
            return Vec::new();
        };
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(pid).chain(children).collect()
    }

    /// The processor time that it has used so far, in user space and in the kernel.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut ticks = 0;
        for pid in self.pids() {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            ticks += cpu_ticks(&stat).with_context(|| format!("/proc/{pid}/stat is not as expected"))?;
        }
        Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
    }

    /// Its anonymous resident memory in KiB: without programs, libraries and the kernel's part.
    pub(crate) fn anonymous_kib(&self) -> anyhow::Result<f64> {
        let memory = self.pids().into_iter().map(|pid| memory_kib(pid, "RssAnon:"));
        memory.sum::<Option<f64>>().context("a process of the proxy is gone")
    }

    /// Stops it and waits for its end.
    pub(crate) async fn stop(mut self) {
        // An edge would drain first, for as long as it is configured, and no session is left here.
        let signal = match self.kind {
            Kind::Meridian => Signal::KILL,
            Kind::Nginx | Kind::Haproxy => Signal::TERM,
        };
        self.processes.signal(signal);
        // Dropping this kills a process that does not end in time.
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.processes.leader.wait()).await;
    }
}

/// User and system time: the 14th and 15th field, counted behind the name, which may have spaces.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11);
    Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
}

/// An address below the ephemeral ports, so that no outgoing connection takes it before the proxy does.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Benches that run side by side begin at different ports.
    let begin = 18_000 + u16::try_from(std::process::id() % 1_000).unwrap_or_default() * 10;
    for _ in 0..1_000 {
        let port = begin + NEXT.fetch_add(1, Ordering::Relaxed) % 4_000;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port on loopback")
}

/// The name of the edge.
pub(crate) const EDGE: &str = "edge-bench";

/// The region of the stack with this index.
pub(crate) fn region(index: usize) -> String {
    format!("region-{index}")
}

/// Writes a plan to disk, so that the edge needs no control plane. Each stack is a region of its own, so that sessions can move.
fn edge(
    listen: &Listen<'_>,
    stacks: &[SocketAddr],
    to_stacks: Option<&Files>,
    folder: &Path,
) -> anyhow::Result<Command> {
    let program = world::settings::default_binaries_dir().join("meridian-edge");
    if !program.is_file() {
        return Err(texts::no_program(&program));
    }
    let state = folder.join("state");
    std::fs::create_dir_all(&state)?;
    LastGood::at(state.join("plan")).save(&plan(listen.plain, stacks)?)?;
    let (
        admin,
        Listen {
            plain,
            tls,
            certificate,
        },
    ) = (free_address()?, listen);
    let identity = to_stacks.map(identity_section).unwrap_or_default();
    let text = format!(
        "node = \"{EDGE}\"\nlisten = [\"{plain}\"]\nadmin_listen = \"{admin}\"\ncontrol_planes = []\n\
         state_dir = \"state\"\nreuse_port = true\naffinity_key = \"{}\"\n\n{LIMITS}\n\
         [tls]\nlisten = [\"{tls}\"]\ncertificate = {:?}\nkey = {:?}\n\n{identity}",
        "5a".repeat(32),
        certificate.chain,
        certificate.key,
    );
    let file = folder.join("edge.toml");
    std::fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(file).arg("--supervised");
    Ok(command)
}

/// The limits of the bench: all its devices are one client, come at once, and are silent for longer than a device with a heartbeat.
const LIMITS: &str = "[limits]
connections_max = 9900
sessions_max = 9900
handshakes_max = 9900
returning_percent = 0
client_connections_max = 0
client_requests_per_s = 0
client_in_flight_max = 0

[timeouts]
idle = \"1h\"
";

fn plan(address: SocketAddr, stacks: &[SocketAddr]) -> anyhow::Result<Snapshot> {
    let names: Vec<String> = (0..stacks.len().max(2)).map(region).collect();
    let mut text = "zone = \"voice.example\"\n".to_owned();
    for (index, name) in names.iter().enumerate() {
        // A primary needs a backup, also where the bench has only one stack: this address, which no session ever asks.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
        let stack = stacks.get(index).unwrap_or(&nobody);
        let role = if index == 0 {
            format!("role = \"primary\"\nbackups = [\"{}\"]", names[1..].join("\", \""))
        } else {
            "role = \"backup\"".to_owned()
        };
        let _ = write!(
            text,
            "\n[[region]]\nid = \"{name}\"\n{role}\nlatitude = {index}.0\nlongitude = 0.0\nsessions_max = 1000000\n\
             stacks = [\"{stack}\"]\n"
        );
    }
    let _ = write!(
        text,
        "\n[[edge]]\nid = \"{EDGE}\"\naddresses = [\"{}\"]\nport = {}\nlatitude = 0.0\nlongitude = 0.0\n\
         \n[[name-server]]\nid = \"ns1\"\naddress = \"127.0.0.1\"\n",
        address.ip(),
        address.port()
    );
    bench::first_snapshot(&text, daemon::clock::now())
}

/// nginx with the settings that both peers get: no log of requests, timeouts that no measurement meets, pooled connections to the stack,
/// and the client's address in a header, as the edge sends it.
fn nginx(listen: &Listen<'_>, stacks: &[SocketAddr], folder: &Path) -> anyhow::Result<Command> {
    let mut servers = String::new();
    for (index, stack) in stacks.iter().enumerate() {
        let backup = if index > 0 { " backup" } else { "" };
        let _ = writeln!(servers, "    server {stack}{backup};");
    }
    let (
        path,
        Listen {
            plain,
            tls,
            certificate,
        },
    ) = (folder.display(), listen);
    let text = format!(
        "daemon off;
worker_processes auto;
worker_rlimit_nofile {files};
pid {path}/pid;
error_log {path}/error.log;
events {{ worker_connections {files}; }}
http {{
  access_log off;
  client_body_temp_path {path}/body;
  proxy_temp_path {path}/proxy;
  fastcgi_temp_path {path}/fastcgi;
  uwsgi_temp_path {path}/uwsgi;
  scgi_temp_path {path}/scgi;
  upstream stacks {{
{servers}    keepalive 256;
    keepalive_requests 1000000000;
  }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen {plain} backlog=4096;
    listen {tls} ssl http2 backlog=4096;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    keepalive_requests 1000000000;
    location / {{
      proxy_pass http://stacks;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_connect_timeout 1s;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
",
        files = 2 * CONNECTIONS_MAX,
        chain = certificate.chain.display(),
        key = certificate.key.display(),
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text)?;
    let mut command = dies_with_us("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(file);
    Ok(command)
}

fn haproxy(listen: &Listen<'_>, stacks: &[SocketAddr], folder: &Path) -> anyhow::Result<Command> {
    let mut servers = String::new();
    for (index, stack) in stacks.iter().enumerate() {
        let backup = if index > 0 { " backup" } else { "" };
        let _ = writeln!(servers, "  server stack{index} {stack} check{backup}");
    }
    let text = format!(
        "global
  maxconn {CONNECTIONS_MAX}
defaults
  mode http
  option forwardfor
  option redispatch
  http-reuse always
  backlog 4096
  timeout connect 1s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
frontend devices
  bind {plain}
  bind {tls} ssl crt {both} alpn h2,http/1.1
  default_backend stacks
backend stacks
{servers}",
        plain = listen.plain,
        tls = listen.tls,
        both = listen.certificate.both.display(),
    );
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, text)?;
    let mut command = dies_with_us("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

/// Starts a program without supervision so that it gets SIGTERM when the bench is killed, and then ends its workers.
fn dies_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", program]);
    // Debian has servers in a folder that only root has in its PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_name_of_the_process() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0 99 1000 10 18446744073709551615";
        assert_eq!(cpu_ticks(stat), Some(12));
    }

    /// A failing bench drops the proxies that it started. A worker has its inherited standard output open as long as it lives.
    #[tokio::test]
    async fn a_proxy_that_is_dropped_takes_its_workers_along() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo started; wait"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut group = Group::start(&mut command).unwrap();
        let mut output = group.leader.stdout.take().unwrap();
        output.read_exact(&mut [0; b"started\n".len()]).await.unwrap();
        drop(group);
        let ended = tokio::time::timeout(STOP_TIMEOUT, output.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "the worker lives");
    }

    #[test]
    fn the_edge_accepts_the_plan_it_is_given() {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for stacks in [&[at(1)][..], &[at(1), at(2), at(3)]] {
            plan(at(9), stacks).unwrap().validate().unwrap();
        }
    }
}
