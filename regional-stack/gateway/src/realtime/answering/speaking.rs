//! Speaks a reply: its audio becomes events.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use topology::Component;

use crate::{
    error::ApiError,
    ids::logged,
    metrics::Stage,
    realtime::{
        audio_input::WIRE_RATE,
        events::Place,
        response::{ResponseStage, Speaking},
        session::Session,
    },
    texts as log,
    workers::{Done, JobError},
};

/// Length of one audio delta, whole samples in every format: short enough to start playing at once and to stop quickly, long enough that base64 and
/// JSON stay small beside it.
const DELTA_MS: usize = 200;

impl Session {
    /// Speaks the reply again that the stack before this one was speaking.
    pub(in crate::realtime) fn speak_again(&mut self) {
        let lacks_audio = self.outbox.lacks_audio();
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        if response.stage == ResponseStage::Synthesizing || lacks_audio {
            self.speak();
        }
    }

    pub(super) fn speak(&mut self) {
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        match Speaking::begin(&self.stack, &response.turn.reply, self.settings.speed) {
            Ok(speaking) => response.speaking = Some(speaking),
            Err(error) => self.fail(&error.into(), Component::Tts),
        }
    }

    pub(in crate::realtime) fn on_spoken(&mut self, result: Result<Done<Vec<f32>>, JobError>) {
        let Some(response) = self.responses.active_mut() else {
            return;
        };
        response.speaking = None;
        let format = response.format();
        let audio = result.map_err(ApiError::from).and_then(|done| {
            response.turn.tts = Some(done.took);
            format.of_engine(&done.output).map_err(|error| {
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
                    session = logged(&self.id),
                    code = error.code,
                    error = %error.message,
                    "{}",
                    log::NOT_SPOKEN
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
        let delta = |samples: &[f32]| place.audio_delta(BASE64_STANDARD.encode(format.to_bytes(samples)));
        if response.stage == ResponseStage::Sending {
            // Another region may speak a little faster. The length stays as announced, to the sample.
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
        self.observe(Stage::Tts, tts);
        self.observe(Stage::FirstAudio, first_audio);
        self.finish();
    }
}
