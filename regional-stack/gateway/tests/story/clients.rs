//! Unmodified clients of the OpenAI API as devices, through a real edge. tools/setup installs them; tools/ has their drivers.
//!
//! Each driver exits with an error at the first event that its package does not take, or takes for an error.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gateway::Engines;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use speech::{
    Recognizer, SAMPLE_RATE, SpeechError, Synthesizer, Transcript,
    resample::resample,
    scripted::{ScriptedRecognizer, ScriptedSynthesizer, sound_of, text_in},
    wav,
};
use tempfile::TempDir;

use crate::{
    edges::Edge,
    region::{Region, engines},
};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The speech of the clients as files, and a certificate for the edge they call.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for (name, text) in [
            ("stop.wav", "stop"),
            ("pizza.wav", "order a large pizza"),
            ("menu.wav", "read the menu"),
            ("help.wav", "what can you do"),
            ("broken.wav", BROKEN),
        ] {
            let samples = resample(&sound_of(text), SAMPLE_RATE, 24_000).unwrap();
            std::fs::write(folder.path().join(name), wav::encode(&samples, 24_000)).unwrap();
        }
        // With pauses so long that the recognizer gets two pieces.
        for (name, second) in [("long.wav", "read the menu"), ("half.wav", BROKEN)] {
            let pause = vec![0.0; 20 * SAMPLE_RATE as usize];
            let samples = [sound_of("stop"), pause, sound_of(second)].concat();
            let samples = resample(&samples, SAMPLE_RATE, 24_000).unwrap();
            std::fs::write(folder.path().join(name), wav::encode(&samples, 24_000)).unwrap();
        }
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
        identity::files::write(&folder.path().join("key.pem"), &key.serialize_pem(), 0o600).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The words that make an engine fail.
const BROKEN: &str = "the engine is broken";

fn broken_at(text: &str) -> Result<(), SpeechError> {
    match text.contains(BROKEN) {
        true => Err(SpeechError::Engine("broken".to_owned())),
        false => Ok(()),
    }
}

struct Breaking(ScriptedRecognizer);

impl Recognizer for Breaking {
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError> {
        let heard = self.0.recognize(samples)?;
        broken_at(&heard.text)?;
        Ok(heard)
    }
}

/// Speaks a long text slowly, as a real synthesizer does, so that a client has time to interrupt it.
struct Unhurried(ScriptedSynthesizer);

impl Synthesizer for Unhurried {
    fn synthesize(&self, text: &str, speed: f32) -> Result<Vec<f32>, SpeechError> {
        broken_at(text)?;
        if text.len() > 150 {
            // A client on a busy machine takes seconds.
            std::thread::sleep(Duration::from_secs(5));
        }
        self.0.synthesize(text, speed)
    }
}

fn unhurried() -> Engines {
    Engines {
        synthesizer: Arc::new(Unhurried(ScriptedSynthesizer::new())),
        ..engines()
    }
}

/// Runs a driver against an edge before a region of scripted engines. Returns the printed object.
async fn drive(program: &str, script: &str, url: impl FnOnce(&Edge) -> String) -> Value {
    drive_with(engines(), program, script, url).await
}

async fn drive_with(engines: Engines, program: &str, script: &str, url: impl FnOnce(&Edge) -> String) -> Value {
    drive_and_look(engines, program, script, url, |_| {}).await
}

/// The same, and looks at the files that the driver wrote.
async fn drive_and_look(
    engines: Engines,
    program: &str,
    script: &str,
    url: impl FnOnce(&Edge) -> String,
    look: impl FnOnce(&Path),
) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let program = root.join(".venv/bin").join(program);
    assert!(program.exists(), "the clients are not installed; run tools/setup test");
    let files = Files::new();
    let region = Region::start_keyed(engines, KEY).await;
    // Minutes of audio in one message keep a stack of a development build silent for seconds on a busy machine. Without this deadline
    // the edge would move the session, and these tests are not about failover.
    let patient = "continuity.silence_busy = \"60s\"";
    let lines = format!(
        "{patient}\ntls = {{ listen = [\"127.0.0.1:0\"], certificate = {:?}, key = {:?} }}",
        files.path("cert.pem"),
        files.path("key.pem")
    );
    let edge = Edge::before(region.http, &lines).await;
    let arguments = [
        root.join("tools").join(script).into_os_string(),
        url(&edge).into(),
        files.folder.path().into(),
    ];
    let output = tokio::process::Command::new(program)
        .args(arguments.iter().map(AsRef::<OsStr>::as_ref))
        .env("NODE_EXTRA_CA_CERTS", files.path("cert.pem"))
        .kill_on_drop(true)
        .output()
        .await
        .expect("the driver starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    look(files.folder.path());
    edge.stopped().await;
    region.begin_stop();
    region.stopped().await;
    serde_json::from_slice(&output.stdout).expect("the driver prints one JSON object")
}

/// Two answers that a voice interrupts: one after its first sound, and one while the engine makes it. Both packages report that the
/// first was interrupted and truncate its item, and the interrupting words get an answer.
fn interrupted_by_voice() -> Value {
    json!({
        "played": { "told": true, "truncated": true, "answer": "okay" },
        "made": { "status": "cancelled", "reason": "turn_detected", "answer": "okay" },
    })
}

fn count(said: &Value, kind: &str) -> u64 {
    said["seen"][kind].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn every_event_is_one_of_the_openai_packages_own() {
    let url = |edge: &Edge| format!("http://{}/v1", edge.http);
    let engines = Engines {
        recognizer: Arc::new(Breaking(ScriptedRecognizer::new())),
        synthesizer: Arc::new(Unhurried(ScriptedSynthesizer::new())),
    };
    let seen = drive_with(engines, "python", "openai-client/conform.py", url).await;
    // The run has every type of event that the assistant sends.
    for kind in [
        "conversation.item.added",
        "conversation.item.deleted",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.failed",
        "conversation.item.retrieved",
        "conversation.item.truncated",
        "error",
        "input_audio_buffer.cleared",
        "input_audio_buffer.committed",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "rate_limits.updated",
        "response.content_part.added",
        "response.content_part.done",
        "response.created",
        "response.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.done",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "session.created",
        "session.updated",
    ] {
        assert!(seen[kind].as_u64() > Some(0), "no {kind} in {seen:#}");
    }
}

/// The text in the speech of a file that a driver wrote.
fn said_in(file: &Path) -> String {
    let samples = wav::decode(&std::fs::read(file).unwrap(), 60.0).unwrap();
    text_in(&samples).unwrap_or_default()
}

#[tokio::test]
async fn the_openai_package_gets_every_format_that_there_is_and_is_told_of_those_that_there_are_not() {
    let url = |edge: &Edge| format!("http://{}/v1", edge.http);
    let engines = Engines {
        recognizer: Arc::new(Breaking(ScriptedRecognizer::new())),
        synthesizer: Arc::new(ScriptedSynthesizer::new()),
    };
    let check_files = |folder: &Path| {
        for lossless in ["wav", "flac", "pcm"] {
            let said = said_in(&folder.join(format!("{lossless}-said.wav")));
            assert_eq!(said, "it is noon", "the first sentence of {lossless}");
        }
    };
    let seen = drive_and_look(engines, "python", "openai-client/audio.py", url, check_files).await;

    let heard = &seen["transcribed"];
    assert_eq!(heard["json"], "stop read the menu", "{heard:#}");
    assert_eq!(heard["text"], "stop read the menu\n", "{heard:#}");
    assert_eq!(heard["verbose_json"], "stop read the menu", "{heard:#}");
    let srt = heard["srt"].as_str().unwrap();
    assert!(
        srt.starts_with("1\n00:00:00,") && srt.contains("\n\n2\n00:00:2"),
        "{srt}"
    );
    assert!(
        heard["vtt"].as_str().unwrap().starts_with("WEBVTT\n\n00:00:00."),
        "{heard:#}"
    );
    assert_eq!(heard["segments"].as_array().map(Vec::len), Some(2), "{heard:#}");
    assert_eq!(heard["deltas"], json!(["stop", " read the menu"]), "{heard:#}");
    assert_eq!(
        heard["streamed"],
        json!(["transcript.text.done", "stop read the menu"]),
        "{heard:#}"
    );
    assert!(heard["refused"].as_str().unwrap().contains("srt or vtt"), "{heard:#}");
    let failed = seen["failed"].as_str().unwrap();
    assert!(
        failed.starts_with("transcript.text.delta, then: ") && failed.contains("broken"),
        "{failed}"
    );

    let said = &seen["spoken"];
    let wav = said["seconds"]["wav"].as_f64().unwrap();
    assert!(wav > 0.5, "{said:#}");
    for format in ["flac", "opus", "pcm"] {
        let seconds = said["seconds"][format].as_f64().unwrap();
        assert!((seconds - wav).abs() < 0.02, "{format}: {said:#}");
    }
    assert_eq!(said["opus"], json!(["OGG", "OPUS", 1]), "{said:#}");
    assert_eq!(
        said["events"].as_array().unwrap().last(),
        Some(&json!("speech.audio.done")),
        "{said:#}"
    );
    assert!((said["event_seconds"].as_f64().unwrap() - wav).abs() < 0.02, "{said:#}");
    let refused = said["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 3, "{said:#}");
    for message in refused {
        assert!(
            message
                .as_str()
                .unwrap()
                .contains("\"wav\", \"flac\", \"opus\" or \"pcm\""),
            "{message}"
        );
    }
    assert_eq!(seen["opus"]["text"], "", "{:#}", seen["opus"]);
    assert_eq!(seen["opus"]["duration"], 2.0, "{:#}", seen["opus"]);
    assert!(
        seen["opus"]["refused"].as_str().unwrap().contains("Ogg file"),
        "{:#}",
        seen["opus"]
    );
    let models = json!(["meridian-asr", "meridian-tts", "meridian-realtime"]);
    assert_eq!(seen["models"]["listed"], models);
    assert_eq!(seen["models"]["retrieved"], "meridian-asr");
    assert_eq!(seen["models"]["missing"], "model_not_found");
}

#[tokio::test]
async fn an_agent_of_openai_agents_talks_calls_its_tools_and_is_interrupted() {
    let url = |edge: &Edge| format!("ws://{}/v1/realtime", edge.http);
    let said = drive_with(unhurried(), "python", "openai-agents/drive.py", url).await;
    assert_eq!(said["ordered"], json!(["large", "small"]), "{said:#}");
    assert_eq!(said["interrupted"], interrupted_by_voice(), "{said:#}");
    assert!(said["audio_bytes"].as_u64() > Some(48_000), "{said:#}");
    assert_eq!(count(&said, "error"), 0, "{said:#}");
}

#[tokio::test]
async fn an_agent_of_agents_realtime_talks_calls_its_tools_and_is_interrupted() {
    let url = |edge: &Edge| format!("ws://{}/v1/realtime", edge.http);
    let said = drive_with(unhurried(), "node", "agents-realtime/drive.mjs", url).await;
    assert_eq!(said["ordered"], json!(["large", "small"]), "{said:#}");
    assert_eq!(said["interrupted"], interrupted_by_voice(), "{said:#}");
    let replies = json!(["okay", "it comes at nine", "the hall lights are on", "it comes at nine"]);
    assert_eq!(said["replies"], replies, "{said:#}");
    assert_eq!(count(&said, "error"), 0, "{said:#}");
}

#[tokio::test]
async fn the_openai_package_for_node_talks_over_tls() {
    let url = |edge: &Edge| format!("https://localhost:{}/v1", edge.https.unwrap().port());
    let said = drive("node", "openai-node/drive.mjs", url).await;
    let call = json!({ "name": "order_pizza", "arguments": { "size": "large" } });
    assert_eq!(said["call"], call, "{said:#}");
    assert_eq!(said["reply"], "it comes at nine", "{said:#}");
    assert_eq!(said["close_code"], 1000, "{said:#}");
}
