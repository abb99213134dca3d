//! The reasons for which a stack closes the socket of a session, and the last event before.

use std::{error::Error as _, io::ErrorKind};

use axum::extract::ws::close_code;
use serde_json::Value;
use tungstenite::{Error as Fault, error::ProtocolError};

use super::{events, texts};
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
    let message = texts::TAKEN_OVER;
    Closing {
        event: Some(events::error(
            "invalid_request_error",
            "session_taken_over",
            message,
            None,
            None,
        )),
        code: close_code::POLICY,
        text: texts::TAKEN_OVER_CLOSE,
        reason: ClosedReason::TakenOver,
    }
}

pub(super) fn unfinished() -> Closing {
    let message = texts::UNFINISHED;
    Closing {
        event: Some(events::error(
            "invalid_request_error",
            "message_timeout",
            message,
            None,
            None,
        )),
        code: close_code::POLICY,
        text: texts::UNFINISHED_CLOSE,
        reason: ClosedReason::Unfinished,
    }
}

pub(super) fn no_room() -> Closing {
    let message = texts::NO_ROOM;
    Closing {
        event: Some(events::error("server_error", "no_room", message, None, None)),
        code: close_code::AGAIN,
        text: texts::NO_ROOM_CLOSE,
        reason: ClosedReason::NoRoom,
    }
}

pub(super) fn too_large() -> Closing {
    let message = texts::UNREADABLY_LARGE;
    Closing {
        event: Some(events::error(
            "invalid_request_error",
            "message_too_large",
            message,
            None,
            None,
        )),
        code: close_code::SIZE,
        text: texts::UNREADABLY_LARGE_CLOSE,
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
            text: texts::NOT_UTF8_CLOSE,
            reason: ClosedReason::Protocol,
        });
    }
    Err(Closing {
        event: None,
        code: close_code::PROTOCOL,
        text: texts::NOT_WEBSOCKET_CLOSE,
        reason: ClosedReason::Protocol,
    })
}
