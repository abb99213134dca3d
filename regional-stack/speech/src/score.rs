//! Word errors of transcripts. The distance is hand-written because it counts words: strsim compares texts by their characters.

/// Word errors over any number of utterances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// Words substituted, missing or added.
    pub errors: usize,
    /// Words spoken.
    pub words: usize,
    /// Utterances without an error.
    pub exact: usize,
    /// Utterances in total.
    pub utterances: usize,
}

impl Score {
    /// Counts one utterance: the spoken words and the transcript.
    pub fn add(&mut self, said: &str, heard: &str) {
        let said: Vec<&str> = said.split_whitespace().collect();
        let heard: Vec<&str> = heard.split_whitespace().collect();
        let errors = distance(&said, &heard);
        self.errors += errors;
        self.words += said.len();
        self.exact += usize::from(errors == 0);
        self.utterances += 1;
    }

    /// Errors per spoken word, in percent. Above 100 when the transcript has many added words.
    pub fn word_error_percent(&self) -> f64 {
        100.0 * self.errors as f64 / self.words.max(1) as f64
    }

    /// Utterances without an error, in percent.
    pub fn exact_percent(&self) -> f64 {
        100.0 * self.exact as f64 / self.utterances.max(1) as f64
    }
}

/// Items to be replaced, added or removed to make one row of the other.
pub(crate) fn distance<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let best = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitutions_gaps_and_additions_count_one_each() {
        for (said, heard, errors) in [
            ("turn on the light", "turn on the light", 0),
            ("turn on the light", "turn off the light", 1),
            ("turn on the light", "turn on light", 1),
            ("stop", "stop it now", 2),
            ("stop", "", 1),
            ("", "noise", 1),
        ] {
            let mut score = Score::default();
            score.add(said, heard);
            assert_eq!(score.errors, errors, "{said} / {heard}");
            assert_eq!(score.exact, usize::from(errors == 0));
        }
    }
}
