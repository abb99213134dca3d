//! The bytes of TLS between an edge and a stack: whole and in order, whatever the network and the other end do.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use identity::{Acceptor, Identity, Link, Mode, Speaks};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, split},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        version::TLS13,
    },
};

use crate::support::{Ca, Place, soon};

/// An edge and a listener of a stack.
struct Pair {
    edge: Arc<Identity>,
    acceptor: Acceptor,
    listener: TcpListener,
    // Keeps the folders.
    places: (Place, Place),
}

impl Pair {
    async fn new() -> Self {
        let ca = Ca::new();
        let stack = Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]);
        let edge = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]);
        Self {
            edge: edge.identity(),
            acceptor: Acceptor::new(Some((stack.identity(), Mode::Required)), |_| {}),
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            places: (edge, stack),
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    async fn accept(&self) -> Link {
        let (tcp, source) = soon(self.listener.accept()).await.unwrap();
        self.acceptor.admit_to_stack(tcp, source).await.unwrap()
    }

    async fn dial(&self, address: SocketAddr) -> Link {
        let region = topology::RegionId::new("us-east").unwrap();
        let link = identity::dial(Some(&self.edge), &region, address, Speaks::Http1).await;
        link.unwrap()
    }

    /// The two ends of a connection.
    async fn connect(&self) -> (Link, Link) {
        tokio::join!(self.dial(self.address()), self.accept())
    }
}

/// One byte that a network changes: the direction, 0 towards the stack, and the place of the byte in it.
type Change = (usize, usize);

/// A network that passes bytes on in pieces of any size, down to one byte. Returns its address.
async fn cutting_network(to: SocketAddr, seed: u64, change: Option<Change>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (from, _) = listener.accept().await?;
        let to = TcpStream::connect(to).await?;
        to.set_nodelay(true)?;
        from.set_nodelay(true)?;
        let ((from_in, from_out), (to_in, to_out)) = (from.into_split(), to.into_split());
        for (number, (mut input, mut output)) in [(from_in, to_out), (to_in, from_out)].into_iter().enumerate() {
            let mut random = StdRng::seed_from_u64(seed + number as u64);
            let change = change.filter(|(direction, _)| *direction == number).map(|(_, at)| at);
            tokio::spawn(async move {
                let mut buffer = [0; 9_000];
                let mut passed = 0;
                loop {
                    let most = match random.random_range(0..3) {
                        0 => random.random_range(1..30),
                        _ => random.random_range(1..=9_000),
                    };
                    let Ok(count @ 1..) = input.read(&mut buffer[..most]).await else {
                        return;
                    };
                    if let Some(at) = change.filter(|at| (passed..passed + count).contains(at)) {
                        buffer[at - passed] ^= 1 << random.random_range(0..8);
                    }
                    passed += count;
                    if output.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
        io::Result::Ok(())
    });
    address
}

/// Sends back everything, in reads of any size, until the other end closes; then closes.
fn echo(mut link: Link, seed: u64) -> JoinHandle<io::Result<()>> {
    tokio::spawn(async move {
        let mut random = StdRng::seed_from_u64(seed);
        let mut buffer = vec![0; 40_000];
        loop {
            let most = random.random_range(1..=buffer.len());
            match link.read(&mut buffer[..most]).await? {
                0 => return link.shutdown().await,
                count => link.write_all(&buffer[..count]).await?,
            }
        }
    })
}

fn noise(length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    StdRng::seed_from_u64(7).fill(&mut noise[..]);
    noise
}

#[tokio::test]
async fn bytes_arrive_whole_and_in_order_however_the_network_cuts_them() {
    let pair = Pair::new().await;
    for seed in 0..8 {
        let network = cutting_network(pair.address(), seed, None).await;
        let (edge, stack) = tokio::join!(pair.dial(network), pair.accept());
        let stack = echo(stack, seed);
        let sent = noise(600_000);
        let (mut hears, mut speaks) = split(edge);
        let all = sent.clone();
        let speaker = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut rest = &all[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(random.random_range(1..=rest.len().min(80_000)));
                speaks.write_all(now).await?;
                rest = later;
            }
            speaks.shutdown().await
        });
        let mut heard = Vec::new();
        soon(hears.read_to_end(&mut heard)).await.unwrap();
        assert!(heard == sent, "seed {seed}: {} of {} bytes", heard.len(), sent.len());
        speaker.await.unwrap().unwrap();
        stack.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_stops_holds_the_writer_back_and_loses_nothing() {
    let pair = Pair::new().await;
    let (mut edge, mut stack) = pair.connect().await;
    let (may_read, read_allowed) = oneshot::channel();
    let reader = tokio::spawn(async move {
        read_allowed.await.unwrap();
        let mut heard = Vec::new();
        stack.read_to_end(&mut heard).await.map(|_| heard)
    });
    let pieces = noise(1 << 20);
    let mut sent = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    // The buffers of both sockets and one write of the edge.
    while let Poll::Ready(written) = Pin::new(&mut edge).poll_write(&mut cx, &pieces) {
        let written = written.unwrap();
        sent.extend_from_slice(&pieces[..written]);
        assert!(sent.len() < 256 << 20, "nobody reads, and the edge takes more and more");
    }
    may_read.send(()).unwrap();
    soon(edge.write_all(&pieces)).await.unwrap();
    sent.extend_from_slice(&pieces);
    soon(edge.shutdown()).await.unwrap();
    let heard = soon(reader).await.unwrap().unwrap();
    assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
}

/// The end of an answer may be the end of its connection, so an edge must know whether the stack meant it.
#[tokio::test]
async fn an_edge_tells_the_end_that_a_stack_announced_from_a_connection_that_was_cut() {
    let pair = Pair::new().await;
    let (mut edge, mut stack) = pair.connect().await;
    stack.write_all(b"all").await.unwrap();
    stack.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon(edge.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"all");

    let (mut edge, mut stack) = pair.connect().await;
    stack.write_all(b"not all").await.unwrap();
    stack.flush().await.unwrap();
    // Without a word.
    drop(stack);
    let error = soon(edge.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

/// In the handshake, in a ticket or in a frame: wherever it is, no wrong byte is heard, and nothing waits for ever.
#[tokio::test]
async fn a_byte_that_was_changed_on_the_way_ends_the_connection() {
    let pair = Pair::new().await;
    let mut random = StdRng::seed_from_u64(3);
    let sent = noise(3_000);
    let mut failed = 0;
    for seed in 0..150 {
        let change = (random.random_range(0..2), random.random_range(0..7_000));
        let network = cutting_network(pair.address(), seed, Some(change)).await;
        let edge = async {
            let region = topology::RegionId::new("us-east").unwrap();
            let mut edge = identity::dial(Some(&pair.edge), &region, network, Speaks::Http1).await?;
            edge.write_all(&sent).await?;
            let mut heard = Vec::new();
            while heard.len() < sent.len() {
                match edge.read_buf(&mut heard).await {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => assert!(
                        sent.starts_with(&heard),
                        "seed {seed}, {change:?}: heard what nobody said"
                    ),
                    Err(error) => {
                        // The connection stays at its end.
                        assert!(edge.read(&mut [0]).await.is_err());
                        assert!(edge.write(&[0]).await.is_err() || error.kind() != io::ErrorKind::InvalidData);
                        return Err(error);
                    }
                }
            }
            Ok(())
        };
        let stack = async {
            let (tcp, source) = pair.listener.accept().await?;
            let Some(link) = pair.acceptor.admit_to_stack(tcp, source).await else {
                return Err(io::ErrorKind::PermissionDenied.into());
            };
            echo(link, seed).await.unwrap()
        };
        let (edge, stack) = soon(Box::pin(async { tokio::join!(edge, stack) })).await;
        failed += usize::from(edge.is_err() || stack.is_err());
    }
    assert!(
        (75..=150).contains(&failed),
        "{failed} of 150 connections met their changed byte"
    );
}

/// The client is the one of tokio-rustls, which shares no code with a link, and which changes its keys in the middle.
#[tokio::test]
async fn a_stack_speaks_with_other_clients_and_follows_them_to_new_keys() {
    let pair = Pair::new().await;
    let (edge, _) = &pair.places;
    let chain = CertificateDer::pem_file_iter(&edge.files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&edge.files.key).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyStack))
        .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let client = async {
        let tcp = TcpStream::connect(pair.address()).await.unwrap();
        let name = ServerName::IpAddress(pair.address().ip().into());
        connector.connect(name, tcp).await.unwrap()
    };
    let (mut client, stack) = tokio::join!(client, pair.accept());
    let stack = echo(stack, 1);
    let mut heard = [0; 5];
    for round in 0..3 {
        if round > 0 {
            // The stack has to answer with new keys of its own (RFC 8446 §4.6.3).
            client.get_mut().1.refresh_traffic_keys().unwrap();
        }
        client.write_all(b"hello").await.unwrap();
        soon(client.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"hello");
    }
    client.shutdown().await.unwrap();
    assert_eq!(soon(client.read(&mut heard)).await.unwrap(), 0);
    soon(stack).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_link_that_was_closed_takes_no_more_bytes() {
    let pair = Pair::new().await;
    let (mut edge, _stack) = pair.connect().await;
    edge.shutdown().await.unwrap();
    let refused = poll_fn(|cx| Pin::new(&mut edge).poll_write(cx, b"more")).await;
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

/// Believes any server: what the stack does is under test, and not the client.
#[derive(Debug)]
struct AnyStack;

impl ServerCertVerifier for AnyStack {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
