//! The processes of the bench's own: a name server whose plans change ten times a second, and the compilation of a large map.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bench::{median, memory_kib};
use dns::{Metrics, RateLimit, Responder, serve};
use serde::{Deserialize, Serialize};
use steering::{Geography, Prefix, Settings, Steering};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use topology::{EdgeState, Location, Moment, NodeId};

use crate::{
    servers::Server,
    zone::{EDGES, NAMES, ZONE, question, snapshot},
};

/// Roles of this program, as its first argument.
pub(crate) const SERVE: &str = "serve-changing-plans";
pub(crate) const COMPILE: &str = "compile-a-large-map";
/// Networks of the large map.
const NETWORKS: u32 = 500_000;
/// Pause between two plans.
const PLAN_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for a plan to be answered by.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// A name server in a process of its own whose plan changes ten times a second.
pub(crate) struct Changing {
    child: Child,
    stdin: ChildStdin,
    pub(crate) server: Server,
}

impl Changing {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Command::new("taskset")
            .args(["-c", "0"])
            .arg(std::env::current_exe()?)
            .arg(SERVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start taskset")?;
        let stdin = child.stdin.take().context("the helper has no input")?;
        let mut line = String::new();
        let output = child.stdout.as_mut().context("the helper has no output")?;
        BufReader::with_capacity(1, output).read_line(&mut line)?;
        let address: SocketAddr = line
            .trim()
            .parse()
            .with_context(|| format!("the helper said \"{line}\""))?;
        Ok(Self {
            server: Server::of_other(child.id(), address),
            child,
            stdin,
        })
    }

    /// Ends it. Returns the median time from a plan to an answer by it, in milliseconds.
    pub(crate) fn stop(self) -> anyhow::Result<f64> {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        let mut said = String::new();
        child
            .stdout
            .as_mut()
            .context("the helper has no output")?
            .read_to_string(&mut said)?;
        child.wait()?;
        said.trim()
            .parse()
            .with_context(|| format!("the helper said \"{said}\""))
    }
}

/// The role [`SERVE`]: prints its address, serves until its input ends, and prints the median time to an answer.
pub(crate) fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut snapshot = snapshot(NAMES, daemon::clock::now())?;
        let settings = Settings {
            return_step: Duration::ZERO,
            ..Settings::default()
        };
        let mut steering = Steering::new(Arc::default(), settings);
        let answers = steering.compile(&snapshot, daemon::clock::now());
        let responder = Arc::new(Responder::new(answers, &NodeId::new("ns1")?, [0; 16]));
        let sockets = serve::Sockets::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = sockets.address()?;
        let (metrics, stop) = (Metrics::default(), CancellationToken::new());
        let (plans, receiver) = watch::channel(None);
        let limit = RateLimit {
            per_s: 0,
            slip: 0,
            ..RateLimit::default()
        };
        let serving = tokio::spawn(sockets.serve(responder.clone(), limit, metrics.clone(), stop.clone()));
        let keeping = tokio::spawn(serve::keep_current(
            responder,
            steering,
            serve::Feeds::of(receiver, Arc::default()),
            metrics,
        ));
        println!("{address}");
        std::io::stdout().flush()?;

        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let mut took_ms = Vec::new();
        while !ended.is_finished() {
            snapshot.plan.generation += 1;
            snapshot.plan.created_at = daemon::clock::now();
            let edge = snapshot.plan.edges.values_mut().next().context("there are edges")?;
            *edge = match *edge {
                EdgeState::Serving => EdgeState::Drained,
                EdgeState::Drained => EdgeState::Serving,
            };
            let began = Instant::now();
            plans.send_replace(Some(Arc::new(snapshot.clone())));
            let serial = snapshot.plan.generation as u32;
            tokio::task::spawn_blocking(move || wait_for(address, serial)).await??;
            took_ms.push(began.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(PLAN_EVERY.saturating_sub(began.elapsed())).await;
        }
        println!("{}", median(took_ms));
        stop.cancel();
        keeping.abort();
        serving.await?;
        Ok(())
    })
}

/// Asks for the SOA until its serial number is that of the plan.
fn wait_for(address: SocketAddr, serial: u32) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let began = Instant::now();
    let mut reply = [0; 512];
    while began.elapsed() < ANSWERED_WITHIN {
        socket.send(&question(ZONE, 7, 6))?;
        let Ok(length) = socket.recv(&mut reply) else { continue };
        // Five numbers end the record, and the serial number is the first of them.
        let at = length.saturating_sub(20);
        if reply.get(at..at + 4) == Some(&serial.to_be_bytes()[..]) {
            return Ok(());
        }
    }
    anyhow::bail!("plan {serial} is not answered by within {ANSWERED_WITHIN:?}")
}

/// The figures of the large map.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Compiled {
    pub(crate) compile_500k_s: f64,
    pub(crate) recompile_500k_s: f64,
    pub(crate) rss_mb: f64,
}

impl Compiled {
    /// In a process of its own, whose memory nothing else uses.
    pub(crate) fn measure() -> anyhow::Result<Self> {
        let output = Command::new(std::env::current_exe()?).arg(COMPILE).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&said).with_context(|| {
            format!(
                "the helper said \"{said}\" and {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }
}

/// The role [`COMPILE`].
pub(crate) fn compile() -> anyhow::Result<()> {
    let mut snapshot = snapshot(EDGES, Moment(0))?;
    // Half a million networks of /20 to /24 in some 20,000 places.
    let networks = (0..NETWORKS).filter_map(|nth| {
        let address = IpAddr::from(Ipv4Addr::from_bits(0x0100_0000_u32.wrapping_add(nth << 12)));
        let place = u64::from(nth).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let location = Location {
            latitude: (place % 220) as f64 / 2.0 - 55.0,
            longitude: (place / 220 % 340) as f64 - 170.0,
        };
        Some((Prefix::new(address, 20 + (nth % 5) as u8)?, location))
    });
    let began = Instant::now();
    let geography = Arc::new(Geography::new(&[], networks));
    let mut steering = Steering::new(geography, Settings::default());
    let first = steering.compile(&snapshot, daemon::clock::now());
    let compile_500k_s = began.elapsed().as_secs_f64();
    snapshot.plan.generation += 1;
    let edge = snapshot.plan.edges.values_mut().next().context("there are edges")?;
    *edge = EdgeState::Drained;
    let began = Instant::now();
    let second = steering.compile(&snapshot, daemon::clock::now());
    let recompile_500k_s = began.elapsed().as_secs_f64();
    // Both are held while a batch of questions is answered by the older one.
    let rss_mb = memory_kib(std::process::id(), "VmRSS:").unwrap_or_default() / 1024.0;
    anyhow::ensure!(
        first.number() < second.number() && second.sizes().1 > 1,
        "the map was not compiled"
    );
    let compiled = Compiled {
        compile_500k_s,
        recompile_500k_s,
        rss_mb,
    };
    println!("{}", serde_json::to_string(&compiled)?);
    Ok(())
}
