//! A small world around one edge: fake stacks, devices, and a plan that names them.
//!
//! One file, although it is long: the world is one value, and each of its methods one thing that a story does to it.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    clippy::result_large_err,
    unreachable_pub,
    reason = "shared by several test files"
)]

pub mod alone;
pub mod calls;
pub mod hang;
pub mod http;
pub mod lateness;
pub mod log;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use edge::{
    Config, Edge, accept::documents::Documents, accept::listener, accept::tls::Tls, accept::workers::Workers,
    metrics::Metrics,
};
use futures_util::{SinkExt as _, StreamExt as _};
pub use hang::{HANGS_AFTER, hang_means_failure};
use identity::Identity;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest as _,
        handshake::{
            client::Response,
            server::{Request, Response as ServerResponse},
        },
        http::HeaderValue,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;
use topology::{Component, Moment, RegionId, Rollout, Snapshot, fixtures::three_primaries, snapshot::digest};
use wire::{Checkpoint, Trouble, Turn};

/// The behaviour of a fake stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// Takes the session and sends every message back.
    Echoes,
    /// Has no listener.
    Refuses,
    /// Accepts and never says a word.
    Hangs,
    /// Answers HTTP with this status and the words "no thanks".
    Answers(u16),
    /// Takes the session, sends one message back, and dies without a Close frame.
    DiesAfterOne,
    /// Takes the session and dies in the middle of a frame.
    DiesInFrame,
    /// Takes the session and closes it in order.
    Closes(u16),
    /// Answers 101 before it has read anything, then sends every byte back, unmasked as a region must.
    Eager,
    /// Takes the session with a compression that the edge did not offer.
    Compresses,
    /// Serves HTTP, with keep-alive, and answers with the request that it got.
    Http,
    /// The same, and every answer says how loaded it is: sessions, of 100.
    LoadedHttp(u32),
    /// Echoes, and answers every upgrade with how loaded it says to be: sessions, of 100.
    Loaded(u32),
    /// Says that it has no room for another session, as a stack does.
    Full,
    /// Stops in order and takes no new sessions, as a stack says it: it has room for hundreds.
    Drains,
    /// Speaks of session continuity. It repeats a turn word by word: "a", "b", "." are answered "listening" (at
    /// once), "said a", "said b", "done".
    Talks(Fate),
    /// Speaks of session continuity, HTTP to devices that ask for no session, and gRPC to those that call.
    Serves(Fate),
    /// The same, but answers every other request with bytes that are not HTTP.
    ServesNonsense,
    /// The same, but answers every other request with a change of protocol that was not requested.
    ServesSwitching,
    /// Answers every request, also for a session, with bytes that are not HTTP.
    Babbles,
    /// Accepts, and resets the connection as soon as something comes.
    Resets,
    /// Serves sessions and calls, and fails every other request in this way.
    ServesBadly(Badly),
    /// Serves all, and reads nothing of the body of a call for so many seconds.
    ServesCallsAfter(u64),
}

/// The ways in which a stack fails requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Badly {
    /// It closes the connection without an answer.
    Ends,
    /// It closes the connection in the middle of its answer.
    BreaksOff,
    /// It keeps a connection after its answer, and closes it when the next request comes.
    ClosesKept,
    /// It says nothing.
    SaysNothing,
    /// It answers all but `/health`, where it says 503.
    IsIll,
}

/// A device says this to a stack that talks: the stack says a lot, closes with 1008, and is gone.
pub const GIVE_ME_UP: &str = "give me up";
/// The same without the Close.
pub const DIE: &str = "die";
/// More than the buffers between an edge and a device that takes nothing.
const LOT_BYTES: usize = 4 << 20;

/// The fate of a stack that talks, in each of its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Lives,
    /// Its socket dies after so many events.
    DiesAfterEvents(usize),
    /// Its socket dies in the middle of an event, after so many whole ones.
    DiesInEvent(usize),
    /// After this many events it sends bytes that are not WebSocket.
    BabblesAfterEvents(usize),
    /// Its socket dies after it took in so many messages of the device.
    DiesAfterMessages(u64),
    /// It takes in so many messages, and then neither reads nor writes any more.
    FreezesAfterMessages(u64),
    /// After a turn it neither reads nor writes any more.
    FreezesAfterTurn,
    /// It closes every session with 1012 after a turn.
    LeavesAfterTurn,
    /// It does not take sessions of others.
    RefusesOthers,
    /// Nothing, and after a turn it says that it is full.
    FillsUp,
    /// None, but its turns fail, and its devices run out of audio.
    FailsTurns,
}

/// Starts a stack; where it is.
pub async fn stack(behaviour: Stack) -> SocketAddr {
    if behaviour == Stack::Refuses {
        return refusing();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // The stack goes on after any failure of a device.
            tokio::spawn(async move { behave(behaviour, tcp).await });
        }
    });
    address
}

/// An address without a listener, which stays bound until the test ends.
fn refusing() -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let _bound = socket;
        std::future::pending::<()>().await;
    });
    address
}

async fn behave(behaviour: Stack, mut tcp: TcpStream) -> Option<()> {
    match behaviour {
        Stack::Refuses => unreachable!("it has no listener"),
        Stack::Hangs => std::future::pending().await,
        Stack::Echoes => {
            let mut session = tokio_tungstenite::accept_async(tcp).await.ok()?;
            while let Some(Ok(message)) = session.next().await {
                if message.is_text() || message.is_binary() {
                    session.send(message).await.ok()?;
                }
            }
        }
        Stack::Loaded(sessions) => {
            let load = load(sessions);
            let tell = |_: &Request, mut response: ServerResponse| {
                let load = HeaderValue::try_from(load).unwrap();
                response.headers_mut().insert(wire::LOAD_HEADER, load);
                Ok(response)
            };
            let mut session = tokio_tungstenite::accept_hdr_async(tcp, tell).await.ok()?;
            while let Some(Ok(message)) = session.next().await {
                if message.is_text() || message.is_binary() {
                    session.send(message).await.ok()?;
                }
            }
        }
        Stack::Full => {
            read_head(&mut tcp).await?;
            let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n";
            let answer = format!("{head}Meridian-Load: {}\r\n\r\n", load(100));
            tcp.write_all(answer.as_bytes()).await.ok()?;
        }
        Stack::Drains => {
            read_head(&mut tcp).await?;
            let body = r#"{"error":{"code":"region_draining","message":"connect again to reach another"}}"#;
            let head = format!("HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}\r\n", body.len());
            let answer = format!("{head}Meridian-Load: {}\r\n\r\n{body}", load(1));
            tcp.write_all(answer.as_bytes()).await.ok()?;
        }
        Stack::Answers(status) => {
            read_head(&mut tcp).await?;
            let answer = format!("HTTP/1.1 {status} Because\r\nContent-Length: 9\r\n\r\nno thanks");
            tcp.write_all(answer.as_bytes()).await.ok()?;
            // Kept open: the edge must know the length of the answer by itself.
            let _ = tcp.read(&mut [0; 16]).await;
        }
        Stack::DiesAfterOne => {
            let mut session = tokio_tungstenite::accept_async(tcp).await.ok()?;
            let message = session.next().await?.ok()?;
            session.send(message).await.ok()?;
        }
        Stack::DiesInFrame => {
            let session = tokio_tungstenite::accept_async(tcp).await.ok()?;
            // Ten bytes are promised, three come.
            session.into_inner().write_all(&[0x82, 10, 1, 2, 3]).await.ok()?;
        }
        Stack::Closes(code) => {
            let mut session = tokio_tungstenite::accept_async(tcp).await.ok()?;
            let code = CloseCode::from(code);
            session
                .close(Some(CloseFrame {
                    code,
                    reason: "done".into(),
                }))
                .await
                .ok()?;
            while let Some(Ok(_)) = session.next().await {}
        }
        Stack::Eager => {
            tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                .await
                .ok()?;
            read_head(&mut tcp).await?;
            while let Some((first, payload)) = read_frame(&mut tcp).await {
                let length = u8::try_from(payload.len()).ok()?;
                tcp.write_all(&[&[first, length][..], &payload].concat()).await.ok()?;
            }
        }
        Stack::Compresses => {
            read_head(&mut tcp).await?;
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
            tcp.write_all(answer.as_bytes()).await.ok()?;
            let _ = tcp.read(&mut [0; 16]).await;
        }
        Stack::Talks(fate) => Box::pin(talk(tcp, fate)).await?,
        Stack::Resets => {
            // Closed with something unread in it, a connection is reset.
            tcp.readable().await.ok()?;
        }
        Stack::Serves(_)
        | Stack::ServesNonsense
        | Stack::ServesSwitching
        | Stack::ServesBadly(_)
        | Stack::ServesCallsAfter(_) => {
            let begins = {
                let mut head = [0; 4096];
                let length = tcp.peek(&mut head).await.ok()?;
                String::from_utf8_lossy(&head[..length]).to_lowercase()
            };
            if begins.starts_with("pri * http/2") {
                let pause = match behaviour {
                    Stack::ServesCallsAfter(seconds) => Duration::from_secs(seconds),
                    _ => Duration::ZERO,
                };
                return calls::serve_after(tcp, pause).await;
            }
            let asks_for_a_session = begins.contains("upgrade: websocket");
            let behaviour = match behaviour {
                Stack::ServesBadly(badly) if !asks_for_a_session => return answer_badly(tcp, badly).await,
                Stack::Serves(fate) if asks_for_a_session => Stack::Talks(fate),
                _ if asks_for_a_session => Stack::Talks(Fate::Lives),
                Stack::ServesNonsense => Stack::Babbles,
                Stack::ServesSwitching => {
                    read_head(&mut tcp).await?;
                    let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello";
                    tcp.write_all(answer.as_bytes()).await.ok()?;
                    return None;
                }
                _ => Stack::Http,
            };
            Box::pin(behave(behaviour, tcp)).await?;
        }
        Stack::Babbles => {
            read_head(&mut tcp).await?;
            tcp.write_all(b"220 mail.example ESMTP\r\n\r\n").await.ok()?;
        }
        Stack::Http | Stack::LoadedHttp(_) => loop {
            let head = read_head(&mut tcp).await?;
            let length: usize = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))
                .map_or(0, |length| length.trim().parse().unwrap());
            let mut body = vec![0; length];
            tcp.read_exact(&mut body).await.ok()?;
            let told = format!("{head}{}", String::from_utf8_lossy(&body));
            let said = match behaviour {
                Stack::LoadedHttp(sessions) => format!("Meridian-Load: {}\r\n", load(sessions)),
                _ => String::new(),
            };
            let answer = format!("HTTP/1.1 200 OK\r\n{said}Content-Length: {}\r\n\r\n{told}", told.len());
            tcp.write_all(answer.as_bytes()).await.ok()?;
        },
    }
    Some(())
}

async fn answer_badly(mut tcp: TcpStream, badly: Badly) -> Option<()> {
    loop {
        let (head, _) = http::request(&mut tcp).await?;
        let answer = match badly {
            Badly::Ends => return None,
            Badly::SaysNothing => std::future::pending().await,
            Badly::BreaksOff => {
                let begins = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf";
                tcp.write_all(begins.as_bytes()).await.ok()?;
                return None;
            }
            Badly::IsIll if head.starts_with("GET /health ") => {
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nill"
            }
            Badly::IsIll | Badly::ClosesKept => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell",
        };
        tcp.write_all(answer.as_bytes()).await.ok()?;
        if badly == Badly::ClosesKept {
            read_head(&mut tcp).await?;
            return None;
        }
    }
}

fn load(sessions: u32) -> String {
    let load = wire::Load {
        sessions,
        sessions_max: 100,
        waiting: 0,
        waiting_max: 32,
        ..wire::Load::default()
    };
    load.to_string()
}

/// A session of a stack that talks.
struct Talk {
    socket: WebSocketStream<TcpStream>,
    fate: Fate,
    tells_turns: bool,
    consumed: u64,
    /// First message of the turn in progress, and its words.
    turn_from: u64,
    turn: Vec<String>,
    outbox: std::collections::VecDeque<String>,
    events: usize,
}

async fn talk(tcp: TcpStream, fate: Fate) -> Option<()> {
    let (mut resumes, mut tells_turns) = (false, false);
    let agree = |request: &Request, mut response: ServerResponse| {
        tells_turns = request.headers().contains_key(wire::TURNS_HEADER);
        resumes = request.headers().contains_key(wire::RESUME_HEADER);
        let version = HeaderValue::from_static(wire::VERSION);
        response.headers_mut().insert(wire::HEADER, version);
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(tcp, agree).await.ok()?;
    let mut talk = Talk {
        socket,
        fate,
        tells_turns,
        consumed: 0,
        turn_from: 0,
        turn: Vec::new(),
        outbox: ["hello".to_owned()].into(),
        events: 0,
    };
    if resumes {
        talk.resume().await?;
    }
    loop {
        talk.say().await?;
        talk.listen().await?;
    }
}

impl Talk {
    async fn resume(&mut self) -> Option<()> {
        let word = self.socket.next().await?.ok()?.into_data();
        let Ok(wire::Message::Resume(word)) = wire::Message::parse(&word) else {
            panic!("a session that resumes says so first");
        };
        if self.fate == Fate::RefusesOthers {
            let (code, reason) = (CloseCode::from(4001), "no".into());
            self.socket.close(Some(CloseFrame { code, reason })).await.ok()?;
            while let Some(Ok(_)) = self.socket.next().await {}
            return None;
        }
        let outbox = std::str::from_utf8(word.state).unwrap().lines().skip(1);
        self.outbox = outbox
            .skip(usize::try_from(word.delivered).unwrap())
            .map(str::to_owned)
            .collect();
        (self.consumed, self.turn_from) = (word.first, word.first);
        while self.consumed < word.consumed && !word.is_broken {
            self.take().await?;
        }
        Some(())
    }

    /// Takes a message in; whether it ends the turn.
    async fn take(&mut self) -> Option<bool> {
        let text = loop {
            match self.socket.next().await?.ok()? {
                Message::Text(text) => break text,
                Message::Close(_) => return None,
                _ => {}
            }
        };
        self.consumed += 1;
        if let GIVE_ME_UP | DIE = text.as_str() {
            return self.talk_and_go(text.as_str()).await;
        }
        match self.fate {
            Fate::DiesAfterMessages(messages) if messages == self.consumed => return None,
            Fate::FreezesAfterMessages(messages) if messages == self.consumed => std::future::pending().await,
            _ => {}
        }
        let ends = text.as_str() == ".";
        if !ends {
            self.turn.push(text.to_string());
        }
        Some(ends)
    }

    /// Says a lot, without waiting for a device that takes nothing, and ends the session.
    async fn talk_and_go(&mut self, why: &str) -> Option<bool> {
        // The next stack does not hear the words again that ended this session.
        self.turn_from = self.consumed;
        self.report().await?;
        let says = async {
            let words = "x".repeat(8_000);
            for _ in 0..LOT_BYTES / words.len() {
                self.socket.send(Message::text(words.as_str())).await.ok()?;
            }
            let (code, reason) = (CloseCode::Policy, "you read too slowly".into());
            if why == GIVE_ME_UP {
                self.socket.close(Some(CloseFrame { code, reason })).await.ok()?;
            }
            Some(())
        };
        let _ = timeout(Duration::from_millis(500), says).await;
        None
    }

    async fn listen(&mut self) -> Option<()> {
        let begins = self.turn.is_empty();
        let ends = self.take().await?;
        if begins && !ends {
            self.outbox.push_back("listening".to_owned());
        }
        if ends {
            self.outbox
                .extend(self.turn.drain(..).map(|word| format!("said {word}")));
            self.outbox.push_back("done".to_owned());
            self.turn_from = self.consumed;
        }
        Some(())
    }

    /// Sends a checkpoint, then its events, then another checkpoint.
    async fn say(&mut self) -> Option<()> {
        self.report().await?;
        let mut is_over = false;
        while let Some(event) = self.outbox.pop_front() {
            match self.fate {
                Fate::DiesAfterEvents(events) if events == self.events => return None,
                Fate::DiesInEvent(events) if events == self.events => {
                    self.socket.get_mut().write_all(&[0x81, 100, b'h', b'a']).await.ok()?;
                    return None;
                }
                Fate::BabblesAfterEvents(events) if events == self.events => {
                    self.socket.get_mut().write_all(&[0xff; 64]).await.ok()?;
                    return None;
                }
                _ => {}
            }
            is_over = event == "done";
            self.socket.send(Message::text(event)).await.ok()?;
            self.events += 1;
        }
        self.report().await?;
        if is_over && self.fate == Fate::FillsUp {
            let load = load(100).parse().unwrap();
            self.socket
                .send(Message::binary(wire::Message::Load(load).to_bytes()))
                .await
                .ok()?;
        }
        if is_over && self.tells_turns {
            self.tell_turn().await?;
        }
        if is_over && self.fate == Fate::FreezesAfterTurn {
            std::future::pending::<()>().await;
        }
        if is_over && self.fate == Fate::LeavesAfterTurn {
            let (code, reason) = (CloseCode::Restart, "region draining".into());
            self.socket.close(Some(CloseFrame { code, reason })).await.ok()?;
            while let Some(Ok(_)) = self.socket.next().await {}
            return None;
        }
        Some(())
    }

    async fn tell_turn(&mut self) -> Option<()> {
        let fails = self.fate == Fate::FailsTurns;
        let turn = wire::Message::Turn(Turn {
            recognised_ms: Some(80),
            first_audio_ms: (!fails).then_some(200),
            failed: fails.then_some(Component::Tts),
        });
        self.socket.send(Message::binary(turn.to_bytes())).await.ok()?;
        if fails {
            let trouble = Trouble {
                underruns: 11,
                gpu_memory_errors: 0,
            };
            let trouble = wire::Message::Trouble(trouble).to_bytes();
            self.socket.send(Message::binary(trouble)).await.ok()?;
        }
        Some(())
    }

    async fn report(&mut self) -> Option<()> {
        let outbox: String = self.outbox.iter().map(|event| format!("\n{event}")).collect();
        let word = wire::Message::Checkpoint(Checkpoint {
            keep_from: self.turn_from,
            consumed: self.consumed,
            busy: self.turn_from < self.consumed || !self.outbox.is_empty(),
            state: format!("state{outbox}").as_bytes(),
        })
        .to_bytes();
        self.socket.send(Message::binary(word)).await.ok()
    }
}

/// Reads a head byte by byte, so that nothing behind it is taken.
pub async fn read_head(tcp: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(tcp.read_u8().await.ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// A short masked frame: its first byte and its payload.
async fn read_frame(tcp: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let (first, second) = (tcp.read_u8().await.ok()?, tcp.read_u8().await.ok()?);
    let mut mask = [0; 4];
    tcp.read_exact(&mut mask).await.ok()?;
    let mut payload = vec![0; usize::from(second & 0x7f)];
    tcp.read_exact(&mut payload).await.ok()?;
    let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    Some((first, unmasked.collect()))
}

pub fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

/// The plan of generation 1, in which all is well and the named regions have these stacks. Home of the edge is eu-west,
/// with the backups eu-central and us-west in this order.
pub async fn planned(stacks: &[(&str, Stack)]) -> Snapshot {
    let mut snapshot = three_primaries();
    for known in snapshot.topology.regions.values_mut() {
        known.stacks = vec![stack(Stack::Refuses).await.into()];
    }
    let named: std::collections::BTreeSet<_> = stacks.iter().map(|(name, _)| region(name)).collect();
    for name in named {
        snapshot.topology.regions.get_mut(&name).unwrap().stacks.clear();
    }
    // A region that is named twice has two.
    for (name, behaviour) in stacks {
        let known = snapshot.topology.regions.get_mut(&region(name)).unwrap();
        known.stacks.push(stack(*behaviour).await.into());
    }
    snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
    snapshot
}

/// Puts a stack of another version beside those of a region.
pub async fn add_version(snapshot: &mut Snapshot, name: &str, version: &str, behaviour: Stack) {
    let address = stack(behaviour).await;
    let known = snapshot.topology.regions.get_mut(&region(name)).unwrap();
    known
        .stacks
        .push(topology::Stack::of_version(address, version).unwrap());
    snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
}

/// Sends this share of the users to a version.
pub fn roll_out(snapshot: &mut Snapshot, version: &str, percent: u8) -> Rollout {
    let rollout = Rollout {
        version: version.to_owned(),
        percent,
        since: Moment(0),
        action: "rollout".to_owned(),
    };
    snapshot.plan.rollout.insert(rollout).clone()
}

/// The same with stacks that are somewhere.
pub async fn planned_at(stacks: &[(&str, SocketAddr)]) -> Snapshot {
    let mut snapshot = planned(&[]).await;
    for (name, address) in stacks {
        let known = snapshot.topology.regions.get_mut(&region(name)).unwrap();
        known.stacks = vec![topology::Stack::from(*address)];
    }
    snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
    snapshot
}

/// The stacks of a test run on the thread of its devices and may be late on a busy machine. Only a test about one of these
/// timers shortens it.
const PATIENT: &str = "listen = ['127.0.0.1:0']\nadmin_listen = '127.0.0.1:0'\ncontrol_planes = []\n\
                       timeouts = { connect = '10s', upgrade = '10s' }\ncontinuity.silence_busy = '10s'\n\
                       hedge.after = '10s'";

pub fn config(changes: &str) -> Config {
    let mut text: toml::Table = toml::from_str(include_str!("../../../../../configs/edge.toml")).unwrap();
    for changes in [PATIENT, changes] {
        for (key, value) in toml::from_str::<toml::Table>(changes).unwrap() {
            match (text.get_mut(&key), value) {
                (Some(toml::Value::Table(table)), toml::Value::Table(changes)) => table.extend(changes),
                (_, value) => drop(text.insert(key, value)),
            }
        }
    }
    let config: Config = daemon::config::parse("test", &text.to_string()).unwrap();
    config.check().unwrap();
    config
}

/// An edge that runs with a plan, without the processes around it.
pub struct World {
    pub edge: Arc<Edge>,
    pub registry: Registry,
    /// Plaintext.
    pub address: SocketAddr,
    /// With TLS, if the configuration has any.
    pub secure: SocketAddr,
    pub tls: Option<Arc<Tls>>,
    pub stop: CancellationToken,
    pub served: JoinHandle<()>,
}

impl World {
    pub async fn new(stacks: &[(&str, Stack)]) -> Self {
        Self::with("", stacks).await
    }

    pub async fn with(changes: &str, stacks: &[(&str, Stack)]) -> Self {
        Self::of(changes, &planned(stacks).await)
    }

    /// An edge with this plan.
    pub fn of(changes: &str, snapshot: &Snapshot) -> Self {
        Self::proving(changes, snapshot, None)
    }

    /// The same, which proves its id to stacks.
    pub fn proving(changes: &str, snapshot: &Snapshot, identity: Option<Arc<Identity>>) -> Self {
        let config = config(changes);
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let tls = Tls::load(&config.tls, std::path::Path::new(""), metrics.clone()).unwrap();
        let tls = tls.map(Arc::new);
        let claimed = listener::claim(&config, tls.as_ref(), None).unwrap();
        let documents = Documents::load(&config.auth, &config.state_dir, metrics.clone()).unwrap();
        let access = documents.as_ref().map(Documents::access);
        let edge = Arc::new(Edge::new(config, metrics).with_access(access).with_identity(identity));
        if let Some(documents) = documents {
            tokio::spawn(documents.follow(edge.clone()));
        }
        edge.apply(snapshot);
        let listeners = claimed.listen().unwrap();
        let address = listeners[0].address().unwrap();
        let secure = listeners.last().unwrap().address().unwrap();
        let stop = CancellationToken::new();
        let served = listener::serve(
            edge.clone(),
            Workers::start(&edge).unwrap(),
            listeners,
            Default::default(),
            stop.clone(),
            std::future::pending(),
        );
        Self {
            edge,
            registry,
            address,
            secure,
            tls,
            stop,
            served: tokio::spawn(served),
        }
    }

    /// A device opens a session.
    pub async fn open(&self, headers: &[(&'static str, &str)]) -> Session {
        open(self.address, headers).await.expect("the session opens")
    }

    /// A device sends a request and reads until the edge closes.
    pub async fn ask(&self, request: &str) -> String {
        ask(self.address, request).await
    }

    /// The value of one metric, labels included in its name as in the text that is scraped.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    /// The edge's explanation of where the session of this question goes.
    pub async fn explain(&self, question: &str) -> serde_json::Value {
        self.explain_by(question, None).await
    }

    /// The same by a plan that the asker brings.
    pub async fn explain_by(&self, question: &str, plan: Option<&Snapshot>) -> serde_json::Value {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap();
        let pages = edge::admin::router(self.edge.clone());
        let served = tokio::spawn(axum::serve(listener, pages).into_future());
        let (method, document) = plan.map_or(("GET", Vec::new()), |plan| ("POST", plan.encode().0));
        let length = document.len();
        let head = format!("{method} /explain?{question} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n");
        let body = String::from_utf8(document).unwrap();
        let answer = ask(admin, &format!("{head}Connection: close\r\n\r\n{body}")).await;
        served.abort();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|_| serde_json::json!({ "refused": answer }))
    }

    /// The address of a region's first stack.
    pub fn stack_of(&self, name: &str) -> SocketAddr {
        let table = self.edge.table().unwrap();
        let found = table.regions().find(|(known, _)| known.as_str() == name);
        found.unwrap().1[0].address
    }

    /// Sessions that are live, by region.
    pub fn live(&self) -> BTreeMap<String, usize> {
        let by_region = self.edge.sessions.by_region();
        by_region
            .into_iter()
            .map(|(region, (count, _))| (region.to_string(), count))
            .collect()
    }

    /// The tick's observations of a region, all its stacks together: succeeded and failed.
    pub fn observed(&self) -> BTreeMap<String, (u32, u32)> {
        let mut regions = BTreeMap::new();
        for seen in self.edge.passive().observations {
            if seen.component == Component::Gateway {
                let (succeeded, failed) = regions.entry(seen.region.to_string()).or_insert((0, 0));
                *succeeded += seen.succeeded;
                *failed += seen.failed;
            }
        }
        regions
    }
}

/// A device's end of a session.
pub struct Session {
    pub socket: WebSocketStream<TcpStream>,
    pub answer: Response,
}

pub async fn open(address: SocketAddr, headers: &[(&'static str, &str)]) -> Result<Session, Box<Response>> {
    open_at(address, "/v1/realtime?meridian=1", headers).await
}

pub async fn open_at(
    address: SocketAddr,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Session, Box<Response>> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(*name, HeaderValue::from_str(value).unwrap());
    }
    let tcp = TcpStream::connect(address).await.unwrap();
    match hang_means_failure(client_async(request, tcp)).await {
        Ok((socket, answer)) => Ok(Session { socket, answer }),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response),
        Err(error) => panic!("{error}"),
    }
}

impl Session {
    pub fn header(&self, name: &str) -> &str {
        self.answer
            .headers()
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub async fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub async fn hear(&mut self) -> Message {
        hang_means_failure(self.socket.next())
            .await
            .expect("a message comes")
            .unwrap()
    }

    /// Says something and expects it back.
    pub async fn check_echo(&mut self, text: &str) {
        self.say(text).await;
        assert_eq!(self.hear().await, Message::text(text));
    }

    /// Expects the session to be closed with this code and reason.
    pub async fn check_closed(&mut self, code: u16, reason: &str) {
        match self.hear().await {
            Message::Close(Some(frame)) => {
                assert_eq!((u16::from(frame.code), frame.reason.as_str()), (code, reason));
            }
            other => panic!("expected a Close frame, got {other:?}"),
        }
    }

    pub async fn leave(mut self) {
        self.socket.close(None).await.unwrap();
        while let Some(Ok(_)) = hang_means_failure(self.socket.next()).await {}
    }
}

pub async fn ask(address: SocketAddr, request: &str) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    hang_means_failure(tcp.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Leaves this process only this many further open files, until the result is dropped. For tests in a process of their own.
pub fn leave_open_files(free: usize) -> Vec<std::fs::File> {
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = numbers.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u64>().ok());
    let lowered = Rlimit {
        current: Some(numbers.max().unwrap() + 10),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, lowered).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len() - free);
    taken
}

/// A whole edge process, started from the files of a folder; it announces itself when it accepts devices.
pub async fn process(
    changes: &str,
    folder: &std::path::Path,
    takes_over: bool,
) -> (daemon::Tasks, oneshot::Receiver<BTreeMap<String, SocketAddr>>) {
    let (announce, announced) = oneshot::channel();
    let tasks = edge::run::start(config(changes), folder, takes_over, move |addresses| {
        let addresses = addresses
            .iter()
            .map(|(name, address)| ((*name).to_owned(), *address))
            .collect();
        let _ = announce.send(addresses);
        Ok(())
    });
    (tasks.await.unwrap(), announced)
}
