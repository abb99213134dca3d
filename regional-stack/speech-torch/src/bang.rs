//! Tells a short bang from a short word. To the recognizer, a door that slams or a knock on the table sounds like "no", often
//! with more confidence than a spoken "no".

use speech::SAMPLE_RATE;

const FRAME: usize = SAMPLE_RATE as usize / 100;
/// Three frames hold two or more cycles of every voice.
const WINDOW: usize = 3 * FRAME;
/// One cycle of a voice: 70 to 400 Hz.
const CYCLE: std::ops::Range<usize> = SAMPLE_RATE as usize / 400..SAMPLE_RATE as usize / 70;

/// Likeness of one cycle to the next from which a window is voiced. Noise reaches it in one window of a bang now and then.
const LIKENESS_MIN: f32 = 0.3;
/// Every word has a vowel. The shortest one measured ("stop", spoken fast) has four voiced windows; noise has none.
const VOICED_MIN: usize = 3;
/// Most windows, two seconds of sound: half a minute of noise would cost too much time.
const WINDOWS_MAX: usize = 200;
/// A bang is loudest at once and fades: its energy lies 10 to 50 ms behind its beginning. That of words lies 110 ms or more
/// behind it.
const CENTRE_FRAMES_MIN: f32 = 6.5;

/// Whether the sound is a bang and no word: it has no vowel, or its energy lies at its beginning. `samples` hold one sound and the quiet around it.
pub(crate) fn is_bang(samples: &[f32]) -> bool {
    centre_frames(samples) < CENTRE_FRAMES_MIN || !has_vowel(samples)
}

/// Frames from the beginning of the sound to the middle of its energy.
fn centre_frames(samples: &[f32]) -> f32 {
    let power: Vec<f32> = samples.chunks(FRAME).map(power).collect();
    let loudest = power.iter().copied().fold(0.0, f32::max);
    // 30 dB: the room around the sound is quieter, and the first consonant of a word is not.
    let is_sound = |power: &f32| *power > 0.001 * loudest;
    let sound = power.iter().skip_while(|power| !is_sound(power)).zip(0u16..);
    let (mut all, mut moment) = (0.0, 0.0);
    for (power, at) in sound.filter(|(power, _)| is_sound(power)) {
        all += power;
        moment += power * f32::from(at);
    }
    moment / all.max(f32::MIN_POSITIVE)
}

/// Whether part of the sound repeats at the pitch of a voice, also in its higher partials: those of a thud do not.
fn has_vowel(samples: &[f32]) -> bool {
    // Emphasises the higher partials by 6 dB an octave.
    let mut last = 0.0;
    let bright: Vec<f32> = samples
        .iter()
        .map(|sample| sample - 0.97 * std::mem::replace(&mut last, *sample))
        .collect();
    let windows: Vec<&[f32]> = bright.windows(WINDOW + CYCLE.end).step_by(FRAME).collect();
    let loudest = windows
        .iter()
        .map(|window| power(&window[..WINDOW]))
        .fold(0.0, f32::max);
    // The last 25 dB of a sound are echo and room.
    let sound = windows
        .into_iter()
        .filter(|window| power(&window[..WINDOW]) > 0.003 * loudest)
        .take(WINDOWS_MAX);
    sound
        .filter(|window| likeness(window) > LIKENESS_MIN)
        .take(VOICED_MIN)
        .count()
        == VOICED_MIN
}

/// Greatest likeness, -1 to 1, of a window to itself one cycle later.
fn likeness(window: &[f32]) -> f32 {
    let (now, energy) = (&window[..WINDOW], power(&window[..WINDOW]));
    let likenesses = CYCLE.map(|cycle| {
        let later = &window[cycle..cycle + WINDOW];
        let product: f32 = now.iter().zip(later).map(|(a, b)| a * b).sum();
        product / WINDOW as f32 / (energy * power(later)).sqrt().max(f32::MIN_POSITIVE)
    });
    likenesses.fold(-1.0, f32::max)
}

fn power(samples: &[f32]) -> f32 {
    samples.iter().map(|s| s * s).sum::<f32>() / samples.len().max(1) as f32
}
