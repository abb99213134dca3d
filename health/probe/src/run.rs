//! Probes the regions tick by tick.
//!
//! Gateway probes run late in the tick, so that a gateway that dies is seen dead in that tick. Spoken turns cost
//! processor time and feed rules that take minutes, so they are spread over the first part of the tick, in another
//! order for each vantage. A small machine therefore never gets all probes of all vantages at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use identity::{Identity, Peer};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use topology::{Moment, NodeId, RegionId, Snapshot, Tick};
use verdict::{EdgeProbe, Passive, TickReport};

use crate::{
    Lateness, edge_probe,
    stack::{self, Observed, Reached, milliseconds},
    texts,
};

/// The gateway probes of different regions are spread over this time: late enough to be fresh, early enough to be
/// answered.
const GATEWAY_SPREAD_MAX: Duration = Duration::from_millis(1_000);
/// All probes end at least this long before the tick ends.
const MARGIN: Duration = Duration::from_millis(500);
/// Wait between the end of a tick and its report, because timers sometimes fire a millisecond early.
const SETTLE: Duration = Duration::from_millis(20);

/// The identity of a prober, and the receivers of its results.
#[derive(Debug)]
pub struct Settings {
    /// The node that probes.
    pub vantage: NodeId,
    /// Receives one report per tick. A report is dropped if the channel is full, because health is judged on fresh
    /// ticks.
    pub reports: mpsc::Sender<TickReport>,
    /// Receives the results that this node itself uses, after every tick.
    pub results: Option<watch::Sender<Probed>>,
    /// Says when a missed deadline proves nothing because the prober itself was late.
    pub lateness: Lateness,
    /// The identity that the prober shows to stacks, which must prove their region to it; `None` for plain text.
    pub identity: Option<Arc<Identity>>,
}

/// The results of one tick's probes for the node that sent them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probed {
    /// Shortest time in which a stack of the region accepted a connection, in milliseconds. Regions without a
    /// connection are absent.
    pub rtt_ms: BTreeMap<RegionId, f64>,
    /// Regions that were probed and gave no successful answer.
    pub silent: BTreeSet<RegionId>,
    /// Stacks whose gateway answered a probe.
    pub answering: BTreeSet<SocketAddr>,
    /// The certificate that each stack showed, with the root that leads to it. Stacks without TLS are absent.
    pub certificates: BTreeMap<SocketAddr, Peer>,
}

/// Probes all regions in every tick until `stop`. After each tick it reports the observations of the probes and of
/// `traffic`. `traffic` is called once per tick and returns the observations since its previous call.
pub async fn run<T>(
    settings: Settings,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    traffic: T,
    stop: CancellationToken,
) where
    T: Fn() -> Passive + Send + 'static,
{
    stop.run_until_cancelled(run_by(daemon::clock::now, settings, snapshots, traffic))
        .await;
}

async fn run_by(
    now: impl Fn() -> Moment,
    settings: Settings,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    traffic: impl Fn() -> Passive,
) {
    loop {
        if snapshots.wait_for(Option::is_some).await.is_err() && snapshots.borrow().is_none() {
            // There is no plan, and no sender that could deliver one. The owner is about to stop this task.
            std::future::pending::<()>().await;
        }
        let Some(snapshot) = snapshots.borrow().clone() else {
            continue;
        };
        let tick = now().tick();
        // The set is dropped at the end of the tick, so that no probe outlives the tick for which it counts.
        let mut probes = start_probes(&settings, &snapshot, now());
        let mut edge_probes = start_edge_probes(&settings, &snapshot, now());
        let closed = wait_for_end(&now, tick).await;

        let (mut observed, mut probed) = (Observed::default(), Probed::default());
        while let Some(result) = probes.try_join_next() {
            // A probe that panicked has no result.
            let Ok((region, newly_observed, reached)) = result else {
                continue;
            };
            observed.absorb(&newly_observed);
            probed.certificates.extend(reached.shown);
            if let Some(time) = reached.round_trip {
                let ms = milliseconds(time);
                let least = probed.rtt_ms.entry(region).or_insert(ms);
                *least = least.min(ms);
            }
        }
        let mut edges = Vec::new();
        while let Some(result) = edge_probes.try_join_next() {
            edges.extend(result.ok().flatten());
        }
        edges.sort_by(|one: &EdgeProbe, other| one.edge.cmp(&other.edge));
        probed.silent = observed.unanswered();
        probed.answering = observed.answering();
        if let Some(sender) = &settings.results {
            sender.send_replace(probed);
        }
        // Called even when the tick does not count; otherwise the next tick would report this tick's traffic as its
        // own.
        let passive = traffic();
        passive
            .observations
            .iter()
            .for_each(|observation| observed.merge(observation));
        match closed {
            Closed::OnTime => {}
            Closed::Jumped { to } => {
                tracing::warn!(tick = tick.0, %to, "{}", texts::CLOCK_JUMPED);
                continue;
            }
        }
        let report = TickReport {
            versions: passive.versions,
            traffic: passive.traffic,
            edges,
            ..TickReport::new(settings.vantage.clone(), tick, observed.into_observations())
        };
        if let Err(error) = settings.reports.try_send(report) {
            tracing::warn!(tick = tick.0, %error, "{}", texts::REPORT_DROPPED);
        }
    }
}

/// The end of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// The next tick began.
    OnTime,
    /// The clock was set, or the machine slept: the observations belong to no known tick.
    Jumped { to: Moment },
}

/// Waits until the clock says that `tick` is over. Every pass sleeps at least a little, so that a clock that stands
/// still or goes back cannot make this a busy loop.
async fn wait_for_end(now: &impl Fn() -> Moment, tick: Tick) -> Closed {
    loop {
        let at = now();
        if at.tick() == tick {
            sleep(tick.end().since(at) + SETTLE).await;
        } else if at.tick() == Tick(tick.0 + 1) {
            return Closed::OnTime;
        } else {
            sleep(SETTLE).await;
            return Closed::Jumped { to: at };
        }
    }
}

/// A region, the observations of one probe of it, and the facts about its connection.
type ProbeResult = (RegionId, Observed, Reached);

/// Starts the probes that are still ahead in the tick that contains `now`.
fn start_probes(settings: &Settings, snapshot: &Snapshot, now: Moment) -> JoinSet<ProbeResult> {
    let Settings {
        vantage,
        lateness,
        identity,
        ..
    } = settings;
    let deadline = snapshot.probe.timeout;
    let into_tick = now.since(now.tick().start());
    let started = Instant::now();
    let mut probes = JoinSet::new();
    for (index, region) in snapshot.topology.regions.values().enumerate() {
        let at = schedule(snapshot, vantage, index);
        // A drained stack may be stopped, and a stack of a version without users may be broken, so neither is probed.
        for stack in snapshot.plan.stacks_with_sessions(region) {
            let stack = stack.address;
            if let Some(wait) = at.gateway.checked_sub(into_tick) {
                let (identity, id, lateness) = (identity.clone(), region.id.clone(), lateness.clone());
                probes.spawn(async move {
                    sleep_until(started + wait).await;
                    let (observed, reached) = stack::gateway(identity.as_ref(), &id, stack, deadline, &lateness).await;
                    (id, observed, reached)
                });
            }
            if let Some(wait) = at.spoken_turn.checked_sub(into_tick) {
                let (identity, id, lateness) = (identity.clone(), region.id.clone(), lateness.clone());
                probes.spawn(async move {
                    sleep_until(started + wait).await;
                    let observed = stack::spoken_turn(identity.as_ref(), &id, stack, deadline, &lateness).await;
                    (id, observed, Reached::default())
                });
            }
        }
    }
    probes
}

/// Starts the probes of other edges' public addresses. They are spread over the same time as the gateway probes, so
/// that an edge that dies in a tick is seen dead in that tick.
fn start_edge_probes(settings: &Settings, snapshot: &Snapshot, now: Moment) -> JoinSet<Option<EdgeProbe>> {
    let Settings { vantage, lateness, .. } = settings;
    let deadline = snapshot.probe.timeout;
    let into_tick = now.since(now.tick().start());
    let started = Instant::now();
    let mut edge_probes = JoinSet::new();
    let edges = edge_probe::to_try(vantage, snapshot.topology.edges.values());
    let count = edges.len().max(1);
    for (index, edge) in edges.into_iter().enumerate() {
        let at = gateway_at(snapshot, (phase(vantage) + index as f64 / count as f64).fract());
        if let Some(wait) = at.checked_sub(into_tick) {
            let tried = (edge.id.clone(), edge.addresses.clone(), edge.port);
            let lateness = lateness.clone();
            edge_probes.spawn(async move {
                sleep_until(started + wait).await;
                edge_probe::probe_edge(tried, deadline, &lateness).await
            });
        }
    }
    edge_probes
}

/// Start times of the probes of one region, from the start of the tick.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Schedule {
    gateway: Duration,
    spoken_turn: Duration,
}

fn schedule(snapshot: &Snapshot, vantage: &NodeId, region_index: usize) -> Schedule {
    let usable = Tick::LENGTH - MARGIN;
    let regions = snapshot.topology.regions.len().max(1);
    // The name of the vantage gives the starting point of its cycle; the regions follow in equal steps.
    let position = (phase(vantage) + region_index as f64 / regions as f64).fract();

    let (offset, deadline) = (snapshot.probe.offset.min(usable), snapshot.probe.timeout);
    let spoken_spread = usable.saturating_sub(stack::spoken_longest(deadline)).min(offset);
    Schedule {
        gateway: gateway_at(snapshot, position),
        spoken_turn: spoken_spread.mul_f64(position),
    }
}

/// Start time of a probe whose result must be fresh at the end of the tick, from the start of the tick. `position` in 0..1
/// is its position in the cycle.
fn gateway_at(snapshot: &Snapshot, position: f64) -> Duration {
    let usable = Tick::LENGTH - MARGIN;
    let (offset, deadline) = (snapshot.probe.offset.min(usable), snapshot.probe.timeout);
    let spread = usable.saturating_sub(offset + deadline).min(GATEWAY_SPREAD_MAX);
    offset + spread.mul_f64(position)
}

/// A number in 0..1 that depends only on the name (FNV-1a): equal on every run, different between vantages.
fn phase(vantage: &NodeId) -> f64 {
    let hash = vantage.as_str().bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    f64::from(hash) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use parking_lot::Mutex;
    use topology::{Component, fixtures::three_primaries};
    use verdict::{Observation, Source, TrafficSeen, VersionSeen};

    use super::*;

    /// A topology of closed ports: every probe fails at once. The tests check when probes run and what they report.
    fn world() -> Snapshot {
        let mut snapshot = three_primaries();
        for region in snapshot.topology.regions.values_mut() {
            // Port 1 is reserved, and no server listens there.
            region.stacks = vec![std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into()];
        }
        snapshot
    }

    fn settings(reports: mpsc::Sender<TickReport>) -> Settings {
        Settings {
            vantage: NodeId::new("edge-iad").unwrap(),
            reports,
            results: None,
            lateness: Lateness::default(),
            identity: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_tick_is_reported_once_with_what_probes_and_traffic_saw() {
        let started = Instant::now();
        let now = move || Moment(1_700_000_003_000) + started.elapsed();
        let (reports, mut reported) = mpsc::channel(8);
        let (_snapshots, receiver) = watch::channel(Some(Arc::new(world())));
        let us_east = RegionId::new("us-east").unwrap();
        let traffic = move || {
            let mut observation = Observation::new(us_east.clone(), Component::Asr, Source::Traffic);
            observation.succeed(100.0);
            // An edge may report a component in pieces; the report has one entry for it.
            Passive {
                observations: vec![observation.clone(), observation],
                versions: vec![VersionSeen::new("2.4.0")],
                traffic: vec![TrafficSeen::new(us_east.clone())],
            }
        };
        tokio::spawn(run_by(now, settings(reports), receiver, traffic));

        let first = reported.recv().await.unwrap();
        let second = reported.recv().await.unwrap();
        assert_eq!(first.tick, Moment(1_700_000_003_000).tick());
        assert_eq!(second.tick, Tick(first.tick.0 + 1));
        let (probes, traffic): (Vec<_>, Vec<_>) = second
            .observations
            .iter()
            .partition(|observation| observation.source == Source::Probe);
        assert_eq!(traffic.len(), 1);
        assert_eq!(traffic[0].succeeded, 2);
        assert_eq!((second.versions.len(), second.traffic.len()), (1, 1));
        // Only the gateways failed: nothing is known about the components behind them.
        assert_eq!(probes.len(), 6);
        for probe in probes {
            assert_eq!(probe.component, Component::Gateway);
            assert_eq!((probe.succeeded, probe.failed), (0, 2), "{}", probe.failure);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_edges_are_tried_where_devices_reach_them() {
        let started = Instant::now();
        let now = move || Moment(1_700_000_000_000) + started.elapsed();
        let (reports, mut reported) = mpsc::channel(8);
        let mut world = world();
        for edge in world.topology.edges.values_mut() {
            // No server listens there either.
            (edge.addresses, edge.port) = (vec![std::net::Ipv4Addr::LOCALHOST.into()], 1);
        }
        let (_snapshots, receiver) = watch::channel(Some(Arc::new(world.clone())));
        tokio::spawn(run_by(now, settings(reports), receiver, Passive::default));
        let report = reported.recv().await.unwrap();
        let tried: Vec<_> = report
            .edges
            .iter()
            .map(|seen| (seen.edge.as_str(), seen.reached))
            .collect();
        // `edge-iad` is the vantage, so it tries the other edge only.
        assert_eq!(tried, [("edge-dub", false)]);
        assert!(report.edges[0].failure.contains("refused"), "{:?}", report.edges);
    }

    /// If the prober's own event loop stood still, its missed deadline proves nothing: the stack may have answered in
    /// time.
    #[tokio::test(start_paused = true)]
    async fn probes_that_were_not_answered_in_time_count_only_when_the_prober_was_on_time() {
        for (is_late, failures) in [(true, 0), (false, 1)] {
            let started = Instant::now();
            let now = move || Moment(1_700_000_000_000) + started.elapsed();
            let (reports, mut reported) = mpsc::channel(8);
            // The kernel accepts connections, and no process answers.
            let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut world = world();
            let us_east = RegionId::new("us-east").unwrap();
            let stacks = &mut world.topology.regions.get_mut(&us_east).unwrap().stacks;
            *stacks = vec![silent.local_addr().unwrap().into()];
            let (_snapshots, receiver) = watch::channel(Some(Arc::new(world)));
            let settings = Settings {
                lateness: Lateness::new(move |_| is_late),
                ..settings(reports)
            };
            tokio::spawn(run_by(now, settings, receiver, Passive::default));
            let report = reported.recv().await.unwrap();
            let of_region = |id: &RegionId| -> u32 {
                let seen = report.observations.iter().filter(|it| &it.region == id);
                seen.map(|it| it.failed).sum()
            };
            assert_eq!(of_region(&us_east) > 0, failures > 0, "late: {is_late}");
            // Lateness does not excuse a refused connection.
            assert!(of_region(&RegionId::new("eu-west").unwrap()) > 0, "late: {is_late}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_costs_one_tick_and_never_spins() {
        let started = Instant::now();
        let (skew, asked) = (Arc::new(AtomicU64::new(600_000)), Arc::new(AtomicU64::new(0)));
        let now = {
            let (skew, asked) = (skew.clone(), asked.clone());
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                Moment(1_700_000_000_000 + skew.load(Ordering::Relaxed)) + started.elapsed()
            }
        };
        let (reports, mut reported) = mpsc::channel(64);
        let (_snapshots, receiver) = watch::channel(Some(Arc::new(world())));
        tokio::spawn(run_by(now, settings(reports), receiver, Passive::default));

        let before = reported.recv().await.unwrap();
        skew.store(0, Ordering::Relaxed);
        let after_step_back = reported.recv().await.unwrap();
        assert!(after_step_back.tick < before.tick);
        skew.store(3_600_000, Ordering::Relaxed);
        let after_step_forward = reported.recv().await.unwrap();
        assert!(after_step_forward.tick.0 > after_step_back.tick.0 + 300);
        assert!(asked.load(Ordering::Relaxed) < 100, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_reports_and_nothing_waits_for_it() {
        let started = Instant::now();
        let now = move || Moment(1_700_000_000_000) + started.elapsed();
        let (reports, mut reported) = mpsc::channel(1);
        let (_snapshots, receiver) = watch::channel(Some(Arc::new(world())));
        let asked = Arc::new(Mutex::new(0));
        let counter = asked.clone();
        let traffic = move || {
            *counter.lock() += 1;
            Passive::default()
        };
        tokio::spawn(run_by(now, settings(reports), receiver, traffic));
        sleep(Duration::from_secs(45)).await;
        assert!(*asked.lock() >= 4);
        assert!(reported.try_recv().is_ok() && reported.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn stacks_that_get_no_sessions_are_not_probed() {
        let started = Instant::now();
        let now = move || Moment(1_700_000_000_000) + started.elapsed();
        let mut world = world();
        let stack = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let us_east = RegionId::new("us-east").unwrap();
        let canary = topology::Stack::of_version(stack(3), "2.4.0").unwrap();
        let region = world.topology.regions.get_mut(&us_east).unwrap();
        region.stacks = vec![stack(1).into(), stack(2).into(), canary];
        world.plan.drained_stacks.insert(stack(2));
        let (reports, mut reported) = mpsc::channel(8);
        let (snapshots, receiver) = watch::channel(Some(Arc::new(world.clone())));
        tokio::spawn(run_by(now, settings(reports), receiver, Passive::default));
        let probed = |report: TickReport| -> Vec<u16> {
            let seen = report.observations.iter().filter(|it| it.region == us_east);
            seen.filter_map(|it| Some(it.stack?.port())).collect()
        };
        assert_eq!(probed(reported.recv().await.unwrap()), [1]);
        // Some users get the canary version, so its stack is probed.
        world.plan.rollout = Some(topology::Rollout {
            version: "2.4.0".into(),
            percent: 10,
            since: Moment(0),
            action: "a1".into(),
        });
        snapshots.send_replace(Some(Arc::new(world)));
        // The current tick ends with the plan with which it began.
        assert_eq!(probed(reported.recv().await.unwrap()), [1]);
        assert_eq!(probed(reported.recv().await.unwrap()), [1, 3]);
    }

    #[test]
    fn probes_are_spread_and_end_within_the_tick() {
        let snapshot = three_primaries();
        let mut starts = Vec::new();
        for vantage in ["edge-iad", "edge-dub", "control-plane-1"] {
            let vantage = NodeId::new(vantage).unwrap();
            for region in 0..snapshot.topology.regions.len() {
                let at = schedule(&snapshot, &vantage, region);
                assert!(at.gateway >= snapshot.probe.offset);
                assert!(at.gateway + snapshot.probe.timeout + MARGIN <= Tick::LENGTH);
                assert!(at.spoken_turn + stack::spoken_longest(snapshot.probe.timeout) + MARGIN <= Tick::LENGTH);
                starts.push(at.spoken_turn);
            }
        }
        starts.sort();
        starts.dedup();
        assert_eq!(starts.len(), 18, "no two turns start together");
    }

    #[test]
    fn a_limit_longer_than_a_tick_is_no_reason_to_panic() {
        let mut snapshot = three_primaries();
        snapshot.probe.timeout = Duration::from_secs(60);
        snapshot.probe.offset = Duration::from_secs(30);
        let at = schedule(&snapshot, &NodeId::new("a").unwrap(), 5);
        assert!(at.gateway <= Tick::LENGTH && at.spoken_turn <= Tick::LENGTH);
    }
}
