//! The words of an utterance that carry its meaning, without the courtesies around them.

use crate::{lexicon, written};

/// Longer utterances are no commands. The limits also bound the work on outside input.
const WORDS_MAX: usize = 24;
const WORD_CHARS_MAX: usize = 24;

/// The words of `text` that carry its meaning: lower-case, without the courtesies around them.
pub(crate) struct Request {
    pub(crate) words: Vec<String>,
    /// Whether it has a polite form ("could you …"), which makes an order of what sounds like a question.
    pub(crate) requested: bool,
    /// Whether the text ends as a question.
    pub(crate) asks: bool,
    pub(crate) ends_with_now: bool,
}

impl Request {
    /// Reads `text`; `None` if it is empty or too long for a request.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let reading = written::read(text, WORDS_MAX)?;
        let mut words = reading.words;
        let ends_with_now = words.last().is_some_and(|word| word == "now");
        if words.iter().any(|word| word.len() > WORD_CHARS_MAX) {
            return None;
        }
        let mut requested = false;
        while let Some((length, asked)) = courtesy(&words, PREFIXES, <[String]>::starts_with) {
            words.drain(..length);
            requested |= asked;
        }
        while let Some((length, asked)) = courtesy(&words, SUFFIXES, <[String]>::ends_with) {
            words.truncate(words.len() - length);
            requested |= asked;
        }
        (!words.is_empty()).then_some(Self {
            words,
            requested,
            asks: reading.asks,
            ends_with_now,
        })
    }

    pub(crate) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }
}

/// Courtesies before a request, longer ones first, and whether they make an order of the words that follow.
const PREFIXES: &[(&str, bool)] = &[
    ("i would like you to", true),
    ("i'd like you to", true),
    ("i want you to", true),
    ("i need you to", true),
    ("i would like to", true),
    ("i'd like to", true),
    ("go ahead and", true),
    ("can you", true),
    ("could you", true),
    ("would you", true),
    ("will you", true),
    ("can we", true),
    ("could we", true),
    ("kindly", true),
    ("please", true),
    ("thank you", false),
    ("hey", false),
    ("hi", false),
    ("hello", false),
    ("okay", false),
    ("ok", false),
    ("meridian", false),
    ("uh", false),
    ("um", false),
    ("er", false),
    ("well", false),
    ("so", false),
    ("just", false),
    ("and", false),
];

const SUFFIXES: &[(&str, bool)] = &[
    ("thank you", false),
    ("right now", false),
    ("for me", true),
    ("will you", true),
    ("would you", true),
    ("could you", true),
    ("can you", true),
    ("please", true),
    ("thanks", false),
    ("now", false),
    ("okay", false),
    ("meridian", false),
    ("then", false),
];

fn courtesy(
    words: &[String],
    courtesies: &[(&str, bool)],
    there: fn(&[String], &[String]) -> bool,
) -> Option<(usize, bool)> {
    courtesies.iter().find_map(|(courtesy, asked)| {
        let courtesy: Vec<String> = courtesy.split(' ').map(str::to_owned).collect();
        // A request that is only a courtesy ("okay") keeps its words.
        (words.len() > courtesy.len() && there(words, &courtesy)).then_some((courtesy.len(), *asked))
    })
}

/// A request beyond the assistant's own skills, for functions that the client offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRequest {
    /// The words of the request, without the courtesies around them.
    pub words: Vec<String>,
    /// Whether it is a question rather than an order.
    pub is_question: bool,
    /// Whether it has a polite form ("could you …").
    pub is_requested: bool,
}

/// Whether `text` negates or excepts something, so that the closest order may be the opposite of what it says.
pub fn is_negated(text: &str) -> bool {
    match Request::read(text) {
        Some(request) => {
            let words = request.words();
            lexicon::exception(&words).is_some() || words.iter().any(|word| lexicon::is_negation(word))
        }
        // Too long for a request.
        None => text.split_whitespace().any(|word| {
            let word = word.to_lowercase().replace('\u{2019}', "'");
            lexicon::is_negation(word.trim_matches(|letter: char| !letter.is_alphabetic()))
        }),
    }
}

/// Reads `text` as a request; `None` if it wants nothing or contains a negation.
pub fn client_request(text: &str) -> Option<ClientRequest> {
    let request = Request::read(text)?;
    if is_negated(text) {
        return None;
    }
    let begins = (request.words.first()).is_some_and(|word| lexicon::begins_a_question(word));
    Some(ClientRequest {
        is_question: !request.requested && (begins || request.asks),
        is_requested: request.requested,
        words: request.words,
    })
}
