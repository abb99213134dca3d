//! What people and their tools ask of a control plane.

use std::time::Duration;

use api::v1::{self, operator_client::OperatorClient};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one request may take. A decision is committed in milliseconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Sent again this often when it is unknown whether an action was carried out; its token makes that harmless.
const ACTION_ATTEMPTS: u32 = 3;

/// A control plane, seen by an operator. Connects anew for each call, so it survives restarts of the control plane.
#[derive(Debug, Clone)]
pub struct Operator {
    url: String,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// Nobody answers there.
    #[error("no control plane answers at {url}: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// What happened instead.
        why: String,
    },
    /// It may or may not have been carried out.
    #[error("{url} did not confirm ({why}); it may have happened: look with `meridian history` before repeating it")]
    OutcomeUnknown {
        /// Where.
        url: String,
        /// What happened instead.
        why: String,
    },
    /// The control plane refuses the request itself: no such region, no reason given.
    #[error("{0}")]
    Rejected(String),
}

/// An action of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Move a region's sessions to its backups.
    Failover {
        /// Which region.
        region: String,
    },
    /// Give a region its sessions back, step by step.
    Restore {
        /// Which region.
        region: String,
    },
    /// Stop automatic decisions for a while.
    Freeze {
        /// For how long.
        duration: Duration,
    },
    /// Allow them again.
    Unfreeze,
}

impl Operator {
    /// The control plane at `http://address:port`.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned() }
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The state of everything.
    pub async fn status(&self) -> Result<v1::StatusReply, OperatorError> {
        let reply = self.connect().await?.status(v1::StatusRequest {}).await;
        self.read(reply)
    }

    /// All about one region.
    pub async fn why(&self, region: &str) -> Result<v1::WhyReply, OperatorError> {
        let region = region.to_owned();
        let reply = self.connect().await?.why(v1::WhyRequest { region }).await;
        self.read(reply)
    }

    /// The newest decisions, newest first; 0 means the server's default.
    pub async fn history(&self, limit: u32) -> Result<Vec<v1::Decision>, OperatorError> {
        let reply = self.connect().await?.history(v1::HistoryRequest { limit }).await;
        Ok(self.read(reply)?.decisions)
    }

    /// Carries out an action, once, however often the request has to be sent. `token` names the action.
    pub async fn act(
        &self,
        action: &Action,
        reason: &str,
        author: &str,
        token: &str,
    ) -> Result<v1::ActionReply, OperatorError> {
        let mut unknown = None;
        for _ in 0..ACTION_ATTEMPTS {
            let mut client = match self.connect().await {
                Ok(client) => client,
                // An earlier attempt may have arrived: being unreachable now does not undo it.
                Err(unreachable) => return Err(unknown.unwrap_or(unreachable)),
            };
            let (reason, author, token) = (reason.to_owned(), author.to_owned(), token.to_owned());
            let reply = match action.clone() {
                Action::Failover { region } => {
                    let request = v1::FailoverRequest {
                        region,
                        reason,
                        author,
                        token,
                    };
                    client.failover(request).await
                }
                Action::Restore { region } => {
                    let request = v1::RestoreRequest {
                        region,
                        reason,
                        author,
                        token,
                    };
                    client.restore(request).await
                }
                Action::Freeze { duration } => {
                    let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                    let request = v1::FreezeRequest {
                        reason,
                        author,
                        token,
                        duration_ms,
                    };
                    client.freeze(request).await
                }
                Action::Unfreeze => client.unfreeze(v1::UnfreezeRequest { reason, author }).await,
            };
            match reply {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) if is_about_the_request(status.code()) => return Err(rejected(&status)),
                Err(status) => {
                    unknown = Some(OperatorError::OutcomeUnknown {
                        url: self.url.clone(),
                        why: words(&status),
                    });
                }
            }
        }
        Err(unknown.expect("every attempt that did not return left its error"))
    }

    async fn connect(&self) -> Result<OperatorClient<Channel>, OperatorError> {
        let unreachable = |why: String| OperatorError::Unreachable {
            url: self.url.clone(),
            why,
        };
        let no_url = || OperatorError::Rejected(format!("\"{}\" is not of the form http://address:port", self.url));
        if !self.url.starts_with("http://") {
            return Err(no_url());
        }
        let endpoint = Endpoint::from_shared(self.url.clone())
            .map_err(|_| no_url())?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| unreachable(root_cause(&error)))?;
        Ok(OperatorClient::new(channel))
    }

    fn read<T>(&self, reply: Result<tonic::Response<T>, tonic::Status>) -> Result<T, OperatorError> {
        match reply {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) if is_about_the_request(status.code()) => Err(rejected(&status)),
            Err(status) => Err(OperatorError::Unreachable {
                url: self.url.clone(),
                why: words(&status),
            }),
        }
    }
}

fn is_about_the_request(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

fn rejected(status: &tonic::Status) -> OperatorError {
    OperatorError::Rejected(words(status))
}

fn words(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_nonsense_is_rejected() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = Operator::at(&format!("http://{free}")).status().await.unwrap_err();
        assert!(matches!(error, OperatorError::Unreachable { .. }), "{error}");
        for nonsense in ["not a url", "127.0.0.1:7070", "http://", ""] {
            let error = Operator::at(nonsense).status().await.unwrap_err();
            assert!(matches!(error, OperatorError::Rejected(_)), "{nonsense}: {error}");
        }
    }

    #[tokio::test]
    async fn an_action_without_an_answer_has_an_unknown_outcome() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Takes connections and ends them when the request comes.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut preface = [0; 64];
                let _ = stream.readable().await;
                let _ = stream.try_read(&mut preface);
            }
        });
        let action = Action::Failover {
            region: "us-east".to_owned(),
        };
        let error = Operator::at(&url).act(&action, "r", "a", "t").await.unwrap_err();
        assert!(
            matches!(
                error,
                OperatorError::OutcomeUnknown { .. } | OperatorError::Unreachable { .. }
            ),
            "{error}"
        );
    }
}
