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
    Fate, Stack, World,
    alone::done_in_own_process,
    calls, hang_means_failure,
    lateness::{Lateness, unless_late},
    leave_open_files,
};
use bytes::Bytes;
use edge::session::frames::frame_for_region;
use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use rustix::process::{Resource, getrlimit, setrlimit};
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

/// Statuses of gRPC. The second one is also that of a client that has too many long bodies on their way.
const DEADLINE_EXCEEDED: &str = "4";
const RESOURCE_EXHAUSTED: &str = "8";

/// Each device is soon found to keep no pace. Soon is long for the callers: on a busy machine they may not run for more than a
/// second. The regions do nothing wrong, and have all the time.
const SOON_FOR_DEVICES: &str = "timeouts = { device = '2s', header = '2s', idle = '3s', answer = '20s' }\n\
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

async fn connect(from: &str, to: SocketAddr) -> TcpStream {
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
}

const WRONGS: [Wrong; 17] = [
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
];

impl Wrong {
    /// Why the edge refused it, where that is all it came to: the device is blamed.
    fn refused(self) -> Option<&'static str> {
        match self {
            Self::SendsHalfAHead => Some("header-too-slow"),
            Self::TricklesABody | Self::TricklesACall | Self::StopsInACall => Some("body-too-slow"),
            Self::SendsABadHead => Some("malformed"),
            Self::SendsTooMuch | Self::NeverEndsACall => Some("body-too-large"),
            _ => None,
        }
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
    }
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
}

/// The faults of stacks, and whether they count against their region.
const STACKS: [(Stack, Blamed); 19] = [
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
];

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
    the_edge_itself_and_devices().await;
    for (stack, blamed) in STACKS {
        unless_late(async |lateness| a_stack(lateness, stack, blamed).await).await;
    }
    a_stack_that_declines().await;
}

async fn the_edge_itself_and_devices() {
    let lives = Stack::Serves(Fate::Lives);
    let world = World::with(SOON_FOR_DEVICES, &[("eu-west", lives), ("eu-central", lives)]).await;
    let callers = Callers::begin(world.address).await;
    // First of all: the resources of misbehaving devices come back at any moment.
    let what = "no open files";
    let limit = getrlimit(Resource::Nofile);
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
    callers.go_on(what).await;
    drop(taken);
    setrlimit(Resource::Nofile, limit).unwrap();
    while world.edge.admission.is_exhausted() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nobody_is_blamed(&world, what).await;

    for wrong in WRONGS {
        let what = format!("{wrong:?}");
        let devices = (0..MANY).map(|_| tokio::spawn(do_wrong(wrong, world.address)));
        let refused = wrong
            .refused()
            .map(|reason| format!("meridian_edge_refused_total{{reason=\"{reason}\"}}"));
        let refusals = || refused.as_ref().and_then(|name| world.metric(name)).unwrap_or(0.0);
        let before = refusals();
        let (wrongdoers, (), ()) = tokio::join!(join_all(devices), callers.go_on(&what), ask_all(world.address));
        for done in wrongdoers {
            done.unwrap();
        }
        // The devices that were served meanwhile, and the next ones.
        ask_all(world.address).await;
        callers.go_on(&what).await;
        nobody_is_blamed(&world, &what).await;
        assert_eq!(refusals() > before, refused.is_some(), "{what}");
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
            ask(world.address).await;
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
    for (name, _) in stacks {
        assert_eq!(faults(&world, name, "region"), 0.0, "{name}");
    }
    assert!(faults(&world, "eu-central", "nobody") > 0.0);
    let failed: u32 = world.observed().values().map(|(_, failed)| failed).sum();
    assert_eq!(failed, 0);
}
