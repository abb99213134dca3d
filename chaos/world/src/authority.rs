//! The certificates of a world: its own authority in the state folder, a leaf for each process, and credentials for operators.
//!
//! `identity/` holds the root, the issuer and the bundle of trusted roots. Every process has its leaf in its own folder. Operators'
//! credentials lie in `operators/NAME`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use identity::{
    Grant, OperatorRole, PeerId, Role,
    ca::{self, Authority, CaError, Leaf},
    certificate,
    files::{self, FileError, Files},
};
use topology::Moment;

use crate::{layout::Kind, texts};

/// Certificates are looked at this often: a machine may have slept for longer than they live.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The certificates of a world cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate itself.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder.
    #[error("{}", texts::folder_failed(path, source))]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A folder is another's.
    #[error("{}", texts::folder_taken(path, by))]
    Taken {
        /// The folder.
        path: PathBuf,
        /// Its holder.
        by: Box<PeerId>,
    },
    /// A name that no certificate can hold.
    #[error(transparent)]
    Name(#[from] identity::BadId),
}

/// The files of an authority in one folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The authority of the world in this state folder.
    pub fn of_world(state_dir: &Path) -> Self {
        Self(state_dir.join("identity"))
    }

    /// The authority of the world's etcd in this state folder. etcd lets in whoever has a certificate of it.
    pub fn of_etcd(state_dir: &Path) -> Self {
        Self(state_dir.join("identity/etcd"))
    }

    /// An authority in this folder.
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The roots that everybody trusts.
    pub fn trust(&self) -> PathBuf {
        self.0.join("trust.crt")
    }

    /// Certificate and key of the root. The key is used once a year, for the next issuer.
    pub fn root(&self) -> [PathBuf; 2] {
        ["root.crt", "root.key"].map(|name| self.0.join(name))
    }

    /// Certificate and key of the issuer.
    pub fn issuer(&self) -> [PathBuf; 2] {
        ["issuer.crt", "issuer.key"].map(|name| self.0.join(name))
    }

    /// Makes a root and an issuer, in place of those that are there.
    ///
    /// # Errors
    ///
    /// A certificate or a file cannot be made.
    pub fn create(&self, zone: &str, now: Moment) -> Result<(), AuthorityError> {
        private_folder(&self.0)?;
        let root = ca::root(zone, now)?;
        let issuer = Authority::load(&root)?.issuer(zone, now)?;
        for (credential, [certificate, key]) in [(&root, self.root()), (&issuer, self.issuer())] {
            files::write(&key, &credential.key, 0o600)?;
            files::write(&certificate, &credential.certificate, 0o644)?;
        }
        Ok(files::write(&self.trust(), &root.certificate, 0o644)?)
    }

    /// The authority that signs leaves.
    ///
    /// # Errors
    ///
    /// The issuer's files cannot be read, or do not fit.
    pub fn authority(&self) -> Result<Authority, AuthorityError> {
        let [certificate, key] = self.issuer();
        Ok(Authority::load(&files::read_credential(&certificate, &key)?)?)
    }

    /// Makes the next issuer under the root, whose key must be here for it.
    ///
    /// # Errors
    ///
    /// The root's files cannot be read, or a file cannot be written.
    pub fn next_issuer(&self, zone: &str, now: Moment) -> Result<(), AuthorityError> {
        let [certificate, key] = self.root();
        let issuer = Authority::load(&files::read_credential(&certificate, &key)?)?.issuer(zone, now)?;
        let [certificate, key] = self.issuer();
        files::write(&key, &issuer.key, 0o600)?;
        Ok(files::write(&certificate, &issuer.certificate, 0o644)?)
    }

    /// Issues a leaf into a folder of its own, beside the trusted roots. A folder keeps the roots that it trusts already.
    ///
    /// # Errors
    ///
    /// A certificate or a file cannot be made, or the folder holds another's certificate.
    pub fn issue(&self, leaf: &Leaf, into: &Path, now: Moment) -> Result<Files, AuthorityError> {
        let files = Files::in_folder(into);
        let old = files::read(&files.certificate).ok().and_then(|pem| ca::peer_of(&pem));
        if let Some(old) = old
            && old.id != leaf.id
        {
            return Err(AuthorityError::Taken {
                path: into.to_owned(),
                by: Box::new(old.id),
            });
        }
        let credential = self.authority()?.issue(leaf, now)?;
        private_folder(into)?;
        let mut trusted = files::read(&files.trust).map_or_else(|_| Vec::new(), |pem| certificate::summaries(&pem));
        for root in certificate::summaries(&files::read(&self.trust())?) {
            if !trusted.iter().any(|known| known.fingerprint == root.fingerprint) {
                trusted.push(root);
            }
        }
        let trusted: String = trusted.iter().map(|root| root.pem.as_str()).collect();
        files::write(&files.trust, &trusted, 0o644)?;
        files.write(&credential)?;
        Ok(files)
    }
}

/// Folder of the credential of the person who started the world.
pub(crate) fn owner_folder(state_dir: &Path) -> PathBuf {
    state_dir.join("identity/owner")
}

/// Folder of an operator's credential.
pub fn operator_folder(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join("operators").join(name)
}

/// The person at this terminal, as far as a certificate can name them.
pub fn person() -> String {
    let name = std::env::var("USER").unwrap_or_default();
    let role = Role::Operator(name.clone());
    match PeerId::new("zone", role) {
        Ok(_) => name,
        Err(_) => "operator".to_owned(),
    }
}

/// The leaf of a world's process.
pub(crate) fn leaf_of(zone: &str, name: &str, kind: Kind) -> Result<Leaf, AuthorityError> {
    let name = name.to_owned();
    let role = match kind {
        Kind::ControlPlane => Role::ControlPlane(name),
        Kind::Dns => Role::Dns(name),
        Kind::Edge => Role::Edge(name),
        // A world has one stack in each region, which has the region's name.
        Kind::Stack => Role::Stack {
            region: name.clone(),
            name,
        },
    };
    Ok(Leaf::of(PeerId::new(zone, role)?))
}

/// The leaf of an operator.
///
/// # Errors
///
/// The name does not fit into an id.
pub fn operator_leaf(zone: &str, name: &str, grants: Vec<Grant>) -> Result<Leaf, AuthorityError> {
    let id = PeerId::new(zone, Role::Operator(name.to_owned()))?;
    Ok(Leaf { grants, ..Leaf::of(id) })
}

/// The leaf of a member of etcd, which listens at this address. It calls the other members from an address that the system chooses,
/// which on one machine is the loopback address; etcd compares both.
pub(crate) fn member_leaf(zone: &str, name: &str, address: IpAddr) -> Result<Leaf, AuthorityError> {
    let id = PeerId::new(zone, Role::Etcd(name.to_owned()))?;
    let addresses = vec![address, Ipv4Addr::LOCALHOST.into()];
    Ok(Leaf {
        addresses,
        ..Leaf::of(id)
    })
}

/// The leaf with which a process calls etcd.
pub(crate) fn client_leaf(zone: &str, role: Role) -> Result<Leaf, AuthorityError> {
    Ok(Leaf::of(PeerId::new(zone, role)?))
}

/// The roles of the person who started a world: all of them.
pub(crate) fn owner() -> Vec<Grant> {
    vec![Grant::everywhere(OperatorRole::Admin)]
}

fn private_folder(path: &Path) -> Result<(), AuthorityError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| AuthorityError::Folder {
        path: path.to_owned(),
        source,
    })
}
