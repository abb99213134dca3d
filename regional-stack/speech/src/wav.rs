//! Reads WAV files in every common encoding, and writes 16-bit mono. The bytes come from strangers.
//!
//! hound writes the files. This module parses the header of those that come in itself. Headers often claim a wrong length: a program that writes into a pipe does not know it, and
//! a program that is stopped does not correct it. Of the good files in the table of the tests, hound 3.5 refuses more
//! than a third (G.711, double precision, padded chunks, open lengths) and symphonia 0.5 a quarter (most of G.711, padded chunks,
//! open lengths); hound accepts an odd chunk without its pad byte.
//!
//! If a header claims more samples than the file contains, this module reads to the end of the file, as ffmpeg does. The header
//! cannot tell whether all of a file arrived. HTTP and gRPC can: they deliver no body that ended early.

use std::io::Cursor;

use hound::{SampleFormat, WavSpec, WavWriter};

use crate::{SAMPLE_RATE, g711, pcm, resample, texts};

/// The reason for which a WAV file was refused.
#[derive(Debug, thiserror::Error)]
pub enum WavError {
    /// The input has no bytes.
    #[error("{}", texts::NO_BYTES)]
    Empty,
    /// The bytes are not a WAV file.
    #[error("{}", texts::not_wav(.0))]
    NotWav(String),
    /// A WAV file with an encoding or shape that is not supported.
    #[error("{}", texts::unsupported_wav(.0))]
    Unsupported(String),
    /// The file ends before its samples.
    #[error("{}", texts::CUT_SHORT)]
    Truncated,
    /// The file has a header and no samples.
    #[error("{}", texts::NO_SAMPLES)]
    NoSamples,
    /// The audio is longer than the caller allows.
    #[error("{}", texts::audio_too_long(*seconds, *limit_s))]
    TooLong {
        /// Length of the audio.
        seconds: f32,
        /// Longest length that the caller allows.
        limit_s: f32,
    },
}

/// Supported sample rates. Below, speech loses the sounds that tell consonants apart; above, nothing is gained.
const RATES: std::ops::RangeInclusive<u32> = 8_000..=48_000;
/// Length of the header of a 16-bit file.
const HEADER_BYTES: usize = 44;

/// Decodes a WAV file of at most `limit_s` seconds into mono samples in -1..=1 at [`SAMPLE_RATE`]. Stereo is averaged.
pub fn decode(bytes: &[u8], limit_s: f32) -> Result<Vec<f32>, WavError> {
    let (format, data) = parts(bytes)?;
    let frame_bytes = format.sample_bytes * format.channels;
    let frames = data.len() / frame_bytes;
    if frames == 0 {
        return Err(WavError::NoSamples);
    }
    // An hour of audio is refused before any sample is decoded.
    let seconds = frames as f32 / format.rate as f32;
    if seconds > limit_s {
        return Err(WavError::TooLong { seconds, limit_s });
    }
    let sample = format.encoding.decoder(format.sample_bytes);
    let mono: Vec<f32> = data
        .chunks_exact(frame_bytes)
        .map(|frame| {
            let sum: f32 = frame.chunks_exact(format.sample_bytes).map(sample).sum();
            let mean = sum / format.channels as f32;
            // Float files may contain any bits. A value that is not a number becomes silence.
            if mean.is_finite() { mean.clamp(-1.0, 1.0) } else { 0.0 }
        })
        .collect();
    let mut samples =
        resample::resample(&mono, format.rate, SAMPLE_RATE).map_err(|e| WavError::Unsupported(e.to_string()))?;
    // The filter overshoots where the loudest samples alternate.
    for sample in &mut samples {
        *sample = sample.clamp(-1.0, 1.0);
    }
    Ok(samples)
}

/// The encoding of the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Pcm,
    Float,
    ALaw,
    MuLaw,
}

#[derive(Debug, Clone, Copy)]
struct Format {
    encoding: Encoding,
    channels: usize,
    rate: u32,
    /// Bytes of one sample of one channel.
    sample_bytes: usize,
}

/// The format, and the bytes of the samples.
fn parts(bytes: &[u8]) -> Result<(Format, &[u8]), WavError> {
    if bytes.is_empty() {
        return Err(WavError::Empty);
    }
    let is_riff = |tag: &[u8]| matches!(tag, b"RIFF" | b"RF64" | b"BW64");
    match bytes.get(..4) {
        Some(tag) if is_riff(tag) => {}
        Some(b"RIFX") => return Err(WavError::Unsupported("big-endian (RIFX)".to_owned())),
        _ => return Err(WavError::NotWav("no riff tag found".to_owned())),
    }
    // The length after the tag is ignored: many programs write it without knowing it.
    match bytes.get(8..12) {
        Some(b"WAVE") => {}
        Some(_) => return Err(WavError::NotWav("a riff file of another kind".to_owned())),
        None => return Err(WavError::Truncated),
    }
    let (mut format, mut long_length) = (None, None);
    let mut at = 12;
    while let Some(chunk) = Chunk::read(bytes, at)? {
        match &chunk.id {
            b"fmt " => format = Some(Format::read(chunk.whole()?)?),
            // A writer that reserves room for the length, or edits a file, may leave a chunk without samples before the real
            // one.
            b"data" if chunk.length == 0 && (chunk.rest.starts_with(b"data") || has_samples(chunk.rest, 0)) => {}
            b"data" => {
                let format = format.ok_or_else(|| WavError::NotWav("samples before their format".to_owned()))?;
                let samples = chunk.samples(long_length);
                if has_samples(&chunk.rest[samples.len()..], samples.len()) {
                    return Err(WavError::Unsupported("more than one data chunk".to_owned()));
                }
                return Ok((format, samples));
            }
            // RF64 and BW64: lengths that need more than four bytes. The length of the samples comes second.
            b"ds64" => {
                let lengths = chunk.whole()?;
                let eight = lengths.get(8..16).and_then(|eight| eight.try_into().ok());
                let eight = eight.ok_or_else(|| WavError::NotWav("its ds64 chunk is too short".to_owned()))?;
                long_length = Some(u64::from_le_bytes(eight));
            }
            b"LIST" if chunk.whole()?.starts_with(b"wavl") => {
                return Err(WavError::Unsupported("samples in a list of chunks (wavl)".to_owned()));
            }
            // Other chunks are skipped.
            _ => {
                chunk.whole()?;
            }
        }
        at = chunk.next(bytes)?;
    }
    Err(WavError::NotWav("no data chunk found".to_owned()))
}

/// Identifiers that are common in WAV files.
const COMMON: &[&[u8; 4]] = &[
    b"fmt ", b"data", b"LIST", b"fact", b"JUNK", b"junk", b"PAD ", b"FLLR", b"bext", b"iXML", b"cue ", b"smpl",
    b"id3 ", b"ID3 ",
];

struct Chunk<'b> {
    id: [u8; 4],
    begin: usize,
    /// The length in the header.
    length: usize,
    /// All bytes after the header of the chunk.
    rest: &'b [u8],
}

impl<'b> Chunk<'b> {
    /// The chunk that begins at `at`. `None` at the end of the file.
    fn read(bytes: &'b [u8], at: usize) -> Result<Option<Self>, WavError> {
        match bytes.get(at..) {
            None | Some([]) => Ok(None),
            Some([a, b, c, d, l0, l1, l2, l3, rest @ ..]) => Ok(Some(Self {
                id: [*a, *b, *c, *d],
                begin: at + 8,
                length: u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize,
                rest,
            })),
            Some(_) => Err(WavError::Truncated),
        }
    }

    /// The content of the chunk, if all of it is there.
    fn whole(&self) -> Result<&'b [u8], WavError> {
        self.rest.get(..self.length).ok_or(WavError::Truncated)
    }

    /// The samples in the chunk. If their length is unknown or cannot be true, they extend to the end of the file.
    fn samples(&self, long_length: Option<u64>) -> &'b [u8] {
        let length = match long_length.filter(|_| self.length == u32::MAX as usize) {
            Some(long) => usize::try_from(long).unwrap_or(usize::MAX),
            None => self.length,
        };
        match self.rest.get(..length) {
            // The writer meant to fill in the length later and did not, unless the rest consists of other chunks.
            Some([]) if !is_chunks(self.rest) => self.rest,
            Some(samples) => samples,
            None => self.rest,
        }
    }

    /// The start of the next chunk. Chunks have even lengths; an odd one is followed by a pad byte that belongs to no
    /// chunk.
    fn next(&self, bytes: &[u8]) -> Result<usize, WavError> {
        let end = self.begin + self.length;
        let is_common = |at: usize| {
            bytes
                .get(at..at + 4)
                .is_some_and(|id| COMMON.iter().any(|known| *known == id))
        };
        // Any other identifier whose chunk ends within the file.
        let is_chunk = |at: usize| {
            let chunk = Chunk::read(bytes, at).ok().flatten();
            chunk.is_some_and(|chunk| chunk.id.iter().all(|c| (0x20..0x7f).contains(c)) && chunk.whole().is_ok())
        };
        let is_unpadded =
            is_common(end) && !is_common(end + 1) || is_chunk(end) && !is_chunk(end + 1) && !is_common(end + 1);
        if self.length % 2 == 1 && is_unpadded {
            let id = String::from_utf8_lossy(&self.id).into_owned();
            return Err(WavError::NotWav(format!(
                "chunk {id:?} has an odd length and lacks its pad byte"
            )));
        }
        Ok(end + self.length % 2)
    }
}

/// Whether more samples follow in a chunk of their own behind `before` bytes of samples. The format allows one chunk; to
/// read the first alone would lose what was said in the others.
fn has_samples(rest: &[u8], before: usize) -> bool {
    let mut at = before % 2;
    while let Ok(Some(chunk)) = Chunk::read(rest, at) {
        if chunk.id == *b"data" && chunk.length > 0 && !chunk.rest.is_empty() {
            return true;
        }
        if chunk.whole().is_err() {
            return false;
        }
        at = chunk.begin + chunk.length + chunk.length % 2;
    }
    false
}

/// Whether these bytes consist of whole chunks only.
fn is_chunks(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Ok(Some(chunk)) = Chunk::read(bytes, at) {
        if chunk.whole().is_err() || !chunk.id.iter().all(|c| (0x20..0x7f).contains(c)) {
            return false;
        }
        at = chunk.begin + chunk.length + chunk.length % 2;
    }
    // Writers often omit the last pad byte.
    at == bytes.len() || at == bytes.len() + 1
}

/// The bytes after the tag in an identifier of WAVE_FORMAT_EXTENSIBLE that stands for an older tag.
const EXTENSIBLE_TAIL: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];
const EXTENSIBLE: u16 = 0xfffe;

impl Format {
    fn read(bytes: &[u8]) -> Result<Self, WavError> {
        let short = || WavError::NotWav("its format is too short".to_owned());
        let number = |at: usize| match bytes.get(at..at + 2) {
            Some(two) => Ok(u16::from_le_bytes([two[0], two[1]])),
            None => Err(short()),
        };
        let refuse = |what: String| Err(WavError::Unsupported(what));
        let (channels, align, bits) = (number(2)?, number(12)?, number(14)?);
        let rate = u32::from(number(4)?) | u32::from(number(6)?) << 16;
        let tag = match number(0)? {
            EXTENSIBLE => {
                let kind = bytes.get(24..40).ok_or_else(short)?;
                if kind[2..] != EXTENSIBLE_TAIL {
                    return refuse("this encoding".to_owned());
                }
                u16::from_le_bytes([kind[0], kind[1]])
            }
            tag => tag,
        };
        // 0x55 is MP3, 0x11 IMA ADPCM, 0x31 GSM, and so on.
        let (encoding, widths): (Encoding, &[usize]) = match tag {
            1 => (Encoding::Pcm, &[1, 2, 3, 4]),
            3 => (Encoding::Float, &[4, 8]),
            6 => (Encoding::ALaw, &[1]),
            7 => (Encoding::MuLaw, &[1]),
            tag => return refuse(format!("encoding {tag:#06x}")),
        };
        match channels {
            1 | 2 => {}
            0 => return refuse("zero channels".to_owned()),
            more => return refuse(format!("{more} channels")),
        }
        if !RATES.contains(&rate) {
            return refuse(format!("{rate} Hz"));
        }
        // Samples of, for example, twelve bits occupy the upper end of two bytes, so only the number of bytes matters.
        let sample_bytes = usize::from(bits.div_ceil(8));
        if !widths.contains(&sample_bytes) {
            return refuse(format!("samples of {bits} bits"));
        }
        let channels = usize::from(channels);
        if usize::from(align) != sample_bytes * channels {
            return refuse(format!("{channels} samples of {bits} bits in {align} bytes"));
        }
        Ok(Self {
            encoding,
            channels,
            rate,
            sample_bytes,
        })
    }
}

impl Encoding {
    /// The function that reads one sample of this many bytes, with 1 as full scale.
    fn decoder(self, sample_bytes: usize) -> fn(&[u8]) -> f32 {
        match (self, sample_bytes) {
            (Self::ALaw, _) => |b| f32::from(g711::a_law(b[0])) / 32_768.0,
            (Self::MuLaw, _) => |b| f32::from(g711::mu_law(b[0])) / 32_768.0,
            (Self::Float, 4) => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            (Self::Float, _) => |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
            // The only unsigned format; its zero is 128.
            (Self::Pcm, 1) => |b| (f32::from(b[0]) - 128.0) / 128.0,
            (Self::Pcm, 2) => |b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0,
            (Self::Pcm, 3) => |b| (i32::from_le_bytes([0, b[0], b[1], b[2]]) >> 8) as f32 / 8_388_608.0,
            (Self::Pcm, _) => |b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32 / 2_147_483_648.0,
        }
    }
}

/// Encodes mono samples at `rate` as a 16-bit WAV file.
pub fn encode(samples: &[f32], rate: u32) -> Vec<u8> {
    let spec = WavSpec {
        channels: 1,
        sample_rate: rate,
        bits_per_sample: 16,
        sample_format: SampleFormat::Int,
    };
    let mut file = Cursor::new(Vec::with_capacity(HEADER_BYTES + 2 * samples.len()));
    let mut write = || {
        let mut writer = WavWriter::new(&mut file, spec)?;
        for sample in samples {
            writer.write_sample(pcm::to_i16(*sample))?;
        }
        writer.finalize()
    };
    write().expect("memory takes every byte, and no clip has the 4 GiB at which a WAV file ends");
    file.into_inner()
}

#[cfg(test)]
mod tests;
