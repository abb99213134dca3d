//! The changes that a rule, or a mistake in an order, keeps from being made.

use std::net::SocketAddr;

use topology::{EdgeId, Moment, RegionId, RegionState, Rollout, policy::DampingPolicy};
use verdict::Health;

use super::{join, join_and, part};
use crate::actions::{STANDING_MAX, TakenBack};

// Rules that stop automation, or every change.

pub(crate) fn automation_off() -> String {
    "the policy turns automation off; `meridian failover REGION --reason WHY` moves a region all the same".to_owned()
}

pub(crate) fn frozen(author: &str, reason: &str, until: Moment) -> String {
    format!("automation is frozen by {author} until {until}: {reason}; `meridian unfreeze --reason WHY` ends that")
}

pub(crate) fn automation_rests(rest: &TakenBack) -> String {
    format!(
        "automation rests until {}, because nodes refused plan {}: {}; `meridian unfreeze --reason WHY` ends it",
        rest.until, rest.generation, rest.why
    )
}

pub(crate) fn invalid_plan(problem: &str) -> String {
    format!(
        "the new plan is thrown away, because no node could apply it: {problem}. The plan in force stays. Please report \
         this with `meridian audit export FILE`"
    )
}

// Rules about a region.

pub(crate) fn everything_looks_dead() -> String {
    "no region looks healthy, so our own view may be broken and nothing moves; check the network of the vantages with \
     `meridian status`, or order a move with `meridian failover REGION --reason WHY`"
        .to_owned()
}

pub(crate) fn bad_together<'r>(regions: impl IntoIterator<Item = &'r RegionId>) -> String {
    format!(
        "{} turned bad together, so the evidence may be at fault and nothing moves; `meridian failover REGION --reason \
         WHY` moves one of them",
        join_and(regions)
    )
}

/// `others` are the sentences of [`part::bad_and_left`] and [`part::moves`].
pub(crate) fn evacuation_limit(region: &RegionId, others: &[String], limit: usize) -> String {
    match others {
        [] => {
            format!("the policy lets automation leave no region; `meridian failover {region} --reason WHY` asks for it")
        }
        others => format!(
            "{}; automation leaves a further region only while fewer than {limit} are bad or moving; `meridian failover \
             {region} --reason WHY` asks for it all the same",
            join_and(others)
        ),
    }
}

pub(crate) fn too_few_left(region: &RegionId, left: usize, min: usize) -> String {
    format!("{}; {}", part::regions_left(left, min), by_force_all_the_same(region))
}

fn by_force_all_the_same(region: &RegionId) -> String {
    format!("`meridian failover {region} --force --reason WHY` moves it all the same")
}

/// `comparison` is that of the rule: [`part::fit_backups`] or [`part::places`].
pub(crate) fn no_place(region: &RegionId, comparison: &str) -> String {
    format!("{comparison}; {}", by_force_all_the_same(region))
}

pub(crate) fn backup_not_left(problem: &str, no_place: &str) -> String {
    format!("{problem}; {no_place}")
}

pub(crate) fn crowded_backup_not_left(problem: &str, left: u8) -> String {
    format!(
        "{problem}, and {left} % of its sessions find no other place; they stay, and move by themselves once another \
         backup has room"
    )
}

pub(crate) fn not_healthy_enough_to_return(why: &str, region: &RegionId, health: Health, summary: &str) -> String {
    format!(
        "{why}; but {}. `meridian restore {region} --reason WHY` works once it is healthy",
        part::health(health, summary)
    )
}

pub(crate) fn sessions_cannot_come_back(region: &RegionId, health: Health, summary: &str) -> String {
    format!(
        "its sessions cannot come back: it is {health}, {summary}; `meridian restore {region} --reason WHY` brings them \
         back once it is healthy"
    )
}

pub(crate) fn held_down(region: &RegionId, penalty: u32, until: Moment, policy: &DampingPolicy) -> String {
    format!(
        "it moved too often (penalty {penalty}; leaving adds {}, so does returning, and below {} it may return); it stays \
         away until {until}, or `meridian ack {region} --reason WHY`",
        policy.per_move, policy.reuse
    )
}

// Replicated data.

pub(crate) fn too_much_lost(comparison: &str, region: &RegionId) -> String {
    format!(
        "{comparison}; `--accept-loss` names a loss to accept, or `any`: `meridian failover {region} --promote \
         --accept-loss 30m --reason WHY`"
    )
}

pub(crate) fn nobody_can_take_the_data(region: &RegionId) -> String {
    format!(
        "none of its sessions went to a region that is up, so nobody can take its data; `meridian why {region}` shows \
         where they are"
    )
}

pub(crate) fn loss_without_promotion(region: &RegionId) -> String {
    format!(
        "sessions move without loss of data; a loss is accepted only together with promoting: `meridian failover \
         {region} --promote --accept-loss 30m --reason WHY`"
    )
}

// Orders that cannot be carried out as they are.

pub(crate) fn author_is_planner(author: &str) -> String {
    format!(
        "\"{author}\" is the name of automation itself; give your own with --author, or log in by it: `meridian login NAME --roles ROLE`"
    )
}

pub(crate) fn asked_already(author: &str, at: Moment, action: &str) -> String {
    format!(
        "{author} asked for the same at {at}, and it waits for a second person: `meridian approve {action} --reason WHY` \
         carries it out, `meridian abort {action} --reason WHY` ends it"
    )
}

pub(crate) fn too_many_orders() -> String {
    format!(
        "{STANDING_MAX} orders stand or wait for approval, which is the most; `meridian abort ACTION --reason WHY` ends \
         one, `meridian unfreeze --reason WHY` every freeze"
    )
}

pub(crate) fn is_a_backup(region: &RegionId) -> String {
    format!("{region} is a backup; only primaries fail over and return: `meridian topology get` lists them")
}

pub(crate) fn no_such_region(region: &RegionId) -> String {
    format!("there is no region {region}; `meridian topology get` lists them")
}

pub(crate) fn no_such_edge(edge: &EdgeId) -> String {
    format!("there is no edge {edge}; `meridian topology get` lists them")
}

pub(crate) fn no_such_stack(stack: SocketAddr) -> String {
    format!("there is no stack {stack}; `meridian topology get` lists them")
}

pub(crate) fn no_stack_of_version<'v>(version: &str, known: impl IntoIterator<Item = &'v str>) -> String {
    format!(
        "no stack has version {version}, so nobody could be sent to it; stacks have {}: `meridian topology get`",
        join(known, ", ")
    )
}

pub(crate) fn last_edge(edge: &EdgeId) -> String {
    format!("{edge} is the last edge that DNS names; bring another one back first: `meridian status` lists them")
}

pub(crate) fn last_stack(stack: SocketAddr, region: &RegionId) -> String {
    format!(
        "{stack} is the last stack of {region} that gets sessions; `meridian drain --region {region} --reason WHY` \
         empties the region"
    )
}

pub(crate) fn rollout_runs(running: &Rollout) -> String {
    format!(
        "{} is at {} %; wait for its end, or `meridian abort {} --reason WHY`",
        running.version, running.percent, running.action
    )
}

pub(crate) fn is_moving(state: RegionState) -> String {
    format!("it is {state}; wait for its end, or `meridian abort ACTION --reason WHY`")
}

/// `comparison` is [`part::health`].
pub(crate) fn not_well_enough_to_drain(comparison: &str, region: &RegionId) -> String {
    format!(
        "{comparison}; a switchover is planned and needs a region that works, `meridian failover {region} --reason WHY` \
         does not"
    )
}

pub(crate) fn guests_are_there(guest: &RegionId) -> String {
    format!(
        "sessions of {guest} are there; `meridian restore {guest} --reason WHY` moves them before it is left as planned"
    )
}

pub(crate) fn guests_would_be_stranded(guest: &RegionId) -> String {
    format!(
        "sessions of {guest} are there and find no other place; move them first: `meridian restore {guest} --reason WHY`"
    )
}

pub(crate) fn nothing_to_approve(action: &str) -> String {
    format!("no action {action} waits for approval; `meridian status` lists those that do")
}

pub(crate) fn shown_changed(action: &str, shown: &str, digest: &str, effects: &[String]) -> String {
    format!(
        "the approval is for {shown}, and {action} is {digest} by now: {}. It still waits; to agree to this, type `meridian approve {action} \
         --shown {digest} --reason WHY`",
        effects.join("; ")
    )
}

pub(crate) fn approval_names_nothing_shown(action: &str, digest: &str) -> String {
    format!(
        "the approval does not say what was shown, as those of older commands, so {action} still waits. Read it in `meridian status`, \
         then type `meridian approve {action} --shown {digest} --reason WHY` with a command of this release"
    )
}

pub(crate) fn nothing_to_abort(action: &str) -> String {
    format!("no action {action} is under way; `meridian status` lists those that are")
}

pub(crate) fn same_person(author: &str, action: &str) -> String {
    format!("{author} asked for it; somebody else has to agree: `meridian approve {action} --reason WHY`")
}
