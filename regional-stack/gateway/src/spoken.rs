//! Written text made speakable: the synthesizer knows lower-case words, commas and stops, and short sentences.

/// Longest text spoken in one go, in characters: about ten seconds. The synthesizer is trained on sentences, and the
/// first audio of a long text should not wait for all of it.
const SENTENCE_CHARS_MAX: usize = 160;

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
    text.split(|letter: char| letter.is_whitespace() || "-–—/".contains(letter))
        .map(|written| {
            let pause = match written.chars().rev().find(|letter| !"\"')]".contains(*letter)) {
                Some('.' | '!' | '?') => Pause::Stop,
                Some(',' | ';' | ':') => Pause::Comma,
                _ => Pause::None,
            };
            Word {
                text: speakable(written),
                pause,
            }
        })
}

fn speakable(written: &str) -> String {
    let mut spoken = String::new();
    let mut digits = String::new();
    let say_number = |digits: &mut String, spoken: &mut String| {
        if digits.is_empty() {
            return;
        }
        let separate = !spoken.is_empty();
        // Longer numbers are telephone numbers and the like, which are read digit by digit.
        let words = match digits.parse::<u32>() {
            Ok(number) if digits.len() <= 6 => dialogue::spell(number),
            _ => digits
                .bytes()
                .map(|digit| dialogue::spell(u32::from(digit - b'0')))
                .collect::<Vec<_>>()
                .join(" "),
        };
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
            '%' => spoken.push_str(" percent"),
            '&' => spoken.push_str(" and "),
            '°' => spoken.push_str(" degrees "),
            _ => {}
        }
    }
    say_number(&mut digits, &mut spoken);
    spoken.trim_matches([' ', '\'']).to_owned()
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
