//! The servers: ours, gdnsd and Knot, each with one thread on the first core, the same zone, and no limit on its replies.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bench::texts;
use topology::Moment;

use crate::zone::{NAMES, ZONE, question, snapshot};

/// Longest wait for a server to answer its first question.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Meridian,
    Gdnsd,
    Knot,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Meridian, Self::Gdnsd, Self::Knot];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Meridian => "meridian",
            Self::Gdnsd => "gdnsd",
            Self::Knot => "knot",
        }
    }

    pub(crate) fn version(self) -> String {
        let package = match self {
            Self::Meridian => return env!("CARGO_PKG_VERSION").to_owned(),
            other => other.name(),
        };
        let output = Command::new("dpkg-query")
            .args(["-W", "-f=${Version}", package])
            .output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        version.unwrap_or_default()
    }
}

/// A running server. It ends when this is dropped.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server and waits until it answers.
    pub(crate) fn start(kind: Kind, folder: &Path) -> anyhow::Result<Self> {
        let address = free_address()?;
        let folder = folder.join(kind.name());
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let mut command = match kind {
            Kind::Meridian => meridian(address, &folder)?,
            Kind::Gdnsd => gdnsd(address, &folder)?,
            Kind::Knot => knot(address, &folder)?,
        };
        let log = fs::File::create(folder.join("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| texts::cannot_start(kind.name()))?;
        let mut server = Self {
            pid: child.id(),
            child: Some(child),
            address,
        };
        let waiting = Instant::now();
        while !answers(address) {
            let ended = server
                .child
                .as_mut()
                .is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
            if ended || waiting.elapsed() > STARTS_WITHIN {
                let said = fs::read_to_string(folder.join("log")).unwrap_or_default();
                bail!("{} does not answer: {said}", kind.name());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// A server that another process runs and ends.
    pub(crate) fn of_other(pid: u32, address: SocketAddr) -> Self {
        Self {
            child: None,
            pid,
            address,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// On the first core alone, so that it has one thread for questions.
fn on_first_core(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program);
    // Debian installs servers in sbin, which is not on the PATH of ordinary users.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

/// True if a server answers for the zone.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(&question(ZONE, 1, 6), address)?;
        socket.recv(&mut [0; 512])
    };
    ask().is_ok_and(|bytes| bytes > 40)
}

fn meridian(address: SocketAddr, folder: &Path) -> anyhow::Result<Command> {
    fs::create_dir_all(folder.join("state"))?;
    node::LastGood::at(folder.join("state/plan")).save(&snapshot(NAMES, Moment(0))?)?;
    let mut config = format!(
        "node = \"ns1\"\nlisten = [\"{address}\"]\nadmin_listen = \"127.0.0.1:0\"\nstate_dir = \"state\"\n[rate_limit]\nper_s = 0\n"
    );
    // Places, so that subnets have something to decide: two continents in turns.
    for first in 1..=200 {
        let longitude = if first % 2 == 0 { -77.0 } else { 8.0 };
        let _ = write!(
            config,
            "[[network]]\nprefix = \"{first}.0.0.0/8\"\nlatitude = 45.0\nlongitude = {longitude:.1}\n"
        );
    }
    fs::write(folder.join("dns.toml"), config)?;
    let program = world::settings::default_binaries_dir().join("meridian-dns");
    let mut command = on_first_core(program);
    command.arg("--config").arg(folder.join("dns.toml"));
    Ok(command)
}

/// The same zone as a file.
fn zone_file() -> String {
    let mut text = format!(
        "$ORIGIN {ZONE}.\n$TTL 15\n@ SOA ns1 hostmaster 1 3600 600 604800 15\n@ 300 NS ns1\nns1 300 A 127.0.0.1\n\
         @ A 192.0.2.1\n@ A 192.0.2.2\n"
    );
    for name in 0..NAMES {
        let _ = writeln!(text, "edge-{name} A 192.0.2.{}", 1 + name % 250);
    }
    text
}

fn gdnsd(address: SocketAddr, folder: &Path) -> anyhow::Result<Command> {
    let etc = folder.join("etc");
    for part in ["etc/zones", "run", "state"] {
        fs::create_dir_all(folder.join(part))?;
    }
    let (ip, port, path) = (address.ip(), address.port(), folder.display());
    fs::write(
        etc.join("config"),
        format!(
            "options => {{ listen => \"{ip}:{port}\", udp_threads => 1, tcp_threads => 1, run_dir => \"{path}/run\", \
             state_dir => \"{path}/state\" }}\n"
        ),
    )?;
    fs::write(etc.join("zones").join(ZONE), zone_file())?;
    let mut command = on_first_core("gdnsd");
    command.arg("-c").arg(&etc).arg("start");
    Ok(command)
}

fn knot(address: SocketAddr, folder: &Path) -> anyhow::Result<Command> {
    let path = folder.display();
    fs::write(folder.join(format!("{ZONE}.zone")), zone_file())?;
    let config = folder.join("knot.conf");
    let (ip, port) = (address.ip(), address.port());
    fs::write(
        &config,
        format!(
            "server:\n  rundir: {path}\n  listen: {ip}@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             database:\n  storage: {path}\nlog:\n  - target: stderr\n    any: warning\n\
             template:\n  - id: default\n    storage: {path}\nzone:\n  - domain: {ZONE}\n    file: {ZONE}.zone\n"
        ),
    )?;
    let mut command = on_first_core("knotd");
    command.arg("-c").arg(config);
    Ok(command)
}
