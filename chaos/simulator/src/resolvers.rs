//! Resolvers between devices and name servers, in virtual time: the ones that honour TTLs, the ones that stretch them, and the ones that
//! serve stale answers, each with and without client subnets. They are told the answers that production's steering compiles from the
//! plans of a scenario.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use steering::{
    Answers, Client, Geography, Lookup, PUBLISH, Prefix, RecordData, Settings, Steering, Subnet, Type, labels,
    lost_edge_bound,
};
use topology::{EdgeId, Location, Moment, Plan, Policy, Snapshot, Tick, Topology, snapshot::SNAPSHOT_SCHEMA};

use crate::world::START;

/// Time for which a resolver keeps answers that it may only keep for seconds: one in twelve resolvers stretches TTLs (PAM 2023).
pub const STRETCHED: Duration = Duration::from_secs(60);
/// Time between two questions of a device.
const ASKS_EVERY: Duration = Duration::from_millis(500);
/// Resolvers of each kind and place.
const RESOLVERS: u8 = 10;

/// How long a resolver keeps an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::Display, strum::EnumString, strum::EnumIter)]
#[strum(serialize_all = "kebab-case")]
pub enum Habit {
    /// For its TTL.
    Honest,
    /// For [`STRETCHED`], if the TTL is shorter.
    Stretching,
    /// For its TTL, and longer while no name server answers (RFC 8767).
    Stale,
}

/// The end of a dead edge in the answers of one kind of resolvers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The edge.
    pub edge: EdgeId,
    /// The kind of resolvers.
    pub habit: Habit,
    /// Whether they tell their clients' networks.
    pub tells_subnets: bool,
    /// The last time at which some client was sent there; `None` if none ever was.
    pub last: Option<Duration>,
    /// The time until which that may be.
    pub promised: Duration,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subnets = if self.tells_subnets { "with" } else { "without" };
        let last = match self.last {
            Some(last) => format!("sent a device there last at {:.1} s", last.as_secs_f64()),
            None => "never sent a device there".to_owned(),
        };
        write!(
            f,
            "{} resolvers {subnets} client subnets leave {}: one {last}; promised by {:.1} s",
            self.habit,
            self.edge,
            self.promised.as_secs_f64()
        )
    }
}

/// A resolver in front of devices.
#[derive(Debug)]
pub(crate) struct Resolver {
    address: IpAddr,
    habit: Habit,
    tells_subnets: bool,
    /// By the network for which an answer holds: what it says, and until when it is kept.
    cache: BTreeMap<(u32, u8), (Vec<Ipv4Addr>, Moment)>,
}

impl Resolver {
    pub(crate) fn new(address: [u8; 4], habit: Habit, tells_subnets: bool) -> Self {
        Self {
            address: address.into(),
            habit,
            tells_subnets,
            cache: BTreeMap::new(),
        }
    }

    /// The addresses that a device hears. `answers` is `None` while no name server answers.
    pub(crate) fn resolve(&mut self, device: Ipv4Addr, answers: Option<&Answers>, now: Moment) -> Vec<Ipv4Addr> {
        let bits = device.to_bits();
        let holds = |network: u32, length: u8| bits & mask(length) == network;
        let known = self
            .cache
            .iter()
            .find(|((network, length), _)| holds(*network, *length));
        match (known, answers) {
            (Some((_, (addresses, until))), _) if *until > now => return addresses.clone(),
            (Some((_, (addresses, _))), None) if self.habit == Habit::Stale => return addresses.clone(),
            (Some((network, _)), Some(_)) => {
                let network = *network;
                self.cache.remove(&network);
            }
            _ => {}
        }
        let Some(answers) = answers else {
            return Vec::new();
        };
        let subnet = Subnet {
            address: Ipv4Addr::from_bits(bits & mask(24)).into(),
            source: 24,
        };
        let client = Client {
            resolver: self.address,
            subnet: self.tells_subnets.then_some(subnet),
        };
        let answer = answers.lookup(&labels(answers.zone()), Type::A, &client, usize::MAX);
        let Ok((scope, Lookup::Found { records, .. })) = answer.map(|answer| (answer.scope, answer.lookup)) else {
            return Vec::new();
        };
        let ttl = Duration::from_secs(records.first().map_or(0, |record| record.ttl_s).into());
        let kept = match self.habit {
            Habit::Stretching => ttl.max(STRETCHED),
            Habit::Honest | Habit::Stale => ttl,
        };
        let address = |data: &RecordData| match data {
            RecordData::A(address) => Some(*address),
            _ => None,
        };
        let addresses: Vec<Ipv4Addr> = records.iter().filter_map(|record| address(&record.data)).collect();
        let network = (bits & mask(scope), scope);
        self.cache.insert(network, (addresses.clone(), now + kept));
        addresses
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

/// A place at each edge: clients of `10.N.0.0/16` and resolvers of `198.18.N.0/24` are there, and nowhere else.
fn geography(topology: &Topology) -> Geography {
    let mut entries: Vec<(Prefix, Location)> = Vec::new();
    for (nth, edge) in (0..).zip(topology.edges.values()) {
        let networks = [(Ipv4Addr::new(10, nth, 0, 0), 16), (Ipv4Addr::new(198, 18, nth, 0), 24)];
        let prefixes = networks
            .into_iter()
            .filter_map(|(address, length)| Prefix::new(address.into(), length));
        entries.extend(prefixes.map(|prefix| (prefix, edge.location)));
    }
    Geography::new(&entries, [])
}

/// Plays the plans of a scenario to all kinds of resolvers near an edge that died at a time, until `end`.
pub(crate) fn leave(
    edge: &EdgeId,
    died: Duration,
    plans: &[(Duration, Plan)],
    (topology, policy): (&Topology, &Policy),
    end: Duration,
) -> Vec<Left> {
    let Some(nth) = topology.edges.keys().position(|it| it == edge) else {
        return Vec::new();
    };
    let nth = nth as u8;
    let addresses: Vec<IpAddr> = topology
        .edges
        .get(edge)
        .map(|edge| edge.addresses.clone())
        .unwrap_or_default();
    let mut left = Vec::new();
    let mut crowds: Vec<(Habit, bool, Vec<Resolver>)> = Vec::new();
    for habit in [Habit::Honest, Habit::Stretching, Habit::Stale] {
        for tells_subnets in [false, true] {
            let resolver = |last| Resolver::new([198, 18, nth, last], habit, tells_subnets);
            crowds.push((habit, tells_subnets, (0..RESOLVERS).map(resolver).collect()));
        }
    }
    let mut last: Vec<Option<Duration>> = vec![None; crowds.len()];
    let mut promised = None;
    let mut steering = Steering::new(Arc::new(geography(topology)), Settings::default());
    let mut plans = plans.iter().peekable();
    let mut newest: Option<&Plan> = None;
    let mut answers: Option<Answers> = None;
    let mut at = Duration::ZERO;
    while at < end {
        let now = START + at;
        let mut is_due = answers
            .as_ref()
            .is_some_and(|it| it.holds_until().is_some_and(|until| until <= now));
        while let Some((_, plan)) = plans.next_if(|(since, _)| *since + PUBLISH <= at) {
            (newest, is_due) = (Some(plan), true);
        }
        if let Some(plan) = newest.filter(|_| is_due) {
            let snapshot = Snapshot {
                schema: SNAPSHOT_SCHEMA,
                plan: plan.clone(),
                topology: topology.clone(),
                dns_ttl_s: policy.dns.ttl_s(),
                probe: policy.probe.clone(),
            };
            answers = Some(steering.compile(&snapshot, now));
        }
        if at >= died && promised.is_none() {
            let ttl = answers.as_ref().map(Answers::ttl);
            promised = ttl.map(|ttl| died + lost_edge_bound(policy.edges.lost_after, Tick::LENGTH, ttl));
        }
        for ((_, _, resolvers), last) in crowds.iter_mut().zip(&mut last) {
            for (number, resolver) in (0..).zip(resolvers) {
                // Several networks behind each resolver.
                let device = Ipv4Addr::new(10, nth, number * 8 + (at.as_millis() / 500 % 5) as u8, 7);
                let named = resolver.resolve(device, answers.as_ref(), now);
                if named.iter().any(|address| addresses.contains(&IpAddr::V4(*address))) {
                    *last = Some(at);
                }
            }
        }
        at += ASKS_EVERY;
    }
    for ((habit, tells_subnets, _), last) in crowds.into_iter().zip(last) {
        let late = if habit == Habit::Stretching {
            STRETCHED
        } else {
            Duration::ZERO
        };
        left.push(Left {
            edge: edge.clone(),
            habit,
            tells_subnets,
            last,
            promised: promised.unwrap_or(died) + late,
        });
    }
    left
}

#[cfg(test)]
mod tests {
    use topology::{EdgeState, fixtures::three_primaries};

    use super::*;

    #[test]
    fn a_stale_answer_outlives_name_servers_and_not_the_first_reply() {
        let mut snapshot = three_primaries();
        let mut steering = Steering::new(Arc::new(geography(&snapshot.topology)), Settings::default());
        let before = steering.compile(&snapshot, START);
        let device = Ipv4Addr::new(10, 0, 1, 1);
        let [mut stale, mut honest] =
            [Habit::Stale, Habit::Honest].map(|habit| Resolver::new([198, 18, 0, 1], habit, false));
        let first = stale.resolve(device, Some(&before), START);
        assert_eq!(honest.resolve(device, Some(&before), START), first);
        let hour = START + Duration::from_secs(3600);
        assert_eq!(stale.resolve(device, None, hour), first, "stale is better than nothing");
        assert!(honest.resolve(device, None, hour).is_empty());
        // Edge 0 is the one whose place the device has.
        let edge = snapshot.topology.edges.keys().next().cloned().unwrap();
        snapshot.plan.generation += 1;
        snapshot.plan.edges.insert(edge, EdgeState::Drained);
        let after = steering.compile(&snapshot, hour);
        assert_ne!(stale.resolve(device, Some(&after), hour), first);
    }

    #[test]
    fn a_plan_that_comes_too_late_shows() {
        let snapshot = three_primaries();
        let (edge, died, end) = (
            snapshot.topology.edges.keys().next().cloned().unwrap(),
            Duration::from_secs(300),
            Duration::from_secs(500),
        );
        let mut without = snapshot.plan.clone();
        without.generation += 1;
        without.edges.insert(edge.clone(), EdgeState::Drained);
        let policy = Policy::default();
        let late_by = |late: u64| {
            let in_time = died + policy.edges.lost_after + Tick::LENGTH;
            let plans = [
                (Duration::ZERO, snapshot.plan.clone()),
                (in_time + Duration::from_secs(late), without.clone()),
            ];
            let left = leave(&edge, died, &plans, (&snapshot.topology, &policy), end);
            assert_eq!(left.len(), 6);
            let is_late = |left: &&Left| left.habit != Habit::Stretching && left.last > Some(left.promised);
            left.iter().filter(is_late).count()
        };
        assert_eq!((late_by(0), late_by(20)), (0, 4));
    }
}
