//! The parts of speech that need no libtorch: the two engine traits, audio formats, feature extraction, endpointing,
//! and a scripted engine for tests.
//!
//! Inside Meridian, audio is mono `f32` in [-1, 1] at [`SAMPLE_RATE`]. Other rates exist only at the outer layer
//! ([`wav`], [`pcm`], [`resample`]).

pub mod cascade;
pub mod decoding;
pub mod endpoint;
pub mod engine;
pub mod features;
pub mod fixtures;
pub mod g711;
pub mod griffin_lim;
pub mod pcm;
pub mod people;
pub mod resample;
pub mod score;
pub mod scripted;
mod texts;
pub mod wav;

pub use cascade::{Cascade, FirstPass};
pub use engine::{Recognizer, SpeechError, Synthesizer, Transcript};

/// Samples per second of all audio to and from the engines.
pub const SAMPLE_RATE: u32 = 16_000;
