//! The refusal of a client's event.

use std::borrow::Cow;

use serde_json::Value;

use super::{events, fields::FieldError};
use crate::error::ApiError;

/// The reason to refuse an event of the client.
pub(super) struct Refusal {
    kind: &'static str,
    code: &'static str,
    param: Option<Cow<'static, str>>,
    message: String,
}

impl Refusal {
    pub(super) fn new(code: &'static str, param: Option<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            kind: "invalid_request_error",
            code,
            param,
            message: message.into(),
        }
    }

    pub(super) fn invalid(code: &'static str, param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(code, Some(param.into()), message)
    }

    /// The refusal for an engine that failed or is busy.
    pub(super) fn of(error: ApiError) -> Self {
        Self {
            kind: error.kind(),
            ..Self::new(error.code, None, error.message)
        }
    }

    /// The error event; `about` is the client's id of its own event.
    pub(super) fn event(&self, about: Option<&str>) -> Value {
        events::error(self.kind, self.code, &self.message, self.param.as_deref(), about)
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Self::invalid(error.code, error.param, error.message)
    }
}
