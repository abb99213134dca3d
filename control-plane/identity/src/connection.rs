//! A connection whose other end is known, for as long as it is believed.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::sleep,
};
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::{
    Identity, Peer,
    early::early,
    shown::Shown,
    socket::{Plain, Socket, Tls},
    texts,
};

/// The clock is looked at this often: it may be set, and a machine may sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A process that joins sends one request. A certificate is signed in a millisecond, and the store may be slow.
const JOINS_WITHIN: Duration = Duration::from_secs(15);

/// The maker of a call: a request extension of tonic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub source: SocketAddr,
    /// The id that it proved; `None` without TLS.
    pub peer: Option<Peer>,
}

/// A connection of either end. It fails when the certificate of the peer expires, or somewhat before, or when its root is no longer
/// trusted.
pub struct Connection {
    io: Socket,
    caller: Caller,
    /// Ready when the peer is no longer believed.
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Ends the watch over this connection with it.
    _watched: Option<DropGuard>,
    /// Frees the place of a process that joins.
    _place: Option<Box<dyn Send>>,
}

impl Connection {
    pub(crate) fn plain(tcp: TcpStream, source: SocketAddr) -> Self {
        Self {
            io: Plain(tcp),
            caller: Caller { source, peer: None },
            ended: None,
            _watched: None,
            _place: None,
        }
    }

    /// A connection of a process that proves nothing and wants to join. It has to be quick.
    pub(crate) fn joining(tls: TlsStream<TcpStream>, source: SocketAddr, place: Box<dyn Send>) -> Self {
        let (ended, gone) = (CancellationToken::new(), CancellationToken::new());
        let connection = Self {
            io: Tls(Box::new(tls)),
            caller: Caller { source, peer: None },
            ended: Some(Box::pin(ended.clone().cancelled_owned())),
            _watched: Some(gone.clone().drop_guard()),
            _place: Some(place),
        };
        tokio::spawn(async move {
            if gone.run_until_cancelled(sleep(JOINS_WITHIN)).await.is_some() {
                ended.cancel();
            }
        });
        connection
    }

    /// Ends with the belief in its peer; `on_end` is called then.
    pub(crate) fn watched(
        identity: Arc<Identity>,
        tls: TlsStream<TcpStream>,
        shown: Arc<Shown>,
        source: SocketAddr,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (ended, gone) = (CancellationToken::new(), CancellationToken::new());
        let connection = Self {
            io: Tls(Box::new(tls)),
            caller: Caller {
                source,
                peer: Some(shown.peer.clone()),
            },
            ended: Some(Box::pin(ended.clone().cancelled_owned())),
            _watched: Some(gone.clone().drop_guard()),
            _place: None,
        };
        tokio::spawn(async move {
            let lost = gone.run_until_cancelled(until_lost(&identity, &shown)).await;
            if let Some(why) = lost {
                tracing::warn!(id = %shown.peer.id, %source, "a connection ends: {why}; it is opened again with a new certificate");
                ended.cancel();
                on_end();
            }
        });
        connection
    }

    /// True if small packets leave at once.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn nodelay(&self) -> io::Result<bool> {
        match &self.io {
            Plain(io) => io.nodelay(),
            Tls(io) => io.get_ref().0.nodelay(),
        }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let ended = self
            .ended
            .as_mut()
            .is_some_and(|ended| ended.as_mut().poll(cx).is_ready());
        if ended {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}

/// Returns, with the reason, when a peer is no longer believed.
async fn until_lost(identity: &Identity, shown: &Shown) -> &'static str {
    let mut changes = identity.changes();
    let early = early(&identity.own().id, &shown.peer, identity.left(shown));
    loop {
        let left = identity.left(shown).saturating_sub(early);
        if left.is_zero() {
            return match early.is_zero() {
                true => texts::PEER_EXPIRED,
                false => texts::PEER_EXPIRES_SOON,
            };
        }
        // At first too: the trust may have changed during the handshake.
        if !identity.still_trusts(shown) {
            return texts::PEER_UNTRUSTED;
        }
        tokio::select! {
            () = sleep(left.min(LOOK_EVERY)) => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return texts::PROCESS_ENDS;
                }
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_ended(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // A peer that does not read holds back what is written, and then nothing is read either.
        self.poll_ended(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ended(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
