//! The names of the zone, and the records whose contents do not depend on the client.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use topology::{ZoneData, ZoneRecord};

use crate::{Caa, Record, RecordData, Type, wire};

/// Most addresses of one name below the zone. Sixteen IPv6 addresses still fit into the 512 bytes of plain DNS over
/// UDP.
pub(crate) const ADDRESSES_MAX: usize = 16;
/// Longest name, in bytes on the wire (RFC 1035 §3.1).
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// Records of one name and type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Set {
    pub(crate) kind: Type,
    pub(crate) records: Vec<Record>,
    /// Addresses of name servers in `records`.
    pub(crate) additional: Vec<Record>,
    /// Both, as bytes behind a question for this name.
    pub(crate) answer_wire: Box<[u8]>,
    pub(crate) additional_wire: Box<[u8]>,
}

/// One name: it has records, or a name below it has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) sets: Vec<Set>,
    /// The node that stands for all names that do not exist directly below this one (RFC 4592).
    wildcard: Option<u32>,
}

impl Node {
    pub(crate) fn set(&self, kind: Type) -> Option<&Set> {
        self.sets.iter().find(|set| set.kind == kind)
    }
}

/// The names of the zone. Node 0 is the zone itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Names {
    zone: Box<[u8]>,
    nodes: Vec<Node>,
    by_name: HashMap<Box<[u8]>, u32, Fnv>,
}

/// The node that answers a question.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'a> {
    /// The zone itself.
    Zone(&'a Node),
    /// A name below it, or a wildcard in its place.
    Below(&'a Node),
    /// No such name.
    Nothing,
    /// The name is not in the zone.
    Elsewhere,
}

/// A hash of few bytes. The names in the table are ours, so that nobody can fill a bucket.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fnv;

/// State of [`Fnv`].
#[derive(Debug)]
pub(crate) struct FnvState(u64);

impl BuildHasher for Fnv {
    type Hasher = FnvState;

    fn build_hasher(&self) -> FnvState {
        FnvState(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for FnvState {
    fn write(&mut self, bytes: &[u8]) {
        // Eight bytes at a time: a name is hashed for every question below the zone.
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let word = chunk.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
            self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        for byte in chunks.remainder() {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

impl Names {
    pub(crate) fn new(zone: &Arc<str>) -> Self {
        let wire: Box<[u8]> = wire::name(zone).into();
        let apex = Node {
            name: zone.clone(),
            sets: Vec::new(),
            wildcard: None,
        };
        Self {
            by_name: HashMap::from_iter([(wire.clone(), 0)]),
            zone: wire,
            nodes: vec![apex],
        }
    }

    /// Adds records of one type at a name below the zone, or at the zone itself if there are no labels. Names between it
    /// and the zone exist from then on (RFC 8020).
    pub(crate) fn add(&mut self, labels: &[&str], kind: Type, ttl_s: u32, data: Vec<RecordData>) {
        let node = self.node(labels) as usize;
        let name = self.nodes[node].name.clone();
        let record = |data| Record {
            name: name.clone(),
            ttl_s,
            data,
        };
        let records: Vec<Record> = data.into_iter().map(record).collect();
        match self.nodes[node].sets.iter_mut().find(|set| set.kind == kind) {
            Some(set) => {
                for mut record in records {
                    // All records of a set have one TTL (RFC 2181 §5.2), and each occurs once (§5).
                    let ttl_s = set.records.first().map_or(ttl_s, |first| first.ttl_s.min(ttl_s));
                    set.records.iter_mut().for_each(|it| it.ttl_s = ttl_s);
                    record.ttl_s = ttl_s;
                    if !set.records.contains(&record) {
                        set.records.push(record);
                    }
                }
            }
            None if records.is_empty() => {}
            None => self.nodes[node].sets.push(Set {
                kind,
                records,
                additional: Vec::new(),
                answer_wire: Box::default(),
                additional_wire: Box::default(),
            }),
        }
    }

    /// Adds an operator's record. Below an existing set its TTL is the shorter one.
    pub(crate) fn add_record(&mut self, record: &ZoneRecord) {
        let data = match &record.data {
            ZoneData::A(address) => RecordData::A(*address),
            ZoneData::Aaaa(address) => RecordData::Aaaa(*address),
            ZoneData::Txt(text) => RecordData::Txt(text.as_bytes().chunks(255).map(Into::into).collect()),
            ZoneData::Caa { flags, tag, value } => RecordData::Caa(Caa {
                flags: *flags,
                tag: tag.as_str().into(),
                value: value.as_bytes().into(),
            }),
        };
        self.add(&record.labels(), data.kind(), record.ttl_s, vec![data]);
    }

    /// Adds the addresses of the name servers to the records that name them.
    pub(crate) fn add_glue(&mut self, name_servers: &[Arc<str>]) {
        let glue: Vec<Record> = name_servers
            .iter()
            .filter_map(|name| self.by_name.get(&*wire::name(name)))
            .flat_map(|node| [Type::A, Type::AAAA].map(|kind| self.nodes[*node as usize].set(kind)))
            .flatten()
            .flat_map(|set| set.records.iter().take(ADDRESSES_MAX).cloned())
            .collect();
        if let Some(set) = self.nodes[0].sets.iter_mut().find(|set| set.kind == Type::NS) {
            set.additional = glue;
        }
    }

    /// Writes the bytes of all records. No record is added after this.
    pub(crate) fn finish(&mut self) {
        let zone = self.nodes[0].name.clone();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let question = (number == 0).then_some(&*zone);
            for set in &mut node.sets {
                if [Type::A, Type::AAAA].contains(&set.kind) {
                    set.records.truncate(ADDRESSES_MAX);
                }
                let (mut answer, mut additional) = (Vec::new(), Vec::new());
                for record in &set.records {
                    wire::record(&mut answer, record.ttl_s, &record.data, question);
                }
                for record in &set.additional {
                    wire::record_below(&mut additional, &record.name, record.ttl_s, &record.data, &zone);
                }
                (set.answer_wire, set.additional_wire) = (answer.into(), additional.into());
            }
        }
    }

    fn node(&mut self, labels: &[&str]) -> u32 {
        let Some((first, rest)) = labels.split_first() else {
            return 0;
        };
        let parent = self.node(rest);
        let name: Arc<str> = format!("{first}.{}", self.nodes[parent as usize].name).into();
        let wire: Box<[u8]> = wire::name(&name).into();
        if let Some(known) = self.by_name.get(&wire) {
            return *known;
        }
        let next = self.nodes.len() as u32;
        self.nodes.push(Node {
            name,
            sets: Vec::new(),
            wildcard: None,
        });
        if *first == "*" {
            self.nodes[parent as usize].wildcard = Some(next);
        }
        self.by_name.insert(wire, next);
        next
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The zone's name as bytes.
    pub(crate) fn zone_wire(&self) -> &[u8] {
        &self.zone
    }

    /// The node for a name of the wire: labels with their lengths, in any case, checked before.
    pub(crate) fn find(&self, name: &[u8]) -> Found<'_> {
        if name.eq_ignore_ascii_case(&self.zone) {
            return Found::Zone(&self.nodes[0]);
        }
        let Some(below) = name.len().checked_sub(self.zone.len()) else {
            return Found::Elsewhere;
        };
        if !name[below..].eq_ignore_ascii_case(&self.zone) || !is_label_boundary(name, below) {
            return Found::Elsewhere;
        }
        let mut lower = [0; NAME_BYTES_MAX];
        let Some(lower) = lower.get_mut(..name.len()) else {
            return Found::Elsewhere;
        };
        for (to, from) in lower.iter_mut().zip(name) {
            // Lengths of labels are below 64, so this changes letters only.
            *to = from.to_ascii_lowercase();
        }
        let lower = &*lower;
        if let Some(node) = self.by_name.get(lower) {
            return Found::Below(&self.nodes[*node as usize]);
        }
        // The closest name above that exists says whether a wildcard stands for this one (RFC 4592 §3.3.1).
        let mut at = 0;
        while at < below {
            at += 1 + usize::from(lower[at]);
            if let Some(node) = self.by_name.get(&lower[at..]) {
                let wildcard = self.nodes[*node as usize].wildcard;
                return wildcard.map_or(Found::Nothing, |node| Found::Below(&self.nodes[node as usize]));
            }
        }
        Found::Nothing
    }

    /// All names with their types, for pages.
    pub(crate) fn types(&self) -> BTreeMap<Arc<str>, Vec<Type>> {
        let types = |node: &Node| node.sets.iter().map(|set| set.kind).collect();
        self.nodes.iter().map(|node| (node.name.clone(), types(node))).collect()
    }
}

/// Whether a label begins at `at`. The bytes of a zone may also end a longer label.
fn is_label_boundary(name: &[u8], at: usize) -> bool {
    let mut start = 0;
    while start < at {
        start += 1 + usize::from(name[start]);
    }
    start == at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::new(&"voice.test".into());
        let address = |last: u8| vec![RecordData::A([192, 0, 2, last].into())];
        names.add(&["edge"], Type::A, 15, address(1));
        names.add(&["a", "b", "c"], Type::A, 15, address(2));
        names.add(&["*", "wild"], Type::A, 15, address(3));
        names.add(&["not", "wild"], Type::TXT, 15, vec![RecordData::Hinfo]);
        names.finish();
        names
    }

    fn found(name: &str) -> String {
        let names = names();
        match names.find(&wire::name(name)) {
            Found::Zone(_) => "zone".to_owned(),
            Found::Below(node) => format!("{} {}", node.name, node.sets.len()),
            Found::Nothing => "nothing".to_owned(),
            Found::Elsewhere => "elsewhere".to_owned(),
        }
    }

    #[test]
    fn names_between_exist_and_wildcards_stand_for_what_does_not() {
        for (name, expected) in [
            ("voice.test", "zone"),
            ("edge.voice.test", "edge.voice.test 1"),
            ("x.edge.voice.test", "nothing"),
            ("x.voice.test", "nothing"),
            ("a.b.c.voice.test", "a.b.c.voice.test 1"),
            // Empty non-terminals exist without records (RFC 8020).
            ("b.c.voice.test", "b.c.voice.test 0"),
            ("c.voice.test", "c.voice.test 0"),
            ("x.c.voice.test", "nothing"),
            ("x.wild.voice.test", "*.wild.voice.test 1"),
            ("y.x.wild.voice.test", "*.wild.voice.test 1"),
            ("wild.voice.test", "wild.voice.test 0"),
            // A name that exists hides the wildcard, also from the names below it (RFC 4592 §2.2.1).
            ("not.wild.voice.test", "not.wild.voice.test 1"),
            ("x.not.wild.voice.test", "nothing"),
            ("*.wild.voice.test", "*.wild.voice.test 1"),
            ("test", "elsewhere"),
            ("voice.example", "elsewhere"),
            ("xvoice.test", "elsewhere"),
        ] {
            assert_eq!(found(name), expected, "{name}");
        }
        // On the wire a label may hold any byte, also the length of another label.
        assert!(matches!(names().find(b"\x07a\x05voice\x04test\0"), Found::Elsewhere));
    }

    #[test]
    fn names_are_found_in_any_case_and_never_only_in_part() {
        let mut upper = wire::name("edge.voice.test");
        upper.make_ascii_uppercase();
        assert!(matches!(names().find(&upper), Found::Below(_)));
        assert!(matches!(names().find(b"\0"), Found::Elsewhere));
    }
}
