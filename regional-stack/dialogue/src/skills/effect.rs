//! The outcome of a command that changes something.

/// The reply: `Ok` tells the change that was made, `Err` the reason why none was, which may be a question.
pub(super) type Effect = Result<String, String>;
