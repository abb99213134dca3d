//! The sentences about calls that fail. Probes and drills put them into reports and evidence, behind the name of what failed, so they are
//! causes. `meridian call` adds the advice of [`CallError::advice`](crate::CallError::advice).

use std::{fmt::Display, net::SocketAddr, time::Duration};

// The call.

pub(crate) fn cannot_connect(address: SocketAddr, why: &dyn Display) -> String {
    format!("cannot connect to {address}: {why}")
}

/// The cause in [`cannot_connect`] of a host name that the resolver does not know.
pub(crate) const NO_ADDRESS: &str = "the name has no address";

pub(crate) fn no_session(address: SocketAddr, waited: Duration) -> String {
    format!("no session from {address} within {waited:?}")
}

pub(crate) fn refused(status: &dyn Display, message: &str) -> String {
    format!("the service refused the call with {status}: {message}")
}

pub(crate) fn closed(code: Option<u16>, reason: &str) -> String {
    let code = code.map(|code| format!(" with {code}")).unwrap_or_default();
    format!("the service closed the call{code}: {reason}")
}

/// The cause in [`closed`] of a connection that ended without a Close frame.
pub(crate) const RESET: &str = "reset";

pub(crate) fn protocol_error(why: &str) -> String {
    format!("protocol error: {why}")
}

// The causes of protocol errors.

pub(crate) fn reply_too_long(bytes_max: usize) -> String {
    format!("the reply is longer than {bytes_max} bytes")
}

pub(crate) fn unsayable(what: &str) -> String {
    format!("{what} cannot be sent in an HTTP request")
}

/// The subject of [`unsayable`] for the name of a model.
pub(crate) const MODEL_NAME: &str = "the model's name";

pub(crate) fn not_json(why: &dyn Display) -> String {
    format!("an event is not JSON: {why}")
}

pub(crate) const NO_TYPE: &str = "an event has no type";

pub(crate) fn not_base64(why: &dyn Display) -> String {
    format!("audio is not base64: {why}")
}

// The turn.

pub(crate) fn no_answer(waited: Duration, missing: &str) -> String {
    format!("no answer within {waited:?}: still waiting for {missing}")
}

pub(crate) fn turn_failed(missing: &str, why: &str) -> String {
    format!("the turn failed while waiting for {missing}: {why}")
}

// The causes of failed turns.

pub(crate) fn response_is(status: &str, detail: &str) -> String {
    format!("the response is {status}: {detail}")
}

pub(crate) fn server_error(message: &str, code: &str) -> String {
    format!("{message} ({code})")
}

// The advice.

pub(crate) const CHECK_SERVER: &str =
    "check the network and that an edge or a stack runs at that address: `meridian status`";
pub(crate) const CHECK_VERSION: &str = "check that an edge or a stack of this version answers at that address";
pub(crate) const CHECK_RECORDING: &str = "check that the recording contains speech";
pub(crate) const CHECK_STACKS: &str = "`meridian why REGION` shows how the region's stacks answer";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_fits_between_a_subject_and_advice() {
        let address = "127.0.0.1:80".parse().unwrap();
        let waited = Duration::from_secs(3);
        for text in [
            cannot_connect(address, &NO_ADDRESS),
            no_session(address, waited),
            refused(&"503 Service Unavailable", "no region serves"),
            closed(Some(1012), "restart"),
            closed(None, RESET),
            protocol_error(&reply_too_long(1_000)),
            protocol_error(&unsayable(MODEL_NAME)),
            protocol_error(&not_json(&"eof")),
            protocol_error(NO_TYPE),
            protocol_error(&not_base64(&"'*'")),
            no_answer(waited, "the transcript"),
            turn_failed("the reply", &response_is("failed", "no engine")),
            turn_failed("the reply", &server_error("the engine failed", "asr")),
        ] {
            assert!(
                !text.contains("; ") && !text.ends_with(['.', ';', ':']) && text.len() < 120,
                "{text}"
            );
        }
    }

    #[test]
    fn every_advice_is_something_to_do() {
        for text in [CHECK_SERVER, CHECK_VERSION, CHECK_RECORDING, CHECK_STACKS] {
            assert!(text.starts_with("check ") || text.starts_with("`meridian "), "{text}");
            assert!(!text.ends_with('.'), "{text}");
        }
    }
}
