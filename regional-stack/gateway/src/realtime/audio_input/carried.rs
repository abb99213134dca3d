//! An audio input as it travels between regions, and its rebuilding from the audio that the edge sends a second time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use speech::{
    SAMPLE_RATE,
    endpoint::{Endpointer, FRAME_SAMPLES},
};

use super::{AudioInput, InputOffset, Intake, WIRE_RATE};
use crate::realtime::settings::TurnDetection;

impl AudioInput {
    /// Everything but the audio.
    pub(in crate::realtime) fn carry(&self) -> CarriedAudioInput {
        CarriedAudioInput {
            begin: self.begin,
            listened: self.listened,
            end: self.end(),
            room: self.room.as_deref().cloned(),
            detector: self.detector.as_ref().map(|detector| CarriedDetector {
                endpointer: detector.endpointer.clone(),
                origin: detector.origin,
                started: detector.started,
            }),
        }
    }
}

/// An audio input as it travels between regions; the edge sends its audio again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::realtime) struct CarriedAudioInput {
    begin: usize,
    listened: usize,
    end: usize,
    detector: Option<CarriedDetector>,
    #[serde(default)]
    room: Option<Endpointer>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CarriedDetector {
    endpointer: Endpointer,
    origin: usize,
    started: Option<usize>,
}

impl CarriedAudioInput {
    /// Whether its samples lie before this one, and in order.
    pub(in crate::realtime) fn is_before(&self, most: usize) -> bool {
        let is_detected = |detector: &CarriedDetector| detector.origin < most && detector.started < Some(most);
        let detector = self.detector.as_ref().is_none_or(is_detected);
        self.begin <= self.listened && self.listened <= self.end && self.end < most && detector
    }

    /// Whether no speech waits in it. With turn detection it may hold the padding of the next utterance.
    pub(in crate::realtime) fn is_empty(&self) -> bool {
        match &self.detector {
            Some(detector) => detector.started.is_none(),
            None => self.begin == self.end,
        }
    }

    /// The audio input without its audio, for a turn that cannot be rebuilt.
    pub(in crate::realtime) fn emptied(
        &self,
        turn_detection: Option<&TurnDetection>,
        utterance_max: Duration,
    ) -> AudioInput {
        let mut audio_input = AudioInput::new(turn_detection, utterance_max);
        audio_input.begin = self.end;
        audio_input.room = self.room.clone().map(Box::new);
        if let (Some(detector), Some(carried)) = (&mut audio_input.detector, &self.detector) {
            detector.endpointer = carried.endpointer.clone();
        }
        audio_input.forget();
        audio_input
    }
}

/// Bytes in one chunk of the resampler, 10 ms: a resampler that starts at any multiple gives the same samples from then on.
const CHUNK_BYTES: usize = 2 * WIRE_RATE as usize / 100;
/// Samples at the engine's rate in one chunk.
const CHUNK_SAMPLES: usize = FRAME_SAMPLES;

/// Largest difference in length of audio that was heard again: 20 ms, on which no word depends.
const REBUILT_OFF_MAX: usize = 2 * CHUNK_SAMPLES;

impl InputOffset {
    /// The first right sample of a resampler that starts here: its filter looks back less than a chunk.
    pub(in crate::realtime) fn exact_from(self) -> usize {
        match self.bytes.div_ceil(CHUNK_BYTES) {
            0 => self.origin,
            chunks => self.origin + (chunks + 1) * CHUNK_SAMPLES,
        }
    }
}

/// Takes the audio of another stack again, and reports none of its utterances.
pub(in crate::realtime) struct Rebuild {
    intake: Intake,
    /// Bytes to skip up to a start of the resampler.
    skip: usize,
    begin: usize,
    buffer: Vec<f32>,
}

impl Rebuild {
    /// `place` is the offset of the first byte.
    pub(in crate::realtime) fn at(place: InputOffset) -> Self {
        let chunks = place.bytes.div_ceil(CHUNK_BYTES);
        let mut intake = Intake::new();
        intake.place = place;
        Self {
            intake,
            skip: chunks * CHUNK_BYTES - place.bytes,
            begin: place.origin + chunks * CHUNK_SAMPLES,
            buffer: Vec::new(),
        }
    }

    pub(in crate::realtime) fn append(&mut self, bytes: &[u8]) {
        let (skipped, bytes) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= skipped.len();
        self.intake.place.bytes += skipped.len();
        let samples = self.intake.push(bytes);
        self.buffer.extend(samples);
    }

    /// Notes a commit or a clear of the buffer.
    pub(in crate::realtime) fn finish(&mut self) {
        let rest = self.intake.finish();
        self.buffer.extend(rest);
        // As many samples as came out there, even if the resampler never started here.
        let InputOffset { origin, bytes } = self.intake.place;
        let end = origin + (bytes / 2 * SAMPLE_RATE as usize).div_ceil(WIRE_RATE as usize);
        self.begin = self.begin.min(end);
        self.buffer.resize(end - self.begin, 0.0);
        self.intake.begin_at(end);
        self.skip = 0;
    }

    /// Samples that the other stack had; `None` if some are missing.
    pub(in crate::realtime) fn cut(&self, from: usize, samples: usize) -> Option<Vec<f32>> {
        let from = from.checked_sub(self.begin)?;
        Some(self.buffer.get(from..from.checked_add(samples)?)?.to_vec())
    }

    /// The audio input as it was; `None` if this audio is another.
    pub(in crate::realtime) fn into_audio_input(
        mut self,
        carried: CarriedAudioInput,
        turn_detection: Option<&TurnDetection>,
        utterance_max: Duration,
    ) -> Option<AudioInput> {
        let CarriedAudioInput {
            begin,
            listened,
            end,
            detector,
            room,
        } = carried;
        // The resampler of another release may look further back, and be a little ahead or behind.
        if (self.begin + self.buffer.len()).abs_diff(end) > REBUILT_OFF_MAX || !(begin..=end).contains(&listened) {
            return None;
        }
        self.buffer.resize(end.checked_sub(self.begin)?, 0.0);
        self.buffer.drain(..begin.checked_sub(self.begin)?);
        let mut audio_input = AudioInput::new(turn_detection, utterance_max);
        (
            audio_input.intake,
            audio_input.buffer,
            audio_input.begin,
            audio_input.listened,
        ) = (self.intake, self.buffer, begin, listened);
        audio_input.room = room.map(Box::new);
        match (&mut audio_input.detector, detector) {
            (None, None) => {}
            (Some(detector), Some(carried)) => {
                detector.endpointer = carried.endpointer;
                detector.origin = carried.origin;
                detector.started = carried.started;
                if detector
                    .started
                    .is_some_and(|started| !(begin..=listened).contains(&started))
                {
                    return None;
                }
            }
            _ => return None,
        }
        Some(audio_input)
    }
}
