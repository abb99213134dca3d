//! Trains the recognizer, and measures it.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use speech::{Recognizer, features, score::Score};
use speech_torch::{
    TorchRecognizer, alphabet,
    conformer::{Conformer, ConformerConfig},
    sidecar::Sidecar,
};
use tch::{Device, Kind, Reduction, Tensor, nn, nn::OptimizerConfig};

use crate::{
    augment,
    averaging::{self, Average},
    corpus,
    schedule::Schedule,
    texts,
    training::Training,
};

const BATCH: usize = 32;
const RATE_MAX: f64 = 2e-3;
/// In early training, CTC's gradients sometimes explode.
const GRADIENT_MAX: f64 = 5.0;

struct Utterance {
    mel: features::Mel,
    tokens: Vec<i64>,
}

pub(crate) fn train(args: &Training) -> Result<()> {
    // Checkpoints are measured as they would serve. A missing file must be found now, not after the first minutes.
    let language = args.out.join("language.tsv");
    ensure!(language.is_file(), texts::no_language(&language));
    let mut r = SmallRng::seed_from_u64(args.seed);
    tch::manual_seed(args.seed as i64);
    let mut rows = corpus::table(&args.corpus, "manifest.tsv")?;
    rows.truncate(args.limit.unwrap_or(usize::MAX));
    let spectrum = features::MelSpectrum::new(features::RECOGNITION);
    let utterances = corpus::prepare(&rows, |row| {
        let mel = spectrum.log_power(&corpus::samples(&row.file)?);
        Ok(Utterance {
            mel,
            tokens: alphabet::tokens_of(&row.text),
        })
    })?;
    let hours = utterances.iter().map(|u| u.mel.frames()).sum::<usize>() as f64 / 360_000.0;

    let device = speech_torch::best_device();
    let config = ConformerConfig::default();
    let mut variables = nn::VarStore::new(device);
    let model = Conformer::new(&variables.root(), &config);
    let weights: i64 = variables.trainable_variables().iter().map(|t| t.numel() as i64).sum();
    let mut optimizer = nn::AdamW {
        wd: 1e-2,
        ..Default::default()
    }
    .build(&variables, RATE_MAX)?;
    averaging::start_from(&mut variables, args.start_from.as_deref())?;
    let mut average = Average::new(&variables);
    let mut schedule = Schedule::new(args.minutes, args.steps, RATE_MAX);
    schedule.report(&format!(
        "{} utterances, {hours:.1} h, {weights} weights, {device:?}",
        utterances.len()
    ));

    let (mut loss_sum, mut loss_count) = (0.0, 0);
    while schedule.done() < 1.0 {
        for batch in batches(&utterances, &mut r) {
            if schedule.done() >= 1.0 {
                break;
            }
            optimizer.set_lr(schedule.next_rate());
            let loss = loss(&model, &utterances, &batch, device, &mut r);
            optimizer.backward_step_clip_norm(&loss, GRADIENT_MAX);
            average.follow(&variables, schedule.step());
            loss_sum += loss.double_value(&[]);
            loss_count += 1;
            if schedule.step().is_multiple_of(10) {
                schedule.show(format!("loss {:.3}", loss_sum / f64::from(loss_count)));
            }
            if schedule.checkpoint_due() {
                average.save(&args.out, sidecar(args, config, schedule.step()))?;
                let measured = measure(&args.out, &args.held_out, false)?;
                schedule.report(&format!(
                    "loss {:.3}  {}",
                    loss_sum / f64::from(loss_count),
                    summary(&measured.scores)
                ));
                (loss_sum, loss_count) = (0.0, 0);
            }
        }
    }
    average.save(&args.out, sidecar(args, config, schedule.step()))?;
    schedule.report(&format!(
        "done  {}",
        summary(&measure(&args.out, &args.held_out, false)?.scores)
    ));
    Ok(())
}

/// The indices of one pass over the corpus. Utterances of similar length share a batch; otherwise the order is random.
fn batches(utterances: &[Utterance], r: &mut SmallRng) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..utterances.len()).collect();
    order.shuffle(r);
    let mut out = Vec::new();
    for chunk in order.chunks(BATCH * 16) {
        let mut chunk = chunk.to_vec();
        chunk.sort_by_key(|&i| utterances[i].mel.frames());
        out.extend(
            chunk
                .chunks(BATCH)
                .filter(|b| b.len() == BATCH || utterances.len() < BATCH * 16)
                .map(<[usize]>::to_vec),
        );
    }
    out.shuffle(r);
    out
}

fn loss(model: &Conformer, utterances: &[Utterance], batch: &[usize], device: Device, r: &mut SmallRng) -> Tensor {
    let mels: Vec<features::Mel> = batch
        .iter()
        .map(|&i| {
            let other = &utterances[r.random_range(0..utterances.len())].mel;
            augment::augment(&utterances[i].mel, other, r)
        })
        .collect();
    let bins = features::RECOGNITION.bins;
    let longest = mels.iter().map(features::Mel::frames).max().unwrap_or(1);
    let mut input = vec![0.0f32; mels.len() * longest * bins];
    for (row, mel) in input.chunks_exact_mut(longest * bins).zip(&mels) {
        row[..mel.values.len()].copy_from_slice(&mel.values);
    }
    let frames: Vec<i64> = mels.iter().map(|m| m.frames() as i64).collect();
    let input = Tensor::from_slice(&input)
        .view([mels.len() as i64, longest as i64, bins as i64])
        .to_device(device);
    let log_probabilities = model.forward(&input, Some(&frames), true).transpose(0, 1);
    let lens: Vec<i64> = frames.iter().map(|&f| Conformer::frames_out(f)).collect();
    let targets: Vec<i64> = batch
        .iter()
        .flat_map(|&i| utterances[i].tokens.iter().copied())
        .collect();
    let target_lens: Vec<i64> = batch.iter().map(|&i| utterances[i].tokens.len() as i64).collect();
    Tensor::ctc_loss_tensor(
        &log_probabilities,
        &Tensor::from_slice(&targets).to_device(device),
        &Tensor::from_slice(&lens),
        &Tensor::from_slice(&target_lens),
        alphabet::BLANK,
        Reduction::Mean,
        // After a change of tempo, a fast speaker may say more letters than there are frames.
        true,
    )
    .to_kind(Kind::Float)
}

fn sidecar(args: &Training, network: ConformerConfig, steps: u64) -> Sidecar<ConformerConfig> {
    Sidecar {
        kind: "recognizer".to_owned(),
        version: args.model_version.clone(),
        sample_rate: speech::SAMPLE_RATE,
        network,
        vocabulary: alphabet::CHARACTERS.chars().map(String::from).collect(),
        seed: args.seed,
        steps,
        weights_sha256: String::new(),
    }
}

pub(crate) fn evaluate(model: &Path, recordings: &Path, errors: bool) -> Result<()> {
    let Measured {
        scores,
        audio_s,
        compute_s,
    } = measure(model, recordings, errors)?;
    for (family, score) in &scores {
        println!(
            "{family:12} {:4} utterances  word errors {:5.1} %  exact {:5.1} %",
            score.utterances,
            score.word_error_percent(),
            score.exact_percent()
        );
    }
    println!(
        "{audio_s:.1} s of audio in {compute_s:.2} s, real-time factor {:.4}",
        compute_s / audio_s.max(1e-9)
    );
    Ok(())
}

struct Measured {
    scores: BTreeMap<String, Score>,
    audio_s: f64,
    /// Time for recognition alone, without reading and resampling.
    compute_s: f64,
}

fn measure(model: &Path, recordings: &Path, errors: bool) -> Result<Measured> {
    let engine = TorchRecognizer::load(model, speech_torch::best_device())?;
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    let (mut audio_s, mut compute_s) = (0.0, 0.0);
    for row in corpus::table(recordings, "refs.tsv")? {
        let samples = corpus::samples(&row.file)?;
        let started = std::time::Instant::now();
        let heard = engine.recognize(&samples).context("recognizing")?;
        compute_s += started.elapsed().as_secs_f64();
        audio_s += samples.len() as f64 / f64::from(speech::SAMPLE_RATE);
        if errors && heard.text != row.text {
            println!(
                "{:12} said: {}\n{:12} heard: {} ({:.2})",
                row.third, row.text, "", heard.text, heard.confidence
            );
        }
        scores.entry(row.third).or_default().add(&row.text, &heard.text);
    }
    Ok(Measured {
        scores,
        audio_s,
        compute_s,
    })
}

fn summary(scores: &BTreeMap<String, Score>) -> String {
    let each = scores.iter().map(|(family, s)| {
        format!(
            "{family} {:.1} % (exact {:.0} %)",
            s.word_error_percent(),
            s.exact_percent()
        )
    });
    each.collect::<Vec<_>>().join("  ")
}
