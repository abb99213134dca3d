//! The words of sentences and of names, as functions and their arguments are compared with them.

/// Words that say nothing about what a sentence is about.
pub(super) const COMMON: &[&str] = &[
    "a", "about", "all", "am", "an", "and", "any", "are", "as", "at", "be", "by", "can", "could", "do", "does", "for",
    "from", "give", "has", "have", "how", "i", "in", "is", "it", "its", "let", "like", "me", "my", "now", "of", "on",
    "or", "our", "please", "should", "some", "that", "the", "their", "them", "there", "this", "to", "up", "us", "want",
    "was", "we", "what", "when", "where", "which", "who", "will", "with", "would", "you", "your", "s",
];

/// Lower-case words.
pub(super) fn tokens(text: &str) -> Vec<String> {
    text.split(|char: char| !(char.is_alphanumeric() || char == '\''))
        .map(|word| word.trim_matches('\'').to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The words of a name like `orderPizza`, `order_pizza` or `order-pizza`.
pub(super) fn name_tokens(name: &str) -> Vec<String> {
    let mut spaced = String::with_capacity(name.len() + 4);
    let mut before = ' ';
    for char in name.chars() {
        if char.is_uppercase() && before.is_lowercase() {
            spaced.push(' ');
        }
        spaced.push(char);
        before = char;
    }
    tokens(&spaced)
}

/// Singular and plural, "order" and "ordering", are the same word.
pub(super) fn stem(word: &str) -> String {
    // "News" is not the plural of "new".
    if ["lens", "news", "series", "species"].contains(&word) {
        return word.to_owned();
    }
    for ending in ["ing", "ed", "es", "s"] {
        if let Some(stem) = word.strip_suffix(ending).filter(|stem| stem.len() >= 3) {
            return stem.to_owned();
        }
    }
    word.strip_suffix('e')
        .filter(|stem| stem.len() >= 3)
        .unwrap_or(word)
        .to_owned()
}
