//! How commands fail: one line with the remedy, and an exit code that programs can tell apart.

use std::process::ExitCode;

use api::{OperatorError, v1};
use probe::CallError;
use world::{StartError, record::RecordError};

/// A safety rule said no.
pub(crate) const REFUSED: u8 = 3;
/// A second person has to agree.
const NEEDS_APPROVAL: u8 = 4;
/// Stopped by a guard, or by somebody.
const ABORTED: u8 = 8;
/// Wrong use.
const USAGE: u8 = 2;
/// Nobody answers.
const UNREACHABLE: u8 = 5;
/// It may or may not have happened.
const UNKNOWN: u8 = 6;
/// Ctrl-C, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

/// An error and the exit code it deserves.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    pub(crate) code: Code,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(u8);

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        code.0.into()
    }
}

impl Failure {
    /// Failed, without a class of its own.
    pub(crate) fn failed(error: anyhow::Error) -> Self {
        Self { error, code: Code(1) }
    }

    /// Wrong use that only the control plane's answer showed.
    pub(crate) fn usage(error: anyhow::Error) -> Self {
        Self {
            error,
            code: Code(USAGE),
        }
    }

    /// Nobody answers where somebody should.
    pub(crate) fn unreachable(error: anyhow::Error) -> Self {
        Self::with(error, UNREACHABLE)
    }

    fn with(error: impl Into<anyhow::Error>, code: u8) -> Self {
        Self {
            error: error.into(),
            code: Code(code),
        }
    }
}

/// The exit code of a request. What makes no sense has failed; what a safety rule forbids is refused.
pub(crate) fn of_outcome(outcome: v1::Outcome, reasons: &[v1::Reason]) -> ExitCode {
    let senseless = |reason: &v1::Reason| matches!(reason.code.as_str(), "bad-request" | "no-such-action");
    match outcome {
        v1::Outcome::AwaitingApproval => NEEDS_APPROVAL.into(),
        v1::Outcome::Refused if reasons.iter().any(senseless) => ExitCode::FAILURE,
        v1::Outcome::Refused => REFUSED.into(),
        v1::Outcome::Done | v1::Outcome::Running | v1::Outcome::Unspecified => ExitCode::SUCCESS,
    }
}

/// The exit code of an action that was waited for.
pub(crate) fn of_phase(phase: &str) -> ExitCode {
    match phase {
        "done" => ExitCode::SUCCESS,
        "awaiting-approval" => NEEDS_APPROVAL.into(),
        "refused" => REFUSED.into(),
        "aborted" | "expired" => ABORTED.into(),
        _ => UNKNOWN.into(),
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(error)
    }
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Self {
        match error {
            OperatorError::Unreachable { .. } => Self::with(
                anyhow::anyhow!(
                    "{error}; is it running? `meridian up` starts a world here, --control-plane names another one"
                ),
                UNREACHABLE,
            ),
            OperatorError::NoLeader { .. } => Self::with(error, UNREACHABLE),
            OperatorError::OutcomeUnknown { .. } => Self::with(error, UNKNOWN),
            OperatorError::NotAUrl(_) => Self::with(error, USAGE),
            OperatorError::Rejected(_) => Self::with(error, 1),
        }
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        let code = match error {
            RecordError::NotRunning { .. } | RecordError::Starting { .. } => UNREACHABLE,
            RecordError::AlreadyRunning { .. } | RecordError::OtherVersion { .. } | RecordError::Io { .. } => 1,
        };
        Self::with(error, code)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::with(error, 1)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let code = match &error {
            CallError::Connect { .. } | CallError::ConnectTimeout { .. } => UNREACHABLE,
            _ => 1,
        };
        Self::with(error, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_can_tell_failures_apart() {
        let text = String::new;
        let code = |failure: Failure| failure.code.0;
        let (urls, why) = (text(), text());
        assert_eq!(code(OperatorError::Unreachable { urls, why }.into()), 5);
        let (urls, why) = (text(), text());
        assert_eq!(code(OperatorError::NoLeader { urls, why }.into()), 5);
        let (url, why, token) = (text(), text(), text());
        assert_eq!(code(OperatorError::OutcomeUnknown { url, why, token }.into()), 6);
        assert_eq!(code(OperatorError::Rejected("no such region".into()).into()), 1);
        let state_dir = std::path::PathBuf::from("/nowhere");
        assert_eq!(code(RecordError::NotRunning { state_dir }.into()), 5);
    }
}
