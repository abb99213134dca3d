//! Trains and measures the speech models that ship with Meridian.
//!
//! The recordings come from `tools/synthesise-speech`.

mod asr;
mod augment;
mod averaging;
mod corpus;
mod schedule;
mod tts;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "meridian-train",
    version,
    about = "Trains and measures Meridian's speech models"
)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Train the recognizer on a corpus made by `tools/synthesise-speech asr-corpus`
    Asr(Training),
    /// Train the synthesizer on a corpus made by `tools/synthesise-speech tts-corpus`
    Tts(Training),
    /// Word error rate of a recognizer over a folder with refs.tsv, per family of voices
    Evaluate {
        /// Folder of the recognizer
        #[arg(long, default_value = "regional-stack/models/asr")]
        model: PathBuf,
        /// Folder of recordings with refs.tsv
        #[arg(long, default_value = "regional-stack/speech/testdata/held-out")]
        recordings: PathBuf,
        /// Print each wrong transcript
        #[arg(long)]
        errors: bool,
    },
    /// Speak a text into a WAV file
    Speak {
        /// Folder of the synthesizer
        #[arg(long, default_value = "regional-stack/models/tts")]
        model: PathBuf,
        /// The WAV file to write
        #[arg(long)]
        out: PathBuf,
        /// The text
        text: String,
    },
}

#[derive(clap::Args)]
struct Training {
    /// Folder of the corpus
    #[arg(long)]
    corpus: PathBuf,
    /// Folder of recordings with refs.tsv that are transcribed at each checkpoint
    #[arg(long, default_value = "regional-stack/speech/testdata/held-out")]
    held_out: PathBuf,
    /// Folder the model is written to, at each checkpoint and at the end
    #[arg(long)]
    out: PathBuf,
    /// Folder of a model whose weights the training starts from
    #[arg(long)]
    start_from: Option<PathBuf>,
    /// Wall-clock length of the training at most; the learning rate follows what comes first, this or the steps
    #[arg(long, required_unless_present = "steps")]
    minutes: Option<f64>,
    /// Number of steps; alone, it makes a run repeatable
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 20)]
    seed: u64,
    /// Recordings used at most, for a quick trial
    #[arg(long)]
    limit: Option<usize>,
    /// Version written into the sidecar
    #[arg(long, default_value = "1")]
    model_version: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    speech_torch::use_one_thread();
    match args.what {
        What::Asr(training) => asr::train(&training),
        What::Tts(training) => tts::train(&training),
        What::Evaluate {
            model,
            recordings,
            errors,
        } => asr::evaluate(&model, &recordings, errors),
        What::Speak { model, out, text } => tts::speak(&model, &out, &text),
    }
}
