//! Finding slot values in an utterance: cities, rooms, durations, times of day, percentages and days.
//!
//! Values come from closed vocabularies, so a misheard word is first moved to the nearest known word and the phrase is
//! then read strictly. What that correction cost travels with the value.

use crate::{
    command::{City, ClockTime, Day, HalfDay, Room},
    numbers,
    template::edits,
};

/// What a slot can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotKind {
    City,
    Room,
    Duration,
    Clock,
    Percent,
    Day,
}

impl SlotKind {
    /// The kind a template calls `name`. Templates are our own constants, and a test expands all of them.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "city" => Self::City,
            "room" => Self::Room,
            "duration" => Self::Duration,
            "clock" => Self::Clock,
            "percent" => Self::Percent,
            "day" => Self::Day,
            _ => unreachable!("template names a slot that does not exist: {name}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    City(City),
    Room(Room),
    DurationS(u32),
    Clock(ClockTime),
    Percent(u8),
    Day(Day),
}

impl Value {
    pub(crate) fn kind(self) -> SlotKind {
        match self {
            Self::City(_) => SlotKind::City,
            Self::Room(_) => SlotKind::Room,
            Self::DurationS(_) => SlotKind::Duration,
            Self::Clock(_) => SlotKind::Clock,
            Self::Percent(_) => SlotKind::Percent,
            Self::Day(_) => SlotKind::Day,
        }
    }
}

/// A value standing at some words of the utterance.
#[derive(Debug)]
pub(crate) struct SlotMatch {
    pub(crate) start: usize,
    pub(crate) words: usize,
    pub(crate) value: Value,
    /// Characters that had to be corrected.
    pub(crate) cost: f32,
}

/// The slots of one sentence, filled.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Captured {
    pub(crate) city: Option<City>,
    pub(crate) room: Option<Room>,
    pub(crate) duration_s: Option<u32>,
    pub(crate) clock: Option<ClockTime>,
    pub(crate) percent: Option<u8>,
    pub(crate) day: Option<Day>,
}

impl Captured {
    pub(crate) fn keep(&mut self, value: Value) {
        match value {
            Value::City(city) => self.city = Some(city),
            Value::Room(room) => self.room = Some(room),
            Value::DurationS(seconds) => self.duration_s = Some(seconds),
            Value::Clock(time) => self.clock = Some(time),
            Value::Percent(percent) => self.percent = Some(percent),
            Value::Day(day) => self.day = Some(day),
        }
    }
}

/// Longest phrase a slot can be: "twenty one hours and forty five minutes".
const WORDS_MAX: usize = 7;

/// Every slot value that stands anywhere in `words`.
pub(crate) fn find_all(words: &[&str]) -> Vec<SlotMatch> {
    let mut found = Vec::new();
    let corrected: Vec<Option<(&'static str, usize)>> = words.iter().map(|word| correct(word)).collect();
    for start in 0..words.len() {
        for length in 1..=WORDS_MAX.min(words.len() - start) {
            let phrase = &words[start..start + length];
            let mut keep = |value: Value, cost: usize| {
                found.push(SlotMatch {
                    start,
                    words: length,
                    value,
                    cost: cost as f32,
                });
            };
            // Names have at most two words; a third allows for one split in the middle.
            if length <= 3 {
                let joined = phrase.concat();
                for &city in City::ALL {
                    if let Some(cost) = name_distance(city.name(), &joined) {
                        keep(Value::City(city), cost);
                    }
                }
                for &room in Room::ALL {
                    if let Some(cost) = name_distance(room.name(), &joined) {
                        keep(Value::Room(room), cost);
                    }
                }
                for &day in Day::ALL {
                    if let Some(cost) = name_distance(day.name(), &joined) {
                        keep(Value::Day(day), cost);
                    }
                }
            }
            let Some((corrected, cost)) = all(&corrected[start..start + length]) else {
                continue;
            };
            if let Some(seconds) = duration(&corrected) {
                keep(Value::DurationS(seconds), cost);
            }
            if let Some(time) = clock(&corrected) {
                keep(Value::Clock(time), cost);
            }
            if let Some(percent) = percent(&corrected) {
                keep(Value::Percent(percent), cost);
            }
        }
    }
    found
}

/// Distance to a name, spaces aside. Names are told apart well enough that a third of one may be wrong, or half of it
/// missing at the end.
fn name_distance(name: &str, heard: &str) -> Option<usize> {
    let name = name.replace(' ', "");
    let distance = edits(&name, heard);
    let allowed = if name.starts_with(heard) {
        name.len() / 2
    } else {
        name.len() / 3
    };
    (distance <= allowed).then_some(distance)
}

/// Words that were all understood, and what that cost.
fn all(corrected: &[Option<(&'static str, usize)>]) -> Option<(Vec<&'static str>, usize)> {
    let words: Vec<(&'static str, usize)> = corrected.iter().copied().collect::<Option<_>>()?;
    let cost = words.iter().map(|(_, cost)| cost).sum();
    Some((words.into_iter().map(|(word, _)| word).collect(), cost))
}

/// The nearest word that durations, times and percentages are made of, and how far it is.
fn correct(heard: &str) -> Option<(&'static str, usize)> {
    let nearest = vocabulary()
        .map(|known| (known, edits(known, heard)))
        .min_by_key(|(_, distance)| *distance);
    // Short words have close neighbours (a/an/am, ten/two), so they are taken as heard or not at all.
    let allowed = match heard.len() {
        0..=3 => 0,
        4..=5 => 1,
        _ => 2,
    };
    nearest.filter(|(_, distance)| *distance <= allowed)
}

fn vocabulary() -> impl Iterator<Item = &'static str> {
    const REST: [&str; 32] = [
        "hour",
        "hours",
        "minute",
        "minutes",
        "second",
        "seconds",
        "half",
        "quarter",
        "a",
        "an",
        "and",
        "past",
        "to",
        "o",
        "clock",
        "oclock",
        "o'clock",
        "m",
        "p",
        "am",
        "pm",
        "in",
        "the",
        "at",
        "morning",
        "afternoon",
        "evening",
        "night",
        "noon",
        "midnight",
        "percent",
        "per",
    ];
    numbers::vocabulary().chain(REST).chain(["cent", "tonight"])
}

/// "ten minutes", "one hour and thirty minutes", "half an hour", "an hour and a half"; in seconds, at most a day.
fn duration(words: &[&str]) -> Option<u32> {
    const DAY_S: u32 = 24 * 3600;
    let total: u32 = match words {
        ["half", "an" | "a", "hour"] => 1800,
        ["half", "a", "minute"] => 30,
        ["quarter", "of", "an", "hour"] => 900,
        [count @ .., unit, "and", "a", "half"] => amount(count, unit)? + unit_s(unit)? / 2,
        [count @ .., "and", "a", "half", unit] => amount(count, unit)? + unit_s(unit)? / 2,
        _ => {
            let mut total = 0u32;
            let mut unit_before = u32::MAX;
            let mut rest = words;
            while !rest.is_empty() {
                let end = rest.iter().position(|word| unit_s(word).is_some())?;
                // Each unit once, the larger first: "ten minutes two hours" is two requests, not one duration.
                if unit_s(rest[end])? >= unit_before {
                    return None;
                }
                unit_before = unit_s(rest[end])?;
                total += amount(&rest[..end], rest[end])?;
                rest = &rest[end + 1..];
                if let ["and", more @ ..] = rest {
                    if more.is_empty() {
                        return None;
                    }
                    rest = more;
                }
            }
            total
        }
    };
    (1..=DAY_S).contains(&total).then_some(total)
}

fn amount(count: &[&str], unit: &str) -> Option<u32> {
    let count = if matches!(count, ["a" | "an"]) {
        1
    } else {
        numbers::parse(count)?
    };
    Some(count * unit_s(unit)?)
}

fn unit_s(word: &str) -> Option<u32> {
    match word {
        "hour" | "hours" => Some(3600),
        "minute" | "minutes" => Some(60),
        "second" | "seconds" => Some(1),
        _ => None,
    }
}

/// "seven thirty", "half past six", "six a m", "eight o clock in the evening", "noon".
fn clock(words: &[&str]) -> Option<ClockTime> {
    let (words, half) = match words {
        [rest @ .., "a", "m"] | [rest @ .., "am"] | [rest @ .., "in", "the", "morning"] => (rest, Some(HalfDay::Am)),
        [rest @ .., "p", "m"]
        | [rest @ .., "pm"]
        | [rest @ .., "in", "the", "evening" | "afternoon"]
        | [rest @ .., "at", "night"]
        | [rest @ .., "tonight"] => (rest, Some(HalfDay::Pm)),
        rest => (rest, None),
    };
    let at = |hour: &[&str], minute: u32| {
        let hour = u8::try_from(numbers::parse(hour)?).ok()?;
        let known = if half.is_some() {
            (1..=12).contains(&hour)
        } else {
            (1..=23).contains(&hour)
        };
        known.then_some(ClockTime {
            hour,
            minute: u8::try_from(minute).ok().filter(|minute| *minute < 60)?,
            half,
        })
    };
    match words {
        ["noon"] => Some(ClockTime {
            hour: 12,
            minute: 0,
            half: Some(HalfDay::Pm),
        }),
        ["midnight"] => Some(ClockTime {
            hour: 12,
            minute: 0,
            half: Some(HalfDay::Am),
        }),
        ["half", "past", hour] => at(&[hour], 30),
        ["quarter", "past", hour] => at(&[hour], 15),
        ["quarter", "to", hour] => {
            let next = at(&[hour], 45)?;
            Some(ClockTime {
                hour: if next.hour == 1 { 12 } else { next.hour - 1 },
                ..next
            })
        }
        [minute @ .., "past", hour] => at(&[hour], numbers::parse(minute)?),
        [hour, "o", "clock"] | [hour, "oclock" | "o'clock"] => at(&[hour], 0),
        [hour, "oh" | "o", minute] => at(&[hour], numbers::parse(&[minute]).filter(|minute| *minute < 10)?),
        [hour] => at(&[hour], 0),
        // "twenty one" alone is the hour; "seven thirty" is an hour and its minutes.
        [_, _] if at(words, 0).is_some() => at(words, 0),
        [hour, minute @ ..] if numbers::parse(minute).is_some_and(|minute| minute >= 10) => {
            at(&[hour], numbers::parse(minute)?)
        }
        _ => None,
    }
}

/// "thirty percent", "fifty".
fn percent(words: &[&str]) -> Option<u8> {
    let number = match words {
        ["half"] => return Some(50),
        [number @ .., "percent"] | [number @ .., "per", "cent"] => number,
        number => number,
    };
    u8::try_from(numbers::parse(number)?)
        .ok()
        .filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        text.split(' ').collect()
    }

    #[test]
    fn durations_are_read_the_way_they_are_said() {
        for (text, seconds) in [
            ("ten minutes", Some(600)),
            ("one hour and thirty minutes", Some(5400)),
            ("two hours five minutes and ten seconds", Some(7510)),
            ("half an hour", Some(1800)),
            ("an hour and a half", Some(5400)),
            ("two and a half minutes", Some(150)),
            ("twenty five seconds", Some(25)),
            ("minutes", None),
            ("ten minutes two hours", None),
            ("ten minutes and", None),
            ("forty eight hours", None),
        ] {
            assert_eq!(duration(&words(text)), seconds, "{text}");
        }
    }

    #[test]
    fn times_of_day_are_read_the_way_they_are_said() {
        let time = |hour, minute, half| Some(ClockTime { hour, minute, half });
        for (text, expected) in [
            ("seven thirty", time(7, 30, None)),
            ("six a m", time(6, 0, Some(HalfDay::Am))),
            ("eight o clock in the evening", time(8, 0, Some(HalfDay::Pm))),
            ("half past six", time(6, 30, None)),
            ("quarter to one", time(12, 45, None)),
            ("ten oh five p m", time(10, 5, Some(HalfDay::Pm))),
            ("nine forty five", time(9, 45, None)),
            ("noon", time(12, 0, Some(HalfDay::Pm))),
            ("thirteen a m", None),
            ("seven sixty", None),
            ("seven five", None),
        ] {
            assert_eq!(clock(&words(text)), expected, "{text}");
        }
    }

    #[test]
    fn percentages_end_at_a_hundred() {
        assert_eq!(percent(&words("thirty percent")), Some(30));
        assert_eq!(percent(&words("one hundred per cent")), Some(100));
        assert_eq!(percent(&words("two hundred percent")), None);
    }
}
