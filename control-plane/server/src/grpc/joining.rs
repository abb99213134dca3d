//! The gRPC service for processes and operators that have no certificate yet. Its callers are strangers: it answers one request each,
//! and only to a caller that shows a token.

use std::{sync::Arc, time::Duration};

use api::v1::{self, joining_server::Joining, log_in_request};
use identity::{
    Grant, Identity, Peer, PeerId, Role,
    ca::{self, Leaf},
    certificate, files, join,
    operators::Unrecognised,
    signature::BadSignature,
};
use oidc::{Person, Provider};
use parking_lot::Mutex;
use planning::audit::{Access, AccessKind, Principal};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};
use topology::{Moment, Snapshot};

use super::{
    certificates::{Issuer, Unsigned, is_known},
    guard,
};
use crate::{
    access::{self, Accesses},
    operators::Operators,
    pace::{Rate, TokenBucket},
    records::{self, JoinToken, KeptToken, RecordError},
    store::{Store, StoreError},
    texts::{calls, joining as texts, log},
};

/// Longest request for a certificate, in bytes: one with an RSA key of 4,096 bits has a third of it.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Attempts to bind a token to a key, while others that show it do the same.
const ATTEMPTS_MAX: usize = 3;
/// Times that a process may show its token, because it did not get the answer: each is an entry of the audit log.
const USES_MAX: u32 = 10;
/// Requests of all who join or log in together: a fleet may come at once, and a stranger tries for ever.
const STRANGERS: Rate = Rate {
    at_once: 200,
    every: Duration::from_millis(100),
};

/// The service.
pub(crate) struct JoiningService {
    /// The pace of all strangers together.
    pub(crate) pace: Mutex<TokenBucket>,
    pub(crate) own: Arc<Identity>,
    pub(crate) issuer: Option<Issuer>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) accesses: Arc<Accesses>,
    /// The operators who log in here.
    pub(crate) operators: Arc<Operators>,
    /// The newest snapshot: a process that its topology lacks does not join.
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
}

#[tonic::async_trait]
impl Joining for JoiningService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let caller = guard::caller(&request);
        let source = caller.map(|caller| caller.source.to_string()).unwrap_or_default();
        let v1::JoinRequest { secret, role, request } = request.into_inner();
        bounded(&request)?;
        self.keep_pace()?;
        let asked: Role = role
            .parse()
            .map_err(|error: identity::BadId| Status::invalid_argument(error.to_string()))?;
        let joined = self.admit(&secret, &asked, request, &source).await;
        joined.map(Response::new).map_err(|refused| match refused {
            Unjoined::Refused(why) => {
                let text = texts::may_not_join(&source, &role, &why);
                self.accesses.refused_to_join(&text);
                Status::permission_denied(why)
            }
            Unjoined::Failed(status) => status,
        })
    }

    async fn log_in(&self, request: Request<v1::LogInRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let caller = guard::caller(&request);
        let source = caller.map(|caller| caller.source.to_string()).unwrap_or_default();
        let v1::LogInRequest { credential, request } = request.into_inner();
        bounded(&request)?;
        self.keep_pace()?;
        let now = daemon::clock::now();
        let recognised = match credential.ok_or_else(|| Status::invalid_argument(texts::no_credential()))? {
            log_in_request::Credential::Token(token) => self.by_token(&token, now),
            log_in_request::Credential::IdToken(token) => self.by_id_token(token, now).await,
        };
        let LoggingIn {
            name,
            grants,
            until,
            how,
        } = recognised.inspect_err(|status| {
            // Other errors say nothing about the caller.
            if status.code() == Code::PermissionDenied {
                let text = texts::may_not_log_in(&source, status.message());
                self.accesses
                    .tell("log-in", self.accesses.once(AccessKind::LoginRefused, None, &text));
            }
        })?;
        let id = self.id(Role::Operator(name.clone()));
        let leaf = move |left: Duration| Leaf {
            grants,
            life: ca::OPERATOR_LIFE.min(until.since(now)).min(left),
            ..Leaf::of(id)
        };
        let (signed, trust) = self.sign(leaf, request).await?;
        let new = ca::peer_of(&signed).ok_or_else(|| Status::internal(texts::unreadable_certificate()))?;
        let text = texts::logged_in(&name, how, new.until);
        let logged_in = Access {
            principal: Some(principal_of(&new, &source)),
            ..self.accesses.once(AccessKind::LoggedIn, None, &text)
        };
        // Told from memory: people log in when the store is away, too.
        self.accesses.tell("log-in", logged_in);
        Ok(Response::new(v1::JoinReply {
            certificate: signed,
            trust,
        }))
    }

    async fn describe_login(
        &self,
        _: Request<v1::DescribeLoginRequest>,
    ) -> Result<Response<v1::LoginDescription>, Status> {
        self.keep_pace()?;
        let provider = self.provider()?;
        let trust = provider.trust().map_err(|error| {
            tracing::error!(%error, "{}", log::LOGINS_UNDESCRIBED);
            Status::unavailable(texts::provider_is_away(error))
        })?;
        let settings = provider.settings();
        Ok(Response::new(v1::LoginDescription {
            issuer: settings.issuer.clone(),
            client_id: settings.client_id.clone(),
            scope: settings.scope.clone(),
            trust: trust.unwrap_or_default(),
        }))
    }
}

/// An operator who was recognised.
struct LoggingIn {
    name: String,
    grants: Vec<Grant>,
    /// End of the credential.
    until: Moment,
    /// The credential, in words.
    how: &'static str,
}

/// Nobody joined.
enum Unjoined {
    /// The token is no good. The audit log has it.
    Refused(String),
    /// The request, or this control plane, is at fault, or the store.
    Failed(Status),
}

impl From<Status> for Unjoined {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl From<StoreError> for Unjoined {
    /// In few words: the caller is a stranger.
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "{}", log::CANNOT_LOOK_FOR_TOKEN);
        Self::Failed(Status::unavailable(texts::store_is_away()))
    }
}

impl JoiningService {
    /// Lets a process in that shows the secret of a token, once or, with the same key, again until the token ends.
    async fn admit(
        &self,
        secret: &[u8],
        asked: &Role,
        request: String,
        source: &str,
    ) -> Result<v1::JoinReply, Unjoined> {
        if secret.len() != join::SECRET_BYTES {
            return Err(Unjoined::Refused(texts::unknown_token().to_owned()));
        }
        if self.snapshots.borrow().is_none() {
            return Err(Status::unavailable(texts::no_plan_yet()).into());
        }
        let hash = join::hash(secret);
        let mut kept = self.token(&hash, asked).await?;
        let id = self.id(asked.clone());
        let leaf = move |left: Duration| Leaf {
            life: ca::NODE_LIFE.min(left),
            ..Leaf::of(id)
        };
        let (signed, trust) = self.sign(leaf, request).await?;
        let new = ca::peer_of(&signed).zip(certificate::key_hash(&signed));
        let (new, key) = new.ok_or_else(|| Status::internal(texts::unreadable_certificate()))?;
        for _ in 0..ATTEMPTS_MAX {
            let JoinToken { role, by, used, .. } = &kept.token;
            let text = match used {
                None => texts::joined(asked, by),
                // The answer may have been lost on its way to the process, or to this control plane.
                Some(used) if used.by == key && used.times < USES_MAX => texts::joined_again(asked, by),
                Some(used) if used.by == key => return Err(Unjoined::Refused(texts::used_often(USES_MAX))),
                Some(_) => return Err(Unjoined::Refused(texts::used_token(role))),
            };
            let joined = Access {
                principal: Some(principal_of(&new, source)),
                ..self.accesses.once(AccessKind::Joined, None, &text)
            };
            let told = (self.accesses.key(&joined), &joined);
            if records::use_join_token(self.store.as_ref(), &kept, &key, told).await? {
                access::log(&joined);
                return Ok(v1::JoinReply {
                    certificate: signed,
                    trust,
                });
            }
            kept = self.token(&hash, asked).await?;
        }
        Err(Status::unavailable(texts::store_is_away()).into())
    }

    /// The token with this hash, if it is good for this process.
    async fn token(&self, hash: &str, asked: &Role) -> Result<KeptToken, Unjoined> {
        let kept = match records::join_token(self.store.as_ref(), hash).await {
            Ok(kept) => kept.ok_or_else(|| texts::unknown_token().to_owned()),
            Err(RecordError::Unreadable { problem, .. }) => {
                Err(texts::unvouched_token(texts::token_unreadable(&problem)))
            }
            Err(RecordError::Store(error)) => return Err(error.into()),
        };
        let good = kept.and_then(|kept| self.check(&kept.token, hash, asked).map(|()| kept));
        good.map_err(Unjoined::Refused)
    }

    /// Each request reads the store or a file, and its sender has proven nothing.
    fn keep_pace(&self) -> Result<(), Status> {
        let (mut bucket, now) = (self.pace.lock(), tokio::time::Instant::now());
        if bucket.wait(STRANGERS, now).is_some() {
            return Err(Status::resource_exhausted(texts::too_many_strangers()));
        }
        bucket.take(STRANGERS, now);
        Ok(())
    }

    fn id(&self, role: Role) -> PeerId {
        PeerId {
            zone: self.own.own().id.zone,
            role,
        }
    }

    fn provider(&self) -> Result<Arc<Provider>, Status> {
        let provider = self.operators.provider();
        provider.ok_or_else(|| Status::not_found(texts::no_provider()))
    }

    fn by_token(&self, token: &v1::OperatorToken, now: Moment) -> Result<LoggingIn, Status> {
        let refused = |why: Unrecognised| Status::permission_denied(why.to_string());
        let tokens = self.operators.tokens();
        let found = tokens.recognise(&join::hash(&token.secret), &token.name, now);
        let found = found.map_err(refused)?;
        if found.expires.since(now) < ca::LIFE_MIN {
            return Err(refused(Unrecognised::Ended));
        }
        Ok(LoggingIn {
            name: found.name.clone(),
            grants: found.roles.clone(),
            until: found.expires,
            how: "a token",
        })
    }

    async fn by_id_token(&self, token: String, now: Moment) -> Result<LoggingIn, Status> {
        let provider = self.provider()?;
        // It may ask the provider for its keys.
        let recognising = tokio::task::spawn_blocking(move || provider.recognise(&token, now));
        let recognised = recognising
            .await
            .map_err(|_| Status::internal(texts::broke_off("recognising")))?;
        let Person { name, grants } = recognised.map_err(|error| match error {
            oidc::Unrecognised::NoKeys(_) => {
                tracing::warn!(%error, "{}", log::PROVIDER_HAS_NO_KEYS);
                Status::unavailable(texts::provider_is_away(error))
            }
            refused => Status::permission_denied(refused.to_string()),
        })?;
        Ok(LoggingIn {
            name,
            grants,
            until: now + ca::OPERATOR_LIFE,
            how: "the identity provider",
        })
    }

    /// Signs a certificate under the root of this control plane's own: the caller knows that one. Returns the roots to trust too.
    async fn sign(
        &self,
        leaf: impl FnOnce(Duration) -> Leaf + Send + 'static,
        request: String,
    ) -> Result<(String, String), Status> {
        let own = self.own.clone();
        let issuer = self
            .issuer
            .clone()
            .ok_or_else(|| Status::unimplemented(texts::no_issuer()))?;
        let signing = tokio::task::spawn_blocking(move || {
            let certificate = issuer.issue(&own, &own.own_peer().root, leaf, &request)?;
            Ok((certificate, files::read(&own.files().trust)?))
        });
        let signed: Result<_, Unsigned> = signing
            .await
            .map_err(|_| Status::internal(texts::broke_off("signing")))?;
        signed.map_err(|error| match error {
            Unsigned::Ca(error @ ca::CaError::Request(_)) => Status::invalid_argument(texts::bad_request(error)),
            error => {
                tracing::error!(%error, "{}", log::CANNOT_SIGN_FIRST);
                Status::unavailable(texts::cannot_sign_now())
            }
        })
    }

    fn check(&self, token: &JoinToken, hash: &str, asked: &Role) -> Result<(), String> {
        // First: the rest of a record that no control plane signed says nothing.
        let (statement, signature) = token.signed(hash);
        let unvouched = match self.own.vouched(&statement, &signature) {
            Ok(Peer { id, .. }) if matches!(id.role, Role::ControlPlane(_)) => None,
            Ok(Peer { id, .. }) => Some(texts::signed_by_other(id)),
            Err(BadSignature::Forged(id)) => Some(texts::not_signed_by(id)),
            Err(BadSignature::Untrusted | BadSignature::OutOfDate { .. }) => Some(texts::signer_untrusted().to_owned()),
        };
        if let Some(why) = unvouched {
            return Err(texts::unvouched_token(why));
        }
        let JoinToken { role, until, .. } = token;
        if *until <= daemon::clock::now() {
            return Err(texts::unknown_token().to_owned());
        }
        if matches!(asked, Role::ControlPlane(_)) {
            return Err(texts::control_planes_are_issued().to_owned());
        }
        if *role != asked.to_string() {
            return Err(texts::token_of_other(role));
        }
        let snapshot = self.snapshots.borrow();
        match snapshot.as_ref().is_some_and(|it| is_known(&it.topology, asked)) {
            true => Ok(()),
            false => Err(texts::left_the_topology(asked)),
        }
    }
}

/// Refuses a request that is too long.
fn bounded(request: &str) -> Result<(), Status> {
    match request.len() {
        0..=REQUEST_BYTES_MAX => Ok(()),
        bytes => Err(Status::invalid_argument(calls::too_long(
            "request",
            bytes,
            REQUEST_BYTES_MAX,
        ))),
    }
}

/// The holder of a new certificate, for the audit log.
fn principal_of(new: &Peer, source: &str) -> Principal {
    Principal {
        id: new.id.to_string(),
        serial: new.serial.clone(),
        roles: new.roles(),
        source: source.to_owned(),
    }
}

#[cfg(test)]
mod tests;
