//! The faults of a scenario, as its author reads them behind FILE:LINE. Each says what is wrong and, after a semicolon, what to write.
//! The sentences of a transcript are the planner's own; results that an expectation did not meet are in [`crate::expect`].

use std::fmt::Display;

// Lines.

pub(crate) fn in_line(line: usize, problem: &str) -> String {
    format!("line {line}: {problem}")
}

pub(crate) fn unknown_line() -> String {
    "a line begins with none of the words of a scenario; write \"at TIME\", \"end TIME\", \"expect\", \"region NAME\", \"traffic REGION\", \
     \"rollout holds\" or \"rollout versions\""
        .to_owned()
}

pub(crate) fn no_end() -> String {
    "\"end TIME\" is missing; write it, such as end 5m".to_owned()
}

pub(crate) fn ends_too_late(days_max: u64) -> String {
    format!("a scenario ends within {days_max} days; write an earlier end")
}

pub(crate) fn before_line_above() -> String {
    "it happens before the line above; write the lines in the order of their times".to_owned()
}

pub(crate) fn traffic() -> String {
    "the traffic cannot be read; write \"98 turns\" or \"98 turns and 300 sessions\"".to_owned()
}

pub(crate) fn no_sizes() -> String {
    "the room of the region is missing; write \"sessions 100\", \"connects 10/s\" or \"asr 50\"".to_owned()
}

pub(crate) fn not_a_size(word: &str) -> String {
    format!("\"{word}\" is nothing a region has room for; write sessions, stacks, connects or a component")
}

pub(crate) fn flaps_out_of_range(times_max: u32) -> String {
    format!(
        "the region must flap 1 to {times_max} times, with a pause greater than zero; write it as in \"flaps every 30s for 2m\""
    )
}

// Words of a line.

pub(crate) fn not_a_number(word: &str) -> String {
    format!("\"{word}\" is not a whole number; write one")
}

pub(crate) fn number_out_of_range(word: &str, max: u32) -> String {
    format!("{word} is out of range; write 1 to {max}")
}

pub(crate) fn time_too_long(word: &str) -> String {
    format!("\"{word}\" is too long; write a shorter time")
}

pub(crate) fn not_a_percentage(word: &str) -> String {
    format!("\"{word}\" is not a percentage; write 0 to 100")
}

pub(crate) fn not_a_plan(word: &str) -> String {
    format!("\"{word}\" is no plan; write its generation and epoch, like 4@1")
}

pub(crate) fn not_an_event(words: &str) -> String {
    format!("\"{words}\" is nothing that can happen; chaos/scenarios shows every event")
}

pub(crate) fn not_an_expectation(words: &str) -> String {
    format!("\"{words}\" is nothing to expect; chaos/scenarios shows every expectation")
}

pub(crate) fn reason_at_a_time() -> String {
    "a reason is expected by a time, not at one; write by TIME".to_owned()
}

pub(crate) fn switchover_loses_nothing() -> String {
    "a switchover loses no data; remove \"accepting a loss\", or write fails over".to_owned()
}

pub(crate) fn return_promotes_nobody() -> String {
    "a region that returns writes its own data again by itself; remove \"and promotes\"".to_owned()
}

// Names that the world does not have. `what` is "region", "edge", "node", "vantage", "component", "rule", "level" or "data class".

pub(crate) fn unknown(what: &str, name: impl Display, known: impl IntoIterator<Item = impl Display>) -> String {
    let known: Vec<String> = known.into_iter().map(|it| it.to_string()).collect();
    match known.is_empty() {
        true => format!("there is no {what} {name}; remove the line"),
        false => format!("there is no {what} {name}; there are {}", known.join(", ")),
    }
}

pub(crate) fn unknown_reason(name: &str) -> String {
    format!("there is no reason \"{name}\"; `meridian explain reason` lists all")
}

pub(crate) fn unknown_stack(region: impl Display, stacks: usize, stack: usize) -> String {
    format!("{region} has no stack {stack}; write 1 to {stacks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_says_what_is_wrong_and_what_to_write() {
        let known = ["us-east", "us-west"];
        for text in [
            in_line(1, &no_end()),
            unknown_line(),
            ends_too_late(30),
            before_line_above(),
            traffic(),
            no_sizes(),
            not_a_size("tea"),
            flaps_out_of_range(100),
            not_a_number("two"),
            number_out_of_range("0", 9),
            time_too_long("9999999d"),
            not_a_percentage("half"),
            not_a_plan("four"),
            not_an_event("us-east sleeps"),
            not_an_expectation("rain"),
            reason_at_a_time(),
            switchover_loses_nothing(),
            return_promotes_nobody(),
            unknown("region", "us-eats", known),
            unknown("data class", "jokes", [""; 0]),
            unknown_reason("boredom"),
            unknown_stack("us-east", 2, 3),
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
    }
}
