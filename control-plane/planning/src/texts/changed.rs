//! The changes of a plan, of an action or of the memory.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use topology::{EdgeId, Intent, Level, Moment, PlanNumber, RegionId, RegionState, Rule, Share};

use super::{join_and, part};

// Plans and documents.

pub(crate) fn first_plan() -> String {
    "this plan is the first: every primary serves its own sessions".to_owned()
}

/// No difference is known of documents that were changed by hand in the store, or by an older version.
pub(crate) fn documents_changed(differences: &[String]) -> String {
    match differences {
        [] => "the topology, the DNS TTL or the probe policy changed".to_owned(),
        differences => differences.join("; "),
    }
}

pub(crate) fn writer_gone(writer: &str, classes: &str) -> String {
    format!(
        "{writer}, which wrote {classes}, is gone from the topology: the region writes them itself again, without the data \
         that only {writer} had"
    )
}

pub(crate) fn plan_recovered(theirs: PlanNumber, ours: PlanNumber) -> String {
    format!(
        "nodes serve plan {theirs}, and the store knows only plan {ours}: it was lost, or restored from an old copy. Plan {theirs} is in \
         force again"
    )
}

pub(crate) fn drain_recovered(subject: &str, generation: u64, action: &str) -> String {
    format!(
        "{subject} stays drained: plan {generation} has it drained, and the store lost the order. \
         `meridian abort {action} --reason WHY` ends it"
    )
}

/// The reason of such a drain, in place of that of the order.
pub(crate) fn drain_recovered_because(generation: u64) -> String {
    format!("plan {generation} has it drained")
}

pub(crate) fn plan_taken_back(nodes_refuse: &str, generation: u64, until: Moment) -> String {
    format!(
        "{nodes_refuse}; the content of plan {generation} is in force again, and automation rests until {until}; \
         `meridian unfreeze --reason WHY` ends that"
    )
}

pub(crate) fn clock_went_back(by: Duration) -> String {
    format!(
        "the clock went back by {} s or more; steps that are under way count their time from now on",
        by.as_secs_f64()
    )
}

// Regions.

/// All sessions of a region leave, but for `left` percent that find no place yet.
pub(crate) fn region_left(why: &str, shares: &[Share], left: u8) -> String {
    let text = format!("{why}; its sessions go to {}", part::shares(shares));
    match left {
        0 => text,
        left => format!("{text}; {left} % find no place yet and stay"),
    }
}

/// The next part of a drain left, and `stay` percent of the sessions stay for now.
pub(crate) fn drain_step(why: &str, shares: &[Share], stay: u8) -> String {
    match stay {
        0 => region_left(why, shares, 0),
        stay => format!(
            "{why}; {stay} % of its sessions stay, the others go to {}",
            part::shares(shares)
        ),
    }
}

pub(crate) fn failed_while_drained(summary: &str) -> String {
    format!("it failed while it was drained: {summary}")
}

pub(crate) fn failed_while_returning(summary: &str) -> String {
    format!("it failed again while returning: {summary}")
}

pub(crate) fn drain_stopped(target: &RegionId, summary: &str) -> String {
    format!("the drain stopped, because {target} is down: {summary}; it serves all its sessions again")
}

/// The text of a drain or an evacuation that is over.
pub(crate) fn all_left() -> String {
    "all its sessions left".to_owned()
}

pub(crate) fn return_step(why: &str, percent: u8) -> String {
    format!("{why}; it takes {percent} % of its sessions")
}

pub(crate) fn returned(why: &str) -> String {
    format!("{why}; it serves all its sessions again")
}

/// A healthy home beats backups that cannot hold the rest.
pub(crate) fn returned_at_once(why: &str, has_fit_backup: bool) -> String {
    let because = if has_fit_backup {
        "its backups have no room for the others"
    } else {
        "none of its backups is fit to keep the others"
    };
    format!("{why}; it serves all its sessions again at once, because {because}")
}

/// Sessions at regions that take them no more, `gone` percent in all, find other places; `left` percent come home.
pub(crate) fn displaced(why: &str, gone: u8, shares: &[Share], left: u8) -> String {
    let mut text = format!("{why}: the {gone} % of its sessions that were there leave");
    if !shares.is_empty() {
        text += &format!("; those outside their home region go to {}", part::shares(shares));
    }
    if left > 0 {
        text += &format!("; {left} % find no place and come home");
    }
    text
}

/// Sessions at a backup that is down, or over its capacity, go to others; `left` percent find no place.
pub(crate) fn backup_left(problem: &str, shares: &[Share], left: u8) -> String {
    let text = format!("{problem}; its sessions go to {}", part::shares(shares));
    match left {
        0 => text,
        left => format!("{text}; {left} % find no place yet"),
    }
}

pub(crate) fn level(from: Level, to: Level, why: &str) -> String {
    format!("level {from} to {to}: {why}")
}

// Replicated data.

pub(crate) fn promoted(writer: &RegionId) -> String {
    format!("{writer} is the writer of its replicated data now")
}

pub(crate) fn promoted_already(writer: &RegionId) -> String {
    format!("{writer} is the writer of its replicated data already")
}

pub(crate) fn data_came_home() -> String {
    "it writes its replicated data itself again".to_owned()
}

// Edges and stacks.

pub(crate) fn edge_lost(evidence: &str) -> String {
    format!("{evidence}; DNS answers leave it out until it works again. Its sessions stay on it")
}

pub(crate) fn edge_returned(evidence: &str) -> String {
    format!("{evidence}, and DNS names it again")
}

pub(crate) fn new_edge_works(edge: &EdgeId) -> String {
    format!("{edge}, which is new, follows plans and reports, and DNS names it from now on")
}

pub(crate) fn new_edge_is_the_only_one(edge: &EdgeId) -> String {
    format!("{edge} is new, and DNS names it although no vantage saw it work: no other edge is left")
}

pub(crate) fn edge_drained(order: &Intent, edge: &EdgeId) -> String {
    format!(
        "drain by {}: {}; {}",
        order.author,
        order.reason,
        edge_stays_out(edge, order.expires_at)
    )
}

/// The text of the action that drains it.
pub(crate) fn edge_stays_out(edge: &EdgeId, until: Moment) -> String {
    format!("{edge} is left out of DNS answers until {until}")
}

pub(crate) fn edge_restored(edge: &EdgeId) -> String {
    format!("{edge} is named in DNS answers again")
}

pub(crate) fn stack_drained(order: &Intent, stack: SocketAddr) -> String {
    format!(
        "drain by {}: {}; {stack} gets no sessions until {}",
        order.author, order.reason, order.expires_at
    )
}

/// The text of the action that drains it.
pub(crate) fn stack_stays_out(stack: SocketAddr, until: Moment) -> String {
    format!("{stack} gets no new sessions until {until}")
}

pub(crate) fn stack_restored(stack: SocketAddr) -> String {
    format!("{stack} gets sessions again")
}

// Rollouts.

pub(crate) fn rollout_begins(why: &str, version: &str, percent: u8) -> String {
    format!("{why}; {version} goes to {percent} % of users")
}

pub(crate) fn rollout_step(version: &str, from: u8, to: u8) -> String {
    format!("{version} goes from {from} to {to} % of users")
}

pub(crate) fn rolled_back(version: &str, percent: u8, why: &str) -> String {
    format!("{version} is rolled back from {percent} %: {why}")
}

pub(crate) fn rollout_aborted(why: &str, version: &str) -> String {
    format!("{why}; {version} is rolled back")
}

pub(crate) fn rollout_revived(version: &str, percent: u8) -> String {
    format!("{version} continues at {percent} %, the share in the plan of the nodes")
}

pub(crate) fn all_on_version_already(version: &str) -> String {
    format!("all users are on {version} already")
}

// Orders.

/// The order itself, before its effect: "failover by alice: power".
pub(crate) fn order(what: &str, author: &str, reason: &str) -> String {
    format!("{what} by {author}: {reason}")
}

pub(crate) fn order_done(order: &Intent, plan: u64, took: &str) -> String {
    format!("{} is done: most edges apply plan {plan}, {took}", name_of(order))
}

pub(crate) fn order_ended(order: &Intent, why: &str) -> String {
    format!("{} ended: {why}", name_of(order))
}

pub(crate) fn order_expired(order: &Intent) -> String {
    format!("{} ended, because its time is over", name_of(order))
}

fn name_of(order: &Intent) -> String {
    format!(
        "{} of {} by {}",
        order.kind.as_str(),
        order.kind.subject(),
        order.author
    )
}

pub(crate) fn ordered_anew(author: &str) -> String {
    format!("{author} ordered it anew")
}

pub(crate) fn overtaken(why: &str) -> String {
    format!("a newer order took its place: {why}")
}

pub(crate) fn ended_by(why: &str) -> String {
    format!("a newer order ended it: {why}")
}

pub(crate) fn ended_by_return() -> String {
    "the region returns".to_owned()
}

pub(crate) fn return_goes_on(why: &str) -> String {
    format!("{why}; its return continues")
}

/// An order that asks for the state in force: it "is evacuated already", "serves all its sessions already".
pub(crate) fn already(region: &RegionId, state: RegionState) -> String {
    match state {
        RegionState::Serving => format!("{region} serves all its sessions already"),
        RegionState::Restoring(_) => format!("{region} is returning already"),
        RegionState::Evacuated => format!("{region} is evacuated already"),
        RegionState::Draining(_) => format!("{region} is being emptied already"),
    }
}

pub(crate) fn frozen(why: &str, until: Moment) -> String {
    format!("{why}; no automatic change until {until}")
}

pub(crate) fn unfrozen(why: &str) -> String {
    format!("{why}; automation is on again")
}

pub(crate) fn nothing_is_frozen() -> String {
    "nothing is frozen".to_owned()
}

pub(crate) fn rule_off(why: &str, rule: Rule, until: Moment) -> String {
    format!("{why}; the rule {rule} is OFF until {until}, and ON again from then")
}

pub(crate) fn penalty_lifted(why: &str, penalty: u32) -> String {
    format!("{why}; its penalty of {penalty} is lifted")
}

pub(crate) fn no_penalty(region: &RegionId) -> String {
    format!("{region} carries no penalty")
}

// The reasons why an action ended by other events.

pub(crate) fn rollout_is_gone(version: &str) -> String {
    format!("{version} is not rolled out any more")
}

pub(crate) fn all_on_version(version: &str) -> String {
    format!("all users are on {version}")
}

pub(crate) fn edge_is_gone(edge: &EdgeId) -> String {
    format!("there is no edge {edge} any more")
}

pub(crate) fn stack_is_gone(stack: SocketAddr) -> String {
    format!("there is no stack {stack} any more")
}

pub(crate) fn is_no_primary(region: &RegionId, is_there: bool) -> String {
    if is_there {
        format!("{region} is a backup now")
    } else {
        format!("{region} is gone from the topology")
    }
}

pub(crate) fn region_is(region: &RegionId, state: RegionState) -> String {
    format!("{region} is {state}")
}

pub(crate) fn region_is_now(region: &RegionId, state: RegionState) -> String {
    format!("{region} is {state} now")
}

pub(crate) fn regions_are_gone(regions: &BTreeSet<RegionId>) -> String {
    format!("{} is gone from the topology", join_and(regions))
}
