//! A bad version of the stack: edges report its failed turns, and the control plane sends its users back.
//!
//! Control plane and edge are processes, and stacks only the part that an edge sees. No world is needed, so this story runs
//! beside those of the others.
#![allow(
    clippy::result_large_err,
    reason = "what a server refuses a WebSocket with is tungstenite's own type"
)]

use std::{cell::Cell, net::SocketAddr, path::Path, time::Duration};

use api::{Operator, operator, v1};
use daemon::Announcement;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    time::timeout,
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest as _,
        handshake::server::{Request, Response},
        http::HeaderValue,
    },
};
use topology::Component;
use wire::{Checkpoint, Turn};
use world::{process::Supervised, settings::default_binaries_dir};

use crate::ANSWERED_WITHIN;

const NEW: &str = "2.4.0";
const USERS: u32 = 24;

/// A stack that answers every message with its version, and says that the turn went well or failed.
async fn stack(version: &'static str, failed: Option<Component>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move { talk(tcp, version, failed).await });
        }
    });
    address
}

async fn talk(mut tcp: TcpStream, version: &str, failed: Option<Component>) -> Option<()> {
    let mut head = [0; 11];
    if tcp.peek(&mut head).await.ok()? < head.len() {
        // A probe that only measures the round trip.
        return None;
    }
    if head.starts_with(b"GET /health") {
        // A probe: the region is healthy.
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
        tcp.write_all(answer).await.ok()?;
        tcp.shutdown().await.ok()?;
        return tcp.read_to_end(&mut Vec::new()).await.ok().map(drop);
    }
    let mut is_edge = false;
    let agree = |request: &Request, mut response: Response| {
        is_edge = request.headers().contains_key(wire::TURNS_HEADER);
        let agreed = HeaderValue::from_static(wire::VERSION);
        response.headers_mut().insert(wire::HEADER, agreed);
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(tcp, agree).await.ok()?;
    if !is_edge {
        // The spoken turn of a probe, which this stack ignores.
        return socket.close(None).await.ok();
    }
    let mut consumed = 0;
    loop {
        let idle = checkpoint(consumed, false);
        socket.send(Message::binary(idle)).await.ok()?;
        if consumed > 0 {
            let turn = Turn {
                recognised_ms: Some(80),
                first_audio_ms: failed.is_none().then_some(200),
                failed,
            };
            socket
                .send(Message::binary(wire::Message::Turn(turn).to_bytes()))
                .await
                .ok()?;
        }
        while !socket.next().await?.ok()?.is_text() {}
        consumed += 1;
        socket.send(Message::binary(checkpoint(consumed, true))).await.ok()?;
        socket.send(Message::text(version)).await.ok()?;
    }
}

fn checkpoint(consumed: u64, busy: bool) -> Vec<u8> {
    let word = Checkpoint {
        keep_from: consumed,
        consumed,
        busy,
        state: b"state",
    };
    wire::Message::Checkpoint(word).to_bytes()
}

/// One region has a stack of the old version and one of the new; its backup the old one only.
fn topology(old: SocketAddr, new: SocketAddr, backup: SocketAddr) -> String {
    let region = |name: &str, role: &str, stacks: &str| {
        format!(
            "[[region]]\nid = \"{name}\"\n{role}\nlatitude = 53.3\nlongitude = -6.3\nsessions_max = 200\nstacks = [{stacks}]\n"
        )
    };
    let stacks = format!("\"{old}\", {{ address = \"{new}\", version = \"{NEW}\" }}");
    let primary = region("eu-west", "role = \"primary\"\nbackups = [\"eu-central\"]", &stacks);
    let backup = region("eu-central", "role = \"backup\"", &format!("\"{backup}\""));
    format!(
        "zone = \"voice.meridian.test\"\n{primary}{backup}[[edge]]\nid = \"edge-dub\"\naddresses = [\"127.0.1.2\"]\n\
         port = 8080\nlatitude = 53.4\nlongitude = -6.2\n"
    )
}

/// A policy that moves half of the users first and judges after a few of their sessions.
fn policy() -> String {
    let shipped = include_str!("../../../configs/policy.toml");
    let mut policy: toml::Table = shipped.parse().unwrap();
    let rollout = policy["rollout"].as_table_mut().unwrap();
    rollout.insert("sessions_min".into(), 5.into());
    let steps: toml::Table = "step = [{ percent = 50, hold = \"1h\" }, { percent = 100 }]"
        .parse()
        .unwrap();
    rollout.insert("step".into(), steps["step"].clone());
    policy.to_string()
}

/// A process of this test, which ends with it.
struct Running {
    process: Supervised,
    /// The address that it announced.
    address: SocketAddr,
}

impl Running {
    /// Starts a program with its configuration, and waits until it is ready. `listener` names the address to keep.
    async fn start(program: &str, configuration: &str, folder: &Path, listener: &str) -> Self {
        let file = folder.join(format!("{program}.toml"));
        std::fs::write(&file, configuration).unwrap();
        let (deaths, _) = broadcast::channel(1);
        let path = default_binaries_dir().join(program);
        let mut process = Supervised::new(program, path, file, folder, deaths);
        process.start().unwrap();
        process
            .ready(ANSWERED_WITHIN)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let announced = Announcement::read(&folder.join(format!("{program}.json"))).unwrap();
        let address = announced.expect("it is ready").addresses[listener];
        Self { process, address }
    }

    async fn control_plane(folder: &Path, topology: &str) -> Self {
        std::fs::write(folder.join("topology.toml"), topology).unwrap();
        std::fs::write(folder.join("policy.toml"), policy()).unwrap();
        let configuration =
            "topology = \"topology.toml\"\npolicy = \"policy.toml\"\n[store]\nfile = \"meridian.redb\"\n";
        Self::start("meridian-control-plane", configuration, folder, "grpc").await
    }

    /// A whole edge, which follows the control plane and reports to it.
    async fn edge(folder: &Path, control_plane: SocketAddr) -> Self {
        let mut text: toml::Table = include_str!("../../../configs/edge.toml").parse().unwrap();
        text.insert("listen".into(), toml::Value::Array(vec!["127.0.0.1:0".into()]));
        text.insert("admin_listen".into(), "127.0.0.1:0".into());
        let endpoint = format!("http://{control_plane}");
        text.insert("control_planes".into(), toml::Value::Array(vec![endpoint.into()]));
        text.insert("state_dir".into(), "edge".into());
        // That of the example is refused.
        text.insert("affinity_key".into(), "5a".repeat(32).into());
        Self::start("meridian-edge", &text.to_string(), folder, "http").await
    }

    /// Takes one turn of a user. Returns the version that answered.
    async fn turn(&self, user: &str) -> String {
        let mut request = format!("ws://{}/v1/realtime", self.address)
            .into_client_request()
            .unwrap();
        request.headers_mut().insert("meridian-user", user.parse().unwrap());
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let (mut socket, _) = timeout(ANSWERED_WITHIN, client_async(request, tcp))
            .await
            .unwrap()
            .unwrap();
        socket.send(Message::text("hello")).await.unwrap();
        let answer = loop {
            let message = timeout(ANSWERED_WITHIN, socket.next()).await.unwrap().unwrap().unwrap();
            if message.is_text() {
                break message.into_text().unwrap().to_string();
            }
        };
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = timeout(ANSWERED_WITHIN, socket.next()).await.unwrap() {}
        answer
    }

    /// Number of users that the new version answers.
    async fn on_new(&self) -> u32 {
        let mut on_new = 0;
        for user in 0..USERS {
            on_new += u32::from(self.turn(&format!("user-{user}")).await == NEW);
        }
        on_new
    }

    async fn stopped(mut self) {
        self.process.kill().await.unwrap();
    }
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let asked = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // A limit far longer than the two ticks that the rollback takes.
    timeout(2 * ANSWERED_WITHIN, asked)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_turns_fail_is_rolled_back_by_what_edges_report() {
    let (old, new) = (stack("old", None).await, stack(NEW, Some(Component::Tts)).await);
    let topology = topology(old, new, stack("old", None).await);
    let folder = tempfile::tempdir().unwrap();
    let control_plane = Running::control_plane(folder.path(), &topology).await;
    let edge = Running::edge(folder.path(), control_plane.address).await;
    assert_eq!(edge.on_new().await, 0, "it waits for its rollout");

    let people = Operator::at([format!("http://{}", control_plane.address)]);
    let kind = v1::act_request::Kind::Rollout(v1::Rollout { version: NEW.into() });
    let request = operator::request(kind, "maintenance", "tester", "rollout", None);
    let reply = people.act(request).await.unwrap();
    assert_eq!(reply.outcome(), v1::Outcome::Running, "{reply:?}");
    // Users go on calling until the version is rolled back, which may be at the end of this tick.
    let on_new = Cell::new(0);
    let rolled_back = async || {
        on_new.set(on_new.get() + edge.on_new().await);
        people.status().await.is_ok_and(|status| status.rollout.is_empty())
    };
    eventually("it is rolled back", rolled_back).await;
    assert!(on_new.get() >= 5, "{} sessions on the new version", on_new.get());
    let history = people.history(0).await.unwrap();
    let reasons = history.iter().flat_map(|decision| &decision.reasons);
    let why = reasons
        .clone()
        .find(|reason| reason.code == "rolled-back")
        .expect("it says why");
    assert!(why.text.contains("100.00 % of turns failed"), "{}", why.text);
    let why = people.why("eu-west").await.unwrap();
    assert!(
        why.evidence.iter().any(|line| line.starts_with("traffic at ")),
        "{:?}",
        why.evidence
    );

    // The stack of the bad version still runs.
    eventually("all users are on the old version", async || edge.on_new().await == 0).await;
    edge.stopped().await;
    control_plane.stopped().await;
}
