//! Measures the name server beside gdnsd and Knot: on the same machine, with the same zone and load, in runs that take turns. Also
//! with a client subnet that differs in every question, while plans change ten times a second, and with a map of half a million
//! networks. Writes docs/benchmarks/dns.json and a section of docs/benchmarks.md: `make bench-dns`.
//!
//! Everything is on loopback: the server has one core and the load another one, so what counts is the server's processor time
//! for each question.

mod helpers;
mod load;
mod servers;
mod zone;

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use anyhow::Context as _;
use bench::{Machine, build, docs, median, table, texts, write};
use serde::Serialize;

use crate::{
    helpers::{Changing, Compiled},
    load::{Load, Measured},
    servers::{Kind, Server},
};

/// Runs of each server, which take turns; medians are reported.
const RUNS: usize = 5;
/// Length of one measurement, in seconds.
const SECONDS: u64 = 5;

/// All figures.
#[derive(Debug, Serialize)]
struct Figures {
    schema: u32,
    machine: Machine,
    build: &'static str,
    versions: BTreeMap<String, String>,
    runs: usize,
    /// Processor time of the server for each question, in microseconds.
    query_cpu_us: BTreeMap<String, Cpu>,
    /// Questions a second that the server answered.
    qps: BTreeMap<String, f64>,
    /// Questions without an answer, in all runs together.
    lost: BTreeMap<String, u64>,
    publish_to_answer_ms: f64,
    compile_500k_s: f64,
    recompile_500k_s: f64,
    rss_mb: f64,
    took_s: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Cpu {
    user: f64,
    total: f64,
}

struct Arguments {
    runs: usize,
    seconds: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some(helpers::SERVE) => helpers::serve(),
        Some(helpers::COMPILE) => helpers::compile(),
        _ => arguments(&words).and_then(|arguments| run(&arguments)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-dns: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(words: &[String]) -> anyhow::Result<Arguments> {
    let mut read = Arguments {
        runs: RUNS,
        seconds: SECONDS,
    };
    for pair in words.chunks(2) {
        match pair {
            [key, value] if key == "--runs" => {
                read.runs = value.parse().with_context(|| texts::not_a_number("--runs"))?;
            }
            [key, value] if key == "--seconds" => {
                read.seconds = value.parse().with_context(|| texts::not_a_number("--seconds"))?;
            }
            _ => return Err(texts::usage("bench-dns", "[--runs N] [--seconds N]")),
        }
    }
    if read.runs == 0 || read.seconds == 0 {
        return Err(texts::not_positive("--runs and --seconds"));
    }
    Ok(read)
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let began = Instant::now();
    let say = |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    let docs = docs()?;
    let folder = std::env::temp_dir().join(format!("meridian-bench-dns-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| texts::cannot_make(&folder))?;
    let load = Load::new(&folder, arguments.seconds)?;

    let mut measured: BTreeMap<String, Vec<Measured>> = BTreeMap::new();
    for run in 1..=arguments.runs {
        for kind in Kind::ALL {
            say(&format!("run {run} of {}: {}", arguments.runs, kind.name()));
            let server = Server::start(kind, &folder)?;
            measured
                .entry(kind.name().to_owned())
                .or_default()
                .push(load.plain(&server)?);
        }
        say("with a client subnet in every question");
        let server = Server::start(Kind::Meridian, &folder)?;
        measured
            .entry("meridian, subnets".to_owned())
            .or_default()
            .push(load.subnets(&server)?);
    }
    say("while plans change ten times a second");
    let changing = Changing::start()?;
    measured
        .entry("meridian, 10 plans/s".to_owned())
        .or_default()
        .push(load.plain(&changing.server)?);
    let publish_to_answer_ms = changing.stop()?;
    say("a map of 500,000 networks and 1,000 edges");
    let compiled = Compiled::measure()?;
    // The folder holds configurations and logs only.
    let _ = std::fs::remove_dir_all(&folder);

    let figures = Figures {
        schema: 1,
        machine: Machine::this(),
        build: build(),
        versions: Kind::ALL
            .iter()
            .map(|kind| (kind.name().to_owned(), kind.version()))
            .collect(),
        runs: arguments.runs,
        query_cpu_us: per_server(&measured, |runs| Cpu {
            user: median(runs.iter().map(|run| run.user_us)),
            total: median(runs.iter().map(|run| run.total_us)),
        }),
        qps: per_server(&measured, |runs| median(runs.iter().map(|run| run.qps))),
        lost: per_server(&measured, |runs| runs.iter().map(|run| run.lost).sum()),
        publish_to_answer_ms,
        compile_500k_s: compiled.compile_500k_s,
        recompile_500k_s: compiled.recompile_500k_s,
        rss_mb: compiled.rss_mb,
        took_s: began.elapsed().as_secs(),
    };
    let section = section(&figures);
    println!("\n{section}");
    write(&docs, "bench-dns", "dns.json", &figures, &section)
}

fn per_server<T>(measured: &BTreeMap<String, Vec<Measured>>, of: impl Fn(&[Measured]) -> T) -> BTreeMap<String, T> {
    measured.iter().map(|(name, runs)| (name.clone(), of(runs))).collect()
}

fn section(figures: &Figures) -> String {
    let mut speeds = table([
        "server",
        "user µs",
        "user and system µs",
        "answers/s on one core",
        "lost",
    ]);
    for (name, cpu) in &figures.query_cpu_us {
        speeds.add_row([
            name.clone(),
            format!("{:.2}", cpu.user),
            format!("{:.2}", cpu.total),
            format!("{:.0}", figures.qps[name]),
            figures.lost[name].to_string(),
        ]);
    }
    let mut compiling = table(["plans", "measured", "goal"]);
    let rows = [
        (
            "from a plan to its answers",
            format!("{:.0} ms", figures.publish_to_answer_ms),
            "100 ms",
        ),
        (
            "first plan, 500,000 networks and 1,000 edges",
            format!("{:.2} s", figures.compile_500k_s),
            "2 s",
        ),
        ("next plan", format!("{:.2} s", figures.recompile_500k_s), ""),
        ("memory with that map", format!("{:.0} MB", figures.rss_mb), ""),
    ];
    for (what, value, goal) in rows {
        compiling.add_row([what.to_owned(), value, goal.to_owned()]);
    }
    let versions: Vec<String> = figures
        .versions
        .iter()
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    format!(
        "## The name server beside gdnsd and Knot\n\n\
         `bench-dns`: {} runs in {} s in which the servers take turns; medians. Machine: {}. {} ({} build). Each server has one thread on \
         one core, dnsperf the other core; figures are processor time of the server for each question. The zone has two addresses at its \
         top and a hundred names. \"Subnets\" has another client subnet in every question, from a generator of our own. Goals: 0.3 µs of \
         user time, and no more in all than gdnsd.\n\n{speeds}\n\n{compiling}\n\nRaw values: [benchmarks/dns.json](benchmarks/dns.json).",
        figures.runs,
        figures.took_s,
        figures.machine,
        versions.join(", "),
        figures.build,
    )
}
