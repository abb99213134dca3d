//! Probing tick by tick.
//!
//! Gateways are asked late in the tick, so that one that dies is seen dead in that tick. Spoken turns cost processor time
//! and feed rules that take minutes: they are spread over the first part of the tick, each vantage in another order, so
//! that a small machine is not asked everything by everyone at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use topology::{Moment, NodeId, RegionId, Snapshot, Tick};
use verdict::{Passive, TickReport};

use crate::stack::{self, Seen, milliseconds};

/// Gateways of different regions are asked over this long: late enough to matter, early enough to be answered.
const GATEWAY_SPREAD_MAX: Duration = Duration::from_millis(1_000);
/// Probes are over this long before the tick ends.
const MARGIN: Duration = Duration::from_millis(500);
/// Wait after the tick's end before it is reported: timers are early by a millisecond at times.
const SETTLE: Duration = Duration::from_millis(20);

/// Where the results of [`run`] go.
#[derive(Debug)]
pub struct Settings {
    /// Who probes.
    pub vantage: NodeId,
    /// Takes one report per tick; a report that finds it full is dropped, because health is judged on fresh ticks.
    pub reports: mpsc::Sender<TickReport>,
    /// Takes what the node itself should know of the regions, after every tick.
    pub rtts: Option<watch::Sender<Probed>>,
    /// Says when a probe that got no answer in time proves nothing, because the prober itself was late.
    pub lateness: Lateness,
}

/// Whether the prober was so late lately that a wait of some length which came to nothing is no evidence. By default it never
/// was.
#[derive(Clone)]
pub struct Lateness(Arc<dyn Fn(Duration) -> bool + Send + Sync>);

impl Lateness {
    /// Asks whoever measures it.
    pub fn new(is_late_for: impl Fn(Duration) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_late_for))
    }

    pub(crate) fn is_late_for(&self, wait: Duration) -> bool {
        (self.0)(wait)
    }
}

impl Default for Lateness {
    fn default() -> Self {
        Self::new(|_| false)
    }
}

impl fmt::Debug for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lateness").finish_non_exhaustive()
    }
}

/// What the probes of one tick say to the node that sent them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probed {
    /// The shortest time in which a stack of the region took a connection, in milliseconds; only of regions that took one.
    pub rtt_ms: BTreeMap<RegionId, f64>,
    /// Regions that were probed and answered nothing.
    pub silent: BTreeSet<RegionId>,
}

/// Probes all regions in every tick until `stop`, and reports after each tick what the probes and `traffic` saw in it.
/// `traffic` is called once per tick and returns what was seen since its last call.
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
    let http = stack::http_client();
    loop {
        if snapshots.wait_for(Option::is_some).await.is_err() && snapshots.borrow().is_none() {
            // No plan and nobody left who could send one; the owner is about to stop this task.
            std::future::pending::<()>().await;
        }
        let Some(snapshot) = snapshots.borrow().clone() else {
            continue;
        };
        let tick = now().tick();
        // Dropped with the tick: a probe never outlives the tick it counts for.
        let mut probes = start_probes(&http, &settings, &snapshot, now());
        let closed = wait_for_end(&now, tick).await;

        let (mut seen, mut probed) = (Seen::default(), Probed::default());
        while let Some(result) = probes.try_join_next() {
            // A probe that panicked saw nothing.
            let Ok((region, probe_seen, round_trip)) = result else {
                continue;
            };
            seen.absorb(&probe_seen);
            if let Some(time) = round_trip {
                let ms = milliseconds(time);
                let least = probed.rtt_ms.entry(region).or_insert(ms);
                *least = least.min(ms);
            }
        }
        probed.silent = seen.unanswered();
        if let Some(sender) = &settings.rtts {
            sender.send_replace(probed);
        }
        // Asked even when the tick does not count, or its traffic would be taken for that of the next.
        let passive = traffic();
        passive
            .observations
            .iter()
            .for_each(|observation| seen.merge(observation));
        match closed {
            Closed::OnTime => {}
            Closed::Jumped { to } => {
                tracing::warn!(tick = tick.0, %to, "the clock jumped; the tick is not reported");
                continue;
            }
        }
        let report = TickReport {
            versions: passive.versions,
            traffic: passive.traffic,
            ..TickReport::new(settings.vantage.clone(), tick, seen.into_observations())
        };
        if let Err(error) = settings.reports.try_send(report) {
            tracing::warn!(tick = tick.0, %error, "a report is dropped");
        }
    }
}

/// How a tick ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// Its successor began.
    OnTime,
    /// The clock was set, or the machine slept: what was seen belongs to no known tick.
    Jumped { to: Moment },
}

/// Waits until the clock says that `tick` is over. Sleeps at least a little every time, so that a clock that stands still or
/// goes back cannot make it spin.
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

/// What a probe saw of a region, and the round trip if it measured one.
type ProbeResult = (RegionId, Seen, Option<Duration>);

/// Starts what is still ahead in the tick that holds `now`.
fn start_probes(http: &reqwest::Client, settings: &Settings, snapshot: &Snapshot, now: Moment) -> JoinSet<ProbeResult> {
    let Settings { vantage, lateness, .. } = settings;
    let patience = snapshot.probe.timeout;
    let into_tick = now.since(now.tick().start());
    let started = Instant::now();
    let mut probes = JoinSet::new();
    for (index, region) in snapshot.topology.regions.values().enumerate() {
        let at = schedule(snapshot, vantage, index);
        // A stack that was taken out of service may be stopped, and one of a version that nobody is sent to may be broken.
        for stack in snapshot.plan.stacks_with_sessions(region) {
            let stack = stack.address;
            if let Some(wait) = at.gateway.checked_sub(into_tick) {
                let (http, id, lateness) = (http.clone(), region.id.clone(), lateness.clone());
                probes.spawn(async move {
                    sleep_until(started + wait).await;
                    let (seen, round_trip) = stack::gateway(&http, &id, stack, patience, &lateness).await;
                    (id, seen, round_trip)
                });
            }
            if let Some(wait) = at.spoken_turn.checked_sub(into_tick) {
                let (id, lateness) = (region.id.clone(), lateness.clone());
                probes.spawn(async move {
                    sleep_until(started + wait).await;
                    let seen = stack::spoken_turn(&id, stack, patience, &lateness).await;
                    (id, seen, None)
                });
            }
        }
    }
    probes
}

/// When the probes of one region start, from the start of the tick.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Schedule {
    gateway: Duration,
    spoken_turn: Duration,
}

fn schedule(snapshot: &Snapshot, vantage: &NodeId, region_index: usize) -> Schedule {
    let usable = Tick::LENGTH - MARGIN;
    let regions = snapshot.topology.regions.len().max(1);
    // The vantage's name chooses where it begins; from there it goes round all regions in equal steps.
    let place = (phase(vantage) + region_index as f64 / regions as f64).fract();

    let (offset, patience) = (snapshot.probe.offset.min(usable), snapshot.probe.timeout);
    let gateway_spread = usable.saturating_sub(offset + patience).min(GATEWAY_SPREAD_MAX);
    let spoken_spread = usable.saturating_sub(stack::spoken_longest(patience)).min(offset);
    Schedule {
        gateway: offset + gateway_spread.mul_f64(place),
        spoken_turn: spoken_spread.mul_f64(place),
    }
}

/// A number in 0..1 that depends on the name only (FNV-1a): equal on every run, different between vantages.
fn phase(vantage: &NodeId) -> f64 {
    let hash = vantage.as_str().bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    f64::from(hash) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    };

    use topology::{Component, fixtures::three_primaries};
    use verdict::{Observation, Source, TrafficSeen, VersionSeen};

    use super::*;

    /// A world of closed ports: every probe fails at once, and what matters is when and what is reported.
    fn world() -> Snapshot {
        let mut snapshot = three_primaries();
        for region in snapshot.topology.regions.values_mut() {
            // Port 1 is reserved and nobody listens there.
            region.stacks = vec![std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into()];
        }
        snapshot
    }

    fn settings(reports: mpsc::Sender<TickReport>) -> Settings {
        Settings {
            vantage: NodeId::new("edge-iad").unwrap(),
            reports,
            rtts: None,
            lateness: Lateness::default(),
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
            // The edge may report a component in pieces; the report has one entry.
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
        // Only the gateways failed: nothing is known about what is behind them.
        assert_eq!(probes.len(), 6);
        for probe in probes {
            assert_eq!(probe.component, Component::Gateway);
            assert_eq!((probe.succeeded, probe.failed), (0, 2), "{}", probe.failure);
        }
    }

    /// A prober whose own event loop stood still waited for nothing: its stack may have answered long before it looked.
    #[tokio::test(start_paused = true)]
    async fn probes_that_were_not_answered_in_time_count_only_when_the_prober_was_on_time() {
        for (is_late, failures) in [(true, 0), (false, 1)] {
            let started = Instant::now();
            let now = move || Moment(1_700_000_000_000) + started.elapsed();
            let (reports, mut reported) = mpsc::channel(8);
            // The kernel takes connections for it, and nobody answers.
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
            // Being late excuses no refusal.
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
            *counter.lock().unwrap() += 1;
            Passive::default()
        };
        tokio::spawn(run_by(now, settings(reports), receiver, traffic));
        sleep(Duration::from_secs(45)).await;
        assert!(*asked.lock().unwrap() >= 4);
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
        // Some users are sent to the canary: now it counts.
        world.plan.rollout = Some(topology::Rollout {
            version: "2.4.0".into(),
            percent: 10,
            since: Moment(0),
            action: "a1".into(),
        });
        snapshots.send_replace(Some(Arc::new(world)));
        // The tick under way is probed by the plan it began with.
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
    fn patience_longer_than_a_tick_is_no_reason_to_panic() {
        let mut snapshot = three_primaries();
        snapshot.probe.timeout = Duration::from_secs(60);
        snapshot.probe.offset = Duration::from_secs(30);
        let at = schedule(&snapshot, &NodeId::new("a").unwrap(), 5);
        assert!(at.gateway <= Tick::LENGTH && at.spoken_turn <= Tick::LENGTH);
    }
}
