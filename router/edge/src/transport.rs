//! A device's connection as pingora wants to see it, plain or TLS.

use std::{
    fmt::Debug,
    io,
    net::SocketAddr,
    os::fd::RawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, l4, raw_connect::ProxyDigest,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter, ReadBuf};

use crate::relay::Io;

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
}

impl<T: Io> Transport<T> {
    /// HTTP/1.1.
    pub fn http1(io: T, fd: RawFd, client: SocketAddr) -> Self {
        let socket = SocketDigest::from_raw_fd(fd);
        // Known already; pingora would ask the kernel.
        let _ = socket.peer_addr.set(Some(l4::socket::SocketAddr::Inet(client)));
        Self {
            io: BufWriter::with_capacity(WRITE_BYTES, io),
            replay: BytesMut::new(),
            http2: false,
            fd,
            socket: Arc::new(socket),
        }
    }

    /// HTTP/2, of which `replay` was read already.
    pub fn http2(io: T, fd: RawFd, client: SocketAddr, replay: BytesMut) -> Self {
        Self {
            replay,
            http2: true,
            ..Self::http1(io, fd, client)
        }
    }
}

impl<T: Io> AsyncRead for Transport<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
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
        if let Err(error) = self.io.shutdown().await {
            tracing::debug!(%error, "the device left first");
        }
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
