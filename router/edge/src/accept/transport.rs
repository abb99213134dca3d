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
    io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf},
    time::Instant,
};

use crate::{
    deadline::Deadline,
    device::{self, Io, LAST_WORDS_BYTES_MAX},
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
    /// Longest time for the device to take part in closing.
    closing: Duration,
    /// With HTTP/2: set when the edge has written its last bytes.
    last_words: Option<LastWords>,
}

/// The limits of the last words: the edge reads and drops the bytes of a device until the device closes, or until one of these
/// limits.
#[derive(Debug)]
struct LastWords {
    until: Instant,
    timer: Deadline,
    bytes_left: usize,
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
    pub fn http1(io: T, fd: RawFd, device: Peer, gate: Gate, closing: Duration) -> Self {
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
            closing,
            last_words: None,
        }
    }

    /// HTTP/2, of which `replay` was read already.
    pub fn http2(io: T, fd: RawFd, device: Peer, replay: BytesMut, closing: Duration) -> Self {
        Self {
            replay,
            http2: true,
            ..Self::http1(io, fd, device, Gate::default(), closing)
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

    /// With HTTP/2 this is the last call before the socket closes: a device still sends window updates, acknowledgements and its
    /// own GOAWAY, and closing with such bytes unread resets the connection (see `device::goodbye`).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.http2 {
            return Pin::new(&mut this.io).poll_shutdown(cx);
        }
        if this.last_words.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.last_words = Some(LastWords {
                until: Instant::now() + this.closing,
                timer: Deadline::default(),
                bytes_left: usize::try_from(LAST_WORDS_BYTES_MAX).unwrap_or(usize::MAX),
            });
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
            last.bytes_left = last.bytes_left.saturating_sub(sink.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl<T: Io> Shutdown for Transport<T> {
    async fn shutdown(&mut self) {
        // The kernel drops undelivered bytes of a socket that is closed with unread ones: bytes behind the request must not cost the
        // device its answer.
        device::goodbye(&mut self.io, self.closing).await;
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
