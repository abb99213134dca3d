//! A connection between an edge and a stack: plain text, or mutual TLS whose peer is known.
//!
//! It outlives the certificates with which it began, so that a renewal ends no session. It fails when its peer's root is no longer
//! trusted. Sessions are resumed, because after the loss of a region many connections are opened at once.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::sleep,
};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, pki_types::ServerName};
use tokio_util::either::Either;
use topology::RegionId;

use crate::{
    Call, Denied, Identity, Peer, Speaks, authorise,
    protocol::HTTP2,
    shown::Shown,
    socket::{Plain, Tls},
    texts,
    tls_socket::TlsSocket,
};

/// The clock is looked at this often: it may be set, and a machine may sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A stack lets the sessions of an edge whose root was taken away end their turn within this time: long replies are spoken in it.
const LAST_TURN_MAX: Duration = Duration::from_secs(30);
/// The reason for which two ends do not believe each other. It is inside an [`io::Error`]; see [`TrustError::within`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The peer does not accept the certificate of this process.
    #[error("{}", texts::it_refuses(.0))]
    Refused(String),
    /// The certificate of the peer is genuine, and the peer is not the wanted one.
    #[error("{0}")]
    Other(Denied),
    /// The peer has no certificate that is valid here.
    #[error("{}", texts::it_proves_nothing(.0))]
    Unproven(String),
    /// The peer's root was taken out of the trust while the connection was open.
    #[error("{}", texts::its_root_was_taken_away())]
    Withdrawn,
}

impl TrustError {
    /// The error of trust in an error, at any depth.
    pub fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(trust_error) = error.downcast_ref::<Self>() {
                return Some(trust_error);
            }
            // `source` of an `io::Error` skips the error that it wraps.
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }

    /// The error of trust behind a failed handshake or read.
    fn behind(error: &io::Error, is_open: bool) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<rustls::Error>()? {
            rustls::Error::AlertReceived(alert) if is_refusal(*alert) => Some(Self::Refused(format!("{alert:?}"))),
            _ if is_open => None,
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                Some(match other.0.downcast_ref::<Denied>() {
                    Some(denied) => Self::Other(denied.clone()),
                    None => Self::Unproven(other.to_string()),
                })
            }
            rustls::Error::InvalidMessage(_) => Some(Self::Unproven(texts::it_speaks_no_tls())),
            other => Some(Self::Unproven(other.to_string())),
        }
    }
}

/// Alerts about the certificate of the end that receives them (RFC 8446 §6.2).
fn is_refusal(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
            | Alert::DecryptError
    )
}

/// A connection between an edge, or another prober, and a stack.
#[derive(Debug)]
pub struct Link {
    io: Either<TcpStream, Box<TlsSocket>>,
    // In boxes: thousands of sessions keep one for hours.
    proof: Option<Box<PeerProof>>,
    trust_error: Option<Box<TrustError>>,
}

/// The grounds on which this end believes the other one.
#[derive(Debug, Clone)]
pub struct PeerProof {
    identity: Arc<Identity>,
    shown: Arc<Shown>,
    /// The state of the trust under which the peer was checked last.
    seen: u64,
    /// Time at which its root was found to be trusted no more.
    withdrawn_at: Option<Instant>,
}

/// Calls a stack of a region. With an identity both ends prove who they are.
///
/// # Errors
///
/// The system's; or one with a [`TrustError`] within.
pub async fn dial(
    identity: Option<&Arc<Identity>>,
    region: &RegionId,
    stack: SocketAddr,
    speaks: Speaks,
) -> io::Result<Link> {
    let tcp = TcpStream::connect(stack).await?;
    // Voice frames are small and must not wait for more; a socket that refuses this still works.
    let _ = tcp.set_nodelay(true);
    secure(identity, tcp, region, stack, speaks).await
}

/// The same over a connection that is open.
///
/// # Errors
///
/// As [`dial`].
pub async fn secure(
    identity: Option<&Arc<Identity>>,
    tcp: TcpStream,
    region: &RegionId,
    stack: SocketAddr,
    speaks: Speaks,
) -> io::Result<Link> {
    match identity {
        Some(identity) => identity.call_stack(tcp, region, stack, speaks).await,
        None => Ok(Link::plain(tcp)),
    }
}

impl Identity {
    /// Opens TLS to a peer that must be a stack of this region.
    async fn call_stack(
        self: &Arc<Self>,
        tcp: TcpStream,
        region: &RegionId,
        stack: SocketAddr,
        speaks: Speaks,
    ) -> io::Result<Link> {
        let seen = self.generation();
        let config = self.state().client_for(region).map_err(io::Error::other)?;
        // It is not sent. Sessions are kept under it.
        let name = ServerName::IpAddress(stack.ip().into());
        let connecting = TlsSocket::connect(config, name, vec![speaks.alpn().to_vec()], tcp);
        let mut tls = connecting.await.map_err(|error| doubted(error, false))?;
        let shown = self.linked(tls.peer_certificates()).map_err(unproven)?;
        // Again, for a session that was resumed.
        let serves = Call::Serve {
            region: region.as_str(),
        };
        authorise(&shown.peer, serves).map_err(|denied| io::Error::other(TrustError::Other(denied)))?;
        if speaks == Speaks::Http2 {
            // The stack speaks first. Its words say that it has accepted this process: in TLS 1.3 a client is done before the
            // server has looked at its certificate (RFC 8446 §4.4.2.4).
            let first = tls.peek().await.map_err(|error| doubted(error, true))?;
            if first.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Link::known(self, Box::new(tls), shown, seen))
    }
}

fn unproven(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(TrustError::Unproven(error.to_string()))
}

fn doubted(error: io::Error, is_open: bool) -> io::Error {
    match TrustError::behind(&error, is_open) {
        Some(trust_error) => io::Error::other(trust_error),
        None => error,
    }
}

impl Link {
    /// A connection without TLS.
    pub fn plain(tcp: TcpStream) -> Self {
        Self {
            io: Plain(tcp),
            proof: None,
            trust_error: None,
        }
    }

    pub(crate) fn known(identity: &Arc<Identity>, tls: Box<TlsSocket>, shown: Arc<Shown>, seen: u64) -> Self {
        Self {
            io: Tls(tls),
            proof: Some(Box::new(PeerProof {
                identity: identity.clone(),
                shown,
                seen,
                withdrawn_at: None,
            })),
            trust_error: None,
        }
    }

    /// The other end, if it proved its id.
    pub fn peer(&self) -> Option<&Peer> {
        self.proof.as_ref().map(|proof| &proof.shown.peer)
    }

    /// The error of trust for which this connection failed, if it was one.
    pub fn trust_error(&self) -> Option<&TrustError> {
        self.trust_error.as_deref()
    }

    /// The grounds on which the other end is believed.
    pub fn proof(&self) -> Option<PeerProof> {
        self.proof.as_deref().cloned()
    }

    /// True if the TLS session of an earlier connection was resumed.
    pub fn is_resumed(&self) -> bool {
        match &self.io {
            Plain(_) => false,
            Tls(tls) => tls.is_resumed(),
        }
    }

    /// True if a request to a region may be sent on this connection, which waited for it: nothing came meanwhile, and the peer is still
    /// believed. Bytes that come unasked are the end of the connection, or an answer to no request.
    pub fn is_ready_for(&mut self, region: &RegionId) -> bool {
        let may_serve = |proof: &PeerProof| {
            let serves = Call::Serve {
                region: region.as_str(),
            };
            !proof.is_over() && authorise(&proof.shown.peer, serves).is_ok()
        };
        if !self.proof.as_deref().is_none_or(may_serve) || self.poll_proof().is_err() {
            return false;
        }
        let mut byte = [0];
        match &mut self.io {
            Plain(tcp) => {
                let read = tcp.try_read(&mut byte);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // The peer's tickets are no answer, and are taken in here.
            Tls(tls) => {
                let mut unread = ReadBuf::new(&mut byte);
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(tls).poll_read(&mut cx, &mut unread).is_pending()
            }
        }
    }

    /// Writes what the socket takes at once: last words, for a peer that may not read them.
    pub fn try_write(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut this = Pin::new(self);
        if this.as_mut().poll_write(&mut cx, bytes).is_ready() {
            let _ = this.poll_flush(&mut cx);
        }
    }

    /// True if the caller speaks HTTP/2: it agreed on it, or begins with the preface of RFC 9113 §3.4. Two bytes tell that preface,
    /// `PRI`, from any method of HTTP/1.1; nobody sends them apart.
    pub async fn begins_with_http2(&mut self) -> bool {
        match &mut self.io {
            Plain(tcp) => {
                let mut first = [0; 2];
                matches!(tcp.peek(&mut first).await, Ok(2)) && &first == b"PR"
            }
            Tls(tls) => match tls.alpn() {
                Some(agreed) => agreed == HTTP2,
                None => tls.peek().await.is_ok_and(|first| first.starts_with(b"PR")),
            },
        }
    }

    /// True at the end that was called: at a stack.
    fn is_called(&self) -> bool {
        matches!(&self.io, Tls(tls) if tls.is_server())
    }

    /// Fails once the root of the peer is no longer trusted: at an edge at once, because the session goes on at another stack; at a
    /// stack after the time that a turn may take.
    fn poll_proof(&mut self) -> io::Result<()> {
        let Some(proof) = &mut self.proof else { return Ok(()) };
        let now = proof.identity.generation();
        if proof.seen != now && proof.withdrawn_at.is_none() {
            if proof.identity.rests_on_trusted_root(&proof.shown) {
                proof.seen = now;
            } else {
                proof.withdrawn_at = Some(Instant::now());
            }
        }
        let Some(at) = proof.withdrawn_at else { return Ok(()) };
        if self.is_called() && at.elapsed() < LAST_TURN_MAX {
            return Ok(());
        }
        self.trust_error = Some(Box::new(TrustError::Withdrawn));
        Err(io::Error::other(TrustError::Withdrawn))
    }

    /// A failed read, with the error of trust behind it.
    fn failed_read(&mut self, error: io::Error) -> io::Error {
        let error = doubted(error, true);
        self.trust_error = TrustError::within(&error).cloned().map(Box::new);
        error
    }
}

impl PeerProof {
    /// True if the certificate of the peer has ended, and its end counts.
    fn is_over(&self) -> bool {
        !self.identity.believes_on_link(&self.shown)
    }

    /// Returns when the certificate of the peer, or the one that this process showed, has ended: a connection that is used on and on
    /// must be opened anew then. While nobody renews certificates it stays, because a new one would begin with the same.
    pub async fn over(&self) {
        let own = self.identity.own();
        let mut changes = self.identity.changes();
        loop {
            let renewed = || self.identity.own().serial != own.serial;
            if self.is_over() || self.identity.until(own.until).is_zero() && renewed() {
                return;
            }
            let left = self.identity.left(&self.shown).min(self.identity.until(own.until));
            let pause = if left.is_zero() {
                LOOK_EVERY
            } else {
                left.min(LOOK_EVERY)
            };
            tokio::select! {
                () = sleep(pause) => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Returns when the root of the peer is no longer trusted.
    pub async fn withdrawn(&self) {
        let mut changes = self.identity.changes();
        while self.identity.rests_on_trusted_root(&self.shown) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_proof()?;
        match Pin::new(&mut self.io).poll_read(cx, buffer) {
            // A caller that leaves need not say so. A stack must: the end of its answer may be the end of the connection.
            Poll::Ready(Err(error)) if self.is_called() && error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed_read(error))),
            read => read,
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_proof()?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_proof()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
