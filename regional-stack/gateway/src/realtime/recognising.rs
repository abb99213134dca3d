//! The utterances that the recognizer has of a session, in order and bounded.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use speech::Transcript;

use super::audio_input;
use crate::{
    stack::Stack,
    workers::{Done, JobError, Ticket},
};

/// An utterance at the recognizer.
#[derive(Serialize, Deserialize)]
pub(super) struct Hearing {
    pub(super) item: String,
    pub(super) seconds: f64,
    /// The place of its audio, from which another stack recognises it again.
    pub(super) source: Source,
    /// Whether it is the input of a response and no item of the conversation: the client gets no transcript.
    #[serde(default)]
    pub(super) aside: bool,
    /// None only while the session travels.
    #[serde(skip)]
    pub(super) ticket: Option<Ticket<Transcript>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Source {
    /// The input audio buffer.
    AudioInput { from: usize, samples: usize },
    /// A message of the client that holds the whole of it.
    Message(u64),
}

/// Most utterances of one session at the recognizer at once. With more the engines cannot follow, and the user no longer waits for the
/// first.
pub(super) const HEARING_MAX: usize = 4;

/// The utterances of one session.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Hearings(VecDeque<Hearing>);

impl Hearings {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of utterances that may be added.
    pub(super) fn free(&self) -> usize {
        HEARING_MAX.saturating_sub(self.0.len())
    }

    pub(super) fn has(&self, item: &str) -> bool {
        self.0.iter().any(|hearing| hearing.item == item)
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.0.iter().map(|hearing| hearing.source)
    }

    /// Has audio recognised; `aside` if it is no item of the conversation.
    pub(super) fn begin(
        &mut self,
        stack: &Stack,
        item: String,
        samples: Vec<f32>,
        source: Source,
        aside: bool,
    ) -> Result<(), JobError> {
        if self.free() == 0 {
            return Err(JobError::Busy);
        }
        let seconds = audio_input::seconds(&samples);
        let ticket = Some(stack.hear(samples)?);
        self.add(Hearing {
            item,
            seconds,
            source,
            aside,
            ticket,
        })
    }

    pub(super) fn add(&mut self, hearing: Hearing) -> Result<(), JobError> {
        if self.free() == 0 {
            return Err(JobError::Busy);
        }
        self.0.push_back(hearing);
        Ok(())
    }

    /// Takes out the first one, whose result has come.
    pub(super) fn take_first(&mut self) -> Option<Hearing> {
        self.0.pop_front()
    }

    /// Takes out all of them.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Hearing> + use<> {
        std::mem::take(&mut self.0).into_iter()
    }

    /// Waits for the result of the first one; for ever if there is none. Safe to drop and call again.
    pub(super) async fn result(&mut self) -> Result<Done<Transcript>, JobError> {
        match self.0.front_mut().and_then(|hearing| hearing.ticket.as_mut()) {
            Some(ticket) => ticket.result().await,
            None => std::future::pending().await,
        }
    }

    /// The first sample of the input audio buffer that one of them needs, or `end`.
    pub(super) fn needed_from(&self, end: usize) -> usize {
        let needed = self.sources().filter_map(|source| match source {
            Source::AudioInput { from, .. } => Some(from),
            Source::Message(_) => None,
        });
        needed.fold(end, usize::min)
    }

    /// The first message that one of them needs whole, or `next`.
    pub(super) fn needed_message(&self, next: u64) -> u64 {
        let needed = self.sources().filter_map(|source| match source {
            Source::AudioInput { .. } => None,
            Source::Message(message) => Some(message),
        });
        needed.fold(next, u64::min)
    }

    /// Recognises all of them again, one recording for each. Drops those that no engine takes, and returns them with the error.
    pub(super) fn begin_again(
        &mut self,
        heard: Vec<Vec<f32>>,
        hear: impl Fn(Vec<f32>) -> Result<Ticket<Transcript>, JobError>,
    ) -> Vec<(String, JobError)> {
        let mut refused = Vec::new();
        for (hearing, samples) in self.0.iter_mut().zip(heard) {
            match hear(samples) {
                Ok(ticket) => hearing.ticket = Some(ticket),
                Err(error) => refused.push((hearing.item.clone(), error)),
            }
        }
        self.0.retain(|hearing| hearing.ticket.is_some());
        refused
    }
}
