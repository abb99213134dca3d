//! What the deciding task makes of stores that lose answers, land commits late or lose everything, of vantages with wrong
//! clocks, and of approvals.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use planning::audit;
use server::{
    metrics::Metrics,
    nodes::Nodes,
    reconcile::{self, Answer, Reconciler, Request, Role, Unanswered, View},
    records::{self, Document, DocumentKind},
    store::{
        Candidate, Changes, Embedded, Entry, Health, Lead, LeaderRecord, Listing, Outcome, Store, StoreError,
        Transaction, WatchEnd,
    },
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use topology::{EdgeId, Intent, IntentKind, Moment, NodeId, RegionId, Tick};
use verdict::{ReplicationLag, TickReport};

/// Far longer than anything here takes; only a hang gets this far.
const PATIENCE: Duration = Duration::from_secs(20);

/// An embedded store that can be replaced, and whose commits can be kept from it.
struct OddStore {
    store: Mutex<Embedded>,
    loses: AtomicBool,
    lost: Mutex<Vec<Transaction>>,
}

impl OddStore {
    fn store(&self) -> Embedded {
        self.store.lock().unwrap().clone()
    }
}

#[async_trait]
impl Store for OddStore {
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        if self.loses.load(Ordering::Relaxed) {
            self.lost.lock().unwrap().push(transaction);
            let (reason, outcome) = ("no answer".into(), Outcome::Unknown);
            return Err(StoreError::Unavailable { reason, outcome });
        }
        self.store().commit(transaction).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store().get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store().list(prefix).await
    }
    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
        self.store().watch(prefix, after_revision).await
    }
    async fn campaign(&self, candidate: &Candidate) -> Result<Lead, StoreError> {
        self.store().campaign(candidate).await
    }
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        self.store().leader().await
    }
    async fn health(&self) -> Result<Health, StoreError> {
        self.store().health().await
    }
}

/// A control plane that leads, without its process.
struct Leader {
    store: Arc<OddStore>,
    inbox: mpsc::Sender<Request>,
    views: watch::Receiver<Arc<View>>,
    folder: TempDir,
    stop: CancellationToken,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Leader {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(OddStore {
            store: Mutex::new(Embedded::open(&folder.path().join("store")).unwrap()),
            loses: AtomicBool::new(false),
            lost: Mutex::default(),
        });
        let document = |kind: DocumentKind, text: &str| Document::new(kind, text.to_owned(), "tester", Moment(0));
        let settings = reconcile::Settings {
            candidate: Candidate {
                node: NodeId::new("control-plane").unwrap(),
                url: "http://control-plane:7100".into(),
                lease_ttl: Duration::MAX,
            },
            topology: document(
                DocumentKind::Topology,
                include_str!("../../../topology/testdata/three-primaries.toml"),
            ),
            policy: document(DocumentKind::Policy, ""),
        };
        let reconciler = Reconciler::new(settings, store.clone(), Nodes::default(), Metrics::default()).unwrap();
        let (inbox, requests) = mpsc::channel(reconcile::INBOX_LENGTH);
        let (views, stop) = (reconciler.views(), CancellationToken::new());
        let until = stop.clone();
        tokio::spawn(async move {
            // It mirrors nothing: it leads from the start.
            let (_mirror, contents) = watch::channel(Arc::new(Listing::default()));
            reconciler.run(requests, contents, until).await.unwrap();
        });
        let leader = Self {
            store,
            inbox,
            views,
            folder,
            stop,
        };
        leader
            .until(|view| view.role == Role::Leading && view.input.current.is_some())
            .await;
        leader
    }

    async fn until(&self, holds: impl Fn(&View) -> bool) {
        let mut views = self.views.clone();
        let waited = tokio::time::timeout(PATIENCE, views.wait_for(|view| holds(view)));
        drop(waited.await.expect("it comes to that").unwrap());
    }

    async fn ask(&self, author: &str, token: &str, kind: IntentKind) -> Result<Answer, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let now = daemon::clock::now();
        let intent = Intent {
            id: token.into(),
            kind,
            author: author.into(),
            reason: "a test".into(),
            created_at: now,
            expires_at: now + Duration::from_secs(600),
        };
        let request = Request::Ask {
            intent,
            dry_run: false,
            reply,
        };
        self.inbox.send(request).await.unwrap();
        tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap()
    }

    /// Asks until the store takes it: what was read before something else was written is read again.
    async fn insist(&self, token: &str, kind: IntentKind) -> Answer {
        let insisting = async {
            loop {
                match self.ask("alice", token, kind.clone()).await {
                    Ok(answer) => return answer,
                    Err(Unanswered::Store(StoreError::Conflict { .. })) => {}
                    // A store that lost everything also forgot who leads.
                    Err(Unanswered::NotLeading(_)) => self.until(|view| view.role == Role::Leading).await,
                    Err(other) => panic!("{other}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, insisting)
            .await
            .expect("it is taken in the end")
    }

    async fn audit(&self) -> Vec<audit::Entry> {
        let listing = self.store.list(records::AUDIT).await.unwrap();
        let (head, _) = records::audit_head(self.store.as_ref()).await.unwrap();
        let entries = listing.entries.values().map(|entry| entry.value.as_slice());
        audit::verify(entries, Some(&head.hash)).unwrap()
    }
}

fn drain_iad() -> IntentKind {
    IntentKind::DrainEdge {
        edge: EdgeId::new("edge-iad").unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_given_up_undoes_nothing_when_it_lands_late() {
    let leader = Leader::start().await;
    leader.store.loses.store(true, Ordering::Relaxed);
    let lost = leader.ask("alice", "lost", IntentKind::Freeze).await;
    assert!(matches!(lost, Err(Unanswered::Store(StoreError::Unavailable { .. }))));
    leader.store.loses.store(false, Ordering::Relaxed);
    leader.insist("second", IntentKind::Freeze).await;

    let late = leader.store.lost.lock().unwrap().remove(0);
    let refused = leader.store.store().commit(late).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused}");
    leader.insist("third", IntentKind::Unfreeze).await;
    let asked: Vec<String> = leader
        .audit()
        .await
        .iter()
        .filter_map(|it| Some(it.input.request.clone()?.id))
        .collect();
    assert_eq!(asked, ["second", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_landed_without_an_answer_is_found_and_not_done_twice() {
    let leader = Leader::start().await;
    leader.store.loses.store(true, Ordering::Relaxed);
    leader.ask("alice", "drain", drain_iad()).await.unwrap_err();
    let landed = leader.store.lost.lock().unwrap().remove(0);
    leader.store.store().commit(landed).await.unwrap();
    leader.store.loses.store(false, Ordering::Relaxed);
    // The same token again, as whoever was not answered tries it.
    leader.insist("drain", drain_iad()).await;
    leader
        .until(|view| view.input.current.as_ref().is_some_and(|plan| plan.generation == 2))
        .await;
    let generations: Vec<u64> = leader
        .audit()
        .await
        .iter()
        .filter_map(|it| Some(it.plan.as_ref()?.generation))
        .collect();
    assert_eq!(generations, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_everything_gets_what_is_in_force_again() {
    let leader = Leader::start().await;
    leader.insist("drain", drain_iad()).await;
    *leader.store.store.lock().unwrap() = Embedded::open(&leader.folder.path().join("another")).unwrap();
    // Nothing changes by it, and it is the first thing the new store is told.
    leader.insist("ack", IntentKind::Unfreeze).await;
    let listing = leader.store.list(records::STATE).await.unwrap();
    let state = records::state(&listing).unwrap().expect("everything is there again");
    let (plan, _) = state.plan.unwrap();
    assert_eq!(Some(&plan), leader.views.borrow().input.current.as_ref());
    assert_eq!(plan.generation, 2);
    assert!(state.memory.0.actions.contains_key("drain"));
    leader
        .insist("abort", IntentKind::Abort { action: "drain".into() })
        .await;
    leader
        .until(|view| view.input.current.as_ref().is_some_and(|plan| plan.generation == 3))
        .await;
    leader.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_approves_is_told_what_became_of_it() {
    let leader = Leader::start().await;
    let rule = topology::Rule::ALL[0];
    leader.insist("override", IntentKind::Override { rule }).await;
    let approve = || IntentKind::Approve {
        action: "override".into(),
    };
    let answer = leader.ask("alice", "mine", approve()).await.unwrap();
    assert_eq!(answer.action, None, "nobody approves what they asked for");
    let answer = leader.ask("bob", "his", approve()).await.unwrap();
    let action = answer.action.unwrap();
    assert_eq!(
        (action.intent.id.as_str(), action.approved_by.as_deref()),
        ("override", Some("bob"))
    );
    assert_eq!(reconcile::outcome_of(Some(&action)), api::v1::Outcome::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vantage_whose_clock_is_ahead_hides_no_lag() {
    let leader = Leader::start().await;
    let us_east = RegionId::new("us-east").unwrap();
    let closed = daemon::clock::now().tick().back(1);
    let report = |vantage: &str, tick, behind| {
        let mut report = TickReport::new(NodeId::new(vantage).unwrap(), tick, vec![]);
        report.replication = vec![ReplicationLag {
            region: us_east.clone(),
            class: "profiles".into(),
            behind: Duration::from_secs(behind),
        }];
        Request::Observe(report.into())
    };
    const TWO_DAYS_S: u64 = 48 * 3_600;
    for said in [
        report("edge-iad", Tick(closed.0 + 360), 0),
        report("edge-iad", Tick(u64::MAX), 0),
        report("edge-dub", closed, TWO_DAYS_S),
    ] {
        leader.inbox.send(said).await.unwrap();
    }
    // It is decided from after the reports, which went the same way.
    leader.insist("any", IntentKind::Freeze).await;
    let view = leader.views.borrow().clone();
    let lag = view.input.replication[&us_east]["profiles"];
    assert_eq!(lag.behind, Duration::from_secs(TWO_DAYS_S));
}
