//! From words to a command: the closest sentence wins if it is close enough and explains every word. An unexplained
//! word may reverse the request, so the assistant asks about such a request instead of carrying it out.
//!
//! Why it is so: docs/decisions/14-hearing-and-understanding.md.

use crate::{
    command::{Command, Doubt},
    grammar::{REQUESTS, similarity_min, which_timer},
    lexicon, numbers,
    quantity::is_quantity,
    request::Request,
    slot::{self, Value},
    template::Fit,
};

/// The meaning of an utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Interpretation {
    /// The request, slots included.
    pub command: Command,
    /// Similarity of the utterance to the closest sentence of the grammar, in 0..=1.
    pub confidence: f32,
}

/// Least similarity of a question with an unexplained word. Ignoring such a question does no harm, and people ask each other
/// many that begin like a question to the assistant.
const VAGUE_QUESTION_MIN: f32 = 0.85;

/// Interprets `text` without context. Tolerates misheard letters, split and joined words, and courtesies.
pub fn interpret(text: &str) -> Interpretation {
    read_as(text, Origin::Typed)
}

/// The source of an utterance's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Typed,
    /// From the recognizer, which sometimes turns a "not" into a "the".
    Heard,
}

pub(crate) fn read_as(text: &str, origin: Origin) -> Interpretation {
    let (command, confidence) = match Request::read(text) {
        Some(request) => meaning(&request, origin),
        None => (Command::Unknown, 0.0),
    };
    Interpretation { command, confidence }
}

fn meaning(request: &Request, origin: Origin) -> (Command, f32) {
    let words = request.words();
    let enough = similarity_min(&words);
    let best = REQUESTS.closest(&words);
    let confidence = best.as_ref().map_or(0.0, |(_, fit)| fit.similarity.clamp(0.0, 1.0));
    let unknown = (Command::Unknown, confidence);
    let unsure = |of: Command, doubt| {
        let of = Box::new(of);
        (Command::Unsure { of, doubt }, confidence)
    };
    let negated = words.iter().position(|word| lexicon::is_negation(word));
    if let Some((command, fit)) = &best
        && fit.leftover.is_empty()
        && fit.similarity >= enough
        // No sentence of the grammar that gives an order has a negation, except "never mind".
        && (negated.is_none() || !command.is_order() || *command == Command::Stop)
    {
        if let Some(query) = existing(&words, command, fit) {
            return (query, confidence);
        }
        // "kitchen lights on?" may be a question or an order.
        let is_asked = request.asks && !request.requested;
        let is_doubtful = is_asked || origin == Origin::Heard && may_have_lost_a_word(request, command, fit);
        return if command.changes_state() && is_doubtful && *command != Command::Stop {
            unsure(command.clone(), Doubt::Words)
        } else {
            (command.clone(), confidence)
        };
    }
    if let Some(of) = exempted(&words) {
        return unsure(of, Doubt::Exception);
    }
    if let Some(negated) = negated {
        if let Some(reminded) = reminded(request, origin) {
            return reminded;
        }
        let is_single = words.iter().filter(|word| lexicon::is_negation(word)).count() == 1;
        return match negated_order(&words) {
            // "no turn on the lights" may be a correction or its opposite.
            Some(of) if negated == 0 && words[0] == "no" && is_single => unsure(of, Doubt::Opposite),
            Some(of) => (Command::Declined { of: Box::new(of) }, confidence),
            None => unknown,
        };
    }
    // An unexplained number leads to a question, however long it is, so only the other words count towards
    // similarity.
    let number = |word: &str| is_quantity(word) || matches!(word, "a" | "and" | "or");
    let chars: usize = words.iter().map(|word| word.len()).sum();
    let explained = |fit: &Fit| {
        let numbers = fit.leftover.iter().map(|at| words[*at]).filter(|word| number(word));
        fit.similarity + numbers.map(str::len).sum::<usize>() as f32 / chars.max(1) as f32
    };
    let Some((command, fit)) = best.filter(|(_, fit)| explained(fit) >= enough) else {
        return unknown;
    };
    let supposed = !request.requested && words.first().is_some_and(|word| lexicon::begins_a_question(word));
    if command.is_order() && supposed || !command.is_order() && fit.similarity < VAGUE_QUESTION_MIN {
        return unknown;
    }
    let left = |is_such: fn(&str) -> bool| fit.leftover.iter().any(|at| is_such(words[*at]));
    let doubt = if is_for_later(&command, &words) {
        Doubt::Later
    } else if left(is_quantity) {
        number_without_unit(&command, &words, &fit).map_or(Doubt::Number, Doubt::Unit)
    } else if left(lexicon::reverses) {
        Doubt::Opposite
    } else {
        Doubt::Words
    };
    match (&command, doubt) {
        (Command::Unsure { .. }, Doubt::Words) => (command, confidence),
        (Command::Unsure { .. }, _) => unknown,
        _ => unsure(command, doubt),
    }
}

/// Whether `words` are to switch lights at another time than now: "turn on the kitchen light at seven".
fn is_for_later(command: &Command, words: &[&str]) -> bool {
    if !matches!(
        command,
        Command::LightsOn { .. } | Command::LightsOff { .. } | Command::LightsDim { .. }
    ) {
        return false;
    }
    slot::find_all(words).iter().any(|found| {
        let before = found.start.checked_sub(1).map(|at| words[at]);
        let after = words.get(found.start + found.words);
        match found.value {
            Value::Clock(_) => before == Some("at") && !matches!(after, Some(&"percent" | &"per")),
            Value::DurationS(_) => matches!(before, Some("in" | "after")),
            Value::Day(..) => true,
            _ => false,
        }
    })
}

/// The number of "set a timer for ten".
fn number_without_unit(command: &Command, words: &[&str], fit: &Fit) -> Option<u32> {
    let Command::TimerSet { duration_s: None, .. } = command else {
        return None;
    };
    let mut left = fit.leftover.clone();
    left.sort_unstable();
    let left: Vec<&str> = left.into_iter().map(|at| words[at]).collect();
    let (["for" | "to" | "of", number @ ..] | number) = left.as_slice();
    numbers::read_number(number).filter(|number| *number > 0)
}

/// Whether the recognizer may have misheard a word that reverses the command: "do not turn on" comes as "the turn
/// on", "seven tomorrow no" as "seven tomorrow now", "not the light" as "off the light".
fn may_have_lost_a_word(request: &Request, command: &Command, fit: &Fit) -> bool {
    let is_for_later = matches!(
        command,
        Command::AlarmSet { .. }
            | Command::AlarmMove { .. }
            | Command::AlarmIn { .. }
            | Command::TimerSet { .. }
            | Command::TimerChange { .. }
    );
    let begins = request.words.first().map(String::as_str);
    fit.has_unexplained_filler || request.ends_with_now && is_for_later || matches!(begins, Some("on" | "off" | "of"))
}

/// The request of "don't forget to turn on the lights", which may be for now or for later; `None` for other
/// negations.
fn reminded(request: &Request, origin: Origin) -> Option<(Command, f32)> {
    let words = request.words();
    let (dont, rest) = match words.as_slice() {
        ["do" | "please" | "you", dont, rest @ ..] | [dont, rest @ ..] => (dont, rest),
        [] => return None,
    };
    let is_negated_twice = rest.iter().any(|word| lexicon::is_negation(word));
    if !matches!(*dont, "don't" | "dont" | "not" | "never") || is_negated_twice {
        return None;
    }
    let (["forget" | "fail" | "hesitate", "to", rest @ ..] | ["forget", rest @ ..]) = rest else {
        return None;
    };
    let order = Request {
        words: rest.iter().map(|word| (*word).to_owned()).collect(),
        requested: true,
        asks: false,
        ends_with_now: request.ends_with_now,
    };
    Some(match meaning(&order, origin) {
        (command, confidence) if command.changes_state() => {
            let of = Box::new(command);
            (
                Command::Unsure {
                    of,
                    doubt: Doubt::Words,
                },
                confidence,
            )
        }
        heard => heard,
    })
}

/// The order that a negation in `words` is about.
fn negated_order(words: &[&str]) -> Option<Command> {
    const AROUND: &[&str] = &["do", "you", "to", "want", "ever", "does", "have", "need", "i", "should"];
    let is_kept = |word: &&str| !lexicon::is_negation(word) && !AROUND.contains(word);
    let rest: Vec<&str> = words.iter().copied().filter(is_kept).collect();
    closest_order(&rest)
}

/// The question that "my alarm for tomorrow at seven" is: without a verb, an alarm or timer with such an article exists
/// already. `None` if `command` sets none, or a verb orders it.
fn existing(words: &[&str], command: &Command, fit: &Fit) -> Option<Command> {
    const VERBS: &[&str] = &["set", "start", "create", "make", "give", "wake", "get", "remind"];
    if !matches!(words, ["the" | "my", ..]) || words.iter().any(|word| VERBS.contains(word)) {
        return None;
    }
    match command {
        Command::AlarmSet { .. } | Command::AlarmIn { .. } => Some(Command::AlarmQuery),
        Command::TimerSet { .. } | Command::Unsure { doubt: Doubt::Bare, .. } => Some(Command::TimerQuery {
            which: which_timer(&fit.captured),
        }),
        _ => None,
    }
}

/// The order from which `words` except something; `None` if they except nothing or give no order.
fn exempted(words: &[&str]) -> Option<Command> {
    let (at, length) = lexicon::exception(words)?;
    // "turn off the lights other than the kitchen", "other than the kitchen turn off the lights"
    closest_order(&words[..at]).or_else(|| closest_order(&[&words[..at], &words[at + length..]].concat()))
}

/// The order that is closest to `words`, if it is close enough.
fn closest_order(words: &[&str]) -> Option<Command> {
    let (command, fit) = REQUESTS.closest(words)?;
    (fit.similarity >= similarity_min(words) && command.is_order()).then_some(command)
}

#[cfg(test)]
mod tests;
