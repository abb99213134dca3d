//! Compiles plans into answers. What changes only with documents is kept from plan to plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use topology::{Edge, EdgeId, EdgeState, Location, Moment, Plan, PlanNumber, Snapshot};

use crate::{
    Answers, Geography, Pace, RecordData, Soa, Ttl, Type,
    answers::{EdgeWire, PoolsByType},
    draw::hash,
    nearest::Nearest,
    returning::Returning,
    service::{EdgeFacts, Pools},
    wire::Negative,
    zone::Names,
};

/// TTL of the name servers and their addresses, in seconds. They change with the topology, not with health.
pub(crate) const NAME_SERVER_TTL_S: u32 = 300;
/// Longest time that resolvers cache a negative answer, in seconds, so that a name looked up too early does not stay
/// unknown.
const NEGATIVE_TTL_MAX_S: u32 = 30;
/// Most addresses of one edge in an answer for the service.
const EDGE_ADDRESSES_MAX: usize = 3;
/// Most edges of a topology. Their numbers have 16 bits.
const EDGES_MAX: usize = u16::MAX as usize;

/// The edges that answers name when the plan names none. Nodes refuse such plans and keep the last good one, so this is for a
/// plan that passed them all the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllOut {
    /// The edges of the last plan that named any, and every edge if there was none. Some of them may work still.
    #[default]
    LastGood,
    /// Every edge.
    All,
    /// These edges, and every edge if none of them is in the topology.
    Static(BTreeSet<EdgeId>),
    /// Nothing: resolvers hear that there is no address.
    NoData,
}

/// Settings of a name server that change its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Time of one step of an edge that returns: 1, 5, 25, 50 and then 100 % of its clients. Zero: all at once.
    pub return_step: Duration,
    /// The edges that answers name when the plan names none.
    pub all_out: AllOut,
}

/// The facts that answers depend on and the plan in force does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// The states of edges in the newest plan.
    pub states: BTreeMap<EdgeId, EdgeState>,
    /// The time of the plan that named an edge again.
    pub since: BTreeMap<EdgeId, Moment>,
    /// The edges of the last plan that named any.
    pub last_good: BTreeSet<EdgeId>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            return_step: Duration::from_secs(30),
            all_out: AllOut::default(),
        }
    }
}

/// Compiles one plan after the other.
#[derive(Debug, Default)]
pub struct Steering {
    geography: Arc<Geography>,
    settings: Settings,
    returning: Returning,
    /// The plan of the last answers, and when it came.
    plan: Option<(PlanNumber, Moment)>,
    /// The edges named by the last plan that named any.
    last_good: BTreeSet<EdgeId>,
    nearest: Option<(Vec<Location>, Arc<Nearest>)>,
    measured: BTreeMap<EdgeId, Duration>,
}

impl Steering {
    /// Compiles answers for clients at these places.
    pub fn new(geography: Arc<Geography>, settings: Settings) -> Self {
        Self {
            geography,
            settings,
            ..Self::default()
        }
    }

    /// Takes other places of clients.
    pub fn know_places(&mut self, geography: Arc<Geography>) {
        if !Arc::ptr_eq(&self.geography, &geography) {
            self.geography = geography;
            self.nearest = None;
        }
    }

    /// Goes on with what a name server remembered before its restart.
    pub fn remember(&mut self, memory: &Memory, now: Moment) {
        self.returning = Returning::remembered(memory, now);
        self.last_good.clone_from(&memory.last_good);
    }

    /// The state to remember over a restart beside the last good plan.
    pub fn memory(&self) -> Memory {
        let (states, since) = self.returning.memory();
        Memory {
            states,
            since,
            last_good: self.last_good.clone(),
        }
    }

    /// Takes the time that a connection to each edge takes from here. Edges that were not reached are left out.
    pub fn measured(&mut self, measured: BTreeMap<EdgeId, Duration>) {
        self.measured = measured;
    }

    /// The answers while `snapshot` is in force, from `now` on until [`Answers::holds_until`].
    pub fn compile(&mut self, snapshot: &Snapshot, now: Moment) -> Answers {
        let number = snapshot.plan.number();
        let came_at = match self.plan {
            Some((known, came_at)) if known == number => came_at,
            _ => {
                // A clock that differs from the leader's must not hold an edge on its way back for hours.
                let came_at = snapshot.plan.created_at.min(now);
                self.returning.follow(snapshot, came_at);
                self.plan = Some((number, came_at));
                came_at
            }
        };
        let (pace, mut holds_until) = Pace::of(&snapshot.plan, &snapshot.topology, came_at, now);
        let edges = self.edges(snapshot, now, &mut holds_until);
        let pace = if edges.iter().any(|edge| edge.percent < 100) {
            Pace::Changing
        } else {
            pace
        };
        let nearest = self.nearest(&edges);
        let ttl = Ttl::of(snapshot.dns_ttl_s, pace);
        assemble(snapshot, edges, &self.geography, &nearest, ttl, pace, holds_until)
    }

    #[cfg(test)]
    pub(crate) fn returning(&self) -> &Returning {
        &self.returning
    }

    fn edges(&mut self, snapshot: &Snapshot, now: Moment, holds_until: &mut Option<Moment>) -> Vec<EdgeFacts> {
        let Snapshot { plan, topology, .. } = snapshot;
        let named = self.named(plan, topology.edges.keys());
        // A repeated address would be a duplicate record, which RFC 2181 §5 forbids.
        let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
        let mut facts = |edge: &Edge| {
            let is_named = named.contains(&edge.id);
            let (percent, next) = self.returning.percent(&edge.id, self.settings.return_step, now);
            *holds_until = [*holds_until, next].into_iter().flatten().min();
            let new: Vec<IpAddr> = edge
                .addresses
                .iter()
                .filter(|address| !is_named || taken.insert(**address))
                .copied()
                .collect();
            EdgeFacts {
                id: edge.id.clone(),
                name: format!("{}.{}", edge.id, topology.zone).into(),
                port: edge.port,
                location: edge.location,
                hash: hash(edge.id.as_str().as_bytes()),
                weight: edge.weight.into(),
                percent,
                is_named,
                connects_in: self.measured.get(&edge.id).copied(),
                v4: new.iter().filter_map(v4).take(EDGE_ADDRESSES_MAX).collect(),
                v6: new.iter().filter_map(v6).take(EDGE_ADDRESSES_MAX).collect(),
            }
        };
        topology.edges.values().take(EDGES_MAX).map(&mut facts).collect()
    }

    /// The edges that answers name: those that serve, or those that the settings ask for when none does.
    fn named<'e>(&mut self, plan: &Plan, edges: impl Iterator<Item = &'e EdgeId>) -> BTreeSet<EdgeId> {
        let all: BTreeSet<EdgeId> = edges.cloned().collect();
        let serving: BTreeSet<EdgeId> = all
            .iter()
            .filter(|edge| plan.edges.get(*edge) == Some(&EdgeState::Serving))
            .cloned()
            .collect();
        if !serving.is_empty() {
            self.last_good.clone_from(&serving);
            return serving;
        }
        let chosen = match &self.settings.all_out {
            AllOut::NoData => return BTreeSet::new(),
            AllOut::All => return all,
            AllOut::Static(edges) => edges,
            AllOut::LastGood => &self.last_good,
        };
        let known: BTreeSet<EdgeId> = chosen.intersection(&all).cloned().collect();
        if known.is_empty() { all } else { known }
    }

    fn nearest(&mut self, edges: &[EdgeFacts]) -> Arc<Nearest> {
        let locations: Vec<Location> = edges.iter().map(|edge| edge.location).collect();
        if let Some((known, nearest)) = &self.nearest
            && *known == locations
        {
            return nearest.clone();
        }
        let nearest = Arc::new(Nearest::new(self.geography.places(), &locations));
        self.nearest = Some((locations, nearest.clone()));
        nearest
    }
}

fn v4(address: &IpAddr) -> Option<std::net::Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: &IpAddr) -> Option<std::net::Ipv6Addr> {
    match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    }
}

fn assemble(
    snapshot: &Snapshot,
    edges: Vec<EdgeFacts>,
    geography: &Arc<Geography>,
    nearest: &Nearest,
    ttl: Ttl,
    pace: Pace,
    holds_until: Option<Moment>,
) -> Answers {
    let topology = &snapshot.topology;
    let zone: Arc<str> = topology.zone.as_str().into();
    let (names, soa) = names(snapshot, &zone, ttl);
    let has = [
        |edge: &EdgeFacts| !edge.v4.is_empty(),
        |edge: &EdgeFacts| !edge.v6.is_empty(),
        |edge: &EdgeFacts| !edge.v4.is_empty() || !edge.v6.is_empty(),
    ];
    let which = has.map(|has| edges.iter().map(has).collect::<Vec<bool>>());
    let pools = |kind: usize| Arc::new(Pools::compile(&edges, geography, nearest, has[kind]));
    // Most fleets have one kind of edge, and then one compilation serves all types of answers.
    let v4 = pools(0);
    let v6 = if which[1] == which[0] { v4.clone() } else { pools(1) };
    let bound = match &topology.service {
        None => None,
        Some(_) if which[2] == which[0] => Some(v4.clone()),
        Some(_) if which[2] == which[1] => Some(v6.clone()),
        Some(_) => Some(pools(2)),
    };
    let negative_ttl_s = ttl.high_s.min(soa.minimum_s);
    let alpn = topology.service.iter().flat_map(|it| &it.alpn);
    let alpn: Arc<[Box<str>]> = alpn.map(|id| id.as_str().into()).collect();
    Answers {
        number: snapshot.plan.number(),
        negative: Negative::new(negative_ttl_s, &soa, &zone),
        wires: edges.iter().map(|edge| EdgeWire::new(edge, &alpn)).collect(),
        zone,
        names,
        soa,
        negative_ttl_s,
        ttl,
        pace,
        holds_until,
        edges,
        alpn,
        geography: geography.clone(),
        pools: PoolsByType { v4, v6, bound },
    }
}

/// The names of the zone with everything that does not depend on the client.
fn names(snapshot: &Snapshot, zone: &Arc<str>, ttl: Ttl) -> (Names, Soa) {
    let topology = &snapshot.topology;
    let mut names = Names::new(zone);
    let mut host = |id: &str, addresses: &[IpAddr], ttl_s: u32| {
        let a: Vec<RecordData> = addresses.iter().filter_map(v4).map(RecordData::A).collect();
        let aaaa: Vec<RecordData> = addresses.iter().filter_map(v6).map(RecordData::Aaaa).collect();
        for (kind, data) in [(Type::A, a), (Type::AAAA, aaaa)] {
            names.add(&[id], kind, ttl_s, data);
        }
    };
    for edge in topology.edges.values() {
        host(edge.id.as_str(), &edge.addresses, ttl.high_s);
    }
    for server in topology.name_servers.values() {
        host(server.id.as_str(), &[server.address], NAME_SERVER_TTL_S);
    }
    for record in &topology.records {
        names.add_record(record);
    }
    let name_servers: Vec<Arc<str>> = topology
        .name_servers
        .keys()
        .map(|id| format!("{id}.{zone}").into())
        .collect();
    let soa = Soa {
        mname: name_servers.first().unwrap_or(zone).clone(),
        rname: format!("hostmaster.{zone}").into(),
        // Serial numbers have 32 bits, so only the low half of the generation is used.
        serial: snapshot.plan.generation as u32,
        refresh_s: 3600,
        retry_s: 600,
        expire_s: 604_800,
        minimum_s: NEGATIVE_TTL_MAX_S.min(ttl.high_s),
    };
    names.add(&[], Type::SOA, ttl.high_s, vec![RecordData::Soa(soa.clone())]);
    let servers = name_servers.iter().cloned().map(RecordData::Ns).collect();
    names.add(&[], Type::NS, NAME_SERVER_TTL_S, servers);
    names.add_glue(&name_servers);
    names.finish();
    (names, soa)
}
