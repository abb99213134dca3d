//! Makes text that one person wrote safe on another person's terminal. Control characters move the cursor and clear the
//! screen. Invisible characters, and those that change the direction of writing, make a text read differently from its
//! bytes.

use std::{borrow::Cow, fmt::Write as _};

/// Whether a terminal acts on a character instead of showing it. True for line breaks too.
pub fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            // Soft hyphen, direction marks, zero-width joiners and spaces, line separators, and the byte order mark.
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text with every hidden character written as `\u{…}`, except line breaks.
pub fn for_terminal(text: &str) -> Cow<'_, str> {
    let escapes = |letter: char| letter != '\n' && is_hidden(letter);
    if !text.contains(escapes) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if escapes(letter) {
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(letter));
        } else {
            safe.push(letter);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_letters_are_shown_and_visible_ones_stay() {
        for plain in [
            "a maintenance window",
            "Wartung für München",
            "メンテナンス",
            "line\nline",
        ] {
            assert_eq!(for_terminal(plain), plain);
        }
        for (text, shown) in [
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("safe\u{202e}efasnu", "safe\\u{202e}efasnu"),
            ("a\rb\u{200b}c", "a\\u{d}b\\u{200b}c"),
        ] {
            assert_eq!(for_terminal(text), shown);
        }
    }
}
