//! Finds a "no" or "not" that the statistics of words removed. Hardly any counted sentence has one behind "kitchen", so the search
//! prefers the sentence without it, which orders the opposite. The sound alone decides whether the speaker said it.

use super::{Language, log_sum};

/// The negation counts even if the sound prefers the sentence without it by this much (in nats). At 3 the search finds one more of the
/// 23 lost ones, and a command in a few hundred gets a negation that nobody said.
const DOUBT_NATS: f32 = 1.5;
const NEGATIONS: [&str; 2] = ["no", "not"];
/// No negation stands behind one of these.
const ARTICLES: [&str; 4] = ["a", "an", "the", "my"];
/// The dialogue takes no longer text for a request. The work grows with the square of the length.
const WORDS_MAX: usize = 24;

impl Language {
    /// `text`, which was decoded from these log-probabilities, with the negation that the sound has and the text lacks, if there is
    /// one.
    pub fn with_lost_negation(&self, log_probabilities: &[f32], text: String) -> String {
        let words: Vec<&str> = text.split(' ').collect();
        let is_negated = words.iter().any(|word| NEGATIONS.contains(word));
        if !(2..=WORDS_MAX).contains(&words.len()) || is_negated {
            return text;
        }
        let places = (0..=words.len()).filter(|at| *at == 0 || !ARTICLES.contains(&words[at - 1]));
        let negated = places.flat_map(|at| {
            let words = &words;
            NEGATIONS.map(|negation| [&words[..at], &[negation], &words[at..]].concat().join(" "))
        });
        let likeliest = negated
            .map(|negated| (self.likelihood(log_probabilities, &negated), negated))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match likeliest {
            Some((likelihood, negated)) if likelihood > self.likelihood(log_probabilities, &text) - DOUBT_NATS => {
                negated
            }
            _ => text,
        }
    }

    /// The log-probability of the letters of `text`, over all their alignments (Graves and others, 2006), without the statistics of
    /// words. Minus infinity for a text with other characters.
    fn likelihood(&self, log_probabilities: &[f32], text: &str) -> f32 {
        let tokens = self.characters.chars().count() + 1;
        // A blank around each letter.
        let mut labels = vec![0];
        for letter in text.chars() {
            let Some(at) = self.characters.chars().position(|known| known == letter) else {
                return f32::NEG_INFINITY;
            };
            labels.extend([at + 1, 0]);
        }
        // Per label, the log-probability of all alignments of the frames so far that end in it.
        let mut ends = vec![f32::NEG_INFINITY; labels.len()];
        // Before the first frame stands a blank of no length.
        let mut before_first = 0.0;
        for frame in log_probabilities.chunks_exact(tokens) {
            // From the last label to the first, so that each reads its neighbours as they were a frame ago.
            for at in (0..labels.len()).rev() {
                let mut from = ends[at];
                if at >= 1 {
                    from = log_sum(from, ends[at - 1]);
                }
                // From letter to letter without a blank, unless both are the same.
                if at >= 2 && labels[at] != 0 && labels[at] != labels[at - 2] {
                    from = log_sum(from, ends[at - 2]);
                }
                if at <= 1 {
                    from = log_sum(from, before_first);
                }
                ends[at] = from + frame[labels[at]];
            }
            before_first = f32::NEG_INFINITY;
        }
        let ended = |back: usize| labels.len().checked_sub(back).map_or(f32::NEG_INFINITY, |at| ends[at]);
        log_sum(ended(1), ended(2))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{frames, language};

    #[test]
    fn a_negation_in_the_sound_comes_back() {
        for (said, decoded) in [
            ("turn on the light no", "turn on the light"),
            ("turn on no light", "turn on light"),
            ("not turn on the light", "turn on the light"),
        ] {
            let heard = language().with_lost_negation(&frames(said, said, 0.0), decoded.to_owned());
            assert_eq!(heard, said);
        }
    }

    #[test]
    fn a_text_without_one_stays_as_it_is() {
        for (said, decoded) in [
            ("turn on the light", "turn on the light"),
            ("turn on the light now", "turn on the light now"),
            ("turn on the night", "turn on the night"),
            ("turn on the no light", "turn on the light"),
            ("turn", "turn"),
            ("", ""),
        ] {
            let sound = frames(said, said, 0.0);
            assert_eq!(language().with_lost_negation(&sound, decoded.to_owned()), decoded);
        }
        let doubtful = frames("turn on the light on", "turn on the light no", 0.3);
        let decoded = "turn on the light on".to_owned();
        assert_eq!(language().with_lost_negation(&doubtful, decoded.clone()), decoded);
        for nonsense in ["größer als null", "turn  on"] {
            let sound = vec![f32::NAN; 29 * 5];
            assert_eq!(language().with_lost_negation(&sound, nonsense.to_owned()), nonsense);
        }
    }

    /// The likelihoods of all texts that three frames can have are those of all alignments, so they add up to one.
    #[test]
    fn likelihoods_are_those_of_all_alignments() {
        let tokens = 29;
        let uniform = vec![-(tokens as f32).ln(); 3 * tokens];
        let each = |text: &str| language().likelihood(&uniform, text).exp() * (tokens as f32).powi(3);
        // "": only blanks. "a": 6 places of one run. "ab": 5 alignments. "aa": a blank in between.
        for (text, alignments) in [
            ("", 1.0),
            ("a", 6.0),
            ("ab", 5.0),
            ("aa", 1.0),
            ("abc", 1.0),
            ("abcd", 0.0),
        ] {
            assert!((each(text) - alignments).abs() < 1e-3, "{text}: {}", each(text));
        }
    }
}
