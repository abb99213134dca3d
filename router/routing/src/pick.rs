//! Choosing a region: affinity, then the plan for the home, then its backups, then whatever serves.
//!
//! It never fails closed: while any region that the plan lets serve is untried, one is picked, ejected or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::Serialize;
use sha2::{Digest, Sha256};
use topology::{PlanNumber, RegionId, RegionState, Share};

use crate::{Table, User, table::Entry};

/// One question: where does this session go, given what was tried for it and what the edge has seen.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What keeps the session's place among percentages; the same key, the same place.
    pub session_key: &'a str,
    /// Whose it is: what says which version of the stack it goes to.
    pub user: User<'a>,
    /// Where a valid affinity token says the session was.
    pub affinity: Option<&'a RegionId>,
    /// Regions already tried for it, in order.
    pub tried: &'a [RegionId],
    /// Smoothed round trips from this edge, in milliseconds.
    pub measured_rtt_ms: &'a BTreeMap<RegionId, f64>,
    /// Regions this edge stays away from for now.
    pub ejected: &'a BTreeSet<RegionId>,
}

/// An answer, and everything that led to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Where the session goes.
    pub region: RegionId,
    /// Which of its stacks.
    pub stack: SocketAddr,
    /// The version of that stack.
    pub version: Box<str>,
    /// The version the user belongs on, when no stack of it could be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_missed: Option<Box<str>>,
    /// The primary nearest to this edge.
    pub home: RegionId,
    /// Which rule chose the region.
    pub why: Why,
    /// Regions that came first and were passed over.
    pub skipped: Vec<Skipped>,
    /// Set when everything left was ejected, so ejection was not honoured.
    pub ejection_ignored: bool,
    /// The plan it was decided by.
    pub plan: PlanNumber,
}

/// The rules, in the order they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The session was there before, and the plan still sends sessions there.
    Affinity,
    /// The plan sends this percentage of the home's sessions there, and this one is among them.
    Share(u8),
    /// Its own share could not take it; this is the next one in the plan's order.
    Overflow,
    /// No share of the home could take it; this is a backup of the home.
    Backup,
    /// Nothing of the home could take it; this is the nearest region that serves.
    AnyServing,
}

impl Why {
    /// The rule's name, as in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::Share(_) => "share",
            Self::Overflow => "overflow",
            Self::Backup => "backup",
            Self::AnyServing => "any-serving",
        }
    }
}

/// A region that was passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Which.
    pub region: RegionId,
    /// Why it did not get the session.
    pub because: Because,
}

/// Why a region is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// It was tried for this session already.
    Tried,
    /// This edge saw it fail and stays away for now.
    Ejected,
    /// The plan evacuated it.
    Evacuated,
    /// The plan sends no sessions there.
    NoShare,
    /// The plan does not know it.
    Unknown,
}

impl Because {
    /// The reason's name, as in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tried => "tried",
            Self::Ejected => "ejected",
            Self::Evacuated => "evacuated",
            Self::NoShare => "no-share",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.region, self.because.as_str())
    }
}

/// Picks a region and a stack in it; `None` when every region that may serve was tried.
pub fn pick(table: &Table, request: &Request<'_>) -> Option<Decision> {
    let (home, candidates, mut skipped) = candidates(table, request)?;
    let mut ejected = Vec::new();
    for candidate in &candidates {
        if request.tried.contains(candidate.region) {
            skipped.push(skip(candidate.region, Because::Tried));
        } else if request.ejected.contains(candidate.region) {
            skipped.push(skip(candidate.region, Because::Ejected));
            ejected.push(candidate);
        } else {
            return decide(table, request, home, candidate, skipped, false);
        }
    }
    // Everything left is ejected. That is more likely a fault on this side than the end of the world, and a session
    // refused for certain is worse than one that probably fails: the first choice is tried as if nothing had happened.
    let candidate = ejected.first()?;
    skipped.retain(|skipped| &skipped.region != candidate.region);
    decide(table, request, home, candidate, skipped, true)
}

struct Candidate<'t> {
    region: &'t RegionId,
    entry: &'t Entry,
    why: Why,
}

/// Every region that may serve the session, best first, each once; and what the rules ruled out by name.
fn candidates<'t>(table: &'t Table, request: &Request<'t>) -> Option<(&'t RegionId, Vec<Candidate<'t>>, Vec<Skipped>)> {
    let (home, plan) = table.nearest_home(request.measured_rtt_ms)?;
    let mut candidates: Vec<Candidate<'t>> = Vec::new();
    let mut skipped = Vec::new();
    let mut consider = |region: &'t RegionId, why: Why| {
        if candidates.iter().any(|candidate| candidate.region == region) {
            return;
        }
        let because = match table.entry(region) {
            None => Because::Unknown,
            Some(entry) if entry.state == RegionState::Evacuated => Because::Evacuated,
            // A region the plan no longer uses loses its old sessions too, or draining it by percentages never ends.
            Some(entry) if why == Why::Affinity && !entry.planned => Because::NoShare,
            Some(entry) => return candidates.push(Candidate { region, entry, why }),
        };
        // A region far down the list that serves nobody explains nothing.
        if why != Why::AnyServing && !skipped.iter().any(|known: &Skipped| &known.region == region) {
            skipped.push(skip(region, because));
        }
    };

    if let Some(region) = request.affinity {
        consider(region, Why::Affinity);
    }
    if let Some(share) = share_of(&plan.shares, request.session_key) {
        consider(&share.region, Why::Share(share.percent));
    }
    for share in plan.shares.iter().filter(|share| share.percent > 0) {
        consider(&share.region, Why::Overflow);
    }
    for backup in &plan.backups {
        consider(backup, Why::Backup);
    }
    for region in table.by_nearness(request.measured_rtt_ms) {
        consider(region, Why::AnyServing);
    }
    Some((home, candidates, skipped))
}

/// The share a session falls into, by weighted rendezvous hashing: each region draws a waiting time from the session's
/// key, exponential with its percentage as the rate, and the shortest wait wins. A region's draw does not depend on the
/// others, so when percentages change, sessions move only to regions that grew and from regions that shrank.
fn share_of<'t>(shares: &'t [Share], session_key: &str) -> Option<&'t Share> {
    shares
        .iter()
        .filter(|share| share.percent > 0)
        .min_by(|a, b| wait(a, session_key).total_cmp(&wait(b, session_key)))
}

fn wait(share: &Share, session_key: &str) -> f64 {
    let draw = hash(session_key, share.region.as_str());
    // 53 bits fill a double; the half keeps the draw strictly between 0 and 1, where the logarithm is finite.
    let uniform = ((draw >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -uniform.ln() / f64::from(share.percent)
}

/// Stable across builds, machines and versions, because all edges must agree where a session belongs. The zero byte keeps
/// ("ab", "c") and ("a", "bc") apart.
fn hash(session_key: &str, salt: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(session_key.as_bytes());
    hasher.update([0]);
    hasher.update(salt.as_bytes());
    let digest = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

fn decide(
    table: &Table,
    request: &Request<'_>,
    home: &RegionId,
    candidate: &Candidate<'_>,
    skipped: Vec<Skipped>,
    ejection_ignored: bool,
) -> Option<Decision> {
    let split = table.stacks_for(candidate.entry, &request.user);
    let stacks = if split.of_version.is_empty() {
        split.others
    } else {
        split.of_version
    };
    // Plain rendezvous: a stack that goes away moves only its own sessions.
    let stack = stacks
        .into_iter()
        .max_by_key(|stack| hash(request.session_key, &stack.address.to_string()))?;
    debug_assert!(
        !request.tried.contains(candidate.region),
        "a tried region is never picked again"
    );
    Some(Decision {
        region: candidate.region.clone(),
        stack: stack.address,
        version: stack.version().into(),
        version_missed: (stack.version() != split.version).then(|| split.version.into()),
        home: home.clone(),
        why: candidate.why,
        skipped,
        ejection_ignored,
        plan: table.number(),
    })
}

fn skip(region: &RegionId, because: Because) -> Skipped {
    Skipped {
        region: region.clone(),
        because,
    }
}
