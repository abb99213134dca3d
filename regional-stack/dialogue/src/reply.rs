//! The sentences of the assistant.

/// The assistant's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Lower-case words separated by single spaces; empty if the assistant stays silent.
    pub text: String,
}
