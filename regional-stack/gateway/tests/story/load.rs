//! More work than a stack can do at once: some callers wait, and some are refused.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use gateway::{
    Engines,
    voice::{SynthesizeRequest, voice_client::VoiceClient},
};
use parking_lot::Mutex;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use speech::{
    Recognizer, SAMPLE_RATE, SpeechError, Transcript, pcm,
    resample::resample,
    scripted::{ScriptedRecognizer, sound_of, text_in},
    wav,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{
        Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};
use wire::{COPY_HEADER, PROBE_AGENT};

use crate::region::{HANGS_AFTER, Region, engines, held_recognizer, held_synthesizer};

fn recording(text: &str) -> Vec<u8> {
    wav::encode(&sound_of(text), SAMPLE_RATE)
}

fn post(region: &Region, path: &str) -> reqwest::RequestBuilder {
    Client::new().post(region.url(path))
}

fn upload(region: &Region, file: Vec<u8>) -> reqwest::RequestBuilder {
    post(region, "/api/v1/voice/transcribe").body(file)
}

/// A turn of a session that commits itself. Returns the transcript.
async fn spoken_turn(region: &Region, text: &str) -> String {
    let (mut socket, _) = connect_async(format!("ws://{}/v1/realtime", region.http))
        .await
        .unwrap();
    let manual = json!({ "type": "session.update", "session": {
        "type": "realtime", "audio": { "input": { "turn_detection": null } } } });
    let mut events = vec![manual];
    events.extend(crate::realtime::appended(&sound_of(text)));
    events.push(json!({ "type": "input_audio_buffer.commit" }));
    events.push(json!({ "type": "response.create" }));
    for event in events {
        socket.send(Message::text(event.to_string())).await.unwrap();
    }
    let (mut heard, mut audio) = (String::new(), 0);
    loop {
        let Message::Text(text) = timeout(HANGS_AFTER, socket.next()).await.unwrap().unwrap().unwrap() else {
            continue;
        };
        let event: Value = serde_json::from_str(&text).unwrap();
        match event["type"].as_str().unwrap() {
            "conversation.item.input_audio_transcription.completed" => {
                event["transcript"].as_str().unwrap().clone_into(&mut heard);
            }
            "response.output_audio.delta" => {
                audio += BASE64_STANDARD.decode(event["delta"].as_str().unwrap()).unwrap().len();
            }
            "response.done" => {
                assert_eq!(event["response"]["status"], "completed", "{event}");
                assert!(audio > 0);
                return heard;
            }
            _ => {}
        }
    }
}

/// A recognizer that works on a long recording until its gate opens.
struct SlowWithFiles {
    hold: Mutex<mpsc::Receiver<()>>,
    recognizer: ScriptedRecognizer,
}

impl Recognizer for SlowWithFiles {
    fn recognize(&self, samples: &[f32]) -> Result<Transcript, SpeechError> {
        if samples.len() > 4 * SAMPLE_RATE as usize {
            // An error means that the gate was dropped: all jobs may pass.
            let _ = self.hold.lock().recv();
        }
        self.recognizer.recognize(samples)
    }
}

#[tokio::test]
async fn a_caller_is_answered_while_thirty_uploads_wait_and_one_is_at_work() {
    let (gate, hold) = mpsc::channel();
    let slow = SlowWithFiles {
        hold: Mutex::new(hold),
        recognizer: ScriptedRecognizer::always("a long story"),
    };
    let slow = Engines {
        recognizer: Arc::new(slow),
        ..engines()
    };
    let region = Region::start_with(slow, |_| {}).await;
    let file = wav::encode(&vec![0.1; 5 * SAMPLE_RATE as usize], SAMPLE_RATE);
    let mut uploads = JoinSet::new();
    for _ in 0..30 {
        uploads.spawn(upload(&region, file.clone()).send());
    }
    // One is at work, the others wait.
    region
        .until_metric("meridian_stack_queue_depth{engine=\"asr\"} 29")
        .await;
    assert_eq!(
        spoken_turn(&region, "turn on the kitchen lights").await,
        "turn on the kitchen lights"
    );
    region
        .until_metric("meridian_stack_queue_depth{engine=\"asr\"} 29")
        .await;
    drop(gate);
    while let Some(answer) = uploads.join_next().await {
        assert_eq!(answer.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn every_request_is_served_as_what_it_is() {
    let region = Region::start().await;
    // The stack's own test is the first of the live ones.
    spoken_turn(&region, "what time is it").await;
    upload(&region, recording("stop")).send().await.unwrap();
    upload(&region, recording("stop"))
        .header(COPY_HEADER, "1")
        .send()
        .await
        .unwrap();
    upload(&region, recording("stop"))
        .header("user-agent", PROBE_AGENT)
        .send()
        .await
        .unwrap();
    // A device behind an edge may use any name.
    let device = upload(&region, recording("stop")).header("user-agent", PROBE_AGENT);
    device.header("meridian-edge", "edge-dub").send().await.unwrap();
    for (class, jobs) in [("live", 2), ("probe", 1), ("hedge", 1), ("bulk", 2)] {
        let line = format!(
            "meridian_stack_engine_job_seconds_count{{engine=\"asr\",class=\"{class}\",part=\"working\"}} {jobs}"
        );
        region.until_metric(&line).await;
    }
}

#[tokio::test]
async fn only_the_first_sentence_of_a_long_text_comes_before_others() {
    let region = Region::start().await;
    let mut client = VoiceClient::connect(region.url("")).await.unwrap();
    let text = "It is noon. The light is on. Good day.".to_owned();
    let request = SynthesizeRequest { text, speed: None };
    let mut spoken = client.synthesize(request).await.unwrap().into_inner();
    let mut sentences = 0;
    while spoken.message().await.unwrap().is_some() {
        sentences += 1;
    }
    assert_eq!(sentences, 3);
    // The stack's own test is the first of the live ones.
    for (class, jobs) in [("live", 2), ("bulk", 2)] {
        let line = format!(
            "meridian_stack_engine_job_seconds_count{{engine=\"tts\",class=\"{class}\",part=\"working\"}} {jobs}"
        );
        region.until_metric(&line).await;
    }
}

/// The output of a function may take a minute to speak. Another caller does not wait for all of it.
#[tokio::test]
async fn a_long_reply_of_a_session_is_spoken_in_pieces() {
    let region = Region::start().await;
    let mut caller = Caller::call(&region).await;
    let words = "one two three four five six seven ";
    for item in [
        json!({ "type": "function_call", "call_id": "call_1", "name": "read", "arguments": "{}" }),
        json!({ "type": "function_call_output", "call_id": "call_1", "output": words.repeat(28) }),
    ] {
        caller
            .tell(json!({ "type": "conversation.item.create", "item": item }))
            .await;
    }
    caller.tell(json!({ "type": "response.create" })).await;
    let events = caller.until("response.done", |_| true).await;
    let audio = events
        .iter()
        .filter(|event| event["type"] == "response.output_audio.delta");
    let audio = audio.flat_map(|event| BASE64_STANDARD.decode(event["delta"].as_str().unwrap()).unwrap());
    let audio = resample(&pcm::from_s16le(&audio.collect::<Vec<_>>()), 24_000, SAMPLE_RATE).unwrap();
    let (mut rest, mut pieces) = (&audio[..], Vec::new());
    while let Some(text) = text_in(rest) {
        rest = &rest[sound_of(&text).len().min(rest.len())..];
        pieces.push(text);
    }
    assert_eq!(pieces.join(" "), words.repeat(28).trim());
    assert!(pieces.iter().all(|piece| piece.len() <= 160), "{pieces:?}");
    // And the stack's own test.
    let line = format!(
        "meridian_stack_engine_job_seconds_count{{engine=\"tts\",class=\"live\",part=\"working\"}} {}",
        1 + pieces.len()
    );
    region.until_metric(&line).await;
}

/// Clients such as Python's send all of a request before they read a byte. A reset would lose an early answer, and they would see a
/// broken connection in place of the 429.
#[tokio::test]
async fn clients_that_send_everything_first_see_the_refusal() {
    let region = Arc::new(Region::start_with(engines(), |limits| limits.uploads_max = 1).await);
    let head = |length: usize| {
        format!("POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\n\r\n")
    };
    // This upload holds the only place, and does not finish.
    let mut holder = TcpStream::connect(region.http).await.unwrap();
    holder.write_all(head(1_000).as_bytes()).await.unwrap();
    region_is_full(&region).await;

    let body = vec![7; 3 << 20];
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        let (address, request) = (region.http, [head(body.len()).as_bytes(), &body].concat());
        clients.spawn(async move {
            let mut socket = TcpStream::connect(address).await?;
            socket.write_all(&request).await?;
            let mut answer = vec![0; 4_096];
            let read = socket.read(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..read]).into_owned())
        });
    }
    while let Some(answer) = clients.join_next().await {
        let answer = answer.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
        assert!(answer.contains("retry-after: 1"), "{answer}");
    }

    // A client that asks before it sends gets the answer at once.
    let mut polite = TcpStream::connect(region.http).await.unwrap();
    let asks = head(10 << 20).replace("Host: v", "Host: v\r\nExpect: 100-continue");
    polite.write_all(asks.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4_096];
    let read = timeout(HANGS_AFTER, polite.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 429"));

    // The stack does not read a body without an end for ever.
    let mut endless = TcpStream::connect(region.http).await.unwrap();
    endless.write_all(head(usize::MAX >> 1).as_bytes()).await.unwrap();
    let piece = vec![7; 1 << 20];
    let mut sent = 0;
    while endless.write_all(&piece).await.is_ok() && sent < 512 {
        sent += 1;
    }
    // More than the buffers of both sockets hold.
    assert!(sent < 256, "{sent} MiB were read");
    drop(holder);
}

async fn region_is_full(region: &Region) {
    let is_full = async {
        while post(region, "/v1/audio/speech")
            .body("{}")
            .send()
            .await
            .unwrap()
            .status()
            != 429
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANGS_AFTER, is_full).await.unwrap();
}

#[tokio::test]
async fn a_text_that_is_still_spoken_holds_its_place() {
    let (engines, gate) = held_synthesizer();
    let region = Region::start_with(engines, |limits| limits.uploads_max = 1).await;
    let body = json!({ "input": "It is noon. The light is on. Good day.", "response_format": "pcm" });
    gate.send(()).unwrap();
    let mut streamed = post(&region, "/v1/audio/speech").json(&body).send().await.unwrap();
    assert_eq!(streamed.status(), StatusCode::OK);
    assert!(streamed.chunk().await.unwrap().is_some());
    // The caller has the first sentence, and the engine makes the second.
    let refused = upload(&region, recording("stop")).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    drop(gate);
    while streamed.chunk().await.unwrap().is_some() {}
    let is_served = async {
        while upload(&region, recording("stop")).send().await.unwrap().status() != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANGS_AFTER, is_served).await.unwrap();
}

/// The engine hears a minute of speech in pieces. If the queue is full in between, the next piece waits.
#[tokio::test]
async fn what_was_begun_is_finished_whatever_waits() {
    let (engines, gate) = held_recognizer();
    let region = Arc::new(Region::start_with(engines, |limits| limits.queue_max = 1).await);
    let sentence = [sound_of("turn on the light"), vec![0.0; 12 * SAMPLE_RATE as usize]].concat();
    let long = wav::encode(&sentence.repeat(4), SAMPLE_RATE);
    let begun = tokio::spawn(upload(&region, long).send());
    region
        .until_metric("meridian_stack_engine_job_seconds_count{engine=\"asr\",class=\"bulk\",part=\"waiting\"} 1")
        .await;
    // These take the only place in the queue, again and again.
    let mut others = JoinSet::new();
    for _ in 0..4 {
        let region = Arc::clone(&region);
        others.spawn(async move {
            let mut refused = 0;
            loop {
                match upload(&region, recording("stop")).send().await.unwrap().status() {
                    StatusCode::OK => return refused,
                    status => assert_eq!(status, 429),
                }
                refused += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    region
        .until_metric("meridian_stack_queue_depth{engine=\"asr\"} 1")
        .await;
    for _ in 0..8 {
        gate.send(()).unwrap();
    }
    let answer = timeout(HANGS_AFTER, begun).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let heard: Value = answer.json().await.unwrap();
    assert_eq!(heard["text"], ["turn on the light"; 4].join(" "));
    drop(gate);
    while let Some(other) = others.join_next().await {
        other.unwrap();
    }
}

#[tokio::test]
async fn an_upload_that_only_waited_for_others_blames_no_engine() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |limits| {
        limits.engine_max.0 = Duration::from_secs(1);
        limits.bulk_workers = 1;
    })
    .await;
    let send = || tokio::spawn(upload(&region, recording("stop")).send());
    let first = send();
    region
        .until_metric("meridian_stack_engine_job_seconds_count{engine=\"asr\",class=\"bulk\",part=\"waiting\"} 1")
        .await;
    let others = [send(), send()];
    region
        .until_metric("meridian_stack_queue_depth{engine=\"asr\"} 2")
        .await;
    gate.send(()).unwrap();
    assert_eq!(
        timeout(HANGS_AFTER, first).await.unwrap().unwrap().unwrap().status(),
        200
    );
    // The engine hangs with one of these, and the other waits behind it.
    let mut told = Vec::new();
    for other in others {
        let answer = timeout(HANGS_AFTER, other).await.unwrap().unwrap().unwrap();
        let status = answer.status().as_u16();
        assert!(answer.headers().contains_key("retry-after"), "{status}");
        let body: Value = answer.json().await.unwrap();
        told.push((status, body["error"]["code"].as_str().unwrap().to_owned()));
    }
    told.sort();
    assert_eq!(
        told,
        [
            (429, "rate_limit_exceeded".to_owned()),
            (503, "engine_timeout".to_owned())
        ]
    );
    drop(gate);
}

/// A call as a device makes it, with a detector that finds the turns.
struct Caller(tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>);

impl Caller {
    async fn call(region: &Region) -> Self {
        Self(
            connect_async(format!("ws://{}/v1/realtime", region.http))
                .await
                .unwrap()
                .0,
        )
    }

    async fn tell(&mut self, event: Value) {
        self.0.send(Message::text(event.to_string())).await.unwrap();
    }

    async fn hear(&mut self, samples: &[f32]) {
        for event in crate::realtime::appended(samples) {
            self.0.send(Message::text(event.to_string())).await.unwrap();
        }
    }

    /// All events up to the first of this type that fulfils the condition.
    async fn until(&mut self, kind: &str, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let Message::Text(text) = timeout(HANGS_AFTER, self.0.next()).await.unwrap().unwrap().unwrap() else {
                continue;
            };
            let event: Value = serde_json::from_str(&text).unwrap();
            events.push(event);
            let last = &events[events.len() - 1];
            if last["type"] == kind && is_it(last) {
                return events;
            }
        }
    }
}

fn silence(ms: usize) -> Vec<f32> {
    vec![0.0; ms * SAMPLE_RATE as usize / 1_000]
}

/// White noise, which carries no words.
fn noise(ms: usize) -> Vec<f32> {
    let mut seed = 5u32;
    let step = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((seed >> 8) as f32 / 8_388_608.0 - 1.0) * 0.3
    };
    std::iter::repeat_with(step)
        .take(ms * SAMPLE_RATE as usize / 1_000)
        .collect()
}

#[tokio::test]
async fn a_click_cancels_nothing_and_is_not_answered() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut caller = Caller::call(&region).await;
    caller
        .hear(&[silence(500), sound_of("turn on the kitchen lights"), silence(700)].concat())
        .await;
    caller.until("response.created", |_| true).await;
    caller.hear(&[noise(60), silence(1_500)].concat()).await;
    drop(gate);
    let events = caller.until("response.done", |_| true).await;
    assert!(
        events
            .iter()
            .all(|event| event["type"] != "input_audio_buffer.speech_started"),
        "{events:?}"
    );
    assert_eq!(events.last().unwrap()["response"]["status"], "completed");
}

/// A cough is long enough to be speech, and interrupts. If the recognizer finds no words in it, the question before it gets its answer
/// all the same.
#[tokio::test]
async fn a_cough_costs_no_answer() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut caller = Caller::call(&region).await;
    caller
        .hear(&[silence(500), sound_of("turn on the kitchen lights"), silence(700)].concat())
        .await;
    caller.until("response.created", |_| true).await;
    caller.hear(&[noise(400), silence(1_000)].concat()).await;
    caller
        .until("response.done", |event| event["response"]["status"] == "cancelled")
        .await;
    drop(gate);
    let is_spoken = |event: &Value| {
        event["response"]["output"]
            .as_array()
            .is_some_and(|output| !output.is_empty())
    };
    let events = caller.until("response.done", is_spoken).await;
    let done = &events.last().unwrap()["response"];
    assert_eq!(done["status"], "completed");
    let said = done["output"][0]["content"][0]["transcript"].as_str().unwrap();
    assert!(said.contains("kitchen"), "{said}");
}

/// The first bytes of a message.
fn fragment(kind: Data, bytes: usize, is_last: bool) -> Message {
    Message::Frame(Frame::message(vec![b' '; bytes], OpCode::Data(kind), is_last))
}

/// Even a few bytes of a message would keep its place for as long as the client likes.
#[tokio::test]
async fn a_message_that_does_not_end_ends_its_session() {
    let region = Region::start_with(engines(), |limits| limits.body_max.0 = Duration::from_secs(1)).await;
    let (mut slow, mut silent) = (Caller::call(&region).await, Caller::call(&region).await);
    slow.until("session.created", |_| true).await;
    slow.0.send(fragment(Data::Text, 100, false)).await.unwrap();
    let told = slow.until("error", |_| true).await;
    assert_eq!(told.last().unwrap()["error"]["code"], "message_timeout");
    match timeout(HANGS_AFTER, slow.0.next()).await.unwrap().unwrap().unwrap() {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1008, "{frame}"),
        other => panic!("{other:?}"),
    }
    region
        .until_metric("meridian_stack_sessions_closed_total{reason=\"unfinished\"} 1")
        .await;
    // A silent session began no message, and goes on.
    silent
        .hear(&[silence(500), sound_of("stop"), silence(1_000)].concat())
        .await;
    silent.until("response.done", |_| true).await;
}

/// Only the protocol layer sees half a message, and keeps it.
#[tokio::test]
async fn half_sent_messages_take_no_more_than_there_is_room_for() {
    let region = Region::start_with(engines(), |limits| {
        (limits.frame_bytes_max, limits.long_messages_bytes_max) = (2 << 20, 8 << 20);
    })
    .await;
    let (mut waiting, mut refused) = (Vec::new(), 0);
    for _ in 0..12 {
        let mut caller = Caller::call(&region).await;
        caller.until("session.created", |_| true).await;
        caller.0.send(fragment(Data::Text, 1 << 20, false)).await.unwrap();
        caller.0.send(fragment(Data::Continue, 0, false)).await.unwrap();
        // The pong shows that the stack read all of it.
        caller.0.send(Message::Ping("read".into())).await.unwrap();
        let mut told = None;
        let is_refused = loop {
            match timeout(HANGS_AFTER, caller.0.next()).await.unwrap().unwrap().unwrap() {
                Message::Pong(_) => break false,
                Message::Text(event) => told = Some(serde_json::from_str::<Value>(&event).unwrap()),
                Message::Close(Some(frame)) => {
                    assert_eq!(u16::from(frame.code), 1013, "{frame}");
                    assert_eq!(told.unwrap()["error"]["code"], "no_room");
                    break true;
                }
                _ => {}
            }
        };
        match is_refused {
            true => refused += 1,
            false => waiting.push(caller),
        }
    }
    // Each takes a MiB of the eight: the first 64 KiB of a message are free, and frames have headers.
    assert_eq!((waiting.len(), refused), (8, 4));

    // One session ends its message, which is no event, and goes on. Its end makes room for another session.
    let mut first = waiting.remove(0);
    first.0.send(fragment(Data::Continue, 0, true)).await.unwrap();
    let told = first.until("error", |_| true).await;
    assert_eq!(told.last().unwrap()["error"]["code"], "invalid_json");
    first
        .hear(&[silence(500), sound_of("stop"), silence(1_000)].concat())
        .await;
    first.until("response.done", |_| true).await;
    drop(first);
    let finds_room = async {
        loop {
            let mut another = Caller::call(&region).await;
            another.0.send(Message::text(" ".repeat(1 << 20))).await.unwrap();
            let told = another.until("error", |_| true).await;
            match told.last().unwrap()["error"]["code"].as_str().unwrap() {
                "no_room" => {}
                code => return assert_eq!(code, "invalid_json"),
            }
        }
    };
    timeout(HANGS_AFTER, finds_room).await.unwrap();
}
