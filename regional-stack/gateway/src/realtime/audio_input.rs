//! Turns incoming audio, 24 kHz bytes in pieces of any size, into utterances at the engine's rate.

mod carried;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use speech::{
    SAMPLE_RATE,
    endpoint::{self, EndpointConfig, EndpointEvent, Endpointer, FRAME_SAMPLES},
    pcm,
    resample::Stream,
};

pub(super) use self::carried::{CarriedAudioInput, Rebuild};
use super::settings::TurnDetection;

/// Samples per second of audio in the protocol's `audio/pcm`.
pub(super) const WIRE_RATE: u32 = 24_000;

const SAMPLES_PER_MS: usize = SAMPLE_RATE as usize / 1000;

/// A long utterance is cut at the quietest moment of its last seconds: running speech has a gap in each of them.
const CUT_SEARCH_SAMPLES: usize = 5 * SAMPLE_RATE as usize;
/// Both sides of a cut repeat this much of the other: if the cut lies in a word after all, one side has most of that word.
const CUT_OVERLAP_SAMPLES: usize = SAMPLE_RATE as usize / 10;

/// An event of the audio input. Times count from the first audio of the session.
#[derive(Debug, PartialEq)]
pub(super) enum Noticed {
    Started {
        at_ms: u64,
        /// Whether the speaker began. False when the speaker goes on behind a cut.
        interrupts: bool,
    },
    Stopped {
        at_ms: u64,
        utterance: Utterance,
    },
}

/// A piece of the audio.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Utterance {
    /// Its beginning, in samples from the first audio of the session.
    pub(super) from: usize,
    pub(super) samples: Vec<f32>,
}

/// The input audio buffer of a session.
pub(super) struct AudioInput {
    intake: Intake,
    buffer: Vec<f32>,
    /// The beginning of `buffer`, in the same samples.
    begin: usize,
    /// The first sample that the detector does not have yet.
    listened: usize,
    detector: Option<Detector>,
    /// The detector's background, while turn detection is off.
    room: Option<Box<Endpointer>>,
    /// Longest utterance, in samples.
    utterance_max: usize,
}

/// Converts the client's bytes to samples at the engine's rate.
struct Intake {
    /// Made with the first audio: its tables are half of what an idle session would take.
    resampler: Option<Stream>,
    /// The first byte of a sample whose second byte comes with the next piece.
    odd_byte: Option<u8>,
    place: InputOffset,
}

/// An offset in the incoming bytes. The resampler starts afresh whenever the buffer is committed or cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputOffset {
    /// The sample at which the resampler began.
    pub(super) origin: usize,
    /// Bytes that it got since then.
    pub(super) bytes: usize,
}

impl Intake {
    fn new() -> Self {
        Self {
            resampler: None,
            odd_byte: None,
            place: InputOffset { origin: 0, bytes: 0 },
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Vec<f32> {
        self.place.bytes += bytes.len();
        let samples = match (self.odd_byte.take(), bytes) {
            (Some(first), [second, rest @ ..]) => {
                let mut samples = pcm::from_s16le(&[first, *second]);
                samples.extend(self.whole_samples(rest));
                samples
            }
            (None, bytes) => self.whole_samples(bytes),
            (odd_byte, _) => {
                self.odd_byte = odd_byte;
                Vec::new()
            }
        };
        if samples.is_empty() {
            return samples;
        }
        let resampler = self.resampler.get_or_insert_with(|| {
            Stream::new(WIRE_RATE, SAMPLE_RATE).expect("both rates are constants within the resampler's range")
        });
        resampler.push(&samples)
    }

    fn whole_samples(&mut self, bytes: &[u8]) -> Vec<f32> {
        if bytes.len() % 2 == 1 {
            self.odd_byte = bytes.last().copied();
        }
        pcm::from_s16le(bytes)
    }

    /// Returns the rest. The caller sets the position of the next audio.
    fn finish(&mut self) -> Vec<f32> {
        self.odd_byte = None;
        self.resampler.as_mut().map(Stream::finish).unwrap_or_default()
    }

    fn begin_at(&mut self, origin: usize) {
        self.place = InputOffset { origin, bytes: 0 };
    }
}

struct Detector {
    config: EndpointConfig,
    endpointer: Endpointer,
    /// The beginning of its time, in samples.
    origin: usize,
    /// The beginning of the current utterance, in samples.
    started: Option<usize>,
}

impl Detector {
    fn restart(&mut self, origin: usize) {
        self.endpointer = self.endpointer.afresh(self.config);
        self.origin = origin;
        self.started = None;
    }
}

/// The client commits utterances itself, and its buffer holds as much audio as one utterance may have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BufferFull;

impl AudioInput {
    pub(super) fn new(turn_detection: Option<&TurnDetection>, utterance_max: Duration) -> Self {
        let mut audio_input = Self {
            intake: Intake::new(),
            buffer: Vec::new(),
            begin: 0,
            listened: 0,
            detector: None,
            room: None,
            utterance_max: (utterance_max.as_secs_f64() * f64::from(SAMPLE_RATE)) as usize,
        };
        audio_input.detect(turn_detection);
        audio_input
    }

    /// Changes the detection of turns from here on.
    pub(super) fn detect(&mut self, turn_detection: Option<&TurnDetection>) {
        self.listened = self.end();
        let origin = self.end();
        if let Some(detector) = self.detector.take() {
            self.room = Some(Box::new(detector.endpointer));
        }
        self.detector = turn_detection.map(|detection| Detector {
            config: detection.endpoint,
            endpointer: match self.room.take() {
                Some(room) => room.afresh(detection.endpoint),
                None => Endpointer::new(detection.endpoint),
            },
            origin,
            started: None,
        });
    }

    /// Whether an utterance is in progress, or a sound that may become one.
    pub(super) fn is_hearing_speech(&self) -> bool {
        self.detector
            .as_ref()
            .is_some_and(|detector| detector.started.is_some() || detector.endpointer.is_unsure())
    }

    /// Whether it holds uncommitted audio: without turn detection that is an utterance in progress.
    pub(super) fn holds_uncommitted(&self) -> bool {
        self.detector.is_none() && self.end() > self.begin
    }

    /// Whether the buffer has room for so many bytes: without turn detection only the client ends an utterance.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        const BYTES_PER_SECOND: usize = 2 * WIRE_RATE as usize;
        self.detector.is_some()
            || self.buffer.len() + bytes * SAMPLE_RATE as usize / BYTES_PER_SECOND <= self.utterance_max
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<Vec<Noticed>, BufferFull> {
        if self.detector.is_none() && self.buffer.len() >= self.utterance_max {
            return Err(BufferFull);
        }
        let samples = self.intake.push(bytes);
        self.buffer.extend(samples);
        Ok(self.listen())
    }

    fn listen(&mut self) -> Vec<Noticed> {
        let mut noticed = Vec::new();
        let (begin, end) = (self.begin, self.end());
        let Some(detector) = &mut self.detector else {
            return noticed;
        };
        while self.listened + FRAME_SAMPLES <= end {
            let frame = &self.buffer[self.listened - self.begin..][..FRAME_SAMPLES];
            let event = detector.endpointer.feed(frame);
            self.listened += FRAME_SAMPLES;
            let position = |at_ms: u64| detector.origin + usize::try_from(at_ms).unwrap_or(0) * SAMPLES_PER_MS;
            match event {
                Some(EndpointEvent::SpeechStarted { at_ms }) => {
                    // The padding may reach back before the audio that is still there.
                    let at = position(at_ms).max(begin);
                    detector.started = Some(at);
                    noticed.push(Noticed::Started {
                        at_ms: millis(at),
                        interrupts: true,
                    });
                }
                Some(EndpointEvent::SpeechStopped { at_ms }) => {
                    if let Some(from) = detector.started.take() {
                        let to = position(at_ms).min(self.listened);
                        let samples = self.buffer[from - self.begin..to - self.begin].to_vec();
                        noticed.push(Noticed::Stopped {
                            at_ms: millis(to),
                            utterance: Utterance { from, samples },
                        });
                    }
                }
                None => {}
            }
            // A speaker, or a radio, does not pause: the audio up to the quietest moment becomes the utterance, and the rest becomes
            // the next one.
            if let Some(from) = detector.started
                && self.listened - from >= self.utterance_max
            {
                let search = CUT_SEARCH_SAMPLES.min(self.utterance_max / 2);
                let heard = &self.buffer[from - self.begin..self.listened - self.begin];
                let cut = from + endpoint::quietest(heard, heard.len() - search..heard.len());
                let to = (cut + CUT_OVERLAP_SAMPLES).min(self.listened);
                let next = cut.saturating_sub(CUT_OVERLAP_SAMPLES).max(from + 1);
                noticed.push(Noticed::Stopped {
                    at_ms: millis(to),
                    utterance: Utterance {
                        from,
                        samples: heard[..to - from].to_vec(),
                    },
                });
                detector.started = Some(next);
                noticed.push(Noticed::Started {
                    at_ms: millis(next),
                    interrupts: false,
                });
            }
        }
        // In silence the audio input keeps only the audio with which the next utterance may begin.
        let earliest = usize::try_from(detector.endpointer.earliest_ms()).unwrap_or(0) * SAMPLES_PER_MS;
        let keep_from = detector
            .started
            .unwrap_or((detector.origin + earliest).min(self.listened));
        if keep_from > self.begin {
            self.buffer.drain(..keep_from - self.begin);
            self.begin = keep_from;
        }
        noticed
    }

    /// Takes all audio out, as one utterance, without audio that a detector found to be no speech: a client that closes its microphone
    /// behind an utterance commits the sound of the room since then.
    pub(super) fn commit(&mut self) -> Utterance {
        let rest = self.intake.finish();
        self.buffer.extend(rest);
        let from = match &self.detector {
            None => self.begin,
            Some(detector) => match detector.started {
                Some(started) => started,
                None if detector.endpointer.is_unsure() => self.begin,
                None => self.end(),
            },
        };
        let samples = self.buffer.split_off(from - self.begin);
        self.begin += self.buffer.len() + samples.len();
        self.forget();
        Utterance { from, samples }
    }

    /// Drops all audio.
    pub(super) fn clear(&mut self) {
        let rest = self.intake.finish();
        self.begin += self.buffer.len() + rest.len();
        self.forget();
    }

    fn forget(&mut self) {
        self.buffer.clear();
        self.intake.begin_at(self.begin);
        self.listened = self.begin;
        if let Some(detector) = &mut self.detector {
            detector.restart(self.begin);
        }
    }

    /// The offset of the next byte.
    pub(super) fn offset(&self) -> InputOffset {
        self.intake.place
    }

    /// The first sample that is still there.
    pub(super) fn begin(&self) -> usize {
        self.begin
    }

    fn end(&self) -> usize {
        self.begin + self.buffer.len()
    }
}

fn millis(samples: usize) -> u64 {
    (samples / SAMPLES_PER_MS) as u64
}

/// Length of an utterance in seconds.
pub(super) fn seconds(samples: &[f32]) -> f64 {
    samples.len() as f64 / f64::from(SAMPLE_RATE)
}

#[cfg(test)]
mod tests;
