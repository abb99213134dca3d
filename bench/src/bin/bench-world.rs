//! Measures a whole world on this machine: the time to start, the memory of its processes, and the time until callers hear the first
//! audio of a reply, straight at a stack and through an edge. Writes docs/benchmarks/world.json
//! and a section of docs/benchmarks.md. Run it in a release build on a machine that does nothing else: `make bench`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bench::{docs, median, memory_kib, table, write};
use client::{Call, CallOptions, Pacing, TurnEnd};
use drill::{Recording, recordings, report::percentile};
use serde::Serialize;
use tokio::task::JoinSet;
use world::World;

/// Runs, each with a world of its own; medians are reported.
const RUNS: usize = 5;
/// Callers at once, and turns of each: enough turns for a percentile, few enough for a coffee break.
const LEVELS: [(usize, usize); 3] = [(1, 12), (10, 3), (50, 2)];
/// The region of callers that come through its edge, and of callers that call its stack directly.
const REGION: &str = "us-east";
const EDGE: &str = "edge-iad";

type Bench = bench::Bench<Run>;

/// One world.
#[derive(Debug, Serialize)]
struct Run {
    /// Time until every process took work.
    ready_s: f64,
    /// Time until the control plane knew every region to be healthy: two ticks of evidence.
    healthy_s: f64,
    latencies: Vec<Latency>,
    /// Resident memory after the load, in MiB, by process.
    memory_mib: BTreeMap<String, f64>,
}

/// One load.
#[derive(Debug, Serialize)]
struct Latency {
    path: &'static str,
    callers: usize,
    turns: usize,
    failed: usize,
    /// The number of failed turns, by reason.
    failures: BTreeMap<String, usize>,
    p50_ms: f64,
    p99_ms: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    bench::main("bench-world", RUNS, run).await
}

async fn run(runs: usize) -> anyhow::Result<()> {
    let recordings = Arc::new(recordings::load(&recordings::default_folder())?);
    let mut bench = Bench::new();
    for number in 1..=runs {
        println!("run {number} of {runs}");
        bench.runs.push(one_run(&recordings).await?);
    }
    let section = section(&bench);
    write(&docs()?, "bench-world", "world.json", &bench, &section)?;
    println!("\n{section}");
    Ok(())
}

async fn one_run(recordings: &Arc<Vec<Recording>>) -> anyhow::Result<Run> {
    let folder = std::env::temp_dir().join(format!("meridian-bench-{}", std::process::id()));
    let began = Instant::now();
    let mut settings = world::Settings::new(folder.clone());
    // Some callers talk to the stack itself, for comparison.
    settings.stacks_admit = identity::Mode::Permissive;
    let world = World::start(settings).await?;
    let ready_s = began.elapsed().as_secs_f64();
    world.healthy().await?;
    let healthy_s = began.elapsed().as_secs_f64();
    println!("  ready after {ready_s:.1} s, healthy after {healthy_s:.1} s");

    let topology = &world.layout().topology;
    let stack = topology.regions.values().find(|region| region.id.as_str() == REGION);
    let stack = stack.and_then(|region| region.stacks.first().map(|stack| stack.address));
    let edge = topology.edges.values().find(|edge| edge.id.as_str() == EDGE);
    let edge = edge.and_then(|edge| Some(SocketAddr::new(*edge.addresses.first()?, edge.port)));
    let paths = [
        ("stack", stack.context("the region is not in the topology")?),
        ("edge", edge.context("the edge is not in the topology")?),
    ];
    let options = CallOptions {
        host: Some(topology.zone.clone()),
        // The caller commits its speech, so that no wait for silence is part of the latency.
        turn_end: TurnEnd::Commit,
        turn_timeout: Duration::from_secs(60),
        ..CallOptions::default()
    };
    let mut latencies = Vec::new();
    for (callers, turns) in LEVELS {
        for (path, address) in paths {
            let latency = load(path, address, callers, turns, recordings, &options).await;
            println!(
                "  {path:<5} {callers:>2} callers: P50 {:.0} ms, P99 {:.0} ms, {} turns, {} failed",
                latency.p50_ms, latency.p99_ms, latency.turns, latency.failed
            );
            latencies.push(latency);
        }
    }
    let memory_mib = world
        .pids()
        .await
        .into_iter()
        .filter_map(|(name, pid)| Some((name, memory_kib(pid, "VmRSS:")? / 1024.0)))
        .collect();
    world.shutdown().await;
    // The folder holds logs only.
    let _ = std::fs::remove_dir_all(folder);
    Ok(Run {
        ready_s,
        healthy_s,
        latencies,
        memory_mib,
    })
}

/// Callers who speak in real time, each its own sentences, all the while.
async fn load(
    path: &'static str,
    address: SocketAddr,
    callers: usize,
    turns: usize,
    recordings: &Arc<Vec<Recording>>,
    options: &CallOptions,
) -> Latency {
    let mut talking = JoinSet::new();
    for caller in 0..callers {
        let (recordings, options) = (Arc::clone(recordings), options.clone());
        talking.spawn(async move {
            let mut measured = Vec::new();
            // Spread over a second and a half: people do not speak in step.
            tokio::time::sleep(Duration::from_millis(1_500 * caller as u64 / callers as u64)).await;
            let mut open = None;
            for turn in 0..turns {
                let recording = &recordings[(caller * 4 + turn) % recordings.len()];
                measured.push(one_turn(&mut open, address, &options, recording).await);
            }
            if let Some(call) = open {
                call.hang_up().await;
            }
            measured
        });
    }
    let (mut measured, mut failures) = (Vec::new(), BTreeMap::new());
    for turn in talking.join_all().await.into_iter().flatten() {
        match turn {
            Ok(first_audio_ms) => measured.push(first_audio_ms),
            Err(why) => *failures.entry(why).or_default() += 1,
        }
    }
    Latency {
        path,
        callers,
        turns: measured.len(),
        failed: callers * turns - measured.len(),
        failures,
        p50_ms: percentile(&mut measured, 0.5),
        p99_ms: percentile(&mut measured, 0.99),
    }
}

/// Runs one turn of a call. It opens the call first when there is none, and gives it up when the turn fails.
async fn one_turn(
    open: &mut Option<Call>,
    address: SocketAddr,
    options: &CallOptions,
    recording: &Recording,
) -> Result<f64, String> {
    let mut call = match open.take() {
        Some(call) => call,
        None => Call::open(address, options).await.map_err(|error| error.to_string())?,
    };
    let turn = call.turn(&recording.utterance, Pacing::RealTime).await;
    let turn = turn.map_err(|error| error.to_string())?;
    *open = Some(call);
    let first_audio = turn.first_audio.ok_or("the reply had no audio")?;
    Ok(first_audio.as_secs_f64() * 1000.0)
}

fn section(bench: &Bench) -> String {
    let runs = bench.runs.len();
    let plural = if runs == 1 { "" } else { "s" };
    let latency = |path: &str, callers: usize, value: &dyn Fn(&Latency) -> f64| {
        let all = bench.runs.iter().flat_map(|run| &run.latencies);
        median(all.filter(|one| one.path == path && one.callers == callers).map(value))
    };
    let mut turns = table(["callers at once", "path", "P50", "P99", "turns failed"]);
    for (callers, asked) in LEVELS {
        for path in ["stack", "edge"] {
            turns.add_row([
                callers.to_string(),
                path.to_owned(),
                format!("{:.0} ms", latency(path, callers, &|one| one.p50_ms)),
                format!("{:.0} ms", latency(path, callers, &|one| one.p99_ms)),
                format!(
                    "{:.0} of {}",
                    latency(path, callers, &|one| one.failed as f64),
                    callers * asked
                ),
            ]);
        }
    }
    let mut start = table(["start of the world", "median"]);
    let ready = median(bench.runs.iter().map(|run| run.ready_s));
    let healthy = median(bench.runs.iter().map(|run| run.healthy_s));
    start.add_row(["every process takes work", &format!("{ready:.1} s")]);
    start.add_row(["every region is known to be healthy", &format!("{healthy:.1} s")]);
    let mut memory = table(["process", "resident memory after the load"]);
    let names = bench
        .runs
        .first()
        .map(|run| run.memory_mib.keys())
        .into_iter()
        .flatten();
    for name in names {
        let held = bench.runs.iter().filter_map(|run| run.memory_mib.get(name).copied());
        memory.add_row([name.as_str(), &format!("{:.0} MiB", median(held))]);
    }
    format!(
        "## A whole world on one machine\n\n\
         {command}; median of {runs} run{plural}, each with a world of its own. Machine: {machine}. The six stacks, both edges and the callers share these cores.\n\n\
         Latency is from the last piece of speech to the first audio of the reply, as the caller sees it; callers speak in \
         real time, to the one stack of {REGION}, directly or through {EDGE}. A stack that has more to do than it may queue\n\
         refuses turns at once, and those count as failed. Of a dozen turns in a run, the P99 is\n\
         simply the slowest.\n\n\
         {turns}\n\n{start}\n\n{memory}\n\nRaw values: [benchmarks/world.json](benchmarks/world.json).",
        command = bench.command(),
        machine = bench.machine(),
    )
}
