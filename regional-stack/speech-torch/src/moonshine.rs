//! Speech to text with Moonshine tiny (English), which hears people in their own words.
//!
//! Utterances run alone, never padded to a common length: the norm behind the first convolution averages over all of its
//! input, so padding would change what is heard.

mod decoded;
mod network;
mod tokens;

use std::path::Path;

use serde::Deserialize;
use speech::{Recognizer, SAMPLE_RATE, SpeechError, Transcript};
use tch::Device;

use self::{decoded::Decoded, network::Network, tokens::Tokens};
use crate::{
    bang, gate,
    pool::Pool,
    sidecar::{self, ModelError, SIDECAR, WEIGHTS},
};

/// Name of the list of tokens in the folder of the model: one line of hexadecimal for each.
const TOKENS: &str = "tokens.txt";

/// Silence behind every utterance. Without it the last word is lost now and then: an endpointer cuts closer than the recordings
/// that the network learned from.
const SILENCE_BEHIND: usize = SAMPLE_RATE as usize;

/// Tokens for each second of sound, and some for a short one. Nobody speaks faster; a network that repeats itself does.
const TOKENS_PER_SECOND: f32 = 6.5;
const TOKENS_MORE: usize = 6;

/// The recognizer. The same samples always give the same transcript. Threads share it, and its weights are in memory once.
#[derive(Debug)]
pub struct Moonshine {
    networks: Pool<Network>,
    tokens: Tokens,
    version: String,
}

/// The sidecar that `meridian models fetch` writes.
#[derive(Debug, Deserialize)]
struct Sidecar {
    version: String,
    weights_sha256: String,
    tokens_sha256: String,
}

impl Moonshine {
    /// Loads the model in `folder`, checks it against its sidecar and runs it once. `threads` can use it at once; a further one waits.
    pub fn load(folder: &Path, device: Device, threads: usize) -> Result<Self, ModelError> {
        crate::use_one_thread();
        let Sidecar {
            version,
            weights_sha256,
            tokens_sha256,
        } = sidecar::read_as(&folder.join(SIDECAR), "moonshine")?;
        let (weights, list) = (folder.join(WEIGHTS), folder.join(TOKENS));
        sidecar::check_hash(&weights, &weights_sha256)?;
        sidecar::check_hash(&list, &tokens_sha256)?;
        let network = Network::load(&weights, device)?;
        let tokens = Tokens::load(&list, network.vocabulary())?;
        // Each copy has handles of its own to the same memory.
        let mut copies: Vec<Network> = (1..threads.max(1)).map(|_| network.share()).collect();
        copies.push(network);
        let engine = Self {
            networks: Pool::new(copies),
            tokens,
            version,
        };
        let quiet = vec![0.0; SAMPLE_RATE as usize];
        engine.decode(&quiet).map_err(|error| ModelError::Unfit {
            path: folder.display().to_string(),
            what: format!("the model fails on a second of silence ({error})"),
        })?;
        Ok(engine)
    }

    fn decode(&self, samples: &[f32]) -> Result<Decoded, SpeechError> {
        let mut sound = samples.to_vec();
        sound.resize(sound.len() + SILENCE_BEHIND, 0.0);
        let seconds = samples.len() as f32 / SAMPLE_RATE as f32;
        let tokens_max = (seconds * TOKENS_PER_SECOND) as usize + TOKENS_MORE;
        let decoded = self.networks.with(|network| network.transcribe(&sound, tokens_max));
        decoded.map_err(SpeechError::of_engine)
    }
}

impl Recognizer for Moonshine {
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError> {
        gate::check_length(samples)?;
        // The network hears "You" in silence.
        if !gate::has_sound(samples) {
            return Ok(Transcript::nothing());
        }
        let decoded = self.decode(samples)?;
        let text = dialogue::in_words(&self.tokens.text(&decoded.tokens));
        if is_reply_to_noise(&text) {
            return Ok(Transcript::nothing());
        }
        let mut confidence = confidence(&decoded);
        if !text.contains(' ') && bang::is_bang(samples) {
            confidence *= gate::BANG_SHARE;
        }
        Ok(Transcript { text, confidence })
    }

    fn model(&self) -> String {
        self.version.clone()
    }
}

/// Whether `text` is what the network says to sounds without words: a lone "you", or nothing.
fn is_reply_to_noise(text: &str) -> bool {
    matches!(text, "" | "you")
}

/// The probability that every word is right, from the geometric mean of the tokens' probabilities.
///
/// A logistic curve, fitted to how often answers were right word for word: `calibration_of_the_cascade` in this crate's tests prints the
/// answers, and docs/benchmarks.md has the shares. The plain mean misleads: at 0.7 a third of the answers is right.
fn confidence(decoded: &Decoded) -> f32 {
    // An answer that the limit ended is a loop, or half of a sentence.
    if !decoded.ended || decoded.log_probabilities.is_empty() {
        return 0.0;
    }
    let mean = decoded.log_probabilities.iter().sum::<f32>() / decoded.log_probabilities.len() as f32;
    let odds = SLOPE * (mean.exp() - EVEN_AT);
    // Samples that are no numbers give odds that are no number.
    if odds.is_finite() {
        1.0 / (1.0 + (-odds).exp())
    } else {
        0.0
    }
}

/// The mean at which every second answer is right.
const EVEN_AT: f32 = 0.74;
const SLOPE: f32 = 18.0;
