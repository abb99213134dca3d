//! A control plane that believes only proven peers: forged reports, forged nodes, one person with two names, and the rights of honest
//! peers.
//!
//! One file, although it is long: each story needs the same authority, and most of them the same peers.

use std::{path::Path, sync::Arc, time::Duration};

use api::{
    Operator, OperatorError, connect,
    v1::{self, observations_client::ObservationsClient, plans_client::PlansClient, watch_request::Message},
};
use identity::{
    Grant, Identity,
    ca::{self, Authority, Credential, Leaf},
    files::{self, Files},
};
use planning::audit;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use topology::{Moment, Snapshot};

use crate::{
    common::{
        self, ControlPlane, DEADLINE,
        fleet::{self, PlayedNode},
    },
    control_plane,
};

pub(crate) const ZONE: &str = "voice.meridian.test";

/// An authority, a control plane that trusts it alone, and credentials in folders.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) root: Credential,
    pub(crate) issuer: Authority,
    pub(crate) control_plane: ControlPlane,
    /// The section of its configuration.
    section: String,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::with_mode("required").await
    }

    async fn with_mode(mode: &str) -> Self {
        Self::with(mode, |topology| topology).await
    }

    async fn with(mode: &str, change: impl Fn(String) -> String) -> Self {
        Self::of(authority(), tempfile::tempdir().unwrap(), mode, change).await
    }

    async fn of(
        (root, issuer, signing): (Credential, Authority, Credential),
        folder: tempfile::TempDir,
        mode: &str,
        change: impl Fn(String) -> String,
    ) -> Self {
        let files = issued(&issuer, &root, folder.path(), &leaf("control-plane/control-plane", ""));
        let section = format!(
            "[identity]\nmode = \"{mode}\"\ncertificate = {:?}\nkey = {:?}\ntrust = {:?}\n\
             issuer_certificate = \"issuer.crt\"\nissuer_key = \"issuer.key\"\n",
            files.certificate, files.key, files.trust
        );
        files::write(&folder.path().join("issuer.crt"), &signing.certificate, 0o644).unwrap();
        files::write(&folder.path().join("issuer.key"), &signing.key, 0o600).unwrap();
        let control_plane = ControlPlane::start_with_section(folder.path(), change, &section).await;
        Self {
            folder,
            root,
            issuer,
            control_plane,
            section,
        }
    }

    /// Ends the process; its store stays.
    pub(crate) fn stop(&mut self) {
        self.control_plane.child.kill().unwrap();
        self.control_plane.child.wait().unwrap();
    }

    /// Adds a section to its configuration, for the next start.
    pub(crate) fn add_section(&mut self, section: &str) {
        self.section += section;
    }

    /// Starts it again after [`Place::stop`].
    pub(crate) async fn start_again(&mut self) {
        let folder = self.folder.path();
        self.control_plane = ControlPlane::start_with_section(folder, |topology| topology, &self.section).await;
    }

    /// Starts another control plane of this authority, with a store of its own and another section in its configuration.
    pub(crate) async fn another(&self, section: &str) -> ControlPlane {
        let folder = self.folder.path().join("another");
        std::fs::create_dir(&folder).unwrap();
        for file in ["issuer.crt", "issuer.key"] {
            std::fs::copy(self.folder.path().join(file), folder.join(file)).unwrap();
        }
        let section = self.section.clone() + section;
        ControlPlane::start_with_section(&folder, |topology| topology, &section).await
    }

    /// Shows a certificate that this place's authority issued.
    pub(crate) fn identity(&self, role: &str, grants: &str) -> Arc<Identity> {
        let files = issued(&self.issuer, &self.root, self.folder.path(), &leaf(role, grants));
        Identity::load(files, daemon::clock::now).unwrap()
    }

    pub(crate) fn operator(&self, name: &str, grants: &str) -> Operator {
        let identity = self.identity(&format!("operator/{name}"), grants);
        Operator::at([self.url()]).with_identity(Some(identity))
    }

    /// Waits until it has decided for the first time.
    pub(crate) async fn leads(&self) {
        let ada = self.operator("ada", "admin");
        let decided = async {
            // The client gives up after three seconds, which a busy machine may need.
            while ada.status().await.map_or(true, |status| status.number.is_none()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, decided).await.expect("a plan");
    }

    pub(crate) fn url(&self) -> String {
        self.control_plane.endpoint.replacen("http", "https", 1)
    }
}

/// A root, the issuer under it, and that issuer's files.
pub(crate) fn authority() -> (Credential, Authority, Credential) {
    let now = daemon::clock::now();
    let root = ca::root(ZONE, now).unwrap();
    let signing = Authority::load(&root).unwrap().issuer(ZONE, now).unwrap();
    (root, Authority::load(&signing).unwrap(), signing)
}

pub(crate) fn leaf(role: &str, grants: &str) -> Leaf {
    Leaf {
        grants: Grant::list(grants).unwrap(),
        ..Leaf::of(identity::PeerId::new(ZONE, role.parse().unwrap()).unwrap())
    }
}

pub(crate) fn issued(issuer: &Authority, root: &Credential, folder: &Path, leaf: &Leaf) -> Files {
    let into = folder.join("identities").join(leaf.id.role.to_string());
    std::fs::create_dir_all(&into).unwrap();
    let files = Files::in_folder(&into);
    files::write(&files.trust, &root.certificate, 0o644).unwrap();
    files.write(&issuer.issue(leaf, daemon::clock::now()).unwrap()).unwrap();
    files
}

/// A request that leaves its author to the certificate.
pub(crate) fn request(kind: v1::act_request::Kind, token: &str, lasts: Option<Duration>) -> v1::ActRequest {
    v1::ActRequest {
        author: String::new(),
        ..common::request(kind, token, lasts)
    }
}

/// A report of the tick that has just closed: `vantage` saw a million probes of us-east fail, and all others succeed.
pub(crate) fn lies(vantage: &str) -> v1::TickReport {
    let now: Moment = daemon::clock::now();
    let observation = |region: &str| v1::Observation {
        region: region.to_owned(),
        component: "gateway".to_owned(),
        source: v1::Source::Probe.into(),
        succeeded: if region == "us-east" { 0 } else { 1_000_000 },
        failed: if region == "us-east" { 1_000_000 } else { 0 },
        ..Default::default()
    };
    let regions = [
        "us-east",
        "us-west",
        "eu-west",
        "eu-central",
        "ap-south",
        "ap-northeast",
    ];
    v1::TickReport {
        vantage: vantage.to_owned(),
        tick: now.tick().0 - 1,
        observations: regions.map(observation).to_vec(),
        ..Default::default()
    }
}

/// Sends one report over a connection of its own and returns the receipt.
pub(crate) async fn report(
    url: &str,
    identity: Option<&Arc<Identity>>,
    report: v1::TickReport,
) -> Result<v1::ReportReceipt, Status> {
    let sent = async {
        let channel = connect::connect(url, identity).await?;
        let (sender, reports) = tokio::sync::mpsc::channel(1);
        sender.send(report).await.unwrap();
        let mut receipts = ObservationsClient::new(channel)
            .report(ReceiverStream::new(reports))
            .await?
            .into_inner();
        receipts
            .message()
            .await?
            .ok_or_else(|| Status::unavailable("no receipt"))
    };
    tokio::time::timeout(DEADLINE, sent).await.expect("an answer")
}

/// Thirty lines of anything pose as two edges and report that a healthy region is down. With names believed, two ticks later it is
/// evacuated.
#[tokio::test(flavor = "multi_thread")]
async fn only_an_edge_reports_as_that_edge() {
    let place = Place::new().await;
    let (url, plain) = (place.url(), &place.control_plane.endpoint);
    let (iad, dub) = (place.identity("edge/edge-iad", ""), place.identity("edge/edge-dub", ""));

    let denied = report(plain, None, lies("edge-iad")).await.unwrap_err();
    assert_eq!(
        denied.code(),
        Code::Unauthenticated,
        "plain text is no way in: {denied:?}"
    );
    assert!(
        denied.message().contains("use https:// and a certificate"),
        "{denied:?}"
    );
    let (foreign_root, foreign, _) = authority();
    let stranger = issued(
        &foreign,
        &foreign_root,
        &place.folder.path().join("foreign"),
        &leaf("edge/edge-iad", ""),
    );
    files::write(
        &stranger.trust,
        &(place.root.certificate.clone() + &foreign_root.certificate),
        0o644,
    )
    .unwrap();
    let stranger = Identity::load(stranger, daemon::clock::now).unwrap();
    let denied = report(&url, Some(&stranger), lies("edge-iad")).await.unwrap_err();
    assert!(
        denied.message().contains("refuses the certificate of spiffe://"),
        "{denied}"
    );
    assert!(denied.message().contains("UnknownCA"), "{denied}");

    for (role, vantage) in [
        ("edge/edge-iad", "edge-dub"),
        ("edge/edge-iad", "control-plane"),
        ("edge/control-plane", "control-plane"),
        ("dns/ns1", "edge-iad"),
        ("stack/us-east/a", "edge-iad"),
        ("operator/alice", "edge-iad"),
    ] {
        let liar = place.identity(role, if role.starts_with("operator") { "admin" } else { "" });
        let denied = report(&url, Some(&liar), lies(vantage)).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{role} as {vantage}: {denied}");
        assert!(
            denied.message().contains(&format!("may not report as {vantage}")),
            "{denied}"
        );
    }
    // Each under its own name is heard, and once: what was judged stays.
    for (identity, name) in [(&iad, "edge-iad"), (&dub, "edge-dub")] {
        let said = lies(name);
        let receipt = report(&url, Some(identity), said.clone()).await.unwrap();
        assert_eq!(receipt.unwanted, "", "{name}");
        // A busy control plane says only that it has the report.
        let refused = async {
            let said_again = async || report(&url, Some(identity), said.clone()).await.unwrap();
            while said_again().await.unwanted.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, refused).await.expect("it has spoken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_plans_as_itself_only() {
    let place = Place::new().await;
    let follow = async |role: &str, node: &str, kind: v1::NodeKind| {
        let channel = connect::connect(&place.url(), Some(&place.identity(role, ""))).await?;
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        let hello = v1::Hello {
            node: node.to_owned(),
            kind: kind.into(),
            have: None,
        };
        let request = v1::WatchRequest {
            message: Some(Message::Hello(hello)),
        };
        sender.send(request).await.unwrap();
        let mut client = PlansClient::new(channel);
        let watched = client.watch(ReceiverStream::new(requests));
        let mut updates = tokio::time::timeout(DEADLINE, watched)
            .await
            .expect("an answer")?
            .into_inner();
        updates.message().await
    };
    let first = async {
        loop {
            match follow("edge/edge-iad", "edge-iad", v1::NodeKind::Edge).await {
                // The control plane is started, and has not decided yet.
                Err(early) if early.code() == Code::Unavailable => tokio::time::sleep(Duration::from_millis(20)).await,
                followed => return followed,
            }
        }
    };
    let update = tokio::time::timeout(DEADLINE, first).await.expect("a plan").unwrap();
    assert_eq!(update.unwrap().number.unwrap().generation, 1);
    assert!(follow("dns/ns1", "ns1", v1::NodeKind::Dns).await.is_ok());
    for (role, node, kind) in [
        ("edge/edge-iad", "edge-dub", v1::NodeKind::Edge),
        ("edge/edge-iad", "ns1", v1::NodeKind::Dns),
        ("dns/ns1", "ns1", v1::NodeKind::Edge),
        ("operator/alice", "edge-iad", v1::NodeKind::Edge),
    ] {
        let denied = follow(role, node, kind).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{role} as {node}: {denied}");
    }
}

/// A store that forgot believes nodes, so a thief with the key of one node, and others with less, tell it a plan that evacuates a region.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_an_impostor_offers_after_the_store_forgot_replaces_nothing() {
    let place = Place::new().await;
    place.leads().await;
    let url = place.url();
    let held = |snapshot: &Snapshot| Message::Held(v1::Held::from(snapshot));
    let thief = place.identity("edge/edge-iad", "");
    let mut stolen = PlayedNode::hello_as(&url, &thief, "edge-iad", v1::NodeKind::Edge)
        .await
        .unwrap();
    let first = stolen.plan().await;
    // The store is new: it knows the first plan only. All nodes apply the fortieth, but the thief says otherwise.
    let lost = control_plane::invented(&first, 40, "ap-south");
    let lie = control_plane::invented(&first, 1_001, "eu-west");

    // Under the names of the other nodes, with each certificate that the thief may have.
    for role in ["edge/edge-iad", "edge/edge-sold", "stack/us-east/a", "operator/ada"] {
        let liar = place.identity(role, if role.starts_with("operator") { "admin" } else { "" });
        for (node, kind) in [("edge-dub", v1::NodeKind::Edge), ("ns1", v1::NodeKind::Dns)] {
            let denied = PlayedNode::hello_as(&url, &liar, node, kind).await.err().unwrap();
            assert_eq!(denied.code(), Code::PermissionDenied, "{role} as {node}: {denied}");
        }
    }
    let (foreign_root, foreign, _) = authority();
    let stranger = issued(
        &foreign,
        &foreign_root,
        &place.folder.path().join("foreign"),
        &leaf("edge/edge-dub", ""),
    );
    files::write(&stranger.trust, &place.root.certificate, 0o644).unwrap();
    let stranger = Identity::load(stranger, daemon::clock::now).unwrap();
    assert!(
        PlayedNode::hello_as(&url, &stranger, "edge-dub", v1::NodeKind::Edge)
            .await
            .is_err()
    );

    // Under its own name it is asked, as often as it comes, and is one node of three.
    let mut again = PlayedNode::hello_as(&url, &thief, "edge-iad", v1::NodeKind::Edge)
        .await
        .unwrap();
    for node in [&mut stolen, &mut again] {
        node.acknowledge(lie.plan.number()).await;
        node.say(held(&lie)).await;
    }
    stolen.is_asked().await;
    stolen.say(held(&lie)).await;
    let ada = place.operator("ada", "admin");
    let unproven = fleet::eventually("the lie is one word of three", || async {
        let status = ada.status().await.ok()?;
        let waiting = status.waiting.iter().find(|reason| reason.code == "plan-unproven")?;
        let counted = waiting
            .text
            .contains("1 of the 3 nodes of the topology hold the same one");
        counted.then_some(status.number.unwrap().generation)
    });
    assert_eq!(unproven.await, 1, "the plan in force stays");

    // The other two prove who they are and hold the plan that was lost.
    let mut honest = Vec::new();
    for (role, node, kind) in [
        ("edge/edge-dub", "edge-dub", v1::NodeKind::Edge),
        ("dns/ns1", "ns1", v1::NodeKind::Dns),
    ] {
        let identity = place.identity(role, "");
        let mut node = PlayedNode::hello_as(&url, &identity, node, kind).await.unwrap();
        assert_eq!(node.plan().await.plan.generation, 1);
        node.acknowledge(lost.plan.number()).await;
        node.is_asked().await;
        node.say(held(&lost)).await;
        honest.push(node);
    }
    let recovered = honest[0].plan().await.plan;
    assert_eq!(recovered.reasons[0].code, topology::ReasonCode::PlanRecovered);
    let state = |region: &str| recovered.regions[&topology::RegionId::new(region).unwrap()].state;
    assert_eq!(
        (recovered.generation, state("ap-south"), state("eu-west")),
        (41, topology::RegionState::Evacuated, topology::RegionState::Serving)
    );
}

/// A person who takes a root away has to know who rests on it: nodes, which connect, and stacks, which only probes meet.
#[tokio::test(flavor = "multi_thread")]
async fn status_shows_under_which_root_each_node_and_each_stack_works() {
    let folder = tempfile::tempdir().unwrap();
    let (root, issuer, signing) = authority();
    let stack = issued(&issuer, &root, folder.path(), &leaf("stack/us-east/a", ""));
    let stack = Identity::load(stack, daemon::clock::now).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = identity::Acceptor::new(Some((stack, identity::Mode::Required)), |_| {});
    tokio::spawn(async move {
        let mut links = Vec::new();
        while let Ok((tcp, source)) = listener.accept().await {
            // It proves itself, and answers nothing.
            links.extend(acceptor.admit_to_stack(tcp, source).await);
        }
    });
    let place = Place::of((root, issuer, signing), folder, "required", |topology| {
        topology.replacen("127.0.0.1:9001", &address.to_string(), 1)
    })
    .await;
    place.leads().await;
    let edge = place.identity("edge/edge-iad", "");
    let _follows = PlayedNode::hello_as(&place.url(), &edge, "edge-iad", v1::NodeKind::Edge)
        .await
        .unwrap();
    let ada = place.operator("ada", "admin");
    let shown = fleet::eventually("a probe meets the stack", || async {
        let status = ada.status().await.ok()?;
        (!status.stacks.is_empty()).then_some(status)
    })
    .await;
    let roots = identity::certificate::summaries(&place.root.certificate);
    let node = shown.nodes.iter().find(|node| node.node == "edge-iad").unwrap();
    let [stack] = &shown.stacks[..] else {
        panic!("{:?}", shown.stacks);
    };
    assert_eq!((&node.root, node.connected), (&roots[0].fingerprint, true));
    assert_eq!(
        (&stack.root, stack.id.as_str(), &stack.stack),
        (&roots[0].fingerprint, "stack/us-east/a", &address.to_string())
    );
    assert!(
        stack.certificate_until_ms > shown.now_ms && stack.seen_at_ms <= shown.now_ms,
        "{stack:?}"
    );
}

/// One shell with two names is one person.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_two_people() {
    let place = Place::new().await;
    let ada = place.operator("ada", "admin");
    let half_an_hour = Some(Duration::from_secs(1_800));
    let kind = v1::act_request::Kind::Override(v1::Override {
        rule: "evacuation-limit".to_owned(),
    });
    let ask = |token: &str, author: &str| v1::ActRequest {
        author: author.to_owned(),
        ..request(kind.clone(), token, half_an_hour)
    };
    let asked = ada.act(ask("t1", "")).await.unwrap();
    assert_eq!(asked.outcome(), v1::Outcome::AwaitingApproval);
    let waiting = asked.action.unwrap();
    assert_eq!(waiting.author, "ada", "the certificate says so");
    assert_eq!(waiting.effects, ["it turns a safety rule off"]);
    let approve_shown = |token: &str, author: &str, action: &str, shown: &str| v1::ActRequest {
        author: author.to_owned(),
        ..request(
            v1::act_request::Kind::Approve(v1::Approve {
                action: action.to_owned(),
                shown: shown.to_owned(),
            }),
            token,
            None,
        )
    };
    let approve = |token: &str, author: &str, action: &str| approve_shown(token, author, action, &waiting.shown);

    let as_bob = ada.act(approve("t2", "bob", "t1")).await.unwrap_err();
    let OperatorError::Rejected(why) = as_bob else {
        panic!("{as_bob:?}");
    };
    assert!(
        why.contains("the certificate is ada's, and the request says \"bob\""),
        "{why}"
    );
    let herself = ada.act(approve("t3", "", "t1")).await.unwrap();
    assert_eq!(herself.outcome(), v1::Outcome::Refused);
    assert!(
        herself.reasons[0].text.contains("somebody else has to agree"),
        "{herself:?}"
    );

    // A viewer or operator may not approve, and an approver of one region may not approve an order about all.
    for (name, grants) in [("vera", "viewer"), ("olaf", "operator"), ("ulf", "approver@us-east")] {
        let denied = place
            .operator(name, grants)
            .act(approve("t4", "", "t1"))
            .await
            .unwrap_err();
        assert!(
            denied.to_string().contains("it needs the role approver everywhere"),
            "{name}: {denied}"
        );
    }
    let bob = place.operator("bob", "approver");
    // An older command sends nothing about what bob was shown.
    let blind = bob.act(approve_shown("t45", "", "t1", "")).await.unwrap();
    assert_eq!(blind.outcome(), v1::Outcome::Refused);
    let remedy = format!("`meridian approve t1 --shown {} --reason WHY`", waiting.shown);
    assert!(blind.reasons[0].text.contains(&remedy), "{blind:?}");
    let agreed = bob.act(approve("t5", "", "t1")).await.unwrap();
    // No edge follows here, so it is not over.
    assert_eq!(agreed.outcome(), v1::Outcome::Running, "{agreed:?}");
    let again = bob.act(approve("t6", "", "t1")).await.unwrap();
    assert_eq!(
        again.outcome(),
        v1::Outcome::Refused,
        "an approval is used once: {again:?}"
    );

    // The audit log names the credential of each.
    let mut proven = Vec::new();
    for item in ada.audit(0).await.unwrap() {
        let Some(v1::audit_item::Item::Entry(bytes)) = item.item else {
            continue;
        };
        let entry: audit::Entry = serde_json::from_slice(&bytes).unwrap();
        if let Some(principal) = entry.principal {
            assert_eq!(principal.id, format!("spiffe://{ZONE}/operator/{}", entry.actor));
            assert!(
                principal.serial.len() >= 30 && principal.source.starts_with("127.0.0.1:"),
                "{principal:?}"
            );
            proven.push((entry.actor, principal.roles));
        }
    }
    let pair = |name: &str, roles: &str| (name.to_owned(), roles.to_owned());
    assert_eq!(proven.first(), Some(&pair("ada", "admin")));
    assert!(proven.contains(&pair("bob", "approver")), "{proven:?}");
    let shown = ada.history(20).await.unwrap();
    assert!(
        shown
            .iter()
            .any(|it| it.principal.as_ref().is_some_and(|by| by.id.ends_with("/operator/bob")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_does_what_the_roles_say_and_no_more() {
    let place = Place::new().await;
    let failover = |token: &str, region: &str| request(api::operator::failover(region), token, None);
    let vera = place.operator("vera", "viewer");
    assert_eq!(vera.status().await.unwrap().regions.len(), 6);
    assert!(
        vera.plan(Some(failover("dry", "us-east"))).await.is_ok(),
        "a dry run changes nothing"
    );
    let uma = place.operator("uma", "operator@us-*");
    for (who, region, complaint) in [
        (
            &vera,
            "us-east",
            "it needs the role operator in us-east, and this certificate has viewer",
        ),
        (
            &uma,
            "eu-west",
            "it needs the role operator in eu-west, and this certificate has operator@us-*",
        ),
    ] {
        let denied = who.act(failover("t", region)).await.unwrap_err();
        assert!(denied.to_string().contains(complaint), "{denied}");
    }
    let reply = uma.act(failover("t7", "us-east")).await.unwrap();
    assert_ne!(reply.outcome(), v1::Outcome::Unspecified, "the planner decides now");
    let document = uma.document(v1::DocumentKind::Policy).await.unwrap();
    let apply = v1::ApplyDocumentRequest {
        kind: v1::DocumentKind::Policy.into(),
        text: document.text.clone(),
        replaces: document.version.clone(),
        author: String::new(),
        reason: "a try".to_owned(),
        token: "t8".to_owned(),
        dry_run: false,
    };
    let denied = uma.apply(apply.clone()).await.unwrap_err();
    assert!(
        denied
            .to_string()
            .contains("may not change the policy: it needs the role admin"),
        "{denied}"
    );
    assert!(place.operator("ada", "admin").apply(apply).await.unwrap().accepted);
    // A process is no operator, and no role is none.
    for (role, complaint) in [
        ("edge/edge-iad", "only operators do that"),
        ("operator/nobody", "this certificate has none"),
    ] {
        let operator = Operator::at([place.url()]).with_identity(Some(place.identity(role, "")));
        let denied = operator.status().await.unwrap_err();
        assert!(denied.to_string().contains(complaint), "{denied}");
    }
    let nobody = Operator::at([place.url()]).status().await.unwrap_err();
    assert!(nobody.to_string().contains("wants to know who calls"), "{nobody}");
}

/// The mode in which a fleet gets its certificates: those that have one are held to it, the others are believed as before.
#[tokio::test(flavor = "multi_thread")]
async fn permissive_believes_those_without_a_certificate_as_before() {
    let place = Place::with_mode("permissive").await;
    let receipt = report(&place.control_plane.endpoint, None, lies("edge-iad"))
        .await
        .unwrap();
    assert_eq!(receipt.unwanted, "");
    let iad = place.identity("edge/edge-iad", "");
    let denied = report(&place.url(), Some(&iad), lies("edge-dub")).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(place.control_plane.operator().status().await.is_ok());
}

/// A third of its life is over, so the process has its certificate renewed over the connection that it still proves.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_gets_a_new_certificate_with_its_own_id() {
    let place = Place::new().await;
    place.leads().await;
    let old_one = |role: &str| Leaf {
        life: ca::LIFE_MIN,
        ..leaf(role, "")
    };
    let files = issued(
        &place.issuer,
        &place.root,
        place.folder.path(),
        &old_one("edge/edge-iad"),
    );
    let identity = Identity::load(files.clone(), daemon::clock::now).unwrap();
    let old = identity.own();
    assert!(old.is_due(daemon::clock::now()), "backdated for longer than it lives");
    let mut changes = identity.changes();
    let renewing = node::renew::keep_identity(identity.clone(), vec![place.url()], daemon::clock::now);
    tokio::select! {
        () = renewing => unreachable!("it was never stopped"),
        changed = tokio::time::timeout(DEADLINE, changes.changed()) => changed.expect("a certificate").unwrap(),
    }
    let new = identity.own();
    assert_eq!((&new.id, new.grants.len()), (&old.id, 0));
    assert_ne!(new.serial, old.serial);
    assert_eq!(
        new.until.since(new.from),
        ca::NODE_LIFE + ca::BACKDATED,
        "a short life is no heritage"
    );
    let written = ca::peer_of(&files::read(&files.certificate).unwrap()).unwrap();
    assert_eq!(written.serial, new.serial, "a restart finds it");
    assert!(connect::connect(&place.url(), Some(&identity)).await.is_ok());

    // A stack follows no plans, and has its certificate renewed by the same call.
    let files = issued(
        &place.issuer,
        &place.root,
        place.folder.path(),
        &old_one("stack/us-east/a"),
    );
    let stack = Identity::load(files, daemon::clock::now).unwrap();
    let (old, mut changes) = (stack.own(), stack.changes());
    let renewing = node::renew::keep_identity(stack.clone(), vec![place.url()], daemon::clock::now);
    tokio::select! {
        () = renewing => unreachable!("it was never stopped"),
        changed = tokio::time::timeout(DEADLINE, changes.changed()) => changed.expect("a certificate").unwrap(),
    }
    assert_eq!(stack.own().id, old.id);
    assert_ne!(stack.own().serial, old.serial);

    let renew = async |identity: Arc<Identity>, request: &str| {
        let channel = connect::connect(&place.url(), Some(&identity)).await.unwrap();
        let request = v1::RenewRequest {
            request: request.to_owned(),
        };
        let mut client = v1::certificates_client::CertificatesClient::new(channel);
        client.renew(request).await.unwrap_err()
    };
    let load = |files: Files| Identity::load(files, daemon::clock::now).unwrap();
    let due = |role: &str| load(issued(&place.issuer, &place.root, place.folder.path(), &old_one(role)));
    let (_, request) = ca::request().unwrap();
    // People log in again. A certificate that is not due, or of a peer that left the topology, is not renewed. The refusal of a bad
    // request names the problem.
    let denied = renew(place.identity("operator/ada", "admin"), &request).await;
    assert!(denied.message().contains("log in again"), "{denied}");
    let denied = renew(place.identity("edge/edge-dub", ""), &request).await;
    assert_eq!(denied.code(), Code::FailedPrecondition, "{denied}");
    let denied = renew(due("edge/edge-sold"), &request).await;
    assert!(
        denied
            .message()
            .contains("edge/edge-sold is not in the topology any more"),
        "{denied}"
    );
    let denied = renew(due("stack/us-sold/a"), &request).await;
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    for nonsense in ["", "nonsense", &place.root.certificate, &"x".repeat(9_000)] {
        assert_eq!(
            renew(due("edge/edge-iad"), nonsense).await.code(),
            Code::InvalidArgument
        );
    }

    // A key that was stolen under a root which is being removed gets no certificate under the next one.
    let (next_root, next_issuer, signing) = authority();
    let own = place
        .folder
        .path()
        .join("identities/control-plane/control-plane/trust.crt");
    files::write(&own, &(place.root.certificate.clone() + &next_root.certificate), 0o644).unwrap();
    files::write(&place.folder.path().join("issuer.key"), &signing.key, 0o600).unwrap();
    files::write(&place.folder.path().join("issuer.crt"), &signing.certificate, 0o644).unwrap();
    let trusts_both = issued(
        &next_issuer,
        &next_root,
        &place.folder.path().join("next"),
        &leaf("edge/edge-iad", ""),
    );
    let both = place.root.certificate.clone() + &next_root.certificate;
    files::write(&trusts_both.trust, &both, 0o644).unwrap();
    let trusts_both = load(trusts_both);
    let taken = async {
        while connect::connect(&place.url(), Some(&trusts_both)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, taken)
        .await
        .expect("the control plane looks at its files");
    let denied = renew(due("edge/edge-iad"), &request).await;
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    assert!(
        denied.message().contains("and this control plane issues under"),
        "{denied}"
    );
}

const FLEET: usize = 100;

/// The fleet's root is exchanged while a hundred edges follow: each plan of that time reaches each of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_exchanged_under_a_hundred_streams_without_a_missed_plan() {
    let place = Place::with("required", |topology| {
        let edge = |number: usize| {
            format!(
                "\n[[edge]]\nid = \"edge-{number}\"\naddresses = [\"127.1.{}.{}\"]\nport = 8080\nlatitude = 50.0\nlongitude = 8.0\n",
                number / 200,
                1 + number % 200
            )
        };
        topology + &(0..FLEET).map(edge).collect::<String>()
    })
    .await;
    let (url, trust) = (place.url(), |roots: &[&Credential]| -> String {
        roots.iter().map(|root| root.certificate.as_str()).collect()
    });
    let mut followers = Vec::new();
    let mut plans = Vec::new();
    for number in 0..FLEET {
        let name = format!("edge-{number}");
        let identity = place.identity(&format!("edge/{name}"), "");
        let follower = node::Follower {
            endpoints: vec![url.clone()],
            node: topology::NodeId::new(&name).unwrap(),
            kind: v1::NodeKind::Edge,
            last_good: node::LastGood::at(place.folder.path().join(format!("plan of {name}"))),
            contact: node::Contact::default(),
            identity: Some(identity.clone()),
        };
        let (current, newest) = tokio::sync::watch::channel(None);
        followers.push((identity, tokio::spawn(follower.run(current, std::future::pending()))));
        plans.push(newest);
    }
    let ada = place.operator("ada", "admin");
    let mut drained = 0;
    // A drained edge is a new plan.
    let mut publish = async || {
        let kind = v1::act_request::Kind::DrainEdge(v1::DrainEdge {
            edge: format!("edge-{drained}"),
        });
        drained += 1;
        let reply = ada
            .act(request(kind, &format!("t{drained}"), Some(Duration::from_secs(3_600))))
            .await;
        reply.unwrap().number.unwrap().generation
    };
    let mut all_have = async |generation: u64| {
        for newest in &mut plans {
            let has = |plan: &Option<Arc<topology::Snapshot>>| {
                plan.as_ref().is_some_and(|it| it.plan.generation >= generation)
            };
            let arrived = tokio::time::timeout(DEADLINE, newest.wait_for(has)).await;
            arrived
                .unwrap_or_else(|_| panic!("plan {generation} is missing"))
                .unwrap();
        }
    };
    all_have(1).await;

    // Trust the new root everywhere; then every edge gets its certificate under it.
    let (new_root, new_issuer, _) = authority();
    let own = place.identity("control-plane/control-plane", "").files().clone();
    files::write(&own.trust, &trust(&[&place.root, &new_root]), 0o644).unwrap();
    for (identity, _) in &followers {
        files::write(&identity.files().trust, &trust(&[&place.root, &new_root]), 0o644).unwrap();
        assert_eq!(identity.reload(), identity::Reload::Taken);
        let leaf = Leaf::of(identity.own().id);
        identity
            .files()
            .write(&new_issuer.issue(&leaf, daemon::clock::now()).unwrap())
            .unwrap();
        assert_eq!(identity.reload(), identity::Reload::Taken);
    }
    let second = publish().await;
    all_have(second).await;

    // The control plane takes its files within seconds: those with a new certificate get in.
    let reached = async |identity: &Arc<Identity>, wanted: bool| {
        let reached = async {
            while connect::connect(&url, Some(identity)).await.is_ok() != wanted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(DEADLINE, reached)
            .await
            .expect("the control plane looks at its files");
    };
    reached(&followers[0].0, true).await;
    let leaf = Leaf::of(identity::PeerId::new(ZONE, "control-plane/control-plane".parse().unwrap()).unwrap());
    own.write(&new_issuer.issue(&leaf, daemon::clock::now()).unwrap())
        .unwrap();
    let third = publish().await;
    all_have(third).await;

    // Without the old root: every stream rests on it, ends, and begins again.
    let old = place.identity("edge/edge-iad", "");
    files::write(&old.files().trust, &trust(&[&place.root, &new_root]), 0o644).unwrap();
    assert_eq!(old.reload(), identity::Reload::Taken);
    files::write(&own.trust, &trust(&[&new_root]), 0o644).unwrap();
    reached(&old, false).await;
    let newcomer = issued(&new_issuer, &new_root, &place.folder.path().join("new"), &leaf_of_ada());
    let ada = Operator::at([url.clone()]).with_identity(Some(Identity::load(newcomer, daemon::clock::now).unwrap()));
    let kind = v1::act_request::Kind::DrainEdge(v1::DrainEdge {
        edge: "edge-99".to_owned(),
    });
    let reply = ada
        .act(request(kind, "last", Some(Duration::from_secs(3_600))))
        .await
        .unwrap();
    all_have(reply.number.unwrap().generation).await;
    let status = ada.status().await.unwrap();
    let fleet = status.nodes.iter().filter(|node| node.connected);
    let roots: std::collections::BTreeSet<&str> = fleet.map(|node| node.root.as_str()).collect();
    assert_eq!(roots.len(), 1, "all of them under the new root: {roots:?}");
    for (_, task) in followers {
        task.abort();
    }
}

fn leaf_of_ada() -> Leaf {
    leaf("operator/ada", "admin")
}
