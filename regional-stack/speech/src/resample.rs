//! Converts the sample rate of a whole clip or of a stream.
//!
//! rubato does the arithmetic. This module chooses its filter for speech, and cuts off the delay that the filter adds.

use audioadapter_buffers::direct::SequentialSlice;
use rubato::{
    Async, FixedAsync, Indexing, Resampler as _, SincInterpolationParameters, SincInterpolationType, WindowFunction,
};

use crate::texts;

/// Supported rates, from telephone speech to studio recordings. With rates far beyond them, the filter tables would
/// grow with any number in a file header.
pub const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

/// Length of the filter, in samples of the slower rate. With it, the response to 16 kHz is flat up to 7 kHz and 75 dB
/// down from 8 kHz on, where sound would fold back.
const TAPS: usize = 80;
/// The middle of the slope between these two, as a fraction of the slower rate's Nyquist frequency.
const CUTOFF: f32 = 0.93;

/// Most filters for one pair of rates. Enough for every usual recording rate, including 44.1 kHz and its fractions.
const PHASES_MAX: u32 = 320;
/// Fewest filters for one pair of rates; see [`phases`].
const PHASES_MIN: u32 = 16;

/// A rate outside [`RATES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::bad_rates(*from, *to))]
pub struct ResampleError {
    /// Rate of the input, in Hz.
    pub from: u32,
    /// Rate of the output, in Hz.
    pub to: u32,
}

/// Converts a whole clip. The result has `len * to / from` samples, rounded up.
pub fn resample(samples: &[f32], from: u32, to: u32) -> Result<Vec<f32>, ResampleError> {
    let mut stream = Stream::new(from, to)?;
    let mut out = stream.push(samples);
    out.extend(stream.finish());
    Ok(out)
}

/// Converts audio that arrives in pieces of any size.
pub struct Stream {
    engine: Option<Engine>,
}

struct Engine {
    resampler: Async<f32>,
    ratio: f64,
    /// Input that does not fill a chunk yet.
    waiting: Vec<f32>,
    /// Output samples still to drop; they exist only because the filter looks back before the first sample.
    to_skip: usize,
    taken: u64,
    given: u64,
}

impl Stream {
    /// A stream from one rate to another. With equal rates, samples pass unchanged.
    pub fn new(from: u32, to: u32) -> Result<Self, ResampleError> {
        let refused = ResampleError { from, to };
        if !RATES.contains(&from) || !RATES.contains(&to) {
            return Err(refused);
        }
        if from == to {
            return Ok(Self { engine: None });
        }
        let ratio = f64::from(to) / f64::from(from);
        let (oversampling_factor, interpolation) = phases(from, to);
        let parameters = SincInterpolationParameters {
            sinc_len: taps(ratio),
            f_cutoff: CUTOFF,
            interpolation,
            oversampling_factor,
            // Steeper than the library's other windows that fall below the last bit of 16-bit audio.
            window: WindowFunction::Blackman,
        };
        // 10 ms, the length of a device's frame, so that streaming delays the audio by one frame at most.
        let chunk = (from / 100).max(1) as usize;
        let resampler = Async::new_sinc(ratio, 1.0, &parameters, chunk, 1, FixedAsync::Input).map_err(|_| refused)?;
        let to_skip = delay(ratio);
        Ok(Self {
            engine: Some(Engine {
                resampler,
                ratio,
                waiting: Vec::new(),
                to_skip,
                taken: 0,
                given: 0,
            }),
        })
    }

    /// Adds samples, and returns the output that is ready.
    pub fn push(&mut self, samples: &[f32]) -> Vec<f32> {
        let Some(engine) = &mut self.engine else {
            return samples.to_vec();
        };
        engine.taken += samples.len() as u64;
        engine.waiting.extend_from_slice(samples);
        let mut out = Vec::with_capacity((samples.len() as f64 * engine.ratio) as usize + 64);
        let mut used = 0;
        while engine.waiting.len() - used >= engine.resampler.input_frames_next() {
            let chunk = engine.resampler.input_frames_next();
            let piece = engine.waiting[used..used + chunk].to_vec();
            engine.step(&piece, &mut out);
            used += chunk;
        }
        engine.waiting.drain(..used);
        out
    }

    /// Returns the rest of the output. After that, the stream can convert another clip.
    pub fn finish(&mut self) -> Vec<f32> {
        let Some(engine) = &mut self.engine else {
            return Vec::new();
        };
        let whole = (engine.taken as f64 * engine.ratio).ceil() as u64;
        let mut out = Vec::new();
        let mut piece = std::mem::take(&mut engine.waiting);
        while engine.given < whole {
            piece.resize(engine.resampler.input_frames_next(), 0.0);
            engine.step(&piece, &mut out);
            piece.clear();
        }
        let surplus = engine.given - whole;
        out.truncate(out.len().saturating_sub(surplus as usize));
        engine.resampler.reset();
        engine.to_skip = delay(engine.ratio);
        (engine.taken, engine.given) = (0, 0);
        out
    }
}

/// The number of filters that the library makes (one for each position between two input samples), and how it gets from
/// them to the position of an output sample.
///
/// If the rates have a small common ratio, as 24 and 16 kHz have, the output samples lie at few positions and each
/// position gets its own filter. That is exact, and the filters are made quickly, which matters when a region takes
/// over hundreds of sessions at once.
fn phases(from: u32, to: u32) -> (usize, SincInterpolationType) {
    let places = to / greatest_common_divisor(from, to);
    if places <= PHASES_MAX {
        // The library's filters are all off by one position. A sixteenth of a sample is too little to matter.
        let factor = places * PHASES_MIN.div_ceil(places);
        (factor as usize, SincInterpolationType::Nearest)
    } else {
        (160, SincInterpolationType::Linear)
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The library counts taps in samples of its input. A filter that reduces the rate must be longer by that factor, or
/// sound above the new Nyquist frequency folds back into speech. Rounded up to a multiple of 8, as the library
/// requires.
fn taps(ratio: f64) -> usize {
    let slower = TAPS as f64 / ratio.min(1.0);
    (slower / 8.0).ceil() as usize * 8
}

/// Output samples before the first input sample: half the filter, less the step that the library takes before its first
/// output (the library's own figure includes that step). Rounding moves the audio by at most half a sample.
fn delay(ratio: f64) -> usize {
    (ratio * taps(ratio) as f64 / 2.0 - 1.0).round().max(0.0) as usize
}

impl Engine {
    // The library's own whole-clip call moves too little after trimming its delay, when a chunk is longer than twice
    // the delay. So the trimming is done here.
    fn step(&mut self, chunk: &[f32], out: &mut Vec<f32>) {
        let mut made = vec![0.0; self.resampler.output_frames_max()];
        let room = made.len();
        let input = SequentialSlice::new(chunk, 1, chunk.len()).expect("a slice holds as many frames as it is long");
        let mut output =
            SequentialSlice::new_mut(&mut made, 1, room).expect("a slice holds as many frames as it is long");
        let indexing = Indexing {
            input_offset: 0,
            output_offset: 0,
            partial_len: None,
            active_channels_mask: None,
        };
        let (_, count) = self
            .resampler
            .process_into_buffer(&input, &mut output, Some(&indexing))
            .expect("the chunk has the length the resampler asked for and the output its maximum");
        let skipped = count.min(self.to_skip);
        self.to_skip -= skipped;
        self.given += (count - skipped) as u64;
        out.extend_from_slice(&made[skipped..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f32, rate: u32, seconds: f32) -> Vec<f32> {
        (0..(rate as f32 * seconds) as usize)
            .map(|i| 0.5 * (i as f32 * hz * std::f32::consts::TAU / rate as f32).sin())
            .collect()
    }

    #[test]
    fn a_tone_stays_the_same_tone() {
        // The last rate has no small common ratio with 16,000.
        for from in [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 23_999] {
            let out = resample(&tone(440.0, from, 0.5), from, 16_000).unwrap();
            let want = tone(440.0, 16_000, 0.5);
            assert!(out.len().abs_diff(want.len()) <= 1, "{from}: {} samples", out.len());
            // The first and last milliseconds include the silence around the clip.
            let worst = out[200..7_800]
                .iter()
                .zip(&want[200..7_800])
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            // Half a sample at this frequency.
            assert!(worst < 0.045, "{from}: off by {worst}");
        }
    }

    /// The response to a tone, in decibels, without its first and last milliseconds.
    fn response_db(hz: f32, from: u32, to: u32) -> f32 {
        let out = resample(&tone(hz, from, 0.5), from, to).unwrap();
        let middle = &out[out.len() / 20..out.len() * 19 / 20];
        let power = middle.iter().map(|s| s * s).sum::<f32>() / middle.len() as f32;
        // A tone of amplitude 0.5.
        10.0 * (power / 0.125).max(1e-12).log10()
    }

    #[test]
    fn speech_passes_whole_and_what_would_fold_back_into_it_is_removed() {
        for from in [24_000, 44_100, 48_000] {
            for hz in [300.0, 1_000.0, 3_000.0, 5_000.0, 6_000.0, 7_000.0] {
                let db = response_db(hz, from, 16_000);
                assert!(db.abs() < 0.3, "{from} Hz: {hz} Hz comes out at {db} dB");
            }
            for hz in [8_050.0, 8_200.0, 8_500.0, 9_000.0, 10_000.0] {
                let db = response_db(hz, from, 16_000);
                assert!(db < -60.0, "{from} Hz: {hz} Hz folds back at {db} dB");
            }
        }
    }

    #[test]
    fn a_faster_rate_adds_no_images() {
        for (from, to) in [(8_000, 16_000), (16_000, 24_000), (16_000, 48_000)] {
            let hz = 0.4375 * from as f32;
            assert!(response_db(hz, from, to).abs() < 0.3, "{from} to {to}");
            let out = resample(&tone(hz, from, 0.5), from, to).unwrap();
            // The mirror image of the tone lies as far above the slower Nyquist frequency as the tone lies below it.
            let image = strength_db(&out[out.len() / 20..out.len() * 19 / 20], from as f32 - hz, to);
            assert!(image < -55.0, "{from} to {to}: the image is at {image} dB");
        }
    }

    fn strength_db(samples: &[f32], hz: f32, rate: u32) -> f32 {
        let step = f64::from(hz) * std::f64::consts::TAU / f64::from(rate);
        let (mut re, mut im) = (0.0, 0.0);
        for (i, s) in samples.iter().enumerate() {
            // A Hann window, so that the tone itself does not leak into this frequency.
            let window = 0.5 - 0.5 * (i as f64 * std::f64::consts::TAU / samples.len() as f64).cos();
            re += f64::from(*s) * window * (i as f64 * step).cos();
            im += f64::from(*s) * window * (i as f64 * step).sin();
        }
        let amplitude = (re * re + im * im).sqrt() * 4.0 / samples.len() as f64;
        (20.0 * (amplitude / 0.5).max(1e-9).log10()) as f32
    }

    #[test]
    fn pieces_of_any_size_give_the_same_audio() {
        let clip = tone(300.0, 24_000, 0.4);
        let whole = resample(&clip, 24_000, 16_000).unwrap();
        let mut stream = Stream::new(24_000, 16_000).unwrap();
        // Twice, because a finished stream starts afresh.
        for _ in 0..2 {
            let mut out = Vec::new();
            for (i, piece) in clip.chunks(97).enumerate() {
                out.extend(stream.push(&piece[..piece.len() / 2]));
                out.extend(stream.push(&piece[piece.len() / 2..]));
                assert!(i > 0 || out.len() < 97);
            }
            out.extend(stream.finish());
            assert_eq!(out, whole);
        }
    }

    #[test]
    fn silly_rates_are_refused_and_nothing_stays_nothing() {
        assert!(resample(&[0.0], 0, 16_000).is_err());
        assert!(resample(&[0.0], 16_000, 4_000_000_000).is_err());
        assert_eq!(resample(&[], 8_000, 16_000).unwrap(), Vec::<f32>::new());
    }
}
