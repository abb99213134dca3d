//! Three control plane processes on a real etcd cluster, and the nodes of the topology played by the code that real nodes
//! run. Regions exist only in the reports of edges: a region dies when a test says so.
//!
//! One file, although it is long: the fleet is one value, and each of its methods one thing that goes wrong.

use std::{
    collections::BTreeMap,
    fs::File,
    future::Future,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    OperatorError,
    operator::LEADER_KEY,
    v1::{self, operator_client::OperatorClient, plans_client::PlansClient, watch_request::Message},
};
use daemon::Announcement;
use node::{Follower, LastGood};
use parking_lot::Mutex;
use planning::audit;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use topology::{Component, Moment, NodeId, Plan, PlanNumber, RegionId, RegionState, Snapshot, Tick};
use verdict::{Observation, Source, TickReport};
use world::etcd::{EtcdCluster, EtcdSettings, Size};

/// Limit on every wait, longer than elections, two ticks until a verdict and restarts take on two busy cores.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
/// Time within a tick at which probes ask gateways: a region that is dead by then is seen dead in that tick.
const PROBED_AT: Duration = Duration::from_millis(6_500);
/// Just before that: a region that dies here is seen dead at once, as in drills.
const DIES_AT: Duration = Duration::from_millis(5_000);
/// Connections of each edge to a region in a tick: enough for every trigger.
const CONNECTIONS: u32 = 20;
/// Time for a process to answer from its own memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
// Beside etcd's ports, on the addresses of its members: no other process uses them.
const GRPC_PORT: u16 = 7100;
const ADMIN_PORT: u16 = 7101;
const EDGES: [&str; 2] = ["edge-iad", "edge-dub"];

/// The settings of a fleet.
pub(crate) struct Settings {
    /// Seconds after which a silent leader is replaced.
    pub(crate) lease_ttl_s: u64,
    /// Quota of etcd in bytes; etcd's default if `None`.
    pub(crate) quota_bytes: Option<u64>,
    /// Nodes that follow plans from the start; the test plays the others itself.
    pub(crate) following: Vec<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Longer than a busy machine keeps a leader from renewing it.
            lease_ttl_s: 15,
            quota_bytes: None,
            following: vec!["edge-iad", "edge-dub", "ns1"],
        }
    }
}

/// A running fleet. Dropping it ends all processes.
pub(crate) struct Fleet {
    pub(crate) planes: Vec<Plane>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) etcd: EtcdCluster,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) regions: Regions,
    reporting: Vec<JoinHandle<()>>,
}

/// Settings of stories that wait until a silent leader is replaced.
pub(crate) fn short_lease() -> Settings {
    Settings {
        lease_ttl_s: 3,
        ..Settings::default()
    }
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let etcd = EtcdCluster::start(EtcdSettings {
            quota_bytes: settings.quota_bytes,
            ..EtcdSettings::for_tests(Size::Three, &folder.path().join("etcd"))
        });
        let etcd = etcd.await.unwrap();
        let planes = Plane::three(folder.path(), &etcd, settings.lease_ttl_s);
        let mut fleet = Self {
            planes,
            nodes: Vec::new(),
            regions: Regions::default(),
            reporting: Vec::new(),
            etcd,
            folder,
        };
        for plane in &mut fleet.planes {
            plane.launch();
        }
        for plane in &fleet.planes {
            plane.announced().await;
        }
        for edge in EDGES {
            let (reports, reporter) = node::report_queue(fleet.urls(), None, daemon::clock::now);
            fleet.reporting.push(tokio::spawn(reporter.run(std::future::pending())));
            let see = see_every_tick(NodeId::new(edge).unwrap(), fleet.regions.clone(), move |report| {
                reports.try_send(report).unwrap();
            });
            fleet.reporting.push(tokio::spawn(see));
        }
        for id in settings.following {
            let last_good = fleet.folder.path().join(id);
            fleet.nodes.push(Node::start(id, fleet.urls(), last_good));
        }
        fleet
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.planes.iter().map(|plane| plane.url.clone()).collect()
    }

    /// The client of operators.
    pub(crate) fn operator(&self) -> api::Operator {
        api::Operator::at(self.urls())
    }

    /// Waits for a leader. Returns its index.
    pub(crate) async fn leader(&self) -> usize {
        self.leader_besides(usize::MAX).await
    }

    /// Waits for a leader other than `not`. Returns its index.
    pub(crate) async fn leader_besides(&self, not: usize) -> usize {
        eventually("a control plane leads", || async {
            for (index, plane) in self.planes.iter().enumerate() {
                if index != not && plane.runs() && plane.status().await.is_ok() {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// Waits until every control plane has judged every region healthy, so that any leader may act.
    pub(crate) async fn judged(&self) {
        for plane in self.planes.iter().filter(|plane| plane.runs()) {
            eventually("every region is judged", || async {
                let metrics = plane.metrics()?;
                (metrics.matches(r#"health="healthy"} 1"#).count() == 6).then_some(())
            })
            .await;
        }
    }

    /// Repeats a call that an election may interrupt, until there is an answer.
    pub(crate) async fn act(&self, request: v1::ActRequest) -> v1::ActReply {
        let people = self.operator();
        eventually("the request is answered", || async {
            match people.act(request.clone()).await {
                Ok(reply) => Some(reply),
                Err(OperatorError::Rejected(why)) => panic!("{why}"),
                Err(_) => None,
            }
        })
        .await
    }

    /// The same, until the action is done. A control plane replies that it runs if edges are slow to apply its plan.
    pub(crate) async fn act_until_done(&self, request: v1::ActRequest) {
        eventually("the action is done", || async {
            let reply = self.act(request.clone()).await;
            match reply.outcome() {
                v1::Outcome::Done => Some(()),
                v1::Outcome::Running => None,
                _ => panic!("{reply:?}"),
            }
        })
        .await;
    }

    /// Kills a region at the point of a tick at which it is seen as soon as possible. Returns the time.
    pub(crate) async fn region_dies(&self, region: &str) -> Moment {
        let mut tick = daemon::clock::now().tick();
        if daemon::clock::now() > tick.start() + DIES_AT {
            tick = Tick(tick.0 + 1);
        }
        let at = tick.start() + DIES_AT;
        self.regions.dies_at(region, at);
        until(at).await;
        at
    }

    /// Waits until all nodes apply a plan for which the condition holds. Returns the time at which the last one applied it.
    pub(crate) async fn all_apply(&self, what: &str, holds: impl Fn(&Plan) -> bool) -> Moment {
        let mut last = Moment::default();
        for node in &self.nodes {
            let wanted = format!("{} applies {what}", node.id);
            let at = eventually(&wanted, || async {
                let lives = node.lives();
                let mut applied = lives.last()?.iter();
                let first = applied.find(|applied| holds(&applied.snapshot.plan))?;
                Some(first.at)
            });
            last = last.max(at.await);
        }
        last
    }

    pub(crate) async fn all_apply_evacuation_of(&self, name: &str) -> Moment {
        let region = RegionId::new(name).unwrap();
        self.all_apply(&format!("the evacuation of {name}"), |plan| is_left(plan, &region))
            .await
    }

    /// The invariants of every test: no node ever went back, all plans are valid, and one number is one plan.
    pub(crate) fn check(&self) {
        let mut seen: BTreeMap<PlanNumber, Arc<Snapshot>> = BTreeMap::new();
        for node in &self.nodes {
            let mut before = PlanNumber::default();
            for life in node.lives() {
                for (index, Applied { snapshot, .. }) in life.iter().enumerate() {
                    snapshot.validate().unwrap();
                    let number = snapshot.plan.number();
                    // A node that starts again begins with its plan on disk.
                    let forward = number > before || (index == 0 && number == before);
                    assert!(forward, "{} went from {before} to {number}", node.id);
                    before = number;
                    let known = seen.entry(number).or_insert_with(|| snapshot.clone());
                    assert_eq!(known.plan, snapshot.plan, "two plans with one number");
                }
            }
        }
    }

    /// Numbers of the applied plans that evacuated the region while it served.
    pub(crate) fn evacuations_applied(&self, region: &str) -> Vec<PlanNumber> {
        let region = RegionId::new(region).unwrap();
        let mut plans = BTreeMap::new();
        for applied in self.nodes.iter().flat_map(Node::lives).flatten() {
            plans.insert(applied.snapshot.plan.number(), applied.snapshot);
        }
        let plans: Vec<_> = plans.into_values().collect();
        let steps = plans.windows(2);
        let left = steps.filter(|step| !is_left(&step[0].plan, &region) && is_left(&step[1].plan, &region));
        left.map(|step| step[1].plan.number()).collect()
    }

    /// The whole audit log. Checks that no entry is missing and that every decision comes out the same again.
    pub(crate) async fn audit(&self) -> Vec<audit::Entry> {
        let people = self.operator();
        let items = eventually("the audit log is read", || async { people.audit(0).await.ok() }).await;
        verified(items)
    }

    /// Restores all of etcd from a snapshot, as after a loss: new data folders, all members started again.
    pub(crate) async fn restore_etcd(&mut self, snapshot: &Path) {
        let members = self.etcd.members();
        for plane in &mut self.planes {
            plane.kill();
        }
        for (index, member) in members.iter().enumerate() {
            self.etcd.kill(index).unwrap();
            std::fs::rename(&member.data_dir, member.data_dir.with_extension("lost")).unwrap();
        }
        let (initial, path) = (self.etcd.initial_cluster(), |path: &Path| path.display().to_string());
        for member in &members {
            #[rustfmt::skip]
            etcdctl(&[
                "snapshot", "restore", &path(snapshot), "--data-dir", &path(&member.data_dir), "--name", &member.name,
                "--initial-cluster", &initial, "--initial-advertise-peer-urls", &member.peer_url,
            ]);
        }
        for index in 0..members.len() {
            self.etcd.launch(index).unwrap();
        }
        self.etcd.healthy().await.unwrap();
        for plane in &mut self.planes {
            plane.launch();
        }
        for plane in &self.planes {
            plane.announced().await;
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for task in &self.reporting {
            task.abort();
        }
        if std::thread::panicking() {
            for plane in &self.planes {
                let log = plane.log();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- the end of the log of {}:", plane.name);
                for line in &lines[lines.len().saturating_sub(60)..] {
                    eprintln!("{line}");
                }
            }
            for node in &self.nodes {
                for life in node.lives() {
                    let numbers = life
                        .iter()
                        .map(|it| format!("{} at {}", it.snapshot.plan.number(), it.at));
                    eprintln!("--- {} applied {}", node.id, numbers.collect::<Vec<_>>().join(", "));
                }
            }
        }
    }
}

/// Checks an audit log from beginning to end.
pub(crate) fn verified(items: Vec<v1::AuditItem>) -> Vec<audit::Entry> {
    let mut documents = audit::Documents::default();
    let (mut entries, mut head) = (Vec::new(), None);
    for item in items {
        match item.item.unwrap() {
            v1::audit_item::Item::Document(document) => documents.insert(document.version, document.text).unwrap(),
            v1::audit_item::Item::Entry(bytes) => entries.push(bytes),
            v1::audit_item::Item::Head(hash) => head = Some(hash),
            v1::audit_item::Item::SignedHead(_) => {}
        }
    }
    assert!(head.is_some(), "the log was read to its end");
    let entries = audit::verify(entries.iter().map(AsRef::as_ref), head.as_deref()).unwrap();
    for entry in &entries {
        documents.replay(entry).unwrap();
    }
    entries
}

/// The entries that evacuated a serving region.
pub(crate) fn evacuations<'e>(entries: &'e [audit::Entry], region: &str) -> Vec<&'e audit::Entry> {
    let region = RegionId::new(region).unwrap();
    let left = |plan: &Option<Plan>| plan.as_ref().is_some_and(|plan| is_left(plan, &region));
    let entries = entries.iter();
    entries
        .filter(|entry| left(&entry.plan) && !left(&entry.input.current))
        .collect()
}

/// Stale leaders write nothing: later entries have later epochs.
pub(crate) fn assert_leads_only_follow_each_other(entries: &[audit::Entry]) {
    let epochs: Vec<u64> = entries.iter().map(|entry| entry.input.epoch).collect();
    assert!(
        epochs.is_sorted(),
        "an earlier leader wrote after a later one: {epochs:?}"
    );
}

pub(crate) fn is_left(plan: &Plan, region: &RegionId) -> bool {
    plan.regions
        .get(region)
        .is_some_and(|it| it.state != RegionState::Serving)
}

pub(crate) fn etcdctl(arguments: &[&str]) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(arguments)
        .output()
        .expect("etcdctl is installed (tools/setup test)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Repeats a call until there is an answer.
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < DEADLINE, "in vain: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for a result that must come.
pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(DEADLINE, wait).await;
    waited.unwrap_or_else(|_| panic!("in vain: {what}"))
}

/// Waits until this moment.
pub(crate) async fn until(moment: Moment) {
    loop {
        let now = daemon::clock::now();
        if now >= moment {
            return;
        }
        sleep(moment.since(now)).await;
    }
}

/// Waits until two more ticks were judged: a further decision would have come by then.
pub(crate) async fn two_more_ticks() {
    until(daemon::clock::now().tick().end() + Tick::LENGTH + Duration::from_millis(1_500)).await;
}

/// The dead regions, with the times of their deaths. Shared with the edges that see them.
#[derive(Clone, Default)]
pub(crate) struct Regions(Arc<Mutex<BTreeMap<RegionId, Moment>>>);

impl Regions {
    pub(crate) fn dies_at(&self, region: &str, at: Moment) {
        let mut dead = self.0.lock();
        dead.insert(RegionId::new(region).unwrap(), at);
    }

    pub(crate) fn lives(&self, region: &str) {
        self.0.lock().remove(&RegionId::new(region).unwrap());
    }

    /// The report of an edge on a tick.
    pub(crate) fn seen_by(&self, edge: &NodeId, tick: Tick) -> TickReport {
        let dead = self.0.lock();
        let probed = tick.start() + PROBED_AT;
        let topology = configured("topology.toml");
        let topology = topology::Topology::parse("topology.toml", &topology).unwrap();
        let mut observations = Vec::new();
        for region in topology.regions.keys() {
            let mut gateway = Observation::new(region.clone(), Component::Gateway, Source::Traffic);
            let mut asr = Observation::new(region.clone(), Component::Asr, Source::Traffic);
            let is_dead = dead.get(region).is_some_and(|since| *since <= probed);
            for _ in 0..CONNECTIONS {
                if is_dead {
                    gateway.fail("connection refused");
                } else {
                    gateway.succeed(20.0);
                    asr.succeed(80.0);
                }
            }
            observations.extend([gateway, asr].into_iter().filter(|it| it.samples() > 0));
        }
        TickReport::new(edge.clone(), tick, observations)
    }
}

/// Reports on every tick at its end, without end.
pub(crate) async fn see_every_tick(edge: NodeId, regions: Regions, mut report: impl FnMut(TickReport)) {
    loop {
        let tick = daemon::clock::now().tick();
        until(tick.end() + Duration::from_millis(20)).await;
        report(regions.seen_by(&edge, tick));
    }
}

pub(crate) fn configured(file: &str) -> String {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    std::fs::read_to_string(configs.join(file)).unwrap()
}

/// A control plane process that keeps its address when it is started again.
pub(crate) struct Plane {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) frozen: bool,
    admin: SocketAddr,
    folder: PathBuf,
    child: Option<Child>,
}

impl Plane {
    fn three(folder: &Path, etcd: &EtcdCluster, lease_ttl_s: u64) -> Vec<Self> {
        let ips: Vec<_> = etcd
            .endpoints()
            .iter()
            .map(|url| url.trim_start_matches("http://").parse::<SocketAddr>().unwrap().ip())
            .collect();
        // No process ever listens there: the probes of each control plane are one vantage that sees every region dead.
        let topology = configured("topology.toml").replace("127.0.0.1:900", &format!("{}:1", ips[0]));
        let plane = |(index, ip)| {
            let name = format!("control-plane-{}", index + 1);
            let folder = folder.join(&name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("topology.toml"), &topology).unwrap();
            std::fs::write(folder.join("policy.toml"), configured("policy.toml")).unwrap();
            let (grpc, admin) = (SocketAddr::new(ip, GRPC_PORT), SocketAddr::new(ip, ADMIN_PORT));
            let config = format!(
                "node = \"{name}\"\nlisten = \"{grpc}\"\nadmin_listen = \"{admin}\"\ntopology = \"topology.toml\"\n\
                 policy = \"policy.toml\"\n[store]\netcd = {:?}\nlease_ttl = \"{lease_ttl_s}s\"\n",
                etcd.endpoints()
            );
            std::fs::write(folder.join("control-plane.toml"), config).unwrap();
            Self {
                url: format!("http://{grpc}"),
                frozen: false,
                child: None,
                name,
                admin,
                folder,
            }
        };
        ips.iter().copied().enumerate().map(plane).collect()
    }

    /// Starts the process, and does not wait for it.
    pub(crate) fn launch(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        // The file is missing before the first start.
        let _ = std::fs::remove_file(self.folder.join("announce.json"));
        let log = File::options().create(true).append(true).open(self.folder.join("log"));
        let child = Command::new(env!("CARGO_BIN_EXE_meridian-control-plane"))
            .args(["--supervised", "--config"])
            .arg(self.folder.join("control-plane.toml"))
            .arg("--announce")
            .arg(self.folder.join("announce.json"))
            .stdin(Stdio::piped())
            .stderr(log.unwrap())
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// Waits until it answers.
    pub(crate) async fn announced(&self) {
        eventually(&format!("{} gets ready", self.name), || async {
            Announcement::read(&self.folder.join("announce.json")).unwrap()
        })
        .await;
    }

    pub(crate) async fn start(&mut self) {
        self.launch();
        self.announced().await;
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.frozen = false;
    }

    /// Sends SIGSTOP, and waits until the process stands still.
    pub(crate) async fn freeze(&mut self) {
        self.signal("-STOP");
        self.frozen = true;
        let stat = format!("/proc/{}/stat", self.pid());
        eventually("it is stopped", || async {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.contains(") T ").then_some(())
        })
        .await;
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&mut self) {
        self.signal("-CONT");
        self.frozen = false;
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    fn signal(&self, name: &str) {
        // The id is still this process's own, because only this test waits for it.
        let status = Command::new("kill").args([name, &self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Whether it was started, and neither killed nor frozen.
    pub(crate) fn runs(&self) -> bool {
        self.child.is_some() && !self.frozen
    }

    /// Whether it ended by itself, which none ever should.
    pub(crate) fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) async fn client(&self) -> Result<OperatorClient<Channel>, Status> {
        let endpoint = tonic::transport::Endpoint::from_shared(self.url.clone()).unwrap();
        let endpoint = endpoint.connect_timeout(ANSWER_TIMEOUT).timeout(ANSWER_TIMEOUT);
        let channel = endpoint.connect().await;
        Ok(OperatorClient::new(
            channel.map_err(|error| Status::unavailable(error.to_string()))?,
        ))
    }

    /// The status of this control plane itself, also if it does not lead.
    pub(crate) async fn status(&self) -> Result<v1::StatusReply, Status> {
        let answer = async { self.client().await?.status(v1::StatusRequest::default()).await };
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::unavailable("no answer")),
        }
    }

    /// The URL of the leader that it follows, if it knows one.
    pub(crate) async fn follows(&self) -> Option<String> {
        let status = self.status().await.err()?;
        let url = status.metadata().get(LEADER_KEY)?;
        Some(url.to_str().unwrap().to_owned())
    }

    /// A page of its administrative listener.
    pub(crate) fn page(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.admin, ANSWER_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }

    pub(crate) fn metrics(&self) -> Option<String> {
        self.page("/metrics")
    }

    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.metrics()?;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(|value| value.parse().unwrap())
    }

    /// Its verdict on a region.
    pub(crate) fn believes(&self, region: &str, health: &str) -> bool {
        let line = format!(r#"{{region="{region}",health="{health}"}} 1"#);
        self.metrics().is_some_and(|metrics| metrics.contains(&line))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A plan that a node applied.
#[derive(Clone)]
pub(crate) struct Applied {
    pub(crate) at: Moment,
    pub(crate) snapshot: Arc<Snapshot>,
}

/// A node that follows all control planes and keeps everything it ever applied, one list for each time it was started.
pub(crate) struct Node {
    pub(crate) id: &'static str,
    lives: Arc<Mutex<Vec<Vec<Applied>>>>,
    urls: Vec<String>,
    last_good: PathBuf,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    pub(crate) fn start(id: &'static str, urls: Vec<String>, last_good: PathBuf) -> Self {
        let mut node = Self {
            id,
            lives: Arc::default(),
            urls,
            last_good,
            tasks: Vec::new(),
        };
        node.restart();
        node
    }

    /// Starts it again with only its files.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.lives.lock().push(Vec::new());
        let follower = Follower {
            endpoints: self.urls.clone(),
            node: NodeId::new(self.id).unwrap(),
            kind: if EDGES.contains(&self.id) {
                v1::NodeKind::Edge
            } else {
                v1::NodeKind::Dns
            },
            last_good: LastGood::at(&self.last_good),
            contact: node::Contact::default(),
            identity: None,
        };
        let (current, mut plans) = watch::channel(None::<Arc<Snapshot>>);
        let lives = self.lives.clone();
        self.tasks
            .push(tokio::spawn(follower.run(current, std::future::pending())));
        self.tasks.push(tokio::spawn(async move {
            while plans.changed().await.is_ok() {
                let Some(snapshot) = plans.borrow_and_update().clone() else {
                    continue;
                };
                let at = daemon::clock::now();
                lives.lock().last_mut().unwrap().push(Applied { at, snapshot });
            }
        }));
    }

    fn stop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }

    pub(crate) fn lives(&self) -> Vec<Vec<Applied>> {
        self.lives.lock().clone()
    }

    /// The plan that it applies now.
    pub(crate) fn plan(&self) -> Option<Arc<Snapshot>> {
        let lives = self.lives();
        lives.last()?.last().map(|applied| applied.snapshot.clone())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A node that a test plays by hand.
pub(crate) struct PlayedNode {
    pub(crate) answers: mpsc::Sender<v1::WatchRequest>,
    pub(crate) updates: Streaming<v1::SnapshotUpdate>,
}

impl PlayedNode {
    /// Opens a stream with these messages; the control plane answers once it read the first.
    pub(crate) async fn open(url: &str, first: Vec<v1::WatchRequest>) -> Result<Self, Status> {
        let client = PlansClient::connect(url.to_owned()).await.unwrap();
        Self::open_over(client, first).await
    }

    async fn open_over(mut client: PlansClient<Channel>, first: Vec<v1::WatchRequest>) -> Result<Self, Status> {
        let (answers, requests) = mpsc::channel(16);
        for message in first {
            answers.send(message).await.unwrap();
        }
        let opened = soon("it answers", client.watch(ReceiverStream::new(requests))).await?;
        Ok(Self {
            answers,
            updates: opened.into_inner(),
        })
    }

    pub(crate) async fn hello(url: &str, node: &str) -> Result<Self, Status> {
        let hello = v1::Hello {
            node: node.to_owned(),
            kind: v1::NodeKind::Edge.into(),
            have: None,
        };
        Self::open(url, vec![says(Message::Hello(hello))]).await
    }

    /// The same over a connection on which it proves an id.
    pub(crate) async fn hello_as(
        url: &str,
        identity: &Arc<identity::Identity>,
        node: &str,
        kind: v1::NodeKind,
    ) -> Result<Self, Status> {
        let channel = api::connect::connect(url, Some(identity)).await?;
        let hello = v1::Hello {
            node: node.to_owned(),
            kind: kind.into(),
            have: None,
        };
        Self::open_over(PlansClient::new(channel), vec![says(Message::Hello(hello))]).await
    }

    /// The next plan.
    pub(crate) async fn plan(&mut self) -> Snapshot {
        let update = soon("a plan comes", self.updates.message()).await.unwrap().unwrap();
        Snapshot::decode(&update.document, &update.checksum).unwrap()
    }

    /// Waits until the control plane asks for the plan that it holds.
    pub(crate) async fn is_asked(&mut self) {
        loop {
            let update = soon("it is asked", self.updates.message()).await.unwrap().unwrap();
            if update.send_yours {
                return;
            }
        }
    }

    pub(crate) async fn say(&self, message: Message) {
        self.answers.send(says(message)).await.unwrap();
    }

    pub(crate) async fn acknowledge(&self, number: PlanNumber) {
        let ack = v1::Ack {
            number: Some(number.into()),
        };
        self.say(Message::Ack(ack)).await;
    }

    pub(crate) async fn refuse(&self, number: PlanNumber, reason: &str) {
        let nack = v1::Nack {
            number: Some(number.into()),
            reason: reason.to_owned(),
        };
        self.say(Message::Nack(nack)).await;
    }
}

pub(crate) fn says(message: Message) -> v1::WatchRequest {
    v1::WatchRequest { message: Some(message) }
}
