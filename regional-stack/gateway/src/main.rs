//! `meridian-stack`: one regional stack.

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use gateway::{Config, EngineKind, Engines};
use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
use speech_torch::{TorchRecognizer, TorchSynthesizer};

fn main() -> ExitCode {
    daemon::main("meridian-stack", |process, config: Config| async move {
        config.check()?;
        let engines = engines(&config, process.config_path())?;
        let grace = config.limits.stop_grace();
        let mut tasks = daemon::Tasks::new();
        let addresses = gateway::start(config, engines, &mut tasks).await?;
        process.announce(&[("http", addresses.http), ("admin", addresses.admin)])?;
        tasks.run(grace).await
    })
}

fn engines(config: &Config, config_path: &Path) -> anyhow::Result<Engines> {
    Ok(match config.engine {
        EngineKind::Scripted => Engines {
            recognizer: Arc::new(ScriptedRecognizer::always("what time is it")),
            synthesizer: Arc::new(ScriptedSynthesizer::new()),
        },
        EngineKind::Torch => {
            let device = speech_torch::best_device();
            let models = config_path.parent().unwrap_or(Path::new(".")).join(&config.models_dir);
            let context = || format!("cannot load the models in {}; see models_dir", models.display());
            tracing::info!(?device, models = %models.display(), "loading models");
            Engines {
                recognizer: Arc::new(TorchRecognizer::load(&models.join("asr"), device).with_context(context)?),
                synthesizer: Arc::new(TorchSynthesizer::load(&models.join("tts"), device).with_context(context)?),
            }
        }
    })
}
