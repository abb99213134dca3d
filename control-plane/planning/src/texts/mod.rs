//! Every sentence about a decision that an operator reads, in one place, so that a reviewer reads them side by side:
//!
//! - [`changed`]: the changes of a plan, of an action or of the memory;
//! - [`refused`]: the changes that a rule, or a mistake in the order, keeps from being made;
//! - [`waiting`]: the changes that wait for time, for evidence or for a person;
//! - [`documents`]: the objections to new documents, and their differences;
//! - [`part`]: the comparisons of rules, and the phrases inside the sentences above.
//!
//! A sentence begins with its subject, says what the system does, and has no full stop. The line that shows it names
//! the region before it, so "it" is that region. A refusal or a wait names the command that helps, or says that nothing
//! need be typed. The reason code beside each sentence has a page of its own: docs/reasons.md.

pub(crate) mod changed;
pub(crate) mod documents;
pub(crate) mod part;
pub(crate) mod refused;
pub(crate) mod waiting;

/// Whether a refusal or a wait tells its reader what to type, or that nothing need be typed.
pub(crate) fn helps(text: &str) -> bool {
    ["\u{60}meridian ", "by itself", "by themselves", "nothing to type"]
        .iter()
        .any(|help| text.contains(help))
}

pub(crate) fn join_and<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    join(names, " and ")
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>, between: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|it| it.to_string()).collect();
    items.join(between)
}

#[cfg(test)]
mod tests;
