//! `meridian-stack`: one regional stack.

mod recognition;

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use gateway::{Config, EngineKind, Engines};
use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
use speech_torch::TorchSynthesizer;

fn main() -> ExitCode {
    daemon::main(
        "meridian-stack",
        "Serves one region: speech recognition, the assistant and speech synthesis",
        |process, config: Config| async move {
            let engines = engines(&config)?;
            let grace = config.limits.stop_grace();
            let mut tasks = daemon::Tasks::new();
            let addresses = gateway::start(config, engines, &mut tasks).await?;
            let mut announced = vec![("http", addresses.http), ("admin", addresses.admin)];
            announced.extend(addresses.wyoming.map(|address| ("wyoming", address)));
            process.announce(&announced)?;
            tasks.run(grace).await
        },
    )
}

fn engines(config: &Config) -> anyhow::Result<Engines> {
    Ok(match config.engine {
        EngineKind::Scripted => Engines {
            recognizer: Arc::new(ScriptedRecognizer::always("what time is it")),
            synthesizer: Arc::new(ScriptedSynthesizer::new()),
        },
        EngineKind::Torch => {
            let device = speech_torch::best_device();
            let models = &config.models_dir;
            let context = || format!("cannot load the models in {}; see models_dir", models.display());
            let limits = &config.limits;
            let speaking = limits.tts_workers + limits.bulk_workers;
            tracing::info!(?device, models = %models.display(), "loading models");
            Engines {
                recognizer: recognition::load(config).with_context(context)?,
                synthesizer: Arc::new(
                    TorchSynthesizer::load_for(&models.join("tts"), device, speaking).with_context(context)?,
                ),
            }
        }
    })
}
