//! Starting, changing and stopping a world.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use api::{Operator, v1};
use tokio::sync::{Mutex, broadcast};
use topology::Moment;

use crate::{
    Death, Layout, ProcessError, Progress, Record, Settings, StoreKind,
    etcd::EtcdError,
    layout::{Kind, NoAddresses, configuration_file, control_planes, etcd_members},
    members::{self, Members},
    network::Network,
    process::Supervised,
    record::{Lock, RECORD_SCHEMA, RecordError, sweep},
};

/// A running deployment.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    layout: Layout,
    processes: BTreeMap<String, (Kind, Mutex<Supervised>)>,
    /// What the control planes share, when there are several.
    etcd: Option<Members>,
    deaths: broadcast::Sender<Death>,
    lock: Lock,
    started_at: Moment,
    /// Where everything listens but etcd, which has a network of its own.
    _network: Network,
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
    /// Several control planes need etcd.
    #[error(
        "--store etcd needs {program}, which is not installed: sudo apt-get install {package}, or leave out --store etcd"
    )]
    NotInstalled {
        /// What is missing.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// etcd did not start.
    #[error(transparent)]
    Etcd(EtcdError),
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

impl From<EtcdError> for StartError {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::NoProgram { program, package } => Self::NotInstalled { program, package },
            error => Self::Etcd(error),
        }
    }
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

        if settings.store == StoreKind::Etcd {
            members::check_installed()?;
        }

        let started_at = daemon::clock::now();
        let lock = Lock::take(&settings.state_dir, started_at)?;
        sweep(&lock.left_behind(), &settings.state_dir);
        lock.withdraw();
        let (layout, network) = Layout::choose(settings.store)?;
        clear(&settings.state_dir, &layout).map_err(prepare(&settings.state_dir))?;
        let (deaths, _) = broadcast::channel(DEATHS_KEPT);
        let mut processes = BTreeMap::new();
        for (name, kind) in layout.processes() {
            let program = settings.binaries_dir.join(kind.program());
            let configuration = configuration_file(&settings.state_dir, &name, kind);
            let process = Supervised::new(&name, program, configuration, &settings.state_dir, deaths.clone());
            processes.insert(name, (kind, Mutex::new(process)));
        }
        let mut world = Self {
            settings,
            layout,
            processes,
            etcd: None,
            deaths,
            lock,
            started_at,
            _network: network,
        };
        world.configure(&[Kind::Stack])?;
        world.start_all(&[Kind::Stack]).await?;
        world.start_etcd().await?;
        // Only now is it known where etcd listens.
        world.configure(&[Kind::ControlPlane, Kind::Dns, Kind::Edge])?;
        world.start_all(&[Kind::ControlPlane]).await?;
        world.start_all(&[Kind::Dns, Kind::Edge]).await?;
        world.publish().await?;
        Ok(world)
    }

    fn configure(&self, kinds: &[Kind]) -> Result<(), StartError> {
        let etcd = self.etcd.as_ref().map_or_else(BTreeMap::new, Members::urls);
        let etcd: Vec<String> = etcd.into_values().collect();
        let written = self.layout.write_configuration(&self.settings, kinds, &etcd);
        written.map_err(|source| StartError::Io {
            path: self.settings.state_dir.clone(),
            source,
        })
    }

    async fn start_etcd(&mut self) -> Result<(), StartError> {
        if self.settings.store == StoreKind::Embedded {
            return Ok(());
        }
        let names = etcd_members(self.settings.store);
        for name in &names {
            self.tell(&Progress::Started(name.clone()));
        }
        let began = Instant::now();
        self.etcd = Some(Members::start(&self.settings, self.deaths.clone()).await?);
        for name in names {
            self.tell(&Progress::Ready(name, began.elapsed()));
        }
        Ok(())
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

    /// Its control planes.
    pub fn operator(&self) -> Operator {
        Operator::at(self.layout.control_plane_urls())
    }

    /// Where configuration, state and logs are.
    pub fn state_dir(&self) -> &Path {
        &self.settings.state_dir
    }

    /// The member of etcd that the others follow, when there is etcd and they agree on one.
    pub async fn etcd_leader(&self) -> Option<String> {
        self.etcd.as_ref()?.leader().await
    }

    /// Told of every process that ends without being asked to.
    pub fn deaths(&self) -> broadcast::Receiver<Death> {
        self.deaths.subscribe()
    }

    /// Kills a process (SIGKILL) and waits until it is gone. Returns the moment just before.
    pub async fn kill(&self, name: &str) -> Result<Moment, ProcessError> {
        if let Some((etcd, index)) = self.member(name) {
            let at = daemon::clock::now();
            etcd.kill(index).await?;
            return Ok(at);
        }
        let mut process = self.process(name)?.lock().await;
        let at = daemon::clock::now();
        process.kill().await?;
        Ok(at)
    }

    /// Freezes a process (SIGSTOP): it keeps its sockets and does nothing.
    pub async fn stop(&self, name: &str) -> Result<(), ProcessError> {
        match self.member(name) {
            Some((etcd, index)) => Ok(etcd.stop(index).await?),
            None => self.process(name)?.lock().await.freeze().await,
        }
    }

    /// Lets a frozen process go on.
    pub async fn resume(&self, name: &str) -> Result<(), ProcessError> {
        match self.member(name) {
            Some((etcd, index)) => Ok(etcd.resume(index).await?),
            None => self.process(name)?.lock().await.resume(),
        }
    }

    /// Asks a process to stop (SIGTERM) and kills it when it does not; whether it did. A member of etcd is killed at once:
    /// it has nobody to say goodbye to.
    pub async fn terminate(&self, name: &str) -> Result<bool, ProcessError> {
        match self.member(name) {
            Some((etcd, index)) => Ok(etcd.kill(index).await.map(|()| false)?),
            None => self.process(name)?.lock().await.terminate(STOP_TIMEOUT).await,
        }
    }

    /// Starts a process again with the same addresses and state, killing it first when it runs. Returns how long it took
    /// to become ready.
    pub async fn restart(&self, name: &str) -> Result<Duration, StartError> {
        self.start_again(name).await?;
        Ok(self.ready(name).await?)
    }

    /// The first half of [`World::restart`].
    pub async fn start_again(&self, name: &str) -> Result<(), StartError> {
        if let Some((etcd, index)) = self.member(name) {
            etcd.start_again(index).await?;
        } else {
            let mut process = self.process(name)?.lock().await;
            if process.pid().is_some() {
                process.kill().await?;
            }
            process.start()?;
        }
        Ok(self.publish().await?)
    }

    /// The second half: waits until a process that was started is ready, and returns how long that took. Other
    /// processes, and this one, may be killed and started meanwhile. A member of etcd without a quorum is not waited for.
    pub async fn ready(&self, name: &str) -> Result<Duration, ProcessError> {
        if let Some((etcd, index)) = self.member(name) {
            return Ok(etcd.ready(index).await?);
        }
        let starting = self.process(name)?.lock().await.starting()?;
        starting.ready(self.settings.ready_timeout).await
    }

    /// Starts a process without waiting until it is ready.
    pub async fn start_only(&self, name: &str) -> Result<(), ProcessError> {
        match self.member(name) {
            Some((etcd, index)) => Ok(etcd.start_only(index).await?),
            None => self.process(name)?.lock().await.start(),
        }
    }

    /// Names and ids of the processes that run.
    pub async fn pids(&self) -> BTreeMap<String, u32> {
        let mut pids = BTreeMap::new();
        for (name, (_, process)) in &self.processes {
            if let Some(pid) = process.lock().await.pid() {
                pids.insert(name.clone(), pid);
            }
        }
        if let Some(etcd) = &self.etcd {
            pids.extend(etcd.pids().await);
        }
        pids
    }

    /// Where everything is reached, as it is written for other programs.
    pub async fn record(&self) -> Record {
        let layout = &self.layout;
        let edges = layout.topology.edges.values();
        let stacks = layout.topology.regions.keys();
        let etcd = self.etcd.as_ref().map_or_else(BTreeMap::new, Members::urls);
        let admin = layout
            .admin
            .iter()
            .map(|(name, admin)| (name, format!("http://{admin}")));
        Record {
            schema: RECORD_SCHEMA,
            pid: std::process::id(),
            started_at_ms: self.started_at,
            zone: layout.topology.zone.clone(),
            control_planes: layout.control_plane_urls(),
            dns: layout.dns,
            edge_port: edges.clone().next().map_or(0, |edge| edge.port),
            edges: edges.map(|edge| (edge.id.to_string(), layout.edge_url(edge))).collect(),
            stacks: stacks
                .filter_map(|id| Some((id.to_string(), layout.stack_url(id)?)))
                .collect(),
            metrics: admin
                .chain(etcd.iter().map(|(name, url)| (name, url.clone())))
                .map(|(name, url)| (name.clone(), format!("{url}/metrics")))
                .collect(),
            etcd,
            processes: self.pids().await,
        }
    }

    /// Stops everything: edges first, so that sessions end with a reason, then name server, control planes, etcd and stacks.
    /// What does not stop is killed.
    pub async fn shutdown(mut self) {
        for kind in [Kind::Edge, Kind::Dns, Kind::ControlPlane, Kind::Stack] {
            if kind == Kind::Stack
                && let Some(etcd) = self.etcd.take()
            {
                let names: Vec<String> = etcd.urls().into_keys().collect();
                self.tell(&Progress::Stopping(names.join(", ")));
                // Kills them, which takes a moment; what they wrote is on disk.
                drop(etcd);
            }
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

    /// The member of etcd of this name.
    fn member(&self, name: &str) -> Option<(&Members, usize)> {
        let etcd = self.etcd.as_ref()?;
        Some((etcd, etcd.find(name)?))
    }

    fn process(&self, name: &str) -> Result<&Mutex<Supervised>, ProcessError> {
        let unknown = || {
            let etcd = etcd_members(self.settings.store);
            let known: Vec<&str> = self.processes.keys().chain(&etcd).map(String::as_str).collect();
            ProcessError::Unknown {
                name: name.to_owned(),
                known: known.join(", "),
            }
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

/// Removes what an earlier world left: a world is a rehearsal and starts from nothing. Only names this crate writes, also
/// those of a world with the other store.
fn clear(state_dir: &Path, layout: &Layout) -> std::io::Result<()> {
    let mut names: BTreeSet<String> = layout.processes().into_iter().map(|(name, _)| name).collect();
    for store in [StoreKind::Embedded, StoreKind::Etcd] {
        names.extend(control_planes(store));
        names.extend(etcd_members(store));
    }
    // etcd.json holds the addresses of its members.
    names.insert("etcd".to_owned());
    for name in names {
        let folder = state_dir.join(&name);
        if folder.is_dir() {
            std::fs::remove_dir_all(folder)?;
        }
        for extension in ["log", "json"] {
            match std::fs::remove_file(state_dir.join(format!("{name}.{extension}"))) {
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
    use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

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
        let (layout, _network) = Layout::choose(StoreKind::Embedded).unwrap();
        let missing = |status: &v1::StatusReply| missing_for_health(status, &layout);
        assert_eq!(missing(&status(&layout, "healthy", 2)), None);
        let late = missing(&status(&layout, "healthy", 1)).unwrap();
        assert_eq!(late, "edge-dub, edge-iad, ns1 to acknowledge plan 2");
        let unknown = missing(&status(&layout, "no-data", 2)).unwrap();
        assert!(unknown.contains("us-east (no-data)"), "{unknown}");
        assert!(missing(&v1::StatusReply::default()).unwrap().contains("a plan with"));
    }

    #[test]
    fn what_is_not_installed_is_said_with_the_remedy() {
        let (program, package) = ("etcd", "etcd-server");
        let error = StartError::from(EtcdError::NoProgram { program, package }).to_string();
        assert!(error.contains("sudo apt-get install etcd-server"), "{error}");
    }

    #[test]
    fn nothing_is_left_of_a_world_with_the_other_store_and_strangers_are_spared() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for left in ["control-plane", "control-plane-3", "etcd-2", "edge-iad", "photos"] {
            std::fs::create_dir(at(left)).unwrap();
            std::fs::write(at(&format!("{left}.log")), "").unwrap();
        }
        std::fs::write(at("etcd.json"), "addresses").unwrap();
        let (layout, _network) = Layout::choose(StoreKind::Embedded).unwrap();
        clear(folder.path(), &layout).unwrap();
        clear(folder.path(), &layout).unwrap();
        let mut names: Vec<_> = (std::fs::read_dir(folder.path()).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["photos", "photos.log"]);
    }

    /// Programs that announce themselves and wait for their end, which is all a world asks of them.
    fn stand_ins(folder: &Path) {
        let announce = r#"printf '{"program":"p","pid":%d,"addresses":{}}' $$ > "$4.new"; mv "$4.new" "$4""#;
        for kind in [Kind::Stack, Kind::ControlPlane, Kind::Dns, Kind::Edge] {
            let path = folder.join(kind.program());
            std::fs::write(&path, format!("#!/bin/sh\n{announce}\ncat >/dev/null\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[tokio::test]
    async fn three_control_planes_share_etcd_and_everything_starts_and_stops_in_order() {
        let folder = tempfile::tempdir().unwrap();
        stand_ins(folder.path());
        let told = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let tell = told.clone();
        let settings = Settings {
            binaries_dir: folder.path().to_owned(),
            models_dir: folder.path().to_owned(),
            store: StoreKind::Etcd,
            progress: Arc::new(move |progress| {
                if matches!(progress, Progress::Started(_) | Progress::Stopping(_)) {
                    tell.lock().unwrap().push(progress.to_string());
                }
            }),
            ..Settings::new(folder.path().join("state"))
        };
        let world = World::start(settings).await.unwrap();
        let mut deaths = world.deaths();
        let record = crate::find(world.state_dir()).unwrap();
        let etcd: Vec<&str> = record.etcd.keys().map(String::as_str).collect();
        assert_eq!(etcd, ["etcd-1", "etcd-2", "etcd-3"]);
        assert_eq!((record.control_planes.len(), record.processes.len()), (3, 15));
        assert_eq!(record.metrics["etcd-2"], format!("{}/metrics", record.etcd["etcd-2"]));
        let config = world.state_dir().join("control-plane-2/control-plane.toml");
        let config = std::fs::read_to_string(config).unwrap();
        for url in record.etcd.values() {
            assert!(config.contains(url), "{config}");
        }

        for name in ["etcd-2", "control-plane-3"] {
            world.stop(name).await.unwrap();
            world.resume(name).await.unwrap();
            world.kill(name).await.unwrap();
            assert!(!world.pids().await.contains_key(name));
            world.restart(name).await.unwrap();
        }
        let pids = world.pids().await;
        assert_eq!(pids.len(), 15);
        assert_ne!(pids["etcd-2"], record.processes["etcd-2"]);
        assert_eq!(crate::find(world.state_dir()).unwrap().processes, pids);
        let error = world.kill("etcd-4").await.unwrap_err().to_string();
        assert!(error.contains("control-plane-1") && error.contains("etcd-1"), "{error}");
        assert!(world.etcd_leader().await.is_some());

        // All members at once, and back one by one: the first has nobody to agree with, and is not waited for.
        for member in ["etcd-1", "etcd-2", "etcd-3"] {
            world.kill(member).await.unwrap();
        }
        let error = world.restart("etcd-1").await.unwrap_err().to_string();
        assert!(error.contains("2 of the 3 members must run (now 1)"), "{error}");
        world.restart("etcd-2").await.unwrap();
        world.ready("etcd-1").await.unwrap();
        world.restart("etcd-3").await.unwrap();
        let pids = world.pids().await;
        assert_eq!(crate::find(world.state_dir()).unwrap().processes, pids);

        world.shutdown().await;
        for (name, pid) in pids {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{name} ({pid}) is left");
        }
        assert!(deaths.try_recv().is_err(), "nothing died that was not asked to");
        assert_eq!(
            *told.lock().unwrap(),
            [
                "ap-northeast started",
                "ap-south started",
                "eu-central started",
                "eu-west started",
                "us-east started",
                "us-west started",
                "etcd-1 started",
                "etcd-2 started",
                "etcd-3 started",
                "control-plane-1 started",
                "control-plane-2 started",
                "control-plane-3 started",
                "edge-dub started",
                "edge-iad started",
                "ns1 started",
                "stopping edge-dub, edge-iad",
                "stopping ns1",
                "stopping control-plane-1, control-plane-2, control-plane-3",
                "stopping etcd-1, etcd-2, etcd-3",
                "stopping ap-northeast, ap-south, eu-central, eu-west, us-east, us-west",
            ]
        );
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
