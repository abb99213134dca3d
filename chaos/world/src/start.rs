//! Starts, changes and stops a world.

mod error;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use api::{Operator, v1};
use identity::{Identity, Role, ca::Leaf};
use tokio::{
    sync::{Mutex, broadcast},
    task::AbortHandle,
};
use topology::Moment;

use crate::{
    Death, Layout, ProcessError, Progress, Record, Settings, StoreKind,
    authority::{self, Folder, client_leaf, leaf_of, operator_leaf},
    etcd::EtcdAuthority,
    layout::{Kind, configuration_file, control_planes, etcd_members},
    members::{self, Members},
    network::Network,
    process::Supervised,
    record::{Lock, RECORD_SCHEMA, RecordError, sweep},
    texts,
};
pub use error::StartError;

/// A running deployment.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    layout: Layout,
    processes: BTreeMap<String, (Kind, Mutex<Supervised>)>,
    /// The members of etcd, if several control planes share it.
    etcd: Option<Members>,
    deaths: broadcast::Sender<Death>,
    /// The credential of the person who started the world.
    owner: Arc<Identity>,
    /// Keep certificates alive.
    renewing: Vec<AbortHandle>,
    lock: Lock,
    started_at: Moment,
    /// Claims the network of every address but etcd's, which has a network of its own.
    _network: Network,
}

/// Deaths kept for a slow subscriber: more than there are processes.
const DEATHS_KEPT: usize = 64;
/// Pause between two questions to the control plane about health.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Two ticks until every region is judged, and room for a busy machine.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(120);
/// Deadline for all processes of a kind to stop: longer than any of them drains.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

impl World {
    /// Starts every process and waits until each takes work. Health takes longer, see [`World::healthy`].
    pub async fn start(mut settings: Settings) -> Result<Self, StartError> {
        let prepare = |path: &PathBuf| {
            let path = path.clone();
            |source| StartError::Io { path, source }
        };
        std::fs::create_dir_all(&settings.state_dir).map_err(prepare(&settings.state_dir))?;
        // Configuration files contain this path, and a program's current folder may differ.
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
        let (owner, renewing) = certificates(&settings.state_dir, &layout)?;
        let mut world = Self {
            owner,
            renewing: vec![renewing],
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
        // etcd's addresses are known only now.
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
        let authority = EtcdAuthority {
            folder: Folder::of_etcd(&self.settings.state_dir),
            zone: self.layout.topology.zone.clone(),
        };
        authority.folder.create(&authority.zone, daemon::clock::now())?;
        let folder = authority.folder.clone();
        let mut leaves = Vec::new();
        for (name, kind) in self.layout.processes() {
            if kind == Kind::ControlPlane {
                let leaf = client_leaf(&authority.zone, Role::ControlPlane(name.clone()))?;
                let into = self.settings.state_dir.join(name).join("etcd");
                folder.issue(&leaf, &into, daemon::clock::now())?;
                leaves.push((leaf, into));
            }
        }
        let members = Members::start(&self.settings, authority, self.deaths.clone()).await?;
        leaves.extend(members.leaves.iter().cloned());
        self.renewing
            .push(tokio::spawn(keep_issued(folder, leaves, || {})).abort_handle());
        self.etcd = Some(members);
        for name in names {
            self.tell(&Progress::Ready(name, began.elapsed()));
        }
        Ok(())
    }

    /// Starts all processes of these kinds, then waits until all are ready.
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

    /// Waits until the control plane reports every region healthy, and every node has acknowledged the newest plan.
    pub async fn healthy(&self) -> Result<v1::StatusReply, StartError> {
        let operator = self.operator();
        let began = Instant::now();
        let mut reported = None;
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
            if reported.as_ref() != Some(&missing) {
                self.tell(&Progress::Waiting(missing.clone()));
                reported = Some(missing);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The addresses of all processes but etcd's members.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A client of its control planes.
    pub fn operator(&self) -> Operator {
        Operator::at(self.layout.control_plane_urls()).with_identity(Some(self.owner.clone()))
    }

    /// Folder of configuration, state and logs.
    pub fn state_dir(&self) -> &Path {
        &self.settings.state_dir
    }

    /// Name of etcd's leader, if there is etcd and its members agree on one.
    pub async fn etcd_leader(&self) -> Option<String> {
        self.etcd.as_ref()?.leader().await
    }

    /// Subscribes to ends of processes that the world did not ask for.
    pub fn deaths(&self) -> broadcast::Receiver<Death> {
        self.deaths.subscribe()
    }

    /// Kills a process (SIGKILL) and waits for its end. Returns the time just before the signal.
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

    /// Lets a frozen process continue (SIGCONT).
    pub async fn resume(&self, name: &str) -> Result<(), ProcessError> {
        match self.member(name) {
            Some((etcd, index)) => Ok(etcd.resume(index).await?),
            None => self.process(name)?.lock().await.resume(),
        }
    }

    /// Asks a process to stop (SIGTERM) and kills it after a deadline. Returns whether it stopped by itself. A member
    /// of etcd is killed at once, since it has no sessions to end.
    pub async fn terminate(&self, name: &str) -> Result<bool, ProcessError> {
        match self.member(name) {
            Some((etcd, index)) => Ok(etcd.kill(index).await.map(|()| false)?),
            None => self.process(name)?.lock().await.terminate(STOP_TIMEOUT).await,
        }
    }

    /// Starts a process again with the same addresses and state, after killing it if it runs. Returns the time until it
    /// was ready.
    pub async fn restart(&self, name: &str) -> Result<Duration, StartError> {
        self.start_again(name).await?;
        Ok(self.ready(name).await?)
    }

    /// The first half of [`World::restart`]: kill and start.
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

    /// The second half: waits until a started process is ready, and returns the time that took. Meanwhile callers may
    /// kill and start any process. Fails at once for a member of etcd without a quorum.
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

    /// Process ids of the running processes, by name.
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

    /// The record of this world's addresses and processes, for other programs.
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
            operator: authority::owner_folder(&self.settings.state_dir),
            dns: layout.dns,
            edge_port: edges.clone().next().map_or(0, |edge| edge.port),
            edges: edges.map(|edge| (edge.id.to_string(), layout.edge_url(edge))).collect(),
            stacks: stacks
                .filter_map(|id| Some((id.to_string(), layout.stack_url(id)?)))
                .collect(),
            metrics: admin
                .map(|(name, url)| (name.clone(), format!("{url}/metrics")))
                .chain(self.etcd.iter().flat_map(Members::metrics))
                .collect(),
            etcd,
            processes: self.pids().await,
        }
    }

    /// Stops all processes: edges first, so that sessions end with a reason, then the name server, control planes, etcd
    /// and stacks. Kills those that miss the deadline.
    pub async fn shutdown(mut self) {
        for kind in [Kind::Edge, Kind::Dns, Kind::ControlPlane, Kind::Stack] {
            if kind == Kind::Stack
                && let Some(etcd) = self.etcd.take()
            {
                let names: Vec<String> = etcd.urls().into_keys().collect();
                self.tell(&Progress::Stopping(names.join(", ")));
                // Dropping kills the members, which takes a moment. Their writes are on disk.
                drop(etcd);
            }
            let chosen: Vec<_> = self.processes.iter().filter(|(_, (each, _))| *each == kind).collect();
            let names: Vec<&str> = chosen.iter().map(|(name, _)| name.as_str()).collect();
            self.tell(&Progress::Stopping(names.join(", ")));
            let began = Instant::now();
            for (_, (_, process)) in &chosen {
                // Fails for a process that does not run, which is fine here.
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

    /// etcd's members, and the index of the one of this name.
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
        self.renewing.iter().for_each(AbortHandle::abort);
        for (_, process) in self.processes.values_mut() {
            process.get_mut().kill_now();
        }
    }
}

/// Makes the world's authority, a leaf for each process, and the credential of its owner, and keeps all of them alive. Control planes renew
/// the leaves of processes; those that missed it, because the machine slept or they did not run, are issued anew here.
fn certificates(state_dir: &Path, layout: &Layout) -> Result<(Arc<Identity>, AbortHandle), StartError> {
    let (folder, zone, now) = (Folder::of_world(state_dir), &layout.topology.zone, daemon::clock::now());
    folder.create(zone, now)?;
    let mut leaves = Vec::new();
    for (name, kind) in layout.processes() {
        leaves.push((leaf_of(zone, &name, kind)?, state_dir.join(name)));
    }
    let own = authority::owner_folder(state_dir);
    leaves.push((
        operator_leaf(zone, &authority::person(), authority::owner())?,
        own.clone(),
    ));
    for (leaf, into) in &leaves {
        folder.issue(leaf, into, now)?;
    }
    let files = identity::files::Files::in_folder(&own);
    let owner = Identity::load(files, daemon::clock::now).map_err(|it| StartError::Authority(it.to_string()))?;
    let shown = owner.clone();
    let renewing = tokio::spawn(keep_issued(folder, leaves, move || _ = shown.reload()));
    Ok((owner, renewing.abort_handle()))
}

/// Issues certificates anew that are past the middle of their life; `looked` is called after each look.
async fn keep_issued(folder: Folder, leaves: Vec<(Leaf, PathBuf)>, looked: impl Fn()) {
    loop {
        tokio::time::sleep(authority::LOOK_EVERY).await;
        issue_due(&folder, &leaves, daemon::clock::now());
        looked();
    }
}

fn issue_due(folder: &Folder, leaves: &[(Leaf, PathBuf)], now: Moment) {
    for (leaf, into) in leaves {
        if is_half_over(into, now)
            && let Err(error) = folder.issue(leaf, into, now)
        {
            tracing::error!(id = %leaf.id, %error, "{}", texts::CERTIFICATE_NOT_ISSUED);
        }
    }
}

/// True if a certificate is past the middle of its life: its process should have renewed it at a third.
fn is_half_over(folder: &Path, now: Moment) -> bool {
    let files = identity::files::Files::in_folder(folder);
    let pem = identity::files::read(&files.certificate).ok();
    let peer = pem.and_then(|pem| identity::ca::peer_of(&pem));
    peer.is_none_or(|peer| peer.until.since(now) < peer.until.since(peer.from) / 2)
}

/// Removes the files of an earlier world, because a world starts from nothing. Touches only names that this crate
/// writes, for either store.
fn clear(state_dir: &Path, layout: &Layout) -> std::io::Result<()> {
    let mut names: BTreeSet<String> = layout.processes().into_iter().map(|(name, _)| name).collect();
    for store in [StoreKind::Embedded, StoreKind::Etcd] {
        names.extend(control_planes(store));
        names.extend(etcd_members(store));
    }
    // The authority of an earlier world, and the credentials of its operators.
    names.extend(["identity".to_owned(), "operators".to_owned()]);
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

/// The first condition for health that is not met; `None` if the world is healthy.
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
mod tests;
