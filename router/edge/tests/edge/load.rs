//! Callers who do nothing wrong, while devices and stacks misbehave beside them as in the rows of docs/edge.md, "Who is blamed", many
//! at once: the edge serves the callers on their open connections, and blames only the region that failed. The story runs in a
//! process of its own, whose open files it takes away.
//!
//! One file, although it is long: each kind of misbehaviour stands beside the blame that it must get.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    self, Badly, DIE, Fate, GIVE_ME_UP, Stack, World,
    alone::done_in_own_process,
    calls, hang_means_failure, http as stacks,
    lateness::{Lateness, unless_late},
    leave_open_files, region,
};
use bytes::Bytes;
use edge::session::frames::frame_for_region;
use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        protocol::frame::coding::{Data, OpCode},
    },
};

/// Callers with a session, and as many that ask by HTTP.
const CALLERS: usize = 8;
/// Devices that misbehave at once.
const MANY: usize = 16;
/// The address of the callers: another client than the misbehaving devices, whose limits are their own.
const CALLERS_ADDRESS: &str = "127.0.0.2:0";

const GET: &str = "GET /v1/models HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
const UPGRADE: &str = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The operator's own server was marked down.
const SERVER_DOWN: &str = "meridian_edge_upstream_down_total{path=\"/skills/\"}";

/// Statuses of gRPC. The second one is also that of a client that has too many long bodies on their way.
const DEADLINE_EXCEEDED: &str = "4";
const RESOURCE_EXHAUSTED: &str = "8";

/// Each device is soon found to keep no pace. Soon is long for the callers: on a busy machine they may not run for more than a
/// second. The regions do nothing wrong, and have all the time.
const SOON_FOR_DEVICES: &str = "timeouts = { device = '2s', header = '2s', idle = '5s', answer = '20s' }\n\
                                limits = { device_bytes_per_s_min = 1000, body_bytes_max = 1000000 }";

/// The time after which a stack is silent, where its fault is to say nothing. The healthy one beside it has as long.
fn soon_for(stack: Stack) -> &'static str {
    match stack {
        Stack::Hangs => "timeouts.upgrade = '3s'",
        Stack::Serves(Fate::FreezesAfterMessages(_)) => {
            "continuity = { silence_busy = '4s', silence_active = '4s', silence_idle = '4s' }"
        }
        _ => "",
    }
}

pub(crate) async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // The edge soon holds the bytes that a device does not take.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    hang_means_failure(socket.connect(to)).await.unwrap()
}

/// A session of a caller.
async fn call(edge: SocketAddr) -> WebSocketStream<TcpStream> {
    let tcp = connect(CALLERS_ADDRESS, edge).await;
    let opened = client_async(format!("ws://{edge}/v1/realtime"), tcp);
    let (mut session, _) = hang_means_failure(opened).await.unwrap();
    assert_eq!(hear(&mut session).await, "hello");
    session
}

/// The next message of the region; it skips the notices of the edge.
async fn hear(session: &mut WebSocketStream<TcpStream>) -> String {
    loop {
        match hang_means_failure(session.next()).await {
            Some(Ok(Message::Text(text))) if text.starts_with('{') => {}
            Some(Ok(Message::Text(text))) => return text.to_string(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("the caller lost its session: {other:?}"),
        }
    }
}

/// Something is said, and all of the answer comes, once.
async fn turn(session: &mut WebSocketStream<TcpStream>) {
    for word in ["a", "b", "."] {
        session.send(Message::text(word)).await.unwrap();
    }
    for expected in ["listening", "said a", "said b", "done"] {
        assert_eq!(hear(session).await, expected);
    }
}

async fn ask(edge: SocketAddr) {
    let mut tcp = connect(CALLERS_ADDRESS, edge).await;
    tcp.write_all(GET.as_bytes()).await.unwrap();
    let mut answer = String::new();
    hang_means_failure(tcp.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// A call of gRPC, answered with all that there is.
async fn call_grpc(edge: SocketAddr) {
    let (answer, mut body) = calls::begin(connect(CALLERS_ADDRESS, edge).await, calls::WINDOW).await;
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let status = hang_means_failure(calls::status(answer)).await;
    assert_eq!(status.as_deref(), Some("0"));
}

/// Everything that callers ask for beside sessions, on new connections.
async fn ask_all(edge: SocketAddr) {
    join_all((0..CALLERS).map(async |_| {
        ask(edge).await;
        call_grpc(edge).await;
    }))
    .await;
}

/// Callers who talk and send requests until they are told to stop.
struct Callers {
    served: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    async fn begin(edge: SocketAddr) -> Self {
        let served = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for _ in 0..CALLERS {
            let mut session = call(edge).await;
            let counts = served.clone();
            tasks.push(tokio::spawn(async move {
                loop {
                    turn(&mut session).await;
                    counts.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }));
        }
        Self { served, tasks }
    }

    /// Waits until they were served so often again; fails when one of them is not served any more.
    async fn go_on(&self, what: &str) {
        let until = self.served.load(Ordering::Relaxed) + 4 * CALLERS;
        let served = async {
            while self.served.load(Ordering::Relaxed) < until {
                assert!(
                    self.tasks.iter().all(|task| !task.is_finished()),
                    "{what}: a caller failed"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        hang_means_failure(served).await;
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Reads until the edge ends the connection, in one way or another.
async fn until_it_ends(tcp: &mut TcpStream) {
    let mut bytes = [0; 4096];
    let ended = async { while tcp.read(&mut bytes).await.is_ok_and(|length| length > 0) {} };
    hang_means_failure(ended).await;
}

/// The faults of devices.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    TakesNothing,
    TakesAByteNowAndThen,
    TricklesAFrame,
    SaysNothing,
    LeavesInATurn,
    SendsNonsense,
    SendsHalfAHead,
    TricklesABody,
    TakesNoAnswer,
    TakesNothingOfHttp2,
    TakesNoRefusal,
    SendsABadHead,
    SendsTooMuch,
    TricklesACall,
    StopsInACall,
    NeverEndsACall,
    TakesNothingOfACall,
    IsGivenUp,
    IsBlockedAsItsRegionDies,
    LeavesAnAnswer,
    TricklesAnUpload,
    StopsInAnUpload,
}

const WRONGS: [Wrong; 22] = [
    Wrong::TakesNothing,
    Wrong::TakesAByteNowAndThen,
    Wrong::TricklesAFrame,
    Wrong::SaysNothing,
    Wrong::LeavesInATurn,
    Wrong::SendsNonsense,
    Wrong::SendsHalfAHead,
    Wrong::TricklesABody,
    Wrong::TakesNoAnswer,
    Wrong::TakesNothingOfHttp2,
    Wrong::TakesNoRefusal,
    Wrong::SendsABadHead,
    Wrong::SendsTooMuch,
    Wrong::TricklesACall,
    Wrong::StopsInACall,
    Wrong::NeverEndsACall,
    Wrong::TakesNothingOfACall,
    Wrong::IsGivenUp,
    Wrong::IsBlockedAsItsRegionDies,
    Wrong::LeavesAnAnswer,
    Wrong::TricklesAnUpload,
    Wrong::StopsInAnUpload,
];

impl Wrong {
    /// Why the edge refused it, where that is all it came to: the device is blamed.
    fn refused(self) -> Option<&'static str> {
        match self {
            Self::SendsHalfAHead => Some("header-too-slow"),
            Self::TricklesABody
            | Self::TricklesACall
            | Self::StopsInACall
            | Self::TricklesAnUpload
            | Self::StopsInAnUpload => Some("body-too-slow"),
            Self::SendsABadHead => Some("malformed"),
            Self::SendsTooMuch | Self::NeverEndsACall => Some("body-too-large"),
            _ => None,
        }
    }

    /// Whether the edge ended its sessions for it: their regions count that as the fault of a device.
    fn ended_its_session(self) -> bool {
        matches!(
            self,
            Self::TricklesAFrame
                | Self::SaysNothing
                | Self::SendsNonsense
                | Self::IsGivenUp
                | Self::IsBlockedAsItsRegionDies
        )
    }
}

/// Asks for the same on many streams of HTTP/2, all with a window of zero.
async fn ask_and_take_nothing(tcp: TcpStream, path: &str) -> (JoinHandle<()>, Vec<h2::client::ResponseFuture>) {
    let handshake = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(tcp);
    let (mut sender, connection) = handshake.await.unwrap();
    // Its end is the edge's affair.
    let connection = tokio::spawn(async { drop(connection.await) });
    let mut answers = Vec::new();
    for _ in 0..20 {
        let Ok(ready) = hang_means_failure(sender.ready()).await else {
            break;
        };
        sender = ready;
        let get = http::Request::get(format!("http://voice.test{path}")).body(()).unwrap();
        answers.extend(sender.send_request(get, true).map(|(answer, _)| answer));
    }
    (connection, answers)
}

/// Sends a part of a call after each pause and never ends it, until the edge answers; the status of that.
async fn call_without_end(tcp: TcpStream, begins: usize, part: usize, pause: Duration) -> Option<String> {
    let (answer, mut body) = calls::begin(tcp, calls::WINDOW).await;
    let says = async {
        let mut length = begins;
        loop {
            // The call may be over; its status says so.
            let _ = body.send_data(Bytes::from(vec![b'x'; length]), false);
            tokio::time::sleep(pause).await;
            length = part;
        }
    };
    tokio::select! {
        biased;
        status = hang_means_failure(calls::status(answer)) => status,
        () = says => unreachable!("it never ends"),
    }
}

/// A device does it, until the edge has had enough of it.
async fn do_wrong(wrong: Wrong, edge: SocketAddr) {
    let mut tcp = connect("127.0.0.1:0", edge).await;
    match wrong {
        Wrong::TakesNothing => {
            let opened = client_async(format!("ws://{edge}/v1/realtime"), tcp);
            // Its client may have too many.
            let Ok((mut session, _)) = hang_means_failure(opened).await else {
                return;
            };
            // It asks for enough to fill the buffers of the kernel. One message fits into a checkpoint.
            let word = "x".repeat(8_000);
            for said in [word.as_str(), "."].into_iter().cycle().take(4_000) {
                let sent = timeout(Duration::from_millis(300), session.send(Message::text(said)));
                if !matches!(sent.await, Ok(Ok(()))) {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(2_500)).await;
        }
        Wrong::TakesAByteNowAndThen => {
            tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
            let word = frame_for_region(OpCode::Data(Data::Text), &[b'x'; 8_000]);
            let ends = frame_for_region(OpCode::Data(Data::Text), b".");
            let (mut hears, mut says) = tcp.split();
            let takes = async {
                // The edge ends it while much is still on its way.
                for _ in 0..60 {
                    if hears.read_u8().await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let asks = async {
                for said in [&word, &ends].into_iter().cycle().take(2_000) {
                    if says.write_all(said).await.is_err() {
                        break;
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = takes => {}
                () = asks => {}
            }
        }
        Wrong::TricklesAFrame => {
            tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
            let (mut hears, mut says) = tcp.split();
            let trickles = async {
                for byte in &frame_for_region(OpCode::Data(Data::Text), &[b'x'; 1000]) {
                    // The edge may be gone.
                    let _ = says.write_all(&[*byte]).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let mut heard = Vec::new();
            tokio::select! {
                biased;
                _ = hang_means_failure(hears.read_to_end(&mut heard)) => {}
                () = trickles => panic!("the edge waited for all of it"),
            }
        }
        Wrong::SaysNothing => {
            tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
            until_it_ends(&mut tcp).await;
        }
        Wrong::LeavesInATurn => {
            let opened = client_async(format!("ws://{edge}/v1/realtime"), tcp);
            let Ok((mut session, _)) = hang_means_failure(opened).await else {
                return;
            };
            session.send(Message::text("a")).await.unwrap();
            // With its greeting unread, the connection is reset.
        }
        Wrong::SendsNonsense => {
            tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
            let _ = tcp.write_all(&[0xff; 64]).await;
            until_it_ends(&mut tcp).await;
        }
        Wrong::SendsHalfAHead => {
            tcp.write_all(&UPGRADE.as_bytes()[..60]).await.unwrap();
            until_it_ends(&mut tcp).await;
        }
        Wrong::TricklesABody => {
            let head = "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nContent-Length: 5000\r\n\r\n{";
            tcp.write_all(head.as_bytes()).await.unwrap();
            until_it_ends(&mut tcp).await;
        }
        Wrong::TakesNoAnswer => {
            let gets = GET.replace("Connection: close\r\n", "");
            for _ in 0..1_000 {
                if !matches!(
                    timeout(Duration::from_millis(300), tcp.write_all(gets.as_bytes())).await,
                    Ok(Ok(()))
                ) {
                    break;
                }
            }
        }
        Wrong::TakesNothingOfHttp2 => {
            let (connection, answers) = ask_and_take_nothing(tcp, "/v1/models").await;
            let _ = timeout(Duration::from_millis(2_500), join_all(answers)).await;
            connection.abort();
        }
        Wrong::TakesNoRefusal => {
            let (connection, answers) = ask_and_take_nothing(tcp, "/nothing").await;
            for answer in answers {
                // Heads need no window. The connection may be over by then.
                let Ok(refusal) = hang_means_failure(answer).await else {
                    break;
                };
                assert!(refusal.status().is_client_error(), "{}", refusal.status());
                let body = hang_means_failure(refusal.into_body().data()).await;
                assert!(!matches!(body, Some(Ok(_))), "{body:?}");
            }
            connection.abort();
        }
        Wrong::SendsABadHead => {
            let head = "GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
            tcp.write_all(head.as_bytes()).await.unwrap();
            until_it_ends(&mut tcp).await;
        }
        Wrong::SendsTooMuch => {
            let head = "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nContent-Length: 99999999999\r\n\r\n";
            tcp.write_all(head.as_bytes()).await.unwrap();
            until_it_ends(&mut tcp).await;
        }
        Wrong::TricklesACall => {
            let status = call_without_end(tcp, 1, 1, Duration::from_millis(50)).await;
            assert_eq!(status.as_deref(), Some(DEADLINE_EXCEEDED));
        }
        // More than the edge holds of it before a region is asked, which then waits for the rest as for an answer.
        Wrong::StopsInACall => {
            let status = call_without_end(tcp, 40_000, 0, Duration::from_secs(60)).await;
            let status = status.as_deref();
            assert!(
                matches!(status, Some(DEADLINE_EXCEEDED | RESOURCE_EXHAUSTED)),
                "{status:?}"
            );
        }
        Wrong::NeverEndsACall => {
            let status = call_without_end(tcp, 10_000, 10_000, Duration::from_millis(5)).await;
            let status = status.as_deref();
            // On a busy machine it may be found to keep no pace before it has sent too much.
            assert!(
                matches!(status, Some(DEADLINE_EXCEEDED | RESOURCE_EXHAUSTED)),
                "{status:?}"
            );
        }
        Wrong::TakesNothingOfACall => {
            let (answer, mut body) = calls::begin(tcp, 0).await;
            body.send_data(Bytes::from_static(b"hello"), true).unwrap();
            let answer = hang_means_failure(answer).await.unwrap();
            let part = hang_means_failure(answer.into_body().data()).await;
            assert!(matches!(part, Some(Err(_))), "{part:?}");
        }
        Wrong::IsGivenUp => be_given_up(tcp, GIVE_ME_UP).await,
        Wrong::IsBlockedAsItsRegionDies => be_given_up(tcp, DIE).await,
        Wrong::LeavesAnAnswer => tcp.write_all(GET.as_bytes()).await.unwrap(),
        // Less than the edge holds of it before a server is asked, and more.
        Wrong::TricklesAnUpload => upload(tcp, 1, Duration::from_millis(50)).await,
        Wrong::StopsInAnUpload => upload(tcp, 40_000, Duration::from_secs(60)).await,
    }
}

/// A device opens a session and takes nothing of it, and its stack, which has much to say, gives it up.
pub(crate) async fn be_given_up(mut tcp: TcpStream, why: &str) {
    tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
    let says = frame_for_region(OpCode::Data(Data::Text), why.as_bytes());
    let heartbeat = frame_for_region(OpCode::Data(Data::Text), b"x");
    // The client may have too many connections.
    let _ = tcp.write_all(&says).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The edge notices that the stack is gone when it passes something on.
    for _ in 0..50 {
        if tcp.write_all(&heartbeat).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A device uploads something to the operator's own server, and slows down behind `begins` bytes of it.
async fn upload(mut tcp: TcpStream, begins: usize, pause: Duration) {
    let head = "POST /skills/upload HTTP/1.1\r\nHost: v\r\nContent-Length: 80000\r\nConnection: close\r\n\r\n";
    tcp.write_all(head.as_bytes()).await.unwrap();
    let (mut hears, mut says) = tcp.split();
    let uploads = async {
        // The edge may have refused it.
        let _ = says.write_all(&vec![b'x'; begins]).await;
        loop {
            let _ = says.write_all(b"x").await;
            tokio::time::sleep(pause).await;
        }
    };
    let mut answer = [0; 13];
    tokio::select! {
        biased;
        heard = hang_means_failure(hears.read_exact(&mut answer)) => drop(heard.unwrap()),
        () = uploads => unreachable!("it never ends"),
    }
    // Its client may have too many on their way.
    let answer = String::from_utf8_lossy(&answer);
    assert!(["HTTP/1.1 408 ", "HTTP/1.1 429 "].contains(&&*answer), "{answer}");
}

fn faults(world: &World, region: &str, fault: &str) -> f64 {
    let name = format!("meridian_edge_faults_total{{region=\"{region}\",fault=\"{fault}\"}}");
    world.metric(&name).unwrap_or(0.0)
}

/// Checks that nothing counts against any region.
async fn nobody_is_blamed(world: &World, what: &str) {
    let failed: u32 = world.observed().values().map(|(_, failed)| failed).sum();
    assert_eq!(failed, 0, "{what}");
    for region in ["eu-west", "eu-central"] {
        assert_eq!(faults(world, region, "region"), 0.0, "{what}: {region}");
    }
    let explained = world.explain("session=another").await;
    assert_eq!(explained["decisions"][0]["region"], "eu-west", "{what}");
    assert_eq!(explained["ejected"], serde_json::json!([]), "{what}");
    assert_eq!(world.metric(SERVER_DOWN), None, "{what}");
}

/// The faults of stacks, and whether they count against their region.
const STACKS: [(Stack, Blamed); 23] = [
    (Stack::Refuses, Blamed::Region),
    (Stack::Hangs, Blamed::Region),
    (Stack::Answers(500), Blamed::Region),
    (Stack::Answers(502), Blamed::Region),
    (Stack::Answers(503), Blamed::Region),
    (Stack::Answers(504), Blamed::Region),
    (Stack::Answers(429), Blamed::Nobody),
    (Stack::Full, Blamed::Nobody),
    (Stack::Drains, Blamed::Nobody),
    (Stack::Serves(Fate::DiesAfterEvents(3)), Blamed::Region),
    (Stack::Serves(Fate::DiesInEvent(3)), Blamed::Region),
    (Stack::Serves(Fate::DiesAfterMessages(4)), Blamed::Region),
    (Stack::Serves(Fate::FreezesAfterMessages(4)), Blamed::Region),
    (Stack::Serves(Fate::BabblesAfterEvents(3)), Blamed::Region),
    (Stack::Babbles, Blamed::Region),
    (Stack::ServesNonsense, Blamed::Region),
    (Stack::ServesSwitching, Blamed::Region),
    (Stack::Serves(Fate::LeavesAfterTurn), Blamed::Nobody),
    (Stack::Serves(Fate::FillsUp), Blamed::Nobody),
    (Stack::Resets, Blamed::Region),
    (Stack::ServesBadly(Badly::Ends), Blamed::Region),
    (Stack::ServesBadly(Badly::BreaksOff), Blamed::Region),
    (Stack::ServesBadly(Badly::ClosesKept), Blamed::Nobody),
];
const CLOSES_KEPT: Stack = Stack::ServesBadly(Badly::ClosesKept);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blamed {
    Region,
    Nobody,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_served_beside_everything_that_goes_wrong_and_only_what_a_region_did_counts() {
    if done_in_own_process(
        "load::callers_are_served_beside_everything_that_goes_wrong_and_only_what_a_region_did_counts",
    ) {
        return;
    }
    // Alone, and first: open files of other stories would come back at any moment.
    let [first, others @ ..] = STORIES;
    let tell = |story: Story| unless_late(async move |lateness| story.play(lateness).await);
    tell(first).await;
    // Each of the others has a world of its own, and mostly waits.
    join_all(others.map(tell)).await;
    devices_that_do_wrong().await;
    for (stack, blamed) in STACKS {
        unless_late(async |lateness| a_stack(lateness, stack, blamed).await).await;
    }
}

async fn devices_that_do_wrong() {
    let lives = Stack::Serves(Fate::Lives);
    let (server, _) = stacks::stack(stacks::repeats).await;
    let changes = format!("{}\n{SOON_FOR_DEVICES}", with_server(server));
    let world = World::with(&changes, &[("eu-west", lives), ("eu-central", lives)]).await;
    let callers = Callers::begin(world.address).await;
    for wrong in WRONGS {
        let what = format!("{wrong:?}");
        let devices = (0..MANY).map(|_| tokio::spawn(do_wrong(wrong, world.address)));
        let refused = wrong
            .refused()
            .map(|reason| format!("meridian_edge_refused_total{{reason=\"{reason}\"}}"));
        let refusals = || refused.as_ref().and_then(|name| world.metric(name)).unwrap_or(0.0);
        let of_devices = || {
            ["eu-west", "eu-central"]
                .map(|name| faults(&world, name, "device"))
                .iter()
                .sum::<f64>()
        };
        let (before, of_devices_before) = (refusals(), of_devices());
        let (wrongdoers, (), ()) = tokio::join!(join_all(devices), callers.go_on(&what), ask_all(world.address));
        for done in wrongdoers {
            done.unwrap();
        }
        // The devices that were served meanwhile, and the next ones.
        ask_all(world.address).await;
        callers.go_on(&what).await;
        nobody_is_blamed(&world, &what).await;
        assert_eq!(refusals() > before, refused.is_some(), "{what}");
        if wrong.ended_its_session() {
            let counted = async {
                while of_devices() == of_devices_before {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            hang_means_failure(counted).await;
        }
    }
}

async fn a_stack(lateness: &Lateness, stack: Stack, blamed: Blamed) {
    let what = format!("{stack:?}");
    let lives = Stack::Serves(Fate::Lives);
    let world = lateness.of(World::with(soon_for(stack), &[("eu-west", stack), ("eu-central", lives)]).await);
    let calls = (0..CALLERS).map(|_| async {
        let mut session = call(world.address).await;
        for _ in 0..3 {
            turn(&mut session).await;
        }
        // A draining stack takes no new sessions; this test does not look at its other answers.
        if stack != Stack::Drains {
            // The next ones come on the connection that the edge kept.
            for _ in 0..if stack == CLOSES_KEPT { 3 } else { 1 } {
                ask(world.address).await;
            }
        }
    });
    join_all(calls).await;
    assert_eq!(
        faults(&world, "eu-west", "region") > 0.0,
        blamed == Blamed::Region,
        "{what}"
    );
    let observed = world.observed();
    let failed = |region: &str| observed.get(region).map_or(0, |(_, failed)| *failed);
    assert_eq!(failed("eu-west") > 0, blamed == Blamed::Region, "{what}: {observed:?}");
    assert_eq!(failed("eu-central"), 0, "{what}: the region beside it did nothing");
    assert_eq!(faults(&world, "eu-central", "region"), 0.0, "{what}");
}

/// A group of operator's servers, with one that may fail once.
fn with_server(server: SocketAddr) -> String {
    format!("upstream = [{{ path = '/skills/', servers = ['{server}'], max_fails = 1 }}]")
}

/// Faults that need a story of their own.
#[derive(Debug, Clone, Copy)]
enum Story {
    NoOpenFiles,
    Declines,
    SaysNo,
    FailsTurns,
    IsSilentToTheProbes,
    AnswersLate,
    AnswersNeitherThisNorTheProbes,
    IsIll,
    IsAtItsLimit,
    TakesCallsLate,
    TakesNoCalls,
    ServerSaysNothing,
}

const STORIES: [Story; 12] = [
    Story::NoOpenFiles,
    Story::Declines,
    Story::SaysNo,
    Story::FailsTurns,
    Story::IsSilentToTheProbes,
    Story::AnswersLate,
    Story::AnswersNeitherThisNorTheProbes,
    Story::IsIll,
    Story::IsAtItsLimit,
    Story::TakesCallsLate,
    Story::TakesNoCalls,
    Story::ServerSaysNothing,
];

impl Story {
    async fn play(self, lateness: &Lateness) {
        match self {
            Self::NoOpenFiles => an_edge_without_open_files().await,
            Self::Declines => a_stack_that_declines().await,
            Self::SaysNo => a_stack_that_says_no().await,
            Self::FailsTurns => a_stack_that_fails_its_turns().await,
            Self::IsSilentToTheProbes => a_region_that_is_silent_to_the_probes().await,
            Self::AnswersLate => a_region_that_answers_late(lateness, true).await,
            Self::AnswersNeitherThisNorTheProbes => a_region_that_answers_late(lateness, false).await,
            Self::IsIll => a_region_that_is_ill().await,
            Self::IsAtItsLimit => regions_at_their_limit().await,
            Self::TakesCallsLate => a_region_that_takes_calls_late().await,
            Self::TakesNoCalls => a_region_that_takes_no_calls(lateness).await,
            Self::ServerSaysNothing => a_server_that_says_nothing(lateness).await,
        }
    }
}

/// Checks that nothing counts against any region of the world.
fn no_region_is_blamed(world: &World) {
    // The other regions of the plan have no stack.
    let observed = world.observed();
    for region in ["eu-west", "eu-central"] {
        let failed = observed.get(region).map_or(0, |(_, failed)| *failed);
        assert_eq!(
            (failed, faults(world, region, "region")),
            (0, 0.0),
            "{region}: {observed:?}"
        );
    }
}

/// The limit of open files, which comes back when the story ends.
struct OpenFiles(Rlimit);

impl Drop for OpenFiles {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

async fn an_edge_without_open_files() {
    let lives = Stack::Serves(Fate::Lives);
    let world = World::new(&[("eu-west", lives), ("eu-central", lives)]).await;
    let callers = Callers::begin(world.address).await;
    let limit = OpenFiles(getrlimit(Resource::Nofile));
    // For a device and for the connection that the edge accepts; there is none for the region.
    let (taken, mut refused) = (leave_open_files(2), 0);
    let until_refused = async {
        while refused < 5 {
            // A session needs a connection of its own to its region; a request may find one that is kept.
            let mut tcp = TcpStream::connect(world.address).await.unwrap();
            tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            let length = tcp.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]);
            if answer.starts_with("HTTP/1.1 503 ") && answer.contains("edge_full") {
                refused += 1;
            }
        }
    };
    hang_means_failure(until_refused).await;
    callers.go_on("no open files").await;
    drop(taken);
    drop(limit);
    while world.edge.admission.is_exhausted() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ask_all(world.address).await;
    callers.go_on("open files again").await;
    nobody_is_blamed(&world, "no open files").await;
}

/// It takes no sessions of others (Close 4001): they go on at the next one.
async fn a_stack_that_declines() {
    let stacks = [
        ("eu-west", Stack::Serves(Fate::LeavesAfterTurn)),
        ("eu-central", Stack::Serves(Fate::RefusesOthers)),
        ("us-west", Stack::Serves(Fate::Lives)),
    ];
    let world = World::new(&stacks).await;
    let calls = (0..CALLERS).map(|_| async {
        let mut session = call(world.address).await;
        for _ in 0..3 {
            turn(&mut session).await;
        }
        session
    });
    let sessions = join_all(calls).await;
    assert_eq!(world.live(), [("us-west".to_owned(), CALLERS)].into());
    drop(sessions);
    assert!(faults(&world, "eu-central", "nobody") > 0.0);
    no_region_is_blamed(&world);
}

/// It refuses the device (401), which gets that answer: no other region would say anything else.
async fn a_stack_that_says_no() {
    let stacks = [
        ("eu-west", Stack::Answers(401)),
        ("eu-central", Stack::Serves(Fate::Lives)),
    ];
    let world = World::new(&stacks).await;
    let asks = (0..MANY).map(|_| async {
        let refused = support::open(world.address, &[]).await.err().unwrap();
        assert_eq!(refused.status(), 401);
    });
    join_all(asks).await;
    no_region_is_blamed(&world);
}

async fn a_stack_that_fails_its_turns() {
    let stacks = [
        ("eu-west", Stack::Serves(Fate::FailsTurns)),
        ("eu-west", Stack::Serves(Fate::Lives)),
        ("eu-central", Stack::Serves(Fate::Lives)),
    ];
    let world = World::with("picking.volume_min = 4", &stacks).await;
    let ill = world.stack_of("eu-west");
    let at_ill = || {
        let by_stack = world.edge.sessions.by_stack().remove(&region("eu-west"));
        by_stack.and_then(|stacks| stacks.get(&ill).copied()).unwrap_or(0)
    };
    let open = async |n: usize| {
        let mut session = world.open(&[("meridian-session", &format!("device-{n}"))]).await;
        assert_eq!(hear(&mut session.socket).await, "hello");
        session
    };
    let mut sessions = Vec::new();
    for n in 0..MANY {
        sessions.push(open(n).await);
    }
    let before = at_ill();
    assert!((1..MANY).contains(&before), "{before}");
    let ejected = async {
        while !world.edge.fleet.is_out(&region("eu-west"), ill, daemon::clock::now()) {
            join_all(sessions.iter_mut().map(|session| turn(&mut session.socket))).await;
        }
    };
    hang_means_failure(ejected).await;
    for n in MANY..2 * MANY {
        sessions.push(open(n).await);
    }
    assert_eq!(at_ill(), before, "new sessions go to the other stack");
    join_all(sessions.iter_mut().map(|session| turn(&mut session.socket))).await;
    no_region_is_blamed(&world);
}

async fn a_region_that_is_silent_to_the_probes() {
    let lives = Stack::Serves(Fate::Lives);
    let world = World::new(&[("eu-west", lives), ("eu-central", lives)]).await;
    let callers = Callers::begin(world.address).await;
    let silent = [region("eu-west")].into();
    let answering = [world.stack_of("eu-central")].into();
    world.edge.fleet.probed(&probe::Probed {
        silent,
        answering,
        ..probe::Probed::default()
    });
    let (mut sessions, ()) = tokio::join!(
        join_all((0..MANY).map(|_| call(world.address))),
        callers.go_on("silent")
    );
    ask_all(world.address).await;
    let live = [("eu-central".to_owned(), MANY), ("eu-west".to_owned(), CALLERS)];
    assert_eq!(world.live(), live.into());
    join_all(sessions.iter_mut().map(turn)).await;
    no_region_is_blamed(&world);
}

/// It says nothing to a request, and its sessions go on. The probes tell whether it is slow or dead.
async fn a_region_that_answers_late(lateness: &Lateness, answers_probes: bool) {
    let stacks = [
        ("eu-west", Stack::ServesBadly(Badly::SaysNothing)),
        ("eu-central", Stack::Serves(Fate::Lives)),
    ];
    let world = lateness.of(World::with("timeouts.upgrade = '1s'", &stacks).await);
    let answering = ["eu-west", "eu-central"].map(|name| world.stack_of(name));
    let answering = answering.into_iter().filter(|_| answers_probes).collect();
    world.edge.fleet.probed(&probe::Probed {
        answering,
        ..probe::Probed::default()
    });
    let callers = Callers::begin(world.address).await;
    let asks = (0..CALLERS).map(|_| ask(world.address));
    tokio::join!(join_all(asks), callers.go_on("late"));
    if answers_probes {
        assert!(faults(&world, "eu-west", "nobody") > 0.0);
        no_region_is_blamed(&world);
    } else {
        assert!(faults(&world, "eu-west", "region") > 0.0 && world.observed()["eu-west"].1 > 0);
        assert_eq!(faults(&world, "eu-central", "region"), 0.0);
    }
}

/// It reports its own ill health: the next region's health is the answer.
async fn a_region_that_is_ill() {
    let stacks = [
        ("eu-west", Stack::ServesBadly(Badly::IsIll)),
        ("eu-central", Stack::Serves(Fate::Lives)),
    ];
    let world = World::new(&stacks).await;
    let callers = Callers::begin(world.address).await;
    let asks = (0..MANY).map(|_| async {
        let answer = world.ask(&GET.replace("/v1/models", "/health")).await;
        let head = answer.to_lowercase();
        assert!(
            head.starts_with("http/1.1 200 ") && head.contains("meridian-region: eu-central"),
            "{answer}"
        );
    });
    tokio::join!(join_all(asks), callers.go_on("ill"));
    no_region_is_blamed(&world);
}

/// Requests that last take every place of every region. Sessions have others.
async fn regions_at_their_limit() {
    const PLACES: usize = 4;
    let slow = Stack::ServesBadly(Badly::SaysNothing);
    let limits = format!("breaker.max_requests = {PLACES}\nlimits.client_in_flight_max = 0");
    let world = World::with(&limits, &[("eu-west", slow), ("eu-central", slow)]).await;
    let callers = Callers::begin(world.address).await;
    let mut lasting = Vec::new();
    for _ in 0..2 * PLACES {
        let mut tcp = connect("127.0.0.1:0", world.address).await;
        let head = "POST /api/v1/voice/anything HTTP/1.1\r\nHost: v\r\nContent-Length: 1\r\n\r\nx";
        tcp.write_all(head.as_bytes()).await.unwrap();
        lasting.push(tcp);
    }
    let connects = |region: &str| {
        let name = format!("meridian_edge_connects_total{{region=\"{region}\",outcome=\"ok\"}}");
        world.metric(&name).unwrap_or(0.0)
    };
    let all_taken = async {
        while connects("eu-west") + connects("eu-central") < (CALLERS + 2 * PLACES) as f64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(all_taken).await;
    let asks = (0..MANY).map(|_| async {
        let answer = world.ask(GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("overloaded"),
            "{answer}"
        );
    });
    tokio::join!(join_all(asks), callers.go_on("at its limit"));
    no_region_is_blamed(&world);
}

/// Calls whose bodies are longer than what the edge holds and what HTTP/2 lets pass unread. Returns their statuses.
async fn long_calls(edge: SocketAddr) -> Vec<Option<String>> {
    // As many as one client may have on their way.
    let calls = (0..4).map(|_| async {
        let (answer, mut body) = calls::begin(connect(CALLERS_ADDRESS, edge).await, calls::WINDOW).await;
        body.send_data(Bytes::from(vec![b'x'; 400_000]), true).unwrap();
        hang_means_failure(calls::status(answer)).await
    });
    join_all(calls).await
}

async fn a_region_that_takes_calls_late() {
    let stacks = [
        ("eu-west", Stack::ServesCallsAfter(2)),
        ("eu-central", Stack::Serves(Fate::Lives)),
    ];
    let world = World::with("timeouts = { device = '1s', answer = '15s' }", &stacks).await;
    let callers = Callers::begin(world.address).await;
    let (statuses, ()) = tokio::join!(long_calls(world.address), callers.go_on("calls late"));
    assert!(
        statuses.iter().all(|status| status.as_deref() == Some("0")),
        "{statuses:?}"
    );
    assert_eq!(
        world.metric("meridian_edge_refused_total{reason=\"body-too-slow\"}"),
        None
    );
    no_region_is_blamed(&world);
}

async fn a_region_that_takes_no_calls(lateness: &Lateness) {
    let stacks = [
        ("eu-west", Stack::ServesCallsAfter(3_600)),
        ("eu-central", Stack::Serves(Fate::Lives)),
    ];
    let world = lateness.of(World::with("timeouts = { device = '1s', answer = '2s' }", &stacks).await);
    let callers = Callers::begin(world.address).await;
    let (statuses, ()) = tokio::join!(long_calls(world.address), callers.go_on("no calls"));
    let deadline = |status: &Option<String>| status.as_deref() == Some(DEADLINE_EXCEEDED);
    assert!(statuses.iter().all(deadline), "{statuses:?}");
    assert!(faults(&world, "eu-west", "region") > 0.0 && world.observed()["eu-west"].1 > 0);
    assert_eq!(faults(&world, "eu-central", "region"), 0.0);
    assert_eq!(
        world.metric("meridian_edge_refused_total{reason=\"body-too-slow\"}"),
        None
    );
}

/// An operator's own server takes an upload and does not answer: the group counts that, and no region does.
async fn a_server_that_says_nothing(lateness: &Lateness) {
    let (server, _) = stacks::stack(
        async |mut tcp: TcpStream| {
            while tcp.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
        },
    )
    .await;
    let lives = Stack::Serves(Fate::Lives);
    let changes = format!("{}\ntimeouts = {{ device = '1s', answer = '2s' }}", with_server(server));
    let world = lateness.of(World::with(&changes, &[("eu-west", lives), ("eu-central", lives)]).await);
    let callers = Callers::begin(world.address).await;
    let uploads = (0..CALLERS).map(|_| async {
        let mut tcp = connect("127.0.0.1:0", world.address).await;
        let head = "POST /skills/upload HTTP/1.1\r\nHost: v\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 13];
        hang_means_failure(tcp.read_exact(&mut answer)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 504 ");
    });
    tokio::join!(join_all(uploads), callers.go_on("a server"));
    ask_all(world.address).await;
    let counted = async {
        while world.metric(SERVER_DOWN).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    hang_means_failure(counted).await;
    no_region_is_blamed(&world);
}
