//! Measures the shipped models on recordings that were not used for training. The bounds leave room for the rounding of
//! another processor, not for another model: anybody who replaces the weights must measure again.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use speech::{Recognizer, SAMPLE_RATE, Synthesizer, score::Score, wav};
use speech_torch::{TorchRecognizer, TorchSynthesizer};
use tch::Device;

static EAR: LazyLock<TorchRecognizer> =
    LazyLock::new(|| TorchRecognizer::load(&models().join("asr"), Device::Cpu).expect("the shipped recognizer loads"));
static MOUTH: LazyLock<TorchSynthesizer> = LazyLock::new(|| {
    TorchSynthesizer::load(&models().join("tts"), Device::Cpu).expect("the shipped synthesizer loads")
});

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../speech/testdata")
}

fn recording(path: &Path) -> Vec<f32> {
    wav::decode(&std::fs::read(path).unwrap(), 30.0).unwrap()
}

/// File, text and third column of each line.
fn table(path: &Path) -> Vec<(PathBuf, String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        (
            path.with_file_name(columns[0]),
            columns[1].to_owned(),
            columns[2].to_owned(),
        )
    };
    text.lines().map(row).collect()
}

#[test]
fn voices_never_heard_in_training_are_understood() {
    for (family, bound_percent) in [("espeak", 6.0), ("flite-rms", 10.0)] {
        let mut score = Score::default();
        for (file, said, _) in table(&testdata().join("held-out/refs.tsv"))
            .into_iter()
            .filter(|row| row.2 == family)
        {
            score.add(&said, &EAR.recognize(&recording(&file)).unwrap().text);
        }
        assert!(score.utterances >= 20);
        let percent = score.word_error_percent();
        assert!(
            percent <= bound_percent,
            "{family}: {percent:.1} % of words wrong, {bound_percent} % allowed"
        );
    }
}

#[test]
fn the_demo_calls_are_understood() {
    let wrong: Vec<(String, String)> = table(&testdata().join("calls/calls.tsv"))
        .into_iter()
        .map(|(file, said, _)| (EAR.recognize(&recording(&file)).unwrap().text, said))
        .filter(|(heard, said)| heard != said)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn replies_can_be_understood() {
    let mut score = Score::default();
    for reply in [
        "it is ten thirty five in london",
        "timer set for ten minutes",
        "your timer has eight minutes left",
        "alarm set for seven thirty a m",
        "it is eighteen degrees and cloudy in paris",
        "the kitchen lights are on",
        "living room lights dimmed to thirty percent",
        "sorry, i did not understand that",
        "you can ask for the time, timers, alarms, the weather and the lights",
        "connecting to backup",
        "tomorrow it will be minus one degree and snowy in chicago",
        "today is saturday november twenty first",
    ] {
        let spoken = MOUTH.synthesize(reply, 1.0).unwrap();
        score.add(&reply.replace(',', ""), &EAR.recognize(&spoken).unwrap().text);
    }
    let percent = score.word_error_percent();
    assert!(percent <= 30.0, "{percent:.1} % of words wrong");
}

#[test]
fn speed_changes_the_length_and_nothing_breaks_at_its_ends() {
    let text = "timer set for ten minutes";
    let length = |speed| MOUTH.synthesize(text, speed).unwrap().len() as f32;
    let natural = length(1.0);
    assert!((0.4..0.65).contains(&(length(2.0) / natural)));
    assert!((1.7..2.2).contains(&(length(0.5) / natural)));
    for speed in [0.0, -1.0, f32::NAN, f32::INFINITY, 100.0] {
        assert!(length(speed) > 0.0);
    }
}

#[test]
fn the_same_input_gives_the_same_output_on_every_thread() {
    let call = recording(&testdata().join("calls/timer-ten-minutes.wav"));
    let text = "the kitchen lights are on";
    let (heard, said) = (EAR.recognize(&call).unwrap(), MOUTH.synthesize(text, 1.0).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(EAR.recognize(&call).unwrap(), heard);
                    assert_eq!(MOUTH.synthesize(text, 1.0).unwrap(), said);
                }
            });
        }
    });
}

#[test]
fn strange_sound_is_no_failure() {
    for samples in [
        vec![],
        vec![0.5],
        vec![0.0; SAMPLE_RATE as usize],
        vec![1.0; SAMPLE_RATE as usize],
        vec![f32::NAN; SAMPLE_RATE as usize],
        vec![f32::INFINITY; SAMPLE_RATE as usize],
    ] {
        let heard = EAR.recognize(&samples).unwrap();
        assert!((0.0..=1.0).contains(&heard.confidence));
    }
    assert_eq!(EAR.recognize(&vec![0.0; 2 * SAMPLE_RATE as usize]).unwrap().text, "");
    let error = EAR.recognize(&vec![0.0; 31 * SAMPLE_RATE as usize]).unwrap_err();
    assert!(error.to_string().contains("30 s limit"), "{error}");
}

#[test]
fn strange_text_is_refused_or_spoken() {
    for text in ["", "…", "你好"] {
        assert!(MOUTH.synthesize(text, 1.0).is_err(), "{text}");
    }
    for text in ["Zyxwvut!", "42", "a", "3.5 km/h — really?", &"word ".repeat(190)] {
        let samples = MOUTH.synthesize(text, 1.0).unwrap();
        assert!(samples.iter().all(|s| s.is_finite() && s.abs() <= 1.0), "{text}");
    }
    assert!(
        MOUTH
            .synthesize(&"x".repeat(1_001), 1.0)
            .unwrap_err()
            .to_string()
            .contains("1000 character limit")
    );
}

#[test]
fn a_model_that_cannot_be_used_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |folder: &Path| TorchRecognizer::load(folder, Device::Cpu).unwrap_err().to_string();
    assert!(refused(folder.path()).contains("cannot read"));
    let shipped = models().join("asr");
    std::fs::copy(shipped.join("model.json"), folder.path().join("model.json")).unwrap();
    assert!(refused(folder.path()).contains("model.safetensors"));
    std::fs::write(folder.path().join("model.safetensors"), b"damaged").unwrap();
    assert!(refused(folder.path()).contains("hash"));
    std::fs::write(folder.path().join("model.json"), b"{}").unwrap();
    assert!(refused(folder.path()).contains("sidecar"));
    assert!(refused(&models().join("tts")).contains("a recognizer is needed; put the model of a recognizer there"));
}
