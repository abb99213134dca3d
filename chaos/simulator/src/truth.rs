//! The truth of the simulated world: the regions, stacks and edges that work or fail, and the traffic on them. Each
//! vantage observes it, or lies about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use topology::{Component, EdgeId, NodeId, Plan, RegionId, Tick, Topology};
use verdict::{EdgeProbe, Observation, Source, TickReport, TrafficSeen};

use crate::scenario::Traffic;

/// Attempts at the gateway of each stack that a vantage makes in a tick, as the product does: it asks for the health
/// page, and a spoken probe opens a session. That probe asks every other component once.
const GATEWAY_ATTEMPTS: u32 = 2;
/// Ticks within which a silent stack loses its sessions: each is lost when its own silence was long enough.
const LOSING_TICKS: u64 = 6;
/// Latency of a component that works: less than any limit of the policy.
const WORKING_MS: f64 = 40.0;

#[derive(Debug, Default)]
pub(crate) struct Truth {
    conditions: BTreeMap<RegionId, Condition>,
    /// Real traffic, by edge and region.
    traffic: BTreeMap<(NodeId, RegionId), Traffic>,
    /// Stacks that fell silent with sessions of an edge, until that edge connects to them again.
    silent_stacks: BTreeMap<(NodeId, SocketAddr), Silent>,
    /// Vantages that report nothing.
    pub(crate) silent: BTreeSet<NodeId>,
    /// Edges whose process is gone, and those that no vantage reaches at their public addresses.
    pub(crate) dead_edges: BTreeSet<EdgeId>,
    pub(crate) unreachable_edges: BTreeSet<EdgeId>,
    /// Vantages that report the opposite about a region.
    pub(crate) lies: BTreeSet<(NodeId, RegionId)>,
}

/// The condition of a region.
#[derive(Debug, Clone, Default)]
pub(crate) struct Condition {
    pub(crate) dead: bool,
    pub(crate) dead_stacks: BTreeSet<SocketAddr>,
    pub(crate) unreachable_from: BTreeSet<NodeId>,
    pub(crate) fails_percent: BTreeMap<Component, u32>,
    pub(crate) stack_fails_percent: BTreeMap<(SocketAddr, Component), u32>,
    pub(crate) asr_takes: Option<Duration>,
}

impl Condition {
    pub(crate) fn recover_stack(&mut self, stack: SocketAddr) {
        self.dead_stacks.remove(&stack);
        self.stack_fails_percent.retain(|(failing, _), _| *failing != stack);
    }

    /// The percentage of a component's attempts that fails, in the region or in one of its stacks.
    fn percent(&self, component: Component, stack: Option<SocketAddr>) -> u32 {
        let of_region = self.fails_percent.get(&component);
        let of_stack = stack.and_then(|stack| self.stack_fails_percent.get(&(stack, component)));
        of_region
            .into_iter()
            .chain(of_stack)
            .copied()
            .max()
            .unwrap_or_default()
            .min(100)
    }
}

/// A stack with sessions to which an edge cannot connect any more.
#[derive(Debug, Clone, Copy)]
struct Silent {
    since: Tick,
    sessions: u32,
}

impl Silent {
    /// Number of its sessions that were lost before a tick.
    fn lost_before(self, tick: Tick) -> u32 {
        let ticks = tick.0.saturating_sub(self.since.0).min(LOSING_TICKS);
        (u64::from(self.sessions) * ticks / LOSING_TICKS) as u32
    }

    /// Number of its sessions that are lost in a tick.
    fn lost_in(self, tick: Tick) -> u32 {
        self.lost_before(Tick(tick.0 + 1)) - self.lost_before(tick)
    }
}

/// The documents and the plan by which sessions are spread.
#[derive(Clone, Copy)]
struct Planned<'a> {
    topology: &'a Topology,
    /// The plan in force, if there is one.
    plan: Option<&'a Plan>,
}

impl Planned<'_> {
    /// The stacks of a region that get sessions by the plan in force.
    fn stacks_of(self, region: &RegionId) -> Vec<SocketAddr> {
        let Some(region) = self.topology.regions.get(region) else {
            return Vec::new();
        };
        let stacks = match self.plan {
            Some(plan) => plan.stacks_with_sessions(region),
            None => region.stacks.iter().collect(),
        };
        stacks.into_iter().map(|stack| stack.address).collect()
    }
}

impl Truth {
    pub(crate) fn new(traffic: BTreeMap<(NodeId, RegionId), Traffic>) -> Self {
        Self {
            traffic,
            ..Self::default()
        }
    }

    /// The condition of a region, to change it.
    pub(crate) fn condition(&mut self, region: &RegionId) -> &mut Condition {
        self.conditions.entry(region.clone()).or_default()
    }

    pub(crate) fn is_dead(&self, region: &RegionId) -> bool {
        self.conditions.get(region).is_some_and(|it| it.dead)
    }

    /// The report of a vantage on a tick; none from a dead edge or a silent vantage. Notes the stacks that fell silent in it.
    pub(crate) fn report(
        &mut self,
        vantage: &NodeId,
        tick: Tick,
        topology: &Topology,
        plan: Option<&Plan>,
    ) -> Option<TickReport> {
        let planned = Planned { topology, plan };
        let is_dead = self.dead_edges.iter().any(|edge| edge.as_str() == vantage.as_str());
        if is_dead || self.silent.contains(vantage) {
            return None;
        }
        self.note_silent_stacks(vantage, tick, planned);
        let regions = || topology.regions.keys();
        let observations = regions()
            .flat_map(|region| self.observe(vantage, region, tick, planned))
            .collect();
        Some(TickReport {
            edges: self.try_edges(vantage, topology),
            traffic: regions()
                .filter_map(|region| self.observe_traffic(vantage, region, tick, planned))
                .collect(),
            ..TickReport::new(vantage.clone(), tick, observations)
        })
    }

    /// The attempts of a vantage to reach other edges at their public addresses.
    fn try_edges(&self, vantage: &NodeId, topology: &Topology) -> Vec<EdgeProbe> {
        let others = topology.edges.keys().filter(|edge| edge.as_str() != vantage.as_str());
        let try_edges = |edge: &EdgeId| {
            let reached = !self.dead_edges.contains(edge) && !self.unreachable_edges.contains(edge);
            EdgeProbe {
                edge: edge.clone(),
                reached,
                failure: if reached {
                    String::new()
                } else {
                    "connection refused".to_owned()
                },
            }
        };
        others.map(try_edges).collect()
    }

    /// The observations of a vantage in a region in a tick: its probes of each stack that gets sessions, and its real
    /// traffic.
    fn observe(&self, vantage: &NodeId, region: &RegionId, tick: Tick, planned: Planned<'_>) -> Vec<Observation> {
        let healthy = Condition::default();
        let condition = self.conditions.get(region).unwrap_or(&healthy);
        let traffic = self.traffic.get(&(vantage.clone(), region.clone()));
        let turns = traffic.map(|traffic| traffic.turns);
        let stacks = planned.stacks_of(region);
        let up = self.stacks_up(vantage, region, planned);
        let new = |component, source, stack| Observation {
            stack,
            ..Observation::new(region.clone(), component, source)
        };
        let mut seen = self.observe_gateway(condition, &stacks, &up, turns, tick, (vantage, region));
        for component in Component::ALL.into_iter().skip(1) {
            let takes = condition.asr_takes.filter(|_| component == Component::Asr);
            let latency_ms = takes.map_or(WORKING_MS, |time| time.as_secs_f64() * 1000.0);
            for (number, stack) in up.iter().enumerate() {
                let percent = condition.percent(component, Some(*stack));
                // With real traffic percentages are exact, over all attempts of the vantage; a probe alone is a matter
                // of luck.
                let failures = match turns {
                    Some(turns) => {
                        let turns = part(turns, number, up.len());
                        let failures = (turns + 1) * percent / 100;
                        let failed = failures.min(turns);
                        let mut traffic = new(component, Source::Traffic, Some(*stack));
                        (0..failed).for_each(|_| traffic.fail("it said no"));
                        (failed..turns).for_each(|_| traffic.succeed(latency_ms));
                        seen.push(traffic);
                        failures - failed
                    }
                    None => u32::from(draw(vantage, region, component, tick, number as u32) < percent),
                };
                let mut probe = new(component, Source::Probe, Some(*stack));
                if failures > 0 {
                    probe.fail("it said no");
                } else {
                    probe.succeed(latency_ms);
                }
                seen.push(probe);
            }
        }
        seen
    }

    /// Connections to a region, stack by stack: those of probes, and those of real traffic, which edges send to stacks
    /// that accept them. A silent stack fails as often as it loses a session: no two failures of a tick are of one
    /// client.
    fn observe_gateway(
        &self,
        condition: &Condition,
        stacks: &[SocketAddr],
        up: &[SocketAddr],
        turns: Option<u32>,
        tick: Tick,
        (vantage, region): (&NodeId, &RegionId),
    ) -> Vec<Observation> {
        let component = Component::Gateway;
        let new = |source, stack| Observation {
            stack,
            ..Observation::new(region.clone(), component, source)
        };
        let taking = if up.is_empty() { stacks } else { up };
        let mut seen = Vec::new();
        for (number, stack) in stacks.iter().enumerate() {
            let percent = condition.percent(component, Some(*stack));
            let place = taking.iter().position(|it| it == stack);
            let connects = turns.zip(place);
            let connects = connects.map_or(0, |(turns, place)| part(turns, place, taking.len()));
            let mut failures = (connects + GATEWAY_ATTEMPTS) * percent / 100;
            let mut traffic = new(Source::Traffic, Some(*stack));
            let failed = if up.is_empty() {
                connects
            } else {
                failures.min(connects)
            };
            (0..failed).for_each(|_| traffic.fail("it said no"));
            (failed..connects).for_each(|_| traffic.succeed(WORKING_MS));
            failures -= failed.min(failures);
            let silent = self.silent_stacks.get(&(vantage.clone(), *stack));
            let lost = silent.map_or(0, |it| it.lost_in(tick));
            (0..lost).for_each(|_| traffic.fail("session lost"));
            if traffic.samples() > 0 {
                seen.push(traffic);
            }
            let mut probes = new(Source::Probe, Some(*stack));
            for attempt in 0..GATEWAY_ATTEMPTS {
                let number = number as u32 * GATEWAY_ATTEMPTS + attempt;
                let fails = match turns {
                    _ if !up.contains(stack) => {
                        probes.fail("connection refused");
                        continue;
                    }
                    Some(_) => failures > 0,
                    None => draw(vantage, region, component, tick, number) < percent,
                };
                if fails {
                    failures = failures.saturating_sub(1);
                    probes.fail("it said no");
                } else {
                    probes.succeed(WORKING_MS);
                }
            }
            seen.push(probes);
        }
        seen
    }

    /// The stacks with sessions to which a vantage connects, or claims to.
    fn stacks_up(&self, vantage: &NodeId, region: &RegionId, planned: Planned<'_>) -> Vec<SocketAddr> {
        let healthy = Condition::default();
        let condition = self.conditions.get(region).unwrap_or(&healthy);
        let lies = self.lies.contains(&(vantage.clone(), region.clone()));
        let is_dead = (condition.dead || condition.unreachable_from.contains(vantage)) != lies;
        let mut stacks = planned.stacks_of(region);
        stacks.retain(|stack| !is_dead && !condition.dead_stacks.contains(stack));
        stacks
    }

    /// Number of sessions that an edge has in a region by the plan in force, if all its stacks work.
    fn sessions_in(&self, edge: &NodeId, region: &RegionId, planned: Planned<'_>) -> u32 {
        let traffic = self.traffic.get(&(edge.clone(), region.clone()));
        let shares = planned.plan.and_then(|plan| plan.routes.get(region));
        let at_home: u32 = shares.map_or(100, |shares| {
            let home = shares.iter().filter(|share| share.region == *region);
            home.map(|share| u32::from(share.percent)).sum()
        });
        traffic.map_or(0, |traffic| traffic.sessions) * at_home / 100
    }

    /// Notes the stacks that fell silent since the last tick, with the number of this edge's sessions, and those that
    /// are back.
    fn note_silent_stacks(&mut self, edge: &NodeId, tick: Tick, planned: Planned<'_>) {
        let regions: Vec<RegionId> = planned.topology.regions.keys().cloned().collect();
        for region in regions {
            let sessions = self.sessions_in(edge, &region, planned);
            let (stacks, up) = (planned.stacks_of(&region), self.stacks_up(edge, &region, planned));
            let is_silent = |stack: &SocketAddr| self.silent_stacks.contains_key(&(edge.clone(), *stack));
            let had: Vec<SocketAddr> = stacks.into_iter().filter(|stack| !is_silent(stack)).collect();
            for (number, stack) in had.iter().enumerate().filter(|(_, stack)| !up.contains(stack)) {
                let sessions = part(sessions, number, had.len());
                let silent = Silent { since: tick, sessions };
                self.silent_stacks.insert((edge.clone(), *stack), silent);
            }
            for stack in up {
                self.silent_stacks.remove(&(edge.clone(), stack));
            }
        }
    }

    /// The sessions of an edge in a region in a tick. A client that lost its session has it again at another stack, if
    /// there is one.
    fn observe_traffic(
        &self,
        edge: &NodeId,
        region: &RegionId,
        tick: Tick,
        planned: Planned<'_>,
    ) -> Option<TrafficSeen> {
        let traffic = self.traffic.get(&(edge.clone(), region.clone()))?;
        let stacks = planned.stacks_of(region).into_iter();
        let silent: Vec<Silent> = stacks
            .filter_map(|stack| self.silent_stacks.get(&(edge.clone(), stack)).copied())
            .collect();
        let (turns, is_up) = (traffic.turns, !self.stacks_up(edge, region, planned).is_empty());
        let left = |it: &Silent| it.sessions - it.lost_before(Tick(tick.0 + 1));
        Some(TrafficSeen {
            sessions: if is_up {
                self.sessions_in(edge, region, planned)
            } else {
                silent.iter().map(left).sum()
            },
            aborts: silent.iter().map(|it| it.lost_in(tick)).sum(),
            connects_ok: if is_up { turns } else { 0 },
            connects_failed: if is_up { 0 } else { turns },
            ..TrafficSeen::new(region.clone())
        })
    }
}

/// The part of `all` with this number, when it is spread over `of` parts.
fn part(all: u32, number: usize, of: usize) -> u32 {
    let of = of.max(1) as u32;
    all / of + u32::from((number as u32) < all % of)
}

/// The draw of one attempt, 0..100: the same on every run, and different for each attempt (FNV-1a, then splitmix64).
fn draw(vantage: &NodeId, region: &RegionId, component: Component, tick: Tick, attempt: u32) -> u32 {
    let names = [vantage.as_str(), region.as_str(), component.as_str()];
    let mut z = names
        .iter()
        .flat_map(|name| name.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    z ^= tick.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(attempt) << 32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % 100) as u32
}
