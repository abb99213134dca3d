//! Answering: the session opens a response, understands its words, acts, says the reply, and ends the response well or early.

mod asking;
mod interrupting;
mod speaking;

use std::{collections::BTreeMap, time::Instant};

use serde_json::{Value, json};
use topology::{Component, Moment};

use super::{
    events,
    outbox::Frame,
    refusal::Refusal,
    response::{Call, Question, ResponseStage},
    session::Session,
    settings::Modality,
    texts,
    tools::{self, Choice},
};
use crate::{
    error::{ApiError, GPU_MEMORY},
    ids::new_id,
    metrics::{Stage, TurnLabels, TurnOutcome},
};

/// The assistant reads out the output of a function up to this length: a minute of speech.
const OUTPUT_CHARS_MAX: usize = 1000;

/// The reply when a client requires a call and the words negate or ask. It is spoken, so it consists of plain words.
const NO_CALL: &str = "i called no function, because that was no order";

impl Session {
    /// Interprets the words of the response's question, acts, and says the reply. Returns at once while the recognizer is at work.
    pub(super) fn answer(&mut self, now: Moment) {
        let Some(asr_confidence) = self.find_words(now) else {
            return;
        };
        // After a cough, or speech too faint to recognise, an answer would make the device talk to an empty room.
        let interrupted = self.responses.take_interrupted(now);
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        let turn = &mut response.turn;
        if turn.transcript.is_empty() {
            match interrupted {
                Some(interrupted) => self.resume_interrupted(interrupted),
                None => self.finish(),
            }
            return;
        }
        let start = Instant::now();
        let heard = dialogue::understand(&self.device.dialogue, &turn.transcript, asr_confidence, now);
        let nlu = start.elapsed();
        turn.nlu = Some(nlu);
        let offered = response.options.tools.as_ref().unwrap_or(&self.settings.tools);
        let choice = response
            .options
            .tool_choice
            .as_ref()
            .unwrap_or(&self.settings.tool_choice);
        let is_known = heard.command.intent() != "unknown";
        let is_asked = response.answers.is_some() || matches!(response.options.question, Some(Question::Words(_)));
        let words = if is_asked { turn.transcript.as_str() } else { "" };
        // Words of low confidence call no function, even if the client requires one.
        let is_sure = !matches!(
            heard.command,
            dialogue::Command::Rejected | dialogue::Command::Unsure { .. }
        );
        let called = is_sure
            .then(|| tools::choose(offered, choice, words, is_known))
            .flatten();
        // Then the words forbid a call. The assistant's own skills may have an answer to them.
        let is_withheld = is_sure && !is_known && choice.is_forced() && !offered.is_empty();
        if let Some(called) = called {
            self.observe(Stage::Nlu, nlu);
            self.call(called);
            return;
        }
        if is_withheld {
            turn.intent = heard.command.intent().into();
            self.observe(Stage::Nlu, nlu);
            self.say(NO_CALL);
            return;
        }
        let is_again = matches!(response.options.question, Some(Question::Again(_)));
        let mut unchanged = is_again.then(|| self.device.dialogue.clone());
        let dialogue = unchanged.as_mut().unwrap_or(&mut self.device.dialogue);
        let reply = dialogue::act(dialogue, &heard, now);
        let skill = start.elapsed() - nlu;
        turn.intent = heard.command.intent().into();
        turn.acted = reply.acted && !is_again;
        let slots = heard.command.slots().into_iter();
        turn.slots = slots.map(|(name, value)| (name.into(), value)).collect();
        turn.skill = Some(skill);
        if !is_again {
            self.device.note_change();
        }
        self.observe(Stage::Nlu, nlu);
        self.observe(Stage::Skill, skill);
        // The recognizer is too unsure that somebody spoke to the assistant, so the session goes on as before.
        match (reply.text.is_empty(), interrupted) {
            (false, _) => self.say(&reply.text),
            (true, Some(interrupted)) => self.resume_interrupted(interrupted),
            (true, None) => self.finish(),
        }
    }

    /// Sets the words of the response's question, and returns the recognizer's confidence in them. `None` if there is nothing to
    /// interpret: the recognizer has no words yet or failed, or the assistant reads out the output of a function instead.
    fn find_words(&mut self, now: Moment) -> Option<Option<f32>> {
        let response = self.responses.active_mut()?;
        let turn = &mut response.turn;
        let mut asr_confidence = response.options.asr_confidence;
        match (&response.options.question, &response.answers) {
            (Some(Question::Words(words) | Question::Again(words)), _) => turn.transcript.clone_from(words),
            (Some(Question::Output(output)), _) => {
                let output = output.clone();
                self.say_output(&output);
                return None;
            }
            (None, Some(id)) => {
                let item = self.items.get(id);
                if item.is_none_or(|item| item.text.is_none()) && self.hearing.has(id) {
                    return None;
                }
                if let Some(output) = item.filter(|item| item.is_output()) {
                    let output = output.text.clone().unwrap_or_default();
                    self.say_output(&output);
                    return None;
                }
                // The recognizer failed while the response waited. A deleted item of the conversation is no utterance.
                if item.map_or(response.options.aside, |item| item.text.is_none()) {
                    let message = texts::QUESTION_NOT_RECOGNISED;
                    let error = ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "engine_failed", message);
                    self.fail(&error, Component::Asr);
                    self.next_wanted(now);
                    return None;
                }
                turn.asr = item.and_then(|item| item.asr);
                asr_confidence = item.and_then(|item| item.asr_confidence);
                turn.transcript = item.and_then(|item| item.text.clone()).unwrap_or_default();
            }
            // The client asks for a reply before anybody spoke, so the assistant introduces itself.
            (Some(Question::Nothing) | None, _) => turn.transcript = "help".to_owned(),
        }
        Some(asr_confidence)
    }

    /// Reads out the output of a function. It calls no other function, or there would be no end.
    fn say_output(&mut self, output: &str) {
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        response.turn.intent = "tool.output".into();
        let said = tools::spoken_output(output);
        let said: String = said.chars().take(OUTPUT_CHARS_MAX).collect();
        self.say(&said);
    }

    /// Asks the client to call a function.
    fn call(&mut self, choice: Choice) {
        let previous = self.items.last_id().map(str::to_owned);
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        response.turn.intent = "tool.call".into();
        response.turn.slots = BTreeMap::from([("function".into(), choice.name.clone())]);
        response.call = Some(Call {
            call_id: new_id("call"),
            name: choice.name,
            arguments: choice.arguments,
        });
        (response.added, response.previous) = (true, previous);
        for event in response.added_events().into_iter().chain(response.call_events()) {
            self.outbox.push_part(event, response.number);
        }
        self.finish();
    }

    pub(super) fn say(&mut self, text: &str) {
        let previous = self.items.last_id().map(str::to_owned);
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        (response.added, response.previous) = (true, previous);
        text.clone_into(&mut response.turn.reply);
        for event in response.added_events().into_iter().chain(response.reply_events()) {
            self.outbox.push_part(event, response.number);
        }
        match response.modality {
            Modality::Text => self.finish(),
            Modality::Audio => {
                response.stage = ResponseStage::Synthesizing;
                self.speak();
            }
        }
    }

    /// Puts the end of a successful response into the outbox.
    fn finish(&mut self) {
        let conversation = self.conversation();
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        response.stage = ResponseStage::Sending;
        let mut events = response.completed_events(&conversation);
        if self.settings.ours {
            events.push(response.report("completed", self.stack.config.region.as_str()));
        }
        let last = events.pop();
        for event in events {
            self.outbox.push_part(event, response.number);
        }
        if let Some(last) = last {
            self.outbox.push_end(last, response.number);
        }
        if response.added && !response.options.aside {
            self.items.insert_after(response.kept(), response.previous.as_deref());
        }
    }

    /// Ends the response that the client names, or else the one that writes to the conversation.
    pub(super) fn cancel_response(&mut self, id: Option<&str>, now: Moment) -> Result<(), Refusal> {
        let active = self.responses.active().filter(|response| match id {
            Some(id) => response.id == id,
            None => !response.options.aside,
        });
        if active.is_none() {
            return Err(Refusal::invalid(
                "response_cancel_not_active",
                "response_id",
                texts::NO_ACTIVE_RESPONSE,
            ));
        }
        self.cancel("client_cancelled");
        self.next_wanted(now);
        Ok(())
    }

    /// Ends the active response, if there is one, before it is complete.
    pub(super) fn cancel(&mut self, reason: &str) {
        let details = json!({ "type": "cancelled", "reason": reason });
        self.abandon("cancelled", &details, TurnOutcome::Cancelled);
    }

    pub(super) fn fail(&mut self, error: &ApiError, component: Component) {
        if error.code == GPU_MEMORY {
            self.edge.turns.ran_out_of_gpu_memory();
        }
        if let Some(response) = self.responses.active().filter(|_| error.blames_region()) {
            self.edge.turns.end(response.turn.for_edge(Some(component)));
        }
        let details = json!({ "type": "failed", "error": {
            "type": error.kind(), "code": error.code, "message": error.message,
        }});
        self.abandon("failed", &details, TurnOutcome::Failed);
    }

    /// Ends a response early. The client gets the end of each part that it has the beginning of, and the reply is cut to the spoken
    /// words.
    fn abandon(&mut self, status: &str, details: &Value, outcome: TurnOutcome) {
        let Some(mut response) = self.responses.end() else {
            return;
        };
        let unsent = self.outbox.take_back(response.number);
        let is_unsent = |kind: &str| unsent.iter().any(|unsent| unsent == kind);
        let was_complete = response.stage == ResponseStage::Sending;
        let region = self.stack.config.region.as_str();
        if was_complete && !is_unsent("response.done") {
            // Too late: the client has all of it.
            if self.settings.ours {
                self.outbox.push(response.report("completed", region));
            }
            self.edge.turns.end(response.turn.for_edge(None));
            self.count(TurnOutcome::Completed);
            return;
        }
        response.cut_to_what_was_said(&unsent);
        response.added &= !is_unsent("response.output_item.added");
        // The client already has some of these of a complete response.
        let owes = |event: &Value| !was_complete || event["type"].as_str().is_some_and(is_unsent);
        for event in response.cut_events(&unsent).into_iter().filter(owes) {
            self.outbox.push(event);
        }
        // The client may truncate audio that it already has, so the item stays.
        self.items.remove(&response.item);
        if response.added && !response.options.aside {
            self.items.insert_after(response.kept(), response.previous.as_deref());
        }
        let described = response.describe(status, details, &self.conversation());
        self.outbox.push(events::response_done(&described));
        if self.settings.ours {
            self.outbox.push(response.report(status, region));
        }
        self.count(outcome);
    }

    /// Notes that the socket got an event of the outbox.
    pub(super) fn on_sent(&mut self, frame: &Frame, now: Moment) {
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        if let Some(end) = frame.audio_end(response.number) {
            response.sent = end;
        }
        if frame.ends_response == Some(response.number) {
            self.edge.turns.end(response.turn.for_edge(None));
            self.responses.end();
            self.count(TurnOutcome::Completed);
            self.next_wanted(now);
        }
    }

    fn count(&self, outcome: TurnOutcome) {
        self.stack.metrics.turns.get_or_create(&TurnLabels { outcome }).inc();
    }
}
