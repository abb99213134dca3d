//! A control plane answers operators while its store does not answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::v1::{self, operator_server::Operator as _};
use async_trait::async_trait;
use server::{
    grpc::operator::OperatorService,
    metrics::Metrics,
    nodes::Nodes,
    reconcile::{self, Reconciler},
    records::{self, Document, DocumentKind},
    stacks::Stacks,
    store::{
        Candidate, Changes, Entry, Health, LeaderRecord, Leadership, Listing, Mirror, Outcome, Store, StoreError,
        Transaction, WatchEnd, mirror,
    },
    view::{Leader, Role, View},
};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Request};
use topology::{Moment, NodeId};

/// Time that an operator's client waits for each answer.
const CLIENT_WAITS: Duration = Duration::from_secs(3);

/// A store without a quorum.
#[derive(Clone, Copy)]
enum Away {
    /// It refuses at once.
    Refuses,
    /// It never answers.
    Hangs,
}

impl Away {
    async fn answer<T>(self) -> Result<T, StoreError> {
        match self {
            Self::Refuses => Err(StoreError::Unavailable {
                reason: "no quorum".to_owned(),
                outcome: Outcome::NothingWritten,
            }),
            Self::Hangs => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Store for Away {
    async fn commit(&self, _: Transaction) -> Result<u64, StoreError> {
        self.answer().await
    }
    async fn get(&self, _: &str) -> Result<Option<Entry>, StoreError> {
        self.answer().await
    }
    async fn list(&self, _: &str) -> Result<Listing, StoreError> {
        self.answer().await
    }
    async fn watch(&self, _: &str, _: u64) -> Result<Changes, WatchEnd> {
        std::future::pending().await
    }
    async fn campaign(&self, _: &Candidate) -> Result<Leadership, StoreError> {
        self.answer().await
    }
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        self.answer().await
    }
    async fn health(&self) -> Result<Health, StoreError> {
        self.answer().await
    }
}

/// The operator's service of a control plane in this role.
fn service(away: Away, role: Role) -> OperatorService {
    let store: Arc<dyn Store> = Arc::new(away);
    let node = NodeId::new("control-plane-1").unwrap();
    let document = |kind, text: &str| Document::new(kind, text.to_owned(), "tester", Moment(0));
    let settings = reconcile::Settings {
        candidate: Candidate {
            node: node.clone(),
            url: "http://127.0.0.1:7100".to_owned(),
            lease_ttl: Duration::from_secs(5),
        },
        topology: document(
            DocumentKind::Topology,
            include_str!("../../../../configs/topology.toml"),
        ),
        policy: document(DocumentKind::Policy, ""),
    };
    let reconciler = Reconciler::new(settings, store.clone(), Nodes::default(), Metrics::default()).unwrap();
    let mut view = View::clone(&reconciler.views().borrow());
    view.role = role;
    let (inbox, _) = mpsc::channel(1);
    OperatorService {
        views: watch::channel(Arc::new(view)).1,
        nodes: Nodes::default(),
        stacks: Stacks::default(),
        mirror: Mirror::new(store.clone(), records::STATE, mirror::Settings::default()).0,
        store,
        inbox,
        node,
        guard: server::grpc::guard::Guard {
            metrics: Metrics::default(),
            must_prove: false,
            accesses: server::access::Accesses::new("control-plane-1", Metrics::default()),
        },
        signer: None,
    }
}

/// Operators ask `why` during an outage, so it must answer.
#[tokio::test]
async fn why_tells_what_is_known_and_that_the_history_is_missing() {
    let nobody = || Role::Following(Leader::Nobody);
    for (away, role, says) in [
        (Away::Refuses, nobody(), "no quorum"),
        (Away::Hangs, nobody(), "did not answer within 1.5s"),
        // The replica still believes to lead.
        (Away::Refuses, Role::Leading, "no quorum"),
        (Away::Hangs, Role::Leading, "did not answer within 1.5s"),
    ] {
        let service = service(away, role);
        let asked = Instant::now();
        let why = service
            .why(Request::new(v1::WhyRequest {
                region: "us-east".to_owned(),
                from_anyone: true,
            }))
            .await
            .unwrap()
            .into_inner();
        assert!(asked.elapsed() < CLIENT_WAITS, "{:?}", asked.elapsed());
        assert_eq!(why.region.unwrap().region, "us-east");
        assert!(why.decisions.is_empty());
        assert!(why.history_missing.contains(says), "{}", why.history_missing);
    }
}

/// `history` has no answer without the store.
#[tokio::test]
async fn history_without_the_store_is_an_error() {
    let service = service(Away::Refuses, Role::Leading);
    let error = service.history(Request::new(v1::HistoryRequest { limit: 1 })).await;
    assert_eq!(error.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn status_says_since_when_nobody_leads() {
    let service = service(Away::Refuses, Role::Following(Leader::Nobody));
    let asked = v1::StatusRequest { from_anyone: true };
    let status = service.status(Request::new(asked)).await.unwrap().into_inner();
    let since = Moment(status.progress.unwrap().leaderless_since_ms);
    assert!(since > Moment(0));
    let text = format!("no control plane leads since {since:#} UTC");
    assert_eq!(status.not_leading, text);
}
