//! The gRPC service for processes and operators that have no certificate yet. Its callers are strangers: it answers one request each,
//! and only to a caller that shows a token.

use std::{sync::Arc, time::Duration};

use api::v1::{self, joining_server::Joining, log_in_request};
use identity::{
    Grant, Identity, Peer, PeerId, Role,
    ca::{self, Leaf},
    files, join,
    operators::Unrecognised,
};
use oidc::Person;
use parking_lot::Mutex;
use planning::audit::{Access, AccessKind, Principal};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
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
    store::Store,
    texts::{calls, joining as texts, log},
};

/// Longest request for a certificate, in bytes: one with an RSA key of 4,096 bits has a third of it.
const REQUEST_BYTES_MAX: usize = 8 << 10;

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
        let refuse = |why: String| {
            let text = texts::may_not_join(&source, &role, &why);
            self.accesses.refused_to_join(&text);
            Status::permission_denied(why)
        };
        let asked: Role = role
            .parse()
            .map_err(|error: identity::BadId| Status::invalid_argument(error.to_string()))?;
        if secret.len() != join::SECRET_BYTES {
            return Err(refuse(texts::unknown_token().to_owned()));
        }
        if self.snapshots.borrow().is_none() {
            return Err(Status::unavailable(texts::no_plan_yet()));
        }
        let found = records::join_token(self.store.as_ref(), &join::hash(&secret)).await;
        let kept = found
            .map_err(|error| unread(&error))?
            .ok_or_else(|| refuse(texts::unknown_token().to_owned()))?;
        self.check(&kept, &asked).map_err(refuse)?;
        let id = self.id(asked.clone());
        let leaf = move |left: Duration| Leaf {
            life: ca::NODE_LIFE.min(left),
            ..Leaf::of(id)
        };
        let (signed, trust) = self.sign(leaf, request).await?;
        let new = ca::peer_of(&signed).ok_or_else(|| Status::internal(texts::unreadable_certificate()))?;
        let text = texts::joined(&asked, &kept.token.by);
        let joined = Access {
            principal: Some(principal_of(&new, &source)),
            ..self.accesses.once(AccessKind::Joined, None, &text)
        };
        let key = self.accesses.key(&joined);
        let is_used = records::use_join_token(self.store.as_ref(), &kept, (key, &joined)).await;
        if !is_used.map_err(|error| unread(&error.into()))? {
            return Err(refuse(texts::unknown_token().to_owned()));
        }
        access::log(&joined);
        Ok(Response::new(v1::JoinReply {
            certificate: signed,
            trust,
        }))
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
        } = recognised.map_err(|why| {
            let text = texts::may_not_log_in(&source, &why);
            self.accesses
                .tell("log-in", self.accesses.once(AccessKind::LoginRefused, None, &text));
            Status::permission_denied(why)
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
        let provider = self
            .operators
            .provider()
            .ok_or_else(|| Status::not_found(texts::no_provider()))?;
        let settings = provider.settings();
        Ok(Response::new(v1::LoginDescription {
            issuer: settings.issuer.clone(),
            client_id: settings.client_id.clone(),
            scope: settings.scope.clone(),
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

impl JoiningService {
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

    fn by_token(&self, token: &v1::OperatorToken, now: Moment) -> Result<LoggingIn, String> {
        let tokens = self.operators.tokens();
        let found = tokens.recognise(&join::hash(&token.secret), &token.name, now);
        let found = found.map_err(|error| error.to_string())?;
        if found.expires.since(now) < ca::LIFE_MIN {
            return Err(Unrecognised::Ended.to_string());
        }
        Ok(LoggingIn {
            name: found.name.clone(),
            grants: found.roles.clone(),
            until: found.expires,
            how: "a token",
        })
    }

    async fn by_id_token(&self, token: String, now: Moment) -> Result<LoggingIn, String> {
        let provider = self.operators.provider().ok_or_else(texts::no_provider)?;
        // It may ask the provider for its keys.
        let recognising = tokio::task::spawn_blocking(move || provider.recognise(&token, now));
        let recognised = recognising.await.map_err(|_| texts::broke_off("recognising"))?;
        let Person { name, grants } = recognised.map_err(|error| error.to_string())?;
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

    fn check(&self, kept: &KeptToken, asked: &Role) -> Result<(), String> {
        let JoinToken { role, until, .. } = &kept.token;
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

/// An error of the store, in few words: the caller is a stranger.
fn unread(error: &RecordError) -> Status {
    tracing::warn!(%error, "{}", log::CANNOT_LOOK_FOR_TOKEN);
    Status::unavailable(texts::store_is_away())
}
