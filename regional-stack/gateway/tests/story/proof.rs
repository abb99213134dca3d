//! A stack that requires an identity, and edges that prove theirs.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use identity::{
    Identity, Link, PeerId, Speaks, TrustError,
    ca::Leaf,
    files::{self, Files},
};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};
use topology::RegionId;
use world::authority::Folder;

use crate::region::{HANGS_AFTER, Region, engines, until_metric};

const ZONE: &str = "voice.example";

fn authority(folder: &Path) -> Folder {
    let authority = Folder::at(folder.to_owned());
    authority.create(ZONE, daemon::clock::now()).unwrap();
    authority
}

fn issue(authority: &Folder, role: &str, into: &Path) -> Files {
    let id = PeerId::new(ZONE, role.parse().unwrap()).unwrap();
    authority.issue(&Leaf::of(id), into, daemon::clock::now()).unwrap()
}

fn load(files: Files) -> Arc<Identity> {
    Identity::load(files, daemon::clock::now).unwrap()
}

/// A stack of eu-west with this mode, whose certificate lies in `folder/stack`.
async fn stack(authority: &Folder, folder: &Path, mode: &str) -> Region {
    let files = issue(authority, "stack/eu-west/a", &folder.join("stack"));
    let [certificate, key, trust] = [files.certificate, files.key, files.trust].map(|path| path.display().to_string());
    let lines = format!(
        "[identity]\nmode = \"{mode}\"\ncertificate = \"{certificate}\"\nkey = \"{key}\"\ntrust = \"{trust}\"\n"
    );
    Region::start_in("eu-west", &lines, engines(), |_| {}).await
}

async fn dial(identity: &Arc<Identity>, stack: SocketAddr) -> Link {
    let region = RegionId::new("eu-west").unwrap();
    identity::dial(Some(identity), &region, stack, Speaks::Http1)
        .await
        .unwrap()
}

async fn session(link: Link) -> Result<WebSocketStream<Link>, tokio_tungstenite::tungstenite::Error> {
    let opened = client_async("ws://stack/v1/realtime?model=gpt-realtime", link);
    let (mut socket, _) = timeout(HANGS_AFTER, opened).await.unwrap()?;
    let created = hear(&mut socket).await;
    assert!(created.to_text().unwrap().contains("session.created"));
    Ok(socket)
}

async fn hear(socket: &mut WebSocketStream<Link>) -> Message {
    timeout(HANGS_AFTER, socket.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_stack_serves_edges_that_prove_it_and_tells_others_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority(&folder.path().join("ca"));
    let region = stack(&authority, folder.path(), "required").await;
    let edge = load(issue(&authority, "edge/edge-dub", &folder.path().join("edge")));
    let link = dial(&edge, region.http).await;
    assert_eq!(
        link.peer().unwrap().id.to_string(),
        "spiffe://voice.example/stack/eu-west/a"
    );
    session(link).await.unwrap().close(None).await.unwrap();

    let plain = reqwest::get(region.url("/v1/models")).await.unwrap();
    assert_eq!(plain.status().as_u16(), 426);
    assert!(plain.text().await.unwrap().contains("use https:// and a certificate"));
    let refused = tonic::transport::Channel::from_shared(format!("http://{}", region.http)).unwrap();
    assert!(refused.connect().await.is_err() || !is_served(region.http).await);

    for role in ["dns/ns1", "operator/ada", "stack/eu-west/b"] {
        let own = load(issue(&authority, role, &folder.path().join(role.replace('/', "-"))));
        // In TLS 1.3 the caller learns of it with the first answer.
        let error = session(dial(&own, region.http).await).await.unwrap_err();
        let trust_error = TrustError::within(&error).cloned();
        assert_eq!(
            trust_error,
            Some(TrustError::Refused("CertificateUnknown".to_owned())),
            "{role}: {error}"
        );
    }
    until_metric(
        region.admin,
        "meridian_stack_connections_total{outcome=\"not-allowed\"} 3",
    )
    .await;
    until_metric(region.admin, "meridian_stack_connections_total{outcome=\"proven\"} 1").await;
    region.begin_stop();
    region.stopped().await;
}

async fn is_served(stack: SocketAddr) -> bool {
    let called = gateway::voice::voice_client::VoiceClient::connect(format!("http://{stack}")).await;
    let Ok(mut client) = called else { return false };
    let text = "Hello.".to_owned();
    let request = gateway::voice::SynthesizeRequest { text, speed: None };
    client.synthesize(request).await.is_ok()
}

#[tokio::test]
async fn permissive_serves_those_without_a_certificate_too() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority(&folder.path().join("ca"));
    let region = stack(&authority, folder.path(), "permissive").await;
    let edge = load(issue(&authority, "edge/edge-dub", &folder.path().join("edge")));
    session(dial(&edge, region.http).await).await.unwrap();
    assert!(
        reqwest::get(region.url("/v1/models"))
            .await
            .unwrap()
            .status()
            .is_success()
    );
    assert!(is_served(region.http).await);
    region.begin_stop();
    region.stopped().await;
}

/// The removal of a root counts at once: sessions of edges that rest on it leave after their turn, with a Close frame.
#[tokio::test]
async fn sessions_leave_when_the_root_of_their_edge_is_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let (old, next) = (
        authority(&folder.path().join("old")),
        authority(&folder.path().join("next")),
    );
    let region = stack(&old, folder.path(), "required").await;
    let roots = [&old, &next].map(|authority| files::read(&authority.trust()).unwrap());
    let trusts = |files: &Files, roots: &[String]| files::write(&files.trust, &roots.concat(), 0o644).unwrap();
    let own = Files::in_folder(&folder.path().join("stack"));
    trusts(&own, &roots);
    let edges = [(&old, "edge/edge-iad"), (&next, "edge/edge-dub")].map(|(authority, role)| {
        let files = issue(authority, role, &folder.path().join(role.replace('/', "-")));
        trusts(&files, &roots);
        load(files)
    });
    let mut first = session(dial(&edges[0], region.http).await).await.unwrap();
    // The stack reads its files every few seconds.
    let mut second = loop {
        if let Ok(session) = session(dial(&edges[1], region.http).await).await {
            break session;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    trusts(&own, &roots[1..]);
    match hear(&mut first).await {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Restart),
        other => panic!("expected a Close frame, got {other:?}"),
    }
    second.send(Message::Ping("still here".into())).await.unwrap();
    assert_eq!(hear(&mut second).await, Message::Pong("still here".into()));
    region.begin_stop();
    drop((first, second));
    region.stopped().await;
}
