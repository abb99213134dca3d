//! A session as it travels between regions: written down in every checkpoint, and restored by the stack that goes on with it.
//!
//! A checkpoint goes out before any event that follows from it, and holds the events not yet sent. So whatever an edge has
//! passed on since its last checkpoint are the first events of that checkpoint's outbox, and a stack that restores it drops
//! as many and sends the rest: every event reaches the device once. Audio does not travel. What was heard is sent again by
//! the edge, what was being spoken is spoken again.

use std::{collections::VecDeque, sync::Arc};

use dialogue::DialogueState;
use serde::{Deserialize, Serialize};
use topology::{
    Moment,
    words::{Checkpoint, Resume, STATE_BYTES_MAX, Word},
};

use super::{
    client::{Body, ClientEvent, NewItem},
    ear::{CarriedEar, Ear, Place, Rebuild},
    outbox::{CarriedOutbox, Outbox},
    session::{self, Hearing, Item, Response, Session, Source},
    settings::Settings,
    turns::Turns,
};
use crate::{
    seal::{CheckpointKey, SEAL_BYTES},
    stack::Stack,
};

/// Items that travel: enough for the user's "delete that", and for those of the turn in progress. Should they be too long,
/// fewer must do.
const ITEMS_CARRIED: [usize; 2] = [16, 4];

/// What the edge was told about a session.
#[derive(Default)]
pub(super) struct Reports {
    /// Where each message with audio begins, from the first that is still needed.
    trail: VecDeque<(u64, Place)>,
    consumed: u64,
    busy: bool,
    is_due: bool,
}

impl Reports {
    /// A message with audio comes.
    pub(super) fn note(&mut self, message: u64, place: Place) {
        self.trail.push_back((message, place));
    }

    /// The message, and where its audio begins, from which the ear can be rebuilt as it was from sample `needed` on.
    fn needed_from(&mut self, needed: usize, next: (u64, Place)) -> (u64, Place) {
        while self.trail.get(1).is_some_and(|(_, place)| place.exact_from() <= needed) {
            self.trail.pop_front();
        }
        if next.1.bytes == 0 && next.1.origin <= needed {
            self.trail.clear();
        }
        self.trail.front().copied().unwrap_or(next)
    }
}

/// What is written. Borrowed from the session, so that writing it down copies it once.
#[derive(Serialize)]
struct Written<'a> {
    id: &'a str,
    model: &'a str,
    settings: &'a Settings,
    ear: CarriedEar,
    audio_from: (u64, Place),
    next_item: &'a Option<String>,
    items: Vec<&'a Item>,
    hearing: &'a VecDeque<Hearing>,
    response: &'a Option<Response>,
    wanted: &'a VecDeque<String>,
    dialogue: &'a DialogueState,
    turns: u64,
    responses: u64,
    outbox: CarriedOutbox,
}

/// What is read: the same.
#[derive(Deserialize)]
struct Carried {
    id: String,
    model: String,
    settings: Settings,
    ear: CarriedEar,
    audio_from: (u64, Place),
    next_item: Option<String>,
    items: VecDeque<Item>,
    hearing: VecDeque<Hearing>,
    response: Option<Response>,
    wanted: VecDeque<String>,
    dialogue: DialogueState,
    turns: u64,
    responses: u64,
    outbox: CarriedOutbox,
}

impl Session {
    /// From here on the edge is told what it needs to carry the session elsewhere.
    pub(super) fn begin_reports(&mut self) {
        self.reports = Some(Reports::default());
    }

    /// Some time has passed: the edge may want to know how far the client's messages are consumed.
    pub(super) fn note_report_time(&mut self) {
        if let Some(reports) = &mut self.reports {
            reports.is_due = reports.consumed != self.consumed;
        }
    }

    /// Whether a checkpoint must go before the next event.
    pub(super) fn owes_checkpoint(&self) -> bool {
        self.reports
            .as_ref()
            .is_some_and(|reports| self.outbox.has_changed() || reports.is_due || (reports.busy && self.is_quiet()))
    }

    /// Whether nobody would notice if the session left its edge or its region now.
    fn is_quiet(&self) -> bool {
        self.is_between_turns() && !self.ear.holds_uncommitted()
    }

    /// The checkpoint that goes next.
    pub(super) fn checkpoint(&mut self, key: &CheckpointKey, now: Moment) -> Vec<u8> {
        let busy = !self.is_quiet();
        let needed = self.hearing.iter().filter_map(|hearing| match hearing.source {
            Source::Ear { from, .. } => Some(from),
            Source::Message(_) => None,
        });
        let needed = needed.fold(self.ear.begin(), usize::min);
        let next = (self.consumed, self.ear.place());
        let Some(reports) = &mut self.reports else {
            return Vec::new();
        };
        let audio_from = reports.needed_from(needed, next);
        (reports.consumed, reports.busy, reports.is_due) = (self.consumed, busy, false);
        let whole_messages = self.hearing.iter().filter_map(|hearing| match hearing.source {
            Source::Ear { .. } => None,
            Source::Message(message) => Some(message),
        });
        let state = ITEMS_CARRIED.iter().find_map(|items_max| {
            let state = serde_json::to_vec(&self.written(*items_max, audio_from)).ok()?;
            (state.len() + SEAL_BYTES <= STATE_BYTES_MAX).then(|| key.seal(&state, now))
        });
        let word = Word::Checkpoint(Checkpoint {
            keep_from: whole_messages.fold(audio_from.0, u64::min),
            consumed: self.consumed,
            busy,
            // Instructions of many pages, for one, do not fit: such a session stays where it is.
            state: state.as_deref().unwrap_or_default(),
        });
        self.outbox.note_checkpoint();
        word.to_bytes()
    }

    fn written(&self, items_max: usize, audio_from: (u64, Place)) -> Written<'_> {
        let forgotten = self.items.len().saturating_sub(items_max);
        Written {
            id: &self.id,
            model: &self.model,
            settings: &self.settings,
            ear: self.ear.carry(),
            audio_from,
            next_item: &self.next_item,
            items: self.items.iter().skip(forgotten).collect(),
            hearing: &self.hearing,
            response: &self.response,
            wanted: &self.wanted,
            dialogue: &self.dialogue,
            turns: self.turns,
            responses: self.responses,
            outbox: self.outbox.carry(),
        }
    }

    /// Goes on with a session that comes from another stack. `state` is the word's, opened; `replay` are the client's
    /// messages from `resume.first` up to `resume.consumed`, of which nothing is noticed a second time.
    pub(super) fn restore(
        stack: &Arc<Stack>,
        state: &[u8],
        resume: &Resume<'_>,
        replay: &[String],
        now: Moment,
    ) -> Result<Self, RestoreError> {
        let carried: Carried = serde_json::from_slice(state)?;
        let rebuilt = if resume.is_broken {
            None
        } else {
            rebuild(stack, &carried, resume.first, replay)
        };
        let is_broken = rebuilt.is_none();
        let (ear, heard) = rebuilt.unwrap_or_else(|| {
            let turn_detection = carried.settings.turn_detection.as_ref();
            let ear = carried
                .ear
                .emptied(turn_detection, stack.config.limits.turn_seconds_max);
            (ear, Vec::new())
        });
        let lost_speech = is_broken && (carried.next_item.is_some() || !carried.ear.is_empty());
        let mut session = Self {
            stack: Arc::clone(stack),
            id: carried.id,
            model: carried.model,
            settings: carried.settings,
            ear,
            next_item: carried.next_item,
            items: carried.items,
            hearing: carried.hearing,
            response: carried.response,
            wanted: carried.wanted,
            dialogue: carried.dialogue,
            unsaved: true,
            turns: carried.turns,
            responses: carried.responses,
            outbox: Outbox::restore(carried.outbox),
            consumed: if resume.is_broken {
                resume.first
            } else {
                resume.consumed
            },
            told: Turns::default(),
            reports: Some(Reports {
                trail: VecDeque::from([carried.audio_from]),
                ..Reports::default()
            }),
        };
        for _ in 0..resume.delivered {
            let delivered = session.outbox.pop().ok_or(RestoreError::Delivered)?;
            session.on_sent(&delivered, now);
        }
        session.speak_again();
        if is_broken {
            session.begin_reports();
            if lost_speech || !session.hearing.is_empty() {
                session.ask_to_repeat(now);
            }
        } else {
            session.hear_again(heard, now);
        }
        Ok(session)
    }
}

/// Why a session cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error("the state cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("more events were delivered than the checkpoint holds")]
    Delivered,
}

/// The ear, and the utterances that were being recognised; `None` if the messages are not those they were made of.
fn rebuild(stack: &Stack, carried: &Carried, first: u64, replay: &[String]) -> Option<(Ear, Vec<Vec<f32>>)> {
    let (audio_from, place) = carried.audio_from;
    let mut audio = Rebuild::at(place);
    let mut whole: Vec<(u64, Vec<f32>)> = Vec::new();
    for (message, text) in (first..).zip(replay) {
        let Ok(event) = ClientEvent::parse(text) else { continue };
        match event.body {
            Body::Append { audio: bytes } if message >= audio_from => {
                if let Ok(bytes) = session::decode(&bytes) {
                    audio.append(&bytes);
                }
            }
            Body::Commit | Body::Clear if message >= audio_from => audio.finish(),
            Body::ItemCreate { item } => whole.extend(sound_in(&item).map(|samples| (message, samples))),
            Body::ResponseCreate { response } => {
                let items = response.and_then(|response| response.input).unwrap_or_default();
                whole.extend(items.iter().filter_map(sound_in).map(|samples| (message, samples)));
            }
            _ => {}
        }
    }
    let heard = carried.hearing.iter().map(|hearing| match hearing.source {
        Source::Ear { from, samples } => audio.cut(from, samples),
        Source::Message(message) => {
            let at = whole.iter().position(|(found, _)| *found == message)?;
            Some(whole.remove(at).1)
        }
    });
    let heard = heard.collect::<Option<Vec<_>>>()?;
    let turn_detection = carried.settings.turn_detection.as_ref();
    let seconds_max = stack.config.limits.turn_seconds_max;
    let ear = audio.into_ear(carried.ear.clone(), turn_detection, seconds_max)?;
    Some((ear, heard))
}

fn sound_in(item: &NewItem) -> Option<Vec<f32>> {
    session::sound_of(item)?.ok()
}
