//! One Realtime session: the protocol's state machine. It is fed client events and engine results, and puts what is to be
//! sent into its outbox; it never waits for a socket.
//!
//! One utterance is one turn: it is committed, recognised, interpreted, acted upon and answered. At most one response is
//! active at a time; cancelling it drops its engine job and takes back what is not sent yet.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use dialogue::DialogueState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use speech::{SAMPLE_RATE, Transcript, pcm, resample::resample};
use topology::{Component, Moment, words};
use uuid::Uuid;

use super::{
    checkpoint::Reports,
    client::{Body, ClientEvent, NewItem, NewResponse},
    ear::{self, Ear, Noticed, Utterance, WIRE_RATE},
    events::{self, Place},
    outbox::{Frame, Outbox},
    settings::{Modality, Settings, TurnDetection},
    turns::Turns,
};
use crate::{
    error::{ApiError, GPU_MEMORY, REPEAT},
    metrics::{Stage, StageLabels, TurnLabels, TurnOutcome},
    spoken,
    stack::Stack,
    workers::{Done, JobError, Ticket},
};

/// A session.
pub(super) struct Session {
    pub(super) stack: Arc<Stack>,
    pub(super) id: String,
    pub(super) model: String,
    pub(super) settings: Settings,
    pub(super) ear: Ear,
    /// Id of the item that the utterance in progress will become; clients are told it when speech starts.
    pub(super) next_item: Option<String>,
    pub(super) items: VecDeque<Item>,
    /// Utterances being recognised, in order.
    pub(super) hearing: VecDeque<Hearing>,
    pub(super) response: Option<Response>,
    /// Items to answer once the current response is over; only when the client does not want to be able to interrupt.
    pub(super) wanted: VecDeque<String>,
    pub(super) dialogue: DialogueState,
    /// Whether `dialogue` changed since it was last saved.
    pub(super) unsaved: bool,
    pub(super) turns: u64,
    pub(super) responses: u64,
    pub(super) outbox: Outbox,
    /// Messages of the client so far.
    pub(super) consumed: u64,
    /// What the edge is told of turns.
    pub(super) told: Turns,
    /// What the edge was told, when it can carry the session to another region.
    pub(super) reports: Option<Reports>,
}

/// A message of the conversation.
#[derive(Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) id: String,
    role: Role,
    content: Content,
    /// What was said or written; unknown while it is recognised.
    text: Option<String>,
    /// Whether a response was already given to it.
    answered: bool,
    /// When the user had finished it.
    #[serde(skip, default = "Instant::now")]
    at: Instant,
    /// How long recognition took.
    asr: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Role {
    User,
    Assistant,
    System,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Content {
    Audio,
    Text,
}

/// An utterance being recognised.
#[derive(Serialize, Deserialize)]
pub(super) struct Hearing {
    pub(super) item: String,
    seconds: f64,
    /// Where its audio can be found again.
    pub(super) source: Source,
    /// None only while the session travels.
    #[serde(skip)]
    ticket: Option<Ticket<Transcript>>,
}

/// Where audio came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Source {
    /// The input audio buffer.
    Ear { from: usize, samples: usize },
    /// A message of the client that holds the whole of it.
    Message(u64),
}

/// The response being made.
#[derive(Serialize, Deserialize)]
pub(super) struct Response {
    number: u64,
    id: String,
    item: String,
    /// The user's item it answers; none for a ringing timer.
    answers: Option<String>,
    modality: Modality,
    stage: ResponseStage,
    /// Audio being made of the reply; also of a reply that is spoken again in another region.
    #[serde(skip)]
    speaking: Option<Ticket<Vec<f32>>>,
    /// Length of the reply's audio, once it is known: spoken again it has to be as long.
    samples: usize,
    /// Whether the client was told of its output item.
    added: bool,
    turn: Turn,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum ResponseStage {
    /// For the transcript of what it answers.
    Waiting,
    Synthesizing,
    /// Everything is in the outbox, though audio that travelled may have to be spoken again.
    Sending,
}

/// What `meridian.turn` reports.
#[derive(Serialize, Deserialize)]
struct Turn {
    number: u64,
    #[serde(skip, default = "Instant::now")]
    at: Instant,
    transcript: String,
    intent: Cow<'static, str>,
    slots: BTreeMap<Cow<'static, str>, String>,
    reply: String,
    asr: Option<Duration>,
    nlu: Option<Duration>,
    skill: Option<Duration>,
    tts: Option<Duration>,
    first_audio: Option<Duration>,
}

/// What an engine came to.
pub(super) enum EngineResult {
    Heard(Result<Done<Transcript>, JobError>),
    Spoken(Result<Done<Vec<f32>>, JobError>),
}

/// Older items are forgotten: the dialogue needs none of them, they are only kept to be retrieved and truncated.
const ITEMS_MAX: usize = 64;
/// Utterances of one session being recognised at once. More means that the engines cannot follow, and the user has long
/// stopped waiting for the first.
const HEARING_MAX: usize = 4;
/// Below this there is nothing to recognise; the protocol's own limit.
const COMMIT_MS_MIN: u64 = 100;
/// Length of one audio delta: short enough to start playing at once and to stop quickly, long enough that base64 and
/// JSON stay small beside it.
const DELTA_MS: usize = 200;

impl Session {
    pub(super) fn new(stack: Arc<Stack>, id: String, model: String, dialogue: DialogueState) -> Self {
        let settings = Settings::default();
        let ear = Ear::new(settings.turn_detection.as_ref(), stack.config.limits.turn_seconds_max);
        let mut session = Self {
            stack,
            id,
            model,
            settings,
            ear,
            next_item: None,
            items: VecDeque::new(),
            hearing: VecDeque::new(),
            response: None,
            wanted: VecDeque::new(),
            dialogue,
            unsaved: false,
            turns: 0,
            responses: 0,
            outbox: Outbox::default(),
            consumed: 0,
            told: Turns::default(),
            reports: None,
        };
        session.outbox.push(events::session_created(&session.describe()));
        session
    }

    fn describe(&self) -> Value {
        self.settings.describe(&self.id, &self.model)
    }

    /// Whether nothing is under way: a good moment to close.
    pub(super) fn is_between_turns(&self) -> bool {
        self.response.is_none()
            && self.hearing.is_empty()
            && !self.ear.is_hearing_speech()
            && self.wanted.is_empty()
            && self.outbox.is_empty()
    }

    /// The device's memory, if it changed since this was last called.
    pub(super) fn take_unsaved(&mut self) -> Option<DialogueState> {
        std::mem::take(&mut self.unsaved).then(|| self.dialogue.clone())
    }

    /// Waits for the next engine result; for ever when nothing is under way. Safe to drop and call again.
    pub(super) async fn engine_result(&mut self) -> EngineResult {
        let hearing = self.hearing.front_mut();
        let heard = async {
            match hearing.and_then(|hearing| hearing.ticket.as_mut()) {
                Some(ticket) => ticket.result().await,
                None => std::future::pending().await,
            }
        };
        let response = self.response.as_mut();
        let spoken = async {
            match response.and_then(|response| response.speaking.as_mut()) {
                Some(ticket) => ticket.result().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = heard => EngineResult::Heard(result),
            result = spoken => EngineResult::Spoken(result),
        }
    }

    /// Takes what [`Session::engine_result`] gave.
    pub(super) fn on_engine_result(&mut self, result: EngineResult, now: Moment) {
        match result {
            EngineResult::Heard(result) => self.on_heard(result, now),
            EngineResult::Spoken(result) => self.on_spoken(result),
        }
    }

    /// Takes a message of the client.
    pub(super) fn on_message(&mut self, text: &str, now: Moment) {
        self.take_message(text, now);
        self.consumed += 1;
    }

    fn take_message(&mut self, text: &str, now: Moment) {
        let event = match ClientEvent::parse(text) {
            Ok(event) => event,
            Err(error) => {
                let about = error.event_id.as_deref();
                self.outbox.push(events::error(
                    "invalid_request_error",
                    error.code,
                    &error.message,
                    error.param,
                    about,
                ));
                return;
            }
        };
        let about = event.event_id.as_deref();
        if let Err(refusal) = self.on_event(event.body, now) {
            self.outbox.push(events::error(
                refusal.kind,
                refusal.code,
                &refusal.message,
                refusal.param,
                about,
            ));
        }
    }

    /// Refuses a message that is not text.
    pub(super) fn on_binary(&mut self) {
        self.consumed += 1;
        let message =
            "binary messages are not part of this protocol; send audio as base64 in input_audio_buffer.append";
        self.outbox.push(events::error(
            "invalid_request_error",
            "invalid_message",
            message,
            None,
            None,
        ));
    }

    fn on_event(&mut self, event: Body, now: Moment) -> Result<(), Refusal> {
        match event {
            Body::SessionUpdate { session } => self.update(&session),
            Body::Append { audio } => self.append(&audio, now),
            Body::Commit => self.commit(now),
            Body::Clear => {
                self.ear.clear();
                self.next_item = None;
                self.outbox.push(events::cleared());
                Ok(())
            }
            Body::ItemCreate { item } => self.create_item(&item).map(|_| ()),
            Body::ItemDelete { item_id } => {
                let at = self.position(&item_id)?;
                self.items.remove(at);
                self.outbox.push(events::item_deleted(&item_id));
                Ok(())
            }
            Body::ItemRetrieve { item_id } => {
                let at = self.position(&item_id)?;
                self.outbox
                    .push(events::item_retrieved(&self.items[at].describe("completed")));
                Ok(())
            }
            Body::ItemTruncate {
                item_id,
                content_index,
                audio_end_ms,
            } => {
                let at = self.position(&item_id)?;
                if self.items[at].role != Role::Assistant {
                    return Err(Refusal::invalid(
                        "invalid_value",
                        "item_id",
                        "only items of the assistant can be truncated",
                    ));
                }
                // What was heard of the reply is not known word by word; the protocol drops the text, and so do we.
                self.items[at].text = None;
                self.outbox
                    .push(events::item_truncated(&item_id, content_index, audio_end_ms));
                Ok(())
            }
            Body::Playback { underruns } => {
                self.told.underran(underruns);
                Ok(())
            }
            Body::ResponseCreate { response } => self.create_response(response.unwrap_or_default(), now),
            Body::ResponseCancel { response_id } => match &self.response {
                Some(active) if response_id.as_ref().is_none_or(|id| *id == active.id) => {
                    self.cancel("client_cancelled");
                    self.next_wanted(now);
                    Ok(())
                }
                _ => Err(Refusal::invalid(
                    "response_cancel_not_active",
                    "response_id",
                    "there is no such active response; it may have ended already",
                )),
            },
        }
    }

    fn update(&mut self, change: &Value) -> Result<(), Refusal> {
        let new = self
            .settings
            .updated(change)
            .map_err(|error| Refusal::invalid("invalid_value", error.param, error.message))?;
        if new.turn_detection != self.settings.turn_detection {
            self.ear.detect(new.turn_detection.as_ref());
        }
        self.settings = new;
        self.outbox.push(events::session_updated(&self.describe()));
        Ok(())
    }

    fn append(&mut self, audio: &str, now: Moment) -> Result<(), Refusal> {
        let bytes = decode(audio)?;
        if let Some(reports) = &mut self.reports {
            reports.note(self.consumed, self.ear.place());
        }
        let noticed = self.ear.append(&bytes).map_err(|_| {
            let message = format!(
                "the audio buffer holds {} s, the most one turn may have; commit or clear it",
                self.stack.config.limits.turn_seconds_max
            );
            Refusal::invalid("input_audio_buffer_full", "audio", message)
        })?;
        for noticed in noticed {
            match noticed {
                Noticed::Started { at_ms } => {
                    let item = new_id("item");
                    self.outbox.push(events::speech_started(&item, at_ms));
                    self.next_item = Some(item);
                    if self.turn_detection().interrupt_response {
                        self.wanted.clear();
                        self.cancel("turn_detected");
                    }
                }
                Noticed::Stopped { at_ms, utterance } => {
                    let item = self.next_item.take().unwrap_or_else(|| new_id("item"));
                    self.outbox.push(events::speech_stopped(&item, at_ms));
                    let answer = self.turn_detection().create_response;
                    self.take_utterance(item.clone(), utterance)?;
                    if answer {
                        self.want(item, now);
                    }
                }
            }
        }
        Ok(())
    }

    fn turn_detection(&self) -> TurnDetection {
        self.settings.turn_detection.unwrap_or_default()
    }

    fn commit(&mut self, now: Moment) -> Result<(), Refusal> {
        let utterance = self.ear.commit();
        let item = self.next_item.take().unwrap_or_else(|| new_id("item"));
        let heard_ms = (ear::seconds(&utterance.samples) * 1000.0) as u64;
        if heard_ms < COMMIT_MS_MIN {
            let message = format!(
                "the audio buffer holds {heard_ms} ms, at least {COMMIT_MS_MIN} ms are needed; append audio before committing"
            );
            return Err(Refusal::invalid("input_audio_buffer_commit_empty", "audio", message));
        }
        self.take_utterance(item.clone(), utterance)?;
        // With turn detection on, answering is the server's business also when the client was quicker to commit.
        if self
            .settings
            .turn_detection
            .is_some_and(|detection| detection.create_response)
        {
            self.want(item, now);
        }
        Ok(())
    }

    /// Makes an utterance an item and has it recognised.
    fn take_utterance(&mut self, item: String, utterance: Utterance) -> Result<(), Refusal> {
        self.outbox.push(events::committed(&item, self.last_item()));
        let Utterance { from, samples } = utterance;
        let source = Source::Ear {
            from,
            samples: samples.len(),
        };
        self.recognise(item, samples, source)
    }

    fn recognise(&mut self, item: String, samples: Vec<f32>, source: Source) -> Result<(), Refusal> {
        let seconds = ear::seconds(&samples);
        self.add_item(Item {
            id: item.clone(),
            role: Role::User,
            content: Content::Audio,
            text: None,
            answered: false,
            at: Instant::now(),
            asr: None,
        });
        let submitted = if self.hearing.len() < HEARING_MAX {
            self.stack.hear(samples)
        } else {
            Err(JobError::Busy)
        };
        match submitted {
            Ok(ticket) => {
                self.hearing.push_back(Hearing {
                    item,
                    seconds,
                    source,
                    ticket: Some(ticket),
                });
                Ok(())
            }
            Err(error) => {
                let error = ApiError::from(error);
                self.outbox
                    .push(events::transcription_failed(&item, error.code, &error.message));
                Err(Refusal {
                    kind: error.kind(),
                    code: error.code,
                    param: None,
                    message: error.message,
                })
            }
        }
    }

    fn on_heard(&mut self, result: Result<Done<Transcript>, JobError>, now: Moment) {
        let Some(Hearing { item: id, seconds, .. }) = self.hearing.pop_front() else {
            return;
        };
        match result {
            Ok(done) => {
                self.observe(Stage::asr, done.took);
                let text = done.output.text;
                if !text.is_empty() {
                    self.outbox.push(events::transcription_delta(&id, &text));
                }
                self.outbox.push(events::transcription_completed(&id, &text, seconds));
                if let Some(item) = self.items.iter_mut().find(|item| item.id == id) {
                    item.text = Some(text);
                    item.asr = Some(done.took);
                }
                if self.is_waiting_for(&id) {
                    self.answer(now);
                }
            }
            Err(error) => self.not_heard(&id, &error.into(), now),
        }
    }

    fn is_waiting_for(&self, item: &str) -> bool {
        self.response.as_ref().is_some_and(|response| {
            response.stage == ResponseStage::Waiting && response.answers.as_deref() == Some(item)
        })
    }

    /// An utterance will not be recognised, so it will not be answered either.
    fn not_heard(&mut self, item: &str, error: &ApiError, now: Moment) {
        let (session, code) = (&self.id, error.code);
        tracing::warn!(session, item, code, "transcription failed: {}", error.message);
        self.outbox
            .push(events::transcription_failed(item, error.code, &error.message));
        if self.is_waiting_for(item) {
            self.fail(error, Component::Asr);
            self.next_wanted(now);
        } else if error.code == GPU_MEMORY {
            self.told.ran_out_of_gpu_memory();
        }
    }

    /// Hears again what was being recognised when the session left its region: one entry for each utterance.
    pub(super) fn hear_again(&mut self, heard: Vec<Vec<f32>>, now: Moment) {
        let mut busy = Vec::new();
        for (hearing, samples) in self.hearing.iter_mut().zip(heard) {
            match self.stack.hear(samples) {
                Ok(ticket) => hearing.ticket = Some(ticket),
                Err(error) => busy.push((hearing.item.clone(), error)),
            }
        }
        self.hearing.retain(|hearing| hearing.ticket.is_some());
        for (item, error) in busy {
            self.not_heard(&item, &error.into(), now);
        }
    }

    /// What the user was saying, or had just said, is lost.
    pub(super) fn ask_to_repeat(&mut self, now: Moment) {
        let error = ApiError::new(
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            REPEAT,
            "the region was lost, and what was said last with it; say it again",
        );
        self.next_item = None;
        self.outbox.push(events::cleared());
        for hearing in std::mem::take(&mut self.hearing) {
            self.not_heard(&hearing.item, &error, now);
        }
    }

    /// Speaks again what was being spoken when the session left its region.
    pub(super) fn speak_again(&mut self) {
        let lacks_audio = self.outbox.lacks_audio();
        let Some(response) = &mut self.response else { return };
        if response.stage == ResponseStage::Synthesizing || lacks_audio {
            self.speak();
        }
    }

    fn create_item(&mut self, new: &NewItem) -> Result<String, Refusal> {
        if new.kind.as_deref().is_some_and(|kind| kind != "message") {
            return Err(Refusal::invalid(
                "invalid_value",
                "item.type",
                "only items of type \"message\" exist here",
            ));
        }
        let role = match new.role.as_deref() {
            None | Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("system") => Role::System,
            Some(_) => {
                return Err(Refusal::invalid(
                    "invalid_value",
                    "item.role",
                    "use user, assistant or system",
                ));
            }
        };
        let id = new
            .id
            .clone()
            .filter(|id| (1..=64).contains(&id.len()))
            .unwrap_or_else(|| new_id("item"));
        if self.items.iter().any(|item| item.id == id) {
            return Err(Refusal::invalid(
                "invalid_value",
                "item.id",
                "there is an item with this id; choose another",
            ));
        }
        if let Some(samples) = sound_of(new) {
            let samples = samples?;
            if ((ear::seconds(&samples) * 1000.0) as u64) < COMMIT_MS_MIN {
                return Err(Refusal::invalid(
                    "invalid_value",
                    "item.content",
                    "the audio is too short to be speech",
                ));
            }
            self.recognise(id.clone(), samples, Source::Message(self.consumed))?;
            return Ok(id);
        }
        let texts: Vec<&str> = new.content.iter().filter_map(|part| part.text.as_deref()).collect();
        let text = texts.join(" ");
        if text.is_empty() {
            let message = "the item has no content; add {\"type\": \"input_text\", \"text\": …}";
            return Err(Refusal::invalid("missing_required_parameter", "item.content", message));
        }
        if text.chars().count() > self.stack.config.limits.speech_chars_max {
            return Err(Refusal::invalid(
                "string_above_max_length",
                "item.content",
                "the text is too long; shorten it",
            ));
        }
        self.add_item(Item {
            id: id.clone(),
            role,
            content: Content::Text,
            text: Some(text),
            answered: role != Role::User,
            at: Instant::now(),
            asr: None,
        });
        Ok(id)
    }

    fn add_item(&mut self, item: Item) {
        let previous = self.last_item().map(str::to_owned);
        let described = item.describe("completed");
        self.outbox.push(events::item_added(&described, previous.as_deref()));
        self.outbox.push(events::item_done(&described, previous.as_deref()));
        self.remember(item);
    }

    fn remember(&mut self, item: Item) {
        if self.items.len() >= ITEMS_MAX {
            self.items.pop_front();
        }
        self.items.push_back(item);
    }

    fn last_item(&self) -> Option<&str> {
        self.items.back().map(|item| item.id.as_str())
    }

    fn position(&self, id: &str) -> Result<usize, Refusal> {
        self.items.iter().position(|item| item.id == id).ok_or_else(|| {
            Refusal::invalid(
                "item_not_found",
                "item_id",
                "there is no item with this id; it may have been forgotten",
            )
        })
    }

    fn create_response(&mut self, new: NewResponse, now: Moment) -> Result<(), Refusal> {
        if self.response.is_some() {
            let message = "there is an active response; wait for response.done or send response.cancel";
            return Err(Refusal::invalid(
                "conversation_already_has_active_response",
                "response",
                message,
            ));
        }
        let modality = match &new.output_modalities {
            None => self.settings.modality,
            Some(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Modality::parse(&names).ok_or_else(|| {
                    let message = "use [\"audio\"] or [\"text\"]";
                    Refusal::invalid("invalid_value", "response.output_modalities", message)
                })?
            }
        };
        for item in new.input.into_iter().flatten().take(ITEMS_MAX) {
            self.create_item(&item)?;
        }
        let unanswered = self
            .items
            .iter()
            .rev()
            .find(|item| item.role == Role::User && !item.answered);
        let answers = unanswered.map(|item| item.id.clone());
        self.begin(answers, modality, now);
        Ok(())
    }

    /// Answers an item now, or after the current response.
    fn want(&mut self, item: String, now: Moment) {
        if self.response.is_none() {
            self.begin(Some(item), self.settings.modality, now);
        } else if self.wanted.len() < HEARING_MAX {
            self.wanted.push_back(item);
        }
    }

    fn next_wanted(&mut self, now: Moment) {
        while self.response.is_none() {
            let Some(item) = self.wanted.pop_front() else { return };
            if self.items.iter().any(|known| known.id == item && !known.answered) {
                self.begin(Some(item), self.settings.modality, now);
            }
        }
    }

    fn begin(&mut self, answers: Option<String>, modality: Modality, now: Moment) {
        self.open_response(answers, modality);
        self.answer(now);
    }

    fn open_response(&mut self, answers: Option<String>, modality: Modality) {
        self.turns += 1;
        self.responses += 1;
        let at = answers
            .as_ref()
            .and_then(|id| self.items.iter_mut().find(|item| item.id == *id))
            .map_or_else(Instant::now, |item| {
                item.answered = true;
                item.at
            });
        let response = Response {
            number: self.responses,
            id: new_id("resp"),
            item: new_id("item"),
            answers,
            modality,
            stage: ResponseStage::Waiting,
            speaking: None,
            samples: 0,
            added: false,
            turn: Turn {
                number: self.turns,
                at,
                transcript: String::new(),
                intent: "unknown".into(),
                slots: BTreeMap::new(),
                reply: String::new(),
                asr: None,
                nlu: None,
                skill: None,
                tts: None,
                first_audio: None,
            },
        };
        self.outbox.push(events::response_created(
            &response.describe("in_progress", &Value::Null),
        ));
        self.response = Some(response);
    }

    /// Interprets what the response answers, acts, and says the reply; returns at once while it is still recognised.
    fn answer(&mut self, now: Moment) {
        let Some(response) = &mut self.response else { return };
        let turn = &mut response.turn;
        match &response.answers {
            Some(id) => {
                let item = self.items.iter().find(|item| item.id == *id);
                if item.is_some_and(|item| item.text.is_none())
                    && self.hearing.iter().any(|hearing| hearing.item == *id)
                {
                    return;
                }
                turn.asr = item.and_then(|item| item.asr);
                turn.transcript = item.and_then(|item| item.text.clone()).unwrap_or_default();
            }
            // Asked to speak with nothing said: introduce ourselves.
            None => turn.transcript = "help".to_owned(),
        }
        // A cough, or speech too faint to make out: answering it would have the device talk to an empty room.
        if turn.transcript.is_empty() {
            self.finish();
            return;
        }
        let start = Instant::now();
        let heard = dialogue::interpret(&turn.transcript);
        let nlu = start.elapsed();
        let reply = dialogue::act(&mut self.dialogue, &heard, now);
        let skill = start.elapsed() - nlu;
        turn.intent = heard.command.intent().into();
        let slots = heard.command.slots().into_iter();
        turn.slots = slots.map(|(name, value)| (name.into(), value)).collect();
        turn.nlu = Some(nlu);
        turn.skill = Some(skill);
        self.unsaved = true;
        self.observe(Stage::nlu, nlu);
        self.observe(Stage::skill, skill);
        self.say(&reply.text);
    }

    /// Speaks up about timers and alarms that are due, when nobody is talking.
    pub(super) fn ring(&mut self, now: Moment) {
        if self.dialogue.next_ring().is_none_or(|at| at > now) || !self.is_between_turns() {
            return;
        }
        let Some(reply) = self.dialogue.ring(now) else { return };
        self.unsaved = true;
        self.open_response(None, self.settings.modality);
        if let Some(response) = &mut self.response {
            response.turn.intent = "timer.ring".into();
        }
        self.say(&reply.text);
    }

    fn say(&mut self, text: &str) {
        let Some(response) = &mut self.response else { return };
        response.added = true;
        text.clone_into(&mut response.turn.reply);
        let number = response.number;
        let item = response.describe_item("in_progress", false);
        let previous = self.items.back().map(|item| item.id.as_str());
        self.outbox
            .push_part(events::output_item_added(&response.id, &item), number);
        self.outbox.push_part(events::item_added(&item, previous), number);
        let place = Place {
            response: &response.id,
            item: &response.item,
        };
        self.outbox
            .push_part(place.content_part_added(response.describe_part(false)), number);
        match response.modality {
            Modality::Text => {
                self.outbox.push_part(place.text_delta(text), number);
                self.outbox.push_part(place.text_done(text), number);
                self.finish();
            }
            Modality::Audio => {
                self.outbox.push_part(place.audio_transcript_delta(text), number);
                response.stage = ResponseStage::Synthesizing;
                self.speak();
            }
        }
    }

    fn speak(&mut self) {
        let Some(response) = &mut self.response else { return };
        let speakable = spoken::sentences(&response.turn.reply).join(" ");
        match self.stack.speak(speakable, self.settings.speed) {
            Ok(ticket) => response.speaking = Some(ticket),
            Err(error) => self.fail(&error.into(), Component::Tts),
        }
    }

    fn on_spoken(&mut self, result: Result<Done<Vec<f32>>, JobError>) {
        let Some(response) = &mut self.response else { return };
        response.speaking = None;
        let audio = result.map_err(ApiError::from).and_then(|done| {
            response.turn.tts = Some(done.took);
            resample(&done.output, SAMPLE_RATE, WIRE_RATE).map_err(|error| {
                ApiError::new(
                    axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                    "engine_failed",
                    error.to_string(),
                )
            })
        });
        let mut samples = match audio {
            Ok(samples) => samples,
            Err(error) => {
                tracing::warn!(
                    session = self.id,
                    code = error.code,
                    "speaking failed: {}",
                    error.message
                );
                self.fail(&error, Component::Tts);
                return;
            }
        };
        let number = response.number;
        let place = Place {
            response: &response.id,
            item: &response.item,
        };
        let delta = |samples: &[f32]| place.audio_delta(BASE64_STANDARD.encode(pcm::to_s16le(samples)));
        if response.stage == ResponseStage::Sending {
            // Another region may speak a little faster; what was promised is kept to the sample.
            samples.resize(response.samples, 0.0);
            self.outbox.fill(|range| delta(samples.get(range).unwrap_or_default()));
            return;
        }
        response.samples = samples.len();
        let mut from = 0;
        for piece in samples.chunks(DELTA_MS * WIRE_RATE as usize / 1000) {
            self.outbox.push_audio(delta(piece), number, from..from + piece.len());
            from += piece.len();
        }
        self.outbox.push_part(place.audio_done(), number);
        self.outbox
            .push_part(place.audio_transcript_done(&response.turn.reply), number);
        let first_audio = response.turn.at.elapsed();
        response.turn.first_audio = Some(first_audio);
        let tts = response.turn.tts.unwrap_or_default();
        self.observe(Stage::tts, tts);
        self.observe(Stage::first_audio, first_audio);
        self.finish();
    }

    /// Puts the end of a response that went well into the outbox.
    fn finish(&mut self) {
        let Some(response) = &mut self.response else { return };
        response.stage = ResponseStage::Sending;
        let number = response.number;
        let mut said = None;
        if response.added {
            let place = Place {
                response: &response.id,
                item: &response.item,
            };
            self.outbox
                .push_part(place.content_part_done(response.describe_part(true)), number);
            let item = response.describe_item("completed", true);
            self.outbox.push_part(
                events::item_done(&item, self.items.back().map(|item| item.id.as_str())),
                number,
            );
            self.outbox
                .push_part(events::output_item_done(&response.id, &item), number);
            said = Some(response.said());
        }
        self.outbox.push_part(
            events::response_done(&response.describe("completed", &Value::Null)),
            number,
        );
        self.outbox
            .push_end(response.report("completed", self.stack.config.region.as_str()), number);
        if let Some(item) = said {
            self.remember(item);
        }
    }

    /// Ends the active response, if there is one, before it is complete.
    fn cancel(&mut self, reason: &str) {
        let details = json!({ "type": "cancelled", "reason": reason });
        self.abandon("cancelled", &details, TurnOutcome::cancelled);
    }

    fn fail(&mut self, error: &ApiError, component: Component) {
        if error.code == GPU_MEMORY {
            self.told.ran_out_of_gpu_memory();
        }
        if let Some(response) = self.response.as_ref().filter(|_| error.blames_region()) {
            self.told.end(response.turn.word(Some(component)));
        }
        let details = json!({ "type": "failed", "error": {
            "type": error.kind(), "code": error.code, "message": error.message,
        }});
        self.abandon("failed", &details, TurnOutcome::failed);
    }

    fn abandon(&mut self, status: &str, details: &Value, outcome: TurnOutcome) {
        // Dropping the response drops its ticket, which takes its job out of the engine's queue.
        let Some(response) = self.response.take() else { return };
        self.outbox.take_back(response.number);
        if response.added {
            self.outbox.push(events::output_item_done(
                &response.id,
                &response.describe_item("incomplete", true),
            ));
            // What was already sent may be truncated by the client, so the item stays known.
            if !self.items.iter().any(|item| item.id == response.item) {
                self.remember(response.said());
            }
        }
        self.outbox
            .push(events::response_done(&response.describe(status, details)));
        self.outbox
            .push(response.report(status, self.stack.config.region.as_str()));
        self.stack.metrics.turns.get_or_create(&TurnLabels { outcome }).inc();
    }

    /// Takes note that a frame of the outbox was handed to the socket.
    pub(super) fn on_sent(&mut self, frame: &Frame, now: Moment) {
        if let Some(response) = &self.response
            && frame.ends_response == Some(response.number)
        {
            self.told.end(response.turn.word(None));
            self.response = None;
            self.stack
                .metrics
                .turns
                .get_or_create(&TurnLabels {
                    outcome: TurnOutcome::completed,
                })
                .inc();
            self.next_wanted(now);
        }
    }

    fn observe(&self, stage: Stage, took: Duration) {
        self.stack
            .metrics
            .stages
            .get_or_create(&StageLabels { stage })
            .observe(took.as_secs_f64());
    }
}

impl Item {
    fn describe(&self, status: &str) -> Value {
        let (role, direction) = match self.role {
            Role::User => ("user", "input"),
            Role::Assistant => ("assistant", "output"),
            Role::System => ("system", "input"),
        };
        let part = match self.content {
            Content::Audio => json!({ "type": format!("{direction}_audio"), "transcript": self.text }),
            Content::Text => json!({ "type": format!("{direction}_text"), "text": self.text }),
        };
        json!({
            "id": self.id, "object": "realtime.item", "type": "message", "status": status, "role": role, "content": [part],
        })
    }
}

impl Response {
    fn describe(&self, status: &str, details: &Value) -> Value {
        let output = if self.added && status != "in_progress" {
            vec![self.describe_item(
                if status == "completed" {
                    "completed"
                } else {
                    "incomplete"
                },
                true,
            )]
        } else {
            Vec::new()
        };
        let modality = match self.modality {
            Modality::Audio => "audio",
            Modality::Text => "text",
        };
        json!({
            "object": "realtime.response", "id": self.id, "status": status, "status_details": details,
            "output": output, "output_modalities": [modality], "usage": null, "metadata": null,
        })
    }

    fn describe_item(&self, status: &str, with_content: bool) -> Value {
        let content = if with_content {
            vec![self.describe_part(true)]
        } else {
            Vec::new()
        };
        json!({
            "id": self.item, "object": "realtime.item", "type": "message", "status": status, "role": "assistant",
            "content": content,
        })
    }

    fn describe_part(&self, complete: bool) -> Value {
        let text = if complete { self.turn.reply.as_str() } else { "" };
        match self.modality {
            Modality::Audio => json!({ "type": "output_audio", "transcript": text }),
            Modality::Text => json!({ "type": "output_text", "text": text }),
        }
    }

    /// What was said, as an item to remember.
    fn said(&self) -> Item {
        Item {
            id: self.item.clone(),
            role: Role::Assistant,
            content: match self.modality {
                Modality::Audio => Content::Audio,
                Modality::Text => Content::Text,
            },
            text: Some(self.turn.reply.clone()),
            answered: true,
            at: Instant::now(),
            asr: None,
        }
    }

    /// The `meridian.turn` event.
    fn report(&self, status: &str, region: &str) -> Value {
        let Turn {
            number,
            transcript,
            intent,
            slots,
            reply,
            asr,
            nlu,
            skill,
            tts,
            first_audio,
            ..
        } = &self.turn;
        // Hundredths of a millisecond: pattern matching takes less than one.
        let ms = |took: &Option<Duration>| took.map(|took| (took.as_secs_f64() * 100_000.0).round() / 100.0);
        json!({
            "type": "meridian.turn",
            "turn": number, "response_id": self.id, "status": status, "region": region,
            "transcript": transcript, "intent": intent, "slots": slots, "reply": reply,
            "timings_ms": {
                "asr": ms(asr), "nlu": ms(nlu), "skill": ms(skill), "tts": ms(tts), "first_audio": ms(first_audio),
            },
        })
    }
}

impl Turn {
    /// What an edge is told of it. What took less than a millisecond took one: none is no time.
    fn word(&self, failed: Option<Component>) -> words::Turn {
        let ms = |took: Duration| u32::try_from(took.as_millis()).unwrap_or(u32::MAX).max(1);
        words::Turn {
            recognised_ms: self.asr.map(ms),
            first_audio_ms: self.first_audio.map(ms),
            failed,
        }
    }
}

/// Why an event of the client was not carried out.
pub(super) struct Refusal {
    kind: &'static str,
    code: &'static str,
    param: Option<&'static str>,
    message: String,
}

impl Refusal {
    fn invalid(code: &'static str, param: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: "invalid_request_error",
            code,
            param: Some(param),
            message: message.into(),
        }
    }
}

/// The sound in an item of the client, at the engine's rate.
pub(super) fn sound_of(item: &NewItem) -> Option<Result<Vec<f32>, Refusal>> {
    let mut parts = item.content.iter();
    let audio = parts.find_map(|part| part.audio.as_ref().filter(|_| part.kind == "input_audio"))?;
    let samples = decode(audio).and_then(|bytes| {
        resample(&pcm::from_s16le(&bytes), WIRE_RATE, SAMPLE_RATE)
            .map_err(|error| Refusal::invalid("invalid_value", "item.content", error.to_string()))
    });
    Some(samples)
}

pub(super) fn decode(audio: &str) -> Result<Vec<u8>, Refusal> {
    BASE64_STANDARD.decode(audio).map_err(|error| {
        Refusal::invalid(
            "invalid_value",
            "audio",
            format!("the audio is not base64: {error}; use standard base64 with padding"),
        )
    })
}

fn new_id(kind: &str) -> String {
    format!("{kind}_{}", Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use dialogue::City;
    use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{config::Config, stack::Engines, store::MemoryStore};

    const NOW: Moment = Moment(1_795_257_300_000);

    /// A session without a socket, which answers in text so that no engine is asked.
    fn session() -> Session {
        let config: Config = daemon::config::parse(
            "test",
            "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"",
        )
        .unwrap();
        let engines = Engines {
            recognizer: Arc::new(ScriptedRecognizer::new()),
            synthesizer: Arc::new(ScriptedSynthesizer::new()),
        };
        let store = Box::new(MemoryStore::new(1, Duration::from_secs(1)));
        let stack = Arc::new(Stack::new(config, engines, store, CancellationToken::new()).unwrap());
        let mut session = Session::new(
            stack,
            "sess_1".to_owned(),
            "m".to_owned(),
            DialogueState::new(City::London),
        );
        session.on_message(
            r#"{"type":"session.update","session":{"output_modalities":["text"]}}"#,
            NOW,
        );
        sent(&mut session, NOW);
        session
    }

    fn say(session: &mut Session, text: &str, now: Moment) -> Vec<Value> {
        let item = json!({ "type": "conversation.item.create", "item": {
            "role": "user", "content": [{ "type": "input_text", "text": text }],
        }});
        session.on_message(&item.to_string(), now);
        session.on_message(r#"{"type":"response.create"}"#, now);
        sent(session, now)
    }

    fn sent(session: &mut Session, now: Moment) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(frame) = session.outbox.pop() {
            session.on_sent(&frame, now);
            events.push(serde_json::from_str(&frame.text).unwrap());
        }
        events
    }

    fn reply(events: &[Value]) -> &str {
        let turn = events.iter().find(|event| event["type"] == "meridian.turn").unwrap();
        turn["reply"].as_str().unwrap()
    }

    #[test]
    fn a_timer_rings_once_when_it_is_due_and_nobody_is_talking() {
        let mut session = session();
        assert_eq!(
            reply(&say(&mut session, "set a timer for ten minutes", NOW)),
            "timer set for ten minutes"
        );
        assert!(session.take_unsaved().is_some());
        session.ring(NOW + Duration::from_secs(599));
        assert!(sent(&mut session, NOW).is_empty());

        let due = NOW + Duration::from_secs(600);
        session.ring(due);
        let events = sent(&mut session, due);
        assert_eq!(events[0]["type"], "response.created");
        assert_eq!(reply(&events), "your timer for ten minutes is done");
        session.ring(due);
        assert!(sent(&mut session, due).is_empty());
        assert!(session.is_between_turns());
    }

    #[test]
    fn a_response_without_a_question_introduces_the_assistant_and_a_second_one_waits_its_turn() {
        let mut session = session();
        session.on_message(r#"{"type":"response.create"}"#, NOW);
        session.on_message(r#"{"type":"response.create"}"#, NOW);
        let events = sent(&mut session, NOW);
        assert!(reply(&events).starts_with("you can ask for"));
        let error = events.iter().find(|event| event["type"] == "error").unwrap();
        assert_eq!(error["error"]["code"], "conversation_already_has_active_response");
    }

    #[test]
    fn items_can_be_retrieved_truncated_and_deleted() {
        let mut session = session();
        let events = say(&mut session, "stop", NOW);
        let done = events.iter().find(|event| event["type"] == "response.done").unwrap();
        let id = done["response"]["output"][0]["id"].as_str().unwrap();
        for (event, answer) in [
            (
                json!({ "type": "conversation.item.retrieve", "item_id": id }),
                "conversation.item.retrieved",
            ),
            (
                json!({ "type": "conversation.item.truncate", "item_id": id, "content_index": 0, "audio_end_ms": 0 }),
                "conversation.item.truncated",
            ),
            (
                json!({ "type": "conversation.item.delete", "item_id": id }),
                "conversation.item.deleted",
            ),
            (json!({ "type": "conversation.item.delete", "item_id": id }), "error"),
        ] {
            session.on_message(&event.to_string(), NOW);
            let events = sent(&mut session, NOW);
            assert_eq!(events[0]["type"], answer);
        }
    }

    #[test]
    fn memory_of_a_long_conversation_is_bounded() {
        let mut session = session();
        for _ in 0..3 * ITEMS_MAX {
            say(&mut session, "what time is it", NOW);
        }
        assert_eq!(session.items.len(), ITEMS_MAX);
    }
}
