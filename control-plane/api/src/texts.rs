//! The sentences of the interface that operators read: calls that found no control plane, messages that are refused, and tokens that
//! nobody takes. The control plane's own refusals are in its table.
//!
//! A sentence says what is wrong and, after a semicolon, what to type.

use std::fmt::Display;

// Control planes that do not answer.

/// The cause follows the URLs, because the command adds its own remedy.
pub(crate) fn unreachable(urls: &str, why: &str) -> String {
    format!("no control plane answers at {urls}: {why}")
}

pub(crate) fn no_leader(urls: &str, why: &str) -> String {
    format!("no control plane of {urls} leads ({why}); an election takes seconds: try again")
}

pub(crate) fn outcome_unknown(url: &str, why: &str, token: &str) -> String {
    format!(
        "{url} did not confirm the request ({why}), and may have carried it out; check with `meridian history`, or repeat it with \
         --token {token}, which never carries it out twice"
    )
}

pub(crate) fn no_token_came(url: &str, why: &str) -> String {
    format!("{url} did not answer with a token ({why}); ask again")
}

pub(crate) fn not_a_url(text: &str) -> String {
    format!("\"{text}\" is not a URL of a control plane; write https://address:port, or http:// without TLS")
}

/// In a configuration, behind the name of the key.
pub(crate) fn not_a_control_plane_url(url: &str) -> String {
    format!("\"{url}\" is not the URL of a control plane; write \"https://address:port\", or http:// without TLS")
}

pub(crate) const NO_CERTIFICATE: &str = "this control plane wants to know who calls, and there is no certificate to show; `meridian login NAME --roles ROLE` gets one";

pub(crate) const NO_URL: &str = "no control plane is given; add --control-plane http://address:port";

pub(crate) const NO_CONTROL_PLANE: &str =
    "the server at this address is not a control plane, or has another version; name one with --control-plane URL";

/// Stands behind an address, in a list of causes.
pub(crate) const LATE: &str = "no answer in time";

pub(crate) fn needs_identity(url: &str) -> String {
    format!("\"{url}\" needs an identity to prove; add the section [identity], or write http://")
}

/// A cause, behind the address that it is of.
pub(crate) fn at(endpoint: &str, why: impl Display) -> String {
    format!("{endpoint:.100}: {why}")
}

// Messages that are refused, after the name of the field.

pub(crate) fn in_field(field: &str, problem: &str) -> String {
    format!("{field}: {problem}")
}

pub(crate) const MISSING: &str = "missing; write one";

pub(crate) const HIDDEN_CHARACTERS: &str =
    "contains line breaks, control characters or invisible characters; remove them";

pub(crate) fn name_too_long(chars_max: usize) -> String {
    format!("longer than {chars_max} characters; write a shorter one")
}

pub(crate) fn not_a_rule(text: &str, known: &str) -> String {
    format!("\"{text:.40}\" cannot be overridden; write one of {known}")
}

pub(crate) fn not_an_address(text: &str) -> String {
    format!("\"{text:.60}\" is not an address; write IP:PORT, such as 10.0.0.1:9000")
}

pub(crate) fn not_a_component(text: &str, known: &str) -> String {
    format!("\"{text:.40}\" is not a component; there are {known}, and newer ones need a newer control plane")
}

pub(crate) fn latency_too_long(bytes: usize, bytes_max: usize) -> String {
    format!("{bytes} bytes are more than {bytes_max}; the report does not count")
}

pub(crate) fn too_many_items(count: usize, items_max: usize) -> String {
    format!("{count} items are more than {items_max}; the report does not count")
}

// Joining by token.

/// The refusal says what to type.
pub(crate) fn join_refused(url: &str, why: &str) -> String {
    format!("{url} refuses: {why}")
}

pub(crate) fn join_unanswered(why: &str) -> String {
    format!("no control plane lets this process or person in: {why}")
}

pub(crate) fn other_answer(url: &str, what: &str) -> String {
    format!("{url} answered with {what}; this process does not use it; check the URL, and ask for a new token")
}

/// The faults of an answer.
pub(crate) const OTHER_ROOTS: &str = "roots without the one that is known";
pub(crate) const OTHER_CHAIN: &str = "a certificate that does not lead to the known root";

pub(crate) fn other_holder(id: impl Display) -> String {
    format!("the certificate of {id}")
}

/// The usual fault of the person who pasted the token.
pub(crate) const UNDER_ANOTHER_ROOT: &str =
    "the process there is not under the root that is known; check the address, or make another token";

pub(crate) const TLS_ONLY: &str = "a token is shown over TLS only; write https://address:port";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_to_type() {
        let url = "https://127.0.0.1:7070";
        let made = [
            no_leader(url, "it follows"),
            outcome_unknown(url, "the connection broke", "t-1"),
            no_token_came(url, "the connection broke"),
            not_a_url("nonsense"),
            not_a_control_plane_url("seven"),
            needs_identity(url),
            name_too_long(100),
            not_a_rule("gravity", "hold-down"),
            not_an_address("here"),
            not_a_component("ears", "asr, tts"),
            latency_too_long(70_000, 65_536),
            too_many_items(20_000, 16_384),
            other_answer(url, OTHER_ROOTS),
        ];
        let constants = [
            NO_URL,
            NO_CONTROL_PLANE,
            NO_CERTIFICATE,
            MISSING,
            HIDDEN_CHARACTERS,
            UNDER_ANOTHER_ROOT,
            TLS_ONLY,
        ];
        for text in made.iter().map(String::as_str).chain(constants) {
            assert!(text.contains("; "), "says one thing only: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
        // A cause, and sentences that end with one.
        for text in [
            unreachable(url, LATE),
            at(url, LATE),
            in_field("rule", MISSING),
            join_refused(url, TLS_ONLY),
            join_unanswered(&at(url, LATE)),
            other_answer(url, OTHER_CHAIN),
            other_answer(url, &other_holder("edge/edge-dub")),
        ] {
            assert!(text.contains(": ") || text.contains("; "), "{text}");
        }
    }
}
