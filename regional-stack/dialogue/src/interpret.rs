//! From words to a command: the closest sentence wins if it is close enough.

use std::sync::LazyLock;

use crate::{
    command::{Command, Day, WeatherAspect},
    slot::Captured,
    template::{self, Heard, Sentence, Vocabulary},
};

/// What an utterance was taken to mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Interpretation {
    /// The request, slots included.
    pub command: Command,
    /// How close the utterance is to a sentence we know, in 0..=1.
    pub confidence: f32,
}

/// Below this the utterance is `unknown`. A quarter of the characters may be wrong, which is twice what the recognizer
/// gets wrong on a bad line, while a sentence about a city we do not know stays out.
const SIMILARITY_MIN: f32 = 0.74;

/// Longer utterances are no commands; the limit also bounds the work on outside input.
const WORDS_MAX: usize = 20;
const WORD_CHARS_MAX: usize = 24;

/// What the templates of one intent mean, given their slots.
type Meaning = fn(&Captured) -> Command;

const GRAMMAR: &[(Meaning, &[&str])] = &[
    (
        |slots| Command::TimeQuery { city: slots.city },
        &[
            "(what|what's|tell me) [is] the !time [is it]",
            "what !time is it [now|right now]",
            "(what|what's|tell me) [is] the !time [is it] in <city>",
            "what !time is it [now|right now] in <city>",
            "[the] !time in <city>",
            "[do you] !have the !time",
        ],
    ),
    (
        |_| Command::DateQuery,
        &[
            "what !day is (it|today) [today]",
            "what [is] the !date [is it] [today]",
            "what !date is it [today]",
            "what is today's !date",
            "what day of the week is (it|today)",
        ],
    ),
    (
        |slots| Command::TimerSet {
            duration_s: slots.duration_s,
        },
        &[
            "(set|start|create|make) (a|the) !timer for <duration>",
            "(set|start|create|make) (a|the) <duration> !timer",
            "!timer for <duration>",
            "<duration> !timer",
            "!remind me in <duration>",
            "<duration>",
            "(set|start|create|make) (a|the) !timer",
        ],
    ),
    (
        |_| Command::TimerCancel,
        &[
            "(!cancel|!stop|!delete|!remove|!clear) (the|my|all) [the] (!timer|!timers)",
            "turn !off the !timer",
        ],
    ),
    (
        |_| Command::TimerQuery,
        &[
            "how !much !time is !left [on the timer|on my timer]",
            "how much !longer [on the timer|on my timer]",
            "how much time (!remains|is !remaining) [on the timer]",
            "how !long is !left [on the timer|on my timer]",
            "(check|what is on) the !timer",
        ],
    ),
    (
        |slots| Command::AlarmSet { time: slots.clock },
        &[
            "!wake me [up] at <clock>",
            "(set|make|create) (an|the) !alarm (for|at) <clock>",
            "!alarm (for|at) <clock>",
            "(set|make|create) (an|the) !alarm",
            "!wake me [up]",
        ],
    ),
    (
        |slots| weather(slots, WeatherAspect::Everything),
        &[
            "(what is|what's|how is|tell me) the !weather [like] [<day>]",
            "(what is|what's|how is|tell me) the !weather [like] [<day>] in <city> [<day>]",
            "what will the !weather be [like] <day>",
            "what will the !weather be [like] <day> in <city>",
            "what will the !weather be [like] in <city> <day>",
            "[the] !weather [<day>]",
            "[the] !weather [<day>] in <city>",
            "what is the !forecast [for] [<day>] [<day>]",
            "how (!warm|!cold|!hot) is it [<day>]",
            "how (!warm|!cold|!hot) is it [<day>] in <city>",
            "what is the !temperature",
            "what is the !temperature in <city>",
        ],
    ),
    (
        |slots| weather(slots, WeatherAspect::Rain),
        &[
            "will it !rain [<day>]",
            "will it !rain in <city> [<day>]",
            "will it !rain <day> in <city>",
            "is it (!raining|going to !rain) [<day>]",
            "is it (!raining|going to !rain) [<day>] in <city>",
            "do i need an !umbrella [<day>]",
            "do i need an !umbrella [<day>] in <city>",
        ],
    ),
    (
        |slots| Command::LightsOn { room: slots.room },
        &[
            "(turn|switch) !on the [<room>] (!light|!lights)",
            "(turn|switch) the [<room>] (!light|!lights) !on",
            "(turn|switch) !on the (!light|!lights) in the <room>",
            "[<room>] (!light|!lights) !on",
        ],
    ),
    (
        |slots| Command::LightsOff { room: slots.room },
        &[
            "(turn|switch) !off the [<room>] (!light|!lights)",
            "(turn|switch) the [<room>] (!light|!lights) !off",
            "(turn|switch) !off the (!light|!lights) in the <room>",
            "[<room>] (!light|!lights) !off",
        ],
    ),
    (
        |slots| Command::LightsDim {
            room: slots.room,
            percent: slots.percent.unwrap_or(50),
        },
        &[
            "!dim the [<room>] (!light|!lights) [to <percent>]",
            "!dim the (!light|!lights) in the <room> [to <percent>]",
            "!set the [<room>] (!light|!lights) to <percent>",
            "!set the (!light|!lights) in the <room> to <percent>",
            "(turn|switch) the [<room>] (!light|!lights) to <percent>",
        ],
    ),
    (
        |_| Command::Stop,
        &[
            "!stop [it|that|talking]",
            "!cancel [that]",
            "!never !mind",
            "be !quiet",
            "!shut !up",
            "that is !enough",
        ],
    ),
    (
        |_| Command::Help,
        &[
            "!help [me]",
            "what can you !do [for me]",
            "what can i !ask [you]",
            "what can i !say",
            "how can you !help [me]",
        ],
    ),
];

fn weather(slots: &Captured, about: WeatherAspect) -> Command {
    Command::WeatherQuery {
        city: slots.city,
        day: slots.day.unwrap_or(Day::Today),
        about,
    }
}

struct Grammar {
    vocabulary: Vocabulary,
    sentences: Vec<(Meaning, Sentence)>,
}

static EXPANDED: LazyLock<Grammar> = LazyLock::new(|| {
    let mut vocabulary = Vocabulary::default();
    let mut sentences = Vec::new();
    for (meaning, templates) in GRAMMAR {
        for text in *templates {
            let expanded = template::expand(text, &mut vocabulary);
            sentences.extend(expanded.into_iter().map(|sentence| (*meaning, sentence)));
        }
    }
    Grammar { vocabulary, sentences }
});

/// What `transcript` asks for. Tolerates misheard letters, split and joined words, and polite padding.
pub fn interpret(transcript: &str) -> Interpretation {
    let unknown = |confidence| Interpretation {
        command: Command::Unknown,
        confidence,
    };
    let normalised: String = transcript
        .chars()
        .map(|letter| match letter.to_ascii_lowercase() {
            letter @ ('a'..='z' | '\'') => letter,
            // Punctuation from typed text separates words as a space would.
            _ => ' ',
        })
        .collect();
    let words: Vec<&str> = normalised.split_whitespace().take(WORDS_MAX + 1).collect();
    if words.is_empty() || words.len() > WORDS_MAX || words.iter().any(|word| word.len() > WORD_CHARS_MAX) {
        return unknown(0.0);
    }

    let heard = Heard::new(&words, &EXPANDED.vocabulary);
    let best = EXPANDED
        .sentences
        .iter()
        .filter_map(|(meaning, sentence)| heard.fit(sentence).map(|fit| (meaning, fit)))
        // The first of equals wins, so the order of the grammar settles ties the same way every time.
        .reduce(|best, next| {
            if next.1.similarity > best.1.similarity {
                next
            } else {
                best
            }
        });
    match best {
        Some((meaning, fit)) if fit.similarity >= SIMILARITY_MIN => Interpretation {
            command: meaning(&fit.captured),
            confidence: fit.similarity,
        },
        Some((_, fit)) => unknown(fit.similarity),
        None => unknown(0.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::command::{City, ClockTime, HalfDay, Room};

    fn check(text: &str, expected: &Command) {
        let heard = interpret(text);
        assert_eq!(heard.command, *expected, "{text:?} at {}", heard.confidence);
    }

    #[test]
    fn commands_are_understood_as_they_are_said() {
        let weather = |city, day, about| Command::WeatherQuery { city, day, about };
        let clock = |hour, minute, half| Command::AlarmSet {
            time: Some(ClockTime { hour, minute, half }),
        };
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
            (
                "set a timer for ten minutes",
                Command::TimerSet { duration_s: Some(600) },
            ),
            (
                "set a timer for one hour and thirty minutes",
                Command::TimerSet { duration_s: Some(5400) },
            ),
            ("ten minutes", Command::TimerSet { duration_s: Some(600) }),
            ("set a timer", Command::TimerSet { duration_s: None }),
            ("cancel the timer", Command::TimerCancel),
            ("how much time is left", Command::TimerQuery),
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
                    room: Some(Room::Kitchen),
                },
            ),
            (
                "turn off the bedroom light",
                Command::LightsOff {
                    room: Some(Room::Bedroom),
                },
            ),
            ("turn the lights off please", Command::LightsOff { room: None }),
            (
                "dim the living room lights to thirty percent",
                Command::LightsDim {
                    room: Some(Room::LivingRoom),
                    percent: 30,
                },
            ),
            (
                "set the lights to fifty percent",
                Command::LightsDim {
                    room: None,
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
            ("set a time for ten minits", Command::TimerSet { duration_s: Some(600) }),
            // Three that a recognizer really wrote.
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
                    room: Some(Room::LivingRoom),
                    percent: 40,
                },
            ),
            (
                "seta timer for fiften minutes",
                Command::TimerSet { duration_s: Some(900) },
            ),
            (
                "turn of the bed room lihgt",
                Command::LightsOff {
                    room: Some(Room::Bedroom),
                },
            ),
            (
                "turn on the kit chen lights",
                Command::LightsOn {
                    room: Some(Room::Kitchen),
                },
            ),
            (
                "hey meridian could you please turn on the hall lights",
                Command::LightsOn { room: Some(Room::Hall) },
            ),
            ("cancle the timer", Command::TimerCancel),
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
            "what is the weather in atlantis",
            "turn the lights",
            "set the lights to two hundred percent",
            "tell me about the time machine in the museum",
        ] {
            check(text, &Command::Unknown);
        }
        check(&"stop ".repeat(500), &Command::Unknown);
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
            // "of" is an "off" that lost its ending, and is meant to be read so.
            if text.starts_with("turn of ") {
                continue;
            }
            let command = interpret(&text).command;
            assert!(!matches!(command, Command::LightsOff { .. }), "{text}");
        }
    }
}
