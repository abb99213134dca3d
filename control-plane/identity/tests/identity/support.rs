//! An authority, the folders of its peers, and a listener that greets those whom it lets in.

use std::{cell::Cell, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use identity::{
    Connection, Event, Identity, Mode, PeerId,
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

pub(crate) const ZONE: &str = "voice.example";
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

thread_local! {
    /// The clock of a test, whose tasks all run on its thread.
    static CLOCK: Cell<Option<Moment>> = const { Cell::new(None) };
}

/// Stops the clock of this test at a moment.
pub(crate) fn set_clock(at: Moment) {
    CLOCK.set(Some(at));
}

pub(crate) fn now() -> Moment {
    CLOCK.get().unwrap_or_else(|| {
        let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
        Moment(u64::try_from(since_epoch).unwrap())
    })
}

/// A root with its issuer.
pub(crate) struct Ca {
    pub(crate) root: Credential,
    pub(crate) issuer: Authority,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let root = ca::root(ZONE, now()).unwrap();
        let issuer = Authority::load(&root).unwrap().issuer(ZONE, now()).unwrap();
        Self {
            root,
            issuer: Authority::load(&issuer).unwrap(),
        }
    }

    pub(crate) fn leaf(&self, role: &str) -> Credential {
        self.leaf_of(ZONE, role, now(), HOUR)
    }

    pub(crate) fn leaf_of(&self, zone: &str, role: &str, from: Moment, life: Duration) -> Credential {
        let id = PeerId::new(zone, role.parse().unwrap()).unwrap();
        let leaf = Leaf { life, ..Leaf::of(id) };
        self.issuer.issue(&leaf, from).unwrap()
    }
}

/// A folder with an identity.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    pub(crate) files: Files,
}

impl Place {
    pub(crate) fn new(credential: &Credential, trust: &[&Credential]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::in_folder(folder.path());
        let place = Self { folder, files };
        place.files.write(credential).unwrap();
        place.trusts(trust);
        place
    }

    pub(crate) fn trusts(&self, roots: &[&Credential]) {
        let trust: String = roots.iter().map(|root| root.certificate.as_str()).collect();
        files::write(&self.files.trust, &trust, 0o644).unwrap();
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        Identity::load(self.files.clone(), now).unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A listener that greets the peers that it lets in, and keeps the events.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    events: Arc<Mutex<Vec<Event>>>,
    _stop: tokio_util::sync::DropGuard,
}

pub(crate) const GREETING: &[u8] = b"settings";

impl Listener {
    pub(crate) async fn new(identity: Arc<Identity>, mode: Mode) -> Self {
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

    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }
}

/// Says who called, then echoes.
pub(crate) async fn greet(mut connection: Connection) {
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

pub(crate) async fn soon<F: Future>(what: F) -> F::Output {
    timeout(Duration::from_secs(10), what)
        .await
        .expect("this takes milliseconds")
}

pub(crate) async fn line(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let byte = soon(io.read_u8()).await.unwrap();
        line.push(byte);
    }
    String::from_utf8(line).unwrap()
}
