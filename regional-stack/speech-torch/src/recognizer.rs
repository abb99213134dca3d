//! Speech to text with the Conformer.

use std::path::Path;

use speech::{FirstPass, Recognizer, SAMPLE_RATE, SpeechError, Transcript, decoding::Language, features};
use tch::{Device, Kind, Tensor, nn};

use crate::{
    alphabet, bang,
    conformer::{Conformer, ConformerConfig},
    gate,
    pool::Pool,
    sidecar::{self, ModelError, WEIGHTS},
};

/// Name of the word statistics in the folder of the model.
const LANGUAGE: &str = "language.tsv";

/// The recognizer. The same samples always give the same transcript. Threads may share it.
#[derive(Debug)]
pub struct TorchRecognizer {
    spectrum: features::MelSpectrum,
    networks: Pool<Network>,
    language: Language,
    version: String,
}

#[derive(Debug)]
struct Network {
    conformer: Conformer,
    device: Device,
    /// Keeps the weights alive, and in one place.
    _variables: nn::VarStore,
}

impl TorchRecognizer {
    /// Loads the model in `folder`, checks it against its sidecar and runs it once, so that the first request does not
    /// wait for libtorch's preparations.
    pub fn load(folder: &Path, device: Device) -> Result<Self, ModelError> {
        Self::load_for(folder, device, Pool::<Network>::size())
    }

    /// As [`TorchRecognizer::load`], for this many threads. A further thread waits until another one is done.
    pub fn load_for(folder: &Path, device: Device, threads: usize) -> Result<Self, ModelError> {
        crate::use_one_thread();
        let sidecar: sidecar::Sidecar<ConformerConfig> = sidecar::read(folder, "recognizer")?;
        let symbols: Vec<String> = alphabet::CHARACTERS.chars().map(String::from).collect();
        if sidecar.vocabulary != symbols || sidecar.network.bins != features::RECOGNITION.bins as i64 {
            let path = folder.join(sidecar::SIDECAR).display().to_string();
            return Err(ModelError::Unfit {
                path,
                what: "the model has another alphabet or other features".to_owned(),
            });
        }
        let path = folder.join(LANGUAGE);
        let language = std::fs::read_to_string(&path).map_err(|source| ModelError::Read {
            path: path.display().to_string(),
            source,
        })?;
        let language = Language::parse(&language, alphabet::CHARACTERS).map_err(|error| ModelError::Unfit {
            path: path.display().to_string(),
            what: error.to_string(),
        })?;
        let copies = (0..threads.max(1))
            .map(|_| Network::load(folder, &sidecar.network, device))
            .collect::<Result<Vec<_>, _>>()?;
        let spectrum = features::MelSpectrum::new(features::RECOGNITION);
        let engine = Self {
            spectrum,
            networks: Pool::new(copies),
            language,
            version: sidecar.version,
        };
        let quiet = vec![0.0; SAMPLE_RATE as usize];
        engine.recognize(&quiet).map_err(|error| ModelError::Unfit {
            path: folder.display().to_string(),
            what: format!("the model fails on a second of silence ({error})"),
        })?;
        Ok(engine)
    }

    /// Version of the model, from its sidecar.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl Network {
    fn load(folder: &Path, config: &ConformerConfig, device: Device) -> Result<Self, ModelError> {
        let mut variables = nn::VarStore::new(device);
        let conformer = Conformer::new(&variables.root(), config);
        let weights = folder.join(WEIGHTS);
        variables.load(&weights).map_err(|source| ModelError::Torch {
            path: weights.display().to_string(),
            source,
        })?;
        variables.freeze();
        Ok(Self {
            conformer,
            device,
            _variables: variables,
        })
    }

    /// The log-probability of each token, one frame after another.
    fn log_probabilities(&self, mel: &features::Mel) -> Result<Vec<f32>, tch::TchError> {
        tch::no_grad(|| {
            let shape = [1, mel.frames() as i64, mel.bins as i64];
            let input = Tensor::from_slice(&mel.values)
                .f_view(shape)?
                .f_to_device(self.device)?;
            let out = self.conformer.forward(&input, None, false).f_to_device(Device::Cpu)?;
            Vec::try_from(out.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?)
        })
    }
}

impl FirstPass for TorchRecognizer {
    fn recognize_closely(&self, samples: &[f32]) -> Result<(Transcript, String), SpeechError> {
        gate::check_length(samples)?;
        // The features are normalised for loudness, so the hiss of a silent line would be recognised as speech.
        if !gate::has_sound(samples) {
            return Ok((Transcript::nothing(), String::new()));
        }
        let mut mel = self.spectrum.log_power(samples);
        features::normalise_for_recognition(&mut mel);
        let log_probabilities = self
            .networks
            .with(|network| network.log_probabilities(&mel))
            .map_err(SpeechError::of_engine)?;
        let (spelled, confidence) = alphabet::collapse(&alphabet::best_of(&log_probabilities));
        if spelled.is_empty() {
            return Ok((Transcript::nothing(), spelled));
        }
        let text = self
            .language
            .decode(&log_probabilities)
            .filter(|text| !text.is_empty())
            .map(|text| self.language.with_lost_negation(&log_probabilities, text))
            .unwrap_or_else(|| spelled.clone());
        let confidence = if !text.contains(' ') && bang::is_bang(samples) {
            confidence * gate::BANG_SHARE
        } else {
            confidence
        };
        Ok((Transcript { text, confidence }, spelled))
    }
}

impl Recognizer for TorchRecognizer {
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError> {
        Ok(self.recognize_closely(samples)?.0)
    }

    fn model(&self) -> String {
        format!("conformer-small-en {}", self.version)
    }
}
