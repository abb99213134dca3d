//! What every request and session of a stack shares.

use std::{sync::Arc, time::Duration};

use dialogue::DialogueState;
use prometheus_client::registry::Registry;
use speech::{Recognizer, SpeechError, Synthesizer, Transcript};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use topology::words::Load;

use crate::{
    config::Config,
    metrics::{EngineName, Metrics},
    store::SessionStore,
    workers::{JobError, Ticket, Workers},
};

/// The two engines a stack works with.
#[derive(Clone)]
pub struct Engines {
    /// Speech to text.
    pub recognizer: Arc<dyn Recognizer>,
    /// Text to speech.
    pub synthesizer: Arc<dyn Synthesizer>,
}

/// One regional stack.
pub(crate) struct Stack {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Arc<Registry>,
    pub(crate) readiness: daemon::admin::Readiness,
    pub(crate) store: Box<dyn SessionStore>,
    /// A permit for each request body in memory.
    pub(crate) uploads: Arc<Semaphore>,
    /// Open Realtime sessions; waited for when the stack stops.
    pub(crate) sessions: TaskTracker,
    /// Cancelled when the stack is to take no new work and end after current turns.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the time for current turns is over.
    pub(crate) cut: CancellationToken,
    asr: Workers<Vec<f32>, Transcript>,
    tts: Workers<Utterance, Vec<f32>>,
}

/// Something to be spoken.
struct Utterance {
    text: String,
    speed: f32,
}

impl Stack {
    pub(crate) fn new(
        config: Config,
        engines: Engines,
        store: Box<dyn SessionStore>,
        draining: CancellationToken,
    ) -> std::io::Result<Self> {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let limits = config.limits;
        let Engines {
            recognizer,
            synthesizer,
        } = engines;
        let asr = Workers::start(EngineName::asr, limits.asr_workers, limits.queue_max, &metrics, {
            move |samples: Vec<f32>| recognizer.recognize(&samples)
        })?;
        let tts = Workers::start(EngineName::tts, limits.tts_workers, limits.queue_max, &metrics, {
            move |utterance: Utterance| synthesizer.synthesize(&utterance.text, utterance.speed)
        })?;
        Ok(Self {
            config,
            metrics,
            registry: Arc::new(registry),
            readiness: daemon::admin::Readiness::default(),
            store,
            uploads: Arc::new(Semaphore::new(limits.uploads_max)),
            sessions: TaskTracker::new(),
            draining,
            cut: CancellationToken::new(),
            asr,
            tts,
        })
    }

    /// Starts recognising mono samples at [`speech::SAMPLE_RATE`].
    pub(crate) fn hear(&self, samples: Vec<f32>) -> Result<Ticket<Transcript>, JobError> {
        self.asr.submit(samples, self.config.limits.engine_patience())
    }

    /// Starts speaking.
    pub(crate) fn speak(&self, text: String, speed: f32) -> Result<Ticket<Vec<f32>>, JobError> {
        self.tts
            .submit(Utterance { text, speed }, self.config.limits.engine_patience())
    }

    /// Runs the engines and the language understanding once: loads what they load lazily, and finds out before the first caller does whether they work.
    pub(crate) async fn warm_up(&self) -> Result<(), JobError> {
        // Loading a model may take longer than any caller would wait.
        const PATIENCE: Duration = Duration::from_secs(120);
        // Its grammar is expanded on first use.
        dialogue::interpret("ready");
        let spoken = self
            .tts
            .submit(
                Utterance {
                    text: "ready".to_owned(),
                    speed: 1.0,
                },
                PATIENCE,
            )?
            .result()
            .await?
            .output;
        if spoken.is_empty() {
            return Err(SpeechError::Engine("speaking \"ready\" gave no audio".to_owned()).into());
        }
        self.asr.submit(spoken, PATIENCE)?.result().await?;
        Ok(())
    }

    /// Jobs waiting and health, of the recognizer and of the synthesizer.
    pub(crate) fn engines(&self) -> [(EngineName, usize, bool); 2] {
        [
            (EngineName::asr, self.asr.waiting(), self.asr.is_healthy()),
            (EngineName::tts, self.tts.waiting(), self.tts.is_healthy()),
        ]
    }

    /// How loaded the stack is, for edges to choose by.
    pub(crate) fn load(&self) -> Load {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let limits = &self.config.limits;
        Load {
            sessions: count(self.sessions.len()),
            sessions_max: count(limits.sessions_max),
            waiting: count(self.asr.waiting().max(self.tts.waiting())),
            waiting_max: count(limits.queue_max),
            uploads: count(limits.uploads_max.saturating_sub(self.uploads.available_permits())),
            uploads_max: count(limits.uploads_max),
        }
    }

    /// The memory of a device that has not been here before.
    pub(crate) fn new_dialogue(&self) -> DialogueState {
        DialogueState::new(self.config.home_city)
    }

    /// Stops the engine threads. Blocks while they finish what they do.
    pub(crate) fn stop_engines(&self) {
        self.asr.stop();
        self.tts.stop();
    }
}
