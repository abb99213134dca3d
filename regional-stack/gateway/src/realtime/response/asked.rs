//! The request for a response: the item or question to answer, and options.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::realtime::{
    format::AudioFormat,
    settings::Modality,
    tools::{Tool, ToolChoice},
};

/// A response that waits for the one before it.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::realtime) struct Asked {
    pub(in crate::realtime) answers: Option<String>,
    pub(in crate::realtime) modality: Modality,
    // Checkpoints have it under this name.
    #[serde(rename = "wishes")]
    pub(in crate::realtime) options: ResponseOptions,
}

impl Asked {
    pub(in crate::realtime) fn about(answers: Option<String>, modality: Modality) -> Self {
        Self {
            answers,
            modality,
            options: ResponseOptions::default(),
        }
    }
}

/// The options of a `response.create`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::realtime) struct ResponseOptions {
    /// Whether the response stays out of the conversation.
    pub(in crate::realtime) aside: bool,
    pub(in crate::realtime) metadata: Option<Map<String, Value>>,
    /// The format of its audio; 24 kHz PCM if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::realtime) format: Option<AudioFormat>,
    pub(in crate::realtime) tools: Option<Vec<Tool>>,
    pub(in crate::realtime) tool_choice: Option<ToolChoice>,
    /// The question to answer instead of an item of the conversation.
    pub(in crate::realtime) question: Option<Question>,
    /// The recognizer's confidence in the question's words; none for typed ones.
    #[serde(default, rename = "surety", skip_serializing_if = "Option::is_none")]
    pub(in crate::realtime) asr_confidence: Option<f32>,
}

/// A question that is no item of the conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::realtime) enum Question {
    Words(String),
    /// Words that have an answer already. The assistant does not act on them a second time.
    Again(String),
    /// The output of a function.
    Output(String),
    /// A context without a question.
    Nothing,
}
