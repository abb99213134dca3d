//! Timers: set, cancel, tell, extend.

use std::time::Duration;

use topology::Moment;

use super::{questions::ask, spoken::list};
use crate::{
    command::{self, TimerChoice},
    edit_distance::edit_distance,
    numbers,
    state::{DialogueState, Timer, Topic, WAIT_MAX},
};

pub(super) fn set_timer(state: &mut DialogueState, duration_s: u32, name: Option<&str>, now: Moment) -> String {
    let duration = Duration::from_secs(u64::from(duration_s));
    if duration > WAIT_MAX {
        let name = name.map(str::to_owned);
        let question = ask(state, Topic::TimerLength { name }, now);
        return format!("a timer can run for one day at most, {question}");
    }
    if !state.drop_missed(now) {
        return "there are too many timers, please cancel them first".to_owned();
    }
    state.timers.push(Timer {
        ends_at: now + duration,
        duration_s,
        name: name.map(str::to_owned),
        ringing: None,
    });
    let timer = name.map_or_else(|| "timer".to_owned(), |name| format!("{name} timer"));
    format!("{timer} set for {}", command::speak_duration(duration.as_secs()))
}

pub(super) fn cancel_timers(state: &mut DialogueState, which: &TimerChoice, now: Moment) -> String {
    let mut cancelled = chosen(&state.timers, which);
    if *which == TimerChoice::Any && cancelled.len() > 1 {
        // While a timer rings, "cancel the timer" means that one.
        let ringing = |at: &usize| state.timers[*at].ringing.is_some();
        if cancelled.iter().any(ringing) {
            cancelled.retain(ringing);
        } else {
            return ask(state, Topic::WhichTimer { add_s: None }, now);
        }
    }
    for at in cancelled.iter().rev() {
        state.timers.remove(*at);
    }
    match (cancelled.len(), which) {
        (0, which) => no_timer(which),
        (1, TimerChoice::Named(name)) => format!("{name} timer cancelled"),
        (1, _) => "timer cancelled".to_owned(),
        (_, TimerChoice::All) => "all timers cancelled".to_owned(),
        (number, _) => format!(
            "{} timers cancelled",
            numbers::spell(u32::try_from(number).unwrap_or(0))
        ),
    }
}

pub(super) fn tell_timers(state: &DialogueState, which: &TimerChoice, now: Moment) -> String {
    let timers = chosen(&state.timers, which);
    let tell = |timer: &Timer| {
        // Rounded up, so that a running timer never has zero left.
        let left = timer.ends_at.since(now).as_millis().div_ceil(1000);
        match left {
            0 => "done".to_owned(),
            left => format!("{} left", command::speak_duration(u64::try_from(left).unwrap_or(0))),
        }
    };
    match timers.as_slice() {
        [] => no_timer(which),
        [one] => match tell(&state.timers[*one]).as_str() {
            "done" => "the timer is done".to_owned(),
            left => left.to_owned(),
        },
        several => {
            let told = several.iter().map(|at| {
                let timer = &state.timers[*at];
                match tell(timer).as_str() {
                    "done" => format!("the {} is done", timer.spoken_name()),
                    left => format!("{left} on the {}", timer.spoken_name()),
                }
            });
            list(told.collect(), "and")
        }
    }
}

pub(super) fn extend_timers(state: &mut DialogueState, which: &TimerChoice, add_s: u32, now: Moment) -> String {
    let extended = chosen(&state.timers, which);
    if *which == TimerChoice::Any && extended.len() > 1 {
        return ask(state, Topic::WhichTimer { add_s: Some(add_s) }, now);
    }
    let add = Duration::from_secs(u64::from(add_s));
    let ends = |timer: &Timer| timer.ends_at.max(now) + add;
    if extended.iter().any(|at| ends(&state.timers[*at]).since(now) > WAIT_MAX) {
        return "a timer can run for one day at most".to_owned();
    }
    for at in &extended {
        let timer = &mut state.timers[*at];
        timer.ends_at = ends(timer);
        timer.duration_s = timer.duration_s.saturating_add(add_s);
        timer.ringing = None;
    }
    match extended.as_slice() {
        [] => no_timer(which),
        [one] => {
            let left = state.timers[*one].ends_at.since(now).as_millis().div_ceil(1000);
            let left = command::speak_duration(u64::try_from(left).unwrap_or(0));
            format!("timer extended, {left} left")
        }
        _ => format!("timers extended by {}", command::speak_duration(u64::from(add_s))),
    }
}

/// Indices of the timers that are meant.
fn chosen(timers: &[Timer], which: &TimerChoice) -> Vec<usize> {
    let is_chosen = |at: usize, timer: &Timer| match which {
        TimerChoice::Any | TimerChoice::All => true,
        TimerChoice::Named(name) => timer
            .name
            .as_ref()
            .is_some_and(|known| known == name || known.len() > 3 && edit_distance(known, name) <= 1),
        TimerChoice::Lasting(seconds) => timer.duration_s == *seconds,
        TimerChoice::Nth(number) => at == *number,
    };
    (0..timers.len()).filter(|at| is_chosen(*at, &timers[*at])).collect()
}

fn no_timer(which: &TimerChoice) -> String {
    match which {
        TimerChoice::Named(name) => format!("there is no {name} timer"),
        TimerChoice::Lasting(seconds) => {
            format!("there is no timer for {}", command::speak_duration(u64::from(*seconds)))
        }
        TimerChoice::Any | TimerChoice::All | TimerChoice::Nth(_) => "there is no timer".to_owned(),
    }
}
