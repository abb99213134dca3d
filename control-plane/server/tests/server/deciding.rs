//! The deciding task with stores that lose answers, land commits late or lose everything, with vantages whose clocks are
//! wrong, and with approvals.
//!
//! One file, although it is long: each story needs the same task with the same odd store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use planning::audit;
use server::{
    grpc::replies,
    metrics::Metrics,
    nodes::Nodes,
    reconcile::{self, Answer, Reconciler, Request, Unanswered},
    records::{self, Document, DocumentKind},
    store::{
        Candidate, Changes, Embedded, Entry, Health, LeaderRecord, Leadership, Listing, Outcome, Store, StoreError,
        Transaction, WatchEnd,
    },
    view::{self, Role, View},
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use topology::{
    Component, EdgeId, EdgeState, Intent, IntentKind, Moment, NodeId, ReasonCode, RegionId, RegionState, Tick,
};
use verdict::{EdgeProbe, Observation, ReplicationLag, Source, TickReport};

/// Limit on every wait, far longer than any step of these tests takes: only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(90);

/// An embedded store that a test replaces, or whose commits it withholds.
struct OddStore {
    store: Mutex<Embedded>,
    loses: AtomicBool,
    lost: Mutex<Vec<Transaction>>,
    /// Reads succeed, and writes fail.
    is_full: AtomicBool,
    /// Commits never end.
    hangs: AtomicBool,
}

fn full() -> StoreError {
    StoreError::NoSpace("a member raised the alarm NOSPACE".to_owned())
}

impl OddStore {
    fn store(&self) -> Embedded {
        self.store.lock().clone()
    }
}

#[async_trait]
impl Store for OddStore {
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        if self.hangs.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if self.is_full.load(Ordering::Relaxed) {
            return Err(full());
        }
        if self.loses.load(Ordering::Relaxed) {
            self.lost.lock().push(transaction);
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
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        self.store().campaign(candidate).await
    }
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        self.store().leader().await
    }
    async fn health(&self) -> Result<Health, StoreError> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(full());
        }
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
        Self::start_by("").await
    }

    /// Starts a leader with this policy.
    async fn start_by(policy: &str) -> Self {
        Self::start_on(policy, Transaction::default()).await
    }

    /// Starts a leader on a store with the records that `stored` put there. The policy is for a store without one.
    async fn start_on(policy: &str, stored: Transaction) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let embedded = Embedded::open(&folder.path().join("store")).unwrap();
        if !stored.put.is_empty() {
            embedded.commit(stored).await.unwrap();
        }
        let store = Arc::new(OddStore {
            store: Mutex::new(embedded),
            loses: AtomicBool::new(false),
            lost: Mutex::default(),
            is_full: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
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
                include_str!("../../../../topology/testdata/three-primaries.toml"),
            ),
            policy: document(DocumentKind::Policy, policy),
        };
        let reconciler = Reconciler::new(settings, store.clone(), Nodes::default(), Metrics::default()).unwrap();
        let (inbox, requests) = mpsc::channel(reconcile::INBOX_LENGTH);
        let (views, stop) = (reconciler.views(), CancellationToken::new());
        let until = stop.clone();
        tokio::spawn(async move {
            // The mirror stays empty, because this replica leads from the start.
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
        let waited = tokio::time::timeout(DEADLINE, views.wait_for(|view| holds(view)));
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
            by: None,
            dry_run: false,
            reply,
        };
        self.inbox.send(request).await.unwrap();
        tokio::time::timeout(DEADLINE, answer).await.unwrap().unwrap()
    }

    /// Applies a policy in place of the one in force.
    async fn apply(&self, author: &str, policy: &str) -> Result<reconcile::Applied, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Apply {
            document: Document::new(DocumentKind::Policy, policy.to_owned(), author, daemon::clock::now()),
            by: None,
            replaces: self.views.borrow().policy.version.clone(),
            dry_run: false,
            reply,
        };
        self.inbox.send(request).await.unwrap();
        tokio::time::timeout(DEADLINE, answer).await.unwrap().unwrap()
    }

    /// Asks until the store takes the request. The leader reads the state again after another writer changed it.
    async fn insist(&self, token: &str, kind: IntentKind) -> Answer {
        let insisting = async {
            loop {
                match self.ask("alice", token, kind.clone()).await {
                    Ok(answer) => return answer,
                    Err(Unanswered::Store(StoreError::Conflict { .. })) => {}
                    // A store that lost everything also lost the leader's key.
                    Err(Unanswered::NotLeading(_)) => self.until(|view| view.role == Role::Leading).await,
                    // The leader declined the request because of an earlier error of the store.
                    Err(Unanswered::Store(StoreError::Unavailable {
                        outcome: Outcome::NothingWritten,
                        ..
                    })) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(other) => panic!("{other}"),
                }
            }
        };
        tokio::time::timeout(DEADLINE, insisting)
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

impl Leader {
    /// Waits until the leader has judged a tick that ends after this call.
    async fn judges_another_tick(&self) {
        let now = daemon::clock::now().tick();
        self.until(|view| matches!(view.progress.judged, Some((tick, _)) if tick >= now))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_writes_is_told_before_anything_must_be_written() {
    let leader = Leader::start().await;
    assert_eq!(leader.views.borrow().why_not_deciding(), None);
    leader.store.is_full.store(true, Ordering::Relaxed);
    leader.until(|view| view.progress.unwritten.is_some()).await;
    let why = leader.views.borrow().why_not_deciding().unwrap();
    assert!(why.starts_with("decisions cannot be written since "), "{why}");
    assert!(why.contains("the store is full") && why.contains("make room"), "{why}");

    let since = leader.views.borrow().progress.unwritten.clone().unwrap().since;
    let refused = leader.ask("alice", "drain", drain_iad()).await;
    assert_eq!(refused, Err(Unanswered::Store(full())));
    leader.judges_another_tick().await;
    let unwritten = leader.views.borrow().progress.unwritten.clone().unwrap();
    assert_eq!(unwritten.since, since, "one trouble has one beginning");

    leader.store.is_full.store(false, Ordering::Relaxed);
    leader.until(|view| view.progress.unwritten.is_none()).await;
    leader.insist("drain", drain_iad()).await;
}

/// The records of an older version, from before these limits and the newest fields: these documents, the plan made from
/// them, one remembered action, and the audit entry.
fn stored_before(policy: &str, topology: &str) -> Transaction {
    let document = |kind: DocumentKind, text: &str| Document::new(kind, text.to_owned(), "tester", Moment(0));
    let (topology, policy) = (
        document(DocumentKind::Topology, topology),
        document(DocumentKind::Policy, policy),
    );
    let input = planning::Input::new(
        topology::Topology::parse_stored("topology", &topology.text).unwrap().0,
        topology::Policy::default(),
        1,
    );
    let at = daemon::clock::now();
    let plan = planning::plan(&input, at).plan.unwrap();
    let memory = serde_json::json!({
        "actions": { "move": {
            "intent": {
                "id": "move",
                "kind": { "kind": "failover", "region": "us-east", "promote": false, "accept_loss": null },
                "author": "alice", "reason": "a test", "created_at": at, "expires_at": at,
            },
            "phase": "done", "owner": 1, "changed_at": at, "approved_by": null, "text": "it was moved",
        }},
        "penalties": {}, "arrivals": {}, "taken_back": null,
    });
    let entry = serde_json::json!({
        "number": 1, "previous": audit::FIRST, "at": at, "actor": planning::PLANNER,
        "input": {
            "topology": topology.version, "policy": policy.version, "current": null, "verdicts": {}, "memory": memory,
            "request": null, "replication": {}, "rollout": null, "refusal": null, "recovered": null, "epoch": 1,
        },
        "plan": plan, "memory": memory, "reasons": plan.reasons,
    });
    let entry = records::encode(&entry);
    let head = serde_json::json!({ "number": 1, "hash": audit::hash(&entry) });
    let text = |document: &Document| {
        let text = document.text.clone().into_bytes();
        (records::document_key(&document.version), text)
    };
    Transaction {
        put: vec![
            text(&topology),
            text(&policy),
            (records::TOPOLOGY.to_owned(), records::encode(&topology)),
            (records::POLICY.to_owned(), records::encode(&policy)),
            (records::PLAN.to_owned(), records::encode(&plan)),
            (records::MEMORY.to_owned(), records::encode(&memory)),
            (records::audit_key(1), entry),
            (records::AUDIT_HEAD.to_owned(), records::encode(&head)),
        ],
        ..Transaction::default()
    }
}

const POLICY_BEFORE: &str = include_str!("../testdata/before-limits/policy.toml");
const TOPOLOGY_BEFORE: &str = include_str!("../testdata/before-limits/topology.toml");

fn told_outdated(view: &View) -> Vec<String> {
    let waiting = view.report.waiting.iter();
    let outdated = waiting.filter(|reason| reason.code == ReasonCode::OutdatedDocument);
    outdated.map(|reason| reason.text.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_records_of_an_older_version_are_decided_from() {
    let leader = Leader::start_on("", stored_before(POLICY_BEFORE, TOPOLOGY_BEFORE)).await;
    let view = leader.views.borrow().clone();
    assert_eq!(told_outdated(&view), [""; 0]);
    assert_eq!(
        view.input.policy.publish.refusals_max, 0.1,
        "the store's policy is in force"
    );
    assert!(view.input.memory.actions.contains_key("move"));
    leader.insist("drain", drain_iad()).await;
    leader.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_an_older_version_took_stop_nobody_from_deciding() {
    let wide = POLICY_BEFORE
        .replace("blind_ticks = 3 ", "blind_ticks = 360 ")
        .replace("nlu_error_max = 0.5", "nlu_error_max = 1.0")
        .replace("per_move = 1000", "per_move = 0");
    let shared = TOPOLOGY_BEFORE
        .replace("[\"127.0.0.1:9001\"]", "[\"127.0.0.1:9001\", \"127.0.0.1:9001\"]")
        .replace("id = \"ns1\"", "id = \"edge-iad\"");
    let leader = Leader::start_on("", stored_before(&wide, &shared)).await;
    let view = leader.views.borrow().clone();
    assert_eq!(view.input.policy.health.blind_ticks, 12);
    let told = told_outdated(&view);
    assert_eq!(told.len(), 5, "{told:?}");
    for wanted in [
        "health.blind_ticks: 360 is out of range; write 2 to 12; until then 12 is used",
        "health.nlu_error_max: 1 is out of range; write 0.01 to 0.95; until then 0.95 is used",
        "damping.per_move: 0 is out of range; write 1 to 1000000; until then 1 is used",
        "stack 127.0.0.1:9001 is named twice in us-east",
        "\"edge-iad\" is an edge and a name server",
    ] {
        assert!(told.iter().any(|text| text.contains(wanted)), "{wanted}: {told:?}");
    }
    leader.insist("drain", drain_iad()).await;

    // A new document must keep the limits; then no warning remains. It equals the values in use, so it changes nothing and
    // needs no second person.
    let within = wide
        .replace("blind_ticks = 360 ", "blind_ticks = 12 ")
        .replace("nlu_error_max = 1.0", "nlu_error_max = 0.95")
        .replace("per_move = 0", "per_move = 1");
    for (text, is_taken) in [(&wide.replace("per_move = 0", "per_move = 2"), false), (&within, true)] {
        let applied = leader.apply("alice", text).await.unwrap();
        let in_force = matches!(&applied, reconcile::Applied::InForce(_));
        assert_eq!(in_force, is_taken, "{applied:?}");
    }
    leader.until(|view| told_outdated(view).len() == 2).await;

    // The log with the old entry and its documents stays readable.
    let mut documents = audit::Documents::default();
    for (key, entry) in leader.store.list(records::DOCUMENTS).await.unwrap().entries {
        let text = String::from_utf8(entry.value).unwrap();
        documents
            .insert(key[records::DOCUMENTS.len()..].to_owned(), text)
            .unwrap();
    }
    let entries = leader.audit().await;
    let old = documents.replay(&entries[0]);
    assert!(
        matches!(old, Ok(_) | Err(audit::Tampered::OtherVersion { .. })),
        "{old:?}"
    );
    for entry in &entries[1..] {
        documents.replay(entry).unwrap();
    }
}

/// An edge that reports periodically until it is dropped.
struct LivingEdge(tokio::task::JoinHandle<()>);

impl Drop for LivingEdge {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LivingEdge {
    /// Every report lists the other edges that this one reached.
    fn that_tries(leader: &Leader, name: &str, edges: Vec<EdgeProbe>) -> Self {
        let (inbox, name) = (leader.inbox.clone(), NodeId::new(name).unwrap());
        Self(tokio::spawn(async move {
            loop {
                let closed = daemon::clock::now().tick().back(1);
                let report = TickReport {
                    edges: edges.clone(),
                    ..TickReport::new(name.clone(), closed, vec![])
                };
                if inbox.send(Request::Observe(report.into())).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }))
    }
}

/// The edges in the list report in rounds, all for the same tick, until the list is empty. If each reported by itself, a
/// tick could end between the last reports of two that stop together, and one would be lost first.
fn report_in_rounds(leader: &Leader, edges: Arc<Mutex<Vec<EdgeId>>>) {
    let inbox = leader.inbox.clone();
    tokio::spawn(async move {
        loop {
            let round = edges.lock().clone();
            let closed = daemon::clock::now().tick().back(1);
            for edge in &round {
                let report = TickReport::new(NodeId::new(edge.as_str()).unwrap(), closed, vec![]);
                if inbox.send(Request::Observe(report.into())).await.is_err() {
                    return;
                }
            }
            if round.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_not_heard_of_leaves_dns_and_returns_and_never_do_all() {
    let leader = Leader::start_by("[edges]\nlost_after = \"20s\"\nreturned_after = \"5s\"").await;
    let edges: Vec<EdgeId> = leader.views.borrow().input.topology.edges.keys().cloned().collect();
    let (lost, others) = edges.split_first().unwrap();
    let alive = Arc::new(Mutex::new(others.to_vec()));
    report_in_rounds(&leader, alive.clone());
    let state = |view: &View| view.input.current.as_ref().unwrap().edges[lost];
    leader.until(|view| state(view) == EdgeState::Drained).await;
    let view = leader.views.borrow().clone();
    let reasons = &view.input.current.as_ref().unwrap().reasons;
    assert_eq!(reasons[0].code, ReasonCode::EdgeLost);
    assert!(
        reasons[0].text.contains(&format!("nothing was heard of {lost}")),
        "{}",
        reasons[0].text
    );
    assert!(view.input.memory.lost_edges.contains_key(lost));
    let named = |view: &View| {
        let states = view.input.current.as_ref().unwrap().edges.values();
        states.filter(|state| **state == EdgeState::Serving).count()
    };
    assert_eq!(named(&view), edges.len() - 1);

    alive.lock().push(lost.clone());
    leader.until(|view| state(view) == EdgeState::Serving).await;
    let view = leader.views.borrow().clone();
    assert_eq!(
        view.input.current.as_ref().unwrap().reasons[0].code,
        ReasonCode::EdgeReturned
    );

    // No edge is heard: the control plane's own network is the likelier fault.
    alive.lock().clear();
    leader
        .until(|view| {
            view.report
                .waiting
                .iter()
                .any(|reason| reason.code == ReasonCode::EdgeFloor)
        })
        .await;
    assert_eq!(named(&leader.views.borrow()), edges.len());
    let entries = leader.audit().await;
    let mut documents = audit::Documents::default();
    for (key, entry) in leader.store.list(records::DOCUMENTS).await.unwrap().entries {
        let version = key[records::DOCUMENTS.len()..].to_owned();
        documents
            .insert(version, String::from_utf8(entry.value).unwrap())
            .unwrap();
    }
    for entry in &entries {
        documents.replay(entry).unwrap();
    }
}

/// The edge works and reports, and most other edges cannot connect to it, so devices cannot either.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_others_do_not_reach_leaves_dns_and_returns_when_they_do() {
    let leader = Leader::start_by("[edges]\nlost_after = \"20s\"\nreturned_after = \"5s\"").await;
    let edges: Vec<EdgeId> = leader.views.borrow().input.topology.edges.keys().cloned().collect();
    let [out, other] = &edges[..] else { panic!("{edges:?}") };
    let tries = |reached: bool| {
        let probe = |edge: &EdgeId, reached: bool| EdgeProbe {
            edge: edge.clone(),
            reached,
            failure: String::new(),
        };
        // The leader is a vantage as well.
        [
            LivingEdge::that_tries(&leader, out.as_str(), vec![probe(other, true)]),
            LivingEdge::that_tries(&leader, other.as_str(), vec![probe(out, reached), probe(other, true)]),
            LivingEdge::that_tries(&leader, "control-plane", vec![probe(out, reached), probe(other, true)]),
        ]
    };
    let cut_off = tries(false);
    let state = |view: &View| view.input.current.as_ref().unwrap().edges[out];
    leader.until(|view| state(view) == EdgeState::Drained).await;
    let view = leader.views.borrow().clone();
    let reason = &view.input.current.as_ref().unwrap().reasons[0];
    assert_eq!(reason.code, ReasonCode::EdgeLost);
    let expected = format!("2 of 2 vantages have not reached {out}");
    assert!(reason.text.contains(&expected), "{}", reason.text);
    assert_eq!(view.input.current.as_ref().unwrap().edges[other], EdgeState::Serving);

    drop(cut_off);
    let _reached = tries(true);
    leader.until(|view| state(view) == EdgeState::Serving).await;
    let view = leader.views.borrow().clone();
    assert_eq!(
        view.input.current.as_ref().unwrap().reasons[0].code,
        ReasonCode::EdgeReturned
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_never_ends_stops_nobody_from_looking() {
    let leader = Leader::start().await;
    leader.store.hangs.store(true, Ordering::Relaxed);
    let (reply, _answer) = oneshot::channel();
    let now = daemon::clock::now();
    let intent = Intent {
        id: "hangs".into(),
        kind: IntentKind::Freeze,
        author: "alice".into(),
        reason: "a test".into(),
        created_at: now,
        expires_at: now + Duration::from_secs(600),
    };
    let dry_run = false;
    leader
        .inbox
        .send(Request::Ask {
            intent,
            by: None,
            dry_run,
            reply,
        })
        .await
        .unwrap();
    // Dry runs are answered while the commit waits.
    let (reply, answer) = oneshot::channel();
    leader.inbox.send(Request::Rehearse(reply)).await.unwrap();
    tokio::time::timeout(DEADLINE, answer).await.unwrap().unwrap().unwrap();
    leader.judges_another_tick().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_read_what_the_store_holds_resigns_and_says_why() {
    let leader = Leader::start().await;
    let store = leader.store.store();
    let written = store.get(records::PLAN).await.unwrap().unwrap();
    let put = |value: Vec<u8>| Transaction {
        put: vec![(records::PLAN.to_owned(), value)],
        ..Transaction::default()
    };
    // A later version writes the plan, with a field that this version does not know.
    let text = String::from_utf8(written.value.clone()).unwrap();
    let newer = text.replacen('{', "{\"since_version_9\":1,", 1);
    store.commit(put(newer.into_bytes())).await.unwrap();
    // The next commit conflicts with that write, so the leader reads the state.
    let refused = leader.ask("alice", "drain", drain_iad()).await;
    assert!(
        matches!(refused, Err(Unanswered::Store(StoreError::Conflict { .. }))),
        "{refused:?}"
    );
    leader
        .until(|view| matches!(&view.role, Role::Following(view::Leader::Unfit(_))))
        .await;
    let view = leader.views.borrow().clone();
    let why = view.why_not_deciding().unwrap();
    assert!(why.contains(records::PLAN) && why.contains("since_version_9"), "{why}");
    assert!(why.contains("start the version that wrote it"), "{why}");
    leader.judges_another_tick().await;
    let refused = leader.ask("alice", "drain", drain_iad()).await;
    assert!(matches!(refused, Err(Unanswered::NotLeading(_))), "{refused:?}");

    store.commit(put(written.value)).await.unwrap();
    leader
        .until(|view| view.role == Role::Leading && view.progress.unwritten.is_none())
        .await;
    leader.insist("drain", drain_iad()).await;
}

/// Reports every second, in this name, that us-east is dead in the two newest closed ticks.
fn accuses_us_east(leader: &Leader, name: &str) -> LivingEdge {
    let (inbox, name) = (leader.inbox.clone(), NodeId::new(name).unwrap());
    let regions: Vec<RegionId> = leader.views.borrow().input.topology.regions.keys().cloned().collect();
    LivingEdge(tokio::spawn(async move {
        loop {
            let closed = daemon::clock::now().tick().back(1);
            for tick in [closed.back(1), closed] {
                let observations = regions.iter().map(|region| {
                    let mut seen = Observation::new(region.clone(), Component::Gateway, Source::Probe);
                    for _ in 0..20 {
                        if region.as_str() == "us-east" {
                            seen.fail("connection refused");
                        } else {
                            seen.succeed(20.0);
                        }
                    }
                    seen
                });
                let report = TickReport::new(name.clone(), tick, observations.collect());
                if inbox.send(Request::Observe(report.into())).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_reports_move_nothing_and_those_of_edges_do() {
    let leader = Leader::start().await;
    let us_east = RegionId::new("us-east").unwrap();
    let state = |view: &View| view.input.current.as_ref().unwrap().regions[&us_east].state;
    let strangers = ["edge-mars", "edge-pluto"].map(|name| accuses_us_east(&leader, name));
    leader.judges_another_tick().await;
    leader.judges_another_tick().await;
    let view = leader.views.borrow().clone();
    assert_eq!(state(&view), RegionState::Serving);
    let believed = view.input.verdicts.get(&us_east).map(|verdict| verdict.health);
    assert!(
        !matches!(believed, Some(verdict::Health::Down | verdict::Health::Suspect)),
        "{believed:?}"
    );
    drop(strangers);
    let _edges = ["edge-iad", "edge-dub"].map(|name| accuses_us_east(&leader, name));
    leader.until(|view| state(view) == RegionState::Evacuated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_refused_requests_delays_nothing_that_is_not_refused() {
    let leader = Leader::start().await;
    let nothing = || IntentKind::Abort {
        action: "nothing".into(),
    };
    let mut refused = 0;
    loop {
        match leader.ask("alice", &format!("loop-{refused}"), nothing()).await {
            Err(Unanswered::TooMany { .. }) => break,
            answer => assert_eq!(answer.unwrap().action, None),
        }
        refused += 1;
        assert!(refused < 1_000, "it never has to wait");
    }
    let region = RegionId::new("us-east").unwrap();
    let failover = IntentKind::Failover {
        region,
        promote: false,
        accept_loss: None,
        force: false,
    };
    let answer = leader.ask("alice", "failover", failover).await.unwrap();
    assert!(answer.action.is_some(), "{:?}", answer.outcome.report.refused);
    leader.insist("freeze", IntentKind::Freeze).await;
    let again = leader.ask("alice", "again", nothing()).await;
    assert!(matches!(again, Err(Unanswered::TooMany { .. })), "{again:?}");
}

/// An operator's script that unfreezes every second would push decisions out of the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_asks_for_what_is_so_already_has_to_wait() {
    let leader = Leader::start().await;
    let mut taken = 0;
    loop {
        match leader
            .ask("alice", &format!("loop-{taken}"), IntentKind::Unfreeze)
            .await
        {
            Err(Unanswered::TooMany { .. }) => break,
            answer => assert_eq!(answer.unwrap().action.unwrap().phase, planning::Phase::Done),
        }
        taken += 1;
        assert!(taken < 1_000, "it never has to wait");
    }
    leader.insist("freeze", IntentKind::Freeze).await;
    let thaw = leader.ask("alice", "thaw", IntentKind::Unfreeze).await.unwrap();
    assert!(thaw.action.is_some(), "an order that changes something never waits");
    // Under other names the log still takes only some.
    let mut named = 0;
    while leader
        .ask(
            &format!("author {named}"),
            &format!("named-{named}"),
            IntentKind::Unfreeze,
        )
        .await
        .is_ok()
    {
        named += 1;
        assert!(named < 1_000, "it never has to wait");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_stay_as_long_as_the_log_names_them_and_one_author_applies_only_so_many() {
    let leader = Leader::start().await;
    let names = |author: &'static str| {
        let leader = &leader;
        async move {
            let mut applied = 0;
            loop {
                match leader.apply(author, &format!("# {author} {applied}")).await {
                    Err(Unanswered::TooManyDocuments { .. }) => return applied,
                    answer => assert!(matches!(answer, Ok(reconcile::Applied::InForce(_))), "{answer:?}"),
                }
                applied += 1;
                assert!(applied < 1_000, "it never has to wait");
            }
        }
    };
    let by_alice = names("alice").await;
    // The document in force is applied again, by another author: nothing is written.
    let entries = leader.audit().await.len();
    for _ in 0..3 {
        let again = leader.apply("bob", &format!("# alice {}", by_alice - 1)).await;
        assert!(matches!(again, Ok(reconcile::Applied::InForce(_))), "{again:?}");
    }
    assert_eq!(leader.audit().await.len(), entries);

    // Topology, the policy of the beginning, and those of alice.
    let store = leader.store.store();
    let documents = async || store.list(records::DOCUMENTS).await.unwrap().entries;
    assert_eq!(documents().await.len(), 2 + by_alice);

    // The log forgets its beginning, and with it the documents that only the beginning names.
    let (mut head, _) = records::audit_head(&store).await.unwrap();
    let (first, newest) = (head.number - 2, head.number);
    head.segments = [
        records::Segment {
            first: 1,
            bytes: records::AUDIT_BYTES_MAX,
        },
        records::Segment { first, bytes: 10 },
    ]
    .into();
    let changed = Transaction {
        put: vec![(records::AUDIT_HEAD.to_owned(), records::encode(&head))],
        ..Transaction::default()
    };
    store.commit(changed).await.unwrap();
    for number in 0..by_alice {
        leader
            .insist(
                &format!("order {number}"),
                if number % 2 == 0 {
                    IntentKind::Freeze
                } else {
                    IntentKind::Unfreeze
                },
            )
            .await;
    }
    // Entries `first` to `newest` name the last three policies of alice.
    assert_eq!(
        documents().await.len(),
        1 + usize::try_from(newest - first).unwrap() + 1
    );
    let mut kept = audit::Documents::default();
    for (key, entry) in documents().await {
        let text = String::from_utf8(entry.value).unwrap();
        kept.insert(key[records::DOCUMENTS.len()..].to_owned(), text).unwrap();
    }
    for entry in leader.audit().await.iter().filter(|entry| entry.number >= first) {
        kept.replay(entry).unwrap();
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

    let late = leader.store.lost.lock().remove(0);
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
async fn each_thing_a_commit_was_decided_from_stops_it_when_it_changed() {
    const EPOCH: &str = "/meridian/v1/epoch";
    let leader = Leader::start().await;
    leader.store.loses.store(true, Ordering::Relaxed);
    leader.ask("alice", "lost", IntentKind::Freeze).await.unwrap_err();
    let late = leader.store.lost.lock().remove(0);
    let store = leader.store.store();
    let first = late.expect.first().map(|(key, _)| key.as_str());
    assert_eq!(first, Some(EPOCH), "a conflict names the new leader first");
    for key in [records::PLAN, records::MEMORY, records::AUDIT_HEAD, EPOCH] {
        // Another writer writes the same value: only this one expectation of the transaction notices it.
        let alone = Transaction {
            expect: late.expect.iter().filter(|(it, _)| it == key).cloned().collect(),
            ..late.clone()
        };
        assert_eq!(alone.expect.len(), 1, "{key} is expected to be as it was read");
        let value = store.get(key).await.unwrap().unwrap().value;
        let changed = Transaction {
            put: vec![(key.to_owned(), value)],
            ..Transaction::default()
        };
        store.commit(changed).await.unwrap();
        let refused = store.commit(alone).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Conflict { key: it, .. } if it == key),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_leaders_commit_that_lands_late_changes_nothing_for_its_successor() {
    let leader = Leader::start().await;
    leader.store.loses.store(true, Ordering::Relaxed);
    leader.ask("alice", "lost", IntentKind::Freeze).await.unwrap_err();
    let late = leader.store.lost.lock().remove(0);
    // Another control plane leads, and has written nothing yet.
    let store = leader.store.store();
    let successor = Candidate {
        node: NodeId::new("successor").unwrap(),
        url: "http://successor:7100".into(),
        lease_ttl: Duration::MAX,
    };
    let _lead = store.campaign(&successor).await.unwrap();
    let refused = store.commit(late).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused}");
    let (plan, _) = records::read(&store).await.unwrap().state.unwrap().plan.unwrap();
    assert_eq!(plan.generation, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_forgets_its_oldest_entries_when_it_is_full_and_says_from_where_it_goes() {
    let leader = Leader::start().await;
    leader.insist("before", IntentKind::Freeze).await;
    // The head of a full log: two segments, and no room.
    let store = leader.store.store();
    let (mut head, _) = records::audit_head(&store).await.unwrap();
    assert_eq!((head.number, head.oldest()), (2, 1));
    let full = records::AUDIT_BYTES_MAX;
    head.segments = [
        records::Segment { first: 1, bytes: full },
        records::Segment { first: 2, bytes: 10 },
    ]
    .into();
    let changed = Transaction {
        put: vec![(records::AUDIT_HEAD.to_owned(), records::encode(&head))],
        ..Transaction::default()
    };
    store.commit(changed).await.unwrap();
    leader.insist("after", IntentKind::Unfreeze).await;
    let kept = leader.store.list(records::AUDIT).await.unwrap().entries;
    assert!(!kept.contains_key(&records::audit_key(1)), "the oldest segment is gone");
    let entries = leader.audit().await;
    assert_eq!(entries.first().map(|entry| entry.number), Some(2));
    assert!(entries.iter().all(|entry| entry.version == audit::VERSION));
    assert_eq!(entries.last().unwrap().oldest, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_landed_without_an_answer_is_found_and_not_done_twice() {
    let leader = Leader::start().await;
    leader.store.loses.store(true, Ordering::Relaxed);
    leader.ask("alice", "drain", drain_iad()).await.unwrap_err();
    let landed = leader.store.lost.lock().remove(0);
    leader.store.store().commit(landed).await.unwrap();
    leader.store.loses.store(false, Ordering::Relaxed);
    // The operator got no answer and sends the same token again.
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
    *leader.store.store.lock() = Embedded::open(&leader.folder.path().join("another")).unwrap();
    // The request changes nothing, and it is the first write to the new store.
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
async fn an_approver_learns_the_outcome_of_the_action() {
    let leader = Leader::start().await;
    let rule = topology::Rule::ALL[0];
    leader.insist("override", IntentKind::Override { rule }).await;
    let shown = leader.views.borrow().input.memory.actions["override"].shown_digest();
    let approve = || IntentKind::Approve {
        action: "override".into(),
        shown: shown.clone(),
    };
    let answer = leader.ask("alice", "mine", approve()).await.unwrap();
    assert_eq!(answer.action, None, "nobody approves what they asked for");
    let answer = leader.ask("bob", "his", approve()).await.unwrap();
    let action = answer.action.unwrap();
    assert_eq!(
        (action.intent.id.as_str(), action.approved_by.as_deref()),
        ("override", Some("bob"))
    );
    assert_eq!(replies::outcome_of(Some(&action)), api::v1::Outcome::Running);
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
    // The queue keeps order, so the leader takes the reports before it decides.
    leader.insist("any", IntentKind::Freeze).await;
    let view = leader.views.borrow().clone();
    let lag = view.input.replication[&us_east]["profiles"];
    assert_eq!(lag.behind, Duration::from_secs(TWO_DAYS_S));
}
