//! Stories of an edge and stacks that prove to each other who they are.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use identity::{
    Acceptor, Event, Identity, Mode, PeerId,
    ca::{self, Leaf},
    files::{self, Files},
};
use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use topology::Moment;
use world::authority::Folder;

use crate::support::{
    Fate, Stack, World,
    calls::{self, WINDOW},
    hang_means_failure, http, open, planned_at, stack,
};

const ZONE: &str = "voice.example";
const HOUR: Duration = Duration::from_secs(3_600);

/// An authority, and the folders of those that it issued certificates to.
struct Issued {
    folder: tempfile::TempDir,
    authority: Folder,
}

impl Issued {
    fn new() -> Self {
        Self::at(daemon::clock::now())
    }

    fn at(now: Moment) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Folder::at(folder.path().join("ca"));
        authority.create(ZONE, now).unwrap();
        Self { folder, authority }
    }

    /// The files of this role, with a new certificate.
    fn files(&self, role: &str) -> Files {
        self.issue(role, ca::NODE_LIFE, daemon::clock::now())
    }

    fn issue(&self, role: &str, life: Duration, from: Moment) -> Files {
        let id = PeerId::new(ZONE, role.parse().unwrap()).unwrap();
        let leaf = Leaf { life, ..Leaf::of(id) };
        let into = self.folder.path().join(role.replace('/', "-"));
        self.authority.issue(&leaf, &into, from).unwrap()
    }

    fn identity(&self, role: &str) -> Arc<Identity> {
        load(self.files(role))
    }

    fn root(&self) -> String {
        files::read(&self.authority.trust()).unwrap()
    }
}

fn load(files: Files) -> Arc<Identity> {
    Identity::load(files, daemon::clock::now).unwrap()
}

fn trust(files: &Files, roots: &[String]) {
    files::write(&files.trust, &roots.concat(), 0o644).unwrap();
}

fn hours_ago(hours: u32) -> Moment {
    Moment(daemon::clock::now().0 - (hours * HOUR).as_millis() as u64)
}

/// An event at an acceptor.
type Events = Arc<Mutex<Vec<Event>>>;

/// A played stack behind a listener that counts its peers.
async fn behind(identity: Arc<Identity>, behaviour: Stack) -> (SocketAddr, Events) {
    let inner = stack(behaviour).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let events = Events::default();
    let noted = events.clone();
    let acceptor = Arc::new(Acceptor::new(Some((identity, Mode::Required)), move |event| {
        noted.lock().push(event);
    }));
    tokio::spawn(async move {
        while let Ok((tcp, source)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut link = acceptor.admit_to_stack(tcp, source).await?;
                if link.begins_with_http2().await {
                    return calls::serve(link).await;
                }
                let mut inner = TcpStream::connect(inner).await.ok()?;
                tokio::io::copy_bidirectional(&mut link, &mut inner)
                    .await
                    .ok()
                    .map(|_| ())
            });
        }
    });
    (address, events)
}

fn faults(world: &World, region: &str, fault: &str) -> f64 {
    let name = format!("meridian_edge_faults_total{{region=\"{region}\",fault=\"{fault}\"}}");
    world.metric(&name).unwrap_or_default()
}

fn distrust(world: &World, region: &str, of: &str) -> f64 {
    let name = format!("meridian_edge_distrust_total{{region=\"{region}\",of=\"{of}\"}}");
    world.metric(&name).unwrap_or_default()
}

/// No stack of the region is ejected, and nothing is reported that the verdict could hold against it.
fn check_unblamed(world: &World, region: &str) {
    assert_eq!(faults(world, region, "region"), 0.0, "{region}");
    let ejections = format!("meridian_edge_ejections_total{{region=\"{region}\"}}");
    assert_eq!(world.metric(&ejections), None, "{region}");
    let failed = world.observed().get(region).map_or(0, |(_, failed)| *failed);
    assert_eq!(failed, 0, "{region}");
}

const MODELS: &str = "GET /v1/models HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
const TRANSCRIBE: &str = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: 5\r\nConnection: \
                          close\r\n\r\nhello";

/// Bodies that are longer than this go to one region as they come.
const LITTLE_IS_HELD: &str = "[limits]\nbody_buffer_bytes_max = 100000\n[hedge]\nbody_bytes_max = 100000\n";

/// Asks in every way in which an edge asks a stack.
async fn check_served(world: &World, region: &str) {
    let expected = format!("meridian-region: {region}\r\n");
    for request in [MODELS, TRANSCRIBE] {
        let answer = world.ask(request).await.to_lowercase();
        assert!(
            answer.starts_with("http/1.1 200") && answer.contains(&expected),
            "{answer}"
        );
    }
    // Longer than the part that the edge reads before it chooses a region.
    let length = 1 << 20;
    let head = format!("POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\n");
    let long = format!("{head}Connection: close\r\n\r\n{}", "x".repeat(length));
    let answer = world.ask(&long).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("xxxxx"),
        "{answer:.300}"
    );
    for window in [WINDOW, WINDOW] {
        let tcp = TcpStream::connect(world.address).await.unwrap();
        let (answer, mut body) = calls::begin(tcp, window).await;
        body.send_data("hello".into(), true).unwrap();
        let status = hang_means_failure(calls::status(answer)).await;
        assert_eq!(status.as_deref(), Some("0"));
    }
    let mut session = world.open(&[]).await;
    assert_eq!(session.header("meridian-region"), region);
    session.hear().await;
    session.say("a").await;
    session.hear().await;
    session.leave().await;
}

#[tokio::test]
async fn every_way_to_a_stack_is_proven_at_both_ends() {
    let fleet = Issued::new();
    let (address, events) = behind(fleet.identity("stack/eu-west/a"), Stack::Serves(Fate::Lives)).await;
    let snapshot = planned_at(&[("eu-west", address)]).await;
    let world = World::proving(LITTLE_IS_HELD, &snapshot, Some(fleet.identity("edge/edge-dub")));
    check_served(&world, "eu-west").await;
    check_unblamed(&world, "eu-west");
    let events = events.lock().clone();
    assert!(events.iter().all(|event| *event == Event::Proven), "{events:?}");
    assert!(events.len() < 8, "connections were kept: {events:?}");
}

/// The topology says where a region is. Whoever answers there has to be it.
#[tokio::test]
async fn whoever_is_no_stack_of_the_region_gets_no_caller_and_harms_no_region() {
    let (fleet, others, old) = (Issued::new(), Issued::new(), Issued::at(hours_ago(10)));
    let edge = fleet.files("edge/edge-dub");
    trust(&edge, &[fleet.root(), old.root()]);
    let edge = load(edge);
    let expired = old.issue("stack/eu-west/a", HOUR, hours_ago(10));
    let (of_other, _) = behind(others.identity("stack/eu-west/a"), Stack::Serves(Fate::Lives)).await;
    let (as_other, _) = behind(fleet.identity("stack/us-east/a"), Stack::Serves(Fate::Lives)).await;
    let (as_edge, _) = behind(fleet.identity("edge/edge-iad"), Stack::Serves(Fate::Lives)).await;
    let (too_late, _) = behind(load(expired), Stack::Serves(Fate::Lives)).await;
    let (plain, _) = http::stack(async |mut tcp: TcpStream| {
        // As a stack without `[identity]` takes the beginning of TLS.
        let _ = tcp.read(&mut [0; 512]).await;
        http::say(&mut tcp, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    for (what, impostor) in [
        ("another region's", as_other),
        ("an edge's", as_edge),
        ("another authority's", of_other),
        ("an expired one", too_late),
        ("none, and no TLS", plain),
    ] {
        let (genuine, _) = behind(fleet.identity("stack/us-east/a"), Stack::Serves(Fate::Lives)).await;
        let snapshot = planned_at(&[("eu-west", impostor), ("us-east", genuine)]).await;
        let world = World::proving(LITTLE_IS_HELD, &snapshot, Some(edge.clone()));
        check_served(&world, "us-east").await;
        assert_eq!(faults(&world, "eu-west", "region"), 0.0, "{what}");
        check_unblamed(&world, "eu-west");
        check_unblamed(&world, "us-east");
        assert!(faults(&world, "eu-west", "nobody") >= 5.0, "{what}");
        assert!(distrust(&world, "eu-west", "stack") >= 5.0, "{what}");
        // With an impostor alone the edge serves no device, and sends none there.
        let alone = World::proving("", &planned_at(&[("eu-west", impostor)]).await, Some(edge.clone()));
        let refused = open(alone.address, &[]).await.err().unwrap();
        assert_eq!(refused.status().as_u16(), 503, "{what}");
        assert!(alone.ask(MODELS).await.starts_with("HTTP/1.1 503"), "{what}");
        check_unblamed(&alone, "eu-west");
    }
}

/// Control planes are gone for more than a day, and the issuer's year is over: nobody gets a certificate any more.
#[tokio::test]
async fn a_world_whose_issuer_has_ended_still_answers_calls() {
    const YEAR_H: u32 = 365 * 24;
    let fleet = Issued::at(hours_ago(YEAR_H + 1));
    // The last leaves that it signed, which have ended too.
    let stacks = load(fleet.issue("stack/eu-west/a", 7 * HOUR, hours_ago(9)));
    let edge = load(fleet.issue("edge/edge-dub", 4 * HOUR, hours_ago(6)));
    let (address, events) = behind(stacks.clone(), Stack::Serves(Fate::Lives)).await;
    let snapshot = planned_at(&[("eu-west", address)]).await;
    let world = World::proving(LITTLE_IS_HELD, &snapshot, Some(edge.clone()));
    check_served(&world, "eu-west").await;
    check_unblamed(&world, "eu-west");
    for of in ["edge", "stack"] {
        assert_eq!(distrust(&world, "eu-west", of), 0.0, "{of}");
    }
    let events = events.lock().clone();
    assert!(events.iter().all(|event| *event == Event::Proven), "{events:?}");
    assert!(events.len() < 8, "connections were kept: {events:?}");
    let links = u64::try_from(events.len()).unwrap();
    assert_eq!((edge.expired_peers(), stacks.expired_peers()), (links, links));
}

/// Every stack refuses it, and all of them are well.
#[tokio::test]
async fn an_edge_whose_own_certificate_is_bad_blames_itself_until_it_is_renewed() {
    let (fleet, others, old) = (Issued::new(), Issued::new(), Issued::at(hours_ago(10)));
    let stacks = fleet.files("stack/eu-west/a");
    trust(&stacks, &[fleet.root(), old.root()]);
    let (eu_west, events) = behind(load(stacks), Stack::Serves(Fate::Lives)).await;
    let (us_east, _) = behind(fleet.identity("stack/us-east/a"), Stack::Serves(Fate::Lives)).await;
    let snapshot = planned_at(&[("eu-west", eu_west), ("us-east", us_east)]).await;
    let of_another = others.files("edge/edge-dub");
    let expired = old.issue("edge/edge-dub", HOUR, hours_ago(10));
    for (reason, own) in [
        ("unknown-issuer", of_another.clone()),
        ("expired", expired),
        ("not-allowed", fleet.files("dns/ns1")),
    ] {
        trust(&own, &[fleet.root(), others.root(), old.root()]);
        let world = World::proving("", &snapshot, Some(load(own)));
        for _ in 0..2 {
            let refused = open(world.address, &[]).await.err().unwrap();
            assert_eq!(refused.status().as_u16(), 503, "{reason}");
            for request in [MODELS, TRANSCRIBE] {
                let answer = world.ask(request).await;
                assert!(answer.starts_with("HTTP/1.1 503"), "{reason}: {answer}");
            }
        }
        let tcp = TcpStream::connect(world.address).await.unwrap();
        let (answer, mut body) = calls::begin(tcp, WINDOW).await;
        body.send_data("hello".into(), true).unwrap();
        assert_eq!(
            hang_means_failure(calls::status(answer)).await.as_deref(),
            Some("14"),
            "{reason}"
        );
        for region in ["eu-west", "us-east"] {
            check_unblamed(&world, region);
            assert!(faults(&world, region, "edge") >= 7.0, "{reason}, {region}");
            assert!(distrust(&world, region, "edge") >= 7.0, "{reason}, {region}");
        }
        assert!(
            events.lock().contains(&Event::Refused(reason)),
            "{reason}: {:?}",
            events.lock()
        );
    }

    // Its certificate is issued anew under the root that stacks trust: nothing else has to happen.
    let own = load(of_another.clone());
    let world = World::proving("", &snapshot, Some(own.clone()));
    assert!(open(world.address, &[]).await.is_err());
    copy(&fleet.files("edge/edge-dub"), &of_another);
    assert_eq!(own.reload(), identity::Reload::Taken);
    let session = world.open(&[]).await;
    assert_eq!(session.header("meridian-region"), "eu-west");
}

fn copy(from: &Files, to: &Files) {
    let copy = |from: &Path, to: &Path, mode| files::write(to, &files::read(from).unwrap(), mode).unwrap();
    copy(&from.trust, &to.trust, 0o644);
    copy(&from.key, &to.key, 0o600);
    copy(&from.certificate, &to.certificate, 0o644);
}

/// Certificates and roots are exchanged under sessions, which notice nothing. Only the root that is taken away ends those that rest on it.
#[tokio::test]
async fn sessions_outlive_the_certificates_with_which_they_began() {
    let (fleet, next) = (Issued::new(), Issued::new());
    let both = [fleet.root(), next.root()];
    let (stack_files, edge_files) = (fleet.files("stack/eu-west/a"), fleet.files("edge/edge-dub"));
    trust(&stack_files, &both);
    trust(&edge_files, &both);
    let (own, edge) = (load(stack_files.clone()), load(edge_files.clone()));
    let (address, events) = behind(own.clone(), Stack::Echoes).await;
    let world = World::proving("", &planned_at(&[("eu-west", address)]).await, Some(edge.clone()));
    let mut session = world.open(&[]).await;
    session.check_echo("before").await;

    // Renewed under the same root, then under the next.
    for issuer in [&fleet, &next] {
        for (files, identity, role) in [
            (&stack_files, &own, "stack/eu-west/a"),
            (&edge_files, &edge, "edge/edge-dub"),
        ] {
            let renewed = issuer.issue(role, ca::NODE_LIFE, daemon::clock::now());
            trust(&renewed, &both);
            copy(&renewed, files);
            let _ = identity.reload();
        }
        assert_eq!(edge.own().serial, own_serial(&edge_files));
        session.check_echo("meanwhile").await;
        world.open(&[]).await.check_echo("new").await;
    }
    assert!(events.lock().iter().all(|event| *event == Event::Proven));

    // The first session began under the old root, which goes.
    trust(&edge_files, &both[1..]);
    assert_eq!(edge.reload(), identity::Reload::Taken);
    world.open(&[]).await.check_echo("new").await;
    session.say("after").await;
    session.check_closed(1012, "region eu-west lost; reconnect").await;
    check_unblamed(&world, "eu-west");
}

fn own_serial(files: &Files) -> String {
    ca::peer_of(&files::read(&files.certificate).unwrap()).unwrap().serial
}

/// A stack that demands a certificate tells an edge in plain text so, and the edge blames itself.
#[tokio::test]
async fn an_edge_in_plain_text_is_told_to_prove_itself() {
    let fleet = Issued::new();
    let (address, events) = behind(fleet.identity("stack/eu-west/a"), Stack::Serves(Fate::Lives)).await;
    let world = World::of("", &planned_at(&[("eu-west", address)]).await);
    let refused = open(world.address, &[]).await.err().unwrap();
    assert_eq!(refused.status().as_u16(), 503);
    // The stack's text is meant for the edge, and a device could do nothing about it.
    let answer = world.ask(MODELS).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("no_region"),
        "{answer}"
    );
    check_unblamed(&world, "eu-west");
    assert!(faults(&world, "eu-west", "edge") >= 2.0);
    assert!(distrust(&world, "eu-west", "edge") >= 2.0);
    let events = events.lock();
    assert!(events.len() >= 2 && events.iter().all(|event| *event == Event::Refused("plain-text")));
}
