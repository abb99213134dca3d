//! The interface of speech engines. Only long-lived worker threads call an engine, never an async task.

use crate::texts;

/// The words that a recognizer found in one utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// Lower-case words, separated by single spaces. Empty when no words were found.
    pub text: String,
    /// The probability that the words are right, 0..=1. Each engine says how it computes that.
    pub confidence: f32,
}

impl Transcript {
    /// No words: silence, or sound that is no speech.
    pub fn nothing() -> Self {
        Self {
            text: String::new(),
            confidence: 0.0,
        }
    }
}

/// The reason for which an engine returned no result.
#[derive(Debug, thiserror::Error)]
pub enum SpeechError {
    /// The audio is longer than one utterance may be.
    #[error("{}", texts::too_long_to_hear(*seconds, *limit_s))]
    TooLong {
        /// Length of the audio.
        seconds: f32,
        /// Longest utterance that the engine accepts.
        limit_s: f32,
    },
    /// The text is longer than one synthesis allows.
    #[error("{}", texts::too_much_to_say(*chars, *limit))]
    TooMuchText {
        /// Length of the text, in characters.
        chars: usize,
        /// Longest text that the engine accepts, in characters.
        limit: usize,
    },
    /// The engine itself failed.
    #[error("{}", texts::engine_failed(.0))]
    Engine(String),
    /// The engine ran out of memory on its GPU.
    #[error("{}", texts::out_of_gpu_memory(.0))]
    GpuMemory(String),
}

impl SpeechError {
    /// Classifies an error of an engine's runtime by its text, because the runtimes have no codes. Recognises lack of
    /// memory in the texts of libtorch's allocator, of the CUDA runtime (cudaErrorMemoryAllocation) and of cuBLAS.
    pub fn of_engine(error: impl std::fmt::Display) -> Self {
        let text = error.to_string();
        let of_memory = [
            "CUDA out of memory",
            "CUDA error: out of memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ];
        if of_memory.iter().any(|words| text.contains(words)) {
            Self::GpuMemory(text)
        } else {
            Self::Engine(text)
        }
    }
}

/// Converts speech to text.
pub trait Recognizer: Send + Sync {
    /// Transcribes one whole utterance: mono samples in [-1, 1] at [`crate::SAMPLE_RATE`].
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError>;

    /// Name and version of the model, for people. Engines without a model have none.
    fn model(&self) -> String {
        String::new()
    }
}

/// Converts text to speech.
pub trait Synthesizer: Send + Sync {
    /// Speaks `text` at `speed` (1.0 is natural, 0.25..=4.0). Returns mono samples in [-1, 1] at
    /// [`crate::SAMPLE_RATE`].
    fn synthesize(&self, text: &str, speed: f32) -> Result<Vec<f32>, SpeechError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gpu_is_told_from_other_failures() {
        for (text, is_memory) in [
            (
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
                true,
            ),
            ("CUDA error: out of memory", true),
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                true,
            ),
            ("CUDA error: an illegal memory access was encountered", false),
            ("The size of tensor a (3) must match the size of tensor b (4)", false),
        ] {
            let error = SpeechError::of_engine(text);
            assert_eq!(matches!(error, SpeechError::GpuMemory(_)), is_memory, "{error}");
        }
    }
}
