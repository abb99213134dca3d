//! The stack behind the proxies. It does as little as the measurement allows, so that the machine's time goes to the proxies. It runs in
//! a process of its own: `bench-edge upstream`.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
};

use ::wire::Checkpoint;
use anyhow::Context as _;
use identity::{Acceptor, Identity, Link, Mode, files::Files};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf},
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

/// The part that a stack plays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) manner: Behaviour,
    /// The folder of the stack's certificate; `None` for plain text.
    pub(crate) identity: Option<PathBuf>,
}

impl Part {
    /// The door of the stack: a real stack's, so that callers prove their ids as they do there.
    pub(crate) fn door(&self) -> anyhow::Result<Arc<Acceptor>> {
        let files = self.identity.as_deref().map(Files::in_folder);
        let identity = Identity::load_if(files, daemon::clock::now)?;
        let identity = identity.map(|identity| (identity, Mode::Required));
        Ok(Arc::new(Acceptor::new(identity, |_| {})))
    }
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
pub(crate) async fn serve(listener: TcpListener, door: Arc<Acceptor>, manner: Behaviour) {
    loop {
        match listener.accept().await {
            // The measurement looks at the client's end of a connection, so its end here does not matter.
            Ok((tcp, source)) => drop(tokio::spawn(connection(tcp, source, door.clone(), manner))),
            // Too many open files: the client's end shows it.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn connection(tcp: TcpStream, source: SocketAddr, door: Arc<Acceptor>, manner: Behaviour) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let Some(mut link) = door.admit_to_stack(tcp, source).await else {
        return Ok(());
    };
    if manner == Behaviour::Eager {
        say(&mut link, accepted(false).as_bytes()).await?;
    }
    let mut bytes = Vec::new();
    loop {
        while let Some(end) = wire::head_end(&bytes) {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            bytes.drain(..end);
            if !head.contains("upgrade: websocket") {
                say(&mut link, ANSWER).await?;
                continue;
            }
            let keeps =
                manner == Behaviour::Keeping && head.contains(&format!("{}: {}", ::wire::HEADER, ::wire::VERSION));
            if manner != Behaviour::Eager {
                say(&mut link, accepted(keeps).as_bytes()).await?;
            }
            return session(link, bytes, keeps).await;
        }
        bytes.reserve(1024);
        if link.read_buf(&mut bytes).await? == 0 {
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

async fn session(mut link: Link, early: Vec<u8>, keeps: bool) -> std::io::Result<()> {
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
            say(&mut link, &out).await?;
            // A silent session has no buffer.
            out = Vec::new();
        }
        let read = hear(&mut link, |bytes| {
            frames.take(bytes, |opcode| {
                closed |= opcode == CLOSE;
                if opcode < CLOSE {
                    count += 1;
                    if keeps && count % TURN_FRAMES == 0 {
                        out.extend(checkpoint(count));
                    }
                    out.extend_from_slice(&answer);
                }
            });
        });
        if read.await? == 0 {
            return Ok(());
        }
    }
    say(&mut link, &[0x88, 0]).await
}

/// Sends bytes at once. TLS may hold some back until the flush.
async fn say(link: &mut Link, bytes: &[u8]) -> std::io::Result<()> {
    link.write_all(bytes).await?;
    link.flush().await
}

/// Waits for bytes, and gives them to `take` in the buffer that all sessions share. Returns their number.
async fn hear(link: &mut Link, mut take: impl FnMut(&[u8])) -> std::io::Result<usize> {
    poll_fn(|cx| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *link).poll_read(cx, &mut read))?;
            take(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        })
    })
    .await
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
