//! The gRPC interface, directly and through an edge.

use std::{net::SocketAddr, sync::Arc};

use edge::{Edge, listener, metrics::Metrics};
use gateway::voice::{SynthesizeRequest, TranscribeRequest, voice_client::VoiceClient};
use prometheus_client::registry::Registry;
use speech::{
    SAMPLE_RATE, pcm,
    scripted::{sound_of, text_in},
    wav,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use topology::{RegionId, Snapshot, fixtures::three_primaries, snapshot::digest};

use crate::region::{PATIENCE, Region};

async fn client(address: SocketAddr) -> VoiceClient<Channel> {
    VoiceClient::connect(format!("http://{address}")).await.unwrap()
}

fn recording(text: &str) -> TranscribeRequest {
    let wav = wav::encode(&sound_of(text), SAMPLE_RATE).into();
    TranscribeRequest { wav }
}

/// Everything the interface can do, whoever is in between.
async fn check_calls(client: &mut VoiceClient<Channel>) {
    let heard = client.transcribe(recording("turn on the light")).await.unwrap();
    let heard = heard.into_inner();
    assert_eq!(
        (heard.text.as_str(), heard.region.as_str()),
        ("turn on the light", "eu-west")
    );
    assert_eq!(heard.segments.len(), 1);
    assert!(heard.confidence > 0.5 && heard.duration_s > 0.1, "{heard:?}");

    let text = "It is noon. The light is on.".to_owned();
    let mut spoken = client
        .synthesize(SynthesizeRequest { text, speed: None })
        .await
        .unwrap()
        .into_inner();
    let mut sentences = Vec::new();
    while let Some(audio) = spoken.message().await.unwrap() {
        assert_eq!(audio.sample_rate, SAMPLE_RATE);
        sentences.push(text_in(&pcm::from_s16le(&audio.pcm)));
    }
    assert_eq!(sentences.len(), 2, "{sentences:?}");
    assert!(
        spoken.trailers().await.unwrap().is_some(),
        "the status came behind the sound"
    );

    let wav = b"no sound at all".as_slice().into();
    let refused = client.transcribe(TranscribeRequest { wav }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let (text, speed) = ("hello".to_owned(), Some(9.0));
    let refused = client.synthesize(SynthesizeRequest { text, speed }).await.unwrap_err();
    assert!(refused.message().contains("speed"), "{refused}");
}

#[tokio::test]
async fn calls_are_answered_and_bad_ones_are_told_why() {
    let region = Region::start_with(crate::region::engines(), |limits| limits.body_bytes_max = 1 << 20).await;
    let mut client = client(region.http).await;
    check_calls(&mut client).await;
    let wav = vec![0; 2 << 20].into();
    let refused = client.transcribe(TranscribeRequest { wav }).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    // HTTP/1.1 is spoken on the same port.
    assert_eq!(reqwest::get(region.url("/health")).await.unwrap().status(), 200);
    drop(client);
    region.begin_stop();
    region.stopped().await;
}

/// An edge whose home is this region.
async fn edge_before(region: SocketAddr) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let mut snapshot: Snapshot = three_primaries();
    for known in snapshot.topology.regions.values_mut() {
        known.stacks.clear();
    }
    let home = RegionId::new("eu-west").unwrap();
    snapshot.topology.regions.get_mut(&home).unwrap().stacks = vec![region.into()];
    snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
    let example = include_str!("../../../../configs/edge.toml").replace("127.0.0.1:8080", "127.0.0.1:0");
    let config: edge::Config = daemon::config::parse("edge.toml", &example).unwrap();
    let listeners = listener::claim(&config, None, None).unwrap().listen().unwrap();
    let address = listeners[0].address().unwrap();
    let edge = Arc::new(Edge::new(config, Metrics::new(&mut Registry::default())));
    edge.apply(&snapshot);
    let stop = CancellationToken::new();
    let nobody = std::future::pending();
    let serving = tokio::spawn(listener::serve(
        edge.clone(),
        edge::workers::Workers::start(&edge).unwrap(),
        listeners,
        Default::default(),
        stop.clone(),
        nobody,
    ));
    (address, stop, serving)
}

#[tokio::test]
async fn the_same_through_an_edge_which_refuses_in_the_same_terms() {
    let region = Region::start().await;
    let (edge, stop, serving) = edge_before(region.http).await;
    let mut client = client(edge).await;
    check_calls(&mut client).await;

    // Many at once share a connection.
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.transcribe(recording("what time is it")).await })
        })
        .collect();
    for call in calls {
        let answer = call.await.unwrap().unwrap();
        assert_eq!(answer.metadata().get("meridian-region").unwrap(), "eu-west");
        assert_eq!(answer.into_inner().text, "what time is it");
    }

    region.begin_stop();
    region.stopped().await;
    let refused = client.transcribe(recording("is anybody there")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("no region"), "{refused}");

    stop.cancel();
    drop(client);
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
}
