//! `make bench-control`: how long decisions take, how long a tick's reports take to be taken in, and how long a plan takes to
//! a thousand nodes. Pure code is timed by criterion; the rest on a real control plane process. Writes
//! docs/benchmarks/control-plane.json.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use api::v1::{self, observations_client::ObservationsClient, plans_client::PlansClient, watch_request::Message};
use criterion::{BatchSize, Criterion};
use daemon::Announcement;
use planning::{Input, plan};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use topology::{Component, Level, Moment, NodeId, Policy, RegionId, Tick, Topology};
use verdict::{Health, Observation, Source, TickReport, Verdict, Windows, judge};

/// Nodes that follow at once.
const NODES: usize = 1_000;
/// Plans published, one after the other.
const PLANS: usize = 5;
/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut medians = json!({});
    for (regions, edges) in [(6, 100), (100, 1_000)] {
        let name = format!("{regions}x{edges}");
        criterion.bench_function(&format!("plan/{name}"), |bencher| {
            let (input, now) = failing(regions, edges);
            assert!(plan(&input, now).plan.is_some(), "the region is left");
            bencher.iter(|| plan(&input, now));
        });
        medians[name.as_str()] = median_ms(&format!("plan/{name}")).into();
    }
    for regions in [6, 100] {
        let name = format!("ingest/1000 edges, {regions} regions");
        criterion.bench_function(&name, |bencher| {
            let reports = reports(regions, NODES, Tick(1_000));
            let policy = Policy::default().health;
            bencher.iter_batched(
                || reports.clone(),
                |reports| {
                    let mut windows = Windows::default();
                    for report in reports {
                        windows.take(report, Tick(1_000), &policy).unwrap();
                    }
                    windows
                },
                BatchSize::PerIteration,
            );
        });
        let judged = format!("judge/1000 edges, {regions} regions");
        criterion.bench_function(&judged, |bencher| {
            let policy = Policy::default().health;
            let mut windows = Windows::default();
            for report in reports(regions, NODES, Tick(1_000)) {
                windows.take(report, Tick(1_000), &policy).unwrap();
            }
            let ids: Vec<RegionId> = (0..regions).map(region).collect();
            bencher.iter(|| judge(&ids, &windows, &policy, Tick(1_000), &Default::default()));
        });
    }
    criterion.final_summary();
    let ingest = median_ms("ingest/1000 edges, 6 regions");
    let ingest_100 = median_ms("ingest/1000 edges, 100 regions");

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let published = runtime.block_on(publish());
    let report = json!({
        "schema": 1,
        "plan_ms": medians,
        "ingest_1000_edges_ms": ingest,
        "ingest_1000_edges_100_regions_ms": ingest_100,
        "publish_1000_p50_ms": published.p50_ms,
        "publish_1000_p99_ms": published.p99_ms,
        "decide_after_tick_ms": published.decide_ms,
        "rss_mb": published.rss_mb,
        "rss_idle_mb": published.rss_idle_mb,
        "rss_connected_mb": published.rss_connected_mb,
        "rss_reporting_mb": published.rss_reporting_mb,
        "plans": PLANS,
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks/control-plane.json");
    std::fs::write(&path, format!("{report:#}\n")).unwrap();
    println!("{report:#}");
}

/// The median of a criterion benchmark that has just run, in milliseconds.
fn median_ms(name: &str) -> f64 {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    // Criterion takes every name for one folder, slashes too.
    let folder = target.join("criterion").join(name.replace('/', "_"));
    let text = std::fs::read_to_string(folder.join("new/estimates.json")).unwrap();
    let estimates: Value = serde_json::from_str(&text).unwrap();
    let nanoseconds = estimates["median"]["point_estimate"].as_f64().unwrap();
    (nanoseconds / 1e3).round() / 1e3
}

fn region(index: usize) -> RegionId {
    RegionId::new(&format!("region-{index:03}")).unwrap()
}

fn edge(index: usize) -> String {
    format!("edge-{index:04}")
}

/// A topology document: half of the regions are primaries, each with three backups.
fn document(regions: usize, edges: usize) -> String {
    let mut text = "zone = \"voice.meridian.test\"\n".to_owned();
    let primaries = regions / 2;
    for index in 0..regions {
        let role = if index < primaries {
            let backups: Vec<String> = (0..3.min(regions - primaries))
                .map(|next| format!("\"{}\"", region(primaries + (index + next) % (regions - primaries))))
                .collect();
            format!("role = \"primary\"\nbackups = [{}]", backups.join(", "))
        } else {
            "role = \"backup\"".to_owned()
        };
        let (latitude, longitude) = (index as f64 % 90.0, index as f64 % 180.0);
        writeln!(
            text,
            "\n[[region]]\nid = \"{}\"\n{role}\nlatitude = {latitude:.1}\nlongitude = {longitude:.1}\n\
             sessions_max = 1000\nstacks = [\"127.0.0.1:{}\"]",
            region(index),
            1 + index
        )
        .unwrap();
    }
    for index in 0..edges {
        writeln!(
            text,
            "\n[[edge]]\nid = \"{}\"\naddresses = [\"127.1.{}.{}\"]\nport = 8080\nlatitude = 1.0\nlongitude = 1.0",
            edge(index),
            index / 250,
            1 + index % 250
        )
        .unwrap();
    }
    text
}

/// A fleet in which one region has just gone down.
fn failing(regions: usize, edges: usize) -> (Input, Moment) {
    let topology = Topology::parse("bench", &document(regions, edges)).unwrap();
    let now = Tick(1_000).end();
    let mut input = Input::new(topology, Policy::default(), 1);
    input.current = plan(&input, now).plan;
    let evidence: Vec<String> = (0..3)
        .map(|line| format!("gateway at {line}: edge-0001 0/5 · edge-0002 0/5 · 998 more vantages 0/4990 ok"))
        .collect();
    for id in input.topology.regions.keys() {
        let down = *id == region(0);
        let verdict = Verdict {
            region: id.clone(),
            health: if down { Health::Down } else { Health::Healthy },
            level: Level::L0,
            trigger: None,
            failing: down,
            fired: vec![],
            bad_from: if down {
                (0..edges).map(|index| NodeId::new(&edge(index)).unwrap()).collect()
            } else {
                vec![]
            },
            healthy_since: None,
            dead_stacks: [].into(),
            ailing_stacks: [].into(),
            broken: None,
            tick: Tick(1_000),
            summary: "a summary of usual length for a region".into(),
            evidence: evidence.clone(),
        };
        input.verdicts.insert(id.clone(), verdict);
    }
    (input, now)
}

/// The reports of a thousand edges on one tick: a few probes of each component, and their traffic.
fn reports(regions: usize, edges: usize, tick: Tick) -> Vec<TickReport> {
    let observation = |region: &RegionId, component| {
        let mut seen = Observation::new(region.clone(), component, Source::Probe);
        (0..5).for_each(|ms| seen.succeed(20.0 + f64::from(ms)));
        seen
    };
    let ids: Vec<RegionId> = (0..regions).map(region).collect();
    let report = |index| {
        let seen = ids
            .iter()
            .flat_map(|id| Component::ALL.map(|component| observation(id, component)));
        TickReport::new(NodeId::new(&edge(index)).unwrap(), tick, seen.collect())
    };
    (0..edges).map(report).collect()
}

struct Published {
    p50_ms: f64,
    p99_ms: f64,
    decide_ms: f64,
    rss_idle_mb: f64,
    rss_connected_mb: f64,
    rss_mb: f64,
    rss_reporting_mb: f64,
}

/// A control plane of its own, killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn rss_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        (kib / 102.4).round() / 10.0
    }
}

async fn start(folder: &Path) -> (Process, String) {
    std::fs::write(folder.join("topology.toml"), document(6, NODES)).unwrap();
    std::fs::write(folder.join("policy.toml"), "").unwrap();
    let config = "topology = \"topology.toml\"\npolicy = \"policy.toml\"\n[store]\nfile = \"meridian.redb\"\n";
    std::fs::write(folder.join("control-plane.toml"), config).unwrap();
    let announce = folder.join("announce.json");
    let child = Command::new(env!("CARGO_BIN_EXE_meridian-control-plane"))
        .args(["--supervised", "--config"])
        .arg(folder.join("control-plane.toml"))
        .arg("--announce")
        .arg(&announce)
        .env("RUST_LOG", "warn")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let process = Process(child);
    loop {
        if let Some(announcement) = Announcement::read(&announce).unwrap() {
            return (process, format!("http://{}", announcement.addresses["grpc"]));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Plans to a thousand nodes, and a decision from a thousand nodes' reports.
async fn publish() -> Published {
    let folder = tempfile::tempdir().unwrap();
    let (process, endpoint) = start(folder.path()).await;
    let rss_idle_mb = process.rss_mb();
    let (received, mut arrivals) = mpsc::channel::<(u64, Instant)>(NODES * 2);
    let mut nodes = JoinSet::new();
    for index in 0..NODES {
        nodes.spawn(node(endpoint.clone(), edge(index), received.clone()));
    }
    let mut next = async |generation: u64| -> Vec<Instant> {
        let mut all = Vec::new();
        while all.len() < NODES {
            let arrival = tokio::time::timeout(DEADLINE, arrivals.recv()).await;
            let (number, at) = arrival.expect("every node gets every plan").unwrap();
            if number == generation {
                all.push(at);
            }
        }
        all
    };
    next(1).await;
    let rss_connected_mb = process.rss_mb();
    let operator = api::Operator::at([endpoint.clone()]);
    let mut delays = Vec::new();
    for round in 0..PLANS {
        let drain = v1::act_request::Kind::DrainEdge(v1::DrainEdge { edge: edge(round) });
        let request = api::operator::request(drain, "bench", "bench", &format!("t{round}"), Some(DEADLINE * 60));
        let asked = Instant::now();
        let reply = operator.act(request).await.unwrap();
        let generation = reply.number.unwrap().generation;
        assert_eq!(generation, round as u64 + 2, "{reply:?}");
        delays.extend(next(generation).await.into_iter().map(|at| at.duration_since(asked)));
    }
    delays.sort();
    let percentile = |share: f64| ms(delays[((delays.len() - 1) as f64 * share) as usize]);

    let rss_mb = process.rss_mb();

    // Now region-000 dies, by the word of all nodes: the time from the end of the second bad tick to the plan.
    let mut senders = Vec::new();
    for index in 0..NODES {
        let mut client = ObservationsClient::connect(endpoint.clone()).await.unwrap();
        let (sender, requests) = mpsc::channel(2);
        nodes.spawn(async move {
            let mut receipts = client.report(ReceiverStream::new(requests)).await.unwrap().into_inner();
            while let Ok(Some(_)) = receipts.message().await {}
        });
        senders.push((index, sender));
    }
    let mut closed = Moment(0);
    for bad in [false, true, true] {
        closed = tick_end().await;
        let tick = closed.tick().back(1);
        for (report, (_, sender)) in reports(6, NODES, tick).into_iter().zip(&senders) {
            let mut report = report;
            for seen in report
                .observations
                .iter_mut()
                .filter(|seen| bad && seen.region == region(0))
            {
                *seen = Observation::new(seen.region.clone(), seen.component, Source::Probe);
                seen.fail("connection refused");
            }
            sender.send(v1::TickReport::from(&report)).await.unwrap();
        }
    }
    next(PLANS as u64 + 2).await;
    let status = operator.status().await.unwrap();
    let decide_ms = Moment(status.plan_created_at_ms).since(closed);
    assert_eq!(status.regions[0].state, "evacuated", "{status:?}");
    Published {
        p50_ms: percentile(0.5),
        p99_ms: percentile(0.99),
        decide_ms: ms(decide_ms),
        rss_idle_mb,
        rss_connected_mb,
        rss_mb,
        rss_reporting_mb: process.rss_mb(),
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

/// Waits for the end of the current tick.
async fn tick_end() -> Moment {
    let now = daemon::clock::now();
    let end = now.tick().end();
    tokio::time::sleep(end.since(now) + Duration::from_millis(1)).await;
    end
}

/// A node: follows plans, says when each came, and acknowledges it.
async fn node(endpoint: String, name: String, received: mpsc::Sender<(u64, Instant)>) {
    let mut client = PlansClient::connect(endpoint)
        .await
        .unwrap()
        .max_decoding_message_size(8 << 20);
    let (answers, requests) = mpsc::channel(4);
    let answer = |message| v1::WatchRequest { message: Some(message) };
    let hello = v1::Hello {
        node: name,
        kind: v1::NodeKind::Edge.into(),
        have: None,
    };
    answers.send(answer(Message::Hello(hello))).await.unwrap();
    let mut updates = client.watch(ReceiverStream::new(requests)).await.unwrap().into_inner();
    while let Ok(Some(update)) = updates.message().await {
        let number = update.number.unwrap();
        received.send((number.generation, Instant::now())).await.unwrap();
        let ack = v1::Ack { number: Some(number) };
        if answers.send(answer(Message::Ack(ack))).await.is_err() {
            return;
        }
    }
}
