//! Audio on its way in: 24 kHz bytes in pieces of any size become utterances at the engine's rate.

use speech::{
    SAMPLE_RATE,
    endpoint::{EndpointConfig, EndpointEvent, Endpointer, FRAME_SAMPLES},
    pcm,
    resample::Stream,
};

use super::settings::TurnDetection;

/// Samples per second of audio in the protocol's `audio/pcm`.
pub(super) const WIRE_RATE: u32 = 24_000;

const SAMPLES_PER_MS: usize = SAMPLE_RATE as usize / 1000;

/// Something the ear noticed. Times count from the first audio of the session.
#[derive(Debug, PartialEq)]
pub(super) enum Noticed {
    Started {
        at_ms: u64,
    },
    /// An utterance, complete.
    Stopped {
        at_ms: u64,
        samples: Vec<f32>,
    },
}

/// The input audio buffer of a session.
pub(super) struct Ear {
    resampler: Stream,
    /// The first half of a sample whose second half is in the next piece.
    odd_byte: Option<u8>,
    buffer: Vec<f32>,
    /// Where `buffer` begins.
    begin: usize,
    /// Up to where the detector has listened.
    listened: usize,
    detector: Option<Detector>,
    /// Longest utterance, in samples.
    utterance_max: usize,
}

struct Detector {
    config: EndpointConfig,
    endpointer: Endpointer,
    /// Where its time begins.
    origin: usize,
    /// Where the current utterance begins.
    started: Option<usize>,
}

impl Detector {
    fn restart(&mut self, origin: usize) {
        self.endpointer = Endpointer::new(self.config);
        self.origin = origin;
        self.started = None;
    }
}

/// More audio than one utterance may have, and nobody to end it: the client commits by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BufferFull;

impl Ear {
    pub(super) fn new(turn_detection: Option<&TurnDetection>, utterance_seconds_max: u32) -> Self {
        let mut ear = Self {
            resampler: Stream::new(WIRE_RATE, SAMPLE_RATE)
                .expect("both rates are constants within the resampler's range"),
            odd_byte: None,
            buffer: Vec::new(),
            begin: 0,
            listened: 0,
            detector: None,
            utterance_max: utterance_seconds_max as usize * SAMPLE_RATE as usize,
        };
        ear.detect(turn_detection);
        ear
    }

    /// Changes how turns are detected, from here on.
    pub(super) fn detect(&mut self, turn_detection: Option<&TurnDetection>) {
        self.listened = self.end();
        let origin = self.end();
        self.detector = turn_detection.map(|detection| Detector {
            config: detection.endpoint,
            endpointer: Endpointer::new(detection.endpoint),
            origin,
            started: None,
        });
    }

    /// Whether an utterance is in progress.
    pub(super) fn is_hearing_speech(&self) -> bool {
        self.detector
            .as_ref()
            .is_some_and(|detector| detector.started.is_some())
    }

    /// Takes the next bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<Vec<Noticed>, BufferFull> {
        if self.detector.is_none() && self.buffer.len() >= self.utterance_max {
            return Err(BufferFull);
        }
        let samples = match (self.odd_byte.take(), bytes) {
            (Some(first), [second, rest @ ..]) => {
                let mut samples = pcm::from_s16le(&[first, *second]);
                samples.extend(self.whole_samples(rest));
                samples
            }
            (odd_byte, bytes) => {
                self.odd_byte = odd_byte;
                if odd_byte.is_some() {
                    Vec::new()
                } else {
                    self.whole_samples(bytes)
                }
            }
        };
        let resampled = self.resampler.push(&samples);
        self.buffer.extend(resampled);
        Ok(self.listen())
    }

    fn whole_samples(&mut self, bytes: &[u8]) -> Vec<f32> {
        if bytes.len() % 2 == 1 {
            self.odd_byte = bytes.last().copied();
        }
        pcm::from_s16le(bytes)
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
            let stop = match event {
                Some(EndpointEvent::SpeechStarted { at_ms }) => {
                    // Padding may reach back before what is still kept.
                    let at = position(at_ms).max(begin);
                    detector.started = Some(at);
                    noticed.push(Noticed::Started { at_ms: millis(at) });
                    None
                }
                Some(EndpointEvent::SpeechStopped { at_ms }) => detector
                    .started
                    .take()
                    .map(|started| (started, position(at_ms).min(self.listened))),
                None => match detector.started {
                    // Somebody, or a radio, goes on and on: what there is becomes the utterance.
                    Some(started) if self.listened - started >= self.utterance_max => {
                        detector.restart(self.listened);
                        Some((started, self.listened))
                    }
                    _ => None,
                },
            };
            if let Some((from, to)) = stop {
                let samples = self.buffer[from - self.begin..to - self.begin].to_vec();
                noticed.push(Noticed::Stopped {
                    at_ms: millis(to),
                    samples,
                });
            }
        }
        // In silence only the padding of the next utterance is kept. Its three frames of onset, too.
        let padding = usize::try_from(detector.config.prefix_padding_ms).unwrap_or(0) * SAMPLES_PER_MS;
        let keep_from = detector
            .started
            .unwrap_or(self.listened.saturating_sub(padding + 4 * FRAME_SAMPLES));
        if keep_from > self.begin {
            self.buffer.drain(..keep_from - self.begin);
            self.begin = keep_from;
        }
        noticed
    }

    /// Takes everything out, as one utterance.
    pub(super) fn commit(&mut self) -> Vec<f32> {
        let rest = self.resampler.finish();
        self.buffer.extend(rest);
        let samples = match self.detector.as_ref().and_then(|detector| detector.started) {
            Some(started) => self.buffer.split_off(started - self.begin),
            None => std::mem::take(&mut self.buffer),
        };
        self.begin += self.buffer.len() + samples.len();
        self.forget();
        samples
    }

    /// Throws everything away.
    pub(super) fn clear(&mut self) {
        let rest = self.resampler.finish();
        self.begin += self.buffer.len() + rest.len();
        self.forget();
    }

    fn forget(&mut self) {
        self.buffer.clear();
        self.odd_byte = None;
        self.listened = self.begin;
        if let Some(detector) = &mut self.detector {
            detector.restart(self.begin);
        }
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
mod tests {
    use speech::resample::resample;

    use super::*;

    fn wire(samples: &[f32]) -> Vec<u8> {
        pcm::to_s16le(&resample(samples, SAMPLE_RATE, WIRE_RATE).unwrap())
    }

    fn tone(ms: usize) -> Vec<f32> {
        (0..ms * SAMPLES_PER_MS)
            .map(|at| 0.2 * (at as f32 * 0.07).sin())
            .collect()
    }

    fn silence(ms: usize) -> Vec<f32> {
        vec![0.0; ms * SAMPLES_PER_MS]
    }

    #[test]
    fn utterances_are_cut_out_of_a_stream_of_odd_pieces() {
        let stream = wire(&[silence(1000), tone(800), silence(1500), tone(600), silence(900)].concat());
        let mut ear = Ear::new(Some(&TurnDetection::default()), 60);
        let mut noticed = Vec::new();
        for piece in stream.chunks(997) {
            noticed.extend(ear.append(piece).unwrap());
        }
        let [
            Noticed::Started { at_ms: first },
            Noticed::Stopped { samples: one, .. },
            Noticed::Started { .. },
            Noticed::Stopped {
                samples: two,
                at_ms: last,
            },
        ] = &noticed[..]
        else {
            panic!("{noticed:?}");
        };
        assert!(first.abs_diff(700) <= 30, "{first}");
        assert!((one.len() / SAMPLES_PER_MS).abs_diff(1600) <= 60, "{}", one.len());
        assert!((two.len() / SAMPLES_PER_MS).abs_diff(1400) <= 60, "{}", two.len());
        assert!(last.abs_diff(4400) <= 60, "{last}");
        assert!(ear.buffer.len() < 500 * SAMPLES_PER_MS, "silence is not kept");
    }

    #[test]
    fn an_endless_utterance_is_cut_and_memory_stays_bounded() {
        let mut ear = Ear::new(Some(&TurnDetection::default()), 2);
        let stream = wire(&tone(7000));
        let mut stops = 0;
        for piece in stream.chunks(4800) {
            stops += ear
                .append(piece)
                .unwrap()
                .iter()
                .filter(|noticed| matches!(noticed, Noticed::Stopped { .. }))
                .count();
            assert!(ear.buffer.len() <= 3 * SAMPLE_RATE as usize);
        }
        assert!(stops >= 3, "{stops}");
    }

    #[test]
    fn a_client_that_never_commits_is_stopped() {
        let mut ear = Ear::new(None, 2);
        let second = wire(&tone(1000));
        // A last piece may pass the limit; the one after it does not.
        let accepted = (0..5).filter(|_| ear.append(&second).is_ok()).count();
        assert!((2..=3).contains(&accepted), "{accepted}");
        assert!((seconds(&ear.commit()) - accepted as f64).abs() < 0.01);
        assert!(ear.append(&second).is_ok());
        ear.clear();
        assert!(ear.commit().is_empty());
    }
}
