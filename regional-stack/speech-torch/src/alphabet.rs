//! The letters of the recognizer, and the text of its tokens.

/// Token 0 is the CTC blank. The other tokens are these characters in order.
pub const CHARACTERS: &str = "abcdefghijklmnopqrstuvwxyz' ";
/// Number of tokens, including the blank.
pub const TOKENS: i64 = CHARACTERS.len() as i64 + 1;
/// The token for "no new letter".
pub const BLANK: i64 = 0;

/// The tokens of a text. Characters outside the alphabet are left out.
pub fn tokens_of(text: &str) -> Vec<i64> {
    text.chars()
        .filter_map(|c| CHARACTERS.find(c))
        .map(|at| at as i64 + 1)
        .collect()
}

/// The most likely token of each frame, with its probability.
pub fn best_of(log_probabilities: &[f32]) -> Vec<(i64, f32)> {
    let best = |frame: &[f32]| {
        let at = (0..frame.len())
            .max_by(|&a, &b| frame[a].total_cmp(&frame[b]))
            .unwrap_or(0);
        (at as i64, frame[at].exp())
    };
    log_probabilities.chunks_exact(TOKENS as usize).map(best).collect()
}

/// The text and its mean probability, from the most likely token of each frame. Repeated tokens collapse; blanks
/// vanish.
pub fn collapse(best: &[(i64, f32)]) -> (String, f32) {
    let characters = CHARACTERS.as_bytes();
    let (mut text, mut sum, mut count) = (String::new(), 0.0, 0u32);
    let mut last = BLANK;
    for &(token, probability) in best {
        if token != last && token != BLANK {
            let at = usize::try_from(token - 1).ok().and_then(|at| characters.get(at));
            text.push(char::from(*at.unwrap_or(&b' ')));
            sum += probability;
            count += 1;
        }
        last = token;
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let confidence = if text.is_empty() {
        0.0
    } else {
        (sum / count as f32).clamp(0.0, 1.0)
    };
    (text, confidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_collapse_and_blanks_separate() {
        let frames: Vec<(i64, f32)> = [0, 8, 8, 0, 5, 12, 0, 12, 15, 28, 28, 0]
            .into_iter()
            .map(|token| (token, 0.5))
            .collect();
        assert_eq!(collapse(&frames), ("hello".to_owned(), 0.5));
        assert_eq!(collapse(&[]), (String::new(), 0.0));
    }

    #[test]
    fn tokens_are_positions_after_the_blank() {
        assert_eq!(tokens_of("ab' !Z"), [1, 2, 27, 28]);
        assert_eq!(TOKENS, 29);
    }
}
