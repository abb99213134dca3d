//! Finds the start and end of speech in a stream, by energy above the background.
//!
//! This module is pure: it measures time by the audio itself, 10 ms per frame. It learns the background from the first
//! second and follows it from then on. A fan or an engine becomes part of the background within seconds. So does music,
//! by the range over which its level swings.
//!
//! Hand-written: a checkpoint carries the state of this module to another region, and a detector in a library or a network keeps its
//! state to itself.
//!
//! Why it is so: docs/decisions/14-hearing-and-understanding.md.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::SAMPLE_RATE;

/// Samples in one frame of 10 ms.
pub const FRAME_SAMPLES: usize = SAMPLE_RATE as usize / 100;
const FRAME_MS: u64 = 10;

/// Settings with the names and meanings of the Realtime protocol's `server_vad`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointConfig {
    /// Certainty from which a frame counts as speech, 0..=1. Noisy rooms need a higher value.
    pub threshold: f32,
    /// Audio before the detected start that belongs to the utterance, in milliseconds.
    pub prefix_padding_ms: u64,
    /// Length of the silence that ends an utterance, in milliseconds.
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

/// A change of state with the last frame. Times count from the first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointEvent {
    /// The utterance begins at `at_ms`, which includes the prefix padding.
    SpeechStarted {
        /// Start of the audio to transcribe.
        at_ms: u64,
    },
    /// The utterance ends at `at_ms`, which includes the silence that ended it.
    SpeechStopped {
        /// End of the audio to transcribe.
        at_ms: u64,
    },
}

// Below this level, the hiss of a silent line would count. Ordinary speech at arm's length has -35 to -20 dB.
const QUIETEST_SPEECH_DB: f32 = -52.0;
// Only a microphone that is off, or gated, is this quiet.
const DIGITAL_SILENCE_DB: f32 = -88.0;
const FLOOR_DB: std::ops::RangeInclusive<f32> = -75.0..=-6.0;
// A frame this far above the background is certainly speech; at the default threshold half of it suffices. In a quiet
// room speech lies 30 dB or more above the background, and a television in the next room about 10 dB. In a loud room
// people raise their voices, but by less than the room is louder.
const CERTAIN_QUIET: (f32, f32) = (-50.0, 24.0);
const CERTAIN_LOUD: (f32, f32) = (-25.0, 14.0);
// Speech fades towards its end, so once an utterance has begun, this fraction of the distance above the background
// suffices.
const STAY_SHARE: f32 = 0.6;

// A level counts when it lasts this many frames: a click is not speech, and the gap between two cycles of a voice is
// not a pause.
const STEADY_FRAMES: usize = 3;
// A click, a cough or a tap on the table is shorter than this; "no" and "stop" are longer.
const SHORTEST_FRAMES: u64 = 12;
// A key that is struck is shorter than this, and the vowel of a syllable is longer. "A" and "the" are shorter now and then,
// but seldom stand alone twice in a row.
const SYLLABLE_FRAMES: u64 = 8;
const SHORT_SOUNDS_MAX: u8 = 1;
// This much speech is no accident, so it may interrupt the reply.
const CERTAIN_FRAMES: u64 = 25;
// Percentage of loud frames since the beginning. Typing is loud a fifth of the time, words two thirds.
const DENSE_PERCENT: u64 = 40;
// A pause of this length separates one click from the next.
const CLICK_PAUSE_FRAMES: u64 = 20;

// The room is learnt from the first second, or earlier once speech stands out by `CONTRAST_DB`.
const LEARN_FRAMES: u64 = 100;
const CONTRAST_DB: f32 = 12.0;
const GAP_DB: f32 = 5.0;
const ROOM_FRAMES: u64 = 10;
// The background is the quietest level of the last four seconds. Running speech has a gap within that time; a fan that
// starts has none. When the fan stops, the background falls within half a second.
const SPAN_FRAMES: u64 = 25;
const SPANS: usize = 16;
const FALL_DB: f32 = 1.0;
// A sound longer than any command is probably music. Its level swings, so its gaps say too little about its loudness.
// The range of the swing is learnt at 2 dB per second. Speech has 25 dB or more between its gaps and its vowels.
const LONG_MS: u64 = 6_000;
const SWING_RISE_DB: f32 = 0.02;
const SWING_FALL_DB: f32 = 0.06;
const SWING_DB_MAX: f32 = 18.0;
const SWING_MARGIN_DB: f32 = 3.0;
// A person who has just spoken does not continue at a twelfth of the volume. When a microphone opens after an
// utterance, it brings in its room, which is at once as loud as a distant voice. The level of the last talker is
// forgotten at 1 dB per second.
const FAINTER_DB: f32 = 22.0;
const TALKER_FALL_DB: f32 = 0.01;
const SWINGING_DB: f32 = 5.0;

/// The state between frames. It can be serialised, so that another region continues to listen in mid-word. A state that
/// an older version wrote lacks the newer fields, which then have their defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpointer {
    config: EndpointConfig,
    now_ms: u64,
    floor_db: f32,
    /// Voiced frames of the sound that may become an utterance.
    voiced_frames: u64,
    silent_ms: u64,
    /// Sounds in a row, within the utterance, that were shorter than a syllable.
    #[serde(default)]
    short_sounds: u8,
    speaking: bool,
    /// No utterance starts before the end of the previous one.
    last_stop_ms: u64,
    /// The start of the current utterance, or of the sound that may become one.
    #[serde(default)]
    onset_ms: Option<u64>,
    #[serde(default)]
    room: Room,
    /// Events that were found together with an earlier event and not returned yet.
    #[serde(default)]
    owed: VecDeque<EndpointEvent>,
}

/// The properties of the background besides its floor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Room {
    /// Present until the floor is known.
    learning: Option<Learning>,
    /// Whether the floor stays at the given value.
    is_fixed: bool,
    /// The last few levels.
    recent_db: VecDeque<f32>,
    /// The quietest level of the current span, and of the spans before it.
    span_frames: u64,
    span_db: Option<f32>,
    spans_db: VecDeque<f32>,
    /// Rise of the background above its floor, in dB.
    swing_db: f32,
    /// Mean level while nobody speaks.
    mean_db: Option<f32>,
    /// Greatest level of the last utterance.
    talker_db: Option<f32>,
    /// Greatest level of the sound that may become an utterance.
    onset_db: Option<f32>,
}

impl Room {
    /// Rise of the background above its floor at the moment, in dB. Computed from its mean: twice its distance to the
    /// floor, less the share of steady noise.
    fn swings_now_db(&self, floor_db: f32) -> f32 {
        self.mean_db.map_or(0.0, |mean_db| 2.0 * (mean_db - floor_db) - 2.0)
    }
}

/// The first frames, which may be speech or a loud room.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Learning {
    /// Levels since the utterance buffer was last emptied.
    levels_db: Vec<f32>,
    frames: u64,
    silent_frames: u64,
    quietest_db: Option<f32>,
    loudest_db: Option<f32>,
}

/// The result of the first frames.
enum Learnt {
    NotYet,
    /// A sound stands out from this floor. All frames so far are judged again.
    Contrast {
        floor_db: f32,
    },
    /// A second of constant sound: nobody has spoken.
    Background {
        floor_db: f32,
        swing_db: f32,
    },
}

impl Endpointer {
    /// Starts at 0 ms in an unknown room.
    pub fn new(config: EndpointConfig) -> Self {
        Self {
            room: Room {
                learning: Some(Learning::default()),
                ..Room::default()
            },
            ..Self::with_floor(config, *FLOOR_DB.start())
        }
    }

    /// For a recording that was examined as a whole before. The background has at most this level, and keeps it.
    pub fn with_floor(config: EndpointConfig, floor_db: f32) -> Self {
        Self {
            config,
            now_ms: 0,
            floor_db: floor_db.clamp(*FLOOR_DB.start(), *FLOOR_DB.end()),
            voiced_frames: 0,
            silent_ms: 0,
            short_sounds: 0,
            speaking: false,
            last_stop_ms: 0,
            onset_ms: None,
            room: Room {
                is_fixed: true,
                ..Room::default()
            },
            owed: VecDeque::new(),
        }
    }

    /// Starts again at 0 ms in the same room, possibly with other settings.
    pub fn afresh(&self, config: EndpointConfig) -> Self {
        let mut room = self.room.clone();
        if let Some(learning) = &mut room.learning {
            learning.levels_db.clear();
        }
        Self {
            room,
            ..Self::with_floor(config, self.floor_db)
        }
    }

    /// Whether an utterance is in progress.
    pub fn is_speaking(&self) -> bool {
        self.speaking
    }

    /// Whether the last frames may contain speech.
    pub fn is_unsure(&self) -> bool {
        let is_sound = |learning: &Learning| learning.loudest_db.is_some() && !learning.levels_db.is_empty();
        self.onset_ms.is_some() || !self.owed.is_empty() || self.room.learning.as_ref().is_some_and(is_sound)
    }

    /// End of the last frame, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Earliest start of the next utterance. Audio before it is no longer needed.
    pub fn earliest_ms(&self) -> u64 {
        let learnt_from = self.room.learning.as_ref().map(|learning| {
            let unheard_ms = learning.levels_db.len() as u64 * FRAME_MS;
            self.now_ms.saturating_sub(unheard_ms)
        });
        let owed = self.owed.iter().find_map(|event| match event {
            EndpointEvent::SpeechStarted { at_ms } => Some(*at_ms),
            EndpointEvent::SpeechStopped { .. } => None,
        });
        let onset_ms = learnt_from.or(self.onset_ms).unwrap_or(self.now_ms);
        owed.unwrap_or_else(|| self.padded(onset_ms))
    }

    /// Takes one frame; a shorter one at the end of a stream counts as a whole one. An event may be returned some
    /// frames after its time.
    pub fn feed(&mut self, frame: &[f32]) -> Option<EndpointEvent> {
        debug_assert!(frame.len() <= FRAME_SAMPLES, "feed one frame at a time");
        let level_db = level_db(frame);
        match self.learn(level_db) {
            None => self.step(level_db),
            Some(Learnt::NotYet) => self.now_ms += FRAME_MS,
            Some(Learnt::Background { floor_db, swing_db }) => {
                self.now_ms += FRAME_MS;
                self.floor_db = floor_db.clamp(*FLOOR_DB.start(), *FLOOR_DB.end());
                self.room.swing_db = swing_db;
                self.room.mean_db = Some(floor_db + swing_db / 2.0);
                self.room.learning = None;
            }
            Some(Learnt::Contrast { floor_db }) => {
                self.floor_db = floor_db.clamp(*FLOOR_DB.start(), *FLOOR_DB.end());
                let heard = self.room.learning.take().unwrap_or_default().levels_db;
                self.now_ms -= (heard.len() as u64 - 1) * FRAME_MS;
                for level_db in heard {
                    self.step(level_db);
                }
            }
        }
        self.owed.pop_front()
    }

    /// Takes samples that are a whole number of frames, and returns the events in order.
    pub fn feed_all(&mut self, samples: &[f32]) -> Vec<EndpointEvent> {
        samples
            .chunks(FRAME_SAMPLES)
            .filter_map(|frame| self.feed(frame))
            .collect()
    }

    /// Learns from one frame. `None` once the room is known.
    fn learn(&mut self, level_db: f32) -> Option<Learnt> {
        let learning = self.room.learning.as_mut()?;
        learning.levels_db.push(level_db);
        if level_db <= DIGITAL_SILENCE_DB {
            self.room.recent_db.clear();
            learning.silent_frames += 1;
            // Zeros at the beginning mean that the microphone is starting, unless they last. Zeros after a sound are a
            // pause.
            let enough = if learning.loudest_db.is_some() {
                STEADY_FRAMES as u64
            } else {
                CLICK_PAUSE_FRAMES
            };
            return Some(if learning.silent_frames >= enough {
                Learnt::Contrast {
                    floor_db: *FLOOR_DB.start(),
                }
            } else {
                Learnt::NotYet
            });
        }
        learning.silent_frames = 0;
        learning.frames += 1;
        let recent_db = &mut self.room.recent_db;
        recent_db.push_back(level_db);
        // Some streams never have three sounding frames in a row, such as one that loses every other packet.
        let is_enough = learning.frames >= LEARN_FRAMES || learning.levels_db.len() as u64 >= 2 * LEARN_FRAMES;
        if recent_db.len() < STEADY_FRAMES && !is_enough {
            return Some(Learnt::NotYet);
        }
        recent_db.drain(..recent_db.len().saturating_sub(STEADY_FRAMES));
        let most = recent_db.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let least = recent_db.iter().copied().fold(f32::INFINITY, f32::min);
        let quietest_db = learning.quietest_db.map_or(most, |db| db.min(most));
        let loudest_db = learning.loudest_db.map_or(least, |db| db.max(least));
        learning.quietest_db = Some(quietest_db);
        learning.loudest_db = Some(loudest_db);
        Some(
            if quietest_db <= QUIETEST_SPEECH_DB || loudest_db - quietest_db >= CONTRAST_DB {
                // If speech came first, its own gaps are seldom as quiet as the room.
                let is_room_like = |db: &&f32| (DIGITAL_SILENCE_DB..=quietest_db + 3.0).contains(*db);
                let lasted = learning.levels_db.iter().filter(is_room_like).count() as u64;
                let is_room = quietest_db <= QUIETEST_SPEECH_DB || lasted >= ROOM_FRAMES;
                let floor_db = if is_room { quietest_db } else { quietest_db - GAP_DB };
                Learnt::Contrast { floor_db }
            } else if is_enough {
                Learnt::Background {
                    floor_db: quietest_db,
                    swing_db: loudest_db - quietest_db,
                }
            } else {
                Learnt::NotYet
            },
        )
    }

    fn step(&mut self, level_db: f32) {
        let frame_ms = self.now_ms;
        self.now_ms += FRAME_MS;
        let voiced = self.is_voiced(level_db);
        if !self.room.is_fixed {
            self.follow(level_db, voiced);
        }
        let silence_ms = self.config.silence_duration_ms.max(FRAME_MS);
        if self.speaking {
            self.voiced_frames = if voiced { self.voiced_frames + 1 } else { 0 };
            // A click, or the stroke of a drum, does not mean that the person continues. Neither does a row of taps: of the
            // sounds shorter than a syllable, only the first one behind a syllable counts.
            if self.voiced_frames >= SYLLABLE_FRAMES {
                self.short_sounds = 0;
            } else if self.voiced_frames == STEADY_FRAMES as u64 {
                self.short_sounds = self.short_sounds.saturating_add(1);
            }
            let goes_on = self.voiced_frames >= STEADY_FRAMES as u64 && self.short_sounds <= SHORT_SOUNDS_MAX;
            self.silent_ms = if goes_on { 0 } else { self.silent_ms + FRAME_MS };
            if self.silent_ms >= silence_ms {
                if self.spoken_ms() > LONG_MS {
                    // The swing was learnt just far enough to end this utterance, which is too little to end the next
                    // one.
                    self.room.swing_db = (self.room.swing_db + SWING_MARGIN_DB).min(SWING_DB_MAX);
                }
                self.speaking = false;
                self.voiced_frames = 0;
                self.short_sounds = 0;
                self.onset_ms = None;
                self.last_stop_ms = self.now_ms;
                self.owed.push_back(EndpointEvent::SpeechStopped { at_ms: self.now_ms });
            }
            return;
        }
        self.silent_ms = if voiced { 0 } else { self.silent_ms + FRAME_MS };
        if voiced {
            self.onset_ms.get_or_insert(frame_ms);
            self.voiced_frames += 1;
        }
        let Some(onset_ms) = self.onset_ms else { return };
        let (frames, silent_frames) = ((self.now_ms - onset_ms) / FRAME_MS, self.silent_ms / FRAME_MS);
        let is_dense = |frames: u64| self.voiced_frames * 100 >= DENSE_PERCENT * frames;
        let is_word = self.voiced_frames >= SHORTEST_FRAMES && is_dense(frames - silent_frames);
        if self.voiced_frames >= CERTAIN_FRAMES && is_dense(frames) || is_word && self.silent_ms >= silence_ms {
            self.speaking = true;
            let at_ms = self.padded(onset_ms);
            self.owed.push_back(EndpointEvent::SpeechStarted { at_ms });
            return;
        }
        let was_click = self.voiced_frames < SHORTEST_FRAMES
            && silent_frames
                >= if self.voiced_frames < STEADY_FRAMES as u64 {
                    STEADY_FRAMES as u64
                } else {
                    CLICK_PAUSE_FRAMES
                };
        let are_taps = frames >= LEARN_FRAMES && !is_dense(frames);
        if was_click || are_taps || self.silent_ms >= silence_ms {
            self.onset_ms = None;
            self.voiced_frames = 0;
        }
    }

    fn spoken_ms(&self) -> u64 {
        self.onset_ms.map_or(0, |onset_ms| self.now_ms - onset_ms)
    }

    fn padded(&self, onset_ms: u64) -> u64 {
        onset_ms
            .saturating_sub(self.config.prefix_padding_ms)
            .max(self.last_stop_ms.min(onset_ms))
    }

    fn is_voiced(&self, level_db: f32) -> bool {
        let is_inside = self.speaking || self.voiced_frames >= STEADY_FRAMES as u64;
        // A swinging background, such as music, would also reach the lower threshold, and an utterance would never end.
        let swing_db = self.room.swing_db.max(self.room.swings_now_db(self.floor_db));
        let swing = (swing_db / SWINGING_DB).clamp(0.0, 1.0);
        let share = if is_inside {
            STAY_SHARE + (1.0 - STAY_SHARE) * swing
        } else {
            1.0
        };
        let needed = self.config.threshold.clamp(0.05, 1.0) * share;
        let ((quiet, most), (loud, least)) = (CERTAIN_QUIET, CERTAIN_LOUD);
        let loudness = ((self.floor_db - quiet) / (loud - quiet)).clamp(0.0, 1.0);
        let certain_db = most + (least - most) * loudness;
        let is_faint = !is_inside && self.room.talker_db.is_some_and(|db| level_db < db - FAINTER_DB);
        level_db > QUIETEST_SPEECH_DB
            && !is_faint
            && level_db >= self.floor_db + self.room.swing_db + needed * certain_db
    }

    /// Learns from one more frame of the room.
    fn follow(&mut self, level_db: f32, voiced: bool) {
        let spoken_ms = self.spoken_ms();
        let room = &mut self.room;
        room.recent_db.push_back(level_db);
        if room.recent_db.len() > STEADY_FRAMES {
            room.recent_db.pop_front();
        }
        let steady_db = room.recent_db.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let lasting_db = room.recent_db.iter().copied().fold(f32::INFINITY, f32::min);
        room.onset_db = self
            .onset_ms
            .map(|_| room.onset_db.map_or(lasting_db, |db| db.max(lasting_db)));
        room.talker_db = if self.speaking {
            // The sound that began the utterance is part of it.
            let loudest_db = room.onset_db.unwrap_or(lasting_db);
            Some(room.talker_db.map_or(loudest_db, |db| db.max(loudest_db)))
        } else {
            room.talker_db.map(|db| db - TALKER_FALL_DB)
        };
        self.floor_db = self.floor_db.min(steady_db.max(self.floor_db - FALL_DB));
        room.span_db = Some(room.span_db.map_or(steady_db, |db| db.min(steady_db)));
        room.span_frames += 1;
        if room.span_frames >= SPAN_FRAMES {
            room.span_frames = 0;
            room.spans_db.extend(room.span_db.take());
            if room.spans_db.len() >= SPANS {
                room.spans_db.drain(..room.spans_db.len() - SPANS);
                let quietest_db = room.spans_db.iter().copied().fold(f32::INFINITY, f32::min);
                self.floor_db = self.floor_db.max(quietest_db);
            }
        }
        self.floor_db = self.floor_db.clamp(*FLOOR_DB.start(), *FLOOR_DB.end());
        if self.speaking {
            if spoken_ms > LONG_MS {
                room.swing_db = (room.swing_db + SWING_RISE_DB).min(SWING_DB_MAX);
            }
            return;
        }
        let mean_db = room.mean_db.get_or_insert(self.floor_db);
        if !voiced {
            *mean_db += (level_db.max(*FLOOR_DB.start()) - *mean_db) / 200.0;
        }
        // The swing is forgotten when the background no longer swings that far. Sound below the level of speech must
        // not raise it.
        let swings_db = room.swings_now_db(self.floor_db);
        room.swing_db = (room.swing_db - SWING_FALL_DB)
            .max(swings_db.min(room.swing_db))
            .max(0.0);
    }
}

/// Loudness of a frame in dB, without its mean: cheap microphones have an offset, which is not sound.
fn level_db(frame: &[f32]) -> f32 {
    let count = frame.len().max(1) as f32;
    let mean = frame.iter().sum::<f32>() / count;
    let power = frame.iter().map(|s| (s - mean) * (s - mean)).sum::<f32>() / count;
    let level_db = 10.0 * power.max(1e-10).log10();
    if level_db.is_finite() {
        level_db
    } else {
        DIGITAL_SILENCE_DB
    }
}

/// The middle of the quietest moment within `range`, the last one if several are equal: the place to cut speech that
/// must be cut.
pub fn quietest(samples: &[f32], range: std::ops::Range<usize>) -> usize {
    // Longer than the gap that a stop consonant makes inside a word.
    const MOMENT: usize = 8 * FRAME_SAMPLES;
    let starts = (range.start..(range.end + 1).saturating_sub(MOMENT)).step_by(FRAME_SAMPLES);
    let quietest = starts
        .filter_map(|start| Some((start, level_db(samples.get(start..start + MOMENT)?))))
        .min_by(|(a_start, a), (b_start, b)| a.total_cmp(b).then(b_start.cmp(a_start)));
    quietest.map_or(range.end, |(start, _)| start + MOMENT / 2)
}

/// A floor for [`Endpointer::with_floor`]: the level of the quiet parts of a recording, well below that of its loud
/// parts.
pub fn floor_of(samples: &[f32]) -> f32 {
    let mut levels: Vec<f32> = samples.chunks(FRAME_SAMPLES).map(level_db).collect();
    levels.sort_unstable_by(f32::total_cmp);
    let part = |percent: usize| {
        levels
            .get(levels.len() * percent / 100)
            .copied()
            .unwrap_or(*FLOOR_DB.start())
    };
    part(10).min(part(95) - 25.0)
}

#[cfg(test)]
mod tests;
