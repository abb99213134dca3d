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

/// The device's timers, told apart by name or length.
pub(super) fn call_timers(state: &DialogueState) -> Vec<String> {
    let called = state.timers.iter().map(|timer| format!("the {}", timer.spoken_name()));
    called.collect()
}

/// The device's alarms, told apart by time and day.
pub(super) fn call_alarms(state: &DialogueState, now: Moment) -> Vec<String> {
    let local = state.local(now);
    let called = state.alarms.iter().map(|alarm| {
        let day = day_of(&local, &state.local(alarm.rings_at));
        format!("the one for {}{day}", rings_in_words(state, alarm))
    });
    called.collect()
}
