//! A control plane process, and its clients.

pub(crate) mod fleet;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use api::{OperatorError, operator, v1};
use daemon::Announcement;
use node::{Follower, LastGood};
use tokio::sync::watch;
use topology::{NodeId, Snapshot};

/// Limit on every wait, far longer than any step of these tests takes: only a hang reaches it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct ControlPlane {
    pub(crate) child: Child,
    pub(crate) endpoint: String,
    /// Address of its metrics.
    admin: String,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // The process may have ended already; either way none is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ControlPlane {
    pub(crate) async fn start(folder: &Path) -> Self {
        Self::start_with(folder, |topology| topology).await
    }

    pub(crate) async fn start_with(folder: &Path, change: impl Fn(String) -> String) -> Self {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let [topology, policy] =
            ["topology.toml", "policy.toml"].map(|file| std::fs::read_to_string(configs.join(file)).unwrap());
        Self::start_as(folder, &change(topology), &policy).await
    }

    pub(crate) async fn start_as(folder: &Path, topology: &str, policy: &str) -> Self {
        Self::start_logging(folder, topology, policy, Stdio::inherit()).await
    }

    /// Starts one with another section in its configuration.
    pub(crate) async fn start_with_section(folder: &Path, change: impl Fn(String) -> String, section: &str) -> Self {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let [topology, policy] =
            ["topology.toml", "policy.toml"].map(|file| std::fs::read_to_string(configs.join(file)).unwrap());
        Self::start_process(folder, (&change(topology), &policy), section, Stdio::inherit()).await
    }

    pub(crate) async fn start_logging(folder: &Path, topology: &str, policy: &str, log: Stdio) -> Self {
        Self::start_process(folder, (topology, policy), "", log).await
    }

    async fn start_process(folder: &Path, (topology, policy): (&str, &str), section: &str, log: Stdio) -> Self {
        std::fs::write(folder.join("topology.toml"), topology).unwrap();
        std::fs::write(folder.join("policy.toml"), policy).unwrap();
        let store = "topology = \"topology.toml\"\npolicy = \"policy.toml\"\n[store]\nfile = \"meridian.redb\"\n";
        std::fs::write(folder.join("control-plane.toml"), store.to_owned() + section).unwrap();
        let announce = folder.join("announce.json");
        let _ = std::fs::remove_file(&announce);
        let child = Command::new(env!("CARGO_BIN_EXE_meridian-control-plane"))
            .args(["--supervised", "--config"])
            .arg(folder.join("control-plane.toml"))
            .arg("--announce")
            .arg(&announce)
            .stdin(Stdio::piped())
            .stderr(log)
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
        let announcement = tokio::time::timeout(DEADLINE, announced)
            .await
            .expect("the control plane gets ready");
        Self {
            child,
            endpoint: format!("http://{}", announcement.addresses["grpc"]),
            admin: announcement.addresses["admin"].to_string(),
        }
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        use std::io::{Read as _, Write as _};
        let mut page = String::new();
        let mut admin = std::net::TcpStream::connect(&self.admin).unwrap();
        admin.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        admin.read_to_string(&mut page).unwrap();
        let line = page.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
    }

    /// Sends SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) {
        // The id is still this process's own, because only this test waits for it.
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    pub(crate) fn operator(&self) -> api::Operator {
        api::Operator::at([self.endpoint.clone()])
    }

    pub(crate) fn follower(&self, last_good: &Path) -> Follower {
        Follower {
            endpoints: vec![self.endpoint.clone()],
            node: NodeId::new("edge-iad").unwrap(),
            kind: v1::NodeKind::Edge,
            last_good: LastGood::at(last_good),
            contact: node::Contact::default(),
            identity: None,
        }
    }

    /// Starts a node that follows plans, and waits for the first one.
    pub(crate) async fn follow(&self, last_good: &Path) -> Arc<Snapshot> {
        let (sender, mut plans) = watch::channel(None);
        let follower = self.follower(last_good);
        let newer = plans.wait_for(Option::is_some);
        tokio::select! {
            () = follower.run(sender, std::future::pending()) => unreachable!("it was never stopped"),
            plan = tokio::time::timeout(DEADLINE, newer) => plan.expect("a plan comes").unwrap().clone().unwrap(),
        }
    }
}

/// The status, asked for until there is an answer: the client gives up after three seconds, which a busy machine may need.
pub(crate) async fn status_of(people: &api::Operator) -> v1::StatusReply {
    answered(async || people.status().await).await
}

/// Sends a request until there is an answer. Its token makes it one action, however often it is sent.
pub(crate) async fn act(people: &api::Operator, request: v1::ActRequest) -> v1::ActReply {
    answered(async || people.act(request.clone()).await).await
}

async fn answered<T>(ask: impl AsyncFn() -> Result<T, OperatorError>) -> T {
    let answered = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(OperatorError::Rejected(why)) => panic!("{why}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.expect("an answer")
}

/// A request of a tester; `lasts` is for requests that stand for a time.
pub(crate) fn request(kind: v1::act_request::Kind, token: &str, lasts: Option<Duration>) -> v1::ActRequest {
    operator::request(kind, "maintenance", "tester", token, lasts)
}

/// A freeze for a minute.
pub(crate) fn freeze(token: &str) -> v1::ActRequest {
    let kind = v1::act_request::Kind::Freeze(v1::Freeze {});
    request(kind, token, Some(Duration::from_secs(60)))
}

/// The first reason of each decision.
pub(crate) fn codes(decisions: &[v1::Decision]) -> Vec<&str> {
    decisions
        .iter()
        .map(|decision| decision.reasons[0].code.as_str())
        .collect()
}
