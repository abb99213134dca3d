//! One response as a value: its question, its reply or call, the part that the client got, and its events.

mod asked;
mod describing;
mod events_of;
mod speaking;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub(super) use self::{
    asked::{Asked, Question, ResponseOptions},
    speaking::Speaking,
};
use super::{
    audio_input::WIRE_RATE,
    format::AudioFormat,
    items::{Content, Item},
    settings::Modality,
};

/// One response. Stacks of the previous release read it too, so new fields come with defaults.
#[derive(Serialize, Deserialize)]
pub(super) struct Response {
    pub(super) number: u64,
    pub(super) id: String,
    pub(super) item: String,
    /// The user's item it answers; none for a ringing timer.
    pub(super) answers: Option<String>,
    pub(super) modality: Modality,
    pub(super) stage: ResponseStage,
    /// The audio of the reply at the synthesizer; also of a reply that another region speaks again.
    #[serde(skip)]
    pub(super) speaking: Option<Speaking>,
    /// Length of the reply's audio, once it is known: a repetition must be as long.
    pub(super) samples: usize,
    /// The samples of it that the socket took.
    #[serde(default)]
    pub(super) sent: usize,
    /// Whether the client got its output item.
    pub(super) added: bool,
    /// The item before its own.
    #[serde(default)]
    pub(super) previous: Option<String>,
    pub(super) turn: Turn,
    /// Options of the client beyond the session's settings.
    #[serde(default, rename = "wishes")]
    pub(super) options: ResponseOptions,
    /// The function that it calls instead of a reply.
    #[serde(default)]
    pub(super) call: Option<Call>,
    /// The spoken words of an interrupted response.
    #[serde(skip)]
    pub(super) cut: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) call_id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ResponseStage {
    /// Waits for the words of its question.
    Waiting,
    Synthesizing,
    /// All events are in the outbox. Audio that did not travel may have to be spoken again.
    Sending,
}

/// The facts that `meridian.turn` reports.
#[derive(Serialize, Deserialize)]
pub(super) struct Turn {
    pub(super) number: u64,
    #[serde(skip, default = "Instant::now")]
    pub(super) at: Instant,
    pub(super) transcript: String,
    pub(super) intent: Cow<'static, str>,
    /// Whether a skill carried the intent out.
    #[serde(default)]
    pub(super) acted: bool,
    pub(super) slots: BTreeMap<Cow<'static, str>, String>,
    pub(super) reply: String,
    pub(super) asr: Option<Duration>,
    pub(super) nlu: Option<Duration>,
    pub(super) skill: Option<Duration>,
    pub(super) tts: Option<Duration>,
    pub(super) first_audio: Option<Duration>,
    /// Length of the speech that it answers; none for text.
    #[serde(default)]
    pub(super) heard_ms: Option<u64>,
}

impl Response {
    /// The format of its audio.
    pub(super) fn format(&self) -> AudioFormat {
        self.options.format.unwrap_or_default()
    }

    /// The spoken words of the reply, as far as the stack knows.
    fn said(&self) -> &str {
        self.cut.as_deref().unwrap_or(&self.turn.reply)
    }

    /// Cuts the reply to the part that the socket took. With audio, the share of the words is the sent share of the length.
    pub(super) fn cut_to_what_was_said(&mut self, unsent: &[String]) {
        let said = match self.modality {
            Modality::Text if unsent.iter().any(|kind| kind == "response.output_text.delta") => String::new(),
            Modality::Text => self.turn.reply.clone(),
            Modality::Audio => {
                let words: Vec<&str> = self.turn.reply.split_whitespace().collect();
                let count = (words.len() * self.sent).checked_div(self.samples).unwrap_or(0);
                words[..count.min(words.len())].join(" ")
            }
        };
        self.cut = Some(said);
    }

    /// The samples that the socket took, or will take.
    fn spoken_samples(&self) -> usize {
        if self.cut.is_some() { self.sent } else { self.samples }
    }

    /// The item of the response, for the conversation.
    pub(super) fn kept(&self) -> Item {
        if let Some(call) = &self.call {
            return Item::call(
                self.item.clone(),
                call.call_id.clone(),
                call.name.clone(),
                call.arguments.clone(),
            );
        }
        let content = match self.modality {
            Modality::Audio => Content::Audio,
            Modality::Text => Content::Text,
        };
        // Rounded up, because clients that count the samples themselves may do so too.
        let audio_ms = (self.spoken_samples() as u64 * 1000).div_ceil(u64::from(WIRE_RATE));
        Item {
            incomplete: self.cut.is_some(),
            ..Item::said(self.item.clone(), content, self.said().to_owned(), audio_ms)
        }
    }
}
