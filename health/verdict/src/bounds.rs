//! The most that one vantage can have seen in one tick. A report that claims more is cut down to it, and the shares of its
//! failures stay: a vantage that claims a million failures counts like one that saw as many as it can have seen.
//!
//! A vantage makes a few probes of each stack. Its real traffic is at most what the region has room for, and at most some
//! times what the vantage reported before: a node that never had sessions does not outweigh the fleet from one tick to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{Component, NodeId, Plan, RegionId, Tick, Topology};

use crate::{
    Observation, Source, TickReport, TrafficSeen, VersionSeen,
    observation::{PROBES_MAX, TRAFFIC_MAX, shared},
};

/// Most probes of one component of one stack in a tick. A vantage opens two connections to a stack and speaks one turn; a
/// turn whose connection breaks counts once more.
pub const PROBES_PER_STACK: u32 = 4;
/// Most attempts of real traffic that one session makes in a tick of 10 s: people take longer for a turn, and clients that
/// lost their region connect a few times.
pub const ATTEMPTS_PER_SESSION: u32 = 10;
/// Attempts that every vantage may report, whatever it reported before. A new edge and a new leader begin with this many.
pub const TRAFFIC_MIN: u32 = 16;
/// Factor by which the traffic of a vantage in a region may grow from one tick to the next. A failover brings an edge three or
/// four times its sessions; they count in full two ticks later. Only the weight of the vantage is cut, never its shares.
pub const GROWTH_MAX: u32 = 2;

/// The limits of all vantages.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    rooms: BTreeMap<RegionId, Room>,
    versions: BTreeSet<String>,
    before: BTreeMap<NodeId, Before>,
}

/// The recent reports of a vantage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Before {
    /// The newest tick among its reports. Another report on the same tick makes no room: nobody grows by speaking twice.
    newest: Option<Tick>,
    /// By region: most attempts in one component. Older ones fade.
    traffic: BTreeMap<RegionId, u32>,
}

/// The room of a region.
#[derive(Debug, Clone, Copy)]
struct Room {
    stacks: u32,
    sessions: u32,
}

impl Bounds {
    /// Whether the regions are not known yet.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Notes the regions, and forgets vantages that no longer exist.
    pub fn know(&mut self, plan: Option<&Plan>, topology: &Topology, exists: impl Fn(&NodeId) -> bool) {
        let room = |region: &topology::Region| {
            let stacks = plan.map_or(region.stacks.len(), |plan| plan.stacks_with_sessions(region).len());
            let room = Room {
                stacks: u32::try_from(stacks).unwrap_or(u32::MAX),
                sessions: region.sessions_max,
            };
            (region.id.clone(), room)
        };
        self.rooms = topology.regions.values().map(room).collect();
        let stacks = topology.regions.values().flat_map(|region| &region.stacks);
        self.versions = stacks.map(|stack| stack.version().to_owned()).collect();
        self.before.retain(|vantage, _| exists(vantage));
    }

    /// The memory of a vantage, to be given to [`Bounds::take_back`].
    pub fn before(&self, vantage: &NodeId) -> Before {
        self.before.get(vantage).cloned().unwrap_or_default()
    }

    /// Forgets a report that was cut and did not count after all: a report that nobody judges makes no room for the next.
    pub fn take_back(&mut self, vantage: &NodeId, before: Before) {
        self.before.insert(vantage.clone(), before);
    }

    /// Cuts a report down to what its vantage can have seen. True if it claimed more. A region that [`Bounds::know`] was not
    /// told of is left alone: nothing judges it.
    pub fn cut(&mut self, report: &mut TickReport) -> bool {
        let mut is_cut = self.cut_observations(report);
        let mut known = BTreeSet::new();
        report.traffic.retain(|seen| known.insert(seen.region.clone()));
        for seen in &mut report.traffic {
            if let Some(room) = self.rooms.get(&seen.region) {
                is_cut |= cut_traffic(seen, *room);
            }
        }
        let sessions = self.rooms.values().map(|room| room.sessions);
        let sessions = sessions.fold(0, u32::saturating_add);
        let mut known = BTreeSet::new();
        let versions = &self.versions;
        let is_known = |seen: &VersionSeen| versions.contains(&seen.version);
        report
            .versions
            .retain(|seen| is_known(seen) && known.insert(seen.version.clone()));
        for seen in &mut report.versions {
            is_cut |= cut_version(seen, sessions);
        }
        is_cut
    }

    fn cut_observations(&mut self, report: &mut TickReport) -> bool {
        let before = self.before.entry(report.vantage.clone()).or_default();
        let observations = &mut report.observations;
        // Most reports are in this order already.
        observations.sort_by(|one, other| one.region.cmp(&other.region));
        let (mut is_cut, mut had_pieces) = (false, false);
        let mut traffic: BTreeMap<RegionId, u32> = BTreeMap::new();
        for of_region in observations.chunk_by_mut(|one, other| one.region == other.region) {
            let Some(region) = of_region.first().map(|it| &it.region) else {
                continue;
            };
            let Some(room) = self.rooms.get(region) else { continue };
            let (region, known) = (region.clone(), before.traffic.get(region).copied().unwrap_or_default());
            had_pieces |= merge_pieces(of_region);
            let cut = cut_region(of_region, *room, known);
            is_cut |= cut.is_cut;
            if cut.traffic > 0 {
                traffic.insert(region, cut.traffic);
            }
        }
        if had_pieces {
            observations.retain(|seen| samples(seen) > 0 || !seen.latency.is_empty());
        }
        if before.newest < Some(report.tick) {
            before.newest = Some(report.tick);
            for (region, known) in &mut before.traffic {
                *known = traffic.remove(region).unwrap_or_default().max(*known / 2);
            }
            before.traffic.extend(traffic);
            let rooms = &self.rooms;
            before
                .traffic
                .retain(|region, known| *known > 0 && rooms.contains_key(region));
        }
        is_cut
    }
}

/// The outcome of cutting the observations of one region.
struct Cut {
    is_cut: bool,
    /// Most attempts of traffic in one component, after the cut.
    traffic: u32,
}

/// Cuts the observations of one vantage in one region. `before`: most attempts of its traffic there of late.
fn cut_region(observations: &mut [Observation], room: Room, before: u32) -> Cut {
    let mut sums = [[0_u64; 2]; Component::ALL.len()];
    for seen in observations.iter() {
        sums[seen.component as usize][seen.source as usize] += samples(seen);
    }
    let probes_max = room.stacks.max(1).saturating_mul(PROBES_PER_STACK);
    let traffic_max = room.traffic().min(before.saturating_mul(GROWTH_MAX).max(TRAFFIC_MIN));
    let mut is_cut = false;
    for seen in observations {
        let (max, own) = match seen.source {
            // Also of one stack: a lie about one must not use the room of the others.
            Source::Probe if seen.stack.is_some() => (probes_max, PROBES_PER_STACK),
            Source::Probe => (probes_max, PROBES_MAX),
            Source::Traffic => (traffic_max, traffic_max),
        };
        let sum = sums[seen.component as usize][seen.source as usize];
        // The part of this stack in what all stacks together may have.
        let part = match sum > u64::from(max) {
            true => u64::from(max) * samples(seen) / sum,
            false => samples(seen),
        };
        let limit = u32::try_from(part).unwrap_or(u32::MAX).min(own);
        is_cut |= samples(seen) > u64::from(limit);
        seen.cut_to(limit);
    }
    let most = sums
        .iter()
        .map(|sum| sum[Source::Traffic as usize])
        .max()
        .unwrap_or_default();
    let traffic = u32::try_from(most).unwrap_or(u32::MAX).min(traffic_max);
    Cut { is_cut, traffic }
}

/// Puts the observations of the same attempts together: pieces must not count as if each were all. Those that were merged into
/// another one are left without samples; true if there are any.
fn merge_pieces(observations: &mut [Observation]) -> bool {
    let mut known: BTreeMap<(Component, Source, Option<SocketAddr>), usize> = BTreeMap::new();
    let mut had_pieces = false;
    for at in 0..observations.len() {
        let seen = &observations[at];
        let first = *known.entry((seen.component, seen.source, seen.stack)).or_insert(at);
        if let Ok([into, from]) = observations.get_disjoint_mut([first, at]) {
            into.merge(from);
            *from = Observation {
                stack: from.stack,
                ..Observation::new(from.region.clone(), from.component, from.source)
            };
            had_pieces = true;
        }
    }
    had_pieces
}

impl Room {
    /// Most attempts of real traffic in one component.
    fn traffic(self) -> u32 {
        let all = self.sessions.saturating_mul(ATTEMPTS_PER_SESSION);
        all.clamp(TRAFFIC_MIN, TRAFFIC_MAX)
    }
}

fn samples(seen: &Observation) -> u64 {
    u64::from(seen.succeeded) + u64::from(seen.failed)
}

fn cut_traffic(seen: &mut TrafficSeen, room: Room) -> bool {
    let before = (
        seen.sessions,
        seen.connects_ok,
        seen.connects_failed,
        seen.aborts,
        seen.turns_ok,
        seen.turns_failed,
    );
    // Stacks that a region needs follow from its sessions: more than it has room for would make it need all of them.
    seen.sessions = seen.sessions.min(room.sessions);
    seen.aborts = seen.aborts.min(room.traffic());
    (seen.connects_ok, seen.connects_failed) = shared(seen.connects_ok, seen.connects_failed, room.traffic());
    (seen.turns_ok, seen.turns_failed) = shared(seen.turns_ok, seen.turns_failed, room.traffic());
    before
        != (
            seen.sessions,
            seen.connects_ok,
            seen.connects_failed,
            seen.aborts,
            seen.turns_ok,
            seen.turns_failed,
        )
}

fn cut_version(seen: &mut VersionSeen, sessions: u32) -> bool {
    let max = sessions.saturating_mul(ATTEMPTS_PER_SESSION);
    let before = (
        seen.sessions,
        seen.turns_succeeded,
        seen.turns_failed,
        seen.underruns,
        seen.gpu_memory_errors,
    );
    seen.sessions = seen.sessions.min(sessions);
    (seen.turns_succeeded, seen.turns_failed) = shared(seen.turns_succeeded, seen.turns_failed, max);
    seen.underruns = seen.underruns.min(max);
    seen.gpu_memory_errors = seen.gpu_memory_errors.min(max);
    before
        != (
            seen.sessions,
            seen.turns_succeeded,
            seen.turns_failed,
            seen.underruns,
            seen.gpu_memory_errors,
        )
}
