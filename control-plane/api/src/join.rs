//! Joins a deployment, or logs in: whoever has no certificate shows a token to a control plane and gets one.

use std::{io, time::Duration};

use hyper_util::rt::TokioIo;
use identity::{
    Peer, Role,
    ca::{self, Credential},
    join::{self, Token},
    verified,
};
use tokio::net::TcpStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use topology::Moment;

use crate::{
    connect::root_cause,
    v1::{self, joining_client::JoiningClient},
};

/// Deadline for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline for the answer: the control plane signs, and writes to its store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Port of a URL that names none.
const DEFAULT_PORT: u16 = 443;

/// The identity of whoever joined or logged in.
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
    #[error("{url} refuses: {why}")]
    Refused {
        /// The control plane.
        url: String,
        /// Its reason.
        why: String,
    },
    /// No control plane answered.
    #[error("no control plane takes the token: {0}")]
    Unanswered(String),
    /// A control plane answered with another certificate than the token promises.
    #[error("{url} answered with {what}; this process does not use it")]
    Wrong {
        /// The control plane.
        url: String,
        /// The fault.
        what: String,
    },
}

/// Makes a key, and joins or logs in at the first of these control planes that answers.
///
/// # Errors
///
/// None of them lets the holder of the token in, or one of them does not do what the token says.
pub async fn join(urls: &[String], token: &Token, now: Moment) -> Result<Joined, JoinError> {
    let (key, request) = ca::request()?;
    let mut why = Vec::new();
    for url in urls {
        match ask(url, token, request.clone()).await {
            Ok(reply) => {
                let checked = check(&reply, token, now);
                let (peer, trust) = checked.map_err(|what| JoinError::Wrong { url: url.clone(), what })?;
                let credential = Credential {
                    certificate: reply.certificate,
                    key,
                };
                return Ok(Joined {
                    credential,
                    trust,
                    peer,
                });
            }
            Err(status) if matches!(status.code(), Code::PermissionDenied | Code::InvalidArgument) => {
                let why = status.message().to_owned();
                return Err(JoinError::Refused { url: url.clone(), why });
            }
            Err(status) => why.push(format!("{url}: {}", status.message())),
        }
    }
    Err(JoinError::Unanswered(why.join("; ")))
}

/// The certificate must be the one that the token promises, under its root.
fn check(reply: &v1::JoinReply, token: &Token, now: Moment) -> Result<(Peer, String), String> {
    let root = token
        .root_in(&reply.trust)
        .ok_or("roots without the one of the token")?;
    let peer =
        verified(&reply.certificate, &root, now).ok_or("a certificate that does not lead to the root of the token")?;
    match peer.id.role == token.role {
        true => Ok((peer, reply.trust.clone())),
        false => Err(format!("the certificate of {}", peer.id)),
    }
}

async fn ask(url: &str, token: &Token, request: String) -> Result<v1::JoinReply, Status> {
    let channel = open(url, token).await.map_err(Status::unavailable)?;
    let (mut client, secret) = (JoiningClient::new(channel), token.secret().to_vec().into());
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
}

async fn open(url: &str, token: &Token) -> Result<Channel, String> {
    let Some(address) = url.strip_prefix("https://") else {
        return Err("a token is shown over TLS only; write https://address:port".to_owned());
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
    let token = token.clone();
    let connector = tower::service_fn(move |uri: Uri| {
        let token = token.clone();
        async move {
            let host = uri.host().unwrap_or_default();
            let tcp = TcpStream::connect(format!("{host}:{}", uri.port_u16().unwrap_or(DEFAULT_PORT))).await?;
            tcp.set_nodelay(true)?;
            let tls = join::connect(tcp, &token).await.map_err(named)?;
            Ok::<_, io::Error>(TokioIo::new(tls))
        }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| root_cause(&error))
}

/// The usual fault, in words for the person who pasted the token.
fn named(error: io::Error) -> io::Error {
    let text = error.to_string();
    match text.contains("UnknownIssuer") {
        true => io::Error::other(
            "the process there is not under the root that the token names; check the address, or make another token",
        ),
        false => io::Error::other(text),
    }
}
