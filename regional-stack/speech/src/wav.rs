//! WAV files: any common one in, 16-bit mono out. The bytes come from strangers.

use std::io::Cursor;

use crate::{SAMPLE_RATE, pcm, resample};

/// Why a WAV file was refused.
#[derive(Debug, thiserror::Error)]
pub enum WavError {
    /// No bytes at all.
    #[error("the audio is empty; send a WAV file")]
    Empty,
    /// Something else than a WAV file.
    #[error("not a WAV file: {0}; send RIFF/WAVE with integer or float PCM")]
    NotWav(String),
    /// A WAV file in an encoding or shape not taken here.
    #[error("unsupported WAV file: {0}; send integer or float PCM, mono or stereo, 8000 to 48000 Hz")]
    Unsupported(String),
    /// The header promises more than the file holds.
    #[error("the WAV file is cut short; send the whole file")]
    Truncated,
    /// A header and no sound.
    #[error("the WAV file holds no samples; record something first")]
    NoSamples,
    /// More audio than the caller allows.
    #[error("audio of {seconds:.1} s is longer than the {limit_s:.0} s limit; send it in shorter pieces")]
    TooLong {
        /// Length of what was given.
        seconds: f32,
        /// Longest accepted.
        limit_s: f32,
    },
}

/// Rates taken; below, speech loses what tells consonants apart, and above, nothing is gained.
const RATES: std::ops::RangeInclusive<u32> = 8_000..=48_000;

/// Decodes a WAV file of at most `limit_s` seconds into mono samples at [`SAMPLE_RATE`]; stereo is averaged.
pub fn decode(bytes: &[u8], limit_s: f32) -> Result<Vec<f32>, WavError> {
    if bytes.is_empty() {
        return Err(WavError::Empty);
    }
    let patched = settle_open_length(bytes);
    let reader = hound::WavReader::new(Cursor::new(patched.as_deref().unwrap_or(bytes))).map_err(refusal)?;
    let spec = reader.spec();
    if spec.channels == 0 {
        return Err(WavError::Unsupported("zero channels".to_owned()));
    }
    if spec.channels > 2 {
        return Err(WavError::Unsupported(format!("{} channels", spec.channels)));
    }
    if !RATES.contains(&spec.sample_rate) {
        return Err(WavError::Unsupported(format!("{} Hz", spec.sample_rate)));
    }
    // Known from the header, so an hour of audio is refused before a sample of it is decoded.
    let seconds = reader.duration() as f32 / spec.sample_rate as f32;
    if seconds > limit_s {
        return Err(WavError::TooLong { seconds, limit_s });
    }
    let samples: Vec<f32> = match spec.sample_format {
        hound::SampleFormat::Float => reader.into_samples::<f32>().collect::<Result<_, _>>(),
        hound::SampleFormat::Int => {
            let full = 2f32.powi(i32::from(spec.bits_per_sample) - 1);
            reader
                .into_samples::<i32>()
                .map(|s| s.map(|s| s as f32 / full))
                .collect::<Result<_, _>>()
        }
    }
    .map_err(refusal)?;
    if samples.is_empty() {
        return Err(WavError::NoSamples);
    }
    let mono: Vec<f32> = match spec.channels {
        1 => samples,
        _ => samples.chunks_exact(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect(),
    };
    // Float files may hold anything; what is not a number is silence.
    let mono: Vec<f32> = mono
        .into_iter()
        .map(|s| if s.is_finite() { s.clamp(-1.0, 1.0) } else { 0.0 })
        .collect();
    resample::resample(&mono, spec.sample_rate, SAMPLE_RATE).map_err(|e| WavError::Unsupported(e.to_string()))
}

/// Encodes mono samples at `rate` as a 16-bit WAV file.
pub fn encode(samples: &[f32], rate: u32) -> Vec<u8> {
    let data_len = u32::try_from(samples.len() * 2).unwrap_or(u32::MAX - 36);
    let mut out = Vec::with_capacity(44 + samples.len() * 2);
    out.extend_from_slice(b"RIFF");
    out.extend_from_slice(&(36 + data_len).to_le_bytes());
    out.extend_from_slice(b"WAVEfmt ");
    out.extend_from_slice(&16u32.to_le_bytes());
    for field in [1u16, 1] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&rate.to_le_bytes());
    out.extend_from_slice(&rate.saturating_mul(2).to_le_bytes());
    for field in [2u16, 16] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(b"data");
    out.extend_from_slice(&data_len.to_le_bytes());
    out.extend_from_slice(&pcm::to_s16le(samples));
    out
}

/// Programs that write a WAV file into a pipe cannot know its length and leave the largest number there; for them the
/// data ends where the file ends.
fn settle_open_length(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12usize;
    let mut block_align = 1;
    loop {
        let head = bytes.get(at..at.checked_add(8)?)?;
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if &head[..4] == b"data" {
            if len < 0x7fff_0000 {
                return None;
            }
            let held = bytes.len() - (at + 8);
            let held = u32::try_from(held - held % block_align).ok()?;
            let mut patched = bytes.to_vec();
            patched[at + 4..at + 8].copy_from_slice(&held.to_le_bytes());
            return Some(patched);
        }
        if &head[..4] == b"fmt " {
            let align = bytes.get(at + 20..at + 22)?;
            block_align = usize::from(u16::from_le_bytes([align[0], align[1]])).max(1);
        }
        // Chunks are padded to even lengths.
        at = at
            .checked_add(8)?
            .checked_add(len as usize)?
            .checked_add((len % 2) as usize)?;
    }
}

fn refusal(error: hound::Error) -> WavError {
    match error {
        hound::Error::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => WavError::Truncated,
        // hound says this of a file that ends early, in words rather than in a kind.
        hound::Error::IoError(e) if e.to_string().contains("enough bytes") => WavError::Truncated,
        hound::Error::IoError(e) => WavError::NotWav(e.to_string().to_lowercase()),
        hound::Error::FormatError(what) => WavError::NotWav(what.to_lowercase()),
        hound::Error::Unsupported => WavError::Unsupported("this encoding".to_owned()),
        hound::Error::TooWide => WavError::Unsupported("this sample width".to_owned()),
        other => WavError::NotWav(other.to_string().to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(spec: hound::WavSpec, frames: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = hound::WavWriter::new(&mut bytes, spec).unwrap();
        for i in 0..frames * u32::from(spec.channels) {
            let wave = ((i / u32::from(spec.channels)) as f32 * 0.05).sin() * 0.5;
            match spec.sample_format {
                hound::SampleFormat::Float => writer.write_sample(wave).unwrap(),
                hound::SampleFormat::Int => {
                    writer
                        .write_sample((wave * 2f32.powi(i32::from(spec.bits_per_sample) - 1)) as i32)
                        .unwrap();
                }
            }
        }
        writer.finalize().unwrap();
        bytes.into_inner()
    }

    fn spec(
        channels: u16,
        sample_rate: u32,
        bits_per_sample: u16,
        sample_format: hound::SampleFormat,
    ) -> hound::WavSpec {
        hound::WavSpec {
            channels,
            sample_rate,
            bits_per_sample,
            sample_format,
        }
    }

    #[test]
    fn every_common_shape_becomes_mono_at_our_rate() {
        use hound::SampleFormat::{Float, Int};
        for (channels, rate, bits, format) in [
            (1, 16_000, 16, Int),
            (2, 48_000, 16, Int),
            (1, 8_000, 8, Int),
            (2, 44_100, 24, Int),
            (1, 22_050, 32, Int),
            (1, 24_000, 32, Float),
        ] {
            let out = decode(&file(spec(channels, rate, bits, format), rate / 2), 60.0).unwrap();
            assert!(
                out.len().abs_diff(8_000) <= 1,
                "{channels} {rate} {bits}: {}",
                out.len()
            );
            let peak = out.iter().fold(0.0f32, |a, s| a.max(s.abs()));
            assert!((0.45..0.55).contains(&peak), "{channels} {rate} {bits}: peak {peak}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let samples: Vec<f32> = (0..1_000).map(|i| (i as f32 * 0.1).sin() * 0.7).collect();
        let back = decode(&encode(&samples, SAMPLE_RATE), 60.0).unwrap();
        assert_eq!(back.len(), samples.len());
        assert!(back.iter().zip(&samples).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        let good = file(spec(1, 16_000, 16, hound::SampleFormat::Int), 16_000);
        let mut no_channels = good.clone();
        no_channels[22] = 0;
        let mut six_channels = file(spec(1, 16_000, 16, hound::SampleFormat::Int), 12_000);
        six_channels[22..24].copy_from_slice(&6u16.to_le_bytes());
        six_channels[32..34].copy_from_slice(&12u16.to_le_bytes());
        six_channels[28..32].copy_from_slice(&(16_000u32 * 12).to_le_bytes());
        let slow = file(spec(1, 4_000, 16, hound::SampleFormat::Int), 100);
        for (bytes, limit_s, says) in [
            (&[][..], 60.0, "empty"),
            (
                b"OggS and so on, at some length, to have room for a header",
                60.0,
                "not a WAV",
            ),
            (&good[..20], 60.0, "cut short"),
            (&good[..good.len() - 100], 60.0, "cut short"),
            (&encode(&[], 16_000), 60.0, "no samples"),
            (&good, 0.5, "longer than"),
            (&slow, 60.0, "4000 Hz"),
            (&six_channels, 60.0, "nsupported"),
            (&no_channels, 60.0, "WAV"),
        ] {
            let message = decode(bytes, limit_s).unwrap_err().to_string();
            assert!(message.contains(says), "{says}: {message}");
        }
    }

    #[test]
    fn a_file_from_a_pipe_ends_where_its_bytes_end() {
        let mut piped = file(spec(1, 16_000, 16, hound::SampleFormat::Int), 1_000);
        piped[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        piped[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&piped, 60.0).unwrap().len(), 1_000);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..44, value: u8, keep: bool) {
            if keep {
                let mut good = file(spec(1, 16_000, 16, hound::SampleFormat::Int), 50);
                good[at] = value;
                good.extend(&bytes);
                bytes = good;
            }
            let _ = decode(&bytes, 60.0);
        }
    }
}
