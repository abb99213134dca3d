//! The known word that a misspelt one means, for messages about keys and commands that do not exist.

/// The least likeness of two words, 0..=1, at which one is taken for a misspelling of the other: one wrong letter in
/// three is less.
const LIKENESS_MIN: f64 = 0.7;
/// Longest word that is compared, in bytes. No known word comes near it, and a comparison takes memory for every pair of
/// letters.
const WORD_BYTES_MAX: usize = 200;

/// The known word that `word` is most like, if it may be a misspelling of that.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let likeness = |known: &'k str| (known, strsim::normalized_damerau_levenshtein(word, known));
    let nearest = known.into_iter().map(likeness).max_by(|a, b| a.1.total_cmp(&b.1));
    let (nearest, _) = nearest.filter(|(_, likeness)| *likeness >= LIKENESS_MIN)?;
    Some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_offered_if_it_is_near() {
        let known = ["kill", "restart", "stop", "resume"];
        for (word, meant) in [
            ("kil", Some("kill")),
            ("restrat", Some("restart")),
            ("Stop", Some("stop")),
            ("dance", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest("stop", []), None);
        assert_eq!(nearest(&"stop".repeat(1_000_000), known), None);
    }
}
