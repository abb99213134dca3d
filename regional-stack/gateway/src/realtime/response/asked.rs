//! The request for a response: the item or question to answer, and options.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::realtime::{
    settings::Modality,
    tools::{Tool, ToolChoice},
};

/// A response that waits until the one before it is over.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::realtime) struct Asked {
    pub(in crate::realtime) answers: Option<String>,
    pub(in crate::realtime) modality: Modality,
    pub(in crate::realtime) wishes: Wishes,
}

impl Asked {
    pub(in crate::realtime) fn about(answers: Option<String>, modality: Modality) -> Self {
        Self {
            answers,
            modality,
            wishes: Wishes::default(),
        }
    }
}

/// The options of a `response.create`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::realtime) struct Wishes {
    /// It stays out of the conversation.
    pub(in crate::realtime) aside: bool,
    pub(in crate::realtime) metadata: Option<Map<String, Value>>,
    pub(in crate::realtime) tools: Option<Vec<Tool>>,
    pub(in crate::realtime) tool_choice: Option<ToolChoice>,
    /// The question to answer instead of an item of the conversation.
    pub(in crate::realtime) question: Option<Question>,
    /// How sure the recogniser is of the question's words; none for typed ones.
    #[serde(default, rename = "surety", skip_serializing_if = "Option::is_none")]
    pub(in crate::realtime) asr_confidence: Option<f32>,
}

/// A question that is no item of the conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::realtime) enum Question {
    Words(String),
    /// Words that were answered before. The assistant does not act on them a second time.
    Again(String),
    /// The output of a function.
    Output(String),
    /// The client gave a context with no question in it.
    Nothing,
}
