//! All DNS answers of one plan.

mod edge_wire;

use std::sync::Arc;

use topology::{Moment, PlanNumber, Snapshot};

pub(crate) use self::edge_wire::EdgeWire;
use self::edge_wire::binding;
use crate::{
    Client, Geography, Pace, Record, RecordData, Soa, Steering, Ttl, Type,
    draw::{Drawn, NAMED_MAX},
    prefix::Key,
    service::{EdgeFacts, Placed, Pools},
    wire::{self, HEADER_BYTES, Negative, TTL_AT},
    zone::{Found, NAME_BYTES_MAX, Names, Node},
};

/// TTL of the answer to ANY, in seconds. It never changes.
const ANY_TTL_S: u32 = 3600;
/// The types whose records depend on the client.
const SERVICE_TYPES: [Type; 4] = [Type::A, Type::AAAA, Type::HTTPS, Type::SVCB];
/// Length of an A record whose owner is a pointer.
const A_BYTES: usize = 16;
/// Length of an AAAA record whose owner is a pointer.
const AAAA_BYTES: usize = 28;
/// Place of the priority in a service binding whose owner is a pointer.
const PRIORITY_AT: usize = 12;

/// The answers of the responder while a snapshot is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    pub(crate) number: PlanNumber,
    pub(crate) zone: Arc<str>,
    pub(crate) names: Names,
    pub(crate) soa: Soa,
    pub(crate) negative: Negative,
    pub(crate) negative_ttl_s: u32,
    pub(crate) ttl: Ttl,
    pub(crate) pace: Pace,
    pub(crate) holds_until: Option<Moment>,
    pub(crate) edges: Vec<EdgeFacts>,
    pub(crate) wires: Vec<EdgeWire>,
    pub(crate) alpn: Arc<[Box<str>]>,
    pub(crate) geography: Arc<Geography>,
    pub(crate) pools: PoolsByType,
}

/// The pools for each kind of answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolsByType {
    pub(crate) v4: Arc<Pools>,
    pub(crate) v6: Arc<Pools>,
    /// For HTTPS and SVCB.
    pub(crate) bound: Option<Arc<Pools>>,
}

/// The answer to a question inside the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The name has records of the type.
    Found {
        /// Those records.
        records: Vec<Record>,
        /// Addresses of the name servers in `records`.
        additional: Vec<Record>,
    },
    /// The name exists and has no record of the type. The TTL of the SOA limits how long a resolver may cache this (RFC
    /// 2308 §3).
    NoData(Record),
    /// Neither the name nor any name below it exists.
    NoSuchName(Record),
}

/// An answer, and the clients for which it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The records.
    pub lookup: Lookup,
    /// Length of the network around the client in which every client gets these records (RFC 7871 §7.2.1). 0: all
    /// clients do, or the question named no network.
    pub scope: u8,
}

/// A set of records with its owner.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedSet {
    /// The name, as bytes.
    pub owner: Box<[u8]>,
    /// The TTL of its records, in seconds.
    pub ttl_s: u32,
    /// Its records, of one type.
    pub records: Vec<RecordData>,
    /// The set, if it is one of the service.
    pub set: Option<ServiceSet>,
}

/// The question is not about this zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchZone;

/// A question as [`Answers::write`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The name: labels with their lengths, without pointers, in any case.
    pub name: &'a [u8],
    /// The type.
    pub kind: Type,
    /// The client.
    pub client: &'a Client,
    /// Bytes that records for the service should not exceed; one is written in any case.
    pub room: usize,
}

/// The part of a reply that [`Answers::write`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes behind the question.
    pub length: usize,
    /// True if neither the name nor any name below it exists.
    pub no_such_name: bool,
    /// Number of records in the answer section.
    pub answers: u16,
    /// Number of records in the authority section.
    pub authorities: u16,
    /// Number of records in the additional section.
    pub additionals: u16,
    /// As in [`Answer::scope`].
    pub scope: u8,
    /// The set in the answer section if it is one of the service, and whole when the question's room is.
    pub set: Option<ServiceSet>,
}

/// A set of records of the service, by the edges in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceSet(u64);

impl ServiceSet {
    fn new(kind: Type, drawn: &[u16]) -> Self {
        let mut edges = [0_u16; NAMED_MAX];
        edges.iter_mut().zip(drawn).for_each(|(to, edge)| *to = *edge);
        let edges = edges.iter().fold(0, |all, edge| all << 16 | u64::from(*edge));
        let kind = SERVICE_TYPES
            .iter()
            .position(|known| *known == kind)
            .unwrap_or_default() as u64;
        Self(kind << 56 | (drawn.len() as u64) << 48 | edges)
    }

    /// Whether the service has records of a type.
    pub fn has(kind: Type) -> bool {
        SERVICE_TYPES.contains(&kind)
    }
}

/// The question needs the other way: it is about another zone or about a type that no record has, or its answer has to be
/// cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unusual;

/// The edges of one client, in the order in which an answer names them.
pub(crate) struct Chosen<'a> {
    pub(crate) placed: Placed<'a>,
    pub(crate) drawn: Drawn,
    pub(crate) scope: u8,
    pub(crate) ttl_s: u32,
}

impl Answers {
    /// Compiles the answers that `snapshot` gives at `now` to clients whose places are unknown.
    pub fn compile(snapshot: &Snapshot, now: Moment) -> Self {
        Steering::default().compile(snapshot, now)
    }

    /// The plan from which the answers were compiled.
    pub fn number(&self) -> PlanNumber {
        self.number
    }

    /// The zone in lower case, without the final dot.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The TTLs of answers for the service.
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// True if a change is likely.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// The time at which the same plan has other answers: TTLs grow, or an edge that returns gets more clients.
    pub fn holds_until(&self) -> Option<Moment> {
        self.holds_until
    }

    /// Number of networks and of pools of edges in the answers for IPv4.
    pub fn sizes(&self) -> (usize, usize) {
        self.pools.v4.sizes()
    }

    /// The edges of a client, if the zone has records of this type that depend on it.
    pub(crate) fn choose(&self, kind: Type, client: &Client) -> Option<Chosen<'_>> {
        let (pools, is_ordered) = match kind {
            Type::A => (&self.pools.v4, false),
            Type::AAAA => (&self.pools.v6, false),
            Type::HTTPS | Type::SVCB => (self.pools.bound.as_ref()?, true),
            _ => return None,
        };
        let placed = pools.of(client, &self.geography);
        let (drawn, varies) = if is_ordered {
            (placed.pool.drawn_for(client.key()), placed.pool.varies_in_order())
        } else {
            (placed.pool.named_for(client.key()), placed.pool.varies())
        };
        let told = client.told();
        let scope = match told {
            None => 0,
            Some(key) if varies => key.family.cap(),
            Some(_) => placed.block,
        };
        let like_it = match told {
            Some(key) if scope > 0 => key.masked(scope),
            _ => Key::of(client.resolver).client(),
        };
        Some(Chosen {
            placed,
            drawn,
            scope,
            ttl_s: self.ttl.for_client(like_it),
        })
    }

    /// Answers a question. `name` is its labels from the left, in any case (RFC 4343). `room` is the number of bytes that
    /// records for the service should not exceed on the wire.
    pub fn lookup(&self, name: &[&[u8]], kind: Type, client: &Client, room: usize) -> Result<Answer, NoSuchZone> {
        let mut bytes = Vec::with_capacity(NAME_BYTES_MAX);
        for label in name {
            bytes.push(u8::try_from(label.len()).map_err(|_| NoSuchZone)?);
            bytes.extend(*label);
        }
        bytes.push(0);
        let everyone = |lookup| Ok(Answer { lookup, scope: 0 });
        let node = match self.names.find(&bytes) {
            Found::Elsewhere => return Err(NoSuchZone),
            Found::Nothing => return everyone(Lookup::NoSuchName(self.no())),
            Found::Zone(_) if self.choose(kind, client).is_some() => return Ok(self.for_service(kind, client, room)),
            Found::Zone(node) | Found::Below(node) => node,
        };
        everyone(self.at(node, kind))
    }

    fn at(&self, node: &Node, kind: Type) -> Lookup {
        if kind == Type::ANY {
            let any = Record {
                name: node.name.clone(),
                ttl_s: ANY_TTL_S,
                data: RecordData::Hinfo,
            };
            return self.found(vec![any], Vec::new());
        }
        match node.set(kind) {
            Some(set) => self.found(set.records.clone(), set.additional.clone()),
            None => Lookup::NoData(self.no()),
        }
    }

    fn for_service(&self, kind: Type, client: &Client, room: usize) -> Answer {
        let Some(chosen) = self.choose(kind, client) else {
            return Answer {
                lookup: Lookup::NoData(self.no()),
                scope: 0,
            };
        };
        let data = self.service_data(kind, &chosen.drawn, room);
        let record = |data| Record {
            name: self.zone.clone(),
            ttl_s: chosen.ttl_s,
            data,
        };
        Answer {
            lookup: self.found(data.into_iter().map(record).collect(), Vec::new()),
            scope: chosen.scope,
        }
    }

    /// The records of an answer for the service that names these edges, as many as have room.
    fn service_data(&self, kind: Type, drawn: &Drawn, room: usize) -> Vec<RecordData> {
        let edges = drawn.as_slice().iter().map(|edge| usize::from(*edge));
        let edges: Vec<&EdgeFacts> = edges.map(|edge| &self.edges[edge]).collect();
        // The first addresses of different edges come before the second address of one edge.
        let nth = |nth: usize| {
            let v4 = move |edge: &&EdgeFacts| edge.v4.get(nth).copied().map(RecordData::A);
            let v6 = move |edge: &&EdgeFacts| edge.v6.get(nth).copied().map(RecordData::Aaaa);
            let of_kind = move |edge: &&EdgeFacts| if kind == Type::A { v4(edge) } else { v6(edge) };
            edges.iter().filter_map(of_kind).collect::<Vec<_>>()
        };
        match kind {
            Type::A => (0..NAMED_MAX).flat_map(nth).take(fitting(room, A_BYTES)).collect(),
            Type::AAAA => (0..NAMED_MAX).flat_map(nth).take(fitting(room, AAAA_BYTES)).collect(),
            _ => {
                let mut bytes = 0;
                let bound = drawn.as_slice().iter().zip(1_u16..).take_while(|(edge, priority)| {
                    bytes += self.wires[usize::from(**edge)].https.len();
                    *priority == 1 || bytes <= room
                });
                let bound =
                    bound.map(|(edge, priority)| binding(&self.edges[usize::from(*edge)], priority, &self.alpn));
                let typed = |binding| {
                    if kind == Type::HTTPS {
                        RecordData::Https(binding)
                    } else {
                        RecordData::Svcb(binding)
                    }
                };
                bound.map(typed).collect()
            }
        }
    }

    fn found(&self, records: Vec<Record>, additional: Vec<Record>) -> Lookup {
        if records.is_empty() {
            Lookup::NoData(self.no())
        } else {
            Lookup::Found { records, additional }
        }
    }

    /// The types that the name of a question has for this client, if it exists or a wildcard stands for it. `name` is the bytes of a
    /// name of the zone, in any case.
    pub fn types_of(&self, name: &[u8], client: &Client) -> Option<Vec<Type>> {
        let of = |node: &Node| node.sets.iter().map(|set| set.kind).collect::<Vec<_>>();
        match self.names.find(name) {
            Found::Elsewhere | Found::Nothing => None,
            Found::Zone(node) => {
                let mut types = of(node);
                for kind in SERVICE_TYPES {
                    let chosen = self.choose(kind, client);
                    let has = chosen.is_some_and(|it| !self.service_data(kind, &it.drawn, usize::MAX).is_empty());
                    if has && !types.contains(&kind) {
                        types.push(kind);
                    }
                }
                Some(types)
            }
            Found::Below(node) => Some(of(node)),
        }
    }

    /// Whether a name exists and no wildcard stands for it.
    pub fn is_own(&self, name: &[u8]) -> bool {
        match self.names.find(name) {
            Found::Elsewhere | Found::Nothing => false,
            Found::Zone(_) => true,
            Found::Below(node) => wire::name(&node.name).eq_ignore_ascii_case(name),
        }
    }

    /// The sets of records that questions are likely to be answered with, and for each name the SOA's TTL and the types, which a
    /// denial needs. At most `most` of them: a world with many edges has more answers than are worth signing beforehand.
    pub fn likely_sets(&self, most: usize) -> Vec<OwnedSet> {
        let mut sets = Vec::new();
        for node in self.names.nodes() {
            for set in &node.sets {
                sets.push(OwnedSet {
                    owner: wire::name(&node.name).into(),
                    ttl_s: set.records.first().map_or(0, |record| record.ttl_s),
                    records: set.records.iter().map(|record| record.data.clone()).collect(),
                    set: None,
                });
            }
        }
        let owner: Box<[u8]> = self.names.zone_wire().into();
        for kind in [Type::A, Type::AAAA, Type::HTTPS] {
            let pools = match kind {
                Type::A => Some(&self.pools.v4),
                Type::AAAA => Some(&self.pools.v6),
                _ => self.pools.bound.as_ref(),
            };
            for drawn in pools.iter().flat_map(|pools| pools.draws(kind == Type::HTTPS)) {
                if sets.len() >= most {
                    return sets;
                }
                let records = self.service_data(kind, &drawn, usize::MAX);
                if !records.is_empty() {
                    sets.push(OwnedSet {
                        owner: owner.clone(),
                        ttl_s: self.ttl.high_s,
                        records,
                        set: Some(ServiceSet::new(kind, drawn.as_slice())),
                    });
                }
            }
        }
        sets.truncate(most);
        sets
    }

    /// The bytes of the names that exist below the zone, and the zone itself.
    pub fn own_names(&self) -> Vec<Vec<u8>> {
        self.names.nodes().iter().map(|node| wire::name(&node.name)).collect()
    }

    /// TTL of negative answers and of denials, in seconds (RFC 9077).
    pub fn negative_ttl_s(&self) -> u32 {
        self.negative_ttl_s
    }

    /// The SOA of a negative answer. Its TTL is the smaller of its own TTL and its minimum (RFC 2308 §3).
    fn no(&self) -> Record {
        Record {
            name: self.zone.clone(),
            ttl_s: self.negative_ttl_s,
            data: RecordData::Soa(self.soa.clone()),
        }
    }

    /// Writes the answer behind the question of a message whose header has no other section before it. Copies what was
    /// written when the answers were compiled, and allocates nothing.
    #[inline]
    pub fn write(&self, question: Question<'_>, out: &mut [u8]) -> Result<Written, Unusual> {
        if question.kind.is_meta() {
            return Err(Unusual);
        }
        let node = match self.names.find(question.name) {
            Found::Elsewhere => return Err(Unusual),
            Found::Nothing => return self.write_no(question.name, true, 0, out),
            Found::Zone(node) => match self.choose(question.kind, question.client) {
                Some(chosen) => return self.write_service(question, &chosen, out),
                None => node,
            },
            Found::Below(node) => node,
        };
        let Some(set) = node.set(question.kind) else {
            return self.write_no(question.name, false, 0, out);
        };
        let (first, second) = (set.answer_wire.len(), set.additional_wire.len());
        let out = out.get_mut(..first + second).ok_or(Unusual)?;
        out[..first].copy_from_slice(&set.answer_wire);
        out[first..].copy_from_slice(&set.additional_wire);
        Ok(Written {
            length: first + second,
            no_such_name: false,
            answers: set.records.len() as u16,
            authorities: 0,
            additionals: set.additional.len() as u16,
            scope: 0,
            set: None,
        })
    }

    fn write_no(&self, name: &[u8], no_such_name: bool, scope: u8, out: &mut [u8]) -> Result<Written, Unusual> {
        let zone_at = HEADER_BYTES + name.len() - self.names.zone_wire().len();
        Ok(Written {
            length: self.negative.write(zone_at, out).ok_or(Unusual)?,
            no_such_name,
            answers: 0,
            authorities: 1,
            additionals: 0,
            scope,
            set: None,
        })
    }

    fn write_service(&self, question: Question<'_>, chosen: &Chosen<'_>, out: &mut [u8]) -> Result<Written, Unusual> {
        let edges = chosen.drawn.as_slice();
        let mut section = Section {
            out,
            length: 0,
            records: 0,
            ttl: chosen.ttl_s.to_be_bytes(),
        };
        match question.kind {
            Type::A | Type::AAAA => self.write_addresses(question, edges, &mut section)?,
            _ => self.write_bindings(question, edges, &mut section)?,
        }
        let Section {
            out, length, records, ..
        } = section;
        if records == 0 {
            return self.write_no(question.name, false, chosen.scope, out);
        }
        Ok(Written {
            length,
            no_such_name: false,
            answers: records,
            authorities: 0,
            additionals: 0,
            scope: chosen.scope,
            set: Some(ServiceSet::new(question.kind, edges)),
        })
    }

    fn write_addresses(&self, question: Question<'_>, edges: &[u16], section: &mut Section<'_>) -> Result<(), Unusual> {
        for nth in 0..NAMED_MAX {
            for edge in edges {
                let wire = &self.wires[usize::from(*edge)];
                let record = match question.kind {
                    Type::A => wire.v4.get(nth).map(|record| &record[..]),
                    _ => wire.v6.get(nth).map(|record| &record[..]),
                };
                let Some(record) = record else { continue };
                if usize::from(section.records) == fitting(question.room, record.len()) {
                    return Ok(());
                }
                section.put(record)?;
            }
        }
        Ok(())
    }

    fn write_bindings(&self, question: Question<'_>, edges: &[u16], section: &mut Section<'_>) -> Result<(), Unusual> {
        for (edge, priority) in edges.iter().zip(1_u16..) {
            let wire = &self.wires[usize::from(*edge)];
            let record = if question.kind == Type::HTTPS {
                &wire.https
            } else {
                &wire.svcb
            };
            if priority > 1 && section.length + record.len() > question.room {
                break;
            }
            let written = section.put(record)?;
            written[PRIORITY_AT..PRIORITY_AT + 2].copy_from_slice(&priority.to_be_bytes());
        }
        Ok(())
    }
}

/// A section of a message while it is written.
struct Section<'a> {
    out: &'a mut [u8],
    length: usize,
    records: u16,
    ttl: [u8; 4],
}

impl Section<'_> {
    fn put(&mut self, record: &[u8]) -> Result<&mut [u8], Unusual> {
        let place = self
            .out
            .get_mut(self.length..self.length + record.len())
            .ok_or(Unusual)?;
        place.copy_from_slice(record);
        place[TTL_AT..TTL_AT + 4].copy_from_slice(&self.ttl);
        self.length += record.len();
        self.records += 1;
        Ok(place)
    }
}

/// Number of records of this length in an answer for the service.
fn fitting(room: usize, record_bytes: usize) -> usize {
    (room / record_bytes).clamp(1, NAMED_MAX)
}

#[cfg(test)]
mod tests;
