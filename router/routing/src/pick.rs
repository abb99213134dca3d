//! Choosing a region: affinity, then the plan for the home, then its backups, then whatever serves. And of its stacks the
//! better of two.
//!
//! A region is what its stacks are to the session: it is passed over when each of them is full, ejected or just returning.
//! It never fails closed: while any region that the plan lets serve is untried, one is picked, whatever it is. And it prefers the
//! living: what is ejected is asked last, also when so much is ejected that it is more likely this edge that is ill.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use serde::Serialize;
use sha2::{Digest, Sha256};
use topology::{Moment, PlanNumber, RegionId, RegionState, Share, words::Load};

use crate::{Policy, Stack, Stacks, Table, User, table::Entry};

/// Stacks of one region tried for one session: the second tells a dead stack from a dead region.
const STACKS_TRIED_MAX: usize = 2;
/// A session that fled to a backup returns to it for so long, although the plan has no share for its home there. What it fled
/// from is over by then, or the control plane has changed the plan; longer, and a backup keeps the sessions of a healthy home.
const FLED_FOR: Duration = Duration::from_secs(300);

/// One question: where does this session go, given what was tried for it and what the edge has seen.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What keeps the session's place among percentages; the same key, the same place.
    pub session_key: &'a str,
    /// Whose it is: what says which version of the stack it goes to.
    pub user: User<'a>,
    /// Where a valid affinity token says the session was.
    pub affinity: Option<&'a RegionId>,
    /// Whether that is where the session is now, and not where a device was once: then it may stay, whatever the shares of the
    /// home are.
    pub is_there: bool,
    /// When that was. A token that was issued a moment ago under the plan in force says where an edge put the session although
    /// the plan has no share for it there; an older one says where it was once.
    pub affinity_at: Moment,
    /// What was tried for it already.
    pub tried: &'a Tried,
    /// Smoothed round trips from this edge, in milliseconds.
    pub measured_rtt_ms: &'a BTreeMap<RegionId, f64>,
    /// What this edge knows of the stacks.
    pub stacks: &'a Stacks,
    /// Regions that answered none of this edge's own probes in the last tick.
    pub silent: &'a BTreeSet<RegionId>,
    /// The numbers to choose by.
    pub policy: &'a Policy,
    /// When.
    pub now: Moment,
}

/// What was tried for one session.
#[derive(Debug, Clone)]
pub struct Tried {
    /// In order. Without a stack the region is not worth another one.
    attempts: Vec<(RegionId, Option<SocketAddr>)>,
    /// Stacks that do not take this session, today or tomorrow.
    never: Vec<SocketAddr>,
    regions_max: usize,
}

impl Tried {
    /// Nothing yet, and no more than so many regions.
    pub fn up_to(regions_max: usize) -> Self {
        Self {
            attempts: Vec::new(),
            never: Vec::new(),
            regions_max,
        }
    }

    /// A stack did not take the session, or lost it.
    pub fn stack(&mut self, region: &RegionId, stack: SocketAddr) {
        self.attempts.push((region.clone(), Some(stack)));
    }

    /// No stack of a region is asked any more.
    pub fn region(&mut self, region: &RegionId) {
        self.attempts.push((region.clone(), None));
    }

    /// Of a region that was given up only this stack is meant.
    pub fn only_stack(&mut self, region: &RegionId, stack: SocketAddr) {
        let mut given_up = self.attempts.iter_mut().rev();
        if let Some((_, tried)) = given_up.find(|(known, tried)| known == region && tried.is_none()) {
            *tried = Some(stack);
        }
    }

    /// A stack declined the session for good: it is not asked again, however often everything else is.
    pub fn never(&mut self, stack: SocketAddr) {
        self.never.push(stack);
    }

    /// Everything may be tried again, but for what declined.
    pub fn clear(&mut self) {
        self.attempts.clear();
    }

    /// The regions in which something was tried, in order.
    pub fn regions(&self) -> Vec<&RegionId> {
        let mut regions = Vec::new();
        for (region, _) in &self.attempts {
            if !regions.contains(&region) {
                regions.push(region);
            }
        }
        regions
    }

    fn is_tried(&self, region: &RegionId, stack: SocketAddr) -> bool {
        if self.never.contains(&stack) {
            return true;
        }
        let here = || self.attempts.iter().filter(|(known, _)| known == region);
        here().count() >= STACKS_TRIED_MAX || here().any(|(_, tried)| tried.is_none_or(|tried| tried == stack))
    }
}

impl Default for Tried {
    fn default() -> Self {
        Self::up_to(usize::MAX)
    }
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
    /// Why this one of its stacks.
    pub stack_why: StackWhy,
    /// What the stack last said of its load, unless that is too old.
    pub load: Option<Load>,
    /// Regions that came first and were passed over.
    pub skipped: Vec<Skipped>,
    /// Stacks of the region that were passed over.
    pub stacks_skipped: Vec<SkippedStack>,
    /// Set when ejection was not honoured.
    pub ejection_ignored: Option<Ignored>,
    /// The plan it was decided by.
    pub plan: PlanNumber,
}

/// Why ejection is not honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ignored {
    /// Everything left was ejected, and so much is in all that it is more likely this edge that is ill.
    Panic,
    /// Everything left was ejected.
    NothingElse,
}

impl Ignored {
    /// The reason's name, as in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::NothingElse => "nothing-else",
        }
    }
}

/// Why one of a region's stacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StackWhy {
    /// No other of the region could take the session.
    Only,
    /// Of the two that the session draws it cost less: round trip, times what this edge has there, times what waits there,
    /// in microseconds.
    BetterOfTwo {
        /// What it cost.
        cost: u64,
        /// The other one.
        other: SocketAddr,
        /// What that cost.
        other_cost: u64,
    },
}

impl std::fmt::Display for StackWhy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Only => f.write_str("only"),
            Self::BetterOfTwo {
                cost,
                other,
                other_cost,
            } => write!(f, "cost {cost}, {other} {other_cost}"),
        }
    }
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
    /// It answered none of this edge's probes lately.
    Silent,
    /// It said that it is full.
    Full,
    /// It was ejected and gets its sessions back little by little; this one is not among them yet.
    Returning,
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
            Self::Silent => "silent",
            Self::Full => "full",
            Self::Returning => "returning",
            Self::Evacuated => "evacuated",
            Self::NoShare => "no-share",
            Self::Unknown => "unknown",
        }
    }
}

/// A stack that was passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedStack {
    /// Which.
    pub stack: SocketAddr,
    /// Why it did not get the session.
    pub because: Because,
}

impl std::fmt::Display for SkippedStack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.stack, self.because.as_str())
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
    let panics = panics(table, request);
    let may_begin = request.tried.regions().len() < request.tried.regions_max;
    let begun = candidates
        .into_iter()
        .filter(|candidate| may_begin || request.tried.regions().contains(&candidate.region));
    let mut offers: Vec<Offer<'_>> = Vec::new();
    for candidate in begun {
        offers.push(offer(table, candidate, request, panics));
        if offers.last().is_some_and(|offer| offer.standing == Standing::Ready) {
            break;
        }
    }
    // The first that is ready. Else the first that works, if slowly or full; else the first that is silent or ejected: a
    // session refused for certain is worse than one that probably fails.
    let (index, chosen) = offers
        .iter()
        .enumerate()
        .filter(|(_, offer)| offer.standing != Standing::Tried)
        .min_by_key(|(_, offer)| offer.standing)?;
    let passed_over = offers[..index].iter();
    skipped.extend(passed_over.filter_map(|offer| Some(skip(offer.candidate.region, offer.standing.because()?))));
    decide(table, request, home, chosen, skipped)
}

/// Whether so many of the regions in use are ejected that it is more likely this edge that is ill. One alone is no panic,
/// be it all there is: its backups are what they are for.
pub fn panics(table: &Table, request: &Request<'_>) -> bool {
    let used = table.used();
    let is_out = |entry: &&Entry| {
        let mut stacks = entry.stacks.iter();
        stacks.all(|stack| request.stacks.is_ejected(stack.address, request.now))
    };
    let (count, out) = (used.clone().count(), used.filter(is_out).count());
    out > 1 && is_too_many(out, count, request.policy)
}

fn is_too_many(ejected: usize, of: usize, policy: &Policy) -> bool {
    ejected * 100 > of * usize::from(policy.panic_percent)
}

struct Candidate<'t> {
    region: &'t RegionId,
    entry: &'t Entry,
    why: Why,
}

/// How a stack, and with it a region, stands to a session: the better first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Ready,
    Returning,
    Full,
    Silent,
    Ejected,
    Tried,
}

impl Standing {
    fn because(self) -> Option<Because> {
        match self {
            Self::Ready => None,
            Self::Returning => Some(Because::Returning),
            Self::Full => Some(Because::Full),
            Self::Silent => Some(Because::Silent),
            Self::Ejected => Some(Because::Ejected),
            Self::Tried => Some(Because::Tried),
        }
    }
}

/// What a region has for a session: as good as the best of its stacks.
struct Offer<'t> {
    candidate: Candidate<'t>,
    standing: Standing,
    stacks: Vec<(SocketAddr, Standing)>,
    /// The version that the session's user belongs on.
    version: &'t str,
    panics: bool,
}

fn offer<'t>(table: &'t Table, candidate: Candidate<'t>, request: &Request<'_>, panics: bool) -> Offer<'t> {
    let (region, entry) = (candidate.region, candidate.entry);
    let stacks = &entry.stacks;
    let ejected = stacks
        .iter()
        .filter(|stack| request.stacks.is_ejected(stack.address, request.now))
        .count();
    // When all are, the region is out, and that is no matter of its stacks.
    let panics = panics || (ejected < stacks.len() && is_too_many(ejected, stacks.len(), request.policy));
    // The plan steps a restore itself.
    let is_stepped = matches!(entry.state, RegionState::Restoring(_));
    let standing = |stack: SocketAddr| {
        if request.tried.is_tried(region, stack) {
            return Standing::Tried;
        }
        let is_silent = request.silent.contains(region);
        let Some(known) = request.stacks.get(stack) else {
            return if is_silent { Standing::Silent } else { Standing::Ready };
        };
        if known.record().is_ejected(request.now) {
            Standing::Ejected
        } else if is_silent {
            Standing::Silent
        } else if known.is_full(request.now, request.policy) {
            Standing::Full
        } else if is_stepped {
            Standing::Ready
        } else {
            let returned = known.record().returned(request.now, request.policy);
            if returned >= 1.0 || place_in_return(request.session_key, region) < returned {
                Standing::Ready
            } else {
                Standing::Returning
            }
        }
    };
    let standings = |stacks: &[&topology::Stack]| -> Vec<_> {
        let addresses = stacks.iter().map(|stack| stack.address);
        addresses.map(|stack| (stack, standing(stack))).collect()
    };
    let split = table.stacks_for(entry, &request.user);
    let mut stacks = standings(&split.of_version);
    let works = |(_, standing): &(SocketAddr, Standing)| *standing < Standing::Ejected;
    if !stacks.iter().any(works) {
        // Another version in the region at hand is better than none, or the same far away.
        stacks.extend(standings(&split.others));
    }
    Offer {
        standing: stacks
            .iter()
            .map(|(_, standing)| *standing)
            .min()
            .unwrap_or(Standing::Tried),
        candidate,
        stacks,
        version: split.version,
        panics,
    }
}

/// A session's place among those that return to a region, 0 to 1: the same for all its stacks, or a region of many would
/// get back most of its sessions at once.
fn place_in_return(session_key: &str, region: &RegionId) -> f64 {
    uniform(hash(session_key, &format!("{region} returns")))
}

/// Every region that may serve the session, best first, each once; and what the rules ruled out by name.
fn candidates<'t>(table: &'t Table, request: &Request<'t>) -> Option<(&'t RegionId, Vec<Candidate<'t>>, Vec<Skipped>)> {
    let (home, plan) = table.nearest_home(request.measured_rtt_ms)?;
    let mut candidates: Vec<Candidate<'t>> = Vec::new();
    let mut skipped = Vec::new();
    // An edge sent the session there under this plan, a moment ago, because the home had failed it and may again.
    let fled_to = |region: &RegionId| {
        let is_recent = request.now.since(request.affinity_at) <= FLED_FOR;
        plan.backups.contains(region) && request.affinity_at >= table.created_at() && is_recent
    };
    let mut consider = |region: &'t RegionId, why: Why| {
        if candidates.iter().any(|candidate| candidate.region == region) {
            return;
        }
        let because = match table.entry(region) {
            None => Because::Unknown,
            Some(entry) if entry.state == RegionState::Evacuated => Because::Evacuated,
            // A region the plan no longer uses loses its old sessions too, or draining it by percentages never ends.
            Some(entry) if why == Why::Affinity && !entry.planned && request.affinity_at < table.created_at() => {
                Because::NoShare
            }
            // Nor does a token outlive the shares that gave it: a region that takes nobody from this home is where a device was
            // on its travels, or where an edge sent it that took its own haste for a distance.
            Some(_) if why == Why::Affinity && !request.is_there && !plan.has_share(region) && !fled_to(region) => {
                Because::NoShare
            }
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
    -uniform(hash(session_key, share.region.as_str())).ln() / f64::from(share.percent)
}

/// A draw as a number strictly between 0 and 1, where the logarithm is finite: 53 bits fill a double, and the half keeps it
/// off the ends.
fn uniform(draw: u64) -> f64 {
    ((draw >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
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
    offer: &Offer<'_>,
    skipped: Vec<Skipped>,
) -> Option<Decision> {
    let Candidate { region, entry, why } = offer.candidate;
    let as_good = offer.stacks.iter().filter(|(_, standing)| *standing == offer.standing);
    let (stack, stack_why) = better_of_two(as_good.map(|(stack, _)| *stack).collect(), entry, request)?;
    let passed_over = offer.stacks.iter().filter(|(_, standing)| *standing != offer.standing);
    debug_assert!(
        !request.tried.is_tried(region, stack),
        "a tried stack is never picked again"
    );
    let served = entry.stacks.iter().find(|it| it.address == stack)?.version();
    Some(Decision {
        region: region.clone(),
        stack,
        version: served.into(),
        version_missed: (served != offer.version).then(|| offer.version.into()),
        home: home.clone(),
        why,
        stack_why,
        load: request
            .stacks
            .get(stack)
            .and_then(|stack| stack.load(request.now, request.policy)),
        skipped,
        stacks_skipped: passed_over
            .filter_map(|(stack, standing)| {
                let (stack, because) = (*stack, standing.because()?);
                Some(SkippedStack { stack, because })
            })
            .collect(),
        ejection_ignored: match offer.standing {
            Standing::Ejected if offer.panics => Some(Ignored::Panic),
            Standing::Ejected => Some(Ignored::NothingElse),
            _ => None,
        },
        plan: table.number(),
    })
}

/// The power of two choices: a session draws two stacks and takes the one that costs less. Asking all for the least would
/// send every session of every edge to the same one until the next report.
fn better_of_two(mut stacks: Vec<SocketAddr>, entry: &Entry, request: &Request<'_>) -> Option<(SocketAddr, StackWhy)> {
    if stacks.len() > 1 {
        // By rendezvous: a stack that comes or goes changes only the draws that it is part of.
        stacks.sort_by_cached_key(|stack| Reverse(hash(request.session_key, &stack.to_string())));
    }
    let cost = |stack: SocketAddr| {
        let nothing = Stack::default();
        let known = request.stacks.get(stack).unwrap_or(&nothing);
        known.cost(entry.floor_rtt_ms, request.now, request.policy)
    };
    match stacks[..] {
        [first, second, ..] => {
            let (first_cost, second_cost) = (cost(first), cost(second));
            let ((stack, cost), (other, other_cost)) = if second_cost < first_cost {
                ((second, second_cost), (first, first_cost))
            } else {
                ((first, first_cost), (second, second_cost))
            };
            let why = StackWhy::BetterOfTwo {
                cost,
                other,
                other_cost,
            };
            Some((stack, why))
        }
        [only] => Some((only, StackWhy::Only)),
        [] => None,
    }
}

fn skip(region: &RegionId, because: Because) -> Skipped {
    Skipped {
        region: region.clone(),
        because,
    }
}
