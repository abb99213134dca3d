//! The client of operators and their tools. One of the control planes leads, and the client finds the leader anew for
//! each request: a control plane that does not lead names the leader, and one that does not answer for a moment is
//! passed over.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use identity::Identity;
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    connect::{self, is_url},
    texts,
    v1::{self, operator_client::OperatorClient},
};

/// Metadata key that comes with the code FAILED_PRECONDITION from a control plane that does not lead: the URL of the
/// leader. Absent while none leads.
pub const LEADER_KEY: &str = "meridian-leader";

/// Deadline for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Deadline for one request. A decision is committed in milliseconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that one request waits for an action to end.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// Deadline for a read with all its attempts: an election takes a few seconds, and people do not wait longer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline for one search for the leader before an action.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);
/// Searches for the leader before an action. With their pauses they take longer than an election.
const FINDS_MAX: u32 = 3;
/// If a control plane has not answered by now it may be stopped, so the next one is tried as well.
const NEXT_AFTER: Duration = Duration::from_millis(300);
/// Pause before all are tried again, when none of them leads.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

type Client = OperatorClient<Channel>;

/// The control planes, as operators see them. Connects anew for each request, so it survives their restarts. Remembers
/// the last leader.
#[derive(Debug, Clone)]
pub struct Operator {
    urls: Vec<String>,
    /// The identity that this operator shows.
    identity: Option<Arc<Identity>>,
    leader: Arc<Mutex<Option<String>>>,
}

/// The reason for which a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// No control plane answers. Nothing was done.
    #[error("{}", texts::unreachable(urls, why))]
    Unreachable {
        /// The URLs that were tried.
        urls: String,
        /// The errors.
        why: String,
    },
    /// Control planes answer, but none leads. Nothing was done.
    #[error("{}", texts::no_leader(urls, why))]
    NoLeader {
        /// The URLs that were tried.
        urls: String,
        /// Their answers.
        why: String,
    },
    /// The request may or may not have been carried out.
    #[error("{}", texts::outcome_unknown(url, why, token))]
    OutcomeUnknown {
        /// The URL of the control plane.
        url: String,
        /// The error.
        why: String,
        /// Token of the action. Sending the same token again cannot repeat the action.
        token: String,
    },
    /// The text is not the URL of a control plane.
    #[error("{}", texts::not_a_url(.0))]
    NotAUrl(String),
    /// The control plane refuses the request itself, for example because of an unknown region or a missing reason.
    #[error("{0}")]
    Rejected(String),
}

/// A request of an operator. `token` identifies the action: the same token twice is one action. `lasts` is the lifetime
/// of a standing order.
pub fn request(
    kind: v1::act_request::Kind,
    reason: &str,
    author: &str,
    token: &str,
    lasts: Option<Duration>,
) -> v1::ActRequest {
    v1::ActRequest {
        author: author.to_owned(),
        reason: reason.to_owned(),
        token: token.to_owned(),
        duration_ms: lasts.map_or(0, |lasts| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX)),
        kind: Some(kind),
    }
}

/// A failover without further options.
pub fn failover(region: &str) -> v1::act_request::Kind {
    v1::act_request::Kind::Failover(v1::Failover {
        region: region.to_owned(),
        ..Default::default()
    })
}

/// A restore without further options.
pub fn restore(region: &str) -> v1::act_request::Kind {
    v1::act_request::Kind::Restore(v1::Restore {
        region: region.to_owned(),
        ..Default::default()
    })
}

impl Operator {
    /// The control planes at `http://address:port`. Any of them suffices to find the leader.
    pub fn at<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self {
            urls: urls.into_iter().map(Into::into).collect(),
            identity: None,
            leader: Arc::default(),
        }
    }

    /// The same, for control planes that want to know who calls.
    pub fn with_identity(self, identity: Option<Arc<Identity>>) -> Self {
        Self { identity, ..self }
    }

    /// The name in the credential of this operator.
    pub fn name(&self) -> Option<String> {
        let own = self.identity.as_ref()?.own();
        Some(own.id.role.name().to_owned())
    }

    /// The URLs of the control planes.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The state of all regions, edges and nodes. While none leads, the answer comes from the control plane with the
    /// newest copy of the store, and its `not_leading` gives the reason.
    pub async fn status(&self) -> Result<v1::StatusReply, OperatorError> {
        match self.ask(FIND_TIMEOUT, status).await {
            Ok((_, _, reply)) => Ok(reply),
            Err(error @ OperatorError::NoLeader { .. }) => {
                let from_anyone = v1::StatusRequest { from_anyone: true };
                let replies = self.ask_all(move |mut client| async move { client.status(from_anyone).await });
                let newest = replies.await.into_iter().min_by_key(|reply| reply.stale_ms);
                newest.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Everything about one region. While none leads, as in [`Operator::status`].
    pub async fn why(&self, region: &str) -> Result<v1::WhyReply, OperatorError> {
        let why = |from_anyone| {
            let region = region.to_owned();
            move |mut client: Client| {
                let request = v1::WhyRequest {
                    region: region.clone(),
                    from_anyone,
                };
                async move { client.why(request).await }
            }
        };
        match self.ask(FIND_TIMEOUT, why(false)).await {
            Ok((_, _, reply)) => Ok(reply),
            Err(error @ OperatorError::NoLeader { .. }) => {
                let replies = self.ask_all(why(true)).await;
                let newest = replies.into_iter().min_by_key(|reply| reply.stale_ms);
                newest.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The newest decisions, newest first. A limit of 0 means the default of the server.
    pub async fn history(&self, limit: u32) -> Result<Vec<v1::Decision>, OperatorError> {
        let asked = self.read(move |mut client| async move { client.history(v1::HistoryRequest { limit }).await });
        Ok(asked.await?.decisions)
    }

    /// The plan that would be decided now, with or without a request. Changes nothing.
    pub async fn plan(&self, request: Option<v1::ActRequest>) -> Result<v1::PlanReply, OperatorError> {
        self.read(move |mut client| {
            let request = v1::PlanRequest {
                request: request.clone(),
            };
            async move { client.plan(request).await }
        })
        .await
    }

    /// Waits until the action is over or `limit` has passed, and returns it. Call again while it is not over.
    pub async fn wait(&self, action: &str, limit: Duration) -> Result<v1::Action, OperatorError> {
        let request = v1::WaitRequest {
            action: action.to_owned(),
            // Below the deadline of a request, so that the answer arrives before it.
            timeout_ms: u64::try_from(limit.min(WAIT_MAX).as_millis()).unwrap_or(u64::MAX),
        };
        self.read(move |mut client| {
            let request = request.clone();
            async move { client.wait(request).await }
        })
        .await
    }

    /// The document in force.
    pub async fn document(&self, kind: v1::DocumentKind) -> Result<v1::Document, OperatorError> {
        let request = v1::GetDocumentRequest { kind: kind.into() };
        self.read(move |mut client| async move { client.get_document(request).await })
            .await
    }

    /// The audit log, from an entry to the end.
    pub async fn audit(&self, from: u64) -> Result<Vec<v1::AuditItem>, OperatorError> {
        self.audit_part(from, 0).await
    }

    /// As [`Operator::audit`], but at most `limit` entries; 0 for all.
    pub async fn audit_part(&self, from: u64, limit: u32) -> Result<Vec<v1::AuditItem>, OperatorError> {
        let request = v1::AuditRequest { from, limit };
        let (_, mut client, _) = self.ask(FIND_TIMEOUT, status).await?;
        let broken = |status: Status| OperatorError::Rejected(words(&status));
        let mut stream = client.audit(request).await.map_err(broken)?.into_inner();
        let mut items = Vec::new();
        while let Some(item) = stream.message().await.map_err(broken)? {
            items.push(item);
        }
        Ok(items)
    }

    /// Makes a token with which one process may join. One that is made and not received ends by itself.
    pub async fn make_token(&self, request: v1::TokenRequest) -> Result<v1::Token, OperatorError> {
        self.change("", move |mut client| {
            let request = request.clone();
            async move { client.make_token(request).await }
        })
        .await
        .map_err(|error| match error {
            OperatorError::OutcomeUnknown { url, why, .. } => OperatorError::Rejected(texts::no_token_came(&url, &why)),
            error => error,
        })
    }

    /// Carries a request out, at most once. After [`OperatorError::OutcomeUnknown`] the same token can be sent again.
    pub async fn act(&self, request: v1::ActRequest) -> Result<v1::ActReply, OperatorError> {
        let token = request.token.clone();
        self.change(&token, move |mut client| {
            let request = request.clone();
            async move { client.act(request).await }
        })
        .await
    }

    /// Puts a document in force, or returns the consequences without doing so.
    pub async fn apply(&self, request: v1::ApplyDocumentRequest) -> Result<v1::ApplyDocumentReply, OperatorError> {
        let token = request.token.clone();
        self.change(&token, move |mut client| {
            let request = request.clone();
            async move { client.apply_document(request).await }
        })
        .await
    }

    /// Sends a change, at most once. It goes only to a control plane that has just answered, and to another one only if
    /// the first says that it does not lead.
    async fn change<T, F>(&self, token: &str, call: impl Fn(Client) -> F) -> Result<T, OperatorError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut unled = None;
        for _ in 0..FINDS_MAX {
            let (url, client, _) = match self.ask(FIND_TIMEOUT, status).await {
                Ok(found) => found,
                Err(no_leader @ OperatorError::NoLeader { .. }) => {
                    unled = Some(no_leader);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let status = match call(client).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => status,
            };
            if status.code() == Code::FailedPrecondition {
                // This control plane led a moment ago, or answers reads without leading.
                self.remember(leader_named_by(&status, &url));
                unled = Some(self.no_leader(words(&status)));
            } else if is_about_the_request(status.code()) {
                return Err(OperatorError::Rejected(words(&status)));
            } else {
                let (why, token) = (words(&status), token.to_owned());
                return Err(OperatorError::OutcomeUnknown { url, why, token });
            }
        }
        Err(unled.expect("every search that did not return left its error"))
    }

    async fn read<T, F>(&self, call: impl Fn(Client) -> F + Clone + Send + 'static) -> Result<T, OperatorError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.ask(READ_TIMEOUT, call).await.map(|(_, _, reply)| reply)
    }

    /// Sends a read to the control planes until one that leads answers. Returns also its URL and client.
    async fn ask<T, F>(
        &self,
        limit: Duration,
        call: impl Fn(Client) -> F + Clone + Send + 'static,
    ) -> Result<(String, Client, T), OperatorError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.check_urls()?;
        let deadline = Instant::now() + limit;
        let mut asked = JoinSet::new();
        // URLs tried in this round, URLs without an answer yet, and the answers of the others.
        let mut this_round = BTreeSet::new();
        let mut unanswered = BTreeSet::new();
        let mut said = BTreeMap::new();
        let mut waiting = self.in_order();
        let mut somebody_follows = false;
        loop {
            if let Some(url) = waiting.pop_front() {
                this_round.insert(url.clone());
                unanswered.insert(url.clone());
                asked.spawn(ask_one(url, self.identity.clone(), call.clone()));
            }
            let pause = if waiting.is_empty() { AGAIN_AFTER } else { NEXT_AFTER };
            tokio::select! {
                Some(answer) = asked.join_next() => {
                    let (url, answer) = answer.expect("asking does not panic and is not aborted");
                    unanswered.remove(&url);
                    match answer {
                        Answer::Leads(client, reply) => {
                            self.remember(Some(url.clone()));
                            return Ok((url, *client, reply));
                        }
                        Answer::Follows(leader, why) => {
                            somebody_follows = true;
                            said.insert(url, why);
                            if let Some(leader) = leader.filter(|url| !this_round.contains(url)) {
                                waiting.retain(|url| *url != leader);
                                waiting.push_front(leader);
                            }
                        }
                        Answer::Rejected(why) => return Err(OperatorError::Rejected(why)),
                        Answer::Failed(why) => {
                            said.insert(url, why);
                        }
                    }
                    if waiting.is_empty() && unanswered.is_empty() && !somebody_follows {
                        return Err(self.unreachable(&said));
                    }
                }
                () = sleep_until(deadline) => {
                    for url in unanswered {
                        said.insert(url, texts::LATE.to_owned());
                    }
                    return Err(if somebody_follows { self.no_leader(listed(&said)) } else { self.unreachable(&said) });
                }
                () = sleep(pause) => {
                    // Those that answered will soon know the leader, so they are asked again. Requests to the others
                    // are still in flight.
                    if waiting.is_empty() && somebody_follows {
                        this_round.clone_from(&unanswered);
                        waiting = self.in_order();
                        waiting.retain(|url| !unanswered.contains(url));
                    }
                }
            }
        }
    }

    /// Sends a read to all control planes, and returns the answers that arrive in time.
    async fn ask_all<T, F>(&self, call: impl Fn(Client) -> F + Clone + Send + 'static) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let asked = self
            .urls
            .iter()
            .map(|url| ask_one(url.clone(), self.identity.clone(), call.clone()));
        let mut asked: JoinSet<_> = asked.collect();
        let mut replies = Vec::new();
        let answers = async {
            while let Some(answer) = asked.join_next().await {
                if let Ok((_, Answer::Leads(_, reply))) = answer {
                    replies.push(reply);
                }
            }
        };
        // Control planes that do not answer are not waited for.
        let _ = timeout(FIND_TIMEOUT, answers).await;
        replies
    }

    /// The order of the attempts: the last leader, then all in the given order.
    fn in_order(&self) -> VecDeque<String> {
        let leader = self.leader.lock().clone();
        let mut urls = VecDeque::from_iter(leader);
        for url in &self.urls {
            if !urls.contains(url) {
                urls.push_back(url.clone());
            }
        }
        urls
    }

    fn remember(&self, leader: Option<String>) {
        *self.leader.lock() = leader;
    }

    fn check_urls(&self) -> Result<(), OperatorError> {
        if self.urls.is_empty() {
            return Err(OperatorError::Rejected(texts::NO_URL.to_owned()));
        }
        match self.urls.iter().find(|url| !is_url(url)) {
            Some(url) => Err(OperatorError::NotAUrl(url.clone())),
            None => Ok(()),
        }
    }

    fn unreachable(&self, said: &BTreeMap<String, String>) -> OperatorError {
        OperatorError::Unreachable {
            urls: self.urls.join(", "),
            why: listed(said),
        }
    }

    fn no_leader(&self, why: String) -> OperatorError {
        OperatorError::NoLeader {
            urls: self.urls.join(", "),
            why,
        }
    }
}

/// The answer of one control plane to a read.
enum Answer<T> {
    Leads(Box<Client>, T),
    /// It does not lead. It may name the leader.
    Follows(Option<String>, String),
    Rejected(String),
    /// It does not answer, or cannot.
    Failed(String),
}

async fn ask_one<T, F>(url: String, identity: Option<Arc<Identity>>, call: impl Fn(Client) -> F) -> (String, Answer<T>)
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let settings = |endpoint: Endpoint| endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT);
    let client = match connect::open(&url, identity.as_ref(), settings).await {
        Ok(channel) => Client::new(channel),
        Err(why) => return (url, Answer::Failed(why)),
    };
    let answer = match call(client.clone()).await {
        Ok(reply) => Answer::Leads(Box::new(client), reply.into_inner()),
        Err(status) if status.code() == Code::FailedPrecondition => {
            Answer::Follows(leader_named_by(&status, &url), words(&status))
        }
        Err(status) if is_about_the_request(status.code()) => Answer::Rejected(words(&status)),
        Err(status) if status.code() == Code::Unimplemented => Answer::Failed(texts::NO_CONTROL_PLANE.to_owned()),
        Err(status) => Answer::Failed(words(&status)),
    };
    (url, answer)
}

async fn status(mut client: Client) -> Result<Response<v1::StatusReply>, Status> {
    client.status(v1::StatusRequest::default()).await
}

/// The leader that the control plane at `asked` names. It is asked in the same way, with TLS or without: no answer makes a client that
/// proves who it is speak plain text.
fn leader_named_by(status: &Status, asked: &str) -> Option<String> {
    let url = status.metadata().get(LEADER_KEY)?.to_str().ok()?;
    let (scheme, _) = asked.split_once("://")?;
    let (_, leader) = url.split_once("://").filter(|_| is_url(url))?;
    Some(format!("{scheme}://{leader}"))
}

fn is_about_the_request(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
            // Another change came first, or the store is full: nothing was written.
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

fn words(status: &Status) -> String {
    // A failure of the connection has its reason at the bottom.
    if let Some(cause) = std::error::Error::source(status) {
        let cause = connect::root_cause(cause);
        // The last words of an HTTP/2 peer, which h2 quotes behind its own.
        let said = cause.split_once("(b\"").and_then(|(_, said)| said.strip_suffix("\")"));
        return said.unwrap_or(&cause).to_owned();
    }
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    }
}

/// The answers, each with its URL if there are several.
fn listed(said: &BTreeMap<String, String>) -> String {
    match said.values().next() {
        Some(why) if said.len() == 1 => why.clone(),
        _ => {
            let each: Vec<String> = said.iter().map(|(url, why)| texts::at(url, why)).collect();
            each.join("; ")
        }
    }
}

#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;
