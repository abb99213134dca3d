//! The responder over real sockets: the library in this process, and the program with only a plan on disk.

#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use dns::{
    Metrics, RateLimit, Responder, metrics,
    serve::{self, Feeds},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use prometheus_client::registry::Registry;
use steering::{Answers, Steering};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    process::Command,
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use topology::{EdgeId, EdgeState, Moment, NodeId, Snapshot, fixtures::three_primaries};

/// Far longer than a reply takes, even on a loaded machine.
const HANGS_AFTER: Duration = Duration::from_secs(10);
const ZONE: &str = "voice.meridian.test.";

struct Serving {
    address: SocketAddr,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    metrics: Metrics,
    responder: Arc<Responder>,
    stop: CancellationToken,
}

async fn start() -> Serving {
    start_at("127.0.0.1:0").await
}

async fn start_at(listen: &str) -> Serving {
    start_with(listen, RateLimit::default()).await
}

async fn start_with(listen: &str, limit: RateLimit) -> Serving {
    let node = NodeId::new("dns-1").unwrap();
    let snapshot = three_primaries();
    let answers = Answers::compile(&snapshot, Moment(0));
    let responder = Arc::new(Responder::new(answers, &node, [0; 16]));
    let sockets = serve::Sockets::bind(listen.parse().unwrap()).await.unwrap();
    let (address, metrics, stop) = (sockets.address().unwrap(), Metrics::default(), CancellationToken::new());
    let (snapshots, receiver) = watch::channel(Some(Arc::new(snapshot)));
    tokio::spawn(sockets.serve(responder.clone(), limit, metrics.clone(), stop.clone()));
    let steering = Steering::default();
    tokio::spawn(serve::keep_current(
        responder.clone(),
        steering,
        Feeds::of(receiver, Arc::default()),
        metrics.clone(),
    ));
    Serving {
        address,
        snapshots,
        metrics,
        responder,
        stop,
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

async fn over_udp(server: SocketAddr, message: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(message, server).await.unwrap();
    let mut reply = [0; 4096];
    let length = timeout(HANGS_AFTER, socket.recv(&mut reply)).await.ok()?.unwrap();
    Some(Message::from_vec(&reply[..length]).unwrap())
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    over_udp(server, &question(name, kind).to_vec().unwrap()).await.unwrap()
}

async fn send_framed(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).await.unwrap();
    stream.write_all(message).await.unwrap();
}

async fn read_framed(stream: &mut TcpStream) -> Message {
    let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut reply).await.unwrap();
    Message::from_vec(&reply).unwrap()
}

/// The addresses in an answer, sorted.
fn addresses(reply: &Message) -> Vec<String> {
    let mut addresses: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    addresses.sort();
    addresses
}

#[tokio::test]
async fn the_same_is_said_over_udp_and_tcp() {
    let serving = start().await;
    let reply = ask(serving.address, ZONE, RecordType::A).await;
    assert!(reply.metadata.authoritative);
    assert_eq!(addresses(&reply), ["127.0.1.1", "127.0.1.2"]);

    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    // Three questions at once: all are answered, in order (RFC 7766 §6.2.1.1).
    for name in [ZONE, "edge-iad.voice.meridian.test.", "nobody.voice.meridian.test."] {
        send_framed(&mut stream, &question(name, RecordType::A).to_vec().unwrap()).await;
    }
    assert_eq!(addresses(&read_framed(&mut stream).await), ["127.0.1.1", "127.0.1.2"]);
    assert_eq!(addresses(&read_framed(&mut stream).await), ["127.0.1.1"]);
    let nobody = read_framed(&mut stream).await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(nobody.authorities[0].ttl, 15);
}

#[tokio::test]
async fn a_newer_plan_changes_the_answers_and_an_older_one_does_not() {
    let serving = start().await;
    let mut drained = three_primaries();
    drained.plan.generation = 2;
    drained
        .plan
        .edges
        .insert(EdgeId::new("edge-dub").unwrap(), EdgeState::Drained);
    let publish = |snapshot: &Snapshot| serving.snapshots.send_replace(Some(Arc::new(snapshot.clone())));
    publish(&drained);
    let waiting = Instant::now();
    while serving.metrics.plan_generation.get() != 2 {
        assert!(waiting.elapsed() < HANGS_AFTER);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        addresses(&ask(serving.address, ZONE, RecordType::A).await),
        ["127.0.1.1"]
    );
    // Neither the follower nor the responder accepts an older plan.
    serving.responder.set(Answers::compile(&three_primaries(), Moment(0)));
    assert_eq!(
        addresses(&ask(serving.address, ZONE, RecordType::A).await),
        ["127.0.1.1"]
    );
    assert!(serving.metrics.answers_compiled.get() > 1_600_000_000);
}

#[tokio::test]
async fn malformed_messages_harm_nobody() {
    let serving = start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for garbage in [&[][..], &[0xff; 3], &[0xff; 4096], &[0; 12], b"GET / HTTP/1.1\r\n\r\n"] {
        socket.send_to(garbage, serving.address).await.unwrap();
    }
    let mut reply = question(ZONE, RecordType::A).to_vec().unwrap();
    reply.truncate(25);
    let formerr = over_udp(serving.address, &reply).await.unwrap();
    assert_eq!(formerr.metadata.response_code, ResponseCode::FormErr);

    // A length of zero, a question that never arrives, and half a length: each ends only its own connection.
    for garbage in [&[0, 0][..], &[0, 50, 1, 2, 3], &[0]] {
        let mut stream = TcpStream::connect(serving.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
    }
    assert_eq!(addresses(&ask(serving.address, ZONE, RecordType::A).await).len(), 2);

    let mut registry = Registry::default();
    serving.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(
        text.contains("meridian_dns_queries_total{qtype=\"none\",rcode=\"formerr\",transport=\"udp\"}"),
        "{text}"
    );
    assert!(text.contains("meridian_dns_queries_total{qtype=\"a\",rcode=\"noerror\",transport=\"udp\"} 1"));
    assert!(text.contains(metrics::PLAN_GENERATION), "{text}");
}

#[tokio::test]
async fn a_reply_leaves_from_the_address_that_was_asked() {
    // Both receive IPv4 on every address of this machine, which includes all of 127.0.0.0/8.
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let port = start_at(listen).await.address.port();
        for asked in ["127.0.0.1", "127.9.9.9"] {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The kernel drops datagrams from other addresses than that of the connected peer.
            socket.connect((asked, port)).await.unwrap();
            socket
                .send(&question(ZONE, RecordType::A).to_vec().unwrap())
                .await
                .unwrap();
            let received = timeout(HANGS_AFTER, socket.recv(&mut [0; 512])).await;
            assert!(received.is_ok(), "{listen} was asked at {asked}");
        }
    }
    let port = start_at("[::]:0").await.address.port();
    let socket = UdpSocket::bind("[::1]:0").await.unwrap();
    socket.connect(("::1", port)).await.unwrap();
    socket
        .send(&question(ZONE, RecordType::A).to_vec().unwrap())
        .await
        .unwrap();
    timeout(HANGS_AFTER, socket.recv(&mut [0; 512])).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_network_that_asks_too_much_is_told_to_use_tcp_and_a_client_with_a_cookie_is_served() {
    let limit = RateLimit {
        per_s: 5,
        slip: 1,
        ..RateLimit::default()
    };
    let serving = start_with("127.0.0.1:0", limit).await;
    let asked = question(ZONE, RecordType::A).to_vec().unwrap();
    let mut cut = 0;
    for _ in 0..40 {
        let reply = over_udp(serving.address, &asked).await.unwrap();
        assert!(reply.edns.is_some());
        cut += u32::from(reply.metadata.truncation);
    }
    // Ten at once, and some while these were asked.
    assert!((15..=30).contains(&cut), "{cut} of 40 were cut");
    assert_eq!(serving.metrics.limited.get(), u64::from(cut));

    let said = dig(
        serving.address,
        "+cookie=0102030405060708 +noignore +qr voice.meridian.test A",
    )
    .await;
    let cookie = said
        .lines()
        .rev()
        .find_map(|line| line.split("COOKIE: ").nth(1)?.split(' ').next());
    let cookie = cookie.unwrap_or_else(|| panic!("no cookie in\n{said}")).to_owned();
    for _ in 0..5 {
        let said = dig(
            serving.address,
            &format!("+ignore +cookie={cookie} voice.meridian.test A"),
        )
        .await;
        assert!(said.contains("127.0.1.1") && said.contains("(good)"), "{said}");
    }
}

#[tokio::test]
async fn idle_tcp_connections_delay_nobody() {
    let serving = start().await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(serving.address).await.unwrap());
    }
    let waiting = Instant::now();
    while serving.metrics.tcp_connections.get() != 256 {
        assert!(waiting.elapsed() < HANGS_AFTER);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut newcomers = Vec::new();
    for (number, oldest) in idle.iter_mut().take(3).enumerate() {
        let mut stream = TcpStream::connect(serving.address).await.unwrap();
        send_framed(&mut stream, &question(ZONE, RecordType::A).to_vec().unwrap()).await;
        assert_eq!(addresses(&read_framed(&mut stream).await).len(), 2);
        newcomers.push(stream);
        // The newcomer took the slot of the oldest connection, which did not close by itself.
        assert_eq!(serving.metrics.tcp_evicted.get(), number as u64 + 1);
        assert_eq!(oldest.read(&mut [0]).await.unwrap(), 0);
    }
    let last = idle.last_mut().unwrap();
    send_framed(last, &question(ZONE, RecordType::A).to_vec().unwrap()).await;
    assert_eq!(addresses(&read_framed(last).await).len(), 2);
}

#[tokio::test]
async fn stopping_closes_the_port() {
    let serving = start().await;
    ask(serving.address, ZONE, RecordType::A).await;
    serving.stop.cancel();
    let waiting = Instant::now();
    while TcpStream::connect(serving.address).await.is_ok() {
        assert!(waiting.elapsed() < HANGS_AFTER);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts the program. No server listens at the address of its control plane.
fn program(folder: &Path) -> tokio::process::Child {
    program_with(folder, "")
}

/// The same with these lines at the end of its configuration.
fn program_with(folder: &Path, more: &str) -> tokio::process::Child {
    let config = "node = \"dns-1\"\nlisten = [\"127.0.0.1:0\"]\nadmin_listen = \"127.0.0.1:0\"\n\
                  control_planes = [\"http://127.0.0.1:1\"]\nstate_dir = \"state\"\n";
    std::fs::write(folder.join("dns.toml"), config.to_owned() + more).unwrap();
    Command::new(env!("CARGO_BIN_EXE_meridian-dns"))
        .arg("--config")
        .arg(folder.join("dns.toml"))
        .arg("--announce")
        .arg(folder.join("dns.json"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn announced(folder: &Path) -> SocketAddr {
    announcement(folder).await["dns"]
}

/// The addresses of the program by name.
async fn announcement(folder: &Path) -> BTreeMap<String, SocketAddr> {
    let waiting = Instant::now();
    loop {
        if let Some(announcement) = daemon::Announcement::read(&folder.join("dns.json")).unwrap() {
            return announcement.addresses.into_iter().collect();
        }
        assert!(waiting.elapsed() < HANGS_AFTER, "the program did not become ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The output of `dig`.
async fn dig(server: SocketAddr, arguments: &str) -> String {
    let output = Command::new("dig")
        .args([format!("@{}", server.ip()), format!("-p{}", server.port())])
        .args(["+tries=1", "+time=5"])
        .args(arguments.split(' '))
        .output()
        .await
        .expect("dig is not installed; run tools/setup test");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn without_a_control_plane_the_plan_on_disk_is_served_and_dig_agrees() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    node::LastGood::at(folder.path().join("state/plan"))
        .save(&three_primaries())
        .unwrap();
    let _program = program(folder.path());
    let server = announced(folder.path()).await;
    assert_eq!(
        addresses(&ask(server, ZONE, RecordType::A).await),
        ["127.0.1.1", "127.0.1.2"]
    );

    for (arguments, expected) in [
        (
            "Voice.Meridian.TEST A",
            &[
                "status: NOERROR",
                "flags: qr aa rd;",
                "127.0.1.1",
                "127.0.1.2",
                "udp: 1232",
            ][..],
        ),
        ("+tcp voice.meridian.test A", &["127.0.1.1", "(TCP)"]),
        (
            "+noedns voice.meridian.test NS",
            &["ns1.voice.meridian.test.", "127.0.0.1"],
        ),
        (
            "nobody.voice.meridian.test A",
            &[
                "status: NXDOMAIN",
                "15\tIN\tSOA\tns1.voice.meridian.test. hostmaster.voice.meridian.test. 1 ",
            ],
        ),
        (
            "voice.meridian.test MX",
            &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1", "SOA"],
        ),
        ("voice.meridian.test ANY", &["RFC8482"]),
        ("+nsid voice.meridian.test A", &["(\"dns-1\")"]),
        ("example.com A", &["status: REFUSED"]),
        ("+opcode=status voice.meridian.test A", &["status: NOTIMP"]),
        ("voice.meridian.test AXFR", &["Transfer failed"]),
        ("+edns=1 +noednsnegotiation voice.meridian.test A", &["status: BADVERS"]),
        (
            "+cookie=0102030405060708 voice.meridian.test A",
            &["status: NOERROR", "COOKIE: 0102030405060708", "(good)"],
        ),
        (
            "-y hmac-sha256:somebody:c2VjcmV0 voice.meridian.test A",
            &["status: NOTAUTH", "BADKEY"],
        ),
        ("+ednsopt=8:00031800010203 voice.meridian.test A", &["status: FORMERR"]),
        (
            "+subnet=192.0.2.0/24 voice.meridian.test A",
            &["status: NOERROR", "127.0.1.1", "CLIENT-SUBNET: 192.0.2.0/24/0"],
        ),
        ("+subnet=0 voice.meridian.test A", &["status: NOERROR", "127.0.1.1"]),
        ("+ednsflags=0x4000 voice.meridian.test A", &["status: NOERROR"]),
        (
            "+dnssec +cd +ad voice.meridian.test A",
            &["status: NOERROR", "flags: do"],
        ),
        ("-c CH -t TXT version.bind", &["status: REFUSED"]),
        ("+header-only +nocookie voice.meridian.test", &["status: FORMERR"]),
        ("+ednsopt=15 voice.meridian.test A", &["status: NOERROR"]),
        (
            "-t TYPE65280 voice.meridian.test",
            &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1"],
        ),
    ] {
        let said = dig(server, arguments).await;
        for words in expected {
            assert!(said.contains(words), "dig {arguments}: no \"{words}\" in\n{said}");
        }
    }
}

/// The program that is killed while an edge returns, and started again, still gives it a part of its clients.
#[tokio::test]
async fn a_killed_program_remembers_which_edges_return_and_signs_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let key = folder.path().join("zone.key");
    let made = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
        ])
        .arg(&key)
        .status()
        .await
        .expect("openssl is not installed; run tools/setup test");
    assert!(made.success());
    // The plan that named Dublin's edge again is a moment old.
    let mut snapshot = three_primaries();
    snapshot.plan.created_at = daemon::clock::now();
    let dublin = EdgeId::new("edge-dub").unwrap();
    let returned = steering::Memory {
        states: [(dublin.clone(), EdgeState::Drained)].into(),
        ..steering::Memory::default()
    };
    node::LastGood::at(state.join("plan")).save(&snapshot).unwrap();
    let saved = tokio::spawn({
        let (memory, newest) = watch::channel(steering::Memory::default());
        memory.send_replace(returned);
        let file = state.join("returning");
        async move {
            let _memory = memory;
            dns::memory::keep_saved(file, newest).await;
        }
    });
    while !state.join("returning").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    saved.abort();
    for life in 1..=2 {
        let mut program = program_with(folder.path(), "[dnssec]\nkeys = [\"zone.key\"]\n");
        let addresses = announcement(folder.path()).await;
        let url = format!(
            "http://{}/explain?name=voice.meridian.test&client=192.0.2.7",
            addresses["admin"]
        );
        let explained: serde_json::Value = reqwest::get(&url).await.unwrap().json().await.unwrap();
        let edges = explained["edges"].as_array().unwrap();
        let percent = edges.iter().find(|edge| edge["edge"] == "edge-dub").unwrap()["percent"].as_u64();
        assert!(percent.is_some_and(|percent| percent < 100), "life {life}: {explained}");
        let said = dig(addresses["dns"], "+tcp +dnssec voice.meridian.test SOA").await;
        assert!(said.contains("RRSIG\tSOA 13 3 "), "life {life}: {said}");
        // Dublin's edge serves in the memory of the first life, since the moment of the plan.
        while !std::fs::read_to_string(state.join("returning"))
            .unwrap()
            .contains("serving")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        program.kill().await.unwrap();
        std::fs::remove_file(folder.path().join("dns.json")).unwrap();
    }
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mut program = program_with(folder.path(), "[dnssec]\nkeys = [\"zone.key\"]\n");
    let ended = timeout(HANGS_AFTER, program.wait())
        .await
        .expect("it refuses a key that others can read");
    assert!(!ended.unwrap().success());
}

#[tokio::test]
async fn before_its_first_plan_the_program_does_not_listen_and_still_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = program(folder.path());
    // Without a plan the program gets no further than its health page. The state folder shows that it has started.
    let waiting = Instant::now();
    while !folder.path().join("state").exists() {
        assert!(waiting.elapsed() < HANGS_AFTER);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!folder.path().join("dns.json").exists());
    let pid = program.id().unwrap().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
    let status = timeout(HANGS_AFTER, program.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}
