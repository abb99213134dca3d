//! Sessions that end: lost clients, failed engines and drains.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_instead_of_remembered() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let update = Message::text(
        json!({ "type": "session.update", "session": { "instructions": "x".repeat(10_000) } }).to_string(),
    );
    // This fills the buffers of the socket and of the stack; then the stack stops reading and closes with a reason.
    let flood = async {
        loop {
            if device.socket.send(update.clone()).await.is_err() {
                return;
            }
        }
    };
    timeout(HANGS_AFTER, flood).await.expect("the region gives up on us");
    region
        .until_metric("meridian_stack_sessions_closed_total{reason=\"slow_client\"} 1")
        .await;
}

#[tokio::test]
async fn a_failing_engine_fails_the_turn_and_not_the_session() {
    let engines = gateway::Engines {
        recognizer: std::sync::Arc::new(speech::scripted::ScriptedRecognizer::in_turn([Err("on fire")])),
        ..engines()
    };
    let region = Region::start_with(engines, |_| {}).await;
    let mut device = Device::call(&region).await;
    // A second of a plain tone: speech to the detector, no words to the recognizer.
    let tone: Vec<f32> = (0..SAMPLE_RATE).map(|at| 0.2 * (at as f32 * 0.07).sin()).collect();
    device
        .send_audio(
            &[
                vec![0.0; SAMPLE_RATE as usize / 2],
                tone,
                vec![0.0; SAMPLE_RATE as usize],
            ]
            .concat(),
        )
        .await;
    let events = device.until("meridian.turn").await;
    assert!(types(&events).contains(&"conversation.item.input_audio_transcription.failed"));
    let done = events.iter().find(|event| event["type"] == "response.done").unwrap();
    assert_eq!(done["response"]["status"], "failed");
    assert!(
        done["response"]["status_details"]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("on fire")
    );

    device.speak("stop").await;
    assert_eq!(spoken_in(&device.until("meridian.turn").await).unwrap(), "okay");
}

#[tokio::test]
async fn work_for_a_device_that_hung_up_is_not_done() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut patient = Device::call(&region).await;
    patient.speak("help").await;
    patient.until("response.created").await;
    let mut gone = Device::call(&region).await;
    gone.speak("stop").await;
    gone.until("response.created").await;
    drop(gone);
    region.until_metric("meridian_stack_sessions 1").await;

    drop(gate);
    patient.until("meridian.turn").await;
    region
        .until_metric("meridian_stack_engine_jobs_total{engine=\"asr\",outcome=\"cancelled\"} 1")
        .await;
}

#[tokio::test]
async fn a_session_can_be_resumed_by_its_id() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device.speak("set a timer for ten minutes").await;
    device.until("meridian.turn").await;
    let session = device.session.clone();
    device.socket.close(None).await.unwrap();

    let mut device = Device::call_with(&region, &format!("&resume={session}")).await;
    assert_eq!(device.session, session);
    device.speak("cancel the timer").await;
    assert_eq!(
        spoken_in(&device.until("meridian.turn").await).unwrap(),
        "timer cancelled"
    );

    let stranger = Device::call_with(&region, "&resume=sess_unknown").await;
    assert_ne!(stranger.session, "sess_unknown");
}

#[tokio::test]
async fn a_draining_region_finishes_the_turn_then_says_goodbye() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut talking = Device::call(&region).await;
    let mut quiet = Device::call(&region).await;
    talking.speak("help").await;
    talking.until("response.created").await;

    region.begin_stop();
    assert_eq!(quiet.closed().await, (1012, "region draining".to_owned()));
    let ready = reqwest::get(format!("http://{}/ready", region.admin)).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(
        connect_async(format!("ws://{}/v1/realtime", region.http))
            .await
            .is_err()
    );

    drop(gate);
    let events = talking.until("meridian.turn").await;
    assert!(spoken_in(&events).unwrap().starts_with("you can ask"));
    assert_eq!(talking.closed().await, (1012, "region draining".to_owned()));
    region.stopped().await;
}

#[tokio::test]
async fn a_turn_that_does_not_end_is_cut_when_the_drain_is_over() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |limits| limits.drain_max.0 = Duration::ZERO).await;
    let mut device = Device::call(&region).await;
    device.speak("help").await;
    device.until("response.created").await;
    region.begin_stop();
    assert_eq!(device.closed().await, (1012, "region draining".to_owned()));
    drop(gate);
    region.stopped().await;
}

/// RFC 6455 §8.1: the close code tells the peer.
#[tokio::test]
async fn a_text_that_is_not_utf_8_closes_the_session_with_1007() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let MaybeTlsStream::Plain(tcp) = device.socket.get_mut() else {
        panic!("the region speaks plaintext");
    };
    tcp.write_all(&[0x81, 0x81, 0, 0, 0, 0, 0xff]).await.unwrap();
    let closed = loop {
        match timeout(HANGS_AFTER, device.socket.next()).await.unwrap() {
            Some(Ok(Message::Close(frame))) => break frame.unwrap(),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(closed.code), 1007);
    assert!(closed.reason.contains("UTF-8"), "{closed}");
}
