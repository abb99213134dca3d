//! What people and their tools ask of the control planes, of which one leads. Whom to ask is found out anew for each
//! request: one that does not lead says who does, and one that says nothing for a moment is not waited for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    connect::root_cause,
    v1::{self, operator_client::OperatorClient},
};

/// With the code FAILED_PRECONDITION, which says that a control plane does not lead: URL of the one that does. Absent
/// while none does.
pub const LEADER_KEY: &str = "meridian-leader";

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one request may take. A decision is committed in milliseconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may wait for an action to be over.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// How long a read may take with all it needs: an election takes a few seconds, and people wait no longer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one search for the leader may take before an action.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);
/// Searches for the leader before an action: with their pauses longer than an election.
const FINDS_MAX: u32 = 3;
/// One that did not answer by now may be stopped, so the next is asked as well.
const NEXT_AFTER: Duration = Duration::from_millis(300);
/// Pause before all are asked again, when none led.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

type Client = OperatorClient<Channel>;

/// The control planes, seen by an operator. Connects anew for each request, so it survives their restarts; remembers who
/// led last.
#[derive(Debug, Clone)]
pub struct Operator {
    urls: Vec<String>,
    leader: Arc<Mutex<Option<String>>>,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// Nobody answers; nothing was done.
    #[error("no control plane answers at {urls}: {why}")]
    Unreachable {
        /// Where.
        urls: String,
        /// What happened instead.
        why: String,
    },
    /// They answer, and none leads; nothing was done.
    #[error("no control plane of {urls} leads ({why}); an election takes seconds, so try again")]
    NoLeader {
        /// Who was asked.
        urls: String,
        /// What they said.
        why: String,
    },
    /// It may or may not have been carried out.
    #[error(
        "{url} did not confirm ({why}); it may have happened: look with `meridian history`, or repeat it with \
         --token {token}, which cannot make it happen twice"
    )]
    OutcomeUnknown {
        /// Where.
        url: String,
        /// What happened instead.
        why: String,
        /// Names the action: the same token twice is one action.
        token: String,
    },
    /// What was named is no address of a control plane.
    #[error("\"{0}\" is not of the form http://address:port")]
    NotAUrl(String),
    /// The control plane refuses the request itself: no such region, no reason given.
    #[error("{0}")]
    Rejected(String),
}

/// A request of an operator. `token` names it: the same token twice is one action. `lasts` is for what stands for a time.
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

/// What a failover without further wishes is.
pub fn failover(region: &str) -> v1::act_request::Kind {
    v1::act_request::Kind::Failover(v1::Failover {
        region: region.to_owned(),
        ..Default::default()
    })
}

/// What a restore without further wishes is.
pub fn restore(region: &str) -> v1::act_request::Kind {
    v1::act_request::Kind::Restore(v1::Restore {
        region: region.to_owned(),
        ..Default::default()
    })
}

impl Operator {
    /// The control planes at `http://address:port`; any of them suffices to find the others' leader.
    pub fn at<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self {
            urls: urls.into_iter().map(Into::into).collect(),
            leader: Arc::default(),
        }
    }

    /// Where they are.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The state of everything. While nobody leads, what the control plane knows whose copy of the store is newest; its
    /// `not_leading` says so.
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

    /// All about one region; while nobody leads, as [`Operator::status`].
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

    /// The newest decisions, newest first; 0 means the server's default.
    pub async fn history(&self, limit: u32) -> Result<Vec<v1::Decision>, OperatorError> {
        let asked = self.read(move |mut client| async move { client.history(v1::HistoryRequest { limit }).await });
        Ok(asked.await?.decisions)
    }

    /// What would be decided now, with or without a request. Nothing is changed.
    pub async fn plan(&self, request: Option<v1::ActRequest>) -> Result<v1::PlanReply, OperatorError> {
        self.read(move |mut client| {
            let request = v1::PlanRequest {
                request: request.clone(),
            };
            async move { client.plan(request).await }
        })
        .await
    }

    /// The action as it is when it is over, or after `patience`; ask again when it is not over.
    pub async fn wait(&self, action: &str, patience: Duration) -> Result<v1::Action, OperatorError> {
        let request = v1::WaitRequest {
            action: action.to_owned(),
            // Below the limit of a request, so that the answer is an answer.
            timeout_ms: u64::try_from(patience.min(WAIT_MAX).as_millis()).unwrap_or(u64::MAX),
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

    /// The audit log from an entry on, to the end.
    pub async fn audit(&self, from: u64) -> Result<Vec<v1::AuditItem>, OperatorError> {
        let request = v1::AuditRequest { from, limit: 0 };
        let (_, mut client, _) = self.ask(FIND_TIMEOUT, status).await?;
        let broken = |status: Status| OperatorError::Rejected(words(&status));
        let mut stream = client.audit(request).await.map_err(broken)?.into_inner();
        let mut items = Vec::new();
        while let Some(item) = stream.message().await.map_err(broken)? {
            items.push(item);
        }
        Ok(items)
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

    /// Puts a document in force, or says what would come of it.
    pub async fn apply(&self, request: v1::ApplyDocumentRequest) -> Result<v1::ApplyDocumentReply, OperatorError> {
        let token = request.token.clone();
        self.change(&token, move |mut client| {
            let request = request.clone();
            async move { client.apply_document(request).await }
        })
        .await
    }

    /// Asks for a change, at most once. It goes only to a control plane that has just answered, and to another only when
    /// the first one said that it does not lead.
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
                // It led a moment ago, or answers reads without leading.
                self.remember(leader_named_by(&status));
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

    /// Puts a harmless question to the control planes until one that leads answers; returns also which one.
    async fn ask<T, F>(
        &self,
        patience: Duration,
        call: impl Fn(Client) -> F + Clone + Send + 'static,
    ) -> Result<(String, Client, T), OperatorError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.check_urls()?;
        let deadline = Instant::now() + patience;
        let mut asked = JoinSet::new();
        // Who was asked in this round, who has yet to answer, and what the others said.
        let mut this_round = BTreeSet::new();
        let mut unanswered = BTreeSet::new();
        let mut said = BTreeMap::new();
        let mut waiting = self.in_order();
        let mut somebody_follows = false;
        loop {
            if let Some(url) = waiting.pop_front() {
                this_round.insert(url.clone());
                unanswered.insert(url.clone());
                asked.spawn(ask_one(url, call.clone()));
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
                        said.insert(url, "it does not answer".to_owned());
                    }
                    return Err(if somebody_follows { self.no_leader(listed(&said)) } else { self.unreachable(&said) });
                }
                () = sleep(pause) => {
                    // Those who answered know more in a moment; the others are still being asked.
                    if waiting.is_empty() && somebody_follows {
                        this_round.clone_from(&unanswered);
                        waiting = self.in_order();
                        waiting.retain(|url| !unanswered.contains(url));
                    }
                }
            }
        }
    }

    /// Puts a harmless question to all control planes: the answers of those that answer.
    async fn ask_all<T, F>(&self, call: impl Fn(Client) -> F + Clone + Send + 'static) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let asked = self.urls.iter().map(|url| ask_one(url.clone(), call.clone()));
        let mut asked: JoinSet<_> = asked.collect();
        let mut replies = Vec::new();
        let answers = async {
            while let Some(answer) = asked.join_next().await {
                if let Ok((_, Answer::Leads(_, reply))) = answer {
                    replies.push(reply);
                }
            }
        };
        // Those that do not answer are not waited for.
        let _ = timeout(FIND_TIMEOUT, answers).await;
        replies
    }

    /// Whom to ask first: who led last, then all in the given order.
    fn in_order(&self) -> VecDeque<String> {
        let leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut urls = VecDeque::from_iter(leader);
        for url in &self.urls {
            if !urls.contains(url) {
                urls.push_back(url.clone());
            }
        }
        urls
    }

    fn remember(&self, leader: Option<String>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    fn check_urls(&self) -> Result<(), OperatorError> {
        if self.urls.is_empty() {
            return Err(OperatorError::Rejected("no control plane is named".to_owned()));
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

/// What one control plane made of a question.
enum Answer<T> {
    Leads(Box<Client>, T),
    /// It does not lead; it may know who does.
    Follows(Option<String>, String),
    Rejected(String),
    /// It does not answer, or cannot.
    Failed(String),
}

async fn ask_one<T, F>(url: String, call: impl Fn(Client) -> F) -> (String, Answer<T>)
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let endpoint = match Endpoint::from_shared(url.clone()) {
        Ok(endpoint) => endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT),
        Err(error) => return (url, Answer::Failed(error.to_string())),
    };
    let client = match endpoint.connect().await {
        Ok(channel) => Client::new(channel),
        Err(error) => return (url, Answer::Failed(root_cause(&error))),
    };
    let answer = match call(client.clone()).await {
        Ok(reply) => Answer::Leads(Box::new(client), reply.into_inner()),
        Err(status) if status.code() == Code::FailedPrecondition => {
            Answer::Follows(leader_named_by(&status), words(&status))
        }
        Err(status) if is_about_the_request(status.code()) => Answer::Rejected(words(&status)),
        Err(status) if status.code() == Code::Unimplemented => {
            Answer::Failed("what answers there is no control plane, or one of another version".to_owned())
        }
        Err(status) => Answer::Failed(words(&status)),
    };
    (url, answer)
}

async fn status(mut client: Client) -> Result<Response<v1::StatusReply>, Status> {
    client.status(v1::StatusRequest::default()).await
}

fn leader_named_by(status: &Status) -> Option<String> {
    let url = status.metadata().get(LEADER_KEY)?.to_str().ok()?;
    is_url(url).then(|| url.to_owned())
}

fn is_url(url: &str) -> bool {
    url.starts_with("http://") && Endpoint::from_shared(url.to_owned()).is_ok()
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
            // Somebody else was faster, or the store is full: nothing was written.
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

fn words(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    }
}

/// What was said, by whom when there were several.
fn listed(said: &BTreeMap<String, String>) -> String {
    match said.values().next() {
        Some(why) if said.len() == 1 => why.clone(),
        _ => {
            let each: Vec<String> = said.iter().map(|(url, why)| format!("{url}: {why}")).collect();
            each.join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::testing::{in_time, nobody, operators, silent};

    fn failover(token: &str) -> v1::ActRequest {
        request(super::failover("us-east"), "r", "a", token, None)
    }

    /// What a control plane says that does not lead.
    fn not_leading(leader: Option<&str>) -> Status {
        let mut status = Status::failed_precondition("this control plane does not lead");
        if let Some(leader) = leader {
            status.metadata_mut().insert(LEADER_KEY, leader.parse().unwrap());
        }
        status
    }

    async fn leader() -> String {
        operators(|_, _| Ok(())).await
    }

    async fn follower_of(leader: &str) -> String {
        let leader = leader.to_owned();
        operators(move |_, _| Err(not_leading(Some(&leader)))).await
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_nonsense_is_rejected() {
        let error = Operator::at([nobody()]).status().await.unwrap_err();
        assert!(matches!(error, OperatorError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
        for nonsense in ["not a url", "127.0.0.1:7070", "http://", ""] {
            let error = Operator::at([nonsense]).status().await.unwrap_err();
            assert!(matches!(error, OperatorError::NotAUrl(_)), "{nonsense}: {error}");
        }
        let error = Operator::at(Vec::<String>::new()).status().await.unwrap_err();
        assert!(matches!(error, OperatorError::Rejected(_)), "{error}");
    }

    #[tokio::test]
    async fn the_leader_is_found_behind_dead_frozen_and_following_control_planes() {
        let (frozen, _frozen) = silent();
        let leader = leader().await;
        let follower = follower_of(&leader).await;
        let clueless = operators(|_, _| Err(not_leading(None))).await;
        for urls in [
            vec![&leader],
            vec![&follower],
            vec![&frozen, &clueless, &follower],
            vec![&frozen, &leader],
        ] {
            let operator = Operator::at(urls.into_iter().cloned().chain([nobody()]));
            in_time(operator.status()).await.unwrap();
            in_time(operator.act(failover("t"))).await.unwrap();
            assert_eq!(operator.in_order()[0], leader, "it is asked first from now on");
        }
    }

    #[tokio::test]
    async fn an_election_is_waited_for() {
        let asked = AtomicU32::new(0);
        let elected = operators(move |_, _| {
            // Two rounds without a leader.
            match asked.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => Err(not_leading(None)),
                _ => Ok(()),
            }
        })
        .await;
        in_time(Operator::at([elected]).history(5)).await.unwrap();
    }

    #[tokio::test]
    async fn two_that_name_each_other_are_not_asked_without_end() {
        let (other, first) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicU32::new(0)));
        let (named, asked) = (other.clone(), first.clone());
        let a = operators(move |_, _| {
            asked.fetch_add(1, Ordering::SeqCst);
            Err(not_leading(Some(&named.lock().unwrap())))
        })
        .await;
        *other.lock().unwrap() = follower_of(&a).await;
        let patience = 3 * AGAIN_AFTER;
        let error = in_time(Operator::at([a]).ask(patience, status)).await.unwrap_err();
        assert!(matches!(error, OperatorError::NoLeader { .. }), "{error}");
        let asked = first.load(Ordering::SeqCst);
        assert!((1..=4).contains(&asked), "once per round, not {asked} times");
    }

    #[tokio::test]
    async fn an_action_is_sent_on_only_when_it_was_certainly_not_carried_out() {
        let leader = leader().await;
        // It answers reads as if it led, and refuses actions.
        let url = leader.clone();
        let former = operators(move |verb, _| match verb {
            "act" => Err(not_leading(Some(&url))),
            _ => Ok(()),
        })
        .await;
        let operator = Operator::at([former]);
        in_time(operator.act(failover("t"))).await.unwrap();
        assert_eq!(operator.in_order()[0], leader);

        // One that breaks off may have done it: nobody else is asked, and the token allows a second attempt.
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let seen = tokens.clone();
        let broken = operators(move |verb, token| match verb {
            "act" => {
                let mut seen = seen.lock().unwrap();
                seen.push(token.to_owned());
                if seen.len() < 2 {
                    Err(Status::unavailable("broken off"))
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        })
        .await;
        let operator = Operator::at([broken, leader]);
        let error = in_time(operator.act(failover("t1"))).await.unwrap_err();
        let OperatorError::OutcomeUnknown { token, .. } = &error else {
            panic!("{error}");
        };
        assert!(error.to_string().contains("--token t1"), "{error}");
        in_time(operator.act(failover(token))).await.unwrap();
        assert_eq!(*tokens.lock().unwrap(), ["t1", "t1"]);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_request_is_said_at_once() {
        let strict = operators(|_, _| Err(Status::not_found("there is no region \"atlantis\""))).await;
        let error = in_time(Operator::at([strict]).why("atlantis")).await.unwrap_err();
        assert_eq!(
            error,
            OperatorError::Rejected("there is no region \"atlantis\"".to_owned())
        );
    }
}
