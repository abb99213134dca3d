//! A function that a client offers, and the choice among them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::words::{name_tokens, stem};

/// A function that the client offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::realtime) struct Tool {
    pub(in crate::realtime) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(in crate::realtime) description: String,
    /// JSON schema of the arguments; null when the client gave none.
    #[serde(default)]
    pub(in crate::realtime) parameters: Value,
}

/// Whether functions are called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(in crate::realtime) enum ToolChoice {
    /// Called if the words ask for one.
    #[default]
    Auto,
    Never,
    /// The one that fits best, except for words that forbid it.
    Required,
    /// This one, except for words that forbid it.
    Function(String),
}

/// A function to be called.
#[derive(Debug, PartialEq)]
pub(in crate::realtime) struct Choice {
    pub(in crate::realtime) name: String,
    /// A JSON object, as text.
    pub(in crate::realtime) arguments: String,
}

/// Words in the names of functions that only read. A user need not say them.
const READS: &[&str] = &[
    "check", "data", "describe", "fetch", "find", "function", "get", "info", "list", "look", "lookup", "query", "read",
    "retrieve", "search", "show", "tell", "tool",
];
/// Words in the names of functions that speech leaves out. "All" and "off" are not among them, because they change the meaning.
const SMALL: &[&str] = &[
    "a", "an", "the", "of", "for", "to", "in", "at", "my", "me", "your", "and", "by", "with",
];

impl Tool {
    pub(in crate::realtime) fn describe(&self) -> Value {
        json!({
            "type": "function", "name": self.name, "description": self.description, "parameters": self.parameters,
        })
    }

    /// The words of its name that have to be said.
    pub(super) fn name_words(&self) -> BTreeSet<String> {
        let all: Vec<String> = name_tokens(&self.name);
        let own: BTreeSet<String> = all
            .iter()
            .filter(|word| !READS.contains(&word.as_str()) && !SMALL.contains(&word.as_str()))
            .map(|word| stem(word))
            .collect();
        if own.is_empty() {
            all.iter().map(|word| stem(word)).collect()
        } else {
            own
        }
    }

    /// Whether it only finds something out, by its name.
    pub(super) fn reads(&self) -> bool {
        name_tokens(&self.name)
            .first()
            .is_some_and(|verb| READS.contains(&verb.as_str()))
    }

    pub(super) fn properties(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.parameters
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
    }

    pub(super) fn requires(&self, name: &str) -> bool {
        let required = self.parameters.get("required").and_then(Value::as_array);
        required.is_some_and(|names| names.iter().any(|required| required == name))
    }
}

impl ToolChoice {
    /// Whether the client requires a call.
    pub(in crate::realtime) fn is_forced(&self) -> bool {
        matches!(self, Self::Required | Self::Function(_))
    }

    pub(in crate::realtime) fn describe(&self) -> Value {
        match self {
            Self::Auto => json!("auto"),
            Self::Never => json!("none"),
            Self::Required => json!("required"),
            Self::Function(name) => json!({ "type": "function", "name": name }),
        }
    }
}
