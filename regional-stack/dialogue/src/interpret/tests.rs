use proptest::prelude::*;

use super::*;
use crate::command::{City, ClockTime, Day, HalfDay, Room, Rooms, TimerChoice, WeatherAspect};

fn check(text: &str, expected: &Command) {
    let heard = interpret(text);
    assert_eq!(heard.command, *expected, "{text:?} at {}", heard.confidence);
}

#[test]
fn commands_are_understood_as_they_are_said() {
    let weather = |city, day, about| Command::WeatherQuery { city, day, about };
    let clock = |hour, minute, half| Command::AlarmSet {
        time: Some(ClockTime { hour, minute, half }),
        day: None,
        part: None,
    };
    let timer = |duration_s| Command::TimerSet { duration_s, name: None };
    for (text, expected) in [
        ("what time is it", Command::TimeQuery { city: None }),
        (
            "what time is it in tokyo",
            Command::TimeQuery {
                city: Some(City::Tokyo),
            },
        ),
        (
            "What time is it in New York?",
            Command::TimeQuery {
                city: Some(City::NewYork),
            },
        ),
        ("what day is it today", Command::DateQuery),
        ("set a timer for ten minutes", timer(Some(600))),
        ("set a timer for one hour and thirty minutes", timer(Some(5400))),
        (
            "ten minutes",
            Command::Unsure {
                of: Box::new(timer(Some(600))),
                doubt: Doubt::Bare,
            },
        ),
        ("set a timer", timer(None)),
        (
            "cancel the timer",
            Command::TimerCancel {
                which: TimerChoice::Any,
            },
        ),
        (
            "how much time is left",
            Command::TimerQuery {
                which: TimerChoice::Any,
            },
        ),
        ("wake me at seven thirty", clock(7, 30, None)),
        ("set an alarm for six a m", clock(6, 0, Some(HalfDay::Am))),
        (
            "what is the weather",
            weather(None, Day::Today, WeatherAspect::Everything),
        ),
        (
            "what is the weather in london",
            weather(Some(City::London), Day::Today, WeatherAspect::Everything),
        ),
        (
            "what is the weather tomorrow",
            weather(None, Day::Tomorrow, WeatherAspect::Everything),
        ),
        (
            "will it rain tomorrow in paris",
            weather(Some(City::Paris), Day::Tomorrow, WeatherAspect::Rain),
        ),
        (
            "turn on the kitchen lights",
            Command::LightsOn {
                rooms: Room::Kitchen.into(),
            },
        ),
        (
            "turn off the bedroom light",
            Command::LightsOff {
                rooms: Room::Bedroom.into(),
            },
        ),
        (
            "turn the lights off please",
            Command::LightsOff {
                rooms: Rooms::default(),
            },
        ),
        (
            "dim the living room lights to thirty percent",
            Command::LightsDim {
                rooms: Room::LivingRoom.into(),
                percent: 30,
            },
        ),
        (
            "set the lights to fifty percent",
            Command::LightsDim {
                rooms: Rooms::default(),
                percent: 50,
            },
        ),
        ("stop", Command::Stop),
        ("never mind", Command::Stop),
        ("help", Command::Help),
        ("what can you do", Command::Help),
    ] {
        check(text, &expected);
    }
}

#[test]
fn mishearings_are_forgiven() {
    let timer = |duration_s| Command::TimerSet { duration_s, name: None };
    for (text, expected) in [
        (
            "wat time is it in tokio",
            Command::TimeQuery {
                city: Some(City::Tokyo),
            },
        ),
        (
            "what time is it in newyork",
            Command::TimeQuery {
                city: Some(City::NewYork),
            },
        ),
        ("set a time for ten minits", timer(Some(600))),
        // Three transcripts of the real recognizer.
        (
            "wil it rain tomor in paris",
            Command::WeatherQuery {
                city: Some(City::Paris),
                day: Day::Tomorrow,
                about: WeatherAspect::Rain,
            },
        ),
        (
            "what is the weather in ondon",
            Command::WeatherQuery {
                city: Some(City::London),
                day: Day::Today,
                about: WeatherAspect::Everything,
            },
        ),
        (
            "dim the leiv ing rom lights to fordy percent",
            Command::LightsDim {
                rooms: Room::LivingRoom.into(),
                percent: 40,
            },
        ),
        ("seta timer for fiften minutes", timer(Some(900))),
        (
            "turn of the bed room lihgt",
            Command::LightsOff {
                rooms: Room::Bedroom.into(),
            },
        ),
        (
            "turn on the kit chen lights",
            Command::LightsOn {
                rooms: Room::Kitchen.into(),
            },
        ),
        (
            "hey meridian could you please turn on the hall lights",
            Command::LightsOn {
                rooms: Room::Hall.into(),
            },
        ),
        (
            "cancle the timer",
            Command::TimerCancel {
                which: TimerChoice::Any,
            },
        ),
    ] {
        check(text, &expected);
    }
}

#[test]
fn what_is_not_a_command_stays_unknown() {
    for text in [
        "",
        "the quick brown fox jumps over the lazy dog",
        "play some jazz",
        "turn the lights",
        "tell me about the time machine in the museum",
        "are you a cat",
        "are you a bear",
        "can",
        "i can hear you",
        "the time has come to talk",
        "what is the meaning of life",
        "i like the lights of paris",
        "is it on",
        "one moment",
        "just a minute",
        "shop",
        "did you turn on the lights",
        "why is there a timer",
    ] {
        check(text, &Command::Unknown);
    }
    check(&"stop ".repeat(500), &Command::Unknown);
}

/// The command of `text`, if it changes anything.
fn acts(text: &str) -> Option<Command> {
    Some(interpret(text).command).filter(Command::changes_state)
}

#[test]
fn a_part_of_what_was_said_is_never_carried_out() {
    for text in [
        "turn on the lights at seven",
        "turn on the lights in ten minutes",
        "wake me at seven and a half",
        "wake me at seven every day",
        "set a timer for minus five minutes",
        "set a timer for 24/7 minutes",
        "set the lights to two hundred percent",
        "dim the lights from ten to seven percent",
        "turn off all lights except the kitchen",
        "turn on the kitchen instead of the bedroom light",
        "turn off the kitchen light and turn on the bedroom light",
        "set a timer for ten minutes and wake me at seven",
        "turn on the lights if it rains",
        "kitchen lights on?",
        "when i say so turn off the lights",
        "turn off the lights at the neighbours",
    ] {
        assert_eq!(acts(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(text in ".{0,200}") {
        let confidence = interpret(&text).confidence;
        prop_assert!((0.0..=1.0).contains(&confidence));
    }
}

#[test]
fn one_wrong_letter_never_turns_on_into_off() {
    let said = "turn on the kitchen lights";
    for (at, letter) in (0..said.len()).flat_map(|at| ('a'..='z').map(move |letter| (at, letter))) {
        let mut text = said.to_owned();
        text.replace_range(at..=at, letter.encode_utf8(&mut [0; 4]));
        // "of" is an "off" without its ending, and is meant to be read so.
        if text.starts_with("turn of ") {
            continue;
        }
        let command = interpret(&text).command;
        let command = if let Command::Unsure { of, .. } = command {
            *of
        } else {
            command
        };
        assert!(!matches!(command, Command::LightsOff { .. }), "{text}");
    }
}
