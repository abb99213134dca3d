//! Errors as clients of the OpenAI API expect them: `{"error": {message, type, code, param}}`. Every message says what to
//! do about it.

use std::borrow::Cow;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use speech::{SpeechError, wav::WavError};
use topology::Moment;

use crate::{
    encoding::EncodeError,
    recording::{OpusError, RecordingError},
    texts,
    workers::JobError,
};

/// An error on its way to an HTTP client.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<Cow<'static, str>>,
    /// The revision that this stack remembers of a session, for an edge that looks for it.
    pub(crate) revision: Option<Moment>,
}

/// Seconds after which callers may retry when queues are full: an engine serves several turns in that time.
const RETRY_AFTER_S: &str = "1";

/// An error repeats the name of a field up to this length.
const NAME_CHARS_MAX: usize = 64;

/// The code for an engine that found no room on its GPU.
pub(crate) const GPU_MEMORY: &str = "engine_out_of_memory";
/// The code for speech of the user that was lost with another region.
pub(crate) const REPEAT: &str = "repeat_utterance";

impl ApiError {
    /// Whether this region failed, and neither the client nor another region.
    pub(crate) fn blames_region(&self) -> bool {
        let is_ours = self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS;
        is_ours && self.code != REPEAT
    }

    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
            revision: None,
        }
    }

    pub(crate) fn bad_request(
        code: &'static str,
        param: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, code, message)
        }
    }

    pub(crate) fn engine_failed(error: &impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", error.to_string())
    }

    /// The refusal of a field that does not exist; it names those that do. The stranger's name is cut.
    pub(crate) fn unknown(name: &str, known: &str) -> Self {
        let name: String = name.chars().take(NAME_CHARS_MAX).collect();
        let message = texts::unknown_field(&name, known);
        Self::bad_request("unknown_parameter", name, message)
    }

    /// The protocol's class of error, which clients turn into exception types.
    pub(crate) fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl ApiError {
    /// Logs a failure of ours, where the client is told about it.
    pub(crate) fn log(&self) {
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), code = self.code, "{}", self.message);
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let body = json!({ "error": {
            "message": self.message, "type": self.kind(), "code": self.code, "param": self.param,
        }});
        let mut response = (self.status, Json(body)).into_response();
        if let Some(revision) = self.revision {
            response
                .headers_mut()
                .insert(wire::REVISION_HEADER, HeaderValue::from(revision.0));
        }
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        let message = error.to_string();
        match error {
            JobError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message),
            JobError::Late => Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_timeout", message),
            JobError::Speech(SpeechError::TooLong { .. }) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "audio_too_long", message)
            }
            JobError::Speech(SpeechError::TooMuchText { .. }) => {
                Self::new(StatusCode::BAD_REQUEST, "string_above_max_length", message)
            }
            JobError::Speech(SpeechError::Engine(_)) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", message)
            }
            // Another attempt finds other work on the GPU.
            JobError::Speech(SpeechError::GpuMemory(_)) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, GPU_MEMORY, message)
            }
        }
    }
}

impl From<EncodeError> for ApiError {
    fn from(error: EncodeError) -> Self {
        Self::engine_failed(&error)
    }
}

impl From<RecordingError> for ApiError {
    fn from(error: RecordingError) -> Self {
        use RecordingError::{Opus, Wav};

        let message = error.to_string();
        match error {
            Wav(WavError::TooLong { .. }) | Opus(OpusError::TooLong { .. }) => Self {
                param: Some("file".into()),
                ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, "audio_too_long", message)
            },
            Wav(WavError::Empty | WavError::NoSamples) | Opus(OpusError::Empty) => {
                Self::bad_request("empty_audio", "file", message)
            }
            Wav(WavError::NotWav(_) | WavError::Unsupported(_) | WavError::Truncated)
            | Opus(OpusError::NotOpus | OpusError::Damaged) => Self::bad_request("invalid_audio", "file", message),
        }
    }
}
