//! Two recognizers in a row: a small one that knows the commands, and a large one for everything else.
//!
//! The small one takes a few milliseconds and hears synthetic voices and commands well. It hears people badly, and shows it: its
//! confidence is low, and the statistics of words change many letters that it found in the sound. So its answer counts at once with a
//! high confidence and hardly a changed letter, and the large one hears the rest.

use crate::{Recognizer, SpeechError, Transcript};

/// A recognizer that finds letters in the sound, and turns them into known words.
pub trait FirstPass: Recognizer {
    /// The transcript, and the letters as the sound alone spells them.
    fn recognize_closely(&self, samples: &[f32]) -> Result<(Transcript, String), SpeechError>;
}

/// The small recognizer before the large one.
#[derive(Debug)]
pub struct Cascade<S, L> {
    small: S,
    large: L,
    accepted_from: f32,
}

/// Largest share of changed letters in an answer that counts at once. Of 384 spoken commands 359 have a confidence of 0.8 and more, and
/// 75 of those are wrong; with this share too it is 10 of 237.
const CHANGED_MAX: f32 = 0.05;
/// From this confidence of the large one on it is rather right than wrong, and its answer stands against the small one's.
const LARGE_SURE_FROM: f32 = 0.5;
/// Below that, the answer of the small one stands with this confidence, and no more changed letters than this.
const SMALL_STILL_FROM: f32 = 0.75;
const SMALL_STILL_CHANGED_MAX: f32 = 0.25;
/// Least confidence of the small recognizer in a text of one or two short words. It hears short sounds as short words, often with the
/// confidence of a command.
const SHORT_ACCEPTED_FROM: f32 = 0.95;
/// Fewest letters of a text that is not short.
const SHORT_LETTERS: usize = 6;

impl<S: FirstPass, L: Recognizer> Cascade<S, L> {
    /// An answer of `small` counts at once from a confidence of `accepted_from` on, 0 to 1.
    pub fn new(small: S, large: L, accepted_from: f32) -> Self {
        Self {
            small,
            large,
            accepted_from,
        }
    }
}

impl<S: FirstPass, L: Recognizer> Recognizer for Cascade<S, L> {
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError> {
        let (small, spelled) = self.small.recognize_closely(samples)?;
        // Without a letter there is no speech: the small one writes letters even for words that it does not know.
        if small.text.is_empty() {
            return Ok(small);
        }
        let changed = changed_share(&spelled, &small.text);
        let is_short = letters(&small.text).count() < SHORT_LETTERS;
        let least = if is_short {
            self.accepted_from.max(SHORT_ACCEPTED_FROM)
        } else {
            self.accepted_from
        };
        // A confidence that is not a number is none.
        if small.confidence >= least && changed <= CHANGED_MAX {
            return Ok(small);
        }
        let large = self.large.recognize(samples)?;
        // Two that were trained apart heard the same letters, so the surer of them is right.
        if changed <= CHANGED_MAX && letters(&large.text).eq(letters(&small.text)) {
            let confidence = large.confidence.max(small.confidence);
            return Ok(Transcript { confidence, ..large });
        }
        let is_small_believed = !is_short && small.confidence >= SMALL_STILL_FROM && changed <= SMALL_STILL_CHANGED_MAX;
        if large.confidence < LARGE_SURE_FROM && is_small_believed {
            return Ok(small);
        }
        Ok(large)
    }

    fn model(&self) -> String {
        format!("{}, then {}", self.small.model(), self.large.model())
    }
}

fn letters(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|letter| !letter.is_whitespace())
}

/// Letters that differ between the sound and the text, as a share of the text's, spaces left out.
fn changed_share(spelled: &str, text: &str) -> f32 {
    let (spelled, text): (Vec<char>, Vec<char>) = (letters(spelled).collect(), letters(text).collect());
    crate::score::distance(&spelled, &text) as f32 / text.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text, its confidence, and the letters in the sound.
    struct Says(&'static str, f32, &'static str);

    impl Recognizer for Says {
        fn recognize(&self, _: &[f32]) -> Result<Transcript, SpeechError> {
            Ok(Transcript {
                text: self.0.to_owned(),
                confidence: self.1,
            })
        }
    }

    impl FirstPass for Says {
        fn recognize_closely(&self, samples: &[f32]) -> Result<(Transcript, String), SpeechError> {
            Ok((self.recognize(samples)?, self.2.to_owned()))
        }
    }

    struct Asleep;

    impl Recognizer for Asleep {
        fn recognize(&self, _: &[f32]) -> Result<Transcript, SpeechError> {
            Err(SpeechError::Engine("asked, and should not have been".to_owned()))
        }
    }

    const TIMER: &str = "set a timer for ten minutes";

    #[test]
    fn the_small_one_answers_alone_where_it_is_sure() {
        for says in [
            Says(TIMER, 0.8, "set a timer for ten minuts"),
            Says("stop", 0.95, "stop"),
            Says("", 0.0, ""),
        ] {
            let text = says.0;
            assert_eq!(Cascade::new(says, Asleep, 0.8).recognize(&[]).unwrap().text, text);
        }
    }

    /// Regression: "stop", spoken alone, was heard by both and believed of neither.
    #[test]
    fn of_two_that_heard_the_same_the_surer_one_counts() {
        let cascade = Cascade::new(Says("stop", 0.9, "stop"), Says("stop", 0.4, ""), 0.8);
        let heard = cascade.recognize(&[]).unwrap();
        assert_eq!((heard.text.as_str(), heard.confidence), ("stop", 0.9));
        // The letters of the sound were others, so the small one guessed.
        let cascade = Cascade::new(Says("stop", 0.9, "shtap"), Says("stop", 0.4, ""), 0.8);
        assert_eq!(cascade.recognize(&[]).unwrap().confidence, 0.4);
    }

    #[test]
    fn the_large_one_hears_what_the_small_one_is_not_sure_of() {
        for (says, why) in [
            (Says(TIMER, 0.74, TIMER), "not sure"),
            (Says(TIMER, f32::NAN, TIMER), "no number"),
            (Says("cancel the timer", 0.9, "chans the timer"), "letters were changed"),
            (Says("no", 0.94, "no"), "a short word"),
        ] {
            let heard = Cascade::new(says, Says("change the timer", 0.8, ""), 0.8)
                .recognize(&[])
                .unwrap();
            assert_eq!(heard.text, "change the timer", "{why}");
        }
    }

    #[test]
    fn of_two_that_are_unsure_the_one_that_knows_commands_is_believed() {
        let small = || Says("dim the lights", 0.8, "dim the lihgt");
        let heard = Cascade::new(small(), Says("them the lights", 0.4, ""), 0.8)
            .recognize(&[])
            .unwrap();
        assert_eq!(heard.text, "dim the lights");
        // The small one keeps nothing of a sentence that it does not know.
        let small = Says("dim the lights", 0.8, "wesls ev itn");
        let heard = Cascade::new(small, Says("weasels have eaten", 0.4, ""), 0.8)
            .recognize(&[])
            .unwrap();
        assert_eq!(heard.text, "weasels have eaten");
    }
}
