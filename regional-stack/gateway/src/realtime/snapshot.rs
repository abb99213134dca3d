//! Settings and items of a session, as the store keeps them beside the dialogue for a later connection.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{conversation::Items, settings::Settings};
use crate::texts as log;

/// Most items in a memory: enough for "delete that".
const ITEMS_REMEMBERED: usize = 16;
/// Largest memory with items; a larger one is kept without them: a stack has thousands of memories.
const REMEMBERED_BYTES_MAX: usize = 64 << 10;

/// The part of a session for a later connection.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Snapshot {
    pub(super) settings: Settings,
    pub(super) items: Items,
}

impl Snapshot {
    /// The snapshot as text.
    pub(super) fn remember(mut self) -> Option<Arc<str>> {
        // Utterances at the recognizer are lost with the connection.
        self.items.keep_known(ITEMS_REMEMBERED);
        let text = serde_json::to_string(&self).ok();
        let text = text.filter(|text| text.len() <= REMEMBERED_BYTES_MAX).or_else(|| {
            self.items.clear();
            serde_json::to_string(&self).ok()
        });
        text.map(Arc::from)
    }

    /// Reads the snapshot of an earlier connection. It is empty if this release cannot read it.
    pub(super) fn recall(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| {
            tracing::warn!(%error, "{}", log::SETTINGS_UNREADABLE);
            Self::default()
        })
    }
}
