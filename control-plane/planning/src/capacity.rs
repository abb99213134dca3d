//! The room of regions, and the shares of a primary's sessions that fit there.
//!
//! Why it is so: docs/decisions/15-routes-and-capacity.md.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use topology::{Component, Level, Moment, Plan, RegionId, Share, Topology};
use verdict::Verdict;

use crate::Memory;

/// A resource that a region has a limit of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// All sessions.
    Sessions,
    /// Sessions that one component can serve.
    Component(Component),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sessions => f.pad("sessions"),
            Self::Component(component) => component.fmt(f),
        }
    }
}

/// The load that a plan puts on one resource of one region.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The region.
    pub region: RegionId,
    /// The resource.
    pub resource: Resource,
    /// Number of sessions at the primaries' peaks.
    pub planned: f64,
    /// Limit of sessions.
    pub max: u32,
}

/// The capacity table: the load that a plan puts on every region.
pub fn loads(topology: &Topology, plan: &Plan, verdicts: &BTreeMap<RegionId, Verdict>) -> Vec<Load> {
    let headroom = Headroom::beside(topology, strengths(topology, plan, verdicts), &plan.routes);
    let rows = headroom.left.iter().flat_map(|(region, left)| {
        left.iter().map(|(resource, left)| {
            let max = headroom.room(region, *resource);
            Load {
                region: (*region).clone(),
                resource: *resource,
                planned: f64::from(max) - left,
                max,
            }
        })
    });
    rows.collect()
}

/// The level that does without a component, if one does.
pub(crate) fn relief(component: Component) -> Option<Level> {
    match component {
        Component::Asr => Some(Level::L1),
        Component::Nlu => Some(Level::L2),
        Component::Skills => Some(Level::L3),
        Component::Gateway | Component::Tts | Component::SessionStore => None,
    }
}

fn limit(topology: &Topology, region: &RegionId, resource: Resource) -> u32 {
    let Some(region) = topology.regions.get(region) else {
        return 0;
    };
    match resource {
        Resource::Sessions => region.sessions_max,
        Resource::Component(component) => {
            let limit = region.capacity.get(&component).copied();
            limit.unwrap_or(region.sessions_max).min(region.sessions_max)
        }
    }
}

/// The stacks of a region that take sessions and work, and all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strength {
    working: usize,
    all: usize,
}

impl Strength {
    /// The part of a region's limit that its working stacks have. Stacks count alike.
    fn of(self, limit: u32) -> u32 {
        let (working, all) = (self.working as u64, self.all.max(1) as u64);
        // Rounded up: a region that works has room for one session, its own, or it could never be restored.
        let left = (u64::from(limit) * working).div_ceil(all);
        u32::try_from(left).unwrap_or(limit)
    }
}

/// The strength of every region that is not whole: some of its stacks are drained by `plan`, or dead.
pub(crate) fn strengths<'t>(
    topology: &'t Topology,
    plan: &Plan,
    verdicts: &BTreeMap<RegionId, Verdict>,
) -> BTreeMap<&'t RegionId, Strength> {
    let strength = |region: &topology::Region| {
        let dead = verdicts.get(&region.id).map(|it| &it.dead_stacks);
        let works = |stack: &&&topology::Stack| dead.is_none_or(|dead| !dead.contains(&stack.address));
        let working = plan.stacks_with_sessions(region).iter().filter(works).count();
        let all = plan.stacks_at_full_strength(region).len();
        Strength { working, all }
    };
    let strengths = topology.regions.values().map(|region| (&region.id, strength(region)));
    strengths.filter(|(_, it)| it.working < it.all).collect()
}

/// The room left in every region while shares are handed out.
pub(crate) struct Headroom<'t> {
    topology: &'t Topology,
    strengths: BTreeMap<&'t RegionId, Strength>,
    left: BTreeMap<&'t RegionId, Vec<(Resource, f64)>>,
}

/// Shares that found a place, and the percentage without one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) shares: Vec<Share>,
    pub(crate) left: u8,
}

impl<'t> Headroom<'t> {
    /// The room left beside the routes already planned. A primary's demand elsewhere is its own capacity: it is sized
    /// for its peak, and a failover must hold at the peak. At home it takes its own share of the stacks that work
    /// there.
    pub(crate) fn beside<'r>(
        topology: &'t Topology,
        strengths: BTreeMap<&'t RegionId, Strength>,
        routes: impl IntoIterator<Item = (&'r RegionId, &'r Vec<Share>)>,
    ) -> Self {
        let mut headroom = Self {
            topology,
            strengths,
            left: BTreeMap::new(),
        };
        for region in topology.regions.values() {
            let components = region.capacity.keys().map(|component| Resource::Component(*component));
            let resources = [Resource::Sessions].into_iter().chain(components);
            let left = resources.map(|resource| (resource, f64::from(headroom.room(&region.id, resource))));
            let left = left.collect();
            headroom.left.insert(&region.id, left);
        }
        for (primary, shares) in routes {
            for share in shares {
                headroom.take(primary, &share.region, share.percent);
            }
        }
        headroom
    }

    /// The amount of a resource in the stacks of a region that work and take sessions.
    fn room(&self, region: &RegionId, resource: Resource) -> u32 {
        let limit = limit(self.topology, region, resource);
        self.strengths.get(region).map_or(limit, |it| it.of(limit))
    }

    /// The demand of all sessions of `primary` at `target`.
    fn demand(&self, primary: &RegionId, target: &RegionId, resource: Resource) -> f64 {
        f64::from(if primary == target {
            self.room(primary, resource)
        } else {
            limit(self.topology, primary, resource)
        })
    }

    fn take(&mut self, primary: &RegionId, target: &RegionId, percent: u8) {
        let Some(mut resources) = self.left.remove_entry(target) else {
            return;
        };
        for (resource, left) in &mut resources.1 {
            *left -= self.demand(primary, target, *resource) * f64::from(percent) / 100.0;
        }
        self.left.insert(resources.0, resources.1);
    }

    /// Whether more is planned for `target` than it can hold at any level.
    pub(crate) fn is_over(&self, target: &RegionId, degrade: bool) -> bool {
        let mut resources = self.left.get(target).into_iter().flatten();
        resources.any(|(resource, left)| *left < -1e-6 && !(degrade && is_relieved(*resource)))
    }

    /// The level at which `target` can serve what is planned for it.
    pub(crate) fn level(&self, target: &RegionId) -> Level {
        let over = self
            .left
            .get(target)
            .into_iter()
            .flatten()
            .filter(|(_, left)| *left < -1e-6);
        let levels = over.filter_map(|(resource, _)| match resource {
            Resource::Component(component) => relief(*component),
            Resource::Sessions => None,
        });
        levels.max().unwrap_or_default()
    }

    /// Percent of `primary`'s sessions that `target` can still take.
    pub(crate) fn percent(&self, primary: &RegionId, target: &RegionId, degrade: bool) -> u8 {
        let resources = self.left.get(target).into_iter().flatten();
        let counted = resources.filter(|(resource, _)| !(degrade && is_relieved(*resource)));
        let percent = counted.map(|(resource, left)| {
            let demand = self.demand(primary, target, *resource).max(1.0);
            // The small addition forgives the rounding of fractions, not real sessions.
            (left.max(0.0) * 100.0 / demand + 1e-6).min(100.0) as u8
        });
        percent.min().unwrap_or(0)
    }

    /// Hands `percent` of `primary`'s sessions to `targets`, filling the first before the second, each up to the share that it
    /// has left and what `at_most` allows. Places at full service are taken first; only sessions without one take a
    /// place that degrades its region, if `degrade`.
    pub(crate) fn place(
        &mut self,
        primary: &RegionId,
        percent: u8,
        targets: &[&RegionId],
        degrade: bool,
        at_most: impl Fn(&RegionId) -> u8,
    ) -> Placed {
        let mut given: Vec<(&RegionId, u8)> = targets.iter().map(|target| (*target, 0)).collect();
        let mut left = percent;
        for degrade in [false, true].into_iter().take(1 + usize::from(degrade)) {
            for (target, given) in &mut given {
                let allowed = at_most(target).saturating_sub(*given);
                let taken = left.min(self.percent(primary, target, degrade)).min(allowed);
                self.take(primary, target, taken);
                *given += taken;
                left -= taken;
            }
        }
        let shares = given.into_iter().filter(|(_, percent)| *percent > 0);
        Placed {
            shares: shares
                .map(|(region, percent)| Share {
                    region: region.clone(),
                    percent,
                })
                .collect(),
            left,
        }
    }
}

fn is_relieved(resource: Resource) -> bool {
    matches!(resource, Resource::Component(component) if relief(component).is_some())
}

/// Percent of `primary`'s sessions that may arrive at `target` now without more connections per second than it takes,
/// when those of a move come back within `window`. One percent at least, once no session is on its way there any more:
/// less cannot be planned, and a region that takes longer than a window for it is given that time before the next.
pub(crate) fn percent_by_rate(
    topology: &Topology,
    memory: &Memory,
    primary: &RegionId,
    target: &RegionId,
    window: Duration,
    now: Moment,
) -> u8 {
    let Some(per_second) = topology.regions.get(target).and_then(|it| it.connects_per_s_max) else {
        return 100;
    };
    let coming = memory.arrivals.get(target);
    let coming = coming
        .filter(|it| now < it.end(per_second, window))
        .map_or(0, |it| it.sessions);
    let room = (f64::from(per_second) * window.as_secs_f64() - f64::from(coming)).max(0.0);
    let demand = f64::from(limit(topology, primary, Resource::Sessions)).max(1.0);
    let percent = (room * 100.0 / demand + 1e-6).min(100.0) as u8;
    percent.max(u8::from(coming == 0))
}

/// The same shares cut to `percent` of the sessions, the last ones first: no session goes to a new region.
pub(crate) fn shrink(shares: &[Share], percent: u8) -> Vec<Share> {
    let mut left = percent;
    let mut shrunk = Vec::new();
    for share in shares {
        let percent = share.percent.min(left);
        left -= percent;
        if percent > 0 {
            shrunk.push(Share {
                region: share.region.clone(),
                percent,
            });
        }
    }
    shrunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::fixtures::three_primaries;

    fn id(name: &str) -> RegionId {
        RegionId::new(name).unwrap()
    }

    fn share(name: &str, percent: u8) -> Share {
        Share {
            region: id(name),
            percent,
        }
    }

    fn any_number(_: &RegionId) -> u8 {
        100
    }

    #[test]
    fn the_first_backup_is_filled_before_the_second() {
        let mut world = three_primaries();
        world.topology.regions.get_mut(&id("us-west")).unwrap().sessions_max = 120;
        let mut headroom = Headroom::beside(&world.topology, BTreeMap::new(), []);
        let (west, central) = (id("us-west"), id("eu-central"));
        let placed = headroom.place(&id("us-east"), 100, &[&west, &central], false, any_number);
        assert_eq!(placed.shares, [share("us-west", 60), share("eu-central", 40)]);
        // Nothing is left in us-west, and 120 sessions in eu-central: 60 % of the next primary.
        let short = headroom.place(&id("eu-west"), 100, &[&central, &west], false, any_number);
        assert_eq!((short.shares, short.left), (vec![share("eu-central", 60)], 40));
    }

    #[test]
    fn a_backup_short_of_recognition_takes_sessions_at_l1_after_those_that_need_no_degradation() {
        let mut world = three_primaries();
        let (west, central) = (id("us-west"), id("eu-central"));
        world
            .topology
            .regions
            .get_mut(&west)
            .unwrap()
            .capacity
            .insert(Component::Asr, 50);
        let place = |targets: &[&RegionId], degrade| {
            let mut headroom = Headroom::beside(&world.topology, BTreeMap::new(), []);
            let placed = headroom.place(&id("us-east"), 100, targets, degrade, any_number);
            (placed, headroom.level(&west))
        };
        let (placed, level) = place(&[&west, &central], true);
        assert_eq!(placed.shares, [share("us-west", 25), share("eu-central", 75)]);
        assert_eq!(level, Level::L0);
        let (placed, level) = place(&[&west], true);
        assert_eq!((placed.shares, level), (vec![share("us-west", 100)], Level::L1));
        let (placed, _) = place(&[&west], false);
        assert_eq!((placed.shares, placed.left), (vec![share("us-west", 25)], 75));
    }

    #[test]
    fn a_burst_of_reconnects_is_kept_below_what_the_target_accepts() {
        let mut world = three_primaries();
        let (east, west) = (id("us-east"), id("us-west"));
        world.topology.regions.get_mut(&west).unwrap().connects_per_s_max = Some(10);
        let mut memory = Memory::default();
        let window = Duration::from_secs(10);
        let percent =
            |memory: &Memory, now| percent_by_rate(&world.topology, memory, &east, &west, window, Moment(now));
        // us-east has 200 sessions; 100 may come within ten seconds.
        assert_eq!(percent(&memory, 0), 50);
        memory.arrivals.insert(
            west.clone(),
            crate::actions::Arrivals {
                since: Moment(0),
                sessions: 80,
            },
        );
        assert_eq!(percent(&memory, 9_999), 10);
        assert_eq!(percent(&memory, 10_000), 50);
    }

    #[test]
    fn one_percent_arrives_also_where_it_takes_longer_than_a_window() {
        let mut world = three_primaries();
        let (east, west) = (id("us-east"), id("us-west"));
        world.topology.regions.get_mut(&east).unwrap().sessions_max = 100_000;
        world.topology.regions.get_mut(&west).unwrap().connects_per_s_max = Some(50);
        let mut memory = Memory::default();
        let window = Duration::from_secs(10);
        let percent =
            |memory: &Memory, now| percent_by_rate(&world.topology, memory, &east, &west, window, Moment(now));
        assert_eq!(percent(&memory, 0), 1);
        let arrivals = crate::actions::Arrivals {
            since: Moment(0),
            sessions: 1_000,
        };
        memory.arrivals.insert(west.clone(), arrivals);
        assert_eq!((percent(&memory, 19_999), percent(&memory, 20_000)), (0, 1));
    }

    #[test]
    fn shrinking_takes_from_the_last() {
        let shares = [share("us-west", 60), share("eu-central", 40)];
        assert_eq!(shrink(&shares, 95), [share("us-west", 60), share("eu-central", 35)]);
        assert_eq!(shrink(&shares, 50), [share("us-west", 50)]);
        assert_eq!(shrink(&shares, 0), []);
    }

    #[test]
    fn sessions_that_are_planned_already_count() {
        let world = three_primaries();
        let planned = BTreeMap::from([(id("ap-south"), vec![share("us-west", 50)])]);
        let mut headroom = Headroom::beside(&world.topology, BTreeMap::new(), &planned);
        let west = id("us-west");
        let placed = headroom.place(&id("us-east"), 100, &[&west], false, any_number);
        assert_eq!((placed.shares, placed.left), (vec![share("us-west", 50)], 50));
    }
}
