//! The route of a request, by its path.

use crate::{http1::upgrade::REALTIME, request::grpc};

/// Whether the edge may send a request to a region after another region got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Yes: the request only reads, and a region that lives answers at once.
    Quick,
    /// Yes: to transcribe or to speak something twice does no harm. The answer takes time.
    Slow,
    /// No: running it twice may differ from running it once.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Speech to text, by the path of the OpenAI API or of Meridian.
    Transcription,
    /// Text to speech, by the path of the OpenAI API or of Meridian.
    Speech,
    Audio,
    Models,
    Voice,
    VoiceGrpc,
    Health,
    Realtime,
    /// An operator's server, by `[[upstream]]`.
    Upstream,
    /// A browser asks whether a page may call.
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

    /// Whether the edge may repeat a request of this method at another region.
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

/// Whether regions serve a path, so that no `[[upstream]]` can take it.
pub fn is_ours(path: &str) -> bool {
    path.starts_with(grpc::VOICE) || Route::of(path, false) != Route::Nothing
}
