use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::Config,
    realtime::{opening::Opening, recognising::Hearing, reports::RESEAL_EVERY},
    stack::Engines,
    store::MemoryStore,
};

const NOW: Moment = Moment(1_795_257_300_000);

fn stack(lines: &str) -> Arc<Stack> {
    let document = format!("region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n{lines}");
    let config: Config = daemon::config::parse("test", &document).unwrap();
    let engines = Engines {
        recognizer: Arc::new(ScriptedRecognizer::new()),
        synthesizer: Arc::new(ScriptedSynthesizer::new()),
    };
    let store = Box::new(MemoryStore::new(1, config.limits.session_ttl.0));
    Arc::new(Stack::new(config, engines, store, identity::Expiry(None), CancellationToken::new()).unwrap())
}

/// A session as a stack of some release left it, with what the edge had of the device's messages.
#[derive(Deserialize)]
struct Recorded {
    keep_from: u64,
    consumed: u64,
    delivered: u64,
    said: Vec<String>,
    /// The state without its seal, in hex.
    state: String,
}

fn recorded(release: &str, moment: &str) -> Recorded {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/checkpoints");
    let text = std::fs::read_to_string(format!("{folder}/{release}/{moment}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn restored(recorded: &Recorded) -> Session {
    let state = hex::decode(&recorded.state).unwrap();
    let resume = Resume {
        first: recorded.keep_from,
        consumed: recorded.consumed,
        delivered: recorded.delivered,
        is_broken: false,
        state: &[],
    };
    let replayed = usize::try_from(recorded.consumed - recorded.keep_from).unwrap();
    let stack = stack("");
    let mut session = Session::restore(&stack, &state, &resume, &recorded.said[..replayed], NOW).unwrap();
    for message in &recorded.said[replayed..] {
        session.on_message(message, NOW);
    }
    session
}

#[test]
fn sessions_of_this_release_and_of_the_one_before_are_restored() {
    for release in ["84b7693", "form-2", "form-2-deflated"] {
        let session = restored(&recorded(release, "between-turns"));
        assert_eq!(session.settings.instructions, "be brief", "{release}");
        assert_eq!(session.device.dialogue.pending(), 2, "{release}: a timer and an alarm");
        assert_eq!(session.device.dialogue.lights.len(), 1, "{release}");
        assert!(session.items.len() >= 6, "{release}");
    }
    for release in ["84b7693", "form-2"] {
        let session = restored(&recorded(release, "speaking"));
        assert!(
            session.responses.active().is_some(),
            "{release}: the reply is spoken again"
        );
        assert!(session.outbox.lacks_audio(), "{release}: and its audio made again");

        let session = restored(&recorded(release, "hearing"));
        assert!(
            session.input.buffer.is_hearing_speech(),
            "{release}: half an utterance is in the input"
        );
    }
    let today = restored(&recorded("form-2", "between-turns"));
    let zone = today.device.dialogue.zone.as_ref().map(dialogue::Zone::name);
    assert_eq!(zone, Some("America/New_York"));
}

fn session(stack: &Arc<Stack>) -> Session {
    let opening = Opening::of_new(stack, "sess_1");
    let (mut session, _claim) = Session::new(Arc::clone(stack), opening);
    let update = r#"{"type":"session.update","session":{"type":"realtime","output_modalities":["text"],"meridian":{"zone":"Asia/Tokyo"}}}"#;
    session.on_message(update, NOW);
    for text in [
        "set a timer for ten minutes",
        "set an alarm for seven a m",
        "turn on the hall lights",
    ] {
        let item = serde_json::json!({ "type": "conversation.item.create", "item": {
            "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }],
        }});
        session.on_message(&item.to_string(), NOW);
        session.on_message(r#"{"type":"response.create"}"#, NOW);
        while let Some(frame) = session.outbox.pop() {
            session.on_sent(&frame, NOW);
        }
    }
    session.ring(NOW + std::time::Duration::from_secs(600));
    session
}

/// The reader of the release before, as far as it refuses anything: copied from there, and never changed.
#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct Before {
    id: String,
    model: String,
    settings: SettingsBefore,
    ear: EarBefore,
    audio_from: (u64, PlaceBefore),
    next_item: Option<String>,
    items: Vec<ItemBefore>,
    hearing: Vec<HearingBefore>,
    response: Option<ResponseBefore>,
    wanted: Vec<String>,
    dialogue: DialogueBefore,
    turns: u64,
    responses: u64,
    outbox: OutboxBefore,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct EarBefore {
    begin: usize,
    listened: usize,
    end: usize,
    detector: Option<DetectorBefore>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct DetectorBefore {
    endpointer: EndpointerBefore,
    origin: usize,
    started: Option<usize>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct EndpointerBefore {
    config: EndpointBefore,
    now_ms: u64,
    floor_db: f32,
    voiced_frames: u64,
    silent_ms: u64,
    speaking: bool,
    last_stop_ms: u64,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct EndpointBefore {
    threshold: f32,
    prefix_padding_ms: u64,
    silence_duration_ms: u64,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct PlaceBefore {
    origin: usize,
    bytes: usize,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct HearingBefore {
    item: String,
    seconds: f64,
    source: SourceBefore,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
enum SourceBefore {
    Ear { from: usize, samples: usize },
    Message(u64),
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct ResponseBefore {
    number: u64,
    id: String,
    item: String,
    answers: Option<String>,
    modality: ModalityBefore,
    stage: StageBefore,
    samples: usize,
    added: bool,
    turn: TurnBefore,
}

#[derive(Deserialize)]
enum StageBefore {
    Waiting,
    Synthesizing,
    Sending,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct TurnBefore {
    number: u64,
    transcript: String,
    intent: String,
    slots: BTreeMap<String, String>,
    reply: String,
    asr: Option<Duration>,
    nlu: Option<Duration>,
    skill: Option<Duration>,
    tts: Option<Duration>,
    first_audio: Option<Duration>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct OutboxBefore {
    frames: Vec<FrameBefore>,
    numbered: u64,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct FrameBefore {
    #[serde(default)]
    text: String,
    response: Option<u64>,
    ends_response: Option<u64>,
    #[serde(default)]
    audio: Option<AudioBefore>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct AudioBefore {
    number: u64,
    samples: std::ops::Range<usize>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct SettingsBefore {
    instructions: String,
    modality: ModalityBefore,
    turn_detection: Option<TurnDetectionBefore>,
    voice: String,
    speed: f32,
}

#[derive(Deserialize)]
enum ModalityBefore {
    Audio,
    Text,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct TurnDetectionBefore {
    endpoint: BTreeMap<String, f64>,
    create_response: bool,
    interrupt_response: bool,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct ItemBefore {
    id: String,
    role: RoleBefore,
    content: ModalityBefore,
    text: Option<String>,
    answered: bool,
    asr: Option<std::time::Duration>,
}

#[derive(Deserialize)]
enum RoleBefore {
    User,
    Assistant,
    System,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DialogueBefore {
    home: String,
    timers: Vec<TimerBefore>,
    alarms: Vec<AlarmBefore>,
    lights: BTreeMap<String, u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct TimerBefore {
    ends_at: u64,
    duration_s: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what counts is that it can be read")]
struct AlarmBefore {
    rings_at: u64,
    hour: u8,
    minute: u8,
}

#[test]
fn the_release_before_reads_what_this_one_writes() {
    let stack = stack("");
    let session = session(&stack);
    let state = session.state((0, session.input.buffer.offset())).unwrap();
    let before: Before = serde_json::from_slice(&state).unwrap();
    // The device's zone is that of a city which it knows.
    assert_eq!(before.dialogue.home, "tokyo");
    assert_eq!((before.dialogue.timers.len(), before.dialogue.alarms.len()), (1, 1));
    assert_eq!(before.dialogue.lights["hall"], 100);
    // And this one reads all of it.
    let carried = Carried::read(&state).unwrap();
    let memory = carried.memory.map(|memory| memory.at(dialogue::City::Rome));
    assert_eq!(memory.as_ref(), Some(&session.device.dialogue));
    assert_eq!(carried.rung, session.device.rung);
}

/// A user sets an alarm on Monday for Friday, says no word, and the region drains on Wednesday.
/// In the middle of an utterance, and of a reply.
#[test]
fn the_release_before_reads_what_this_one_writes_in_a_turn() {
    for (moment, is_there) in [
        (
            "hearing",
            (|before| before.ear.detector.is_some()) as fn(&Before) -> bool,
        ),
        ("speaking", |before| {
            before.response.is_some() && !before.outbox.frames.is_empty()
        }),
    ] {
        let session = restored(&recorded("form-2", moment));
        let state = session.state((0, session.input.buffer.offset())).unwrap();
        let before: Before = serde_json::from_slice(&state).unwrap_or_else(|error| panic!("{moment}: {error}"));
        assert!(is_there(&before), "{moment}");
    }
    // And while an utterance is recognised.
    let mut session = session(&stack(""));
    let hearing = Hearing {
        item: "item_1".to_owned(),
        seconds: 1.5,
        source: Source::Message(3),
        aside: false,
        ticket: None,
    };
    session.hearing.add(hearing).unwrap();
    let state = session.state((0, session.input.buffer.offset())).unwrap();
    let before: Before = serde_json::from_slice(&state).unwrap();
    assert_eq!(before.hearing.len(), 1);
}

#[test]
fn a_silent_session_with_an_alarm_is_sealed_anew_every_hour() {
    let key: CheckpointKey = serde_json::from_value("ab".repeat(32).into()).unwrap();
    let mut session = session(&stack(""));
    session.begin_checkpoints();
    while session.outbox.pop().is_some() {}
    session.checkpoint(&key, NOW);
    let mut now = NOW;
    for _ in 0..48 {
        now = now + (RESEAL_EVERY - Duration::from_millis(1));
        session.note_report_time(now);
        assert!(!session.owes_checkpoint());
        now = now + Duration::from_millis(1);
        session.note_report_time(now);
        assert!(session.owes_checkpoint());
        let word = session.checkpoint(&key, now);
        let Ok(wire::Message::Checkpoint(checkpoint)) = wire::Message::parse(&word) else {
            panic!("a stack says a checkpoint")
        };
        assert_eq!(wire::sealed_at(checkpoint.state), Some(now));
    }
    session.device.dialogue.alarms.clear();
    session.device.dialogue.timers.clear();
    session.note_report_time(now + RESEAL_EVERY);
    assert!(!session.owes_checkpoint(), "one without alarms is worth no effort");
}

#[test]
fn a_fleet_that_has_moved_on_writes_less() {
    let (plain, deflated) = (stack(""), stack("checkpoint_version = 2"));
    let state_at = |stack| {
        let session = session(stack);
        session.state((0, session.input.buffer.offset())).unwrap()
    };
    let (plain, deflated) = (state_at(&plain), state_at(&deflated));
    assert!(
        2 * deflated.len() < plain.len(),
        "{} of {}",
        deflated.len(),
        plain.len()
    );
    assert!(serde_json::from_slice::<Value>(&deflated).is_err());
    assert!(Carried::read(&deflated).is_ok());
}

#[test]
fn what_another_release_adds_or_leaves_out_ends_no_session() {
    let stack = stack("");
    let session = session(&stack);
    let state = session.state((0, session.input.buffer.offset())).unwrap();
    let whole: Value = serde_json::from_slice(&state).unwrap();
    let read = |value: &Value| Carried::read(&serde_json::to_vec(value).unwrap());
    let needed = ["id", "ear", "audio_from", "outbox"];
    for (field, _) in whole.as_object().unwrap() {
        let mut less = whole.clone();
        less.as_object_mut().unwrap().remove(field);
        assert_eq!(read(&less).is_ok(), !needed.contains(&field.as_str()), "{field}");
    }
    let mut more = whole;
    more["mood"] = "good".into();
    more["settings"]["tone"] = "warm".into();
    more["memory"]["timers"][0]["tune"] = "bell".into();
    more["items"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({ "kind": "picture" }));
    more["items"][0]["read_at"] = 5.into();
    let read_more = read(&more).unwrap();
    assert_eq!(read_more.items.len(), session.items.len().min(ITEMS_CARRIED[0]));
    // A city that was added since.
    more["memory"]["home"] = "atlantis".into();
    more["memory"]["question"] =
        serde_json::json!({ "asked_at": 5, "about": { "kind": "alarm_time", "day": "market_day" } });
    let rome = self::stack("home_city = \"rome\"");
    let memory = Session::remembered_in(&rome, &serde_json::to_vec(&more).unwrap()).unwrap();
    assert_eq!(memory.dialogue.home, dialogue::City::Rome);
    assert_eq!(memory.dialogue.pending(), 2);
    more["form_needed"] = 99.into();
    assert!(matches!(read(&more), Err(FormError::Newer(_))));
}
