//! One version of an identity: the content of its files, checked, with the TLS settings that follow from it.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio_rustls::rustls::{
    self, CipherSuite, ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use topology::{Moment, RegionId};

use crate::{
    Issuing, Peer, Rejected, Role, Validity,
    certificate::{fingerprint, unix_time},
    files::{Files, Pem},
    material::{add_root, certificates, ends_of_life, no_root, private_key, unfit},
    protocol::{HTTP1, HTTP2},
    remembered::Genuine,
    shown::Known,
    tickets::Tickets,
    verifier::{BadPeer, Callers, Clock, Servers, Trust, Wanted},
};

/// All that changes together when new files come into use.
pub(crate) struct State {
    pub(crate) own: Peer,
    /// The validity of the chain that this process shows, and whether certificates are issued.
    pub(crate) issuing: Issuing,
    /// The reason for which this process would not believe its own certificate, if there is one.
    pub(crate) untrusted: Option<String>,
    /// End of life of every certificate in the files, with its kind.
    pub(crate) expiry: Vec<(&'static str, Moment)>,
    pub(crate) server: Arc<ServerConfig>,
    /// For calls of control planes.
    pub(crate) client: Arc<ClientConfig>,
    /// For calls of stacks, by their region: each believes its own, and resumes no session of another.
    clients: Mutex<BTreeMap<RegionId, Arc<ClientConfig>>>,
    /// Peers of stacks, and stacks, that are known from earlier connections.
    pub(crate) known: Known,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Each root alone, with its fingerprint.
    roots: Vec<(String, Arc<dyn ClientCertVerifier>)>,
    trust: Trust,
    /// The certificate that this process shows, leaf first, with its key.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl State {
    /// `before` is the state that the new one is to replace.
    pub(crate) fn of(files: &Files, pem: &Pem, clock: fn() -> Moment, before: Option<&Self>) -> Result<Self, Rejected> {
        let now = clock();
        let chain = certificates(&pem.certificate, &files.certificate)?;
        let own = Peer::of(&chain[0]).map_err(|source| Rejected::Certificate {
            path: files.certificate.display().to_string(),
            source,
        })?;
        // The leaf was read above. An issuer that cannot be read leads to no root, and has no say in this.
        let life = Validity::of_chain(&chain).unwrap_or(Validity {
            from: own.from,
            until: own.until,
        });
        let issuing = Issuing::after(before.map(|before| before.issuing), life, now);
        let mut roots = RootCertStore::empty();
        let trusted = certificates(&pem.trust, &files.trust)?;
        let expiry = ends_of_life(&chain, &trusted);
        let provider = Arc::new(provider());
        let mut each = Vec::new();
        for root in trusted {
            let mut alone = RootCertStore::empty();
            add_root(&mut alone, root.clone(), files)?;
            let alone = WebPkiClientVerifier::builder_with_provider(alone.into(), provider.clone()).build();
            each.push((fingerprint(&root), Callers::genuine(alone.map_err(|_| no_root(files))?)));
            add_root(&mut roots, root, files)?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| unfit(files, &error))?;
        let verifier = Callers::genuine(verifier);
        // Peers judge an expired certificate themselves (and `load` logs it); any other fault is one of the files.
        let at = unix_time(Moment(now.0.min(life.until.0).max(life.from.0)));
        // Peers also judge an untrusted one: a process that no longer believes itself goes on serving, and believes no
        // peer under a root that was taken away.
        let untrusted = verifier.verify_client_cert(&chain[0], &chain[1..], at).err();
        let key = private_key(pem, files)?;
        let trust = Trust {
            roots,
            provider,
            zone: own.id.zone.clone(),
            clock: Clock(clock),
        };
        let server = server(
            (&own, issuing),
            &trust,
            verifier.clone(),
            chain.clone(),
            key.clone_key(),
        );
        let control_planes = Servers {
            trust: trust.clone(),
            wanted: Wanted::ControlPlane,
            issuing: None,
            genuine: Genuine::default(),
        };
        let client = client(control_planes, chain.clone(), key.clone_key());
        let mut client = client.map_err(|error| unfit(files, &error))?;
        client.alpn_protocols = vec![HTTP2.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self {
            own,
            issuing,
            untrusted: untrusted.map(|error| error.to_string()),
            expiry,
            server: Arc::new(server.map_err(|error| unfit(files, &error))?),
            client: Arc::new(client),
            clients: Mutex::default(),
            known: Known::default(),
            verifier,
            roots: each,
            trust,
            chain,
            key,
        })
    }

    /// The settings for calls of the stacks of a region.
    pub(crate) fn client_for(&self, region: &RegionId) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut clients = self.clients.lock();
        if let Some(known) = clients.get(region) {
            return Ok(known.clone());
        }
        let servers = Servers {
            trust: self.trust.clone(),
            wanted: Wanted::StackOf(region.clone()),
            issuing: Some(self.issuing),
            genuine: Genuine::default(),
        };
        let mut config = client(servers, self.chain.clone(), self.key.clone_key())?;
        config.resumption = Resumption::store(Arc::new(Tickets::default()));
        let config = Arc::new(config);
        clients.insert(region.clone(), config.clone());
        Ok(config)
    }

    /// The holder of a chain, which may have been shown long ago, with the root that leads to it.
    pub(crate) fn check(&self, chain: &[CertificateDer<'_>], now: Moment) -> Result<Peer, BadPeer> {
        let leaf = chain.first().ok_or(BadPeer::NoCertificate)?;
        let mut peer = Peer::of(leaf)?;
        if peer.id.zone != self.own.id.zone {
            return Err(BadPeer::Zone(peer.id, self.own.id.zone.clone()));
        }
        let by = |(_, root): &&(String, Arc<dyn ClientCertVerifier>)| {
            root.verify_client_cert(leaf, &chain[1..], unix_time(now)).is_ok()
        };
        let (root, _) = self.roots.iter().find(by).ok_or(BadPeer::NoRoot)?;
        peer.root.clone_from(root);
        Ok(peer)
    }

    /// True if a trusted root leads to a chain that was valid at this time.
    pub(crate) fn trusts(&self, chain: &[CertificateDer<'_>], at: Moment) -> bool {
        let Some((leaf, above)) = chain.split_first() else {
            return false;
        };
        self.verifier.verify_client_cert(leaf, above, unix_time(at)).is_ok()
    }
}

/// The cryptography between processes. SHA-256 comes first: processors have instructions for it, and for SHA-384, which rustls
/// prefers, they have none; a handshake hashes dozens of times.
fn provider() -> CryptoProvider {
    let default = ring::default_provider();
    let mut cipher_suites = default.cipher_suites;
    cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    CryptoProvider {
        cipher_suites,
        ..default
    }
}

/// Settings for calls. Servers are believed by their id, and the address is not sent: processes have ids, and addresses change.
fn client(
    servers: Servers,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let trust = &servers.trust;
    let builder = ClientConfig::builder_with_details(trust.provider.clone(), Arc::new(trust.clock));
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
    (own, issuing): (&Peer, Issuing),
    trust: &Trust,
    chains: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let is_stack = matches!(own.id.role, Role::Stack { .. });
    let verifier = match is_stack {
        true => Callers::of_stack(chains, own.id.zone.clone(), issuing),
        false => chains,
    };
    let builder = ServerConfig::builder_with_details(trust.provider.clone(), Arc::new(trust.clock));
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
