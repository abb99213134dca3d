//! A session goes on in another stack, from any point of a turn.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use speech::{SAMPLE_RATE, pcm, resample, scripted::sound_of};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, Utf8Bytes, client::IntoClientRequest as _, protocol::CloseFrame},
};
use wire::{Checkpoint, HEADER, LOAD_HEADER, Load, RESUME_HEADER, Resume, VERSION};

use crate::{
    realtime::{appended, appended_by_telephone, spoken_by_telephone, spoken_in, types},
    region::{HANGS_AFTER, Region, engines, held_recognizer, held_synthesizer},
};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// An edge and its device in one: it keeps the checkpoints and messages of an edge, and gets the events of a device.
struct Edge {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// All messages of the device.
    said: Vec<String>,
    /// Every event that reached the device.
    events: Vec<Value>,
    checkpoint: Option<Kept>,
    delivered: u64,
}

/// The last checkpoint.
#[derive(Clone, Default)]
struct Kept {
    keep_from: u64,
    consumed: u64,
    busy: bool,
    state: Vec<u8>,
}

async fn connect(region: &Region, resume: bool) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let url = format!("ws://{}/v1/realtime?meridian=1", region.http);
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert(HEADER, VERSION.parse().unwrap());
    if resume {
        request.headers_mut().insert(RESUME_HEADER, "1".parse().unwrap());
    }
    let (socket, answer) = connect_async(request).await.unwrap();
    assert_eq!(answer.headers()[HEADER], VERSION);
    socket
}

impl Edge {
    async fn call(region: &Region) -> Self {
        Self {
            socket: connect(region, false).await,
            said: Vec::new(),
            events: Vec::new(),
            checkpoint: None,
            delivered: 0,
        }
    }

    async fn say(&mut self, event: &Value) {
        self.said.push(event.to_string());
        let last = self.said.last().unwrap().clone();
        self.socket.send(Message::text(last)).await.unwrap();
    }

    async fn message(&mut self) -> Message {
        timeout(HANGS_AFTER, self.socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Takes one message of the stack. Returns whether it was an event.
    async fn take(&mut self) -> bool {
        match self.message().await {
            Message::Text(text) => {
                assert!(self.checkpoint.is_some(), "a checkpoint comes before the first event");
                self.events.push(serde_json::from_str(&text).unwrap());
                self.delivered += 1;
                true
            }
            Message::Binary(word) => {
                let Ok(wire::Message::Checkpoint(Checkpoint {
                    keep_from,
                    consumed,
                    busy,
                    state,
                })) = wire::Message::parse(&word)
                else {
                    panic!("{word:?}");
                };
                self.delivered = 0;
                let state = state.to_vec();
                self.checkpoint = Some(Kept {
                    keep_from,
                    consumed,
                    busy,
                    state,
                });
                false
            }
            Message::Ping(_) | Message::Pong(_) => false,
            other => panic!("{other:?}"),
        }
    }

    async fn until(&mut self, kind: &str) {
        while self.events.last().is_none_or(|event| event["type"] != kind) {
            self.take().await;
        }
    }

    async fn until_idle(&mut self) {
        while self.checkpoint.as_ref().is_none_or(|kept| kept.busy) {
            self.take().await;
        }
    }

    /// Moves the session to another stack, without a Close frame for the old one.
    async fn move_to(&mut self, region: &Region) {
        let kept = self.checkpoint.clone().unwrap();
        let resume = Resume {
            first: kept.keep_from,
            consumed: kept.consumed,
            delivered: self.delivered,
            is_broken: false,
            state: &kept.state,
        };
        self.resume(region, resume).await;
        for message in &self.said[usize::try_from(kept.keep_from).unwrap()..] {
            self.socket.send(Message::text(message.as_str())).await.unwrap();
        }
    }

    async fn resume(&mut self, region: &Region, resume: Resume<'_>) {
        self.socket = connect(region, true).await;
        let word = wire::Message::Resume(resume).to_bytes();
        self.socket.send(Message::binary(word)).await.unwrap();
    }

    /// Takes this many messages of the stack, or fewer if the turn ends before. Returns whether the turn went on.
    async fn take_up_to(&mut self, messages: usize) -> bool {
        for _ in 0..messages {
            if self.events.last().is_some_and(|event| event["type"] == "meridian.turn") {
                return false;
            }
            self.take().await;
        }
        true
    }
}

async fn region() -> Region {
    Region::start_keyed(engines(), KEY).await
}

/// An utterance, with silence before and after, in pieces a device would send.
fn utterance(text: &str) -> Vec<Value> {
    let silence = |seconds: f32| vec![0.0; (SAMPLE_RATE as f32 * seconds) as usize];
    appended(&[silence(0.5), sound_of(text), silence(1.0)].concat())
}

/// An event without its random ids and measured times. The rest must be the same, however often the session moved.
fn told(events: &[Value]) -> Vec<Value> {
    let mut names: Vec<String> = Vec::new();
    events.iter().map(|event| normal(event, &mut names)).collect()
}

fn normal(value: &Value, names: &mut Vec<String>) -> Value {
    match value {
        Value::String(text)
            if ["item_", "resp_", "sess_", "conv_"]
                .iter()
                .any(|kind| text.starts_with(kind)) =>
        {
            let at = names.iter().position(|known| known == text).unwrap_or_else(|| {
                names.push(text.clone());
                names.len() - 1
            });
            json!(format!("{}{at}", &text[..5]))
        }
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(key, _)| *key != "timings_ms");
            fields.map(|(key, value)| (key.clone(), normal(value, names))).collect()
        }
        Value::Array(items) => items.iter().map(|item| normal(item, names)).collect(),
        other => other.clone(),
    }
}

/// One turn, in which the session moves after every `every` messages of the stack.
async fn turn_with_moves(regions: &[Region], said: &[Value], every: usize) -> (Vec<Value>, usize) {
    let mut edge = Edge::call(&regions[0]).await;
    for event in said {
        edge.say(event).await;
    }
    let mut moves = 0;
    while edge.take_up_to(every).await {
        moves += 1;
        edge.move_to(&regions[moves % regions.len()]).await;
    }
    edge.until("meridian.turn").await;
    edge.until_idle().await;
    (edge.events, moves)
}

#[tokio::test]
async fn a_session_moves_at_every_moment_of_a_turn_and_the_device_sees_one_conversation() {
    let regions = [region().await, region().await];
    let said = utterance("turn on the office lights");
    let (undisturbed, _) = turn_with_moves(&regions, &said, usize::MAX).await;
    assert_eq!(spoken_in(&undisturbed).unwrap(), "the office lights are on");
    let messages = undisturbed.len();
    // Each run moves once, one message later than the run before. The last run moves all the time.
    for at in 1..messages {
        let mut edge = Edge::call(&regions[0]).await;
        for event in &said {
            edge.say(event).await;
        }
        if edge.take_up_to(at).await {
            edge.move_to(&regions[1]).await;
        }
        edge.until("meridian.turn").await;
        assert_eq!(told(&edge.events), told(&undisturbed), "moved after {at} messages");
    }
    // A stack that takes over first sends a checkpoint, so with two messages each there is one event between moves.
    let (restless, moves) = turn_with_moves(&regions, &said, 2).await;
    assert_eq!(told(&restless), told(&undisturbed));
    assert!(moves >= 10, "{moves}");
}

#[tokio::test]
async fn a_telephone_moves_like_every_device() {
    let regions = [region().await, region().await];
    let quiet = |seconds: f32| vec![0.0; (SAMPLE_RATE as f32 * seconds) as usize];
    let telephone = json!({ "format": { "type": "audio/pcmu" } });
    let settings = json!({ "audio": { "input": telephone, "output": telephone } });
    let mut said = vec![json!({ "type": "session.update", "session": settings })];
    said.extend(appended_by_telephone(
        &[quiet(0.5), sound_of("stop"), quiet(1.0)].concat(),
    ));
    let (undisturbed, _) = turn_with_moves(&regions, &said, usize::MAX).await;
    assert_eq!(spoken_by_telephone(&undisturbed).as_deref(), Some("okay"));
    for at in 1..said.len() {
        let mut edge = Edge::call(&regions[0]).await;
        edge.until("session.created").await;
        for event in &said[..at] {
            edge.say(event).await;
        }
        edge.move_to(&regions[1]).await;
        for event in &said[at..] {
            edge.say(event).await;
        }
        edge.until("meridian.turn").await;
        assert_eq!(told(&edge.events), told(&undisturbed), "moved after {at} messages");
    }
    let (restless, moves) = turn_with_moves(&regions, &said, 2).await;
    assert_eq!(told(&restless), told(&undisturbed));
    assert!(moves >= 5, "{moves}");
}

#[tokio::test]
async fn a_session_moves_between_any_two_messages_of_the_device() {
    let regions = [region().await, region().await];
    let said = utterance("stop");
    let (undisturbed, _) = turn_with_moves(&regions, &said, usize::MAX).await;
    for at in 0..said.len() {
        let mut edge = Edge::call(&regions[0]).await;
        edge.until("session.created").await;
        for event in &said[..at] {
            edge.say(event).await;
        }
        // It makes no difference whether the first stack got to them.
        edge.move_to(&regions[1]).await;
        for event in &said[at..] {
            edge.say(event).await;
        }
        edge.until("meridian.turn").await;
        assert_eq!(told(&edge.events), told(&undisturbed), "moved after {at} messages");
    }
}

#[tokio::test]
async fn an_utterance_half_heard_is_heard_whole_elsewhere() {
    let regions = [region().await, region().await];
    let said = utterance("set a timer for ten minutes");
    let mut edge = Edge::call(&regions[0]).await;
    let half = said.len() / 2;
    for event in &said[..half] {
        edge.say(event).await;
    }
    edge.until("input_audio_buffer.speech_started").await;
    // Up to the checkpoint with all of it: afterwards only the audio must be sent again.
    while edge.checkpoint.as_ref().unwrap().consumed < half as u64 {
        edge.take().await;
    }
    let kept = edge.checkpoint.clone().unwrap();
    assert!(kept.busy && kept.keep_from < kept.consumed, "its audio is needed");
    edge.move_to(&regions[1]).await;
    for event in &said[half..] {
        edge.say(event).await;
    }
    edge.until("meridian.turn").await;
    assert_eq!(edge.events.last().unwrap()["transcript"], "set a timer for ten minutes");
    edge.until_idle().await;
    let kept = edge.checkpoint.clone().unwrap();
    assert!(
        kept.keep_from + 3 >= kept.consumed,
        "what is over is forgotten, but for a little padding"
    );
    // The second stack knows the agreements of the first.
    for event in utterance("cancel the timer") {
        edge.say(&event).await;
    }
    edge.events.clear();
    edge.until("meridian.turn").await;
    assert_eq!(spoken_in(&edge.events).unwrap(), "timer cancelled");
}

#[tokio::test]
async fn manual_turns_move_while_they_are_recognised_and_while_they_are_spoken() {
    let second = region().await;
    for (engines, gate) in [held_recognizer(), held_synthesizer()] {
        let first = Region::start_keyed(engines, KEY).await;
        let mut edge = Edge::call(&first).await;
        let manual = json!({ "audio": { "input": { "turn_detection": null } } });
        edge.say(&json!({ "type": "session.update", "session": manual })).await;
        for event in utterance("help") {
            edge.say(&event).await;
        }
        edge.say(&json!({ "type": "input_audio_buffer.commit" })).await;
        edge.say(&json!({ "type": "response.create" })).await;
        edge.until("response.created").await;
        // The first region's engine never answers.
        edge.move_to(&second).await;
        edge.until("meridian.turn").await;
        assert!(spoken_in(&edge.events).unwrap().starts_with("you can ask"));
        let kinds = types(&edge.events);
        assert_eq!(kinds.iter().filter(|kind| **kind == "response.created").count(), 1);
        drop(gate);
    }
}

#[tokio::test]
async fn sound_in_an_item_is_heard_again() {
    let (engines, gate) = held_recognizer();
    let first = Region::start_keyed(engines, KEY).await;
    let second = region().await;
    let mut edge = Edge::call(&first).await;
    let bytes = pcm::to_s16le(&resample::resample(&sound_of("stop"), SAMPLE_RATE, 24_000).unwrap());
    let audio = BASE64_STANDARD.encode(bytes);
    let content = json!([{ "type": "input_audio", "audio": audio }]);
    edge.say(&json!({ "type": "conversation.item.create", "item": { "role": "user", "content": content } }))
        .await;
    edge.say(&json!({ "type": "response.create" })).await;
    edge.until("response.created").await;
    edge.move_to(&second).await;
    edge.until("meridian.turn").await;
    assert_eq!(edge.events.last().unwrap()["transcript"], "stop");
    drop(gate);
}

#[tokio::test]
async fn when_what_was_said_is_lost_the_device_is_asked_to_repeat_it() {
    let regions = [region().await, region().await];
    let mut edge = Edge::call(&regions[0]).await;
    let said = utterance("set a timer for ten minutes");
    for event in &said[..said.len() / 2] {
        edge.say(event).await;
    }
    edge.until("input_audio_buffer.speech_started").await;
    let kept = edge.checkpoint.clone().unwrap();
    let next = edge.said.len() as u64;
    let resume = Resume {
        first: next,
        consumed: kept.consumed,
        delivered: edge.delivered,
        is_broken: true,
        state: &kept.state,
    };
    edge.resume(&regions[1], resume).await;
    edge.until("input_audio_buffer.cleared").await;
    for event in utterance("stop") {
        edge.say(&event).await;
    }
    edge.until("meridian.turn").await;
    assert_eq!(edge.events.last().unwrap()["transcript"], "stop");
}

#[tokio::test]
async fn a_state_that_nobody_of_ours_sealed_is_refused_with_a_reason() {
    let ours = region().await;
    let theirs = Region::start_keyed(engines(), &KEY.replace("00", "ff")).await;
    let mut edge = Edge::call(&ours).await;
    edge.until("session.created").await;
    let kept = edge.checkpoint.clone().unwrap();
    let resume = |delivered, state| Resume {
        first: 0,
        consumed: 0,
        delivered,
        is_broken: false,
        state,
    };
    for (region, resume) in [
        (&theirs, resume(0, &kept.state[..])),
        (&ours, resume(0, &kept.state[1..])),
        (&ours, resume(0, &[])),
        // More events than the checkpoint holds.
        (&ours, resume(9, &kept.state)),
    ] {
        edge.resume(region, resume).await;
        let Message::Close(Some(frame)) = edge.message().await else {
            panic!("the session is refused");
        };
        assert_eq!(u16::from(frame.code), 4001);
        assert_eq!(frame.reason.as_str(), "the session cannot go on here; connect again");
    }
    // The stack refuses messages of a device in place of the edge's too.
    edge.socket = connect(&ours, true).await;
    edge.socket.send(Message::text("{}")).await.unwrap();
    assert!(matches!(edge.message().await, Message::Close(_)));
}

/// As long as instructions may be.
const INSTRUCTIONS_CHARS_MAX: usize = 16_384;

#[tokio::test]
async fn a_session_with_the_longest_instructions_travels() {
    let regions = [region().await, region().await];
    let mut edge = Edge::call(&regions[0]).await;
    // Text, not one letter over and over.
    let words = [
        "turn", "the", "lamp", "never", "guest", "kitchen", "please", "answer", "in", "brief",
    ];
    let mut instructions = String::new();
    for number in 0_usize.. {
        instructions.push_str(&format!(
            "{} {} {number}. ",
            words[number * 7 % 10],
            words[number * number % 10]
        ));
        if instructions.len() > INSTRUCTIONS_CHARS_MAX {
            instructions.truncate(INSTRUCTIONS_CHARS_MAX);
            break;
        }
    }
    edge.say(&json!({ "type": "session.update", "session": { "type": "realtime", "instructions": instructions } }))
        .await;
    edge.until("session.updated").await;
    edge.until_idle().await;
    assert!(!edge.checkpoint.clone().unwrap().state.is_empty());
    edge.move_to(&regions[1]).await;
    edge.say(&json!({ "type": "session.update", "session": { "type": "realtime" } }))
        .await;
    edge.events.clear();
    edge.until("session.updated").await;
    assert_eq!(
        edge.events.last().unwrap()["session"]["instructions"],
        instructions.as_str()
    );
}

#[tokio::test]
async fn a_session_too_large_to_travel_says_so() {
    let region = region().await;
    let mut edge = Edge::call(&region).await;
    edge.until("session.created").await;
    assert!(!edge.checkpoint.clone().unwrap().state.is_empty());
    // No compression makes this smaller: three bytes a character, drawn at random.
    let mut draw = 1_u64;
    let noise: String = (0..INSTRUCTIONS_CHARS_MAX)
        .map(|_| {
            draw = draw
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            char::from_u32(0x4e00 + (draw >> 33) as u32 % 0x5000).unwrap()
        })
        .collect();
    edge.say(&json!({ "type": "session.update", "session": { "type": "realtime", "instructions": noise } }))
        .await;
    edge.until("session.updated").await;
    assert!(edge.checkpoint.clone().unwrap().state.is_empty());
}

#[tokio::test]
async fn a_stack_without_a_key_does_not_speak_of_it() {
    let region = Region::start().await;
    let mut request = format!("ws://{}/v1/realtime", region.http)
        .into_client_request()
        .unwrap();
    request.headers_mut().insert(HEADER, VERSION.parse().unwrap());
    let (mut socket, answer) = connect_async(request).await.unwrap();
    assert!(!answer.headers().contains_key(HEADER));
    let first = timeout(HANGS_AFTER, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(first.is_text());
}

#[tokio::test]
async fn an_edge_that_asks_is_told_how_loaded_the_stack_is() {
    let region = region().await;
    let url = format!("ws://{}/v1/realtime?meridian=1", region.http);
    let mut request = url.into_client_request().unwrap();
    for name in [HEADER, LOAD_HEADER] {
        request.headers_mut().insert(name, VERSION.parse().unwrap());
    }
    let (mut socket, answer) = connect_async(request).await.unwrap();
    let load: Load = answer.headers()[LOAD_HEADER].to_str().unwrap().parse().unwrap();
    let one_session = Load {
        sessions: 1,
        sessions_max: 1024,
        waiting: 0,
        waiting_max: 32,
        ..Load::default()
    };
    // Sessions report nothing about uploads.
    let with_uploads = Load {
        uploads_max: 32,
        ..one_session
    };
    assert_eq!(load, with_uploads, "with itself");

    for event in utterance("turn on the office lights") {
        socket.send(Message::text(event.to_string())).await.unwrap();
    }
    // The load comes after the turn, and not during it.
    let mut is_over = false;
    loop {
        match timeout(HANGS_AFTER, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => is_over |= text.contains("meridian.turn"),
            Message::Binary(word) => match wire::Message::parse(&word).unwrap() {
                wire::Message::Load(load) => break assert_eq!((load, is_over), (one_session, true)),
                wire::Message::Checkpoint(_) => {}
                wire::Message::Resume(_) => panic!("only edges say it"),
                wire::Message::Turn(_) | wire::Message::Trouble(_) => panic!("nobody asked for it"),
            },
            _ => {}
        }
    }
}

/// The edge read nothing for a while, so the stack learns from a failed write that the connection is lost. The Close frame that says
/// "moved" still waits in its socket. A stack that misses it keeps the session, and rings its alarms later beside the new stack.
#[tokio::test]
async fn a_session_that_moved_is_forgotten_also_when_the_edge_took_no_more_events() {
    const SESSIONS: usize = 8;
    let region = region().await;
    let item = json!({ "type": "conversation.item.create", "item": {
        "id": "long", "type": "message", "role": "user",
        "content": [{ "type": "input_text", "text": "word ".repeat(800) }],
    }});
    let retrieve = json!({ "type": "conversation.item.retrieve", "item_id": "long" }).to_string();
    for _ in 0..SESSIONS {
        let mut edge = Edge::call(&region).await;
        edge.say(&item).await;
        edge.until("conversation.item.done").await;
        for _ in 0..60 {
            edge.socket.feed(Message::text(retrieve.clone())).await.unwrap();
        }
        edge.socket.flush().await.unwrap();
        let MaybeTlsStream::Plain(stream) = edge.socket.get_ref() else {
            unreachable!("no TLS here")
        };
        stream.readable().await.unwrap();
        let moved = CloseFrame {
            code: wire::MOVED.into(),
            reason: Utf8Bytes::default(),
        };
        edge.socket.send(Message::Close(Some(moved))).await.unwrap();
        // Unread bytes in the socket: the kernel resets the connection.
        drop(edge);
    }
    region
        .until_metric(&format!(
            "meridian_stack_sessions_closed_total{{reason=\"moved\"}} {SESSIONS}"
        ))
        .await;
}
