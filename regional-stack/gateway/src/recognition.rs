//! The recognizer of a stack, and its loading.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use registry::{Manifest, State, installed};
use speech::{Cascade, Recognizer};
use speech_torch::{Moonshine, TorchRecognizer};

use gateway::config::{Config, RecognitionEngine};

/// The name of Moonshine in the manifest of models.
const MOONSHINE: &str = "moonshine-tiny-en";
/// The name of the small Conformer there.
const CONFORMER: &str = "conformer-small-en";

/// The recognizer of a stack's configuration, loaded and tried once. The log names it, and the speech that it will not hear.
pub(crate) fn load(config: &Config) -> anyhow::Result<Arc<dyn Recognizer>> {
    let models = &config.models_dir;
    let chosen = installed::in_use(models)?.recognition;
    let state = installed::state(Manifest::built_in().find(MOONSHINE)?, models);
    let engine = decide(config.recognition.engine, chosen.as_deref(), &state, models)?;
    let device = speech_torch::best_device();
    let threads = config.limits.asr_workers + config.limits.bulk_workers;
    let conformer = || TorchRecognizer::load_for(&models.join("asr"), device, threads);
    let moonshine = || Moonshine::load(&models.join(MOONSHINE), device, threads);
    let recognizer: Arc<dyn Recognizer> = match engine {
        Engine::Conformer => Arc::new(conformer()?),
        Engine::Moonshine => Arc::new(moonshine()?),
        Engine::Cascade => Arc::new(Cascade::new(
            conformer()?,
            moonshine()?,
            config.recognition.accepted_from,
        )),
    };
    tracing::info!(model = recognizer.model(), "speech is recognised");
    if engine == Engine::Conformer {
        tracing::warn!(
            "the small recognizer alone hears synthetic voices and commands, and hardly any person; for people run \
             `meridian models fetch` and start again"
        );
    }
    Ok(recognizer)
}

/// The decision of [`decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Conformer,
    Moonshine,
    Cascade,
}

/// Decides by the configuration, the choice of `meridian models use`, and the state of Moonshine in the folder of models.
fn decide(engine: RecognitionEngine, chosen: Option<&str>, moonshine: &State, models: &Path) -> anyhow::Result<Engine> {
    let decided = match (engine, chosen) {
        (RecognitionEngine::Conformer, _) | (RecognitionEngine::Auto, Some(CONFORMER)) => Engine::Conformer,
        (RecognitionEngine::Moonshine, _) => Engine::Moonshine,
        (RecognitionEngine::Cascade, _) | (RecognitionEngine::Auto, Some(MOONSHINE)) => Engine::Cascade,
        (RecognitionEngine::Auto, Some(other)) => anyhow::bail!(
            "{}: {other} is no recognizer of this version; choose one of `meridian models list` with `meridian models use`",
            models.join(registry::IN_USE).display()
        ),
        (RecognitionEngine::Auto, None) if *moonshine == State::Missing => Engine::Conformer,
        (RecognitionEngine::Auto, None) => Engine::Cascade,
    };
    match moonshine {
        _ if decided == Engine::Conformer => Ok(decided),
        State::Ready => Ok(decided),
        State::Missing => Err(anyhow::anyhow!("it is not there")),
        State::Damaged(what) => Err(anyhow::anyhow!("it is damaged: {what}")),
    }
    .with_context(|| {
        format!(
            "cannot load {MOONSHINE} from {}; run `meridian models fetch`, or write engine = \"conformer\" under [recognition]",
            models.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(engine: RecognitionEngine, chosen: Option<&str>, moonshine: &State) -> Result<Engine, String> {
        decide(engine, chosen, moonshine, Path::new("models")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn people_are_heard_as_soon_as_the_model_is_there() {
        use RecognitionEngine::{Auto, Cascade, Conformer, Moonshine};
        for (engine, chosen, moonshine, expected) in [
            (Auto, None, State::Missing, Engine::Conformer),
            (Auto, None, State::Ready, Engine::Cascade),
            (Auto, Some(CONFORMER), State::Ready, Engine::Conformer),
            (Auto, Some(MOONSHINE), State::Ready, Engine::Cascade),
            (
                Conformer,
                Some(MOONSHINE),
                State::Damaged("cut".into()),
                Engine::Conformer,
            ),
            (Moonshine, None, State::Ready, Engine::Moonshine),
            (Cascade, Some(CONFORMER), State::Ready, Engine::Cascade),
        ] {
            assert_eq!(
                decided(engine, chosen, &moonshine),
                Ok(expected),
                "{engine:?} {chosen:?}"
            );
        }
    }

    #[test]
    fn a_model_that_was_asked_for_and_is_not_whole_is_an_error_that_says_what_to_do() {
        for (engine, moonshine, part) in [
            (RecognitionEngine::Cascade, State::Missing, "it is not there"),
            (
                RecognitionEngine::Auto,
                State::Damaged("tokens.txt has 3 bytes".into()),
                "tokens.txt has 3 bytes",
            ),
        ] {
            let error = decided(engine, None, &moonshine).unwrap_err();
            assert!(
                error.contains(part) && error.contains("meridian models fetch"),
                "{error}"
            );
        }
        let error = decided(RecognitionEngine::Auto, Some("whisper"), &State::Ready).unwrap_err();
        assert!(
            error.contains("in-use.toml") && error.contains("meridian models use"),
            "{error}"
        );
    }
}
