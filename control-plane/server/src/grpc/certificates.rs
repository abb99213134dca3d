//! The gRPC service that keeps the certificates of processes fresh.

use std::path::PathBuf;

use api::v1::{self, certificates_server::Certificates};
use identity::{
    Call, Peer,
    ca::{self, Authority, CaError, Leaf},
    files::{self, FileError},
};
use tonic::{Request, Response, Status};

use super::guard::{self, Guard};

/// Longest request: one with an RSA key of 4,096 bits has a third of it.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// The files of the issuer that signs, and of the roots that go with every new certificate.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) trust: PathBuf,
}

/// No certificate was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsigned {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl Issuer {
    /// Signs a request for a peer, for as long as its certificate was made for. The files are read each time: an issuer is exchanged
    /// like every other certificate.
    pub(crate) fn sign(&self, peer: &Peer, request: &str) -> Result<v1::RenewReply, Unsigned> {
        let authority = Authority::load(&files::read_credential(&self.certificate, &self.key)?)?;
        let now = daemon::clock::now();
        let life = peer.until.since(peer.from).saturating_sub(ca::BACKDATED);
        let leaf = Leaf {
            life: life.max(ca::LIFE_MIN).min(authority.until().since(now)),
            ..Leaf::of(peer.id.clone())
        };
        Ok(v1::RenewReply {
            certificate: authority.answer(request, &leaf, now)?,
            trust: files::read(&self.trust)?,
        })
    }
}

/// The service. Without an issuer it signs nothing.
pub(crate) struct CertificatesService {
    pub(crate) guard: Guard,
    pub(crate) issuer: Option<Issuer>,
}

#[tonic::async_trait]
impl Certificates for CertificatesService {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
        let caller = guard::caller(&request);
        let peer = guard::proven(caller.as_ref()).ok_or_else(|| {
            Status::permission_denied(
                "a certificate is renewed for whoever shows one; connect to https:// with the old one",
            )
        })?;
        self.guard.allow(caller.as_ref(), Call::Renew)?;
        let issuer = self.issuer.clone().ok_or_else(|| {
            Status::unimplemented(
                "this control plane signs no certificates; renew them where the authority is (`meridian cert renew DIR --ca DIR`)",
            )
        })?;
        let request = request.into_inner().request;
        if request.len() > REQUEST_BYTES_MAX {
            let text = format!("request: {} bytes, the limit is {REQUEST_BYTES_MAX}", request.len());
            return Err(Status::invalid_argument(text));
        }
        let (signed_for, id) = (peer.clone(), peer.id.to_string());
        let signed = tokio::task::spawn_blocking(move || issuer.sign(&signed_for, &request)).await;
        match signed.map_err(|_| Status::internal("signing panicked"))? {
            Ok(reply) => {
                tracing::info!(id, "certificate renewed");
                Ok(Response::new(reply))
            }
            Err(Unsigned::Ca(error @ CaError::Request(_))) => {
                Err(Status::invalid_argument(format!("request: {error}")))
            }
            Err(error) => {
                tracing::error!(id, %error, "cannot renew a certificate");
                Err(Status::unavailable(format!(
                    "this control plane cannot sign now: {error}"
                )))
            }
        }
    }
}
