//! The memory of a silent session. Most devices are silent most of the time, even those that talked a lot before.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use daemon::Announcement;
use futures_util::{SinkExt as _, StreamExt as _};
use tempfile::TempDir;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

use crate::region::HANGS_AFTER;

/// A stack in a process of its own, because only a process has memory that can be measured.
struct Stack {
    process: Child,
    address: std::net::SocketAddr,
}

impl Stack {
    async fn start(folder: &Path) -> Self {
        let (config, announced) = (folder.join("stack.toml"), folder.join("stack.json"));
        let document =
            "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nengine = \"scripted\"";
        std::fs::write(&config, document).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_meridian-stack"))
            .arg("--config")
            .arg(&config)
            .arg("--announce")
            .arg(&announced)
            // By default the allocator keeps freed large pieces, more of them over time.
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stack = Self {
            process,
            address: ([127, 0, 0, 1], 0).into(),
        };
        let address = async {
            loop {
                if let Some(announcement) = Announcement::read(&announced).unwrap() {
                    return announcement.addresses["http"];
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        stack.address = tokio::time::timeout(HANGS_AFTER, address).await.unwrap();
        stack
    }

    /// Sessions of clients that take their first event and then say nothing.
    async fn sessions(&self, count: usize) -> Vec<WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>> {
        let mut open = Vec::new();
        for _ in 0..count {
            let (mut socket, _) = connect_async(format!("ws://{}/v1/realtime", self.address))
                .await
                .unwrap();
            socket.next().await.unwrap().unwrap();
            open.push(socket);
        }
        open
    }

    /// Memory that the process wrote itself. Pages of its program that it only reads may be shared with other processes.
    fn private_kib(&self) -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id())).unwrap();
        let dirty = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
        let kib = dirty.and_then(|line| line.trim().strip_suffix("kB"));
        kib.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A development build takes 14.5 KiB, and a release build less.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_session_takes_little_memory() {
    const SESSIONS: usize = 300;
    let folder = TempDir::new().unwrap();
    let stack = Stack::start(folder.path()).await;
    // The first sessions allocate memory that all of them share.
    let _first = stack.sessions(100).await;
    let before = stack.private_kib();
    let _idle = stack.sessions(SESSIONS).await;
    let each = (stack.private_kib() as f64 - before as f64) / SESSIONS as f64;
    assert!((2.0..=16.0).contains(&each), "an idle session takes {each:.1} KiB");
}

/// The protocol layer keeps a buffer as large as the largest message that it read.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_long_message_takes_no_memory_once_it_is_done() {
    const SESSIONS: usize = 10;
    const BYTES: usize = 4 << 20;
    let folder = TempDir::new().unwrap();
    let stack = Stack::start(folder.path()).await;
    let _first = stack.sessions(100).await;
    for fragments in [1, 4] {
        let mut sessions = stack.sessions(SESSIONS).await;
        let before = stack.private_kib();
        for socket in &mut sessions {
            for index in 0..fragments {
                let kind = if index == 0 { Data::Text } else { Data::Continue };
                let frame = Frame::message(
                    vec![b' '; BYTES / fragments],
                    OpCode::Data(kind),
                    index + 1 == fragments,
                );
                socket.send(Message::Frame(frame)).await.unwrap();
            }
            // The same audio in a device's pieces: the protocol layer leaves the buffer when it is full.
            for _ in 0..BYTES / (64 << 10) {
                socket.send(Message::text(" ".repeat(64 << 10))).await.unwrap();
            }
            for _ in 0..=BYTES / (64 << 10) {
                // Blanks are no event, and get an error.
                let told = tokio::time::timeout(HANGS_AFTER, socket.next()).await.unwrap();
                assert!(told.unwrap().unwrap().to_text().unwrap().contains("invalid_json"));
            }
        }
        let each = (stack.private_kib() as f64 - before as f64) / SESSIONS as f64;
        let most = BYTES as f64 / 1024.0 / 8.0;
        assert!(
            each < most,
            "a session keeps {each:.0} KiB after a message in {fragments} fragments"
        );
    }
}
