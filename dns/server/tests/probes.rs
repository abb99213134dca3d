//! The responder as tools of others see it: dnspython asks what testers of protocols ask, and gdnsd and Knot answer the same
//! questions from a zone file. kdig, delv, dnsviz and dnspython check signatures and denials.

#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use dns::{Metrics, RateLimit, Responder, Signer, metrics, serve, signer};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, Record, RecordType},
};
use steering::Answers;
use tokio::{net::UdpSocket, process::Command, time::timeout};
use tokio_util::sync::CancellationToken;
use topology::{EdgeId, EdgeState, Moment, NodeId, Service, Snapshot, ZoneData, ZoneRecord, fixtures::three_primaries};

/// Another server beside all tests of a small machine.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// dnsviz asks a hundred questions one by one.
const TOOL_HANGS_AFTER: Duration = Duration::from_secs(60);

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
    serve_as(snapshot, None).await
}

async fn serve_as(snapshot: &Snapshot, signer: Option<Signer>) -> SocketAddr {
    let answers = Answers::compile(snapshot, Moment(0));
    let mut responder = Responder::new(answers, &NodeId::new("dns-1").unwrap(), [0; 16]);
    let signer = signer.map(Arc::new);
    if let Some(signer) = &signer {
        responder = responder.signed_by(signer.clone());
    }
    let responder = Arc::new(responder);
    if let Some(signer) = signer {
        tokio::spawn(signer::keep_signed(signer, responder.clone()));
    }
    let sockets = serve::Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = sockets.address().unwrap();
    let limit = RateLimit {
        per_s: 0,
        slip: 0,
        ..RateLimit::default()
    };
    tokio::spawn(sockets.serve(responder, limit, Metrics::default(), CancellationToken::new()));
    address
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every kind of record, also those for services.
fn whole_world() -> Snapshot {
    let mut snapshot = world();
    snapshot.topology.service = Some(Service {
        alpn: vec!["h2".to_owned()],
    });
    snapshot
}

#[tokio::test]
async fn dnspython_finds_nothing_to_complain_about() {
    let address = serve(&whole_world()).await;
    let said = probe(address, &[]).await;
    assert!(said.contains("probes passed"), "{said}");
}

async fn probe(server: SocketAddr, also: &[&str]) -> String {
    let script = root().join("tools/dns-probes/probe.py");
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let mut arguments = vec![script.to_str().unwrap(), &ip, &port];
    arguments.extend(also);
    run(root().join(".venv/bin/python"), &arguments).await
}

/// The output of a tool, which must succeed.
async fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let program = program.as_ref();
    let output = timeout(
        TOOL_HANGS_AFTER,
        Command::new(program).args(arguments).kill_on_drop(true).output(),
    )
    .await
    .unwrap_or_else(|_| panic!("{} {arguments:?} hangs", program.display()))
    .unwrap_or_else(|error| panic!("{}: {error}; run tools/setup test", program.display()));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{} {arguments:?}: {said}{failed}",
        program.display()
    );
    format!("{said}{failed}")
}

/// A signed zone with two keys, as in the middle of a rollover.
struct Signed {
    server: SocketAddr,
    folder: tempfile::TempDir,
    /// The DNSKEY records: flags, protocol, algorithm and key.
    keys: Vec<String>,
}

async fn signed() -> Signed {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for name in ["new.key", "old.key"] {
        let file = folder.path().join(name);
        let path = file.to_str().unwrap();
        run(
            "openssl",
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-out",
                path,
            ],
        )
        .await;
        files.push(file);
    }
    let signer = Signer::read(&files, Metrics::default()).unwrap();
    let server = serve_as(&whole_world(), Some(signer)).await;
    let said = kdig(server, &["voice.meridian.test", "DNSKEY", "+short", "+tcp"]).await;
    let keys: Vec<String> = said.lines().map(str::to_owned).collect();
    assert_eq!(keys.len(), 2, "{said}");
    Signed { server, folder, keys }
}

async fn kdig(server: SocketAddr, arguments: &[&str]) -> String {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    run("kdig", &[&[at.as_str(), "-p", &port], arguments].concat()).await
}

impl Signed {
    /// A file in the format of BIND with the keys that delv is to trust.
    fn anchors(&self, keys: &[String]) -> String {
        let file = self.folder.path().join("anchors");
        let mut text = "trust-anchors {\n".to_owned();
        for key in keys {
            let (facts, key) = key.rsplit_once(' ').unwrap();
            let _ = writeln!(text, "voice.meridian.test. static-key {facts} \"{key}\";");
        }
        std::fs::write(&file, text + "};\n").unwrap();
        file.to_str().unwrap().to_owned()
    }
}

/// Names and types, and whether there is such a record.
const ASKED: [(&str, &str, bool); 17] = [
    ("voice.meridian.test", "A", true),
    ("VOICE.meridian.test", "HTTPS", true),
    ("voice.meridian.test", "SVCB", true),
    ("voice.meridian.test", "NS", true),
    ("voice.meridian.test", "SOA", true),
    ("voice.meridian.test", "CAA", true),
    ("voice.meridian.test", "DNSKEY", true),
    ("voice.meridian.test", "AAAA", false),
    ("voice.meridian.test", "DS", false),
    ("edge-iad.voice.meridian.test", "A", true),
    ("many.voice.meridian.test", "AAAA", true),
    ("_note.voice.meridian.test", "TXT", true),
    ("any.thing.lab.voice.meridian.test", "A", true),
    ("any.thing.lab.voice.meridian.test", "TXT", false),
    ("b.lab.voice.meridian.test", "A", false),
    ("nobody.voice.meridian.test", "A", false),
    ("x.edge-iad.voice.meridian.test", "MX", false),
];

impl Signed {
    async fn delv(&self, trusted: &[String], name: &str, kind: &str) -> String {
        let (at, port) = (format!("@{}", self.server.ip()), self.server.port().to_string());
        let anchors = self.anchors(trusted);
        run(
            "delv",
            &[
                &at,
                "-p",
                &port,
                "-a",
                &anchors,
                "+root=voice.meridian.test",
                name,
                kind,
            ],
        )
        .await
    }
}

#[tokio::test]
async fn delv_validates_every_answer_and_every_denial() {
    let signed = signed().await;
    // The parent answers for DS.
    for (name, kind, is_there) in ASKED.into_iter().filter(|asked| asked.1 != "DS") {
        let said = signed.delv(&signed.keys, name, kind).await;
        let expected = if is_there {
            "; fully validated"
        } else {
            "; negative response, fully validated"
        };
        assert!(said.contains(expected), "{name} {kind}: {said}");
    }
    // In the middle of a rollover the parent may name either key.
    for key in &signed.keys {
        let said = signed.delv(std::slice::from_ref(key), "voice.meridian.test", "A").await;
        assert!(said.contains("; fully validated"), "{key}: {said}");
    }
}

#[tokio::test]
async fn kdig_sees_signatures_only_when_it_asks_for_them() {
    let signed = signed().await;
    for (name, kind, is_there) in ASKED {
        let said = kdig(signed.server, &[name, kind, "+dnssec", "+norec"]).await;
        assert!(said.contains("RRSIG") && said.contains("do"), "{name} {kind}: {said}");
        assert_eq!(said.contains("\tNSEC\t"), !is_there, "{name} {kind}: {said}");
        // A client that does not know compact denials hears NOERROR.
        assert!(said.contains("status: NOERROR"), "{name} {kind}: {said}");
        let said = kdig(signed.server, &[name, kind, "+norec"]).await;
        assert!(
            !said.contains("RRSIG") && !said.contains("NSEC"),
            "{name} {kind}: {said}"
        );
        let exists = !["nobody", "x.edge"].iter().any(|none| name.starts_with(none));
        assert_eq!(said.contains("status: NOERROR"), exists, "{name} {kind}: {said}");
    }
}

#[tokio::test]
async fn kdig_asks_over_tls_and_verifies_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["ns1.voice.meridian.test".to_owned()]).unwrap();
    let settings = dns::tls::Settings {
        listen: Vec::new(),
        certificate: folder.path().join("dns.crt"),
        key: folder.path().join("dns.key"),
    };
    std::fs::write(&settings.certificate, made.cert.pem()).unwrap();
    std::fs::write(&settings.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&settings.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let tls = Arc::new(dns::tls::Tls::load(&settings).unwrap());
    let answers = Answers::compile(&whole_world(), Moment(0));
    let responder = Arc::new(Responder::new(answers, &NodeId::new("dns-1").unwrap(), [0; 16]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (server, metrics, stop) = (
        listener.local_addr().unwrap(),
        Metrics::default(),
        CancellationToken::new(),
    );
    let serving = tokio::spawn(serve::serve_tls(
        listener,
        tls,
        responder,
        metrics.clone(),
        stop.clone(),
    ));

    // Bytes that are no TLS, and a client that says nothing, delay nobody.
    let _silent = tokio::net::TcpStream::connect(server).await.unwrap();
    let mut plain = tokio::net::TcpStream::connect(server).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, &[0; 64]).await.unwrap();
    let trusted = format!("+tls-ca={}", settings.certificate.display());
    let named = "+tls-hostname=ns1.voice.meridian.test";
    for kind in ["A", "HTTPS", "NS"] {
        let said = kdig(server, &[&trusted, named, "voice.meridian.test", kind]).await;
        assert!(
            said.contains("status: NOERROR") && said.contains("TLS session"),
            "{said}"
        );
    }
    let labels = metrics::QueryLabels {
        qtype: metrics::QueryType::Https,
        rcode: metrics::Rcode::NoError,
        transport: metrics::TransportLabel::Tls,
    };
    assert_eq!(metrics.queries.get_or_create(&labels).get(), 1);
    stop.cancel();
    serving.await.unwrap();
    assert!(tokio::net::TcpStream::connect(server).await.is_err());
}

/// The findings of dnsviz about a server.
async fn dnsviz(server: SocketAddr, folder: &Path) -> String {
    let server = format!(
        "voice.meridian.test+:ns1.voice.meridian.test={}:{}",
        server.ip(),
        server.port()
    );
    let probed = folder.join("probed.json");
    let (dnsviz, probed) = (root().join(".venv/bin/dnsviz"), probed.to_str().unwrap());
    let names = [
        "voice.meridian.test",
        "edge-iad.voice.meridian.test",
        "any.lab.voice.meridian.test",
    ];
    let probe = [&["probe", "-A", "-x", &server, "-o", probed], &names[..]].concat();
    run(&dnsviz, &probe).await;
    run(&dnsviz, &["grok", "-r", probed, "-l", "info"]).await
}

#[tokio::test]
async fn dnsviz_finds_neither_errors_nor_warnings() {
    let signed = signed().await;
    let folder = tempfile::tempdir().unwrap();
    for (server, is_signed) in [(signed.server, true), (serve(&whole_world()).await, false)] {
        let found = dnsviz(server, folder.path()).await;
        let valid = found.matches("\"status\": \"VALID\"").count();
        assert_eq!(valid > 20, is_signed, "{found}");
        assert!(found.contains("NOERROR"), "{found}");
        for complaint in ["\"errors\"", "\"warnings\"", "INVALID", "BOGUS", "EXPIRED"] {
            assert!(!found.contains(complaint), "signed {is_signed}: {found}");
        }
    }
}

#[tokio::test]
async fn an_unsigned_zone_has_neither_signatures_nor_denials() {
    let server = serve(&whole_world()).await;
    for (name, kind, is_there) in ASKED {
        let said = kdig(server, &[name, kind, "+dnssec", "+norec"]).await;
        assert!(
            !said.contains("RRSIG") && !said.contains("NSEC"),
            "{name} {kind}: {said}"
        );
        let is_there = is_there && kind != "DNSKEY";
        assert_eq!(said.contains("ANSWER: 0"), !is_there, "{name} {kind}: {said}");
    }
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let said = run("delv", &[&at, "-p", &port, "-i", "voice.meridian.test", "A"]).await;
    assert!(said.contains("127.0.1.1") && !said.contains("RRSIG"), "{said}");
}

#[tokio::test]
async fn dnspython_validates_what_other_tools_do_not_ask() {
    let signed = signed().await;
    let said = probe(signed.server, &["--signed"]).await;
    assert!(said.contains("probes passed"), "{said}");
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
    let mut child = command
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
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "the other server ended: {ended:?}");
        assert!(waiting.elapsed() < STARTS_WITHIN, "the other server does not answer");
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
        // At an address of their own, where no server of another test takes the port in between.
        let listen = std::net::UdpSocket::bind("127.0.0.53:0").unwrap().local_addr().unwrap();
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
