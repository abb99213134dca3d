//! The audit log: every decision with its whole input, chained by hashes.
//!
//! An entry is stored as JSON. It names the SHA-256 of the bytes of the entry before, so that nothing can be changed,
//! left out or put in without breaking the chain; and feeding its input through [`plan`] again must give the same plan,
//! byte for byte. The two documents are stored once, under their hashes. Entries about access ([`AccessEntry`]) stand in the same
//! chain, and hold no decision.
//!
//! Why it is so: docs/decisions/23-the-audit-log-holds-inputs.md.

mod access;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use topology::{EdgeId, Moment, NodeId, Plan, Policy, Reason, RegionId, Snapshot, Topology, snapshot::SNAPSHOT_SCHEMA};
use verdict::Verdict;

pub use access::{Access, AccessEntry, AccessKind, Principal};

use crate::{
    EdgeSeen, Input, Lag, Memory, Outcome, Refusal, Report, RolloutSeen,
    input::{REFUSALS_QUOTED, quoted},
    plan,
};

/// The hash of the entry before, in the first entry.
pub const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Fewest entries that are kept, unless they are too large together. The oldest go in segments.
pub const KEPT: u64 = 20_000;

/// The rules that decide here: the version of Meridian, and a hash of the sources that decide.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("MERIDIAN_RULES"));

/// One decision, refusal or change of documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Grows by one.
    pub number: u64,
    /// Hash of the entry before, or [`FIRST`].
    pub previous: String,
    /// Time of the decision.
    pub at: Moment,
    /// The actor: the planner, or an operator by name.
    pub actor: String,
    /// The credential behind an operator's decision; none for the planner, for requests without a certificate, and in entries from
    /// before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Principal>,
    /// The reason of the operator who applied a document; a request carries its own reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// The input of the decision.
    pub input: Recorded,
    /// The new plan; none when the plan in force stayed.
    pub plan: Option<Plan>,
    /// The memory after the decision.
    pub memory: Memory,
    /// The reasons of changes, and of refusals that are new.
    pub reasons: Vec<Reason>,
    /// The rules that decided it, as in [`VERSION`]; empty in entries from before this was recorded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The oldest entry that was kept when this one was written; 0 in entries from before this was recorded.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oldest: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An [`Input`] as it is recorded: with the hashes of its documents, without parts that no decision reads, and with
/// shorter forms of long lists. An entry has to fit into the store also when a thousand edges see a hundred regions
/// down, or refuse a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Version of the topology document.
    pub topology: String,
    /// Version of the policy document.
    pub policy: String,
    /// As in [`Input`], without its reasons: they are in the entry that made it.
    pub current: Option<Plan>,
    /// As in [`Input`], but for `bad_from`.
    pub verdicts: BTreeMap<RegionId, Verdict>,
    /// Every vantage that is named in a verdict's `bad_from`, in the order of names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vantages: Vec<NodeId>,
    /// `bad_from` of every verdict that has one: a bit for each of `vantages`, the first in the lowest bit of the first
    /// byte, in hex.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bad_from: BTreeMap<RegionId, String>,
    /// As in [`Input`].
    pub memory: Memory,
    /// As in [`Input`].
    pub request: Option<topology::Intent>,
    /// As in [`Input`].
    pub replication: BTreeMap<RegionId, BTreeMap<String, Lag>>,
    /// As in [`Input`].
    pub rollout: Option<RolloutSeen>,
    /// As in [`Input`], with as much of the nodes' errors as a decision repeats.
    pub refusal: Option<Refusal>,
    /// As in [`Input`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub edges: BTreeMap<EdgeId, EdgeSeen>,
    /// As in [`Input`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// As in [`Input`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// As in [`Input`], without its reasons.
    pub recovered: Option<Plan>,
    /// As in [`Input`].
    pub epoch: u64,
}

impl Recorded {
    /// An input as it is recorded.
    pub fn of(input: &Input, topology: &str, policy: &str) -> Self {
        let Input {
            topology: _,
            policy: _,
            current,
            mut verdicts,
            memory,
            request,
            replication,
            rollout,
            refusal,
            edges,
            applied,
            differences,
            recovered,
            epoch,
        } = input.clone();
        let (vantages, bad_from) = take_vantages(&mut verdicts);
        Self {
            topology: topology.to_owned(),
            policy: policy.to_owned(),
            current: current.map(without_reasons),
            verdicts,
            vantages,
            bad_from,
            memory,
            request,
            replication,
            rollout,
            refusal: refusal.map(in_few_words),
            edges,
            applied,
            differences,
            recovered: recovered.map(without_reasons),
            epoch,
        }
    }

    fn with(self, topology: Topology, policy: Policy) -> Input {
        let mut verdicts = self.verdicts;
        give_vantages(&mut verdicts, &self.vantages, &self.bad_from);
        Input {
            topology,
            policy,
            current: self.current,
            verdicts,
            memory: self.memory,
            request: self.request,
            replication: self.replication,
            rollout: self.rollout,
            refusal: self.refusal,
            edges: self.edges,
            applied: self.applied,
            differences: self.differences,
            recovered: self.recovered,
            epoch: self.epoch,
        }
    }
}

fn without_reasons(plan: Plan) -> Plan {
    Plan {
        reasons: Vec::new(),
        ..plan
    }
}

fn in_few_words(refusal: Refusal) -> Refusal {
    let Refusal {
        number,
        mut nodes,
        following,
        acknowledged,
    } = refusal;
    for (index, words) in nodes.values_mut().enumerate() {
        let kept = if index < REFUSALS_QUOTED { quoted(words) } else { "" };
        *words = kept.to_owned();
    }
    Refusal {
        number,
        nodes,
        following,
        acknowledged: acknowledged.map(without_reasons),
    }
}

/// Takes `bad_from` out of the verdicts: a thousand names told once are short, and told a hundred times are not.
fn take_vantages(verdicts: &mut BTreeMap<RegionId, Verdict>) -> (Vec<NodeId>, BTreeMap<RegionId, String>) {
    let named: BTreeSet<NodeId> = verdicts.values().flat_map(|it| it.bad_from.iter().cloned()).collect();
    let vantages: Vec<NodeId> = named.into_iter().collect();
    let mut bad_from = BTreeMap::new();
    for (region, verdict) in verdicts.iter_mut().filter(|(_, it)| !it.bad_from.is_empty()) {
        let mut bits = vec![0_u8; vantages.len().div_ceil(8)];
        for vantage in std::mem::take(&mut verdict.bad_from) {
            if let Ok(index) = vantages.binary_search(&vantage) {
                bits[index / 8] |= 1 << (index % 8);
            }
        }
        bad_from.insert(region.clone(), hex::encode(bits));
    }
    (vantages, bad_from)
}

fn give_vantages(
    verdicts: &mut BTreeMap<RegionId, Verdict>,
    vantages: &[NodeId],
    bad_from: &BTreeMap<RegionId, String>,
) {
    for (region, bits) in bad_from {
        let bits = hex::decode(bits).unwrap_or_default();
        let is_set = |index: usize| bits.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0);
        if let Some(verdict) = verdicts.get_mut(region) {
            let named = vantages.iter().enumerate().filter(|(index, _)| is_set(*index));
            verdict.bad_from = named.map(|(_, vantage)| vantage.clone()).collect();
        }
    }
}

impl Entry {
    /// The bytes that are stored and hashed.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an entry holds only maps with text keys, which JSON can write")
    }
}

/// An entry of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyEntry {
    /// A decision, refusal or change of documents.
    Decision(Box<Entry>),
    /// A call that was denied, a token, and the like.
    Access(Box<AccessEntry>),
}

impl AnyEntry {
    /// Reads the bytes of an entry.
    ///
    /// # Errors
    ///
    /// They are no entry.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind {
            access: Option<serde::de::IgnoredAny>,
        }
        let kind: Kind = serde_json::from_slice(bytes)?;
        Ok(match kind.access {
            Some(_) => Self::Access(serde_json::from_slice(bytes)?),
            None => Self::Decision(serde_json::from_slice(bytes)?),
        })
    }

    /// Its number in the chain.
    pub fn number(&self) -> u64 {
        match self {
            Self::Decision(entry) => entry.number,
            Self::Access(entry) => entry.number,
        }
    }

    /// The decision, if it is one.
    pub fn decision(self) -> Option<Entry> {
        match self {
            Self::Decision(entry) => Some(*entry),
            Self::Access(_) => None,
        }
    }

    fn previous(&self) -> &str {
        match self {
            Self::Decision(entry) => &entry.previous,
            Self::Access(entry) => &entry.previous,
        }
    }

    fn oldest(&self) -> u64 {
        match self {
            Self::Decision(entry) => entry.oldest,
            Self::Access(entry) => entry.oldest,
        }
    }
}

/// The bytes that a control plane signs to vouch for the head of the chain: no signature for anything else begins like this.
pub fn head_to_sign(number: u64, hash: &str, at: Moment) -> Vec<u8> {
    format!("meridian audit head 1\n{number}\n{hash}\n{}\n", at.0).into_bytes()
}

/// SHA-256 in hex: the version of a document, and the link between entries.
pub fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A fault of an audit log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Tampered {
    /// An entry's bytes are no entry.
    #[error("entry {position} (counted from 1) is not readable: {problem}")]
    Unreadable {
        /// Position of the entry, from 1.
        position: usize,
        /// The error of the parser.
        problem: String,
    },
    /// The oldest entries are missing, and were kept when the newest was written.
    #[error("the log begins with entry {first}, and entries from {kept} on were kept: entries were cut off before it")]
    Beheaded {
        /// Number of the oldest entry in the log.
        first: u64,
        /// Number of the oldest entry that must be there.
        kept: u64,
    },
    /// Numbers have a gap.
    #[error("entry {found} follows entry {after}: entries are missing, twice there or out of order")]
    Missing {
        /// Number of the last entry before the gap.
        after: u64,
        /// Number of the first entry after it.
        found: u64,
    },
    /// An entry does not name the bytes before it.
    #[error("entry {number} does not follow from the one before it: that one was changed, or this one was put in")]
    Broken {
        /// Number of the entry.
        number: u64,
    },
    /// The newest entry is not the one the head names.
    #[error("the newest entry is not the one the log ends in: entries were cut off or changed")]
    Head,
    /// A document's text does not hash to its version.
    #[error("the document {version} was changed")]
    Document {
        /// Version of the document.
        version: String,
    },
    /// A document an entry was decided with is missing.
    #[error("entry {number} was decided with document {version}, which is missing")]
    NoDocument {
        /// Number of the entry.
        number: u64,
        /// Version of the document.
        version: String,
    },
    /// Other rules decided it, and these decide differently: that is no proof of a change.
    #[error(
        "entry {number} was decided by another version ({}; this is {VERSION}), and comes out differently here: {difference}. \
         Replay it with that version",
        if version.is_empty() { "unknown" } else { version }
    )]
    OtherVersion {
        /// Number of the entry.
        number: u64,
        /// The rules that decided it.
        version: String,
        /// The part that differs.
        difference: String,
    },
    /// The same input gives another decision.
    #[error("entry {number} decides differently when it is decided again: {difference}")]
    Differs {
        /// Number of the entry.
        number: u64,
        /// The part that differs.
        difference: String,
    },
}

/// Reads a chain of entries, oldest first, and checks that none was changed, left out or put in. A pruned log begins
/// with its oldest entry. Returns the decisions among them.
pub fn verify<'b>(entries: impl IntoIterator<Item = &'b [u8]>, head: Option<&str>) -> Result<Vec<Entry>, Tampered> {
    let entries = chain(entries, head)?;
    Ok(entries.into_iter().filter_map(AnyEntry::decision).collect())
}

/// The same, with the entries about access.
pub fn chain<'b>(entries: impl IntoIterator<Item = &'b [u8]>, head: Option<&str>) -> Result<Vec<AnyEntry>, Tampered> {
    let mut read: Vec<AnyEntry> = Vec::new();
    let mut last_hash: Option<String> = None;
    for (index, bytes) in entries.into_iter().enumerate() {
        let entry = AnyEntry::read(bytes).map_err(|error| Tampered::Unreadable {
            position: index + 1,
            problem: error.to_string(),
        })?;
        let number = entry.number();
        if let (Some(before), Some(expected)) = (read.last(), &last_hash) {
            let after = before.number();
            if after.checked_add(1) != Some(number) {
                return Err(Tampered::Missing { after, found: number });
            }
            if entry.previous() != *expected {
                return Err(Tampered::Broken { number });
            }
        } else if number == 1 && entry.previous() != FIRST {
            return Err(Tampered::Broken { number: 1 });
        }
        last_hash = Some(hash(bytes));
        read.push(entry);
    }
    if let (Some(_), Some(first), Some(newest)) = (head, read.first(), read.last()) {
        let kept = match newest.oldest() {
            0 => newest.number().saturating_sub(KEPT - 1).max(1),
            oldest => oldest,
        };
        let first = first.number();
        if first > kept {
            return Err(Tampered::Beheaded { first, kept });
        }
    }
    match (head, last_hash) {
        (Some(head), Some(last)) if head != last => Err(Tampered::Head),
        (Some(head), None) if head != FIRST => Err(Tampered::Head),
        _ => Ok(read),
    }
}

/// The documents that entries were decided with, read once.
#[derive(Debug, Default)]
pub struct Documents {
    topologies: BTreeMap<String, Topology>,
    policies: BTreeMap<String, Policy>,
    texts: BTreeMap<String, String>,
}

impl Documents {
    /// Adds a document; its text must hash to its version.
    pub fn insert(&mut self, version: String, text: String) -> Result<(), Tampered> {
        if hash(text.as_bytes()) != version {
            return Err(Tampered::Document { version });
        }
        self.texts.insert(version, text);
        Ok(())
    }

    /// Reads a document like a control plane that finds it in force.
    fn read<T: Clone>(
        kept: &mut BTreeMap<String, T>,
        texts: &BTreeMap<String, String>,
        version: &str,
        (number, rules): (u64, &str),
        parse: impl Fn(&str) -> Result<(T, Vec<topology::Problem>), topology::Problems>,
    ) -> Result<T, Tampered> {
        if let Some(known) = kept.get(version) {
            return Ok(known.clone());
        }
        let version = version.to_owned();
        let Some(text) = texts.get(&version) else {
            return Err(Tampered::NoDocument { number, version });
        };
        let (document, _) = parse(text).map_err(|problems| match rules {
            VERSION => Tampered::Unreadable {
                position: number as usize,
                problem: problems.to_string(),
            },
            rules => Tampered::OtherVersion {
                number,
                version: rules.to_owned(),
                difference: format!("document {version} cannot be read: {problems}"),
            },
        })?;
        kept.insert(version, document.clone());
        Ok(document)
    }

    /// The plan of an entry with its documents, as it was published.
    pub fn snapshot(&mut self, entry: Entry) -> Result<Option<Snapshot>, Tampered> {
        let Some(plan) = entry.plan else { return Ok(None) };
        let (topology, policy) = self.documents_of(entry.number, &entry.version, &entry.input)?;
        Ok(Some(Snapshot {
            schema: SNAPSHOT_SCHEMA,
            plan,
            topology,
            dns_ttl_s: policy.dns.ttl_s(),
            probe: policy.probe,
        }))
    }

    fn documents_of(&mut self, number: u64, rules: &str, input: &Recorded) -> Result<(Topology, Policy), Tampered> {
        let entry = (number, rules);
        let topology = Self::read(&mut self.topologies, &self.texts, &input.topology, entry, |text| {
            Topology::parse_stored("topology", text)
        })?;
        let policy = Self::read(&mut self.policies, &self.texts, &input.policy, entry, |text| {
            Policy::parse_stored("policy", text)
        })?;
        Ok((topology, policy))
    }

    /// Decides an entry again. The error names the part that differs.
    pub fn replay(&mut self, entry: &Entry) -> Result<Outcome, Tampered> {
        let number = entry.number;
        let (topology, policy) = self.documents_of(number, &entry.version, &entry.input)?;
        let outcome = plan(&entry.input.clone().with(topology, policy), entry.at);
        let differs = |difference: &str| {
            let difference = difference.to_owned();
            match entry.version.as_str() {
                VERSION => Tampered::Differs { number, difference },
                version => Tampered::OtherVersion {
                    number,
                    version: version.to_owned(),
                    difference,
                },
            }
        };
        let bytes = |value: &Option<Plan>| serde_json::to_vec(value).unwrap_or_default();
        if bytes(&outcome.plan) != bytes(&entry.plan) {
            let generation = |plan: &Option<Plan>| {
                plan.as_ref()
                    .map_or("no plan".to_owned(), |plan| format!("plan {}", plan.generation))
            };
            let text = format!(
                "{} was recorded, {} comes of it now",
                generation(&entry.plan),
                generation(&outcome.plan)
            );
            return Err(differs(&text));
        }
        if serde_json::to_vec(&outcome.memory).ok() != serde_json::to_vec(&entry.memory).ok() {
            return Err(differs("what is remembered from it"));
        }
        let Report {
            changed,
            refused,
            waiting,
            ..
        } = &outcome.report;
        let spoken = |reason: &Reason| [changed, refused, waiting].iter().any(|said| said.contains(reason));
        if !entry.reasons.iter().all(spoken) {
            return Err(differs("its reasons"));
        }
        Ok(outcome)
    }
}
