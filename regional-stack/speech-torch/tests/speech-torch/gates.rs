//! The recognizers together with the dialogue, on sounds that are no request and on requests: bursts of noise
//! of `testdata/noise.tsv`, bangs among them, and ordinary sentences and commands spoken by espeak-ng. Prints its scores, which are those
//! in docs/benchmarks.md: `cargo test -p speech-torch gates:: -- --nocapture`. The cascade hears a sample in every run, because its large
//! recognizer takes a hundred times as long, and everything with `--ignored`.
//!
//! One file, although it is long: the gates share the models, the speakers and the count of what acted.

use std::{
    f32::consts::TAU,
    path::{Path, PathBuf},
    process::{Command as Program, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use dialogue::{City, Command, DialogueState, act, interpret, understand};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use speech::{Cascade, FirstPass as _, Recognizer, SAMPLE_RATE, wav};
use speech_torch::{Moonshine, TorchRecognizer};
use tch::Device;
use topology::Moment;

/// A recognizer under test.
#[derive(Clone, Copy)]
struct Ear {
    recognizer: &'static dyn Recognizer,
    /// It hears every so many sounds of each list.
    step: usize,
}

impl Ear {
    /// One or two of a sample are chance.
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
fn small() -> Ear {
    Ear {
        recognizer: &*CONFORMER,
        step: 1,
    }
}

/// The cascade; `None` on a machine without its model.
fn cascade(step: usize) -> Option<Ear> {
    let recognizer = CASCADE.as_ref()?;
    Some(Ear { recognizer, step })
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
    surety: f32,
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

    fn hear(&self, ear: Ear) -> Heard {
        let transcript = ear.recognizer.recognize(&self.samples()).unwrap();
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
            surety: transcript.confidence,
            command,
            reply,
        }
    }
}

/// Recognises all sounds of the ear's share, on every core.
fn hear(ear: Ear, sources: &[Source]) -> Vec<Heard> {
    let sources: Vec<&Source> = sources.iter().step_by(ear.step).collect();
    let (next, heard) = (AtomicUsize::new(0), parking_lot::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = source.hear(ear);
                    heard.lock().push(result);
                }
            });
        }
    });
    heard.into_inner()
}

/// Random numbers that stay the same in every version of the libraries: ChaCha8 promises its sequence, and the ranges are
/// computed here.
struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    fn between(&mut self, from: f32, to: f32) -> f32 {
        from + (to - from) * (self.0.next_u32() >> 8) as f32 / 16_777_216.0
    }

    /// A whole number from `from` to below `to`.
    fn number(&mut self, from: usize, to: usize) -> usize {
        from + self.0.next_u32() as usize % (to - from)
    }

    fn noise(&mut self) -> f32 {
        self.between(-1.0, 1.0)
    }
}

/// Sounds without words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noise {
    White,
    Pink,
    Hum,
    Clicks,
    Babble,
    Tones,
    Bang,
    Thud,
    Knock,
    Slam,
}

/// A line of `testdata/noise.tsv`.
#[derive(Debug, Clone)]
struct Burst {
    noise: Noise,
    length: usize,
    peak_db: f32,
    seed: u64,
}

impl Burst {
    fn read(line: &[String]) -> Self {
        let [kind, ms, peak_db, seed] = line else {
            panic!("four columns: {line:?}")
        };
        let noise = Noise::ALL
            .into_iter()
            .find(|noise| format!("{noise:?}").eq_ignore_ascii_case(kind));
        Self {
            noise: noise.unwrap_or_else(|| panic!("no sound is called {kind}")),
            length: ms.parse::<usize>().unwrap() * SAMPLE_RATE as usize / 1000,
            peak_db: peak_db.parse().unwrap(),
            seed: seed.parse().unwrap(),
        }
    }

    /// Whether it is as short as a word.
    fn is_short(&self) -> bool {
        matches!(self.noise, Noise::Bang | Noise::Thud | Noise::Knock | Noise::Slam)
    }

    fn samples(&self) -> Vec<f32> {
        let mut dice = Dice::new(self.seed);
        let rate = SAMPLE_RATE as f32;
        let mut samples = self.noise.samples(self.length, &mut dice);
        let loudest = samples
            .iter()
            .fold(1e-6f32, |loudest, sample| loudest.max(sample.abs()));
        // A rise and a fall as of a door or a cough; what falls down begins at once.
        let (rise, fall) = if self.is_short() {
            (dice.between(0.001, 0.004) * rate, dice.between(0.002, 0.02) * rate)
        } else {
            (dice.between(0.005, 0.1) * rate, dice.between(0.02, 0.3) * rate)
        };
        let (length, level) = (samples.len(), 10f32.powf(self.peak_db / 20.0));
        for (at, sample) in samples.iter_mut().enumerate() {
            let edge = (at as f32 / rise).min((length - at) as f32 / fall).min(1.0);
            *sample *= edge * level / loudest;
        }
        // The quiet room around the sound, as an endpointer leaves it.
        let mut room =
            |seconds: f32| -> Vec<f32> { (0..(seconds * rate) as usize).map(|_| 0.0017 * dice.noise()).collect() };
        if self.is_short() {
            [room(0.3), samples, room(0.5)].concat()
        } else {
            let quiet = vec![0.0; (0.15 * rate) as usize];
            [quiet.clone(), samples, quiet].concat()
        }
    }
}

impl Noise {
    const ALL: [Self; 10] = [
        Self::White,
        Self::Pink,
        Self::Hum,
        Self::Clicks,
        Self::Babble,
        Self::Tones,
        Self::Bang,
        Self::Thud,
        Self::Knock,
        Self::Slam,
    ];

    fn samples(self, length: usize, random: &mut Dice) -> Vec<f32> {
        let rate = SAMPLE_RATE as f32;
        match self {
            Self::White => (0..length).map(|_| random.noise()).collect(),
            Self::Pink => {
                // White noise through three leaks of different speed: about 3 dB less per octave.
                let mut leaks = [0.0f32; 3];
                let mut next = || {
                    let white = random.noise();
                    for (leak, (keep, take)) in leaks.iter_mut().zip([(0.997, 0.03), (0.96, 0.1), (0.6, 0.4)]) {
                        *leak = keep * *leak + take * white;
                    }
                    leaks.iter().sum::<f32>()
                };
                (0..length).map(|_| next()).collect()
            }
            Self::Hum => {
                let pitch = random.between(45.0, 240.0);
                let parts: Vec<(f32, f32, f32)> = (1..12)
                    .map(|part| {
                        let part = part as f32;
                        (part * pitch, random.between(0.0, 1.0) / part, random.between(0.0, TAU))
                    })
                    .collect();
                (0..length)
                    .map(|at| {
                        let t = at as f32 / rate;
                        parts.iter().map(|(f, a, phase)| a * (TAU * f * t + phase).sin()).sum()
                    })
                    .collect()
            }
            Self::Clicks => {
                let mut samples = vec![0.0f32; length];
                for _ in 0..random.number(1, 14) {
                    let (from, decay, pitch) = (
                        random.number(0, length),
                        random.between(0.002, 0.03) * rate,
                        random.between(200.0, 4000.0),
                    );
                    for (at, sample) in samples[from..].iter_mut().take((8.0 * decay) as usize).enumerate() {
                        let ring = (TAU * pitch * at as f32 / rate).sin() + random.between(-0.5, 0.5);
                        *sample += ring * (-(at as f32) / decay).exp();
                    }
                }
                samples
            }
            Self::Babble => {
                // Voices without words: pulses at the pitch of a voice, through two resonances that wander like those
                // of vowels.
                let mut samples = vec![0.0f32; length];
                for _ in 0..random.number(1, 5) {
                    let pitch: f32 = random.between(80.0, 260.0);
                    let syllables = random.between(2.0, 6.0);
                    let (mut phase, mut memory) = (0.0f32, [[0.0f32; 2]; 2]);
                    let starts: [f32; 2] = [random.between(300.0, 800.0), random.between(900.0, 2500.0)];
                    let wander = random.between(0.5, 3.0);
                    for (at, sample) in samples.iter_mut().enumerate() {
                        let t = at as f32 / rate;
                        phase += pitch * (1.0 + 0.1 * (TAU * 0.7 * t).sin()) / rate;
                        let pulse = if phase >= 1.0 { 1.0 } else { 0.0 };
                        phase = phase.fract();
                        let mut voice = 0.0;
                        for (formant, (start, memory)) in starts.iter().zip(&mut memory).enumerate() {
                            let middle = start * (1.0 + 0.3 * (TAU * wander * t + formant as f32).sin());
                            let (width, turn) = ((-std::f32::consts::PI * 90.0 / rate).exp(), TAU * middle / rate);
                            let out = pulse + 2.0 * width * turn.cos() * memory[0] - width * width * memory[1];
                            *memory = [out, memory[0]];
                            voice += out;
                        }
                        *sample += voice * (TAU * syllables * t).sin().max(0.0);
                    }
                }
                samples
            }
            Self::Tones => {
                // Beeps and slides, as of telephones, toys and kettles.
                let mut samples = Vec::with_capacity(length);
                let mut phase = 0.0f32;
                while samples.len() < length {
                    let (from, to) = (random.between(200.0, 3000.0), random.between(200.0, 3000.0));
                    let steady = random.between(0.0, 1.0) < 0.5;
                    let piece = (random.between(0.05, 0.6) * rate) as usize;
                    for at in 0..piece {
                        let pitch: f32 = if steady {
                            from
                        } else {
                            from + (to - from) * at as f32 / piece as f32
                        };
                        phase = (phase + pitch / rate).fract();
                        samples.push((TAU * phase).sin());
                    }
                }
                samples.truncate(length);
                samples
            }
            Self::Bang => {
                // From noise that stops at once to noise that fades at once.
                let fade = random.between(0.0, 4.0);
                (0..length)
                    .map(|at| random.noise() * (-fade * at as f32 / length as f32).exp())
                    .collect()
            }
            Self::Thud => {
                let pitch = random.between(80.0, 400.0);
                (0..length)
                    .map(|at| {
                        let (t, part) = (at as f32 / rate, at as f32 / length as f32);
                        (TAU * pitch * t).sin() * (-3.0 * part).exp() + 0.17 * random.noise() * (-4.0 * part).exp()
                    })
                    .collect()
            }
            Self::Knock => {
                // A table or a door: five resonances that fade at their own pace.
                let parts: Vec<[f32; 4]> = (0..5)
                    .map(|_| {
                        [
                            random.between(90.0, 2500.0),
                            random.between(0.2, 1.0),
                            random.between(0.0, TAU),
                            random.between(0.01, 0.08),
                        ]
                    })
                    .collect();
                (0..length)
                    .map(|at| {
                        let t = at as f32 / rate;
                        let rings = parts.iter().map(|[pitch, level, phase, fade]| {
                            level * (TAU * pitch * t + phase).sin() * (-t / fade).exp()
                        });
                        rings.sum::<f32>() + 0.05 * random.noise() * (-4.0 * at as f32 / length as f32).exp()
                    })
                    .collect()
            }
            Self::Slam => {
                let pink = Self::Pink.samples(length, random);
                let fade = random.between(0.0, 4.0);
                let faded = pink.into_iter().enumerate();
                faded
                    .map(|(at, sample)| sample * (-fade * at as f32 / length as f32).exp())
                    .collect()
            }
        }
    }
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

fn noise_and_ordinary_sentences(ear: Ear) {
    let began = Instant::now();
    let (mut clips, mut false_actions) = (0, Vec::new());
    for (name, sources) in [
        ("bursts of noise", noises(false)),
        (
            "ordinary sentences",
            spoken("../dialogue/testdata/ordinary.txt", &TALKERS),
        ),
    ] {
        let heard = hear(ear, &sources);
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
            false_actions.push(format!("{said}: {:?} at {:.2}", heard.text, heard.surety));
        }
        // The device must not talk to a fan, so nearly all noise gets no answer.
        if name == "bursts of noise" {
            assert!(
                ear.reaches(silent, heard.len(), 97.0),
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
    assert!(clips >= 1000 / ear.step);
    assert!(ear.stays_below(false_actions.len(), clips, 0.5), "{false_actions:#?}");
}

#[test]
fn a_bang_answers_no_question_and_stops_no_alarm() {
    bangs(small());
}

/// The effect of a knock or a slam in each state in which a single word suffices.
fn bangs(ear: Ear) {
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
    let (bangs, words) = (hear(ear, &bangs), hear(ear, &words));
    let mut acted = Vec::new();
    for (name, state, now) in &states {
        let means = |heard: &Heard, confidence: f32| match heard.text.as_str() {
            "" => Command::Rejected,
            text => understand(state, text, Some(confidence), *now).command,
        };
        let before = acted.len();
        for heard in &bangs {
            let command = means(heard, heard.surety);
            if !matches!(command, Command::Rejected | Command::Unknown | Command::Unsure { .. }) {
                acted.push(format!(
                    "{name}: {:?} at {:.2} is {command:?}",
                    heard.text, heard.surety
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
            kept += usize::from(meant != Command::Rejected && means(heard, heard.surety) == meant);
        }
        println!(
            "{name}: {} of {} bangs do something; {kept} of {known} words that are heard right are accepted ({} spoken)",
            acted.len() - before,
            bangs.len(),
            words.len()
        );
        assert!(percent(kept, known) >= 90.0, "{name}: {kept} of {known}");
    }
    let clips = states.len() * bangs.len();
    println!("{acted:#?}");
    assert!(
        percent(acted.len(), clips) < 0.5,
        "{} of {clips}: {acted:#?}",
        acted.len()
    );
}

#[test]
fn what_is_negated_or_asked_is_not_done_when_it_is_spoken() {
    negated_and_asked(small());
}

/// Negated commands and questions, as the recognizer returns them. It may lose the word that reverses the meaning.
fn negated_and_asked(ear: Ear) {
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
        let heard = hear(ear, &sources);
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
            .map(|heard| format!("{:?}: {:?} at {:.2}", said_of(heard), heard.text, heard.surety))
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
        assert!(ear.stays_below(acted.len(), heard.len(), acted_max), "{acted:#?}");
    }
}

#[test]
fn commands_are_still_carried_out() {
    commands(small());
}

fn commands(ear: Ear) {
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
        let heard = hear(ear, &sources);
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
                    println!("not sure enough: {:?} at {:.2}", heard.text, heard.surety);
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
                    heard.surety
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
        assert!(ear.reaches(kept, understood, kept_min));
        assert!(ear.stays_below(wrong.len(), heard.len(), wrong_max), "{wrong:#?}");
    }
}

#[test]
#[ignore = "prints what the bounds of surety in dialogue were chosen by"]
fn calibration() {
    let mut requests = recordings();
    requests.extend(spoken("../dialogue/testdata/commands.tsv", &CALLERS));
    let right = hear(small(), &requests);
    let noise = hear(small(), &noises(false));
    let ordinary = hear(small(), &spoken("../dialogue/testdata/ordinary.txt", &TALKERS));
    let known = |command: &Command| !matches!(command, Command::Unknown | Command::Unsure { .. } | Command::Rejected);
    for heard in &noise {
        if heard.surety >= 0.55 && !heard.text.is_empty() {
            println!(
                "noise\t{:.2}\t{}\t{:?}",
                heard.surety,
                heard.text,
                interpret(&heard.text).command.intent()
            );
        }
    }
    for heard in &right {
        println!(
            "right\t{:.2}\t{}\t{}",
            heard.surety,
            heard.text,
            heard.said.as_deref().unwrap_or_default()
        );
    }
    println!("floor  right kept  wrong kept  noise acts  ordinary acts  noise unknown  ordinary unknown");
    for floor in (0..20).map(|step| 0.05 * step as f32) {
        let mut counts = [0; 6];
        for heard in right.iter().filter(|heard| heard.surety >= floor) {
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
            if heard.surety >= floor && !heard.text.is_empty() {
                let known = known(&interpret(&heard.text).command);
                counts[if known { at } else { at + 2 }] += 1;
            }
        }
        println!("{floor:.2}   {counts:?}");
    }
}

/// The same with the cascade. "sample" runs in every build, "everything" when it is asked for: half an hour of one core.
mod with_moonshine {
    use super::*;

    #[test]
    fn a_sample_of_all_sounds() {
        // Primes, so that a sample has every voice.
        if let Some(ear) = cascade(17) {
            noise_and_ordinary_sentences(ear);
            commands(ear);
            negated_and_asked(ear);
        }
    }

    #[test]
    #[ignore = "ten minutes of one core: everything that the small recognizer hears in every build"]
    fn everything() {
        let ear = cascade(1).expect("`meridian models fetch` gets the model");
        noise_and_ordinary_sentences(ear);
        bangs(ear);
        commands(ear);
        negated_and_asked(ear);
    }

    /// A line for each sound: its list, the words, what each recognizer hears and how sure it is, and the letters that the small one
    /// found in the sound.
    #[test]
    #[ignore = "prints what the bounds of the cascade were chosen by: ten minutes of one core"]
    fn calibration_of_the_cascade() {
        let moonshine = crate::fetched_moonshine().expect("`meridian models fetch` gets the model");
        let traps = |kind: &str| -> Vec<Source> {
            let rows = lines("../dialogue/testdata/traps.tsv");
            let texts = rows.into_iter().filter(|row| row[0] == kind && !row[1].ends_with('?'));
            let each = texts.flat_map(|row| {
                CALLERS.iter().map(move |&(voice, speed)| Source::Spoken {
                    text: row[1].clone(),
                    voice,
                    speed,
                })
            });
            each.step_by(3).collect()
        };
        let people = || -> Vec<Source> {
            let rows = speech::people::rows().into_iter().filter(|row| row.part == "dev");
            let source = |row: speech::people::Row| Source::Recording {
                path: folder("../../.people").join(row.file),
                text: row.transcript,
            };
            rows.map(source).collect()
        };
        for (list, sources) in [
            ("recordings", recordings()),
            ("commands", spoken("../dialogue/testdata/commands.tsv", &CALLERS)),
            ("changes", spoken("../dialogue/testdata/changes.tsv", &CALLERS)),
            ("negated", traps("negated")),
            ("question", traps("question")),
            ("people", people()),
            ("ordinary", spoken("../dialogue/testdata/ordinary.txt", &TALKERS)),
            ("noise", noises(false)),
            ("bangs", noises(true)),
        ] {
            let next = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let samples = source.samples();
                            let (small, spelled) = CONFORMER.recognize_closely(&samples).unwrap();
                            let large = moonshine.recognize(&samples).unwrap();
                            let said = match source {
                                Source::Noise(_) => "",
                                Source::Spoken { text, .. } | Source::Recording { text, .. } => text,
                            };
                            println!(
                                "ROW\t{list}\t{said}\t{}\t{:.3}\t{spelled}\t{}\t{:.3}",
                                small.text, small.confidence, large.text, large.confidence
                            );
                        }
                    });
                }
            });
        }
    }
}
