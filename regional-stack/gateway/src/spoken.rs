//! Makes written text speakable: the synthesizer knows lower-case words, commas and stops, and short sentences.

use dialogue::Pause;

/// Longest text that an engine speaks in one go, in characters: about ten seconds. The synthesizer is trained on sentences, and the
/// first audio of a long text must not wait for all of it.
const SENTENCE_CHARS_MAX: usize = 160;

/// A slow reader's time for one letter, in seconds. The synthesizer spells letters that are no words, at this pace; words take half.
const LETTER_SECONDS: f32 = 0.12;

/// Longest duration of this text as speech: an estimate of its cost beforehand.
pub(crate) fn seconds(sentence: &str, speed: f32) -> f32 {
    sentence.len() as f32 * LETTER_SECONDS / speed.max(0.01)
}

/// `text` as sentences for the synthesizer: lower case, numbers in words, nothing unspeakable.
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
    for word in dialogue::spoken_words(text) {
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

/// A text that comes in parts, cut into sentences as soon as they are whole.
#[derive(Debug, Default)]
pub(crate) struct Sentences {
    coming: String,
}

/// A text without an end of a sentence is cut between two words after so many bytes: its first words must not wait for its last.
const COMING_BYTES_MAX: usize = 2 * SENTENCE_CHARS_MAX;

impl Sentences {
    /// Adds a part, and returns the sentences that are whole now.
    pub(crate) fn push(&mut self, part: &str) -> Vec<String> {
        self.coming.push_str(part);
        let mut whole = Vec::new();
        while let Some(end) = self.end() {
            let rest = self.coming.split_off(end);
            whole.push(std::mem::replace(&mut self.coming, rest));
        }
        whole
    }

    /// The rest of the text, when no part follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.coming)
    }

    /// The position behind the first whole sentence.
    fn end(&self) -> Option<usize> {
        let mut letters = self.coming.char_indices().peekable();
        let mut blank = None;
        while let Some((at, letter)) = letters.next() {
            let behind = at + letter.len_utf8();
            let next = letters.peek().map(|(_, letter)| *letter);
            // "3.14" goes on behind its stop, and so may a stop at the end of a part.
            let is_end = letter == '\n' || matches!(letter, '.' | '!' | '?') && next.is_some_and(char::is_whitespace);
            if is_end {
                return Some(behind);
            }
            if letter.is_whitespace() {
                blank = Some(behind);
            }
            if behind >= COMING_BYTES_MAX {
                return Some(blank.unwrap_or(behind));
            }
        }
        None
    }
}

/// `text` in pieces of whole sentences of about ten seconds at most; a short text is one piece.
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
    fn a_text_that_comes_in_parts_is_spoken_sentence_by_sentence() {
        let mut sentences = Sentences::default();
        let mut whole = Vec::new();
        for part in ["It is 3", ".", "1", "4 now.", " Is it? Ye", "s!\nWell"] {
            whole.extend(sentences.push(part));
        }
        assert_eq!(whole, ["It is 3.14 now.", " Is it?", " Yes!", "\n"]);
        assert_eq!(sentences.finish(), "Well");
        assert_eq!(sentences.finish(), "");
    }

    #[test]
    fn a_text_without_an_end_is_cut_between_words_and_nothing_is_lost() {
        for text in ["word ".repeat(300), "w".repeat(1000), "日本語 ".repeat(300)] {
            let mut sentences = Sentences::default();
            let mut whole: Vec<String> = text
                .chars()
                .flat_map(|letter| sentences.push(&letter.to_string()))
                .collect();
            assert!(whole.len() >= 2, "{}", whole.len());
            assert!(whole.iter().all(|part| part.len() <= COMING_BYTES_MAX + 2));
            whole.push(sentences.finish());
            assert_eq!(whole.concat(), text);
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
