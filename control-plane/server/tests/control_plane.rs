//! A real control plane process, spoken to as its nodes and operators do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use api::{Follower, LastGood, v1, v1::operator_client::OperatorClient};
use daemon::Announcement;
use tokio::sync::watch;
use tonic::{Code, transport::Channel};
use topology::{NodeId, Snapshot};

/// Far longer than anything here takes; only a hang gets this far.
const PATIENCE: Duration = Duration::from_secs(30);

struct ControlPlane {
    child: Child,
    endpoint: String,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // It may have ended already; either way none is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ControlPlane {
    async fn start(folder: &Path) -> Self {
        Self::start_with(folder, |topology| topology).await
    }

    async fn start_with(folder: &Path, change: impl Fn(String) -> String) -> Self {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let topology = std::fs::read_to_string(configs.join("topology.toml")).unwrap();
        std::fs::write(folder.join("topology.toml"), change(topology)).unwrap();
        std::fs::copy(configs.join("policy.toml"), folder.join("policy.toml")).unwrap();
        let config = "topology = \"topology.toml\"\npolicy = \"policy.toml\"\n[store]\nfile = \"meridian.redb\"\n";
        std::fs::write(folder.join("control-plane.toml"), config).unwrap();
        let announce = folder.join("announce.json");
        let _ = std::fs::remove_file(&announce);
        let child = Command::new(env!("CARGO_BIN_EXE_meridian-control-plane"))
            .args(["--supervised", "--config"])
            .arg(folder.join("control-plane.toml"))
            .arg("--announce")
            .arg(&announce)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let announced = async {
            loop {
                if let Some(announcement) = Announcement::read(&announce).unwrap() {
                    return announcement;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let announcement = tokio::time::timeout(PATIENCE, announced)
            .await
            .expect("the control plane gets ready");
        Self {
            child,
            endpoint: format!("http://{}", announcement.addresses["grpc"]),
        }
    }

    async fn operator(&self) -> OperatorClient<Channel> {
        OperatorClient::connect(self.endpoint.clone()).await.unwrap()
    }

    fn follower(&self, last_good: &Path) -> Follower {
        Follower {
            endpoints: vec![self.endpoint.clone()],
            node: NodeId::new("edge-iad").unwrap(),
            kind: v1::NodeKind::Edge,
            last_good: LastGood::at(last_good),
        }
    }

    /// A node that follows plans, until the first one has come.
    async fn follow(&self, last_good: &Path) -> Arc<Snapshot> {
        let (sender, mut plans) = watch::channel(None);
        let follower = self.follower(last_good);
        let newer = plans.wait_for(Option::is_some);
        tokio::select! {
            () = follower.run(sender, std::future::pending()) => unreachable!("it was never stopped"),
            plan = tokio::time::timeout(PATIENCE, newer) => plan.expect("a plan comes").unwrap().clone().unwrap(),
        }
    }
}

fn request(region: &str, token: &str) -> v1::FailoverRequest {
    let (reason, author) = ("maintenance".into(), "tester".into());
    v1::FailoverRequest {
        region: region.into(),
        reason,
        author,
        token: token.into(),
    }
}

fn codes(decisions: &[v1::Decision]) -> Vec<&str> {
    decisions
        .iter()
        .map(|decision| decision.reasons[0].code.as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_plan_is_published_and_unsafe_requests_are_refused_with_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    let snapshot = control_plane.follow(&folder.path().join("plan")).await;
    assert_eq!((snapshot.plan.generation, snapshot.plan.epoch), (1, 1));

    // Nothing has been seen of any region yet, so no backup is known to be fit.
    let mut operator = control_plane.operator().await;
    let reply = operator.failover(request("us-east", "t1")).await.unwrap().into_inner();
    assert!(!reply.accepted);
    assert_eq!(reply.reasons[0].code, "no-fit-backup");
    let status = operator.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.intents.is_empty(), "what was refused is not kept");
    assert_eq!(status.regions.len(), 6);

    for (bad, code, complaint) in [
        (
            request("atlantis", "t2"),
            Code::NotFound,
            "there is no region \"atlantis\"; there are ap-northeast",
        ),
        (request("us-west", "t3"), Code::InvalidArgument, "us-west is a backup"),
        (request("us-east", ""), Code::InvalidArgument, "token: it must be given"),
        (
            request("us-east", &"x".repeat(501)),
            Code::InvalidArgument,
            "token: it is longer",
        ),
    ] {
        let error = operator.failover(bad).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.message().contains(complaint), "{error}");
    }

    // A freeze needs an end; the refusal above and the freeze are in the history, newest first.
    let freeze = |duration_ms| v1::FreezeRequest {
        reason: "quiet week".into(),
        author: "tester".into(),
        token: format!("f{duration_ms}"),
        duration_ms,
    };
    assert_eq!(
        operator.freeze(freeze(0)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert!(operator.freeze(freeze(60_000)).await.unwrap().into_inner().accepted);
    let history = operator
        .history(v1::HistoryRequest::default())
        .await
        .unwrap()
        .into_inner()
        .decisions;
    assert_eq!(codes(&history), ["frozen", "no-fit-backup", "genesis"]);
    assert_eq!(history[1].actor, "tester");
    let why = operator
        .why(v1::WhyRequest {
            region: "us-east".into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(why.decisions[0].reasons[0].code, "no-fit-backup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_plan_and_the_freeze() {
    let folder = tempfile::tempdir().unwrap();
    let first = ControlPlane::start(folder.path()).await;
    let mut operator = first.operator().await;
    let freeze = v1::FreezeRequest {
        reason: "r".into(),
        author: "a".into(),
        token: "t".into(),
        duration_ms: 3_600_000,
    };
    operator.freeze(freeze).await.unwrap();
    let before = first.follow(&folder.path().join("plan")).await;
    // SIGKILL: whatever was acknowledged must be on disk.
    drop(first);

    let second = ControlPlane::start(folder.path()).await;
    let status = second
        .operator()
        .await
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.number.unwrap().generation, before.plan.generation);
    assert_eq!(status.intents.len(), 1);
    assert_eq!(status.intents[0].kind, "freeze");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_topology_makes_a_new_plan_and_unknown_nodes_get_none() {
    let folder = tempfile::tempdir().unwrap();
    let first = ControlPlane::start(folder.path()).await;
    let before = first.follow(&folder.path().join("plan")).await;
    drop(first);

    // One more edge, and another address for a stack.
    let second = ControlPlane::start_with(folder.path(), |topology| {
        let edge = "\n[[edge]]\nid = \"edge-bom\"\naddresses = [\"127.0.1.3\"]\nport = 8080\nlatitude = 19.1\nlongitude = 72.9\n";
        topology.replace("127.0.0.1:9001", "127.0.0.1:9901") + edge
    })
    .await;
    let after = second.follow(&folder.path().join("fresh")).await;
    assert_eq!(after.plan.generation, before.plan.generation + 1);
    assert_eq!(after.topology.edges.len(), before.topology.edges.len() + 1);
    assert!(after.plan.epoch > before.plan.epoch);
    let history = second
        .operator()
        .await
        .history(v1::HistoryRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(codes(&history.decisions), ["topology-changed", "genesis"]);

    // A node nobody knows is told so, and follows nothing.
    let mut plans = api::v1::plans_client::PlansClient::connect(second.endpoint.clone())
        .await
        .unwrap();
    let hello = v1::Hello {
        node: "edge-mars".into(),
        kind: v1::NodeKind::Edge.into(),
        have: None,
    };
    let request = v1::WatchRequest {
        message: Some(v1::watch_request::Message::Hello(hello)),
    };
    let error = plans.watch(tokio_stream::iter([request])).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_ahead_of_a_lost_store_keeps_its_plan_and_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let last_good = LastGood::at(folder.path().join("plan"));
    let mut ahead = topology::fixtures::three_primaries();
    ahead.plan.generation = 40;
    last_good.save(&ahead).unwrap();

    let control_plane = ControlPlane::start(folder.path()).await;
    let kept = control_plane.follow(last_good.path()).await;
    assert_eq!(kept.plan.generation, 40);
    let mut operator = control_plane.operator().await;
    let refused = async {
        loop {
            let status = operator.status(v1::StatusRequest {}).await.unwrap().into_inner();
            if let Some(node) = status.nodes.first().filter(|node| !node.refused.is_empty()) {
                return node.refused.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (sender, _plans) = watch::channel(None);
    let follower = control_plane.follower(last_good.path());
    let refused = tokio::select! {
        () = follower.run(sender, std::future::pending()) => unreachable!("it was never stopped"),
        refused = tokio::time::timeout(PATIENCE, refused) => refused.expect("the node is shown as ahead"),
    };
    assert!(refused.contains("newer than ours"), "{refused}");
}
