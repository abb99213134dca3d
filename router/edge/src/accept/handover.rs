//! Handing the listening sockets to a successor, so that an edge is replaced by a newer one and no device is refused.
//!
//! A running edge offers its sockets at `state_dir/handover.sock`. `meridian-edge --take-over` connects there, gets the sockets
//! (`SCM_RIGHTS`, unix(7)), waits for a plan as any edge does, begins to accept, and reports that. Only then does the predecessor
//! stop accepting; connections in the queue of a socket belong to the socket, so none is lost. If the successor ends before that,
//! the predecessor goes on. Its sessions stay with it and leave it between turns; until the last one left, it tells the successor
//! how many there are.
//!
//! Written by hand, without a library of socket handover: those bring their own supervisor, and this is one message.
//!
//! Why it is so: docs/decisions/09-upgrades-hand-over-sockets.md.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixListener,
    time::timeout,
};

use crate::texts;

/// Changes when a predecessor and a successor would not understand each other.
const PROTOCOL: u32 = 1;
/// Most sockets of one offer.
const SOCKETS_MAX: usize = 16;
/// An offer in JSON takes some hundred bytes.
const OFFER_BYTES_MAX: usize = 8 << 10;
/// Longest time of one step: both processes are on the same machine, and a step is one message.
const STEP_LIMIT: Duration = Duration::from_secs(5);
/// Time between two reports of a predecessor on its sessions.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// The message of a successor that accepts devices.
const READY: &str = "ready";

/// A listening socket, by its purpose and its address in the configuration. Port 0 there is another port here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The purpose, such as "http" or "admin".
    pub purpose: String,
    pub address: SocketAddr,
}

impl Name {
    pub fn new(purpose: &str, address: SocketAddr) -> Self {
        let purpose = purpose.to_owned();
        Self { purpose, address }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    protocol: u32,
    sockets: Vec<Name>,
}

/// The path at which a running edge with this state directory offers its sockets.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("handover.sock")
}

/// The running edge, for its successor.
#[derive(Debug)]
pub struct Predecessor {
    sockets: Vec<(Name, OwnedFd)>,
    stream: UnixStream,
}

impl Predecessor {
    /// Asks the edge that runs with this state directory for its sockets.
    pub fn ask(state_dir: &Path) -> anyhow::Result<Self> {
        let path = path(state_dir);
        let stream = UnixStream::connect(&path).with_context(|| texts::no_predecessor(&path))?;
        stream.set_read_timeout(Some(STEP_LIMIT))?;
        let mut bytes = vec![0; OFFER_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut rights,
            RecvFlags::CMSG_CLOEXEC,
        )
        .context(texts::PREDECESSOR_IS_SILENT)?;
        let mut sockets = Vec::new();
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                sockets.extend(received);
            }
        }
        anyhow::ensure!(received.bytes > 0, texts::PREDECESSOR_REFUSES);
        let offer: Offer = serde_json::from_slice(&bytes[..received.bytes]).context(texts::UNREADABLE_OFFER)?;
        anyhow::ensure!(
            offer.protocol == PROTOCOL && offer.sockets.len() == sockets.len(),
            texts::other_offer(offer.protocol, sockets.len(), offer.sockets.len())
        );
        Ok(Self {
            sockets: offer.sockets.into_iter().zip(sockets).collect(),
            stream,
        })
    }

    /// Takes the socket of that name, if the predecessor had one.
    pub fn take(&mut self, name: &Name) -> Option<TcpListener> {
        let at = self.sockets.iter().position(|(offered, _)| offered == name)?;
        Some(TcpListener::from(self.sockets.swap_remove(at).1))
    }

    /// Tells the predecessor that this edge accepts devices now, and calls `count` with its number of sessions until it has none and
    /// ends.
    pub async fn relieve(self, mut count: impl FnMut(u64)) -> anyhow::Result<()> {
        let Self { sockets, stream } = self;
        // The edge stops listening on addresses that this configuration does not name.
        drop(sockets);
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        stream.write_all(format!("{READY}\n").as_bytes()).await?;
        let mut lines = BufReader::new(stream).lines();
        // The reports end with the predecessor.
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(sessions) = line.parse() {
                count(sessions);
            }
        }
        count(0);
        Ok(())
    }
}

/// The edge that takes over, for its predecessor.
#[derive(Debug)]
pub struct Successor(tokio::net::UnixStream);

/// Offers sockets to successors until one of them accepts devices.
pub async fn offer(state_dir: &Path, sockets: Vec<(Name, OwnedFd)>) -> anyhow::Result<Successor> {
    let path = path(state_dir);
    // A killed edge leaves its socket behind. The ports decide which process runs, and not this socket.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| path.display().to_string());
    }
    let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
    loop {
        let (stream, _) = listener.accept().await?;
        match hand_over(stream, &sockets).await {
            Ok(Some(successor)) => return Ok(successor),
            Ok(None) => tracing::warn!("{}", texts::SUCCESSOR_LEFT),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "{}", texts::SUCCESSOR_FAILED),
        }
    }
}

/// Gives the sockets away and waits until the successor accepts devices; `None` if it ends before.
async fn hand_over(stream: tokio::net::UnixStream, sockets: &[(Name, OwnedFd)]) -> anyhow::Result<Option<Successor>> {
    let (peer, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    anyhow::ensure!(peer == own || peer == 0, texts::successor_is_another_user(peer, own));
    let offer = Offer {
        protocol: PROTOCOL,
        sockets: sockets.iter().map(|(name, _)| name.clone()).collect(),
    };
    let bytes = serde_json::to_vec(&offer)?;
    let rights: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
    timeout(STEP_LIMIT, stream.writable())
        .await
        .context(texts::SUCCESSOR_IS_SILENT)??;
    stream.try_io(tokio::io::Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&rights)) {
            return Err(std::io::Error::other("there are too many sockets to hand over"));
        }
        let sent = sendmsg(&stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        // A buffer that is empty takes some hundred bytes at once.
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(std::io::Error::other("the successor took only a part of the offer"))
        }
    })?;
    tracing::info!("a successor has the sockets; waiting until it accepts devices");
    let mut lines = BufReader::new(stream).lines();
    match lines.next_line().await? {
        Some(line) if line == READY => Ok(Some(Successor(lines.into_inner().into_inner()))),
        _ => Ok(None),
    }
}

impl Successor {
    /// Tells the successor again and again how many sessions are left here, as long as it reads.
    pub async fn tell(mut self, count: impl Fn() -> usize) {
        let mut tick = tokio::time::interval(COUNT_EVERY);
        loop {
            tick.tick().await;
            let line = format!("{}\n", count());
            if self.0.write_all(line.as_bytes()).await.is_err() {
                // The successor is gone. This edge still finishes its own connections.
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    fn listening() -> (SocketAddr, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        (listener.local_addr().unwrap(), listener.into())
    }

    fn name(purpose: &str) -> Name {
        Name::new(purpose, "127.0.0.1:0".parse().unwrap())
    }

    async fn ask(folder: &Path) -> anyhow::Result<Predecessor> {
        let folder = folder.to_owned();
        tokio::task::spawn_blocking(move || Predecessor::ask(&folder)).await?
    }

    #[tokio::test]
    async fn who_connected_before_the_successor_was_there_is_accepted_by_it() {
        let folder = tempfile::tempdir().unwrap();
        let (address, socket) = listening();
        let at = folder.path().to_owned();
        let offered = tokio::spawn(async move { offer(&at, vec![(name("http"), socket)]).await });
        let early = TcpStream::connect(address).await.unwrap();
        let mut predecessor = loop {
            match ask(folder.path()).await {
                Ok(predecessor) => break predecessor,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert!(predecessor.take(&name("admin")).is_none());
        let listener = predecessor.take(&name("http")).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        assert_eq!(listener.accept().await.unwrap().1, early.local_addr().unwrap());

        let (counted, mut counts) = tokio::sync::mpsc::unbounded_channel();
        let relieved = tokio::spawn(predecessor.relieve(move |sessions| {
            let _ = counted.send(sessions);
        }));
        let successor = offered.await.unwrap().unwrap();
        let telling = tokio::spawn(successor.tell(|| 7));
        assert_eq!(counts.recv().await, Some(7));
        telling.abort();
        relieved.await.unwrap().unwrap();
        while let Some(sessions) = counts.recv().await {
            assert!([7, 0].contains(&sessions));
        }
    }

    #[tokio::test]
    async fn a_successor_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (_, socket) = listening();
        let at = folder.path().to_owned();
        let offered = tokio::spawn(async move { offer(&at, vec![(name("http"), socket)]).await });
        let mut asked = 0;
        while asked < 2 {
            match ask(folder.path()).await {
                // It is dropped at once, and the next one is given the sockets, too.
                Ok(_) => asked += 1,
                Err(_) => tokio::task::yield_now().await,
            }
        }
        assert!(!offered.is_finished());
    }

    #[test]
    fn without_a_running_edge_the_remedy_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", Predecessor::ask(folder.path()).unwrap_err());
        assert!(error.contains("start without --take-over"), "{error}");
    }
}
