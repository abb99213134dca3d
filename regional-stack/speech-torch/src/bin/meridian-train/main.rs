//! Trains and measures the speech models that ship with Meridian.
//!
//! The recordings come from `tools/synthesise-speech`.

mod asr;
mod augment;
mod averaging;
mod corpus;
mod schedule;
mod texts;
mod training;
mod tts;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use training::Training;

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
