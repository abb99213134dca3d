//! The comparisons of rules, which `meridian why` prints beside "passed" or "blocked", and the phrases inside the
//! sentences.

use std::{fmt::Display, time::Duration};

use topology::{Component, EdgeId, NodeId, ReasonCode, RegionId, RegionState, Share};
use verdict::{Ailment, Health, Trouble};

use super::{join, join_and};
use crate::ANY_LOSS;

// The comparisons of rules.

pub(crate) fn overridden(comparison: &str) -> String {
    format!("{comparison} (overridden)")
}

pub(crate) fn passed_by_force(comparison: &str) -> String {
    format!("{comparison} (passed by force)")
}

pub(crate) fn nothing_stops(is_order: bool) -> &'static str {
    if is_order {
        "an operator ordered it"
    } else {
        "automation is on"
    }
}

pub(crate) fn regions_look_healthy(working: usize) -> String {
    format!("{working} regions look healthy")
}

pub(crate) fn none_bad_together() -> String {
    "the vantages that accuse it saw no other primary turn bad with it".to_owned()
}

pub(crate) fn none_bad_or_moving() -> String {
    "no other region that automation left is bad, and none is moving".to_owned()
}

pub(crate) fn regions_left(left: usize, min: usize) -> String {
    format!("{left} regions would be left serving, and the policy wants {min} at least")
}

pub(crate) fn health(health: Health, summary: &str) -> String {
    format!("it is {health}: {summary}")
}

pub(crate) fn penalty(penalty: u32, suppress: impl Display) -> String {
    format!("its penalty is {penalty}, and from {suppress} on it may not return")
}

pub(crate) fn fit_backups(backups: usize, fit: usize, unfit: &[String]) -> String {
    match fit {
        0 if backups == 0 => "it has no backup".to_owned(),
        0 => format!("none of its backups is fit to take its sessions: {}", unfit.join(", ")),
        fit => format!("{fit} of its {backups} backups are fit to take its sessions"),
    }
}

pub(crate) fn no_places(full: &[String]) -> String {
    format!("its sessions find no place in its backups: {}", full.join(", "))
}

pub(crate) fn places(found: u8, to_move: u8) -> String {
    format!("its backups can take {found} of the {to_move} % of its sessions to move now")
}

pub(crate) fn data_lost(problems: &[String]) -> String {
    match problems {
        [] => "no data class would lose more than allowed".to_owned(),
        problems => format!("more data would be lost than allowed: {}", problems.join("; ")),
    }
}

// Regions.

pub(crate) fn region_is(region: &RegionId, health: Health) -> String {
    format!("{region} is {health}")
}

pub(crate) fn has_no_room(region: &RegionId) -> String {
    format!("{region} has no room left")
}

pub(crate) fn accepts_no_more(region: &RegionId) -> String {
    format!("{region} accepts no more connections for now")
}

pub(crate) fn bad_and_left(region: &RegionId, state: RegionState, health: Health) -> String {
    format!("{region} is {state} and {health}")
}

pub(crate) fn moves_now(region: &RegionId, state: RegionState) -> String {
    format!("{region} is {state}, and its sessions moved a moment ago")
}

pub(crate) fn not_seen_yet() -> String {
    "it has not been seen yet".to_owned()
}

pub(crate) fn seen_too_long_ago() -> String {
    "the newest reports on it are too old to act on".to_owned()
}

pub(crate) fn backup_is_down(backup: &RegionId, summary: &str) -> String {
    format!("backup {backup} is down: {summary}")
}

pub(crate) fn backup_is_crowded(backup: &RegionId) -> String {
    format!("backup {backup} is over its capacity")
}

pub(crate) fn host_is_left() -> &'static str {
    "a region that took its sessions is left"
}

/// "us-west (60 %), eu-west (40 %)".
pub(crate) fn shares(shares: &[Share]) -> String {
    let share = |share: &Share| format!("{} ({} %)", share.region, share.percent);
    join(shares.iter().map(share), ", ")
}

/// An order that was carried out, and the facts that speak against it.
pub(crate) fn although(why: &str, against: &[String]) -> String {
    match against {
        [] => why.to_owned(),
        against => format!("{why}, although {}", join_and(against)),
    }
}

pub(crate) fn is_healthy(region: &RegionId) -> String {
    format!("{region} is healthy")
}

pub(crate) fn nobody_sees(region: &RegionId, since: Option<topology::Moment>, health: Health) -> String {
    let since = since.map_or_else(String::new, |since| format!(" since {since}"));
    format!("no vantage has seen {region}{since}, when it was {health}")
}

pub(crate) fn nobody_has_seen(region: &RegionId) -> String {
    format!("no vantage has seen {region} yet")
}

pub(crate) fn region_is_because(region: &RegionId, health: Health, summary: &str) -> String {
    format!("{region} is {health}: {summary}")
}

pub(crate) fn healthy_for(percent: u8, held: Duration) -> String {
    format!("healthy at {percent} % for {} s", held.as_secs_f64())
}

pub(crate) fn first_part_leaves() -> &'static str {
    "the first part leaves"
}

pub(crate) fn next_part_leaves() -> &'static str {
    "the next part leaves"
}

pub(crate) fn step_held() -> &'static str {
    "the last step passed"
}

pub(crate) fn too_crowded_for_quality() -> String {
    "it takes more sessions than its components can serve at full quality".to_owned()
}

pub(crate) fn well_again() -> String {
    "its slow or broken components have worked for long enough".to_owned()
}

// Replicated data.

pub(crate) fn writer(writer: &RegionId, is_evacuated: bool, health: Health) -> String {
    match health {
        health if is_evacuated => format!("{writer}, which is evacuated and {health}"),
        Health::Down => format!("{writer}, which is down"),
        _ => writer.to_string(),
    }
}

pub(crate) fn restore_brings_data_home(region: &RegionId) -> String {
    format!("`meridian restore {region} --reason WHY` brings them home")
}

pub(crate) fn return_brings_data_home() -> String {
    "the return brings them home by itself".to_owned()
}

pub(crate) fn failover_moves_writer(region: &RegionId) -> String {
    format!("`meridian failover {region} --promote --reason WHY` makes another region their writer")
}

/// The loss that an approver agrees to.
pub(crate) fn may_lose(accepted: Duration) -> String {
    match accepted {
        ANY_LOSS => "it may lose all data that was not copied yet".to_owned(),
        accepted => format!("it may lose up to {} s of data", accepted.as_secs()),
    }
}

pub(crate) fn lag_unknown(class: &str) -> String {
    format!("{class}: its lag is not known")
}

pub(crate) fn lag_too_old(class: &str, age: Duration) -> String {
    format!("{class}: its lag was last measured {} s ago", age.as_secs())
}

pub(crate) fn lag_too_long(class: &str, behind: Duration, limit: Duration, is_accepted: bool) -> String {
    let (behind, limit) = (behind.as_secs(), limit.as_secs());
    let limit_is = if is_accepted { "the accepted loss" } else { "its RPO" };
    format!("{class}: {behind} s behind, {limit_is} is {limit} s")
}

// Edges, stacks and nodes.

pub(crate) fn edge_unreached(edge: &EdgeId, by: u32, of: u32, lasted: Duration) -> String {
    format!(
        "{by} of {of} vantages have not reached {edge} at its public addresses for {} s, though it reports and follows \
         plans",
        lasted.as_secs()
    )
}

pub(crate) fn edge_silent(edge: &EdgeId, lasts: Option<Duration>) -> String {
    let lasts = lasts.map_or_else(String::new, |lasts| format!(" for {} s", lasts.as_secs()));
    format!("nothing was heard of {edge}{lasts}: it follows no plans and sends no reports")
}

/// A lost edge works again: it was silent and is heard, it is reached anew, or both.
pub(crate) fn edge_works_again(edge: &EdgeId, was_silent: bool, is_reached_anew: bool) -> String {
    match (was_silent, is_reached_anew) {
        (true, false) => format!("{edge} is heard again"),
        (true, true) => format!("{edge} is heard again and vantages reach it at its public addresses"),
        (false, _) => format!("vantages reach {edge} at its public addresses again"),
    }
}

/// The trouble of a stack that answers, and its effect on callers.
pub(crate) fn trouble(ailment: Ailment) -> (&'static str, &'static str) {
    match (ailment.component, ailment.trouble) {
        (Component::Asr, Trouble::Fails) => ("does not recognise speech", "are not understood"),
        (Component::Asr, Trouble::Slow) => ("recognises speech too slowly", "wait too long"),
        (Component::Nlu, Trouble::Fails) => ("does not understand the words", "are not understood"),
        (Component::Skills, Trouble::Fails) => ("does not carry requests out", "get no answer"),
        (Component::Tts, Trouble::Fails) => ("does not speak", "hear no reply"),
        (Component::SessionStore, Trouble::Fails) => ("keeps no sessions", "are not remembered when they call again"),
        // Neither is judged so; a newer verdict may.
        (_, Trouble::Slow) => ("is too slow", "wait too long"),
        (Component::Gateway, Trouble::Fails) => ("fails", "are not served"),
    }
}

pub(crate) fn node_says(node: &NodeId, why: &str) -> String {
    format!("{node}: {why}")
}

/// "a, b and 3 more refuse plan 7".
pub(crate) fn nodes_refuse(named: &[&str], more: usize, generation: u64) -> String {
    let verb = if named.len() + more == 1 { "refuses" } else { "refuse" };
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more} {verb} plan {generation}", named.join(", "))
}

pub(crate) fn leaves_dead_region(primary: &RegionId, dead: &RegionId) -> String {
    format!("it moves sessions of {primary} away from {dead}, which is down")
}

pub(crate) fn was_ordered(author: &str, kind: &str, subject: &str) -> String {
    format!("{author} ordered it: {kind} of {subject}")
}

// The triggers of a rollout.

pub(crate) fn lately(minutes: u64, why: &str) -> String {
    format!("in the last {minutes} min {why}")
}

pub(crate) fn gpu_memory_errors(count: u64) -> String {
    format!("{count} GPU memory errors")
}

pub(crate) fn turns_failed(rate: f64, max: f64) -> String {
    let (rate, max) = (rate * 100.0, max * 100.0);
    format!("{rate:.2} % of turns failed, {max:.2} % is the most")
}

pub(crate) fn latency(new_ms: f64, old_ms: f64) -> String {
    format!("p95 latency {new_ms:.0} ms, the old version has {old_ms:.0} ms")
}

pub(crate) fn audio_underruns(per_session: f64, max: f64) -> String {
    format!("{per_session:.1} audio underruns per session, {max} is the most")
}

// Orders.

/// An order by its kind and subject, where the line does not name its region.
pub(crate) fn order_of(kind: &str, subject: &str) -> String {
    format!("{kind} of {subject}")
}

pub(crate) fn approval_of(action: &str, shown: &str) -> String {
    format!("approval of {action} as {shown}")
}

/// The reason to ask a second person for an order that passes a rule by force.
pub(crate) fn passes_by_force(rule: ReasonCode, comparison: &str) -> String {
    format!("it passes the rule {rule} by force: {comparison}")
}

pub(crate) fn turns_rule_off() -> String {
    "it turns a safety rule off".to_owned()
}

pub(crate) fn away_already(others: &[&str]) -> String {
    match others {
        [other] => format!("{other} is away already"),
        others => format!("{} are away already", join_and(others)),
    }
}

/// An effect of an order that its approver is shown.
pub(crate) fn sessions_go(primary: &RegionId, target: &RegionId) -> String {
    format!("sessions of {primary} go to {target}")
}

/// An effect for an approver who reads all of them.
pub(crate) fn effect(effect: &str, percent: Option<u8>) -> String {
    match percent {
        Some(percent) => format!("{effect}: {percent} %"),
        None => effect.to_owned(),
    }
}

pub(crate) fn grew(effect: &str, is: u8, was: u8) -> String {
    format!("{effect}: {is} % in place of {was} %")
}

/// "us-east (up to 1,200 sessions) to us-west, then eu-west"; or "home".
pub(crate) fn moves<'t>(primary: &RegionId, sessions: u64, targets: impl IntoIterator<Item = &'t RegionId>) -> String {
    let name = |target: &RegionId| match target == primary {
        true => "home".to_owned(),
        false => format!("to {target}"),
    };
    let targets: Vec<String> = targets.into_iter().map(name).collect();
    // The first names the direction: "to us-west, then eu-west".
    let others = targets.iter().skip(1).map(|it| it.trim_start_matches("to "));
    let targets = targets.first().map(String::as_str).into_iter().chain(others);
    format!(
        "{primary} (up to {} sessions) {}",
        in_thousands(sessions),
        join(targets, ", then ")
    )
}

/// A number with a comma between its thousands.
fn in_thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

// The time that an order took.

pub(crate) fn took(took: Duration, turned_bad: Option<&RegionId>) -> String {
    let seconds = took.as_secs_f64();
    match turned_bad {
        Some(region) => format!("{seconds:.1} s after {region} turned bad"),
        None => format!("{seconds:.1} s after it was ordered"),
    }
}

/// `late` are the classes of data whose RTO passed, each as [`rto_of`].
pub(crate) fn beside_rto(took: &str, late: &[String]) -> String {
    match late {
        [] => format!("{took}, within the RTO of every class of its data"),
        late => format!("{took}, later than the RTO of {}", join(late, " and of ")),
    }
}

pub(crate) fn rto_of(class: &str, rto: Duration) -> String {
    format!("{class} ({} s)", rto.as_secs())
}
