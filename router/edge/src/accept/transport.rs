//! A device's connection, plain or TLS, behind the traits of pingora.

use std::{
    fmt::Debug,
    io,
    os::fd::RawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, l4, raw_connect::ProxyDigest, tls::SslDigest,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf},
    time::Instant,
};

use crate::{
    Config,
    deadline::Deadline,
    device::{Io, LAST_WORDS_BYTES_MAX},
    http1::{Body, Broken, Peer},
    request::device_connection::AHEAD_BYTES_MAX,
};

/// A head and a small answer leave in one packet, or one TLS record.
const WRITE_BYTES: usize = 2048;
/// One read of a body. It bounds the part of a body that pingora can repeat, see `BODY_BYTES_HELD`.
const BODY_READ_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub struct Transport<T: Io> {
    io: BufWriter<T>,
    /// Bytes that were read before pingora got the connection; pingora reads them first.
    replay: BytesMut,
    http2: bool,
    fd: RawFd,
    socket: Arc<SocketDigest>,
    has_tls: bool,
    gate: Gate,
    patience: Patience,
    /// Set when the edge has written its last bytes.
    last_words: Option<LastWords>,
}

/// The limits in which a device may end its part of a connection.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Longest time for the device to take part in closing.
    closing: Duration,
    /// The same for a device that still sends the body of a refused request, and the most bytes of it. Many clients read no answer
    /// before they sent their whole request.
    sending: Duration,
    body_bytes_max: u64,
}

impl Patience {
    fn of(config: &Config) -> Self {
        Self {
            closing: config.timeouts.close.0,
            sending: config.timeouts.device.0,
            body_bytes_max: config.limits.body_bytes_max,
        }
    }

    fn last_words(self, owes_body: bool) -> LastWords {
        let (limit, bytes) = match owes_body {
            true => (self.sending, self.body_bytes_max),
            false => (self.closing, LAST_WORDS_BYTES_MAX),
        };
        LastWords {
            until: Instant::now() + limit,
            timer: Deadline::default(),
            bytes_left: bytes,
        }
    }
}

/// The limits of the last words: the edge reads and drops the bytes of a device until the device closes, or until one of these
/// limits.
#[derive(Debug)]
struct LastWords {
    until: Instant,
    timer: Deadline,
    bytes_left: u64,
}

/// The bytes of a device that pingora may read: one request, to the last byte of its body. Bytes of the next request wait here,
/// because pingora would drop them, and the edge reads heads itself.
///
/// The gate also checks the framing of chunked bodies: pingora takes a chunk without a size for the last one, and two hops that
/// understand a body differently see two requests. A malformed body cannot be read (`InvalidData`).
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<Passing>>);

#[derive(Debug, Default)]
struct Passing {
    /// The rest of the body that pingora may read. None between requests and with HTTP/2, when pingora may read everything.
    body: Option<Body>,
    ahead: BytesMut,
}

impl Gate {
    /// Lets pingora read a request with this body. `read` are the bytes behind its head; those of the body stay in it.
    ///
    /// # Errors
    ///
    /// The chunks of the body are malformed.
    pub fn begin(&self, mut body: Body, read: &mut BytesMut) -> Result<(), Broken> {
        let taken = body.take(read)?;
        let mut passing = self.lock();
        passing.ahead = read.split_off(taken);
        passing.body = Some(body);
        Ok(())
    }

    /// Ends the request, because pingora gave the connection back. Returns the bytes of the next request.
    pub fn end(&self) -> BytesMut {
        let mut passing = self.lock();
        passing.body = None;
        std::mem::take(&mut passing.ahead)
    }

    /// Whether the device still sends the body of the request.
    fn owes_body(&self) -> bool {
        self.lock().body.as_ref().is_some_and(|body| !body.is_done())
    }

    fn lock(&self) -> MutexGuard<'_, Passing> {
        self.0.lock()
    }
}

impl Passing {
    /// Reads the request of a device, and after its last byte only the end of the connection.
    fn poll_read(
        &mut self,
        mut io: Pin<&mut (impl AsyncRead + ?Sized)>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(body) = self.body.as_mut() else {
            return io.as_mut().poll_read(cx, buffer);
        };
        if !body.is_done() {
            let room = buffer.remaining().min(BODY_READ_BYTES);
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
            ready!(io.as_mut().poll_read(cx, &mut part))?;
            let read = part.filled();
            let taken = body
                .take(read)
                .map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken))?;
            self.ahead.extend_from_slice(&read[taken..]);
            buffer.advance(taken);
            return Poll::Ready(Ok(()));
        }
        while self.ahead.len() < AHEAD_BYTES_MAX {
            let mut ahead = [0; 512];
            let mut ahead = ReadBuf::new(&mut ahead);
            ready!(io.as_mut().poll_read(cx, &mut ahead))?;
            if ahead.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.ahead.extend_from_slice(ahead.filled());
        }
        // A device that sends this much ahead has not left. The edge reads no more before it has written the answer.
        Poll::Pending
    }
}

impl<T: Io> Transport<T> {
    /// HTTP/1.1.
    pub fn http1(io: T, fd: RawFd, device: Peer, gate: Gate, config: &Config) -> Self {
        let socket = SocketDigest::from_raw_fd(fd);
        // The edge knows the address; pingora would ask the kernel.
        let _ = socket.peer_addr.set(Some(l4::socket::SocketAddr::Inet(device.address)));
        Self {
            io: BufWriter::with_capacity(WRITE_BYTES, io),
            replay: BytesMut::new(),
            http2: false,
            fd,
            socket: Arc::new(socket),
            has_tls: device.has_tls,
            gate,
            patience: Patience::of(config),
            last_words: None,
        }
    }

    /// HTTP/2, of which `replay` was read already.
    pub fn http2(io: T, fd: RawFd, device: Peer, replay: BytesMut, config: &Config) -> Self {
        Self {
            replay,
            http2: true,
            ..Self::http1(io, fd, device, Gate::default(), config)
        }
    }
}

impl<T: Io> AsyncRead for Transport<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            // pingora reads only after it wrote everything it has, and buffers the beginning of a body: this sends it.
            let _ = Pin::new(&mut self.io).poll_flush(cx);
            let this = &mut *self;
            return this.gate.lock().poll_read(Pin::new(&mut this.io), cx, buffer);
        }
        let count = self.replay.len().min(buffer.remaining());
        buffer.put_slice(&self.replay[..count]);
        self.replay.advance(count);
        if self.replay.is_empty() {
            self.replay = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Io> AsyncWrite for Transport<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// This is pingora's last call before the socket closes, and closing with unread bytes resets the connection, which may cost the
    /// device its answer (see `device::goodbye`). A device of HTTP/1.1 may still send the body of a refused request; one of HTTP/2
    /// sends window updates, acknowledgements and its own GOAWAY.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.last_words.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.last_words = Some(this.patience.last_words(this.gate.owes_body()));
        }
        let Some(last) = &mut this.last_words else {
            return Poll::Ready(Ok(()));
        };
        while last.bytes_left > 0 && last.timer.poll(last.until, cx).is_pending() {
            let mut sink = [0; 1024];
            let mut sink = ReadBuf::new(&mut sink);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut sink))?;
            if sink.filled().is_empty() {
                break;
            }
            last.bytes_left = last.bytes_left.saturating_sub(sink.filled().len() as u64);
        }
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl<T: Io> Shutdown for Transport<T> {
    async fn shutdown(&mut self) {
        // An error means that the peer left or does not read; the connection ends in any case.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl<T: Io> UniqueID for Transport<T> {
    fn id(&self) -> UniqueIDType {
        self.fd
    }
}

impl<T: Io> Ssl for Transport<T> {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        // Also for plaintext that began with the preface of HTTP/2: pingora looks for the protocol here.
        self.http2.then_some(ALPN::H2)
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        // The presence of a digest shows that the device speaks TLS.
        self.has_tls
            .then(|| Arc::new(SslDigest::new("", "", None, None, Vec::new())))
    }
}

impl<T: Io> GetTimingDigest for Transport<T> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl<T: Io> GetProxyDigest for Transport<T> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl<T: Io> GetSocketDigest for Transport<T> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

impl<T: Io> Peek for Transport<T> {}
