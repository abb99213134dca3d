//! Mutual TLS between processes: both ends prove their id. TLS 1.3 only, with ring.
//!
//! A process reads its certificate, key and trust from files, and reads them again while it runs. A file that is no good never
//! replaces one that is. When the trust changes, connections whose peer is no longer trusted end.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    io::AsyncBufReadExt as _,
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{
    Accept, StartHandshake, TlsAcceptor, TlsConnector,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
        ServerConfig, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_cert_signed_by_trust_anchor,
        },
        crypto::{CryptoProvider, ring, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        server::{
            ParsedCertificate, WebPkiClientVerifier,
            danger::{ClientCertVerified, ClientCertVerifier},
        },
        version::TLS13,
    },
    server,
};
use topology::{Moment, RegionId};

use crate::{
    BadCertificate, Call, Connection, Denied, Peer, PeerId, Role, authorise,
    ca::Credential,
    files::{FileError, Files, Pem},
    link::{HTTP1, HTTP2},
};

/// The files are looked at this often. A certificate is renewed hours before it expires.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// TLS sessions that are kept for later connections to the stacks of a region, so that they cost less. One address has eight.
const RESUMED_MAX: usize = 256;

/// The identity of this process: what it shows, and whom it believes.
pub struct Identity {
    files: Files,
    now: fn() -> Moment,
    state: ArcSwap<State>,
    looked: Mutex<Looked>,
    /// Announces changes.
    changes: watch::Sender<()>,
    /// Counts them.
    generation: AtomicU64,
}

/// The content of the files.
struct Looked {
    /// The content in use.
    taken: Pem,
    /// The newest content that is no good, so that it is logged once; the inner `None` if the files could not be read.
    refused: Option<Option<Pem>>,
}

/// All that changes together.
struct State {
    own: Peer,
    /// Why this process would not believe its own certificate.
    untrusted: Option<String>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Each root alone, with its fingerprint.
    roots: Vec<(String, Arc<dyn ClientCertVerifier>)>,
    /// End of life of every certificate in the files, with its kind.
    expiry: Vec<(&'static str, Moment)>,
    server: Arc<ServerConfig>,
    /// For calls of control planes.
    client: Arc<ClientConfig>,
    /// For calls of stacks, by their region: each believes its own, and resumes no session of another.
    clients: Mutex<BTreeMap<RegionId, Arc<ClientConfig>>>,
    trust: Trust,
    /// The certificate that this process shows, leaf first, with its key.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The roots, and the zone whose ids mean something.
#[derive(Debug, Clone)]
struct Trust {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    zone: String,
}

/// Files that are no identity.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// One cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds no PEM of its kind.
    #[error("{path} holds no {what} in PEM")]
    NotPem {
        /// The file.
        path: String,
        /// The missing kind of content.
        what: &'static str,
    },
    /// The certificate names nobody.
    #[error("{path}: {source}")]
    Certificate {
        /// The file.
        path: String,
        /// Why.
        source: BadCertificate,
    },
    /// The certificate and the key do not fit.
    #[error("{key} is not the key of {certificate}: {why}")]
    Key {
        /// The key's file.
        key: String,
        /// The certificate's file.
        certificate: String,
        /// Why.
        why: String,
    },
    /// The certificate is somebody else's.
    #[error(
        "the certificate is {offered}'s, and this process is {own}; issue its own with `meridian cert issue KIND/NAME --ca DIR --into DIR`"
    )]
    OtherId {
        /// Whose it is.
        offered: Box<PeerId>,
        /// The id of this process.
        own: Box<PeerId>,
    },
    /// The certificate has ended, or has not begun.
    #[error(
        "{certificate} is valid from {from:#} to {until:#} UTC, and not now; check the clock, or issue it anew with `meridian cert renew DIR --ca DIR`"
    )]
    OutOfDate {
        /// The certificate's file.
        certificate: String,
        /// Beginning of its life.
        from: Moment,
        /// End of its life.
        until: Moment,
    },
    /// The process would not believe itself.
    #[error(
        "{certificate} is not signed by a root in {trust}: {why}; issue it anew with `meridian cert issue KIND/NAME --ca DIR --into DIR`"
    )]
    Untrusted {
        /// The certificate's file.
        certificate: String,
        /// The file of roots.
        trust: String,
        /// Why.
        why: String,
    },
}

/// The result of a look at the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The files are as they were.
    Unchanged,
    /// New connections use the new files.
    Taken,
    /// The new files are no good, and the old ones stay in use.
    Refused,
}

/// No connection to the process at the other end.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP, or the peer left.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The peer is not who it should be.
    #[error("{0}")]
    Peer(String),
    /// The peer does not accept this process's certificate.
    #[error("the other end refuses the certificate of {own}: {why}")]
    Refused {
        /// The id of this process.
        own: PeerId,
        /// The alert.
        why: String,
    },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("own", &self.own().id)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity. `now` is the clock of this process.
    ///
    /// A certificate that has expired, or whose root is not trusted here, is taken, with an error in the log: a process that has
    /// its last good plan must start with it, and peers decide for themselves.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or the files do not fit each other.
    pub fn load(files: Files, now: fn() -> Moment) -> Result<Arc<Self>, Rejected> {
        let mut pem = files.read()?;
        let state = match State::of(&files, &pem, now()) {
            // The writer was interrupted between the two: the new certificate lies beside its place.
            Err(Rejected::Key { key, certificate, why }) => {
                match files.finish_writing(&mut pem, |pem| State::of(&files, pem, now()).ok()) {
                    Some(state) => state,
                    None => return Err(Rejected::Key { key, certificate, why }),
                }
            }
            read => read?,
        };
        let certificate = files.certificate.display();
        if state.own.until <= now() {
            tracing::error!(
                %certificate, expired = %state.own.until,
                "the certificate of this process has expired; peers refuse it. Issue it anew: `meridian cert renew DIR --ca DIR`"
            );
        }
        if let Some(why) = &state.untrusted {
            tracing::error!(
                %certificate, %why,
                "the root of this process's own certificate is not in its trust; peers may refuse it. Issue it anew under another root: \
                 `meridian cert issue KIND/NAME --ca DIR --into DIR`"
            );
        }
        Ok(Arc::new(Self {
            files,
            now,
            state: ArcSwap::from_pointee(state),
            looked: Mutex::new(Looked {
                taken: pem,
                refused: None,
            }),
            changes: watch::Sender::new(()),
            generation: AtomicU64::new(0),
        }))
    }

    /// Checks that this is the identity of a role.
    ///
    /// # Errors
    ///
    /// It is another's.
    pub fn must_be(&self, role: &Role) -> Result<(), Rejected> {
        let own = self.own().id;
        if own.role == *role {
            return Ok(());
        }
        Err(Rejected::OtherId {
            offered: Box::new(own.clone()),
            own: Box::new(PeerId {
                zone: own.zone,
                role: role.clone(),
            }),
        })
    }

    /// Checks that this is the identity of a stack of a region, whatever its name there.
    ///
    /// # Errors
    ///
    /// It is another's.
    pub fn must_be_stack_of(&self, region: &RegionId) -> Result<(), Rejected> {
        let name = match self.own().id.role {
            Role::Stack { name, .. } => name,
            _ => "NAME".to_owned(),
        };
        self.must_be(&Role::Stack {
            region: region.to_string(),
            name,
        })
    }

    /// This process, as its certificate says.
    pub fn own(&self) -> Peer {
        self.state.load().own.clone()
    }

    /// The same, with the root that it rests on.
    pub fn own_peer(&self) -> Peer {
        let root = self.root_of(&self.looked.lock().taken.certificate).unwrap_or_default();
        Peer { root, ..self.own() }
    }

    /// The files of this identity.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The end of life of the certificate, of the issuers above it, and of every root: the soonest of each kind.
    pub fn expiry(&self) -> Vec<(&'static str, Moment)> {
        self.state.load().expiry.clone()
    }

    /// As [`Identity::load`]; `None` without files.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn load_if(files: Option<Files>, now: fn() -> Moment) -> Result<Option<Arc<Self>>, Rejected> {
        files.map(|files| Self::load(files, now)).transpose()
    }

    /// Looks at the files every few seconds, until it is dropped.
    pub async fn keep_current(&self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.reload();
        }
    }

    /// Looks at the files once, and takes new ones that are good.
    pub fn reload(&self) -> Reload {
        let mut looked = self.looked.lock();
        let read = self.files.read();
        let pem = read.as_ref().ok().cloned();
        if pem.as_ref() == Some(&looked.taken) {
            looked.refused = None;
            return Reload::Unchanged;
        }
        let now = (self.now)();
        let certificate = self.files.certificate.display();
        let judged = read.map_err(Rejected::from).and_then(|new| {
            let state = State::of(&self.files, &new, now)?;
            self.replaceable_by(&state, now)?;
            Ok((state, new))
        });
        match judged {
            Ok((state, new)) => {
                tracing::info!(%certificate, id = %state.own.id, until = %state.own.until, "new certificate or trust in use");
                if let Some(why) = &state.untrusted {
                    tracing::error!(
                        %certificate, %why,
                        "the root of this process's own certificate was removed from its trust; peers may refuse it. Issue it anew under \
                         another root: `meridian cert issue KIND/NAME --ca DIR --into DIR`"
                    );
                }
                let trust_changed = looked.taken.trust != new.trust;
                *looked = Looked {
                    taken: new,
                    refused: None,
                };
                drop(looked);
                self.put_in_force(state, trust_changed);
                Reload::Taken
            }
            // Judged at every look, because the clock may be what was wrong; logged once.
            Err(_) if looked.refused.as_ref() == Some(&pem) => Reload::Unchanged,
            Err(error) => {
                tracing::error!(%certificate, %error, "the new certificate or trust is no good; the old one stays in use");
                looked.refused = Some(pem);
                Reload::Refused
            }
        }
    }

    /// Checks that new files may replace those in use. A change of the trust alone always may: a root that is taken away must be gone,
    /// also when this process's own certificate rests on it.
    fn replaceable_by(&self, new: &State, now: Moment) -> Result<(), Rejected> {
        let own = self.own();
        if new.own == own {
            return Ok(());
        }
        if new.own.id != own.id {
            return Err(Rejected::OtherId {
                offered: Box::new(new.own.id.clone()),
                own: Box::new(own.id),
            });
        }
        let certificate = || self.files.certificate.display().to_string();
        if new.own.until <= now || new.own.from > now {
            return Err(Rejected::OutOfDate {
                certificate: certificate(),
                from: new.own.from,
                until: new.own.until,
            });
        }
        match &new.untrusted {
            None => Ok(()),
            Some(why) => Err(Rejected::Untrusted {
                certificate: certificate(),
                trust: self.files.trust.display().to_string(),
                why: why.clone(),
            }),
        }
    }

    /// Takes a new certificate and its key, and writes them to the files. What is no good is neither taken nor written.
    ///
    /// # Errors
    ///
    /// They do not fit each other or the trust, are of another id, or a file cannot be written.
    pub fn adopt(&self, credential: &Credential) -> Result<(), Rejected> {
        let mut looked = self.looked.lock();
        let pem = Pem {
            certificate: credential.certificate.clone(),
            key: credential.key.clone(),
            trust: looked.taken.trust.clone(),
        };
        let now = (self.now)();
        let state = State::of(&self.files, &pem, now)?;
        self.replaceable_by(&state, now)?;
        self.files.write(credential)?;
        *looked = Looked {
            taken: pem,
            refused: None,
        };
        drop(looked);
        self.put_in_force(state, false);
        Ok(())
    }

    /// With another trust, each open connection looks whether its peer is still believed. A renewed certificate is no reason to: that
    /// would be thousands of signatures at once.
    fn put_in_force(&self, state: State, trust_changed: bool) {
        self.state.store(Arc::new(state));
        if trust_changed {
            self.generation.fetch_add(1, Ordering::Release);
        }
        self.changes.send_replace(());
    }

    /// The number of changes of trust so far.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Fingerprint of the trusted root of a chain in PEM, leaf first; `None` if no trusted root leads to it.
    pub fn root_of(&self, chain: &str) -> Option<String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<_, _>>()
            .ok()?;
        Some(self.check(&chain).ok()?.root)
    }

    /// Accepts a peer that proves its id.
    ///
    /// # Errors
    ///
    /// The handshake failed: the peer left, has no certificate, or one that is not trusted or names nobody. If there is still a
    /// connection, the alert that says so is on its way over it.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
    ) -> Result<(server::TlsStream<TcpStream>, Shown), (std::io::Error, Option<TcpStream>)> {
        let config = self.state.load().server.clone();
        self.accepted(TlsAcceptor::from(config).accept(tcp)).await
    }

    /// The same, after the first words of the peer were read.
    pub(crate) async fn accept_begun(
        &self,
        begun: StartHandshake<TcpStream>,
    ) -> Result<(server::TlsStream<TcpStream>, Shown), (std::io::Error, Option<TcpStream>)> {
        let config = self.state.load().server.clone();
        self.accepted(begun.into_stream(config)).await
    }

    async fn accepted(
        &self,
        accepting: Accept<TcpStream>,
    ) -> Result<(server::TlsStream<TcpStream>, Shown), (std::io::Error, Option<TcpStream>)> {
        let stream = accepting
            .into_fallible()
            .await
            .map_err(|(error, tcp)| (error, Some(tcp)))?;
        let shown = match self.own().id.role {
            // The handshake verified the chain, or an earlier one did whose session is resumed.
            Role::Stack { .. } => self.shown(stream.get_ref().1.peer_certificates()),
            _ => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                self.check(&chain).map(|peer| Shown { peer, chain })
            }
        };
        let shown = shown.map_err(|error| (std::io::Error::other(error), None))?;
        Ok((stream, shown))
    }

    /// The settings for calls of the stacks of a region.
    pub(crate) fn client_for(&self, region: &RegionId) -> Result<Arc<ClientConfig>, rustls::Error> {
        let state = self.state.load();
        let mut clients = state.clients.lock();
        if let Some(known) = clients.get(region) {
            return Ok(known.clone());
        }
        let servers = Servers {
            trust: state.trust.clone(),
            wanted: Wanted::StackOf(region.clone()),
        };
        let mut config = client(servers, state.chain.clone(), state.key.clone_key())?;
        config.resumption = Resumption::in_memory_sessions(RESUMED_MAX);
        let config = Arc::new(config);
        clients.insert(region.clone(), config.clone());
        Ok(config)
    }

    /// A peer whose chain was verified, now or when the session began that is resumed. Only time has passed since: a new trust begins
    /// with no session.
    pub(crate) fn shown(&self, chain: Option<&[CertificateDer<'static>]>) -> Result<Shown, BadPeer> {
        let chain = chain.unwrap_or_default().to_vec();
        let peer = Peer::of(chain.first().ok_or(BadPeer::NoCertificate)?)?;
        if peer.until <= (self.now)() {
            return Err(BadPeer::Expired(peer.until));
        }
        Ok(Shown { peer, chain })
    }

    /// True if a root that is trusted leads to the peer's certificate, also after its end.
    pub(crate) fn rests_on_trusted_root(&self, shown: &Shown) -> bool {
        let Some((leaf, above)) = shown.chain.split_first() else {
            return false;
        };
        let at = (self.now)().0.clamp(shown.peer.from.0, shown.peer.until.0);
        let at = UnixTime::since_unix_epoch(Duration::from_millis(at));
        self.state.load().verifier.verify_client_cert(leaf, above, at).is_ok()
    }

    /// The rest of the time until a moment.
    pub(crate) fn until(&self, moment: Moment) -> Duration {
        moment.since((self.now)())
    }

    /// Opens TLS to a peer that must be a control plane of this zone. Returns when the peer has accepted this process.
    ///
    /// # Errors
    ///
    /// One end does not believe the other.
    pub async fn connect(self: &Arc<Self>, tcp: TcpStream) -> Result<Connection, ConnectError> {
        let source = tcp.peer_addr()?;
        let (config, own) = {
            let state = self.state.load();
            (state.client.clone(), state.own.id.clone())
        };
        // The name is not sent: processes have ids, and addresses change.
        let name = ServerName::try_from("control-plane").map_err(|error| ConnectError::Peer(error.to_string()))?;
        let connected = TlsConnector::from(config).connect(name, tcp).await;
        let mut stream = connected.map_err(|error| match tls_error(&error) {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::General(_)) => {
                ConnectError::Peer(error.to_string())
            }
            Some(rustls::Error::AlertReceived(alert)) => ConnectError::Refused {
                own: own.clone(),
                why: format!("{alert:?}"),
            },
            _ => ConnectError::Io(error),
        })?;
        // In TLS 1.3 the client is done before the server has looked at its certificate (RFC 8446 §4.4.2.4). The server's
        // first bytes, its HTTP/2 settings, say that it is content.
        match stream.fill_buf().await {
            Ok([]) => Err(ConnectError::Io(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                let peer = self
                    .check(&chain)
                    .map_err(|error| ConnectError::Peer(error.to_string()))?;
                Ok(Connection::watched(
                    self.clone(),
                    stream.into(),
                    Shown { peer, chain },
                    source,
                    || {},
                ))
            }
            Err(error) => Err(match tls_error(&error) {
                Some(rustls::Error::AlertReceived(alert)) => ConnectError::Refused {
                    own,
                    why: format!("{alert:?}"),
                },
                _ => ConnectError::Io(error),
            }),
        }
    }

    /// True if a peer that was accepted is still believed.
    pub fn still_trusts(&self, shown: &Shown) -> bool {
        let Some((leaf, above)) = shown.chain.split_first() else {
            return false;
        };
        let now = UnixTime::since_unix_epoch(Duration::from_millis((self.now)().0));
        self.state.load().verifier.verify_client_cert(leaf, above, now).is_ok()
    }

    /// The rest of the life of a peer's certificate.
    pub fn left(&self, shown: &Shown) -> Duration {
        shown.peer.until.since((self.now)())
    }

    /// Announces changes of certificate or trust.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The holder of a chain, which may have been shown long ago.
    fn check(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, BadPeer> {
        let leaf = chain.first().ok_or(BadPeer::NoCertificate)?;
        let mut peer = Peer::of(leaf)?;
        let state = self.state.load();
        if peer.id.zone != state.own.id.zone {
            return Err(BadPeer::Zone(peer.id, state.own.id.zone.clone()));
        }
        let now = UnixTime::since_unix_epoch(Duration::from_millis((self.now)().0));
        let by = |(_, root): &&(String, Arc<dyn ClientCertVerifier>)| {
            root.verify_client_cert(leaf, &chain[1..], now).is_ok()
        };
        let (root, _) = state.roots.iter().find(by).ok_or(BadPeer::NoRoot)?;
        peer.root.clone_from(root);
        Ok(peer)
    }
}

/// A peer with the certificates that it showed.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Who it is.
    pub peer: Peer,
    chain: Vec<CertificateDer<'static>>,
}

/// The chain is genuine, and the peer is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPeer {
    #[error("the peer has no certificate")]
    NoCertificate,
    /// It was trusted when the handshake began.
    #[error("the root of the peer is no longer trusted")]
    NoRoot,
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
    #[error("{0} is of another zone than {1}")]
    Zone(PeerId, String),
    #[error("expected a control plane, found {0}; check the address")]
    NoControlPlane(PeerId),
    #[error("the certificate of the peer ended at {0:#} UTC")]
    Expired(Moment),
}

impl State {
    fn of(files: &Files, pem: &Pem, now: Moment) -> Result<Self, Rejected> {
        let text = |path: &Path| path.display().to_string();
        let chain = certificates(&pem.certificate, &files.certificate)?;
        let own = Peer::of(&chain[0]).map_err(|source| Rejected::Certificate {
            path: text(&files.certificate),
            source,
        })?;
        let mut roots = RootCertStore::empty();
        let mut expiry = vec![("own", own.until)];
        let soonest = |kind, ends: Option<Moment>| ends.map(|ends| (kind, ends));
        expiry.extend(soonest(
            "issuer",
            chain[1..].iter().filter_map(|it| end_of_life(it)).min(),
        ));
        let trusted = certificates(&pem.trust, &files.trust)?;
        expiry.extend(soonest("root", trusted.iter().filter_map(|it| end_of_life(it)).min()));
        let provider = Arc::new(ring::default_provider());
        let mut each = Vec::new();
        for root in trusted {
            let not_pem = || Rejected::NotPem {
                path: text(&files.trust),
                what: "root certificate",
            };
            let mut alone = RootCertStore::empty();
            alone.add(root.clone()).map_err(|_| not_pem())?;
            let alone = WebPkiClientVerifier::builder_with_provider(alone.into(), provider.clone()).build();
            each.push((fingerprint(&root), alone.map_err(|_| not_pem())?));
            roots.add(root).map_err(|_| not_pem())?;
        }
        let roots = Arc::new(roots);
        let unfit = |why: String| Rejected::Key {
            key: text(&files.key),
            certificate: text(&files.certificate),
            why,
        };
        let key = || {
            PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(|_| Rejected::NotPem {
                path: text(&files.key),
                what: "private key",
            })
        };
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| unfit(error.to_string()))?;
        // Out of date is the peers' business (and `load` says it); any other fault is one of the files.
        let at = UnixTime::since_unix_epoch(Duration::from_millis(now.0.min(own.until.0).max(own.from.0)));
        // Others decide about this certificate by themselves: a process that no longer believes itself goes on serving, and
        // believes no peer under a root that was taken away.
        let untrusted = verifier.verify_client_cert(&chain[0], &chain[1..], at).err();
        let key = key()?;
        let trust = Trust {
            roots,
            provider,
            zone: own.id.zone.clone(),
        };
        let server = server(&own, &trust, verifier.clone(), chain.clone(), key.clone_key());
        let control_planes = Servers {
            trust: trust.clone(),
            wanted: Wanted::ControlPlane,
        };
        let client = client(control_planes, chain.clone(), key.clone_key());
        let mut client = client.map_err(|error| unfit(error.to_string()))?;
        client.alpn_protocols = vec![HTTP2.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self {
            own,
            untrusted: untrusted.map(|error| error.to_string()),
            verifier,
            roots: each,
            expiry,
            server: Arc::new(server.map_err(|error| unfit(error.to_string()))?),
            client: Arc::new(client),
            clients: Mutex::default(),
            trust,
            chain,
            key,
        })
    }
}

/// Settings for calls. Servers are believed by their id, and the address is not sent: processes have ids, and addresses change.
fn client(
    servers: Servers,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(servers.trust.provider.clone());
    let mut config = builder
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(servers))
        .with_client_auth_cert(chain, key)?;
    config.enable_sni = false;
    Ok(config)
}

/// Settings for a listener.
fn server(
    own: &Peer,
    trust: &Trust,
    chains: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let is_stack = matches!(own.id.role, Role::Stack { .. });
    let verifier: Arc<dyn ClientCertVerifier> = match is_stack {
        // In the handshake, so that the caller hears why: afterwards there is only the end of the connection.
        true => Arc::new(CallersOfStacks {
            chains,
            zone: own.id.zone.clone(),
        }),
        false => chains,
    };
    let builder = ServerConfig::builder_with_provider(trust.provider.clone());
    let mut config = builder
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    if is_stack {
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        // The caller keeps the state. The keys are as old as the trust, so that no session outlives it.
        config.ticketer = ring::Ticketer::new()?;
    } else {
        config.alpn_protocols = vec![HTTP2.to_vec()];
        // Every connection is verified: a resumed one would be as old as its ticket.
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// The process that a call is meant for.
#[derive(Debug)]
enum Wanted {
    ControlPlane,
    StackOf(RegionId),
}

/// Believes servers of the zone by their id instead of by host name.
#[derive(Debug)]
struct Servers {
    trust: Trust,
    wanted: Wanted,
}

impl Servers {
    /// Checks that a certificate, which is genuine, is that of the wanted process.
    fn is_wanted(&self, der: &[u8]) -> Result<(), rustls::Error> {
        match &self.wanted {
            Wanted::ControlPlane => {
                let general = |error: &dyn fmt::Display| rustls::Error::General(error.to_string());
                let id = Peer::of(der).map_err(|error| general(&error))?.id;
                let wrong = match id.role {
                    _ if id.zone != self.trust.zone => BadPeer::Zone(id, self.trust.zone.clone()),
                    Role::ControlPlane(_) => return Ok(()),
                    _ => BadPeer::NoControlPlane(id),
                };
                Err(general(&wrong))
            }
            Wanted::StackOf(region) => {
                let region = region.as_str();
                is_allowed(der, &self.trust.zone, Call::Serve { region })
            }
        }
    }
}

/// Checks that the holder of a certificate, which is genuine, may do this.
fn is_allowed(der: &[u8], zone: &str, call: Call<'_>) -> Result<(), rustls::Error> {
    let other = |error: Arc<dyn std::error::Error + Send + Sync>| {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error)))
    };
    let peer = Peer::of(der).map_err(|error| other(Arc::new(BadPeer::from(error))))?;
    if peer.id.zone != zone {
        return Err(other(Arc::new(BadPeer::Zone(peer.id, zone.to_owned()))));
    }
    authorise(&peer, call).map_err(|denied| other(Arc::new(denied)))
}

/// Lets in whoever may call stacks.
#[derive(Debug)]
struct CallersOfStacks {
    chains: Arc<dyn ClientCertVerifier>,
    zone: String,
}

impl ClientCertVerifier for CallersOfStacks {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chains.verify_client_cert(end_entity, intermediates, now)?;
        is_allowed(end_entity, &self.zone, Call::CallStack).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust { roots, provider, .. } = &self.trust;
        let algorithms = provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        self.is_wanted(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// The reason of a failed handshake, as a label: few values, for metrics.
pub(crate) fn reason(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref();
    if let Some(bad) = inner.and_then(|inner| inner.downcast_ref::<BadPeer>()) {
        return match bad {
            BadPeer::NoCertificate => "no-certificate",
            BadPeer::NoRoot => "unknown-issuer",
            BadPeer::Zone(..) => "other-zone",
            BadPeer::Expired(_) => "expired",
            BadPeer::Certificate(_) | BadPeer::NoControlPlane(_) => "bad-id",
        };
    }
    match tls_error(error) {
        Some(rustls::Error::NoCertificatesPresented) => "no-certificate",
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not-yet-valid",
            CertificateError::UnknownIssuer => "unknown-issuer",
            CertificateError::Other(OtherError(why)) if why.is::<Denied>() => "not-allowed",
            CertificateError::Other(OtherError(why)) => match why.downcast_ref() {
                Some(BadPeer::Zone(..)) => "other-zone",
                _ => "bad-id",
            },
            _ => "bad-certificate",
        },
        Some(rustls::Error::AlertReceived(_)) => "refused-by-peer",
        Some(_) => "not-tls",
        None => "gone",
    }
}

fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The holder of a chain in PEM, if one of these roots leads to it; also after its end.
pub fn verified(chain: &str, roots: &str, now: Moment) -> Option<Peer> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .ok()?;
    let (leaf, above) = chain.split_first()?;
    let peer = Peer::of(leaf).ok()?;
    let mut trusted = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        trusted.add(root.ok()?).ok()?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted.into(), provider)
        .build()
        .ok()?;
    let at = UnixTime::since_unix_epoch(Duration::from_millis(now.0.clamp(peer.from.0, peer.until.0)));
    verifier.verify_client_cert(leaf, above, at).ok()?;
    Some(peer)
}

/// The certificates of a file.
pub(crate) fn certificates(pem: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Rejected> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.ok().filter(|read| !read.is_empty());
    read.ok_or_else(|| Rejected::NotPem {
        path: path.display().to_string(),
        what: "certificate",
    })
}

/// The name of a root that people can compare: the beginning of its SHA-256, in hex.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(&sha2::Sha256::digest(der)[..8])
}

fn end_of_life(der: &[u8]) -> Option<Moment> {
    use x509_cert::der::Decode as _;
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    Some(crate::peer::life(&certificate.tbs_certificate).1)
}
