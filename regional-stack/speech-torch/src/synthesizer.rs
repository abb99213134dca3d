//! Text to speech: pronunciation, the acoustic network, and Griffin-Lim.

use std::path::Path;

use speech::{SAMPLE_RATE, SpeechError, Synthesizer, features, griffin_lim::Vocoder};
use tch::{Device, nn};

use crate::{
    acoustic::{Acoustic, AcousticConfig},
    pool::Pool,
    pronunciation::{Lexicon, PHONES},
    sidecar::{self, ModelError, WEIGHTS},
};

/// Longest text, in characters: about a minute of speech. The assistant's own replies have less than a tenth of it.
const TEXT_MAX: usize = 1_000;
/// Speeds that the interface allows. Another speed becomes the nearest allowed one.
const SPEED: std::ops::RangeInclusive<f32> = 0.25..=4.0;
/// Name of the lexicon in the folder of the model.
const LEXICON: &str = "lexicon.tsv";
/// Silence between two breaths, in samples, in addition to their own pauses.
const GAP_SAMPLES: usize = SAMPLE_RATE as usize / 20;

/// The synthesizer. The same text and speed always give the same samples. Threads may share it.
#[derive(Debug)]
pub struct TorchSynthesizer {
    lexicon: Lexicon,
    networks: Pool<Network>,
    vocoder: Vocoder,
    version: String,
}

#[derive(Debug)]
struct Network {
    acoustic: Acoustic,
    device: Device,
    /// Keeps the weights alive, and in one place.
    _variables: nn::VarStore,
}

impl TorchSynthesizer {
    /// Loads the model in `folder`, checks it against its sidecar and speaks once, so that the first request does not
    /// wait for libtorch's preparations.
    pub fn load(folder: &Path, device: Device) -> Result<Self, ModelError> {
        Self::load_for(folder, device, Pool::<Network>::size())
    }

    /// As [`TorchSynthesizer::load`], for this many threads. A further thread waits until another one is done.
    pub fn load_for(folder: &Path, device: Device, threads: usize) -> Result<Self, ModelError> {
        crate::use_one_thread();
        let sidecar: sidecar::Sidecar<AcousticConfig> = sidecar::read(folder, "synthesizer")?;
        let unfit = |what: String| ModelError::Unfit {
            path: folder.display().to_string(),
            what,
        };
        if sidecar.vocabulary != PHONES || sidecar.network.bins != features::SYNTHESIS.bins as i64 {
            return Err(unfit("the model has other phones or other features".to_owned()));
        }
        let path = folder.join(LEXICON);
        let lexicon = std::fs::read_to_string(&path).map_err(|source| ModelError::Read {
            path: path.display().to_string(),
            source,
        })?;
        let lexicon = Lexicon::parse(&lexicon).map_err(|error| unfit(error.to_string()))?;
        let copies = (0..threads.max(1))
            .map(|_| Network::load(folder, &sidecar.network, device))
            .collect::<Result<Vec<_>, _>>()?;
        let vocoder = Vocoder::new(features::SYNTHESIS);
        let engine = Self {
            lexicon,
            networks: Pool::new(copies),
            vocoder,
            version: sidecar.version,
        };
        engine
            .synthesize("ready", 1.0)
            .map_err(|error| unfit(format!("the model fails to say \"ready\" ({error})")))?;
        Ok(engine)
    }

    /// Version of the model, from its sidecar.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl Network {
    fn load(folder: &Path, config: &AcousticConfig, device: Device) -> Result<Self, ModelError> {
        let mut variables = nn::VarStore::new(device);
        let acoustic = Acoustic::new(&variables.root(), config);
        let weights = folder.join(WEIGHTS);
        variables.load(&weights).map_err(|source| ModelError::Torch {
            path: weights.display().to_string(),
            source,
        })?;
        variables.freeze();
        Ok(Self {
            acoustic,
            device,
            _variables: variables,
        })
    }
}

impl Synthesizer for TorchSynthesizer {
    fn synthesize(&self, text: &str, speed: f32) -> Result<Vec<f32>, SpeechError> {
        let chars = text.chars().count();
        if chars > TEXT_MAX {
            return Err(SpeechError::TooMuchText { chars, limit: TEXT_MAX });
        }
        let speed = if speed.is_finite() {
            speed.clamp(*SPEED.start(), *SPEED.end())
        } else {
            1.0
        };
        let breaths = self.lexicon.breaths(text);
        if breaths.is_empty() {
            return Err(SpeechError::Engine(
                "the text has no English words or numbers to speak".to_owned(),
            ));
        }
        let mut out = Vec::new();
        for breath in breaths {
            let mel = self
                .networks
                .with(|network| network.acoustic.speak(&breath, speed, network.device))
                .map_err(SpeechError::of_engine)?;
            if !out.is_empty() {
                out.resize(out.len() + GAP_SAMPLES, 0.0);
            }
            out.extend(self.vocoder.sound(&mel));
        }
        for sample in &mut out {
            *sample = sample.clamp(-1.0, 1.0);
        }
        Ok(out)
    }
}
