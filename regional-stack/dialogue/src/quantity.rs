//! Strict reading of quantities: durations, times of day and percentages.

use crate::{
    command::{ClockTime, HalfDay},
    lexicon, numbers,
};

/// The words of durations, times and percentages that are not numbers.
pub(crate) const UNITS: [&str; 49] = [
    "hour",
    "hours",
    "hr",
    "hrs",
    "minute",
    "minutes",
    "min",
    "mins",
    "second",
    "seconds",
    "sec",
    "secs",
    "half",
    "quarter",
    "quarters",
    "couple",
    "of",
    "point",
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
    "this",
    "morning",
    "afternoon",
    "evening",
    "night",
    "noon",
    "midnight",
    "percent",
    "per",
    "cent",
    "tonight",
    "more",
    "another",
    "till",
    "midday",
];

/// Whether leaving `word` unexplained would change the command: numbers, units, parts of the day.
pub(crate) fn is_quantity(word: &str) -> bool {
    const SMALL: [&str; 14] = [
        "of", "a", "an", "and", "to", "o", "m", "p", "in", "the", "at", "this", "more", "another",
    ];
    numbers::is_number(word) || (UNITS.contains(&word) && !SMALL.contains(&word)) || lexicon::NUMERIC.contains(&word)
}

/// Longest duration that is read. The skills set the real limits, and refuse with a reason.
const DURATION_S_MAX: u32 = 100 * 24 * 3600;

/// A duration in seconds: "ten minutes", "one hour and thirty minutes", "half an hour", "an hour and a half", "one
/// minute thirty".
pub(crate) fn duration(words: &[&str]) -> Option<u32> {
    let total: u32 = match words {
        ["more" | "another", rest @ ..] | [rest @ .., "more"] => return duration(rest),
        [count @ .., unit, "and", "a", "half"] => amount(count, unit)? + unit_s(unit)? / 2,
        [count @ .., "and", "a", "half", unit] => amount(count, unit)? + unit_s(unit)? / 2,
        [count @ .., unit, "and", "a", "quarter"] => amount(count, unit)? + unit_s(unit)? / 4,
        _ => {
            let mut total = 0u32;
            let (mut unit_before, mut is_counted) = (u32::MAX, false);
            let mut rest = words;
            while !rest.is_empty() {
                let Some(end) = rest.iter().position(|word| unit_s(word).is_some()) else {
                    // In "one minute thirty" the number belongs to the next smaller unit. In "ten minute five" it does
                    // not: no one counts ten minute.
                    let number = numbers::read_number(rest)?;
                    if !(10..60).contains(&number) || !(60..=3600).contains(&unit_before) || !is_counted {
                        return None;
                    }
                    total += number * unit_before / 60;
                    break;
                };
                // Each unit occurs once, the larger first: "ten minutes two hours" is two requests, not one duration.
                if unit_s(rest[end])? >= unit_before {
                    return None;
                }
                unit_before = unit_s(rest[end])?;
                is_counted = rest[end].ends_with('s') || matches!(rest[..end], ["a" | "an" | "one"]);
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
    (1..=DURATION_S_MAX).contains(&total).then_some(total)
}

fn amount(count: &[&str], unit: &str) -> Option<u32> {
    let unit = unit_s(unit)?;
    let count = match count {
        [count @ .., "more"] => count,
        count => count,
    };
    match count {
        ["a" | "an"] => return Some(unit),
        ["a", "couple"] | ["a", "couple", "of"] => return Some(2 * unit),
        ["half", "a" | "an"] | ["half"] | ["a", "half"] if unit > 1 => return Some(unit / 2),
        ["a", "quarter", "of", "a" | "an"] | ["quarter", "of", "a" | "an"] | ["quarter"] if unit > 1 => {
            return Some(unit / 4);
        }
        ["three", "quarters", "of", "a" | "an"] | ["three", "quarters"] if unit > 1 => return Some(unit / 4 * 3),
        _ => {}
    }
    // "two point five hours"
    if let Some(at) = count.iter().position(|word| *word == "point") {
        let whole = numbers::read_number(&count[..at])?;
        let [tenths] = &count[at + 1..] else { return None };
        let tenths = numbers::read_number(&[tenths]).filter(|tenths| *tenths < 10)?;
        let total = (whole * 10 + tenths) * unit;
        return (total % 10 == 0).then_some(total / 10);
    }
    // At most 9999 hours, so this cannot overflow a `u32`.
    Some(numbers::read_number(count)? * unit)
}

/// The seconds of a unit of time.
pub(crate) fn unit_s(word: &str) -> Option<u32> {
    match word {
        "hour" | "hours" | "hr" | "hrs" => Some(3600),
        "minute" | "minutes" | "min" | "mins" => Some(60),
        "second" | "seconds" | "sec" | "secs" => Some(1),
        _ => None,
    }
}

/// A time of day: "seven thirty", "half past six", "twenty to six", "six a m", "eight o clock in the evening", "noon".
pub(crate) fn clock(words: &[&str]) -> Option<ClockTime> {
    let (words, half) = match words {
        [rest @ .., "a", "m"]
        | [rest @ .., "am"]
        | [rest @ .., "in", "the", "morning"]
        | [rest @ .., "this", "morning"] => (rest, Some(HalfDay::Am)),
        [rest @ .., "p", "m"]
        | [rest @ .., "pm"]
        | [rest @ .., "in", "the", "evening" | "afternoon"]
        | [rest @ .., "this", "evening" | "afternoon"] => (rest, Some(HalfDay::Pm)),
        // Three at night is before noon, and twelve tonight is midnight.
        [rest @ .., "at", "night"] | [rest @ .., "tonight"] => {
            let time = clock(rest).filter(|time| (1..=12).contains(&time.hour))?;
            return Some(if time.half.is_none() { time.at_night() } else { time });
        }
        rest => (rest, None),
    };
    let at = |hour: &[&str], minute: u32| {
        let hour = u8::try_from(numbers::read_number(hour)?).ok()?;
        let known = if half.is_some() {
            (1..=12).contains(&hour)
        } else {
            (0..=23).contains(&hour)
        };
        known.then_some(ClockTime {
            hour,
            minute: u8::try_from(minute).ok().filter(|minute| *minute < 60)?,
            half,
        })
    };
    let before = |hour: &[&str], minutes: u32| {
        let next = at(hour, 60u32.checked_sub(minutes)?)?;
        Some(ClockTime {
            hour: match (next.hour, next.half) {
                (1, _) => 12,
                (0, _) => 23,
                (hour, _) => hour - 1,
            },
            // In "ten to twelve p m" the half of the day belongs to the resulting time, 11:50 p m.
            ..next
        })
    };
    match words {
        ["noon" | "midday"] | ["twelve", "noon"] => Some(ClockTime {
            hour: 12,
            minute: 0,
            half: Some(HalfDay::Pm),
        }),
        ["midnight"] | ["twelve", "midnight"] => Some(ClockTime {
            hour: 12,
            minute: 0,
            half: Some(HalfDay::Am),
        }),
        ["half", "past", hour] | ["half", hour] => at(&[hour], 30),
        ["a", "quarter", "past", hour] | ["quarter", "past", hour] => at(&[hour], 15),
        ["a", "quarter", "to" | "till", hour] | ["quarter", "to" | "till", hour] => before(&[hour], 15),
        [minute @ .., "minutes" | "minute", "past", hour] | [minute @ .., "past", hour] => at(
            &[hour],
            numbers::read_number(minute).filter(|minute| (1..60).contains(minute))?,
        ),
        [minute @ .., "minutes" | "minute", "to" | "till", hour] | [minute @ .., "to" | "till", hour] => before(
            &[hour],
            numbers::read_number(minute).filter(|minute| (1..60).contains(minute))?,
        ),
        [hour, "o", "clock"] | [hour, "oclock" | "o'clock"] => at(&[hour], 0),
        [hour, "oh" | "o" | "zero", minute] => {
            at(&[hour], numbers::read_number(&[minute]).filter(|minute| *minute < 10)?)
        }
        [hour] => at(&[hour], 0),
        // "twenty one" alone is an hour; "seven thirty" is an hour and its minutes.
        [_, _] if at(words, 0).is_some() => at(words, 0),
        [tens, ones, minute @ ..]
            if at(&[tens, ones], 0).is_some() && numbers::read_number(minute).is_some_and(|minute| minute >= 10) =>
        {
            at(&[tens, ones], numbers::read_number(minute)?)
        }
        [hour, minute @ ..] if numbers::read_number(minute).is_some_and(|minute| minute >= 10) => {
            at(&[hour], numbers::read_number(minute)?)
        }
        _ => None,
    }
}

/// A percentage: "thirty percent", "fifty", "half".
pub(crate) fn percent(words: &[&str]) -> Option<u8> {
    let number = match words {
        ["half"] => return Some(50),
        [number @ .., "percent"] | [number @ .., "per", "cent"] => number,
        number => number,
    };
    u8::try_from(numbers::read_number(number)?)
        .ok()
        .filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests;
