//! Sounds without words, each made from its line of `testdata/noise.tsv` alone.

use std::f32::consts::TAU;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use speech::SAMPLE_RATE;

/// Random numbers that stay the same in every version of the libraries: ChaCha8 promises its sequence, and the ranges are
/// computed here.
struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    fn between(&mut self, from: f32, to: f32) -> f32 {
        from + (to - from) * (self.0.next_u32() >> 8) as f32 / 16_777_216.0
    }

    /// A whole number from `from` to below `to`.
    fn number(&mut self, from: usize, to: usize) -> usize {
        from + self.0.next_u32() as usize % (to - from)
    }

    fn noise(&mut self) -> f32 {
        self.between(-1.0, 1.0)
    }
}

/// Sounds without words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noise {
    White,
    Pink,
    Hum,
    Clicks,
    Babble,
    Tones,
    Bang,
    Thud,
    Knock,
    Slam,
}

/// A line of `testdata/noise.tsv`.
#[derive(Debug, Clone)]
pub(super) struct Burst {
    noise: Noise,
    length: usize,
    peak_db: f32,
    seed: u64,
}

impl Burst {
    pub(super) fn read(line: &[String]) -> Self {
        let [kind, ms, peak_db, seed] = line else {
            panic!("four columns: {line:?}")
        };
        let noise = Noise::ALL
            .into_iter()
            .find(|noise| format!("{noise:?}").eq_ignore_ascii_case(kind));
        Self {
            noise: noise.unwrap_or_else(|| panic!("no sound is called {kind}")),
            length: ms.parse::<usize>().unwrap() * SAMPLE_RATE as usize / 1000,
            peak_db: peak_db.parse().unwrap(),
            seed: seed.parse().unwrap(),
        }
    }

    /// Whether it is as short as a word.
    pub(super) fn is_short(&self) -> bool {
        matches!(self.noise, Noise::Bang | Noise::Thud | Noise::Knock | Noise::Slam)
    }

    pub(super) fn samples(&self) -> Vec<f32> {
        let mut dice = Dice::new(self.seed);
        let rate = SAMPLE_RATE as f32;
        let mut samples = self.noise.samples(self.length, &mut dice);
        let loudest = samples
            .iter()
            .fold(1e-6f32, |loudest, sample| loudest.max(sample.abs()));
        // A rise and a fall as of a door or a cough; what falls down begins at once.
        let (rise, fall) = if self.is_short() {
            (dice.between(0.001, 0.004) * rate, dice.between(0.002, 0.02) * rate)
        } else {
            (dice.between(0.005, 0.1) * rate, dice.between(0.02, 0.3) * rate)
        };
        let (length, level) = (samples.len(), 10f32.powf(self.peak_db / 20.0));
        for (at, sample) in samples.iter_mut().enumerate() {
            let edge = (at as f32 / rise).min((length - at) as f32 / fall).min(1.0);
            *sample *= edge * level / loudest;
        }
        // The quiet room around the sound, as an endpointer leaves it.
        let mut room =
            |seconds: f32| -> Vec<f32> { (0..(seconds * rate) as usize).map(|_| 0.0017 * dice.noise()).collect() };
        if self.is_short() {
            [room(0.3), samples, room(0.5)].concat()
        } else {
            let quiet = vec![0.0; (0.15 * rate) as usize];
            [quiet.clone(), samples, quiet].concat()
        }
    }
}

impl Noise {
    const ALL: [Self; 10] = [
        Self::White,
        Self::Pink,
        Self::Hum,
        Self::Clicks,
        Self::Babble,
        Self::Tones,
        Self::Bang,
        Self::Thud,
        Self::Knock,
        Self::Slam,
    ];

    fn samples(self, length: usize, random: &mut Dice) -> Vec<f32> {
        let rate = SAMPLE_RATE as f32;
        match self {
            Self::White => (0..length).map(|_| random.noise()).collect(),
            Self::Pink => {
                // White noise through three leaks of different speed: about 3 dB less per octave.
                let mut leaks = [0.0f32; 3];
                let mut next = || {
                    let white = random.noise();
                    for (leak, (keep, take)) in leaks.iter_mut().zip([(0.997, 0.03), (0.96, 0.1), (0.6, 0.4)]) {
                        *leak = keep * *leak + take * white;
                    }
                    leaks.iter().sum::<f32>()
                };
                (0..length).map(|_| next()).collect()
            }
            Self::Hum => {
                let pitch = random.between(45.0, 240.0);
                let parts: Vec<(f32, f32, f32)> = (1..12)
                    .map(|part| {
                        let part = part as f32;
                        (part * pitch, random.between(0.0, 1.0) / part, random.between(0.0, TAU))
                    })
                    .collect();
                (0..length)
                    .map(|at| {
                        let t = at as f32 / rate;
                        parts.iter().map(|(f, a, phase)| a * (TAU * f * t + phase).sin()).sum()
                    })
                    .collect()
            }
            Self::Clicks => {
                let mut samples = vec![0.0f32; length];
                for _ in 0..random.number(1, 14) {
                    let (from, decay, pitch) = (
                        random.number(0, length),
                        random.between(0.002, 0.03) * rate,
                        random.between(200.0, 4000.0),
                    );
                    for (at, sample) in samples[from..].iter_mut().take((8.0 * decay) as usize).enumerate() {
                        let ring = (TAU * pitch * at as f32 / rate).sin() + random.between(-0.5, 0.5);
                        *sample += ring * (-(at as f32) / decay).exp();
                    }
                }
                samples
            }
            Self::Babble => {
                // Voices without words: pulses at the pitch of a voice, through two resonances that wander like those
                // of vowels.
                let mut samples = vec![0.0f32; length];
                for _ in 0..random.number(1, 5) {
                    let pitch: f32 = random.between(80.0, 260.0);
                    let syllables = random.between(2.0, 6.0);
                    let (mut phase, mut memory) = (0.0f32, [[0.0f32; 2]; 2]);
                    let starts: [f32; 2] = [random.between(300.0, 800.0), random.between(900.0, 2500.0)];
                    let wander = random.between(0.5, 3.0);
                    for (at, sample) in samples.iter_mut().enumerate() {
                        let t = at as f32 / rate;
                        phase += pitch * (1.0 + 0.1 * (TAU * 0.7 * t).sin()) / rate;
                        let pulse = if phase >= 1.0 { 1.0 } else { 0.0 };
                        phase = phase.fract();
                        let mut voice = 0.0;
                        for (formant, (start, memory)) in starts.iter().zip(&mut memory).enumerate() {
                            let middle = start * (1.0 + 0.3 * (TAU * wander * t + formant as f32).sin());
                            let (width, turn) = ((-std::f32::consts::PI * 90.0 / rate).exp(), TAU * middle / rate);
                            let out = pulse + 2.0 * width * turn.cos() * memory[0] - width * width * memory[1];
                            *memory = [out, memory[0]];
                            voice += out;
                        }
                        *sample += voice * (TAU * syllables * t).sin().max(0.0);
                    }
                }
                samples
            }
            Self::Tones => {
                // Beeps and slides, as of telephones, toys and kettles.
                let mut samples = Vec::with_capacity(length);
                let mut phase = 0.0f32;
                while samples.len() < length {
                    let (from, to) = (random.between(200.0, 3000.0), random.between(200.0, 3000.0));
                    let steady = random.between(0.0, 1.0) < 0.5;
                    let piece = (random.between(0.05, 0.6) * rate) as usize;
                    for at in 0..piece {
                        let pitch: f32 = if steady {
                            from
                        } else {
                            from + (to - from) * at as f32 / piece as f32
                        };
                        phase = (phase + pitch / rate).fract();
                        samples.push((TAU * phase).sin());
                    }
                }
                samples.truncate(length);
                samples
            }
            Self::Bang => {
                // From noise that stops at once to noise that fades at once.
                let fade = random.between(0.0, 4.0);
                (0..length)
                    .map(|at| random.noise() * (-fade * at as f32 / length as f32).exp())
                    .collect()
            }
            Self::Thud => {
                let pitch = random.between(80.0, 400.0);
                (0..length)
                    .map(|at| {
                        let (t, part) = (at as f32 / rate, at as f32 / length as f32);
                        (TAU * pitch * t).sin() * (-3.0 * part).exp() + 0.17 * random.noise() * (-4.0 * part).exp()
                    })
                    .collect()
            }
            Self::Knock => {
                // A table or a door: five resonances that fade at their own pace.
                let parts: Vec<[f32; 4]> = (0..5)
                    .map(|_| {
                        [
                            random.between(90.0, 2500.0),
                            random.between(0.2, 1.0),
                            random.between(0.0, TAU),
                            random.between(0.01, 0.08),
                        ]
                    })
                    .collect();
                (0..length)
                    .map(|at| {
                        let t = at as f32 / rate;
                        let rings = parts.iter().map(|[pitch, level, phase, fade]| {
                            level * (TAU * pitch * t + phase).sin() * (-t / fade).exp()
                        });
                        rings.sum::<f32>() + 0.05 * random.noise() * (-4.0 * at as f32 / length as f32).exp()
                    })
                    .collect()
            }
            Self::Slam => {
                let pink = Self::Pink.samples(length, random);
                let fade = random.between(0.0, 4.0);
                let faded = pink.into_iter().enumerate();
                faded
                    .map(|(at, sample)| sample * (-fade * at as f32 / length as f32).exp())
                    .collect()
            }
        }
    }
}
