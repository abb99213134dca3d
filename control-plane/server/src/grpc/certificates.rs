//! The gRPC service that keeps the certificates of processes fresh.

use std::{path::PathBuf, sync::Arc, time::Duration};

use api::v1::{self, certificates_server::Certificates};
use identity::{
    Call, Identity, Peer, Role,
    ca::{self, Authority, CaError, Leaf},
    files::{self, FileError},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use topology::{NodeId, RegionId, Snapshot, Topology};

use super::guard::{self, Guard};
use crate::texts::{calls as texts, log};

/// Longest request: one with an RSA key of 4,096 bits has a third of it.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// The files of the issuer that signs.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// No certificate was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsigned {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("{}", texts::other_root(.0, .1))]
    OtherRoot(String, String),
    #[error("{}", texts::issuer_untrusted())]
    Untrusted,
}

impl Issuer {
    /// Signs a request for a peer. The files are read each time: an issuer is exchanged like every other certificate. The new
    /// certificate must lead to the root of the peer's own: otherwise a key that was stolen under a root that is being removed would
    /// get a certificate under the next one.
    pub(crate) fn sign(&self, own: &Identity, peer: &Peer, request: &str) -> Result<String, Unsigned> {
        // Not the life of the old one: what an issuer in its last minutes signed would stay short for ever.
        let leaf = |left: Duration| Leaf {
            life: ca::NODE_LIFE.min(left),
            ..Leaf::of(peer.id.clone())
        };
        self.issue(own, &peer.root, leaf, request)
    }

    /// Signs a request for a leaf, which is made from the time that the issuer has left, under this root.
    pub(crate) fn issue(
        &self,
        own: &Identity,
        under: &str,
        leaf: impl FnOnce(Duration) -> Leaf,
        request: &str,
    ) -> Result<String, Unsigned> {
        let authority = Authority::load(&files::read_credential(&self.certificate, &self.key)?)?;
        let now = daemon::clock::now();
        let leaf = leaf(authority.until().since(now));
        let certificate = authority.answer(request, &leaf, now)?;
        match own.root_of(&certificate) {
            Some(root) if root == under => Ok(certificate),
            Some(root) => Err(Unsigned::OtherRoot(under.to_owned(), root)),
            None => Err(Unsigned::Untrusted),
        }
    }
}

/// The service. Without an issuer it signs nothing.
pub(crate) struct CertificatesService {
    pub(crate) guard: Guard,
    /// The identity of this control plane, and its issuer.
    pub(crate) issuer: Option<(Arc<Identity>, Issuer)>,
    /// The newest snapshot: an edge, a name server or a region that left the topology gets no further certificate.
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
}

/// True for a process that the topology names, as an edge, a name server or a stack of a region, and for control planes, which it does
/// not name.
pub(super) fn is_known(topology: &Topology, role: &Role) -> bool {
    match role {
        Role::Edge(name) | Role::Dns(name) => NodeId::new(name).is_ok_and(|id| super::plans::is_node(topology, &id)),
        Role::Stack { region, .. } => RegionId::new(region).is_ok_and(|id| topology.regions.contains_key(&id)),
        Role::ControlPlane(_) => true,
        Role::Etcd(_) | Role::Operator(_) => false,
    }
}

#[tonic::async_trait]
impl Certificates for CertificatesService {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
        let caller = guard::caller(&request);
        let peer =
            guard::proven(caller.as_ref()).ok_or_else(|| Status::permission_denied(texts::shows_no_certificate()))?;
        self.guard.allow(caller.as_ref(), Call::Renew)?;
        if !peer.is_due(daemon::clock::now()) {
            return Err(Status::failed_precondition(texts::not_due()));
        }
        let is_known = match self.snapshots.borrow().as_ref() {
            Some(snapshot) => is_known(&snapshot.topology, &peer.id.role),
            None => matches!(peer.id.role, Role::ControlPlane(_)),
        };
        if !is_known {
            let text = texts::left_the_topology(&peer.id.role);
            return Err(self.guard.deny(caller.as_ref(), Call::Renew.kind(), text));
        }
        let (own, issuer) = self
            .issuer
            .clone()
            .ok_or_else(|| Status::unimplemented(texts::no_issuer()))?;
        let request = request.into_inner().request;
        if request.len() > REQUEST_BYTES_MAX {
            let text = texts::too_long("request", request.len(), REQUEST_BYTES_MAX);
            return Err(Status::invalid_argument(text));
        }
        let (signed_for, id) = (peer.clone(), peer.id.to_string());
        let signed = tokio::task::spawn_blocking(move || issuer.sign(&own, &signed_for, &request)).await;
        match signed.map_err(|_| Status::internal(texts::signing_failed()))? {
            Ok(certificate) => {
                tracing::info!(id, "certificate renewed");
                Ok(Response::new(v1::RenewReply { certificate }))
            }
            Err(Unsigned::Ca(error @ CaError::Request(_))) => Err(Status::invalid_argument(texts::bad_request(error))),
            Err(error @ Unsigned::OtherRoot(..)) => Err(Status::permission_denied(error.to_string())),
            Err(error) => {
                tracing::error!(id, %error, "{}", log::CANNOT_RENEW);
                Err(Status::unavailable(texts::cannot_sign(error)))
            }
        }
    }
}
