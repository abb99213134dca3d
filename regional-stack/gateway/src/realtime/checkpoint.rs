//! A session as it travels between regions: written down in every checkpoint, and restored by the stack that goes on with it.
//!
//! A checkpoint goes out before any event that follows from it, and holds the unsent events. So the events that an edge passed on since
//! its last checkpoint are the first ones in the outbox of that checkpoint. A stack that restores it drops as many and sends the rest:
//! every event reaches the device once. Audio does not travel. The edge sends the device's audio again, and the new stack speaks the
//! reply again.

use std::{collections::VecDeque, sync::Arc};

use dialogue::DialogueState;
use serde::{Deserialize, Serialize};
use topology::Moment;
use wire::{Checkpoint, Resume, STATE_BYTES_MAX};

use super::{
    audio_input::{AudioInput, CarriedAudioInput, InputOffset, Rebuild},
    client::{Body, ClientEvent, NewItem, NewKind},
    conversation::Items,
    device::Device,
    edge_reports::EdgeReports,
    format::AudioFormat,
    input::Input,
    items::Item,
    outbox::{CarriedOutbox, Outbox},
    recognising::{Hearings, Source},
    reports::CheckpointReports,
    response::{Asked, Response},
    responses::{CarriedResponses, Responses},
    session::Session,
    settings::Settings,
    snapshot::Snapshot,
    sound::{self, sound_of},
};
use crate::{
    config::CheckpointVersion,
    form::{self, FormError, Packing, previous},
    ids::name_of,
    seal::{CheckpointKey, SEAL_BYTES},
    stack::Stack,
    store::{Memory, revision_after},
};

/// Most items that travel: enough for the user's "delete that", and for the turn in progress. Fewer travel if these do not fit.
const ITEMS_CARRIED: [usize; 2] = [16, 4];

/// The written state. It borrows from the session, so that writing copies it once.
#[derive(Serialize)]
struct Written<'a> {
    form: u32,
    form_needed: u32,
    id: &'a str,
    model: &'a str,
    settings: &'a Settings,
    #[serde(rename = "ear")]
    audio_input: CarriedAudioInput,
    audio_from: (u64, InputOffset),
    next_item: &'a Option<String>,
    items: Vec<&'a Item>,
    hearing: &'a Hearings,
    response: &'a Option<Box<Response>>,
    wanted: &'a VecDeque<String>,
    asked: &'a VecDeque<Asked>,
    /// The memory as the release before this one reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    dialogue: Option<previous::Dialogue>,
    /// The whole memory.
    memory: &'a DialogueState,
    revision: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    rung: &'a Option<String>,
    turns: u64,
    responses: u64,
    outbox: CarriedOutbox,
}

/// The state as this release reads it: its own, that of the release before, and later ones. Readers skip unknown fields. Missing fields
/// have a default, except those without which a session cannot exist.
#[derive(Deserialize)]
pub(super) struct Carried {
    #[serde(default = "form::first")]
    form: u32,
    #[serde(default = "form::first")]
    form_needed: u32,
    id: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    settings: Settings,
    #[serde(rename = "ear")]
    audio_input: CarriedAudioInput,
    audio_from: (u64, InputOffset),
    #[serde(default)]
    next_item: Option<String>,
    #[serde(default)]
    items: Items,
    #[serde(default)]
    hearing: Hearings,
    #[serde(default)]
    response: Option<Box<Response>>,
    #[serde(default)]
    wanted: VecDeque<String>,
    #[serde(default)]
    asked: VecDeque<Asked>,
    /// The memory of a release without zones.
    #[serde(default)]
    dialogue: Option<form::Remembered>,
    #[serde(default)]
    memory: Option<form::Remembered>,
    /// Older releases write none.
    #[serde(default = "never")]
    revision: Moment,
    #[serde(default)]
    rung: Option<String>,
    #[serde(default)]
    turns: u64,
    #[serde(default)]
    responses: u64,
    outbox: CarriedOutbox,
}

fn never() -> Moment {
    Moment(0)
}

impl Session {
    /// Sends checkpoints to the edge from here on, so that it can carry the session elsewhere.
    pub(super) fn begin_checkpoints(&mut self) {
        self.edge.checkpoints = Some(CheckpointReports::default());
    }

    /// Notes the time for the edge's checkpoints: one is due if the edge does not know the number of consumed messages.
    pub(super) fn note_report_time(&mut self, now: Moment) {
        let holds_alarm = self.device.dialogue.pending() > 0;
        if let Some(reports) = &mut self.edge.checkpoints {
            reports.note_time(self.consumed, holds_alarm, now);
        }
    }

    /// Time of the edge's last checkpoint on this connection.
    pub(super) fn last_checkpoint(&self) -> Option<Moment> {
        self.edge.checkpoints.as_ref().and_then(CheckpointReports::last)
    }

    /// Whether a checkpoint must go before the next event.
    pub(super) fn owes_checkpoint(&self) -> bool {
        self.edge.checkpoints.as_ref().is_some_and(|reports| {
            self.outbox.has_changed() || reports.is_due() || (reports.says_busy() && self.is_quiet())
        })
    }

    /// Whether the session could leave its edge or its region unnoticed now.
    fn is_quiet(&self) -> bool {
        self.is_between_turns() && !self.input.buffer.holds_uncommitted()
    }

    /// The checkpoint that goes next.
    pub(super) fn checkpoint(&mut self, key: &CheckpointKey, now: Moment) -> Vec<u8> {
        let busy = !self.is_quiet();
        let needed = self.hearing.needed_from(self.input.buffer.begin());
        let next = (self.consumed, self.input.buffer.offset());
        let Some(reports) = &mut self.edge.checkpoints else {
            return Vec::new();
        };
        let audio_from = reports.needed_from(needed, next);
        reports.note_checkpoint(self.consumed, busy, now);
        let state = self.state(audio_from).map(|state| key.seal(&state, now));
        let word = wire::Message::Checkpoint(Checkpoint {
            keep_from: self.hearing.needed_message(audio_from.0),
            consumed: self.consumed,
            busy,
            // Empty if the state does not fit, as with instructions of many pages: such a session cannot move.
            state: state.as_deref().unwrap_or_default(),
        });
        self.outbox.note_checkpoint();
        word.to_bytes()
    }

    /// The session in the first form that fits: plain, while stacks of the release before may run; else deflated. With all the items that
    /// travel, or with few.
    fn state(&self, audio_from: (u64, InputOffset)) -> Option<Vec<u8>> {
        let forms: &[Packing] = match self.stack.config.checkpoint_version {
            CheckpointVersion::One => &[Packing::Plain, Packing::Deflated],
            CheckpointVersion::Two => &[Packing::Deflated],
        };
        let choices = forms
            .iter()
            .flat_map(|form| ITEMS_CARRIED.map(|items_max| (*form, items_max)));
        choices.into_iter().find_map(|(packing, items_max)| {
            let state = serde_json::to_vec(&self.written(packing, items_max, audio_from)).ok()?;
            let state = packing.pack(state)?;
            (state.len() + SEAL_BYTES <= STATE_BYTES_MAX).then_some(state)
        })
    }

    fn written(&self, packing: Packing, items_max: usize, audio_from: (u64, InputOffset)) -> Written<'_> {
        let forgotten = self.items.len().saturating_sub(items_max);
        let responses = self.responses.carry();
        let dialogue = match packing {
            Packing::Plain => Some(previous::Dialogue::of(&self.device.dialogue)),
            Packing::Deflated => None,
        };
        Written {
            form: form::TODAY,
            form_needed: self.settings.form_needed(),
            id: &self.id,
            model: &self.model,
            settings: &self.settings,
            audio_input: self.input.buffer.carry(),
            audio_from,
            next_item: &self.input.item,
            items: self.items.iter().skip(forgotten).collect(),
            hearing: &self.hearing,
            response: responses.active,
            wanted: responses.wanted,
            asked: responses.asked,
            dialogue,
            memory: &self.device.dialogue,
            revision: self.device.revision,
            rung: &self.device.rung,
            turns: responses.turns,
            responses: responses.number,
            outbox: self.outbox.carry(),
        }
    }

    /// Resumes a session from another stack. `state` is the opened state of the resume message; `replay` are the client's messages from
    /// `resume.first` up to `resume.consumed`, which cause no events a second time.
    pub(super) fn restore(
        stack: &Arc<Stack>,
        state: &[u8],
        resume: &Resume<'_>,
        replay: &[String],
        now: Moment,
    ) -> Result<Self, RestoreError> {
        let carried = Carried::read(state)?;
        let rebuilt = if resume.is_broken {
            None
        } else {
            rebuild(stack, &carried, resume.first, replay)
        };
        let is_broken = rebuilt.is_none();
        let (audio_input, heard) = rebuilt.unwrap_or_else(|| {
            let turn_detection = carried.settings.turn_detection.as_ref();
            let audio_input = carried
                .audio_input
                .emptied(turn_detection, stack.config.limits.turn_max.0);
            (audio_input, Vec::new())
        });
        let lost_speech = is_broken && (carried.next_item.is_some() || !carried.audio_input.is_empty());
        let dialogue = carried.memory.or(carried.dialogue);
        let dialogue = dialogue.map_or_else(|| stack.new_dialogue(), |memory| memory.at(stack.config.home_city));
        let mut session = Self {
            stack: Arc::clone(stack),
            id: carried.id,
            model: carried.model,
            settings: carried.settings,
            input: Input::new(audio_input, carried.next_item),
            items: carried.items,
            hearing: carried.hearing,
            responses: Responses::restore(CarriedResponses {
                active: carried.response,
                wanted: carried.wanted,
                asked: carried.asked,
                turns: carried.turns,
                number: carried.responses,
            }),
            device: Device::new(dialogue, revision_after(carried.revision, now), carried.rung),
            outbox: Outbox::restore(carried.outbox),
            consumed: if resume.is_broken {
                resume.first
            } else {
                resume.consumed
            },
            edge: EdgeReports {
                checkpoints: Some(CheckpointReports::after(carried.audio_from)),
                ..EdgeReports::default()
            },
        };
        for _ in 0..resume.delivered {
            let delivered = session.outbox.pop().ok_or(RestoreError::Delivered)?;
            session.on_sent(&delivered, now);
        }
        session.speak_again();
        if is_broken {
            session.begin_checkpoints();
            if lost_speech || !session.hearing.is_empty() {
                session.ask_to_repeat(now);
            }
        } else {
            session.hear_again(heard, now);
        }
        Ok(session)
    }
}

impl Session {
    /// The memory in a session's last checkpoint, for a new connection; without the turn in progress.
    pub(super) fn remembered_in(stack: &Stack, state: &[u8]) -> Result<Memory, FormError> {
        Self::copied_in(stack, state).map(|(_, memory)| memory)
    }

    /// The session's name and the memory in its last checkpoint.
    pub(super) fn copied_in(stack: &Stack, state: &[u8]) -> Result<(String, Memory), FormError> {
        let carried = Carried::read(state)?;
        let name = name_of(&carried.id).to_owned();
        let dialogue = carried.memory.or(carried.dialogue);
        let memory = Memory {
            dialogue: dialogue.map_or_else(|| stack.new_dialogue(), |memory| memory.at(stack.config.home_city)),
            session: Snapshot {
                settings: carried.settings,
                items: carried.items,
            }
            .remember(),
            revision: carried.revision,
            may_go_on_elsewhere: false,
        };
        Ok((name, memory))
    }
}

/// The reason why a session cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error(transparent)]
    Unreadable(#[from] FormError),
    #[error("more events were delivered than the checkpoint holds")]
    Delivered,
}

impl Carried {
    /// Reads an opened state in any of its forms.
    pub(super) fn read(state: &[u8]) -> Result<Self, FormError> {
        let plain = form::unpack(state)?;
        let carried: Self = serde_json::from_slice(&plain)?;
        form::check(carried.form, carried.form_needed)?;
        if !carried.is_possible() {
            return Err(FormError::Impossible);
        }
        Ok(carried)
    }

    /// Whether a session can reach its counts and offsets, so that further counting does not overflow.
    fn is_possible(&self) -> bool {
        const MOST: usize = 1 << 48;
        let (message, place) = self.audio_from;
        let counts = [
            self.turns,
            self.responses,
            message,
            self.outbox.numbered(),
            self.revision.0,
        ];
        let heard = self.hearing.sources().all(|source| match source {
            Source::AudioInput { from, samples } => from < MOST && samples < MOST,
            Source::Message(message) => message < MOST as u64,
        });
        let is_placed = place.origin < MOST && place.bytes < MOST;
        heard && is_placed && self.audio_input.is_before(MOST) && counts.iter().all(|count| *count < MOST as u64)
    }
}

/// Restores a session from any bytes, as after a death in mid-turn and after an orderly end, and has it write its next checkpoint, which
/// must be readable. For the fuzzer.
pub(crate) fn restore_and_write(stack: &Arc<Stack>, state: &[u8]) {
    const NOW: Moment = Moment(1_795_257_300_000);
    for (is_broken, delivered) in [(false, 0), (true, 1)] {
        let resume = Resume {
            first: 0,
            consumed: 0,
            delivered,
            is_broken,
            state: &[],
        };
        let Ok(mut session) = Session::restore(stack, state, &resume, &[], NOW) else {
            continue;
        };
        session.ring(NOW);
        if let Some(written) = session.state((0, session.input.buffer.offset())) {
            match Carried::read(&written) {
                Ok(written) => assert!(written.form == form::TODAY && written.id == session.id),
                // Its counts passed the bound of a state.
                Err(FormError::Impossible) => {}
                Err(error) => panic!("what is written cannot be read: {error}"),
            }
        }
    }
}

/// The audio input, and the utterances at the recognizer; `None` if they were made of other messages.
fn rebuild(stack: &Stack, carried: &Carried, first: u64, replay: &[String]) -> Option<(AudioInput, Vec<Vec<f32>>)> {
    let (audio_from, place) = carried.audio_from;
    let format = carried.settings.input_format;
    let mut audio = Rebuild::at(place);
    let mut whole: Vec<(u64, Vec<f32>)> = Vec::new();
    for (message, text) in (first..).zip(replay) {
        let Ok(event) = ClientEvent::parse(text) else { continue };
        match event.body {
            Body::Append { audio: bytes } if message >= audio_from => {
                if let Ok(bytes) = sound::decode(&bytes) {
                    audio.append(&format.to_pcm(&bytes));
                }
            }
            Body::Commit | Body::Clear if message >= audio_from => audio.finish(),
            Body::ItemCreate { item, .. } => {
                whole.extend(sound_in(stack, format, &item).map(|samples| (message, samples)));
            }
            Body::ResponseCreate { response } => {
                let items = response.input.unwrap_or_default();
                let sounds = items.iter().filter_map(|item| sound_in(stack, format, item));
                whole.extend(sounds.map(|samples| (message, samples)));
            }
            _ => {}
        }
    }
    let heard = carried.hearing.sources().map(|source| match source {
        Source::AudioInput { from, samples } => audio.cut(from, samples),
        Source::Message(message) => {
            let at = whole.iter().position(|(found, _)| *found == message)?;
            Some(whole.remove(at).1)
        }
    });
    let heard = heard.collect::<Option<Vec<_>>>()?;
    let turn_detection = carried.settings.turn_detection.as_ref();
    let turn_max = stack.config.limits.turn_max.0;
    let audio_input = audio.into_audio_input(carried.audio_input.clone(), turn_detection, turn_max)?;
    Some((audio_input, heard))
}

fn sound_in(stack: &Stack, format: AudioFormat, item: &NewItem) -> Option<Vec<f32>> {
    let NewKind::Audio(audio) = &item.kind else { return None };
    sound_of(audio, format, stack.config.limits.turn_max.0).ok()
}

#[cfg(test)]
mod tests;
