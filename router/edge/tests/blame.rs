//! Who is blamed when a session goes wrong: the rows of docs/edge.md, "Who is blamed", that are about sessions. Only what a
//! region did may count against it, or a few phones that do not read move everybody out of a healthy region.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    future::pending,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use edge::{
    Edge,
    fault::Fault,
    frames::{close_for_device, code, frame_for_device, frame_for_region, opcode},
    kept::Kept,
    relay::{End, Relay},
    sessions::Leave,
};
use futures_util::{SinkExt as _, StreamExt as _};
use routing::{Decision, Tried, User, continuity::Why};
use support::{Fate, Stack, World, hang_means_failure, planned_at, read_head};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use topology::words::{self, Checkpoint, Word};

/// What a device takes before it takes nothing more, where it is none of the kernel's buffers.
const DEVICE_BYTES: usize = 64;

/// Whether the session could go on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    Kept,
    Plain,
}

/// A session between a device and a region that the test plays, without the edge around it.
struct Line {
    edge: Arc<Edge>,
    decision: Decision,
    device: DuplexStream,
    region: TcpStream,
    device_end: DuplexStream,
    region_end: TcpStream,
    session: Session,
    _world: World,
}

impl Line {
    async fn new(changes: &str, session: Session) -> Self {
        let world = World::with(changes, &[("eu-west", Stack::Hangs)]).await;
        let edge = world.edge.clone();
        let table = edge.table().unwrap();
        let now = daemon::clock::now();
        let picked = edge
            .seen
            .pick(&table, "anna", User::default(), None, &Tried::default(), now);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let region = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (region_end, _) = listener.accept().await.unwrap();
        let (device, device_end) = tokio::io::duplex(DEVICE_BYTES);
        Self {
            edge,
            decision: picked.unwrap(),
            device,
            region,
            device_end,
            region_end,
            session,
            _world: world,
        }
    }

    /// Relays while `story` plays both ends; how it ends, and whose fault that is.
    async fn ends<F>(self, story: impl FnOnce(DuplexStream, TcpStream) -> F) -> (End, Option<Fault>)
    where
        F: Future<Output = (DuplexStream, Option<TcpStream>)>,
    {
        let Self {
            edge,
            decision,
            mut device,
            region,
            device_end,
            region_end,
            session,
            _world,
        } = self;
        let mut relay = Relay::new(&mut device, region, &edge.config);
        if session == Session::Kept {
            relay.keep(Kept::new(&edge, &decision));
        }
        let mut stays = pin!(pending::<Leave>());
        let mut leaving: Pin<Box<dyn Future<Output = Why> + Send>> = Box::pin(pending());
        let played = async {
            let _ends = story(device_end, region_end).await;
            pending::<()>().await;
        };
        let end = tokio::select! {
            end = relay.run(BytesMut::new(), BytesMut::new(), stays.as_mut(), leaving.as_mut()) => end,
            () = played => unreachable!("it only ends with the session"),
        };
        let fault = end.failure().map(|(event, _)| relay.facts(event, false).fault());
        (end, fault)
    }
}

/// The state of a session that could go on elsewhere.
fn checkpoint() -> BytesMut {
    let word = Word::Checkpoint(Checkpoint {
        keep_from: 0,
        consumed: 0,
        busy: false,
        state: b"state",
    });
    frame_for_device(opcode::BINARY, &word.to_bytes())
}

fn event() -> BytesMut {
    frame_for_device(opcode::TEXT, &[b'x'; 1000])
}

/// What a region says to a device that takes nothing, and then `last`. The device says something, so that the edge has to write
/// to the region, which is gone by then.
async fn play_to_a_blocked_device(
    mut device: DuplexStream,
    mut region: TcpStream,
    last: &[u8],
) -> (DuplexStream, Option<TcpStream>) {
    region.write_all(&checkpoint()).await.unwrap();
    // More than the edge reads at once, and less than its socket holds.
    region.write_all(&vec![event(); 40].concat()).await.unwrap();
    region.write_all(last).await.unwrap();
    // When this byte is here, the device has all that it takes.
    device.read_u8().await.unwrap();
    drop(region);
    // The first is answered by a reset, and the next cannot be written.
    while device
        .write_all(&frame_for_region(opcode::TEXT, b"are you there?"))
        .await
        .is_ok()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (device, None)
}

const BOTH: [Session; 2] = [Session::Kept, Session::Plain];

#[tokio::test]
async fn a_device_that_takes_nothing_ends_its_own_session() {
    for session in BOTH {
        // The region is heard of no more either, and nobody must hold that against it.
        let changes = "timeouts.send = '600ms'\ntimeouts.idle = '200ms'\ncontinuity.silence_busy = '50ms'\n\
                       continuity.silence_active = '50ms'\ncontinuity.silence_idle = '50ms'";
        let ended = Line::new(changes, session).await.ends(async |mut device, mut region| {
            region.write_all(&checkpoint()).await.unwrap();
            region.write_all(&[event(), event()].concat()).await.unwrap();
            // It lives, and says so.
            let heartbeat = frame_for_region(opcode::TEXT, b"x");
            while device.write_all(&heartbeat).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (device, Some(region))
        });
        assert_eq!(hang_means_failure(ended).await, (End::DeviceSlow, None), "{session:?}");
    }
}

#[tokio::test]
async fn the_close_of_a_region_that_gave_up_a_slow_device_is_found_behind_what_the_device_did_not_take() {
    for session in BOTH {
        for (said, expected) in [
            (code::POLICY, Some(End::DeviceSlow)),
            (code::SERVICE_RESTART, Some(End::RegionClosing)),
            (1000, None),
        ] {
            let last = close_for_device(said, "bye");
            let line = Line::new("timeouts.close = '200ms'", session).await;
            let ended = line.ends(async |device, region| play_to_a_blocked_device(device, region, &last).await);
            let (end, fault) = hang_means_failure(ended).await;
            assert!(
                expected.is_none_or(|expected| end == expected),
                "{session:?} {said}: {end:?}"
            );
            assert!(
                matches!(fault, None | Some(Fault::Nobody)),
                "{session:?} {said}: {end:?} {fault:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_region_that_dies_while_its_device_takes_nothing_is_left_and_not_blamed() {
    for session in BOTH {
        let line = Line::new("timeouts.close = '200ms'", session).await;
        let ended = line.ends(async |device, region| play_to_a_blocked_device(device, region, b"").await);
        let (end, fault) = hang_means_failure(ended).await;
        assert!(matches!(end, End::RegionLost(_)), "{session:?}: {end:?}");
        assert_eq!(end.why_to_move(), Some(Why::Lost));
        assert_eq!(fault, Some(Fault::Device), "{session:?}");
    }
}

#[tokio::test]
async fn a_region_that_breaks_off_or_talks_nonsense_to_a_device_that_reads_is_blamed() {
    for session in BOTH {
        for last in [&b""[..], b"\xff\xff\xff\xff", b"\x81\x64half"] {
            let line = Line::new("", session).await;
            let ended = line.ends(async |device, mut region| {
                region.write_all(&checkpoint()).await.unwrap();
                region.write_all(last).await.unwrap();
                (device, None)
            });
            let (end, fault) = hang_means_failure(ended).await;
            assert!(matches!(end, End::RegionLost(_)), "{session:?} {last:?}: {end:?}");
            assert_eq!(fault, Some(Fault::Region), "{session:?} {last:?}");
        }
    }
}

#[tokio::test]
async fn a_region_that_is_silent_is_blamed_and_a_device_that_is_silent_is_not() {
    let silent = Line::new("continuity.silence_busy = '100ms'", Session::Kept).await;
    let ended = silent.ends(async |device, region| (device, Some(region)));
    assert_eq!(
        hang_means_failure(ended).await,
        (End::RegionSilent, Some(Fault::Region)),
        "it owes its first word"
    );
    for session in BOTH {
        let line = Line::new("timeouts.idle = '200ms'\ncontinuity.silence_busy = '1m'", session).await;
        let ended = line.ends(async |device, region| (device, Some(region)));
        assert_eq!(
            hang_means_failure(ended).await,
            (End::DeviceSilent, None),
            "{session:?}"
        );
    }
}

#[tokio::test]
async fn a_region_that_does_not_read_is_not_taken_for_a_silent_device() {
    for session in BOTH {
        let changes = "timeouts.idle = '300ms'\ncontinuity.silence_busy = '300ms'";
        let ended = Line::new(changes, session).await.ends(async |mut device, mut region| {
            region.write_all(&checkpoint()).await.unwrap();
            // It says more than fits anywhere: that the rest waits is not its doing.
            let message = frame_for_region(opcode::BINARY, &[0; 100_000]);
            for _ in 0..1000 {
                let patience = Duration::from_secs(1);
                if tokio::time::timeout(patience, device.write_all(&message))
                    .await
                    .is_err()
                {
                    break;
                }
            }
            (device, Some(region))
        });
        assert_eq!(
            hang_means_failure(ended).await,
            (End::RegionSilent, Some(Fault::Region)),
            "{session:?}"
        );
    }
}

#[tokio::test]
async fn a_device_that_leaves_is_nobodys_fault() {
    for session in BOTH {
        let ended = Line::new("", session).await.ends(async |device, region| {
            drop(device);
            let (device, _) = tokio::io::duplex(1);
            (device, Some(region))
        });
        assert_eq!(hang_means_failure(ended).await, (End::DeviceLost, None), "{session:?}");
    }
}

/// A region that takes sessions and talks until nobody listens.
async fn talks_without_end(kept: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_head(&mut tcp).await?;
                let speaks = format!("{}: {}\r\n", words::HEADER, words::VERSION);
                let speaks = if kept { speaks } else { String::new() };
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{speaks}\r\n"
                );
                tcp.write_all(answer.as_bytes()).await.ok()?;
                tcp.write_all(&checkpoint()).await.ok()?;
                let event = event();
                while tcp.write_all(&event).await.is_ok() {}
                Some(())
            });
        }
    });
    address
}

/// A device opens a session and reads nothing of it.
async fn opens_and_does_not_read(edge: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut device = socket.connect(edge).await.unwrap();
    let request = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    device.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut device).await.unwrap().starts_with("HTTP/1.1 101 "));
    device
}

#[tokio::test]
async fn many_devices_that_do_not_read_harm_their_own_sessions_alone() {
    for kept in [true, false] {
        let region = talks_without_end(kept).await;
        let changes = "timeouts = { send = '300ms', close = '20s' }\ndrain.limit = '60s'";
        let world = World::of(changes, &planned_at(&[("eu-west", region)]).await);
        let mut devices = Vec::new();
        for _ in 0..5 {
            devices.push(opens_and_does_not_read(world.address).await);
        }
        let over = async {
            while !world.live().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        hang_means_failure(over).await;
        assert_eq!(world.observed()["eu-west"], (5, 0), "kept: {kept}");
        let explained = world.explain("session=another").await;
        assert_eq!(explained["decisions"][0]["region"], "eu-west");
        assert_eq!(explained["ejected"], serde_json::json!([]));
        // Each gets what was on its way, and is told why there is no more.
        for mut device in devices {
            let mut heard = Vec::new();
            hang_means_failure(device.read_to_end(&mut heard)).await.unwrap();
            let told = close_for_device(code::POLICY, "you take nothing of what is sent; read faster");
            assert!(heard.ends_with(&told), "kept: {kept}");
        }
    }
}

#[tokio::test]
async fn a_device_gets_its_close_back_whatever_its_code() {
    let stacks = [Stack::Echoes, Stack::Talks(Fate::Lives)];
    for stack in stacks {
        let world = World::new(&[("eu-west", stack)]).await;
        for said in [1000, 1001, 1008, 1012, 3000, 4000, 4001, 4999] {
            let mut anna = world.open(&[]).await;
            if stack != Stack::Echoes {
                anna.hear().await;
            }
            let code = CloseCode::from(said);
            let frame = CloseFrame {
                code,
                reason: "bye".into(),
            };
            anna.socket.send(Message::Close(Some(frame))).await.unwrap();
            let answer = loop {
                match hang_means_failure(anna.socket.next()).await {
                    Some(Ok(Message::Close(frame))) => break frame,
                    Some(Ok(_)) => {}
                    other => panic!("{stack:?} {said}: no Close came back, but {other:?}"),
                }
            };
            assert_eq!(answer.map(|frame| u16::from(frame.code)), Some(said), "{stack:?}");
        }
        assert_eq!(world.observed()["eu-west"], (8, 0), "{stack:?}");
    }
}

#[tokio::test]
async fn a_device_gets_its_close_back_though_its_region_says_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let region = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            read_head(&mut tcp).await.unwrap();
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            tcp.write_all(answer.as_bytes()).await.unwrap();
            // It hangs up on the first byte.
            let _ = tcp.read_u8().await;
        }
    });
    let world = World::of("", &planned_at(&[("eu-west", region)]).await);
    for (said, answered) in [
        (&b"\x03\xe8"[..], &b"\x88\x02\x03\xe8"[..]),
        (b"", b"\x88\x00"),
        (b"\x03\xed", b"\x88\x00"),
    ] {
        let mut device = opens_and_does_not_read(world.address).await;
        device.write_all(&frame_for_region(opcode::CLOSE, said)).await.unwrap();
        let mut heard = Vec::new();
        hang_means_failure(device.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard, answered);
    }
    assert_eq!(world.observed()["eu-west"], (3, 0));
}

#[tokio::test]
async fn a_stack_that_declines_a_session_of_another_is_not_blamed_and_not_asked_again() {
    let fates = [Fate::DiesAfterMessages(1), Fate::RefusesOthers];
    let stacks = [
        ("eu-west", Stack::Talks(fates[0])),
        ("eu-central", Stack::Talks(fates[1])),
    ];
    let world = World::with("continuity.patience = '2s'", &stacks).await;
    for asked in 1..=2 {
        let mut anna = world.open(&[]).await;
        anna.say("a").await;
        while !matches!(anna.hear().await, Message::Close(_)) {}
        let connects = "meridian_edge_connects_total{region=\"eu-central\",outcome=\"ok\"}";
        // Each session asks it once, however long it looks for a region.
        assert!(world.metric(connects).unwrap_or(0.0) <= f64::from(asked), "{asked}");
    }
    let failed = world.observed().get("eu-central").map(|seen| seen.1);
    assert_eq!(failed, Some(0));
    let ejected = world.explain("session=anna").await["ejected"].to_string();
    assert!(!ejected.contains("eu-central"), "{ejected}");
}

#[tokio::test]
async fn pings_of_a_device_are_answered_whatever_they_carry() {
    let world = World::new(&[("eu-west", Stack::Talks(Fate::Lives))]).await;
    let mut anna = world.open(&[]).await;
    for payload in ["meridian-edge", "", "x"] {
        anna.socket.send(Message::Ping(Bytes::from(payload))).await.unwrap();
        while anna.hear().await != Message::Pong(Bytes::from(payload)) {}
    }
}
