//! The sentences of a drill that broke off. Those that its narrator says are in `demo`, and those of its checks in `report`.
//!
//! A sentence says what did not happen and, after a semicolon, what to look at or type.

use std::{path::Path, time::Duration};

// Files.

pub(crate) fn cannot_make(folder: &Path) -> String {
    format!(
        "cannot make {}; name a folder that you may write with --report",
        folder.display()
    )
}

pub(crate) fn cannot_write(file: &Path) -> String {
    format!(
        "cannot write {}; check the space (`df`) and the rights of its folder (`ls -l`)",
        file.display()
    )
}

pub(crate) fn cannot_read_list(list: &Path) -> String {
    format!(
        "cannot read {}; give the folder of the recordings with --calls",
        list.display()
    )
}

/// `at` is the line of the list, as FILE:LINE.
pub(crate) fn not_three_columns(at: &str) -> String {
    format!("{at}: not three columns; write file, words and intent with tabs between them")
}

pub(crate) fn cannot_read_recording(at: &str, file: &str) -> String {
    format!("{at}: cannot read {file}; put the recording there, or remove the line")
}

/// The fault of the recording follows.
pub(crate) fn bad_recording(at: &str, file: &str) -> String {
    format!("{at}: {file}")
}

pub(crate) fn no_recordings(list: &Path) -> String {
    format!(
        "{} names no recording; write a line with file, words and intent",
        list.display()
    )
}

// The story.

pub(crate) fn callers_unanswered(unanswered: usize, callers: usize, limit: Duration) -> String {
    format!(
        "{unanswered} of {callers} callers were not answered within {:.0} s; the logs of the stacks say why, and a busy machine needs \
         fewer callers (--sessions)",
        limit.as_secs_f64()
    )
}

pub(crate) fn region_unknown() -> String {
    "the edges do not say which region answers; build all programs of one version: cargo build --workspace --bins"
        .to_owned()
}

pub(crate) fn nobody_in_call(region: &str, limit: Duration) -> String {
    format!(
        "no moment came within {:.0} s at which half of the callers of {region} were talking; try again, with fewer callers (--sessions)",
        limit.as_secs_f64()
    )
}

pub(crate) fn no_failover(region: &str) -> String {
    format!("the history has no failover of {region}; the logs of the control plane say what it decided")
}

pub(crate) fn restore_refused(region: &str, why: &str) -> String {
    format!("the control plane refused the restore of {region}; its reasons: {why}")
}

pub(crate) fn observer_ended(what: &str) -> String {
    format!("the observer ended while it waited for {what}; the logs of the control plane say why it left")
}

pub(crate) fn did_not_happen(what: &str, limit: Duration, last: &str) -> String {
    format!(
        "{what} did not happen within {:.0} s; last seen: {last}",
        limit.as_secs_f64()
    )
}

pub(crate) const CALLER_PANICKED: &str = "a caller panicked; this is a fault of the drill, so please report it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_did_not_happen_and_what_to_do() {
        let (path, limit) = (Path::new("calls.tsv"), Duration::from_secs(20));
        for text in [
            cannot_make(path),
            cannot_write(path),
            cannot_read_list(path),
            not_three_columns("calls.tsv:3"),
            cannot_read_recording("calls.tsv:3", "time.wav"),
            no_recordings(path),
            callers_unanswered(2, 8, limit),
            region_unknown(),
            nobody_in_call("us-east", limit),
            no_failover("us-east"),
            restore_refused("us-east", "it is down"),
            observer_ended("the failover"),
            did_not_happen("the failover", limit, "plan 1"),
            CALLER_PANICKED.to_owned(),
        ] {
            assert!(text.contains("; "), "says one thing only: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
        assert_eq!(bad_recording("calls.tsv:3", "time.wav"), "calls.tsv:3: time.wav");
    }
}
