//! The routing table of one edge: a snapshot, indexed for the question where a session goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{
    EdgeId, Location, Moment, PlanNumber, RegionId, RegionState, Rollout, Share, Snapshot, Stack, stack::CURRENT,
};

use crate::User;

/// Light in fibre covers 200 km in a millisecond, so a round trip over 1 km takes a hundredth of a millisecond.
const ROUND_TRIP_KM_PER_MS: f64 = 100.0;

/// The parts of one plan that a pick needs. Immutable; a reader holds one table for an entire session or request.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    number: PlanNumber,
    created_at: Moment,
    homes: BTreeMap<RegionId, Home>,
    regions: BTreeMap<RegionId, Entry>,
    rollout: Option<Rollout>,
}

/// The regions for the sessions of one primary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Home {
    /// The shares of the plan, in the order of overflow.
    pub(crate) shares: Vec<Share>,
    /// The backups of the primary, first choice first.
    pub(crate) backups: Vec<RegionId>,
    /// The time zone of the devices whose home the primary is.
    time_zone: Option<String>,
}

impl Home {
    /// Whether the plan gives a region a share of this home's sessions.
    pub(crate) fn has_share(&self, region: &RegionId) -> bool {
        let takes = |share: &Share| share.region == *region && share.percent > 0;
        self.shares.iter().any(takes)
    }
}

/// One region in the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) stacks: Vec<Stack>,
    pub(crate) state: RegionState,
    /// Whether the plan gives the region a share of any primary's sessions.
    pub(crate) planned: bool,
    /// Shortest possible round trip from this edge, in milliseconds.
    pub(crate) floor_rtt_ms: f64,
}

/// The stacks of a region, divided for one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split<'t> {
    /// The version that the user belongs to.
    pub(crate) version: &'t str,
    /// The stacks of that version.
    pub(crate) of_version: Vec<&'t Stack>,
    /// All other stacks. A session goes to one of these if no stack of its version takes it, because no stack at all
    /// would be worse.
    pub(crate) others: Vec<&'t Stack>,
}

/// The role of a region in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The plan sends sessions there.
    Planned,
    /// The region may serve, but the plan sends no sessions there.
    Unplanned,
    /// The region serves nobody.
    Evacuated,
}

impl Table {
    /// Compiles the table of one edge. An edge that is not (yet) in the topology has no location, so only measured
    /// round trips tell it which regions are near.
    pub fn compile(snapshot: &Snapshot, edge: &EdgeId) -> Self {
        let (plan, topology) = (&snapshot.plan, &snapshot.topology);
        let here = topology.edges.get(edge).map(|edge| edge.location);
        let floor_rtt_ms = |there: Location| here.map_or(0.0, |here| here.distance_km(there) / ROUND_TRIP_KM_PER_MS);
        let regions = topology
            .regions
            .values()
            .filter_map(|region| {
                let planned = plan.regions.get(&region.id)?;
                let entry = Entry {
                    stacks: in_service(&region.stacks, &plan.drained_stacks),
                    state: planned.state,
                    planned: plan.uses(&region.id),
                    floor_rtt_ms: floor_rtt_ms(region.location),
                };
                Some((region.id.clone(), entry))
            })
            .collect();
        let homes = plan
            .routes
            .iter()
            .map(|(primary, shares)| {
                let home = Home {
                    shares: shares.clone(),
                    backups: topology.backups_of(primary).to_vec(),
                    time_zone: topology
                        .regions
                        .get(primary)
                        .and_then(|region| region.time_zone.clone()),
                };
                (primary.clone(), home)
            })
            .collect();
        Self {
            number: plan.number(),
            created_at: plan.created_at,
            homes,
            regions,
            rollout: plan.rollout.clone(),
        }
    }

    /// The number of the plan from which the table was compiled.
    pub fn number(&self) -> PlanNumber {
        self.number
    }

    /// Time at which that plan was decided.
    pub fn created_at(&self) -> Moment {
        self.created_at
    }

    /// All regions, with their stacks.
    pub fn regions(&self) -> impl Iterator<Item = (&RegionId, &[Stack])> {
        self.regions.iter().map(|(id, entry)| (id, entry.stacks.as_slice()))
    }

    /// The stacks of a region. Empty for an unknown region.
    pub fn stacks_of(&self, region: &RegionId) -> &[Stack] {
        self.entry(region).map_or(&[], |entry| entry.stacks.as_slice())
    }

    /// Whether a rollout is running, so that the user of a session matters.
    pub fn splits_users(&self) -> bool {
        self.rollout.is_some()
    }

    /// Divides the stacks of a region by version. Users in the rollout belong to its version, all others to the version
    /// in service: that of the region's first stack which is not of the rollout. So a version that was rolled back gets
    /// no user, although its stacks are still there.
    pub(crate) fn stacks_for<'t>(&'t self, entry: &'t Entry, user: &User<'_>) -> Split<'t> {
        let rolled_out = self.rollout.as_ref().map(|rollout| rollout.version.as_str());
        let mut versions = entry.stacks.iter().map(Stack::version);
        let in_service = versions.find(|version| Some(*version) != rolled_out);
        let taken = self.rollout.as_ref().filter(|rollout| rollout.takes(user.name));
        let planned = taken.map(|rollout| rollout.version.as_str()).or(in_service);
        // The state of a session from a lost region is best understood by the version that wrote it.
        let kept = [in_service, rolled_out]
            .into_iter()
            .flatten()
            .find(|it| user.version == Some(*it));
        let version = kept.or(planned).unwrap_or(CURRENT);
        let (of_version, others) = entry.stacks.iter().partition(|stack| stack.version() == version);
        Split {
            version,
            of_version,
            others,
        }
    }

    /// The role of a region in the plan. An unknown region counts as evacuated.
    pub fn role(&self, region: &RegionId) -> Role {
        match self.regions.get(region) {
            None => Role::Evacuated,
            Some(entry) if entry.state == RegionState::Evacuated => Role::Evacuated,
            Some(entry) if entry.planned => Role::Planned,
            Some(_) => Role::Unplanned,
        }
    }

    /// Whether the plan sends sessions of this home to a region. If `home` is no longer a primary, its sessions may go
    /// to every region that the plan uses.
    pub fn sends(&self, home: &RegionId, region: &RegionId) -> bool {
        let home = self.homes.get(home);
        home.map_or(self.role(region) == Role::Planned, |home| home.has_share(region))
    }

    /// The time zone of the devices whose home this is, if the topology names one.
    pub fn time_zone(&self, home: &RegionId) -> Option<&str> {
        self.homes.get(home)?.time_zone.as_deref()
    }

    /// Whether a stack of a region gets sessions, because it is in the topology and not drained.
    pub fn serves(&self, region: &RegionId, stack: SocketAddr) -> bool {
        let entry = self.regions.get(region);
        entry.is_some_and(|entry| entry.stacks.iter().any(|it| it.address == stack))
    }

    /// The regions that may serve the sessions of a home, first choice first: itself, its shares, its backups. A region may come
    /// twice; an evacuated one does not come.
    pub(crate) fn may_serve<'t>(&'t self, home: &'t RegionId) -> impl Iterator<Item = &'t RegionId> {
        let others = |home: &'t Home| home.shares.iter().map(|share| &share.region).chain(&home.backups);
        let others = self.homes.get(home).into_iter().flat_map(others);
        let regions = std::iter::once(home).chain(others);
        regions.filter(|region| self.role(region) != Role::Evacuated)
    }

    /// The regions to which the plan sends sessions.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Entry> + Clone {
        let is_used = |entry: &&Entry| entry.planned && entry.state != RegionState::Evacuated;
        self.regions.values().filter(is_used)
    }

    pub(crate) fn entry(&self, region: &RegionId) -> Option<&Entry> {
        self.regions.get(region)
    }

    /// The nearest primary and the plan for its sessions. `None` only for a plan that routes nothing; such a plan is
    /// never published.
    pub(crate) fn nearest_home(&self, measured_rtt_ms: &BTreeMap<RegionId, f64>) -> Option<(&RegionId, &Home)> {
        self.homes.iter().min_by(|(a, _), (b, _)| {
            self.nearness(a, measured_rtt_ms)
                .total_cmp(&self.nearness(b, measured_rtt_ms))
        })
    }

    /// Every region, nearest first. Ids decide between equals, so that the order is always the same.
    pub(crate) fn by_nearness(&self, measured_rtt_ms: &BTreeMap<RegionId, f64>) -> Vec<&RegionId> {
        let mut regions: Vec<&RegionId> = self.regions.keys().collect();
        regions.sort_by(|a, b| {
            self.nearness(a, measured_rtt_ms)
                .total_cmp(&self.nearness(b, measured_rtt_ms))
        });
        regions
    }

    /// The distance of a region in milliseconds of round trip: the measured value, but at least the time of light in
    /// fibre.
    ///
    /// A measured value below that floor means that the coordinates of the topology are simulated, as on one machine
    /// where every region answers in microseconds. The coordinates then give the intended distance.
    pub fn nearness(&self, region: &RegionId, measured_rtt_ms: &BTreeMap<RegionId, f64>) -> f64 {
        let floor = self
            .regions
            .get(region)
            .map_or(f64::INFINITY, |entry| entry.floor_rtt_ms);
        match measured_rtt_ms.get(region) {
            Some(measured) if measured.is_finite() => measured.max(floor),
            Some(_) | None => floor,
        }
    }
}

/// The stacks that are not drained. If all are drained, which no valid plan contains, all stacks.
fn in_service(stacks: &[Stack], drained: &BTreeSet<SocketAddr>) -> Vec<Stack> {
    let serving = stacks.iter().filter(|stack| !drained.contains(&stack.address));
    let serving: Vec<Stack> = serving.cloned().collect();
    if serving.is_empty() { stacks.to_vec() } else { serving }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::fixtures::three_primaries;

    fn home(edge: &str, measured: &[(&str, f64)]) -> String {
        let table = Table::compile(&three_primaries(), &EdgeId::new(edge).unwrap());
        let measured = measured
            .iter()
            .map(|(region, ms)| (RegionId::new(region).unwrap(), *ms))
            .collect();
        table.nearest_home(&measured).unwrap().0.to_string()
    }

    #[test]
    fn the_nearest_primary_is_home() {
        assert_eq!(home("edge-iad", &[]), "us-east");
        assert_eq!(home("edge-dub", &[]), "eu-west");
    }

    #[test]
    fn a_measured_detour_makes_a_region_far() {
        assert_eq!(home("edge-dub", &[("eu-west", 300.0), ("us-east", 70.0)]), "us-east");
    }

    #[test]
    fn a_round_trip_faster_than_light_is_not_believed() {
        assert_eq!(home("edge-dub", &[("eu-west", 0.4), ("us-east", 0.1)]), "eu-west");
    }

    #[test]
    fn an_edge_without_a_place_goes_by_what_it_measured() {
        assert_eq!(
            home("edge-new", &[("ap-south", 5.0), ("eu-west", 9.0), ("us-east", 7.0)]),
            "ap-south"
        );
    }
}
