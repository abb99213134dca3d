//! The gRPC service for processes that have no certificate yet. Its callers are strangers: it answers one request each, and only to
//! whoever shows a token.

use std::sync::Arc;

use api::v1::{self, joining_server::Joining};
use identity::{Identity, Peer, PeerId, Role, ca, files, join};
use planning::audit::{Access, AccessKind, Principal};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use topology::Snapshot;

use super::{
    certificates::{Issuer, Unsigned, is_known},
    guard,
};
use crate::{
    access::{self, Accesses},
    records::{self, JoinToken, KeptToken, RecordError},
    store::Store,
};

/// Longest request for a certificate, in bytes: one with an RSA key of 4,096 bits has a third of it.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// The service.
pub(crate) struct JoiningService {
    pub(crate) own: Arc<Identity>,
    pub(crate) issuer: Option<Issuer>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) accesses: Arc<Accesses>,
    /// The newest snapshot: who is not in the topology does not join.
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
}

/// What to say to whoever shows a token that is not there.
const UNKNOWN: &str = "the token is not known: it was used, it has ended, or it is another deployment's; an admin makes another with \
                       `meridian cert token KIND/NAME`";

#[tonic::async_trait]
impl Joining for JoiningService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let caller = guard::caller(&request);
        let source = caller.map(|caller| caller.source.to_string()).unwrap_or_default();
        let v1::JoinRequest { secret, role, request } = request.into_inner();
        if request.len() > REQUEST_BYTES_MAX {
            let text = format!("request: {} bytes, the limit is {REQUEST_BYTES_MAX}", request.len());
            return Err(Status::invalid_argument(text));
        }
        let refuse = |why: String| {
            let text = format!("a process at {source} may not join as {role:.100}: {why}");
            self.accesses.refused_to_join(&text);
            Status::permission_denied(why)
        };
        let asked: Role = role
            .parse()
            .map_err(|error: identity::BadId| Status::invalid_argument(error.to_string()))?;
        let found = records::join_token(self.store.as_ref(), &join::hash(&secret)).await;
        let kept = found.map_err(unread)?.ok_or_else(|| refuse(UNKNOWN.to_owned()))?;
        self.check(&kept, &asked).map_err(refuse)?;
        let issuer = self.issuer.clone().ok_or_else(|| {
            Status::unimplemented(
                "this control plane signs no certificates; ask one that has issuer_certificate and issuer_key in [identity]",
            )
        })?;
        let (signed, trust) = sign(self.own.clone(), issuer, asked.clone(), request).await?;
        let new = ca::peer_of(&signed).ok_or_else(|| Status::internal("the certificate cannot be read"))?;
        let by = Principal {
            id: new.id.to_string(),
            serial: new.serial.clone(),
            roles: new.roles(),
            source: source.clone(),
        };
        let text = format!("{asked} joined with a token of {}", kept.token.by);
        let joined = Access {
            principal: Some(by),
            ..self.accesses.once(AccessKind::Joined, None, &text)
        };
        let key = self.accesses.key(&joined);
        let is_used = records::use_join_token(self.store.as_ref(), &kept, (key, &joined)).await;
        if !is_used.map_err(|error| unread(error.into()))? {
            return Err(refuse(UNKNOWN.to_owned()));
        }
        access::log(&joined);
        Ok(Response::new(v1::JoinReply {
            certificate: signed,
            trust,
        }))
    }
}

impl JoiningService {
    fn check(&self, kept: &KeptToken, asked: &Role) -> Result<(), String> {
        let JoinToken { role, until, .. } = &kept.token;
        if *until <= daemon::clock::now() {
            return Err(UNKNOWN.to_owned());
        }
        if *role != asked.to_string() {
            return Err(format!("the token is for {role}"));
        }
        let snapshot = self.snapshots.borrow();
        match snapshot.as_ref().is_some_and(|it| is_known(&it.topology, asked)) {
            true => Ok(()),
            false => Err(format!("{asked} is not in the topology")),
        }
    }
}

/// Signs the first certificate of a process, under the root of this control plane's own: the newcomer knows that one. Returns the roots
/// that it shall trust too.
async fn sign(own: Arc<Identity>, issuer: Issuer, role: Role, request: String) -> Result<(String, String), Status> {
    let signing = tokio::task::spawn_blocking(move || {
        let this = own.own_peer();
        let id = PeerId {
            zone: this.id.zone.clone(),
            role,
        };
        let newcomer = Peer {
            id,
            grants: Vec::new(),
            ..this
        };
        let certificate = issuer.sign(&own, &newcomer, &request)?;
        Ok((certificate, files::read(&own.files().trust)?))
    });
    let signed: Result<_, Unsigned> = signing.await.map_err(|_| Status::internal("signing panicked"))?;
    signed.map_err(|error| match error {
        Unsigned::Ca(error @ ca::CaError::Request(_)) => Status::invalid_argument(format!("request: {error}")),
        error => {
            tracing::error!(%error, "cannot sign the certificate of a process that joins");
            Status::unavailable("this control plane cannot sign now; its log says why. Try again, or ask another one")
        }
    })
}

/// An error of the store, in few words: the caller is a stranger.
fn unread(error: RecordError) -> Status {
    tracing::warn!(%error, "cannot look for the token of a process that joins");
    Status::unavailable("the store does not answer; try again")
}
