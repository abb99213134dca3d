//! The sentences of the assistant.

/// The assistant's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Lower-case words separated by single spaces; empty if the assistant stays silent.
    pub text: String,
    /// Whether the command was carried out. It was not if the reply asks for something, refuses, or only tells.
    pub acted: bool,
}
