//! The blame for failures of sessions: the rows of docs/edge.md, "Who is blamed", that are about sessions. Only what a
//! region did may count against it, or a few phones that do not read move everybody out of a healthy region.
//!
//! One file, although it is long: it has the order of the table's rows.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use crate::support::{
    self, Fate, HANGS_AFTER, Stack, World, alone::done_in_own_process, hang_means_failure, log::Log, planned,
    planned_at, read_head, region,
};
use bytes::{Bytes, BytesMut};
use edge::{
    Edge,
    edge::Failed,
    fault::{Cause, Event, Facts, Fault},
    session::continuity::MovableState,
    session::end::End,
    session::frames::{close_for_device, frame_for_device, frame_for_region},
    session::registry::Leave,
    session::relay::Relay,
};
use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use identity::Link;
use parking_lot::Mutex;
use routing::{Decision, Tried, User, continuity::LeaveReason};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    task::coop,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{
        CloseFrame,
        frame::coding::{CloseCode, Control, Data, OpCode},
    },
};
use topology::RegionState;
use wire::Checkpoint;

const TEXT: OpCode = OpCode::Data(Data::Text);
const BINARY: OpCode = OpCode::Data(Data::Binary);
const CLOSE: OpCode = OpCode::Control(Control::Close);

/// Bytes that a device takes before it takes nothing more, where the kernel's buffers hold none.
const DEVICE_BYTES: usize = 64;

/// Whether the session could go on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    Kept,
    Plain,
}

/// A session between a device and a region that the test plays, without the edge around it.
struct PlayedSession {
    edge: Arc<Edge>,
    decision: Decision,
    device: DuplexStream,
    region: TcpStream,
    device_end: DuplexStream,
    region_end: TcpStream,
    session: Session,
    _world: World,
}

impl PlayedSession {
    async fn new(changes: &str, session: Session) -> Self {
        let world = World::with(changes, &[("eu-west", Stack::Hangs)]).await;
        let edge = world.edge.clone();
        let table = edge.table().unwrap();
        let now = daemon::clock::now();
        let picked = edge
            .fleet
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
        let mut relay = Relay::new(&mut device, Link::plain(region), &edge.config);
        if session == Session::Kept {
            relay.keep(MovableState::new(&edge, &decision, [127, 0, 0, 1].into()));
        }
        let mut stays = pin!(futures_util::stream::pending::<Leave>());
        let mut leaving: Pin<Box<dyn Future<Output = LeaveReason> + Send>> = Box::pin(pending());
        let played = async {
            let _ends = story(device_end, region_end).await;
            pending::<()>().await;
        };
        let end = tokio::select! {
            biased;
            end = relay.run(stays.as_mut(), leaving.as_mut()) => end,
            () = played => unreachable!("it only ends with the session"),
        };
        let fault = end.failure().map(|(event, _)| relay.facts(event, false).fault());
        (end, fault)
    }
}

/// The state of a session that could go on elsewhere.
fn checkpoint() -> BytesMut {
    let word = wire::Message::Checkpoint(Checkpoint {
        keep_from: 0,
        consumed: 0,
        busy: false,
        state: b"state",
    });
    frame_for_device(BINARY, &word.to_bytes())
}

fn event() -> BytesMut {
    frame_for_device(TEXT, &[b'x'; 1000])
}

/// A region's messages to a device that takes nothing, and then `last`. The device says something, so that the edge has to write
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
        .write_all(&frame_for_region(TEXT, b"are you there?"))
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
    let ends = async |session| {
        // The edge hears no more of the region either, and must not hold that against it.
        let changes = "timeouts.device = '3s'\ntimeouts.idle = '2s'\ncontinuity.silence_busy = '50ms'\n\
                       continuity.silence_active = '50ms'\ncontinuity.silence_idle = '50ms'";
        let ended = PlayedSession::new(changes, session)
            .await
            .ends(async |mut device, mut region| {
                region.write_all(&checkpoint()).await.unwrap();
                region.write_all(&[event(), event()].concat()).await.unwrap();
                // It lives, and says so.
                let heartbeat = frame_for_region(TEXT, b"x");
                while device.write_all(&heartbeat).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                (device, Some(region))
            });
        assert_eq!(hang_means_failure(ended).await, (End::DeviceSlow, None), "{session:?}");
    };
    join_all(BOTH.map(ends)).await;
}

/// At a thousand bytes a second a device may be behind for 600 ms.
const HURRIED: &str = "timeouts = { device = '600ms', idle = '60s' }\nlimits.device_bytes_per_s_min = 1000";

#[tokio::test]
async fn a_byte_now_and_then_does_not_keep_the_session_of_a_device_that_takes_too_little() {
    for session in BOTH {
        // The edge hears no more of the region either, and must not hold that against it.
        let changes = format!(
            "{HURRIED}\ncontinuity = {{ silence_busy = '50ms', silence_active = '50ms', silence_idle = '50ms' }}"
        );
        let ended = PlayedSession::new(&changes, session)
            .await
            .ends(async |mut device, mut region| {
                region.write_all(&checkpoint()).await.unwrap();
                region.write_all(&vec![event(); 40].concat()).await.unwrap();
                while device.read_u8().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                (device, Some(region))
            });
        assert_eq!(hang_means_failure(ended).await, (End::DeviceSlow, None), "{session:?}");
    }
}

#[tokio::test]
async fn a_byte_now_and_then_does_not_keep_the_session_of_a_device_that_began_a_frame() {
    for session in BOTH {
        let ended = PlayedSession::new(HURRIED, session)
            .await
            .ends(async |mut device, mut region| {
                region.write_all(&checkpoint()).await.unwrap();
                for byte in &frame_for_region(TEXT, &[b'x'; 1000]) {
                    if device.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                (device, Some(region))
            });
        let ended = hang_means_failure(ended).await;
        assert_eq!(ended, (End::DeviceTrickles, None), "{session:?}");
    }
}

#[tokio::test]
async fn a_device_on_a_slow_line_that_keeps_pace_is_waited_for() {
    for session in BOTH {
        // No side answers here, and no side waits for an answer.
        let changes = format!("{HURRIED}\ncontinuity.silence_busy = '1m'");
        let ended = PlayedSession::new(&changes, session)
            .await
            .ends(async |mut device, mut region| {
                region.write_all(&checkpoint()).await.unwrap();
                // For two seconds and more its line is full in both directions, and both are faster than a thousand a second.
                let told = vec![event(); 4].concat();
                let said = vec![frame_for_region(TEXT, &[b'x'; 1000]); 4].concat();
                region.write_all(&told).await.unwrap();
                let (mut heard, mut takes) = (0, vec![0; 60]);
                for part in said.chunks(60) {
                    device.write_all(part).await.unwrap();
                    if heard < told.len() {
                        heard += device.read(&mut takes).await.unwrap();
                    }
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                while heard < told.len() {
                    heard += device.read(&mut takes).await.unwrap();
                }
                device.write_all(&frame_for_region(CLOSE, b"\x03\xe8")).await.unwrap();
                (device, Some(region))
            });
        assert_eq!(
            hang_means_failure(ended).await,
            (End::DeviceClosed, None),
            "{session:?}"
        );
    }
}

#[tokio::test]
async fn a_device_that_trickles_a_frame_is_told_why_its_session_ends_and_its_region_is_not_blamed() {
    for stack in [Stack::Echoes, Stack::Talks(Fate::Lives)] {
        let world = World::with(HURRIED, &[("eu-west", stack)]).await;
        let mut device = opens_and_does_not_read(world.address).await;
        let (mut hears, mut says) = device.split();
        let frame = frame_for_region(TEXT, &[b'x'; 1000]);
        let trickles = async {
            for byte in &frame {
                // The edge may be gone: that is looked at below.
                let _ = says.write_all(&[*byte]).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut heard = Vec::new();
        let hears = async {
            let _ = hears.read_to_end(&mut heard).await;
        };
        tokio::select! {
            biased;
            () = hang_means_failure(hears) => {}
            () = trickles => panic!("{stack:?}: the edge waited for all of it"),
        }
        let told = close_for_device(CloseCode::Policy, "a frame that you began takes too long; send faster");
        assert!(heard.ends_with(&told), "{stack:?}: {heard:?}");
        assert_eq!(world.observed()["eu-west"].1, 0, "{stack:?}");
    }
}

#[tokio::test]
async fn the_close_of_a_region_that_gave_up_a_slow_device_is_found_behind_what_the_device_did_not_take() {
    for session in BOTH {
        for (said, expected) in [
            (CloseCode::Policy, Some(End::DeviceSlow)),
            (CloseCode::Restart, Some(End::RegionClosing)),
            (CloseCode::Normal, None),
        ] {
            let last = close_for_device(said, "bye");
            let line = PlayedSession::new("timeouts.close = '200ms'", session).await;
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

/// A device that takes nothing for so many polls after its region died, and then everything. While it takes nothing it leaves
/// the edge's task only a few reads a poll, so that what the edge looks through is cut into pieces.
struct TakesLate {
    says: DuplexStream,
    is_dead: Arc<AtomicBool>,
    polls_left: usize,
    taken: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for TakesLate {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.says).poll_read(cx, buf)
    }
}

impl AsyncWrite for TakesLate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_dead.load(Ordering::SeqCst) && self.polls_left == 0 {
            self.taken.lock().extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        if self.is_dead.load(Ordering::SeqCst) {
            self.polls_left -= 1;
        }
        // Of the 128 steps that a task has in one poll.
        for _ in 0..125 {
            if let Poll::Ready(step) = coop::poll_proceed(cx) {
                step.made_progress();
            }
        }
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Whether these bytes are events, each of them whole.
fn are_whole_events(mut bytes: &[u8]) -> bool {
    while let Some(rest) = bytes.strip_prefix(&event()[..]) {
        bytes = rest;
    }
    bytes.is_empty()
}

#[tokio::test]
async fn once_the_close_of_a_lost_region_is_looked_for_nothing_is_read_in_the_middle_of_a_frame() {
    for polls_left in 0..12 {
        let line = PlayedSession::new("timeouts.close = '300ms'", Session::Kept).await;
        let (edge, mut region_end) = (line.edge, line.region_end);
        let (says, mut device_end) = tokio::io::duplex(1 << 16);
        let (is_dead, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut device = TakesLate {
            says,
            is_dead: is_dead.clone(),
            polls_left,
            taken: taken.clone(),
        };
        let mut relay = Relay::new(&mut device, Link::plain(line.region), &edge.config);
        relay.keep(MovableState::new(&edge, &line.decision, [127, 0, 0, 1].into()));
        let mut stays = pin!(futures_util::stream::pending::<Leave>());
        let mut leaving: Pin<Box<dyn Future<Output = LeaveReason> + Send>> = Box::pin(pending());
        let dies = async {
            let last = close_for_device(CloseCode::Restart, "bye");
            let all = [checkpoint(), vec![event(); 60].concat().as_slice().into(), last].concat();
            region_end.write_all(&all).await.unwrap();
            drop(region_end);
            is_dead.store(true, Ordering::SeqCst);
            loop {
                let _ = device_end.write_all(&frame_for_region(TEXT, b"are you there?")).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let run = relay.run(stays.as_mut(), leaving.as_mut());
        let end = hang_means_failure(async {
            tokio::select! {
                biased;
                end = run => end,
                () = dies => unreachable!("it only ends with the session"),
            }
        });
        // The reset may be quicker than the Close.
        let end = end.await;
        let is_nonsense = matches!(&end, End::RegionLost(lost) if lost.event == Event::Nonsense);
        assert!(!is_nonsense, "{polls_left}: {end:?}");
        assert!(are_whole_events(&taken.lock()), "{polls_left}");
    }
}

#[tokio::test]
async fn a_region_that_dies_while_its_device_takes_nothing_is_left_and_not_blamed() {
    for session in BOTH {
        let line = PlayedSession::new("timeouts.close = '200ms'", session).await;
        let ended = line.ends(async |device, region| play_to_a_blocked_device(device, region, b"").await);
        let (end, fault) = hang_means_failure(ended).await;
        assert!(matches!(end, End::RegionLost(_)), "{session:?}: {end:?}");
        assert_eq!(end.why_to_move(), Some(LeaveReason::Lost));
        assert_eq!(fault, Some(Fault::Device), "{session:?}");
    }
}

/// A stack gives a device up after some seconds without progress, and its Close may not get through. A device that was that slow a
/// moment ago explains the end of its region; one that has kept pace since then does not.
#[tokio::test]
async fn a_region_that_ends_soon_after_its_device_was_blocked_is_not_blamed_and_later_it_is() {
    for (session, reads_for, fault) in [
        (Session::Kept, Duration::ZERO, Fault::Device),
        (Session::Plain, Duration::ZERO, Fault::Device),
        (Session::Kept, Duration::from_secs(10), Fault::Device),
        (Session::Kept, Duration::from_secs(16), Fault::Region),
        (Session::Plain, Duration::from_secs(16), Fault::Region),
    ] {
        // Nobody says anything while time passes.
        let patient =
            "timeouts.idle = '5m'\ncontinuity = { silence_busy = '5m', silence_active = '5m', silence_idle = '5m' }";
        let line = PlayedSession::new(patient, session).await;
        let ended = line.ends(async |mut device, mut region| {
            let told = vec![event(); 40].concat();
            region.write_all(&checkpoint()).await.unwrap();
            region.write_all(&told).await.unwrap();
            // The device takes nothing for longer than a burst lasts, and then everything.
            device.read_u8().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            let skipped = if session == Session::Plain {
                checkpoint().len()
            } else {
                0
            };
            device.read_exact(&mut vec![0; skipped + told.len() - 1]).await.unwrap();
            tokio::time::pause();
            tokio::time::advance(reads_for).await;
            tokio::time::resume();
            (device, None)
        });
        let ended = tokio::time::timeout(reads_for + HANGS_AFTER, ended).await;
        let (end, blamed) = ended.expect("it hangs");
        assert!(matches!(end, End::RegionLost(_)), "{session:?} {reads_for:?}: {end:?}");
        assert_eq!(blamed, Some(fault), "{session:?} {reads_for:?}");
    }
}

#[tokio::test]
async fn a_region_that_breaks_off_or_talks_nonsense_to_a_device_that_reads_is_blamed() {
    for session in BOTH {
        for last in [&b""[..], b"\xff\xff\xff\xff", b"\x81\x64half"] {
            let line = PlayedSession::new("", session).await;
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
    let silent = PlayedSession::new("continuity.silence_busy = '100ms'", Session::Kept).await;
    let ended = silent.ends(async |device, region| (device, Some(region)));
    assert_eq!(
        hang_means_failure(ended).await,
        (End::RegionSilent, Some(Fault::Region)),
        "it owes its first word"
    );
    for session in BOTH {
        let line = PlayedSession::new("timeouts.idle = '200ms'\ncontinuity.silence_busy = '1m'", session).await;
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
        let ended = PlayedSession::new(changes, session)
            .await
            .ends(async |mut device, mut region| {
                region.write_all(&checkpoint()).await.unwrap();
                // It says more than fits anywhere: that the rest waits is not its doing.
                let message = frame_for_region(BINARY, &[0; 100_000]);
                for _ in 0..1000 {
                    let limit = Duration::from_secs(1);
                    if tokio::time::timeout(limit, device.write_all(&message)).await.is_err() {
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

/// A firewall or a router on the way answers in the region's name.
#[tokio::test]
async fn a_region_to_which_the_network_is_gone_is_blamed_and_the_next_one_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unreachable = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // Closed with something unread in it, a connection is reset.
            tcp.readable().await.unwrap();
        }
    });
    let works = support::stack(Stack::Echoes).await;
    let plan = planned_at(&[("eu-west", unreachable), ("eu-central", works)]).await;
    let world = World::of("", &plan);
    let mut anna = world.open(&[]).await;
    assert_eq!(anna.header("meridian-region"), "eu-central");
    anna.check_echo("hello").await;
    let name = "meridian_edge_faults_total{region=\"eu-west\",fault=\"region\"}";
    assert_eq!(world.metric(name), Some(1.0));
    let observed = world.observed();
    assert_eq!((observed["eu-west"].1, observed["eu-central"].1), (1, 0));
}

#[tokio::test]
async fn a_device_that_leaves_is_nobodys_fault() {
    for session in BOTH {
        let ended = PlayedSession::new("", session).await.ends(async |device, region| {
            drop(device);
            let (device, _) = tokio::io::duplex(1);
            (device, Some(region))
        });
        assert_eq!(hang_means_failure(ended).await, (End::DeviceLost, None), "{session:?}");
    }
}

/// A frame that another of its message follows.
fn unfinished(mut frame: BytesMut) -> BytesMut {
    frame[0] &= 0x7f;
    frame
}

fn continued(mut frame: BytesMut) -> BytesMut {
    frame[0] &= 0xf0;
    frame
}

#[tokio::test]
async fn a_region_cannot_make_the_edge_hold_a_message_without_end() {
    let ended = PlayedSession::new("", Session::Kept)
        .await
        .ends(async |device, mut region| {
            region.write_all(&checkpoint()).await.unwrap();
            let piece = frame_for_device(TEXT, &vec![b'x'; 1 << 20]);
            region.write_all(&unfinished(piece.clone())).await.unwrap();
            for _ in 0..20 {
                let piece = continued(unfinished(piece.clone()));
                if region.write_all(&piece).await.is_err() {
                    break;
                }
            }
            (device, Some(region))
        });
    let (end, fault) = hang_means_failure(ended).await;
    assert!(matches!(end, End::RegionLost(_)), "{end:?}");
    assert_eq!(fault, Some(Fault::Region));
}

#[tokio::test]
async fn a_private_word_in_pieces_never_reaches_the_device() {
    let (heard_by_device, heard) = tokio::sync::oneshot::channel();
    let ended = PlayedSession::new("", Session::Kept)
        .await
        .ends(async |mut device, mut region| {
            region.write_all(&checkpoint()).await.unwrap();
            region.write_all(&unfinished(checkpoint())).await.unwrap();
            let last = continued(frame_for_device(BINARY, b""));
            region.write_all(&last).await.unwrap();
            tokio::spawn(async move {
                let mut heard = Vec::new();
                let _ = device.read_to_end(&mut heard).await;
                let _ = heard_by_device.send(heard);
            });
            let (device, _) = tokio::io::duplex(1);
            (device, Some(region))
        });
    let (end, fault) = hang_means_failure(ended).await;
    assert!(matches!(end, End::RegionLost(_)), "{end:?}");
    assert_eq!(fault, Some(Fault::Region));
    assert_eq!(hang_means_failure(heard).await.unwrap(), b"");
}

/// The bytes that the next region gets, up to `until`, when the first dies after `before` and the device then says `after`.
async fn heard_by_the_next_region(changes: &str, before: &[u8], after: &[u8], until: &[u8]) -> Vec<u8> {
    let PlayedSession {
        edge,
        decision,
        mut device,
        region,
        mut device_end,
        mut region_end,
        _world,
        ..
    } = PlayedSession::new(changes, Session::Kept).await;
    let mut relay = Relay::new(&mut device, Link::plain(region), &edge.config);
    relay.keep(MovableState::new(&edge, &decision, [127, 0, 0, 1].into()));
    let mut stays = pin!(futures_util::stream::pending::<Leave>());
    let mut leaving: Pin<Box<dyn Future<Output = LeaveReason> + Send>> = Box::pin(pending());
    let dies = async {
        region_end.write_all(&checkpoint()).await.unwrap();
        device_end.write_all(before).await.unwrap();
        region_end.read_exact(&mut vec![0; before.len()]).await.unwrap();
        drop(region_end);
    };
    let run = relay.run(stays.as_mut(), leaving.as_mut());
    let (end, ()) = hang_means_failure(async { tokio::join!(run, dies) }).await;
    assert!(matches!(end, End::RegionLost(_)), "{end:?}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let next = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut next_end, _) = listener.accept().await.unwrap();
    relay.go_on(
        Link::plain(next),
        &decision,
        LeaveReason::Lost,
        tokio::time::Instant::now(),
        |_| None,
    );
    let goes_on = async {
        device_end.write_all(after).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(until) {
            assert_ne!(next_end.read_buf(&mut heard).await.unwrap(), 0, "{heard:?}");
        }
        heard
    };
    let run = relay.run(stays.as_mut(), leaving.as_mut());
    hang_means_failure(async {
        tokio::select! {
            biased;
            heard = goes_on => heard,
            end = run => panic!("{end:?}"),
        }
    })
    .await
}

/// The search for the next region takes twice as long as a device may be behind. The device did nothing wrong meanwhile: the edge read
/// nothing from it, and wrote nothing to it.
#[tokio::test]
async fn the_time_that_a_move_takes_is_not_the_device_s() {
    for is_blocked in [false, true] {
        let PlayedSession {
            edge,
            decision,
            mut device,
            region,
            mut device_end,
            mut region_end,
            _world,
            ..
        } = PlayedSession::new(HURRIED, Session::Kept).await;
        let mut relay = Relay::new(&mut device, Link::plain(region), &edge.config);
        relay.keep(MovableState::new(&edge, &decision, [127, 0, 0, 1].into()));
        let mut stays = pin!(futures_util::stream::pending::<Leave>());
        let mut leaving: Pin<Box<dyn Future<Output = LeaveReason> + Send>> = Box::pin(pending());
        let frame = frame_for_region(TEXT, &[b'x'; 300]);
        let mut parts = frame.chunks(frame.len().div_ceil(3));
        for _ in 0..2 {
            let dies = async {
                region_end.write_all(&checkpoint()).await.unwrap();
                if is_blocked {
                    // More than the device takes. It begins to take it, and gets no further.
                    region_end.write_all(&vec![event(); 3].concat()).await.unwrap();
                    device_end.read_u8().await.unwrap();
                } else {
                    let part = parts.next().unwrap();
                    device_end.write_all(part).await.unwrap();
                    let mut heard = Vec::new();
                    while !heard.ends_with(&part[part.len() - 8..]) {
                        region_end.read_buf(&mut heard).await.unwrap();
                    }
                }
            };
            let run = relay.run(stays.as_mut(), leaving.as_mut());
            hang_means_failure(async {
                tokio::select! {
                    biased;
                    () = dies => {}
                    end = run => panic!("{end:?}"),
                }
            })
            .await;
            // As long as it takes to find the next region.
            tokio::time::sleep(Duration::from_millis(800)).await;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let next = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (region_end, _) = listener.accept().await.unwrap();
            relay.go_on(
                Link::plain(next),
                &decision,
                LeaveReason::Lost,
                tokio::time::Instant::now(),
                |_| None,
            );
        }
        let goes_on = async {
            region_end.write_all(&checkpoint()).await.unwrap();
            // It is a while before the device can do anything, and less than it may be behind.
            tokio::time::sleep(Duration::from_millis(200)).await;
            if is_blocked {
                let mut taken = vec![0; DEVICE_BYTES];
                for _ in 0..20 {
                    assert_ne!(device_end.read(&mut taken).await.unwrap(), 0);
                }
            } else {
                device_end.write_all(parts.next().unwrap()).await.unwrap();
                let mut heard = Vec::new();
                while !heard.ends_with(&frame) {
                    region_end.read_buf(&mut heard).await.unwrap();
                }
            }
        };
        let run = relay.run(stays.as_mut(), leaving.as_mut());
        hang_means_failure(async {
            tokio::select! {
                biased;
                () = goes_on => {}
                end = run => panic!("blocked: {is_blocked}: {end:?}"),
            }
        })
        .await;
    }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn the_rest_of_a_message_whose_beginning_is_lost_does_not_reach_the_next_region() {
    let first = unfinished(frame_for_region(TEXT, &[b'x'; 200]));
    let rest = continued(frame_for_region(TEXT, b"the rest"));
    let again = frame_for_region(TEXT, b"again");
    let after = [&rest[..], &again].concat();
    let heard = heard_by_the_next_region("continuity.replay_bytes_max = 64", &first, &after, &again).await;
    assert!(!holds(&heard, &rest) && !holds(&heard, b"xxxx"), "{heard:?}");
    // One that is kept is sent again, beginning and rest.
    let heard = heard_by_the_next_region("", &first, &after, &again).await;
    assert!(heard.ends_with(&[&first[..], &rest, &again].concat()), "{heard:?}");
}

#[tokio::test]
async fn a_control_frame_that_was_half_sent_when_its_region_died_reaches_the_next_whole() {
    for opcode in [OpCode::Control(Control::Ping), OpCode::Control(Control::Pong), CLOSE] {
        let frame = frame_for_region(opcode, b"\x03\xe8are you there");
        let (before, after) = frame.split_at(9);
        let heard = heard_by_the_next_region("", before, after, after).await;
        assert!(heard.ends_with(&frame), "{opcode}: {heard:?}");
        // Of its tail alone nothing came before.
        assert_eq!(heard.windows(after.len()).filter(|window| *window == after).count(), 1);
    }
}

/// When hundreds of sessions come to a stack at once from a region that died, it is slow to answer each. Moving on would only bring
/// them to the next, and on from there.
#[tokio::test]
async fn a_stack_that_others_hear_is_slow_and_not_dead_up_to_a_point() {
    let line = PlayedSession::new("continuity.silence_busy = '1s'", Session::Kept).await;
    let heard = line.edge.fleet.heard(line.decision.stack);
    let others = tokio::spawn(async move {
        loop {
            heard.now();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let began = tokio::time::Instant::now();
    let ended = hang_means_failure(line.ends(async |device, region| (device, Some(region)))).await;
    others.abort();
    assert_eq!(
        ended,
        (End::RegionSilent, Some(Fault::Region)),
        "it is dead to this session"
    );
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
}

/// A region that takes sessions and sends until no device reads any more.
async fn talks_without_end(kept: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_head(&mut tcp).await?;
                let speaks = format!("{}: {}\r\n", wire::HEADER, wire::VERSION);
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
        let world = World::of("timeouts.device = '300ms'", &planned_at(&[("eu-west", region)]).await);
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
        // A session ends before its fault is counted.
        let of_device = "meridian_edge_faults_total{region=\"eu-west\",fault=\"device\"}";
        let counted = async {
            while world.metric(of_device) != Some(5.0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        hang_means_failure(counted).await;
        assert_eq!(world.observed()["eu-west"], (5, 0), "kept: {kept}");
        let explained = world.explain("session=another").await;
        assert_eq!(explained["decisions"][0]["region"], "eu-west");
        assert_eq!(explained["ejected"], serde_json::json!([]));
        // After a gap of their network they read again: each gets the bytes that were under way, and the reason why no more come.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let reads = devices.into_iter().map(async |mut device| {
            let mut heard = Vec::new();
            hang_means_failure(device.read_to_end(&mut heard)).await.unwrap();
            let told = close_for_device(CloseCode::Policy, "you read too slowly; read faster");
            assert!(heard.ends_with(&told), "kept: {kept}");
        });
        join_all(reads).await;
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

/// Some of these codes say of themselves that a region goes away or is confused. As an answer they say nothing of it.
#[tokio::test]
async fn a_region_that_repeats_the_close_of_a_device_does_not_go_away_and_is_not_confused() {
    for session in BOTH {
        for said in [1000_u16, 1001, 1012, 4000, 4001] {
            let ended = PlayedSession::new("", session)
                .await
                .ends(async |mut device, mut region| {
                    if session == Session::Kept {
                        region.write_all(&checkpoint()).await.unwrap();
                    }
                    let close = frame_for_region(CLOSE, &said.to_be_bytes());
                    device.write_all(&close).await.unwrap();
                    let mut heard = vec![0; close.len()];
                    region.read_exact(&mut heard).await.unwrap();
                    let echo = close_for_device(said.into(), "");
                    region.write_all(&echo).await.unwrap();
                    let mut told = vec![0; echo.len()];
                    device.read_exact(&mut told).await.unwrap();
                    assert_eq!(told, echo, "{session:?} {said}");
                    (device, Some(region))
                });
            let ended = hang_means_failure(ended).await;
            assert_eq!(ended, (End::DeviceClosed, None), "{session:?} {said}");
        }
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
        device.write_all(&frame_for_region(CLOSE, said)).await.unwrap();
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
    let world = World::with("continuity.deadline = '2s'", &stacks).await;
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

/// Three hundred sessions once asked for 14,756 connections a second together, and wrote 74,258 lines in five seconds.
#[tokio::test]
async fn sessions_that_look_for_a_region_ask_a_few_times_and_not_all_the_time() {
    if done_in_own_process("blame::sessions_that_look_for_a_region_ask_a_few_times_and_not_all_the_time") {
        return;
    }
    let log = Log::begin();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = listener.local_addr().unwrap();
    let (dies, mut is_dead) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let mut sessions = Vec::new();
        while let Ok(accepted) = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = is_dead.changed() => return,
        } {
            let (mut tcp, _) = accepted;
            read_head(&mut tcp).await.unwrap();
            let speaks = format!("{}: {}\r\n", wire::HEADER, wire::VERSION);
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
            tcp.write_all(format!("{head}{speaks}\r\n").as_bytes()).await.unwrap();
            tcp.write_all(&checkpoint()).await.unwrap();
            tcp.write_all(&event()).await.unwrap();
            sessions.push(tcp);
        }
    });
    let world = World::of("continuity.deadline = '3s'", &planned_at(&[("eu-west", home)]).await);
    let mut sessions = Vec::new();
    for _ in 0..20 {
        let mut device = opens_and_does_not_read(world.address).await;
        device.read_exact(&mut vec![0; event().len()]).await.unwrap();
        sessions.push(device);
    }
    dies.send_replace(true);
    for device in &mut sessions {
        let mut told = Vec::new();
        hang_means_failure(device.read_to_end(&mut told)).await.unwrap();
        assert!(holds(&told, b"lost; reconnect"), "{told:?}");
    }
    let connects = |region: &str| {
        let name = format!("meridian_edge_connects_total{{region=\"{region}\",outcome=\"connect-failed\"}}");
        world.metric(&name).unwrap_or(0.0)
    };
    // Rounds of 50 ms on the average, then of 100, 200, 400 and so on; each asks every region once.
    let asked = connects("eu-central");
    assert!(
        (20.0..20.0 * 20.0).contains(&asked),
        "{asked} connections of 20 sessions in 3 s"
    );
    // A round is one line, whatever it asked; the others are the ends of the sessions and the ejections of their stacks.
    let lines = log.lines();
    let (rounds, others): (Vec<_>, Vec<_>) = lines
        .iter()
        .filter(|line| line["level"] != "DEBUG")
        .partition(|line| line["message"] == "no region goes on with a session");
    // The last round of a session may end before its line, or before it asked all.
    let apart = (rounds.len() as f64 - asked).abs();
    assert!(
        apart <= sessions.len() as f64,
        "{} lines of {asked} rounds",
        rounds.len()
    );
    assert!(others.len() < 2 * sessions.len(), "{others:#?}");
}

#[tokio::test]
async fn a_region_that_declines_is_passed_on_whole_and_without_the_headers_of_its_hop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let region = listener.local_addr().unwrap();
    let (answers, mut answer) = tokio::sync::mpsc::channel::<&[u8]>(1);
    tokio::spawn(async move {
        while let (Ok((mut tcp, _)), Some(answer)) = (listener.accept().await, answer.recv().await) {
            read_head(&mut tcp).await.unwrap();
            tcp.write_all(answer).await.unwrap();
            // Kept open: the edge must know by itself where it ends.
            tokio::spawn(async move { tcp.read_u8().await });
        }
    });
    let world = World::of("timeouts.upgrade = '1s'", &planned_at(&[("eu-west", region)]).await);
    let request = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let chunked = b"HTTP/1.1 401 No\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nMeridian-Region: moon\r\n\
                   Transfer-Encoding: chunked\r\nX-LeaveReason: key\r\n\r\n4\r\nno k\r\n2\r\ney\r\n0\r\n\r\n";
    answers.send(chunked).await.unwrap();
    let told = world.ask(request).await;
    assert!(
        told.starts_with("HTTP/1.1 401 No\r\n") && told.contains("X-LeaveReason: key\r\n"),
        "{told}"
    );
    assert!(told.ends_with("\r\n\r\n4\r\nno k\r\n2\r\ney\r\n0\r\n\r\n"), "{told}");
    assert!(
        told.contains("Meridian-Region: eu-west\r\n") && !told.contains("moon"),
        "{told}"
    );
    assert!(!told.to_lowercase().contains("keep-alive"), "{told}");
    assert_eq!(told.matches("Connection: ").count(), 1, "{told}");
    // An informational answer is no answer (RFC 9110 §15.2).
    let early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\
                 Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi";
    answers.send(early).await.unwrap();
    let mut device = opens_and_does_not_read(world.address).await;
    let mut heard = [0; 4];
    hang_means_failure(device.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"\x81\x02hi");
    assert_eq!(world.observed()["eu-west"], (2, 0));
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

/// A stack that has no room, or stops in order, works: the session goes to the next one, and no side is blamed.
#[tokio::test]
async fn a_stack_that_has_no_room_or_stops_is_passed_over_and_not_blamed() {
    for stack in [Stack::Answers(429), Stack::Drains, Stack::Full] {
        let world = World::new(&[("eu-west", stack), ("eu-central", Stack::Echoes)]).await;
        for _ in 0..5 {
            let mut anna = world.open(&[]).await;
            assert_eq!(anna.header("meridian-region"), "eu-central", "{stack:?}");
            anna.check_echo("hello").await;
        }
        let failed = world.observed().get("eu-west").map_or(0, |seen| seen.1);
        assert_eq!(failed, 0, "{stack:?}");
        assert_eq!(world.explain("session=b").await["ejected"], serde_json::json!([]));
    }
}

/// An edge that is late has room all the same; one without descriptors has none.
#[tokio::test]
async fn only_what_the_edge_ran_out_of_closes_it_to_newcomers() {
    let line = PlayedSession::new("", Session::Plain).await;
    let (edge, decision) = (&line.edge, &line.decision);
    let late = Facts::timed_out(true);
    assert_eq!(edge.blame(decision, Failed::ToBegin, late, "no answer"), Fault::Edge);
    assert!(!edge.admission.is_exhausted());
    let out = Event::Io(Cause::Local).into();
    assert_eq!(edge.blame(decision, Failed::ToBegin, out, "no file"), Fault::Edge);
    assert!(edge.admission.is_exhausted());
}

/// A stack that accepts and never says a word, and how often it was asked.
async fn frozen() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            held.push(tcp);
        }
    });
    (address, asked)
}

/// Reads until the device hears that its session goes on elsewhere. Returns the notice.
async fn hears_of_its_move(anna: &mut support::Session) -> String {
    loop {
        match anna.hear().await {
            Message::Text(text) if text.contains("meridian.notice") => return text.to_string(),
            Message::Close(close) => panic!("{close:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_late_edge_does_not_ask_a_frozen_stack_again_while_others_are_well() {
    let (frozen, asked) = frozen().await;
    let mut snapshot = planned(&[
        ("eu-west", Stack::Talks(Fate::DiesAfterMessages(1))),
        ("us-west", Stack::Talks(Fate::Lives)),
    ])
    .await;
    let backup = snapshot.topology.regions.get_mut(&region("eu-central")).unwrap();
    backup.stacks = vec![frozen.into()];
    // The healthy stack has as long to answer as the frozen one.
    let changes = "timeouts.upgrade = '1s'\ncontinuity.deadline = '10s'";
    let world = World::of(changes, &snapshot);
    let mut anna = world.open(&[]).await;
    let edge = world.edge.clone();
    let stays_late = async {
        loop {
            edge.lag.note(Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    anna.say("a").await;
    let told = tokio::select! {
        biased;
        told = hears_of_its_move(&mut anna) => told,
        () = stays_late => unreachable!("it never ends"),
    };
    assert!(told.contains("us-west"), "{told}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(!world.edge.admission.is_exhausted(), "it has room");
}

#[tokio::test]
async fn a_session_does_not_wait_for_a_place_at_a_stack_that_is_out_meanwhile() {
    let (frozen, asked) = frozen().await;
    let mut snapshot = planned(&[
        ("eu-west", Stack::Talks(Fate::DiesAfterMessages(1))),
        ("us-west", Stack::Talks(Fate::Lives)),
    ])
    .await;
    let backup = snapshot.topology.regions.get_mut(&region("eu-central")).unwrap();
    backup.stacks = vec![frozen.into()];
    let world = World::of("continuity.deadline = '15s'", &snapshot);
    let mut anna = world.open(&[]).await;
    // Other sessions have all the slots, and wait in vain.
    let gate = world.edge.fleet.gate(frozen);
    let _places = gate
        .try_acquire_many(u32::try_from(gate.available_permits()).unwrap())
        .unwrap();
    anna.say("a").await;
    let picked = world.explain("session=another").await;
    assert_eq!(
        picked["decisions"][0]["region"], "eu-west",
        "the story begins where it should"
    );
    let lost = async {
        while !world.live().is_empty()
            && world
                .metric("meridian_edge_faults_total{region=\"eu-west\",fault=\"region\"}")
                .is_none()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(lost).await;
    let eu_central = region("eu-central");
    let ejected = (0..100).any(|_| {
        let now = daemon::clock::now();
        world
            .edge
            .fleet
            .refused(&eu_central, frozen, "no answer", now)
            .is_some()
    });
    assert!(ejected);
    let told = hears_of_its_move(&mut anna).await;
    assert!(told.contains("us-west"), "{told}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_edge_without_room_leaves_a_session_where_it_is_when_the_plan_can_wait() {
    let stacks = [
        ("eu-west", Stack::Talks(Fate::Lives)),
        ("eu-central", Stack::Talks(Fate::Lives)),
    ];
    let mut snapshot = planned(&stacks).await;
    let world = World::of("drain.window = '50ms'", &snapshot);
    let mut anna = world.open(&[]).await;
    anna.hear().await;
    world.edge.admission.exhausted();
    let evacuated = snapshot.plan.regions.get_mut(&region("eu-west")).unwrap();
    evacuated.state = RegionState::Evacuated;
    snapshot.plan.routes.get_mut(&region("eu-west")).unwrap()[0].region = region("eu-central");
    snapshot.plan.generation = 2;
    world.edge.apply(&snapshot);
    while world.edge.admission.is_exhausted() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(
            world.live(),
            [("eu-west".to_owned(), 1)].into(),
            "it has a region still"
        );
    }
    snapshot.plan.generation = 3;
    world.edge.apply(&snapshot);
    let told = async {
        while world.live() != [("eu-central".to_owned(), 1)].into() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(told).await;
}
