//! The sentences about a region's health, and about clocks, that an operator reads. A sentence begins with its subject,
//! names what is wrong by numbers, and has no full stop. The planner adds what it does about it and what to type.

use std::fmt::Display;

use topology::{Component, NodeId};

pub(crate) fn blind(ticks: u32) -> String {
    format!("nothing usable was seen for {ticks} ticks or more; no automatic action")
}

pub(crate) fn was_bad_and_is_unseen(component: Component, ticks: u32) -> String {
    format!("{component} was bad and has not been seen for {ticks} ticks or more; no automatic action")
}

pub(crate) fn too_little_seen() -> String {
    "too little was seen in the last tick; the window is frozen".to_owned()
}

pub(crate) fn healthy() -> String {
    "every component works".to_owned()
}

/// A component without a failover trigger fails in the region as a whole; `errors_max` is the limit that it passed.
pub(crate) fn component_fails(component: Component, errors_max: f64) -> String {
    let percent = errors_max * 100.0;
    format!("more than {percent:.0} % of what {component} did failed")
}

/// The first failing stack of a region; `more` others fail too, and `serving` of `all` stacks serve.
pub(crate) fn stack_fails(
    stack: impl Display,
    component: Component,
    more: usize,
    (serving, all): (usize, usize),
) -> String {
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = match component {
        Component::Gateway => "fails, and edges pass it over".to_owned(),
        component => {
            format!("fails in {component}; `meridian drain --stack {stack} --for 2h --reason WHY` takes it out")
        }
    };
    format!("stack {stack}{more} {what}; {serving} of {all} stacks serve")
}

/// The state of a trigger that fired: it fails still, or it recovers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Standing<'s> {
    /// Its bad ticks are spread over a window, in these words.
    Spread(&'s str),
    /// Its bad ticks are in a row.
    InARow,
    /// It fired under an earlier leader, and no tick was seen since.
    Believed,
    Recovering,
}

/// The reason of a trigger that fired: `what` is its condition, `held` the state that it holds, `fall` and `rise` the ticks in a row after
/// which it falls and rises.
pub(crate) fn fired(what: &str, standing: Standing<'_>, held: &str, (fall, rise): (u32, u32)) -> String {
    match standing {
        Standing::Spread(spread) => format!("{what} {spread}; {held} until fewer of them are bad"),
        Standing::InARow => format!("{what} for {fall} ticks"),
        Standing::Believed => format!("{what}, as was believed before; {held} until {rise} good ticks in a row"),
        Standing::Recovering => format!("{what} for {fall} ticks; good again, {held} until {rise} good ticks in a row"),
    }
}

pub(crate) fn pending(what: &str, bad: u32, needed: u32) -> String {
    format!("{what} in {bad} of {needed} ticks needed")
}

pub(crate) fn spread(bad: usize, ticks: usize, failed: u64, samples: u64) -> String {
    format!("in {bad} of the last {ticks} ticks ({failed} of {samples} failed)")
}

// Lines of evidence: figures, without a subject of their own; the line above them names the region.

/// The reason of a level, or several of them.
pub(crate) fn at_level(level: impl Display, why: &str) -> String {
    format!("{level}: {why}")
}

pub(crate) fn nobody_reported(tick: impl Display) -> String {
    format!("gateway: no vantage reported on tick {tick}")
}

/// A tick of a component: `vantages` are the worst of them by name, and the others together.
pub(crate) fn tick(
    component: Component,
    at: impl Display,
    vantages: &[String],
    percentiles: &str,
    failure: &str,
) -> String {
    format!("{component} at {at}: {} ok{percentiles}{failure}", vantages.join(" · "))
}

pub(crate) fn vantage(name: impl Display, succeeded: u64, samples: u64) -> String {
    format!("{name} {succeeded}/{samples}")
}

/// The vantages that are not named, together; `are_more` if others are.
pub(crate) fn other_vantages(count: usize, are_more: bool, succeeded: u64, samples: u64) -> String {
    let more = if are_more { "more " } else { "" };
    format!("{count} {more}vantages {succeeded}/{samples}")
}

pub(crate) fn percentile(name: &str, ms: f64) -> String {
    format!(", {name} {ms:.0} ms")
}

/// One line of one failure; `more` other failures were seen.
pub(crate) fn failure(text: &str, more: usize) -> String {
    let more = match more {
        0 => String::new(),
        more => format!(" (and {more} other failures)"),
    };
    format!("; {text:.60}{more}")
}

/// The real traffic: connections, sessions lost midway, turns, each with its latencies.
pub(crate) fn traffic(
    at: impl Display,
    (connections, connect): (&str, &str),
    lost: impl Display,
    (turns, turn): (&str, &str),
    vantages: usize,
) -> String {
    format!(
        "traffic at {at}: {connections} connections ok{connect} · {lost} lost midway · {turns} turns ok{turn}; seen by {vantages}"
    )
}

pub(crate) fn of(ok: u32, failed: u32) -> String {
    format!("{ok}/{}", ok.saturating_add(failed))
}

// The fault of one failing stack.

pub(crate) fn answers(succeeded: u64, samples: u64) -> String {
    match succeeded {
        0 => "answers nobody".to_owned(),
        succeeded => format!("answers {succeeded} of {samples}"),
    }
}

/// `limit` is the latency that it exceeds.
pub(crate) fn is_slow(component: Component, limit: impl Display) -> String {
    format!("has {component} {limit}")
}

pub(crate) fn does(component: Component, succeeded: u64, samples: u64) -> String {
    format!("does {component} {succeeded} times of {samples}")
}

pub(crate) fn stack_evidence(
    stack: impl Display,
    region: impl Display,
    fault: &str,
    (serving, all): (usize, usize),
) -> String {
    let serve = if serving == 1 { "serves" } else { "serve" };
    format!("stack {stack} of {region} {fault}; {serving} of {all} stacks {serve}")
}

// Reports that do not count: a vantage finds the sentence in its own log.

pub(crate) fn too_early(at: impl Display, vantage: &NodeId) -> String {
    format!(
        "tick {at} of {vantage} has not come yet: its clock and ours are too far apart; check the time service of both (`timedatectl`)"
    )
}

pub(crate) fn too_old(at: impl Display, vantage: &NodeId) -> String {
    format!("tick {at} of {vantage} is too old to decide on; further reports count, and nothing need be typed")
}

pub(crate) fn repeated(at: impl Display, vantage: &NodeId) -> String {
    format!("{vantage} has already reported on tick {at}; the first report counts, and two processes may have one name")
}

pub(crate) fn stranger(vantage: &NodeId) -> String {
    format!(
        "{vantage} is no edge of the topology; correct its name, or add it (`meridian topology apply FILE --reason WHY`)"
    )
}

pub(crate) fn too_many_vantages(max: usize) -> String {
    format!("more than {max} vantages report; the others do not count, and fewer need be vantages")
}

/// Most vantages agree that the clock of this control plane is off: by `apart` to that of `nearest`.
pub(crate) fn own_clock_is_off(apart: impl Display, is_behind: bool, nearest: &NodeId, others: usize) -> String {
    let way = if is_behind { "behind" } else { "ahead of" };
    let others = match others {
        0 => String::new(),
        1 => " and another vantage".to_owned(),
        others => format!(" and {others} other vantages"),
    };
    format!("the clock of this control plane is {apart} {way} that of {nearest}{others}; check its time service")
}

pub(crate) fn clock_is_off(vantage: &NodeId, apart: impl Display, is_ahead: bool) -> String {
    let way = if is_ahead { "ahead of" } else { "behind" };
    format!("the clock of {vantage} is {apart} {way} ours; check the time service there")
}

/// A vantage says the opposite of all `others` about a component of a region.
pub(crate) fn contradicts_all(
    vantage: &NodeId,
    component: Component,
    (word, opposite): (impl Display, impl Display),
    others: u32,
) -> String {
    format!(
        "{vantage} alone sees {component} {word}, and {others} other vantages see it {opposite}; its word counts only where another \
         agrees; check the network of {vantage}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_begins_with_its_subject_and_has_no_full_stop() {
        let (node, lengths) = (&NodeId::new("dub-1").unwrap(), (3, 6));
        let what = "gateway connection success below 90 %";
        let sentences = [
            blind(3),
            was_bad_and_is_unseen(Component::Asr, 3),
            too_little_seen(),
            healthy(),
            component_fails(Component::Tts, 0.1),
            stack_fails("10.0.0.1:7000", Component::Asr, 1, (2, 4)),
            stack_fails("10.0.0.1:7000", Component::Gateway, 0, (2, 3)),
            fired(what, Standing::Spread(&spread(4, 12, 5, 40)), "down", lengths),
            fired(what, Standing::InARow, "down", lengths),
            fired(what, Standing::Believed, "down", lengths),
            fired(what, Standing::Recovering, "down", lengths),
            pending(what, 1, 3),
            nobody_reported("12:00:10"),
            stack_evidence("10.0.0.1:7000", "us-east", &answers(0, 3), (1, 2)),
            stack_evidence("10.0.0.1:7000", "us-east", &does(Component::Asr, 1, 3), (0, 2)),
            too_early("12:00:10", node),
            too_old("12:00:10", node),
            repeated("12:00:10", node),
            stranger(node),
            too_many_vantages(4096),
            own_clock_is_off("3.0 s", true, node, 2),
            clock_is_off(node, "3.0 s", true),
            contradicts_all(node, Component::Gateway, ("work", "fail"), 3),
        ];
        for text in sentences {
            let begins = text.split(' ').next().unwrap();
            assert!(
                !["what", "who", "which", "whatever", "whoever", "not"].contains(&begins),
                "{text}"
            );
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
    }

    #[test]
    fn a_line_of_evidence_has_the_figures_and_the_vantages() {
        let vantages = [vantage("dub-1", 1, 3), other_vantages(2, true, 6, 6)];
        let seen = tick(
            Component::Asr,
            "12:00:10",
            &vantages,
            &percentile("p95", 3.2),
            &failure("connection refused", 1),
        );
        assert_eq!(
            seen,
            "asr at 12:00:10: dub-1 1/3 · 2 more vantages 6/6 ok, p95 3 ms; connection refused (and 1 other failures)"
        );
        let (connections, turns) = (of(9, 1), of(8, 0));
        assert_eq!(
            traffic(
                "12:00:10",
                (&connections, ""),
                2,
                (&turns, &percentile("p95", 900.0)),
                3
            ),
            "traffic at 12:00:10: 9/10 connections ok · 2 lost midway · 8/8 turns ok, p95 900 ms; seen by 3"
        );
        let slow = is_slow(Component::Asr, "P95 above 500 ms");
        let line = stack_evidence("10.0.0.1:7000", "us-east", &slow, (1, 2));
        assert_eq!(at_level("L1", &line), format!("L1: {line}"));
        assert!(
            line.contains("has asr P95 above 500 ms; 1 of 2 stacks serves"),
            "{line}"
        );
    }
}
