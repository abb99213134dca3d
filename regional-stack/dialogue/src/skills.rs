//! The effects of commands, and the replies. Replies are lower-case words only, all that the synthesizer can say:
//! numbers are spelled.

use std::time::Duration;

use topology::Moment;

mod alarms;
mod clock;
mod effect;
mod lights;
mod questions;
mod spoken;
mod timers;
mod weather;

use alarms::{cancel_alarms, decline_alarm, move_alarm, set_alarm, set_alarm_in, tell_alarms};
use clock::{tell_date, tell_time};
use effect::Effect;
use lights::{dim_lights, switch_lights, tell_lights};
use questions::{ask, doubt_of};
use spoken::list;
use timers::{cancel_timers, change_timer, extend_timers, set_timer, shorten_timers, tell_timers};
use weather::tell_weather;

use crate::{
    command::{self, Command, PlaceQuestion},
    interpret::Interpretation,
    reply::Reply,
    state::{DialogueState, SNOOZE, Topic, WAIT_MAX},
};

/// Carries out `heard` for a device and returns the reply.
pub fn act(state: &mut DialogueState, heard: &Interpretation, now: Moment) -> Reply {
    // Speech that was not meant for the assistant answers no question either: the question stays open.
    if heard.command == Command::Rejected {
        return Reply {
            text: String::new(),
            acted: false,
        };
    }
    state.question = None;
    let done = state.done.take();
    let effect = effect(state, &heard.command, done.as_deref(), now);
    let acted = effect.is_ok();
    let (Ok(text) | Err(text)) = effect;
    if acted && !matches!(heard.command, Command::Stop | Command::Undo) {
        state.done = heard.command.phrase();
    }
    // After a question nothing more is said, so that the user's next words answer the question.
    let missed = match state.question {
        Some(_) => Vec::new(),
        None => state.announce_missed(now),
    };
    let text = if missed.is_empty() {
        text
    } else {
        format!("{text}, and you have {}", list(missed, "and"))
    };
    Reply { text, acted }
}

/// Carries out `command`. `done`: what the turn before did, in the assistant's own words.
fn effect(state: &mut DialogueState, command: &Command, done: Option<&str>, now: Moment) -> Effect {
    Err(match command {
        Command::TimeQuery { city } => tell_time(state, *city, now),
        Command::DateQuery => tell_date(state, now),
        Command::TimerSet { duration_s: None, name } => {
            let name = name.clone();
            ask(state, Topic::TimerLength { name, number: None }, now)
        }
        Command::TimerSet {
            duration_s: Some(duration_s),
            name,
        } => return set_timer(state, *duration_s, name.as_deref(), now),
        Command::TimerCancel { which } => return cancel_timers(state, which, now),
        Command::TimerQuery { which } => tell_timers(state, which, now),
        Command::TimerAdd { which, add_s } => return extend_timers(state, which, *add_s, now),
        Command::TimerChange { which, duration_s } => return change_timer(state, which, *duration_s, now),
        Command::TimerSubtract { which, take_s } => return shorten_timers(state, which, *take_s, now),
        Command::AlarmSet {
            time: None, day, part, ..
        } => ask(state, Topic::AlarmTime { day: *day, part: *part }, now),
        Command::AlarmSet {
            time: Some(time), day, ..
        } => return set_alarm(state, *time, *day, now),
        Command::AlarmIn { duration_s } => return set_alarm_in(state, *duration_s, now),
        Command::AlarmQuery => tell_alarms(state, now),
        Command::AlarmCancel { which } => return cancel_alarms(state, which, now),
        Command::AlarmMove { which, time, day } => return move_alarm(state, which, *time, *day, now),
        Command::Snooze { duration_s } => return snooze(state, *duration_s, now),
        Command::WeatherQuery { city, day, about } => tell_weather(city.unwrap_or(state.home), *day, *about, now),
        Command::Elsewhere {
            about: PlaceQuestion::Time,
            place,
        } => format!("i do not know the time in {place}"),
        Command::Elsewhere {
            about: PlaceQuestion::Weather,
            place,
        } => format!("i do not know the weather in {place}"),
        Command::LightsOn { rooms } => return Ok(switch_lights(state, *rooms, true)),
        Command::LightsOff { rooms } => return Ok(switch_lights(state, *rooms, false)),
        Command::LightsDim { rooms, percent } => return Ok(dim_lights(state, *rooms, *percent)),
        Command::LightsQuery { rooms } => tell_lights(state, *rooms),
        Command::Stop | Command::Undo => {
            return match (state.acknowledge_recent(now), command, done) {
                (0, Command::Undo, Some(done)) => Err(format!("i can not undo that, you asked me to {done}")),
                (0, ..) => Err("okay".to_owned()),
                _ => Ok("okay".to_owned()),
            };
        }
        Command::Help => "you can ask for the time, timers, alarms, the weather and the lights".to_owned(),
        Command::Declined { of } => decline(state, of, now),
        Command::Unsure { of, doubt } => doubt_of(state, of, *doubt, now),
        Command::Unknown | Command::Rejected => "sorry, i did not understand that".to_owned(),
    })
}

/// Answers a command that the user does not want.
fn decline(state: &mut DialogueState, of: &Command, now: Moment) -> String {
    match of {
        Command::LightsOn { rooms } | Command::LightsOff { rooms } | Command::LightsDim { rooms, .. } => {
            format!("okay, i leave {} as they are", rooms.lights())
        }
        // "Don't wake me at seven" may be about an alarm that is set.
        Command::AlarmSet { time, day, .. } => decline_alarm(state, *time, *day, now),
        Command::TimerSet { .. } => "okay, i set no timer".to_owned(),
        _ => "okay, i changed nothing".to_owned(),
    }
}

fn snooze(state: &mut DialogueState, duration_s: Option<u32>, now: Moment) -> Effect {
    let length = duration_s.map_or(SNOOZE, |seconds| Duration::from_secs(u64::from(seconds)));
    if length > WAIT_MAX {
        return Err("i can not be silent for more than a day".to_owned());
    }
    if state.snooze(length, now) == 0 {
        return Err("nothing is ringing".to_owned());
    }
    Ok(format!(
        "okay, i ring again in {}",
        command::speak_duration(length.as_secs())
    ))
}

#[cfg(test)]
mod tests;
