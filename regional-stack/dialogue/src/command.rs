//! The requests that a device can make: one variant per intent, with exactly the slots of that intent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use topology::Moment;

mod clock;
mod names;

pub use clock::{ClockTime, DayPart, HalfDay};
pub(crate) use clock::{part_of_day, speak_clock, speak_duration};
pub use names::{City, Day, Room, Rooms};

use crate::numbers;

/// An understood request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// "what time is it in tokyo"
    TimeQuery {
        /// The city; the device's home if none was said.
        city: Option<City>,
    },
    /// "what day is it today"
    DateQuery,
    /// "set a timer for ten minutes"
    TimerSet {
        /// Duration in seconds; `None` asks for it.
        duration_s: Option<u32>,
        /// "pasta", of "set a pasta timer".
        name: Option<String>,
    },
    /// "cancel the timer"
    TimerCancel {
        /// The timers to cancel.
        which: TimerChoice,
    },
    /// "how much time is left", "what timers do i have"
    TimerQuery {
        /// The timers to report.
        which: TimerChoice,
    },
    /// "add five minutes to the timer"
    TimerAdd {
        /// The timers to extend.
        which: TimerChoice,
        /// The extension in seconds.
        add_s: u32,
    },
    /// "change the timer to five minutes"
    TimerChange {
        /// The timer to start anew.
        which: TimerChoice,
        /// Its new duration in seconds; `None` asks for it.
        duration_s: Option<u32>,
    },
    /// "take two minutes off the timer"
    TimerSubtract {
        /// The timers to shorten.
        which: TimerChoice,
        /// The seconds to take off.
        take_s: u32,
    },
    /// "wake me at seven thirty"
    AlarmSet {
        /// Time of day; `None` asks for it.
        time: Option<ClockTime>,
        /// "tomorrow", "on friday".
        day: Option<Day>,
        /// "tomorrow evening": the part of the day, if no time was said.
        part: Option<DayPart>,
    },
    /// "wake me in ten minutes"
    AlarmIn {
        /// Time until it rings, in seconds.
        duration_s: u32,
    },
    /// "what alarms do i have"
    AlarmQuery,
    /// "cancel the alarm"
    AlarmCancel {
        /// The alarms to cancel.
        which: AlarmChoice,
    },
    /// "move the alarm to eight"
    AlarmMove {
        /// The alarm to move.
        which: AlarmChoice,
        /// The new time; `None` asks for it.
        time: Option<ClockTime>,
        /// "tomorrow", "on friday".
        day: Option<Day>,
    },
    /// "snooze"
    Snooze {
        /// Length of the pause in seconds; `None` means [`crate::SNOOZE`].
        duration_s: Option<u32>,
    },
    /// "will it rain tomorrow in paris"
    WeatherQuery {
        /// The city; the device's home if none was said.
        city: Option<City>,
        /// The day that the question is about; today if none was said.
        day: Day,
        /// The part of the weather that the question is about.
        about: WeatherAspect,
    },
    /// "what time is it in atlantis": a question about an unknown place.
    Elsewhere {
        /// The kind of question.
        about: PlaceQuestion,
        /// The place as it was heard.
        place: String,
    },
    /// "turn on the kitchen lights"
    LightsOn {
        /// The rooms; none means the whole house.
        rooms: Rooms,
    },
    /// "turn off the bedroom light"
    LightsOff {
        /// The rooms; none means the whole house.
        rooms: Rooms,
    },
    /// "dim the living room lights to thirty percent"
    LightsDim {
        /// The rooms; none means the whole house.
        rooms: Rooms,
        /// Brightness, 0..=100; 50 if none was said.
        percent: u8,
    },
    /// "is the kitchen light on"
    LightsQuery {
        /// The rooms; none means the whole house.
        rooms: Rooms,
    },
    /// "stop"
    Stop,
    /// "cancel that"
    Undo,
    /// "what can you do"
    Help,
    /// "do not turn on the kitchen light": a command that must not be carried out.
    Declined {
        /// The command that is not wanted.
        of: Box<Command>,
    },
    /// Probably a command. The assistant asks about it instead of carrying it out.
    Unsure {
        /// The command that was understood.
        of: Box<Command>,
        /// The kind of doubt.
        doubt: Doubt,
    },
    /// Words that belong to no request.
    Unknown,
    /// Heard with too little confidence: noise, or a conversation in the room.
    Rejected,
}

/// The kind of doubt about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// A word was misheard, or the command does not explain a word that was said.
    Words,
    /// The command does not explain a number or a time that was said, and with it would be another command.
    Number,
    /// The command does not explain a word that reverses it, so a question that repeats the command would offer the
    /// opposite.
    Opposite,
    /// The unit of a number was not said: "set a timer for ten".
    Unit(u32),
    /// A duration alone: "five minutes". People say such words to each other, so it is an order only if they confirm it.
    Bare,
    /// The lights are to be switched at another time, which no skill does.
    Later,
    /// The command excepts something: "all lights other than the kitchen". Without the exception it would be another
    /// command, often the opposite for the excepted part.
    Exception,
}

/// The timers that a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerChoice {
    /// "the timer"
    #[default]
    Any,
    /// "all timers"
    All,
    /// "the pasta timer"
    Named(String),
    /// "the ten minute timer"; in seconds
    Lasting(u32),
    /// "the second one", from 0: of the list, within [`Self::Among`]. Alone it comes from the state of an earlier release, which
    /// counted in the order of setting.
    Nth(usize),
    /// Of the timers that the assistant's question listed, those that `choice` means.
    Among {
        /// The times at which the listed timers end, in the order of the list.
        listed: Vec<Moment>,
        /// The choice from the list.
        choice: Box<TimerChoice>,
    },
}

/// The alarms that a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmChoice {
    /// "the alarm"
    #[default]
    Any,
    /// "all alarms"
    All,
    /// "the alarm for seven", "the alarm on friday", "the alarm for seven on friday"
    One {
        /// The time that the alarm was set for.
        time: Option<ClockTime>,
        /// The day on which it rings.
        day: Option<Day>,
        /// The part of the day in which it rings, if no time was said.
        part: Option<DayPart>,
    },
    /// "the second one", from 0: of the list, within [`Self::Among`]. Alone it comes from the state of an earlier release, which
    /// counted in the order of setting.
    Nth(usize),
    /// Of the alarms that the assistant's question listed, those that `choice` means.
    Among {
        /// The times at which the listed alarms ring, in the order of the list.
        listed: Vec<Moment>,
        /// The choice from the list.
        choice: Box<AlarmChoice>,
    },
}

/// The kind of question about a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceQuestion {
    /// The time there.
    Time,
    /// The weather there.
    Weather,
}

impl Command {
    /// The intent's name as it appears in events, logs and metrics.
    pub fn intent(&self) -> &'static str {
        match self {
            Self::TimeQuery { .. }
            | Self::Elsewhere {
                about: PlaceQuestion::Time,
                ..
            } => "time.query",
            Self::DateQuery => "date.query",
            Self::TimerSet { .. } => "timer.set",
            Self::TimerCancel { .. } => "timer.cancel",
            Self::TimerQuery { .. } => "timer.query",
            Self::TimerAdd { .. } => "timer.add",
            Self::TimerChange { .. } => "timer.change",
            Self::TimerSubtract { .. } => "timer.subtract",
            Self::AlarmSet { .. } | Self::AlarmIn { .. } => "alarm.set",
            Self::AlarmQuery => "alarm.query",
            Self::AlarmCancel { .. } => "alarm.cancel",
            Self::AlarmMove { .. } => "alarm.change",
            Self::Snooze { .. } => "snooze",
            Self::WeatherQuery { .. }
            | Self::Elsewhere {
                about: PlaceQuestion::Weather,
                ..
            } => "weather.query",
            Self::LightsOn { .. } => "lights.on",
            Self::LightsOff { .. } => "lights.off",
            Self::LightsDim { .. } => "lights.dim",
            Self::LightsQuery { .. } => "lights.query",
            Self::Stop | Self::Undo => "stop",
            Self::Help => "help",
            Self::Declined { .. } => "declined",
            Self::Unsure { .. } => "unsure",
            Self::Unknown => "unknown",
            Self::Rejected => "rejected",
        }
    }

    /// The filled slots, by name. A command that is not carried out has none.
    pub fn slots(&self) -> BTreeMap<&'static str, String> {
        let mut slots = BTreeMap::new();
        let mut keep = |name: &'static str, value: Option<String>| slots.extend(value.map(|value| (name, value)));
        match self {
            Self::TimeQuery { city } => keep("city", city.map(|city| city.name().to_owned())),
            Self::TimerSet { duration_s, name } => {
                keep("duration_s", duration_s.map(|seconds| seconds.to_string()));
                keep("name", name.clone());
            }
            Self::TimerAdd { which, add_s: seconds } | Self::TimerSubtract { which, take_s: seconds } => {
                keep("duration_s", Some(seconds.to_string()));
                keep("timer", which.slot());
            }
            Self::TimerChange { which, duration_s } => {
                keep("duration_s", duration_s.map(|seconds| seconds.to_string()));
                keep("timer", which.slot());
            }
            Self::TimerCancel { which } | Self::TimerQuery { which } => keep("timer", which.slot()),
            Self::AlarmSet { time, day, .. } => {
                keep("time", time.map(|time| time.to_string()));
                keep("day", day.map(|day| day.name().to_owned()));
            }
            Self::AlarmIn { duration_s } => keep("duration_s", Some(duration_s.to_string())),
            Self::AlarmCancel { which } => keep("alarm", which.slot()),
            Self::AlarmMove { which, time, day } => {
                keep("alarm", which.slot());
                keep("time", time.map(|time| time.to_string()));
                keep("day", day.map(|day| day.name().to_owned()));
            }
            Self::Snooze { duration_s } => keep("duration_s", duration_s.map(|seconds| seconds.to_string())),
            Self::WeatherQuery { city, day, about } => {
                keep("city", city.map(|city| city.name().to_owned()));
                keep("day", Some(day.name().to_owned()));
                keep(
                    "about",
                    match about {
                        WeatherAspect::Everything => None,
                        WeatherAspect::Rain => Some("rain".to_owned()),
                        WeatherAspect::Snow => Some("snow".to_owned()),
                    },
                );
            }
            Self::Elsewhere { place, .. } => keep("place", Some(place.clone())),
            Self::LightsOn { rooms } | Self::LightsOff { rooms } | Self::LightsQuery { rooms } => {
                keep("room", rooms.spoken());
            }
            Self::LightsDim { rooms, percent } => {
                keep("room", rooms.spoken());
                keep("percent", Some(percent.to_string()));
            }
            Self::DateQuery
            | Self::AlarmQuery
            | Self::Stop
            | Self::Undo
            | Self::Help
            | Self::Declined { .. }
            | Self::Unsure { .. }
            | Self::Unknown
            | Self::Rejected => {}
        }
        slots
    }

    /// Whether carrying the command out changes anything. A command that still asks for a slot changes nothing yet.
    pub fn changes_state(&self) -> bool {
        match self {
            Self::TimerSet { duration_s, .. } | Self::TimerChange { duration_s, .. } => duration_s.is_some(),
            Self::AlarmSet { time, .. } | Self::AlarmMove { time, .. } => time.is_some(),
            Self::TimerCancel { .. }
            | Self::TimerAdd { .. }
            | Self::TimerSubtract { .. }
            | Self::AlarmIn { .. }
            | Self::AlarmCancel { .. }
            | Self::Snooze { .. }
            | Self::LightsOn { .. }
            | Self::LightsOff { .. }
            | Self::LightsDim { .. }
            | Self::Stop
            | Self::Undo => true,
            Self::TimeQuery { .. }
            | Self::DateQuery
            | Self::TimerQuery { .. }
            | Self::AlarmQuery
            | Self::WeatherQuery { .. }
            | Self::Elsewhere { .. }
            | Self::LightsQuery { .. }
            | Self::Help
            | Self::Declined { .. }
            | Self::Unsure { .. }
            | Self::Unknown
            | Self::Rejected => false,
        }
    }

    /// Whether the command is an order: it changes something now, or once its missing slot is filled.
    pub(crate) fn is_order(&self) -> bool {
        self.changes_state()
            || matches!(
                self,
                Self::TimerSet { .. } | Self::TimerChange { .. } | Self::AlarmSet { .. } | Self::AlarmMove { .. }
            )
    }

    /// The request in the assistant's own words. The assistant says them when it asks "did you say …", and interprets
    /// them again when the answer is yes.
    pub(crate) fn phrase(&self) -> Option<String> {
        let on = |day: &Option<Day>| day.map_or_else(String::new, |day| format!(" {}", day.spoken_on()));
        Some(match self {
            Self::TimeQuery { city: None } => "what time is it".to_owned(),
            Self::TimeQuery { city: Some(city) } => format!("what time is it in {}", city.name()),
            Self::DateQuery => "what day is it".to_owned(),
            Self::TimerSet { duration_s, name } => {
                let timer = name
                    .as_ref()
                    .map_or_else(|| "timer".to_owned(), |name| format!("{name} timer"));
                match duration_s {
                    Some(seconds) => format!("set a {timer} for {}", speak_duration(u64::from(*seconds))),
                    None => format!("set a {timer}"),
                }
            }
            Self::TimerCancel { which } => format!("cancel {}", which.phrase()),
            Self::TimerQuery { .. } => "how much time is left".to_owned(),
            Self::TimerAdd { which, add_s } => {
                format!("add {} to {}", speak_duration(u64::from(*add_s)), which.phrase())
            }
            Self::TimerChange {
                which,
                duration_s: None,
            } => format!("change {}", which.phrase()),
            Self::TimerChange {
                which,
                duration_s: Some(seconds),
            } => format!("change {} to {}", which.phrase(), speak_duration(u64::from(*seconds))),
            Self::TimerSubtract { which, take_s } => {
                format!("take {} off {}", speak_duration(u64::from(*take_s)), which.phrase())
            }
            Self::AlarmSet { time: None, day, .. } => format!("set an alarm{}", on(day)),
            Self::AlarmSet {
                time: Some(time), day, ..
            } => format!("set an alarm for {}{}", time.spoken(), on(day)),
            Self::AlarmIn { duration_s } => format!("wake me in {}", speak_duration(u64::from(*duration_s))),
            Self::AlarmQuery => "what alarms do i have".to_owned(),
            Self::AlarmCancel { which } => format!("cancel {}", which.phrase()),
            Self::AlarmMove { which, time: None, .. } => format!("change {}", which.phrase()),
            Self::AlarmMove {
                which,
                time: Some(time),
                day,
            } => {
                format!("move {} to {}{}", which.phrase(), time.spoken(), on(day))
            }
            Self::Snooze { duration_s: None } => "snooze".to_owned(),
            Self::Snooze {
                duration_s: Some(seconds),
            } => format!("snooze for {}", speak_duration(u64::from(*seconds))),
            Self::WeatherQuery { city, day, about } => {
                let begin = match about {
                    WeatherAspect::Everything => "what is the weather",
                    WeatherAspect::Rain => "will it rain",
                    WeatherAspect::Snow => "will it snow",
                };
                let place = city.map_or_else(String::new, |city| format!(" in {}", city.name()));
                let day = if *day == Day::Today { None } else { Some(*day) };
                format!("{begin}{place}{}", on(&day))
            }
            Self::LightsOn { rooms } => format!("turn on {}", rooms.lights()),
            Self::LightsOff { rooms } => format!("turn off {}", rooms.lights()),
            Self::LightsDim { rooms, percent } => {
                format!(
                    "dim {} to {} percent",
                    rooms.lights(),
                    numbers::spell(u32::from(*percent))
                )
            }
            Self::LightsQuery { rooms } => format!("are {} on", rooms.lights()),
            Self::Stop => "stop".to_owned(),
            Self::Undo => "cancel that".to_owned(),
            Self::Help => "help".to_owned(),
            Self::Elsewhere { .. } | Self::Declined { .. } | Self::Unsure { .. } | Self::Unknown | Self::Rejected => {
                return None;
            }
        })
    }
}

impl TimerChoice {
    /// This choice, from those that the assistant's question `listed`.
    pub(crate) fn among(self, listed: &[Moment]) -> Self {
        Self::Among {
            listed: listed.to_vec(),
            choice: Box::new(self),
        }
    }

    /// The choice as the user said it.
    pub(crate) fn said(&self) -> &Self {
        match self {
            Self::Among { choice, .. } => choice,
            other => other,
        }
    }

    /// Whether the user may mean several timers. Of "the timer", there is one.
    pub(crate) fn may_be_several(&self) -> bool {
        match self {
            Self::Any | Self::Nth(_) => false,
            Self::All | Self::Named(_) | Self::Lasting(_) => true,
            // Its list had several that were named the same way.
            Self::Among { choice, .. } => **choice == Self::All,
        }
    }

    fn slot(&self) -> Option<String> {
        match self {
            Self::Any => None,
            Self::All => Some("all".to_owned()),
            Self::Named(name) => Some(name.clone()),
            Self::Lasting(seconds) => Some(seconds.to_string()),
            Self::Nth(number) => Some((number + 1).to_string()),
            Self::Among { choice, .. } => choice.slot(),
        }
    }

    fn phrase(&self) -> String {
        match self {
            Self::Any => "the timer".to_owned(),
            Self::All => "all timers".to_owned(),
            Self::Named(name) => format!("the {name} timer"),
            Self::Lasting(seconds) => format!("the {} timer", speak_duration(u64::from(*seconds))),
            Self::Nth(number) => format!(
                "the {} timer",
                numbers::spell_ordinal(u32::try_from(number + 1).unwrap_or(1))
            ),
            Self::Among { choice, .. } if **choice == Self::All => "those timers".to_owned(),
            Self::Among { choice, .. } => choice.phrase(),
        }
    }
}

impl AlarmChoice {
    /// This choice, from those that the assistant's question `listed`.
    pub(crate) fn among(self, listed: &[Moment]) -> Self {
        Self::Among {
            listed: listed.to_vec(),
            choice: Box::new(self),
        }
    }

    /// Whether the user means all alarms, or all that the assistant listed.
    pub(crate) fn is_all(&self) -> bool {
        match self {
            Self::All => true,
            Self::Among { choice, .. } => choice.is_all(),
            Self::Any | Self::One { .. } | Self::Nth(_) => false,
        }
    }

    fn slot(&self) -> Option<String> {
        match self {
            Self::Any => None,
            Self::All => Some("all".to_owned()),
            Self::One { time, day, .. } => {
                let parts = [time.map(|time| time.to_string()), day.map(|day| day.name().to_owned())];
                Some(parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
            }
            Self::Nth(number) => Some((number + 1).to_string()),
            Self::Among { choice, .. } => choice.slot(),
        }
    }

    /// "the alarm for seven on friday".
    pub(crate) fn phrase(&self) -> String {
        match self {
            Self::Any => "the alarm".to_owned(),
            Self::All => "all alarms".to_owned(),
            Self::One { time, day, .. } => {
                let time = time.map_or_else(String::new, |time| format!(" for {}", time.spoken()));
                let day = day.map_or_else(String::new, |day| format!(" {}", day.spoken_on()));
                format!("the alarm{time}{day}")
            }
            Self::Nth(number) => format!(
                "the {} alarm",
                numbers::spell_ordinal(u32::try_from(number + 1).unwrap_or(1))
            ),
            Self::Among { choice, .. } if **choice == Self::All => "those alarms".to_owned(),
            Self::Among { choice, .. } => choice.phrase(),
        }
    }
}

/// The subject of a weather question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeatherAspect {
    /// Temperature and sky.
    Everything,
    /// Rain only.
    Rain,
    /// Snow only.
    Snow,
}
