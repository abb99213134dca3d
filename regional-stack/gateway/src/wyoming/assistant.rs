//! The assistant's answer to words of Home Assistant.
//!
//! Home Assistant has the lights and the timers, so the stack only tells it what was asked for, under its own names of intents. The stack
//! answers questions itself. It rings no alarm over this protocol, which has no way to begin a conversation, and does not pretend to.

use dialogue::{City, Command, DialogueState, Rooms, TimerChoice};
use serde_json::{Map, Value, json};
use topology::Moment;

/// The answer to words.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// The reply to a question.
    Handled(String),
    /// Understood, and not possible here. The reason is spoken.
    NotHandled(String),
    /// Home Assistant is to do this. There is at least one.
    Intents(Vec<Intent>),
    /// Words of no request.
    NotRecognized(String),
}

/// An intent by its name in Home Assistant.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Intent {
    pub(super) name: &'static str,
    pub(super) slots: Map<String, Value>,
    /// The confirmation.
    pub(super) text: String,
}

const NO_ALARMS: &str = "alarms can not ring here, set a timer instead";
const NO_SIGHT: &str = "i can not see the state of the lights and timers here";
const SAY_ALL: &str = "say the timer and its length in one sentence";
const NOTHING_TO_STOP: &str = "there is nothing i could stop here";
const ABILITIES: &str = "you can ask for the time, the date, the weather, timers and lights";

/// Answers `text`, which mostly was spoken: words that may be a misheard "not" are asked about.
pub(super) fn answer(text: &str, home: City, now: Moment) -> Answer {
    // Each request stands alone: Home Assistant makes a new connection for each.
    let mut state = DialogueState::new(home);
    let heard = dialogue::understand(&state, text, Some(1.0), now);
    let reply = dialogue::act(&mut state, &heard, now).text;
    let intents = |names: Vec<(&'static str, Map<String, Value>)>| {
        let intent = |(at, (name, slots)): (usize, (&'static str, Map<String, Value>))| Intent {
            name,
            slots,
            // Home Assistant speaks the texts of all of them.
            text: if at == 0 { reply.clone() } else { String::new() },
        };
        Answer::Intents(names.into_iter().enumerate().map(intent).collect())
    };
    match heard.command {
        Command::TimeQuery { .. }
        | Command::DateQuery
        | Command::WeatherQuery { .. }
        | Command::Elsewhere { .. }
        | Command::Declined { .. } => Answer::Handled(reply),
        Command::Help => Answer::Handled(ABILITIES.to_owned()),
        Command::LightsOn { rooms } => intents(lights("HassTurnOn", rooms, None)),
        Command::LightsOff { rooms } => intents(lights("HassTurnOff", rooms, None)),
        Command::LightsDim { rooms, percent } => intents(lights("HassLightSet", rooms, Some(percent))),
        Command::TimerSet {
            duration_s: Some(seconds),
            name,
        } => {
            let mut slots = duration("", seconds);
            slots.extend(name.map(|name| ("name".to_owned(), name.into())));
            intents(vec![("HassStartTimer", slots)])
        }
        Command::TimerCancel {
            which: TimerChoice::All,
        } => intents(vec![("HassCancelAllTimers", Map::new())]),
        Command::TimerCancel { which } => match timer(which) {
            Some(slots) => Answer::Intents(vec![Intent {
                name: "HassCancelTimer",
                slots,
                text: "timer cancelled".to_owned(),
            }]),
            None => Answer::NotHandled(NO_SIGHT.to_owned()),
        },
        Command::TimerAdd { which, add_s } => changed("HassIncreaseTimer", which, add_s),
        Command::TimerSubtract { which, take_s } => changed("HassDecreaseTimer", which, take_s),
        Command::TimerSet { duration_s: None, .. } | Command::TimerChange { .. } => {
            Answer::NotHandled(SAY_ALL.to_owned())
        }
        Command::TimerQuery { .. } | Command::LightsQuery { .. } => Answer::NotHandled(NO_SIGHT.to_owned()),
        Command::AlarmSet { .. }
        | Command::AlarmIn { .. }
        | Command::AlarmQuery
        | Command::AlarmCancel { .. }
        | Command::AlarmMove { .. }
        | Command::Snooze { .. } => Answer::NotHandled(NO_ALARMS.to_owned()),
        Command::Stop | Command::Undo => Answer::NotHandled(NOTHING_TO_STOP.to_owned()),
        Command::Unsure { .. } => Answer::NotHandled(reply),
        Command::Unknown | Command::Rejected => Answer::NotRecognized(reply),
    }
}

/// One intent for each room, or one for the whole house.
fn lights(name: &'static str, rooms: Rooms, percent: Option<u8>) -> Vec<(&'static str, Map<String, Value>)> {
    let slots = |place: (&str, &str)| {
        let mut slots = Map::from_iter([(place.0.to_owned(), place.1.into())]);
        match percent {
            Some(percent) => slots.insert("brightness".to_owned(), percent.into()),
            None => slots.insert("domain".to_owned(), "light".into()),
        };
        (name, slots)
    };
    let named: Vec<_> = rooms.named().map(|room| slots(("area", room.name()))).collect();
    if named.is_empty() {
        // Home Assistant takes this name for all lights there are.
        return vec![slots(("name", "all"))];
    }
    named
}

/// The slots that choose a timer; `None` for one that only a list of all timers could name.
fn timer(which: TimerChoice) -> Option<Map<String, Value>> {
    match which {
        TimerChoice::Any => Some(Map::new()),
        TimerChoice::Named(name) => Some(Map::from_iter([("name".to_owned(), name.into())])),
        TimerChoice::Lasting(seconds) => Some(duration("start_", seconds)),
        TimerChoice::All | TimerChoice::Nth(_) | TimerChoice::Among { .. } => None,
    }
}

fn changed(name: &'static str, which: TimerChoice, seconds: u32) -> Answer {
    match timer(which) {
        Some(mut slots) => {
            slots.extend(duration("", seconds));
            let text = "timer changed".to_owned();
            Answer::Intents(vec![Intent { name, slots, text }])
        }
        None => Answer::NotHandled(NO_SIGHT.to_owned()),
    }
}

fn duration(prefix: &str, seconds: u32) -> Map<String, Value> {
    let parts = [
        ("hours", seconds / 3600),
        ("minutes", seconds / 60 % 60),
        ("seconds", seconds % 60),
    ];
    let said = parts.into_iter().filter(|(_, number)| *number > 0);
    said.map(|(unit, number)| (format!("{prefix}{unit}"), json!(number)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str) -> Answer {
        // A Saturday at noon.
        answer(text, City::London, Moment(1_795_262_400_000))
    }

    fn intents(text: &str) -> Value {
        match answered(text) {
            Answer::Intents(intents) => intents
                .into_iter()
                .map(|intent| json!([intent.name, intent.slots]))
                .collect(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn home_assistant_switches_its_own_lights_and_keeps_its_own_timers() {
        for (text, expected) in [
            (
                "turn on the kitchen lights",
                json!([["HassTurnOn", { "area": "kitchen", "domain": "light" }]]),
            ),
            (
                "turn off all the lights",
                json!([["HassTurnOff", { "name": "all", "domain": "light" }]]),
            ),
            (
                "turn on the lights in the kitchen and the bedroom",
                json!([
                    ["HassTurnOn", { "area": "kitchen", "domain": "light" }],
                    ["HassTurnOn", { "area": "bedroom", "domain": "light" }],
                ]),
            ),
            (
                "dim the living room lights to thirty percent",
                json!([["HassLightSet", { "area": "living room", "brightness": 30 }]]),
            ),
            (
                "set a pasta timer for one hour and five minutes",
                json!([["HassStartTimer", { "hours": 1, "minutes": 5, "name": "pasta" }]]),
            ),
            ("cancel the timer", json!([["HassCancelTimer", {}]])),
            ("cancel all timers", json!([["HassCancelAllTimers", {}]])),
            (
                "cancel the ten minute timer",
                json!([["HassCancelTimer", { "start_minutes": 10 }]]),
            ),
            (
                "add ninety seconds to the pasta timer",
                json!([["HassIncreaseTimer", { "name": "pasta", "minutes": 1, "seconds": 30 }]]),
            ),
        ] {
            assert_eq!(intents(text), expected, "{text}");
        }
    }

    #[test]
    fn every_intent_has_one_confirmation() {
        let Answer::Intents(intents) = answered("turn on the lights in the kitchen and the bedroom") else {
            panic!("two rooms");
        };
        let texts: Vec<&str> = intents.iter().map(|intent| intent.text.as_str()).collect();
        assert_eq!(texts, ["the kitchen and bedroom lights are on", ""]);
    }

    #[test]
    fn questions_are_answered_and_nothing_is_promised_that_cannot_come() {
        for (text, part) in [
            ("what time is it", "it is "),
            ("what day is it", "today is saturday"),
            ("what can you do", "timers and lights"),
        ] {
            match answered(text) {
                Answer::Handled(reply) => assert!(reply.contains(part), "{text}: {reply}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        for text in ["wake me up at seven", "what alarms do i have", "snooze"] {
            assert_eq!(answered(text), Answer::NotHandled(NO_ALARMS.to_owned()), "{text}");
        }
        for text in ["is the kitchen light on", "how much time is left on the timer"] {
            assert_eq!(answered(text), Answer::NotHandled(NO_SIGHT.to_owned()), "{text}");
        }
        assert_eq!(answered("set a timer"), Answer::NotHandled(SAY_ALL.to_owned()));
    }

    #[test]
    fn what_was_not_said_is_not_done() {
        for text in ["do not turn on the kitchen lights", "never set a timer for ten minutes"] {
            assert!(
                matches!(answered(text), Answer::Handled(_)),
                "{text}: {:?}",
                answered(text)
            );
        }
        for text in ["the cat sat on the mat", "", "日本語"] {
            assert!(
                matches!(answered(text), Answer::NotRecognized(_)),
                "{text}: {:?}",
                answered(text)
            );
        }
    }
}
