//! Three control planes on a real etcd cluster: plans survive when one of them or etcd dies, freezes, loses data or lies.
//! Ticks are real ones, so most of these tests take half a minute; the one without a quorum takes ten.
//!
//! One file, although it is long: each story is one way for replicas and etcd to fail, and all read the same log.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::common::{
    self,
    fleet::{
        Fleet, Node, Plane, PlayedNode, Regions, Settings, assert_leads_only_follow_each_other, etcdctl, evacuations,
        eventually, is_left, says, see_every_tick, short_lease, soon, two_more_ticks, until, verified,
    },
    freeze, request,
};
use api::{
    OperatorError, operator,
    v1::{self, act_request::Kind, observations_client::ObservationsClient, watch_request::Message},
};
use async_trait::async_trait;
use etcd_client::{AlarmAction, AlarmType};
use planning::audit;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use server::{
    metrics::{self, Metrics},
    nodes::Nodes,
    reconcile::{self, Reconciler},
    records::{self, Document, DocumentKind},
    store::{
        Candidate, Changes, Entry, Etcd, Health, LeaderRecord, Leadership, Listing, Mirror, Store, StoreError,
        Transaction, WatchEnd, etcd, mirror,
    },
    view::{Role, View},
};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use topology::{EdgeId, EdgeState, NodeId, Plan, PlanNumber, ReasonCode, RegionId, RegionState, Snapshot, Tick};
use world::etcd::{EtcdCluster, EtcdSettings, Size};

/// Longest time from the death of a region to a plan without it that the design allows.
const FAILOVER_MAX: Duration = Duration::from_secs(30);

fn drain_edge(edge: &str, token: &str) -> v1::ActRequest {
    let kind = Kind::DrainEdge(v1::DrainEdge { edge: edge.to_owned() });
    request(kind, token, Some(Duration::from_secs(3_600)))
}

fn failover(region: &str, token: &str) -> v1::ActRequest {
    request(operator::failover(region), token, None)
}

fn is_drained(plan: &Plan, edge: &str) -> bool {
    plan.edges.get(&EdgeId::new(edge).unwrap()) == Some(&EdgeState::Drained)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_leads_all_publish_and_anyone_finds_the_leader() {
    let fleet = Fleet::start().await;
    let leader = fleet.leader().await;
    fleet.all_apply("the first plan", |plan| plan.generation == 1).await;
    let url = &fleet.planes[leader].url;

    for (index, plane) in fleet.planes.iter().enumerate() {
        let reply = common::status_of(&api::Operator::at([&plane.url])).await;
        assert_eq!(reply.leader, fleet.planes[leader].name);
        if index == leader {
            continue;
        }
        eventually("a follower knows the leader", || async {
            (plane.follows().await.as_ref() == Some(url)).then_some(())
        })
        .await;
        let mut client = plane.client().await.unwrap();
        for refused in [
            client.act(freeze("t")).await.map(drop),
            client.plan(v1::PlanRequest::default()).await.map(drop),
            client.history(v1::HistoryRequest::default()).await.map(drop),
            client.audit(v1::AuditRequest::default()).await.map(drop),
        ] {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().contains(&format!("leads, at {url}")), "{status}");
        }
    }

    // A follower gets the request, the leader carries it out, and every control plane publishes the plan.
    let follower = &fleet.planes[(leader + 1) % 3];
    let reply = api::Operator::at([&follower.url])
        .act(drain_edge("edge-dub", "drain"))
        .await;
    assert_eq!(reply.unwrap().outcome(), v1::Outcome::Running);
    let mut published = Vec::new();
    for plane in &fleet.planes {
        let fresh = fleet.folder.path().join(&plane.name).join("plan");
        let node = Node::start("edge-iad", vec![plane.url.clone()], fresh);
        let snapshot = eventually("it publishes the second plan", || async {
            node.plan().filter(|snapshot| snapshot.plan.generation == 2)
        });
        published.push(snapshot.await);
    }
    assert!(is_drained(&published[0].plan, "edge-dub"));
    assert!(published.iter().all(|snapshot| *snapshot == published[0]));
    fleet.all_apply("the second plan", |plan| plan.generation == 2).await;
    fleet.check();
    assert_eq!(fleet.audit().await.len(), 2);
}

/// The moment at which the leader is killed.
enum Killed {
    /// After it judged the first bad tick.
    AfterTheFirstBadTick,
    /// So late that no control plane leads when the second bad tick is judged.
    BeforeTheSecondIsJudged,
}

/// The region dies just before it is probed, as in drills. If it died just after, the first bad tick would be the next
/// one: 23.5 s until the second is judged, and the rest of the 30 s for an election.
async fn a_region_dies_and_so_does_the_leader(killed: Killed) {
    let mut fleet = Fleet::start_with(short_lease()).await;
    fleet.judged().await;
    let leader = fleet.leader().await;
    let died = fleet.region_dies("us-east").await;
    match killed {
        Killed::AfterTheFirstBadTick => {
            eventually("the leader suspects us-east", || async {
                fleet.planes[leader].believes("us-east", "suspect").then_some(())
            })
            .await;
        }
        Killed::BeforeTheSecondIsJudged => {
            let second = Tick(died.tick().0 + 1);
            until(second.start() + Duration::from_millis(9_700)).await;
        }
    }
    fleet.planes[leader].kill();
    let applied = fleet.all_apply_evacuation_of("us-east").await;
    let took = applied.since(died);
    println!("us-east died, and so did the leader; everybody left it after {took:?}");
    assert!(took < FAILOVER_MAX, "{took:?}");

    fleet.planes[leader].start().await;
    two_more_ticks().await;
    fleet.check();
    assert_eq!(fleet.evacuations_applied("us-east").len(), 1);
    let entries = fleet.audit().await;
    let moved = evacuations(&entries, "us-east");
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].actor, planning::PLANNER);
    let genesis = entries[0].plan.as_ref().unwrap();
    assert!(moved[0].input.epoch > genesis.epoch, "a successor did it");
    assert_leads_only_follow_each_other(&entries);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_dies_when_it_suspects_a_region() {
    a_region_dies_and_so_does_the_leader(Killed::AfterTheFirstBadTick).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_dies_just_before_it_would_have_decided() {
    a_region_dies_and_so_does_the_leader(Killed::BeforeTheSecondIsJudged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_frozen_wakes_up_to_no_power() {
    let mut fleet = Fleet::start_with(short_lease()).await;
    fleet.judged().await;
    let frozen = fleet.leader().await;
    // An operator sends the frozen leader a request. It takes the request when it wakes up and still believes to lead.
    let mut client = fleet.planes[frozen].client().await.unwrap();
    fleet.planes[frozen].freeze().await;
    let late = tokio::spawn(async move {
        let mut request = tonic::Request::new(drain_edge("edge-iad", "too late"));
        // Longer than the test; replaces the client's own deadline.
        request.set_timeout(Duration::from_secs(600));
        client.act(request).await
    });

    fleet.leader_besides(frozen).await;
    assert_eq!(fleet.act(freeze("freeze")).await.outcome(), v1::Outcome::Running);
    fleet.act_until_done(failover("us-east", "move")).await;
    fleet.all_apply_evacuation_of("us-east").await;

    fleet.planes[frozen].resume();
    // The request may fail in any way, but it is not carried out.
    assert!(soon("the late request ends", late).await.unwrap().is_err());
    eventually("it follows its successor", || async {
        let url = fleet.planes[frozen].follows().await?;
        let followed = fleet.planes.iter().find(|plane| plane.url == url)?;
        followed.status().await.ok().map(drop)
    })
    .await;
    assert!(
        fleet.planes[frozen]
            .log()
            .contains("the leadership was lost; this control plane follows")
    );
    two_more_ticks().await;
    fleet.check();
    let entries = fleet.audit().await;
    assert_leads_only_follow_each_other(&entries);
    assert!(entries.iter().all(|entry| {
        let request = entry.input.request.as_ref();
        request.is_none_or(|request| request.id != "too late")
    }));
    assert_eq!(evacuations(&entries, "us-east").len(), 1);
    for node in &fleet.nodes {
        assert!(!is_drained(&node.plan().unwrap().plan, "edge-iad"));
    }
}

/// The moment at which a leader dies that decided to evacuate a region.
#[derive(Clone, Copy, PartialEq)]
enum Dies {
    BeforeItIsWritten,
    /// After the commit, before the plan is published.
    BeforeItIsPublished,
}

/// An etcd store whose owner dies at the commit that evacuates us-east: that commit never returns.
struct DyingStore {
    etcd: Etcd,
    dies: Dies,
    died: Arc<Notify>,
}

#[async_trait]
impl Store for DyingStore {
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let us_east = RegionId::new("us-east").unwrap();
        let plan = transaction.put.iter().find(|(key, _)| key == records::PLAN);
        let plan = plan.map(|(_, bytes)| serde_json::from_slice::<Plan>(bytes).unwrap());
        if !plan.is_some_and(|plan| is_left(&plan, &us_east)) {
            return self.etcd.commit(transaction).await;
        }
        if self.dies == Dies::BeforeItIsPublished {
            self.etcd.commit(transaction).await.unwrap();
        }
        self.died.notify_one();
        std::future::pending().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.etcd.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.etcd.list(prefix).await
    }
    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
        self.etcd.watch(prefix, after_revision).await
    }
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        self.etcd.campaign(candidate).await
    }
    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        self.etcd.leader().await
    }
    async fn health(&self) -> Result<Health, StoreError> {
        self.etcd.health().await
    }
}

/// The deciding part of a control plane, without its process: it dies when it is dropped.
struct Replica {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    views: watch::Receiver<Arc<View>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Replica {
    fn start(name: &str, store: Arc<dyn Store>, regions: &Regions) -> Self {
        let document = |kind: DocumentKind| {
            let text = common::fleet::configured(&format!("{}.toml", kind.as_str()));
            Document::new(kind, text, "tester", daemon::clock::now())
        };
        let settings = reconcile::Settings {
            candidate: Candidate {
                node: NodeId::new(name).unwrap(),
                url: format!("http://{name}:7100"),
                // Longer than a busy machine keeps a leader from renewing it.
                lease_ttl: Duration::from_secs(10),
            },
            topology: document(DocumentKind::Topology),
            policy: document(DocumentKind::Policy),
        };
        let reconciler = Reconciler::new(settings, store.clone(), Nodes::default(), Metrics::default()).unwrap();
        let (snapshots, views) = (reconciler.snapshots(), reconciler.views());
        let (inbox, requests) = mpsc::channel(reconcile::INBOX_LENGTH);
        let (mirror, follow) = Mirror::new(store, records::STATE, mirror::Settings::default());
        let mut tasks = vec![
            tokio::spawn(follow.run(CancellationToken::new())),
            tokio::spawn(async move {
                let ended = reconciler.run(requests, mirror.contents(), CancellationToken::new());
                ended.await.unwrap();
            }),
        ];
        for edge in ["edge-iad", "edge-dub"] {
            let inbox = inbox.clone();
            let see = see_every_tick(NodeId::new(edge).unwrap(), regions.clone(), move |report| {
                // It may be dead.
                let _ = inbox.try_send(reconcile::Request::Observe(report.into()));
            });
            tasks.push(tokio::spawn(see));
        }
        Self {
            snapshots,
            views,
            tasks,
        }
    }

    async fn leads(&self) {
        let mut views = self.views.clone();
        let leads = views.wait_for(|view| view.role == Role::Leading);
        soon("it leads", leads).await.unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn the_leader_decides_to_leave_us_east_and(dies: Dies) {
    let folder = tempfile::tempdir().unwrap();
    let cluster = EtcdCluster::start(EtcdSettings::for_tests(Size::One, folder.path()));
    let cluster = cluster.await.unwrap();
    let store = || async { Etcd::connect(etcd::Settings::new(cluster.endpoints())).await.unwrap() };
    let etcd = store().await;
    let (regions, died) = (Regions::default(), Arc::new(Notify::new()));
    let dying = DyingStore {
        etcd: store().await,
        dies,
        died: died.clone(),
    };
    let first = Replica::start("control-plane-1", Arc::new(dying), &regions);
    first.leads().await;
    let second = Replica::start("control-plane-2", Arc::new(store().await), &regions);
    // The region is dead from now on; reports of the tick before still show it alive.
    regions.dies_at("us-east", daemon::clock::now());

    soon("it decides", died.notified()).await;
    let published = first.snapshots.borrow().as_ref().unwrap().plan.number();
    assert_eq!(published.generation, 1, "it told nobody");
    drop(first);
    let written: Option<Plan> = etcd
        .get(records::PLAN)
        .await
        .unwrap()
        .map(|entry| serde_json::from_slice(&entry.value).unwrap());
    second.leads().await;
    let us_east = RegionId::new("us-east").unwrap();
    let mut snapshots = second.snapshots.clone();
    let left = snapshots.wait_for(|it| it.as_ref().is_some_and(|it| is_left(&it.plan, &us_east)));
    let plan = soon("the successor publishes", left).await.unwrap().clone().unwrap();
    match dies {
        Dies::BeforeItIsPublished => {
            assert_eq!(Some(&plan.plan), written.as_ref(), "exactly what was written");
            assert!(plan.plan.epoch < second.views.borrow().input.epoch);
        }
        Dies::BeforeItIsWritten => {
            assert_eq!(written.unwrap().generation, 1);
            assert_eq!(plan.plan.epoch, second.views.borrow().input.epoch);
        }
    }

    // The leader judges two more ticks, and decides nothing further.
    two_more_ticks().await;
    assert_eq!(second.snapshots.borrow().as_ref().unwrap().plan, plan.plan);

    // The region is back. A control plane that just started trusts the plan, not the first good tick.
    regions.lives("us-east");
    let third = Replica::start("control-plane-3", Arc::new(store().await), &regions);
    drop(second);
    third.leads().await;
    let mut views = third.views.clone();
    let judged = views.wait_for(|view| {
        let verdict = view.input.verdicts.get(&us_east);
        verdict.is_some_and(|it| it.health != verdict::Health::Blind && it.health != verdict::Health::NoData)
    });
    let view = soon("it judges", judged).await.unwrap().clone();
    let verdict = &view.input.verdicts[&us_east];
    assert!(
        verdict.health == verdict::Health::Down && !verdict.failing,
        "{verdict:?}"
    );
    let entries = stored_audit(&etcd).await;
    assert_eq!(evacuations(&entries, "us-east").len(), 1);
    assert_leads_only_follow_each_other(&entries);
}

/// The audit log in the store.
async fn stored_audit(etcd: &Etcd) -> Vec<audit::Entry> {
    use v1::audit_item::Item;
    let mut items = Vec::new();
    for (key, entry) in etcd.list(records::DOCUMENTS).await.unwrap().entries {
        let document = v1::Document {
            version: key[records::DOCUMENTS.len()..].to_owned(),
            text: String::from_utf8(entry.value).unwrap(),
            ..Default::default()
        };
        items.push(Item::Document(document));
    }
    let entries = etcd.list(records::AUDIT).await.unwrap().entries;
    items.extend(entries.into_values().map(|entry| Item::Entry(entry.value.into())));
    items.push(Item::Head(records::audit_head(etcd).await.unwrap().0.hash));
    verified(
        items
            .into_iter()
            .map(|item| v1::AuditItem { item: Some(item) })
            .collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_publishes_a_plan_that_its_leader_only_wrote() {
    the_leader_decides_to_leave_us_east_and(Dies::BeforeItIsPublished).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_decides_again_if_its_leader_did_not_write() {
    the_leader_decides_to_leave_us_east_and(Dies::BeforeItIsWritten).await;
}

/// Bounds a random run. The test prints its seed, and MERIDIAN_TEST_SEED repeats it.
const BAD_DAYS: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two minutes: make soak"]
async fn two_minutes_of_deaths_and_one_evacuation() {
    let seed =
        std::env::var("MERIDIAN_TEST_SEED").map_or_else(|_| daemon::clock::now().0, |seed| seed.parse().unwrap());
    println!("MERIDIAN_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::start_with(short_lease()).await;
    fleet.judged().await;
    let began = daemon::clock::now();
    let pause = |rng: &mut StdRng, seconds: std::ops::Range<f64>| Duration::from_secs_f64(rng.random_range(seconds));

    // An operator sends the request before a change of leader and again after it, without knowing the first outcome.
    let people = fleet.operator();
    let first = people.act(drain_edge("edge-dub", "once")).await;
    let leader = fleet.leader().await;
    fleet.planes[leader].kill();
    let again = fleet.act(drain_edge("edge-dub", "once")).await;
    assert_eq!(again.outcome(), v1::Outcome::Running, "{first:?} {again:?}");
    fleet.planes[leader].start().await;

    let mut died = None;
    while daemon::clock::now() < began + BAD_DAYS {
        if died.is_none() && daemon::clock::now() > began + BAD_DAYS / 3 {
            let at = daemon::clock::now().tick().end() + Duration::from_secs(5);
            fleet.regions.dies_at("us-east", at);
            died = Some(at);
        }
        // Half of the deaths hit the leader.
        let leads = fleet.planes.iter().position(|plane| {
            let metrics = plane.metrics();
            metrics.is_some_and(|metrics| metrics.contains("meridian_control_plane_leading 1"))
        });
        let victim = leads.filter(|_| rng.random_bool(0.5)).unwrap_or(rng.random_range(0..3));
        match rng.random_range(0..8) {
            0..=2 => {
                fleet.planes[victim].kill();
                tokio::time::sleep(pause(&mut rng, 0.0..6.0)).await;
                fleet.planes[victim].start().await;
            }
            3..=5 => {
                fleet.planes[victim].freeze().await;
                tokio::time::sleep(pause(&mut rng, 0.5..6.0)).await;
                fleet.planes[victim].resume();
            }
            6 => {
                fleet.etcd.kill(victim).unwrap();
                tokio::time::sleep(pause(&mut rng, 0.0..3.0)).await;
                fleet.etcd.restart(victim).await.unwrap();
            }
            _ => {
                fleet.etcd.stop(victim).await.unwrap();
                tokio::time::sleep(pause(&mut rng, 0.5..3.0)).await;
                fleet.etcd.resume(victim).unwrap();
            }
        }
        tokio::time::sleep(pause(&mut rng, 0.5..4.0)).await;
    }
    let died = died.expect("there was time for it");
    let applied = fleet.all_apply_evacuation_of("us-east").await;
    println!("us-east was left by everybody after {:?}", applied.since(died));
    two_more_ticks().await;
    fleet.check();
    assert_eq!(fleet.evacuations_applied("us-east").len(), 1);
    let entries = fleet.audit().await;
    assert_leads_only_follow_each_other(&entries);
    assert_eq!(evacuations(&entries, "us-east").len(), 1);
    let reasons = || entries.iter().flat_map(|entry| &entry.reasons);
    assert_eq!(
        reasons()
            .filter(|reason| reason.code == ReasonCode::EdgeDrained)
            .count(),
        1
    );
    let leads: std::collections::BTreeSet<u64> = entries.iter().map(|entry| entry.input.epoch).collect();
    println!("{} decisions of {} leaders", entries.len(), leads.len());
    for plane in &mut fleet.planes {
        assert!(!plane.has_ended(), "{} ended by itself", plane.name);
    }
}

/// Time without a quorum; MERIDIAN_TEST_QUORUM_LOSS_S shortens it.
const QUORUM_LOSS_S: u64 = 600;
/// Limit on the answer to an operator that no control plane leads: three searches for a leader, and a busy machine.
const REFUSAL_MAX: Duration = Duration::from_secs(20);
/// Limit on recovery: candidates retry about every five seconds, then come a lease and two ticks.
const CATCH_UP_MAX: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: make soak"]
async fn ten_minutes_without_a_quorum_change_nothing() {
    let lasts = std::env::var("MERIDIAN_TEST_QUORUM_LOSS_S").map_or(QUORUM_LOSS_S, |text| text.parse().unwrap());
    let mut fleet = Fleet::start_with(short_lease()).await;
    fleet.judged().await;
    fleet.act(drain_edge("edge-dub", "before")).await;
    fleet.all_apply("the second plan", |plan| plan.generation == 2).await;
    fleet.etcd.kill(0).unwrap();
    fleet.etcd.stop(1).await.unwrap();
    let began = Instant::now();
    for plane in &fleet.planes {
        eventually("it leads no more", || async {
            let status = plane.status().await.err()?;
            (status.code() == Code::FailedPrecondition).then_some(())
        })
        .await;
    }
    fleet.region_dies("us-east").await;
    // The outage spans two ticks, a control plane that starts without state, and a node that starts with its plan on disk.
    fleet.planes[2].kill();
    fleet.planes[2].start().await;
    fleet.nodes[0].restart();
    while began.elapsed() < Duration::from_secs(lasts) {
        let asked = Instant::now();
        let error = fleet.operator().act(freeze("in vain")).await.unwrap_err();
        assert!(matches!(error, OperatorError::NoLeader { .. }), "{error}");
        assert!(error.to_string().contains("the store cannot be reached"), "{error}");
        assert!(asked.elapsed() < REFUSAL_MAX, "{:?}", asked.elapsed());
        // No control plane leads: `status` shows the last state and its age.
        let status = fleet.operator().status().await.unwrap();
        assert!(status.leader.is_empty(), "{status:?}");
        assert!(
            status.not_leading.contains("the store cannot be reached"),
            "{}",
            status.not_leading
        );
        assert!(status.stale_ms > 0, "{status:?}");
        let why = fleet.operator().why("us-east").await.unwrap();
        assert!(!why.history_missing.is_empty() && !why.evidence.is_empty(), "{why:?}");
        assert_eq!(status.number.unwrap().generation, 2);
        for node in &fleet.nodes {
            assert_eq!(node.plan().map(|it| it.plan.generation), Some(2), "{}", node.id);
        }
        for plane in &mut fleet.planes {
            assert!(!plane.has_ended(), "{} ended by itself", plane.name);
            assert!(plane.page("/health").unwrap().contains("200 OK"));
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    for (plane, has_a_plan) in fleet.planes.iter().zip([true, true, false]) {
        assert!(plane.log().contains("the store cannot be reached"), "{}", plane.name);
        let page = plane.page("/ready").unwrap();
        let ready = page.contains("200 OK");
        assert_eq!(ready, has_a_plan, "who has a plan to give is ready: {}", plane.name);
        assert!(page.contains("no control plane is known to lead since"), "{page}");
        assert!(plane.metric(metrics::LEADERLESS).unwrap() > 0.0, "{}", plane.name);
        let stale = plane.metric(metrics::STORE_STALENESS);
        // A control plane that never read the store has no copy, so its copy has no age.
        assert_eq!(stale.is_some(), has_a_plan, "{}", plane.name);
        let away = Duration::from_secs(lasts).as_secs_f64();
        assert!(stale.is_none_or(|stale| stale >= away), "{stale:?} in {}", plane.name);
    }

    fleet.etcd.resume(1).unwrap();
    let back = daemon::clock::now();
    let applied = fleet.all_apply_evacuation_of("us-east").await;
    let took = applied.since(back);
    println!("with a quorum again everybody left us-east after {took:?}");
    assert!(took < CATCH_UP_MAX, "{took:?}");
    fleet.etcd.restart(0).await.unwrap();
    two_more_ticks().await;
    fleet.check();
    let entries = fleet.audit().await;
    assert_eq!(evacuations(&entries, "us-east").len(), 1);
    assert_leads_only_follow_each_other(&entries);
    let asked_in_vain = |entry: &audit::Entry| entry.input.request.as_ref().is_some_and(|it| it.id == "in vain");
    assert!(!entries.iter().any(asked_in_vain));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_refuses_with_the_remedy_and_goes_on_after_it() {
    let fleet = Fleet::start_with(Settings {
        quota_bytes: Some(4 << 20),
        ..Settings::default()
    });
    let fleet = fleet.await;
    fleet.judged().await;
    fleet.all_apply("the first plan", |plan| plan.generation == 1).await;
    let mut client = etcd_client::Client::connect(fleet.etcd.endpoints(), None)
        .await
        .unwrap();
    while client.put("/junk", vec![b'x'; 256 << 10], None).await.is_ok() {}

    let error = fleet
        .operator()
        .act(drain_edge("edge-dub", "no room"))
        .await
        .unwrap_err();
    for remedy in ["compact", "defrag", "alarm disarm"] {
        let told = matches!(&error, OperatorError::Rejected(why) if why.contains(remedy));
        assert!(told, "{error}");
    }
    // A region dies. `status` shows that, and that no decision can be written.
    let leader = &fleet.planes[fleet.leader().await];
    assert!(leader.page("/ready").unwrap().contains("503"));
    fleet.region_dies("us-east").await;
    let status = eventually("a failover is decided and not written", || async {
        let status = leader.status().await.ok()?;
        let pending = &status.unwritten.as_ref()?.pending;
        pending.iter().any(|reason| reason.code == "failover").then_some(status)
    })
    .await;
    let us_east = status.regions.iter().find(|it| it.region == "us-east").unwrap();
    assert_eq!((us_east.health.as_str(), us_east.state.as_str()), ("down", "serving"));
    let progress = status.progress.unwrap();
    assert!(status.now_ms - progress.judged_tick_end_ms < 12_000, "{progress:?}");
    assert_eq!(progress.committed.unwrap().generation, 1);
    assert_eq!((progress.nodes, progress.nodes_acknowledged), (3, 3));
    let why = fleet.operator().why("us-east").await.unwrap();
    assert!(why.unwritten.unwrap().error.contains("the store is full"));
    assert!(
        leader
            .page("/ready")
            .unwrap()
            .contains("decisions cannot be written since")
    );
    assert!(leader.metric(metrics::UNWRITTEN).unwrap() > 0.0);
    // Control planes still serve plans, also to a node without any.
    let fresh = fleet.folder.path().join("fresh");
    let node = Node::start("edge-dub", fleet.urls(), fresh);
    eventually("it gets the plan", || async { node.plan() }).await;
    assert_eq!(fleet.operator().history(0).await.unwrap().len(), 1);

    let revision = client.get("/junk", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    for endpoint in fleet.etcd.endpoints() {
        let mut member = etcd_client::Client::connect([endpoint], None).await.unwrap();
        member.defragment().await.unwrap();
    }
    let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.unwrap();
    for alarm in alarms.alarms() {
        let mut member = etcd_client::AlarmOptions::new();
        member.with_member(alarm.member_id());
        let disarm = client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(member));
        disarm.await.unwrap();
    }
    fleet.all_apply_evacuation_of("us-east").await;
    eventually("the leader is ready again", || async {
        leader.page("/ready")?.contains("200 OK").then_some(())
    })
    .await;
    // The token of a refused request is free.
    let reply = fleet.act(drain_edge("edge-dub", "no room")).await;
    assert_eq!(reply.outcome(), v1::Outcome::Running);
    fleet
        .all_apply("the next plan", |plan| is_drained(plan, "edge-dub"))
        .await;
    fleet.check();
    let entries = fleet.audit().await;
    assert_eq!(evacuations(&entries, "us-east").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_teach_an_etcd_that_was_restored_from_an_old_snapshot() {
    let mut fleet = Fleet::start_with(short_lease()).await;
    fleet.judged().await;
    fleet.all_apply("the first plan", |plan| plan.generation == 1).await;
    let snapshot = fleet.folder.path().join("snapshot");
    let endpoint = format!("--endpoints={}", fleet.etcd.endpoints()[0]);
    etcdctl(&[&endpoint, "snapshot", "save", &snapshot.display().to_string()]);
    // The snapshot lacks these two plans and this leader.
    fleet.act_until_done(failover("us-east", "move")).await;
    let leader = fleet.leader().await;
    fleet.planes[leader].kill();
    let reply = fleet.act(failover("us-east", "again")).await;
    assert_eq!(reply.reasons[0].code, "already-so", "{reply:?}");
    fleet.act(drain_edge("edge-dub", "drain")).await;
    fleet.all_apply("the third plan", |plan| plan.generation == 3).await;

    fleet.restore_etcd(&snapshot).await;
    let recovers = |plan: &Plan| {
        plan.reasons
            .iter()
            .any(|reason| reason.code == ReasonCode::PlanRecovered)
    };
    fleet
        .all_apply("the recovered plan", |plan| plan.generation == 4 && recovers(plan))
        .await;
    let us_east = RegionId::new("us-east").unwrap();
    for node in &fleet.nodes {
        let plan = node.plan().unwrap();
        assert_eq!(plan.plan.regions[&us_east].state, RegionState::Evacuated);
    }
    // The plan of an order after the snapshot stays in force, although the store lost the order; an operator ends it.
    assert!(
        fleet
            .nodes
            .iter()
            .all(|node| is_drained(&node.plan().unwrap().plan, "edge-dub"))
    );
    fleet.judged().await;
    let action = "recovered-3-edge-dub".to_owned();
    let abort = request(Kind::Abort(v1::Abort { action }), "next", None);
    fleet.act(abort).await;
    fleet
        .all_apply("the plan after it", |plan| {
            plan.generation > 4 && !is_drained(plan, "edge-dub")
        })
        .await;
    fleet.check();
    assert_eq!(fleet.evacuations_applied("us-east").len(), 1);
    let entries = fleet.audit().await;
    assert!(entries.iter().filter_map(|entry| entry.plan.as_ref()).any(recovers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_refuses_keeps_its_plan_is_shown_and_undoes_nothing() {
    let fleet = Fleet::start_with(Settings {
        following: vec!["edge-iad", "ns1"],
        ..Settings::default()
    });
    let fleet = fleet.await;
    fleet.judged().await;
    let leader = &fleet.planes[fleet.leader().await];
    let mut node = PlayedNode::hello(&leader.url, "edge-dub").await.unwrap();
    let good = node.plan().await;
    node.acknowledge(good.plan.number()).await;
    all_acknowledge(leader, 1).await;

    let reply = fleet.act(failover("us-east", "move")).await;
    // The plan is in force. The order is done only once most edges apply it, and one of two refuses.
    assert_eq!(reply.outcome(), v1::Outcome::Running, "{reply:?}");
    let ordered = node.plan().await;
    let entries = fleet.audit().await.len();
    for _ in 0..20 {
        node.refuse(ordered.plan.number(), "I cannot take that").await;
    }
    eventually("the refusal is shown", || async {
        let waiting = leader.status().await.ok()?.waiting;
        let shown = waiting.iter().find(|reason| reason.code == "refused-by-nodes")?;
        assert!(shown.text.starts_with("edge-dub refuses plan 2"), "{shown:?}");
        assert!(shown.evidence[0].contains("I cannot take that"), "{shown:?}");
        Some(())
    })
    .await;
    // The order stands, and automation continues: it evacuates a region that dies.
    fleet.region_dies("eu-west").await;
    fleet.all_apply_evacuation_of("eu-west").await;
    let next = node.plan().await;
    assert_eq!(next.plan.generation, 3);
    assert_eq!(
        next.plan.regions[&RegionId::new("us-east").unwrap()].state,
        RegionState::Evacuated
    );
    node.acknowledge(next.plan.number()).await;
    all_acknowledge(leader, 3).await;
    fleet.check();
    let entries_after = eventually("the order is done", || async {
        let entries = fleet.audit().await;
        let of_order = |entry: &audit::Entry| entry.reasons.iter().any(|it| it.code == ReasonCode::OrderDone);
        entries.iter().any(of_order).then_some(entries)
    })
    .await;
    assert_eq!(
        entries_after.len(),
        entries + 2,
        "the next plan and the end of the order; a refusal is no entry of the log"
    );
}

/// Waits until all three nodes acknowledged a plan at the leader: they can go back to it.
async fn all_acknowledge(leader: &Plane, generation: u64) {
    eventually("all nodes apply it", || async {
        let nodes = leader.status().await.ok()?.nodes;
        let applied = |node: &v1::NodeStatus| node.acknowledged.map(|number| number.generation);
        (nodes.len() == 3 && nodes.iter().all(|node| applied(node) == Some(generation))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_of_a_node_stops_a_control_plane() {
    let mut fleet = Fleet::start().await;
    fleet.all_apply("the first plan", |plan| plan.generation == 1).await;
    fleet.judged().await;
    let leader = fleet.leader().await;
    let url = fleet.planes[leader].url.clone();

    // Bytes that are no HTTP/2, or that end in the middle.
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff",
    ] {
        let mut stream = tokio::net::TcpStream::connect(url.trim_start_matches("http://"))
            .await
            .unwrap();
        stream.write_all(garbage).await.unwrap();
    }

    // Streams of plans that do not begin with a hello, or whose hello names no node.
    let ack = |generation, epoch| {
        let number = Some(v1::PlanNumber { generation, epoch });
        Message::Ack(v1::Ack { number })
    };
    let hello = |node: &str| {
        Message::Hello(v1::Hello {
            node: node.to_owned(),
            ..Default::default()
        })
    };
    for (first, code, complaint) in [
        (
            says(ack(1, 1)),
            Code::InvalidArgument,
            "the first message of a node is its hello",
        ),
        (
            v1::WatchRequest::default(),
            Code::InvalidArgument,
            "the first message of a node is its hello",
        ),
        (says(hello("")), Code::InvalidArgument, ""),
        (says(hello("../../etc")), Code::InvalidArgument, ""),
        (says(hello(&"x".repeat(100_000))), Code::InvalidArgument, ""),
        (
            says(hello("edge-mars")),
            Code::PermissionDenied,
            "neither an edge nor a name server",
        ),
    ] {
        let error = PlayedNode::open(&url, vec![first]).await.map(drop).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(complaint), "{error}");
    }

    // A node that lies: it acknowledges plans that never were, sends a false plan, and sends too much.
    let mut liar = PlayedNode::hello(&url, "edge-dub").await.unwrap();
    let mut absurd = liar.plan().await;
    liar.say(ack(999, 999)).await;
    let asked = soon("it is asked for the plan", liar.updates.message())
        .await
        .unwrap()
        .unwrap();
    assert!(asked.send_yours);
    let held = |snapshot: &Snapshot| Message::Held(v1::Held::from(snapshot));
    liar.say(Message::Held(v1::Held {
        document: b"no plan".to_vec().into(),
        checksum: "0".repeat(64),
    }))
    .await;
    for generation in [u64::MAX, u64::MAX - 1] {
        absurd.plan.generation = generation;
        liar.say(held(&absurd)).await;
    }
    absurd.plan.generation = 1_000;
    absurd.plan.routes.clear();
    liar.say(held(&absurd)).await;
    liar.refuse(
        PlanNumber {
            generation: 7,
            epoch: 7,
        },
        &"no ".repeat(1_000),
    )
    .await;
    liar.say(Message::Hello(v1::Hello::default())).await;
    liar.say(Message::Nack(v1::Nack::default())).await;
    liar.say(ack(u64::MAX, u64::MAX)).await;

    // Reports that are too long, without a vantage, of ticks that are not over or long past, and with nonsense.
    let now = daemon::clock::now().tick().0;
    let report = |vantage: &str, tick| v1::TickReport {
        vantage: vantage.to_owned(),
        tick,
        ..Default::default()
    };
    let observation = |region: &str| v1::Observation {
        region: region.to_owned(),
        component: "gateway".to_owned(),
        source: v1::Source::Probe.into(),
        failed: 1_000,
        ..Default::default()
    };
    let oversized = v1::TickReport {
        observations: vec![observation(&"r".repeat(1_000)); 6_000],
        ..report("edge-dub", now - 1)
    };
    let unreadable = v1::TickReport {
        observations: vec![observation("Not A Region")],
        ..report("edge-dub", now - 1)
    };
    let bad_latency = v1::Observation {
        latency: b"[[1e400,-1]]".to_vec().into(),
        ..observation("us-east")
    };
    let bad_latency = v1::TickReport {
        observations: vec![bad_latency],
        ..report("edge-dub", now - 1)
    };
    for (report, code) in [
        (oversized, Code::OutOfRange),
        (unreadable, Code::InvalidArgument),
        (bad_latency, Code::InvalidArgument),
        (report("", now - 1), Code::InvalidArgument),
    ] {
        let error = told(&url, report).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    let all_dead = |vantage: &str, tick| v1::TickReport {
        observations: ["us-east", "eu-west", "ap-south"].map(observation).to_vec(),
        ..report(vantage, tick)
    };
    for ignored in [
        all_dead("edge-mars", now - 1),
        all_dead("control-plane-9", now - 1),
        all_dead("edge-dub", now + 30),
        all_dead("edge-iad", u64::MAX),
        all_dead("edge-dub", now - 30),
        all_dead("edge-iad", 0),
    ] {
        let tick = ignored.tick;
        assert_eq!(
            told(&url, ignored).await.unwrap(),
            tick,
            "received, which is not believed"
        );
    }

    two_more_ticks().await;
    for plane in &mut fleet.planes {
        assert!(!plane.has_ended(), "{} ended by itself", plane.name);
        assert!(!plane.log().contains("panicked"), "{}", plane.name);
    }
    fleet.judged().await;
    let reply = fleet.act(drain_edge("edge-dub", "still here")).await;
    assert_eq!(
        (reply.outcome(), reply.number.unwrap().generation),
        (v1::Outcome::Running, 2)
    );
    fleet.all_apply("the second plan", |plan| plan.generation == 2).await;
    fleet.check();
}

/// Sends a report. Returns the tick of its receipt, or the reason for its refusal.
async fn told(url: &str, report: v1::TickReport) -> Result<u64, tonic::Status> {
    let (reports, requests) = mpsc::channel(1);
    reports.send(report).await.unwrap();
    let mut client = ObservationsClient::connect(url.to_owned()).await.unwrap();
    let mut receipts = soon("it answers", client.report(ReceiverStream::new(requests)))
        .await?
        .into_inner();
    let receipt = soon("it receives", receipts.message()).await?;
    Ok(receipt.expect("a receipt or an error").tick)
}
