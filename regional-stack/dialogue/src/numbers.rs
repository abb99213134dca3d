//! Numbers in words. The synthesizer has no digits and the recognizer writes none, so a conversation has no other
//! numerals.

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

/// Every word that [`read_number`] understands, for the correction of misheard words.
pub(crate) fn vocabulary() -> impl Iterator<Item = &'static str> {
    ONES.into_iter()
        .chain(TENS.into_iter().skip(2))
        .chain(["hundred", "thousand", "oh"])
}

/// Whether `word` is part of a number.
pub(crate) fn is_number(word: &str) -> bool {
    vocabulary().any(|known| known == word)
}

/// Spells a number: `35` is "thirty five".
pub fn spell(number: u32) -> String {
    match number {
        0..=19 => ONES[number as usize].to_owned(),
        20..=99 => join(TENS[(number / 10) as usize], number % 10),
        100..=999 => join(&format!("{} hundred", spell(number / 100)), number % 100),
        1000..=999_999 => join(&format!("{} thousand", spell(number / 1000)), number % 1000),
        1_000_000..=999_999_999 => join(&format!("{} million", spell(number / 1_000_000)), number % 1_000_000),
        _ => join(
            &format!("{} billion", spell(number / 1_000_000_000)),
            number % 1_000_000_000,
        ),
    }
}

/// Spells a rank: `21` is "twenty first".
pub fn spell_ordinal(number: u32) -> String {
    match number {
        0..=19 => ORDINALS[number as usize].to_owned(),
        20 | 30 | 40 | 50 | 60 | 70 | 80 | 90 => format!("{}ieth", TENS[(number / 10) as usize].trim_end_matches('y')),
        21..=99 => format!("{} {}", TENS[(number / 10) as usize], ORDINALS[(number % 10) as usize]),
        _ if number.is_multiple_of(100) => format!("{}th", spell(number)),
        _ => format!("{} {}", spell(number - number % 100), spell_ordinal(number % 100)),
    }
}

fn join(head: &str, rest: u32) -> String {
    if rest == 0 {
        head.to_owned()
    } else {
        format!("{head} {}", spell(rest))
    }
}

/// Reads all of `words` as one number of at most 9999; `None` if they are anything else.
pub fn read_number(words: &[&str]) -> Option<u32> {
    let Some(at) = words.iter().position(|word| *word == "thousand") else {
        return below_thousand(words);
    };
    let head = match &words[..at] {
        ["a"] => 1,
        [thousands] => below_ten(thousands)?,
        _ => return None,
    };
    match &words[at + 1..] {
        [] => Some(head * 1000),
        ["and", rest @ ..] | rest => Some(head * 1000 + below_thousand(rest)?),
    }
}

fn below_thousand(words: &[&str]) -> Option<u32> {
    match words {
        [hundreds, "hundred", rest @ ..] => {
            let head = if *hundreds == "a" { 1 } else { below_ten(hundreds)? } * 100;
            match rest {
                [] => Some(head),
                ["and", rest @ ..] | rest => Some(head + below_hundred(rest)?),
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
    fn every_number_up_to_9999_reads_back_as_itself() {
        for number in 0..=9999 {
            let words = spell(number);
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(read_number(&words), Some(number), "{words:?}");
        }
    }

    #[test]
    fn numbers_are_said_the_usual_way() {
        assert_eq!(spell(35), "thirty five");
        assert_eq!(spell(2026), "two thousand twenty six");
        assert_eq!(spell_ordinal(1), "first");
        assert_eq!(spell_ordinal(20), "twentieth");
        assert_eq!(spell_ordinal(31), "thirty first");
        assert_eq!(spell_ordinal(100), "one hundredth");
        assert_eq!(spell_ordinal(112), "one hundred twelfth");
        assert_eq!(
            spell(1_234_567),
            "one million two hundred thirty four thousand five hundred sixty seven"
        );
        assert_eq!(spell(u32::MAX).split(' ').next(), Some("four"));
        assert_eq!(read_number(&["one", "hundred", "and", "twenty"]), Some(120));
        assert_eq!(read_number(&["a", "thousand"]), Some(1000));
        for wrong in [
            "twenty eleven",
            "hundred",
            "thousand",
            "one hundred and",
            "two three",
            "and five",
        ] {
            assert_eq!(read_number(&wrong.split(' ').collect::<Vec<_>>()), None, "{wrong}");
        }
        assert_eq!(read_number(&[]), None);
    }
}
