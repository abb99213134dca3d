//! Figures: stored raw, reported as medians, written as a table and as JSON.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bench::{Machine, build, median, table, texts};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    proxies::{Kind, Over},
    regions::{CALLERS, Callers, Fault},
    sessions::{Burst, HoldResult, MANY},
    upstream::Behaviour,
};

/// A figure of every proxy, plain and with TLS, one value a run.
#[derive(Debug, Default)]
pub(crate) struct Paired(BTreeMap<(Over, Kind), Vec<f64>>);

impl Paired {
    /// Adds the value of a run.
    pub(crate) fn add(&mut self, over: Over, kind: Kind, value: f64) {
        self.0.entry((over, kind)).or_default().push(value);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, over: Over, kind: Kind) -> &[f64] {
        self.0.get(&(over, kind)).map_or(&[], Vec::as_slice)
    }

    fn median(&self, over: Over, kind: Kind) -> f64 {
        median(self.of(over, kind).iter().copied())
    }

    fn medians(&self, over: Over) -> Value {
        let medians = Kind::ALL.map(|kind| (kind.as_str(), rounded(self.median(over, kind))));
        json!(BTreeMap::from(medians))
    }

    /// Peers that need less than the edge, and how many times less.
    fn ahead(&self, over: Over) -> Vec<String> {
        let ours = self.median(over, Kind::Meridian);
        let peers = [Kind::Nginx, Kind::Haproxy].map(|kind| (kind.as_str(), self.median(over, kind)));
        let ahead = peers.into_iter().filter(|(_, theirs)| *theirs > 0.0 && *theirs < ours);
        ahead
            .map(|(peer, theirs)| format!("{peer} {:.1} times", ours / theirs))
            .collect()
    }

    fn raw(&self, over: Over) -> Value {
        json!(BTreeMap::from(
            Kind::ALL.map(|kind| (kind.as_str(), self.of(over, kind)))
        ))
    }
}

/// Bursts of all proxies and runs, by proxy and by the behaviour of the stack.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Bursts(BTreeMap<&'static str, BTreeMap<&'static str, Burst>>);

impl Bursts {
    pub(crate) fn add(&mut self, kind: &'static str, manner: Behaviour, burst: &Burst) {
        let manner = if manner == Behaviour::Eager { "eager" } else { "usual" };
        let sum = self.0.entry(kind).or_default().entry(manner).or_default();
        sum.sessions += burst.sessions;
        sum.wrong += burst.wrong;
        for (why, count) in &burst.why {
            *sum.why.entry(why.clone()).or_default() += count;
        }
    }

    fn wrong(&self, kind: &str) -> u64 {
        self.0
            .get(kind)
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(|burst| burst.wrong)
            .sum()
    }
}

/// The callers after each fault, by proxy, one entry a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Faults(BTreeMap<&'static str, BTreeMap<Kind, Vec<Callers>>>);

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault, kind: Kind, callers: Callers) {
        self.0
            .entry(name(fault))
            .or_default()
            .entry(kind)
            .or_default()
            .push(callers);
    }

    fn of(&self, fault: Fault, kind: Kind) -> &[Callers] {
        let of_fault = self.0.get(name(fault));
        of_fault
            .and_then(|of_fault| of_fault.get(&kind))
            .map_or(&[], Vec::as_slice)
    }

    /// Sums over all runs; percentiles as medians of the runs, the maximum of all.
    fn summary(&self, fault: Fault) -> Value {
        let sum = |kind: Kind, value: fn(&Callers) -> usize| -> usize { self.of(fault, kind).iter().map(value).sum() };
        let ours = self.of(fault, Kind::Meridian);
        let resume = |q: f64| rounded(median(ours.iter().map(|callers| callers.resume_ms(q))));
        let slowest = ours.iter().map(|callers| callers.resume_ms(1.0)).fold(0.0, f64::max);
        let peer = |kind: Kind| {
            json!({
                "sessions": sum(kind, |callers| callers.sessions),
                "lost": sum(kind, |callers| callers.lost),
            })
        };
        json!({
            "runs": ours.len(),
            "sessions": sum(Kind::Meridian, |callers| callers.sessions),
            "lost": sum(Kind::Meridian, |callers| callers.lost),
            "resume_p50_ms": resume(0.5),
            "resume_p99_ms": resume(0.99),
            "resume_max_ms": slowest,
            "bytes_lost": sum(Kind::Meridian, |callers| callers.bytes_lost),
            "bytes_duplicated": sum(Kind::Meridian, |callers| callers.bytes_duplicated),
            "nginx": peer(Kind::Nginx),
            "haproxy": peer(Kind::Haproxy),
        })
    }

    fn lost(&self, fault: Fault, kind: Kind) -> String {
        let callers = self.of(fault, kind);
        let (lost, all) = callers
            .iter()
            .fold((0, 0), |(lost, all), one| (lost + one.lost, all + one.sessions));
        format!("{lost} of {all}")
    }
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Kill => "region_kill",
        Fault::Freeze => "region_freeze",
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Bench {
    machine: Machine,
    versions: BTreeMap<&'static str, String>,
    measured_at_ms: topology::Moment,
    command: String,
    runs: usize,
    pub(crate) took_s: u64,
    pub(crate) http_cpu_us: Paired,
    pub(crate) http_requests_per_s: Paired,
    pub(crate) http2_cpu_us: Paired,
    pub(crate) frame_cpu_us: Paired,
    pub(crate) frame_cpu_us_with_continuity: Vec<f64>,
    pub(crate) idle_rss_kb: Paired,
    pub(crate) idle_rss_kb_with_continuity: Vec<f64>,
    pub(crate) bursts: Bursts,
    pub(crate) held: Vec<HoldResult>,
    pub(crate) faults: Faults,
}

impl Bench {
    pub(crate) async fn new(runs: usize) -> anyhow::Result<Self> {
        Ok(Self {
            machine: Machine::this(),
            versions: BTreeMap::from([
                ("meridian", format!("{} ({} build)", env!("CARGO_PKG_VERSION"), build())),
                ("nginx", version("nginx").await?),
                ("haproxy", version("haproxy").await?),
            ]),
            measured_at_ms: daemon::clock::now(),
            // Without the folder, which differs between machines.
            command: std::iter::once("bench-edge".to_owned())
                .chain(std::env::args().skip(1))
                .collect::<Vec<_>>()
                .join(" "),
            runs,
            took_s: 0,
            http_cpu_us: Paired::default(),
            http_requests_per_s: Paired::default(),
            http2_cpu_us: Paired::default(),
            frame_cpu_us: Paired::default(),
            frame_cpu_us_with_continuity: Vec::new(),
            idle_rss_kb: Paired::default(),
            idle_rss_kb_with_continuity: Vec::new(),
            bursts: Bursts::default(),
            held: Vec::new(),
            faults: Faults::default(),
        })
    }

    /// The JSON document: medians by name, and below them the raw figures.
    pub(crate) fn document(&self) -> Value {
        json!({
            "schema": 1,
            "measured_at_ms": self.measured_at_ms,
            "machine": self.machine,
            "versions": self.versions,
            "command": self.command,
            "runs": self.runs,
            "took_s": self.took_s,
            "http_cpu_us": self.http_cpu_us.medians(Over::Plain),
            "http_tls_cpu_us": self.http_cpu_us.medians(Over::Tls),
            "http_requests_per_s": self.http_requests_per_s.medians(Over::Plain),
            "http_tls_requests_per_s": self.http_requests_per_s.medians(Over::Tls),
            "http2_tls_cpu_us": self.http2_cpu_us.medians(Over::Tls),
            "frame_cpu_us": self.frame_cpu_us.medians(Over::Plain),
            "frame_tls_cpu_us": self.frame_cpu_us.medians(Over::Tls),
            "frame_cpu_us_with_continuity": rounded(median(self.frame_cpu_us_with_continuity.iter().copied())),
            "idle_rss_kb": self.idle_rss_kb.medians(Over::Plain),
            "idle_tls_rss_kb": self.idle_rss_kb.medians(Over::Tls),
            "idle_rss_kb_with_continuity": rounded(median(self.idle_rss_kb_with_continuity.iter().copied())),
            "burst_wrong_closes": self.bursts.wrong(Kind::Meridian.as_str()),
            "held": self.held,
            "region_kill": self.faults.summary(Fault::Kill),
            "region_freeze": self.faults.summary(Fault::Freeze),
            "raw": {
                "http_cpu_us": self.http_cpu_us.raw(Over::Plain),
                "http_tls_cpu_us": self.http_cpu_us.raw(Over::Tls),
                "http_requests_per_s": self.http_requests_per_s.raw(Over::Plain),
                "http_tls_requests_per_s": self.http_requests_per_s.raw(Over::Tls),
                "http2_tls_cpu_us": self.http2_cpu_us.raw(Over::Tls),
                "frame_cpu_us": self.frame_cpu_us.raw(Over::Plain),
                "frame_tls_cpu_us": self.frame_cpu_us.raw(Over::Tls),
                "frame_cpu_us_with_continuity": self.frame_cpu_us_with_continuity,
                "idle_rss_kb": self.idle_rss_kb.raw(Over::Plain),
                "idle_tls_rss_kb": self.idle_rss_kb.raw(Over::Tls),
                "idle_rss_kb_with_continuity": self.idle_rss_kb_with_continuity,
                "bursts": self.bursts,
                "faults": self.faults,
            },
        })
    }

    /// One sentence about the measurements in which a peer needs less.
    fn ahead(&self) -> String {
        let figures = [
            ("an HTTP request", Over::Plain, &self.http_cpu_us),
            ("one with TLS", Over::Tls, &self.http_cpu_us),
            ("one with HTTP/2", Over::Tls, &self.http2_cpu_us),
            ("a frame", Over::Plain, &self.frame_cpu_us),
            ("one with TLS", Over::Tls, &self.frame_cpu_us),
            ("memory of a silent session", Over::Plain, &self.idle_rss_kb),
            ("of one with TLS", Over::Tls, &self.idle_rss_kb),
        ];
        let ahead = figures.into_iter().filter_map(|(name, over, paired)| {
            let peers = paired.ahead(over);
            (!peers.is_empty()).then(|| format!("{name} ({})", peers.join(", ")))
        });
        let ahead: Vec<String> = ahead.collect();
        if ahead.is_empty() {
            "No peer needs less of anything measured here.".to_owned()
        } else {
            format!("A peer needs less for: {}.", ahead.join("; "))
        }
    }

    /// The section of docs/benchmarks.md.
    pub(crate) fn section(&self) -> String {
        let Machine {
            processor,
            cores,
            memory_gib,
            kernel,
        } = &self.machine;
        let mut figures = table(["", "meridian", "nginx", "haproxy", "goal"]);
        let mut row = |name: &str, over: Over, paired: &Paired, digits: usize, goal: &str| {
            if !paired.is_empty() {
                let values = Kind::ALL.map(|kind| format!("{:.digits$}", paired.median(over, kind)));
                let [meridian, nginx, haproxy] = values;
                figures.add_row([name.to_owned(), meridian, nginx, haproxy, goal.to_owned()]);
            }
        };
        row(
            "CPU of an HTTP request, µs",
            Over::Plain,
            &self.http_cpu_us,
            1,
            "≤ 1.5 × nginx",
        );
        row("the same with TLS", Over::Tls, &self.http_cpu_us, 1, "");
        row("the same with HTTP/2 and TLS", Over::Tls, &self.http2_cpu_us, 1, "");
        row("HTTP requests a second", Over::Plain, &self.http_requests_per_s, 0, "");
        row("the same with TLS", Over::Tls, &self.http_requests_per_s, 0, "");
        row(
            "CPU of a 640-byte frame, µs",
            Over::Plain,
            &self.frame_cpu_us,
            2,
            "≤ haproxy",
        );
        row("the same with TLS", Over::Tls, &self.frame_cpu_us, 2, "");
        row(
            "memory of a silent session, KiB",
            Over::Plain,
            &self.idle_rss_kb,
            1,
            "≤ 8",
        );
        row("the same with TLS", Over::Tls, &self.idle_rss_kb, 1, "");
        let mut alone = |name: &str, values: &[f64], digits: usize| {
            if !values.is_empty() {
                let value = format!("{:.digits$}", median(values.iter().copied()));
                figures.add_row([name, &value, "", "", ""]);
            }
        };
        alone(
            "the frame, kept for another region",
            &self.frame_cpu_us_with_continuity,
            2,
        );
        alone(
            "the session, kept for another region",
            &self.idle_rss_kb_with_continuity,
            1,
        );
        if !self.bursts.0.is_empty() {
            let wrong = Kind::ALL.map(|kind| self.bursts.wrong(kind.as_str()).to_string());
            let [meridian, nginx, haproxy] = wrong;
            figures.add_row([
                "sessions of a burst closed wrongly".to_owned(),
                meridian,
                nginx,
                haproxy,
                "0".to_owned(),
            ]);
        }
        let mut regions = table(["", "meridian", "nginx", "haproxy", "goal"]);
        for (fault, what, goal) in [(Fault::Kill, "killed", "≤ 1,000"), (Fault::Freeze, "frozen", "≤ 3,000")] {
            let ours = self.faults.summary(fault);
            let lost = Kind::ALL.map(|kind| self.faults.lost(fault, kind));
            let [meridian, nginx, haproxy] = lost;
            regions.add_row([
                format!("sessions lost, region {what}"),
                meridian,
                nginx,
                haproxy,
                "0".to_owned(),
            ]);
            for (figure, key, goal) in [
                ("time to go on, P50, ms", "resume_p50_ms", ""),
                ("P99, ms", "resume_p99_ms", goal),
                ("longest, ms", "resume_max_ms", ""),
                ("bytes of audio lost", "bytes_lost", "0"),
                ("bytes of audio heard twice", "bytes_duplicated", "0"),
            ] {
                let value = format!("{:.0}", ours[key].as_f64().unwrap_or_default());
                regions.add_row([figure, &value, "", "", goal]);
            }
        }
        let regions = if self.faults.0.is_empty() {
            String::new()
        } else {
            format!(
                "\n\nA region is killed, or frozen, under {CALLERS} callers in the middle of a sentence, in a world of real \
                 processes with scripted engines (a sound carries its text and a checksum); the peers stand before the same \
                 stack with another as its backup, and are looked at once. A session is lost when its turn is not answered on \
                 the connection on which it began.\n\n{regions}"
            )
        };
        let mut held = table([
            "sessions held",
            "processes",
            "for",
            "closed wrongly",
            "memory of each",
            "CPU",
        ]);
        for one in &self.held {
            held.add_row([
                one.sessions.to_string(),
                one.processes.to_string(),
                format!("{} s", one.seconds),
                one.wrong.to_string(),
                format!("{:.1} KiB", one.memory_kib_per_session),
                format!("{:.1} %", one.cpu_percent),
            ]);
        }
        let held = if self.held.is_empty() {
            String::new()
        } else {
            format!("\n\n{held}")
        };
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        format!(
            "## The edge beside nginx and HAProxy\n\n\
             `{command}`: {runs} runs in {took} s in which the proxies take turns; medians. Machine: {processor}, {cores} cores, \
             {memory_gib:.0} GiB, Linux {kernel}. {versions}. Load generator, proxy and stack share the cores, so the figures are \
             processor time of the proxy's processes, user and system.\n\n\
             An HTTP request is a small answer over one of 64 connections that are kept. Frames are relayed in 200 sessions of 50 \
             frames a second each way. Memory is what {MANY} sessions added to the proxy's own (`RssAnon`), without the kernel's \
             sockets. A burst is {MANY} sessions at the same moment, {runs} times before a stack that agrees when it is asked, and \
             {runs} times before one that agrees before it has read anything; the peers once.\n\n\
             {figures}\n\n{ahead}{held}{regions}\n\n\
             Raw values: [benchmarks/edge.json](benchmarks/edge.json).",
            command = self.command,
            runs = self.runs,
            took = self.took_s,
            versions = versions.join(", "),
            ahead = self.ahead(),
        )
    }
}

/// Rounds to three digits behind the point, which is finer than the figures are exact.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// The version of a peer, as it prints it: `nginx version: nginx/1.22.1`, `HAProxy version 2.6.12-1 2023/…`.
async fn version(program: &str) -> anyhow::Result<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program).arg("-v").env("PATH", path).output().await;
    let output = output.with_context(|| texts::cannot_start(program))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let first_digit = said.find(|letter: char| letter.is_ascii_digit());
    let version = first_digit.map_or("", |at| &said[at..]).split_whitespace().next();
    Ok(version.unwrap_or("unknown").to_owned())
}
