//! Measures the edge beside nginx and HAProxy: on the same machine, with the same stack and load, in runs that take turns. It measures
//! processor time and memory of the proxies, bursts, many sessions at once, and the fate of sessions whose region is killed or freezes. Then
//! it measures mutual TLS between edges and stacks beside plain text. Writes docs/benchmarks/edge.json and two sections of
//! docs/benchmarks.md: `make bench-edge`.
//!
//! Everything is on loopback and on the same cores, so the bench compares the cost of the proxies, not their speed.

mod clients;
mod helpers;
mod http;
mod mtls;
mod open_files;
mod proxies;
mod regions;
mod report;
mod sessions;
mod tls;
mod upstream;
mod wire;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bench::{docs, texts, write, write_part};
use identity::Mode;

use crate::{
    helpers::Upstream,
    mtls::Comparison,
    open_files::raise_open_files,
    proxies::{Kind, Over, Place, Proxy},
    regions::{Fault, Scene},
    report::Bench,
    sessions::FRAMES,
    tls::Certificate,
    upstream::Behaviour,
};

/// Runs of each measurement; medians are reported.
const RUNS: usize = 5;
/// Sessions in one process: its 20,000 descriptors are the limit.
const HELD_ALONE: usize = 9_000;
/// Sessions on one machine, and processes that share its port: some 8,300 each, as the kernel deals them out.
const HELD_TOGETHER: (usize, usize) = (50_000, 6);

/// The part that may be measured and written alone, because it has a section of its own.
const MTLS: &str = "mtls";
/// The parts of the bench.
const PARTS: [&str; 7] = ["http", "frames", "idle", "burst", "hold", "regions", MTLS];

struct Arguments {
    runs: usize,
    parts: Vec<String>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next() {
        Some(role) if role == helpers::UPSTREAM || role == helpers::CLIENTS => helpers::play(&role),
        first => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Into::into)
            .and_then(|runtime| runtime.block_on(run(first.into_iter().chain(arguments)))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
    let mut read = Arguments {
        runs: RUNS,
        parts: PARTS.map(str::to_owned).to_vec(),
    };
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--runs", Some(runs)) => read.runs = runs.parse().with_context(|| texts::not_a_number("--runs"))?,
            ("--only", Some(parts)) => read.parts = parts.split(',').map(str::to_owned).collect(),
            _ => {
                return Err(texts::usage(
                    "bench-edge",
                    &format!("[--runs N] [--only {}]", PARTS.join(",")),
                ));
            }
        }
    }
    if let Some(unknown) = read.parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(texts::no_such_part(unknown, &PARTS.join(", ")));
    }
    Ok(read)
}

async fn run(words: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let Arguments { runs, parts } = arguments(words)?;
    raise_open_files();
    let docs = docs()?;
    let folder = std::env::temp_dir().join(format!("meridian-bench-edge-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| texts::cannot_make(&folder))?;
    let stage = Stage {
        began: Instant::now(),
        runs,
        place: Place {
            certificate: Certificate::make(&folder)?,
            to_stacks: None,
            folder,
        },
    };
    let mut bench = Bench::new(runs).await?;
    let mut comparison = Comparison::new(runs);
    let result = stage.play(&parts, &mut bench, &mut comparison).await;
    // The folder holds configurations and logs only.
    let _ = std::fs::remove_dir_all(&stage.place.folder);
    result?;
    bench.took_s = stage.began.elapsed().as_secs();
    let (whole, alone) = (parts.len() == PARTS.len(), parts == [MTLS]);
    if !alone {
        let section = bench.section();
        println!("\n{section}");
        if whole {
            write(&docs, "bench-edge", "edge.json", &bench.document(), &section)?;
        }
    }
    if parts.iter().any(|part| part == MTLS) {
        println!("\n{}", comparison.section());
    }
    if whole || (alone && runs >= RUNS) {
        let (figures, section) = (comparison.document(), comparison.section());
        write_part(&docs, "bench-mtls", ("edge.json", MTLS), figures, &section)?;
    } else {
        println!("\nOnly a part was measured, or fewer than {RUNS} runs, so nothing was written.");
    }
    Ok(())
}

struct Stage {
    began: Instant,
    runs: usize,
    place: Place,
}

impl Stage {
    fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    async fn play(&self, parts: &[String], bench: &mut Bench, comparison: &mut Comparison) -> anyhow::Result<()> {
        for part in parts {
            match part.as_str() {
                "http" => self.http(bench).await?,
                "frames" => self.frames(bench).await?,
                "idle" => self.idle(bench).await?,
                "burst" => self.burst(bench).await?,
                "hold" => self.hold(bench).await?,
                "regions" => self.regions(bench).await?,
                _ => mtls::measure(self, comparison).await?,
            }
        }
        Ok(())
    }

    /// Starts all proxies at once: the others are idle while one is measured.
    async fn proxies(&self, stack: &Upstream) -> anyhow::Result<Vec<(Kind, Proxy)>> {
        let mut proxies = Vec::new();
        for kind in Kind::ALL {
            proxies.push((kind, Proxy::start(kind, &[stack.address], &self.place).await?));
        }
        Ok(proxies)
    }

    async fn http(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let stack = Upstream::start(Behaviour::Usual).await?;
        let proxies = self.proxies(&stack).await?;
        for run in 1..=self.runs {
            for over in [Over::Plain, Over::Tls] {
                for (kind, proxy) in &proxies {
                    let load = http::measure(proxy, over).await?;
                    self.say(&format!(
                        "http {run}, {over:?}: {} {:.1} µs of CPU a request, {:.0} requests/s",
                        kind.as_str(),
                        load.cpu_us,
                        load.per_second
                    ));
                    bench.http_cpu_us.add(over, *kind, load.cpu_us);
                    bench.http_requests_per_s.add(over, *kind, load.per_second);
                }
            }
            for (kind, proxy) in &proxies {
                let cpu_us = http::measure_http2(proxy).await?;
                let name = kind.as_str();
                self.say(&format!("http {run}, HTTP/2: {name} {cpu_us:.1} µs of CPU a request"));
                bench.http2_cpu_us.add(Over::Tls, *kind, cpu_us);
            }
        }
        end(proxies, stack).await;
        Ok(())
    }

    async fn frames(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let (stack, keeping) = (
            Upstream::start(Behaviour::Usual).await?,
            Upstream::start(Behaviour::Keeping).await?,
        );
        let proxies = self.proxies(&stack).await?;
        let kept = Proxy::start(Kind::Meridian, &[keeping.address], &self.place.within("keeping")).await?;
        for run in 1..=self.runs {
            for over in [Over::Plain, Over::Tls] {
                for (kind, proxy) in &proxies {
                    let cpu_us = sessions::frame_cpu_us(proxy, over, FRAMES).await?;
                    let kind_name = kind.as_str();
                    self.say(&format!(
                        "frames {run}, {over:?}: {kind_name} {cpu_us:.2} µs of CPU a frame"
                    ));
                    bench.frame_cpu_us.add(over, *kind, cpu_us);
                }
            }
            let cpu_us = sessions::frame_cpu_us(&kept, Over::Plain, FRAMES).await?;
            self.say(&format!("frames {run}: meridian {cpu_us:.2} µs, with continuity"));
            bench.frame_cpu_us_with_continuity.push(cpu_us);
        }
        kept.stop().await;
        keeping.end().await;
        end(proxies, stack).await;
        Ok(())
    }

    async fn idle(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let (stack, keeping) = (
            Upstream::start(Behaviour::Usual).await?,
            Upstream::start(Behaviour::Keeping).await?,
        );
        for run in 1..=self.runs {
            for over in [Over::Plain, Over::Tls] {
                for kind in Kind::ALL {
                    let kib = sessions::idle_kib(kind, over, &stack, &self.place).await?;
                    self.say(&format!(
                        "idle {run}, {over:?}: {} {kib:.2} KiB a session",
                        kind.as_str()
                    ));
                    bench.idle_rss_kb.add(over, kind, kib);
                }
            }
            let kib = sessions::idle_kib(Kind::Meridian, Over::Plain, &keeping, &self.place).await?;
            self.say(&format!("idle {run}: meridian {kib:.2} KiB a session, with continuity"));
            bench.idle_rss_kb_with_continuity.push(kib);
        }
        stack.end().await;
        keeping.end().await;
        Ok(())
    }

    /// The peers behave the same in every run, so the bench measures them once.
    async fn burst(&self, bench: &mut Bench) -> anyhow::Result<()> {
        for run in 1..=self.runs {
            for kind in Kind::ALL.into_iter().filter(|kind| run == 1 || *kind == Kind::Meridian) {
                for manner in [Behaviour::Usual, Behaviour::Eager] {
                    let burst = sessions::burst(kind, manner, &self.place).await?;
                    let (kind, sessions, wrong) = (kind.as_str(), burst.sessions, burst.wrong);
                    self.say(&format!(
                        "burst {run}: {kind} {wrong} of {sessions} wrong, {manner:?} stack {:?}",
                        burst.why
                    ));
                    bench.bursts.add(kind, manner, &burst);
                }
            }
        }
        Ok(())
    }

    async fn hold(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let (sessions, processes) = HELD_TOGETHER;
        for (sessions, processes, held_for) in [
            (HELD_ALONE, 1, Duration::from_secs(10)),
            (sessions, processes, Duration::from_secs(60)),
        ] {
            let held = sessions::hold(sessions, processes, held_for.as_secs(), &self.place).await?;
            self.say(&format!("hold: {held:?}"));
            bench.held.push(held);
        }
        Ok(())
    }

    /// Every run has a world of its own, which remembers nothing of the one before. The peers behave the same in every run, so the bench
    /// measures them once.
    async fn regions(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let utterances = regions::utterances();
        for run in 1..=self.runs {
            for fault in [Fault::Kill, Fault::Freeze] {
                let scene = Scene::set(&self.place, &utterances, Mode::Permissive).await?;
                for kind in Kind::ALL.into_iter().filter(|kind| run == 1 || *kind == Kind::Meridian) {
                    let callers = scene.play(kind, fault).await?;
                    self.say(&format!(
                        "regions {run}: {fault:?}, {}: {} of {} lost, resumed P50 {:.0} ms, P99 {:.0} ms; {} bytes lost, {} \
                         duplicated {:?}",
                        kind.as_str(),
                        callers.lost,
                        callers.sessions,
                        callers.resume_ms(0.5),
                        callers.resume_ms(0.99),
                        callers.bytes_lost,
                        callers.bytes_duplicated,
                        callers.why
                    ));
                    bench.faults.add(fault, kind, callers);
                    if run == 1 && kind != Kind::Haproxy {
                        scene.restore().await?;
                    }
                }
                scene.clear().await;
            }
        }
        Ok(())
    }
}

async fn end(proxies: Vec<(Kind, Proxy)>, stack: Upstream) {
    for (_, proxy) in proxies {
        proxy.stop().await;
    }
    stack.end().await;
}
