//! Stories of devices that connect with TLS.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use crate::support::{self, Stack, World, hang_means_failure, process, read_head};
use edge::accept::tls::Reload;
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer, version},
};
use tokio_tungstenite::{client_async, tungstenite::Message};

/// A certificate of its own issuer for `voice.test`, written where the edge reads it.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> (Self, CertificateDer<'static>) {
        let folder = TempDir::new().unwrap();
        let files = Self { folder };
        let certificate = files.write(2100);
        (files, certificate)
    }

    fn write(&self, expires_year: i32) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["voice.test".to_owned()]).unwrap();
        params.not_after = date_time_ymd(expires_year, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        self.protect_key(0o600);
        certificate.der().clone()
    }

    fn protect_key(&self, mode: u32) {
        std::fs::set_permissions(self.path("key.pem"), PermissionsExt::from_mode(mode)).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> String {
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| self.path(name));
        format!("tls = {{ listen = ['127.0.0.1:0'], certificate = {certificate:?}, key = {key:?} }}\n")
    }
}

async fn world(stack: Stack) -> (World, Files, CertificateDer<'static>) {
    let (files, certificate) = Files::new();
    let world = World::with(&files.config(), &[("eu-west", stack)]).await;
    (world, files, certificate)
}

fn client(trusted: &CertificateDer<'static>, protocols: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

async fn connect(address: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(config));
    hang_means_failure(connector.connect("voice.test".try_into().unwrap(), tcp)).await
}

const MODELS: &[u8] = b"GET /v1/models HTTP/1.1\r\nHost: voice.test\r\nConnection: close\r\n\r\n";

async fn ask(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // Whether the end is told with an alert or by closing is the peer's affair.
    let _ = hang_means_failure(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_and_sessions_share_the_port_in_both_versions() {
    for version in [&version::TLS12, &version::TLS13] {
        let (world, _files, certificate) = world(Stack::Http).await;
        let of_version = |protocols| {
            let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates({
                    let mut roots = RootCertStore::empty();
                    roots.add(certificate.clone()).unwrap();
                    roots
                })
                .with_no_client_auth();
            config.alpn_protocols = protocols;
            config
        };
        let stream = connect(world.secure, of_version(vec![])).await.unwrap();
        let answer = ask(stream, MODELS).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains("x-forwarded-for: 127.0.0.1"), "{answer}");
    }
    let (world, _files, certificate) = world(Stack::Echoes).await;
    let stream = connect(world.secure, client(&certificate, &["http/1.1"]))
        .await
        .unwrap();
    let opened = Box::pin(client_async("ws://voice.test/v1/realtime", stream));
    let (mut session, answer) = hang_means_failure(opened).await.unwrap();
    assert_eq!(answer.headers()["meridian-region"], "eu-west");
    // More than both sockets hold, and read only after all of it was sent: the bytes that TLS holds back meanwhile
    // arrive too.
    let said = vec![7; 100_000];
    for _ in 0..40 {
        session.feed(Message::binary(said.clone())).await.unwrap();
    }
    let (mut mouth, mut ear) = session.split();
    let flush = tokio::spawn(async move { mouth.flush().await.map(|()| mouth) });
    for _ in 0..40 {
        let heard = hang_means_failure(ear.next()).await.unwrap().unwrap();
        assert_eq!(heard.into_data(), said);
    }
    let mut session = ear.reunite(flush.await.unwrap().unwrap()).unwrap();
    session.close(None).await.unwrap();
    while let Some(Ok(_)) = hang_means_failure(session.next()).await {}
}

#[tokio::test]
async fn both_sides_agree_on_the_protocol() {
    let (world, _files, certificate) = world(Stack::Http).await;
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let stream = connect(world.secure, client(&certificate, offered)).await.unwrap();
        let told = stream.get_ref().1.alpn_protocol();
        assert_eq!(told, agreed.map(str::as_bytes), "{offered:?}");
    }
    let error = connect(world.secure, client(&certificate, &["spdy/3"]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");

    let stream = connect(world.secure, client(&certificate, &["h2"])).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for path in ["/v1/models", "/health"] {
        let request = http::Request::get(format!("https://voice.test{path}"))
            .body(())
            .unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let answer = hang_means_failure(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["meridian-region"], "eu-west");
    }
    drop(sender);
    hang_means_failure(connection).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_device_that_comes_back_resumes() {
    let (world, _files, certificate) = world(Stack::Http).await;
    let config = client(&certificate, &[]);
    for _ in 0..3 {
        let stream = connect(world.secure, config.clone()).await.unwrap();
        // Reading to the end takes the ticket in.
        ask(stream, MODELS).await;
    }
    let handshakes = |outcome: &str| {
        let name = format!("meridian_edge_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        world.metric(&name)
    };
    assert_eq!((handshakes("full"), handshakes("resumed")), (Some(1.0), Some(2.0)));
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_so_and_harms_nobody() {
    let (world, _files, certificate) = world(Stack::Http).await;
    let tcp = TcpStream::connect(world.secure).await.unwrap();
    let answer = ask(tcp, MODELS).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"),
        "{answer}"
    );
    let mut noise = 1_u64;
    for length in [1, 5, 100, 20_000] {
        for first in [22, 0, 128, 255] {
            let mut garbage = vec![first];
            garbage.extend((0..length).map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (noise >> 33) as u8
            }));
            let mut tcp = TcpStream::connect(world.secure).await.unwrap();
            // The edge may hang up before it has taken all of it.
            let _ = tcp.write_all(&garbage).await;
            let _ = tcp.shutdown().await;
            let _ = hang_means_failure(tcp.read_to_end(&mut Vec::new())).await;
        }
    }
    let stream = connect(world.secure, client(&certificate, &[])).await.unwrap();
    assert!(ask(stream, MODELS).await.starts_with("HTTP/1.1 200 "));
}

/// Every other vantage tries in every tick whether this edge is reached, and cares for no certificate.
#[tokio::test]
async fn a_vantage_that_probes_is_answered_and_not_counted_among_devices_at_the_wrong_port() {
    let (world, _files, _) = world(Stack::Http).await;
    let wrong = || world.metric("meridian_edge_tls_handshakes_total{outcome=\"not-tls\"}");
    for (asks, counted) in [(probe::EDGE_PROBE_REQUEST, None), (MODELS, Some(1.0))] {
        let tcp = TcpStream::connect(world.secure).await.unwrap();
        let answer = ask(tcp, asks).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        // It is counted after the answer.
        let counts = async {
            while wrong() != counted {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        hang_means_failure(counts).await;
    }
    let probes = world.metric("meridian_edge_http_requests_total{route=\"probe\",status=\"4xx\"}");
    assert_eq!(probes, Some(1.0));
}

#[tokio::test]
async fn who_does_not_finish_a_handshake_is_cut_and_takes_no_place_for_good() {
    let (files, certificate) = Files::new();
    let config = files
        .config()
        .replace(" }\n", ", handshakes_max = 1 }\ntimeouts.handshake = '2s'\n");
    let world = World::with(&config, &[("eu-west", Stack::Http)]).await;
    let mut slow = TcpStream::connect(world.secure).await.unwrap();
    // The head of a record, and no more: it has the only place.
    slow.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut silent = TcpStream::connect(world.secure).await.unwrap();
    for tcp in [&mut slow, &mut silent] {
        let mut told = Vec::new();
        let _ = hang_means_failure(tcp.read_to_end(&mut told)).await;
        assert_eq!(told, b"");
    }
    let stream = connect(world.secure, client(&certificate, &[])).await.unwrap();
    assert!(ask(stream, MODELS).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_new_certificate_is_taken_and_a_bad_one_is_not() {
    let (world, files, old) = world(Stack::Echoes).await;
    let tls = world.tls.clone().unwrap();
    let expires = || world.metric("meridian_edge_certificate_expires_timestamp_seconds");
    assert_eq!(expires(), Some(4_102_444_800.0));
    let stream = connect(world.secure, client(&old, &["http/1.1"])).await.unwrap();
    let (mut session, _) = Box::pin(client_async("ws://voice.test/v1/realtime", stream))
        .await
        .unwrap();

    let now = daemon::clock::now();
    assert_eq!(tls.reload(now), Reload::Unchanged);
    let new = files.write(2090);
    assert_eq!(tls.reload(now), Reload::Taken);
    assert_eq!(tls.reload(now), Reload::Unchanged);
    assert_eq!(expires(), Some(3_786_912_000.0));
    connect(world.secure, client(&new, &[])).await.unwrap();
    connect(world.secure, client(&old, &[])).await.unwrap_err();
    // Connected devices stay.
    session.send(Message::text("still here")).await.unwrap();
    assert_eq!(
        hang_means_failure(session.next()).await.unwrap().unwrap(),
        Message::text("still here")
    );

    let good_key = std::fs::read(files.path("key.pem")).unwrap();
    let bad: [&dyn Fn(); 6] = [
        &|| std::fs::write(files.path("cert.pem"), "no certificate").unwrap(),
        &|| std::fs::remove_file(files.path("cert.pem")).unwrap(),
        &|| drop(files.write(2020)),
        &|| std::fs::write(files.path("key.pem"), &good_key).unwrap(),
        &|| std::fs::write(files.path("key.pem"), "no key").unwrap(),
        &|| files.protect_key(0o604),
    ];
    for make_bad in bad {
        make_bad();
        assert_eq!(tls.reload(now), Reload::Refused);
        assert_eq!(tls.reload(now), Reload::Unchanged, "said once");
        connect(world.secure, client(&new, &[])).await.unwrap();
    }
    assert_eq!(expires(), Some(3_786_912_000.0));
    let newest = files.write(2095);
    assert_eq!(tls.reload(now), Reload::Taken);
    connect(world.secure, client(&newest, &[])).await.unwrap();
    let reloads = |outcome: &str| {
        world.metric(&format!(
            "meridian_edge_certificate_reloads_total{{outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!((reloads("taken"), reloads("refused")), (Some(2.0), Some(6.0)));
}

/// The last good plan, from which an edge starts without a control plane.
async fn keep_plan(folder: &Path) {
    let snapshot = support::planned(&[("eu-west", Stack::Http)]).await;
    let kept = node::LastGood::at(folder.join("plan"));
    kept.save(&snapshot).unwrap();
}

#[tokio::test]
async fn sighup_takes_the_new_certificate() {
    let (files, old) = Files::new();
    let state = TempDir::new().unwrap();
    keep_plan(state.path()).await;
    let changes = format!("{}state_dir = {:?}\n", files.config(), state.path()).replace(" }\n", ", reload = '1h' }\n");
    let (tasks, announced) = process(&changes, state.path(), false).await;
    let stop = tasks.stop_token();
    let running = tokio::spawn(tasks.run(std::time::Duration::from_secs(5)));
    let secure = hang_means_failure(announced).await.unwrap()["https"];
    connect(secure, client(&old, &[])).await.unwrap();
    let new = files.write(2090);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
    while connect(secure, client(&new, &[])).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    stop.cancel();
    hang_means_failure(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_edge_without_a_usable_certificate_does_not_start() {
    let (files, _) = Files::new();
    std::fs::write(files.path("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let config = support::config(&files.config());
    let error = edge::run::start(config, files.folder.path(), false, |_| Ok(()))
        .await
        .unwrap_err();
    assert!(format!("{error:#}").contains("key.pem"), "{error:#}");

    let (files, _) = Files::new();
    files.protect_key(0o644);
    let config = support::config(&files.config());
    let error = edge::run::start(config, files.folder.path(), false, |_| Ok(()))
        .await
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("key.pem can be read by others (mode 0644)"), "{error}");
}

#[tokio::test]
async fn plaintext_stays_beside_tls() {
    let (world, _files, _) = world(Stack::Http).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(MODELS).await.unwrap();
    let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
}
