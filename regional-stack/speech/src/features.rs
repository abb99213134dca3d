//! Mel spectra: the input of the recognizer and the output of the synthesizer's network.
//!
//! realfft does the transform. The filters are hand-written: the shipped weights were trained on these very values, and each library
//! of mel filters has its own scale, edges and floor.

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

use crate::SAMPLE_RATE;

/// The division of audio into frames, and of frequencies into bins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MelConfig {
    /// Length of the transform in samples, at least `window`.
    pub fft: usize,
    /// Samples in the window of one frame.
    pub window: usize,
    /// Samples between the starts of two frames.
    pub hop: usize,
    /// Number of mel bins.
    pub bins: usize,
    /// Lowest frequency of the filters, in Hz.
    pub lowest_hz: f32,
    /// Highest frequency of the filters, in Hz.
    pub highest_hz: f32,
}

/// The configuration for recognition: 80 bins, 25 ms windows every 10 ms. Mains hum below 60 Hz is not speech.
pub const RECOGNITION: MelConfig = MelConfig {
    fft: 512,
    window: 400,
    hop: 160,
    bins: 80,
    lowest_hz: 60.0,
    highest_hz: 7_600.0,
};

/// The configuration for synthesis: longer windows, which resolve single harmonics, so that the phases can be
/// reconstructed.
pub const SYNTHESIS: MelConfig = MelConfig {
    fft: 1_024,
    window: 800,
    hop: 200,
    bins: 80,
    lowest_hz: 40.0,
    highest_hz: 7_900.0,
};

/// Frames of mel values, one frame after another.
#[derive(Debug, Clone, PartialEq)]
pub struct Mel {
    /// `frames() * bins` values.
    pub values: Vec<f32>,
    /// Number of values in a frame.
    pub bins: usize,
}

impl Mel {
    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.values.len() / self.bins.max(1)
    }

    /// The values of one frame. Panics if `at` is not less than `frames()`.
    pub fn frame(&self, at: usize) -> &[f32] {
        &self.values[at * self.bins..(at + 1) * self.bins]
    }
}

/// One triangle of the filter bank: its weights, from line `first` of the spectrum on.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) first: usize,
    pub(crate) weights: Vec<f32>,
}

/// Computes mel spectra. Cheap to clone and safe to share.
#[derive(Clone)]
pub struct MelSpectrum {
    config: MelConfig,
    transform: Arc<dyn RealToComplex<f32>>,
    window: Arc<[f32]>,
    filters: Arc<[Filter]>,
}

impl std::fmt::Debug for MelSpectrum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MelSpectrum")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl MelSpectrum {
    /// Prepares the window, the transform and the filters.
    pub fn new(config: MelConfig) -> Self {
        debug_assert!(config.window <= config.fft && config.hop > 0 && config.bins > 0);
        Self {
            config,
            transform: RealFftPlanner::new().plan_fft_forward(config.fft),
            window: hann(config.window).into(),
            filters: filters(config).into(),
        }
    }

    /// The configuration of this spectrum.
    pub fn config(&self) -> MelConfig {
        self.config
    }

    /// The natural logarithm of the power in each bin. There is one frame per hop, centred on the hop, so `n` samples
    /// give `ceil(n / hop)` frames. Outside the clip there is silence.
    pub fn log_power(&self, samples: &[f32]) -> Mel {
        let MelConfig {
            fft, window, hop, bins, ..
        } = self.config;
        let frames = samples.len().div_ceil(hop);
        let mut values = Vec::with_capacity(frames * bins);
        let mut input = self.transform.make_input_vec();
        let mut spectrum = self.transform.make_output_vec();
        let mut scratch = self.transform.make_scratch_vec();
        let mut power = vec![0.0f32; fft / 2 + 1];
        for frame in 0..frames {
            let start = (frame * hop + hop / 2) as isize - (window / 2) as isize;
            input.fill(0.0);
            for (i, (slot, w)) in input.iter_mut().zip(self.window.iter()).enumerate() {
                let at = start + i as isize;
                if at >= 0 && (at as usize) < samples.len() {
                    *slot = samples[at as usize] * w;
                }
            }
            self.transform
                .process_with_scratch(&mut input, &mut spectrum, &mut scratch)
                .expect("the buffers were made by this transform");
            for (p, c) in power.iter_mut().zip(&spectrum) {
                *p = c.norm_sqr();
            }
            for filter in self.filters.iter() {
                let sum: f32 = filter
                    .weights
                    .iter()
                    .zip(&power[filter.first..])
                    .map(|(w, p)| w * p)
                    .sum();
                // Digital silence has no logarithm. This floor lies 30 dB below the last bit of 16-bit audio.
                values.push((sum + 1e-8).ln());
            }
        }
        Mel { values, bins }
    }
}

/// Brings a log-power spectrum into the range on which the recognizer was trained, in place.
///
/// This removes loudness and the colour of the microphone, and makes silence around the speech irrelevant: each bin
/// loses its mean over the frames with speech, and everything 50 dB below the loudest frame becomes one floor.
pub fn normalise_for_recognition(mel: &mut Mel) {
    // In units of ln(power): 40 and 50 dB.
    const ACTIVE: f32 = 9.2;
    const FLOOR: f32 = 11.5;
    let bins = mel.bins;
    let levels: Vec<f32> = mel
        .values
        .chunks_exact(bins)
        .map(|f| (f.iter().map(|v| v.exp()).sum::<f32>() / bins as f32).ln())
        .collect();
    let loudest = levels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !loudest.is_finite() {
        mel.values.fill(0.0);
        return;
    }
    for value in &mut mel.values {
        *value = (*value - loudest).max(-FLOOR);
    }
    let mut means = vec![0.0f32; bins];
    let mut active = 0usize;
    for (frame, level) in mel.values.chunks_exact(bins).zip(&levels) {
        if level - loudest > -ACTIVE {
            active += 1;
            for (mean, value) in means.iter_mut().zip(frame) {
                *mean += value;
            }
        }
    }
    for mean in &mut means {
        *mean /= active.max(1) as f32;
    }
    for frame in mel.values.chunks_exact_mut(bins) {
        for (value, mean) in frame.iter_mut().zip(&means) {
            // A third brings the values near unit variance.
            *value = (*value - mean) / 3.0;
        }
    }
}

pub(crate) fn hann(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| 0.5 - 0.5 * (i as f32 * std::f32::consts::TAU / len as f32).cos())
        .collect()
}

pub(crate) fn filters(config: MelConfig) -> Vec<Filter> {
    let to_mel = |hz: f32| 2_595.0 * (1.0 + hz / 700.0).log10();
    let to_hz = |mel: f32| 700.0 * (10f32.powf(mel / 2_595.0) - 1.0);
    let (low, high) = (to_mel(config.lowest_hz), to_mel(config.highest_hz));
    let edge = |i: usize| to_hz(low + (high - low) * i as f32 / (config.bins + 1) as f32);
    let step_hz = SAMPLE_RATE as f32 / config.fft as f32;
    (0..config.bins)
        .map(|m| {
            let (left, peak, right) = (edge(m), edge(m + 1), edge(m + 2));
            let weight = |k: usize| {
                let hz = k as f32 * step_hz;
                ((hz - left) / (peak - left))
                    .min((right - hz) / (right - peak))
                    .max(0.0)
            };
            // Low bins are narrower than the resolution of the transform. The nearest line then stands for the bin.
            let nearest = (peak / step_hz).round() as usize;
            let first = (left / step_hz).ceil() as usize;
            let last = ((right / step_hz).floor() as usize).min(config.fft / 2);
            let weights: Vec<f32> = (first..=last).map(weight).collect();
            if weights.iter().any(|&w| w > 0.05) {
                Filter { first, weights }
            } else {
                Filter {
                    first: nearest.min(config.fft / 2),
                    weights: vec![1.0],
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f32, len: usize, level: f32) -> Vec<f32> {
        (0..len)
            .map(|i| level * (i as f32 * hz * std::f32::consts::TAU / SAMPLE_RATE as f32).sin())
            .collect()
    }

    fn loudest_bin(frame: &[f32]) -> usize {
        (0..frame.len()).max_by(|&a, &b| frame[a].total_cmp(&frame[b])).unwrap()
    }

    #[test]
    fn frames_follow_the_hop() {
        let spectrum = MelSpectrum::new(RECOGNITION);
        for (samples, frames) in [(0, 0), (1, 1), (160, 1), (161, 2), (16_000, 100)] {
            assert_eq!(spectrum.log_power(&vec![0.0; samples]).frames(), frames);
        }
    }

    #[test]
    fn golden_bins() {
        // The mel filters nearest to each tone, computed by hand from the mel formula.
        let spectrum = MelSpectrum::new(RECOGNITION);
        for (hz, bin) in [(200.0, 5), (1_000.0, 26), (4_000.0, 60)] {
            let mel = spectrum.log_power(&tone(hz, 3_200, 0.5));
            let got = loudest_bin(mel.frame(10));
            assert!(got.abs_diff(bin) <= 1, "{hz} Hz is loudest in bin {got}, wanted {bin}");
        }
        let full = spectrum.log_power(&tone(1_000.0, 3_200, 1.0));
        // A full-scale tone under a Hann window of 400 has a peak power of (400 / 4)^2, spread over a triangle.
        assert!((full.frame(10)[loudest_bin(full.frame(10))] - 1e4f32.ln()).abs() < 1.0);
    }

    #[test]
    fn no_filter_is_empty() {
        for config in [RECOGNITION, SYNTHESIS] {
            assert!(filters(config).iter().all(|f| f.weights.iter().sum::<f32>() > 0.04));
        }
    }

    #[test]
    fn loudness_and_surrounding_silence_hardly_matter() {
        let spectrum = MelSpectrum::new(RECOGNITION);
        let speech: Vec<f32> = tone(300.0, 8_000, 0.3)
            .into_iter()
            .zip(tone(1_700.0, 8_000, 0.2))
            .map(|(a, b)| a + b)
            .collect();
        let mut plain = spectrum.log_power(&speech);
        normalise_for_recognition(&mut plain);
        let quiet: Vec<f32> = speech.iter().map(|s| s * 0.05).collect();
        let mut padded = spectrum.log_power(&[vec![0.0; 8_000], quiet, vec![0.0; 8_000]].concat());
        normalise_for_recognition(&mut padded);
        for frame in 5..45 {
            for (a, b) in plain.frame(frame).iter().zip(padded.frame(frame + 50)) {
                assert!((a - b).abs() < 0.15, "frame {frame}: {a} and {b}");
            }
        }
    }

    #[test]
    fn silence_and_nothing_are_fine() {
        let spectrum = MelSpectrum::new(RECOGNITION);
        for len in [0, 16_000] {
            let mut mel = spectrum.log_power(&vec![0.0; len]);
            normalise_for_recognition(&mut mel);
            assert!(mel.values.iter().all(|v| v.is_finite()));
        }
    }
}
