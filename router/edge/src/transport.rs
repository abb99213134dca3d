//! A device's connection as pingora wants to see it, plain or TLS.

use std::{
    fmt::Debug,
    io,
    os::fd::RawFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, l4, raw_connect::ProxyDigest, tls::SslDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

use crate::{
    http1::{Broken, Chunks, Peer},
    relay::{self, Io},
};

/// A head and a small answer leave in one packet, or one TLS record.
const WRITE_BYTES: usize = 2048;

/// One connection.
#[derive(Debug)]
pub struct Transport<T: Io> {
    io: BufWriter<T>,
    /// Read before pingora got the connection, and given to it first.
    replay: BytesMut,
    http2: bool,
    fd: RawFd,
    socket: Arc<SocketDigest>,
    has_tls: bool,
    framing: Framing,
    /// So long the device may take part in closing.
    closing: Duration,
}

/// Checks the framing of a chunked body that pingora reads: it takes a chunk without a size for the last one, and what two
/// hops understand differently is two requests. What is no body cannot be read (`InvalidData`).
#[derive(Debug, Clone, Default)]
pub struct Framing(Arc<Mutex<Option<Chunks>>>);

impl Framing {
    /// A chunked body begins with what was read of it.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn begin(&self, read: &[u8]) -> Result<(), Broken> {
        *self.lock() = Some(Chunks::default());
        self.take(read)
    }

    fn take(&self, bytes: &[u8]) -> Result<(), Broken> {
        let mut framing = self.lock();
        if let Some(chunks) = &mut *framing {
            chunks.take(bytes)?;
            if chunks.is_done() {
                *framing = None;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Chunks>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Io> Transport<T> {
    /// HTTP/1.1.
    pub fn http1(io: T, fd: RawFd, device: Peer, framing: Framing, closing: Duration) -> Self {
        let socket = SocketDigest::from_raw_fd(fd);
        // Known already; pingora would ask the kernel.
        let _ = socket.peer_addr.set(Some(l4::socket::SocketAddr::Inet(device.address)));
        Self {
            io: BufWriter::with_capacity(WRITE_BYTES, io),
            replay: BytesMut::new(),
            http2: false,
            fd,
            socket: Arc::new(socket),
            has_tls: device.has_tls,
            framing,
            closing,
        }
    }

    /// HTTP/2, of which `replay` was read already.
    pub fn http2(io: T, fd: RawFd, device: Peer, replay: BytesMut) -> Self {
        Self {
            replay,
            http2: true,
            ..Self::http1(io, fd, device, Framing::default(), Duration::ZERO)
        }
    }
}

impl<T: Io> AsyncRead for Transport<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            // Who waits for the device has said all there is to say for now. pingora keeps the beginning of a body back.
            let _ = Pin::new(&mut self.io).poll_flush(cx);
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
            let read = &buffer.filled()[before..];
            let checked = self.framing.take(read);
            return Poll::Ready(checked.map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken)));
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

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl<T: Io> Shutdown for Transport<T> {
    async fn shutdown(&mut self) {
        // A socket that is closed with something unread takes back what it has not delivered yet: what a device sends behind
        // its request must not cost it the answer.
        relay::goodbye(&mut self.io, self.closing).await;
    }
}

impl<T: Io> UniqueID for Transport<T> {
    fn id(&self) -> UniqueIDType {
        self.fd
    }
}

impl<T: Io> Ssl for Transport<T> {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        // Also for plaintext that began with the preface of HTTP/2: this is how pingora is told.
        self.http2.then_some(ALPN::H2)
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        // That there is one says what has to be said: the device speaks TLS.
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
