//! Chooses a region: first by the affinity token, then by the plan for the session's home, then among the backups of
//! the home, then any region that serves. Within the region it chooses the better of two stacks.
//!
//! The state of a region is the state of its best stack for the session: a region is skipped when every stack of it is
//! full, ejected or returning slowly. The choice never fails closed: while a region that may serve by the plan is
//! untried, one is picked, whatever its state. Working regions come first: ejected ones are tried last, even in a
//! panic, when so much is ejected that the fault is probably at this edge.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use sha2::{Digest, Sha256};
use topology::{Moment, RegionId, RegionState, Share};

mod decision;

pub use self::decision::{Decision, EjectionIgnored, Rule, SkipReason, Skipped, SkippedStack, StackWhy};
use crate::{Policy, Stack, Stacks, Table, User, table::Entry};

/// Most stacks of one region tried for one session. A second stack tells a dead stack from a dead region.
const STACKS_TRIED_MAX: usize = 2;
/// A session that fled to a backup returns to the backup for this long, although the plan gives the backup no share of
/// its home. Within this time the fault that it fled from is over, or the control plane has changed the plan. With a
/// longer time, a backup would keep the sessions of a healthy home.
const FLED_FOR: Duration = Duration::from_secs(300);

/// The input of one choice: the session, the earlier attempts for it, and the measurements of this edge.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The key that places the session among the percentages of the plan. The same key always gets the same place.
    pub session_key: &'a str,
    /// The user of the session, who decides the version of the stack.
    pub user: User<'a>,
    /// The region that a valid affinity token names, if the device sent one.
    pub affinity: Option<&'a RegionId>,
    /// Whether the session is in that region now. If so it may stay, whatever the shares of its home are. If not, a
    /// device was there once.
    pub is_there: bool,
    /// Whether a stack of that region remembers the session. Then the session is fetched from there, although the region
    /// may be evacuated: its stack may work, and nobody else has the alarms of the device.
    pub remembers: bool,
    /// Issue time of the token. A token issued recently, under the plan in force, proves that an edge sent the session
    /// there although the plan has no share for it there. An older token only proves that the device was there once.
    pub affinity_at: Moment,
    /// The earlier attempts for this session.
    pub tried: &'a Tried,
    /// Smoothed round trips from this edge, in milliseconds.
    pub measured_rtt_ms: &'a BTreeMap<RegionId, f64>,
    /// The measurements of this edge for every stack.
    pub stacks: &'a Stacks,
    /// Regions that answered none of this edge's probes in the last tick.
    pub silent: &'a BTreeSet<RegionId>,
    /// The limits and percentages of this edge.
    pub policy: &'a Policy,
    /// The time of the choice.
    pub now: Moment,
}

/// The attempts that were made for one session.
#[derive(Debug, Clone)]
pub struct Tried {
    /// In order. An entry without a stack rules out the whole region.
    attempts: Vec<(RegionId, Option<SocketAddr>)>,
    /// Stacks that refused this session for good.
    refused_for_good: Vec<SocketAddr>,
    regions_max: usize,
}

impl Tried {
    /// No attempts yet, with a limit of `regions_max` regions.
    pub fn up_to(regions_max: usize) -> Self {
        Self {
            attempts: Vec::new(),
            refused_for_good: Vec::new(),
            regions_max,
        }
    }

    /// Records that a stack did not accept the session, or lost it.
    pub fn stack(&mut self, region: &RegionId, stack: SocketAddr) {
        self.attempts.push((region.clone(), Some(stack)));
    }

    /// Rules out every stack of a region.
    pub fn region(&mut self, region: &RegionId) {
        self.attempts.push((region.clone(), None));
    }

    /// Limits the last ruling-out of a region to this stack.
    pub fn only_stack(&mut self, region: &RegionId, stack: SocketAddr) {
        let mut given_up = self.attempts.iter_mut().rev();
        if let Some((_, tried)) = given_up.find(|(known, tried)| known == region && tried.is_none()) {
            *tried = Some(stack);
        }
    }

    /// Records that a stack refused the session for good. [`Tried::clear`] does not undo this.
    pub fn refused_for_good(&mut self, stack: SocketAddr) {
        self.refused_for_good.push(stack);
    }

    /// Allows every stack again, except those that refused the session for good.
    pub fn clear(&mut self) {
        self.attempts.clear();
    }

    /// The regions with an attempt, in order, each once.
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
        if self.refused_for_good.contains(&stack) {
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

/// Picks a region and a stack in it. `None` when every region that may serve has been tried.
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
        if offers.last().is_some_and(|offer| offer.standing == StackState::Ready) {
            break;
        }
    }
    // The first region that is ready. Otherwise the first that works, even if it is returning or full. Otherwise the
    // first that is silent or ejected: an attempt that will probably fail is better than a certain refusal.
    let (index, chosen) = offers
        .iter()
        .enumerate()
        .filter(|(_, offer)| offer.standing != StackState::Tried)
        .min_by_key(|(_, offer)| offer.standing)?;
    let passed_over = offers[..index].iter();
    skipped.extend(passed_over.filter_map(|offer| Some(skip(offer.candidate.region, offer.standing.because()?))));
    decide(table, request, home, chosen, skipped)
}

/// Whether so many of the regions in use are ejected that the fault is probably at this edge. A single region is no
/// panic, even if it is the only one in use: its backups are there for this case.
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
    why: Rule,
}

/// The state of a stack, and so of a region, for a session. Better states come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum StackState {
    Ready,
    Returning,
    Full,
    Silent,
    Ejected,
    Tried,
}

impl StackState {
    fn because(self) -> Option<SkipReason> {
        match self {
            Self::Ready => None,
            Self::Returning => Some(SkipReason::Returning),
            Self::Full => Some(SkipReason::Full),
            Self::Silent => Some(SkipReason::Silent),
            Self::Ejected => Some(SkipReason::Ejected),
            Self::Tried => Some(SkipReason::Tried),
        }
    }
}

/// The state of a region for a session, which is that of its best stack.
struct Offer<'t> {
    candidate: Candidate<'t>,
    standing: StackState,
    stacks: Vec<(SocketAddr, StackState)>,
    /// The version that the user of the session belongs to.
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
    // When all stacks are ejected, the region as a whole has failed, and this is no panic within the region.
    let panics = panics || (ejected < stacks.len() && is_too_many(ejected, stacks.len(), request.policy));
    // In a restore the plan itself sets the steps, so there is no slow start on top of them.
    let is_stepped = matches!(entry.state, RegionState::Restoring(_));
    let standing = |stack: SocketAddr| {
        if request.tried.is_tried(region, stack) {
            return StackState::Tried;
        }
        let is_silent = request.silent.contains(region);
        let Some(known) = request.stacks.get(stack) else {
            return if is_silent {
                StackState::Silent
            } else {
                StackState::Ready
            };
        };
        if known.is_ejected(request.now) {
            StackState::Ejected
        } else if is_silent {
            StackState::Silent
        } else if known.is_full(request.now, request.policy) {
            StackState::Full
        } else if is_stepped {
            StackState::Ready
        } else {
            let returned = known.returned(request.now, request.policy);
            if returned >= 1.0 || place_in_return(request.session_key, region) < returned {
                StackState::Ready
            } else {
                StackState::Returning
            }
        }
    };
    let standings = |stacks: &[&topology::Stack]| -> Vec<_> {
        let addresses = stacks.iter().map(|stack| stack.address);
        addresses.map(|stack| (stack, standing(stack))).collect()
    };
    let split = table.stacks_for(entry, &request.user);
    let mut stacks = standings(&split.of_version);
    let works = |(_, standing): &(SocketAddr, StackState)| *standing < StackState::Ejected;
    if !stacks.iter().any(works) {
        // Another version in this region is better than a refusal, and better than the right version far away.
        stacks.extend(standings(&split.others));
    }
    Offer {
        standing: stacks
            .iter()
            .map(|(_, standing)| *standing)
            .min()
            .unwrap_or(StackState::Tried),
        candidate,
        stacks,
        version: split.version,
        panics,
    }
}

/// The session's place among those that return to a region, 0 to 1. It is the same for all stacks of the region. With a
/// draw per stack, a region of many stacks would get most of its sessions back at once.
fn place_in_return(session_key: &str, region: &RegionId) -> f64 {
    uniform(hash(session_key, &format!("{region} returns")))
}

/// Every region that may serve the session, best first, each once; and the regions that a rule skipped.
fn candidates<'t>(table: &'t Table, request: &Request<'t>) -> Option<(&'t RegionId, Vec<Candidate<'t>>, Vec<Skipped>)> {
    let (home, plan) = table.nearest_home(request.measured_rtt_ms)?;
    let mut candidates: Vec<Candidate<'t>> = Vec::new();
    let mut skipped = Vec::new();
    // An edge recently sent the session there under this plan, because the home had failed it. The home may fail again.
    let failed_over_to = |region: &RegionId| {
        let is_recent = request.now.since(request.affinity_at) <= FLED_FOR;
        plan.backups.contains(region) && request.affinity_at >= table.created_at() && is_recent
    };
    let mut consider = |region: &'t RegionId, why: Rule| {
        if candidates.iter().any(|candidate| candidate.region == region) {
            return;
        }
        let because = match table.entry(region) {
            None => SkipReason::Unknown,
            Some(entry) if entry.state == RegionState::Evacuated && !(why == Rule::Affinity && request.remembers) => {
                SkipReason::Evacuated
            }
            // A region that the plan no longer uses must lose its old sessions too; otherwise a drain by percentages
            // would never end.
            Some(entry) if why == Rule::Affinity && !entry.planned && request.affinity_at < table.created_at() => {
                SkipReason::NoShare
            }
            // A token is void once the shares no longer include its region. If a region has no share of this home, then
            // the device was travelling when it got the token, or an edge mistook its own delay for distance.
            Some(_)
                if why == Rule::Affinity && !request.is_there && !plan.has_share(region) && !failed_over_to(region) =>
            {
                SkipReason::NoShare
            }
            Some(entry) => return candidates.push(Candidate { region, entry, why }),
        };
        // A distant region that serves nobody explains nothing, so the decision does not list it.
        if why != Rule::AnyServing && !skipped.iter().any(|known: &Skipped| &known.region == region) {
            skipped.push(skip(region, because));
        }
    };

    if let Some(region) = request.affinity {
        consider(region, Rule::Affinity);
    }
    if let Some(share) = share_of(&plan.shares, request.session_key) {
        consider(&share.region, Rule::Share(share.percent));
    }
    for share in plan.shares.iter().filter(|share| share.percent > 0) {
        consider(&share.region, Rule::Overflow);
    }
    for backup in &plan.backups {
        consider(backup, Rule::Backup);
    }
    for region in table.by_nearness(request.measured_rtt_ms) {
        consider(region, Rule::AnyServing);
    }
    Some((home, candidates, skipped))
}

/// The share that a session falls into, by weighted rendezvous hashing: each region draws a waiting time from the
/// session's key, exponentially distributed with its percentage as the rate, and the shortest wait wins. Because a
/// region's draw does not depend on the other regions, a change of percentages moves sessions only from regions that
/// shrank to regions that grew.
fn share_of<'t>(shares: &'t [Share], session_key: &str) -> Option<&'t Share> {
    shares
        .iter()
        .filter(|share| share.percent > 0)
        .min_by(|a, b| wait(a, session_key).total_cmp(&wait(b, session_key)))
}

fn wait(share: &Share, session_key: &str) -> f64 {
    -uniform(hash(session_key, share.region.as_str())).ln() / f64::from(share.percent)
}

/// The draw as a number strictly between 0 and 1, where the logarithm is finite. 53 bits fill a double, and adding a
/// half keeps the number off both ends.
fn uniform(draw: u64) -> f64 {
    ((draw >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// A hash that is equal on all builds, machines and versions, because all edges must agree on the place of a session.
/// The zero byte keeps ("ab", "c") and ("a", "bc") apart.
pub(crate) fn hash(session_key: &str, salt: &str) -> u64 {
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
            StackState::Ejected if offer.panics => Some(EjectionIgnored::Panic),
            StackState::Ejected => Some(EjectionIgnored::NothingElse),
            _ => None,
        },
        plan: table.number(),
    })
}

/// The power of two choices: a session draws two stacks and takes the one with the lower cost. Taking the cheapest of
/// all would send the sessions of every edge to the same stack until its next report.
fn better_of_two(mut stacks: Vec<SocketAddr>, entry: &Entry, request: &Request<'_>) -> Option<(SocketAddr, StackWhy)> {
    if stacks.len() > 1 {
        // Drawn by rendezvous hashing: a stack that comes or goes changes only the draws in which it takes part.
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

fn skip(region: &RegionId, because: SkipReason) -> Skipped {
    Skipped {
        region: region.clone(),
        because,
    }
}
