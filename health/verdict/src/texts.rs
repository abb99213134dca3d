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

/// How a trigger that fired stands: it fails still, or it recovers.
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
}
