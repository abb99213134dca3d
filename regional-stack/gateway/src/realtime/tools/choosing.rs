//! The choice of the function to call.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    arguments::has_odd_number,
    tool::{Choice, Tool, ToolChoice},
    words::{COMMON, name_tokens, stem, tokens},
};

/// Chooses the function that the words ask for, if any. `known` means that the assistant has an answer of its own.
///
/// A client that requires a call gets none for words that negate, nor an action for a question: "do not turn on the light" would turn
/// it on.
pub(in crate::realtime) fn choose(tools: &[Tool], choice: &ToolChoice, words: &str, known: bool) -> Option<Choice> {
    let said = tokens(words);
    let tool = match choice {
        ToolChoice::Never => return None,
        ToolChoice::Function(name) => tools.iter().find(|tool| tool.name == *name && tool.may_follow(words))?,
        ToolChoice::Required => {
            let fit = tools.iter().filter(|tool| tool.may_follow(words));
            // The first of the best: `max_by_key` would give the last.
            fit.rev().max_by_key(|tool| tool.score(&said))?
        }
        ToolChoice::Auto => {
            if known {
                return None;
            }
            let wanted = dialogue::client_request(words)?;
            let asked = tools.iter().rev().filter(|tool| tool.is_wanted(&wanted));
            let tool = asked.max_by_key(|tool| tool.score(&said))?;
            // An incomplete call is no call: its answer would be about something that the user did not ask for.
            let arguments = tool.arguments(&said);
            if !tool.lacks(&arguments).is_empty() {
                return None;
            }
            // Nor is one that does something else than was said; a question may get an answer about less.
            if !tool.reads() && (has_odd_number(words) || tool.leaves_out(&said, &arguments)) {
                return None;
            }
            tool
        }
    };
    Some(Choice {
        name: tool.name.clone(),
        arguments: Value::Object(tool.arguments(&said)).to_string(),
    })
}

impl Tool {
    /// Whether the function may be called for these words, which need not name it.
    fn may_follow(&self, words: &str) -> bool {
        if dialogue::is_negated(words) {
            return false;
        }
        self.reads() || dialogue::client_request(words).is_none_or(|wanted| !wanted.is_question)
    }

    /// Whether the request is for what its name says. A function that finds something out may be asked for it; any other is
    /// called by an order that begins with the name's own first word: "somebody opened the door" orders nothing.
    fn is_wanted(&self, wanted: &dialogue::ClientRequest) -> bool {
        let said: BTreeSet<String> = wanted.words.iter().map(|word| stem(word)).collect();
        let (Some(first), name) = (wanted.words.first(), name_tokens(&self.name)) else {
            return false;
        };
        if !self.name_words().is_subset(&said) {
            return false;
        }
        if self.reads() {
            wanted.is_question
                || wanted.is_requested
                || ["give", "what's", "tell", "show"].contains(&first.as_str())
                || name.iter().any(|word| word == first)
        } else {
            name.first() == Some(first) && !wanted.is_question
        }
    }

    /// Its fit to the words.
    fn score(&self, said: &[String]) -> usize {
        let said: BTreeSet<String> = said.iter().map(|word| stem(word)).collect();
        let content = tokens(&self.description).into_iter();
        let description: BTreeSet<String> = content
            .filter(|word| !COMMON.contains(&word.as_str()))
            .map(|word| stem(&word))
            .collect();
        3 * self.name_words().intersection(&said).count() + description.intersection(&said).count()
    }
}
