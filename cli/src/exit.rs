//! Errors of commands: one line with the remedy, and an exit code that tells programs the kind of failure.

use std::process::ExitCode;

use api::{OperatorError, join::JoinError, v1};
use client::CallError;
use world::{StartError, record::RecordError};

use crate::texts;

/// A safety rule of the control plane refused the request.
pub(crate) const REFUSED: u8 = 3;
/// The request needs a second person's approval.
const NEEDS_APPROVAL: u8 = 4;
/// The action was stopped by a guard or a person, or it expired.
const ABORTED: u8 = 8;
/// The command line is wrong.
const USAGE: u8 = 2;
/// No answer from the control plane, the edge or the world.
const UNREACHABLE: u8 = 5;
/// The request may or may not have been carried out.
const UNKNOWN: u8 = 6;
/// Ctrl-C: 128 + SIGINT, as shells report it.
pub(crate) const INTERRUPTED: u8 = 130;

/// An error with its exit code.
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
    /// A failure with no exit code of its own: 1.
    pub(crate) fn failed(error: anyhow::Error) -> Self {
        Self { error, code: Code(1) }
    }

    /// A usage error that clap cannot see, such as a name that the control plane does not know.
    pub(crate) fn usage(error: anyhow::Error) -> Self {
        Self {
            error,
            code: Code(USAGE),
        }
    }

    /// A process that should answer did not.
    pub(crate) fn unreachable(error: anyhow::Error) -> Self {
        Self::with(error, UNREACHABLE)
    }

    /// Whether a process that should answer did not.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.code == Code(UNREACHABLE)
    }

    fn with(error: impl Into<anyhow::Error>, code: u8) -> Self {
        Self {
            error: error.into(),
            code: Code(code),
        }
    }
}

/// The exit code for the outcome of a request.
pub(crate) fn of_outcome(outcome: v1::Outcome) -> ExitCode {
    match outcome {
        v1::Outcome::AwaitingApproval => NEEDS_APPROVAL.into(),
        v1::Outcome::Refused => REFUSED.into(),
        v1::Outcome::Done | v1::Outcome::Running | v1::Outcome::Unspecified => ExitCode::SUCCESS,
    }
}

/// The exit code for the phase in which `wait` left an action.
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
            OperatorError::Unreachable { .. } => Self::with(texts::no_control_plane(&error), UNREACHABLE),
            OperatorError::NoLeader { .. } => Self::with(error, UNREACHABLE),
            OperatorError::OutcomeUnknown { .. } => Self::with(error, UNKNOWN),
            OperatorError::NotAUrl(_) => Self::with(error, USAGE),
            OperatorError::Rejected(_) => Self::with(error, 1),
        }
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        let code = match error {
            JoinError::Unanswered(_) => UNREACHABLE,
            JoinError::Key(_) | JoinError::Refused { .. } | JoinError::Wrong { .. } => 1,
        };
        Self::with(error, code)
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
        match error.advice() {
            Some(advice) => Self::with(texts::call_failed(&error, advice), code),
            None => Self::with(error, code),
        }
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
        assert_eq!(code(JoinError::Unanswered(text()).into()), 5);
        let (url, why) = (text(), text());
        assert_eq!(code(JoinError::Refused { url, why }.into()), 1);
        let state_dir = std::path::PathBuf::from("/nowhere");
        assert_eq!(code(RecordError::NotRunning { state_dir }.into()), 5);
    }
}
