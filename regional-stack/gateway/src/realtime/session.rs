//! One Realtime session: the protocol's state machine. It takes client events and engine results, and puts events for the client
//! into its outbox; it never waits for a socket.
//!
//! One utterance is one turn: it is committed, recognised, interpreted, acted upon and answered. At most one response is
//! active at a time; cancelling it drops its engine job and takes back what is not sent yet.
//!
//! A session has one job: it hands each event to its parts in the right order. Each part is a value with a file of its own, decides
//! alone, and knows neither the session nor another part. A way through several parts extends the session from a file of its own:
//! `hearing`, `answering`, `ringing`, `sending` and `checkpoint`.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use speech::Transcript;
use topology::Moment;

use super::{
    audio_input::AudioInput,
    client::{After, Body, ClientEvent, NewItem, NewKind},
    conversation::Items,
    device::Device,
    edge_reports::EdgeReports,
    events,
    input::Input,
    items::{Item, Role, check_length},
    opening::{self, Opening},
    outbox::Outbox,
    recognising::{Hearings, Source},
    refusal::Refusal,
    responses::Responses,
    settings::Settings,
    snapshot::Snapshot,
    sound::sound_of,
    texts,
};
use crate::{
    ids::{conversation_of, name_of},
    live::Claim,
    metrics::{Stage, StageLabels},
    stack::Stack,
    store::{Memory, revision_after},
    workers::{Done, JobError},
};

pub(super) struct Session {
    pub(super) stack: Arc<Stack>,
    pub(super) id: String,
    pub(super) model: String,
    pub(super) settings: Settings,
    pub(super) input: Input,
    pub(super) items: Items,
    /// Utterances being recognised, in order.
    pub(super) hearing: Hearings,
    pub(super) responses: Responses,
    pub(super) device: Device,
    pub(super) outbox: Outbox,
    /// Messages of the client so far.
    pub(super) consumed: u64,
    pub(super) edge: EdgeReports,
}

/// Longest name of a model: the server repeats the name to its client, and cuts a longer one.
pub(super) const MODEL_CHARS_MAX: usize = 64;

/// The code of the error for a device whose session could not be resumed.
const NOT_RESUMED: &str = "session_not_resumed";

/// The result of an engine.
pub(super) enum EngineResult {
    Heard(Result<Done<Transcript>, JobError>),
    Spoken(Result<Done<Vec<f32>>, JobError>),
}

impl Session {
    pub(super) fn new(stack: Arc<Stack>, opening: Opening) -> (Self, Claim) {
        let Opening {
            id,
            model,
            memory,
            lost,
            zone,
            home_zone,
            options,
            claim,
            opened_at,
        } = opening;
        let Memory {
            mut dialogue,
            session,
            revision,
            ..
        } = memory.unwrap_or_else(|| Memory {
            dialogue: stack.new_dialogue(),
            session: None,
            revision: Moment(0),
            may_go_on_elsewhere: false,
        });
        // Nobody may have read the socket into which an earlier ring went.
        dialogue.ring_again();
        // A device that comes back through an edge with another home is where it was: its alarms follow the clock of that place.
        if let Some(home_zone) = home_zone
            && dialogue.home_zone.is_none()
        {
            dialogue.set_home_zone(home_zone);
        }
        if zone.is_some() {
            dialogue.set_zone(zone);
        }
        let earlier = session.as_deref().map(Snapshot::recall).unwrap_or_default();
        let Snapshot { mut settings, items } = earlier;
        settings.ours |= options.ours;
        settings.only_transcribes |= options.only_transcribes;
        let audio_input = AudioInput::new(settings.turn_detection.as_ref(), stack.config.limits.turn_max.0);
        let mut session = Self {
            stack,
            id,
            model,
            settings,
            input: Input::new(audio_input, None),
            items,
            hearing: Hearings::default(),
            responses: Responses::default(),
            device: Device::new(dialogue, revision_after(revision, opened_at), None),
            outbox: Outbox::default(),
            consumed: 0,
            edge: EdgeReports::default(),
        };
        session.outbox.push(events::session_created(&session.describe()));
        if let Some(lost) = lost {
            session.refuse(&Refusal::new(NOT_RESUMED, None, texts::not_resumed(lost)), None);
        }
        if options.beta {
            session.warn_of_beta();
        }
        (session, claim)
    }

    fn describe(&self) -> Value {
        let mut session = self.settings.describe(&self.id, &self.model);
        if let Some(zone) = &self.device.dialogue.zone {
            session["meridian"] = json!({ "zone": zone.name() });
        }
        session
    }

    /// The session's own name, under which the store keeps its memory.
    pub(super) fn name(&self) -> &str {
        name_of(&self.id)
    }

    /// Whether no turn is in progress: a good moment to close.
    pub(super) fn is_between_turns(&self) -> bool {
        self.responses.is_idle()
            && self.hearing.is_empty()
            && !self.input.buffer.is_hearing_speech()
            && self.outbox.is_empty()
    }

    /// The memory of the session, if it changed since the last call.
    pub(super) fn take_unsaved(&mut self) -> Option<Memory> {
        self.device.take_unsaved().then(|| self.memory())
    }

    /// The memory of the session.
    pub(super) fn memory(&self) -> Memory {
        self.device.memory(self.snapshot())
    }

    /// Waits for the next engine result; for ever if no job is in progress. Safe to drop and call again.
    pub(super) async fn engine_result(&mut self) -> EngineResult {
        let stack = &*self.stack;
        let response = self.responses.active_mut();
        let spoken = async {
            match response.and_then(|response| response.speaking.as_mut()) {
                Some(speaking) => speaking.result(stack).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = self.hearing.result() => EngineResult::Heard(result),
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
        match ClientEvent::parse(text) {
            Ok(ClientEvent { event_id, body }) => {
                if let Err(refusal) = self.on_event(body, event_id.as_ref(), now) {
                    self.refuse(&refusal, event_id.as_deref());
                }
            }
            Err(error) => self.outbox.push(events::error(
                "invalid_request_error",
                error.code,
                &error.message,
                error.param.as_deref(),
                error.event_id.as_deref(),
            )),
        }
    }

    /// Tells the client that its event was refused.
    pub(super) fn refuse(&mut self, refusal: &Refusal, about: Option<&str>) {
        self.outbox.push(refusal.event(about));
    }

    /// Refuses a message that is too long to be parsed.
    pub(super) fn on_too_large(&mut self) {
        self.consumed += 1;
        let kib = self.stack.config.limits.frame_bytes_max >> 10;
        let message = texts::message_too_large(kib);
        self.refuse(&Refusal::new("message_too_large", None, message), None);
    }

    /// Tells a client that asks for the beta protocol to use the current one.
    pub(super) fn warn_of_beta(&mut self) {
        let message = texts::BETA_PROTOCOL;
        self.refuse(
            &Refusal::new("beta_api_shape_disabled", Some("OpenAI-Beta".into()), message),
            None,
        );
    }

    /// Refuses a message that is not text.
    pub(super) fn on_binary(&mut self) {
        self.consumed += 1;
        let message = texts::BINARY_MESSAGE;
        self.refuse(&Refusal::new("invalid_message", None, message), None);
    }

    fn on_event(&mut self, event: Body, about: Option<&String>, now: Moment) -> Result<(), Refusal> {
        match event {
            Body::SessionUpdate { session } => self.update(&session),
            Body::Append { audio } => self.append(&audio, about.cloned(), now),
            Body::Commit => self.commit(),
            Body::Clear => {
                self.input.clear();
                self.responses.forget_interrupted();
                self.outbox.push(events::cleared());
                Ok(())
            }
            Body::ItemCreate { item, after } => self.create_item(item, &after),
            Body::ItemDelete { item_id } => {
                self.items.delete(&item_id)?;
                self.outbox.push(events::item_deleted(&item_id));
                Ok(())
            }
            Body::ItemRetrieve { item_id } => {
                let item = self.items.find(&item_id)?.describe();
                self.outbox.push(events::item_retrieved(&item));
                Ok(())
            }
            Body::ItemTruncate {
                item_id,
                content_index,
                audio_end_ms,
            } => {
                self.items.truncate(&item_id, content_index, audio_end_ms)?;
                self.outbox
                    .push(events::item_truncated(&item_id, content_index, audio_end_ms));
                Ok(())
            }
            Body::Playback { underruns, played } => {
                self.edge.turns.underran(underruns);
                if let Some(item) = played {
                    self.on_played(&item, now);
                }
                Ok(())
            }
            Body::RingAcknowledge => {
                self.acknowledge(now);
                Ok(())
            }
            Body::RingSnooze { minutes } => self.snooze(minutes, now),
            Body::ResponseCreate { response } => self.create_response(*response, now),
            Body::ResponseCancel { response_id } => self.cancel_response(response_id.as_deref(), now),
        }
    }

    fn create_item(&mut self, new: NewItem, after: &After) -> Result<(), Refusal> {
        let id = self.items.new_id(new.id)?;
        let at = self.items.new_position(after)?;
        let item = match new.kind {
            NewKind::Audio(audio) => {
                let samples = sound_of(&audio, self.settings.input_format, self.stack.config.limits.turn_max.0)?;
                return self.recognise(&id, samples, Source::Message(self.consumed), at);
            }
            NewKind::Text { role, text } => {
                if text.is_empty() && role != Role::Assistant {
                    let message = texts::ITEM_IS_EMPTY;
                    return Err(Refusal::invalid("missing_required_parameter", "item.content", message));
                }
                check_length(&text, self.stack.config.limits.speech_chars_max)?;
                Item::written(id, role, text)
            }
            NewKind::Call {
                call_id,
                name,
                arguments,
            } => Item::call(id, call_id, name, arguments),
            NewKind::Output { call_id, output } => {
                if !self.items.has_call(&call_id) {
                    let message = texts::NO_SUCH_CALL;
                    return Err(Refusal::invalid("item_not_found", "item.call_id", message));
                }
                Item::output(id, call_id, output)
            }
            NewKind::Reference => {
                let message = texts::REFERENCE_OUTSIDE_INPUT;
                return Err(Refusal::invalid("invalid_value", "item.type", message));
            }
        };
        self.items.add(item, at, &mut self.outbox);
        Ok(())
    }

    fn update(&mut self, change: &Value) -> Result<(), Refusal> {
        let zone = opening::zone_in(change, self.device.dialogue.zone.as_ref())?;
        let new = self.settings.updated(change)?;
        if new.turn_detection != self.settings.turn_detection {
            self.input.buffer.detect(new.turn_detection.as_ref());
            self.responses.forget_interrupted();
        }
        self.settings = new;
        self.device.set_zone(zone);
        self.device.note_change();
        // The same engines serve a model of any name.
        if let Some(model) = change.get("model").and_then(Value::as_str) {
            self.model = model.chars().take(MODEL_CHARS_MAX).collect();
        }
        self.outbox.push(events::session_updated(&self.describe()));
        Ok(())
    }

    /// Id of the conversation.
    pub(super) fn conversation(&self) -> String {
        conversation_of(&self.id)
    }

    /// Settings and items for a later connection, beside the device's memory.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            settings: self.settings.clone(),
            items: self.items.clone(),
        }
    }

    pub(super) fn observe(&self, stage: Stage, took: Duration) {
        self.stack
            .metrics
            .stages
            .get_or_create(&StageLabels { stage })
            .observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
