//! The arguments of a call, picked from the user's words by the types and names of the function's parameters.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::{
    tool::Tool,
    words::{COMMON, name_tokens, stem, tokens},
};

impl Tool {
    /// Required parameters that are not among the arguments.
    pub(super) fn lacks(&self, arguments: &Map<String, Value>) -> Vec<&str> {
        self.properties()
            .map(|(name, _)| name.as_str())
            .filter(|name| self.requires(name) && !arguments.contains_key(*name))
            .collect()
    }

    /// The value of each parameter, as far as the words name it.
    pub(super) fn arguments(&self, said: &[String]) -> Map<String, Value> {
        let mut arguments = Map::new();
        let mut numbers = numbers_in(said).into_iter().map(|(number, _)| number);
        for (name, schema) in self.properties() {
            let value = match kind_of(schema) {
                Kind::OneOf(values) => one_of(values, said),
                Kind::Number => numbers
                    .next()
                    .filter(|number| is_allowed(schema, *number))
                    .map(|number| json!(number)),
                Kind::Flag => flag_in(name, said),
                Kind::Text => self.text_for(name, said).map(Value::String),
                Kind::Other => None,
            };
            if let Some(value) = value {
                arguments.insert(name.clone(), value);
            }
        }
        arguments
    }

    /// Whether the words say more than the call does: another number, another time, another thing. Whoever orders "unlock the
    /// back door" has not ordered `unlock_door`.
    pub(super) fn leaves_out(&self, said: &[String], arguments: &Map<String, Value>) -> bool {
        /// Words that change nothing about what is ordered.
        const FILLERS: &[&str] = &[
            "a", "an", "can", "could", "for", "i", "i'd", "it", "like", "me", "my", "now", "of", "please", "the", "to",
            "want", "will", "would", "you", "your",
        ];
        let numbers = numbers_in(said);
        let mut taken: Vec<&str> = FILLERS.to_vec();
        let mut numbers_taken = 0;
        let mut texts = Vec::new();
        for (name, schema) in self.properties() {
            let Some(value) = arguments.get(name) else { continue };
            texts.extend(name_tokens(name));
            match (kind_of(schema), value) {
                (Kind::Number, _) => numbers_taken += 1,
                (Kind::OneOf(_), Value::String(text)) => texts.extend(name_tokens(text)),
                (Kind::Text, Value::String(text)) => {
                    // A text made of what is left has swallowed the words of the number.
                    if numbers
                        .iter()
                        .any(|(_, at)| text.split(' ').any(|word| word == said[at.start]))
                    {
                        return true;
                    }
                    texts.extend(text.split(' ').map(str::to_owned));
                    taken.extend(PREPOSITIONS);
                }
                (Kind::Flag, _) => taken.extend(OFF.iter().chain(ON)),
                (_, value) => texts.extend(tokens(&value.to_string())),
            }
        }
        taken.extend(texts.iter().map(String::as_str));
        let name: Vec<String> = name_tokens(&self.name).iter().map(|word| stem(word)).collect();
        let is_number_taken = |place: usize| numbers[..numbers_taken].iter().any(|(_, at)| at.contains(&place));
        let is_explained = |(place, word): (usize, &String)| {
            taken.contains(&word.as_str()) || name.contains(&stem(word)) || is_number_taken(place)
        };
        !said.iter().enumerate().all(is_explained)
    }

    /// The words for a parameter of type string: all of them for one that takes a sentence, else those behind its name or
    /// the last preposition, else what is left when the words of the function's name are taken away.
    fn text_for(&self, name: &str, said: &[String]) -> Option<String> {
        const SENTENCES: &[&str] = &[
            "command",
            "content",
            "input",
            "message",
            "note",
            "prompt",
            "query",
            "question",
            "request",
            "sentence",
            "text",
            "transcript",
            "utterance",
            "words",
        ];
        let name_words = name_tokens(name);
        if said.is_empty() {
            return None;
        }
        if name_words.iter().any(|word| SENTENCES.contains(&word.as_str())) {
            return Some(said.join(" "));
        }
        let behind = |at: usize| {
            let rest: Vec<&str> = said[at + 1..]
                .iter()
                .map(String::as_str)
                .skip_while(|word| ["a", "an", "the", "is"].contains(word))
                .filter(|word| *word != "please")
                .collect();
            (!rest.is_empty()).then(|| rest.join(" "))
        };
        let at_name = said.iter().position(|word| name_words.contains(word));
        let at_preposition = said.iter().rposition(|word| PREPOSITIONS.contains(&word.as_str()));
        if let Some(found) = at_name.and_then(behind).or_else(|| at_preposition.and_then(behind)) {
            return Some(found);
        }
        if !self.requires(name) {
            return None;
        }
        let own = self.name_words();
        let verbs = name_tokens(&self.name);
        let left: Vec<&str> = said
            .iter()
            .filter(|word| !own.contains(&stem(word)) && !verbs.contains(word) && !COMMON.contains(&word.as_str()))
            .map(String::as_str)
            .collect();
        (!left.is_empty()).then(|| left.join(" "))
    }
}

/// Words behind which a name or a place stands.
const PREPOSITIONS: &[&str] = &["about", "at", "called", "for", "from", "in", "named", "to", "with"];

enum Kind<'a> {
    OneOf(&'a [Value]),
    Number,
    Flag,
    Text,
    Other,
}

fn kind_of(schema: &Value) -> Kind<'_> {
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return Kind::OneOf(values);
    }
    let named = match schema.get("type") {
        Some(Value::String(name)) => Some(name.as_str()),
        // ["string", "null"]
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        // anyOf: [{type: string}, {type: null}], as pydantic writes an optional parameter.
        _ => {
            let either = schema.get("anyOf").and_then(Value::as_array).into_iter().flatten();
            return either
                .map(kind_of)
                .find(|kind| !matches!(kind, Kind::Other))
                .unwrap_or(Kind::Other);
        }
    };
    match named {
        Some("integer" | "number") => Kind::Number,
        Some("boolean") => Kind::Flag,
        Some("string") => Kind::Text,
        _ => Kind::Other,
    }
}

/// The first of these values whose words are all said.
fn one_of(values: &[Value], said: &[String]) -> Option<Value> {
    let is_said = |value: &&Value| {
        let words = match value {
            Value::String(text) => name_tokens(text),
            other => tokens(&other.to_string()),
        };
        !words.is_empty() && words.iter().all(|word| said.contains(word))
    };
    values.iter().find(is_said).cloned()
}

/// Whether a schema allows a number.
fn is_allowed(schema: &Value, number: i64) -> bool {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let number = number as f64;
    bound("minimum").is_none_or(|least| number >= least)
        && bound("maximum").is_none_or(|most| number <= most)
        && bound("exclusiveMinimum").is_none_or(|below| number > below)
        && bound("exclusiveMaximum").is_none_or(|above| number < above)
}

/// Words that say no to a flag, and yes.
const OFF: &[&str] = &["off", "no", "false", "without"];
const ON: &[&str] = &["on", "true", "yes"];

fn flag_in(name: &str, said: &[String]) -> Option<Value> {
    let is_named = name_tokens(name).iter().any(|word| said.contains(word));
    let is_off = said.iter().any(|word| OFF.contains(&word.as_str()));
    let is_on = said.iter().any(|word| ON.contains(&word.as_str()));
    (is_named || is_on || is_off).then(|| json!(!is_off))
}

/// Words of the longest number there is: "nine thousand and nine hundred and ninety nine".
const NUMBER_WORDS_MAX: usize = 8;

/// Whether a number in digits has a sign or a part below one, which [`numbers_in`] does not read: "-3", ".5", "1/2".
pub(super) fn has_odd_number(words: &str) -> bool {
    let mut before = ' ';
    words.chars().any(|char| {
        let is_odd = char.is_ascii_digit() && "-\u{2013}\u{2212}+.,/".contains(before);
        before = char;
        is_odd
    })
}

/// Whole numbers in digits and in words, in the order they are said, each with the places of its words.
pub(super) fn numbers_in(said: &[String]) -> Vec<(i64, Range<usize>)> {
    let words: Vec<&str> = said.iter().map(String::as_str).collect();
    let mut numbers = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let read = |length: usize| Some((i64::from(dialogue::read_number(&words[at..at + length])?), length));
        let longest = NUMBER_WORDS_MAX.min(words.len() - at);
        let digits = words[at].parse().ok().map(|number| (number, 1));
        let number = digits.or_else(|| (1..=longest).rev().find_map(read));
        numbers.extend(number.map(|(number, length)| (number, at..at + length)));
        at += number.map_or(1, |(_, length)| length);
    }
    numbers
}
