//! What a device can ask for: one variant per intent, carrying exactly the slots that intent has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::numbers;

/// One understood request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// "what time is it in tokyo"
    TimeQuery {
        /// Where; the device's home when not said.
        city: Option<City>,
    },
    /// "what day is it today"
    DateQuery,
    /// "set a timer for ten minutes"
    TimerSet {
        /// How long, in seconds; asked for when not said.
        duration_s: Option<u32>,
    },
    /// "cancel the timer"
    TimerCancel,
    /// "how much time is left"
    TimerQuery,
    /// "wake me at seven thirty"
    AlarmSet {
        /// When; asked for when not said.
        time: Option<ClockTime>,
    },
    /// "will it rain tomorrow in paris"
    WeatherQuery {
        /// Where; the device's home when not said.
        city: Option<City>,
        /// Which day.
        day: Day,
        /// Whether the question was only about rain.
        about: WeatherAspect,
    },
    /// "turn on the kitchen lights"
    LightsOn {
        /// Which room; the whole house when not said.
        room: Option<Room>,
    },
    /// "turn off the bedroom light"
    LightsOff {
        /// Which room; the whole house when not said.
        room: Option<Room>,
    },
    /// "dim the living room lights to thirty percent"
    LightsDim {
        /// Which room; the whole house when not said.
        room: Option<Room>,
        /// Brightness, 0..=100; half when not said.
        percent: u8,
    },
    /// "stop"
    Stop,
    /// "what can you do"
    Help,
    /// Nothing we know.
    Unknown,
}

impl Command {
    /// The intent's name as it appears in events, logs and metrics.
    pub fn intent(&self) -> &'static str {
        match self {
            Self::TimeQuery { .. } => "time.query",
            Self::DateQuery => "date.query",
            Self::TimerSet { .. } => "timer.set",
            Self::TimerCancel => "timer.cancel",
            Self::TimerQuery => "timer.query",
            Self::AlarmSet { .. } => "alarm.set",
            Self::WeatherQuery { .. } => "weather.query",
            Self::LightsOn { .. } => "lights.on",
            Self::LightsOff { .. } => "lights.off",
            Self::LightsDim { .. } => "lights.dim",
            Self::Stop => "stop",
            Self::Help => "help",
            Self::Unknown => "unknown",
        }
    }

    /// The filled slots, by name.
    pub fn slots(&self) -> BTreeMap<&'static str, String> {
        let mut slots = BTreeMap::new();
        match self {
            Self::TimeQuery { city } => {
                slots.extend(city.map(|city| ("city", city.name().to_owned())));
            }
            Self::TimerSet { duration_s } => {
                slots.extend(duration_s.map(|seconds| ("duration_s", seconds.to_string())));
            }
            Self::AlarmSet { time } => {
                slots.extend(time.map(|time| ("time", time.to_string())));
            }
            Self::WeatherQuery { city, day, about } => {
                slots.extend(city.map(|city| ("city", city.name().to_owned())));
                slots.insert("day", day.name().to_owned());
                if *about == WeatherAspect::Rain {
                    slots.insert("about", "rain".to_owned());
                }
            }
            Self::LightsOn { room } | Self::LightsOff { room } => {
                slots.extend(room.map(|room| ("room", room.name().to_owned())));
            }
            Self::LightsDim { room, percent } => {
                slots.extend(room.map(|room| ("room", room.name().to_owned())));
                slots.insert("percent", percent.to_string());
            }
            Self::DateQuery | Self::TimerCancel | Self::TimerQuery | Self::Stop | Self::Help | Self::Unknown => {}
        }
        slots
    }
}

/// A closed set of things with spoken names, which is what makes a slot correctable after a mishearing.
macro_rules! spoken {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $spoken:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $(#[doc = concat!("\"", $spoken, "\"")] #[serde(alias = $spoken)] $variant),+
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The words people say for it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $spoken),+ }
            }
        }
    };
}

spoken! {
    /// A city with a known time zone and cached weather.
    City {
        London = "london", Paris = "paris", Berlin = "berlin", Tokyo = "tokyo", Mumbai = "mumbai", Sydney = "sydney",
        NewYork = "new york", Chicago = "chicago", Seattle = "seattle", Madrid = "madrid", Rome = "rome",
    }
}

spoken! {
    /// A room with lights.
    Room {
        Kitchen = "kitchen", Bedroom = "bedroom", LivingRoom = "living room", Bathroom = "bathroom",
        Office = "office", Hall = "hall", Garage = "garage",
    }
}

spoken! {
    /// A day the weather is known for.
    Day { Today = "today", Tomorrow = "tomorrow" }
}

/// What a weather question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeatherAspect {
    /// Temperature and sky.
    Everything,
    /// Only whether it rains.
    Rain,
}

impl City {
    /// IANA name of its time zone.
    pub fn zone(self) -> &'static str {
        match self {
            Self::London => "Europe/London",
            Self::Paris => "Europe/Paris",
            Self::Berlin => "Europe/Berlin",
            Self::Tokyo => "Asia/Tokyo",
            Self::Mumbai => "Asia/Kolkata",
            Self::Sydney => "Australia/Sydney",
            Self::NewYork => "America/New_York",
            Self::Chicago => "America/Chicago",
            Self::Seattle => "America/Los_Angeles",
            Self::Madrid => "Europe/Madrid",
            Self::Rome => "Europe/Rome",
        }
    }
}

/// A time of day as it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockTime {
    /// 1..=12 with a half of the day, else 0..=23.
    pub hour: u8,
    /// 0..=59.
    pub minute: u8,
    /// Which half of the day, when it was said.
    pub half: Option<HalfDay>,
}

/// Before or after noon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfDay {
    /// "a m", "in the morning"
    Am,
    /// "p m", "in the evening"
    Pm,
}

impl ClockTime {
    /// The hours of the day, 0..=23, this may mean: two when the half was not said.
    pub(crate) fn hours(self) -> Vec<i8> {
        let hour = i8::try_from(self.hour).unwrap_or(0);
        match (self.half, hour) {
            (Some(HalfDay::Am), hour) => vec![hour % 12],
            (Some(HalfDay::Pm), hour) => vec![hour % 12 + 12],
            (None, hour @ 1..=12) => vec![hour % 12, hour % 12 + 12],
            (None, hour) => vec![hour],
        }
    }
}

impl std::fmt::Display for ClockTime {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{:02}", self.hour, self.minute)?;
        match self.half {
            Some(HalfDay::Am) => out.write_str(" am"),
            Some(HalfDay::Pm) => out.write_str(" pm"),
            None => Ok(()),
        }
    }
}

/// A 12-hour clock reading in words: "ten thirty five", "ten oh five", "ten o clock".
pub(crate) fn speak_clock(hour: i8, minute: i8) -> String {
    let hour = match hour.unsigned_abs() % 12 {
        0 => 12,
        hour => u32::from(hour),
    };
    match u32::from(minute.unsigned_abs()) {
        0 => format!("{} o clock", numbers::spell(hour)),
        minute @ 1..=9 => format!("{} oh {}", numbers::spell(hour), numbers::spell(minute)),
        minute => format!("{} {}", numbers::spell(hour), numbers::spell(minute)),
    }
}

/// A length of time in words: "one hour and thirty minutes".
pub(crate) fn speak_duration(seconds: u64) -> String {
    let parts: Vec<String> = [
        (seconds / 3600, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, unit)| {
        let plural = if count == 1 { "" } else { "s" };
        format!(
            "{} {unit}{plural}",
            numbers::spell(u32::try_from(count).unwrap_or(u32::MAX))
        )
    })
    .collect();
    if parts.is_empty() {
        "zero seconds".to_owned()
    } else {
        parts.join(" and ")
    }
}
