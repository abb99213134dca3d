//! The kinds of requests by their paths.

use crate::{http1::upgrade::REALTIME, request::grpc};

/// Whether a request may be asked of a region after another one got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads, and a region that lives answers at once.
    Quick,
    /// A recording is heard twice, or a text spoken twice, at no harm. It takes its time.
    Slow,
    /// Doing it twice may not be like doing it once.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Speech to text, of the OpenAI API or our own.
    Transcription,
    /// Text to speech, of the OpenAI API or our own.
    Speech,
    Audio,
    Models,
    Voice,
    VoiceGrpc,
    Health,
    Realtime,
    /// A path of the operator's.
    Upstream,
    /// A browser asks whether a page may ask something.
    Preflight,
    Nothing,
}

impl Route {
    pub(crate) fn of(path: &str, is_grpc: bool) -> Self {
        match path {
            "/health" => Self::Health,
            "/v1/models" => Self::Models,
            REALTIME => Self::Realtime,
            "/v1/audio/transcriptions" | "/api/v1/voice/transcribe" => Self::Transcription,
            "/v1/audio/speech" | "/api/v1/voice/synthesize" => Self::Speech,
            _ if path.starts_with(grpc::VOICE) && is_grpc => Self::VoiceGrpc,
            _ if path.starts_with("/v1/audio/") => Self::Audio,
            _ if path.starts_with("/v1/models/") => Self::Models,
            _ if path.starts_with("/api/v1/voice/") => Self::Voice,
            _ => Self::Nothing,
        }
    }

    /// Whether a request of this method may be asked of a region after another one got it.
    pub(crate) fn repeat(self, method: &str) -> Repeat {
        match (method, self) {
            ("GET" | "HEAD", _) => Repeat::Quick,
            ("POST", Self::Transcription | Self::Speech) => Repeat::Slow,
            _ => Repeat::Never,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Transcription => "transcription",
            Self::Audio | Self::Speech => "audio",
            Self::Models => "models",
            Self::Voice => "voice",
            Self::VoiceGrpc => "voice-grpc",
            Self::Health => "health",
            Self::Realtime => "realtime",
            Self::Upstream => "upstream",
            Self::Preflight => "preflight",
            Self::Nothing => "nothing",
        }
    }
}

/// Whether a path is served by regions, so that no operator's group of servers can take it.
pub fn is_ours(path: &str) -> bool {
    path.starts_with(grpc::VOICE) || Route::of(path, false) != Route::Nothing
}
