//! The findings of probes, in one place: they stand in the evidence of a region or an edge, after the name of the stack or the address.
//! Each says what the prober saw; the planner decides what follows.

use std::{fmt::Display, time::Duration};

// A stack's page `/health`.

pub(crate) fn cannot_connect(why: impl Display) -> String {
    format!("cannot connect: {why}")
}

pub(crate) fn health_page(why: impl Display) -> String {
    format!("GET /health: {why}")
}

pub(crate) fn health_late(limit: Duration) -> String {
    format!("no answer to GET /health within {limit:?}")
}

pub(crate) fn health_too_long(bytes_max: usize) -> String {
    format!("the answer has more than {bytes_max} bytes")
}

pub(crate) fn health_status(status: &str) -> String {
    format!("GET /health reports status {status}")
}

pub(crate) fn code_and_status(code: u16, status: &str) -> String {
    format!("{code}, {status}")
}

/// The stack is well, and this node has to follow it.
pub(crate) const WANTS_PROOF: &str =
    "the stack wants TLS and a certificate, and this node shows none; write stacks = \"required\" in [identity]";

pub(crate) const NOT_COUNTED: &str = "the probe does not count: this node lacks open files, ports or processor time, or the stack refuses \
     its certificate; check its limits and load, and its certificate with `meridian cert list DIR`";

// The log of the prober.

pub(crate) const CLOCK_JUMPED: &str =
    "the clock jumped, so this tick is not reported; check the time service (`timedatectl`, `chronyc tracking`)";
pub(crate) const REPORT_DROPPED: &str = "the queue of reports is full, so one report is dropped; look for a control plane that reads                                          slowly: `meridian status`";

// A spoken turn.

pub(crate) const NO_TRANSCRIPT: &str = "the transcript is empty";
pub(crate) const NO_REPLY: &str = "the reply is empty";
pub(crate) const NO_AUDIO: &str = "the reply has no audio";

pub(crate) fn other_transcript(heard: &str, spoken: &str) -> String {
    format!("the transcript is \"{heard}\" instead of \"{spoken}\"")
}

pub(crate) fn other_intent(spoken: &str, found: &str, wanted: &str) -> String {
    format!("the intent of \"{spoken}\" is \"{found}\" instead of \"{wanted}\"")
}

// An edge.

pub(crate) fn edge_broke(why: impl Display) -> String {
    format!("the connection broke before an answer: {why}")
}

pub(crate) const EDGE_CLOSED: &str = "the edge closed the connection without an answer";

pub(crate) fn edge_late(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

pub(crate) fn at_address(address: impl Display, failure: impl Display) -> String {
    format!("{address}: {failure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_begins_with_its_subject_or_its_verb() {
        let limit = Duration::from_secs(2);
        let findings = [
            cannot_connect("connection refused"),
            health_page("500"),
            health_late(limit),
            health_too_long(65_536),
            health_status("failing"),
            code_and_status(503, "failing"),
            WANTS_PROOF.to_owned(),
            NOT_COUNTED.to_owned(),
            CLOCK_JUMPED.to_owned(),
            REPORT_DROPPED.to_owned(),
            NO_TRANSCRIPT.to_owned(),
            NO_REPLY.to_owned(),
            NO_AUDIO.to_owned(),
            other_transcript("what is", "what time is it"),
            other_intent("what time is it", "weather", "time"),
            edge_broke("reset"),
            EDGE_CLOSED.to_owned(),
            edge_late(limit),
            at_address("192.0.2.1:443", edge_late(limit)),
        ];
        for text in findings {
            let begins = text.split(' ').next().unwrap();
            assert!(
                !["what", "who", "which", "whatever", "whoever", "not"].contains(&begins),
                "{text}"
            );
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
    }
}
