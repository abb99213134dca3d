//! Requests for responses: the item or question to answer, and the order of responses.

use serde_json::Value;
use topology::Moment;

use crate::{
    ids::new_id,
    realtime::{
        client::{NewItem, NewKind, NewResponse},
        events,
        items::{Role, check_length},
        recognising::{HEARING_MAX, Source},
        refusal::Refusal,
        response::{Asked, Question, ResponseOptions},
        responses::Busy,
        session::Session,
        settings::Modality,
        sound::sound_of,
        texts, tools,
    },
};

impl Session {
    pub(in crate::realtime) fn create_response(&mut self, new: NewResponse, now: Moment) -> Result<(), Refusal> {
        if self.settings.only_transcribes {
            return Err(Refusal::invalid("invalid_value", "type", texts::ONLY_TRANSCRIBES));
        }
        let waits = self.responses.admit(new.aside).map_err(|busy| match busy {
            Busy::Active => Refusal::invalid(
                "conversation_already_has_active_response",
                "response",
                texts::RESPONSE_IS_ACTIVE,
            ),
            Busy::Full => Refusal::invalid(
                "rate_limit_exceeded",
                "response",
                texts::too_many_responses(HEARING_MAX),
            ),
        })?;
        let offered = new.tools.as_ref().unwrap_or(&self.settings.tools);
        let tool_choice = new.tool_choice.as_ref();
        let tool_choice = tool_choice
            .map(|choice| tools::parse_choice(choice, offered, "response.tool_choice"))
            .transpose()?;
        let (answers, question) = match new.input {
            None => (self.items.unanswered().map(|item| item.id.clone()), None),
            Some(input) => self.question_in(input)?,
        };
        let asked = Asked {
            answers,
            modality: new.modality.unwrap_or(self.settings.modality),
            options: ResponseOptions {
                aside: new.aside,
                metadata: new.metadata,
                format: new.format,
                tools: new.tools,
                tool_choice,
                question,
                asr_confidence: None,
            },
        };
        if waits {
            // Marked now, so that no other response answers it too.
            let answered = asked.answers.as_ref();
            if let Some(item) = answered.and_then(|id| self.items.get_mut(id)) {
                item.answered = true;
            }
            self.responses.queue(asked);
        } else {
            self.begin(asked, now);
        }
        Ok(())
    }

    /// Finds the item or the question to answer in the input of a response, which replaces the conversation.
    pub(super) fn question_in(&mut self, input: Vec<NewItem>) -> Result<(Option<String>, Option<Question>), Refusal> {
        let mut question = Question::Nothing;
        let (mut answers, mut sound) = (None, None);
        for (at, item) in input.into_iter().enumerate() {
            match item.kind {
                NewKind::Text { role: Role::User, text } => {
                    check_length(&text, self.stack.config.limits.speech_chars_max)?;
                    (question, answers, sound) = (Question::Words(text), None, None);
                }
                NewKind::Output { output, .. } => (question, answers, sound) = (Question::Output(output), None, None),
                NewKind::Audio(audio) => {
                    sound = Some(sound_of(
                        &audio,
                        self.settings.input_format,
                        self.stack.config.limits.turn_max.0,
                    )?);
                }
                NewKind::Reference => {
                    let id = item.id.unwrap_or_default();
                    let found = self.items.get(&id).ok_or_else(|| {
                        let message = texts::NO_SUCH_ITEM;
                        Refusal::invalid("item_not_found", format!("response.input[{at}].id"), message)
                    })?;
                    match (found.role, &found.text) {
                        (Role::User, Some(text)) if found.is_output() => {
                            (question, answers, sound) = (Question::Output(text.clone()), None, None);
                        }
                        (Role::User, Some(text)) if found.answered => {
                            (question, answers, sound) = (Question::Again(text.clone()), None, None);
                        }
                        (Role::User, _) => (answers, sound) = (Some(id), None),
                        _ => {}
                    }
                }
                // No skill of the assistant uses history.
                NewKind::Text { .. } | NewKind::Call { .. } => {}
            }
        }
        if let Some(samples) = sound {
            let id = new_id("item");
            let source = Source::Message(self.consumed);
            let begun = self.hearing.begin(&self.stack, id.clone(), samples, source, true);
            begun.map_err(|error| Refusal::of(error.into()))?;
            return Ok((Some(id), None));
        }
        match answers {
            Some(id) => Ok((Some(id), None)),
            None => Ok((None, Some(question))),
        }
    }

    pub(super) fn begin(&mut self, asked: Asked, now: Moment) {
        self.open(asked);
        self.answer(now);
    }

    /// Begins a response that answers this item, or nothing.
    pub(in crate::realtime) fn open_response(&mut self, answers: Option<String>, modality: Modality) {
        self.open(Asked::about(answers, modality));
    }

    pub(super) fn open(&mut self, mut asked: Asked) {
        if !self.settings.output_format.is_pcm() {
            asked.options.format.get_or_insert(self.settings.output_format);
        }
        let conversation = self.conversation();
        let response = self.responses.open(asked, &mut self.items);
        let described = response.describe("in_progress", &Value::Null, &conversation);
        self.outbox.push(events::response_created(&described));
        let places = self.hearing.free();
        self.outbox.push(events::rate_limits_updated(HEARING_MAX, places));
    }

    /// Answers an item, now or after the current response.
    pub(in crate::realtime) fn want(&mut self, item: String, now: Moment) {
        if let Some(item) = self.responses.want(item) {
            self.begin(Asked::about(Some(item), self.settings.modality), now);
        }
    }

    pub(in crate::realtime) fn next_wanted(&mut self, now: Moment) {
        while let Some(asked) = self.responses.next(&self.items, self.settings.modality) {
            self.begin(asked, now);
        }
    }
}
