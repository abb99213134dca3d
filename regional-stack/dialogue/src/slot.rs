//! Finding slot values in an utterance: cities, rooms, durations, times of day, percentages and days.
//!
//! Values come from closed vocabularies. So a misheard word is first moved to the nearest known word, and then the
//! phrase is read strictly. The cost of the correction stays with the value.

use crate::{
    command::{City, ClockTime, Day, DayPart, Room, Rooms},
    edit_distance::edit_distance,
    free_names, lexicon, numbers,
    quantity::{UNITS, clock, duration, percent},
};

/// The kinds of slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotKind {
    City,
    /// A place that is no known city.
    Elsewhere,
    /// A room or several.
    Rooms,
    Duration,
    Clock,
    Percent,
    Day,
    /// The name of a timer.
    Name,
}

impl SlotKind {
    /// The kind that templates write as `<name>`. Templates are constants of this crate, and a test expands all of
    /// them.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "city" => Self::City,
            "elsewhere" => Self::Elsewhere,
            "room" => Self::Rooms,
            "duration" => Self::Duration,
            "clock" => Self::Clock,
            "percent" => Self::Percent,
            "day" => Self::Day,
            "name" => Self::Name,
            _ => unreachable!("template names a slot that does not exist: {name}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    City(City),
    Elsewhere(String),
    Rooms(Rooms),
    DurationS(u32),
    Clock(ClockTime),
    Percent(u8),
    /// A day, and the part of it if one was said: "tomorrow evening".
    Day(Day, Option<DayPart>),
    Name(String),
}

impl Value {
    pub(crate) fn kind(&self) -> SlotKind {
        match self {
            Self::City(_) => SlotKind::City,
            Self::Elsewhere(_) => SlotKind::Elsewhere,
            Self::Rooms(_) => SlotKind::Rooms,
            Self::DurationS(_) => SlotKind::Duration,
            Self::Clock(_) => SlotKind::Clock,
            Self::Percent(_) => SlotKind::Percent,
            Self::Day(..) => SlotKind::Day,
            Self::Name(_) => SlotKind::Name,
        }
    }
}

/// A value found in the utterance, and its position.
#[derive(Debug)]
pub(crate) struct SlotMatch {
    pub(crate) start: usize,
    pub(crate) words: usize,
    pub(crate) value: Value,
    /// Number of characters that were corrected.
    pub(crate) cost: f32,
}

/// The filled slots of one sentence.
#[derive(Debug, Default, Clone)]
pub(crate) struct Captured {
    pub(crate) city: Option<City>,
    pub(crate) elsewhere: Option<String>,
    pub(crate) rooms: Rooms,
    /// Durations in seconds, in the order in which they were said.
    pub(crate) durations: Vec<u32>,
    /// Times of day, in the order in which they were said.
    pub(crate) clocks: Vec<ClockTime>,
    pub(crate) percent: Option<u8>,
    pub(crate) day: Option<Day>,
    pub(crate) part: Option<DayPart>,
    pub(crate) name: Option<String>,
}

impl Captured {
    /// The only duration, or the last one.
    pub(crate) fn duration_s(&self) -> Option<u32> {
        self.durations.last().copied()
    }

    pub(crate) fn keep(&mut self, value: &Value) {
        match value {
            Value::City(city) => self.city = Some(*city),
            Value::Elsewhere(place) => self.elsewhere = Some(place.clone()),
            Value::Rooms(rooms) => self.rooms = *rooms,
            Value::DurationS(seconds) => self.durations.push(*seconds),
            Value::Clock(time) => self.clocks.push(*time),
            Value::Percent(percent) => self.percent = Some(*percent),
            Value::Day(day, part) => (self.day, self.part) = (Some(*day), *part),
            Value::Name(name) => self.name = Some(name.clone()),
        }
    }

    /// The last time of day and its day, exact if a part of the day was said too.
    pub(crate) fn when(&self) -> (Option<ClockTime>, Option<Day>) {
        match self.clocks.last() {
            Some(time) => {
                let (time, day) = time.on(self.day, self.part);
                (Some(time), day)
            }
            None => (None, self.day),
        }
    }
}

/// Longest phrase of a slot, in words: "two hours and forty five minutes and thirty seconds".
const WORDS_MAX: usize = 10;

/// Cost per character of a free name, so that known values win over unknown ones.
const FREE_COST_PER_CHAR: f32 = 0.25;

/// Finds every slot value at every position of `words`.
pub(crate) fn find_all(words: &[&str]) -> Vec<SlotMatch> {
    let mut found = Vec::new();
    let corrected: Vec<Option<(&'static str, usize)>> = words.iter().map(|word| correct(word)).collect();
    for start in 0..words.len() {
        for length in 1..=WORDS_MAX.min(words.len() - start) {
            let phrase = &words[start..start + length];
            let mut keep = |value: Value, cost: f32| {
                found.push(SlotMatch {
                    start,
                    words: length,
                    value,
                    cost,
                });
            };
            if length <= NAME_WORDS_MAX {
                for &city in City::ALL {
                    if let Some(cost) = name_distance(city.name(), phrase) {
                        keep(Value::City(city), cost as f32);
                    }
                }
                for &room in Room::ALL {
                    if let Some(cost) = name_distance(room.name(), phrase) {
                        keep(Value::Rooms(room.into()), cost as f32);
                    }
                }
            }
            if let Some((day, part, cost)) = day(phrase) {
                keep(Value::Day(day, part), cost as f32);
            }
            if length <= 3 && phrase.iter().all(|word| free_names::may_be_a_place(word)) {
                let chars: usize = phrase.iter().map(|word| word.len()).sum();
                keep(
                    Value::Elsewhere(phrase.join(" ")),
                    chars as f32 * FREE_COST_PER_CHAR + 1.0,
                );
            }
            if length <= 2 && phrase.iter().all(|word| free_names::may_be_a_name(word)) {
                let chars: usize = phrase.iter().map(|word| word.len()).sum();
                keep(Value::Name(phrase.join(" ")), chars as f32 * FREE_COST_PER_CHAR);
            }
            let Some((corrected, cost)) = all(&corrected[start..start + length]) else {
                continue;
            };
            let cost = cost as f32;
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
    join_rooms(words, &mut found);
    found
}

/// Names have at most two words; a third word allows for a split within one.
const NAME_WORDS_MAX: usize = 3;

/// Adds lists of rooms: "kitchen and the bedroom", "kitchen light and hall".
fn join_rooms(words: &[&str], found: &mut Vec<SlotMatch>) {
    let single = |found: &SlotMatch| match found.value {
        Value::Rooms(rooms) => Some((found.start, found.words, rooms, found.cost)),
        _ => None,
    };
    let singles: Vec<(usize, usize, Rooms, f32)> = found.iter().filter_map(single).collect();
    let mut lists = singles.clone();
    // Each round extends the lists by one room, up to all rooms.
    for _ in 1..Room::ALL.len() {
        let mut longer = Vec::new();
        for &(start, length, rooms, cost) in &lists {
            let mut next = start + length;
            if matches!(words.get(next), Some(&"light" | &"lights")) {
                next += 1;
            }
            let joined = words.get(next) == Some(&"and");
            next += usize::from(joined);
            if matches!(words.get(next), Some(&"the" | &"my")) {
                next += 1;
            }
            for &(at, more, room, extra) in &singles {
                if at == next && rooms.and(room) != rooms {
                    longer.push((start, at + more - start, rooms.and(room), cost + extra));
                }
            }
        }
        if longer.is_empty() {
            break;
        }
        found.extend(longer.iter().map(|&(start, words, rooms, cost)| SlotMatch {
            start,
            words,
            value: Value::Rooms(rooms),
            cost,
        }));
        lists = longer;
    }
}

/// The distance to a name, without spaces; `None` if too far. The first letter must be right or missing. A short name
/// may have one wrong letter, a long one two. Half of "tomorrow" is too little.
fn name_distance(name: &str, phrase: &[&str]) -> Option<usize> {
    let name = name.replace(' ', "");
    let heard = phrase.concat();
    if name == heard {
        return Some(0);
    }
    // A real word, or another city, is not a misheard form of this name.
    if let [word] = phrase
        && (lexicon::is_common(word) || free_names::is_other_place(word))
    {
        return None;
    }
    // "living room no" is no living room: a real word belongs to a longer name only as the piece at its place.
    let mut at = 0usize;
    for word in phrase {
        let near = at.saturating_sub(1)..=at + 1;
        let is_piece = || name.match_indices(word).any(|(found, _)| near.contains(&found));
        if lexicon::is_negation(word) || lexicon::is_common(word) && !is_piece() {
            return None;
        }
        at += word.len();
    }
    if name.starts_with(&heard) {
        let missing = name.len() - heard.len();
        return (missing * 8 <= name.len() * 3).then_some(missing);
    }
    let distance = edit_distance(&name, &heard);
    let allowed = match name.len() {
        0..=4 => 0,
        5..=7 => 1,
        _ => 2,
    };
    let begins_right = heard.get(..1) == name.get(..1) || name.get(1..) == Some(heard.as_str());
    let allowed = if name.get(1..) == Some(heard.as_str()) {
        1
    } else {
        allowed
    };
    (begins_right && distance <= allowed).then_some(distance)
}

/// "tomorrow", "on friday", "tomorrow evening", "tonight".
fn day(phrase: &[&str]) -> Option<(Day, Option<DayPart>, usize)> {
    let part_of = |word: &str| match word {
        "morning" => Some(DayPart::Morning),
        "afternoon" | "evening" => Some(DayPart::Later),
        "night" => Some(DayPart::Night),
        _ => None,
    };
    match phrase {
        ["tonight"] => return Some((Day::Today, Some(DayPart::Night), 0)),
        ["the", "day", "after", "tomorrow"] => return Some((Day::AfterTomorrow, None, 0)),
        ["the" | "this" | "next", "weekend"] => return Some((Day::Weekend, None, 0)),
        ["this", word] => return part_of(word).map(|part| (Day::Today, Some(part), 0)),
        _ => {}
    }
    let (phrase, part) = match phrase {
        [rest @ .., word] if !rest.is_empty() && part_of(word).is_some() => (rest, part_of(word)),
        _ => (phrase, None),
    };
    if phrase.len() > NAME_WORDS_MAX && phrase.len() != 4 {
        return None;
    }
    let found = Day::ALL
        .iter()
        .filter_map(|day| name_distance(day.name(), phrase).map(|cost| (*day, cost)));
    let (day, cost) = found.min_by_key(|(_, cost)| *cost)?;
    Some((day, part, cost))
}

/// The corrected words with the sum of their costs; `None` if one is unknown.
fn all(corrected: &[Option<(&'static str, usize)>]) -> Option<(Vec<&'static str>, usize)> {
    let words: Vec<(&'static str, usize)> = corrected.iter().copied().collect::<Option<_>>()?;
    let cost = words.iter().map(|(_, cost)| cost).sum();
    Some((words.into_iter().map(|(word, _)| word).collect(), cost))
}

/// The nearest word of durations, times and percentages, and its distance.
fn correct(heard: &str) -> Option<(&'static str, usize)> {
    if let Some(known) = vocabulary().find(|known| *known == heard) {
        return Some((known, 0));
    }
    // Short words have close neighbours (a/an/am, ten/two), so they must match exactly. So must real words: "even" is
    // not a "seven", nor "light" an "eight".
    if heard.len() < 4 || lexicon::is_common(heard) {
        return None;
    }
    let allowed = if heard.len() < 6 { 1 } else { 2 };
    let near: Vec<(&'static str, usize)> = vocabulary()
        .filter(|known| known.len() > 3 && known.get(..1) == heard.get(..1))
        .map(|known| (known, edit_distance(known, heard)))
        .filter(|(_, distance)| *distance <= allowed)
        .collect();
    let nearest = near.iter().map(|(_, distance)| *distance).min()?;
    let mut at_nearest = near.into_iter().filter(|(_, distance)| *distance == nearest);
    match (at_nearest.next(), at_nearest.next()) {
        // Two different numbers at the same distance allow no guess. "minut" is as near to "minute" as to "minutes",
        // which mean the same.
        (Some((one, _)), Some((other, _))) if one.trim_end_matches('s') != other.trim_end_matches('s') => None,
        (one, _) => one,
    }
}

fn vocabulary() -> impl Iterator<Item = &'static str> {
    numbers::vocabulary().chain(UNITS)
}

#[cfg(test)]
mod tests;
