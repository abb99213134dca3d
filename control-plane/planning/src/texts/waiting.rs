//! The changes that wait for time, for evidence or for a person.

use std::net::SocketAddr;

use topology::{EdgeId, Intent, Moment, RegionId, Rollout};
use verdict::Health;

use super::join;

// Regions.

pub(crate) fn trigger_not_reached(region: &RegionId, summary: &str) -> String {
    format!("automation does not move it: {summary}; `meridian failover {region} --reason WHY` moves it all the same")
}

pub(crate) fn trigger_pending(summary: &str) -> String {
    format!("{summary}; nothing to type")
}

pub(crate) fn not_seen(summary: &str) -> String {
    format!("{summary}; `meridian status` shows when each vantage was heard last")
}

pub(crate) fn restore_ready(region: &RegionId) -> String {
    format!("it is healthy; `meridian restore {region} --reason WHY` brings it back in steps")
}

pub(crate) fn restore_ready_while_leaving(region: &RegionId, percent: u8) -> String {
    format!(
        "it is healthy again with {percent} % of its sessions left; `meridian restore {region} --reason WHY` brings the \
         others back"
    )
}

pub(crate) fn restore_after_degraded(region: &RegionId, percent: u8, summary: &str) -> String {
    format!(
        "it is degraded with {percent} % of its sessions left: {summary}; once it is healthy, `meridian restore {region} \
         --reason WHY` brings the others back"
    )
}

/// A step of a drain or of a return waits for its time.
pub(crate) fn step_held_until(percent: u8, until: Moment) -> String {
    format!("it waits at {percent} % until {until}; the next step follows by itself")
}

pub(crate) fn return_held_by_health(percent: u8, health: Health, summary: &str) -> String {
    format!(
        "it waits at {percent} %, because it is {health}: {summary}; once it is healthy, the next step follows by itself"
    )
}

pub(crate) fn return_held_by_connections(percent: u8) -> String {
    format!("it waits at {percent} % while it accepts the connections of this step; the next step follows by itself")
}

pub(crate) fn drain_held_by_target(percent: u8, target: &RegionId, health: Health, summary: &str) -> String {
    format!(
        "it waits at {percent} %, because {target} is {health}: {summary}; once {target} works, the next step follows by itself"
    )
}

pub(crate) fn sessions_wait_their_turn(percent: u8) -> String {
    format!("{percent} % of its sessions are still here, and the next steps move them by themselves")
}

pub(crate) fn sessions_find_no_place(percent: u8) -> String {
    format!(
        "{percent} % of its sessions find no place in its backups and stay; they go by themselves once there is room"
    )
}

pub(crate) fn sessions_stay_while(percent: u8, health: Health, summary: &str) -> String {
    format!("{percent} % of its sessions stay while it is {health}: {summary}; nothing to type")
}

/// `no_place` is the refusal of a place.
pub(crate) fn sessions_stay_because(percent: u8, no_place: &str) -> String {
    format!("{percent} % of its sessions stay: {no_place}")
}

// Replicated data.

pub(crate) fn data_keep_their_writer(classes: &[&str], region: &RegionId) -> String {
    format!(
        "{} keep {region} as their writer; `meridian failover {region} --promote --reason WHY` moves it",
        classes.join(", ")
    )
}

/// `help` is one of the phrases [`part::restore_brings_data_home`], [`part::return_brings_data_home`] and
/// [`part::failover_moves_writer`].
pub(crate) fn data_are_written_by(classes: &str, writers: &str, help: &str, would_lose: bool) -> String {
    let but = if would_lose {
        ", with `--accept-loss` or once its copy has caught up"
    } else {
        ""
    };
    format!("{classes} are written by {writers}; {help}{but}")
}

// Edges and stacks.

pub(crate) fn new_edge_works(edge: &EdgeId, named_at: Moment) -> String {
    format!("{edge} is new and works; DNS names it at {named_at} by itself, if it goes on working")
}

pub(crate) fn new_edge_not_seen_to_work(edge: &EdgeId, seconds: u64) -> String {
    format!(
        "{edge} is new; DNS names it by itself after it has followed plans, sent reports and been reached for {seconds} s. \
         Start it, if it does not run"
    )
}

pub(crate) fn edge_returns(evidence: &str, named_at: Moment) -> String {
    format!("{evidence}, and DNS names it again at {named_at} by itself, if it goes on working")
}

/// `why` is the refusal of the gate, or one of [`all_edges_look_lost`] and its siblings.
pub(crate) fn lost_edge_stays(evidence: &str, why: &str) -> String {
    format!("{evidence}; DNS still names it: {why}")
}

pub(crate) fn all_edges_look_lost(count: usize) -> String {
    format!(
        "all {count} edges look lost. Our own view may be broken: look at the network between the edges, and between them \
         and this control plane, with `meridian status`"
    )
}

pub(crate) fn too_many_edges_look_lost(lost: usize, count: usize, most: usize) -> String {
    format!(
        "{lost} of {count} edges look lost, and at most {most} may be left out of DNS answers for that. Look at the network \
         between the edges, and between them and this control plane, with `meridian status`"
    )
}

pub(crate) fn no_other_edge_left() -> String {
    "no other edge would be left in DNS answers; bring another one back first: `meridian status` lists them".to_owned()
}

/// A stack that answers and fails its callers: `what` and `callers` are from [`part::trouble`], `of` is the number of
/// stacks of its region; `more` failing stacks of the region are not named one by one.
pub(crate) fn stack_fails(
    (stack, of): (SocketAddr, usize),
    (what, callers): (&str, &str),
    (region, region_fails): (&RegionId, bool),
    more: usize,
) -> String {
    let help = if region_fails {
        format!(
            "too few of the other stacks work to take them, and automation does not leave {region} for that; `meridian \
             failover {region} --reason WHY` does"
        )
    } else {
        format!("`meridian drain --stack {stack} --for 2h --reason WHY` moves them to the others")
    };
    let others = match more {
        0 => String::new(),
        more => format!("; {more} more stacks of {region} fail too"),
    };
    format!(
        "stack {stack} (one of {of}) answers but {what}: callers whose sessions are there {callers}; {help}{others}"
    )
}

/// The same of a region with one stack, or seen by vantages that do not tell stacks apart.
pub(crate) fn region_fails(region: &RegionId, (what, callers): (&str, &str)) -> String {
    format!(
        "{region} answers but {what}: its callers {callers}, and automation does not leave it for that; `meridian failover \
         {region} --reason WHY` does"
    )
}

// Rollouts.

pub(crate) fn rollout_held_until(rollout: &Rollout, until: Moment) -> String {
    format!(
        "{} waits at {} % until {until:#}; the next step follows by itself",
        rollout.version, rollout.percent
    )
}

pub(crate) fn rollout_held_for_sessions(rollout: &Rollout, seen: u32, needed: u32) -> String {
    format!(
        "{} waits: {seen} sessions were seen, and {needed} are needed to judge it; the next step follows by itself",
        rollout.version
    )
}

// Plans that nodes refuse.

pub(crate) fn refused_by_few(nodes_refuse: &str, refusing: usize, all: usize) -> String {
    format!(
        "{nodes_refuse}. A node that refuses a plan keeps the last one that it applied. {refusing} of {all} edges refuse \
         this one, so it stays in force. Look at the nodes that refuse it: `meridian status` names them"
    )
}

pub(crate) fn refused_and_stays(nodes_refuse: &str, because: &str) -> String {
    format!(
        "{nodes_refuse}. The plan stays in force, because {because}. Look at the nodes that refuse it: `meridian \
         status` names them"
    )
}

// Orders that wait for a second person.

pub(crate) fn needs_approval<'b>(
    order: &Intent,
    because: impl IntoIterator<Item = &'b str>,
    shown: &str,
    moves: &str,
) -> String {
    format!(
        "{} by {} needs a second person, because {}: {}",
        order.kind.as_str(),
        order.author,
        join(because, "; and because "),
        approve(order, shown, moves)
    )
}

pub(crate) fn needs_approval_again(order: &Intent, changed: &[String], shown: &str, moves: &str) -> String {
    format!(
        "{} by {} waits again, because this changed since it was shown: {}; look at it and agree anew: {}",
        order.kind.as_str(),
        order.author,
        changed.join("; "),
        approve(order, shown, moves)
    )
}

fn approve(order: &Intent, shown: &str, moves: &str) -> String {
    let command = format!("`meridian approve {} --shown {shown} --reason WHY`", order.id);
    match moves {
        "" => command,
        moves => format!("{command} moves {moves}"),
    }
}
