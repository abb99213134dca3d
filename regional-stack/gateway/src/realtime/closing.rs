//! The reasons for which a stack closes the socket of a session, and the last event before.

use std::{error::Error as _, io::ErrorKind};

use axum::extract::ws::close_code;
use serde_json::Value;
use tungstenite::{Error as Fault, error::ProtocolError};

use super::events;
use crate::metrics::ClosedReason;

/// The reason of the stack for closing a socket.
pub(super) struct Closing {
    /// The event before the Close frame.
    pub(super) event: Option<Value>,
    pub(super) code: u16,
    pub(super) text: &'static str,
    pub(super) reason: ClosedReason,
}

/// The device, or another with its id, has connected again: an alarm must ring once.
pub(super) fn taken_over() -> Closing {
    let message = "a newer connection resumed this session; this one ends, and does not have to connect again";
    Closing {
        event: Some(events::error(
            "invalid_request_error",
            "session_taken_over",
            message,
            None,
            None,
        )),
        code: close_code::POLICY,
        text: "this session was resumed by a newer connection",
        reason: ClosedReason::TakenOver,
    }
}

pub(super) fn unfinished() -> Closing {
    let message = "a message that you began is not whole yet; send it faster, or audio in shorter pieces";
    Closing {
        event: Some(events::error(
            "invalid_request_error",
            "message_timeout",
            message,
            None,
            None,
        )),
        code: close_code::POLICY,
        text: "a message that you began did not end in time",
        reason: ClosedReason::Unfinished,
    }
}

pub(super) fn no_room() -> Closing {
    let message = "the long messages of other sessions leave no room for this one; send audio in shorter pieces, or connect again \
                   in a moment";
    Closing {
        event: Some(events::error("server_error", "no_room", message, None, None)),
        code: close_code::AGAIN,
        text: "no room for long messages; send audio in shorter pieces",
        reason: ClosedReason::NoRoom,
    }
}

pub(super) fn too_large() -> Closing {
    let message = "the message is too large to be read; send audio in shorter pieces";
    Closing {
        event: Some(events::error(
            "invalid_request_error",
            "message_too_large",
            message,
            None,
            None,
        )),
        code: close_code::SIZE,
        text: "message too large; send audio in shorter pieces",
        reason: ClosedReason::Oversize,
    }
}

/// The end of a session whose socket has become unreadable.
pub(super) fn unreadable(error: &axum::Error) -> Result<ClosedReason, Closing> {
    let fault = error.source().and_then(|source| source.downcast_ref::<Fault>());
    match fault {
        Some(Fault::Capacity(_)) => return Err(too_large()),
        Some(Fault::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return Ok(ClosedReason::Lost),
        Some(Fault::Io(fault)) if matches!(fault.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
            return Ok(ClosedReason::Lost);
        }
        _ => {}
    }
    tracing::debug!("socket: {error}");
    if matches!(fault, Some(Fault::Utf8(_))) {
        return Err(Closing {
            event: None,
            code: close_code::INVALID,
            text: "a text message is not UTF-8",
            reason: ClosedReason::Protocol,
        });
    }
    Err(Closing {
        event: None,
        code: close_code::PROTOCOL,
        text: "not the WebSocket protocol",
        reason: ClosedReason::Protocol,
    })
}
