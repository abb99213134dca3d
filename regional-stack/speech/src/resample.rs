//! Changing the sample rate, of a whole clip or of a stream.

use audioadapter_buffers::direct::SequentialSlice;
use rubato::{
    Async, FixedAsync, Indexing, Resampler as _, SincInterpolationParameters, SincInterpolationType, WindowFunction,
};

/// Slowest and fastest rates taken: telephone speech to studio recordings. Far beyond them the filter tables would grow
/// with whatever a file header claims.
pub const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

/// Length of the filter: 64 taps keep the passband flat to 90 % of Nyquist, above all speech the features look at.
const TAPS: usize = 64;

/// Filters made for one pair of rates: enough for all that audio is recorded at, 44.1 kHz and its fractions included.
const PHASES_MAX: u32 = 320;
/// See [`phases`].
const PHASES_MIN: u32 = 16;

/// A rate outside [`RATES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot resample from {from} Hz to {to} Hz; use rates between 4000 and 192000 Hz")]
pub struct ResampleError {
    /// Rate of the input.
    pub from: u32,
    /// Rate asked for.
    pub to: u32,
}

/// Brings a whole clip from one rate to another; the result has `len * to / from` samples, rounded up.
pub fn resample(samples: &[f32], from: u32, to: u32) -> Result<Vec<f32>, ResampleError> {
    let mut stream = Stream::new(from, to)?;
    let mut out = stream.push(samples);
    out.extend(stream.finish());
    Ok(out)
}

/// Resamples audio that arrives in pieces of any size.
pub struct Stream {
    engine: Option<Engine>,
}

struct Engine {
    resampler: Async<f32>,
    ratio: f64,
    /// Input that does not fill a chunk yet.
    waiting: Vec<f32>,
    /// Output that only exists because the filter looks back before the first sample.
    to_skip: usize,
    taken: u64,
    given: u64,
}

impl Stream {
    /// A stream from one rate to another; equal rates pass through untouched.
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
            sinc_len: TAPS,
            f_cutoff: 0.91,
            interpolation,
            oversampling_factor,
            window: WindowFunction::BlackmanHarris2,
        };
        // 10 ms: what a device sends at once, so streaming adds no more delay than one frame.
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

    /// Takes the next samples, gives what is ready.
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

    /// Gives the rest; the stream may then be used for another clip.
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

/// How many filters the library makes, one for each place between two samples of the input, and how it gets from them to the
/// place of an output.
///
/// Where the rates are as small numbers to each other, outputs lie at few places, and each has its own filter, as from 24 to
/// 16 kHz. That is exact, and quickly made, which matters when a region takes over hundreds of sessions at once.
fn phases(from: u32, to: u32) -> (usize, SincInterpolationType) {
    let places = to / greatest_common_divisor(from, to);
    if places <= PHASES_MAX {
        // The library's filters are all off by one place; a sixteenth of a sample is too little to matter.
        let factor = places * PHASES_MIN.div_ceil(places);
        (factor as usize, SincInterpolationType::Nearest)
    } else {
        (160, SincInterpolationType::Linear)
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Output before the first sample of the input: half the filter, less the step the library takes before its first output
/// (its own figure leaves that step in). Rounding moves the audio by at most half a sample.
fn delay(ratio: f64) -> usize {
    (ratio * TAPS as f64 / 2.0 - 1.0).round().max(0.0) as usize
}

impl Engine {
    // The library's own whole-clip call moves too little after trimming its delay when a chunk is longer than twice the
    // delay, so trimming is done here.
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
        // The last has no small number to do with 16,000.
        for from in [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 23_999] {
            let out = resample(&tone(440.0, from, 0.5), from, 16_000).unwrap();
            let want = tone(440.0, 16_000, 0.5);
            assert!(out.len().abs_diff(want.len()) <= 1, "{from}: {} samples", out.len());
            // The first and last few milliseconds see the silence around the clip.
            let worst = out[200..7_800]
                .iter()
                .zip(&want[200..7_800])
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            // Half a sample at this frequency.
            assert!(worst < 0.045, "{from}: off by {worst}");
        }
    }

    #[test]
    fn what_lies_above_the_new_nyquist_is_removed() {
        let out = resample(&tone(10_000.0, 48_000, 0.5), 48_000, 16_000).unwrap();
        assert!(out[200..7_800].iter().all(|s| s.abs() < 0.01));
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
