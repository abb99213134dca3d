//! Joins a deployment, or logs in: a caller without a certificate shows a token to a control plane and gets a certificate.

use std::{io, time::Duration};

use hyper_util::rt::TokioIo;
use identity::{
    Peer, Role,
    ca::{self, Credential},
    certificate::verified,
    join::{self, RootHash, Token},
};
use tokio::net::TcpStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use topology::Moment;

use crate::{
    connect::root_cause,
    texts,
    v1::{self, joining_client::JoiningClient},
};

/// Deadline for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline for the answer: the control plane signs, and writes to its store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Port of a URL that names none.
const DEFAULT_PORT: u16 = 443;

/// The identity of the process or person that joined or logged in.
#[derive(Debug)]
pub struct Joined {
    /// The certificate with its key, which never left this machine.
    pub credential: Credential,
    /// The roots to trust, in PEM.
    pub trust: String,
    /// The holder of the certificate.
    pub peer: Peer,
}

/// Nobody joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] ca::CaError),
    /// A control plane refused the token.
    #[error("{}", texts::join_refused(url, why))]
    Refused {
        /// The control plane.
        url: String,
        /// Its reason.
        why: String,
    },
    /// No control plane answered, or each of them cannot help now.
    #[error("{}", texts::join_unanswered(.0))]
    Unanswered(String),
    /// A control plane answered with another certificate than the token promises.
    #[error("{}", texts::other_answer(url, what))]
    Wrong {
        /// The control plane.
        url: String,
        /// The fault.
        what: String,
    },
}

/// Joins or logs in with a token at the first of these control planes that answers. The certificate is for `key` (PKCS #8, in PEM). A
/// process whose answer was lost asks again with the same key: its token is bound to it.
///
/// # Errors
///
/// None of them lets the holder of the token in, or one of them does not do what the token says.
pub async fn join(urls: &[String], token: &Token, key: String, now: Moment) -> Result<Joined, JoinError> {
    let is_promised = |peer: &Peer| peer.id.role == token.role;
    let asked = (key, token.root);
    certified(urls, asked, now, is_promised, async |mut client, request| {
        let secret = token.secret().to_vec().into();
        let reply = match &token.role {
            Role::Operator(name) => {
                let token = v1::OperatorToken {
                    name: name.clone(),
                    secret,
                };
                let credential = Some(v1::log_in_request::Credential::Token(token));
                client.log_in(v1::LogInRequest { credential, request }).await
            }
            process => {
                let role = process.to_string();
                client.join(v1::JoinRequest { secret, role, request }).await
            }
        };
        Ok(reply?.into_inner())
    })
    .await
}

/// Makes a key, and logs a person in with an id token at the first of these control planes under the root that answers.
///
/// # Errors
///
/// None of them lets the person in.
pub async fn log_in(urls: &[String], root: RootHash, id_token: &str, now: Moment) -> Result<Joined, JoinError> {
    let is_person = |peer: &Peer| matches!(peer.id.role, Role::Operator(_));
    let (key, _) = ca::request()?;
    certified(urls, (key, root), now, is_person, async |mut client, request| {
        let credential = Some(v1::log_in_request::Credential::IdToken(id_token.to_owned()));
        let reply = client.log_in(v1::LogInRequest { credential, request }).await;
        Ok(reply?.into_inner())
    })
    .await
}

/// The identity provider at which people sign in, as the first of these control planes under the root that answers names it.
///
/// # Errors
///
/// None of them names one.
pub async fn describe_login(urls: &[String], root: RootHash) -> Result<v1::LoginDescription, JoinError> {
    first(urls, root, async |mut client| {
        let reply = client.describe_login(v1::DescribeLoginRequest {}).await;
        Ok(reply?.into_inner())
    })
    .await
    .map(|(_, description)| description)
}

/// Gets a key certified.
async fn certified(
    urls: &[String],
    (key, root): (String, RootHash),
    now: Moment,
    is_wanted: impl Fn(&Peer) -> bool,
    ask: impl AsyncFn(JoiningClient<Channel>, String) -> Result<v1::JoinReply, Status>,
) -> Result<Joined, JoinError> {
    let request = ca::request_for(&key)?;
    let asked = first(urls, root, async |client| ask(client, request.clone()).await);
    let (url, reply) = asked.await?;
    let peer = check(&reply, root, now, is_wanted).map_err(|what| JoinError::Wrong { url, what })?;
    let v1::JoinReply { certificate, trust } = reply;
    Ok(Joined {
        credential: Credential { certificate, key },
        trust,
        peer,
    })
}

/// The certificate must be the one that was asked for, under the root that is known.
fn check(
    reply: &v1::JoinReply,
    root: RootHash,
    now: Moment,
    is_wanted: impl Fn(&Peer) -> bool,
) -> Result<Peer, String> {
    let root = root.find_in(&reply.trust).ok_or(texts::OTHER_ROOTS)?;
    let peer = verified(&reply.certificate, &root, now).ok_or(texts::OTHER_CHAIN)?;
    match is_wanted(&peer) {
        true => Ok(peer),
        false => Err(texts::other_holder(&peer.id)),
    }
}

/// Asks one control plane after another until one answers. A refusal is an answer; that it has not got what was asked for, such as an
/// identity provider, is none.
async fn first<T>(
    urls: &[String],
    root: RootHash,
    ask: impl AsyncFn(JoiningClient<Channel>) -> Result<T, Status>,
) -> Result<(String, T), JoinError> {
    let mut why = Vec::new();
    for url in urls {
        let answer = match open(url, root).await {
            Ok(channel) => ask(JoiningClient::new(channel)).await,
            Err(why) => Err(Status::unavailable(why)),
        };
        match answer {
            Ok(answer) => return Ok((url.clone(), answer)),
            Err(status) if matches!(status.code(), Code::PermissionDenied | Code::InvalidArgument) => {
                let why = status.message().to_owned();
                return Err(JoinError::Refused { url: url.clone(), why });
            }
            Err(status) => why.push(texts::at(url, status.message())),
        }
    }
    Err(JoinError::Unanswered(why.join("; ")))
}

async fn open(url: &str, root: RootHash) -> Result<Channel, String> {
    let Some(address) = url.strip_prefix("https://") else {
        return Err(texts::TLS_ONLY.to_owned());
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
    let connector = tower::service_fn(move |uri: Uri| async move {
        let host = uri.host().unwrap_or_default();
        let tcp = TcpStream::connect(format!("{host}:{}", uri.port_u16().unwrap_or(DEFAULT_PORT))).await?;
        tcp.set_nodelay(true)?;
        let tls = join::connect(tcp, root).await.map_err(|error| named(&error))?;
        Ok::<_, io::Error>(TokioIo::new(tls))
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| root_cause(&error))
}

/// The usual fault, in words for the person who pasted the token.
fn named(error: &io::Error) -> io::Error {
    let text = error.to_string();
    match text.contains("UnknownIssuer") {
        true => io::Error::other(texts::UNDER_ANOTHER_ROOT),
        false => io::Error::other(text),
    }
}
