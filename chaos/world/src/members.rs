//! etcd's members in a world: killed, frozen and restarted by name like the other processes. An end that the world did
//! not ask for is reported.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use identity::ca::Leaf;
use parking_lot::MutexGuard;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid};
use tokio::sync::{Mutex, broadcast};

use crate::{
    Death, EtcdCluster, EtcdSettings, Settings,
    etcd::{Durability, EtcdAuthority, EtcdError, LOOK_AGAIN, Member, Size},
    texts,
};

/// The members of a world's etcd.
#[derive(Debug)]
pub(crate) struct Members {
    cluster: Mutex<EtcdCluster>,
    /// Name and client URL, by index. They never change.
    urls: Vec<(String, String)>,
    /// The URL of each member's metrics.
    metrics: Vec<String>,
    /// Certificates that the world must keep alive, with their folders.
    pub(crate) leaves: Vec<(Leaf, PathBuf)>,
    /// The newest process of each member, by index.
    watched: parking_lot::Mutex<BTreeMap<usize, Arc<Watched>>>,
    deaths: broadcast::Sender<Death>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Set before the world itself ends the process.
    expected: AtomicBool,
    ended: AtomicBool,
}

/// Whether etcd's programs are installed. Checked before any slow step of starting a world.
pub(crate) fn check_installed() -> Result<(), EtcdError> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    for (program, package) in [("etcd", "etcd-server"), ("setpriv", "util-linux")] {
        if !there(program) {
            return Err(EtcdError::NoProgram { program, package });
        }
    }
    Ok(())
}

impl Members {
    /// Starts all members and waits until they are healthy.
    pub(crate) async fn start(
        settings: &Settings,
        authority: EtcdAuthority,
        deaths: broadcast::Sender<Death>,
    ) -> Result<Self, EtcdError> {
        let cluster = EtcdCluster::start(EtcdSettings {
            size: Size::Three,
            state_dir: settings.state_dir.clone(),
            // A world starts from nothing, so no data need survive the machine. But worlds measure how long a decision
            // takes, and the wait for the disk is part of it.
            durability: Durability::Synced,
            quota_bytes: None,
            healthy_deadline: settings.ready_timeout,
            authority: Some(authority),
        })
        .await?;
        let all = cluster.members();
        let members = Self {
            metrics: all.iter().map(|member| member.metrics_url.clone()).collect(),
            leaves: cluster.leaves()?,
            urls: all.into_iter().map(|member| (member.name, member.client_url)).collect(),
            cluster: Mutex::new(cluster),
            watched: parking_lot::Mutex::default(),
            deaths,
        };
        let cluster = members.cluster.lock().await;
        for index in 0..members.urls.len() {
            members.watch(&cluster, index);
        }
        drop(cluster);
        Ok(members)
    }

    /// Index of the member of this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.urls.iter().position(|(known, _)| known == name)
    }

    /// Client URL of every member, by name.
    pub(crate) fn urls(&self) -> BTreeMap<String, String> {
        self.urls.iter().cloned().collect()
    }

    /// URL of every member's metrics, by name.
    pub(crate) fn metrics(&self) -> BTreeMap<String, String> {
        let names = self.urls.iter().map(|(name, _)| name.clone());
        names.zip(self.metrics.iter().cloned()).collect()
    }

    /// Process ids of the running members, by name.
    pub(crate) async fn pids(&self) -> BTreeMap<String, u32> {
        let members = self.cluster.lock().await.members().into_iter().enumerate();
        let running = members.filter(|(index, _)| {
            let watched = self.watched(*index);
            watched.is_some_and(|watched| !watched.ended.load(Ordering::SeqCst))
        });
        running
            .filter_map(|(_, member)| Some((member.name, member.pid?)))
            .collect()
    }

    /// Name of the leader, if the members agree on one.
    pub(crate) async fn leader(&self) -> Option<String> {
        let leader = self.cluster.lock().await.leader().await?;
        self.urls.get(leader).map(|(name, _)| name.clone())
    }

    /// Kills a member (SIGKILL) and waits for its end.
    pub(crate) async fn kill(&self, index: usize) -> Result<(), EtcdError> {
        self.kill_in(&mut *self.cluster.lock().await, index)
    }

    fn kill_in(&self, cluster: &mut EtcdCluster, index: usize) -> Result<(), EtcdError> {
        if let Some(watched) = self.watched(index) {
            watched.expected.store(true, Ordering::SeqCst);
        }
        cluster.kill(index)
    }

    /// Freezes a member (SIGSTOP) and waits until its threads have stopped.
    pub(crate) async fn stop(&self, index: usize) -> Result<(), EtcdError> {
        self.cluster.lock().await.stop(index).await
    }

    /// Lets a frozen member continue (SIGCONT).
    pub(crate) async fn resume(&self, index: usize) -> Result<(), EtcdError> {
        self.cluster.lock().await.resume(index)
    }

    /// Starts a member again, after killing it if it runs. See [`Members::ready`].
    pub(crate) async fn start_again(&self, index: usize) -> Result<(), EtcdError> {
        let mut cluster = self.cluster.lock().await;
        if cluster.members()[index].pid.is_some() {
            self.kill_in(&mut cluster, index)?;
        }
        cluster.launch(index)?;
        self.watch(&cluster, index);
        Ok(())
    }

    /// Waits until a member takes writes, and returns the time that took. Fails at once if too few members run, because
    /// it would wait for members that its caller may be about to start. The lock is free between two checks, so others
    /// can start and kill members meanwhile.
    pub(crate) async fn ready(&self, index: usize) -> Result<Duration, EtcdError> {
        let began = Instant::now();
        loop {
            let mut cluster = self.cluster.lock().await;
            if cluster.is_healthy(index, began).await? {
                return Ok(began.elapsed());
            }
            cluster.has_quorum(index)?;
            drop(cluster);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Starts a member without waiting for its health: the first of three killed members cannot become healthy alone.
    pub(crate) async fn start_only(&self, index: usize) -> Result<(), EtcdError> {
        let mut cluster = self.cluster.lock().await;
        if cluster.members()[index].pid.is_some() {
            return Ok(());
        }
        cluster.launch(index)?;
        self.watch(&cluster, index);
        Ok(())
    }

    fn watched(&self, index: usize) -> Option<Arc<Watched>> {
        self.all_watched().get(&index).cloned()
    }

    /// Reports the end of a member's process, unless the world asked for it.
    fn watch(&self, cluster: &EtcdCluster, index: usize) {
        let member = cluster.members().swap_remove(index);
        // The cluster waits for the child only after killing it, so its process id is still its own.
        let pidfd = member.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let Some(pidfd) = pidfd.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            return;
        };
        let watched = Arc::<Watched>::default();
        self.all_watched().insert(index, watched.clone());
        let deaths = self.deaths.clone();
        // A thread, because a runtime can wait for a foreign descriptor only through unsafe code. The thread ends with
        // the process, which the cluster kills at the latest when it is dropped.
        let waiting = thread::Builder::new().name(format!("waits for {}", member.name));
        let spawned = waiting.spawn(move || {
            // NOWAIT only looks: the cluster still has to collect the exit status.
            let status = waitid(
                WaitId::PidFd(pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            );
            watched.ended.store(true, Ordering::SeqCst);
            // An error means that the cluster has collected the status, which it does only after killing the process.
            if let (Ok(Some(status)), false) = (status, watched.expected.load(Ordering::SeqCst)) {
                report(member, &status, &deaths);
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "{}", texts::MEMBER_UNWATCHED);
        }
    }

    fn all_watched(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<Watched>>> {
        self.watched.lock()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // The cluster is dropped next and kills the members.
        for watched in self.all_watched().values() {
            watched.expected.store(true, Ordering::SeqCst);
        }
    }
}

fn report(member: Member, status: &WaitIdStatus, deaths: &broadcast::Sender<Death>) {
    let how = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status: {code}"),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => "nobody knows how".to_owned(),
    };
    Death::report(member.name, how, member.log, deaths);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn members_have_names_and_are_missed_when_they_end_by_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::new(folder.path().to_owned());
        let (deaths, mut died) = broadcast::channel(8);
        let authority = EtcdAuthority {
            folder: crate::authority::Folder::of_etcd(folder.path()),
            zone: "voice.example".to_owned(),
        };
        authority.folder.create(&authority.zone, daemon::clock::now()).unwrap();
        let members = Members::start(&settings, authority, deaths).await.unwrap();
        let second = members.find("etcd-2").unwrap();
        assert_eq!(members.find("etcd-4"), None);
        assert_eq!(members.pids().await.len(), 3);

        // Expected ends are not reported.
        members.kill(second).await.unwrap();
        assert!(!members.pids().await.contains_key("etcd-2"));
        for _ in 0..2 {
            members.start_again(second).await.unwrap();
            members.ready(second).await.unwrap();
        }
        members.stop(second).await.unwrap();
        members.resume(second).await.unwrap();
        assert!(died.try_recv().is_err());

        // An unexpected end is reported.
        let pid = Pid::from_raw(members.pids().await["etcd-2"].cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let death = tokio::time::timeout(settings.ready_timeout, died.recv()).await;
        let death = death.unwrap().unwrap();
        assert_eq!((death.name.as_str(), death.how.as_str()), ("etcd-2", "signal: 9"));
        assert!(!members.pids().await.contains_key("etcd-2"));

        // All members are down: the first becomes healthy only when the second runs.
        for index in 0..3 {
            members.kill(index).await.unwrap();
        }
        members.start_only(0).await.unwrap();
        members.start_only(0).await.unwrap();
        let error = members.ready(0).await.unwrap_err().to_string();
        let expected = "etcd-1 runs and takes no writes yet: 2 of the 3 members must run (now 1); restart another one";
        assert_eq!(error, expected);
        for index in 1..3 {
            members.start_again(index).await.unwrap();
            members.ready(index).await.unwrap();
        }
        members.ready(0).await.unwrap();
        assert_eq!(members.pids().await.len(), 3);
        assert!(died.try_recv().is_err());
    }
}
