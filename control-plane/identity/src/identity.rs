//! The identity of this process: read from files, and read again while the process runs.
//!
//! A file that is no good never replaces one that is. When the trust changes, connections whose peer is no longer trusted
//! end.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
use topology::{Moment, RegionId};

use crate::{
    Peer, PeerId, Rejected, Role,
    ca::Credential,
    files::{Files, Pem},
    grace::{ExpiredPeers, believes_expired},
    shown::Shown,
    signature::{BadSignature, Signature},
    state::State,
    texts,
    verifier::BadPeer,
};

/// The files are looked at this often. A certificate is renewed hours before it expires.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The identity of this process: the certificate that it shows, and the roots that it trusts.
pub struct Identity {
    files: Files,
    now: fn() -> Moment,
    state: ArcSwap<State>,
    looked: Mutex<Looked>,
    /// Announces changes.
    changes: watch::Sender<()>,
    /// Counts them.
    generation: AtomicU64,
    expired_peers: ExpiredPeers,
}

/// The content of the files.
struct Looked {
    /// The content in use.
    taken: Pem,
    /// The newest content that is no good, so that it is logged once; the inner `None` if the files could not be read.
    refused: Option<Option<Pem>>,
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
        let state = match State::of(&files, &pem, now, None) {
            // The writer was interrupted between the two: the new certificate lies beside its place.
            Err(Rejected::Key { key, certificate, why }) => {
                match files.finish_writing(&mut pem, |pem| State::of(&files, pem, now, None).ok()) {
                    Some(state) => state,
                    None => return Err(Rejected::Key { key, certificate, why }),
                }
            }
            read => read?,
        };
        let certificate = files.certificate.display();
        if state.own.until <= now() {
            tracing::error!(%certificate, expired = %state.own.until, "{}", texts::expired_at_start());
        }
        if let Some(why) = &state.untrusted {
            tracing::error!(%certificate, %why, "{}", texts::untrusted_at_start());
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
            expired_peers: ExpiredPeers::default(),
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

    /// Checks that this is the identity of a stack of a region; each of its stacks has its own name there.
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

    /// The content of the files in use.
    pub(crate) fn taken(&self) -> Pem {
        self.looked.lock().taken.clone()
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
            let state = State::of(&self.files, &new, self.now, Some(&**self.state.load()))?;
            self.replaceable_by(&state, now)?;
            Ok((state, new))
        });
        match judged {
            Ok((state, new)) => {
                tracing::info!(%certificate, id = %state.own.id, until = %state.own.until, "new certificate or trust in use");
                if let Some(why) = &state.untrusted {
                    tracing::error!(%certificate, %why, "{}", texts::root_removed());
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
                tracing::error!(%certificate, %error, "{}", texts::NEW_FILES_REFUSED);
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

    /// Takes a new certificate and its key, and writes them to the files. A bad pair is neither taken nor written.
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
        let state = State::of(&self.files, &pem, self.now, Some(&**self.state.load()))?;
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
        self.holder(chain).map(|peer| peer.root)
    }

    /// The holder of a chain in PEM that is valid now.
    fn holder(&self, chain: &str) -> Option<Peer> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<_, _>>()
            .ok()?;
        self.state.load().check(&chain, (self.now)()).ok()
    }

    /// The process of this zone that vouches for a statement: its certificate must be valid now, under a root that this process trusts.
    ///
    /// # Errors
    ///
    /// There is no such certificate, or its key did not sign this statement.
    pub fn vouched(&self, statement: &[u8], signature: &Signature) -> Result<Peer, BadSignature> {
        let peer = self.holder(&signature.certificate).ok_or(BadSignature::Untrusted)?;
        match signature.is_of(statement) {
            true => Ok(peer),
            false => Err(BadSignature::Forged(peer.id.to_string())),
        }
    }

    /// The settings and the trust in force.
    pub(crate) fn state(&self) -> Guard<Arc<State>> {
        self.state.load()
    }

    /// The other end of a link between edge and stack, whose chain was verified, now or when the session began that is resumed. Only
    /// time has passed since: a new trust begins with no session.
    pub(crate) fn linked(&self, chain: Option<&[CertificateDer<'static>]>) -> Result<Arc<Shown>, BadPeer> {
        let state = self.state.load();
        let shown = state.known.holder(chain.unwrap_or_default(), |shown| {
            // The chain was verified at a time at which it was valid, which may be over.
            let at = Moment((self.now)().0.min(shown.life.until.0).max(shown.life.from.0));
            state.check(&shown.chain, at).map(|peer| peer.root).unwrap_or_default()
        })?;
        if shown.life.until <= (self.now)() {
            if !self.believes_on_link(&shown) {
                return Err(BadPeer::Expired(shown.life.until));
            }
            self.expired_peers.add(&shown.peer, shown.life.until);
        }
        Ok(shown)
    }

    /// True if the end of the peer's certificate has not come, or does not count on a link now.
    pub(crate) fn believes_on_link(&self, shown: &Shown) -> bool {
        let (now, issuing) = ((self.now)(), self.state.load().issuing);
        now < shown.life.until || believes_expired(shown.life.until, issuing, now)
    }

    /// The number of links so far that this process opened or accepted although the certificate of the peer had ended.
    pub fn expired_peers(&self) -> u64 {
        self.expired_peers.count()
    }

    /// A peer whose chain is verified here and now.
    pub(crate) fn verified(&self, chain: &[CertificateDer<'static>]) -> Result<Arc<Shown>, BadPeer> {
        let peer = self.state.load().check(chain, (self.now)())?;
        Ok(Arc::new(Shown::new(peer, chain)))
    }

    /// True if a root that is trusted leads to the peer's certificate, also after its end.
    pub(crate) fn rests_on_trusted_root(&self, shown: &Shown) -> bool {
        let at = (self.now)().0.min(shown.life.until.0).max(shown.life.from.0);
        self.state.load().trusts(&shown.chain, Moment(at))
    }

    /// True if a peer that was accepted is still believed.
    pub fn still_trusts(&self, shown: &Shown) -> bool {
        self.state.load().trusts(&shown.chain, (self.now)())
    }

    /// The rest of the time until a moment.
    pub(crate) fn until(&self, moment: Moment) -> Duration {
        moment.since((self.now)())
    }

    /// The rest of the life of a peer's certificate.
    pub fn left(&self, shown: &Shown) -> Duration {
        self.until(shown.peer.until)
    }

    /// Announces changes of certificate or trust.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}
