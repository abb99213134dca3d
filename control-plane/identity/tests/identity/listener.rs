//! Peers meet at a real listener: the peers that it lets in, those that it refuses, and the reason that each is told.

use std::{sync::Arc, time::Duration};

use identity::{
    Event, Identity, Mode, Peer, Reload,
    ca::Credential,
    join::{self, RootHash},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use topology::Moment;

use crate::support::{Ca, GREETING, HOUR, Listener, Place, ZONE, line, now, soon};

#[tokio::test]
async fn both_ends_know_who_the_other_is() {
    let ca = Ca::new();
    let server = Place::new(&ca.leaf("control-plane/cp-1"), &[&ca.root]);
    let edge = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]);
    let listener = Listener::new(server.identity(), Mode::Required).await;
    let mut tls = soon(edge.identity().connect(listener.dial().await)).await.unwrap();
    assert_eq!(line(&mut tls).await, "settings spiffe://voice.example/edge/edge-dub\n");
    tls.write_all(b"hello\n").await.unwrap();
    assert_eq!(line(&mut tls).await, "hello\n");
    assert_eq!(listener.events(), [Event::Proven]);
}

#[tokio::test]
async fn a_peer_that_proves_nothing_is_refused_and_told_why() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Place::new(&ca.leaf("control-plane/cp-1"), &[&ca.root]);
    let listener = Listener::new(server.identity(), Mode::Required).await;
    let long_ago = Moment(now().0 - 10 * HOUR.as_millis() as u64);
    let tomorrow = now() + 24 * HOUR;
    let two_uris = {
        use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = ["edge-dub", "edge-iad"]
            .map(|name| SanType::URI(format!("spiffe://{ZONE}/edge/{name}").try_into().unwrap()))
            .to_vec();
        let root = Issuer::from_ca_cert_pem(&ca.root.certificate, KeyPair::from_pem(&ca.root.key).unwrap()).unwrap();
        Credential {
            certificate: params.signed_by(&key, &root).unwrap().pem(),
            key: key.serialize_pem(),
        }
    };
    for (what, credential, reason) in [
        ("wrong CA", other.leaf("edge/edge-dub"), "unknown-issuer"),
        ("expired", ca.leaf_of(ZONE, "edge/edge-dub", long_ago, HOUR), "expired"),
        (
            "not yet valid",
            ca.leaf_of(ZONE, "edge/edge-dub", tomorrow, HOUR),
            "not-yet-valid",
        ),
        (
            "another zone",
            ca.leaf_of("elsewhere.example", "edge/edge-dub", now(), HOUR),
            "other-zone",
        ),
        ("two URIs", two_uris, "bad-id"),
    ] {
        let before = listener.events().len();
        // The edge itself trusts both, and would show what it has.
        let dialled = dial_with(&credential, &[&ca.root, &other.root], &listener).await;
        assert!(dialled.is_err(), "{what}");
        let refused = soon(async {
            loop {
                if let Some(event) = listener.events().get(before) {
                    return *event;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert_eq!(refused.await, Event::Refused(reason), "{what}");
    }
    // Plain text, and bytes that are nothing.
    for bytes in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"\x16\x03\x01nonsense"] {
        let mut tcp = listener.dial().await;
        tcp.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon(tcp.read_to_end(&mut rest)).await;
        assert!(!rest.starts_with(GREETING));
    }
    assert!(listener.events().contains(&Event::Refused("plain-text")));
    assert!(listener.events().contains(&Event::Refused("not-tls")));
}

/// Shows a certificate without the checks by which our own processes would not even show it.
async fn dial_with(credential: &Credential, trust: &[&Credential], listener: &Listener) -> Result<(), String> {
    use tokio_rustls::rustls::{ClientConfig, crypto::ring, pki_types::pem::PemObject as _};
    let _ = trust;
    let chain = tokio_rustls::rustls::pki_types::CertificateDer::pem_slice_iter(credential.certificate.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::from_pem_slice(credential.key.as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain, key)
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = listener.dial().await;
    let mut tls = soon(connector.connect("x".try_into().unwrap(), tcp))
        .await
        .map_err(|error| error.to_string())?;
    soon(tls.read_u8()).await.map(|_| ()).map_err(|error| error.to_string())
}

#[derive(Debug)]
struct Anybody;

impl tokio_rustls::rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
        _: &[tokio_rustls::rustls::pki_types::CertificateDer<'_>],
        _: &tokio_rustls::rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: tokio_rustls::rustls::pki_types::UnixTime,
    ) -> Result<tokio_rustls::rustls::client::danger::ServerCertVerified, tokio_rustls::rustls::Error> {
        Ok(tokio_rustls::rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
        _: &tokio_rustls::rustls::DigitallySignedStruct,
    ) -> Result<tokio_rustls::rustls::client::danger::HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        Ok(tokio_rustls::rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
        _: &tokio_rustls::rustls::DigitallySignedStruct,
    ) -> Result<tokio_rustls::rustls::client::danger::HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        Ok(tokio_rustls::rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<tokio_rustls::rustls::SignatureScheme> {
        tokio_rustls::rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn a_node_talks_to_control_planes_of_its_own_zone_only() {
    let (ca, other) = (Ca::new(), Ca::new());
    let edge = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]).identity();
    for (role, from, complaint) in [
        (
            "edge/edge-iad",
            &ca,
            "expected a control plane, found spiffe://voice.example/edge/edge-iad",
        ),
        ("control-plane/cp-1", &other, "UnknownIssuer"),
    ] {
        let server = Place::new(&from.leaf(role), &[&from.root]);
        let listener = Listener::new(server.identity(), Mode::Required).await;
        let error = soon(edge.connect(listener.dial().await)).await.err().unwrap();
        assert!(error.to_string().contains(complaint), "{error}");
    }
    // The control plane does not know the edge's root: the edge learns it while it connects.
    let server = Place::new(&ca.leaf("control-plane/cp-1"), &[&other.root, &ca.root]);
    let trusting = server.identity();
    let listener = Listener::new(trusting.clone(), Mode::Required).await;
    let late = Place::new(&other.leaf("edge/edge-dub"), &[&other.root, &ca.root]).identity();
    assert!(soon(late.connect(listener.dial().await)).await.is_ok());
    server.trusts(&[&ca.root]);
    assert_eq!(trusting.reload(), Reload::Taken);
    let error = soon(late.connect(listener.dial().await)).await.err().unwrap();
    let refused =
        "the other end refuses the certificate of spiffe://voice.example/edge/edge-dub: UnknownCA; its log says why";
    assert!(error.to_string().starts_with(refused), "{error}");
}

#[tokio::test]
async fn a_permissive_listener_lets_in_peers_without_a_certificate() {
    let ca = Ca::new();
    let server = Place::new(&ca.leaf("control-plane/cp-1"), &[&ca.root]);
    let listener = Listener::new(server.identity(), Mode::Permissive).await;
    let mut plain = listener.dial().await;
    plain.write_all(b"PRI\n").await.unwrap();
    assert_eq!(line(&mut plain).await, "settings nobody\n");
    let edge = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]).identity();
    let mut tls = soon(edge.connect(listener.dial().await)).await.unwrap();
    assert_eq!(line(&mut tls).await, "settings spiffe://voice.example/edge/edge-dub\n");
    assert_eq!(listener.events(), [Event::Plain, Event::Proven]);
}

#[tokio::test]
async fn small_answers_do_not_wait_for_others() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let mut incoming = identity::listen(tcp, None, CancellationToken::new(), |_| {});
    let _client = TcpStream::connect(address).await.unwrap();
    let connection = soon(incoming.next()).await.unwrap().unwrap();
    assert!(connection.nodelay().unwrap(), "without Nagle's algorithm");
}

/// A new leaf and a new root come in while connections are open; only connections that are no longer trusted end.
#[tokio::test]
async fn roots_are_exchanged_under_open_connections() {
    let (old, new) = (Ca::new(), Ca::new());
    let server = Place::new(&old.leaf("control-plane/cp-1"), &[&old.root]);
    let identity = server.identity();
    let listener = Listener::new(identity.clone(), Mode::Required).await;
    let edge = Place::new(&old.leaf("edge/edge-dub"), &[&old.root, &new.root]);
    let edges = edge.identity();
    let mut first = soon(edges.connect(listener.dial().await)).await.unwrap();
    line(&mut first).await;

    // Add the new root, then issue leaves under it.
    server.trusts(&[&old.root, &new.root]);
    assert_eq!(identity.reload(), Reload::Taken);
    edge.files.write(&new.leaf("edge/edge-dub")).unwrap();
    assert_eq!(edges.reload(), Reload::Taken);
    server.files.write(&new.leaf("control-plane/cp-1")).unwrap();
    assert_eq!(identity.reload(), Reload::Taken);
    let mut second = soon(edges.connect(listener.dial().await)).await.unwrap();
    line(&mut second).await;
    first.write_all(b"still here\n").await.unwrap();
    assert_eq!(line(&mut first).await, "still here\n", "nothing ended so far");

    // Remove the old root: the connection that rests on it ends, the other one stays.
    server.trusts(&[&new.root]);
    assert_eq!(identity.reload(), Reload::Taken);
    let mut rest = Vec::new();
    let _ = soon(first.read_to_end(&mut rest)).await;
    second.write_all(b"and so am I\n").await.unwrap();
    assert_eq!(line(&mut second).await, "and so am I\n");
}

/// An operator who takes a root away means it, also where this process's own certificate rests on it.
#[tokio::test]
async fn a_root_that_is_taken_away_is_gone_whatever_rests_on_it() {
    let (stolen, next) = (Ca::new(), Ca::new());
    let server = Place::new(&stolen.leaf("control-plane/cp-1"), &[&stolen.root, &next.root]);
    let identity = server.identity();
    let listener = Listener::new(identity.clone(), Mode::Required).await;
    let edge = Place::new(&stolen.leaf("edge/edge-dub"), &[&stolen.root, &next.root]);
    let edges = edge.identity();
    let mut open = soon(edges.connect(listener.dial().await)).await.unwrap();
    line(&mut open).await;
    server.trusts(&[&next.root]);
    assert_eq!(identity.reload(), Reload::Taken);
    let mut rest = Vec::new();
    let _ = soon(open.read_to_end(&mut rest)).await;
    assert!(soon(edges.connect(listener.dial().await)).await.is_err());
    // It goes on, and starts again: its plan is good, and others decide about its certificate.
    assert!(Identity::load(server.files.clone(), now).is_ok());
    // The same for the end that dialled.
    let other = Place::new(&stolen.leaf("control-plane/cp-2"), &[&stolen.root]);
    let second = Listener::new(other.identity(), Mode::Required).await;
    let mut open = soon(edges.connect(second.dial().await)).await.unwrap();
    line(&mut open).await;
    edge.trusts(&[&next.root]);
    assert_eq!(edges.reload(), Reload::Taken);
    let _ = soon(open.read_to_end(&mut rest)).await;
}

/// An address that opens many connections and says nothing keeps no other address out.
#[tokio::test]
async fn silent_connections_of_one_address_keep_no_other_out() {
    let ca = Ca::new();
    let server = Place::new(&ca.leaf("control-plane/cp-1"), &[&ca.root]);
    let listener = Listener::new(server.identity(), Mode::Required).await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(listener.dial().await);
    }
    let edge = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]).identity();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let tcp = soon(socket.connect(listener.address)).await.unwrap();
    let began = std::time::Instant::now();
    let mut tls = soon(edge.connect(tcp)).await.unwrap();
    assert!(line(&mut tls).await.contains("edge-dub"));
    assert!(began.elapsed() < Duration::from_millis(4_500), "{:?}", began.elapsed());
    assert!(listener.events().contains(&Event::Refused("too-many")));
}

/// Anybody may begin such a handshake, so it reads no file.
#[tokio::test]
async fn a_newcomer_sees_the_certificate_in_use_whatever_lies_in_the_files() {
    let ca = Ca::new();
    let server = Place::new(&ca.leaf("control-plane/cp-1"), &[&ca.root]);
    let identity = server.identity();
    let root = RootHash::of_only(&ca.root.certificate).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (_others, _newcomers) =
        identity::listen_with_joining(tcp, (identity.clone(), Mode::Required), stop.clone(), |_| {});
    let shown = async || {
        let tcp = TcpStream::connect(address).await.unwrap();
        let tls = soon(join::connect(tcp, root)).await.unwrap();
        let chain = tls.get_ref().1.peer_certificates().unwrap();
        Peer::of(&chain[0]).unwrap().serial
    };
    let first = identity.own().serial;
    assert_eq!(shown().await, first);
    for file in [&server.files.certificate, &server.files.key, &server.files.trust] {
        std::fs::rename(file, file.with_extension("away")).unwrap();
        assert_eq!(shown().await, first, "{}", file.display());
        std::fs::rename(file.with_extension("away"), file).unwrap();
    }
    server.files.write(&ca.leaf("control-plane/cp-1")).unwrap();
    assert_eq!(identity.reload(), Reload::Taken);
    let second = identity.own().serial;
    assert!(second != first);
    assert_eq!(shown().await, second);
    stop.cancel();
}
