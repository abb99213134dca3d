//! A real control plane process with a store of its own, and tests that speak to it as nodes and operators do.
//!
//! One file, although it is long: each story needs the same process, and most are short.

use crate::common::{
    ControlPlane, DEADLINE, act, codes,
    fleet::{self, PlayedNode},
    freeze, request, status_of,
};
use api::{
    OperatorError, operator,
    v1::{self, watch_request::Message},
};
use node::LastGood;
use planning::audit;
use tokio::sync::watch;
use tonic::Code;
use topology::Snapshot;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_plan_is_published_and_unsafe_requests_are_refused_with_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    let snapshot = control_plane.follow(&folder.path().join("plan")).await;
    assert_eq!((snapshot.plan.generation, snapshot.plan.epoch), (1, 1));

    let people = control_plane.operator();
    let failover = |region: &str, token: &str| request(operator::failover(region), token, None);
    let status = status_of(&people).await;
    assert!(status.actions.is_empty(), "what was refused is not kept");
    assert_eq!(status.regions.len(), 6);

    for (region, complaint) in [
        ("atlantis", "there is no region atlantis"),
        ("us-west", "us-west is a backup"),
    ] {
        let reply = act(&people, failover(region, "t2")).await;
        assert_eq!(
            (reply.outcome(), reply.reasons[0].code.as_str()),
            (v1::Outcome::Refused, "bad-request")
        );
        assert!(reply.reasons[0].text.contains(complaint), "{reply:?}");
    }
    for (bad, complaint) in [
        (failover("us-east", ""), "token: missing"),
        (
            failover("us-east", &"x".repeat(501)),
            "token: is 501 bytes, the limit is 64",
        ),
        (failover("Not A Region", "t"), "region: "),
        (
            request(rollout("1.2\u{1b}[2J"), "t", None),
            "version: contains line breaks, control characters",
        ),
        (
            v1::ActRequest {
                reason: "all is well\u{202e}".into(),
                ..freeze("t")
            },
            "reason: contains line breaks, control characters",
        ),
        (
            v1::ActRequest {
                kind: None,
                ..freeze("t")
            },
            "kind: missing",
        ),
        // A freeze needs an end.
        (
            v1::ActRequest {
                duration_ms: 0,
                ..freeze("t")
            },
            "duration: must be greater than zero and at most 24h",
        ),
    ] {
        let error = people.act(bad).await.unwrap_err();
        assert!(
            matches!(&error, OperatorError::Rejected(why) if why.contains(complaint)),
            "{error}"
        );
    }
    let error = people.why("atlantis").await.unwrap_err().to_string();
    assert!(
        error.contains("there is no region \"atlantis\"; there are ap-northeast"),
        "{error}"
    );

    let reply = act(&people, freeze("f")).await;
    assert_eq!(reply.outcome(), v1::Outcome::Running);
    // The same token means the same freeze; another kind of request with that token is refused.
    let again = act(&people, freeze("f")).await;
    assert_eq!(again.reasons[0].code, "already-so");
    let error = people.act(failover("us-east", "f")).await.unwrap_err().to_string();
    assert!(error.contains("was used for another request"), "{error}");
    // The refusals and the freeze are in the history, newest first.
    let history = people.history(0).await.unwrap();
    assert_eq!(codes(&history), ["frozen", "bad-request", "bad-request", "genesis"]);
    assert_eq!(history[2].actor, "tester");
    let why = people.why("us-west").await.unwrap();
    assert_eq!(why.decisions[0].reasons[0].code, "bad-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_refused_requests_is_slowed_down_and_fills_no_log() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    control_plane.follow(&folder.path().join("plan")).await;
    let people = control_plane.operator();
    let mut told = None;
    for number in 0..40 {
        let asked = request(operator::failover("atlantis"), &format!("t{number}"), None);
        if let Err(error) = people.act(asked).await {
            told = Some(error);
            break;
        }
    }
    let told = told.expect("it is slowed down").to_string();
    assert!(
        told.contains("too many requests of tester changed nothing") && told.contains("ask again in"),
        "{told}"
    );
    assert!(people.history(0).await.unwrap().len() <= 41);
    // The limit does not delay another author.
    let other = operator::request(
        v1::act_request::Kind::Freeze(v1::Freeze {}),
        "maintenance",
        "somebody else",
        "f",
        Some(std::time::Duration::from_secs(60)),
    );
    assert_eq!(act(&people, other).await.outcome(), v1::Outcome::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_too_large_is_refused_before_the_store_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    control_plane.follow(&folder.path().join("plan")).await;
    let people = control_plane.operator();
    let document = people.document(v1::DocumentKind::Topology).await.unwrap();
    let huge = v1::ApplyDocumentRequest {
        kind: v1::DocumentKind::Topology.into(),
        text: document.text + &"# a comment\n".repeat(100_000),
        replaces: document.version,
        author: "tester".into(),
        reason: "large".into(),
        token: "t".into(),
        dry_run: false,
    };
    let refused = people.apply(huge).await.unwrap_err().to_string();
    assert!(
        refused.contains("text: the topology document is 1") && refused.contains("the limit is"),
        "{refused}"
    );
    assert!(status_of(&people).await.unwritten.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    let people = control_plane.operator();
    let tried = people.plan(Some(freeze("try"))).await.unwrap();
    assert_eq!((tried.outcome(), tried.changes), (v1::Outcome::Running, false));
    assert_eq!(tried.changed[0].code, "frozen");
    let tried = people
        .plan(Some(request(operator::failover("us-east"), "try", None)))
        .await
        .unwrap();
    // An order needs no telemetry: no report has arrived yet.
    assert_eq!((tried.outcome(), tried.changes), (v1::Outcome::Done, true));
    let check = |rule: &str| {
        tried
            .checks
            .iter()
            .find(|check| check.rule == rule)
            .map(|check| check.passed)
    };
    assert_eq!(check("regions-serving-min"), Some(true));
    let load = tried.loads.iter().find(|load| load.region == "us-east").unwrap();
    assert_eq!(
        (load.resource.as_str(), load.now == f64::from(load.max)),
        ("sessions", true)
    );
    assert_eq!(codes(&people.history(0).await.unwrap()), ["genesis"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_plan_and_the_freeze() {
    let folder = tempfile::tempdir().unwrap();
    let first = ControlPlane::start(folder.path()).await;
    first.operator().act(freeze("t")).await.unwrap();
    let before = first.follow(&folder.path().join("plan")).await;
    // SIGKILL: every acknowledged write must be on disk.
    drop(first);

    let second = ControlPlane::start(folder.path()).await;
    let status = second.operator().status().await.unwrap();
    assert_eq!(status.number.unwrap().generation, before.plan.generation);
    assert_eq!(status.actions.len(), 1);
    assert_eq!(
        (status.actions[0].kind.as_str(), status.actions[0].phase.as_str()),
        ("freeze", "running")
    );
    // The new leader owns the actions under way.
    assert_eq!(status.actions[0].owner, status.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_topology_is_applied_checked_and_only_over_the_one_that_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    let before = control_plane.follow(&folder.path().join("plan")).await;
    let people = control_plane.operator();
    let document = people.document(v1::DocumentKind::Topology).await.unwrap();
    let apply = |text: String, replaces: &str, dry_run| v1::ApplyDocumentRequest {
        kind: v1::DocumentKind::Topology.into(),
        text,
        replaces: replaces.to_owned(),
        author: "tester".into(),
        reason: "a new edge".into(),
        token: "t".into(),
        dry_run,
    };
    // The document is broken in three places: the reply lists all, with their lines.
    let broken = document.text.replacen("sessions_max = ", "sessions_max = -", 1) + "\ncolour = \"red\"\n[[edge]]\n";
    let reply = people.apply(apply(broken, &document.version, false)).await.unwrap();
    assert!(!reply.accepted && reply.problems.len() >= 3, "{reply:?}");
    assert!(
        reply.problems.iter().all(|problem| problem.starts_with("topology:")),
        "{reply:?}"
    );
    let empty = people
        .apply(apply(String::new(), &document.version, false))
        .await
        .unwrap();
    assert!(!empty.accepted, "an empty world is never put in force");
    let huge = people
        .apply(apply("#".repeat(5 << 20), &document.version, false))
        .await
        .unwrap_err();
    assert!(
        huge.to_string().contains("message length too large") || huge.to_string().contains("limit"),
        "{huge}"
    );

    // One more edge, and one more stack.
    let edge =
        "\n[[edge]]\nid = \"edge-bom\"\naddresses = [\"127.0.1.3\"]\nport = 8080\nlatitude = 19.1\nlongitude = 72.9\n";
    let larger = document
        .text
        .replace("\"127.0.0.1:9001\"", "\"127.0.0.1:9001\", \"127.0.0.1:9901\"")
        + edge;
    let tried = people
        .apply(apply(larger.clone(), &document.version, true))
        .await
        .unwrap();
    assert!(tried.accepted && tried.plan.unwrap().changes);
    assert_eq!(people.document(v1::DocumentKind::Topology).await.unwrap(), document);
    assert!(
        people
            .apply(apply(larger.clone(), &document.version, false))
            .await
            .unwrap()
            .accepted
    );
    let error = people
        .apply(apply(document.text.clone(), &document.version, false))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another operator applied version"),
        "{error}"
    );
    let after = control_plane.follow(&folder.path().join("fresh")).await;
    assert_eq!(after.plan.generation, before.plan.generation + 1);
    assert_eq!(after.topology.edges.len(), before.topology.edges.len() + 1);
    let history = people.history(0).await.unwrap();
    assert_eq!(codes(&history), ["topology-changed", "genesis"]);
    let told = &history[0].reasons[0].text;
    assert!(told.ends_with("; applied by tester: a new edge"), "{told}");

    // The applied document stays in force when the process starts again with its old file.
    drop(control_plane);
    let second = ControlPlane::start(folder.path()).await;
    let kept = second.follow(&folder.path().join("again")).await;
    assert_eq!(kept.topology.edges.len(), after.topology.edges.len());

    // A node outside the topology gets an error and no plan.
    let mut plans = v1::plans_client::PlansClient::connect(second.endpoint.clone())
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
async fn a_node_that_is_taken_out_of_the_topology_follows_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    control_plane.follow(&folder.path().join("plan")).await;
    let people = control_plane.operator();
    let before = people.document(v1::DocumentKind::Topology).await.unwrap();
    let apply = async |text: String, token: &str| {
        let replaces = people.document(v1::DocumentKind::Topology).await.unwrap().version;
        let apply = v1::ApplyDocumentRequest {
            kind: v1::DocumentKind::Topology.into(),
            text,
            replaces,
            author: "tester".into(),
            reason: "edges come and go".into(),
            token: token.into(),
            dry_run: false,
        };
        let reply = people.apply(apply).await.unwrap();
        assert!(reply.accepted, "{reply:?}");
    };
    let edge =
        "\n[[edge]]\nid = \"edge-bom\"\naddresses = [\"127.0.1.3\"]\nport = 8080\nlatitude = 19.1\nlongitude = 72.9\n";
    apply(before.text.clone() + edge, "comes").await;
    let url = control_plane.endpoint.clone();
    let (mut stays, mut leaves) = (
        PlayedNode::hello(&url, "edge-dub").await.unwrap(),
        PlayedNode::hello(&url, "edge-bom").await.unwrap(),
    );
    for node in [&mut stays, &mut leaves] {
        let plan = node.plan().await;
        node.acknowledge(plan.plan.number()).await;
    }
    apply(before.text, "goes").await;
    let plan = stays.plan().await;
    assert!(plan.topology.edges.keys().all(|edge| edge.as_str() != "edge-bom"));
    let ended = fleet::soon("its stream ends", leaves.updates.message())
        .await
        .unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
    assert!(ended.message().contains("edge-bom is neither an edge nor"), "{ended}");
    let status = status_of(&people).await;
    let node = status.nodes.iter().find(|node| node.node == "edge-bom").unwrap();
    assert!(
        !node.connected && node.acknowledged != Some(plan.plan.number().into()),
        "{node:?}"
    );
    let again = PlayedNode::hello(&url, "edge-bom").await.err().unwrap();
    assert_eq!(again.code(), Code::PermissionDenied, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_of_nodes_stays_in_force_when_the_store_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let last_good = LastGood::at(folder.path().join("plan"));
    // The nodes serve plan 40 of a store that is gone; it evacuates ap-south.
    let topology =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/topology.toml")).unwrap();
    let mut ahead = topology::fixtures::three_primaries();
    ahead.topology = topology::Topology::parse("topology.toml", &topology).unwrap();
    ahead.plan.generation = 40;
    ahead.plan.edges = ahead
        .topology
        .edges
        .keys()
        .map(|edge| (edge.clone(), topology::EdgeState::Serving))
        .collect();
    let ap_south = topology::RegionId::new("ap-south").unwrap();
    ahead.plan.regions.get_mut(&ap_south).unwrap().state = topology::RegionState::Evacuated;
    let backup = ahead.topology.backups_of(&ap_south)[0].clone();
    ahead.plan.routes.get_mut(&ap_south).unwrap()[0].region = backup;
    ahead.plan.documents = topology::snapshot::digest(&ahead.topology, ahead.dns_ttl_s, &ahead.probe);
    ahead.validate().unwrap();
    last_good.save(&ahead).unwrap();
    let others = LastGood::at(folder.path().join("plan of ns1"));
    others.save(&ahead).unwrap();

    let control_plane = ControlPlane::start(folder.path()).await;
    // A single node may have state of another deployment; two of three nodes agree only if the store lost the plan.
    let name_server = node::Follower {
        node: topology::NodeId::new("ns1").unwrap(),
        kind: v1::NodeKind::Dns,
        ..control_plane.follower(others.path())
    };
    let (held, _plans) = watch::channel(None);
    tokio::spawn(name_server.run(held, std::future::pending()));
    let (sender, mut plans) = watch::channel(None::<std::sync::Arc<topology::Snapshot>>);
    let follower = control_plane.follower(last_good.path());
    let newer = plans.wait_for(|plan| plan.as_ref().is_some_and(|plan| plan.plan.generation == 41));
    let recovered = tokio::select! {
        () = follower.run(sender, std::future::pending()) => unreachable!("it was never stopped"),
        plan = tokio::time::timeout(DEADLINE, newer) => plan.expect("plan 41 comes").unwrap().clone().unwrap(),
    };
    assert_eq!(
        recovered.plan.regions[&ap_south].state,
        topology::RegionState::Evacuated
    );
    assert_eq!(recovered.plan.reasons[0].code, topology::ReasonCode::PlanRecovered);
    let history = control_plane.operator().history(0).await.unwrap();
    assert_eq!(codes(&history), ["plan-recovered", "genesis"]);
}

fn rollout(version: &str) -> v1::act_request::Kind {
    let version = version.to_owned();
    v1::act_request::Kind::Rollout(v1::Rollout { version })
}

/// A plan that no leader made. It evacuates the region.
pub(crate) fn invented(from: &Snapshot, generation: u64, region: &str) -> Snapshot {
    let mut snapshot = from.clone();
    let region = topology::RegionId::new(region).unwrap();
    snapshot.plan.generation = generation;
    snapshot.plan.regions.get_mut(&region).unwrap().state = topology::RegionState::Evacuated;
    let backup = snapshot.topology.backups_of(&region)[0].clone();
    snapshot.plan.routes.get_mut(&region).unwrap()[0].region = backup;
    snapshot.validate().unwrap();
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn one_nodes_word_replaces_no_plan_and_a_majority_of_them_does() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    control_plane.follow(&folder.path().join("plan")).await;
    let url = control_plane.endpoint.clone();
    let people = control_plane.operator();
    let mut nodes = Vec::new();
    for name in ["edge-iad", "edge-dub", "ns1"] {
        nodes.push(PlayedNode::hello(&url, name).await.unwrap());
    }
    let mut first = None;
    for node in &mut nodes {
        let plan = node.plan().await;
        node.acknowledge(plan.plan.number()).await;
        first = Some(plan);
    }
    let first = first.unwrap();
    let held = |snapshot: &Snapshot| Message::Held(v1::Held::from(snapshot));
    let lie = invented(&first, 1_001, "eu-west");

    // The control plane did not ask for it.
    nodes[2].say(held(&lie)).await;
    // The control plane asks now, and only this node shows the plan.
    nodes[2].acknowledge(lie.plan.number()).await;
    nodes[2].is_asked().await;
    nodes[2].say(held(&lie)).await;
    let unproven = |wanted: &'static str| {
        let people = people.clone();
        async move {
            fleet::eventually(wanted, || async {
                let waiting = people.status().await.ok()?.waiting;
                let found = waiting.into_iter().find(|reason| reason.code == "plan-unproven")?;
                found.text.contains(wanted).then_some(())
            })
            .await;
        }
    };
    unproven("1 of the 3 nodes of the topology hold the same one").await;
    // Another node with another plan of the same number does not count for it.
    let other = invented(&first, 1_001, "us-east");
    nodes[0].acknowledge(other.plan.number()).await;
    nodes[0].is_asked().await;
    nodes[0].say(held(&other)).await;
    unproven("ns1 plan 1001").await;
    unproven("1 of the 3 nodes of the topology hold the same one").await;
    // The leader goes on deciding meanwhile.
    let reply = act(&people, freeze("goes on")).await;
    assert_eq!(
        (reply.outcome(), reply.number.unwrap().generation),
        (v1::Outcome::Running, 1)
    );

    // Two of three nodes hold the same plan: the store lost it.
    nodes[1].acknowledge(lie.plan.number()).await;
    nodes[1].is_asked().await;
    nodes[1].say(held(&lie)).await;
    let recovered = nodes[1].plan().await;
    assert_eq!(recovered.plan.generation, 1_002);
    assert_eq!(recovered.plan.reasons[0].code, topology::ReasonCode::PlanRecovered);
    let status = status_of(&people).await;
    assert!(
        status.waiting.iter().all(|reason| reason.code != "plan-unproven"),
        "{status:?}"
    );
}

/// An order is done when most edges have its plan: the reply, `status` and the audit log agree.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_done_when_most_edges_apply_its_plan_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    // A control plane announces its address before its first plan; until then it refuses nodes.
    control_plane.follow(&folder.path().join("plan")).await;
    let url = control_plane.endpoint.clone();
    let people = control_plane.operator();
    let mut nodes = Vec::new();
    for name in ["edge-iad", "edge-dub", "ns1"] {
        let mut node = PlayedNode::hello(&url, name).await.unwrap();
        let plan = node.plan().await;
        node.acknowledge(plan.plan.number()).await;
        nodes.push(node);
    }
    // One edge of two has the plan, and so has the name server, which routes nothing.
    let order = act(&people, request(operator::failover("us-east"), "move", None));
    let has_it = async {
        for at in [0, 2] {
            let plan = nodes[at].plan().await;
            nodes[at].acknowledge(plan.plan.number()).await;
        }
    };
    let (reply, ()) = tokio::join!(order, has_it);
    let action = reply.action.clone().unwrap();
    assert_eq!(
        (reply.outcome(), action.phase.as_str(), action.spreads),
        (v1::Outcome::Running, "running", 2),
        "{reply:?}"
    );
    assert!(
        action
            .text
            .ends_with("; plan 2 is decided, and 1 of 2 edges that DNS names apply it so far"),
        "{action:?}"
    );
    // The same order under another token runs too: it is decided, and no more edges have its plan.
    let again = act(&people, request(operator::failover("us-east"), "again", None)).await;
    assert_eq!(again.reasons[0].code, "already-so");
    let action = again.action.clone().unwrap();
    assert_eq!(
        (again.outcome(), action.spreads),
        (v1::Outcome::Running, 2),
        "{again:?}"
    );
    let status = status_of(&people).await;
    assert_eq!(status.actions[0].phase, "running", "{status:?}");
    assert_eq!(
        people
            .wait("move", std::time::Duration::from_millis(50))
            .await
            .unwrap()
            .phase,
        "running"
    );
    let history = people.history(0).await.unwrap();
    assert_eq!(codes(&history), ["already-so", "forced-failover", "genesis"]);

    // One question waits for three seconds at most.
    let waiting = tokio::time::timeout(DEADLINE, async {
        loop {
            match people.wait("move", std::time::Duration::from_secs(3)).await {
                Ok(action) if action.phase == "done" => return action,
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    });
    let has_it = async {
        let plan = nodes[1].plan().await;
        nodes[1].acknowledge(plan.plan.number()).await;
    };
    let (action, ()) = tokio::join!(waiting, has_it);
    action.expect("the order is done");
    assert_eq!(status_of(&people).await.actions, []);
    let history = people.history(0).await.unwrap();
    assert_eq!(
        codes(&history),
        ["order-done", "already-so", "forced-failover", "genesis"]
    );
    let told = &history[0].reasons[0].text;
    assert!(
        told.starts_with("failover of us-east by tester is done: most edges apply plan 2, "),
        "{told}"
    );
    // The same token means the same order, which is done by now.
    let again = act(&people, request(operator::failover("us-east"), "move", None)).await;
    assert_eq!(again.outcome(), v1::Outcome::Done, "{again:?}");
}

/// A refusal names the rule that blocks the order, and none of the other refusals of the same decision.
#[tokio::test(flavor = "multi_thread")]
async fn reports_of_name_servers_are_shown_and_decide_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    control_plane.follow(&folder.path().join("plan")).await;
    let hello = |node: &str, kind: v1::NodeKind| {
        Message::Hello(v1::Hello {
            node: node.to_owned(),
            kind: kind.into(),
            have: None,
        })
    };
    let url = &control_plane.endpoint;
    let _ns1 = PlayedNode::open(url, vec![fleet::says(hello("ns1", v1::NodeKind::Dns))])
        .await
        .unwrap();
    let _edge = PlayedNode::open(url, vec![fleet::says(hello("edge-dub", v1::NodeKind::Edge))])
        .await
        .unwrap();

    let (reports, requests) = tokio::sync::mpsc::channel(8);
    let mut client = v1::observations_client::ObservationsClient::connect(url.clone())
        .await
        .unwrap();
    let mut receipts = client
        .report(tokio_stream::wrappers::ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    let tick = daemon::clock::now().tick();
    // A liar adds that every region is dead. What stands beside a name server's counts is not looked at.
    let dead = v1::Observation {
        region: "us-east".to_owned(),
        component: "gateway".to_owned(),
        source: v1::Source::Probe.into(),
        failed: 1_000,
        ..Default::default()
    };
    for (vantage, is_taken) in [("ns1", true), ("ns9", false), ("edge-dub", false)] {
        let report = v1::TickReport {
            vantage: vantage.to_owned(),
            tick: tick.0 - 1,
            observations: vec![dead.clone()],
            names: Some(v1::NamesSeen {
                answered: 1000,
                refused: 3,
                latency: b"[[0.1,1000]]".to_vec().into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        reports.send(report).await.unwrap();
        let receipt = fleet::soon("it is received", receipts.message())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(receipt.unwanted.is_empty(), is_taken, "{vantage}: {}", receipt.unwanted);
    }
    let status = status_of(&control_plane.operator()).await;
    for node in &status.nodes {
        let seen = node
            .names
            .map(|names| (names.answered, names.refused, (90..=111).contains(&names.p99_us)));
        assert_eq!(seen, (node.node == "ns1").then_some((1000, 3, true)), "{}", node.node);
    }
    let bad = v1::TickReport {
        vantage: "ns1".to_owned(),
        names: Some(v1::NamesSeen {
            latency: b"[[1e400,-1]]".to_vec().into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    reports.send(bad).await.unwrap();
    let refused = fleet::soon("it is refused", receipts.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    // Reports of vantages are counted by vantage. None of these is one.
    for vantage in ["ns1", "edge-dub"] {
        let series = format!("meridian_control_plane_reports_total{{vantage=\"{vantage}\"}}");
        assert_eq!(control_plane.metric(&series), None, "{vantage}");
    }
    assert_eq!(
        control_plane.metric("meridian_control_plane_reports_unwanted_total"),
        Some(3.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_order_is_told_its_own_reason_only() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    let people = control_plane.operator();
    let reply = act(&people, request(rollout("9.9.9"), "typo", None)).await;
    assert_eq!(reply.outcome(), v1::Outcome::Refused);
    let codes: Vec<&str> = reply.reasons.iter().map(|it| it.code.as_str()).collect();
    assert_eq!(codes, ["bad-request"], "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_decided_again_and_tampering_shows() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    let people = control_plane.operator();
    for token in ["one", "two"] {
        act(&people, freeze(token)).await;
        act(
            &people,
            request(operator::failover("us-east"), &format!("{token}-move"), None),
        )
        .await;
    }
    let mut documents = audit::Documents::default();
    let (mut entries, mut head) = (Vec::new(), None);
    for item in people.audit(0).await.unwrap() {
        match item.item.unwrap() {
            v1::audit_item::Item::Document(document) => documents.insert(document.version, document.text).unwrap(),
            v1::audit_item::Item::Entry(bytes) => entries.push(bytes.to_vec()),
            v1::audit_item::Item::Head(hash) => head = Some(hash),
            v1::audit_item::Item::SignedHead(_) => {}
        }
    }
    let verify = |entries: &[Vec<u8>]| audit::verify(entries.iter().map(Vec::as_slice), head.as_deref());
    let read = verify(&entries).unwrap();
    assert_eq!(read.len(), 5);
    for entry in &read {
        documents.replay(entry).unwrap();
    }

    // A changed entry, a missing entry and a missing end are found.
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut changed = entries.clone();
    changed[2] = text(&changed[2]).replace("maintenance", "sabotage").into_bytes();
    assert_eq!(verify(&changed).unwrap_err(), audit::Tampered::Broken { number: 4 });
    let mut left_out = entries.clone();
    left_out.remove(1);
    assert_eq!(
        verify(&left_out).unwrap_err(),
        audit::Tampered::Missing { after: 1, found: 3 }
    );
    assert_eq!(verify(&entries[..4]).unwrap_err(), audit::Tampered::Head);
    let beheaded = verify(&entries[2..]).unwrap_err();
    assert_eq!(beheaded, audit::Tampered::Beheaded { first: 3, kept: 1 });
    // A decision that does not follow from its input is found, even if its hash is right.
    let mut forged = read[0].clone();
    forged.plan.as_mut().unwrap().routes.values_mut().next().unwrap()[0].percent = 50;
    assert!(matches!(
        documents.replay(&forged),
        Err(audit::Tampered::Differs { number: 1, .. })
    ));
    assert!(documents.insert("0".repeat(64), "other".into()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_a_policy_looser_alone() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    control_plane.follow(&folder.path().join("plan")).await;
    let people = control_plane.operator();
    let document = people.document(v1::DocumentKind::Policy).await.unwrap();
    let looser = toml_with(&document.text, "two_person", "[]");
    let apply = |text: &str, dry_run| v1::ApplyDocumentRequest {
        kind: v1::DocumentKind::Policy.into(),
        text: text.to_owned(),
        replaces: document.version.clone(),
        author: "mallory".into(),
        reason: "one person is enough".into(),
        token: "t".into(),
        dry_run,
    };
    for dry_run in [true, false] {
        let reply = people.apply(apply(&looser, dry_run)).await.unwrap();
        assert!(!reply.accepted, "{reply:?}");
        assert_eq!(
            reply.problems.len(),
            3,
            "one for each thing two people are needed for: {reply:?}"
        );
        assert!(
            reply.problems[0].contains("meridian override looser-policy"),
            "{reply:?}"
        );
    }

    let rule = v1::Override {
        rule: "looser-policy".into(),
    };
    let minute = Some(std::time::Duration::from_secs(60));
    let asked = request(v1::act_request::Kind::Override(rule), "looser", minute);
    let reply = act(&people, asked).await;
    assert_eq!(reply.outcome(), v1::Outcome::AwaitingApproval, "{reply:?}");
    assert!(
        !people.apply(apply(&looser, false)).await.unwrap().accepted,
        "not agreed to yet"
    );
    let approve = v1::act_request::Kind::Approve(v1::Approve {
        action: "looser".into(),
        shown: reply.action.unwrap().shown,
    });
    let agreed = operator::request(approve, "seen together", "somebody else", "agreed", None);
    assert_eq!(act(&people, agreed).await.outcome(), v1::Outcome::Running);
    assert!(people.apply(apply(&looser, false)).await.unwrap().accepted);

    // A stricter policy needs no second person.
    let stricter = apply(&document.text, false);
    let version = people.document(v1::DocumentKind::Policy).await.unwrap().version;
    let stricter = v1::ApplyDocumentRequest {
        replaces: version,
        ..stricter
    };
    assert!(people.apply(stricter).await.unwrap().accepted);
}

/// The document with another value for one key.
fn toml_with(text: &str, key: &str, value: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once('=') {
        Some((name, _)) if name.trim() == key => format!("{key} = {value}\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}
