//! Trains the synthesizer, and speaks with it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use speech::{Synthesizer, features, wav};
use speech_torch::{
    TorchSynthesizer,
    acoustic::{self, Acoustic, AcousticConfig, Places},
    pronunciation::{self, PHONES},
    sidecar::Sidecar,
};
use tch::{Device, Kind, Tensor, nn, nn::OptimizerConfig};

use crate::{
    averaging::{self, Average},
    corpus,
    schedule::Schedule,
    texts,
    training::Training,
};

const BATCH: usize = 16;
const RATE_MAX: f64 = 1e-3;
const GRADIENT_MAX: f64 = 1.0;
/// Sentences that are used only for measurement, not for training.
const HELD_OUT: usize = 64;

struct Sentence {
    phones: Vec<u8>,
    durations: Vec<u32>,
    mel: features::Mel,
}

pub(crate) fn train(args: &Training) -> Result<()> {
    let mut r = SmallRng::seed_from_u64(args.seed);
    tch::manual_seed(args.seed as i64);
    let mut rows = corpus::table(&args.corpus, "manifest.tsv")?;
    rows.truncate(args.limit.unwrap_or(usize::MAX));
    let spectrum = features::MelSpectrum::new(features::SYNTHESIS);
    let mut sentences = corpus::prepare(&rows, |row| sentence(&spectrum, row))?;
    if sentences.len() < 2 * HELD_OUT {
        bail!(texts::too_few_sentences(sentences.len()));
    }
    let held_out = sentences.split_off(sentences.len() - HELD_OUT);

    let device = speech_torch::best_device();
    let config = AcousticConfig::default();
    let mut variables = nn::VarStore::new(device);
    let model = Acoustic::new(&variables.root(), &config);
    let weights: i64 = variables.trainable_variables().iter().map(|t| t.numel() as i64).sum();
    let mut optimizer = nn::AdamW {
        wd: 1e-2,
        ..Default::default()
    }
    .build(&variables, RATE_MAX)?;
    averaging::start_from(&mut variables, args.start_from.as_deref())?;
    let mut average = Average::new(&variables);
    let mut schedule = Schedule::new(args.minutes, args.steps, RATE_MAX);
    let hours = sentences.iter().map(|s| s.mel.frames()).sum::<usize>() as f64 / 288_000.0;
    schedule.report(&format!(
        "{} sentences, {hours:.1} h, {weights} weights, {device:?}",
        sentences.len()
    ));

    let (mut drawn_sum, mut timed_sum, mut count) = (0.0, 0.0, 0);
    while schedule.done() < 1.0 {
        for batch in batches(&sentences, &mut r) {
            if schedule.done() >= 1.0 {
                break;
            }
            optimizer.set_lr(schedule.next_rate());
            let (drawn, timed) = losses(&model, &batch, device, true);
            optimizer.backward_step_clip_norm(&(&drawn + &timed), GRADIENT_MAX);
            average.follow(&variables, schedule.step());
            drawn_sum += drawn.double_value(&[]);
            timed_sum += timed.double_value(&[]);
            count += 1;
            if schedule.step().is_multiple_of(10) {
                schedule.show(format!("spectrum {:.3}", drawn_sum / f64::from(count)));
            }
            if schedule.checkpoint_due() {
                average.save(&args.out, sidecar(args, config, schedule.step()))?;
                let (drawn, timed) = (drawn_sum / f64::from(count), timed_sum / f64::from(count));
                schedule.report(&format!(
                    "spectrum {drawn:.4}  durations {timed:.4}  {}",
                    measure(&model, &held_out, device)
                ));
                (drawn_sum, timed_sum, count) = (0.0, 0.0, 0);
            }
        }
    }
    average.save(&args.out, sidecar(args, config, schedule.step()))?;
    schedule.report(&format!("done  {}", measure(&model, &held_out, device)));
    Ok(())
}

/// The phones of a sentence with their durations in frames, and its spectrum cut to the same length.
fn sentence(spectrum: &features::MelSpectrum, row: &corpus::Row) -> Result<Sentence> {
    let mut mel = spectrum.log_power(&corpus::samples(&row.file)?);
    let (mut phones, mut durations, mut given) = (Vec::new(), Vec::new(), 0u32);
    for timing in row.third.split(' ') {
        let (name, end) = timing.split_once(':').context(texts::NOT_A_TIMING)?;
        let phone = pronunciation::phone(name).with_context(|| texts::unknown_phone(name))?;
        let end_s: f32 = end.parse().with_context(|| texts::not_seconds(end))?;
        let end = (end_s * speech::SAMPLE_RATE as f32 / features::SYNTHESIS.hop as f32).round() as u32;
        phones.push(phone);
        durations.push(end.saturating_sub(given));
        given = given.max(end);
    }
    let frames = (given as usize).min(mel.frames());
    // If the recording is a frame shorter than its timings, the last phone is shortened.
    let over = given - frames as u32;
    let last = durations.last_mut().context(texts::NO_PHONES)?;
    if over > *last {
        bail!(texts::recording_too_short(over));
    }
    *last -= over;
    mel.values.truncate(frames * mel.bins);
    for value in &mut mel.values {
        *value = acoustic::to_network(*value);
    }
    Ok(Sentence { phones, durations, mel })
}

fn batches<'a>(sentences: &'a [Sentence], r: &mut SmallRng) -> Vec<Vec<&'a Sentence>> {
    let mut order: Vec<&Sentence> = sentences.iter().collect();
    order.shuffle(r);
    let mut out = Vec::new();
    for chunk in order.chunks_mut(BATCH * 16) {
        chunk.sort_by_key(|s| s.mel.frames());
        out.extend(chunk.chunks(BATCH).map(<[&Sentence]>::to_vec));
    }
    out.shuffle(r);
    out
}

/// Mean difference of the spectrum, and of the logarithms of the durations.
fn losses(model: &Acoustic, batch: &[&Sentence], device: Device, train: bool) -> (Tensor, Tensor) {
    let rows = batch.len() as i64;
    let bins = features::SYNTHESIS.bins;
    let phones_max = batch.iter().map(|s| s.phones.len()).max().unwrap_or(1);
    let frames_max = batch.iter().map(|s| s.mel.frames()).max().unwrap_or(1);
    let (mut phones, mut phone_real, mut durations) = (Vec::new(), Vec::new(), Vec::new());
    let (mut phone, mut within, mut frame_real, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for s in batch {
        phones.extend((0..phones_max).map(|i| s.phones.get(i).map_or(0, |p| i64::from(*p))));
        phone_real.extend((0..phones_max).map(|i| if i < s.phones.len() { 1f32 } else { 0.0 }));
        durations.extend((0..phones_max).map(|i| s.durations.get(i).map_or(0.0, |d| (*d as f32).ln_1p())));
        let mut places = Places::of(&s.durations);
        frame_real.extend((0..frames_max).map(|i| if i < places.frames() { 1f32 } else { 0.0 }));
        places.pad(frames_max);
        phone.extend(places.phone);
        within.extend(places.within);
        wanted.extend_from_slice(&s.mel.values);
        wanted.resize(wanted.len() + (frames_max - s.mel.frames()) * bins, 0.0);
    }
    let (p, f, b) = (phones_max as i64, frames_max as i64, bins as i64);
    let floats = |v: &[f32], shape: &[i64]| Tensor::from_slice(v).view(shape).to_device(device);
    let numbers = |v: &[i64], shape: &[i64]| Tensor::from_slice(v).view(shape).to_device(device);
    let phone_real = floats(&phone_real, &[rows, p, 1]);
    let frame_real = floats(&frame_real, &[rows, f, 1]);

    let read = model.read(&numbers(&phones, &[rows, p]), Some(&phone_real), train);
    let timed = (model.durations(&read) - floats(&durations, &[rows, p])).square() * phone_real.squeeze_dim(-1);
    let drawn = model.draw(
        &read,
        &numbers(&phone, &[rows, f]),
        &floats(&within, &[rows, f, 3]),
        Some(&frame_real),
        train,
    );
    let drawn = (drawn - floats(&wanted, &[rows, f, b])).abs() * &frame_real;
    (
        drawn.sum(Kind::Float) / (frame_real.sum(Kind::Float) * b),
        timed.sum(Kind::Float) / phone_real.sum(Kind::Float),
    )
}

fn measure(model: &Acoustic, held_out: &[Sentence], device: Device) -> String {
    tch::no_grad(|| {
        let (mut drawn_sum, mut timed_sum, mut count) = (0.0, 0.0, 0.0);
        for batch in held_out.chunks(BATCH) {
            let (drawn, timed) = losses(model, &batch.iter().collect::<Vec<_>>(), device, false);
            drawn_sum += drawn.double_value(&[]);
            timed_sum += timed.double_value(&[]);
            count += 1.0;
        }
        format!(
            "held out: spectrum {:.4}  durations {:.4}",
            drawn_sum / count,
            timed_sum / count
        )
    })
}

fn sidecar(args: &Training, network: AcousticConfig, steps: u64) -> Sidecar<AcousticConfig> {
    Sidecar {
        kind: "synthesizer".to_owned(),
        version: args.model_version.clone(),
        sample_rate: speech::SAMPLE_RATE,
        network,
        vocabulary: PHONES.map(String::from).to_vec(),
        seed: args.seed,
        steps,
        weights_sha256: String::new(),
    }
}

pub(crate) fn speak(model: &Path, out: &Path, text: &str) -> Result<()> {
    let engine = TorchSynthesizer::load(model, speech_torch::best_device())?;
    let started = std::time::Instant::now();
    let samples = engine.synthesize(text, 1.0)?;
    let seconds = samples.len() as f64 / f64::from(speech::SAMPLE_RATE);
    println!("{seconds:.2} s of speech in {:.3} s", started.elapsed().as_secs_f64());
    std::fs::write(out, wav::encode(&samples, speech::SAMPLE_RATE)).with_context(|| texts::cannot_write(out))
}
