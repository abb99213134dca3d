//! Timers: set, cancel, tell, extend, change, shorten.

use std::time::Duration;

use topology::Moment;

use super::{
    effect::Effect,
    questions::ask,
    spoken::{in_order, list, listed_at},
};
use crate::{
    command::{self, TimerChoice},
    edit_distance::edit_distance,
    numbers,
    state::{DialogueState, Timer, Topic, WAIT_MAX},
};

pub(super) fn set_timer(state: &mut DialogueState, duration_s: u32, name: Option<&str>, now: Moment) -> Effect {
    let duration = Duration::from_secs(u64::from(duration_s));
    if duration > WAIT_MAX {
        let name = name.map(str::to_owned);
        let question = ask(state, Topic::TimerLength { name, number: None }, now);
        return Err(format!("a timer can run for one day at most, {question}"));
    }
    if !state.drop_missed(now) {
        return Err("there are too many timers, please cancel them first".to_owned());
    }
    state.timers.push(Timer {
        ends_at: now + duration,
        duration_s,
        name: name.map(str::to_owned),
        ringing: None,
    });
    let timer = name.map_or_else(|| "timer".to_owned(), |name| format!("{name} timer"));
    Ok(format!(
        "{timer} set for {}",
        command::speak_duration(duration.as_secs())
    ))
}

pub(super) fn cancel_timers(state: &mut DialogueState, which: &TimerChoice, now: Moment) -> Effect {
    let mut cancelled = chosen(&state.timers, which);
    if !which.may_be_several() && cancelled.len() > 1 {
        // While a timer rings, "cancel the timer" means that one.
        let ringing = |at: &usize| state.timers[*at].ringing.is_some();
        if cancelled.iter().any(ringing) {
            cancelled.retain(ringing);
        } else {
            let listed = ends_of(&state.timers, &cancelled);
            return Err(ask(state, Topic::WhichTimer { add_s: None, listed }, now));
        }
    }
    let mut at = 0..;
    state
        .timers
        .retain(|_| at.next().is_none_or(|at| !cancelled.contains(&at)));
    Ok(match (cancelled.len(), which.said()) {
        (0, which) => return Err(no_timer(which)),
        (1, TimerChoice::Named(name)) => format!("{name} timer cancelled"),
        (1, _) => "timer cancelled".to_owned(),
        _ if state.timers.is_empty() => "all timers cancelled".to_owned(),
        (number, _) => format!(
            "{} timers cancelled",
            numbers::spell(u32::try_from(number).unwrap_or(0))
        ),
    })
}

pub(super) fn tell_timers(state: &DialogueState, which: &TimerChoice, now: Moment) -> String {
    let timers = chosen(&state.timers, which);
    let tell = |timer: &Timer| match seconds_left(timer, now) {
        0 => "done".to_owned(),
        left => format!("{} left", command::speak_duration(left)),
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

pub(super) fn extend_timers(state: &mut DialogueState, which: &TimerChoice, add_s: u32, now: Moment) -> Effect {
    let extended = chosen(&state.timers, which);
    if !which.may_be_several() && extended.len() > 1 {
        let (add_s, listed) = (Some(add_s), ends_of(&state.timers, &extended));
        return Err(ask(state, Topic::WhichTimer { add_s, listed }, now));
    }
    let add = Duration::from_secs(u64::from(add_s));
    let ends = |timer: &Timer| timer.ends_at.max(now) + add;
    if extended.iter().any(|at| ends(&state.timers[*at]).since(now) > WAIT_MAX) {
        return Err("a timer can run for one day at most".to_owned());
    }
    for at in &extended {
        let timer = &mut state.timers[*at];
        timer.ends_at = ends(timer);
        timer.duration_s = timer.duration_s.saturating_add(add_s);
        timer.ringing = None;
    }
    match extended.as_slice() {
        [] => Err(no_timer(which)),
        [one] => {
            let left = command::speak_duration(seconds_left(&state.timers[*one], now));
            Ok(format!("timer extended, {left} left"))
        }
        _ => Ok(format!(
            "timers extended by {}",
            command::speak_duration(u64::from(add_s))
        )),
    }
}

/// Starts a timer anew with another duration; it rings so long from now.
pub(super) fn change_timer(
    state: &mut DialogueState,
    which: &TimerChoice,
    duration_s: Option<u32>,
    now: Moment,
) -> Effect {
    let changed = chosen(&state.timers, which);
    let at = match (changed.as_slice(), duration_s) {
        ([], _) => return Err(no_timer(which)),
        ([at], Some(_)) => *at,
        ([_], None) => return Err(ask(state, Topic::TimerChange { which: which.clone() }, now)),
        (several, _) => {
            let listed = ends_of(&state.timers, several);
            return Err(ask(state, Topic::WhichToChange { duration_s, listed }, now));
        }
    };
    let duration_s = duration_s.unwrap_or_default();
    let duration = Duration::from_secs(u64::from(duration_s));
    if duration > WAIT_MAX {
        let question = ask(state, Topic::TimerChange { which: which.clone() }, now);
        return Err(format!("a timer can run for one day at most, {question}"));
    }
    let timer = &mut state.timers[at];
    (timer.ends_at, timer.duration_s, timer.ringing) = (now + duration, duration_s, None);
    Ok(format!(
        "timer changed, {} left",
        command::speak_duration(duration.as_secs())
    ))
}

/// Takes time off timers; nothing changes if one of them has no more left than that. A timer that rang at once would be
/// taken for one that ran out.
pub(super) fn shorten_timers(state: &mut DialogueState, which: &TimerChoice, take_s: u32, now: Moment) -> Effect {
    let shortened = chosen(&state.timers, which);
    if !which.may_be_several() && shortened.len() > 1 {
        let listed = ends_of(&state.timers, &shortened);
        return Err(ask(state, Topic::WhichToShorten { take_s, listed }, now));
    }
    let take = Duration::from_secs(u64::from(take_s));
    let too_short = shortened.iter().map(|at| &state.timers[*at]);
    if let Some(timer) = too_short.into_iter().find(|timer| timer.ends_at.since(now) <= take) {
        let called = timer.spoken_name();
        return Err(match seconds_left(timer, now) {
            0 => format!("the {called} is done"),
            left => format!(
                "there are only {} left on the {called}, so i changed nothing",
                command::speak_duration(left)
            ),
        });
    }
    for at in &shortened {
        let timer = &mut state.timers[*at];
        timer.ends_at = now + (timer.ends_at.since(now) - take);
        timer.duration_s = timer.duration_s.saturating_sub(take_s).max(1);
    }
    match shortened.as_slice() {
        [] => Err(no_timer(which)),
        [one] => {
            let left = command::speak_duration(seconds_left(&state.timers[*one], now));
            Ok(format!("timer shortened, {left} left"))
        }
        _ => Ok(format!(
            "timers shortened by {}",
            command::speak_duration(u64::from(take_s))
        )),
    }
}

/// Rounded up, so that a running timer never has zero left.
fn seconds_left(timer: &Timer, now: Moment) -> u64 {
    u64::try_from(timer.ends_at.since(now).as_millis().div_ceil(1000)).unwrap_or(0)
}

/// The times at which the timers at `chosen` end.
fn ends_of(timers: &[Timer], chosen: &[usize]) -> Vec<Moment> {
    chosen.iter().map(|at| timers[*at].ends_at).collect()
}

/// Indices of the timers that are meant, by the time at which they end.
fn chosen(timers: &[Timer], which: &TimerChoice) -> Vec<usize> {
    let ends: Vec<Moment> = timers.iter().map(|timer| timer.ends_at).collect();
    let in_order = match which {
        TimerChoice::Among { listed, choice } => {
            let listed = listed_at(listed, &ends);
            return match **choice {
                TimerChoice::Nth(number) => listed.get(number).copied().flatten().into_iter().collect(),
                _ => {
                    let meant = chosen(timers, choice);
                    listed.into_iter().flatten().filter(|at| meant.contains(at)).collect()
                }
            };
        }
        TimerChoice::Nth(number) => return (0..ends.len()).filter(|at| at == number).collect(),
        _ => in_order(&ends),
    };
    let is_chosen = |timer: &Timer| match which {
        TimerChoice::Any | TimerChoice::All => true,
        TimerChoice::Named(name) => timer
            .name
            .as_ref()
            .is_some_and(|known| known == name || known.len() > 3 && edit_distance(known, name) <= 1),
        TimerChoice::Lasting(seconds) => timer.duration_s == *seconds,
        TimerChoice::Nth(_) | TimerChoice::Among { .. } => false,
    };
    in_order.into_iter().filter(|at| is_chosen(&timers[*at])).collect()
}

fn no_timer(which: &TimerChoice) -> String {
    match which {
        TimerChoice::Named(name) => format!("there is no {name} timer"),
        TimerChoice::Lasting(seconds) => {
            format!("there is no timer for {}", command::speak_duration(u64::from(*seconds)))
        }
        TimerChoice::Among { choice, .. } => no_timer(choice),
        TimerChoice::Any | TimerChoice::All | TimerChoice::Nth(_) => "there is no timer".to_owned(),
    }
}
