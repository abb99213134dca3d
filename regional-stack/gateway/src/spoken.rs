//! Written text made speakable: the synthesizer knows lower-case words, commas and stops, and short sentences.

/// Longest text spoken in one go, in characters: about ten seconds. The synthesizer is trained on sentences, and the
/// first audio of a long text should not wait for all of it.
const SENTENCE_CHARS_MAX: usize = 160;

/// A slow reader's time for one letter, in seconds: letters that are no words are spelled and take as long, words half of it.
const LETTER_SECONDS: f32 = 0.12;

/// The longest time that speaking this text takes: an estimate of its cost beforehand.
pub(crate) fn seconds(sentence: &str, speed: f32) -> f32 {
    sentence.len() as f32 * LETTER_SECONDS / speed.max(0.01)
}

/// `text` as sentences for the synthesizer: lower case, numbers in words, nothing that cannot be said.
pub(crate) fn sentences(text: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut sentence = String::new();
    let mut finish = |sentence: &mut String| {
        let finished = std::mem::take(sentence);
        let finished = finished.trim_matches([' ', ',']);
        if finished.chars().any(|letter| letter.is_ascii_alphabetic()) {
            sentences.push(finished.to_owned());
        }
    };
    for word in words(text) {
        // The text may be one endless word; it is cut like everything else.
        let mut rest = word.text.as_str();
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.len().min(SENTENCE_CHARS_MAX));
            if !sentence.is_empty() && sentence.len() + 1 + piece.len() > SENTENCE_CHARS_MAX {
                finish(&mut sentence);
            }
            if !sentence.is_empty() {
                sentence.push(' ');
            }
            sentence.push_str(piece);
            rest = more;
        }
        match word.pause {
            Pause::None => {}
            Pause::Comma if sentence.is_empty() => {}
            Pause::Comma => sentence.push(','),
            Pause::Stop => finish(&mut sentence),
        }
    }
    finish(&mut sentence);
    sentences
}

/// `text` in pieces of whole sentences that take about ten seconds at the most: what is short is one piece.
pub(crate) fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for sentence in sentences(text) {
        match pieces.last_mut() {
            Some(piece) if piece.len() + 1 + sentence.len() <= SENTENCE_CHARS_MAX => {
                piece.push(' ');
                piece.push_str(&sentence);
            }
            _ => pieces.push(sentence),
        }
    }
    pieces
}

struct Word {
    /// ASCII lower-case letters, apostrophes and spaces (a number is several words).
    text: String,
    pause: Pause,
}

#[derive(PartialEq)]
enum Pause {
    None,
    Comma,
    Stop,
}

fn words(text: &str) -> impl Iterator<Item = Word> {
    let text = dialogue::without_accents(text);
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
        words.push(Word { text, pause });
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
        "st" | "nd" | "rd" | "th" => whole(figures).map(dialogue::spell_ordinal),
        // "10-20": from one number to a larger one. "555-1234" is a telephone number.
        _ => {
            let (from, to) = (whole(figures)?, whole(unit.strip_prefix('-')?)?);
            (from < to && to < 1000).then(|| format!("{} to {}", dialogue::spell(from), dialogue::spell(to)))
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
        return whole(figures).map(dialogue::spell);
    };
    if after.is_empty() || after.len() > 2 * FIGURES_MAX || !after.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let before = if before.is_empty() { 0 } else { whole(before)? };
    Some(format!("{} point {}", dialogue::spell(before), one_by_one(after)))
}

/// "10:05", and "10:05:30" as a time with seconds.
fn clock(figures: &str) -> Option<String> {
    let parts: Vec<&str> = figures.split(':').collect();
    let (hour, minutes) = parts.split_first()?;
    let two = |part: &&str| part.len() == 2 && part.parse::<u32>().is_ok_and(|number| number < 60);
    if !(1..=2).contains(&minutes.len()) || !(1..=2).contains(&hour.len()) || !minutes.iter().all(two) {
        return None;
    }
    let mut spoken = dialogue::spell(hour.parse().ok()?);
    for part in minutes {
        let number: u32 = part.parse().ok()?;
        spoken.push(' ');
        spoken.push_str(&match number {
            0 if minutes.len() == 1 => "o clock".to_owned(),
            0..=9 => format!("oh {}", dialogue::spell(number)),
            _ => dialogue::spell(number),
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
        below => dialogue::spell_ordinal(below),
    };
    let plural = if above == 1 { "" } else { "s" };
    Some(format!("{} {part}{plural}", dialogue::spell(above)))
}

/// "20.50" of a currency.
fn money(amount: &str, [one, many]: [&str; 2], [hundredth, hundredths]: [&str; 2]) -> Option<String> {
    let count = |number: u32, one: &str, many: &str| {
        let unit = if number == 1 { one } else { many };
        format!("{} {unit}", dialogue::spell(number))
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
    let figures = figures.bytes().map(|figure| dialogue::spell(u32::from(figure - b'0')));
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
        let words = whole(digits).map_or_else(|| one_by_one(digits), dialogue::spell);
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

    #[test]
    fn written_text_becomes_words_that_can_be_said() {
        for (text, expected) in [
            ("Hello, World!", &["hello, world"][..]),
            (
                "It is 10:35. Bring 2 umbrellas",
                &["it is ten thirty five", "bring two umbrellas"],
            ),
            ("50% at 7am", &["fifty percent at seven am"]),
            ("don’t \"stop\"", &["don't stop"]),
            (
                "call 0123456789",
                &["call zero one two three four five six seven eight nine"],
            ),
            (
                "1,000 people, 2,500,000 ants",
                &["one thousand people, two million five hundred thousand ants"],
            ),
            ("It is -5 degrees", &["it is minus five degrees"]),
            (
                "-5°C or 20.5 °F",
                &["minus five degrees celsius or twenty point five degrees f"],
            ),
            ("at 10:05 and 10:00", &["at ten oh five and ten o clock"]),
            (
                "3.14, .5 and 100%",
                &["three point one four, zero point five and one hundred percent"],
            ),
            (
                "$20.50, $1, £0.01 and 5€",
                &["twenty dollars and fifty cents, one dollar, one penny and five euros"],
            ),
            ("1/2, 3/4 and 1 1/2", &["one half, three quarters and one and one half"]),
            ("24/7", &["twenty four seven"]),
            ("the 21st, the 2nd (3rd)", &["the twenty first, the second third"]),
            ("Résumé, naïve, Straße", &["resume, naive, strasse"]),
            (
                "10-20 km, 555-1234",
                &["ten to twenty km, five hundred fifty five one thousand two hundred thirty four"],
            ),
            (
                "well-known and/or 2026-11-21.",
                &["well known and or two thousand twenty six eleven twenty one"],
            ),
            ("version 1.2.3", &["version one two three"]),
            ("… !? ,, 日本語", &[]),
            ("", &[]),
        ] {
            assert_eq!(sentences(text), expected, "{text}");
        }
    }

    #[test]
    fn no_sentence_is_too_long_whatever_the_text() {
        for text in ["word ".repeat(500), "w".repeat(1000), "9".repeat(300)] {
            let sentences = sentences(&text);
            assert!(sentences.len() > 2);
            assert!(sentences.iter().all(|sentence| sentence.len() <= SENTENCE_CHARS_MAX));
        }
    }
}
