//! Everything about speech that needs no libtorch: the two engine traits, audio formats, feature extraction, endpointing,
//! and a scripted engine for tests.
//!
//! Audio inside Meridian is mono `f32` in [-1, 1] at [`SAMPLE_RATE`]; other rates exist only at the rim ([`wav`], [`pcm`],
//! [`resample`]).

pub mod decoding;
pub mod endpoint;
pub mod engine;
pub mod features;
pub mod griffin_lim;
pub mod pcm;
pub mod resample;
pub mod score;
pub mod scripted;
pub mod wav;

pub use engine::{Recognizer, SpeechError, Synthesizer, Transcript};

/// Samples per second of all audio handed to and taken from the engines.
pub const SAMPLE_RATE: u32 = 16_000;
