//! Where speech starts and stops in a stream, by energy above the background.
//!
//! Pure: time is counted in the audio itself, 10 ms a frame.

use serde::{Deserialize, Serialize};

use crate::SAMPLE_RATE;

/// Samples in one frame.
pub const FRAME_SAMPLES: usize = SAMPLE_RATE as usize / 100;
const FRAME_MS: u64 = 10;

/// Settings with the names and meanings of the Realtime protocol's `server_vad`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EndpointConfig {
    /// How sure to be that a frame is speech, in 0..=1; noisy rooms want more.
    pub threshold: f32,
    /// Audio before the detected start that belongs to the utterance.
    pub prefix_padding_ms: u64,
    /// Silence that ends an utterance.
    pub silence_duration_ms: u64,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            prefix_padding_ms: 300,
            silence_duration_ms: 500,
        }
    }
}

/// What changed with the last frame. Times count from the first frame fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointEvent {
    /// The utterance begins at `at_ms`, prefix padding included.
    SpeechStarted {
        /// Start of the audio to transcribe.
        at_ms: u64,
    },
    /// The utterance ends at `at_ms`, the silence that ended it included.
    SpeechStopped {
        /// End of the audio to transcribe.
        at_ms: u64,
    },
}

// A frame this far above the background is speech for certain; half of it at the default threshold. Speech in a quiet
// room lies 30 dB and more above it, a television in the next room about 10.
const CERTAIN_DB: f32 = 24.0;
// Below this even a silent line's hiss would count; ordinary speech at arm's length records at -35 to -20.
const QUIETEST_SPEECH_DB: f32 = -52.0;
const FLOOR_DB: std::ops::RangeInclusive<f32> = -75.0..=-30.0;
// The background estimate falls at once and rises by 4 dB a second: the gaps between words hold it down while somebody
// speaks, and a fan that starts is the background after a few seconds.
const FLOOR_RISE_DB: f32 = 0.04;
// A click lasts one frame; a stop consonant before a vowel lasts longer.
const ONSET_FRAMES: u64 = 3;
// Speech fades at its end; once inside, less is enough to stay inside.
const STAY_SHARE: f32 = 0.6;

/// The state between frames. It can be written down, so that another region goes on listening in mid-word.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpointer {
    config: EndpointConfig,
    now_ms: u64,
    floor_db: f32,
    voiced_frames: u64,
    silent_ms: u64,
    speaking: bool,
    /// No utterance starts before the end of the one before.
    last_stop_ms: u64,
}

impl Endpointer {
    /// Starts in silence, at 0 ms.
    pub fn new(config: EndpointConfig) -> Self {
        Self {
            config,
            now_ms: 0,
            floor_db: -65.0,
            voiced_frames: 0,
            silent_ms: 0,
            speaking: false,
            last_stop_ms: 0,
        }
    }

    /// Whether an utterance is in progress.
    pub fn is_speaking(&self) -> bool {
        self.speaking
    }

    /// End of the last frame fed.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Takes one frame; a shorter one at the end of a stream counts as a whole one.
    pub fn feed(&mut self, frame: &[f32]) -> Option<EndpointEvent> {
        debug_assert!(frame.len() <= FRAME_SAMPLES, "feed one frame at a time");
        let voiced = self.is_voiced(frame);
        self.now_ms += FRAME_MS;
        if self.speaking {
            self.silent_ms = if voiced { 0 } else { self.silent_ms + FRAME_MS };
            if self.silent_ms < self.config.silence_duration_ms.max(FRAME_MS) {
                return None;
            }
            self.speaking = false;
            self.voiced_frames = 0;
            self.last_stop_ms = self.now_ms;
            return Some(EndpointEvent::SpeechStopped { at_ms: self.now_ms });
        }
        self.voiced_frames = if voiced { self.voiced_frames + 1 } else { 0 };
        if self.voiced_frames < ONSET_FRAMES {
            return None;
        }
        self.speaking = true;
        self.silent_ms = 0;
        let onset_ms = self.now_ms - ONSET_FRAMES * FRAME_MS;
        let at_ms = onset_ms
            .saturating_sub(self.config.prefix_padding_ms)
            .max(self.last_stop_ms.min(onset_ms));
        Some(EndpointEvent::SpeechStarted { at_ms })
    }

    /// Takes any number of samples that are a whole number of frames, and the events in order.
    pub fn feed_all(&mut self, samples: &[f32]) -> Vec<EndpointEvent> {
        samples
            .chunks(FRAME_SAMPLES)
            .filter_map(|frame| self.feed(frame))
            .collect()
    }

    fn is_voiced(&mut self, frame: &[f32]) -> bool {
        let mean = frame.iter().sum::<f32>() / frame.len().max(1) as f32;
        // Without its mean: cheap microphones sit off zero, which is not sound.
        let power = frame.iter().map(|s| (s - mean) * (s - mean)).sum::<f32>() / frame.len().max(1) as f32;
        let level_db = 10.0 * (power.max(1e-10)).log10();
        let level_db = if level_db.is_finite() {
            level_db
        } else {
            *FLOOR_DB.start()
        };
        let sure = ((level_db - self.floor_db) / CERTAIN_DB).clamp(0.0, 1.0);
        let needed = self.config.threshold.clamp(0.05, 1.0) * if self.speaking { STAY_SHARE } else { 1.0 };
        self.floor_db = level_db
            .min(self.floor_db + FLOOR_RISE_DB)
            .clamp(*FLOOR_DB.start(), *FLOOR_DB.end());
        level_db > QUIETEST_SPEECH_DB && sure >= needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(ms: usize, level: f32, seed: &mut u32) -> Vec<f32> {
        (0..ms * 16)
            .map(|_| {
                *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((*seed >> 8) as f32 / 8_388_608.0 - 1.0) * level
            })
            .collect()
    }

    fn voice(ms: usize) -> Vec<f32> {
        (0..ms * 16).map(|i| 0.2 * (i as f32 * 0.07).sin()).collect()
    }

    fn check(audio: &[f32], config: EndpointConfig, want: &[(u64, u64)]) {
        let events = Endpointer::new(config).feed_all(audio);
        assert_eq!(events.len(), want.len() * 2, "{events:?}");
        for (pair, (start, stop)) in events.chunks(2).zip(want) {
            let [
                EndpointEvent::SpeechStarted { at_ms: a },
                EndpointEvent::SpeechStopped { at_ms: b },
            ] = pair
            else {
                panic!("{pair:?}")
            };
            assert!(
                a.abs_diff(*start) <= 30 && b.abs_diff(*stop) <= 30,
                "{a}..{b}, wanted {start}..{stop}"
            );
        }
    }

    #[test]
    fn an_utterance_has_its_padding_and_its_silence() {
        let mut seed = 1;
        let audio = [
            noise(1_000, 0.001, &mut seed),
            voice(800),
            noise(1_000, 0.001, &mut seed),
        ]
        .concat();
        check(&audio, EndpointConfig::default(), &[(700, 2_300)]);
    }

    #[test]
    fn a_pause_shorter_than_the_limit_does_not_split() {
        let audio = [voice(400), vec![0.0; 300 * 16], voice(400), vec![0.0; 700 * 16]].concat();
        check(&audio, EndpointConfig::default(), &[(0, 1_600)]);
        let hasty = EndpointConfig {
            silence_duration_ms: 200,
            ..EndpointConfig::default()
        };
        // The second one's padding stops at the end of the first.
        check(&audio, hasty, &[(0, 600), (600, 1_300)]);
    }

    #[test]
    fn silence_hum_and_clicks_are_not_speech() {
        let mut seed = 2;
        check(&vec![0.0; 16_000], EndpointConfig::default(), &[]);
        check(&vec![0.3; 16_000], EndpointConfig::default(), &[]);
        check(&noise(3_000, 0.003, &mut seed), EndpointConfig::default(), &[]);
        let mut click = vec![0.0; 16_000];
        click[8_000..8_100].fill(0.9);
        check(&click, EndpointConfig::default(), &[]);
        check(&[f32::NAN; 16_000], EndpointConfig::default(), &[]);
    }

    #[test]
    fn a_loud_room_becomes_the_background() {
        let mut seed = 3;
        let mut ear = Endpointer::new(EndpointConfig::default());
        ear.feed_all(&noise(8_000, 0.02, &mut seed));
        assert!(!ear.is_speaking());
        assert!(matches!(
            ear.feed_all(&voice(300)).as_slice(),
            [EndpointEvent::SpeechStarted { .. }]
        ));
    }
}
