//! The HTTP interface.

use std::sync::Arc;

use gateway::Engines;
use reqwest::{
    Client, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use speech::{
    SAMPLE_RATE, pcm, resample,
    scripted::{ScriptedRecognizer, ScriptedSynthesizer, sound_of, text_in},
    wav,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use wire::{LOAD_HEADER, VERSION};

use crate::region::{Region, engines, held_recognizer, held_synthesizer};

fn recording(text: &str) -> Vec<u8> {
    wav::encode(&sound_of(text), SAMPLE_RATE)
}

fn form(file: Vec<u8>) -> Form {
    Form::new()
        .part("file", Part::bytes(file).file_name("call.wav"))
        .text("model", "whisper-1")
}

async fn transcribe(region: &Region, form: Form) -> reqwest::Response {
    Client::new()
        .post(region.url("/v1/audio/transcriptions"))
        .multipart(form)
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_recording_is_transcribed_in_each_format() {
    let region = Region::start().await;
    let file = recording("turn on the kitchen lights");

    let json: Value = transcribe(&region, form(file.clone())).await.json().await.unwrap();
    assert_eq!(json["text"], "turn on the kitchen lights");
    assert_eq!(json["usage"]["type"], "duration");

    let text = transcribe(&region, form(file.clone()).text("response_format", "text")).await;
    assert_eq!(text.text().await.unwrap(), "turn on the kitchen lights\n");

    let verbose = transcribe(&region, form(file.clone()).text("response_format", "verbose_json")).await;
    let verbose: Value = verbose.json().await.unwrap();
    assert_eq!(verbose["segments"][0]["text"], "turn on the kitchen lights");
    assert_eq!(verbose["duration"], verbose["segments"][0]["end"]);

    let plain = Client::new()
        .post(region.url("/api/v1/voice/transcribe"))
        .body(file)
        .send()
        .await
        .unwrap();
    let plain: Value = plain.json().await.unwrap();
    assert_eq!(plain["text"], "turn on the kitchen lights");
    assert_eq!(plain["region"], "eu-west");
}

#[tokio::test]
async fn what_clients_add_to_a_recording_does_no_harm() {
    let region = Region::start().await;
    let file = recording("stop");
    for (field, value) in [
        ("stream", "False"),
        ("stream", "0"),
        ("language", "en"),
        ("language", "en-US"),
        ("language", "English"),
        ("language", ""),
        ("temperature", "0"),
        ("temperature", "0.7"),
        ("prompt", "a command"),
        ("chunking_strategy", "auto"),
        ("include[]", ""),
    ] {
        let answer = transcribe(&region, form(file.clone()).text(field, value)).await;
        assert_eq!(answer.status(), 200, "{field}={value}");
    }
    let segments = form(file.clone())
        .text("response_format", "verbose_json")
        .text("timestamp_granularities[]", "segment");
    assert_eq!(transcribe(&region, segments).await.status(), 200);
    // A title of odd length with its pad byte, behind the format.
    let mut titled = file.clone();
    titled.splice(36..36, *b"LIST\x05\0\0\0hello\0");
    let answer: Value = transcribe(&region, form(titled)).await.json().await.unwrap();
    assert_eq!(answer["text"], "stop");
    // The header of a recorder that announced ten minutes, and was stopped.
    let mut stopped = file;
    stopped[40..44].copy_from_slice(&(600 * 2 * SAMPLE_RATE).to_le_bytes());
    let answer: Value = transcribe(&region, form(stopped)).await.json().await.unwrap();
    assert_eq!(answer["text"], "stop");
}

#[tokio::test]
async fn what_a_form_asks_for_and_cannot_have_is_refused_with_its_field() {
    let region = Region::start().await;
    let file = recording("stop");
    for (field, value, param, code) in [
        ("temperature", "9", "temperature", "invalid_value"),
        ("temperature", "-1", "temperature", "invalid_value"),
        ("temperature", "NaN", "temperature", "invalid_value"),
        ("temperature", "hot", "temperature", "invalid_value"),
        ("include[]", "logprobs", "include", "unsupported_value"),
        ("include", "logprobs", "include", "unsupported_value"),
        (
            "timestamp_granularities[]",
            "word",
            "timestamp_granularities",
            "unsupported_value",
        ),
        // Only verbose_json has timestamps.
        (
            "timestamp_granularities[]",
            "segment",
            "timestamp_granularities",
            "unsupported_value",
        ),
        ("chunking_strategy", "never", "chunking_strategy", "unsupported_value"),
        ("colour", "blue", "colour", "unknown_parameter"),
        (
            "chunking_strategy[type]",
            "server_vad",
            "chunking_strategy[type]",
            "unknown_parameter",
        ),
        ("file", "another recording", "file", "invalid_value"),
    ] {
        let answer = transcribe(&region, form(file.clone()).text(field, value)).await;
        assert_eq!(answer.status(), 400, "{field}={value}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{field}={value}: {error}");
        assert_eq!(error["error"]["code"], code, "{field}={value}: {error}");
    }
    for (path, body, param) in [
        (
            "/v1/audio/speech",
            json!({ "input": "hello", "response_format": "wav", "colour": "blue" }),
            "colour",
        ),
        (
            "/api/v1/voice/synthesize",
            json!({ "text": "hello", "pitch": 2 }),
            "pitch",
        ),
    ] {
        let answer = Client::new().post(region.url(path)).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{path} {body}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{error}");
        assert_eq!(error["error"]["code"], "unknown_parameter", "{error}");
    }
}

/// The header of a file does not tell whether all of it came, so the header of the request must.
#[tokio::test]
async fn half_a_body_is_not_transcribed() {
    let region = Region::start().await;
    let file = recording("stop");
    let half = &file[..file.len() / 2];
    let head = "POST /api/v1/voice/transcribe HTTP/1.1\r\nHost: v\r\nConnection: close\r\n";
    let with_length = format!("{head}Content-Length: {}\r\n\r\n", file.len());
    let in_chunks = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", half.len());
    for (framing, head, behind, is_whole) in [
        ("half of a length", &with_length, "", false),
        ("no last chunk", &in_chunks, "\r\n", false),
        ("all chunks", &in_chunks, "\r\n0\r\n\r\n", true),
    ] {
        let mut socket = TcpStream::connect(region.http).await.unwrap();
        socket
            .write_all(&[head.as_bytes(), half, behind.as_bytes()].concat())
            .await
            .unwrap();
        if !is_whole {
            socket.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.starts_with("HTTP/1.1 200"), is_whole, "{framing}: {answer}");
    }
}

#[tokio::test]
async fn nobody_is_sure_of_what_was_not_said() {
    let region = Region::start().await;
    for seconds in [1, 30] {
        let silence = wav::encode(&vec![0.0; seconds * 16_000], SAMPLE_RATE);
        let transcribe = Client::new().post(region.url("/api/v1/voice/transcribe")).body(silence);
        let answer: Value = transcribe.send().await.unwrap().json().await.unwrap();
        assert_eq!(
            (&answer["text"], &answer["confidence"]),
            (&json!(""), &json!(0.0)),
            "{seconds} s"
        );
    }
}

#[tokio::test]
async fn text_is_spoken_in_each_format() {
    let region = Region::start().await;
    let speak = async |path: &str, body: Value| {
        let response = Client::new().post(region.url(path)).json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.bytes().await.unwrap()
    };
    let request = |format: &str| json!({ "model": "tts-1", "voice": "alloy", "input": "It is 10:35.", "response_format": format });
    let said = |samples: &[f32]| text_in(samples).unwrap();

    let file = speak("/v1/audio/speech", request("wav")).await;
    assert_eq!(said(&wav::decode(&file, 60.0).unwrap()), "it is ten thirty five");
    let bytes = speak("/v1/audio/speech", request("pcm")).await;
    let samples = resample::resample(&pcm::from_s16le(&bytes), 24_000, SAMPLE_RATE).unwrap();
    assert_eq!(said(&samples), "it is ten thirty five");
    let file = speak("/api/v1/voice/synthesize", json!({ "text": "hello" })).await;
    assert_eq!(said(&wav::decode(&file, 60.0).unwrap()), "hello");
}

#[tokio::test]
async fn a_text_that_can_be_sent_in_parts_is_sent_sentence_by_sentence_in_two_formats_and_as_events() {
    for (format, stream_format, begins) in [
        ("pcm", "audio", &b""[..]),
        ("opus", "audio", b"OggS"),
        ("wav", "sse", b"data: "),
        ("opus", "sse", b"data: "),
    ] {
        let (engines, gate) = held_synthesizer();
        let region = Region::start_with(engines, |_| {}).await;
        let body = json!({
            "input": "It is noon. The light is on.", "response_format": format, "stream_format": stream_format,
        });
        gate.send(()).unwrap();
        let mut answer = Client::new()
            .post(region.url("/v1/audio/speech"))
            .json(&body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{format} {stream_format}");
        // The second sentence still waits at the gate.
        if (format, stream_format) != ("wav", "sse") {
            let first = answer.chunk().await.unwrap().unwrap();
            assert!(first.starts_with(begins), "{format} {stream_format}: {first:?}");
        }
        drop(gate);
        while answer.chunk().await.unwrap().is_some() {}
        region
            .until_metric("meridian_stack_engine_jobs_total{engine=\"tts\",outcome=\"done\"} 3")
            .await;
    }
}

#[tokio::test]
async fn every_bad_recording_gets_its_own_explanation() {
    let region = Region::start_with(engines(), |limits| limits.body_bytes_max = 4 << 20).await;
    let hour = wav::encode(&vec![0.0; 3600 * 8000], 8000);
    let six_minutes = wav::encode(&vec![0.0; 360 * 8000], 8000);
    let good = recording("stop");
    let no_file = Form::new().text("model", "whisper-1");
    for (form, status, code, says) in [
        (form(hour), 413, "body_too_large", "send shorter audio"),
        (form(six_minutes.clone()), 413, "body_too_large", "limit"),
        (form(Vec::new()), 400, "empty_audio", "empty"),
        (form(wav::encode(&[], 16_000)), 400, "empty_audio", "no samples"),
        (
            form(b"ID3 this is an mp3, or claims to be one".to_vec()),
            400,
            "invalid_audio",
            "not a WAV",
        ),
        (form(good[..30].to_vec()), 400, "invalid_audio", "cut short"),
        (no_file, 400, "missing_required_parameter", "file"),
        (
            form(good.clone()).text("response_format", "diarized_json"),
            400,
            "unsupported_value",
            "verbose_json",
        ),
        (
            form(good.clone()).text("stream", "true").text("response_format", "srt"),
            400,
            "unsupported_value",
            "only json and text",
        ),
        // As Python writes it into a form.
        (
            form(good.clone()).text("stream", "True").text("response_format", "srt"),
            400,
            "unsupported_value",
            "only json and text",
        ),
        (
            form(good.clone()).text("stream", "1").text("response_format", "srt"),
            400,
            "unsupported_value",
            "only json and text",
        ),
        (
            form(good.clone()).text("stream", "perhaps"),
            400,
            "invalid_value",
            "true or false",
        ),
        (
            form(good.clone()).text("language", "de"),
            400,
            "unsupported_value",
            "English",
        ),
    ] {
        check(transcribe(&region, form).await, status, code, says).await;
    }

    let region = Region::start().await;
    check(
        transcribe(&region, form(six_minutes)).await,
        413,
        "audio_too_long",
        "300 s limit",
    )
    .await;
}

#[tokio::test]
async fn every_bad_request_gets_its_own_explanation() {
    let region = Region::start().await;
    let client = Client::new();
    let speech = |body: Value| client.post(region.url("/v1/audio/speech")).json(&body);
    for (request, status, code, says) in [
        (
            speech(json!({ "input": "hello" })),
            400,
            "unsupported_value",
            "\"wav\", \"flac\", \"opus\" or \"pcm\"",
        ),
        (
            speech(json!({ "input": "a".repeat(4097), "response_format": "wav" })),
            400,
            "string_above_max_length",
            "4096",
        ),
        (
            speech(json!({ "input": "…", "response_format": "wav" })),
            400,
            "empty_string",
            "nothing to speak",
        ),
        (
            speech(json!({ "input": "hi", "response_format": "wav", "speed": 9 })),
            400,
            "invalid_value",
            "between",
        ),
        // The longest text, at a quarter of the speed, and letter by letter.
        (
            speech(json!({ "input": "a".repeat(4096), "response_format": "pcm", "speed": 0.25 })),
            400,
            "string_above_max_length",
            "600 s",
        ),
        (speech(json!({ "text": "hi" })), 400, "invalid_json", "input"),
        (
            client.post(region.url("/v1/audio/speech")).body("{"),
            400,
            "invalid_json",
            "JSON",
        ),
        (
            client.post(region.url("/v1/audio/transcriptions")).body("RIFF"),
            400,
            "invalid_content_type",
            "multipart",
        ),
        (
            client.get(region.url("/v1/audio/speech")),
            405,
            "method_not_allowed",
            "Allow",
        ),
        (
            client.get(region.url("/v1/chat/completions")),
            404,
            "unknown_url",
            "/v1/chat/completions",
        ),
        (
            client.get(region.url("/v1/models/gpt-9")),
            404,
            "model_not_found",
            "meridian-asr",
        ),
        (
            client.get(region.url("/v1/realtime")),
            426,
            "websocket_required",
            "WebSocket",
        ),
    ] {
        check(request.send().await.unwrap(), status, code, says).await;
    }
}

async fn check(response: reqwest::Response, status: u16, code: &str, says: &str) {
    assert_eq!(response.status(), status, "{code}");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], code, "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains(says), "{body}");
    assert_eq!(body["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn when_the_queue_is_full_callers_are_told_to_retry() {
    let (engines, gate) = held_recognizer();
    let region = Arc::new(Region::start_with(engines, |limits| limits.queue_max = 1).await);
    // Three callers for one thread and one place in the queue: the stack refuses at least one at once, and two if the thread has not
    // taken the first yet.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let region = Arc::clone(&region);
        calls.spawn(async move { transcribe(&region, form(recording("stop"))).await });
    }
    let refused = calls.join_next().await.unwrap().unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        refused.json::<Value>().await.unwrap()["error"]["code"],
        "rate_limit_exceeded"
    );
    drop(gate);
    let mut served = 0;
    while let Some(answer) = calls.join_next().await {
        served += u32::from(answer.unwrap().status() == 200);
    }
    assert!(served >= 1);
}

#[tokio::test]
async fn health_names_the_component_that_fails() {
    let region = Region::start().await;
    let response = reqwest::get(region.url("/health")).await.unwrap();
    assert_eq!(response.status(), 200);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["region"], "eu-west");
    for component in ["gateway", "asr", "nlu", "tts", "skills", "session-store"] {
        assert_eq!(body["components"][component]["status"], "ok", "{component}");
    }

    // Fine for the stack's own test, then broken three times in a row.
    let answers = [Ok(""), Err("on fire"), Err("on fire"), Err("on fire")];
    let broken = Engines {
        recognizer: Arc::new(ScriptedRecognizer::in_turn(answers)),
        synthesizer: Arc::new(SilentOnce::default()),
    };
    let region = Region::start_with(broken, |_| {}).await;
    for _ in 0..3 {
        let response = transcribe(&region, form(wav::encode(&[0.1; 16_000], SAMPLE_RATE))).await;
        assert_eq!(response.status(), 500);
    }
    let response = reqwest::get(format!("http://{}/health", region.admin)).await.unwrap();
    assert_eq!(response.status(), 503);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["components"]["asr"]["status"], "failing");
    assert_eq!(body["components"]["tts"]["status"], "ok");
}

/// A synthesizer whose sound for the self-test carries no words, so that the recognizer uses up its first prepared answer.
#[derive(Default)]
struct SilentOnce(ScriptedSynthesizer);

impl speech::Synthesizer for SilentOnce {
    fn synthesize(&self, _text: &str, speed: f32) -> Result<Vec<f32>, speech::SpeechError> {
        let _ = self.0.synthesize("", speed)?;
        Ok(vec![0.0; 1600])
    }
}

#[tokio::test]
async fn metrics_are_on_both_listeners_and_models_are_listed() {
    let region = Region::start().await;
    transcribe(&region, form(recording("stop"))).await;
    for address in [region.http, region.admin] {
        let text = reqwest::get(format!("http://{address}/metrics"))
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        assert!(
            text.contains("meridian_stack_engine_jobs_total{engine=\"asr\",outcome=\"done\"} 2"),
            "{text}"
        );
        assert!(
            text.contains("meridian_stack_http_requests_total{route=\"/v1/audio/transcriptions\",code=\"200\"} 1"),
            "{text}"
        );
    }
    let models: Value = reqwest::get(region.url("/v1/models"))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(models["data"].as_array().unwrap().len(), 3);
    assert!(reqwest::get(region.url("/ready")).await.unwrap().status().is_success());
}

#[tokio::test]
async fn whoever_asks_learns_how_loaded_the_stack_is_from_a_refusal_too() {
    let region = Region::start_with(engines(), |limits| limits.sessions_max = 1).await;
    let url = format!("ws://{}/v1/realtime", region.http);
    let (_session, answer) = tokio_tungstenite::connect_async(url).await.unwrap();
    assert!(!answer.headers().contains_key(LOAD_HEADER), "nobody asked");
    let upgrade = Client::new()
        .get(region.url("/v1/realtime"))
        .header(LOAD_HEADER, VERSION);
    let upgrade = upgrade
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    let answer = upgrade.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let load = "sessions=1, sessions_max=1, waiting=0, waiting_max=32, uploads=0, uploads_max=32";
    assert_eq!(answer.headers()[LOAD_HEADER], load);
    let models = Client::new().get(region.url("/v1/models")).header(LOAD_HEADER, VERSION);
    assert_eq!(models.send().await.unwrap().headers()[LOAD_HEADER], load);
}

/// Edges and people see the queues, live jobs apart from uploads: uploads must not keep sessions away.
#[tokio::test]
async fn uploads_in_work_are_part_of_the_load() {
    use tokio::io::AsyncWriteExt as _;
    let region = Region::start_with(engines(), |limits| limits.uploads_max = 2).await;
    let mut uploads = Vec::new();
    for _ in 0..2 {
        let mut tcp = tokio::net::TcpStream::connect(region.http).await.unwrap();
        let head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Type: multipart/form-data; boundary=x\r\n\
                    Content-Length: 1000\r\n\r\n";
        tcp.write_all(head.as_bytes()).await.unwrap();
        uploads.push(tcp);
    }
    let told = async || {
        let models = Client::new().get(region.url("/v1/models")).header(LOAD_HEADER, VERSION);
        let answer = models.send().await.unwrap();
        answer.headers()[LOAD_HEADER].to_str().unwrap().to_owned()
    };
    let is_full = async {
        while !told()
            .await
            .ends_with("waiting=0, waiting_max=32, uploads=2, uploads_max=2")
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), is_full)
        .await
        .unwrap();
    let refused = Client::new()
        .post(region.url("/v1/audio/speech"))
        .header(LOAD_HEADER, VERSION)
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 429);
    assert!(
        refused.headers()[LOAD_HEADER]
            .to_str()
            .unwrap()
            .ends_with("waiting=0, waiting_max=32, uploads=2, uploads_max=2")
    );
    drop(uploads);
    let is_empty = async {
        while !told().await.ends_with("uploads=0, uploads_max=2") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), is_empty)
        .await
        .unwrap();
}
