//! Converts text to phones: numbers become words, known words come from the lexicon, and spelling rules give the rest.
//!
//! Hand-written: espeak-ng, the usual front end, is GPL and a C library, and the network was trained on these 41 phones.
//!
//! English only. The text comes from strangers, so all of its parts are bounded and none is an error.

use std::collections::HashMap;

use crate::texts;

/// The phones, in the order of the network's numbers. The first is a pause. The names are those of the programs that
/// make the recordings.
pub const PHONES: [&str; 41] = [
    "pau", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih",
    "iy", "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z",
    "zh",
];
/// The number of the pause.
pub const PAUSE: u8 = 0;

/// The number of the phone with this name.
pub fn phone(name: &str) -> Option<u8> {
    PHONES.iter().position(|p| *p == name).map(|at| at as u8)
}

/// A line of the lexicon that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", texts::bad_lexicon(*line))]
pub struct LexiconError {
    /// Line number, from 1.
    pub line: usize,
}

/// The pronunciations of known words.
#[derive(Debug)]
pub struct Lexicon {
    words: HashMap<String, Vec<u8>>,
}

/// Most phones in one breath. A longer text is cut, so that the memory of the network stays small.
const BREATH_MAX: usize = 120;

impl Lexicon {
    /// Reads lines with a word, a tab, and phones separated by spaces. The name of a letter is under that letter and a
    /// dot.
    pub fn parse(text: &str) -> Result<Self, LexiconError> {
        let mut words = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let bad = LexiconError { line: at + 1 };
            let Some((word, phones)) = line.split_once('\t') else {
                return Err(bad);
            };
            let phones: Option<Vec<u8>> = phones.split_whitespace().map(phone).collect();
            match phones {
                Some(phones) if !phones.is_empty() => words.insert(word.to_owned(), phones),
                _ => return Err(bad),
            };
        }
        Ok(Self { words })
    }

    /// The phones of a text in breaths, each with a pause at both ends. Empty when no part of the text can be spoken.
    pub fn breaths(&self, text: &str) -> Vec<Vec<u8>> {
        let mut breaths = Vec::new();
        let mut breath = vec![PAUSE];
        let end = |breath: &mut Vec<u8>, breaths: &mut Vec<Vec<u8>>| {
            if breath.len() > 1 {
                if breath.last() != Some(&PAUSE) {
                    breath.push(PAUSE);
                }
                breaths.push(std::mem::replace(breath, vec![PAUSE]));
            }
        };
        for piece in pieces(text) {
            let phones = match &piece {
                Piece::Word(word) => self.say(word),
                Piece::Letter(letter) => self.letter(*letter),
                Piece::Comma | Piece::Stop => Vec::new(),
            };
            for part in phones.chunks(BREATH_MAX - 2) {
                if breath.len() + part.len() >= BREATH_MAX {
                    end(&mut breath, &mut breaths);
                }
                breath.extend_from_slice(part);
            }
            match piece {
                Piece::Word(_) | Piece::Letter(_) => {}
                Piece::Comma if breath.last() != Some(&PAUSE) => breath.push(PAUSE),
                Piece::Comma => {}
                Piece::Stop => end(&mut breath, &mut breaths),
            }
        }
        end(&mut breath, &mut breaths);
        breaths
    }

    fn say(&self, word: &str) -> Vec<u8> {
        if let Some(phones) = self.words.get(word) {
            return phones.clone();
        }
        if let Some(phones) = self.with_ending(word) {
            return phones;
        }
        if !word.contains(['a', 'e', 'i', 'o', 'u', 'y']) {
            return word.chars().flat_map(|c| self.letter(c)).collect();
        }
        spell(word)
    }

    /// A known word with a grammatical ending.
    fn with_ending(&self, word: &str) -> Option<Vec<u8>> {
        let known = |stem: &str| self.words.get(stem).cloned();
        let with = |mut phones: Vec<u8>, ending: &[&str]| {
            phones.extend(ending.iter().filter_map(|p| phone(p)));
            phones
        };
        for plural in ["'s", "s"] {
            if let Some(phones) = word.strip_suffix(plural).and_then(known) {
                let last = PHONES[usize::from(*phones.last()?)];
                let ending: &[&str] = match last {
                    "s" | "z" | "sh" | "zh" | "ch" | "jh" => &["ax", "z"],
                    "p" | "t" | "k" | "f" | "th" => &["s"],
                    _ => &["z"],
                };
                return Some(with(phones, ending));
            }
        }
        if let Some(stem) = word.strip_suffix("ing")
            && let Some(phones) = known(stem).or_else(|| known(&format!("{stem}e")))
        {
            return Some(with(phones, &["ih", "ng"]));
        }
        if let Some(stem) = word.strip_suffix("ed")
            && let Some(phones) = known(stem).or_else(|| known(&format!("{stem}e")))
        {
            let ending: &[&str] = match PHONES[usize::from(*phones.last()?)] {
                "t" | "d" => &["ax", "d"],
                "p" | "k" | "f" | "s" | "sh" | "ch" | "th" => &["t"],
                _ => &["d"],
            };
            return Some(with(phones, ending));
        }
        let phones = word.strip_suffix("ly").and_then(known)?;
        Some(with(phones, &["l", "iy"]))
    }

    fn letter(&self, letter: char) -> Vec<u8> {
        self.words.get(&format!("{letter}.")).cloned().unwrap_or_default()
    }
}

enum Piece {
    Word(String),
    Letter(char),
    Comma,
    Stop,
}

fn pieces(text: &str) -> Vec<Piece> {
    let text = text.to_lowercase().replace('’', "'");
    let mut out = Vec::new();
    let characters: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < characters.len() {
        let c = characters[at];
        let from = at;
        if c.is_ascii_lowercase() {
            while at < characters.len() && (characters[at].is_ascii_lowercase() || characters[at] == '\'') {
                at += 1;
            }
            let word: String = characters[from..at].iter().collect();
            out.push(Piece::Word(word.trim_end_matches('\'').to_owned()));
            continue;
        }
        if c.is_ascii_digit() {
            while at < characters.len() && characters[at].is_ascii_digit() {
                at += 1;
            }
            let digits: String = characters[from..at].iter().collect();
            out.extend(number(&digits).into_iter().map(Piece::Word));
            let after_point = |at: usize| characters.get(at + 1).is_some_and(char::is_ascii_digit);
            match characters.get(at) {
                Some('.') if after_point(at) => {
                    out.push(Piece::Word("point".to_owned()));
                    at += 1;
                }
                // A time of day. The minutes follow as a separate number; a full hour has none.
                Some(':') if after_point(at) => {
                    at += 1;
                    if characters.get(at) == Some(&'0') && characters.get(at + 1) == Some(&'0') {
                        at += 2;
                    } else if characters.get(at) == Some(&'0') {
                        out.push(Piece::Word("oh".to_owned()));
                        at += 1;
                    }
                }
                _ => {}
            }
            continue;
        }
        let next_is_digit = characters.get(at + 1).is_some_and(char::is_ascii_digit);
        match c {
            '%' => out.push(Piece::Word("percent".to_owned())),
            '°' => out.push(Piece::Word("degrees".to_owned())),
            '&' => out.push(Piece::Word("and".to_owned())),
            '-' if next_is_digit && from.checked_sub(1).is_none_or(|p| characters[p] == ' ') => {
                out.push(Piece::Word("minus".to_owned()));
            }
            ',' | ';' | ':' | '(' | ')' | '–' | '—' => out.push(Piece::Comma),
            '.' | '!' | '?' | '\n' | '…' => out.push(Piece::Stop),
            _ => {}
        }
        at += 1;
    }
    name_letters(out)
}

/// Single letters, as in "a m", are spoken as names of letters, except the words "a" and "i". A full stop inside "a.m."
/// ends no sentence.
fn name_letters(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match piece {
            Piece::Word(word) if word.len() == 1 && word != "a" && word != "i" => {
                if word == "m" {
                    if matches!(out.last(), Some(Piece::Stop)) {
                        out.pop();
                    }
                    if matches!(out.last(), Some(Piece::Word(before)) if before == "a") {
                        out.pop();
                        out.push(Piece::Letter('a'));
                    }
                }
                out.extend(word.chars().map(Piece::Letter));
            }
            Piece::Word(word) if word == "am" || word == "pm" => {
                // After a number it is a time of day; elsewhere it is the verb.
                let timed = matches!(out.last(), Some(Piece::Word(before)) if is_number_word(before));
                if timed || word == "pm" {
                    out.extend(word.chars().map(Piece::Letter));
                } else {
                    out.push(Piece::Word(word));
                }
            }
            other => out.push(other),
        }
    }
    out
}

const ONES: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = [
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];

fn is_number_word(word: &str) -> bool {
    ONES.contains(&word) || TENS[2..].contains(&word)
}

/// The words for a number. With more than six digits it is a code rather than an amount, and is read digit by digit.
fn number(digits: &str) -> Vec<String> {
    let spelled = || digits.bytes().map(|d| ONES[usize::from(d - b'0')].to_owned()).collect();
    if digits.len() > 6 || (digits.len() > 1 && digits.starts_with('0')) {
        return spelled();
    }
    let Ok(value) = digits.parse::<usize>() else {
        return spelled();
    };
    let mut out = Vec::new();
    if value >= 1_000 {
        below_thousand(value / 1_000, &mut out);
        out.push("thousand");
    }
    if value % 1_000 > 0 || value == 0 {
        below_thousand(value % 1_000, &mut out);
    }
    out.into_iter().map(str::to_owned).collect()
}

fn below_thousand(value: usize, out: &mut Vec<&'static str>) {
    if value >= 100 {
        out.push(ONES[value / 100]);
        out.push("hundred");
    }
    match value % 100 {
        0 if value >= 100 => {}
        small @ 0..20 => out.push(ONES[small]),
        tens => {
            out.push(TENS[tens / 10]);
            if tens % 10 > 0 {
                out.push(ONES[tens % 10]);
            }
        }
    }
}

/// Spellings and their usual sounds, longest first at each position. `^` marks the start of a word, `$` its end.
const SPELLINGS: &[(&str, &[&str])] = &[
    ("^kn", &["n"]),
    ("^wr", &["r"]),
    ("^ps", &["s"]),
    ("^x", &["z"]),
    ("^y", &["y"]),
    ("^wh", &["w"]),
    ("tion", &["sh", "ax", "n"]),
    ("sion", &["zh", "ax", "n"]),
    ("ture", &["ch", "er"]),
    ("cious", &["sh", "ax", "s"]),
    ("tious", &["sh", "ax", "s"]),
    ("ough", &["ow"]),
    ("augh", &["ao"]),
    ("eigh", &["ey"]),
    ("igh", &["ay"]),
    ("tch", &["ch"]),
    ("dge", &["jh"]),
    ("sch", &["s", "k"]),
    ("all$", &["ao", "l"]),
    ("able$", &["ax", "b", "ax", "l"]),
    ("le$", &["ax", "l"]),
    ("ous$", &["ax", "s"]),
    ("ey$", &["iy"]),
    ("ies$", &["iy", "z"]),
    ("es$", &["z"]),
    ("ed$", &["d"]),
    ("er$", &["er"]),
    ("or$", &["er"]),
    ("e$", &[]),
    ("y$", &["iy"]),
    ("ing", &["ih", "ng"]),
    ("nk", &["ng", "k"]),
    ("ng", &["ng"]),
    ("ch", &["ch"]),
    ("sh", &["sh"]),
    ("th", &["th"]),
    ("ph", &["f"]),
    ("gh", &["g"]),
    ("ck", &["k"]),
    ("qu", &["k", "w"]),
    ("wh", &["w"]),
    ("ee", &["iy"]),
    ("ea", &["iy"]),
    ("ai", &["ey"]),
    ("ay", &["ey"]),
    ("oa", &["ow"]),
    ("oo", &["uw"]),
    ("ou", &["aw"]),
    ("ow", &["ow"]),
    ("oi", &["oy"]),
    ("oy", &["oy"]),
    ("au", &["ao"]),
    ("aw", &["ao"]),
    ("ew", &["uw"]),
    ("ie", &["iy"]),
    ("ei", &["iy"]),
    ("ue", &["uw"]),
    ("ui", &["uw"]),
    ("ar", &["aa", "r"]),
    ("er", &["er"]),
    ("ir", &["er"]),
    ("ur", &["er"]),
    ("or", &["ao", "r"]),
    ("ce", &["s", "eh"]),
    ("ci", &["s", "ih"]),
    ("cy", &["s", "iy"]),
    ("ge", &["jh", "eh"]),
    ("gi", &["jh", "ih"]),
    ("bb", &["b"]),
    ("cc", &["k"]),
    ("dd", &["d"]),
    ("ff", &["f"]),
    ("gg", &["g"]),
    ("ll", &["l"]),
    ("mm", &["m"]),
    ("nn", &["n"]),
    ("pp", &["p"]),
    ("rr", &["r"]),
    ("ss", &["s"]),
    ("tt", &["t"]),
    ("zz", &["z"]),
    ("a", &["ae"]),
    ("b", &["b"]),
    ("c", &["k"]),
    ("d", &["d"]),
    ("e", &["eh"]),
    ("f", &["f"]),
    ("g", &["g"]),
    ("h", &["hh"]),
    ("i", &["ih"]),
    ("j", &["jh"]),
    ("k", &["k"]),
    ("l", &["l"]),
    ("m", &["m"]),
    ("n", &["n"]),
    ("o", &["aa"]),
    ("p", &["p"]),
    ("q", &["k"]),
    ("r", &["r"]),
    ("s", &["s"]),
    ("t", &["t"]),
    ("u", &["ah"]),
    ("v", &["v"]),
    ("w", &["w"]),
    ("x", &["k", "s"]),
    ("y", &["ih"]),
    ("z", &["z"]),
];

/// The guessed sound of a word that is in no lexicon. A vowel before one consonant and a silent `e` is long.
fn spell(word: &str) -> Vec<u8> {
    let letters: String = word.chars().filter(char::is_ascii_lowercase).collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < letters.len() {
        let rest = &letters[at..];
        if let Some(long) = long_vowel(rest) {
            out.extend(phone(long));
            at += 1;
            continue;
        }
        let found = SPELLINGS.iter().find_map(|(spelling, phones)| {
            let from_start = spelling.strip_prefix('^');
            let plain = from_start.unwrap_or(spelling);
            let to_end = plain.strip_suffix('$');
            let plain = to_end.unwrap_or(plain);
            let fits = rest.starts_with(plain)
                && (from_start.is_none() || at == 0)
                // An ending counts only after at least one letter.
                && (to_end.is_none() || (rest.len() == plain.len() && at > 0));
            fits.then_some((plain.len(), *phones))
        });
        let (taken, phones) = found.unwrap_or((1, &[]));
        out.extend(phones.iter().filter_map(|p| phone(p)));
        at += taken;
    }
    out
}

fn long_vowel(rest: &str) -> Option<&'static str> {
    let letters = rest.as_bytes();
    let is_vowel = |c: u8| b"aeiouy".contains(&c);
    let silent_e = letters.len() == 3 && !is_vowel(letters[1]) && !b"rwx".contains(&letters[1]) && letters[2] == b'e';
    if !silent_e {
        return None;
    }
    match letters[0] {
        b'a' => Some("ey"),
        b'e' => Some("iy"),
        b'i' | b'y' => Some("ay"),
        b'o' => Some("ow"),
        b'u' => Some("uw"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Lexicon {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tts/lexicon.tsv");
        Lexicon::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn said(text: &str) -> String {
        let names = |b: &Vec<u8>| b.iter().map(|p| PHONES[usize::from(*p)]).collect::<Vec<_>>().join(" ");
        shipped()
            .breaths(text)
            .iter()
            .map(names)
            .collect::<Vec<_>>()
            .join(" | ")
    }

    #[test]
    fn words_numbers_and_letters() {
        for (text, phones) in [
            ("stop", "pau s t aa p pau"),
            ("Stop!", "pau s t aa p pau"),
            ("six a m", "pau s ih k s ey eh m pau"),
            ("6 a.m.", "pau s ih k s ey eh m pau"),
            ("6am", "pau s ih k s ey eh m pau"),
            ("i am", "pau ay ae m pau"),
            ("yes, no", "pau y eh s pau n ow pau"),
            ("yes. no", "pau y eh s pau | pau n ow pau"),
            ("50%", "pau f ih f t iy p er s eh n t pau"),
        ] {
            assert_eq!(said(text), phones, "{text}");
        }
        assert_eq!(said("10:35"), said("ten thirty five"));
        assert_eq!(said("7:05"), said("seven oh five"));
        assert_eq!(said("9:00"), said("nine"));
        assert_eq!(said("-3.5°"), said("minus three point five degrees"));
        assert_eq!(said("1204"), said("one thousand two hundred four"));
    }

    #[test]
    fn unknown_words_are_guessed() {
        for (word, phones) in [
            ("blate", "pau b l ey t pau"),
            ("gribbings", "pau g r ih b ih ng s pau"),
            ("xqz", "pau eh k s k y uw z iy pau"),
        ] {
            assert_eq!(said(word), phones, "{word}");
        }
    }

    #[test]
    fn strange_text_is_bounded() {
        let lexicon = shipped();
        for text in ["", " \t\n", "你好", "...", "'''", "%%%", "1:", "1.", ":5", "-", "\u{0}"] {
            assert!(lexicon.breaths(text).len() <= 3, "{text}");
        }
        for text in [
            "a".repeat(5_000),
            "9".repeat(5_000),
            "word ".repeat(1_000),
            "x ".repeat(1_000),
        ] {
            let breaths = lexicon.breaths(&text);
            assert!(breaths.iter().all(|b| b.len() <= BREATH_MAX + 1), "{}", text.len());
            assert!(breaths.iter().all(|b| b[0] == PAUSE && b[b.len() - 1] == PAUSE));
        }
        assert!(Lexicon::parse("word without tab").is_err());
        assert!(Lexicon::parse("word\tnosuchphone").is_err());
    }
}
