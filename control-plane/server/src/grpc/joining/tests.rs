//! A process that joins at a control plane whose store loses answers.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use identity::{
    Caller,
    ca::{Authority, Credential},
    files::Files,
    join::Token,
};

use super::*;
use crate::{
    grpc::tokens,
    metrics::Metrics,
    store::{
        Candidate, Changes, Embedded, Entry, Health, LeaderRecord, Leadership, Listing, Outcome, Transaction, WatchEnd,
    },
};

/// A store that writes, and says nothing of it once.
struct LosesAnswers {
    store: Embedded,
    loses_next: AtomicBool,
}

#[async_trait]
impl Store for LosesAnswers {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let committed = self.store.commit(transaction).await;
        match self.loses_next.swap(false, Ordering::Relaxed) {
            false => committed,
            true => Err(StoreError::Unavailable {
                reason: "the answer was lost".to_owned(),
                outcome: Outcome::Unknown,
            }),
        }
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
        self.store.watch(prefix, after_revision).await
    }

    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        self.store.campaign(candidate).await
    }

    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        self.store.leader().await
    }

    async fn health(&self) -> Result<Health, StoreError> {
        self.store.health().await
    }
}

struct Place {
    service: JoiningService,
    store: Arc<LosesAnswers>,
    _snapshots: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Place {
    fn new(folder: &Path) -> Self {
        let now = daemon::clock::now();
        let root = ca::root("z", now).unwrap();
        let signing = Authority::load(&root).unwrap().issuer("z", now).unwrap();
        let issuer = Authority::load(&signing).unwrap();
        let own = issuer.issue(&Leaf::of(id("control-plane/cp-1")), now).unwrap();
        let own_files = Files::in_folder(folder);
        files::write(&own_files.trust, &root.certificate, 0o644).unwrap();
        own_files.write(&own).unwrap();
        let Credential { certificate, key } = signing;
        files::write(&folder.join("issuer.crt"), &certificate, 0o644).unwrap();
        files::write(&folder.join("issuer.key"), &key, 0o600).unwrap();
        let store = Arc::new(LosesAnswers {
            store: Embedded::open(&folder.join("store")).unwrap(),
            loses_next: AtomicBool::new(false),
        });
        let snapshot = Arc::new(topology::fixtures::three_primaries());
        let (sender, snapshots) = watch::channel(Some(snapshot));
        let service = JoiningService {
            pace: Mutex::new(TokenBucket::new(tokio::time::Instant::now())),
            own: Identity::load(own_files, daemon::clock::now).unwrap(),
            issuer: Some(Issuer {
                certificate: folder.join("issuer.crt"),
                key: folder.join("issuer.key"),
            }),
            store: store.clone(),
            accesses: Accesses::new("cp-1", Metrics::default()),
            operators: Arc::new(Operators::load(None, None).unwrap()),
            snapshots,
        };
        Self {
            service,
            store,
            _snapshots: sender,
        }
    }

    /// A token that ada made for this process.
    async fn token(&self, role: &str) -> Token {
        let now = daemon::clock::now();
        let ada = Peer {
            id: id("operator/ada"),
            grants: Grant::list("admin").unwrap(),
            serial: "01".to_owned(),
            from: now,
            until: now + ca::OPERATOR_LIFE,
            root: String::new(),
        };
        let ada = Caller {
            source: ([127, 0, 0, 1], 1).into(),
            peer: Some(ada),
        };
        let request = v1::TokenRequest {
            role: role.to_owned(),
            life_ms: 0,
            reason: "a new machine".to_owned(),
        };
        let topology = topology::fixtures::three_primaries().topology;
        let own = Some(&self.service.own);
        let made = tokens::make(
            &*self.store,
            own,
            &self.service.accesses,
            &topology,
            Some(&ada),
            request,
        );
        made.await.unwrap().token.parse().unwrap()
    }

    async fn join(&self, token: &Token, request: &str) -> Result<String, Status> {
        let request = v1::JoinRequest {
            secret: token.secret().to_vec().into(),
            role: token.role.to_string(),
            request: request.to_owned(),
        };
        let joined = self.service.join(Request::new(request)).await;
        joined.map(|reply| reply.into_inner().certificate)
    }

    /// The serial numbers in the records of processes that joined.
    async fn told(&self) -> Vec<String> {
        let waiting = records::waiting_access(&*self.store).await.unwrap();
        let joined = waiting.into_iter().filter(|it| it.access.kind == AccessKind::Joined);
        joined.filter_map(|it| Some(it.access.principal?.serial)).collect()
    }
}

fn id(role: &str) -> PeerId {
    PeerId::new("z", role.parse().unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_whose_use_was_not_answered_is_good_for_the_same_key_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path());
    let token = place.token("edge/edge-dub").await;
    let (key, request) = ca::request().unwrap();
    place.store.loses_next.store(true, Ordering::Relaxed);
    let lost = place.join(&token, &request).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost}");
    assert!(lost.message().contains("try again"), "{lost}");

    let (_, stranger) = ca::request().unwrap();
    let refused = place.join(&token, &stranger).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("used with another key"), "{refused}");
    // Another request of the same key: after a restart, say.
    let again = place.join(&token, &ca::request_for(&key).unwrap()).await.unwrap();
    let serial = ca::peer_of(&again).unwrap().serial;
    let told = place.told().await;
    assert_eq!(told.len(), 2, "each certificate that was signed is told: {told:?}");
    assert!(told.contains(&serial), "{told:?}");
}

/// Each use is an entry of the audit log, which keeps only so many.
#[tokio::test]
async fn a_process_shows_its_token_so_many_times() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path());
    let token = place.token("edge/edge-dub").await;
    let (_, request) = ca::request().unwrap();
    for _ in 0..USES_MAX {
        place.join(&token, &request).await.unwrap();
    }
    let refused = place.join(&token, &request).await.unwrap_err();
    assert!(refused.message().contains("has shown the token 10 times"), "{refused}");
    assert_eq!(place.told().await.len() as u32, USES_MAX);
}
