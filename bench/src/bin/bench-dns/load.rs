//! The load: dnsperf on the second core, or a generator of our own when every question has another client subnet.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bench::texts;

use crate::{
    servers::Server,
    zone::{NAMES, ZONE, question},
};

/// Questions in flight of our own generator.
const IN_FLIGHT: u64 = 64;
/// Ticks of the times in /proc/PID/stat: 100 a second on every Linux of today (`getconf CLK_TCK`).
const TICKS_PER_S: f64 = 100.0;

/// The figures of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) user_us: f64,
    pub(crate) total_us: f64,
    pub(crate) qps: f64,
    pub(crate) lost: u64,
}

pub(crate) struct Load {
    questions: PathBuf,
    seconds: u64,
}

impl Load {
    pub(crate) fn new(folder: &Path, seconds: u64) -> anyhow::Result<Self> {
        let questions = folder.join("questions");
        // Half of all questions are for the service.
        let text: String = (0..NAMES)
            .map(|name| format!("{ZONE} A\nedge-{name}.{ZONE} A\n"))
            .collect();
        fs::write(&questions, text)?;
        Ok(Self { questions, seconds })
    }

    /// The questions of dnsperf, with EDNS and no options.
    pub(crate) fn plain(&self, server: &Server) -> anyhow::Result<Measured> {
        let before = cpu(server.pid)?;
        let output = Command::new("taskset")
            .args(["-c", "1", "dnsperf", "-e", "-q", "100", "-c", "4", "-T", "1", "-s"])
            .arg(server.address.ip().to_string())
            .arg("-p")
            .arg(server.address.port().to_string())
            .arg("-l")
            .arg(self.seconds.to_string())
            .arg("-d")
            .arg(&self.questions)
            .output()
            .with_context(|| texts::cannot_start("dnsperf"))?;
        let after = cpu(server.pid)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "dnsperf failed: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let value = |label: &str| {
            let line = said.lines().find_map(|line| line.trim().strip_prefix(label));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            number.with_context(|| format!("dnsperf does not say \"{label}\": {said}"))
        };
        Ok(measured(
            before,
            after,
            value("Queries completed:")?,
            value("Queries per second:")?,
            value("Queries lost:")? as u64,
        ))
    }

    /// A question for the service after the other, each with a client subnet of its own.
    pub(crate) fn subnets(&self, server: &Server) -> anyhow::Result<Measured> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server.address)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let plain = question(ZONE, 0, 1);
        let (mut sent, mut answered, mut random) = (0_u64, 0_u64, 1_u64);
        let mut reply = [0; 2048];
        let before = cpu(server.pid)?;
        let began = Instant::now();
        let length = Duration::from_secs(self.seconds);
        while began.elapsed() < length {
            while sent - answered < IN_FLIGHT {
                // A linear congruence (Knuth's MMIX) is random enough to choose networks.
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let [a, b, c, ..] = random.to_be_bytes();
                let mut question = plain.clone();
                question[0..2].copy_from_slice(&(sent as u16).to_be_bytes());
                question[11] = 1;
                question.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, a, b, c]);
                socket.send(&question)?;
                sent += 1;
            }
            match socket.recv(&mut reply) {
                Ok(_) => answered += 1,
                // Lost ones are counted below, and must not end the flow.
                Err(_) => answered = sent,
            }
        }
        let took = began.elapsed().as_secs_f64();
        let after = cpu(server.pid)?;
        let lost = (sent - answered).saturating_sub(IN_FLIGHT);
        Ok(measured(before, after, answered as f64, answered as f64 / took, lost))
    }
}

fn measured(before: (f64, f64), after: (f64, f64), questions: f64, qps: f64, lost: u64) -> Measured {
    let us = |seconds: f64| seconds * 1e6 / questions.max(1.0);
    let (user, system) = (after.0 - before.0, after.1 - before.1);
    Measured {
        user_us: us(user),
        total_us: us(user + system),
        qps,
        lost,
    }
}

/// User and system time of a process, in seconds.
fn cpu(pid: u32) -> anyhow::Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // The name of the program may contain spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok((user / TICKS_PER_S, system / TICKS_PER_S)),
        _ => anyhow::bail!("/proc/{pid}/stat is not as expected"),
    }
}
