//! Numbers as people say them. The synthesizer has no digits and the recognizer writes none, so these words are the only
//! numerals in a conversation.

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
const ORDINALS: [&str; 20] = [
    "zeroth",
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
];

/// Every word that [`parse`] understands, for correcting misheard ones.
pub(crate) fn vocabulary() -> impl Iterator<Item = &'static str> {
    ONES.into_iter()
        .chain(TENS.into_iter().skip(2))
        .chain(["hundred", "oh"])
}

/// `0..=9999` in words: `35` is "thirty five".
pub fn spell(number: u32) -> String {
    match number {
        0..=19 => ONES[number as usize].to_owned(),
        20..=99 => join(TENS[(number / 10) as usize], number % 10),
        100..=999 => join(&format!("{} hundred", spell(number / 100)), number % 100),
        // Years and long countdowns end here; anything larger is said in thousands, however odd.
        _ => join(&format!("{} thousand", spell(number / 1000)), number % 1000),
    }
}

/// `1..=99` as a rank: `21` is "twenty first".
pub fn spell_ordinal(number: u32) -> String {
    match number {
        0..=19 => ORDINALS[number as usize].to_owned(),
        20 | 30 | 40 | 50 | 60 | 70 | 80 | 90 => format!("{}ieth", TENS[(number / 10) as usize].trim_end_matches('y')),
        21..=99 => format!("{} {}", TENS[(number / 10) as usize], ORDINALS[(number % 10) as usize]),
        _ => format!("{}th", spell(number)),
    }
}

fn join(head: &str, rest: u32) -> String {
    if rest == 0 {
        head.to_owned()
    } else {
        format!("{head} {}", spell(rest))
    }
}

/// Reads all of `words` as one number of at most 999; `None` when they are not exactly that.
pub(crate) fn parse(words: &[&str]) -> Option<u32> {
    match words {
        ["a" | "one", "hundred"] => Some(100),
        [hundreds, "hundred", rest @ ..] => {
            let head = below_ten(hundreds)? * 100;
            if rest.is_empty() {
                Some(head)
            } else {
                Some(head + below_hundred(rest)?)
            }
        }
        _ => below_hundred(words),
    }
}

fn below_hundred(words: &[&str]) -> Option<u32> {
    match words {
        [word] => ONES
            .iter()
            .chain(&TENS[2..])
            .position(|known| known == word)
            .map(|at| match u32::try_from(at) {
                Ok(at) if at >= 20 => (at - 18) * 10,
                Ok(at) => at,
                Err(_) => 0,
            }),
        [tens, ones] => {
            let tens = (2u32..10).zip(&TENS[2..]).find(|(_, word)| *word == tens)?.0;
            Some(tens * 10 + below_ten(ones)?)
        }
        _ => None,
    }
}

fn below_ten(word: &str) -> Option<u32> {
    (1u32..10)
        .zip(&ONES[1..10])
        .find(|(_, known)| **known == word)
        .map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_up_to_999_reads_back_as_itself() {
        for number in 0..=999 {
            let words = spell(number);
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(parse(&words), Some(number), "{words:?}");
        }
    }

    #[test]
    fn numbers_are_said_the_usual_way() {
        assert_eq!(spell(35), "thirty five");
        assert_eq!(spell(2026), "two thousand twenty six");
        assert_eq!(spell_ordinal(1), "first");
        assert_eq!(spell_ordinal(20), "twentieth");
        assert_eq!(spell_ordinal(31), "thirty first");
        assert_eq!(parse(&["twenty", "eleven"]), None);
        assert_eq!(parse(&[]), None);
    }
}
