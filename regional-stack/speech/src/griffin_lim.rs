//! Turns a mel spectrum back into sound, by the fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard, 2013).
//! Hand-written on realfft: no kept library has the algorithm, and it must undo the filters of [`crate::features`].

use std::sync::Arc;

use realfft::{ComplexToReal, RealFftPlanner, RealToComplex, num_complex::Complex};

use crate::features::{self, Filter, Mel, MelConfig};

/// Rounds of phase repair. More rounds make no audible difference; each costs two transforms per frame.
const ROUNDS: usize = 32;
/// Overshoot of each round. The value of the paper.
const MOMENTUM: f32 = 0.99;
/// Rounds of spreading mel bins over spectrum lines. After ten rounds the result changes by less than 1 %.
const SPREAD_ROUNDS: usize = 12;

/// Turns mel spectra into audio. Cheap to clone and safe to share. The same input gives the same samples.
#[derive(Clone)]
pub struct Vocoder {
    config: MelConfig,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    window: Arc<[f32]>,
    filters: Arc<[Filter]>,
}

impl std::fmt::Debug for Vocoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocoder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Vocoder {
    /// Prepares the transforms and filters for spectra of this configuration.
    pub fn new(config: MelConfig) -> Self {
        let mut planner = RealFftPlanner::new();
        Self {
            config,
            forward: planner.plan_fft_forward(config.fft),
            inverse: planner.plan_fft_inverse(config.fft),
            window: features::hann(config.window).into(),
            filters: features::filters(config).into(),
        }
    }

    /// Audio for natural-log mel power in the form of [`features::MelSpectrum::log_power`]: `frames * hop` samples.
    pub fn sound(&self, mel: &Mel) -> Vec<f32> {
        let (frames, hop, lines) = (mel.frames(), self.config.hop, self.config.fft / 2 + 1);
        debug_assert_eq!(mel.bins, self.config.bins);
        let mut magnitude = Vec::with_capacity(frames * lines);
        for frame in 0..frames {
            magnitude.extend(self.spread(mel.frame(frame)));
        }
        // Random phases from a fixed seed. Zero phases would start as a train of clicks that the rounds never quite
        // remove.
        let mut seed = 0x2545_f491u32;
        let mut angles: Vec<Complex<f32>> = (0..frames * lines)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Complex::from_polar(1.0, (seed >> 8) as f32 / 16_777_216.0 * std::f32::consts::TAU)
            })
            .collect();
        let mut before = vec![Complex::new(0.0, 0.0); frames * lines];
        let mut audio = vec![0.0; frames * hop];
        let share = self.window_share(frames);
        for _ in 0..ROUNDS {
            self.overlap_add(&magnitude, &angles, &share, &mut audio);
            self.analyse(&audio, frames, |at, now| {
                let ahead = now + (now - before[at]) * MOMENTUM;
                before[at] = now;
                // `norm()` calls hypot, which guards against overflow. That is not needed here, and slow.
                let norm = ahead.norm_sqr().sqrt();
                angles[at] = if norm > 1e-12 {
                    ahead / norm
                } else {
                    Complex::new(1.0, 0.0)
                };
            });
        }
        self.overlap_add(&magnitude, &angles, &share, &mut audio);
        audio
    }

    /// The magnitudes of the spectrum lines for which the filters would give these bins. Multiplicative updates from a
    /// flat start, because they keep every magnitude positive.
    fn spread(&self, frame: &[f32]) -> Vec<f32> {
        let lines = self.config.fft / 2 + 1;
        let wanted: Vec<f32> = frame
            .iter()
            .map(|v| if v.is_nan() { 0.0 } else { v.clamp(-18.5, 20.0).exp() })
            .collect();
        let mut power = vec![0.0f32; lines];
        let mut cover = vec![0.0f32; lines];
        for (filter, want) in self.filters.iter().zip(&wanted) {
            let sum: f32 = filter.weights.iter().sum();
            for (k, w) in filter.weights.iter().enumerate() {
                power[filter.first + k] += w * want / sum;
                cover[filter.first + k] += w;
            }
        }
        let mut ratio = vec![0.0f32; lines];
        for _ in 0..SPREAD_ROUNDS {
            ratio.fill(0.0);
            for (filter, want) in self.filters.iter().zip(&wanted) {
                let got: f32 = filter
                    .weights
                    .iter()
                    .zip(&power[filter.first..])
                    .map(|(w, p)| w * p)
                    .sum();
                let factor = want / got.max(1e-12);
                for (k, w) in filter.weights.iter().enumerate() {
                    ratio[filter.first + k] += w * factor;
                }
            }
            for ((p, r), c) in power.iter_mut().zip(&ratio).zip(&cover) {
                *p = if *c > 0.0 { *p * r / c } else { 0.0 };
            }
        }
        power.into_iter().map(f32::sqrt).collect()
    }

    /// The sample at which frame `at` starts; negative before the clip. Frames are centred on their hop.
    fn start(&self, at: usize) -> isize {
        (at * self.config.hop + self.config.hop / 2) as isize - (self.config.window / 2) as isize
    }

    fn window_share(&self, frames: usize) -> Vec<f32> {
        let mut share = vec![0.0f32; frames * self.config.hop];
        for frame in 0..frames {
            let start = self.start(frame);
            for (i, w) in self.window.iter().enumerate() {
                if let Some(slot) = usize::try_from(start + i as isize)
                    .ok()
                    .and_then(|at| share.get_mut(at))
                {
                    *slot += w * w;
                }
            }
        }
        share
    }

    fn overlap_add(&self, magnitude: &[f32], angles: &[Complex<f32>], share: &[f32], audio: &mut [f32]) {
        let lines = self.config.fft / 2 + 1;
        let scale = 1.0 / self.config.fft as f32;
        let mut spectrum = self.inverse.make_input_vec();
        let mut wave = self.inverse.make_output_vec();
        let mut scratch = self.inverse.make_scratch_vec();
        audio.fill(0.0);
        for frame in 0..magnitude.len() / lines {
            let range = frame * lines..(frame + 1) * lines;
            for ((slot, m), a) in spectrum.iter_mut().zip(&magnitude[range.clone()]).zip(&angles[range]) {
                *slot = a * m;
            }
            // The inverse transform needs a real first and last line.
            spectrum[0].im = 0.0;
            spectrum[lines - 1].im = 0.0;
            self.inverse
                .process_with_scratch(&mut spectrum, &mut wave, &mut scratch)
                .expect("the buffers were made by this transform and the outer lines are real");
            let start = self.start(frame);
            for (i, w) in self.window.iter().enumerate() {
                if let Some(slot) = usize::try_from(start + i as isize)
                    .ok()
                    .and_then(|at| audio.get_mut(at))
                {
                    *slot += wave[i] * w * scale;
                }
            }
        }
        for (sample, s) in audio.iter_mut().zip(share) {
            *sample /= s.max(1e-3);
        }
    }

    fn analyse(&self, audio: &[f32], frames: usize, mut each: impl FnMut(usize, Complex<f32>)) {
        let mut input = self.forward.make_input_vec();
        let mut spectrum = self.forward.make_output_vec();
        let mut scratch = self.forward.make_scratch_vec();
        for frame in 0..frames {
            let start = self.start(frame);
            input.fill(0.0);
            for (i, w) in self.window.iter().enumerate() {
                if let Some(sample) = usize::try_from(start + i as isize).ok().and_then(|at| audio.get(at)) {
                    input[i] = sample * w;
                }
            }
            self.forward
                .process_with_scratch(&mut input, &mut spectrum, &mut scratch)
                .expect("the buffers were made by this transform");
            for (k, value) in spectrum.iter().enumerate() {
                each(frame * spectrum.len() + k, *value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{MelSpectrum, SYNTHESIS};

    fn vowel(len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| {
                let t = i as f32 / 16_000.0;
                (1..20)
                    .map(|h| (t * 150.0 * h as f32 * std::f32::consts::TAU).sin() * 0.2 / h as f32)
                    .sum()
            })
            .collect()
    }

    #[test]
    fn the_sound_has_the_spectrum_it_was_made_from() {
        let spectrum = MelSpectrum::new(SYNTHESIS);
        let wanted = spectrum.log_power(&vowel(8_000));
        let sound = Vocoder::new(SYNTHESIS).sound(&wanted);
        assert_eq!(sound.len(), 8_000);
        let got = spectrum.log_power(&sound);
        // Compares only bins with energy; nobody hears the valleys between harmonics.
        let (mut error, mut count) = (0.0, 0);
        for frame in 4..36 {
            for (a, b) in wanted
                .frame(frame)
                .iter()
                .zip(got.frame(frame))
                .filter(|(a, _)| **a > 0.0)
            {
                error += (a - b).abs();
                count += 1;
            }
        }
        assert!(
            count > 300 && error / (count as f32) < 0.6,
            "mean difference {} over {count}",
            error / count as f32
        );
    }

    #[test]
    fn the_same_spectrum_gives_the_same_sound_and_none_gives_none() {
        let mel = MelSpectrum::new(SYNTHESIS).log_power(&vowel(2_000));
        let vocoder = Vocoder::new(SYNTHESIS);
        assert_eq!(vocoder.sound(&mel), vocoder.sound(&mel));
        assert_eq!(
            vocoder.sound(&Mel {
                values: vec![],
                bins: 80
            }),
            Vec::<f32>::new()
        );
    }

    #[test]
    fn wild_values_stay_finite() {
        let mel = Mel {
            values: [f32::NAN, f32::INFINITY, -1e30, 1e30].repeat(80),
            bins: 80,
        };
        assert!(Vocoder::new(SYNTHESIS).sound(&mel).iter().all(|s| s.is_finite()));
    }
}
