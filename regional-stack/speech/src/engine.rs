//! What a speech engine does. Engines are called from long-lived worker threads only, never from an async task.

/// What a recognizer heard in one utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// Lower-case words separated by single spaces; empty when nothing was heard.
    pub text: String,
    /// Mean probability of the chosen tokens, in 0..=1.
    pub confidence: f32,
}

/// Why an engine gave no result.
#[derive(Debug, thiserror::Error)]
pub enum SpeechError {
    /// More audio than one utterance may have.
    #[error("utterance of {seconds:.1} s is longer than the {limit_s:.0} s limit")]
    TooLong {
        /// Length of what was given.
        seconds: f32,
        /// Longest utterance accepted.
        limit_s: f32,
    },
    /// More text than one synthesis may have.
    #[error("text of {chars} characters is longer than the {limit} character limit")]
    TooMuchText {
        /// Length of what was given.
        chars: usize,
        /// Longest text accepted.
        limit: usize,
    },
    /// The engine itself failed.
    #[error("speech engine failed: {0}")]
    Engine(String),
}

/// Speech to text.
pub trait Recognizer: Send + Sync {
    /// Transcribes one whole utterance: mono samples in [-1, 1] at [`crate::SAMPLE_RATE`].
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError>;
}

/// Text to speech.
pub trait Synthesizer: Send + Sync {
    /// Speaks `text` at `speed` (1.0 is natural, 0.25..=4.0): mono samples in [-1, 1] at [`crate::SAMPLE_RATE`].
    fn synthesize(&self, text: &str, speed: f32) -> Result<Vec<f32>, SpeechError>;
}
