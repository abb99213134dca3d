//! TLS over a socket that keeps no buffer while nothing is on its way. An edge has a connection to a stack for each of its sessions, and
//! most are silent most of the time.
//!
//! The buffered connections of rustls keep 4 KiB for reads, read no more than that at once, and copy each record once more. This socket
//! lends rustls a buffer of the thread (`rustls::unbuffered`), and keeps only the bytes that it could not pass on: the beginning of a
//! record, or what a socket did not take. rustls does all of TLS: handshake, records, tickets and new keys.

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::rustls::{
    self, ClientConfig, CommonState, HandshakeKind, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, ServerName},
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic},
};

/// Largest record on the wire (RFC 8446 §5.2): 2^14 bytes, the expansion and the header.
const RECORD_BYTES_MAX: usize = (16 << 10) + 256 + 5;
/// Plain bytes that are sealed at once: two records.
const SEALED_AT_ONCE: usize = 32 << 10;
/// The buffer of a thread: the beginning of a record and a read of about the same size; or two sealed records.
const SCRATCH_BYTES: usize = 2 * RECORD_BYTES_MAX;
/// Most bytes of a handshake that wait for the rest of a message. Chains of certificates have some kilobytes.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// No code holds these across an await, so one of each per thread is enough for any number of connections.
    static SCRATCH: RefCell<Box<[u8; SCRATCH_BYTES]>> = RefCell::new(Box::new([0; SCRATCH_BYTES]));
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// TLS over a socket.
pub(crate) struct TlsSocket {
    tcp: TcpStream,
    side: Side,
    /// The beginning of a record.
    partial: BytesMut,
    /// Opened bytes that the last reader had no room for.
    opened: BytesMut,
    /// Sealed bytes that the socket did not take.
    sealed: BytesMut,
    /// The peer said that it sends no more.
    peer_has_closed: bool,
    /// This end said so.
    has_closed: bool,
    /// TLS failed: nothing that comes can be believed, and rustls must see none of it.
    has_failed: bool,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// The two kinds of connection, which have no trait in rustls.
trait Records {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// True if an alert, or another message of TLS, waits to be encoded.
    fn has_alert(&self) -> bool;
}

impl Records for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_alert(&self) -> bool {
        self.wants_write()
    }
}

impl Records for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_alert(&self) -> bool {
        self.wants_write()
    }
}

/// The use of incoming bytes.
#[derive(Default)]
struct Taken {
    /// Bytes at the beginning that are done with. The rest is the beginning of a record.
    bytes: usize,
    peer_has_closed: bool,
}

/// Takes in all whole records of `incoming`, of which opened bytes go to `open`. `sealed` gets the answers of TLS itself, among them the
/// alert that says why it failed.
fn take_in(
    records: &mut impl Records,
    incoming: &mut [u8],
    sealed: &mut BytesMut,
    mut open: impl FnMut(&[u8]),
) -> Result<Taken, rustls::Error> {
    let mut taken = Taken::default();
    loop {
        let UnbufferedStatus { mut discard, state } = records.process(&mut incoming[taken.bytes..]);
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    open(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, sealed)?,
            // The caller sends `sealed` before anything else.
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => taken.peer_has_closed = true,
            // The rest is states in which rustls waits for bytes. Early data is refused by the configuration.
            Ok(_) => {
                taken.bytes += discard;
                return Ok(taken);
            }
            Err(error) => {
                // rustls must not look at the bad record again, and does not while its alert waits.
                while records.has_alert() {
                    let Ok(ConnectionState::EncodeTlsData(alert)) = records.process(&mut []).state else {
                        break;
                    };
                    encode(alert, sealed)?;
                }
                return Err(error);
            }
        }
        taken.bytes += discard;
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, sealed: &mut BytesMut) -> Result<(), rustls::Error> {
    let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) else {
        return Ok(());
    };
    let before = sealed.len();
    sealed.resize(before + needed.required_size, 0);
    let encoded = data.encode(&mut sealed[before..]);
    encoded
        .map(drop)
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Writes with the keys of the connection, behind what TLS itself has to say, which goes to `sealed`. `partial` is the beginning of a record,
/// in which rustls may remember places.
fn write<R: Records, T>(
    records: &mut R,
    partial: &mut [u8],
    sealed: &mut BytesMut,
    write: impl FnOnce(WriteTraffic<'_, R::Data>) -> Result<T, EncryptError>,
) -> io::Result<T> {
    loop {
        match records.process(partial).state.map_err(invalid)? {
            ConnectionState::WriteTraffic(traffic) => return write(traffic).map_err(io::Error::other),
            ConnectionState::EncodeTlsData(data) => encode(data, sealed).map_err(invalid)?,
            ConnectionState::TransmitTlsData(data) => data.done(),
            // The reader knows: it took in the record that says so.
            ConnectionState::PeerClosed => {}
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Runs an expression with the connection of either side.
macro_rules! with_records {
    ($side:expr, $records:ident => $do:expr) => {
        match $side {
            Side::Client($records) => $do,
            Side::Server($records) => $do,
        }
    };
}

impl TlsSocket {
    /// Opens TLS to a server, which learns no name. `name` is the name of the sessions that are kept.
    pub(crate) async fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        alpn: Vec<Vec<u8>>,
        tcp: TcpStream,
    ) -> io::Result<Self> {
        let connection = UnbufferedClientConnection::new_with_alpn(config, name, alpn).map_err(invalid)?;
        let mut socket = Self::new(tcp, Side::Client(connection));
        socket.shake_hands().await?;
        Ok(socket)
    }

    /// Accepts a client. A failure comes with the TCP connection, over which the alert is on its way.
    pub(crate) async fn accept(config: Arc<ServerConfig>, tcp: TcpStream) -> Result<Self, (io::Error, TcpStream)> {
        let connection = match UnbufferedServerConnection::new(config) {
            Ok(connection) => connection,
            Err(error) => return Err((invalid(error), tcp)),
        };
        let mut socket = Self::new(tcp, Side::Server(connection));
        match socket.shake_hands().await {
            Ok(()) => Ok(socket),
            Err(error) => Err((error, socket.tcp)),
        }
    }

    fn new(tcp: TcpStream, side: Side) -> Self {
        Self {
            tcp,
            side,
            partial: BytesMut::new(),
            opened: BytesMut::new(),
            sealed: BytesMut::new(),
            peer_has_closed: false,
            has_closed: false,
            has_failed: false,
        }
    }

    fn common(&self) -> &CommonState {
        with_records!(&self.side, records => records)
    }

    pub(crate) fn is_server(&self) -> bool {
        matches!(self.side, Side::Server(_))
    }

    /// The certificates of the peer, leaf first.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.common().peer_certificates()
    }

    /// The protocol that both ends agreed on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.common().alpn_protocol()
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.common().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The next opened bytes, which stay; none at the end of the connection.
    pub(crate) async fn peek(&mut self) -> io::Result<&[u8]> {
        if self.opened.is_empty() {
            poll_fn(|cx| {
                // On the stack: in the future it would be part of every session.
                let mut first = [0; 1024];
                let mut buffer = ReadBuf::new(&mut first);
                ready!(Pin::new(&mut *self).poll_read(cx, &mut buffer))?;
                // In front of the bytes that had no room.
                let behind = std::mem::replace(&mut self.opened, BytesMut::from(buffer.filled()));
                self.opened.extend_from_slice(&behind);
                Poll::Ready(io::Result::Ok(()))
            })
            .await?;
        }
        Ok(&self.opened)
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            let mut incoming = std::mem::take(&mut self.partial);
            let (sealed, opened) = (&mut self.sealed, &mut self.opened);
            let taken = with_records!(&mut self.side, records => {
                take_in(records, &mut incoming, sealed, |plain| opened.extend_from_slice(plain))
            });
            match taken {
                Ok(taken) => {
                    incoming.advance(taken.bytes);
                    self.peer_has_closed |= taken.peer_has_closed;
                    poll_fn(|cx| self.poll_send(cx)).await?;
                }
                Err(error) => {
                    // The alert leaves now or never, and the error is not that of the socket.
                    poll_fn(|cx| Poll::Ready(self.poll_send(cx).is_ready())).await;
                    return Err(invalid(error));
                }
            }
            if !self.common().is_handshaking() {
                if !incoming.is_empty() {
                    self.partial = incoming;
                }
                return Ok(());
            }
            if incoming.len() > HANDSHAKE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.partial = incoming;
            if self.tcp.read_buf(&mut self.partial).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends the sealed bytes that wait.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.sealed))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sealed.advance(sent),
            }
        }
        // Gives the memory back.
        self.sealed = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Reads once from the socket, and opens what came. Pending when no byte is there.
    fn poll_take_in(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let before = self.partial.len();
            // rustls takes in every record that is whole, but for those of a message of TLS that is not whole. No honest peer sends such a
            // message over several records.
            if before >= RECORD_BYTES_MAX {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            scratch[..before].copy_from_slice(&self.partial);
            let mut read = ReadBuf::new(&mut scratch[before..]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let length = read.filled().len();
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let incoming = &mut scratch[..before + length];
            let (sealed, opened) = (&mut self.sealed, &mut self.opened);
            let taken = with_records!(&mut self.side, records => {
                take_in(records, incoming, sealed, |plain| {
                    let fits = plain.len().min(buffer.remaining());
                    buffer.put_slice(&plain[..fits]);
                    opened.extend_from_slice(&plain[fits..]);
                })
            });
            // Answers of TLS itself: new keys, or an alert. Those that do not leave now leave with the next write, whose task the socket
            // wakes, and not this one.
            while let Ok(sent @ 1..) = self.tcp.try_write(&self.sealed) {
                self.sealed.advance(sent);
            }
            self.has_failed = taken.is_err();
            let taken = taken.map_err(invalid)?;
            self.peer_has_closed |= taken.peer_has_closed;
            self.partial = match &scratch[taken.bytes..before + length] {
                [] => BytesMut::new(),
                rest => BytesMut::from(rest),
            };
            Poll::Ready(Ok(()))
        })
    }
}

impl fmt::Debug for TlsSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSocket")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if !self.opened.is_empty() {
            let fits = self.opened.len().min(buffer.remaining());
            buffer.put_slice(&self.opened[..fits]);
            self.opened.advance(fits);
            if self.opened.is_empty() {
                // Gives the memory back.
                self.opened = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        while buffer.filled().len() == before && !self.peer_has_closed {
            if self.has_failed {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            ready!(self.poll_take_in(cx, buffer))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.has_closed || self.has_failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // Sealed bytes leave in the order in which they were sealed, and wait for the socket in bounded number.
        ready!(self.poll_send(cx))?;
        let plain = &bytes[..bytes.len().min(SEALED_AT_ONCE)];
        if plain.is_empty() {
            return Poll::Ready(Ok(0));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let this = &mut *self;
            let (partial, sealed) = (&mut this.partial, &mut this.sealed);
            let length = with_records!(&mut this.side, records => {
                write(records, partial, sealed, |mut traffic| traffic.encrypt(plain, &mut scratch[..]))
            })?;
            let mut record = &scratch[..length];
            if this.sealed.is_empty() {
                while !record.is_empty() {
                    match Pin::new(&mut this.tcp).poll_write(cx, record) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Poll::Ready(Ok(sent)) => record = &record[sent..],
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => break,
                    }
                }
            }
            this.sealed.extend_from_slice(record);
            Poll::Ready(Ok(plain.len()))
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        GATHERED.with_borrow_mut(|gathered| {
            gathered.clear();
            for piece in pieces {
                let room = SEALED_AT_ONCE - gathered.len();
                gathered.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            self.poll_write(cx, gathered)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_closed && !self.has_failed {
            self.has_closed = true;
            let this = &mut *self;
            // An alert takes some thirty bytes.
            let mut record = [0; 64];
            let (partial, sealed) = (&mut this.partial, &mut this.sealed);
            let length = with_records!(&mut this.side, records => {
                write(records, partial, sealed, |mut traffic| traffic.queue_close_notify(&mut record))
            });
            this.sealed.extend_from_slice(&record[..length?]);
        }
        ready!(self.poll_send(cx))?;
        match ready!(Pin::new(&mut self.tcp).poll_shutdown(cx)) {
            // The peer left first.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}
