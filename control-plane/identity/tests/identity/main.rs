//! Peers meet at a real listener: who is let in, who is not, and what each is told.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use identity::{
    Connection, Door, Doubt, Event, Grant, Identity, Mode, OperatorRole, PeerId, Rejected, Reload, Speaks,
    ca::{self, Authority, Credential, Leaf},
    files::{self, Files},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use topology::Moment;

const ZONE: &str = "voice.example";
const HOUR: Duration = Duration::from_secs(3_600);

fn now() -> Moment {
    let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    Moment(u64::try_from(since_epoch).unwrap())
}

/// A root with its issuer.
struct Ca {
    root: Credential,
    issuer: Authority,
}

impl Ca {
    fn new() -> Self {
        let root = ca::root(ZONE, now()).unwrap();
        let issuer = Authority::load(&root).unwrap().issuer(ZONE, now()).unwrap();
        Self {
            root,
            issuer: Authority::load(&issuer).unwrap(),
        }
    }

    fn leaf(&self, role: &str) -> Credential {
        self.leaf_of(ZONE, role, now(), HOUR)
    }

    fn leaf_of(&self, zone: &str, role: &str, from: Moment, life: Duration) -> Credential {
        let id = PeerId::new(zone, role.parse().unwrap()).unwrap();
        let leaf = Leaf { life, ..Leaf::of(id) };
        self.issuer.issue(&leaf, from).unwrap()
    }
}

/// A folder with an identity.
struct Place {
    folder: tempfile::TempDir,
    files: Files,
}

impl Place {
    fn new(credential: &Credential, trust: &[&Credential]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::in_folder(folder.path());
        let place = Self { folder, files };
        place.files.write(credential).unwrap();
        place.trusts(trust);
        place
    }

    fn trusts(&self, roots: &[&Credential]) {
        let trust: String = roots.iter().map(|root| root.certificate.as_str()).collect();
        files::write(&self.files.trust, &trust, 0o644).unwrap();
    }

    fn identity(&self) -> Arc<Identity> {
        Identity::load(self.files.clone(), now).unwrap()
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A listener that greets whoever it lets in, and keeps the events.
struct Listener {
    address: SocketAddr,
    events: Arc<Mutex<Vec<Event>>>,
    _stop: tokio_util::sync::DropGuard,
}

const GREETING: &[u8] = b"settings";

impl Listener {
    async fn new(identity: Arc<Identity>, mode: Mode) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let stop = CancellationToken::new();
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let noted = events.clone();
        let mut incoming = identity::listen(tcp, Some((identity, mode)), stop.clone(), move |event| {
            noted.lock().push(event);
        });
        tokio::spawn(async move {
            while let Some(Ok(connection)) = incoming.next().await {
                tokio::spawn(greet(connection));
            }
        });
        Self {
            address,
            events,
            _stop: stop.drop_guard(),
        }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }
}

/// Says who called, then echoes.
async fn greet(mut connection: Connection) {
    use tonic::transport::server::Connected as _;
    let caller = connection.connect_info();
    let who = caller
        .peer
        .map_or_else(|| "nobody".to_owned(), |peer| peer.id.to_string());
    connection.write_all(GREETING).await.unwrap();
    connection.write_all(format!(" {who}\n").as_bytes()).await.unwrap();
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = connection.read(&mut buffer).await {
        connection.write_all(&buffer[..count]).await.unwrap();
    }
}

async fn soon<F: Future>(what: F) -> F::Output {
    timeout(Duration::from_secs(10), what)
        .await
        .expect("this takes milliseconds")
}

async fn line(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let byte = soon(io.read_u8()).await.unwrap();
        line.push(byte);
    }
    String::from_utf8(line).unwrap()
}

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
async fn who_proves_nothing_is_not_let_in_and_is_told_why() {
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
    assert_eq!(
        error.to_string(),
        "the other end refuses the certificate of spiffe://voice.example/edge/edge-dub: UnknownCA"
    );
}

#[tokio::test]
async fn permissive_lets_in_those_who_have_no_certificate_yet() {
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

/// A new leaf and a new root come in while connections are open; only what is no longer trusted ends.
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

#[tokio::test]
async fn a_bad_file_never_replaces_a_good_one() {
    let (ca, other) = (Ca::new(), Ca::new());
    let good = ca.leaf("control-plane/cp-1");
    let server = Place::new(&good, &[&ca.root]);
    let identity = server.identity();
    assert_eq!(identity.reload(), Reload::Unchanged);
    let serial = identity.own().serial;
    let foreign = other.leaf("control-plane/cp-1");
    let others = ca.leaf("control-plane/cp-2");
    let tomorrows = ca.leaf_of(ZONE, "control-plane/cp-1", now() + 24 * HOUR, HOUR);
    let long_ago = Moment(now().0 - 10 * HOUR.as_millis() as u64);
    for (what, certificate, key) in [
        ("no PEM", "nonsense", &*good.key),
        ("the key of another", &good.certificate, &foreign.key),
        ("another CA's", &foreign.certificate, &foreign.key),
        ("another process's", &others.certificate, &others.key),
        ("not yet valid", &tomorrows.certificate, &tomorrows.key),
        (
            "expired",
            &ca.leaf_of(ZONE, "control-plane/cp-1", long_ago, HOUR).certificate,
            &good.key,
        ),
        ("empty", "", ""),
    ] {
        let bad = Credential {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        server.files.write(&bad).unwrap();
        assert_eq!(identity.reload(), Reload::Refused, "{what}");
        assert_eq!(identity.reload(), Reload::Unchanged, "{what}: judged and logged once");
        assert_eq!(identity.own().serial, serial, "{what}");
    }
    std::fs::remove_file(server.path().join("identity.crt")).unwrap();
    assert_eq!(identity.reload(), Reload::Refused);
    let renewed = ca.leaf("control-plane/cp-1");
    server.files.write(&renewed).unwrap();
    assert_eq!(identity.reload(), Reload::Taken);
    assert_ne!(identity.own().serial, serial);
}

#[test]
fn a_request_is_signed_for_the_id_that_the_authority_says() {
    let ca = Ca::new();
    let (key, request) = ca::request().unwrap();
    let id = PeerId::new(ZONE, "edge/edge-dub".parse().unwrap()).unwrap();
    let certificate = ca.issuer.answer(&request, &Leaf::of(id.clone()), now()).unwrap();
    let place = Place::new(&Credential { certificate, key }, &[&ca.root]);
    let own = place.identity().own();
    assert_eq!(own.id, id);
    assert!(!own.is_due(now()) && own.is_due(now() + ca::NODE_LIFE / 3));
    for bad in ["", "nonsense", &ca.root.certificate] {
        assert!(ca.issuer.answer(bad, &Leaf::of(id.clone()), now()).is_err());
    }
    let forever = Leaf {
        life: 2 * ca::ISSUER_LIFE,
        ..Leaf::of(id)
    };
    let error = ca.issuer.issue(&forever, now()).unwrap_err();
    assert!(error.to_string().contains("out of range"), "{error}");
}

#[test]
fn an_operator_s_roles_stand_in_the_certificate() {
    let ca = Ca::new();
    let id = PeerId::new(ZONE, "operator/alice".parse().unwrap()).unwrap();
    let leaf = Leaf {
        grants: Grant::list("operator@us-*,approver").unwrap(),
        ..Leaf::of(id)
    };
    let credential = ca.issuer.issue(&leaf, now()).unwrap();
    let peer = ca::peer_of(&credential.certificate).unwrap();
    assert_eq!(peer.roles(), "operator@us-*,approver");
    assert_eq!(peer.grants[1], Grant::everywhere(OperatorRole::Approver));
    assert!(peer.until.since(now()) <= ca::OPERATOR_LIFE);
}

/// Whoever takes a root away means it, also where this process's own certificate rests on it.
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

/// The machine went down between the two files.
#[test]
fn a_writing_that_was_interrupted_is_finished_at_the_next_start() {
    let ca = Ca::new();
    let place = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]);
    let new = ca.leaf("edge/edge-dub");
    files::write(&place.files.key, &new.key, 0o600).unwrap();
    assert!(matches!(
        Identity::load(place.files.clone(), now),
        Err(Rejected::Key { .. })
    ));
    std::fs::write(place.path().join("identity.crt.new"), &new.certificate).unwrap();
    let identity = place.identity();
    assert_eq!(identity.own().serial, ca::peer_of(&new.certificate).unwrap().serial);
    assert_eq!(files::read(&place.files.certificate).unwrap(), new.certificate);
    assert_eq!(identity.reload(), Reload::Unchanged);
}

/// Whoever opens many connections and says nothing keeps nobody else out.
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

#[test]
fn a_process_shows_its_own_certificate_or_does_not_start() {
    let ca = Ca::new();
    let identity = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]).identity();
    assert!(identity.must_be(&"edge/edge-dub".parse().unwrap()).is_ok());
    for other in ["edge/edge-iad", "dns/edge-dub"] {
        let error = identity.must_be(&other.parse().unwrap()).unwrap_err().to_string();
        assert!(
            error.starts_with("the certificate is spiffe://voice.example/edge/edge-dub's, and this process is"),
            "{error}"
        );
    }
}

/// A stack that says who called, and sends back what it hears.
async fn stack(identity: Arc<Identity>) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let door = Arc::new(Door::new(Some((identity, Mode::Required)), |_| {}));
    tokio::spawn(async move {
        while let Ok((tcp, source)) = tcp.accept().await {
            let door = door.clone();
            tokio::spawn(async move {
                let mut link = door.admit_to_stack(tcp, source).await?;
                let greeting = format!("{}\n", link.peer()?.id);
                link.write_all(greeting.as_bytes()).await.ok()?;
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = link.read(&mut buffer).await {
                    link.write_all(&buffer[..count]).await.ok()?;
                }
                Some(())
            });
        }
    });
    address
}

async fn dial(edge: &Arc<Identity>, region: &str, stack: SocketAddr) -> std::io::Result<identity::Link> {
    let region = topology::RegionId::new(region).unwrap();
    soon(identity::dial(Some(edge), &region, stack, Speaks::Http1)).await
}

/// After the loss of a region its sessions come to others at once.
#[tokio::test]
async fn an_edge_resumes_its_tls_sessions_with_a_stack_while_nothing_changes() {
    let (ca, next) = (Ca::new(), Ca::new());
    let own = Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]);
    let edge = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]);
    let (stacks, edges) = (own.identity(), edge.identity());
    let address = stack(stacks.clone()).await;
    let connect = async || {
        let mut link = dial(&edges, "us-east", address).await.unwrap();
        // Tickets come with it.
        assert_eq!(line(&mut link).await, "spiffe://voice.example/edge/edge-dub\n");
        assert_eq!(
            link.peer().unwrap().id.to_string(),
            "spiffe://voice.example/stack/us-east/a"
        );
        link.is_resumed()
    };
    assert_eq!([connect().await, connect().await, connect().await], [false, true, true]);
    // The same address is not believed for another region, whatever was resumed before.
    let error = dial(&edges, "us-west", address).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "spiffe://voice.example/stack/us-east/a may not serve as a stack of us-west: its address in topology.toml leads to another \
         process; check the address, and the certificate of the stack"
    );
    assert!(matches!(Doubt::within(&error), Some(Doubt::Other(_))));
    // With another trust, at either end, everybody proves it again.
    own.trusts(&[&ca.root, &next.root]);
    assert_eq!(stacks.reload(), Reload::Taken);
    assert_eq!([connect().await, connect().await], [false, true]);
    edge.trusts(&[&ca.root, &next.root]);
    assert_eq!(edges.reload(), Reload::Taken);
    assert_eq!([connect().await, connect().await], [false, true]);
}

/// In TLS 1.3 the caller is done before the stack has looked at its certificate.
#[tokio::test]
async fn an_edge_hears_that_a_stack_refuses_its_certificate_in_place_of_an_answer() {
    let (ca, other) = (Ca::new(), Ca::new());
    let address = stack(Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]).identity()).await;
    let edges = Place::new(&other.leaf("edge/edge-dub"), &[&ca.root]).identity();
    let mut link = dial(&edges, "us-east", address).await.unwrap();
    link.write_all(&[0; 4096]).await.unwrap();
    link.flush().await.unwrap();
    let error = soon(link.read_u8()).await.unwrap_err();
    let refused = Doubt::Refused("UnknownCA".to_owned());
    assert_eq!(
        (Doubt::within(&error), link.doubt()),
        (Some(&refused), Some(&refused)),
        "{error}"
    );
}

#[tokio::test]
async fn a_link_ends_when_the_root_of_its_peer_is_taken_away_and_not_before() {
    let (ca, next) = (Ca::new(), Ca::new());
    let own = Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]);
    let edge = Place::new(&next.leaf("edge/edge-dub"), &[&ca.root, &next.root]);
    own.trusts(&[&ca.root, &next.root]);
    let edges = edge.identity();
    let address = stack(own.identity()).await;
    let mut link = dial(&edges, "us-east", address).await.unwrap();
    line(&mut link).await;
    let region = topology::RegionId::new("us-east").unwrap();
    assert!(link.is_ready_for(&region));
    assert!(!link.is_ready_for(&topology::RegionId::new("us-west").unwrap()));
    edge.files.write(&next.leaf("edge/edge-dub")).unwrap();
    assert_eq!(edges.reload(), Reload::Taken);
    link.write_all(b"renewed\n").await.unwrap();
    assert_eq!(line(&mut link).await, "renewed\n");
    edge.trusts(&[&next.root]);
    assert_eq!(edges.reload(), Reload::Taken);
    assert!(!link.is_ready_for(&region));
    let error = link.write_all(b"gone\n").await.unwrap_err();
    assert_eq!(Doubt::within(&error), Some(&Doubt::Withdrawn));
}
