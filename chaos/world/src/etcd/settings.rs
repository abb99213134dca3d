//! The settings of a cluster.

use crate::authority::Folder;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The number of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One member: the interface of a cluster without its safety.
    One,
    /// Three members, of which one may fail.
    Three,
}

/// Whether a write survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A write reaches the disk before etcd acknowledges it.
    Synced,
    /// A write survives the death of the process, not of the machine. For tests, which are many times faster with it.
    Unsynced,
}

/// The settings of a cluster.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// The number of members.
    pub size: Size,
    /// Folder of data, logs and addresses, created if missing. A cluster whose files are there continues with its data.
    pub state_dir: PathBuf,
    /// Whether etcd waits for the disk.
    pub durability: Durability,
    /// Size of the database above which etcd refuses writes; `None` means etcd's default of 2 GiB.
    pub quota_bytes: Option<u64>,
    /// Deadline for members to become healthy.
    pub healthy_deadline: Duration,
    /// The authority of the cluster: members, and clients too, show its certificates. `None` for plain text.
    pub authority: Option<EtcdAuthority>,
}

/// An authority for etcd alone. etcd admits every process with a certificate of it, so it issues none to edges, operators or stacks.
#[derive(Debug, Clone)]
pub struct EtcdAuthority {
    /// Its files.
    pub folder: Folder,
    /// The zone in the ids that it issues.
    pub zone: String,
}

impl EtcdAuthority {
    /// The folder of the certificates that it issued to a holder.
    pub(crate) fn issued(&self, name: &str) -> PathBuf {
        self.folder.path().join("issued").join(name)
    }
}

impl EtcdSettings {
    /// Settings for a test's cluster: no waiting for the disk, etcd's default quota.
    pub fn for_tests(size: Size, state_dir: &Path) -> Self {
        Self {
            size,
            state_dir: state_dir.to_owned(),
            durability: Durability::Unsynced,
            quota_bytes: None,
            // Tests share two cores with a compiler.
            healthy_deadline: Duration::from_secs(60),
            authority: None,
        }
    }
}
