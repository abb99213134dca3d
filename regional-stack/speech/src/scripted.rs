//! Engines for tests. Their results are scripted, and they need no model.
//!
//! [`ScriptedSynthesizer`] encodes its text into the sound, as a modem would, and [`ScriptedRecognizer`] decodes it. So
//! a test can send words through WAV files, PCM frames and other sample rates, and check the words that arrive.

use std::collections::VecDeque;

use crate::{Recognizer, SAMPLE_RATE, SpeechError, Synthesizer, Transcript};
use parking_lot::Mutex;

/// Samples per bit: 4 ms, so that both tones survive resampling to 8 kHz and back.
const BIT_SAMPLES: usize = SAMPLE_RATE as usize / 250;
const ZERO_HZ: f32 = 1_000.0;
const ONE_HZ: f32 = 2_000.0;
/// The start of a message. No shifted copy of it matches itself.
const MARK: [u8; 2] = [0xa5, 0x3c];
/// Longest text in bytes, because its length is one byte.
const TEXT_MAX: usize = 255;

/// Sound that carries `text` to a [`ScriptedRecognizer`]. Text beyond 255 bytes is cut between characters.
pub fn sound_of(text: &str) -> Vec<f32> {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let mut bytes = MARK.to_vec();
    bytes.push(text.len() as u8);
    bytes.extend_from_slice(text);
    bytes.push(checksum(text));
    // Short silence before and after, as in speech.
    let mut out = vec![0.0; SAMPLE_RATE as usize / 20];
    for byte in bytes {
        for bit in (0..8).rev() {
            let hz = if byte >> bit & 1 == 1 { ONE_HZ } else { ZERO_HZ };
            out.extend(
                (0..BIT_SAMPLES).map(|i| 0.4 * (i as f32 * hz * std::f32::consts::TAU / SAMPLE_RATE as f32).sin()),
            );
        }
    }
    out.resize(out.len() + SAMPLE_RATE as usize / 20, 0.0);
    out
}

/// The text that [`sound_of`] encoded into this sound, if it is there and undamaged.
pub fn text_in(samples: &[f32]) -> Option<String> {
    let loud = samples.iter().position(|s| s.abs() > 0.05)?;
    // Resampling smears the first edge; the true start lies within half a bit of it.
    let from = loud.saturating_sub(BIT_SAMPLES / 2);
    (from..loud + BIT_SAMPLES / 2).step_by(4).find_map(|start| {
        let byte = |at: usize| -> Option<u8> {
            (0..8).try_fold(0u8, |byte, bit| {
                let start = start + (at * 8 + bit) * BIT_SAMPLES;
                let window = samples.get(start..start + BIT_SAMPLES)?;
                let (zero, one) = (strength(window, ZERO_HZ), strength(window, ONE_HZ));
                // Silence carries no bits.
                (zero.max(one) > 1e-3).then_some(byte << 1 | u8::from(one > zero))
            })
        };
        if byte(0)? != MARK[0] || byte(1)? != MARK[1] {
            return None;
        }
        let len = usize::from(byte(2)?);
        let text: Vec<u8> = (0..len).map(|i| byte(3 + i)).collect::<Option<_>>()?;
        (byte(3 + len)? == checksum(&text)).then(|| String::from_utf8(text).ok())?
    })
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0x5a, |sum, b| sum.rotate_left(1) ^ b)
}

fn strength(window: &[f32], hz: f32) -> f32 {
    let step = hz * std::f32::consts::TAU / SAMPLE_RATE as f32;
    let (mut re, mut im) = (0.0, 0.0);
    for (i, s) in window.iter().enumerate() {
        re += s * (i as f32 * step).cos();
        im += s * (i as f32 * step).sin();
    }
    (re * re + im * im) / (window.len() * window.len()) as f32
}

/// Decodes the sound of [`sound_of`]. For any other sound it returns the next of its prepared answers, and an empty
/// transcript after the last.
#[derive(Debug, Default)]
pub struct ScriptedRecognizer {
    answers: Mutex<VecDeque<Result<String, String>>>,
    otherwise: Option<String>,
}

impl ScriptedRecognizer {
    /// Returns only text that the sound itself carries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns `text` for every sound that carries none.
    pub fn always(text: &str) -> Self {
        Self {
            otherwise: Some(text.to_owned()),
            ..Self::default()
        }
    }

    /// Returns these answers in turn. An `Err` makes the engine fail with that message.
    pub fn in_turn<'a>(answers: impl IntoIterator<Item = Result<&'a str, &'a str>>) -> Self {
        let owned = answers
            .into_iter()
            .map(|a| a.map(str::to_owned).map_err(str::to_owned))
            .collect();
        Self {
            answers: Mutex::new(owned),
            otherwise: None,
        }
    }
}

impl Recognizer for ScriptedRecognizer {
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError> {
        if let Some(text) = text_in(samples) {
            return Ok(Transcript { text, confidence: 1.0 });
        }
        let next = self.answers.lock().pop_front();
        match next.or_else(|| self.otherwise.clone().map(Ok)) {
            Some(Ok(text)) => Ok(Transcript { text, confidence: 1.0 }),
            Some(Err(message)) => Err(SpeechError::Engine(message)),
            None => Ok(Transcript {
                text: String::new(),
                confidence: 0.0,
            }),
        }
    }
}

/// Speaks every text in the form of [`sound_of`], at one speed. Can be made to fail.
#[derive(Debug, Default)]
pub struct ScriptedSynthesizer {
    failure: Option<String>,
}

impl ScriptedSynthesizer {
    /// Never fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// Always fails with this message.
    pub fn failing(message: &str) -> Self {
        Self {
            failure: Some(message.to_owned()),
        }
    }
}

impl Synthesizer for ScriptedSynthesizer {
    fn synthesize(&self, text: &str, _speed: f32) -> Result<Vec<f32>, SpeechError> {
        match &self.failure {
            Some(message) => Err(SpeechError::Engine(message.clone())),
            None => Ok(sound_of(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pcm, resample, wav};

    #[test]
    fn words_survive_the_formats_of_the_rim() {
        let text = "set a timer for ten minutes";
        let sound = sound_of(text);
        let as_wav = wav::decode(&wav::encode(&sound, SAMPLE_RATE), 60.0).unwrap();
        let as_pcm = pcm::from_s16le(&pcm::to_s16le(&sound));
        let there = resample::resample(&sound, 16_000, 24_000).unwrap();
        let and_back = resample::resample(&there, 24_000, 16_000).unwrap();
        let there = resample::resample(&sound, 16_000, 8_000).unwrap();
        let by_phone = resample::resample(&there, 8_000, 16_000).unwrap();
        let in_silence = [vec![0.0; 12_345], sound, vec![0.0; 777]].concat();
        for heard in [as_wav, as_pcm, and_back, by_phone, in_silence] {
            assert_eq!(ScriptedRecognizer::new().recognize(&heard).unwrap().text, text);
        }
    }

    #[test]
    fn damage_and_noise_are_not_words() {
        let mut sound = sound_of("stop");
        let middle = sound.len() / 2;
        sound[middle..middle + 200].fill(0.0);
        assert_eq!(text_in(&sound), None);
        assert_eq!(text_in(&[0.3; 5_000]), None);
        assert_eq!(text_in(&[]), None);
    }

    #[test]
    fn prepared_answers_come_in_turn() {
        let ear = ScriptedRecognizer::in_turn([Ok("stop"), Err("on fire")]);
        assert_eq!(ear.recognize(&[0.0]).unwrap().text, "stop");
        assert!(ear.recognize(&[0.0]).unwrap_err().to_string().contains("on fire"));
        assert_eq!(ear.recognize(&[0.0]).unwrap().text, "");
        assert_eq!(ScriptedRecognizer::always("help").recognize(&[]).unwrap().text, "help");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let long = "é".repeat(300);
        assert_eq!(text_in(&sound_of(&long)).unwrap(), "é".repeat(127));
    }
}
