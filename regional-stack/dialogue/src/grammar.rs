//! The sentences of the assistant's grammar, and the one that is closest to an utterance.

use std::sync::LazyLock;

use crate::{
    command::{AlarmChoice, ClockTime, Command, Day, DayPart, Doubt, PlaceQuestion, TimerChoice, WeatherAspect},
    slot::Captured,
    template::{self, Fit, Sentence, Utterance, Vocabulary},
};

/// Least similarity; below it the utterance is `unknown`. A quarter of the characters may be wrong, twice the
/// recognizer's error on a bad line.
const SIMILARITY_MIN: f32 = 0.74;
/// The same for utterances of at most [`SHORT_CHARS`] characters, where one wrong letter makes another word: "stop",
/// "shop".
const SHORT_SIMILARITY_MIN: f32 = 0.95;
const SHORT_CHARS: usize = 5;

/// The command that the templates of one intent stand for, given their slots; `Unknown` if the slots make no sense
/// there.
pub(crate) type Meaning = fn(&Captured) -> Command;
pub(crate) type Templates = &'static [(Meaning, &'static [&'static str])];

/// Sentences, prepared for comparison.
pub(crate) struct Grammar {
    vocabulary: Vocabulary,
    sentences: Vec<(Meaning, Sentence)>,
}

impl Grammar {
    pub(crate) fn new(templates: Templates) -> Self {
        let mut vocabulary = Vocabulary::default();
        let mut sentences = Vec::new();
        for (meaning, templates) in templates {
            for text in *templates {
                let expanded = template::expand(text, &mut vocabulary);
                sentences.extend(expanded.into_iter().map(|sentence| (*meaning, sentence)));
            }
        }
        Self { vocabulary, sentences }
    }

    /// The closest sentence that explains every word, if it is close enough; otherwise the closest of all.
    pub(crate) fn closest(&self, words: &[&str]) -> Option<(Command, Fit)> {
        if words.is_empty() {
            return None;
        }
        let heard = Utterance::new(words, &self.vocabulary);
        let enough = similarity_min(words);
        let rank = |fit: &Fit| (fit.leftover.is_empty() && fit.similarity >= enough, fit.similarity);
        self.sentences
            .iter()
            .filter_map(|(meaning, sentence)| {
                let fit = heard.fit(sentence)?;
                let command = meaning(&fit.captured);
                (command != Command::Unknown).then_some((command, fit))
            })
            // Of equal sentences the first wins, so the order of the grammar settles ties the same way every time.
            .reduce(|best, next| if rank(&next.1) > rank(&best.1) { next } else { best })
    }
}

pub(crate) fn similarity_min(words: &[&str]) -> f32 {
    let chars: usize = words.iter().map(|word| word.len()).sum();
    if chars <= SHORT_CHARS {
        SHORT_SIMILARITY_MIN
    } else {
        SIMILARITY_MIN
    }
}

/// The grammar of requests.
pub(crate) static REQUESTS: LazyLock<Grammar> = LazyLock::new(|| Grammar::new(GRAMMAR));

const GRAMMAR: Templates = &[
    (
        |slots| Command::TimeQuery { city: slots.city },
        &[
            "(what|what's|tell me) [is] the !time [is it]",
            "what !time is it [now|right now]",
            "do you know what !time it is",
            "(what|what's|tell me) [is] the !time [is it] in <city>",
            "what !time is it [now|right now] in <city>",
            "[the] !time in <city>",
            "[do you] !have the !time",
        ],
    ),
    (
        |slots| elsewhere(slots, PlaceQuestion::Time),
        &[
            "(what|what's|tell me) [is] the !time !in <elsewhere>",
            "what !time is it [now|right now] !in <elsewhere>",
            "[the] !time !in <elsewhere>",
        ],
    ),
    (
        |_| Command::DateQuery,
        &[
            "what !day is (it|today) [today]",
            "what [is] the !date [is it] [today]",
            "what !date is it [today]",
            "what's the !date [today]",
            "what is today's !date",
            "what day of the week is (it|today)",
        ],
    ),
    (
        set_timer,
        &[
            "(set|start|create|make|set me|give me) (a|the|another) !timer (for|to|of) <duration>",
            "(set|start|create|make|set me|give me) (a|the|another) <duration> !timer",
            "(set|start|create|make) (a|the|another) <name> !timer for <duration>",
            "(set|start|create|make) (a|the|another) <duration> <name> !timer",
            "(set|start|create|make) (a|the|another) <duration> !timer (!for|!called|!named) [the] <name>",
            "(set|start|create|make) (a|the|another) !timer for <duration> (!for|!called|!named) [the] <name>",
            "(set|start|create|make) (a|the|another) !timer (!for|!called|!named) [the] <name> for <duration>",
            "!timer for <duration>",
            "<duration> !timer",
            "!remind me in <duration>",
            "(set|start|create|make) (a|the|another) <name> !timer",
            "(set|start|create|make) (a|the|another) !timer",
            "(set|start|create|make) (a|the|another) !timer (!called|!named) <name>",
        ],
    ),
    (bare_timer, &["<duration>"]),
    (bare_named_timer, &["<name> !timer for <duration>"]),
    (
        |slots| Command::TimerCancel {
            which: which_timer(slots),
        },
        &[
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) !timer",
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) <name> !timer",
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) <duration> !timer",
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) !timer for <duration>",
            "(turn|switch) !off (the|my) [<name>|<duration>] !timer",
            "turn (the|my) !timer !off",
        ],
    ),
    (
        |_| Command::TimerCancel {
            which: TimerChoice::All,
        },
        &[
            "(!cancel|!stop|!delete|!remove|!clear|!end) [all|all of|all the|all my|both] (the|my) !timers",
            "turn !off [all|all the|all my|both] (the|my) !timers",
        ],
    ),
    (
        |slots| Command::TimerQuery {
            which: which_timer(slots),
        },
        &[
            "how !much !time is !left [on the timer|on my timer]",
            "how !much !time is !left on (the|my) (<name>|<duration>) !timer",
            "[what is|tell me] [the] !time !left on (the|my) [<name>|<duration>] !timer",
            "[what is|what's] !left on (the|my) [<name>|<duration>] !timer",
            "how !much !time (do i have|does the timer have|is there) !left",
            "how much !longer [on the timer|on my timer]",
            "how much time (!remains|is !remaining) [on the timer]",
            "how !long is !left [on the timer|on my timer]",
            "how !long is !left on (the|my) (<name>|<duration>) !timer",
            "(check|what is on) (the|my) !timer",
            "(check|what is on) (the|my) <name> !timer",
        ],
    ),
    (
        |_| Command::TimerQuery {
            which: TimerChoice::All,
        },
        &[
            "(what|which) !timers (do i have|are there|are set|are running|are on)",
            "what (are|is) (the|my) !timers",
            "(list|show|read|tell me|check) [all] (the|my) !timers",
            "(do i have|are there|are) any !timers [set|running|on]",
            "(do i have|is there) a !timer [set|running|on]",
            "!is the !timer (on|running|set)",
        ],
    ),
    (
        |slots| match slots.duration_s() {
            Some(add_s) => Command::TimerAdd {
                which: slots.name.clone().map_or(TimerChoice::Any, TimerChoice::Named),
                add_s,
            },
            None => Command::Unknown,
        },
        &[
            "!add <duration> to (the|my) [<name>] !timer",
            "(!extend|!lengthen) (the|my) [<name>] !timer by <duration>",
            "!give (the|my) [<name>] !timer <duration>",
            "!make (the|my) [<name>] !timer <duration> !longer",
        ],
    ),
    (
        change_timer,
        &[
            "(!change|!move|!reset|!adjust|!update) (the|my) [<name>|<duration>] !timer to <duration>",
            "(!change|!move|!reset|!adjust|!update) (the|my) !timer (!for|!from) <duration> to <duration>",
            "!make (the|my) [<name>|<duration>] !timer <duration> [long|instead]",
        ],
    ),
    (
        |slots| Command::TimerChange {
            which: which_timer(slots),
            duration_s: None,
        },
        &[
            "(!change|!reset|!adjust|!update) (the|my) [<name>|<duration>] !timer",
            "(!change|!reset|!adjust|!update) (the|my) !timer !for <duration>",
            // "change the timer to five": half of a duration.
            "(!change|!reset|!adjust|!update) (the|my) [<name>] !timer !to",
        ],
    ),
    (
        |slots| match slots.duration_s() {
            Some(take_s) => Command::TimerSubtract {
                which: slots.name.clone().map_or(TimerChoice::Any, TimerChoice::Named),
                take_s,
            },
            None => Command::Unknown,
        },
        &[
            "(!take|!cut) <duration> (!off|!off of|!from|!away from) (the|my) [<name>] !timer",
            "(!subtract|!remove|!deduct) <duration> (!off|!from) (the|my) [<name>] !timer",
            "(!shorten|!reduce|!decrease|!cut) (the|my) [<name>] !timer by <duration>",
            "!make (the|my) [<name>] !timer <duration> !shorter",
        ],
    ),
    (
        set_alarm,
        &[
            "!wake me [up] at <clock> [<day>|on <day>]",
            "!wake me [up] (<day>|on <day>) at <clock>",
            "!get me up at <clock> [<day>|on <day>]",
            "(set|make|create) (an|the|my) !alarm (for|at) <clock> [<day>|on <day>|for <day>]",
            "!set [me] (an|the|my) !alarm (for|at|to) <clock> [<day>|on <day>]",
            "(set|make|create) (an|the|my) !alarm (for <day>|on <day>|<day>) [at] <clock>",
            "(set|make|create) (an|the|my) <clock> !alarm [<day>|on <day>|for <day>]",
            "!alarm (for|at) <clock> [<day>|on <day>]",
            "<clock> !alarm",
            "(set|make|create) (an|the|another) !alarm [<day>|on <day>|for <day>]",
            "!wake me [up] [<day>|on <day>]",
        ],
    ),
    (
        |slots| match slots.duration_s() {
            Some(duration_s) => Command::AlarmIn { duration_s },
            None => Command::Unknown,
        },
        &[
            "!wake me [up] (in|after) <duration>",
            "(set|make|create) (an|the) !alarm (in|for) <duration>",
            "!alarm in <duration>",
        ],
    ),
    (
        |_| Command::AlarmQuery,
        &[
            "(what|which) !alarms (do i have|are there|are set|are on)",
            "what are (the|my) !alarms",
            "(list|show|read|tell me|check) [all] (the|my) (!alarms|!alarm)",
            "(do i have|are there|are|have i) any !alarms [set|on]",
            "are any !alarms set",
            "(do i have|is there) an !alarm [set|on]",
            "!is (the|my|an) !alarm (set|on)",
            "!when (is|are) (the|my) [next] (!alarm|!alarms) [set] [for]",
            "!when does (the|my) [next] !alarm (ring|go off|sound)",
            "!when (do i wake up|will you wake me)",
            "what time is (the|my) [next] !alarm [set] [for]",
            "(!the|!my) !alarm (<day>|on <day>|for <day>)",
        ],
    ),
    (
        |slots| Command::AlarmCancel {
            which: {
                let (time, day) = slots.when();
                which_alarm(time, day, slots.part)
            },
        },
        &[
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) [<clock>] !alarm",
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) !alarm (for|at) <clock> [<day>|on <day>|for <day>]",
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) !alarm (<day>|on <day>|for <day>) [at <clock>]",
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) <clock> !alarm (<day>|on <day>|for <day>)",
            "(!cancel|!stop|!delete|!remove|!clear|!end) (the|my) <day> [<clock>] !alarm",
            "(turn|switch) !off (the|my) !alarm (<day>|on <day>|for <day>)",
            "(turn|switch) !off (the|my) [<clock>] !alarm",
            "turn (the|my) !alarm !off",
        ],
    ),
    (
        |_| Command::AlarmCancel {
            which: AlarmChoice::All,
        },
        &[
            "(!cancel|!stop|!delete|!remove|!clear|!end) [all|all of|all the|all my|both] (the|my) !alarms",
            "(turn|switch) !off [all|all the|all my|both] (the|my) !alarms",
        ],
    ),
    (
        move_alarm,
        &[
            "(!change|!move|!reset|!reschedule) (the|my) !alarm to <clock> [<day>|on <day>]",
            "(!change|!move|!reset|!reschedule) (the|my) <clock> !alarm to <clock> [<day>|on <day>]",
            "(!change|!move|!reset|!reschedule) (the|my) !alarm for <clock> to <clock> [<day>|on <day>]",
            "(!change|!move|!reset|!reschedule) (the|my) !alarm from <clock> to <clock> [<day>|on <day>]",
        ],
    ),
    (
        // The day stays the alarm's own.
        |slots| match slots.clocks.as_slice() {
            [time] => Command::AlarmMove {
                which: which_alarm(None, slots.day, None),
                time: Some(*time),
                day: None,
            },
            [from, to] => Command::AlarmMove {
                which: which_alarm(Some(*from), slots.day, None),
                time: Some(*to),
                day: None,
            },
            _ => Command::Unknown,
        },
        &[
            "(!change|!move|!reset|!reschedule) (the|my) !alarm (<day>|on <day>|for <day>) to <clock>",
            "(!change|!move|!reset|!reschedule) (the|my) <day> !alarm to <clock>",
            "(!change|!move|!reset|!reschedule) (the|my) !alarm (for|at) <clock> (<day>|on <day>) to <clock>",
        ],
    ),
    (
        |slots| Command::AlarmMove {
            which: which_alarm(slots.clocks.first().copied(), slots.day, None),
            time: None,
            day: None,
        },
        &[
            "(!change|!move|!reset|!reschedule) (the|my) [<clock>|<day>] !alarm",
            "(!change|!move|!reset|!reschedule) (the|my) !alarm (!for|!at) <clock> [<day>|on <day>]",
            "(!change|!move|!reset|!reschedule) (the|my) !alarm (!on|!for) <day>",
        ],
    ),
    (
        |slots| Command::Snooze {
            duration_s: slots.duration_s(),
        },
        &[
            "!snooze [it|the alarm|my alarm|the timer]",
            "!snooze [it|the alarm|my alarm|the timer] for <duration>",
            "!snooze <duration>",
            "(!remind|!wake) me !again in <duration>",
        ],
    ),
    (
        |slots| weather(slots, WeatherAspect::Everything),
        &[
            "(what is|what's|how is|how's|tell me) the !weather [like] [<day>|on <day>|for <day>]",
            "(what is|what's|how is|how's|tell me) the !weather [like] [<day>|on <day>] (in|for) <city> [<day>|on <day>]",
            "what will the !weather be [like] (<day>|on <day>)",
            "what will the !weather be [like] (<day>|on <day>) in <city>",
            "what will the !weather be [like] in <city> [<day>|on <day>]",
            "[the] !weather [<day>|for <day>]",
            "[the] !weather [<day>] in <city> [<day>]",
            "what is the !forecast [for] [<day>]",
            "what is the !forecast (for|in) <city> [<day>]",
            "how (!warm|!cold|!hot) is it [<day>]",
            "how (!warm|!cold|!hot) is it [<day>] in <city> [<day>]",
            "how (!warm|!cold|!hot) will it be (<day>|on <day>) [in <city>]",
            "what is the !temperature [<day>]",
            "what is the !temperature in <city>",
        ],
    ),
    (
        |slots| weather(slots, WeatherAspect::Rain),
        &[
            "will it !rain [<day>|on <day>]",
            "will it !rain in <city> [<day>|on <day>]",
            "will it !rain (<day>|on <day>) in <city>",
            "is it (!raining|going to !rain) [<day>|on <day>]",
            "is it (!raining|going to !rain) [<day>] in <city> [<day>|on <day>]",
            "do i need an !umbrella [<day>]",
            "do i need an !umbrella [<day>] in <city> [<day>]",
        ],
    ),
    (
        |slots| weather(slots, WeatherAspect::Snow),
        &[
            "will it !snow [<day>|on <day>]",
            "will it !snow in <city> [<day>|on <day>]",
            "will it !snow (<day>|on <day>) in <city>",
            "is it (!snowing|going to !snow) [<day>|on <day>]",
            "is it (!snowing|going to !snow) [<day>] in <city> [<day>|on <day>]",
        ],
    ),
    (
        |slots| elsewhere(slots, PlaceQuestion::Weather),
        &[
            "(what is|what's|how is|how's|tell me) the !weather [like] [<day>|on <day>] (!in|!for) <elsewhere> [<day>|on <day>]",
            "what will the !weather be [like] !in <elsewhere> [<day>|on <day>]",
            "what will the !weather be [like] (<day>|on <day>) !in <elsewhere>",
            "[the] !weather [<day>] !in <elsewhere>",
            "what is the !forecast (!for|!in) <elsewhere> [<day>]",
            "how (!warm|!cold|!hot) is it [<day>] !in <elsewhere> [<day>]",
            "what is the !temperature !in <elsewhere>",
            "will it (!rain|!snow) !in <elsewhere> [<day>|on <day>]",
            "will it (!rain|!snow) (<day>|on <day>) !in <elsewhere>",
            "is it (!raining|going to !rain|!snowing) [<day>] !in <elsewhere> [<day>]",
            "do i need an !umbrella [<day>] !in <elsewhere>",
        ],
    ),
    (
        |slots| Command::LightsOn { rooms: slots.rooms },
        &[
            "(turn|switch|put) !on [all|!all !of] the [<room>] (!light|!lights)",
            "(turn|switch|put) [all|!all !of] the [<room>] (!light|!lights) !on",
            "(turn|switch|put) !on [all|!all !of] the (!light|!lights) in the <room>",
            "(turn|switch|put) [all|!all !of] the (!light|!lights) in the <room> !on",
            "(turn|switch|put) !on every !light",
            "(turn|switch|put) !on [all] the (!light|!lights) (!everywhere|in all !rooms|in every !room|in the !house)",
            "[all|all the] [<room>] (!light|!lights) !on",
        ],
    ),
    (
        |slots| Command::LightsOff { rooms: slots.rooms },
        &[
            "(turn|switch|put) !off [all|!all !of] the [<room>] (!light|!lights)",
            "(turn|switch|put) [all|!all !of] the [<room>] (!light|!lights) !off",
            "(turn|switch|put) !off [all|!all !of] the (!light|!lights) in the <room>",
            "(turn|switch|put) [all|!all !of] the (!light|!lights) in the <room> !off",
            "(turn|switch|put) !off every !light",
            "(turn|switch|put) !off [all] the (!light|!lights) (!everywhere|in all !rooms|in every !room|in the !house)",
            "[all|all the] [<room>] (!light|!lights) !off",
        ],
    ),
    (
        |slots| Command::LightsDim {
            rooms: slots.rooms,
            percent: slots.percent.unwrap_or(50),
        },
        &[
            "!dim [all] the [<room>] (!light|!lights)",
            "!dim [all] the [<room>] (!light|!lights) to <percent>",
            "!dim the (!light|!lights) in the <room>",
            "!dim the (!light|!lights) in the <room> to <percent>",
            "!set [all] the [<room>] (!light|!lights) to <percent>",
            "!set the (!light|!lights) in the <room> to <percent>",
            "(turn|switch) [all] the [<room>] (!light|!lights) to <percent>",
        ],
    ),
    (
        |slots| Command::LightsQuery { rooms: slots.rooms },
        &[
            "(!is|!are) [all|any of] the [<room>] (!light|!lights) [still] (!on|!off|!dimmed)",
            "(!is|!are) the (!light|!lights) in the <room> [still] (!on|!off|!dimmed)",
            "(!is|!are) the (!light|!lights) [still] (!on|!off) in the <room>",
            "(!is|!are) (any|all) (!light|!lights) [still] (!on|!off)",
            "(!is|!are) there any (!light|!lights) [still] (!on|!off)",
            "(!what|!which) (!light|!lights) (is|are) [still] (!on|!off)",
            "!did i (leave|turn|switch) [!on|!off] the [<room>] (!light|!lights) (!on|!off)",
            "!how bright (is|are) the [<room>] (!light|!lights)",
        ],
    ),
    (
        |_| Command::Stop,
        &[
            "!stop [it|that|talking]",
            "!cancel",
            "!never !mind",
            "be !quiet",
            "!shut !up",
            "that is !enough",
        ],
    ),
    (
        |_| Command::Undo,
        &[
            "!cancel (!that|!it|!this)",
            "!undo (that|it|this)",
            "!undo",
            "!take !that !back",
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

fn set_timer(slots: &Captured) -> Command {
    Command::TimerSet {
        duration_s: slots.duration_s(),
        name: slots.name.clone(),
    }
}

/// A bare duration may ask for a timer. "One moment" and the like are what people say to each other.
fn bare_timer(slots: &Captured) -> Command {
    match slots.duration_s() {
        Some(1 | 60) => Command::Unknown,
        _ => Command::Unsure {
            of: Box::new(set_timer(slots)),
            doubt: Doubt::Bare,
        },
    }
}

/// Without a verb, a timer's name is one word: "she started" is a clause.
fn bare_named_timer(slots: &Captured) -> Command {
    match &slots.name {
        Some(name) if !name.contains(' ') => set_timer(slots),
        _ => Command::Unknown,
    }
}

pub(crate) fn which_timer(slots: &Captured) -> TimerChoice {
    match (&slots.name, slots.duration_s()) {
        (Some(name), _) => TimerChoice::Named(name.clone()),
        (None, Some(seconds)) => TimerChoice::Lasting(seconds),
        (None, None) => TimerChoice::Any,
    }
}

/// "change the ten minute timer to five minutes": of two durations the first says which timer is meant.
fn change_timer(slots: &Captured) -> Command {
    let which = match (&slots.name, slots.durations.as_slice()) {
        (Some(name), [_]) => TimerChoice::Named(name.clone()),
        (None, [_]) => TimerChoice::Any,
        (None, [before, _]) => TimerChoice::Lasting(*before),
        _ => return Command::Unknown,
    };
    Command::TimerChange {
        which,
        duration_s: slots.duration_s(),
    }
}

fn which_alarm(time: Option<ClockTime>, day: Option<Day>, part: Option<DayPart>) -> AlarmChoice {
    match (time, day) {
        (None, None) => AlarmChoice::Any,
        (Some(_), day) => AlarmChoice::One { time, day, part: None },
        (None, day) => AlarmChoice::One { time, day, part },
    }
}

fn move_alarm(slots: &Captured) -> Command {
    let from = slots.clocks.first().filter(|_| slots.clocks.len() > 1);
    let (time, day) = slots.when();
    Command::AlarmMove {
        which: which_alarm(from.copied(), None, None),
        time,
        day,
    }
}

fn set_alarm(slots: &Captured) -> Command {
    let (time, day) = slots.when();
    Command::AlarmSet {
        time,
        day,
        part: slots.part,
    }
}

fn weather(slots: &Captured, about: WeatherAspect) -> Command {
    Command::WeatherQuery {
        city: slots.city,
        day: slots.day.unwrap_or(Day::Today),
        about,
    }
}

fn elsewhere(slots: &Captured, about: PlaceQuestion) -> Command {
    match &slots.elsewhere {
        Some(place) => Command::Elsewhere {
            about,
            place: place.clone(),
        },
        None => Command::Unknown,
    }
}
