//! Alarms: set, tell, cancel, move.

use std::time::Duration;

use jiff::{SignedDuration, ToSpan, Zoned, civil::Date};
use topology::Moment;

use super::{
    effect::Effect,
    questions::ask,
    spoken::{day_of, in_order, list, listed_at, rings_in_words, speak_clock_and_half},
};
use crate::{
    command::{AlarmChoice, ClockTime, Day, DayPart, HalfDay},
    numbers,
    state::{self, Alarm, DialogueState, Topic, WAIT_MAX},
};

pub(super) fn set_alarm(state: &mut DialogueState, time: ClockTime, day: Option<Day>, now: Moment) -> Effect {
    let rings = alarm_at(&state.local(now), time, day)?;
    add_alarm(state, &rings, day, now)
}

pub(super) fn set_alarm_in(state: &mut DialogueState, duration_s: u32, now: Moment) -> Effect {
    let wait = Duration::from_secs(u64::from(duration_s));
    if wait > WAIT_MAX {
        return Err(ask(state, Topic::AlarmTime { day: None, part: None }, now));
    }
    let rings = state.local(now + wait);
    add_alarm(state, &rings, None, now)
}

pub(super) fn tell_alarms(state: &DialogueState, now: Moment) -> String {
    let local = state.local(now);
    let alarms = in_order(&rings_of(state)).into_iter().map(|at| &state.alarms[at]);
    let told = alarms.map(|alarm| {
        let rings = state.local(alarm.rings_at);
        let day = day_of(&local, &rings);
        let ringing = if alarm.ringing.is_some() { ", which rings" } else { "" };
        format!("for {}{day}{ringing}", rings_in_words(state, alarm))
    });
    let told: Vec<String> = told.collect();
    match told.as_slice() {
        [] => "there is no alarm".to_owned(),
        [one] => format!("there is an alarm {one}"),
        several => {
            let number = numbers::spell(u32::try_from(several.len()).unwrap_or(0));
            format!("there are {number} alarms, {}", list(told, "and"))
        }
    }
}

pub(super) fn cancel_alarms(state: &mut DialogueState, which: &AlarmChoice, now: Moment) -> Effect {
    let mut cancelled = chosen_alarms(state, which, now);
    if !which.is_all() && cancelled.len() > 1 {
        let ringing = |at: &usize| state.alarms[*at].ringing.is_some();
        if cancelled.iter().any(ringing) {
            cancelled.retain(ringing);
        } else {
            let listed = listed(state, &cancelled);
            return Err(ask(state, Topic::WhichAlarm { listed }, now));
        }
    }
    let mut at = 0..;
    state
        .alarms
        .retain(|_| at.next().is_none_or(|at| !cancelled.contains(&at)));
    match (cancelled.len(), which) {
        (0, AlarmChoice::One { .. }) => Err(which.phrase().replacen("the alarm", "there is no alarm", 1)),
        (0, AlarmChoice::Among { .. }) => Err("there is no such alarm".to_owned()),
        (0, _) => Err("there is no alarm".to_owned()),
        (1, _) => Ok("alarm cancelled".to_owned()),
        _ if state.alarms.is_empty() => Ok("all alarms cancelled".to_owned()),
        (number, _) => Ok(format!(
            "{} alarms cancelled",
            numbers::spell(u32::try_from(number).unwrap_or(0))
        )),
    }
}

/// Answers "don't wake me at seven": offers to cancel such an alarm, if one is set.
pub(super) fn decline_alarm(
    state: &mut DialogueState,
    time: Option<ClockTime>,
    day: Option<Day>,
    now: Moment,
) -> String {
    let local = state.local(now);
    let which = match (time, day) {
        (None, None) => AlarmChoice::Any,
        (time, day) => AlarmChoice::One { time, day, part: None },
    };
    let meant = chosen_alarms(state, &which, now);
    let Some(alarm) = meant.first().map(|at| &state.alarms[*at]) else {
        return "okay, i set no alarm".to_owned();
    };
    // Of several alarms the question names the day, as far as days have spoken names.
    let day = match day_of(&local, &state.local(alarm.rings_at)) {
        day if meant.len() > 1 => day,
        _ => String::new(),
    };
    let command = format!("cancel the alarm for {}{day}", rings_in_words(state, alarm));
    let question = format!("do you want me to {command}");
    state.ask(Topic::Confirm { command }, now);
    question
}

pub(super) fn move_alarm(
    state: &mut DialogueState,
    which: &AlarmChoice,
    time: Option<ClockTime>,
    day: Option<Day>,
    now: Moment,
) -> Effect {
    let meant = chosen_alarms(state, which, now);
    match (meant.as_slice(), time) {
        ([], _) => Err("there is no such alarm".to_owned()),
        ([_], None) => Err(ask(state, Topic::AlarmMove { which: which.clone() }, now)),
        ([one], Some(time)) => {
            let rings = moved_to(&state.local(now), &state.alarms[*one], time, day)?;
            state.alarms.remove(*one);
            add_alarm(state, &rings, day, now)
        }
        (several, _) => {
            let listed = listed(state, several);
            Err(ask(state, Topic::WhichToMove { time, day, listed }, now))
        }
    }
}

fn add_alarm(state: &mut DialogueState, rings: &Zoned, day: Option<Day>, now: Moment) -> Effect {
    let rings_at = moment(rings);
    let known = |alarm: &Alarm| alarm.rings_at == rings_at && alarm.ringing.is_none();
    if !state.alarms.iter().any(known) {
        if !state.drop_missed(now) {
            return Err("there are too many alarms, please cancel them first".to_owned());
        }
        state.alarms.push(Alarm {
            rings_at,
            hour: rings.hour().unsigned_abs(),
            minute: rings.minute().unsigned_abs(),
            ringing: None,
        });
    }
    let day = match day {
        Some(Day::Today) => String::new(),
        Some(day) => format!(" {}", day.spoken_on()),
        // An alarm within 24 hours needs no day.
        None if rings.timestamp().duration_since(state.local(now).timestamp()) <= SignedDuration::from_hours(24) => {
            String::new()
        }
        None => day_of(&state.local(now), rings),
    };
    Ok(format!("alarm set for {}{day}", speak_clock_and_half(rings)))
}

/// The times at which the alarms ring, in the order in which they were set.
fn rings_of(state: &DialogueState) -> Vec<Moment> {
    state.alarms.iter().map(|alarm| alarm.rings_at).collect()
}

/// The times at which the alarms at `chosen` ring.
fn listed(state: &DialogueState, chosen: &[usize]) -> Vec<Moment> {
    chosen.iter().map(|at| state.alarms[*at].rings_at).collect()
}

/// Indices of the alarms that are meant, by the time at which they ring.
fn chosen_alarms(state: &DialogueState, which: &AlarmChoice, now: Moment) -> Vec<usize> {
    let rings = rings_of(state);
    let in_order = match which {
        AlarmChoice::Among { listed, choice } => {
            let listed = listed_at(listed, &rings);
            return match **choice {
                AlarmChoice::Nth(number) => listed.get(number).copied().flatten().into_iter().collect(),
                _ => {
                    let meant = chosen_alarms(state, choice, now);
                    listed.into_iter().flatten().filter(|at| meant.contains(at)).collect()
                }
            };
        }
        AlarmChoice::Nth(number) => return (0..rings.len()).filter(|at| at == number).collect(),
        _ => in_order(&rings),
    };
    let today = state.local(now).date();
    let rings_on = |alarm: &Alarm, day: Day| {
        let date = state.local(alarm.rings_at).date();
        let in_days = |days: i64| today.checked_add(days.days()).is_ok_and(|day| day == date);
        match day {
            Day::Today => in_days(0),
            Day::Tomorrow => in_days(1),
            Day::AfterTomorrow => in_days(2),
            day => day.weekday() == Some(date.weekday()),
        }
    };
    let is_chosen = |alarm: &Alarm| match *which {
        AlarmChoice::Any | AlarmChoice::All => true,
        AlarmChoice::One { time, day, part } => {
            time.is_none_or(|time| is_at(state, alarm, time))
                && day.is_none_or(|day| rings_on(alarm, day))
                && part.is_none_or(|part| (part == DayPart::Morning) == (alarm.hour < 12))
        }
        AlarmChoice::Nth(_) | AlarmChoice::Among { .. } => false,
    };
    let chosen = in_order.into_iter().filter(|at| is_chosen(&state.alarms[*at]));
    chosen.collect()
}

/// Whether `alarm` was set for `time`, or rings then after a snooze.
fn is_at(state: &DialogueState, alarm: &Alarm, time: ClockTime) -> bool {
    let rings = state.local(alarm.rings_at);
    let set_for = (i8::try_from(alarm.hour).unwrap_or(0), alarm.minute);
    let known = [set_for, (rings.hour(), rings.minute().unsigned_abs())];
    known
        .iter()
        .any(|(hour, minute)| *minute == time.minute && time.hours().contains(hour))
}

/// The time at which an alarm for `time` on `day` rings, or the reply if there is none.
fn alarm_at(local: &Zoned, time: ClockTime, day: Option<Day>) -> Result<Zoned, String> {
    let impossible = || "sorry, i can not set that alarm".to_owned();
    let minute = i8::try_from(time.minute).unwrap_or(0);
    let on = |date: Date| {
        let mut hours = time.hours();
        // Twelve means noon, unless the night was said.
        if time.hour == 12 && time.half.is_none() {
            hours.reverse();
        }
        let times = hours
            .into_iter()
            .filter_map(move |hour| date.at(hour, minute, 0, 0).to_zoned(local.time_zone().clone()).ok());
        times.filter(|rings| rings > local).collect::<Vec<_>>()
    };
    let date_in = |days: i64| local.date().checked_add(days.days()).map_err(|_| impossible());
    let date = match day {
        // Without a day, the next time that the clock shows it.
        None => {
            let next = on(local.date()).into_iter().chain(on(date_in(1)?));
            return next.min_by_key(Zoned::timestamp).ok_or_else(impossible);
        }
        Some(Day::Today) => local.date(),
        Some(Day::Tomorrow) => date_in(1)?,
        Some(Day::AfterTomorrow) => date_in(2)?,
        Some(day) => {
            let Some(weekday) = day.weekday() else {
                return Err(format!(
                    "sorry, i can not set an alarm for {}, please say which day",
                    day.name()
                ));
            };
            let days = i64::from(local.date().weekday().until(weekday));
            // Later today, or else in a week.
            if days == 0 && on(local.date()).is_empty() {
                date_in(7)?
            } else {
                date_in(days)?
            }
        }
    };
    on(date)
        .into_iter()
        .next()
        .ok_or_else(|| format!("it is already later than {}", time.spoken()))
}

/// The new time of a moved alarm: on its own day and in its own half of the day, unless the user said another.
fn moved_to(local: &Zoned, alarm: &Alarm, time: ClockTime, day: Option<Day>) -> Result<Zoned, String> {
    let before = state::in_zone(alarm.rings_at, local);
    let minutes = |hour: i32| 60 * hour + i32::from(time.minute);
    let old = 60 * i32::from(alarm.hour) + i32::from(alarm.minute);
    // From eleven in the morning to one is two hours ahead, not back into the night.
    let nearest = time.hours().into_iter().min_by_key(|hour| {
        let hour = i32::from(*hour);
        ((minutes(hour) - old).abs(), (hour < 12) != (alarm.hour < 12))
    });
    let exact = match nearest {
        Some(hour) if time.half.is_none() && (1..=12).contains(&time.hour) => ClockTime {
            half: Some(if hour < 12 { HalfDay::Am } else { HalfDay::Pm }),
            ..time
        },
        _ => time,
    };
    if day.is_some() {
        return alarm_at(local, exact, day);
    }
    let hour = exact.hours().first().copied().unwrap_or(0);
    let minute = i8::try_from(time.minute).unwrap_or(0);
    let same_day = before.date().at(hour, minute, 0, 0).to_zoned(local.time_zone().clone());
    match same_day {
        Ok(rings) if rings > *local => Ok(rings),
        _ => alarm_at(local, exact, None),
    }
}

fn moment(time: &Zoned) -> Moment {
    Moment(u64::try_from(time.timestamp().as_millisecond()).unwrap_or(0))
}
