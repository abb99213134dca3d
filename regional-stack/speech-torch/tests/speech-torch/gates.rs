//! The recognizers together with the dialogue, on sounds that are no request and on requests: bursts of noise
//! of `testdata/noise.tsv`, bangs among them, and ordinary sentences and commands spoken by espeak-ng. Prints its scores, which are those
//! in docs/benchmarks.md: `cargo test -p speech-torch gates:: -- --nocapture`. The cascade hears a sample in every run, because its large
//! recognizer takes a hundred times as long, and everything with `--ignored`.

mod noise;
mod with_moonshine;

use std::{
    path::{Path, PathBuf},
    process::{Command as Program, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use dialogue::{City, Command, DialogueState, act, interpret, understand};
use speech::{Cascade, Recognizer, wav};
use speech_torch::{Moonshine, TorchRecognizer};
use tch::Device;
use topology::Moment;

use self::noise::Burst;

/// A recognizer under test.
#[derive(Clone, Copy)]
struct Tested {
    recognizer: &'static dyn Recognizer,
    /// Of each list it hears every sound whose number is a multiple of this.
    step: usize,
}

impl Tested {
    /// Two wrong sounds in a sample are chance.
    fn chance(self) -> usize {
        if self.step == 1 { 0 } else { 2 }
    }

    fn reaches(self, part: usize, of: usize, least_percent: f64) -> bool {
        percent(part + self.chance(), of) >= least_percent
    }

    fn stays_below(self, part: usize, of: usize, most_percent: f64) -> bool {
        percent(part.saturating_sub(self.chance()), of) <= most_percent
    }
}

static CONFORMER: LazyLock<TorchRecognizer> = LazyLock::new(conformer);

static CASCADE: LazyLock<Option<Cascade<TorchRecognizer, Moonshine>>> = LazyLock::new(|| {
    let moonshine = crate::fetched_moonshine()?;
    Some(Cascade::new(conformer(), moonshine, crate::ACCEPTED_FROM))
});

fn conformer() -> TorchRecognizer {
    TorchRecognizer::load(&folder("../models/asr"), Device::Cpu).expect("the shipped recognizer loads")
}

/// The small recognizer alone, which hears every sound.
fn small() -> Tested {
    Tested {
        recognizer: &*CONFORMER,
        step: 1,
    }
}

/// The cascade; `None` on a machine without its model.
fn cascade(step: usize) -> Option<Tested> {
    let recognizer = CASCADE.as_ref()?;
    Some(Tested { recognizer, step })
}

/// Saturday 21 November 2026, 10:35 in London.
const NOW: Moment = Moment(1_795_257_300_000);

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn lines(path: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(folder(path)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect()
}

/// One sound, and the result of recognition and dialogue.
struct Heard {
    /// The spoken text. `None` for noise.
    said: Option<String>,
    text: String,
    confidence: f32,
    command: Command,
    reply: String,
}

impl Heard {
    /// Whether a skill was started.
    fn is_answered(&self) -> bool {
        !self.reply.is_empty()
            && !matches!(
                self.command,
                Command::Unknown | Command::Unsure { .. } | Command::Declined { .. } | Command::Rejected
            )
    }

    fn is_silent(&self) -> bool {
        self.reply.is_empty()
    }
}

/// The origin of a sound.
enum Source {
    Noise(Burst),
    Spoken {
        text: String,
        voice: &'static str,
        speed: u32,
    },
    Recording {
        text: String,
        path: PathBuf,
    },
}

impl Source {
    fn samples(&self) -> Vec<f32> {
        match self {
            Self::Noise(burst) => burst.samples(),
            Self::Spoken { text, voice, speed } => {
                let file = tempfile::NamedTempFile::new().unwrap();
                let status = Program::new("espeak-ng")
                    .args(["-v", voice, "-s", &speed.to_string(), "-w"])
                    .arg(file.path())
                    .arg(text)
                    .stderr(Stdio::null())
                    .status()
                    .expect("espeak-ng speaks; tools/setup installs it");
                assert!(status.success(), "espeak-ng cannot speak {text:?}");
                wav::decode(&std::fs::read(file.path()).unwrap(), 30.0).unwrap()
            }
            Self::Recording { path, .. } => wav::decode(&std::fs::read(path).unwrap(), 30.0).unwrap(),
        }
    }

    fn hear(&self, tested: Tested) -> Heard {
        let transcript = tested.recognizer.recognize(&self.samples()).unwrap();
        let mut state = DialogueState::new(City::London);
        // The session never interprets an empty transcript.
        let (command, reply) = if transcript.text.is_empty() {
            (Command::Rejected, String::new())
        } else {
            let heard = understand(&state, &transcript.text, Some(transcript.confidence), NOW);
            let reply = act(&mut state, &heard, NOW).text;
            (heard.command, reply)
        };
        Heard {
            said: match self {
                Self::Noise(_) => None,
                Self::Spoken { text, .. } | Self::Recording { text, .. } => Some(text.clone()),
            },
            text: transcript.text,
            confidence: transcript.confidence,
            command,
            reply,
        }
    }
}

/// Recognises the recognizer's share of the sounds, on every core.
fn hear(tested: Tested, sources: &[Source]) -> Vec<Heard> {
    let sources: Vec<&Source> = sources.iter().step_by(tested.step).collect();
    let (next, heard) = (AtomicUsize::new(0), parking_lot::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = source.hear(tested);
                    heard.lock().push(result);
                }
            });
        }
    });
    heard.into_inner()
}

/// The voices for ordinary sentences. Commands use voices on which the recognizer was never trained.
const TALKERS: [(&str, u32); 2] = [("en-gb+m3", 160), ("en-us+f2", 150)];
const CALLERS: [(&str, u32); 3] = [("en-gb+Alicia", 150), ("en-us+adam", 160), ("en-us+linda", 145)];

fn noises(is_short: bool) -> Vec<Source> {
    let bursts = lines("testdata/noise.tsv").into_iter().map(|line| Burst::read(&line));
    bursts
        .filter(|burst| burst.is_short() == is_short)
        .map(Source::Noise)
        .collect()
}

fn spoken(path: &str, voices: &[(&'static str, u32)]) -> Vec<Source> {
    let sentences = lines(path);
    let each = sentences.iter().flat_map(|line| {
        voices.iter().map(|&(voice, speed)| Source::Spoken {
            text: line[0].clone(),
            voice,
            speed,
        })
    });
    each.collect()
}

fn recordings() -> Vec<Source> {
    [
        "../speech/testdata/calls/calls.tsv",
        "../speech/testdata/held-out/refs.tsv",
    ]
    .into_iter()
    .flat_map(|table| {
        let at = folder(table);
        lines(table).into_iter().map(move |line| Source::Recording {
            path: at.with_file_name(&line[0]),
            text: line[1].clone(),
        })
    })
    .collect()
}

fn percent(part: usize, of: usize) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

#[test]
fn noise_and_ordinary_sentences_start_nothing() {
    noise_and_ordinary_sentences(small());
}

fn noise_and_ordinary_sentences(tested: Tested) {
    let began = Instant::now();
    let (mut clips, mut false_actions) = (0, Vec::new());
    for (name, sources) in [
        ("bursts of noise", noises(false)),
        (
            "ordinary sentences",
            spoken("../dialogue/testdata/ordinary.txt", &TALKERS),
        ),
    ] {
        let heard = hear(tested, &sources);
        let silent = heard.iter().filter(|heard| heard.is_silent()).count();
        let asked = heard
            .iter()
            .filter(|heard| matches!(heard.command, Command::Unsure { .. }))
            .count();
        let sorry = heard
            .iter()
            .filter(|heard| matches!(heard.command, Command::Unknown))
            .count();
        let started: Vec<&Heard> = heard.iter().filter(|heard| heard.is_answered()).collect();
        println!(
            "{} {name}: {} start a skill, {silent} get no answer, {sorry} \"sorry\", {asked} are asked back",
            heard.len(),
            started.len(),
        );
        for heard in started {
            let said = heard.said.as_deref().unwrap_or("(noise)");
            false_actions.push(format!("{said}: {:?} at {:.2}", heard.text, heard.confidence));
        }
        // The device must not talk to a fan, so nearly all noise gets no answer.
        if name == "bursts of noise" {
            assert!(
                tested.reaches(silent, heard.len(), 97.0),
                "{silent} of {} are silent",
                heard.len()
            );
        }
        clips += heard.len();
    }
    println!(
        "{clips} clips: {:.2} % false actions, in {:.1} s",
        percent(false_actions.len(), clips),
        began.elapsed().as_secs_f32()
    );
    println!("{false_actions:#?}");
    assert!(clips >= 1000 / tested.step);
    assert!(
        tested.stays_below(false_actions.len(), clips, 0.5),
        "{false_actions:#?}"
    );
}

#[test]
fn a_bang_answers_no_question_and_stops_no_alarm() {
    bangs(small());
}

/// The effect of a knock or a slam in each state in which a single word suffices.
fn bangs(tested: Tested) {
    let bangs = noises(true);
    assert!(bangs.len() >= 300);
    // Short words in a quiet room, in every voice.
    const WORDS: [&str; 6] = ["yes", "no", "stop", "okay", "yeah", "cancel"];
    const VOICES: [&str; 10] = [
        "en-gb+Alicia",
        "en-us+adam",
        "en-us+linda",
        "en-gb+m3",
        "en-us+f2",
        "en-gb+m7",
        "en-us+Annie",
        "en-gb+steph",
        "en-us+michel",
        "en-gb+grandpa",
    ];
    let words: Vec<Source> = WORDS
        .iter()
        .flat_map(|word| {
            VOICES
                .iter()
                .zip([130, 150, 175].into_iter().cycle())
                .map(move |voice| (*word, voice))
        })
        .map(|(word, (&voice, speed))| Source::Spoken {
            text: word.to_owned(),
            voice,
            speed,
        })
        .collect();
    let mut asked = DialogueState::new(City::London);
    let unsure = understand(&asked, "turn on the kitchen light my foot", None, NOW);
    act(&mut asked, &unsure, NOW);
    assert!(asked.question.is_some(), "{unsure:?}");
    let mut ringing = DialogueState::new(City::London);
    let set = understand(&ringing, "set a timer for one second", None, NOW);
    act(&mut ringing, &set, NOW);
    let later = Moment(NOW.0 + 2_000);
    assert!(ringing.ring(later).is_some());
    let states = [
        ("plain", DialogueState::new(City::London), NOW),
        ("asked", asked, NOW),
        ("ringing", ringing, later),
    ];
    let (bangs, words) = (hear(tested, &bangs), hear(tested, &words));
    let mut acted = Vec::new();
    for (name, state, now) in &states {
        let means = |heard: &Heard, confidence: f32| match heard.text.as_str() {
            "" => Command::Rejected,
            text => understand(state, text, Some(confidence), *now).command,
        };
        let before = acted.len();
        for heard in &bangs {
            let command = means(heard, heard.confidence);
            if !matches!(command, Command::Rejected | Command::Unknown | Command::Unsure { .. }) {
                acted.push(format!(
                    "{name}: {:?} at {:.2} is {command:?}",
                    heard.text, heard.confidence
                ));
            }
        }
        let right = words
            .iter()
            .filter(|heard| heard.said.as_deref() == Some(heard.text.as_str()));
        let (mut known, mut kept) = (0, 0);
        for heard in right {
            let meant = means(heard, 1.0);
            known += usize::from(meant != Command::Rejected);
            kept += usize::from(meant != Command::Rejected && means(heard, heard.confidence) == meant);
        }
        println!(
            "{name}: {} of {} bangs do something; {kept} of {known} words that are heard right are accepted ({} spoken)",
            acted.len() - before,
            bangs.len(),
            words.len()
        );
        assert!(tested.reaches(kept, known, 90.0), "{name}: {kept} of {known}");
    }
    let clips = states.len() * bangs.len();
    println!("{acted:#?}");
    assert!(
        tested.stays_below(acted.len(), clips, 0.5),
        "{} of {clips}: {acted:#?}",
        acted.len()
    );
}

#[test]
fn what_is_negated_or_asked_is_not_done_when_it_is_spoken() {
    negated_and_asked(small());
}

/// Negated commands and questions, as the recognizer returns them. It may lose the word that reverses the meaning.
fn negated_and_asked(tested: Tested) {
    let mut said: Vec<(String, String)> = lines("../dialogue/testdata/traps.tsv")
        .into_iter()
        .filter(|row| matches!(row[0].as_str(), "negated" | "question"))
        // "Will you wake me at seven" is an order, and so is "lights on?" because the recognizer hears no question
        // mark.
        .filter(|row| !interpret(&row[1]).command.changes_state() && !row[1].ends_with('?'))
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    said.dedup();
    let is_negated = |text: &str| dialogue::client_request(text).is_none();
    for kind in ["negated", "question"] {
        let sources: Vec<Source> = said
            .iter()
            .filter(|row| row.0 == kind)
            .flat_map(|row| {
                CALLERS.iter().map(|&(voice, speed)| Source::Spoken {
                    text: row.1.clone(),
                    voice,
                    speed,
                })
            })
            .collect();
        let heard = hear(tested, &sources);
        let said_of = |heard: &Heard| heard.said.clone().unwrap_or_default();
        let lost = heard
            .iter()
            .filter(|heard| is_negated(&said_of(heard)) && !heard.text.is_empty() && !is_negated(&heard.text))
            .count();
        let declined = heard
            .iter()
            .filter(|heard| matches!(heard.command, Command::Declined { .. }))
            .count();
        let asked = heard
            .iter()
            .filter(|heard| matches!(heard.command, Command::Unsure { .. }))
            .count();
        let silent = heard.iter().filter(|heard| heard.is_silent()).count();
        let acted: Vec<String> = heard
            .iter()
            .filter(|heard| heard.command.changes_state())
            .map(|heard| format!("{:?}: {:?} at {:.2}", said_of(heard), heard.text, heard.confidence))
            .collect();
        println!(
            "{} spoken rows ({kind}): {} acted on, {declined} declined, {asked} asked back, {silent} without an answer; the \
             recognizer lost the negation of {lost}",
            heard.len(),
            acted.len(),
        );
        println!("{acted:#?}");
        // Sometimes a "no" inside or after a command is lost without a trace ("turn on no lights" becomes "turn on the
        // lights" at 0.94). No rule of the dialogue can see that. A "no" at the beginning of the sentence reverses it.
        const BEGIN: [&str; 6] = ["do ", "don't ", "dont ", "never ", "please ", "you "];
        let at_the_beginning: Vec<&String> = (acted.iter())
            .filter(|row| BEGIN.iter().any(|begin| row[1..].starts_with(begin)))
            .collect();
        assert!(at_the_beginning.is_empty(), "{at_the_beginning:#?}");
        let acted_max = if kind == "negated" { 2.2 } else { 4.0 };
        assert!(tested.stays_below(acted.len(), heard.len(), acted_max), "{acted:#?}");
    }
}

#[test]
fn commands_are_still_carried_out() {
    commands(small());
}

fn commands(tested: Tested) {
    for (name, sources, kept_min, wrong_max) in [
        ("recordings", recordings(), 97.0, 2.0),
        (
            "spoken commands",
            spoken("../dialogue/testdata/commands.tsv", &CALLERS),
            95.0,
            2.0,
        ),
        // The recognizer was trained on none of these. It hears most of them as no command, and "change the timer" as
        // "cancel the timer".
        (
            "spoken changes",
            spoken("../dialogue/testdata/changes.tsv", &CALLERS),
            90.0,
            20.0,
        ),
    ] {
        let heard = hear(tested, &sources);
        let meant = |heard: &Heard| interpret(heard.said.as_deref().unwrap_or_default()).command;
        // Counts the commands that the dialogue understands in the transcript as in the text, and those of them that it
        // also accepts because the recognizer is sure.
        let (mut understood, mut kept, mut otherwise, mut wrong) = (0, 0, 0, Vec::new());
        for heard in &heard {
            let meant = meant(heard);
            if matches!(meant, Command::Unknown) {
                continue;
            }
            if interpret(&heard.text).command == meant {
                understood += 1;
                kept += usize::from(heard.command == meant);
                if heard.command != meant {
                    println!("not sure enough: {:?} at {:.2}", heard.text, heard.confidence);
                }
            }
            if heard.command != meant && heard.is_answered() {
                otherwise += 1;
            }
            if heard.command != meant && heard.command.changes_state() {
                wrong.push(format!(
                    "{:?}: {:?} at {:.2}",
                    heard.said.as_deref().unwrap_or_default(),
                    heard.text,
                    heard.confidence
                ));
            }
        }
        println!(
            "{} {name}: {understood} heard right, of which {kept} ({:.1} %) are sure enough; {} ({:.1} %) do something else, \
             {otherwise} are answered otherwise",
            heard.len(),
            percent(kept, understood),
            wrong.len(),
            percent(wrong.len(), heard.len()),
        );
        println!("{wrong:#?}");
        assert!(tested.reaches(kept, understood, kept_min));
        assert!(tested.stays_below(wrong.len(), heard.len(), wrong_max), "{wrong:#?}");
    }
}

#[test]
#[ignore = "prints what the bounds of confidence in dialogue were chosen by"]
fn calibration() {
    let mut requests = recordings();
    requests.extend(spoken("../dialogue/testdata/commands.tsv", &CALLERS));
    let right = hear(small(), &requests);
    let noise = hear(small(), &noises(false));
    let ordinary = hear(small(), &spoken("../dialogue/testdata/ordinary.txt", &TALKERS));
    let known = |command: &Command| !matches!(command, Command::Unknown | Command::Unsure { .. } | Command::Rejected);
    for heard in &noise {
        if heard.confidence >= 0.55 && !heard.text.is_empty() {
            println!(
                "noise\t{:.2}\t{}\t{:?}",
                heard.confidence,
                heard.text,
                interpret(&heard.text).command.intent()
            );
        }
    }
    for heard in &right {
        println!(
            "right\t{:.2}\t{}\t{}",
            heard.confidence,
            heard.text,
            heard.said.as_deref().unwrap_or_default()
        );
    }
    println!("floor  right kept  wrong kept  noise acts  ordinary acts  noise unknown  ordinary unknown");
    for floor in (0..20).map(|step| 0.05 * step as f32) {
        let mut counts = [0; 6];
        for heard in right.iter().filter(|heard| heard.confidence >= floor) {
            let meant = interpret(heard.said.as_deref().unwrap_or_default()).command;
            let command = interpret(&heard.text).command;
            if known(&command) {
                counts[usize::from(command != meant)] += 1;
            }
        }
        for (heard, at) in noise
            .iter()
            .map(|heard| (heard, 2))
            .chain(ordinary.iter().map(|heard| (heard, 3)))
        {
            if heard.confidence >= floor && !heard.text.is_empty() {
                let known = known(&interpret(&heard.text).command);
                counts[if known { at } else { at + 2 }] += 1;
            }
        }
        println!("{floor:.2}   {counts:?}");
    }
}
