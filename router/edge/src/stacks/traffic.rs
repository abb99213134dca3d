//! The outcome of real traffic since the last tick: the edge reports it beside its probes.
//!
//! The edge blames a region for connections that it did not take, sessions that it lost, and turns that its stack reports as
//! failed. A session that ends with a Close frame is never a failure. The report names the stack of each failure: control planes
//! judge a region of several stacks by those that it cannot spare, so that one frozen stack does not move everybody. The report
//! also names the version, so that planning can roll it back. There a lost session counts as a failed turn, because a version
//! that crashes reports none.
//!
//! The losses of one client in a region count once in a tick, however many sessions it had: no single address can make a region
//! or a version look ill.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use routing::{Decision, Table, admit::network};
use topology::{Component, RegionId};
use verdict::{Observation, Passive, Source, TrafficSeen, VersionSeen};
use wire::{Trouble, Turn};

/// Clients whose losses of one tick are remembered. Beyond them each loss counts: among that many clients no single one can
/// distort the report.
const CLIENTS_MAX: usize = 10_000;

/// All connections share it. Nobody holds the lock across an await.
#[derive(Debug, Default)]
pub struct Traffic(Mutex<Inner>);

/// The stacks and versions of the plan bound it.
#[derive(Debug, Default)]
struct Inner {
    components: BTreeMap<(RegionId, SocketAddr, Component), Observation>,
    regions: BTreeMap<RegionId, TrafficSeen>,
    versions: BTreeMap<String, VersionSeen>,
    /// The clients that lost something in this tick, and the regions that lost it.
    losers: HashSet<(RegionId, IpAddr)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Took {
    /// An upgrade that it answered.
    Upgrade,
    Connection,
}

impl Traffic {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// A region accepted a TCP connection.
    pub fn reached(&self, region: &RegionId, took: Duration) {
        self.lock().region(region).connect.add(milliseconds(took));
    }

    /// A stack of a region took a connection, request or session, this long after its connection was begun.
    pub fn took(&self, region: &RegionId, stack: SocketAddr, what: Took, after: Duration) {
        let mut inner = self.lock();
        let after_ms = milliseconds(after);
        inner.gateway(region, stack).succeed(after_ms);
        let seen = inner.region(region);
        count(&mut seen.connects_ok);
        if what == Took::Upgrade {
            seen.first_byte.add(after_ms);
        }
    }

    /// A stack of a region did not take a session or a request.
    pub fn refused(&self, region: &RegionId, stack: SocketAddr, why: &str) {
        let mut inner = self.lock();
        inner.gateway(region, stack).fail(why);
        count(&mut inner.region(region).connects_failed);
    }

    /// A stack of a region lost a session or a request of `client` in the middle. `version` is that of a session's stack.
    pub fn lost(&self, region: &RegionId, stack: SocketAddr, version: Option<&str>, client: Option<IpAddr>, why: &str) {
        let mut inner = self.lock();
        count(&mut inner.region(region).aborts);
        if let Some(client) = client
            && inner.losers.len() < CLIENTS_MAX
            && !inner.losers.insert((region.clone(), network(client)))
        {
            return;
        }
        inner.gateway(region, stack).fail(why);
        if let Some(version) = version {
            count(&mut inner.version(version).turns_failed);
        }
    }

    /// Whether something that `client` lost in a region was counted in this tick.
    pub fn has_lost(&self, region: &RegionId, client: IpAddr) -> bool {
        self.lock().losers.contains(&(region.clone(), network(client)))
    }

    pub fn session_began(&self, decision: &Decision) {
        count(&mut self.lock().version(&decision.version).sessions);
    }

    /// The stack of a session reports the outcome of a turn.
    pub fn turn(&self, region: &RegionId, stack: SocketAddr, version: &str, turn: &Turn) {
        let mut inner = self.lock();
        let first_audio_ms = turn.first_audio_ms.map(f64::from);
        if let Some(ms) = turn.recognised_ms {
            inner.of(region, stack, Component::Asr).succeed(f64::from(ms));
        }
        if first_audio_ms.is_some() {
            // A stack does not report the time of synthesis alone.
            count(&mut inner.of(region, stack, Component::Tts).succeeded);
        }
        // Every component before the failed one worked. Without these successes, one bad turn of a thousand would look like 100 %
        // failures.
        for (component, later) in [
            (Component::Nlu, [Some(Component::Skills), Some(Component::Tts), None]),
            (Component::Skills, [Some(Component::Tts), None, None]),
        ] {
            if later.contains(&turn.failed) {
                count(&mut inner.of(region, stack, component).succeeded);
            }
        }
        if let Some(component) = turn.failed {
            let failure = format!("a turn failed in {component}");
            inner.of(region, stack, component).fail(&failure);
        }

        let seen = inner.region(region);
        match turn.failed {
            None => count(&mut seen.turns_ok),
            Some(_) => count(&mut seen.turns_failed),
        }
        first_audio_ms.into_iter().for_each(|ms| seen.turn.add(ms));

        let seen = inner.version(version);
        match turn.failed {
            None => count(&mut seen.turns_succeeded),
            Some(_) => count(&mut seen.turns_failed),
        }
        first_audio_ms.into_iter().for_each(|ms| seen.latency.add(ms));
    }

    /// Another failure in a session on this version.
    pub fn trouble(&self, version: &str, trouble: Trouble) {
        let mut inner = self.lock();
        let seen = inner.version(version);
        seen.underruns = seen.underruns.saturating_add(trouble.underruns);
        seen.gpu_memory_errors = seen.gpu_memory_errors.saturating_add(trouble.gpu_memory_errors);
    }

    /// The outcome since the last call. It has versions only during a rollout.
    pub fn take(&self, table: Option<&Table>) -> Passive {
        let Inner {
            components,
            regions,
            versions,
            losers: _,
        } = std::mem::take(&mut *self.lock());
        let is_rolling_out = table.is_some_and(Table::splits_users);
        Passive {
            observations: components.into_values().collect(),
            versions: versions.into_values().filter(|_| is_rolling_out).collect(),
            traffic: regions.into_values().collect(),
        }
    }
}

impl Inner {
    fn gateway(&mut self, region: &RegionId, stack: SocketAddr) -> &mut Observation {
        self.of(region, stack, Component::Gateway)
    }

    fn of(&mut self, region: &RegionId, stack: SocketAddr, component: Component) -> &mut Observation {
        let place = self.components.entry((region.clone(), stack, component));
        place.or_insert_with(|| Observation {
            stack: Some(stack),
            ..Observation::new(region.clone(), component, Source::Traffic)
        })
    }

    fn region(&mut self, region: &RegionId) -> &mut TrafficSeen {
        let place = self.regions.entry(region.clone());
        place.or_insert_with(|| TrafficSeen::new(region.clone()))
    }

    fn version(&mut self, version: &str) -> &mut VersionSeen {
        let place = self.versions.entry(version.to_owned());
        place.or_insert_with(|| VersionSeen::new(version))
    }
}

fn count(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us_east() -> RegionId {
        RegionId::new("us-east").unwrap()
    }

    fn stack(n: u8) -> SocketAddr {
        ([127, 0, 0, n], 9001).into()
    }

    fn seen_of(passive: &Passive, component: Component) -> (u32, u32) {
        let mut seen = passive.observations.iter();
        let seen = seen.find(|seen| seen.component == component);
        seen.map_or((0, 0), |seen| (seen.succeeded, seen.failed))
    }

    #[test]
    fn a_tick_reports_what_traffic_saw_once() {
        let traffic = Traffic::default();
        traffic.reached(&us_east(), Duration::from_millis(2));
        traffic.took(&us_east(), stack(1), Took::Upgrade, Duration::from_millis(20));
        traffic.took(&us_east(), stack(1), Took::Connection, Duration::from_millis(2));
        traffic.refused(&us_east(), stack(1), "connect: refused");
        traffic.lost(&us_east(), stack(1), Some("current"), None, "session lost");
        let passive = traffic.take(None);
        let seen = &passive.traffic[0];
        assert_eq!((seen.connects_ok, seen.connects_failed, seen.aborts), (2, 1, 1));
        assert_eq!(
            (seen.connect.count(), seen.first_byte.count(), seen.turn.count()),
            (1, 1, 0)
        );
        assert_eq!(seen_of(&passive, Component::Gateway), (2, 2));
        assert_eq!(passive.observations[0].failure, "session lost");
        assert_eq!(passive.observations[0].source, Source::Traffic);
        assert_eq!(traffic.take(None), Passive::default());
    }

    /// Otherwise one frozen stack of several moves everybody: the losses of its sessions would count for its region however well the
    /// others work.
    #[test]
    fn all_that_a_session_saw_is_told_of_its_stack() {
        let traffic = Traffic::default();
        for n in [1, 2] {
            traffic.took(&us_east(), stack(n), Took::Upgrade, Duration::from_millis(20));
        }
        traffic.refused(&us_east(), stack(2), "connect: refused");
        traffic.lost(&us_east(), stack(2), Some("current"), None, "session silent");
        let passive = traffic.take(None);
        let told = passive.observations.iter();
        let told: Vec<_> = told.map(|seen| (seen.stack, seen.succeeded, seen.failed)).collect();
        assert_eq!(told, [(Some(stack(1)), 1, 0), (Some(stack(2)), 1, 2)]);
        let seen = &passive.traffic[0];
        assert_eq!((seen.connects_ok, seen.connects_failed, seen.aborts), (2, 1, 1));
    }

    /// Otherwise a household with ten phones, or one attacker, could move everybody out of a region.
    #[test]
    fn what_one_client_loses_counts_once_in_a_tick() {
        let traffic = Traffic::default();
        let lose = |client: &str| {
            let client = Some(client.parse().unwrap());
            traffic.lost(&us_east(), stack(1), Some("2.4.0"), client, "session lost");
        };
        for client in ["192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"] {
            lose(client);
        }
        for client in ["2001:db8:1:2::1", "2001:db8:1:2:ffff::2", "2001:db8:1:3::1"] {
            lose(client);
        }
        let eu_west = RegionId::new("eu-west").unwrap();
        traffic.lost(
            &eu_west,
            stack(2),
            None,
            Some("192.0.2.1".parse().unwrap()),
            "request lost",
        );
        let failed = traffic.lock().versions["2.4.0"].turns_failed;
        assert_eq!(failed, 4, "a version is no worse than its region");
        let passive = traffic.take(None);
        let aborts = |region: &RegionId| {
            passive
                .traffic
                .iter()
                .find(|seen| seen.region == *region)
                .unwrap()
                .aborts
        };
        assert_eq!((aborts(&us_east()), aborts(&eu_west)), (7, 1), "people are told all");
        let failed = passive.observations.iter().map(|seen| seen.failed);
        assert_eq!(failed.sum::<u32>(), 5, "and verdicts are by client");
        lose("192.0.2.1");
        assert_eq!(seen_of(&traffic.take(None), Component::Gateway), (0, 1), "a new tick");
    }

    #[test]
    fn a_turn_is_told_of_its_region_its_version_and_what_failed_in_it() {
        let traffic = Traffic::default();
        let good = Turn {
            recognised_ms: Some(80),
            first_audio_ms: Some(200),
            failed: None,
        };
        let bad = Turn {
            first_audio_ms: None,
            failed: Some(Component::Tts),
            ..good
        };
        for turn in [good, good, bad] {
            traffic.turn(&us_east(), stack(1), "2.4.0", &turn);
            let (underruns, gpu_memory_errors) = (2, u32::from(turn.failed.is_some()));
            traffic.trouble(
                "2.4.0",
                Trouble {
                    underruns,
                    gpu_memory_errors,
                },
            );
        }
        let versions = traffic.lock().versions.clone();
        let seen = &versions["2.4.0"];
        assert_eq!(
            (seen.turns_succeeded, seen.turns_failed, seen.latency.count()),
            (2, 1, 2)
        );
        assert_eq!((seen.underruns, seen.gpu_memory_errors), (6, 1));
        let passive = traffic.take(None);
        assert_eq!(passive.versions, [], "nothing is rolled out");
        assert_eq!(seen_of(&passive, Component::Asr), (3, 0));
        for component in [Component::Nlu, Component::Skills] {
            assert_eq!(seen_of(&passive, component), (3, 0), "each turn got past {component}");
        }
        assert_eq!(seen_of(&passive, Component::Tts), (2, 1));
        assert_eq!(seen_of(&passive, Component::Gateway), (0, 0));
        assert_eq!((passive.traffic[0].turns_ok, passive.traffic[0].turns_failed), (2, 1));
    }
}
