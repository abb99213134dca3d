//! The audio of one utterance on its way to the recognizer.

use speech::{
    SAMPLE_RATE,
    resample::{self, Stream},
};

use super::event::Event;
use crate::{error::ApiError, recording, texts};

/// The format of audio that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    rate: u32,
    /// Bytes of one sample: one without a sign, more with one, the lowest first.
    width: usize,
    channels: usize,
}

impl Format {
    fn read(event: &Event) -> Result<Self, ApiError> {
        let refused = || ApiError::bad_request("unsupported_value", "rate", texts::WYOMING_AUDIO_FORMAT);
        let number = |name| event.number(name).ok_or_else(refused);
        let rate = u32::try_from(number("rate")?).map_err(|_| refused())?;
        let (width, channels) = (number("width")?, number("channels")?);
        if !resample::RATES.contains(&rate) || !(1..=4).contains(&width) || !(1..=8).contains(&channels) {
            return Err(refused());
        }
        Ok(Self {
            rate,
            width: width as usize,
            channels: channels as usize,
        })
    }

    /// Audio as mono samples; several channels are averaged. Bytes that fill no sample at the end are left out.
    fn samples(self, audio: &[u8]) -> Vec<f32> {
        let moments = audio.chunks_exact(self.width * self.channels);
        let mono = moments.map(|moment| {
            let sum: f32 = moment.chunks_exact(self.width).map(sample).sum();
            sum / self.channels as f32
        });
        mono.collect()
    }
}

/// One sample in [-1, 1].
fn sample(bytes: &[u8]) -> f32 {
    match *bytes {
        [byte] => (f32::from(byte) - 128.0) / 128.0,
        [low, high] => f32::from(i16::from_le_bytes([low, high])) / 32_768.0,
        // The sign stands in the highest byte, so three bytes are read as the upper three of four.
        [low, middle, high] => i32::from_le_bytes([0, low, middle, high]) as f32 / 2_147_483_648.0,
        [a, b, c, d] => i32::from_le_bytes([a, b, c, d]) as f32 / 2_147_483_648.0,
        _ => 0.0,
    }
}

/// An utterance that is still coming. It holds as much audio as the recognizer takes in one go, and no more: its owner has the rest
/// recognised meanwhile.
pub(super) struct Hearing {
    format: Format,
    stream: Stream,
    waiting: Vec<f32>,
    /// Samples so far, those that were recognised included.
    samples: usize,
    texts: Vec<String>,
}

impl Hearing {
    /// Begins an utterance in the format of an `audio-start` or of its first `audio-chunk`.
    pub(super) fn begin(event: &Event) -> Result<Self, ApiError> {
        let format = Format::read(event)?;
        let stream = Stream::new(format.rate, SAMPLE_RATE)
            .map_err(|_| ApiError::bad_request("unsupported_value", "rate", texts::WYOMING_AUDIO_FORMAT))?;
        Ok(Self {
            format,
            stream,
            waiting: Vec::new(),
            samples: 0,
            texts: Vec::new(),
        })
    }

    /// Takes the audio of an `audio-chunk`. Returns a piece for the recognizer once there is more than it takes in one go.
    pub(super) fn take(&mut self, event: &Event, seconds_max: f32) -> Result<Option<Vec<f32>>, ApiError> {
        if Format::read(event)? != self.format {
            return Err(ApiError::bad_request(
                "invalid_value",
                "rate",
                texts::WYOMING_FORMAT_CHANGED,
            ));
        }
        let heard = self.stream.push(&self.format.samples(&event.payload));
        self.samples += heard.len();
        let seconds = self.samples as f32 / SAMPLE_RATE as f32;
        if seconds > seconds_max {
            let message = texts::wyoming_too_long(seconds_max);
            return Err(ApiError::bad_request("audio_too_long", "audio", message));
        }
        self.waiting.extend(heard);
        Ok(recording::take_piece(&mut self.waiting))
    }

    /// Adds the words of a piece.
    pub(super) fn add(&mut self, text: String) {
        if !text.is_empty() {
            self.texts.push(text);
        }
    }

    /// The last piece, when the utterance has ended.
    pub(super) fn end(&mut self) -> Vec<f32> {
        let mut last = std::mem::take(&mut self.waiting);
        last.extend(self.stream.finish());
        last
    }

    /// All words.
    pub(super) fn text(&self) -> String {
        self.texts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use speech::scripted::{sound_of, text_in};

    use super::*;

    fn event(data: Value, payload: Vec<u8>) -> Event {
        let Value::Object(data) = data else { panic!("an object") };
        Event {
            kind: "audio-chunk".to_owned(),
            data,
            payload,
        }
    }

    fn format(rate: u32, width: usize, channels: usize) -> Value {
        json!({ "rate": rate, "width": width, "channels": channels })
    }

    /// Samples as a client with this format sends them.
    fn encoded(samples: &[f32], width: usize, channels: usize) -> Vec<u8> {
        let one = |sample: &f32| -> Vec<u8> {
            let full = (f64::from(*sample) * f64::from(i32::MAX)) as i32;
            match width {
                1 => vec![((full >> 24) + 128) as u8],
                _ => full.to_le_bytes()[4 - width..].to_vec(),
            }
        };
        samples.iter().flat_map(|sample| one(sample).repeat(channels)).collect()
    }

    #[test]
    fn every_format_of_a_client_is_heard_alike() {
        let sound = sound_of("turn on the light");
        for (width, channels) in [(2, 1), (3, 1), (4, 1), (2, 2), (4, 6)] {
            let start = event(format(SAMPLE_RATE, width, channels), Vec::new());
            let mut hearing = Hearing::begin(&start).unwrap();
            let bytes = encoded(&sound, width, channels);
            // Chunks that end within a moment would be a client's fault; these do not.
            for chunk in bytes.chunks(width * channels * 100) {
                let chunk = event(format(SAMPLE_RATE, width, channels), chunk.to_vec());
                assert!(hearing.take(&chunk, 60.0).unwrap().is_none());
            }
            let heard = hearing.end();
            assert_eq!(
                text_in(&heard).as_deref(),
                Some("turn on the light"),
                "{width} bytes, {channels} channels"
            );
        }
        let loud = Format {
            rate: SAMPLE_RATE,
            width: 1,
            channels: 1,
        };
        assert_eq!(loud.samples(&[0, 128, 192]), [-1.0, 0.0, 0.5]);
        let odd = Format { width: 2, ..loud };
        assert_eq!(odd.samples(&[0, 64, 9]), [0.5], "half a sample is none");
    }

    #[test]
    fn other_rates_are_converted() {
        let start = event(format(48_000, 2, 1), Vec::new());
        let mut hearing = Hearing::begin(&start).unwrap();
        let second = event(format(48_000, 2, 1), vec![0; 2 * 48_000]);
        assert!(hearing.take(&second, 60.0).unwrap().is_none());
        assert_eq!(hearing.end().len(), SAMPLE_RATE as usize);
    }

    #[test]
    fn a_long_utterance_is_recognised_while_it_comes_and_the_longest_is_refused() {
        let start = event(format(SAMPLE_RATE, 2, 1), Vec::new());
        let mut hearing = Hearing::begin(&start).unwrap();
        let second = event(format(SAMPLE_RATE, 2, 1), vec![0; 2 * SAMPLE_RATE as usize]);
        let pieces: Vec<usize> = (0..60)
            .filter_map(|_| hearing.take(&second, 60.0).unwrap())
            .map(|piece| piece.len())
            .collect();
        assert!(pieces.len() >= 3, "{pieces:?}");
        assert!(
            pieces.iter().all(|piece| *piece <= 20 * SAMPLE_RATE as usize),
            "{pieces:?}"
        );
        let refused = hearing.take(&second, 60.0).unwrap_err();
        assert_eq!(refused.code, "audio_too_long");
    }

    #[test]
    fn formats_that_no_microphone_has_are_refused() {
        for bad in [
            json!({}),
            format(0, 2, 1),
            format(400_000, 2, 1),
            format(16_000, 0, 1),
            format(16_000, 5, 1),
            format(16_000, 2, 0),
            format(16_000, 2, 9),
            json!({ "rate": "16000", "width": 2, "channels": 1 }),
            json!({ "rate": -1, "width": 2, "channels": 1 }),
            json!({ "rate": 1e300, "width": 2, "channels": 1 }),
        ] {
            assert!(Hearing::begin(&event(bad.clone(), Vec::new())).is_err(), "{bad}");
        }
        let mut hearing = Hearing::begin(&event(format(16_000, 2, 1), Vec::new())).unwrap();
        let other = event(format(8_000, 2, 1), vec![0; 2]);
        assert_eq!(hearing.take(&other, 60.0).unwrap_err().code, "invalid_value");
    }
}
