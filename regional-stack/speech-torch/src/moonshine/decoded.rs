//! The answer of Moonshine's network to one utterance.

/// The tokens, and the confidence in each, the end included.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) tokens: Vec<i64>,
    pub(super) log_probabilities: Vec<f32>,
    /// Whether the network ended the text itself. If not, the limit of tokens did.
    pub(super) ended: bool,
}
