//! One world of real processes goes through calls, bad input, the loss of a region, the loss of the control plane, and
//! the start of an edge and a name server without a control plane.
//!
//! Needs the other programs: `cargo build --workspace --bins` (`make test` does it).

use std::{sync::Arc, time::Duration};

use api::{operator, v1::Outcome};
use drill::{
    calls::{Placed, place},
    fleet::{Fleet, TURN_DEADLINE, TurnRecord},
    new_sessions::{NewSessions, share_elsewhere},
    observe::{Observer, published},
};
use e2e::{Stage, openai_client};
use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use reqwest::{StatusCode, multipart};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use topology::Moment;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_world_serves_calls_whatever_happens_to_it() {
    let stage = Stage::set().await;

    stage.scene("every recorded call is understood through the edges");
    every_recorded_call_is_understood(&stage).await;
    stage.scene("the command takes no root away under which nodes and stacks work");
    a_root_in_use_is_not_taken_away(&stage).await;
    stage.scene("the unmodified openai and websockets packages transcribe, speak and take a realtime turn");
    the_openai_package_is_content(&stage).await;
    stage.scene("bad input gets a clear error and harms nobody");
    bad_requests_get_clear_errors(&stage).await;
    bad_frames_get_clear_errors(&stage).await;
    stage.scene(
        "a region is killed in mid-call: turns finish elsewhere on the same connection, and new sessions move by plan and \
         come back on command",
    );
    a_killed_region_is_evacuated_and_restored(&stage).await;
    stage.scene("a region freezes: new calls are answered elsewhere");
    a_frozen_region_is_avoided(&stage).await;
    stage.scene("an edge is asked to stop: its callers are told to call again, and lose nothing");
    a_stopping_edge_loses_nobody(&stage).await;
    stage.scene("the control plane is killed: calls go on, also through an edge and a name server started without it");
    without_a_control_plane_everything_serves(&stage).await;

    stage.scene("no log, page or answer repeats a secret that the world was given");
    crate::secrets::nobody_repeats_a_secret(&stage).await;

    stage.scene("the end: no process is left");
    stage.clear().await;
}

async fn call(stage: &Stage, spread: usize) -> Placed {
    let recording = &stage.recordings[0];
    let placed = place(
        &stage.resolver,
        spread,
        &stage.options,
        TURN_DEADLINE,
        &recording.utterance,
    )
    .await;
    let placed = placed.unwrap_or_else(|error| panic!("call {spread}: {error}"));
    assert_eq!(
        placed.turn.intent, recording.intent,
        "heard \"{}\"",
        placed.turn.transcript
    );
    placed
}

async fn every_recorded_call_is_understood(stage: &Stage) {
    let mut wrong = Vec::new();
    for (index, recordings) in stage.recordings.chunks(3).enumerate() {
        let mut calls = tokio::task::JoinSet::new();
        for (offset, recording) in recordings.iter().cloned().enumerate() {
            let (resolver, options) = (stage.resolver.clone(), stage.options.clone());
            calls.spawn(async move {
                let placed = place(
                    &resolver,
                    index * 3 + offset,
                    &options,
                    TURN_DEADLINE,
                    &recording.utterance,
                )
                .await;
                (recording, placed)
            });
        }
        for (recording, placed) in calls.join_all().await {
            let turn = placed
                .unwrap_or_else(|error| panic!("{}: {error}", recording.file))
                .turn;
            assert!(!turn.reply_text.is_empty(), "{} got no reply", recording.file);
            assert!(
                turn.region.is_some(),
                "{}: nobody says which region answered",
                recording.file
            );
            if turn.intent != recording.intent {
                wrong.push(format!(
                    "{}: heard \"{}\", took it for {}",
                    recording.file, turn.transcript, turn.intent
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The command asks the control plane, which meets nodes by their streams and stacks by its probes.
async fn a_root_in_use_is_not_taken_away(stage: &Stage) {
    let record = stage.world.record().await;
    let known = async {
        loop {
            let known = crate::status(stage).await;
            // The control plane's first probes may still be under way.
            if !known.stacks.is_empty() && known.nodes.iter().any(|node| node.connected) {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let known = tokio::time::timeout(Duration::from_secs(60), known)
        .await
        .expect("probes meet stacks");
    let root = &known.stacks[0].root;
    let folder = tempfile::tempdir().unwrap();
    let meridian = |words: &str| {
        let program = world::settings::default_binaries_dir().join("meridian");
        let mut command = std::process::Command::new(program);
        command
            .args(words.split(' '))
            .arg("--state-dir")
            .arg(stage.world.state_dir());
        command.current_dir(folder.path()).output().unwrap()
    };
    // A bundle that trusts the world's root and another.
    assert!(
        meridian(&format!("cert create-ca next --zone {}", record.zone))
            .status
            .success()
    );
    let trust = "next/trust.crt";
    std::fs::copy(folder.path().join("next/root.crt"), folder.path().join(trust)).unwrap();
    let ours = stage.world.state_dir().join("identity/root.crt");
    assert!(
        meridian(&format!("cert trust add {} --trust {trust}", ours.display()))
            .status
            .success()
    );
    let refused = meridian(&format!("cert trust remove {root} --trust {trust}"));
    let said = String::from_utf8(refused.stderr).unwrap();
    let node = known.nodes.iter().find(|node| node.connected).unwrap();
    assert!(!refused.status.success(), "{said}");
    for shown in [
        node.node.as_str(),
        known.stacks[0].id.as_str(),
        "still show a certificate under",
    ] {
        assert!(said.contains(shown), "{shown}: {said}");
    }
}

async fn the_openai_package_is_content(stage: &Stage) {
    let recording = stage.recordings.iter().find(|it| it.intent == "timer.set").unwrap();
    let file = drill::recordings::default_folder().join(&recording.file);
    let said = openai_client::drive(&edge(stage).await, &file).await;
    assert!(
        said["transcription"].as_str().unwrap().contains("timer") && said["speech_seconds"].as_f64().unwrap() > 0.5,
        "{said:#}"
    );
    assert!(
        said["refusal"].as_str().unwrap().contains("the audio is empty"),
        "{said:#}"
    );
    let turn = &said["realtime"];
    assert_eq!(turn["first_event"], "session.created", "{said:#}");
    assert_eq!(turn["status"], "completed", "{said:#}");
    assert!(
        turn["reply"].as_str().unwrap().starts_with("timer set for") && turn["reply_seconds"].as_f64().unwrap() > 0.5,
        "{said:#}"
    );
    // The websockets package alone: the edge declines compression, passes pings and fragments, and both ends close in
    // order.
    let plain = serde_json::json!({
        "events": ["session.created", "session.updated", "session.created"],
        "extensions": 0,
        "close_codes": [1000, 1000],
    });
    assert_eq!(said["websocket"], plain, "{said:#}");
}

/// The URL of the first edge.
async fn edge(stage: &Stage) -> String {
    let record = stage.world.record().await;
    record.edges.values().next().unwrap().clone()
}

async fn bad_requests_get_clear_errors(stage: &Stage) {
    let edge = edge(stage).await;
    let client = reqwest::Client::new();
    let good = std::fs::read(drill::recordings::default_folder().join(&stage.recordings[0].file)).unwrap();
    let transcribe = async |sound: Vec<u8>| {
        let file = multipart::Part::bytes(sound).file_name("audio.wav");
        let form = multipart::Form::new().text("model", "meridian").part("file", file);
        let url = format!("{edge}/v1/audio/transcriptions");
        client.post(url).multipart(form).send().await.unwrap()
    };
    let cases = [
        ("empty", Vec::new(), StatusCode::BAD_REQUEST),
        ("not a WAV", b"this is no recording".to_vec(), StatusCode::BAD_REQUEST),
        ("no samples", wav(0, 0), StatusCode::BAD_REQUEST),
        ("cut short", wav(16_000, 100)[..30].to_vec(), StatusCode::BAD_REQUEST),
        (
            "an hour",
            wav(3_600 * 8_000, 3_600 * 8_000),
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
    ];
    for (what, sound, expected) in cases {
        let refused = transcribe(sound).await;
        assert_eq!(refused.status(), expected, "{what}");
        assert_clear(what, refused).await;
    }
    let long = transcribe(wav(400 * 16_000, 400 * 16_000)).await;
    assert_eq!(
        long.status(),
        StatusCode::PAYLOAD_TOO_LARGE,
        "more than is transcribed, less than is refused unread"
    );
    assert_clear("400 s", long).await;

    let unknown = client.get(format!("{edge}/v1/nonsense")).send().await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_clear("unknown path", unknown).await;
    let plain = client.get(format!("{edge}/v1/realtime")).send().await.unwrap();
    assert!(plain.status().is_client_error(), "{}", plain.status());
    assert_clear("no upgrade", plain).await;

    let heard = transcribe(good).await;
    assert_eq!(heard.status(), StatusCode::OK, "a good recording is still transcribed");
    let heard: Value = heard.json().await.unwrap();
    assert_eq!(
        heard["text"].as_str().unwrap().to_lowercase(),
        stage.recordings[0].words
    );
}

/// A WAV file whose header promises `samples` samples of 8-bit sound at 8 kHz, and which contains `held`.
fn wav(samples: u32, held: usize) -> Vec<u8> {
    let mut file = b"RIFF".to_vec();
    file.extend((36 + samples).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    for field in [8_000u32, 8_000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(b"\x01\0\x08\0data");
    file.extend(samples.to_le_bytes());
    file.resize(file.len() + held, 128);
    file
}

async fn assert_clear(what: &str, refused: reqwest::Response) {
    let text = refused.text().await.unwrap();
    let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{what}: not JSON: {text}"));
    let message = error["error"]["message"].as_str().unwrap_or_default();
    assert!(message.len() > 10, "{what}: {text}");
}

async fn bad_frames_get_clear_errors(stage: &Stage) {
    let url = edge(stage).await.replacen("http", "ws", 1) + "/v1/realtime?model=meridian";
    let before = stage.world.pids().await;

    let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    let event = next_text(&mut socket).await;
    assert_eq!(event["type"], "session.created");
    for nonsense in [
        "{",
        "[]",
        r#"{"type":"no.such.event"}"#,
        r#"{"type":"input_audio_buffer.append","audio":"*"}"#,
    ] {
        socket.send(Message::text(nonsense)).await.unwrap();
        let event = next_text(&mut socket).await;
        assert_eq!(event["type"], "error", "{nonsense}");
        assert!(
            !event["error"]["message"].as_str().unwrap_or_default().is_empty(),
            "{nonsense}"
        );
    }
    // The session still works; a frame beyond every limit ends it with a reason.
    let oversized = Message::text("x".repeat(33 << 20));
    // The edge may close before it has read all of it.
    let _ = socket.send(oversized).await;
    let close = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame,
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("cut without a Close frame: {error}"),
                None => panic!("ended without a Close frame"),
            }
        }
    });
    let close = close
        .await
        .expect("an oversized frame is answered")
        .expect("the Close frame has a reason");
    assert_eq!(u16::from(close.code), 1009, "{}", close.reason);
    assert!(!close.reason.is_empty());

    assert_eq!(stage.world.pids().await, before, "every process is the same as before");
    call(stage, 0).await;
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn next_text(socket: &mut Socket) -> Value {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), socket.next()).await;
        match next.expect("an event within 20 s").unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Close(frame) => panic!("closed: {frame:?}"),
            _ => {}
        }
    }
}

async fn a_killed_region_is_evacuated_and_restored(stage: &Stage) {
    let region = call(stage, 0).await.turn.region.unwrap();
    let observer = Observer::start(stage.world.operator());
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let fleet = {
        let told = Arc::clone(&told);
        let tell: Arc<dyn Fn(&TurnRecord) + Send + Sync> = Arc::new(move |turn| {
            let line = format!(
                "session {}: {:?} {:?} {:?}",
                turn.session, turn.region, turn.moves, turn.interruptions
            );
            told.lock().push(line);
        });
        Fleet::start(4, &stage.recordings, &stage.resolver, &stage.options, &tell)
    };
    let edges = stage.resolver.callees(0).await.unwrap();
    let new_sessions = NewSessions::start(edges, &stage.options);
    let talking = async {
        while !fleet
            .now()
            .iter()
            .any(|caller| caller.region.as_deref() == Some(&region) && caller.talking)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let talking = tokio::time::timeout(Duration::from_secs(30), talking).await;
    talking.unwrap_or_else(|_| panic!("nobody talks to {region}: {:?}", fleet.now()));
    let killed_at = stage.world.kill(&region).await.unwrap();

    let limit = Duration::from_secs(60);
    let state = |status: &api::v1::StatusReply| {
        let found = status.regions.iter().find(|status| status.region == region);
        found.map(|status| status.state.clone()).unwrap_or_default()
    };
    let status = observer
        .until("the evacuation", limit, |status| state(status) == "evacuated")
        .await
        .unwrap();
    let generation = status.number.unwrap().generation;
    let status = observer
        .until("its publication", limit, |status| {
            published(status, generation).is_some()
        })
        .await;
    let published_at = published(&status.unwrap(), generation).unwrap();
    let failover = published_at.since(killed_at);
    assert!(failover < Duration::from_secs(45), "failover took {failover:?}");

    let why = stage.world.operator().why(&region).await.unwrap();
    let decision = why
        .decisions
        .iter()
        .find(|decision| decision.number.unwrap().generation == generation)
        .unwrap();
    assert!(
        decision
            .reasons
            .iter()
            .any(|reason| reason.code == "failover" && !reason.evidence.is_empty())
    );
    for spread in 0..2 {
        assert_ne!(call(stage, spread).await.turn.region.unwrap(), region);
    }

    stage.scene("  it comes back on command");
    let until = daemon::clock::now();
    stage.world.restart(&region).await.unwrap();
    let healthy = |status: &api::v1::StatusReply| {
        let mut regions = status.regions.iter();
        regions.any(|status| status.region == region && status.health == "healthy")
    };
    observer
        .until("its recovery", Duration::from_secs(120), healthy)
        .await
        .unwrap();
    assert_eq!(
        state(&observer.latest().unwrap()),
        "evacuated",
        "a region never returns by itself"
    );
    let request = operator::request(operator::restore(&region), "the test is over", "", "token", None);
    let reply = stage.world.operator().act(request).await.unwrap();
    assert_eq!(reply.outcome(), Outcome::Running, "{:?}", reply.reasons);
    observer
        .until("its restore", Duration::from_secs(90), |status| {
            state(status) == "serving"
        })
        .await
        .unwrap();

    let turns = fleet.finish().await;
    let sessions = new_sessions.finish().await;
    let told = told.lock().join("\n");
    // Sessions of the lost region moved at once: on the same connection, with every word heard and the
    // answer given.
    let moved = |turn: &&TurnRecord| turn.moves.iter().any(|moved| moved.at_ms >= turn.started_at_ms);
    let moved: Vec<&TurnRecord> = turns.iter().filter(moved).collect();
    assert!(!moved.is_empty(), "nobody was talking to it: {told}");
    for turn in moved {
        assert!(turn.understood, "heard \"{}\" for \"{}\"", turn.transcript, turn.words);
        // A busy machine may have moved it before, too.
        assert!(
            !turn.reply.is_empty() && turn.moves.iter().any(|moved| moved.at_ms >= killed_at),
            "{turn:?}"
        );
    }
    assert!(turns.iter().all(TurnRecord::completed), "{told}");
    assert!(turns.iter().all(|turn| turn.interruptions.is_empty()), "{told}");
    for (process, address) in &stage.world.layout().admin {
        let metrics = format!("http://{address}/metrics");
        let metrics = reqwest::get(metrics).await.unwrap().text().await.unwrap();
        let resumes = metrics.lines().filter(|line| {
            let kinds = [
                "sessions_resumed",
                "resume_seconds_sum",
                "resume_seconds_count",
                "replayed_bytes",
            ];
            kinds
                .iter()
                .any(|kind| line.starts_with(&format!("meridian_edge_{kind}")))
        });
        for line in resumes {
            println!("         {process}: {line}");
        }
    }
    // Some do not open in time on a busy machine; that is not where they were sent.
    let began = sessions.len();
    let opened: Vec<_> = sessions
        .into_iter()
        .filter(|session| session.failure.is_empty())
        .collect();
    assert!(
        opened.len() * 100 >= began * 90,
        "{} of {began} new sessions opened",
        opened.len()
    );
    let elsewhere = share_elsewhere(&opened, &region, published_at, until).unwrap();
    assert!(
        elsewhere >= 0.99,
        "{:.1} % of new sessions are elsewhere",
        elsewhere * 100.0
    );
}

async fn a_frozen_region_is_avoided(stage: &Stage) {
    let region = call(stage, 0).await.turn.region.unwrap();
    // Its sockets stay open but nothing comes from them: the kind of death that is hardest to notice.
    stage.world.stop(&region).await.unwrap();
    let began = std::time::Instant::now();
    let placed = call(stage, 0).await;
    stage.world.resume(&region).await.unwrap();
    let answered = placed.turn.region.unwrap();
    let (took, cuts) = (began.elapsed().as_secs_f64(), placed.interruptions);
    println!("         answered by {answered} instead of {region} after {took:.1} s: {cuts:?}");
    assert_ne!(answered, region);
}

async fn a_stopping_edge_loses_nobody(stage: &Stage) {
    let quiet: Arc<dyn Fn(&TurnRecord) + Send + Sync> = Arc::new(|_| {});
    let fleet = Fleet::start(2, &stage.recordings, &stage.resolver, &stage.options, &quiet);
    let answered = async |count| {
        let wait = async {
            while fleet.now().iter().any(|caller| caller.answered < count) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        waited.unwrap_or_else(|_| panic!("not {count} answers each: {:?}", fleet.now()));
    };
    answered(1).await;
    assert!(stage.world.terminate("edge-iad").await.unwrap(), "it stops when asked");
    answered(3).await;
    stage.world.restart("edge-iad").await.unwrap();
    let turns = fleet.finish().await;
    assert!(turns.iter().all(TurnRecord::completed), "{turns:#?}");
    let cuts: Vec<_> = turns.iter().flat_map(|turn| &turn.interruptions).collect();
    assert!(!cuts.is_empty(), "one of two callers used this edge");
    for cut in cuts {
        assert!(
            cut.code.is_some() && !cut.reason.is_empty(),
            "a Close frame with a reason: {cut:?}"
        );
    }
}

async fn without_a_control_plane_everything_serves(stage: &Stage) {
    let world = &stage.world;
    let before = crate::status(stage).await.number.unwrap();
    world.kill(world::layout::CONTROL_PLANE).await.unwrap();
    let answer = stage.resolver.answer().await.unwrap();
    for spread in 0..answer.addresses.len() {
        call(stage, spread).await;
    }

    world.restart("edge-dub").await.unwrap();
    world.restart("ns1").await.unwrap();
    let again = stage.resolver.answer().await.unwrap();
    let sorted = |mut addresses: Vec<std::net::IpAddr>| {
        addresses.sort();
        addresses
    };
    assert_eq!(
        sorted(again.addresses),
        sorted(answer.addresses),
        "the name server answers from its last good plan"
    );
    let edge_dub = world
        .layout()
        .topology
        .edges
        .values()
        .find(|edge| edge.id.as_str() == "edge-dub")
        .unwrap();
    let through = (0..2).map(async |spread| (call(stage, spread).await.edge, spread));
    let mut used = Vec::new();
    for placed in through {
        used.push(placed.await.0.unwrap().ip());
    }
    assert!(
        used.contains(&edge_dub.addresses[0]),
        "the edge that started without a control plane takes calls"
    );

    let at: Moment = daemon::clock::now();
    world.restart(world::layout::CONTROL_PLANE).await.unwrap();
    let status = world.healthy().await.unwrap();
    let after = status.number.unwrap();
    assert!(
        after.generation >= before.generation,
        "generations only grow: {before:?}, {after:?}"
    );
    println!(
        "  healthy again {:.1} s after the control plane's restart",
        daemon::clock::now().since(at).as_secs_f64()
    );
}
