//! An edge dies, and its clients are resolved elsewhere within the bound that we promise: with resolvers that honour TTLs,
//! stretch them, or serve stale answers, with and without client subnets. Time is virtual.

#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use steering::{
    Answers, Client, Geography, Lookup, PUBLISH, Prefix, Settings, Steering, Subnet, Type, labels, lost_edge_bound,
};
use topology::{EdgeId, EdgeState, Location, Moment, Policy, Snapshot, Tick, fixtures::three_primaries};

const ZONE: &str = "voice.meridian.test";
/// A day after the plan of the fixture: the world is steady.
const CALM: Moment = Moment(86_400_000);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Keeps answers for their TTL.
    Honest,
    /// Keeps answers for at least this long, as one in twelve resolvers does (PAM 2023).
    Stretches(Duration),
    /// Keeps answers for their TTL, and longer while no name server answers (RFC 8767).
    ServesStale,
}

/// A resolver in front of clients.
struct Resolver {
    address: IpAddr,
    habit: Habit,
    tells_subnets: bool,
    /// By the network for which the answer holds: what it says, and until when it is kept.
    cache: BTreeMap<(u32, u8), (BTreeSet<String>, Moment)>,
}

impl Resolver {
    fn resolve(&mut self, client: Ipv4Addr, authority: Option<&Answers>, now: Moment) -> BTreeSet<String> {
        let bits = client.to_bits();
        let holds = |network: u32, length: u8| bits & mask(length) == network;
        let known = self
            .cache
            .iter()
            .find(|((network, length), _)| holds(*network, *length));
        match (known, authority) {
            (Some((_, (addresses, until))), _) if *until > now => return addresses.clone(),
            (Some((_, (addresses, _))), None) if self.habit == Habit::ServesStale => return addresses.clone(),
            (_, None) => return BTreeSet::new(),
            (Some((network, _)), _) => {
                let network = *network;
                self.cache.remove(&network);
            }
            (None, _) => {}
        }
        let Some(authority) = authority else {
            unreachable!("handled above")
        };
        let subnet = Subnet {
            address: Ipv4Addr::from_bits(bits & mask(24)).into(),
            source: 24,
        };
        let asked = Client {
            resolver: self.address,
            subnet: self.tells_subnets.then_some(subnet),
        };
        let answer = authority.lookup(&labels(ZONE), Type::A, &asked, usize::MAX).unwrap();
        let Lookup::Found { records, .. } = answer.lookup else {
            panic!("an answer for the service is never empty");
        };
        let ttl = Duration::from_secs(records[0].ttl_s.into());
        let kept = match self.habit {
            Habit::Stretches(least) => ttl.max(least),
            Habit::Honest | Habit::ServesStale => ttl,
        };
        let addresses: BTreeSet<String> = records.iter().map(|record| record.data.to_string()).collect();
        self.cache.insert(
            (bits & mask(answer.scope), answer.scope),
            (addresses.clone(), now + kept),
        );
        addresses
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

/// Clients near Dublin and near Ashburn, each with the edge there.
fn geography() -> Geography {
    let entry = |first: u8, latitude, longitude| {
        let prefix = Prefix::new(IpAddr::from([first, 0, 0, 0]), 8).unwrap();
        (prefix, Location { latitude, longitude })
    };
    Geography::new(
        &[entry(10, 53.4, -6.2), entry(11, 38.9, -77.4), entry(198, 53.4, -6.2)],
        [],
    )
}

fn without(snapshot: &Snapshot, edge: &str, decided: Moment) -> Snapshot {
    let mut next = snapshot.clone();
    next.plan.generation += 1;
    next.plan.created_at = decided;
    next.plan.edges.insert(EdgeId::new(edge).unwrap(), EdgeState::Drained);
    next
}

/// The time from the death of Dublin's edge to the last moment at which some client is sent there.
fn last_sent_to_the_dead(habit: Habit, tells_subnets: bool) -> (Duration, Duration) {
    let policy = Policy::default();
    let snapshot = three_primaries();
    let mut steering = Steering::new(Arc::new(geography()), Settings::default());
    let before = steering.compile(&snapshot, CALM);
    let bound = lost_edge_bound(policy.edges.lost_after, Tick::LENGTH, before.ttl());
    // The worst case: the decision comes a whole tick after the edge counts as lost.
    let decided = CALM + policy.edges.lost_after + Tick::LENGTH;
    let after = steering.compile(&without(&snapshot, "edge-dub", decided), decided + PUBLISH);

    let mut resolvers: Vec<Resolver> = (0..20)
        .map(|last| Resolver {
            address: IpAddr::from([198, 51, last, 1]),
            habit,
            tells_subnets,
            cache: BTreeMap::new(),
        })
        .collect();
    let mut last = Duration::ZERO;
    // Each client asks every half second, so that some cache is always filled at the last moment.
    for step in 0..600_u32 {
        let now = CALM + Duration::from_millis(500) * step;
        let authority = if now >= decided + PUBLISH { &after } else { &before };
        for (number, resolver) in resolvers.iter_mut().enumerate() {
            let client = Ipv4Addr::new(10, number as u8, (step % 5) as u8, 7);
            let named = resolver.resolve(client, Some(authority), now);
            assert!(!named.is_empty(), "{habit:?} at {now}");
            if named.contains("127.0.1.2") {
                last = now.since(CALM);
            }
        }
    }
    (last, bound)
}

#[test]
fn clients_of_a_dead_edge_are_resolved_elsewhere_within_the_bound() {
    for tells_subnets in [false, true] {
        for habit in [Habit::Honest, Habit::ServesStale] {
            let (last, bound) = last_sent_to_the_dead(habit, tells_subnets);
            assert!(
                last < bound,
                "{habit:?}, subnets {tells_subnets}: {last:?}, promised {bound:?}"
            );
            assert!(
                last > Duration::from_secs(41),
                "the test looks at the dead edge: {last:?}"
            );
        }
        // A resolver that keeps answers longer than it may is late by no more than that.
        let least = Duration::from_secs(60);
        let (last, bound) = last_sent_to_the_dead(Habit::Stretches(least), tells_subnets);
        assert!(last < bound + least, "{last:?}");
    }
}

#[test]
fn a_stale_answer_outlives_name_servers_and_not_the_first_reply() {
    let snapshot = three_primaries();
    let mut steering = Steering::new(Arc::new(geography()), Settings::default());
    let before = steering.compile(&snapshot, CALM);
    let mut resolver = Resolver {
        address: IpAddr::from([198, 51, 100, 1]),
        habit: Habit::ServesStale,
        tells_subnets: false,
        cache: BTreeMap::new(),
    };
    let client = Ipv4Addr::new(10, 1, 1, 1);
    let first = resolver.resolve(client, Some(&before), CALM);
    let hour = CALM + Duration::from_secs(3600);
    assert_eq!(
        resolver.resolve(client, None, hour),
        first,
        "stale is better than nothing"
    );
    let after = steering.compile(&without(&snapshot, "edge-dub", hour), hour);
    assert_ne!(resolver.resolve(client, Some(&after), hour), first);
}

/// The interleaving of the outage of 2025: a plan that was decided long ago arrives after a newer one, and then the older plans
/// are cleaned up. Here the number of a plan decides and not its arrival, and no plan is ever applied that names no edge.
#[test]
fn a_delayed_older_plan_and_a_clean_up_change_nothing() {
    let old = three_primaries();
    let new = without(&old, "edge-dub", CALM);
    let mut steering = Steering::new(Arc::new(geography()), Settings::default());
    let first = steering.compile(&old, CALM);
    let second = steering.compile(&new, CALM);
    assert!(second.number() > first.number());
    // The delayed one is compiled, and its number gives it away: the responder keeps the newer answers.
    let delayed = steering.compile(&old, CALM + Duration::from_secs(60));
    assert!(delayed.number() < second.number());
    // The clean-up: a plan without a serving edge is no valid plan, and if it passed all the same, clients keep an edge.
    let mut cleaned = new.clone();
    cleaned.plan.generation += 1;
    cleaned
        .plan
        .edges
        .values_mut()
        .for_each(|state| *state = EdgeState::Drained);
    assert!(
        cleaned
            .validate()
            .unwrap_err()
            .to_string()
            .contains("the plan has no serving edge")
    );
    let answers = steering.compile(&cleaned, CALM + Duration::from_secs(61));
    let client = Client::behind(IpAddr::from([10, 1, 1, 1]));
    let answer = answers.lookup(&labels(ZONE), Type::A, &client, usize::MAX).unwrap();
    assert!(matches!(answer.lookup, Lookup::Found { .. }), "{answer:?}");
}
