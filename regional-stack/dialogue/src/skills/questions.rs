//! Questions that the assistant asks back. Each is remembered until the next utterance ([`crate::answer`]).

use topology::Moment;

use super::spoken::{call_alarms, call_timers, list};
use crate::{
    answer,
    command::{Command, Doubt},
    state::{DialogueState, Topic},
};

/// Asks a question and remembers it for the next utterance.
pub(super) fn ask(state: &mut DialogueState, topic: Topic, now: Moment) -> String {
    let question = match &topic {
        Topic::TimerLength { .. } | Topic::TimerChange { .. } => "how long should the timer run".to_owned(),
        Topic::AlarmTime { .. } => "what time should i set the alarm for".to_owned(),
        Topic::AlarmMove { .. } => "what time should i move the alarm to".to_owned(),
        Topic::WhichTimer { listed, .. } | Topic::WhichToShorten { listed, .. } => {
            format!("which one, {}, or all of them", list(call_timers(state, listed), "or"))
        }
        Topic::WhichToChange { listed, .. } => format!("which one, {}", list(call_timers(state, listed), "or")),
        Topic::WhichAlarm { listed } => {
            format!(
                "which one, {}, or all of them",
                list(call_alarms(state, listed, now), "or")
            )
        }
        Topic::WhichToMove { listed, .. } => format!("which one, {}", list(call_alarms(state, listed, now), "or")),
        Topic::Confirm { command } => format!("did you say {command}"),
        Topic::Unknown => String::new(),
    };
    state.ask(topic, now);
    question
}

/// Says which command was understood, and asks for the part in doubt.
pub(super) fn doubt_of(state: &mut DialogueState, of: &Command, doubt: Doubt, now: Moment) -> String {
    if doubt == Doubt::Exception {
        return match of {
            Command::LightsOn { .. } | Command::LightsOff { .. } | Command::LightsDim { .. } => {
                "sorry, i can not make exceptions, please name the rooms that you mean".to_owned()
            }
            _ => "sorry, i can not make exceptions, please say only what you want".to_owned(),
        };
    }
    match (answer::topic_of_doubt(of, doubt), of.phrase()) {
        _ if doubt == Doubt::Later => {
            "sorry, i can only switch the lights at once, please say it again without a time".to_owned()
        }
        (Some(topic), Some(phrase)) if doubt == Doubt::Bare => {
            state.ask(topic, now);
            format!("do you want me to {phrase}")
        }
        (Some(topic), _) => ask(state, topic, now),
        (None, Some(phrase)) => format!("sorry, i only understood {phrase}, please say all of it again"),
        (None, None) => "sorry, i did not understand that".to_owned(),
    }
}
