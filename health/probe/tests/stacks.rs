//! Probes and calls against stacks that work, are slow, misunderstand, are full, or do not answer.

#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use client::{
    Call, CallError, CallEventKind, CallOptions, Pacing, ReconnectingCall, RetryAdvice, Stage, TurnEnd, Utterance,
};
use probe::probe_once;
use topology::{Component, Topology, fixtures::three_primaries};
use verdict::Observation;

/// Limit for a stack that answers: only one that hangs reaches it.
const PATIENT: Duration = Duration::from_secs(10);
/// Limit for a stack that never answers anything.
const SHORT: Duration = Duration::from_millis(400);

/// The behaviour of a stack.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    Well,
    /// Accepts the audio and sends nothing.
    DeafAsr,
    /// Recognises no words, and reports an empty transcript.
    HearsNothing,
    /// Recognises other words.
    Mishears,
    /// Recognises the words and finds no intent.
    Dull,
    /// Replies with text and no audio.
    Mute,
    /// `/health` answers 503 because the recognizer fails.
    Failing,
    /// `/health` answers 503 because the stack is stopping.
    Draining,
    /// Refuses every session.
    Full,
    /// Cuts the first two calls in the middle of the turn.
    CutsTwice,
}

#[derive(Clone)]
struct Stack {
    behaviour: Behaviour,
    calls: Arc<AtomicU32>,
}

async fn start(behaviour: Behaviour) -> SocketAddr {
    let stack = Stack {
        behaviour,
        calls: Arc::default(),
    };
    let router = Router::new()
        .route("/health", get(health))
        .route("/v1/realtime", get(realtime))
        .with_state(stack);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn health(State(stack): State<Stack>) -> Response {
    let (code, status, asr) = match stack.behaviour {
        Behaviour::Failing => (StatusCode::SERVICE_UNAVAILABLE, "failing", "failing"),
        Behaviour::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining", "ok"),
        _ => (StatusCode::OK, "ok", "ok"),
    };
    let body = serde_json::json!({ "status": status, "region": "us-east", "components": {
        "gateway": { "status": "ok" }, "asr": { "status": asr }, "session-store": { "status": "ok" },
    }});
    (code, Json(body)).into_response()
}

async fn realtime(State(stack): State<Stack>, upgrade: WebSocketUpgrade) -> Response {
    if stack.behaviour == Behaviour::Full {
        let body = serde_json::json!({ "error": { "message": "no more sessions" } });
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")], Json(body)).into_response();
    }
    let mut response = upgrade.on_upgrade(move |socket| async move {
        // A caller that hangs up early is not a failure of the stack.
        let _ = converse(socket, stack).await;
    });
    for (name, value) in [("meridian-region", "us-east"), ("meridian-affinity", "token-1")] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

async fn converse(mut socket: WebSocket, stack: Stack) -> Result<(), axum::Error> {
    let call = stack.calls.fetch_add(1, Ordering::Relaxed);
    say(&mut socket, r#"{"type":"session.created","session":{"id":"s1"}}"#).await?;
    let mut vad = true;
    let mut heard = 0;
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Text(text) = message else { continue };
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        let silence = event["audio"]
            .as_str()
            .is_some_and(|audio| audio.bytes().all(|b| b == b'A' || b == b'='));
        match event["type"].as_str().unwrap() {
            "session.update" => {
                vad = event.pointer("/session/audio/input/turn_detection").is_none();
                say(&mut socket, r#"{"type":"session.updated"}"#).await?;
                say(&mut socket, r#"{"type":"something.of.tomorrow"}"#).await?;
                socket.send(Message::Binary(vec![1, 2, 3].into())).await?;
            }
            "input_audio_buffer.append" if silence && vad && heard > 10 => {
                say(&mut socket, r#"{"type":"input_audio_buffer.speech_stopped"}"#).await?;
                answer(&mut socket, &stack, call).await?;
                heard = 0;
            }
            "input_audio_buffer.append" => heard += 1,
            "input_audio_buffer.commit" => {}
            "response.create" => answer(&mut socket, &stack, call).await?,
            other => panic!("unexpected {other}"),
        }
    }
    Ok(())
}

async fn answer(socket: &mut WebSocket, stack: &Stack, call: u32) -> Result<(), axum::Error> {
    let (transcript, intent) = match stack.behaviour {
        Behaviour::DeafAsr => return Ok(()),
        Behaviour::CutsTwice if call == 0 => {
            let frame = CloseFrame {
                code: 1012,
                reason: "going away".into(),
            };
            return socket.send(Message::Close(Some(frame))).await;
        }
        // Drops the socket without a Close frame.
        Behaviour::CutsTwice if call == 1 => return Err(axum::Error::new("cut")),
        Behaviour::HearsNothing => ("", "unknown"),
        Behaviour::Mishears => ("wash the dime", "unknown"),
        Behaviour::Dull => ("what time is it", "unknown"),
        _ => ("what time is it", "time.query"),
    };
    let reply = if transcript.is_empty() { "" } else { "it is noon" };
    let audio = if stack.behaviour == Behaviour::Mute || reply.is_empty() {
        None
    } else {
        Some("AQACAA==")
    };
    let transcribed = "conversation.item.input_audio_transcription.completed";
    say(
        socket,
        &format!(r#"{{"type":"{transcribed}","transcript":"{transcript}"}}"#),
    )
    .await?;
    say(socket, r#"{"type":"response.created"}"#).await?;
    if let Some(audio) = audio {
        say(
            socket,
            &format!(r#"{{"type":"response.output_audio.delta","delta":"{audio}"}}"#),
        )
        .await?;
    }
    say(
        socket,
        &format!(r#"{{"type":"response.output_audio_transcript.done","transcript":"{reply}"}}"#),
    )
    .await?;
    say(socket, r#"{"type":"response.done","response":{"status":"completed"}}"#).await?;
    let report = format!(
        r#"{{"type":"meridian.turn","transcript":"{transcript}","intent":"{intent}","slots":{{}},"reply":"{reply}",
            "region":"us-east","timings_ms":{{"asr":120.0,"nlu":1.0,"skill":2.0,"tts":80.0,"first_audio":203.0}}}}"#
    );
    say(socket, &report).await
}

async fn say(socket: &mut WebSocket, event: &str) -> Result<(), axum::Error> {
    socket.send(Message::Text(event.into())).await
}

/// A socket on which the kernel accepts connections and no process answers.
fn stalled() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where no process listens, and none can until the test ends: it stays bound.
async fn refused() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let _bound = socket;
        std::future::pending::<()>().await;
    });
    address
}

/// A topology with one region and this stack.
fn world(stack: SocketAddr) -> Topology {
    let mut topology = three_primaries().topology;
    topology.regions.retain(|id, _| id.as_str() == "us-east");
    for region in topology.regions.values_mut() {
        region.stacks = vec![stack.into()];
    }
    topology
}

/// Probes the stack and compares component, successes, failures, and a part of the failure's text.
async fn check(stack: SocketAddr, expected: &[(Component, u32, u32, &str)]) -> Vec<Observation> {
    check_within(PATIENT, stack, expected).await
}

async fn check_within(
    limit: Duration,
    stack: SocketAddr,
    expected: &[(Component, u32, u32, &str)],
) -> Vec<Observation> {
    let observations = probe_once(&world(stack), limit, None).await;
    let summary: Vec<_> = observations
        .iter()
        .map(|o| (o.component, o.succeeded, o.failed, o.failure.as_str()))
        .collect();
    assert_eq!(summary.len(), expected.len(), "{summary:?}");
    for (seen, wanted) in summary.iter().zip(expected) {
        assert_eq!((seen.0, seen.1, seen.2), (wanted.0, wanted.1, wanted.2), "{summary:?}");
        assert!(seen.3.contains(wanted.3), "{summary:?}");
    }
    observations
}

#[tokio::test]
async fn a_stack_that_is_well_shows_it_in_every_component() {
    let expected = [
        (Component::Gateway, 2, 0, ""),
        (Component::Asr, 1, 0, ""),
        (Component::Nlu, 1, 0, ""),
        (Component::Tts, 1, 0, ""),
        (Component::Skills, 1, 0, ""),
        (Component::SessionStore, 1, 0, ""),
    ];
    let observations = check(start(Behaviour::Well).await, &expected).await;
    let asr_ms = observations[1].latency.quantile(1.0).unwrap();
    assert!((118.0..122.0).contains(&asr_ms), "{asr_ms}");
}

#[tokio::test]
async fn a_gateway_that_cannot_be_reached_says_nothing_about_the_rest() {
    check(refused().await, &[(Component::Gateway, 0, 1, "refused")]).await;
    let (_listener, address) = stalled();
    check_within(
        SHORT,
        address,
        &[(Component::Gateway, 0, 1, "no answer to GET /health within 400ms")],
    )
    .await;
    check(
        start(Behaviour::Draining).await,
        &[(Component::Gateway, 0, 1, "503, draining")],
    )
    .await;
}

#[tokio::test]
async fn each_fault_is_blamed_on_its_component() {
    use Component::{Asr, Gateway, Nlu, SessionStore, Skills, Tts};
    let store = (SessionStore, 1, 0, "");
    // It answers the rest within the limit.
    check_within(
        Duration::from_secs(1),
        start(Behaviour::DeafAsr).await,
        &[
            (Gateway, 2, 0, ""),
            (Asr, 0, 1, "still waiting for the transcript"),
            store,
        ],
    )
    .await;
    check(
        start(Behaviour::HearsNothing).await,
        &[(Gateway, 2, 0, ""), (Asr, 0, 1, "the transcript is empty"), store],
    )
    .await;
    check(
        start(Behaviour::Mishears).await,
        &[
            (Gateway, 2, 0, ""),
            (Asr, 0, 1, "the transcript is \"wash the dime\" instead of"),
            (Tts, 1, 0, ""),
            (Skills, 1, 0, ""),
            store,
        ],
    )
    .await;
    check(
        start(Behaviour::Dull).await,
        &[
            (Gateway, 2, 0, ""),
            (Asr, 1, 0, ""),
            (Nlu, 0, 1, "is \"unknown\" instead of \"time.query\""),
            (Tts, 1, 0, ""),
            (Skills, 1, 0, ""),
            store,
        ],
    )
    .await;
    check(
        start(Behaviour::Mute).await,
        &[
            (Gateway, 2, 0, ""),
            (Asr, 1, 0, ""),
            (Nlu, 1, 0, ""),
            (Tts, 0, 1, "no audio"),
            (Skills, 1, 0, ""),
            store,
        ],
    )
    .await;
    // The page answers 503, but the gateway works. The spoken turn must show the failing component.
    check(
        start(Behaviour::Failing).await,
        &[
            (Gateway, 2, 0, ""),
            (Asr, 1, 0, ""),
            (Nlu, 1, 0, ""),
            (Tts, 1, 0, ""),
            (Skills, 1, 0, ""),
            store,
        ],
    )
    .await;
    check(
        start(Behaviour::Full).await,
        &[(Gateway, 1, 1, "503 Service Unavailable: no more sessions"), store],
    )
    .await;
}

fn options(turn_end: TurnEnd) -> CallOptions {
    CallOptions {
        connect_timeout: Duration::from_secs(5),
        turn_timeout: Duration::from_secs(5),
        turn_end,
        ..CallOptions::default()
    }
}

#[tokio::test]
async fn a_turn_brings_words_audio_and_timings_however_its_end_is_told() {
    for turn_end in [TurnEnd::Commit, TurnEnd::ServerVad] {
        let mut call = Call::open(start(Behaviour::Well).await, &options(turn_end))
            .await
            .unwrap();
        assert_eq!((call.region(), call.affinity()), (Some("us-east"), Some("token-1")));
        // Two turns, because the second must not contain anything of the first.
        for _ in 0..2 {
            let turn = call.turn(Utterance::probe(), Pacing::Immediate).await.unwrap();
            assert_eq!(
                (turn.transcript.as_str(), turn.intent.as_str()),
                ("what time is it", "time.query")
            );
            assert_eq!(
                (turn.reply_text.as_str(), turn.reply_audio.as_slice()),
                ("it is noon", &[1, 2][..])
            );
            assert_eq!(
                (turn.timings.asr_ms, turn.region.as_deref()),
                (Some(120.0), Some("us-east"))
            );
            assert!(turn.first_audio.unwrap() < Duration::from_secs(2));
        }
        call.hang_up().await;
    }
}

#[tokio::test]
async fn real_time_takes_as_long_as_speaking() {
    let mut call = Call::open(start(Behaviour::Well).await, &options(TurnEnd::ServerVad))
        .await
        .unwrap();
    let short = Utterance::from_24k(&[0.5; 24_000 / 2]);
    let started = Instant::now();
    call.turn(&short, Pacing::RealTime).await.unwrap();
    assert!(
        started.elapsed() >= Duration::from_millis(480),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn errors_say_what_happened_and_whether_to_try_again() {
    let open = |address| async move { Call::open(address, &options(TurnEnd::Commit)).await.unwrap_err() };
    let error = open(refused().await).await;
    assert!(
        matches!(error, CallError::Connect { .. }) && error.retry() == RetryAdvice::Safe,
        "{error}"
    );

    let error = open(start(Behaviour::Full).await).await;
    assert!(
        matches!(&error, CallError::Refused { status, retry_after: Some(Duration::ZERO), message }
            if status.as_u16() == 503 && message == "no more sessions"),
        "{error:?}"
    );
    assert_eq!(error.retry(), RetryAdvice::Safe);

    let (_listener, address) = stalled();
    let impatient = CallOptions {
        connect_timeout: Duration::from_millis(50),
        ..CallOptions::default()
    };
    let error = Call::open(address, &impatient).await.unwrap_err();
    assert!(matches!(error, CallError::ConnectTimeout { .. }), "{error}");

    let impatient = CallOptions {
        turn_timeout: Duration::from_millis(100),
        ..options(TurnEnd::Commit)
    };
    let mut call = Call::open(start(Behaviour::DeafAsr).await, &impatient).await.unwrap();
    let error = call.turn(Utterance::probe(), Pacing::Immediate).await.unwrap_err();
    assert!(
        matches!(
            error,
            CallError::TurnTimeout {
                stage: Stage::Transcript,
                ..
            }
        ) && error.retry() == RetryAdvice::MayRepeat,
        "{error}"
    );

    let nonsense = CallOptions {
        headers: vec![("no such\nheader".into(), "x".into())],
        ..CallOptions::default()
    };
    let error = Call::open(address, &nonsense).await.unwrap_err();
    assert!(
        matches!(error, CallError::Protocol(_)) && error.retry() == RetryAdvice::Useless,
        "{error}"
    );
}

#[tokio::test]
async fn a_call_that_is_cut_is_made_again_and_the_utterance_repeated() {
    let (good, dead) = (start(Behaviour::CutsTwice).await, refused().await);
    let mut asked = 0;
    let resolve = move || {
        asked += 1;
        // The addresses change between attempts, as they do when DNS leaves a lost edge out.
        let addresses = if asked == 2 { vec![dead] } else { vec![dead, good] };
        async move { Ok(addresses) }
    };
    let mut call = ReconnectingCall::new(options(TurnEnd::Commit), Duration::from_secs(30), resolve);
    let turn = call.turn(Utterance::probe(), Pacing::Immediate).await.unwrap();
    assert_eq!(turn.transcript, "what time is it");

    let events: Vec<_> = call.take_events().into_iter().map(|event| event.kind).collect();
    let connected = events
        .iter()
        .filter(|e| matches!(e, CallEventKind::Connected { .. }))
        .count();
    assert_eq!(connected, 3, "{events:?}");
    let interruptions: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            CallEventKind::Interrupted { code, reason } => Some((*code, reason.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(interruptions[0], (Some(1012), "going away"));
    assert_eq!(interruptions[1].0, None);
    assert!(
        events
            .iter()
            .any(|e| matches!(e, CallEventKind::ConnectFailed { why, .. } if why.contains("refused"))),
        "{events:?}"
    );
    call.hang_up().await;
}

#[tokio::test]
async fn the_limit_ends_the_wait() {
    let dead = refused().await;
    let mut call = ReconnectingCall::new(options(TurnEnd::Commit), Duration::from_millis(300), || async move {
        Ok(vec![dead])
    });
    let error = call.turn(Utterance::probe(), Pacing::Immediate).await.unwrap_err();
    assert!(matches!(error, CallError::Connect { .. }), "{error}");
    assert!(call.events().count() >= 2);
}
