//! The state that all requests and sessions of a stack share.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use dialogue::DialogueState;
use identity::Expiry;
use prometheus_client::registry::Registry;
use speech::{Recognizer, SAMPLE_RATE, SpeechError, Synthesizer, Transcript};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use topology::Component;
use wire::Load;

use crate::{
    config::Config,
    live::Live,
    metrics::{EngineName, Metrics},
    queue::{Bounds, Class, Lane},
    recording::{Recording, RecordingError},
    room, spoken,
    store::SessionStore,
    workers::{Crew, JobError, Ticket, Workers},
};

/// The two engines a stack works with.
#[derive(Clone)]
pub struct Engines {
    pub recognizer: Arc<dyn Recognizer>,
    pub synthesizer: Arc<dyn Synthesizer>,
}

pub(crate) struct Stack {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Arc<Registry>,
    pub(crate) readiness: daemon::admin::Readiness,
    pub(crate) store: Box<dyn SessionStore>,
    /// The connection of each session.
    pub(crate) live: Arc<Live>,
    /// A permit for each request body in memory.
    pub(crate) uploads: Arc<Semaphore>,
    /// Room for the long messages of all sessions.
    pub(crate) long_messages: Arc<Semaphore>,
    /// Open Realtime sessions; the stop of the stack waits for them.
    pub(crate) sessions: TaskTracker,
    /// Cancelled when the stack must take no new work and end after the current turns.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the time for current turns is over.
    pub(crate) cut: CancellationToken,
    /// Name and version of the recognition model; empty for an engine without one.
    pub(crate) recognizes_with: String,
    asr: Workers<Vec<f32>, Transcript>,
    tts: Workers<Utterance, Vec<f32>>,
    decoder: Workers<Bytes, Result<Recording, RecordingError>>,
}

/// A text to be spoken.
struct Utterance {
    text: String,
    speed: f32,
}

impl Stack {
    pub(crate) fn new(
        config: Config,
        engines: Engines,
        store: Box<dyn SessionStore>,
        expiry: Expiry,
        draining: CancellationToken,
    ) -> std::io::Result<Self> {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        registry.register_collector(Box::new(expiry));
        let limits = config.limits;
        let Engines {
            recognizer,
            synthesizer,
        } = engines;
        let recognizes_with = recognizer.model();
        let crew = |live: usize| Crew {
            live,
            bulk: limits.bulk_workers,
        };
        let bounds = limits.bounds();
        let asr = Workers::start(EngineName::Asr, crew(limits.asr_workers), bounds, &metrics, {
            move |samples: Vec<f32>| recognizer.recognize(&samples)
        })?;
        let tts = Workers::start(EngineName::Tts, crew(limits.tts_workers), bounds, &metrics, {
            move |utterance: Utterance| synthesizer.synthesize(&utterance.text, utterance.speed)
        })?;
        // Each upload holds a place of `uploads_max` already.
        let uploads = Bounds {
            jobs_max: limits.uploads_max,
            seconds_max: f32::INFINITY,
        };
        let seconds_max = limits.transcription_max.0.as_secs_f32();
        let decoder = Workers::start(EngineName::Decoder, Crew { live: 0, bulk: 1 }, uploads, &metrics, {
            move |file: Bytes| Ok(Recording::read(&file, seconds_max))
        })?;
        Ok(Self {
            config,
            metrics,
            registry: Arc::new(registry),
            readiness: daemon::admin::Readiness::default(),
            store,
            live: Arc::default(),
            uploads: Arc::new(Semaphore::new(limits.uploads_max)),
            long_messages: room::of_bytes(limits.long_messages_bytes_max),
            sessions: TaskTracker::new(),
            draining,
            cut: CancellationToken::new(),
            recognizes_with,
            asr,
            tts,
            decoder,
        })
    }

    /// Starts recognising mono samples at [`speech::SAMPLE_RATE`] for the session that this task runs.
    pub(crate) fn hear(&self, samples: Vec<f32>) -> Result<Ticket<Transcript>, JobError> {
        self.hear_for(Class::of_task(), samples)
    }

    /// Starts recognising for a caller of another class.
    pub(crate) fn hear_for(&self, class: Class, samples: Vec<f32>) -> Result<Ticket<Transcript>, JobError> {
        let limit = self.config.limits.engine_limit();
        self.asr.submit(class, seconds_of(&samples), samples, limit)
    }

    /// Starts recognising a further piece of a recording: waits for room in the queue.
    pub(crate) async fn hear_on(&self, class: Class, samples: Vec<f32>) -> Result<Ticket<Transcript>, JobError> {
        let limit = self.config.limits.begun_limit();
        let seconds = seconds_of(&samples);
        self.asr.submit_when_room(class, seconds, samples, limit).await
    }

    /// Starts speaking for the session that this task runs.
    pub(crate) fn speak(&self, text: String, speed: f32) -> Result<Ticket<Vec<f32>>, JobError> {
        self.speak_for(Class::of_task(), text, speed)
    }

    /// Starts speaking for a caller of another class.
    pub(crate) fn speak_for(&self, class: Class, text: String, speed: f32) -> Result<Ticket<Vec<f32>>, JobError> {
        let limit = self.config.limits.engine_limit();
        let seconds = spoken::seconds(&text, speed);
        self.tts.submit(class, seconds, Utterance { text, speed }, limit)
    }

    /// Starts speaking a further sentence of a text: waits for room in the queue.
    pub(crate) async fn speak_on(&self, class: Class, text: String, speed: f32) -> Result<Ticket<Vec<f32>>, JobError> {
        let limit = self.config.limits.begun_limit();
        let seconds = spoken::seconds(&text, speed);
        let utterance = Utterance { text, speed };
        self.tts.submit_when_room(class, seconds, utterance, limit).await
    }

    /// Decodes an uploaded file, on a thread of low priority: the decoding of minutes of audio would delay live callers.
    pub(crate) async fn decode(
        &self,
        class: Class,
        file: Bytes,
    ) -> Result<Result<Recording, RecordingError>, JobError> {
        let limit = self.config.limits.engine_limit();
        let class = class.max(Class::Hedge);
        Ok(self.decoder.submit(class, 0.0, file, limit)?.result().await?.output)
    }

    /// Runs the engines and the language understanding once, so that they load their models now and a fault ends the start, not the
    /// first call.
    pub(crate) async fn warm_up(&self) -> Result<(), JobError> {
        // Loading a model may take longer than any caller would wait.
        const LIMIT: Duration = Duration::from_secs(120);
        // The first use expands the grammar.
        dialogue::interpret("ready");
        let spoken = self
            .tts
            .submit(
                Class::Live,
                1.0,
                Utterance {
                    text: "ready".to_owned(),
                    speed: 1.0,
                },
                LIMIT,
            )?
            .result()
            .await?
            .output;
        if spoken.is_empty() {
            return Err(SpeechError::Engine("speaking \"ready\" gave no audio".to_owned()).into());
        }
        self.asr.submit(Class::Live, 1.0, spoken, LIMIT)?.result().await?;
        Ok(())
    }

    /// Waiting jobs and health of the recognizer and of the synthesizer.
    pub(crate) fn engines(&self) -> [(Component, usize, bool); 2] {
        fn all<I: Send + 'static, O: Send + 'static>(workers: &Workers<I, O>) -> usize {
            workers.waiting(Lane::Live) + workers.waiting(Lane::Bulk)
        }
        [
            (Component::Asr, all(&self.asr), self.asr.is_healthy()),
            (Component::Tts, all(&self.tts), self.tts.is_healthy()),
        ]
    }

    /// The load of the stack, by which edges choose.
    pub(crate) fn load(&self) -> Load {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let limits = &self.config.limits;
        Load {
            sessions: count(self.sessions.len()),
            sessions_max: count(limits.sessions_max),
            // Sessions do not wait for uploads.
            waiting: count(self.asr.waiting(Lane::Live).max(self.tts.waiting(Lane::Live))),
            waiting_max: count(limits.queue_max),
            uploads: count(limits.uploads_max.saturating_sub(self.uploads.available_permits())),
            uploads_max: count(limits.uploads_max),
        }
    }

    /// The memory of a new device.
    pub(crate) fn new_dialogue(&self) -> DialogueState {
        DialogueState::new(self.config.home_city)
    }

    /// Stops the engine threads. Blocks until their current jobs end.
    pub(crate) fn stop_engines(&self) {
        self.asr.stop();
        self.tts.stop();
        self.decoder.stop();
    }
}

fn seconds_of(samples: &[f32]) -> f32 {
    samples.len() as f32 / SAMPLE_RATE as f32
}
