//! Makes each pass over a recording sound different: tempo, vocal tract, microphone, room, noise, gaps.
//!
//! Works on log-power mel frames, which is much cheaper than on samples and accurate enough for a small model.

use rand::{Rng, rngs::SmallRng};
use speech::features::{self, Mel};

/// A changed copy of `clean`, normalised as for recognition. `other` is a second voice in the background.
pub(crate) fn augment(clean: &Mel, other: &Mel, r: &mut SmallRng) -> Mel {
    let mut mel = warp(clean, r);
    colour(&mut mel, r);
    if r.random_bool(0.3) {
        reverberate(&mut mel, r);
    }
    if r.random_bool(0.7) {
        pad(&mut mel, r);
    }
    if r.random_bool(0.65) {
        add_noise(&mut mel, r);
    }
    if r.random_bool(0.12) {
        add_babble(&mut mel, other, r);
    }
    features::normalise_for_recognition(&mut mel);
    mask(&mut mel, r);
    mel
}

/// Changes tempo and formants, by reading between the frames and between the bins.
fn warp(clean: &Mel, r: &mut SmallRng) -> Mel {
    let tempo: f32 = if r.random_bool(0.7) {
        r.random_range(0.85..1.18)
    } else {
        1.0
    };
    let tract: f32 = if r.random_bool(0.7) {
        r.random_range(0.89..1.12)
    } else {
        1.0
    };
    let (frames, bins) = (clean.frames(), clean.bins);
    let out_frames = ((frames as f32 / tempo) as usize).max(1);
    let mut values = Vec::with_capacity(out_frames * bins);
    // The position from which each output bin reads. The highest bins bend back, so that the top bin stays the top.
    let knee = 0.8 * bins as f32;
    let reads: Vec<(usize, f32)> = (0..bins)
        .map(|b| {
            let b = b as f32;
            let at = if b * tract.max(1.0) <= knee {
                b * tract
            } else {
                let from = knee / tract.max(1.0);
                let (low, high) = (from * tract, (bins - 1) as f32);
                low + (b - from) / (high - from) * (high - low)
            };
            let at = at.clamp(0.0, (bins - 1) as f32);
            (at as usize, at.fract())
        })
        .collect();
    for frame in 0..out_frames {
        let at = (frame as f32 * tempo).min((frames - 1) as f32);
        let (first, share) = (at as usize, at.fract());
        let second = (first + 1).min(frames - 1);
        let (first, second) = (clean.frame(first), clean.frame(second));
        for &(bin, part) in &reads {
            let next = (bin + 1).min(bins - 1);
            let low = first[bin] + (second[bin] - first[bin]) * share;
            let high = first[next] + (second[next] - first[next]) * share;
            values.push(low + (high - low) * part);
        }
    }
    Mel { values, bins }
}

/// Applies a smooth random frequency response: microphones and loudspeakers differ by some decibels.
fn colour(mel: &mut Mel, r: &mut SmallRng) {
    let (tilt, wave, phase) = (
        r.random_range(-1.2..1.2f32),
        r.random_range(0.0..0.8f32),
        r.random_range(0.0..6.3f32),
    );
    let bins = mel.bins;
    let gains: Vec<f32> = (0..bins)
        .map(|b| {
            let x = b as f32 / bins as f32;
            tilt * (x - 0.5) * 2.0 + wave * (x * 9.0 + phase).sin()
        })
        .collect();
    for frame in mel.values.chunks_exact_mut(bins) {
        for (value, gain) in frame.iter_mut().zip(&gains) {
            *value += gain;
        }
    }
}

/// Lets each frame ring on in the frames after it.
fn reverberate(mel: &mut Mel, r: &mut SmallRng) {
    // Fraction of the power left after 10 ms, for rooms in which it falls by 60 dB within 0.15 to 0.5 s.
    let decay = (-13.8 * 0.01 / r.random_range(0.15..0.5f32)).exp();
    let amount = r.random_range(0.03..0.25f32);
    let bins = mel.bins;
    let mut ring = vec![0.0f32; bins];
    for frame in mel.values.chunks_exact_mut(bins) {
        for (value, tail) in frame.iter_mut().zip(&mut ring) {
            let power = value.exp();
            let heard = power + *tail * amount;
            *tail = *tail * decay + power;
            *value = heard.ln();
        }
    }
}

/// Adds silence before and after, as an endpointer leaves it.
fn pad(mel: &mut Mel, r: &mut SmallRng) {
    let bins = mel.bins;
    let (before, after) = (r.random_range(0..40usize), r.random_range(0..60usize));
    let quiet = r.random_range(-18.4..-9.0f32);
    let mut values = vec![quiet; before * bins];
    values.append(&mut mel.values);
    values.resize(values.len() + after * bins, quiet);
    mel.values = values;
}

fn loudest(mel: &Mel) -> f32 {
    let bins = mel.bins as f32;
    mel.values
        .chunks_exact(mel.bins)
        .map(|f| f.iter().map(|v| v.exp()).sum::<f32>() / bins)
        .fold(1e-8, f32::max)
}

fn add_noise(mel: &mut Mel, r: &mut SmallRng) {
    let under_db: f32 = r.random_range(8.0..40.0);
    let level = (loudest(mel) * 10f32.powf(-under_db / 10.0)).ln();
    let tilt = r.random_range(-2.5..1.5f32);
    let bins = mel.bins;
    for frame in mel.values.chunks_exact_mut(bins) {
        for (b, value) in frame.iter_mut().enumerate() {
            // The power of noise in one bin is exponentially distributed, less so in the wide bins.
            let x: f32 = r.random_range(0.02..1.0);
            let noise = level + tilt * (b as f32 / bins as f32 - 0.5) * 2.0 + (-x.ln()).max(0.05).ln() * 0.7;
            *value = (value.exp() + noise.exp()).ln();
        }
    }
}

/// Adds another person, further away.
fn add_babble(mel: &mut Mel, other: &Mel, r: &mut SmallRng) {
    let under_db: f32 = r.random_range(12.0..25.0);
    let gain = loudest(mel) / loudest(other) * 10f32.powf(-under_db / 10.0);
    let shift = r.random_range(0..other.frames().max(1));
    let bins = mel.bins;
    for (at, frame) in mel.values.chunks_exact_mut(bins).enumerate() {
        let theirs = other.frame((at + shift) % other.frames());
        for (value, their) in frame.iter_mut().zip(theirs) {
            *value = (value.exp() + their.exp() * gain).ln();
        }
    }
}

/// SpecAugment: masks parts of the spectrum, so that the model learns to bridge gaps.
fn mask(mel: &mut Mel, r: &mut SmallRng) {
    let (frames, bins) = (mel.frames(), mel.bins);
    for _ in 0..2 {
        let width = r.random_range(0..=12usize);
        let from = r.random_range(0..=bins - width);
        for frame in mel.values.chunks_exact_mut(bins) {
            frame[from..from + width].fill(0.0);
        }
        let length = r.random_range(0..=14usize).min(frames / 8);
        let from = r.random_range(0..=frames - length);
        mel.values[from * bins..(from + length) * bins].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_change_keeps_the_values_finite_and_the_bins_whole() {
        let mut r = SmallRng::seed_from_u64(1);
        for frames in [1, 2, 7, 120] {
            let clean = Mel {
                values: (0..frames * 80).map(|i| (i as f32 * 0.37).sin() * 6.0 - 6.0).collect(),
                bins: 80,
            };
            for _ in 0..50 {
                let changed = augment(&clean, &clean, &mut r);
                assert!(changed.values.len().is_multiple_of(80) && changed.frames() > 0);
                assert!(changed.values.iter().all(|v| v.is_finite()));
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_change() {
        let clean = Mel {
            values: (0..8_000).map(|i| (i as f32 * 0.11).cos()).collect(),
            bins: 80,
        };
        let once = augment(&clean, &clean, &mut SmallRng::seed_from_u64(5));
        assert_eq!(once, augment(&clean, &clean, &mut SmallRng::seed_from_u64(5)));
    }
}
