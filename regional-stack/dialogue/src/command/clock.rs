//! Times of day and durations, as people say them.

use serde::{Deserialize, Serialize};

use super::names::Day;
use crate::numbers;

/// A time of day as spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockTime {
    /// 1..=12 if `half` is known, else 0..=23.
    pub hour: u8,
    /// 0..=59.
    pub minute: u8,
    /// The half of the day, if it was said.
    pub half: Option<HalfDay>,
}

/// Before or after noon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HalfDay {
    /// "a m", "in the morning"
    Am,
    /// "p m", "in the evening"
    Pm,
}

/// A part of the day, said together with a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DayPart {
    /// "in the morning"
    #[serde(rename = "am")]
    Morning,
    /// "in the afternoon", "in the evening"
    #[serde(rename = "pm")]
    Later,
    /// "tonight": from the evening into the next day. Written as "pm", because older releases know two halves only.
    #[serde(rename(serialize = "pm"), skip_deserializing)]
    Night,
}

impl ClockTime {
    /// In a night, twelve and one to four are hours of the next day.
    pub(crate) fn at_night(self) -> Self {
        let half = if matches!(self.hour, 12 | 1..=4) {
            HalfDay::Am
        } else {
            HalfDay::Pm
        };
        Self {
            half: Some(half),
            ..self
        }
    }

    /// The exact time and day, given the `day` and the `part` of it.
    pub(crate) fn on(self, day: Option<Day>, part: Option<DayPart>) -> (Self, Option<Day>) {
        let is_open = self.half.is_none() && (1..=12).contains(&self.hour);
        let in_half = |half| Self {
            // "thirteen tomorrow evening" states its half twice; the hour wins.
            half: if is_open { Some(half) } else { self.half },
            ..self
        };
        match part {
            None => (self, day),
            Some(DayPart::Morning) => (in_half(HalfDay::Am), day),
            Some(DayPart::Later) => (in_half(HalfDay::Pm), day),
            Some(DayPart::Night) => {
                let time = if is_open { self.at_night() } else { self };
                let is_next_day = match time.half {
                    Some(HalfDay::Am) => matches!(time.hour, 12 | 1..=4),
                    Some(HalfDay::Pm) => false,
                    None => time.hour < 5,
                };
                let day = if is_next_day {
                    day.and_then(Day::after_night)
                } else {
                    day
                };
                (time, day)
            }
        }
    }

    /// The hours 0..=23 that this time may mean: two if the half of the day was not said.
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

impl ClockTime {
    /// "seven thirty a m".
    pub(crate) fn spoken(self) -> String {
        match (self.hour, self.minute, self.half) {
            (12, 0, Some(HalfDay::Pm)) => return "noon".to_owned(),
            (12, 0, Some(HalfDay::Am)) => return "midnight".to_owned(),
            _ => {}
        }
        let hour = numbers::spell(u32::from(self.hour));
        let clock = match u32::from(self.minute) {
            0 if self.half.is_some() => hour,
            0 => format!("{hour} o clock"),
            minute @ 1..=9 => format!("{hour} oh {}", numbers::spell(minute)),
            minute => format!("{hour} {}", numbers::spell(minute)),
        };
        match self.half {
            Some(HalfDay::Am) => format!("{clock} a m"),
            Some(HalfDay::Pm) => format!("{clock} p m"),
            None => clock,
        }
    }
}

/// "in the morning", for an hour in 0..=23.
pub(crate) fn part_of_day(hour: i8) -> &'static str {
    match hour {
        0 => "at night",
        1..=11 => "in the morning",
        12..=17 => "in the afternoon",
        18..=21 => "in the evening",
        _ => "at night",
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

/// A 12-hour clock time in words: "ten thirty five", "ten oh five", "ten o clock".
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

/// A duration in words: "one hour and thirty minutes".
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
