//! Turns written text into spoken words: replies for the synthesizer, and the transcripts of a recognizer that writes like people.

use crate::{numbers, written::without_accents};

/// A written word in its spoken form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpokenWord {
    /// ASCII lower-case letters, apostrophes and spaces (a number is several words).
    pub text: String,
    /// The pause behind it.
    pub pause: Pause,
}

/// The pause behind a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The next word follows at once.
    None,
    /// A comma, a colon.
    Comma,
    /// The end of a sentence.
    Stop,
}

/// Written text in the form of a transcript: lower case, no punctuation, numbers in words ("at 6:30 p.m." is "at six thirty p m"). A
/// recognizer that writes like people passes its text through this to the dialogue.
pub fn in_words(text: &str) -> String {
    let prepared: Vec<String> = text.split_whitespace().map(unabbreviated).collect();
    let mut said: Vec<String> = Vec::new();
    for SpokenWord { text, .. } in spoken_words(&prepared.join(" ")) {
        let half_of_day = matches!(text.as_str(), "a m" | "p m" | "am" | "pm");
        // "6:00 a.m." was said as "six a m".
        if half_of_day && said.ends_with(&["o".to_owned(), "clock".to_owned()]) {
            said.truncate(said.len() - 2);
        }
        said.extend(text.split_whitespace().map(str::to_owned));
    }
    said.join(" ")
}

/// The spoken form of a written word. A long row of figures is a code, spoken figure by figure.
fn unabbreviated(written: &str) -> String {
    let bare = written.trim_matches(|letter: char| !letter.is_alphanumeric());
    let is_row = bare.len() >= ROW_FIGURES_MIN && bare.bytes().all(|byte| byte.is_ascii_digit());
    match bare.to_lowercase().as_str() {
        _ if is_row => one_by_one(bare),
        "mr" => "mister".to_owned(),
        "dr" => "doctor".to_owned(),
        _ => written.to_owned(),
    }
}

/// Fewest figures without a comma of a number that is no quantity. "2026" is a year.
const ROW_FIGURES_MIN: usize = 5;

/// The words of written text, as they are said: figures, clocks, money and fractions in words.
pub fn spoken_words(text: &str) -> impl Iterator<Item = SpokenWord> + use<> {
    let text = without_accents(text);
    let mut words = Vec::new();
    let mut after_number = false;
    for written in text.split(|letter: char| letter.is_whitespace() || "–—".contains(letter)) {
        let pause = match written.chars().rev().find(|letter| !"\"')]".contains(*letter)) {
            Some('.' | '!' | '?' | '…') => Pause::Stop,
            Some(',' | ';' | ':') => Pause::Comma,
            _ => Pause::None,
        };
        let bare = written
            .trim_start_matches(|letter: char| "\"'([{«“".contains(letter))
            .trim_end_matches(|letter: char| "\"')]}»”.,;:!?…".contains(letter));
        let is_fraction = bare.contains('/') && after_number;
        let text = number(bare).unwrap_or_else(|| speakable(written));
        after_number = pause == Pause::None && !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit());
        // "1 1/2" is one and a half.
        let text = if is_fraction { format!("and {text}") } else { text };
        words.push(SpokenWord { text, pause });
    }
    words.into_iter()
}

/// The spoken form of a number in figures; `None` for any other text, which is read letter by letter.
fn number(written: &str) -> Option<String> {
    if let Some(rest) = written.strip_prefix(['-', '−']) {
        return number(rest)
            .filter(|_| rest.starts_with(|first: char| first.is_ascii_digit() || "$€£.".contains(first)))
            .map(|number| format!("minus {number}"));
    }
    for (sign, one, many, hundredth, hundredths) in [
        ('$', "dollar", "dollars", "cent", "cents"),
        ('€', "euro", "euros", "cent", "cents"),
        ('£', "pound", "pounds", "penny", "pence"),
    ] {
        if let Some(amount) = written.strip_prefix(sign).or_else(|| written.strip_suffix(sign)) {
            return money(amount, [one, many], [hundredth, hundredths]);
        }
    }
    let end = written.find(|letter: char| !(letter.is_ascii_digit() || ".,:/".contains(letter)));
    let (figures, unit) = written.split_at(end.unwrap_or(written.len()));
    if !figures.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    let read = |figures: &str| {
        clock(figures)
            .or_else(|| fraction(figures))
            .or_else(|| decimal(figures))
    };
    match unit {
        "" => read(figures),
        "%" => read(figures).map(|number| format!("{number} percent")),
        "°" | "º" => read(figures).map(|number| format!("{number} degrees")),
        "°C" | "°c" => read(figures).map(|number| format!("{number} degrees celsius")),
        "°F" | "°f" => read(figures).map(|number| format!("{number} degrees fahrenheit")),
        "st" | "nd" | "rd" | "th" => whole(figures).map(numbers::spell_ordinal),
        // "10-20": from one number to a larger one. "555-1234" is a telephone number.
        _ => {
            let (from, to) = (whole(figures)?, whole(unit.strip_prefix('-')?)?);
            (from < to && to < 1000).then(|| format!("{} to {}", numbers::spell(from), numbers::spell(to)))
        }
    }
}

/// "1,000" and "1000". Long numbers, as of telephones, are read figure by figure, and so are numbers that begin with
/// zero.
fn whole(figures: &str) -> Option<u32> {
    let mut groups = figures.split(',');
    let first = groups.next()?;
    let plain = if figures.contains(',') {
        if !(1..=3).contains(&first.len()) || groups.clone().any(|group| group.len() != 3) {
            return None;
        }
        figures.replace(',', "")
    } else {
        if figures.len() > FIGURES_MAX {
            return None;
        }
        first.to_owned()
    };
    if plain.len() > 1 && plain.starts_with('0') || !plain.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    plain.parse().ok()
}

/// A longer row of figures is no quantity.
const FIGURES_MAX: usize = 6;

/// "3.14", "1,000.5", ".5" and whole numbers.
fn decimal(figures: &str) -> Option<String> {
    let Some((before, after)) = figures.split_once('.') else {
        return whole(figures).map(numbers::spell);
    };
    if after.is_empty() || after.len() > 2 * FIGURES_MAX || !after.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let before = if before.is_empty() { 0 } else { whole(before)? };
    Some(format!("{} point {}", numbers::spell(before), one_by_one(after)))
}

/// "10:05", and "10:05:30" as a time with seconds.
fn clock(figures: &str) -> Option<String> {
    let parts: Vec<&str> = figures.split(':').collect();
    let (hour, minutes) = parts.split_first()?;
    let two = |part: &&str| part.len() == 2 && part.parse::<u32>().is_ok_and(|number| number < 60);
    if !(1..=2).contains(&minutes.len()) || !(1..=2).contains(&hour.len()) || !minutes.iter().all(two) {
        return None;
    }
    let mut spoken = numbers::spell(hour.parse().ok()?);
    for part in minutes {
        let number: u32 = part.parse().ok()?;
        spoken.push(' ');
        spoken.push_str(&match number {
            0 if minutes.len() == 1 => "o clock".to_owned(),
            0..=9 => format!("oh {}", numbers::spell(number)),
            _ => numbers::spell(number),
        });
    }
    Some(spoken)
}

/// "1/2", "3/4"; not "24/7", nor a date.
fn fraction(figures: &str) -> Option<String> {
    let (above, below) = figures.split_once('/')?;
    let (above, below) = (whole(above)?, whole(below)?);
    if !(1..below).contains(&above) || !(2..=10).contains(&below) {
        return None;
    }
    let part = match below {
        2 => "half".to_owned(),
        4 => "quarter".to_owned(),
        below => numbers::spell_ordinal(below),
    };
    let plural = if above == 1 { "" } else { "s" };
    Some(format!("{} {part}{plural}", numbers::spell(above)))
}

/// "20.50" of a currency.
fn money(amount: &str, [one, many]: [&str; 2], [hundredth, hundredths]: [&str; 2]) -> Option<String> {
    let count = |number: u32, one: &str, many: &str| {
        let unit = if number == 1 { one } else { many };
        format!("{} {unit}", numbers::spell(number))
    };
    let Some((before, after)) = amount.split_once('.').filter(|(_, after)| after.len() == 2) else {
        return match whole(amount) {
            Some(number) => Some(count(number, one, many)),
            None => decimal(amount).map(|number| format!("{number} {many}")),
        };
    };
    let (before, after) = (whole(before)?, after.parse::<u32>().ok()?);
    Some(match (before, after) {
        (before, 0) => count(before, one, many),
        (0, after) => count(after, hundredth, hundredths),
        (before, after) => format!(
            "{} and {}",
            count(before, one, many),
            count(after, hundredth, hundredths)
        ),
    })
}

fn one_by_one(figures: &str) -> String {
    let figures = figures.bytes().map(|figure| numbers::spell(u32::from(figure - b'0')));
    figures.collect::<Vec<_>>().join(" ")
}

/// Letters, and figures among them: "7am", "b2b", "555-1234".
fn speakable(written: &str) -> String {
    let mut spoken = String::new();
    let mut digits = String::new();
    let say_number = |digits: &mut String, spoken: &mut String| {
        if digits.is_empty() {
            return;
        }
        let separate = !spoken.is_empty() && !spoken.ends_with(' ');
        let words = whole(digits).map_or_else(|| one_by_one(digits), numbers::spell);
        spoken.push_str(if separate { " " } else { "" });
        spoken.push_str(&words);
        digits.clear();
    };
    for letter in written.chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let after_number = !digits.is_empty();
        say_number(&mut digits, &mut spoken);
        match letter {
            'a'..='z' | 'A'..='Z' => {
                if after_number {
                    spoken.push(' ');
                }
                spoken.push(letter.to_ascii_lowercase());
            }
            '\'' | '’' => spoken.push('\''),
            '%' => spoken.push_str(" percent "),
            '&' => spoken.push_str(" and "),
            '°' => spoken.push_str(" degrees "),
            '+' => spoken.push_str(" plus "),
            '-' | '/' | '_' | '.' | ':' | ',' => spoken.push(' '),
            _ => {}
        }
    }
    say_number(&mut digits, &mut spoken);
    let spoken: Vec<&str> = spoken.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    spoken.join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret;

    #[test]
    fn writing_becomes_what_was_said() {
        for (written, said) in [
            ("Go forward 10 meters.", "go forward ten meters"),
            ("Set an alarm for 6:00 a.m.", "set an alarm for six a m"),
            ("Wake me at 7:30 pm, please!", "wake me at seven thirty pm please"),
            ("November 21st", "november twenty first"),
            ("Dim the lights to 50%.", "dim the lights to fifty percent"),
            ("29340", "two nine three four zero"),
            (
                "2,500 people in 2026",
                "two thousand five hundred people in two thousand twenty six",
            ),
            ("Mr. Dashwood, cold-hearted", "mister dashwood cold hearted"),
            ("I'm here. — OK?", "i'm here ok"),
            ("", ""),
            ("你好", ""),
        ] {
            assert_eq!(in_words(written), said, "{written}");
        }
    }

    #[test]
    fn the_dialogue_understands_both_ways_to_write_a_number() {
        for (written, words) in [
            ("Set a timer for 10 minutes.", "set a timer for ten minutes"),
            ("Set an alarm for 6:00 a.m.", "set an alarm for six a m"),
            ("Wake me up at 7:30.", "wake me up at seven thirty"),
            (
                "Dim the living room lights to 30%",
                "dim the living room lights to thirty percent",
            ),
            ("Change the timer to 10 minutes!", "change the timer to ten minutes"),
        ] {
            let heard = interpret(&in_words(written)).command;
            assert_eq!(heard, interpret(words).command, "{written}");
            assert!(heard.changes_state(), "{written}: {heard:?}");
        }
    }
}
