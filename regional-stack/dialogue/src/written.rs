//! Turns typed text into spoken words: digits, clocks, percentages and accents. Unreadable text becomes `#`, which no
//! sentence explains, so that half-read text leads to no action.

use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};

use crate::numbers;

/// The words of typed or recognised text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Lower-case words of a to z and apostrophes, or `#`.
    pub(crate) words: Vec<String>,
    /// Whether the text ends as a question.
    pub(crate) asks: bool,
}

/// Reads at most `words_max` words; `None` if there are more.
pub(crate) fn read(text: &str, words_max: usize) -> Option<Reading> {
    let mut words = Vec::new();
    let joined = join_hours(text);
    for written in joined.split(|letter: char| letter.is_whitespace() || "_\"()[]{}".contains(letter)) {
        // Long dashes and angle brackets need no space around them.
        for written in written.split_inclusive(['–', '—', '<', '>']) {
            let (written, sign) = match written.strip_suffix(['–', '—', '<', '>']) {
                Some(before) if written.ends_with(['–', '—']) => (before, Some(PAUSE)),
                Some(before) => (before, Some(SIGN)),
                None => (written, None),
            };
            // Stops and commas end words, except in "7.30" and "1,000".
            let mut pieces = written.split_inclusive([';', '!', '?', '…']).peekable();
            while let Some(piece) = pieces.next() {
                punctuated(piece, &mut words);
                if pieces
                    .peek()
                    .is_some_and(|next| next.starts_with(char::is_alphanumeric))
                {
                    push_sign(SIGN, &mut words);
                }
            }
            if let Some(sign) = sign {
                push_sign(sign, &mut words);
            }
            // At most one sign before each word and one at the end.
            if words.len() > 2 * words_max + 1 {
                return None;
            }
        }
    }
    let words = without_signs(&hours_in_words(&words));
    (words.len() <= words_max).then(|| Reading {
        words,
        asks: text.trim_end().ends_with('?'),
    })
}

/// "7 h" as "7h".
fn join_hours(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut tokens = text.split_inclusive(char::is_whitespace).peekable();
    while let Some(token) = tokens.next() {
        let number = token.trim_end();
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
        let is_unit = |next: &&str| {
            next.strip_prefix(['h', 'H'])
                .is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_alphanumeric() || letter == '\''))
        };
        joined.push_str(if is_number && tokens.peek().is_some_and(is_unit) {
            number
        } else {
            token
        });
    }
    joined
}

/// "7h" and "19h30" are clocks on the continent and durations elsewhere, so the words around them decide. Between an alarm
/// and a number of hours both are possible ("a 2h alarm"): such a number becomes `#`.
fn hours_in_words(words: &[String]) -> Vec<String> {
    let has = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    let is_for_alarm = has(&["alarm", "alarms", "wake", "awake"]) && !has(&["snooze", "timer", "timers"]);
    let mut read = Vec::with_capacity(words.len());
    for (at, word) in words.iter().enumerate() {
        let hours = word
            .split_once(HOURS)
            .filter(|_| word.starts_with(|c: char| c.is_ascii_digit()));
        let Some((hour, minute)) = hours else {
            read.push(word.clone());
            continue;
        };
        let before = at.checked_sub(1).map_or("", |at| words[at].as_str());
        let after = words.get(at + 1).map_or("", String::as_str);
        let is_duration = matches!(before, "in" | "within" | "after" | "by" | "another" | "minus")
            || matches!(after, "from" | "later" | "earlier" | "more" | "longer");
        let spoken = if matches!(before, "at" | "until" | "till") || is_for_alarm && !is_duration {
            if matches!(after, "alarm" | "alarms") {
                None
            } else {
                clock(hour, if minute.is_empty() { "00" } else { minute })
            }
        } else if minute.is_empty() {
            integer(hour).map(|hours| format!("{hours} hours"))
        } else {
            integer(hour)
                .zip(integer(minute))
                .map(|(hours, minutes)| format!("{hours} hours {minutes} minutes"))
        };
        read.extend(spoken.as_deref().unwrap_or("#").split(' ').map(str::to_owned));
    }
    read
}

/// Stands between the digits of "7h" and "19h30" until the words around them are known.
const HOURS: char = 'h';

/// Stands for a dash or a stop. Before a number it may be a sign or half of a decimal, elsewhere it means nothing.
const PAUSE: &str = "-";
/// Stands for any other sign. Beside a number it changes the number, elsewhere it means nothing.
const SIGN: &str = "+";

/// Several signs in a row count as one, of the stronger kind.
fn push_sign(sign: &str, words: &mut Vec<String>) {
    match words.last_mut() {
        Some(last) if last == PAUSE => sign.clone_into(last),
        Some(last) if last == SIGN => {}
        _ => words.push(sign.to_owned()),
    }
}

/// The words without signs. A sign that may belong to a number becomes `#`: "- 5 minutes" are not five minutes.
fn without_signs(words: &[String]) -> Vec<String> {
    let is_sign = |word: &String| matches!(word.as_str(), PAUSE | SIGN);
    let counts = |word: Option<&String>| {
        word.is_some_and(|word| numbers::is_number(word) || matches!(word.as_str(), "half" | "quarter"))
    };
    let read = |(at, word): (usize, &String)| {
        if !is_sign(word) {
            return Some(word.clone());
        }
        let before = at.checked_sub(1).and_then(|at| words.get(at));
        (counts(words.get(at + 1)) || word == SIGN && counts(before)).then(|| "#".to_owned())
    };
    words.iter().enumerate().filter_map(read).collect()
}

/// A word and the stops around it.
fn punctuated(piece: &str, words: &mut Vec<String>) {
    const STOPS: &[char] = &['.', ',', ':', ';', '!', '?', '…', '*'];
    let begun = piece.trim_end_matches(STOPS);
    let word = begun.trim_start_matches(STOPS);
    if word.is_empty() {
        if !piece.is_empty() {
            push_sign(PAUSE, words);
        }
    } else if begun == word {
        token(word, words);
    } else if let Some(tenths) = begun.strip_prefix('.').filter(|tenths| is_tenths(tenths)) {
        // ".5 hours"
        token(&format!("0.{tenths}"), words);
    } else {
        push_sign(PAUSE, words);
        token(word, words);
    }
}

/// Whether `written` begins with exactly one digit. The numbers of a conversation have no hundredths.
fn is_tenths(written: &str) -> bool {
    let digits = written.bytes().take_while(u8::is_ascii_digit).count();
    digits == 1
}

fn token(written: &str, words: &mut Vec<String>) {
    if written.is_empty() {
        return;
    }
    let folded = without_accents(written).to_ascii_lowercase();
    let folded = folded
        .replace(['’', '‘', '`'], "'")
        .replace('½', "1/2")
        .replace('¼', "1/4")
        .replace('¾', "3/4");
    if folded.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'\'') {
        let word = folded.trim_matches('\'');
        if word == "donot" {
            return words.extend(["do", "not"].map(str::to_owned));
        }
        words.extend((!word.is_empty()).then(|| word.to_owned()));
        return;
    }
    // "a.m." and "p.m."
    if matches!(folded.as_str(), "a.m" | "p.m") {
        words.push(folded.replace('.', ""));
        return;
    }
    let mut spoken = |text: String| words.extend(text.split(' ').map(str::to_owned));
    if let Some(known) = quantity(&folded) {
        return spoken(known);
    }
    // "ten-minute", "lights/lamps", "off.then": read each part by itself.
    const SIGNS: &[char] = &['-', '/', ',', '.', '+', '&', '*', '~', ':'];
    let joins_numbers = folded.bytes().any(|byte| byte.is_ascii_digit());
    if folded.contains(SIGNS) && !joins_numbers {
        for part in folded.split_inclusive(SIGNS) {
            let word = part.trim_end_matches(SIGNS);
            token(word, words);
            match &part[word.len()..] {
                // "twenty-five"
                "-" if !word.is_empty() => {}
                "" => {}
                "-" => push_sign(PAUSE, words),
                "&" => words.push("and".to_owned()),
                _ => push_sign(SIGN, words),
            }
        }
        return;
    }
    spoken("#".to_owned());
}

/// A number with the signs around it, in words.
fn quantity(written: &str) -> Option<String> {
    match written {
        "1/2" => return Some("half".to_owned()),
        "1/4" => return Some("quarter".to_owned()),
        "3/4" => return Some("three quarters".to_owned()),
        _ => {}
    }
    if let Some(rest) = written.strip_prefix(['-', '−']) {
        return quantity(rest).map(|number| format!("minus {number}"));
    }
    let end = written.find(|letter: char| !letter.is_ascii_digit() && !".,:".contains(letter));
    let (number, unit) = written.split_at(end.unwrap_or(written.len()));
    let unit = unit.trim_start_matches('-');
    // "7h", "1h30" and "2h15m"; "19:30h" as "19h30"
    if let Some(rest) = unit.strip_prefix('h') {
        let minutes = rest.trim_end_matches("min").trim_end_matches('m');
        let is_short =
            |digits: &str| (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_short(number) && (rest.is_empty() || is_short(minutes)) {
            return Some(format!("{number}{HOURS}{minutes}"));
        }
        match number.split_once([':', '.']) {
            Some((hour, minute)) if rest.is_empty() && is_short(hour) && minute.len() == 2 && is_short(minute) => {
                // "2.50h" may be two and a half hours.
                let is_clock = number.contains(':');
                return Some(if is_clock {
                    format!("{hour}{HOURS}{minute}")
                } else {
                    "#".to_owned()
                });
            }
            _ => {}
        }
    }
    let number = amount(number)?;
    let unit = match unit {
        "" => return Some(number),
        "%" => "percent",
        "am" | "a.m" => "am",
        "pm" | "p.m" => "pm",
        "s" | "sec" | "secs" | "second" | "seconds" => "seconds",
        "m" | "min" | "mins" | "minute" | "minutes" => "minutes",
        "h" | "hr" | "hrs" | "hour" | "hours" => "hours",
        _ => return None,
    };
    Some(format!("{number} {unit}"))
}

/// "10", "7:30", "7.30", "2.5", "1,000".
fn amount(written: &str) -> Option<String> {
    if let Some((hour, minute)) = written.split_once(':') {
        return clock(hour, minute);
    }
    if let Some((whole, part)) = written.split_once('.') {
        return match part.len() {
            1 => Some(format!("{} point {}", integer(whole)?, integer(part)?)),
            2 => clock(whole, part),
            _ => None,
        };
    }
    if let Some((thousands, rest)) = written.split_once(',') {
        let grouped = rest.len() == 3 && (1..=3).contains(&thousands.len());
        return grouped.then(|| integer(&format!("{thousands}{rest}"))).flatten();
    }
    integer(written)
}

fn clock(hour: &str, minute: &str) -> Option<String> {
    if !(1..=2).contains(&hour.len()) || minute.len() != 2 {
        return None;
    }
    let (hour, minute) = (hour.parse::<u32>().ok()?, minute.parse::<u32>().ok()?);
    if hour > 23 || minute > 59 {
        return None;
    }
    let hour = numbers::spell(hour);
    Some(match minute {
        0 => format!("{hour} o clock"),
        1..=9 => format!("{hour} oh {}", numbers::spell(minute)),
        _ => format!("{hour} {}", numbers::spell(minute)),
    })
}

fn integer(written: &str) -> Option<String> {
    let number: u32 = written.parse().ok()?;
    (number <= 9999 && written.len() <= 5).then(|| numbers::spell(number))
}

/// `text` with Latin letters reduced to the English alphabet: "résumé" becomes "resume". Other scripts stay as they
/// are.
pub fn without_accents(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.nfd().filter(|letter| !is_combining_mark(*letter)) {
        match letter {
            'ß' => plain.push_str("ss"),
            'æ' => plain.push_str("ae"),
            'Æ' => plain.push_str("Ae"),
            'œ' => plain.push_str("oe"),
            'Œ' => plain.push_str("Oe"),
            'ø' => plain.push('o'),
            'Ø' => plain.push('O'),
            'ł' => plain.push('l'),
            'Ł' => plain.push('L'),
            'đ' => plain.push('d'),
            'ı' => plain.push('i'),
            letter => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, words: &str) {
        let reading = read(text, 20).unwrap();
        assert_eq!(reading.words.join(" "), words, "{text}");
    }

    #[test]
    fn typed_text_is_read_as_somebody_would_say_it() {
        for (text, words) in [
            ("Dim the lights to 30%.", "dim the lights to thirty percent"),
            ("wake me at 7:30 am", "wake me at seven thirty am"),
            ("wake me at 7:05am, please!", "wake me at seven oh five am please"),
            ("at 7.30 a.m.", "at seven thirty am"),
            ("19:30", "nineteen thirty"),
            ("6:00 p.m.", "six o clock pm"),
            ("10 minutes", "ten minutes"),
            ("10min 90s 2h", "ten minutes ninety seconds two hours"),
            ("1h30 2h15m", "one hours thirty minutes two hours fifteen minutes"),
            ("timer for 2h", "timer for two hours"),
            ("in 7h", "in seven hours"),
            ("7 h, 1:30h", "seven hours one hours thirty minutes"),
            ("wake me at 7h30", "wake me at seven thirty"),
            ("alarm for 7h", "alarm for seven o clock"),
            ("an alarm for 7 h.", "an alarm for seven o clock"),
            ("alarm for 7h05", "alarm for seven oh five"),
            ("alarm for 19h30", "alarm for nineteen thirty"),
            ("alarm for 19:30 h", "alarm for nineteen thirty"),
            ("alarm in 7h", "alarm in seven hours"),
            ("alarm 2h from now", "alarm two hours from now"),
            ("a 2h alarm", "a # alarm"),
            ("alarm for 25h", "alarm for #"),
            ("alarm for 7h5", "alarm for #"),
            ("2 hours and ten minutes", "two hours and ten minutes"),
            ("1/2 an hour ½ an hour", "half an hour half an hour"),
            ("2.5 hours", "two point five hours"),
            ("1,000 seconds", "one thousand seconds"),
            ("-5 minutes", "minus five minutes"),
            ("ten-minute timer", "ten minute timer"),
            ("don’t ‘stop’", "don't stop"),
            ("Donot stop", "do not stop"),
            (
                ".5 hours, and .5 hours.",
                "zero point five hours and zero point five hours",
            ),
            ("lights - off — please – now ... thanks", "lights off please now thanks"),
            ("at 7—thanks", "at seven thanks"),
            ("lights/lamps off.then", "lights lamps off then"),
            ("10 minutes & 5 seconds", "ten minutes and five seconds"),
            ("What's the weather in São Paulo?", "what's the weather in sao paulo"),
        ] {
            check(text, words);
        }
    }

    #[test]
    fn what_cannot_be_read_stays_in_the_way() {
        for text in [
            "24/7", "$20", "7:75", "12345678", "1,00", "日本", "7:30:15", "5x", "3.14159", "7-30", "+5",
        ] {
            check(text, "#");
        }
        for five in [
            ",5", "...5", "*5", "**5", ":5", "- 5", "– 5", "–5", "— 5", "—5", "+ 5", "/ 5", "~ 5", "<5", "< 5", ">5",
            ". 5", ", 5", "... 5", "-five", "/five", "~five", "<five", "- five",
        ] {
            check(five, "# five");
        }
        check(".25 hours", "# twenty five hours");
        check("wake me at 5!!!", "wake me at five");
        check(&format!("stop{}", "!".repeat(60)), "stop");
        for text in [
            "20;5",
            "20!!5",
            "twenty/five",
            "twenty.five",
            "twenty + five",
            "20–5",
            "20 — 5",
        ] {
            check(text, "twenty # five");
        }
        check("… !? ,,", "");
        assert!(read("is the light on?", 20).unwrap().asks);
        assert_eq!(read(&"stop ".repeat(21), 20), None);
    }
}
