//! Wordings that several skills share: days, dates, lists, and alarms told apart by their time.

use jiff::{Zoned, civil::Date};
use topology::Moment;

use crate::{
    command, numbers,
    state::{Alarm, DialogueState},
};

/// "one, two and three"
pub(super) fn list(mut parts: Vec<String>, last: &str) -> String {
    let Some(end) = parts.pop() else {
        return String::new();
    };
    if parts.is_empty() {
        end
    } else {
        format!("{} {last} {end}", parts.join(", "))
    }
}

/// "november twenty first"
pub(super) fn date(date: Date) -> String {
    let day = numbers::spell_ordinal(u32::from(date.day().unsigned_abs()));
    format!("{} {day}", date.strftime("%B")).to_ascii_lowercase()
}

/// The spoken day of `rings`: " tomorrow", " on friday"; empty for today.
pub(super) fn day_of(local: &Zoned, rings: &Zoned) -> String {
    let days = local.date().until(rings.date()).map_or(0, |span| span.get_days());
    match days {
        i32::MIN..=0 => String::new(),
        1 => " tomorrow".to_owned(),
        2..=6 => format!(" on {}", rings.strftime("%A")).to_ascii_lowercase(),
        _ => format!(" on {}", date(rings.date())),
    }
}

pub(super) fn speak_clock_and_half(time: &Zoned) -> String {
    let clock = command::speak_clock(time.hour(), time.minute());
    format!("{clock} {}", command::part_of_day(time.hour()))
}

/// "seven thirty in the morning": the time at which the alarm rings next. After a snooze that is not the time that it
/// was set for. While it rings, it is.
pub(super) fn rings_in_words(state: &DialogueState, alarm: &Alarm) -> String {
    match alarm.ringing {
        Some(_) => alarm.spoken_name(),
        None => speak_clock_and_half(&state.local(alarm.rings_at)),
    }
}

/// Indices of `times`, the earliest first. This is the order of every list that the assistant speaks.
pub(super) fn in_order(times: &[Moment]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|at| times[*at]);
    order
}

/// The index in `times` of each of the `listed` times; `None` for one that is gone. Of equal times, each stands for another
/// index.
pub(super) fn listed_at(listed: &[Moment], times: &[Moment]) -> Vec<Option<usize>> {
    let mut found: Vec<Option<usize>> = Vec::new();
    for time in listed {
        let mut at = 0..times.len();
        let next = at.find(|at| times[*at] == *time && !found.contains(&Some(*at)));
        found.push(next);
    }
    found
}

/// The `listed` timers, told apart by name or length.
pub(super) fn call_timers(state: &DialogueState, listed: &[Moment]) -> Vec<String> {
    let ends: Vec<Moment> = state.timers.iter().map(|timer| timer.ends_at).collect();
    let called = listed_at(listed, &ends).into_iter().flatten();
    called
        .map(|at| format!("the {}", state.timers[at].spoken_name()))
        .collect()
}

/// The `listed` alarms, told apart by time and day.
pub(super) fn call_alarms(state: &DialogueState, listed: &[Moment], now: Moment) -> Vec<String> {
    let local = state.local(now);
    let rings: Vec<Moment> = state.alarms.iter().map(|alarm| alarm.rings_at).collect();
    let called = listed_at(listed, &rings).into_iter().flatten();
    let called = called.map(|at| &state.alarms[at]).map(|alarm| {
        let day = day_of(&local, &state.local(alarm.rings_at));
        format!("the one for {}{day}", rings_in_words(state, alarm))
    });
    called.collect()
}
