//! From audio to text: the input audio buffer, its utterances, and the words that the recognizer finds in them.

use speech::Transcript;
use topology::{Component, Moment};

use super::{
    audio_input::{self, Noticed, Utterance},
    events,
    items::Item,
    recognising::Source,
    refusal::Refusal,
    rest::{PIECE_UTTERANCES, Rest},
    session::Session,
    settings::TurnDetection,
    sound::{self, COMMIT_MS_MIN},
    texts,
};
use crate::{
    error::{ApiError, GPU_MEMORY, REPEAT},
    ids::{logged, new_id},
    metrics::Stage,
    texts as log,
    workers::{Done, JobError},
};

impl Session {
    pub(super) fn append(&mut self, audio: &str, about: Option<String>, now: Moment) -> Result<(), Refusal> {
        let audio = sound::decode(audio)?;
        if let Some(reports) = &mut self.edge.checkpoints {
            reports.note(self.consumed, self.input.buffer.offset());
        }
        let format = self.settings.input_format;
        if !Rest::is_long(&audio, format) {
            return self.listen(&format.to_pcm(&audio), now);
        }
        if !self.input.buffer.has_room_for(format.pcm_bytes(audio.len())) {
            return Err(self.buffer_full());
        }
        self.input.rest = Some(Rest::new(audio, format, about));
        Ok(())
    }

    /// Listens to the next second of a long message and returns whether there is more. The caller must go on to the end before it does
    /// anything else with the session.
    pub(super) fn listen_on(&mut self, now: Moment) -> bool {
        let Some(mut rest) = self.input.rest.take() else {
            return false;
        };
        if let Err(refusal) = self.listen(&rest.take_piece(), now) {
            self.refuse(&refusal, rest.about());
        }
        let has_more = rest.has_more();
        self.input.rest = Some(rest).filter(|_| has_more);
        has_more
    }

    /// Whether there is more of a long message, and the recognizer must first finish utterances before it.
    pub(super) fn must_hear_first(&self) -> bool {
        self.input.rest.is_some() && self.hearing.free() < PIECE_UTTERANCES
    }

    fn listen(&mut self, audio: &[u8], now: Moment) -> Result<(), Refusal> {
        let noticed = self.input.buffer.append(audio).map_err(|_| self.buffer_full())?;
        // A refused utterance does not stop the next ones.
        let mut refused = Ok(());
        for noticed in noticed {
            match noticed {
                Noticed::Started { at_ms, interrupts } => {
                    let item = new_id("item");
                    self.outbox.push(events::speech_started(&item, at_ms));
                    self.input.item = Some(item);
                    if interrupts && self.turn_detection().interrupt_response {
                        self.interrupt(now);
                    }
                }
                Noticed::Stopped { at_ms, utterance } => {
                    let item = self.input.take_item();
                    self.outbox.push(events::speech_stopped(&item, at_ms));
                    let answer = self.turn_detection().create_response && !self.settings.only_transcribes;
                    match self.take_utterance(&item, utterance) {
                        Ok(()) if answer => self.want(item, now),
                        // The client decides about an answer.
                        Ok(()) => self.responses.forget_interrupted(),
                        Err(refusal) => {
                            refused = Err(refusal);
                            self.resume_at_once(now);
                        }
                    }
                }
            }
        }
        refused
    }

    fn buffer_full(&self) -> Refusal {
        let message = texts::buffer_full(self.stack.config.limits.turn_max.0.as_secs());
        Refusal::invalid("input_audio_buffer_full", "audio", message)
    }

    pub(super) fn turn_detection(&self) -> TurnDetection {
        self.settings.turn_detection.unwrap_or_default()
    }

    /// Makes an item of the speech so far. The assistant answers it only on the client's request.
    pub(super) fn commit(&mut self) -> Result<(), Refusal> {
        // The client decides about answers from here on.
        self.responses.forget_interrupted();
        // With turn detection, the buffer holds only the sound of the room until speech begins.
        let is_speech = self.settings.turn_detection.is_none() || self.input.buffer.is_hearing_speech();
        let utterance = self.input.buffer.commit();
        let item = self.input.take_item();
        let heard_ms = (audio_input::seconds(&utterance.samples) * 1000.0) as u64;
        if !is_speech || heard_ms < COMMIT_MS_MIN {
            let message = if is_speech {
                texts::commit_too_short(heard_ms, COMMIT_MS_MIN)
            } else {
                texts::NOTHING_TO_COMMIT.to_owned()
            };
            return Err(Refusal::invalid("input_audio_buffer_commit_empty", "audio", message));
        }
        self.take_utterance(&item, utterance)
    }

    /// Makes an utterance an item and has it recognised.
    pub(super) fn take_utterance(&mut self, item: &str, utterance: Utterance) -> Result<(), Refusal> {
        self.outbox.push(events::committed(item, self.items.last_id()));
        let Utterance { from, samples } = utterance;
        let source = Source::AudioInput {
            from,
            samples: samples.len(),
        };
        let at = self.items.len();
        self.recognise(item, samples, source, at)
    }

    /// Adds an item with the voice of the user, and has it recognised.
    pub(super) fn recognise(
        &mut self,
        item: &str,
        samples: Vec<f32>,
        source: Source,
        at: usize,
    ) -> Result<(), Refusal> {
        self.items
            .add(Item::heard(item.to_owned(), &samples), at, &mut self.outbox);
        let begun = self.hearing.begin(&self.stack, item.to_owned(), samples, source, false);
        begun.map_err(|error| {
            let error = ApiError::from(error);
            self.tell_not_transcribed(item, &error);
            Refusal::of(error)
        })
    }

    fn tell_not_transcribed(&mut self, item: &str, error: &ApiError) {
        if self.settings.transcribes && self.items.has(item) {
            self.outbox
                .push(events::transcription_failed(item, error.code, &error.message));
        }
    }

    pub(super) fn on_heard(&mut self, result: Result<Done<Transcript>, JobError>, now: Moment) {
        let Some(hearing) = self.hearing.take_first() else {
            return;
        };
        let id = hearing.item;
        match result {
            Ok(done) => {
                self.observe(Stage::Asr, done.took);
                let text = done.output.text;
                if self.settings.transcribes && !hearing.aside {
                    if !text.is_empty() {
                        self.outbox.push(events::transcription_delta(&id, &text));
                    }
                    self.outbox
                        .push(events::transcription_completed(&id, &text, hearing.seconds));
                }
                if let Some(item) = self.items.get_mut(&id) {
                    item.text = Some(text);
                    item.asr = Some(done.took);
                    item.asr_confidence = Some(done.output.confidence);
                } else if hearing.aside {
                    self.responses.give_words(&id, text, done.output.confidence);
                }
                if self.responses.is_waiting_for(&id) {
                    self.answer(now);
                }
            }
            Err(error) => self.not_heard(&id, &error.into(), now),
        }
    }

    /// Ends the hope for an utterance whose recognition failed, and the response that waits for it.
    pub(super) fn not_heard(&mut self, item: &str, error: &ApiError, now: Moment) {
        let (session, code) = (logged(&self.id), error.code);
        tracing::warn!(session, item, code, error = %error.message, "{}", log::NOT_TRANSCRIBED);
        self.tell_not_transcribed(item, error);
        if self.responses.is_waiting_for(item) {
            self.responses.forget_interrupted();
            self.fail(error, Component::Asr);
            self.next_wanted(now);
        } else if error.code == GPU_MEMORY {
            self.edge.turns.ran_out_of_gpu_memory();
        }
    }

    /// Recognises the utterances again that the stack before this one was recognising: one entry for each.
    pub(super) fn hear_again(&mut self, heard: Vec<Vec<f32>>, now: Moment) {
        let stack = &self.stack;
        let refused = self.hearing.begin_again(heard, |samples| stack.hear(samples));
        for (item, error) in refused {
            self.not_heard(&item, &error.into(), now);
        }
    }

    /// Asks the user to repeat: the speech in progress, or just before, is lost.
    pub(super) fn ask_to_repeat(&mut self, now: Moment) {
        let error = ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, REPEAT, texts::SPEECH_LOST);
        self.input.item = None;
        self.outbox.push(events::cleared());
        for hearing in self.hearing.take_all() {
            self.not_heard(&hearing.item, &error, now);
        }
    }
}
