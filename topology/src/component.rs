//! The parts of a regional stack whose health is tracked, and the levels of degraded service.

use serde::{Deserialize, Serialize};

/// A part of a regional stack whose health is tracked separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::Display, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Component {
    /// Accepts connections and speaks the device protocols.
    Gateway,
    /// Automatic speech recognition: speech to text.
    Asr,
    /// Natural-language understanding: text to intent.
    Nlu,
    /// Speech synthesis: text to speech.
    Tts,
    /// The services that act on an intent.
    Skills,
    /// Stores the state of sessions.
    SessionStore,
}

impl Component {
    /// Every component, in the order in which a turn passes through them.
    pub const ALL: [Component; 6] = [
        Self::Gateway,
        Self::Asr,
        Self::Nlu,
        Self::Tts,
        Self::Skills,
        Self::SessionStore,
    ];

    /// The name in documents, metrics and tables.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The component with this name, as [`Component::as_str`] writes it.
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}

/// Degradation level of a region. Levels are ordered: a higher level offers the user less.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
)]
pub enum Level {
    /// Full service.
    #[default]
    L0,
    /// Speech is recognised at the edge.
    L1,
    /// The stack finds intents by patterns only.
    L2,
    /// Skills answer from their caches.
    L3,
    /// The device obeys offline commands only.
    L4,
    /// Safe mode.
    L5,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_documents() {
        let names = ["gateway", "asr", "nlu", "tts", "skills", "session-store"];
        assert_eq!(Component::ALL.map(Component::as_str), names);
        for (component, name) in Component::ALL.into_iter().zip(names) {
            assert_eq!(serde_json::to_value(component).unwrap(), name);
            assert_eq!(format!("{component:>14}"), format!("{name:>14}"), "tables pad it");
            assert_eq!(Component::parse(name), Some(component));
        }
        assert_eq!(Component::parse("ASR"), None);
        let levels = [Level::L0, Level::L1, Level::L2, Level::L3, Level::L4, Level::L5];
        assert_eq!(
            levels.map(|it| format!("{it:>3}")),
            [" L0", " L1", " L2", " L3", " L4", " L5"]
        );
    }
}
