//! Audio on its way in: 24 kHz bytes in pieces of any size become utterances at the engine's rate.

use speech::{
    SAMPLE_RATE,
    endpoint::{EndpointConfig, EndpointEvent, Endpointer, FRAME_SAMPLES},
    pcm,
    resample::Stream,
};

use serde::{Deserialize, Serialize};

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
        utterance: Utterance,
    },
}

/// A piece of what was heard.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Utterance {
    /// Where it begins, in samples from the first audio of the session.
    pub(super) from: usize,
    pub(super) samples: Vec<f32>,
}

/// The input audio buffer of a session.
pub(super) struct Ear {
    intake: Intake,
    buffer: Vec<f32>,
    /// Where `buffer` begins.
    begin: usize,
    /// Up to where the detector has listened.
    listened: usize,
    detector: Option<Detector>,
    /// Longest utterance, in samples.
    utterance_max: usize,
}

/// What brings the wire's bytes to the engine's rate.
struct Intake {
    resampler: Stream,
    /// The first half of a sample whose second half is in the next piece.
    odd_byte: Option<u8>,
    place: Place,
}

/// A place in the bytes that came in. The resampler starts afresh whenever the buffer is committed or cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Which sample the resampler began with.
    pub(super) origin: usize,
    /// Bytes it was given since then.
    pub(super) bytes: usize,
}

impl Intake {
    fn new() -> Self {
        Self {
            resampler: Stream::new(WIRE_RATE, SAMPLE_RATE)
                .expect("both rates are constants within the resampler's range"),
            odd_byte: None,
            place: Place { origin: 0, bytes: 0 },
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
        self.resampler.push(&samples)
    }

    fn whole_samples(&mut self, bytes: &[u8]) -> Vec<f32> {
        if bytes.len() % 2 == 1 {
            self.odd_byte = bytes.last().copied();
        }
        pcm::from_s16le(bytes)
    }

    /// Gives the rest; the caller says where the next audio begins.
    fn finish(&mut self) -> Vec<f32> {
        self.odd_byte = None;
        self.resampler.finish()
    }

    fn begin_at(&mut self, origin: usize) {
        self.place = Place { origin, bytes: 0 };
    }
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
            intake: Intake::new(),
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

    /// Whether it holds audio that the client has not committed yet: without turn detection that is an utterance in progress.
    pub(super) fn holds_uncommitted(&self) -> bool {
        self.detector.is_none() && self.end() > self.begin
    }

    /// Takes the next bytes.
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
                    utterance: Utterance { from, samples },
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
    pub(super) fn commit(&mut self) -> Utterance {
        let rest = self.intake.finish();
        self.buffer.extend(rest);
        let from = self.detector.as_ref().and_then(|detector| detector.started);
        let from = from.unwrap_or(self.begin);
        let samples = self.buffer.split_off(from - self.begin);
        self.begin += self.buffer.len() + samples.len();
        self.forget();
        Utterance { from, samples }
    }

    /// Throws everything away.
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

    /// Where the next byte will lie.
    pub(super) fn place(&self) -> Place {
        self.intake.place
    }

    /// Where what is kept begins.
    pub(super) fn begin(&self) -> usize {
        self.begin
    }

    /// All but the audio.
    pub(super) fn carry(&self) -> CarriedEar {
        CarriedEar {
            begin: self.begin,
            listened: self.listened,
            end: self.end(),
            detector: self.detector.as_ref().map(|detector| CarriedDetector {
                endpointer: detector.endpointer.clone(),
                origin: detector.origin,
                started: detector.started,
            }),
        }
    }

    fn end(&self) -> usize {
        self.begin + self.buffer.len()
    }
}

/// An ear as it travels between regions; its audio is sent again by the edge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CarriedEar {
    begin: usize,
    listened: usize,
    end: usize,
    detector: Option<CarriedDetector>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CarriedDetector {
    endpointer: Endpointer,
    origin: usize,
    started: Option<usize>,
}

impl CarriedEar {
    /// Whether it had heard nothing that is still waiting: with turn detection that is but the padding of what may come.
    pub(super) fn is_empty(&self) -> bool {
        match &self.detector {
            Some(detector) => detector.started.is_none(),
            None => self.begin == self.end,
        }
    }

    /// The ear with nothing in it, as if all had been thrown away: for a turn that can not be rebuilt.
    pub(super) fn emptied(&self, turn_detection: Option<&TurnDetection>, utterance_seconds_max: u32) -> Ear {
        let mut ear = Ear::new(turn_detection, utterance_seconds_max);
        ear.begin = self.end;
        ear.forget();
        ear
    }
}

/// Bytes in one chunk of the resampler, 10 ms: it can be started at any multiple of it and gives the same from then on.
const CHUNK_BYTES: usize = 2 * WIRE_RATE as usize / 100;
/// What a chunk becomes.
const CHUNK_SAMPLES: usize = FRAME_SAMPLES;

impl Place {
    /// The first sample that comes out right when the resampler is started here: its filter looks back less than a chunk.
    pub(super) fn exact_from(self) -> usize {
        match self.bytes.div_ceil(CHUNK_BYTES) {
            0 => self.origin,
            chunks => self.origin + (chunks + 1) * CHUNK_SAMPLES,
        }
    }
}

/// Hears again what was heard elsewhere, without taking notice of any of it.
pub(super) struct Rebuild {
    intake: Intake,
    /// Bytes to pass over up to where the resampler can be started.
    skip: usize,
    begin: usize,
    buffer: Vec<f32>,
}

impl Rebuild {
    /// `place` is where the first byte lay.
    pub(super) fn at(place: Place) -> Self {
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

    pub(super) fn append(&mut self, bytes: &[u8]) {
        let (skipped, bytes) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= skipped.len();
        self.intake.place.bytes += skipped.len();
        let samples = self.intake.push(bytes);
        self.buffer.extend(samples);
    }

    /// The buffer was committed or cleared here.
    pub(super) fn finish(&mut self) {
        let rest = self.intake.finish();
        self.buffer.extend(rest);
        // As many samples as came out there, also if the resampler was never started here.
        let Place { origin, bytes } = self.intake.place;
        let end = origin + (bytes / 2 * SAMPLE_RATE as usize).div_ceil(WIRE_RATE as usize);
        self.begin = self.begin.min(end);
        self.buffer.resize(end - self.begin, 0.0);
        self.intake.begin_at(end);
        self.skip = 0;
    }

    /// What was heard there; `None` if it is not all there.
    pub(super) fn cut(&self, from: usize, samples: usize) -> Option<Vec<f32>> {
        let from = from.checked_sub(self.begin)?;
        Some(self.buffer.get(from..from.checked_add(samples)?)?.to_vec())
    }

    /// The ear as it was; `None` if what was heard again is not what it had heard.
    pub(super) fn into_ear(
        mut self,
        carried: CarriedEar,
        turn_detection: Option<&TurnDetection>,
        utterance_seconds_max: u32,
    ) -> Option<Ear> {
        let CarriedEar {
            begin,
            listened,
            end,
            detector,
        } = carried;
        if self.begin + self.buffer.len() != end || !(begin..=end).contains(&listened) {
            return None;
        }
        self.buffer.drain(..begin.checked_sub(self.begin)?);
        let mut ear = Ear::new(turn_detection, utterance_seconds_max);
        (ear.intake, ear.buffer, ear.begin, ear.listened) = (self.intake, self.buffer, begin, listened);
        match (&mut ear.detector, detector) {
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
        Some(ear)
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
            Noticed::Stopped { utterance: one, .. },
            Noticed::Started { .. },
            Noticed::Stopped {
                utterance: two,
                at_ms: last,
            },
        ] = &noticed[..]
        else {
            panic!("{noticed:?}");
        };
        let (one, two) = (&one.samples, &two.samples);
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
        assert!((seconds(&ear.commit().samples) - accepted as f64).abs() < 0.01);
        assert!(ear.append(&second).is_ok());
        ear.clear();
        assert!(ear.commit().samples.is_empty());
    }

    /// Hears a stream in pieces of a size, up to piece `cut`, and rebuilds the ear from the latest piece that suffices.
    fn check_rebuilt(size: usize, commit_every: usize, detection: Option<&TurnDetection>) {
        let stream = wire(&[silence(700), tone(900), silence(900), tone(400)].concat());
        let pieces: Vec<&[u8]> = stream.chunks(size).collect();
        for cut in (1..pieces.len()).step_by(pieces.len().div_ceil(40)) {
            let mut ear = Ear::new(detection, 60);
            let mut places = Vec::new();
            for (at, piece) in pieces[..cut].iter().enumerate() {
                places.push(ear.place());
                ear.append(piece).unwrap();
                if at % commit_every == commit_every - 1 {
                    ear.commit();
                }
            }
            let from = places.iter().rposition(|place| place.exact_from() <= ear.begin());
            let from = from.expect("the first piece always suffices");
            let mut rebuild = Rebuild::at(places[from]);
            for (at, piece) in pieces[..cut].iter().enumerate().skip(from) {
                rebuild.append(piece);
                if at % commit_every == commit_every - 1 {
                    rebuild.finish();
                }
            }
            let mut rebuilt = rebuild
                .into_ear(ear.carry(), detection, 60)
                .expect("it is the same ear");
            assert_eq!(rebuilt.buffer, ear.buffer, "pieces of {size}, {cut} of them");
            for piece in &pieces[cut..] {
                assert_eq!(rebuilt.append(piece), ear.append(piece));
            }
            assert_eq!(rebuilt.commit(), ear.commit());
        }
    }

    #[test]
    fn an_ear_is_rebuilt_to_the_sample_from_its_last_pieces() {
        for size in [9_600, 1_920, 480, 997, 1_003, 331] {
            for commit_every in [usize::MAX, 7, 3, 1] {
                check_rebuilt(size, commit_every, Some(&TurnDetection::default()));
                check_rebuilt(size, commit_every, None);
            }
        }
    }
}
