//! The stack behind the proxies. It does as little as the measurement allows, so that the machine's time goes to the proxies. It runs in
//! a process of its own: `bench-edge upstream`.

use std::{cell::RefCell, net::SocketAddr};

use ::wire::Checkpoint;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::wire::{self, CLOSE, Frames, PAYLOAD_BYTES};

/// The behaviour of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Behaviour {
    /// The stack reads the request, accepts it, and answers every frame with one.
    Usual,
    /// The stack accepts before it has read any byte.
    Eager,
    /// As `Usual`, with session continuity if the edge offers it: a checkpoint at the start and after every turn of [`TURN_FRAMES`].
    Keeping,
}

/// Two seconds of speech: a short utterance.
const TURN_FRAMES: u64 = 100;
/// A checkpoint of a session between turns is some hundreds of bytes.
const STATE_BYTES: usize = 400;
/// Length of the accept queue, which the kernel caps. A burst must not wait here, because the bench would measure the wait.
const BACKLOG: u32 = 16_384;
/// A small answer, as of `/v1/models`.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n\
                        {\"object\":\"list\",\"data\":[]}";

thread_local! {
    /// Thousands of sessions share it; no code holds it across an await.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

/// Opens the listening socket.
pub(crate) fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = TcpSocket::new_v4().context("no socket")?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

/// Serves connections.
pub(crate) async fn serve(listener: TcpListener, manner: Behaviour) {
    loop {
        match listener.accept().await {
            // The measurement looks at the client's end of a connection, so its end here does not matter.
            Ok((tcp, _)) => drop(tokio::spawn(connection(tcp, manner))),
            // Too many open files: the client's end shows it.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn connection(mut tcp: TcpStream, manner: Behaviour) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    if manner == Behaviour::Eager {
        tcp.write_all(accepted(false).as_bytes()).await?;
    }
    let mut bytes = Vec::new();
    loop {
        while let Some(end) = wire::head_end(&bytes) {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            bytes.drain(..end);
            if !head.contains("upgrade: websocket") {
                tcp.write_all(ANSWER).await?;
                continue;
            }
            let keeps =
                manner == Behaviour::Keeping && head.contains(&format!("{}: {}", ::wire::HEADER, ::wire::VERSION));
            if manner != Behaviour::Eager {
                tcp.write_all(accepted(keeps).as_bytes()).await?;
            }
            return session(tcp, bytes, keeps).await;
        }
        bytes.reserve(1024);
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}

fn accepted(keeps: bool) -> String {
    let keeps = if keeps {
        format!("{}: {}\r\n", ::wire::HEADER, ::wire::VERSION)
    } else {
        String::new()
    };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{keeps}\r\n"
    )
}

async fn session(mut tcp: TcpStream, early: Vec<u8>, keeps: bool) -> std::io::Result<()> {
    let answer = wire::plain(&[0x55; PAYLOAD_BYTES]);
    let (mut frames, mut count, mut out) = (Frames::default(), 0, Vec::new());
    if keeps {
        out = checkpoint(0);
    }
    let mut closed = false;
    frames.take(&early, |opcode| closed |= opcode == CLOSE);
    drop(early);
    while !closed {
        if !out.is_empty() {
            tcp.write_all(&out).await?;
            // A silent session has no buffer.
            out = Vec::new();
        }
        tcp.readable().await?;
        let read = BUFFER.with_borrow_mut(|buffer| {
            let read = tcp.try_read(buffer)?;
            frames.take(&buffer[..read], |opcode| {
                closed |= opcode == CLOSE;
                if opcode < CLOSE {
                    count += 1;
                    if keeps && count % TURN_FRAMES == 0 {
                        out.extend(checkpoint(count));
                    }
                    out.extend_from_slice(&answer);
                }
            });
            std::io::Result::Ok(read)
        });
        match read {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    tcp.write_all(&[0x88, 0]).await
}

fn checkpoint(consumed: u64) -> Vec<u8> {
    let word = ::wire::Message::Checkpoint(Checkpoint {
        keep_from: consumed,
        consumed,
        busy: false,
        state: &[0x5a; STATE_BYTES],
    });
    wire::plain(&word.to_bytes())
}
