//! The meaning of an utterance in its context: as the answer to an open question, as the acknowledgement of an alarm
//! that rings, and in view of the recognizer's confidence.

use std::sync::LazyLock;

use topology::Moment;

use crate::{
    command::{AlarmChoice, Command, Doubt, TimerChoice},
    edit_distance::edit_distance,
    grammar::Grammar,
    interpret::{Interpretation, Origin, interpret, read_as},
    lexicon, numbers,
    quantity::unit_s,
    request::Request,
    slot::Captured,
    state::{DialogueState, Topic},
};

/// Least confidence of the recognizer for any action or reply. Nearly all commands reach it, even by voices that the
/// recognizer does badly on, and noise above it does not come out as several words of a command (`cargo test -p
/// speech-torch --test speech-torch calibration -- --ignored --nocapture` prints the figures behind these bounds).
pub const CONFIDENCE_MIN: f32 = 0.60;
/// The same for a single word that answers no question and no ring. Noise comes out as "help" or "stop" now and then; a
/// spoken word is heard with more confidence.
const WORD_CONFIDENCE_MIN: f32 = 0.85;
/// Words that are no command get a reply ("sorry …") only if there are several and they reach this confidence.
/// Otherwise the device would talk to noise and to conversations in the room.
const SORRY_MIN: f32 = 0.80;

/// Interprets `text`, said at `now` to the device whose memory is `state`. `asr_confidence` is the recognizer's confidence in
/// 0..=1; `None` for typed text.
pub fn understand(state: &DialogueState, text: &str, asr_confidence: Option<f32>, now: Moment) -> Interpretation {
    let certain = |command| Interpretation {
        command,
        confidence: 1.0,
    };
    let request = Request::read(text);
    let words = request.as_ref().map(Request::words).unwrap_or_default();
    // "Okay" is for the newest sound: a ring, or a question asked after it.
    let more = state.is_ringing(now).then(|| more_time(&words)).flatten();
    let is_for_ring = state.is_ringing(now) && acknowledges_ring(&words) || more.is_some();
    let answer = state
        .asked(now)
        .filter(|_| !(is_for_ring && state.rang_since_asked()))
        .and_then(|topic| answer(topic, state, &words, now));
    let (heard, expected) = match answer {
        Some(command) => (certain(command), true),
        None if is_for_ring => {
            let silence = more.map_or(Command::Stop, |seconds| Command::Snooze {
                duration_s: Some(seconds),
            });
            (certain(silence), true)
        }
        None => {
            let origin = if asr_confidence.is_some() {
                Origin::Heard
            } else {
                Origin::Typed
            };
            let heard = read_as(text, origin);
            let quiets = matches!(heard.command, Command::Stop | Command::Undo | Command::Snooze { .. });
            (heard, state.is_ringing(now) && quiets)
        }
    };
    let sure =
        asr_confidence.is_none_or(|asr_confidence| asr_confidence >= confidence_needed(&heard.command, text, expected));
    Interpretation {
        // A confidence that is not a number compares as false, so it is rejected too.
        command: if sure { heard.command } else { Command::Rejected },
        confidence: heard.confidence,
    }
}

/// Least confidence at which `text` may mean `command`. An `expected` command, one that answers a question or a ring,
/// needs less.
fn confidence_needed(command: &Command, text: &str, expected: bool) -> f32 {
    let single = text.split_whitespace().count() == 1;
    match command {
        _ if expected => CONFIDENCE_MIN,
        Command::Unknown if single => f32::INFINITY,
        Command::Unknown | Command::Unsure { .. } | Command::Elsewhere { .. } => SORRY_MIN,
        _ if single => WORD_CONFIDENCE_MIN,
        _ => CONFIDENCE_MIN,
    }
}

/// Words that mean "stop" to something that rings, although they mean nothing otherwise.
fn acknowledges_ring(words: &[&str]) -> bool {
    const QUIET: &[&str] = &[
        "okay",
        "ok",
        "thanks",
        "thank you",
        "enough",
        "quiet",
        "silence",
        "off",
        "turn it off",
        "turn that off",
        "turn off",
        "switch it off",
        "shut it off",
        "i am awake",
        "i'm awake",
        "i am up",
        "i'm up",
        "got it",
        "i heard you",
        "stop ringing",
        "stop the ringing",
        "yes",
        "good morning",
        "no more",
        "that's enough",
        "all right",
        "stop the noise",
        "done",
    ];
    QUIET.contains(&words.join(" ").as_str())
}

/// The seconds of "ten more minutes", which something that rings is to wait.
fn more_time(words: &[&str]) -> Option<u32> {
    let says_more = words.iter().any(|word| matches!(*word, "more" | "another"));
    says_more
        .then(|| MORE.answer(words, |slots| slots.duration_s()))
        .flatten()
}

fn answer(topic: &Topic, state: &DialogueState, words: &[&str], now: Moment) -> Option<Command> {
    let said = words.join(" ");
    const NO: &[&str] = &[
        "no",
        "nope",
        "nothing",
        "none",
        "no thanks",
        "no thank you",
        "forget it",
        "never mind",
        "cancel",
        "cancel that",
        "stop",
        "don't",
        "do not",
        "not now",
        "no i didn't",
        "no i did not",
        "nah",
    ];
    if NO.contains(&said.as_str()) {
        // "No" answers the question. It does not acknowledge a ring that began meanwhile.
        let quiets = matches!(said.as_str(), "stop" | "cancel" | "cancel that" | "never mind");
        return Some(if state.is_ringing(now) && !quiets {
            Command::Declined {
                of: Box::new(Command::Help),
            }
        } else {
            Command::Stop
        });
    }
    // "Not the pasta timer" excludes one timer and chooses none.
    if words.iter().any(|word| lexicon::is_negation(word)) {
        return None;
    }
    match topic {
        Topic::TimerLength { name, number } => {
            // "set a timer for ten", "minutes"
            let unit = match words {
                [unit] => number.zip(unit_s(unit)),
                _ => None,
            };
            let duration_s = match unit {
                Some((number, unit_s)) => number.checked_mul(unit_s)?,
                None => timer_length(words)?,
            };
            Some(Command::TimerSet {
                duration_s: Some(duration_s),
                name: name.clone(),
            })
        }
        Topic::TimerChange { which } => timer_length(words).map(|duration_s| Command::TimerChange {
            which: which.clone(),
            duration_s: Some(duration_s),
        }),
        Topic::AlarmTime { day, part } => TIMES.answer(words, |slots| {
            let (day, part) = (slots.day.or(*day), slots.part.or(*part));
            match (slots.clocks.last(), slots.duration_s()) {
                (Some(time), _) => {
                    let (time, day) = time.on(day, part);
                    Some(Command::AlarmSet {
                        time: Some(time),
                        day,
                        part: None,
                    })
                }
                (None, Some(duration_s)) => Some(Command::AlarmIn { duration_s }),
                // "Tomorrow morning" is half of the answer: keep the day, and ask for the time again.
                (None, None) => slots
                    .day
                    .is_some()
                    .then_some(Command::AlarmSet { time: None, day, part }),
            }
        }),
        Topic::AlarmMove { which } => TIMES.answer(words, |slots| {
            let (time, day) = slots.when();
            time.is_some().then_some(Command::AlarmMove {
                which: which.clone(),
                time,
                day,
            })
        }),
        Topic::WhichTimer { add_s, listed } => {
            let which = timers(state, listed, words)?;
            Some(match add_s {
                Some(add_s) => Command::TimerAdd { which, add_s: *add_s },
                None => Command::TimerCancel { which },
            })
        }
        Topic::WhichToShorten { take_s, listed } => Some(Command::TimerSubtract {
            which: timers(state, listed, words)?,
            take_s: *take_s,
        }),
        Topic::WhichToChange { duration_s, listed } => Some(Command::TimerChange {
            which: one_timer(state, listed, words)?,
            duration_s: *duration_s,
        }),
        Topic::WhichAlarm { listed } => {
            let which = match (is_all(&said), listed.as_slice()) {
                (false, _) => one_alarm(state, listed, words)?,
                // The release that asked did not write down which alarms it listed, so this one asks again.
                (true, []) => AlarmChoice::Any,
                (true, listed) => AlarmChoice::All.among(listed),
            };
            Some(Command::AlarmCancel { which })
        }
        Topic::WhichToMove { time, day, listed } => Some(Command::AlarmMove {
            which: one_alarm(state, listed, words)?,
            time: *time,
            day: *day,
        }),
        Topic::Confirm { command } => {
            const YES: &[&str] = &[
                "yes",
                "yeah",
                "yep",
                "yup",
                "sure",
                "correct",
                "right",
                "exactly",
                "do it",
                "do that",
                "that's right",
                "that is right",
                "i did",
                "yes i did",
                "yes do it",
                "yes do that",
                "okay",
                "ok",
                "of course",
            ];
            if !YES.contains(&said.as_str()) {
                return None;
            }
            let meant = interpret(command).command;
            (!matches!(meant, Command::Unsure { .. } | Command::Unknown)).then_some(meant)
        }
        Topic::Unknown => None,
    }
}

/// The duration, in seconds, that `words` answer. A bare number means minutes.
fn timer_length(words: &[&str]) -> Option<u32> {
    match numbers::read_number(strip(words, &["for", "to", "make it"])) {
        Some(minutes @ 1..=600) => Some(minutes * 60),
        _ => LENGTHS.answer(words, Captured::duration_s),
    }
}

/// The timers that `words` choose from those that the question listed.
fn timers(state: &DialogueState, listed: &[Moment], words: &[&str]) -> Option<TimerChoice> {
    match (is_all(&words.join(" ")), listed) {
        (false, _) => one_timer(state, listed, words),
        // The release that asked did not write down which timers it listed, so this one asks again.
        (true, []) => Some(TimerChoice::Any),
        (true, listed) => Some(TimerChoice::All.among(listed)),
    }
}

fn one_timer(state: &DialogueState, listed: &[Moment], words: &[&str]) -> Option<TimerChoice> {
    let in_order_of_setting: Vec<Moment> = state.timers.iter().map(|timer| timer.ends_at).collect();
    let listed = if listed.is_empty() {
        &in_order_of_setting
    } else {
        listed
    };
    if let Some(number) = nth(words, listed.len()) {
        return Some(TimerChoice::Nth(number).among(listed));
    }
    let choice = TIMERS.answer(words, |slots| match (&slots.name, slots.duration_s()) {
        // A name that no timer has is no answer: "turn left".
        (Some(name), _) => {
            let names = state.timers.iter().filter_map(|timer| timer.name.as_ref());
            let meant = names.clone().find(|known| edit_distance(known, name) <= 1)?;
            Some(TimerChoice::Named(meant.clone()))
        }
        (None, Some(seconds)) => Some(TimerChoice::Lasting(seconds)),
        (None, None) => None,
    });
    Some(choice?.among(listed))
}

/// The alarm that `words` choose from those that the question listed.
fn one_alarm(state: &DialogueState, listed: &[Moment], words: &[&str]) -> Option<AlarmChoice> {
    let in_order_of_setting: Vec<Moment> = state.alarms.iter().map(|alarm| alarm.rings_at).collect();
    let listed = if listed.is_empty() {
        &in_order_of_setting
    } else {
        listed
    };
    if let Some(number) = nth(words, listed.len()) {
        return Some(AlarmChoice::Nth(number).among(listed));
    }
    let choice = ALARMS.answer(words, |slots| {
        let (time, day) = slots.when();
        (time.is_some() || day.is_some()).then_some(AlarmChoice::One {
            time,
            day,
            part: slots.part.filter(|_| time.is_none()),
        })
    });
    Some(choice?.among(listed))
}

/// Index, from 0, of "the second one" among the `count` that the question listed.
fn nth(words: &[&str], count: usize) -> Option<usize> {
    let words = strip(words, &["the"]);
    let words = match words {
        [rest @ .., "one" | "timer" | "alarm"] => rest,
        [rest @ .., "of", "them"] => rest,
        words => words,
    };
    let [word] = words else { return None };
    let number = match *word {
        "last" => count.checked_sub(1)?,
        word => (0..count).find(|number| numbers::spell_ordinal(u32::try_from(number + 1).unwrap_or(0)) == word)?,
    };
    Some(number)
}

fn is_all(said: &str) -> bool {
    const ALL: &[&str] = &[
        "all",
        "both",
        "everything",
        "all of them",
        "both of them",
        "all timers",
        "all the timers",
        "all alarms",
        "all the alarms",
        "every one",
        "every one of them",
    ];
    ALL.contains(&said)
}

fn strip<'a, 'b>(words: &'a [&'b str], prefixes: &[&str]) -> &'a [&'b str] {
    let found = prefixes.iter().find_map(|prefix| {
        let length = prefix.split(' ').count();
        let head = words.get(..length)?.join(" ");
        (head == *prefix && words.len() > length).then(|| &words[length..])
    });
    found.unwrap_or(words)
}

/// The sentences that answer one kind of question.
struct Answers(LazyLock<Grammar>);

/// Only the slots of an answer count, so every sentence stands for the same command.
fn stands_for_slots(_: &Captured) -> Command {
    Command::Help
}

static LENGTHS: Answers = Answers(LazyLock::new(|| {
    Grammar::new(&[(
        stands_for_slots,
        &["[for|to|make it|set it for|set it to|make it for|about] <duration>"],
    )])
}));

static MORE: Answers = Answers(LazyLock::new(|| {
    Grammar::new(&[(
        stands_for_slots,
        &["[give me|give it|i need|wait|in|for] <duration> [to sleep]"],
    )])
}));

static TIMES: Answers = Answers(LazyLock::new(|| {
    Grammar::new(&[(
        stands_for_slots,
        &[
            "[at|for|to|about|around|at about|at around|make it|make it at|set it for|wake me at] <clock> [<day>|on <day>|for <day>]",
            "[for|on] <day> at [about|around] <clock>",
            "[for|on] <day>",
            "[the] <clock> (alarm|one)",
            "[the] alarm (for|at) <clock>",
            "in <duration>",
        ],
    )])
}));

static ALARMS: Answers = Answers(LazyLock::new(|| {
    Grammar::new(&[(
        stands_for_slots,
        &[
            "[at|for|the one at|the one for|the alarm at|the alarm for] <clock> [<day>|on <day>|for <day>]",
            "[for|on|the one for|the one on|the alarm on|the alarm for] <day> [at <clock>]",
            "[the] <clock> (alarm|one) [<day>|on <day>]",
            "[the|my] <day> (alarm|one)",
        ],
    )])
}));

static TIMERS: Answers = Answers(LazyLock::new(|| {
    Grammar::new(&[(
        stands_for_slots,
        &[
            "[the|my] <name> [timer|one]",
            "[the|my] <duration> [timer|one]",
            "[the|my] timer for [the] (<duration>|<name>)",
            "[the] one for (<duration>|<name>)",
        ],
    )])
}));

impl Answers {
    /// Reads all of `words` as an answer.
    fn answer<T>(&self, words: &[&str], read: impl Fn(&Captured) -> Option<T>) -> Option<T> {
        /// An answer is short and nearly all slot, so the words around the slot must be right.
        const SIMILARITY_MIN: f32 = 0.8;
        let (_, fit) = self.0.closest(words)?;
        if !fit.leftover.is_empty() || fit.similarity < SIMILARITY_MIN {
            return None;
        }
        read(&fit.captured)
    }
}

/// The question that asks for the part of a command in doubt; `None` if no question is safe.
pub(crate) fn topic_of_doubt(of: &Command, doubt: Doubt) -> Option<Topic> {
    match (of, doubt) {
        (Command::TimerChange { which, .. }, Doubt::Number) => Some(Topic::TimerChange { which: which.clone() }),
        (Command::TimerSet { name, .. }, Doubt::Number | Doubt::Unit(_)) => Some(Topic::TimerLength {
            name: name.clone(),
            number: match doubt {
                Doubt::Unit(number) => Some(number),
                _ => None,
            },
        }),
        // The day may have been misunderstood too, so the question asks for day and time.
        (Command::AlarmSet { .. } | Command::AlarmIn { .. }, Doubt::Number) => {
            Some(Topic::AlarmTime { day: None, part: None })
        }
        (Command::AlarmMove { which, .. }, Doubt::Number) => Some(Topic::AlarmMove { which: which.clone() }),
        (_, Doubt::Number | Doubt::Unit(_) | Doubt::Opposite | Doubt::Exception | Doubt::Later) => None,
        (of, Doubt::Words | Doubt::Bare) => of.phrase().map(|command| Topic::Confirm { command }),
    }
}
