//! The reasons why a call fails, and the advice whether to repeat it.

use std::{io, net::SocketAddr, time::Duration};

use http::{StatusCode, header};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{self, protocol::CloseFrame};

use crate::{event::bounded, texts};

/// The next part of a turn that the caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The words that the server recognised.
    Transcript,
    /// The reply as text.
    Reply,
    /// The first audio of the reply.
    Audio,
    /// The end of the reply.
    End,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Transcript => "the transcript",
            Self::Reply => "the reply",
            Self::Audio => "the reply's audio",
            Self::End => "the end of the reply",
        }
    }
}

/// The reason why a call or a turn failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection could not be opened.
    #[error("{}", texts::cannot_connect(*address, source))]
    Connect {
        /// The address of the server.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
    /// The server opened no session before the deadline.
    #[error("{}", texts::no_session(*address, *waited))]
    ConnectTimeout {
        /// The address of the server.
        address: SocketAddr,
        /// The deadline of one attempt, from its start.
        waited: Duration,
    },
    /// The server answered the handshake with an HTTP error.
    #[error("{}", texts::refused(status, message))]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The `Retry-After` of the answer, if it has one in seconds.
        retry_after: Option<Duration>,
        /// The message in the answer.
        message: String,
    },
    /// The connection ended.
    #[error("{}", texts::closed(*code, reason))]
    Closed {
        /// The code of the Close frame (RFC 6455 §7.4). `None`: no Close frame came.
        code: Option<u16>,
        /// The reason in the Close frame, or the error of the network.
        reason: String,
        /// The error of the network.
        source: Option<io::Error>,
    },
    /// The server broke the protocol, or an option of the call cannot be part of an HTTP request.
    #[error("{}", texts::protocol_error(.0))]
    Protocol(String),
    /// The turn did not finish before the deadline.
    #[error("{}", texts::no_answer(*waited, stage.as_str()))]
    TurnTimeout {
        /// The deadline, measured from the end of the speech.
        waited: Duration,
        /// The part of the turn that was missing.
        stage: Stage,
    },
    /// The server ended the turn with an error.
    #[error("{}", texts::turn_failed(stage.as_str(), message))]
    TurnFailed {
        /// The part of the turn that was missing.
        stage: Stage,
        /// The message of the server.
        message: String,
        /// Whether the server blames the request.
        callers_fault: bool,
    },
}

/// Whether repeating an utterance can help, and whether it may have side effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAdvice {
    /// The server has not heard the utterance yet, so repeating it has no side effects.
    Safe,
    /// The server may have acted on the utterance already. Users repeat it anyway.
    MayRepeat,
    /// The repetition would fail in the same way.
    Useless,
}

impl CallError {
    /// The check to make or the command to type. `None`: the server's own words in the error say what to do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => Some(texts::CHECK_SERVER),
            Self::Protocol(_) => Some(texts::CHECK_VERSION),
            Self::TurnTimeout {
                stage: Stage::Transcript,
                ..
            } => Some(texts::CHECK_RECORDING),
            Self::TurnTimeout { .. } => Some(texts::CHECK_STACKS),
            Self::Refused { .. } | Self::Closed { .. } | Self::TurnFailed { .. } => None,
        }
    }

    /// Whether repeating the utterance can help.
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => RetryAdvice::Safe,
            Self::Refused { status, .. } => match *status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => RetryAdvice::Safe,
                status if status.is_server_error() => RetryAdvice::Safe,
                _ => RetryAdvice::Useless,
            },
            // The codes for a fault of the caller (RFC 6455 §7.4.1): protocol, data, policy, size, extension.
            Self::Closed {
                code: Some(1002 | 1003 | 1007..=1010),
                ..
            }
            | Self::Protocol(_)
            | Self::TurnFailed {
                callers_fault: true, ..
            } => RetryAdvice::Useless,
            Self::Closed { .. } | Self::TurnTimeout { .. } | Self::TurnFailed { .. } => RetryAdvice::MayRepeat,
        }
    }
}

pub(crate) fn closed(frame: Option<CloseFrame>) -> CallError {
    match frame {
        Some(frame) => CallError::Closed {
            code: Some(frame.code.into()),
            reason: bounded(&frame.reason),
            source: None,
        },
        // 1005 means exactly this: a Close frame without a code (RFC 6455 §7.4.1).
        None => CallError::Closed {
            code: Some(1005),
            reason: String::new(),
            source: None,
        },
    }
}

pub(crate) fn call_error(error: tungstenite::Error) -> CallError {
    match error {
        tungstenite::Error::Http(response) => {
            let retry_after = response
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|seconds| seconds.to_str().ok()?.parse().ok())
                .map(Duration::from_secs);
            let body = response.body().as_deref().unwrap_or_default();
            let message = serde_json::from_slice::<Value>(body)
                .ok()
                .and_then(|body| body.pointer("/error/message")?.as_str().map(str::to_owned))
                .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
            CallError::Refused {
                status: response.status(),
                retry_after,
                message: bounded(message.trim()),
            }
        }
        tungstenite::Error::Io(error) => CallError::Closed {
            code: None,
            reason: error.to_string(),
            source: Some(error),
        },
        tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake
            | tungstenite::error::ProtocolError::HandshakeIncomplete,
        ) => CallError::Closed {
            code: None,
            reason: texts::RESET.to_owned(),
            source: None,
        },
        other => CallError::Protocol(bounded(&other.to_string())),
    }
}
