//! A region to call, and engines that can be held.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use gateway::{Config, Engines, Limits};
use parking_lot::Mutex;
use speech::{
    Recognizer, SpeechError, Synthesizer, Transcript,
    scripted::{ScriptedRecognizer, ScriptedSynthesizer},
};
use tokio_util::sync::CancellationToken;

/// Longer than any step here; a test that waits this long has failed.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(30);

const PLAIN: &str =
    "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nengine = \"scripted\"";

pub(crate) struct Region {
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// For the Wyoming protocol, if the configuration has it.
    pub(crate) wyoming: Option<SocketAddr>,
    stop: CancellationToken,
    run: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Region {
    pub(crate) async fn start() -> Self {
        Self::start_with(engines(), |_| {}).await
    }

    pub(crate) async fn start_with(engines: Engines, change: impl FnOnce(&mut Limits)) -> Self {
        Self::start_as(PLAIN, engines, change).await
    }

    /// A region whose sessions other regions with the same key can resume.
    pub(crate) async fn start_keyed(engines: Engines, key: &str) -> Self {
        let document = format!("{PLAIN}\ncheckpoint_key = \"{key}\"");
        Self::start_as(&document, engines, |_| {}).await
    }

    /// A region of this name, with further lines of configuration.
    pub(crate) async fn start_in(name: &str, lines: &str, engines: Engines, change: impl FnOnce(&mut Limits)) -> Self {
        let document = format!("{}\n{lines}", PLAIN.replace("eu-west", name));
        Self::start_as(&document, engines, change).await
    }

    async fn start_as(document: &str, engines: Engines, change: impl FnOnce(&mut Limits)) -> Self {
        let mut config: Config = daemon::config::parse("test", document).unwrap();
        // One thread each, so that holding one job holds the engine.
        (config.limits.asr_workers, config.limits.tts_workers) = (1, 1);
        change(&mut config.limits);
        let grace = config.limits.stop_grace();
        let mut tasks = daemon::Tasks::new();
        let addresses = gateway::start(config, engines, &mut tasks).await.unwrap();
        let stop = tasks.stop_token();
        let run = tokio::spawn(tasks.run(grace));
        Self {
            http: addresses.http,
            admin: addresses.admin,
            wyoming: addresses.wyoming,
            stop,
            run,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    pub(crate) async fn until_metric(&self, line: &str) {
        until_metric(self.http, line).await;
    }

    /// Begins to stop, as SIGTERM does.
    pub(crate) fn begin_stop(&self) {
        self.stop.cancel();
    }

    pub(crate) async fn stopped(self) {
        tokio::time::timeout(HANGS_AFTER, self.run)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// Asks a stack for its metrics until they contain this line.
pub(crate) async fn until_metric(stack: SocketAddr, line: &str) {
    let mut shown = String::new();
    let asked = async {
        loop {
            let answer = reqwest::get(format!("http://{stack}/metrics")).await.unwrap();
            shown = answer.text().await.unwrap();
            if shown.lines().any(|shown| shown == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(HANGS_AFTER, asked).await.is_err() {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let alike: Vec<&str> = shown.lines().filter(|shown| shown.starts_with(name)).collect();
        panic!("no {line}, but {alike:?}");
    }
}

pub(crate) fn engines() -> Engines {
    Engines {
        recognizer: Arc::new(ScriptedRecognizer::new()),
        synthesizer: Arc::new(ScriptedSynthesizer::new()),
    }
}

/// Lets one job of a held engine pass; when dropped, all.
pub(crate) type Gate = mpsc::Sender<()>;

/// Engines whose recognizer waits at a gate before each job, except for the first, which is the stack's own self-test.
pub(crate) fn held_recognizer() -> (Engines, Gate) {
    let (gate, hold) = mpsc::channel();
    gate.send(()).unwrap();
    let held = Held {
        hold: Mutex::new(hold),
        recognizer: ScriptedRecognizer::new(),
        synthesizer: ScriptedSynthesizer::new(),
    };
    (
        Engines {
            recognizer: Arc::new(held),
            ..engines()
        },
        gate,
    )
}

/// The same for the synthesizer.
pub(crate) fn held_synthesizer() -> (Engines, Gate) {
    let (gate, hold) = mpsc::channel();
    gate.send(()).unwrap();
    let held = Held {
        hold: Mutex::new(hold),
        recognizer: ScriptedRecognizer::new(),
        synthesizer: ScriptedSynthesizer::new(),
    };
    (
        Engines {
            synthesizer: Arc::new(held),
            ..engines()
        },
        gate,
    )
}

struct Held {
    hold: Mutex<mpsc::Receiver<()>>,
    recognizer: ScriptedRecognizer,
    synthesizer: ScriptedSynthesizer,
}

impl Held {
    fn wait(&self) {
        // An error means that the gate was dropped: all jobs may pass.
        let _ = self.hold.lock().recv();
    }
}

impl Recognizer for Held {
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError> {
        self.wait();
        self.recognizer.recognize(samples)
    }
}

impl Synthesizer for Held {
    fn synthesize(&self, text: &str, speed: f32) -> Result<Vec<f32>, SpeechError> {
        self.wait();
        self.synthesizer.synthesize(text, speed)
    }
}
