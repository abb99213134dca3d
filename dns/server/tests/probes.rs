//! The responder as tools of others see it: dnspython asks what testers of protocols ask, and gdnsd and Knot answer the same
//! questions from a zone file.

#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use dns::{Metrics, RateLimit, Responder, serve};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, Record, RecordType},
};
use steering::Answers;
use tokio::{net::UdpSocket, process::Command, time::timeout};
use tokio_util::sync::CancellationToken;
use topology::{EdgeId, EdgeState, Moment, NodeId, Service, Snapshot, ZoneData, ZoneRecord, fixtures::three_primaries};

const HANGS_AFTER: Duration = Duration::from_secs(10);

fn record(name: &str, data: ZoneData) -> ZoneRecord {
    ZoneRecord {
        name: name.to_owned(),
        ttl_s: 60,
        data,
    }
}

/// A zone with every kind of record.
fn world() -> Snapshot {
    let mut snapshot = three_primaries();
    let caa = ZoneData::Caa {
        flags: 0,
        tag: "issue".to_owned(),
        value: "ca.example.net".to_owned(),
    };
    let many = (0..16).map(|last| {
        record(
            "many",
            ZoneData::Aaaa(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)),
        )
    });
    snapshot.topology.records = vec![
        record("_acme-challenge", ZoneData::Txt("token".to_owned())),
        record("_note", ZoneData::Txt("token".to_owned())),
        record("@", caa),
        record("*.lab", ZoneData::A([192, 0, 2, 9].into())),
        record("a.b.lab", ZoneData::A([192, 0, 2, 10].into())),
    ];
    snapshot.topology.records.extend(many);
    snapshot
}

/// Serves a snapshot until the test ends.
async fn serve(snapshot: &Snapshot) -> SocketAddr {
    let answers = Answers::compile(snapshot, Moment(0));
    let responder = Arc::new(Responder::new(answers, &NodeId::new("dns-1").unwrap(), [0; 16]));
    let sockets = serve::Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = sockets.address().unwrap();
    let limit = RateLimit { per_s: 0, slip: 0 };
    tokio::spawn(sockets.serve(responder, limit, Metrics::default(), CancellationToken::new()));
    address
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[tokio::test]
async fn dnspython_finds_nothing_to_complain_about() {
    let mut snapshot = world();
    snapshot.topology.service = Some(Service {
        alpn: vec!["h2".to_owned()],
    });
    let address = serve(&snapshot).await;
    let output = Command::new(root().join(".venv/bin/python"))
        .arg(root().join("tools/dns-probes/probe.py"))
        .args([address.ip().to_string(), address.port().to_string()])
        .output()
        .await
        .expect(".venv is missing; run tools/setup test");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("probes passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The zone of [`world`] with one edge out, as a file. All TTLs of the service are then 5 s. gdnsd changes the TTL of the
/// challenge, so that is left out.
fn zone_file() -> String {
    let mut text = "$ORIGIN voice.meridian.test.\n$TTL 5\n@ SOA ns1 hostmaster 1 3600 600 604800 5\n@ 300 NS ns1\n\
                    ns1 300 A 127.0.0.1\n@ A 127.0.1.1\nedge-iad A 127.0.1.1\nedge-dub A 127.0.1.2\n\
                    _note 60 TXT \"token\"\n@ 60 CAA 0 issue \"ca.example.net\"\n*.lab 60 A 192.0.2.9\n\
                    a.b.lab 60 A 192.0.2.10\n"
        .to_owned();
    for last in 0..16 {
        let _ = writeln!(
            text,
            "many 60 AAAA {}",
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
        );
    }
    text
}

fn gdnsd(listen: SocketAddr, folder: &Path) -> Command {
    for part in ["etc/zones", "run", "state"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    let config = format!(
        "options => {{ listen => \"{}:{}\", udp_threads => 1, tcp_threads => 1, run_dir => \"{path}/run\", state_dir => \"{path}/state\" }}\n",
        listen.ip(),
        listen.port(),
        path = folder.display()
    );
    std::fs::write(folder.join("etc/config"), config).unwrap();
    std::fs::write(folder.join("etc/zones/voice.meridian.test"), zone_file()).unwrap();
    let mut command = Command::new("gdnsd");
    command.arg("-c").arg(folder.join("etc")).arg("start");
    command
}

fn knot(listen: SocketAddr, folder: &Path) -> Command {
    let path = folder.display();
    let config = format!(
        "server:\n  rundir: {path}\n  listen: {}@{}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: {path}\nlog:\n  - target: stderr\n    any: warning\ntemplate:\n  - id: default\n    storage: {path}\n\
         zone:\n  - domain: voice.meridian.test\n    file: voice.zone\n",
        listen.ip(),
        listen.port()
    );
    std::fs::write(folder.join("knot.conf"), config).unwrap();
    std::fs::write(folder.join("voice.zone"), zone_file()).unwrap();
    let mut command = Command::new("knotd");
    command.arg("-c").arg(folder.join("knot.conf"));
    command
}

/// A process of another server, which ends with the test.
async fn start(mut command: Command, listen: SocketAddr) -> tokio::process::Child {
    // Debian installs servers in sbin, which is not on the PATH of ordinary users.
    let path = std::env::var("PATH").unwrap_or_default();
    let child = command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("gdnsd or knot is not installed; run tools/setup test");
    let waiting = Instant::now();
    while ask(listen, "voice.meridian.test.", RecordType::SOA, None)
        .await
        .is_none_or(|it| it.answers.is_empty())
    {
        assert!(waiting.elapsed() < HANGS_AFTER, "the other server does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child
}

/// Asks once; `None` when nothing comes within half a second.
async fn ask(server: SocketAddr, name: &str, kind: RecordType, payload: Option<u16>) -> Option<Message> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").await.ok()?;
    socket.send_to(&message.to_vec().unwrap(), server).await.ok()?;
    let mut reply = [0; 4096];
    let length = timeout(Duration::from_millis(500), socket.recv(&mut reply))
        .await
        .ok()?
        .ok()?;
    Message::from_vec(&reply[..length]).ok()
}

/// The parts of a reply in which servers must agree.
fn essence(reply: &Message) -> String {
    let lines = |records: &[Record]| {
        let line = |record: &Record| {
            let (name, kind) = (record.name.to_ascii().to_lowercase(), record.record_type());
            format!("{name} {} {kind} {}", record.ttl, record.data)
        };
        records.iter().map(line).collect::<BTreeSet<_>>()
    };
    format!(
        "{:?} aa={} tc={} edns={} {:?} {:?}",
        reply.metadata.response_code,
        reply.metadata.authoritative,
        reply.metadata.truncation,
        reply.edns.is_some(),
        lines(&reply.answers),
        lines(&reply.authorities)
    )
}

#[tokio::test]
async fn gdnsd_and_knot_say_the_same() {
    let mut snapshot = world();
    snapshot.dns_ttl_s = 5;
    let dublin = EdgeId::new("edge-dub").unwrap();
    snapshot.plan.edges.insert(dublin, EdgeState::Drained);
    let ours = serve(&snapshot).await;
    let folder = tempfile::tempdir().unwrap();
    for (peer, start_peer) in [("gdnsd", gdnsd as fn(SocketAddr, &Path) -> Command), ("knot", knot)] {
        let home = folder.path().join(peer);
        std::fs::create_dir_all(&home).unwrap();
        let listen = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _running = start(start_peer(listen, &home), listen).await;
        for name in [
            "voice.meridian.test.",
            "VOICE.meridian.TEST.",
            "edge-iad.voice.meridian.test.",
            "edge-dub.voice.meridian.test.",
            "ns1.voice.meridian.test.",
            "_note.voice.meridian.test.",
            "nobody.voice.meridian.test.",
            "x.edge-iad.voice.meridian.test.",
            "lab.voice.meridian.test.",
            "b.lab.voice.meridian.test.",
            "a.b.lab.voice.meridian.test.",
            "x.b.lab.voice.meridian.test.",
            "any.lab.voice.meridian.test.",
            "any.thing.lab.voice.meridian.test.",
            "example.com.",
        ] {
            for kind in [
                RecordType::A,
                RecordType::AAAA,
                RecordType::NS,
                RecordType::SOA,
                RecordType::TXT,
                RecordType::CAA,
                RecordType::HTTPS,
                RecordType::MX,
                RecordType::Unknown(65_280),
            ] {
                for payload in [None, Some(1232)] {
                    let what = format!("{peer}: {name} {kind} {payload:?}");
                    let [mine, theirs] = [ours, listen].map(|server| ask(server, name, kind, payload));
                    let (mine, theirs) = (mine.await.expect(&what), theirs.await.expect(&what));
                    assert_eq!(essence(&mine), essence(&theirs), "{what}");
                }
            }
        }
    }
}
