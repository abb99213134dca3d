//! What health is tracked on, and how far service is degraded.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of a regional stack whose health is tracked on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// Accepts connections, speaks the device protocols.
    Gateway,
    /// Speech to text.
    Asr,
    /// Text to intent.
    Nlu,
    /// Text to speech.
    Tts,
    /// What acts on an intent.
    Skills,
    /// Keeps the state of sessions.
    SessionStore,
}

impl Component {
    /// Every component, in the order of a turn.
    pub const ALL: [Component; 6] = [
        Self::Gateway,
        Self::Asr,
        Self::Nlu,
        Self::Tts,
        Self::Skills,
        Self::SessionStore,
    ];

    /// The name used in documents, metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Asr => "asr",
            Self::Nlu => "nlu",
            Self::Tts => "tts",
            Self::Skills => "skills",
            Self::SessionStore => "session-store",
        }
    }

    /// The component of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|component| component.as_str() == name)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Degradation level of a region; ordered, a higher one gives the caller less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Level {
    /// Normal.
    #[default]
    L0,
    /// Speech is recognised at the edge.
    L1,
    /// Intents come from patterns only.
    L2,
    /// Skills answer from caches.
    L3,
    /// Offline commands only.
    L4,
    /// Safe mode.
    L5,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::L0 => "L0",
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
            Self::L4 => "L4",
            Self::L5 => "L5",
        })
    }
}
