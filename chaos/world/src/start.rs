//! Starting, changing and stopping a world.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use api::v1;
use tokio::sync::{Mutex, broadcast};
use topology::Moment;

use crate::{
    Death, Layout, Operator, ProcessError, Progress, Record, Settings,
    layout::{Kind, NoAddresses, configuration_file},
    process::Supervised,
    record::{Lock, RECORD_SCHEMA, RecordError, sweep},
};

/// A running deployment.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    layout: Layout,
    processes: BTreeMap<String, (Kind, Mutex<Supervised>)>,
    deaths: broadcast::Sender<Death>,
    lock: Lock,
    started_at: Moment,
}

/// Why a world did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder is taken or unusable.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The state folder cannot be written.
    #[error("cannot prepare {}", path.display())]
    Io {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The models are not where they should be.
    #[error("there are no speech models in {}; give their folder with --models-dir", models_dir.display())]
    NoModels {
        /// Where they were expected.
        models_dir: PathBuf,
    },
    /// No addresses are free.
    #[error(transparent)]
    Addresses(#[from] NoAddresses),
    /// A process did not start.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// All processes run, and the control plane does not see it.
    #[error("the world was not healthy after {:.0} s: {missing}; the logs are in {}", waited.as_secs_f64(), state_dir.display())]
    NotHealthy {
        /// How long it was waited for.
        waited: Duration,
        /// What was missing.
        missing: String,
        /// Where the logs are.
        state_dir: PathBuf,
    },
}

/// Deaths remembered for a slow listener: more than there are processes.
const DEATHS_KEPT: usize = 64;
/// How often the control plane is asked while waiting for health.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Two ticks until every region was judged, and room for a busy machine.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(60);
/// Patience with processes that stop, per kind: longer than any of them drains.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

impl World {
    /// Starts everything and waits until every process takes work. Health takes longer, see [`World::healthy`].
    pub async fn start(mut settings: Settings) -> Result<Self, StartError> {
        let prepare = |path: &PathBuf| {
            let path = path.clone();
            |source| StartError::Io { path, source }
        };
        std::fs::create_dir_all(&settings.state_dir).map_err(prepare(&settings.state_dir))?;
        // Configuration files refer to it, and the programs may be started from elsewhere.
        settings.state_dir = settings
            .state_dir
            .canonicalize()
            .map_err(prepare(&settings.state_dir))?;
        if !settings.models_dir.is_dir() {
            return Err(StartError::NoModels {
                models_dir: settings.models_dir,
            });
        }
        settings.models_dir = settings
            .models_dir
            .canonicalize()
            .map_err(prepare(&settings.models_dir))?;

        let started_at = daemon::clock::now();
        let lock = Lock::take(&settings.state_dir, started_at)?;
        if let Some(record) = lock.left_behind() {
            sweep(&record, &settings.state_dir);
        }
        lock.withdraw();
        let layout = Layout::choose()?;
        clear(&settings, &layout).map_err(prepare(&settings.state_dir))?;
        layout
            .write_configuration(&settings)
            .map_err(prepare(&settings.state_dir))?;

        let (deaths, _) = broadcast::channel(DEATHS_KEPT);
        let mut processes = BTreeMap::new();
        for (name, kind) in layout.processes() {
            let program = settings.binaries_dir.join(kind.program());
            let configuration = configuration_file(&settings.state_dir, &name, kind);
            let process = Supervised::new(&name, program, configuration, &settings.state_dir, deaths.clone());
            processes.insert(name, (kind, Mutex::new(process)));
        }
        let world = Self {
            settings,
            layout,
            processes,
            deaths,
            lock,
            started_at,
        };
        for kinds in [
            [Kind::Stack, Kind::Stack],
            [Kind::ControlPlane, Kind::ControlPlane],
            [Kind::Dns, Kind::Edge],
        ] {
            world.start_all(&kinds).await?;
        }
        world.publish().await?;
        Ok(world)
    }

    /// Starts all processes of some kinds, then waits for all of them.
    async fn start_all(&self, kinds: &[Kind]) -> Result<(), StartError> {
        let chosen: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, (kind, _))| kinds.contains(kind))
            .collect();
        for (name, (_, process)) in &chosen {
            process.lock().await.start()?;
            self.tell(&Progress::Started((*name).clone()));
        }
        for (name, (_, process)) in &chosen {
            let took = process.lock().await.ready(self.settings.ready_timeout).await?;
            self.tell(&Progress::Ready((*name).clone(), took));
        }
        Ok(())
    }

    /// Waits until the control plane has seen every region healthy and every node has acknowledged the newest plan.
    pub async fn healthy(&self) -> Result<v1::StatusReply, StartError> {
        let operator = self.operator();
        let began = Instant::now();
        let mut told = None;
        loop {
            let missing = match operator.status().await {
                Ok(status) => match missing_for_health(&status, &self.layout) {
                    None => return Ok(status),
                    Some(missing) => missing,
                },
                Err(error) => error.to_string(),
            };
            if began.elapsed() > HEALTHY_TIMEOUT {
                return Err(StartError::NotHealthy {
                    waited: began.elapsed(),
                    missing,
                    state_dir: self.settings.state_dir.clone(),
                });
            }
            if told.as_ref() != Some(&missing) {
                self.tell(&Progress::Waiting(missing.clone()));
                told = Some(missing);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its control plane.
    pub fn operator(&self) -> Operator {
        Operator::at([self.layout.control_plane_url()])
    }

    /// Where configuration, state and logs are.
    pub fn state_dir(&self) -> &std::path::Path {
        &self.settings.state_dir
    }

    /// Told of every process that ends without being asked to.
    pub fn deaths(&self) -> broadcast::Receiver<Death> {
        self.deaths.subscribe()
    }

    /// Kills a process (SIGKILL) and waits until it is gone. Returns the moment just before.
    pub async fn kill(&self, name: &str) -> Result<Moment, ProcessError> {
        let mut process = self.process(name)?.lock().await;
        let at = daemon::clock::now();
        process.kill().await?;
        Ok(at)
    }

    /// Freezes a process (SIGSTOP): it keeps its sockets and does nothing.
    pub async fn stop(&self, name: &str) -> Result<(), ProcessError> {
        self.process(name)?.lock().await.freeze().await
    }

    /// Lets a frozen process go on.
    pub async fn resume(&self, name: &str) -> Result<(), ProcessError> {
        self.process(name)?.lock().await.resume()
    }

    /// Asks a process to stop (SIGTERM) and kills it when it does not; whether it did.
    pub async fn terminate(&self, name: &str) -> Result<bool, ProcessError> {
        self.process(name)?.lock().await.terminate(STOP_TIMEOUT).await
    }

    /// Starts a process again with the same addresses and state, killing it first when it runs. Returns how long it took
    /// to become ready.
    pub async fn restart(&self, name: &str) -> Result<Duration, StartError> {
        let mut process = self.process(name)?.lock().await;
        if process.pid().is_some() {
            process.kill().await?;
        }
        process.start()?;
        let took = process.ready(self.settings.ready_timeout).await?;
        drop(process);
        self.publish().await?;
        Ok(took)
    }

    /// Starts a process without waiting until it is ready.
    pub async fn start_only(&self, name: &str) -> Result<(), ProcessError> {
        self.process(name)?.lock().await.start()
    }

    /// Names and ids of the processes that run.
    pub async fn pids(&self) -> BTreeMap<String, u32> {
        let mut pids = BTreeMap::new();
        for (name, (_, process)) in &self.processes {
            if let Some(pid) = process.lock().await.pid() {
                pids.insert(name.clone(), pid);
            }
        }
        pids
    }

    /// Where everything is reached, as it is written for other programs.
    pub async fn record(&self) -> Record {
        let layout = &self.layout;
        let edges = layout.topology.edges.values();
        let stacks = layout.topology.regions.keys();
        Record {
            schema: RECORD_SCHEMA,
            pid: std::process::id(),
            started_at_ms: self.started_at,
            zone: layout.topology.zone.clone(),
            control_plane: layout.control_plane_url(),
            dns: layout.dns,
            edge_port: edges.clone().next().map_or(0, |edge| edge.port),
            edges: edges.map(|edge| (edge.id.to_string(), layout.edge_url(edge))).collect(),
            stacks: stacks
                .filter_map(|id| Some((id.to_string(), layout.stack_url(id)?)))
                .collect(),
            metrics: layout
                .admin
                .iter()
                .map(|(name, admin)| (name.clone(), format!("http://{admin}/metrics")))
                .collect(),
            processes: self.pids().await,
        }
    }

    /// Stops everything: edges first, so that sessions end with a reason, then name server, control plane and stacks.
    /// What does not stop is killed.
    pub async fn shutdown(self) {
        for kind in [Kind::Edge, Kind::Dns, Kind::ControlPlane, Kind::Stack] {
            let chosen: Vec<_> = self.processes.iter().filter(|(_, (each, _))| *each == kind).collect();
            let names: Vec<&str> = chosen.iter().map(|(name, _)| name.as_str()).collect();
            self.tell(&Progress::Stopping(names.join(", ")));
            let began = Instant::now();
            for (_, (_, process)) in &chosen {
                // Fails when it does not run, which is where this leads anyway.
                let _ = process.lock().await.ask_to_stop();
            }
            for (name, (_, process)) in &chosen {
                let left = STOP_TIMEOUT.saturating_sub(began.elapsed());
                if let Ok(false) = process.lock().await.terminate(left).await {
                    self.tell(&Progress::Killed((*name).clone()));
                }
            }
        }
    }

    async fn publish(&self) -> Result<(), RecordError> {
        self.lock.publish(&self.record().await)
    }

    fn process(&self, name: &str) -> Result<&Mutex<Supervised>, ProcessError> {
        let unknown = || ProcessError::Unknown {
            name: name.to_owned(),
            known: self.processes.keys().cloned().collect::<Vec<_>>().join(", "),
        };
        self.processes.get(name).map(|(_, process)| process).ok_or_else(unknown)
    }

    fn tell(&self, progress: &Progress) {
        (self.settings.progress)(progress);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (_, process) in self.processes.values_mut() {
            process.get_mut().kill_now();
        }
    }
}

/// Removes what an earlier world left: a world is a rehearsal and starts from nothing. Only names this crate writes.
fn clear(settings: &Settings, layout: &Layout) -> std::io::Result<()> {
    for (name, _) in layout.processes() {
        let folder = settings.state_dir.join(&name);
        if folder.is_dir() {
            std::fs::remove_dir_all(folder)?;
        }
        for extension in ["log", "json"] {
            match std::fs::remove_file(settings.state_dir.join(format!("{name}.{extension}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// What is not yet as it should be; `None` when the world is healthy.
fn missing_for_health(status: &v1::StatusReply, layout: &Layout) -> Option<String> {
    let known: BTreeSet<&str> = status.regions.iter().map(|region| region.region.as_str()).collect();
    let absent: Vec<&str> = (layout.topology.regions.keys())
        .map(topology::RegionId::as_str)
        .filter(|id| !known.contains(id))
        .collect();
    if !absent.is_empty() {
        return Some(format!("a plan with {}", absent.join(", ")));
    }
    let newest = status.number.unwrap_or_default().generation;
    let acknowledged = |node: &str| {
        status.nodes.iter().any(|status| {
            status.node == node && status.connected && status.acknowledged.unwrap_or_default().generation == newest
        })
    };
    let nodes = layout.topology.edges.keys().map(topology::EdgeId::as_str);
    let nodes = nodes.chain(layout.topology.name_servers.keys().map(topology::NodeId::as_str));
    let waiting: Vec<&str> = nodes.filter(|node| !acknowledged(node)).collect();
    if !waiting.is_empty() {
        return Some(format!("{} to acknowledge plan {newest}", waiting.join(", ")));
    }
    let unwell: Vec<String> = (status.regions.iter())
        .filter(|region| region.health != "healthy")
        .map(|region| format!("{} ({})", region.region, region.health))
        .collect();
    (!unwell.is_empty()).then(|| format!("health of {}", unwell.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(layout: &Layout, health: &str, acknowledged: u64) -> v1::StatusReply {
        let number = |generation| Some(v1::PlanNumber { generation, epoch: 1 });
        let nodes = ["edge-iad", "edge-dub", "ns1"];
        v1::StatusReply {
            number: number(2),
            regions: (layout.topology.regions.keys())
                .map(|id| v1::RegionStatus {
                    region: id.to_string(),
                    health: health.to_owned(),
                    ..Default::default()
                })
                .collect(),
            nodes: nodes
                .map(|node| v1::NodeStatus {
                    node: node.to_owned(),
                    acknowledged: number(acknowledged),
                    connected: true,
                    ..Default::default()
                })
                .to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn a_world_is_healthy_once_every_region_is_and_every_node_has_the_plan() {
        let layout = Layout::choose().unwrap();
        let missing = |status: &v1::StatusReply| missing_for_health(status, &layout);
        assert_eq!(missing(&status(&layout, "healthy", 2)), None);
        let late = missing(&status(&layout, "healthy", 1)).unwrap();
        assert_eq!(late, "edge-dub, edge-iad, ns1 to acknowledge plan 2");
        let unknown = missing(&status(&layout, "no-data", 2)).unwrap();
        assert!(unknown.contains("us-east (no-data)"), "{unknown}");
        assert!(missing(&v1::StatusReply::default()).unwrap().contains("a plan with"));
    }

    #[tokio::test]
    async fn programs_that_were_not_built_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings::new(folder.path().join("state"));
        settings.binaries_dir = folder.path().to_owned();
        settings.models_dir = folder.path().to_owned();
        let error = World::start(settings).await.unwrap_err().to_string();
        assert!(error.contains("meridian-stack; build all programs first"), "{error}");
    }
}
