//! Numbers and times in the words of a scenario.

use std::time::Duration;

use topology::document::Span;

use crate::texts;

pub(super) fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| texts::not_a_number(text))
}

/// A whole number from 1 to `max`.
pub(super) fn number_up_to(text: &str, max: u32) -> Result<u32, String> {
    let number = number(text)?;
    let fits = (1..=max).contains(&number);
    fits.then_some(number)
        .ok_or_else(|| texts::number_out_of_range(text, max))
}

pub(super) fn text(word: &str) -> String {
    word.to_owned()
}

pub(super) fn span(text: &str) -> Result<Duration, String> {
    text.parse::<Span>().map(|span| span.0)
}

pub(super) fn millis(text: &str) -> Result<i64, String> {
    let ms = span(text)?.as_millis();
    i64::try_from(ms).map_err(|_| texts::time_too_long(text))
}
