//! The gRPC service for operators and their tools: status, explanations, dry runs, requests and documents.
//!
//! One file, although it is long: it is one service, and each method one of its calls.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use api::{
    operator::LEADER_KEY,
    v1::{self, operator_server::Operator},
};
use identity::{
    Call, Identity,
    signature::{self, Signature},
};
use planning::{
    Action,
    audit::{self, AnyEntry},
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use topology::{Plan, Reason, ReasonCode};

use super::{
    guard::{self, Guard},
    parse::{NAME_BYTES_MAX, REASON_BYTES_MAX, document_kind, intent, known_region, required_text},
    replies::{
        access_message, action_message, document_message, edges, node_status, not_leading_text, number_of, outcome_of,
        plan_reply, principal_message, progress_message, region_status, regions, unwritten_message,
    },
    tokens,
};
use crate::{
    access::principal,
    dns_timing::DnsTiming,
    nodes::{Nodes, waited_for},
    reconcile::{self, Applied, Unanswered},
    records::{self, AuditHead, Document, DocumentKind},
    stacks::Stacks,
    store::{Mirror, Store, StoreError},
    texts,
    view::{Leader, Role, View},
};

/// Longest document, in bytes. A commit writes it twice, beside the audit entry, and all of it must fit into one
/// transaction. The document of a thousand edges takes half of it.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;
/// Decisions returned if the caller names no number, and the most that it may ask for.
const HISTORY_DEFAULT: usize = 20;
const HISTORY_MAX: usize = 500;
/// Audit entries searched for those about one region.
const WHY_SCANNED: u64 = 300;
/// Longest wait of `why` for them. The client gives the whole answer three seconds while it searches for a leader, and operators
/// ask when the store is away.
const WHY_READS_WITHIN: Duration = Duration::from_millis(1_500);
/// Time that an order waits for most edges to apply its plan, in milliseconds, before the reply says that it still
/// runs. Healthy edges need milliseconds, and clients wait for five seconds.
const SPREADS_WITHIN_MS: u64 = 2_000;
/// Longest wait for an action in one call.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Audit entries queued for one reader.
const AUDIT_WAITING: usize = 16;

/// The operators' gRPC service.
pub struct OperatorService {
    /// The newest view of the deciding task.
    pub views: watch::Receiver<Arc<View>>,
    /// The nodes that follow plans.
    pub nodes: Nodes,
    /// The certificates of stacks.
    pub stacks: Stacks,
    /// The store of decisions.
    pub store: Arc<dyn Store>,
    /// The queue of the deciding task.
    pub inbox: mpsc::Sender<reconcile::Request>,
    /// The local copy of the store; its age tells how old this replica's knowledge is.
    pub mirror: Mirror,
    /// Name of this control plane.
    pub node: topology::NodeId,
    /// Decides who may call.
    pub guard: Guard,
    /// This control plane, which signs the head of the audit log; `None` without a certificate.
    pub signer: Option<Arc<Identity>>,
}

#[tonic::async_trait]
impl Operator for OperatorService {
    type AuditStream = ReceiverStream<Result<v1::AuditItem, Status>>;

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.guard.allow(guard::caller(&request).as_ref(), Call::Look)?;
        let view = self.view_for(request.into_inner().from_anyone)?;
        let now = daemon::clock::now();
        let stale = self.staleness(&view);
        let plan = view.input.current.as_ref();
        let rollout = plan.and_then(|plan| plan.rollout.as_ref());
        let actions = view.input.memory.actions.values();
        Ok(Response::new(v1::StatusReply {
            number: plan.map(|plan| plan.number().into()),
            plan_created_at_ms: plan.map_or(0, |plan| plan.created_at.0),
            now_ms: now.0,
            regions: regions(&view, plan),
            edges: edges(&view),
            nodes: self
                .nodes
                .all()
                .iter()
                .map(|(id, node)| node_status(id.as_str(), node))
                .collect(),
            waiting: view
                .report
                .refused
                .iter()
                .chain(&view.report.waiting)
                .map(Into::into)
                .collect(),
            actions: actions
                .filter(|action| !action.phase_in_force().is_final())
                .map(|action| self.action_message(&view, action))
                .collect(),
            leader: if stale.is_none() {
                self.node.to_string()
            } else {
                String::new()
            },
            automation: planning::automation(&view.input, now).as_ref().map(Into::into),
            not_leading: not_leading_text(&view),
            stale_ms: stale.unwrap_or_default(),
            answered_by: self.node.to_string(),
            epoch: view.input.epoch,
            rollout: rollout.map(|rollout| rollout.version.clone()).unwrap_or_default(),
            rollout_percent: rollout.map_or(0, |rollout| u32::from(rollout.percent)),
            progress: Some(progress_message(&view, &self.nodes)),
            unwritten: view.progress.unwritten.as_ref().map(unwritten_message),
            dns: DnsTiming::of(&view.input, now).map(Into::into),
            stacks: self.stacks.messages(),
        }))
    }

    async fn why(&self, request: Request<v1::WhyRequest>) -> Result<Response<v1::WhyReply>, Status> {
        self.guard.allow(guard::caller(&request).as_ref(), Call::Look)?;
        let v1::WhyRequest { region, from_anyone } = request.into_inner();
        let view = self.view_for(from_anyone)?;
        let region = known_region(&view, &region)?;
        let about = |reason: &Reason| reason.region.as_ref() == Some(&region);
        let is_about = |entry: &AnyEntry| match entry {
            AnyEntry::Decision(entry) => entry.reasons.iter().any(about),
            AnyEntry::Access(_) => false,
        };
        let stale = self.staleness(&view);
        let entries = records::newest_audit(self.store.as_ref(), HISTORY_DEFAULT, WHY_SCANNED, is_about);
        // Only the history is in the store. Operators need the rest of the answer now.
        let (entries, history_missing) = match tokio::time::timeout(WHY_READS_WITHIN, entries).await {
            Ok(Ok(entries)) => (entries, String::new()),
            Ok(Err(error)) => (Vec::new(), error.to_string()),
            Err(_) => (Vec::new(), texts::calls::history_late(WHY_READS_WITHIN)),
        };
        let waiting = view.report.refused.iter().chain(&view.report.waiting);
        let evidence = view.input.verdicts.get(&region).map(|verdict| verdict.evidence.clone());
        Ok(Response::new(v1::WhyReply {
            region: Some(region_status(&view, view.input.current.as_ref(), &region)),
            evidence: evidence.unwrap_or_default(),
            history_missing,
            waiting: waiting.filter(|reason| about(reason)).map(Into::into).collect(),
            decisions: entries.into_iter().map(|entry| self.told(entry)).collect(),
            not_leading: not_leading_text(&view),
            stale_ms: stale.unwrap_or_default(),
            answered_by: self.node.to_string(),
            progress: Some(progress_message(&view, &self.nodes)),
            unwritten: view.progress.unwritten.as_ref().map(unwritten_message),
        }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanReply>, Status> {
        self.guard.allow(guard::caller(&request).as_ref(), Call::Look)?;
        self.leading_view()?;
        let (reply, answer) = oneshot::channel();
        let caller = guard::caller(&request);
        let asked = match request.into_inner().request {
            None => reconcile::Request::Rehearse(reply),
            Some(request) => reconcile::Request::Ask {
                intent: intent(request, |claimed| self.guard.author(caller.as_ref(), "order", claimed))?,
                by: None,
                dry_run: true,
                reply,
            },
        };
        let answer = self.ask(asked, answer).await?;
        Ok(Response::new(plan_reply(&answer)))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActReply>, Status> {
        let view = self.leading_view()?;
        let caller = guard::caller(&request);
        let intent = intent(request.into_inner(), |claimed| {
            self.guard.author(caller.as_ref(), "order", claimed)
        })?;
        self.guard.allow_order(caller.as_ref(), &intent.kind, &view)?;
        let token = intent.id.clone();
        let known = view.input.memory.actions.get(&token).cloned();
        if let Some(known) = &known
            && known.intent.kind != intent.kind
        {
            let text = texts::token_used(&token, known.intent.created_at);
            return Err(Status::already_exists(text));
        }
        let (reply, answer) = oneshot::channel();
        let asked = reconcile::Request::Ask {
            intent,
            by: principal(caller.as_ref()),
            dry_run: false,
            reply,
        };
        let mut answer = self.ask(asked, answer).await?;
        if let Some(action) = answer.action.as_ref().filter(|action| action.spreads.is_some()) {
            let deadline = Duration::from_millis(SPREADS_WITHIN_MS);
            if let Ok(Ok((view, action))) =
                tokio::time::timeout(deadline, self.wait_until_over(&action.intent.id)).await
            {
                (answer.view, answer.action) = (view, Some(action));
            }
        }
        let report = &answer.outcome.report;
        let outcome = outcome_of(answer.action.as_ref());
        let about: Vec<&Reason> = match (&known, outcome) {
            (Some(_), _) => vec![],
            // Other refusals of the same decision have nothing to do with this request.
            (None, v1::Outcome::Refused) => report.denied.iter().collect(),
            (None, v1::Outcome::AwaitingApproval) => {
                let asks = |reason: &&Reason| reason.code == ReasonCode::NeedsApproval;
                report.waiting.iter().filter(asks).collect()
            }
            (None, _) => report.changed.iter().collect(),
        };
        let subject = answer.action.as_ref().and_then(|action| action.intent.kind.region());
        let is_denied = outcome == v1::Outcome::Refused;
        let about = about
            .into_iter()
            .filter(|reason| is_denied || subject.is_none() || reason.region.as_ref() == subject);
        let mut reasons: Vec<v1::Reason> = about.map(Into::into).collect();
        if let (Some(_), Some(action)) = (&known, &answer.action) {
            let text = texts::asked_before(action.intent.created_at, &action.text);
            reasons.push(v1::Reason {
                code: ReasonCode::AlreadySo.to_string(),
                text,
                ..Default::default()
            });
        }
        Ok(Response::new(v1::ActReply {
            number: number_of(answer.view.input.current.as_ref()),
            outcome: outcome.into(),
            reasons,
            action: answer
                .action
                .as_ref()
                .map(|action| self.action_message(&answer.view, action)),
        }))
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::Action>, Status> {
        self.guard.allow(guard::caller(&request).as_ref(), Call::Look)?;
        let v1::WaitRequest { action: id, timeout_ms } = request.into_inner();
        let deadline = Duration::from_millis(timeout_ms).min(WAIT_MAX);
        match tokio::time::timeout(deadline, self.wait_until_over(&id)).await {
            Ok(over) => over.map(|(view, action)| Response::new(self.action_message(&view, &action))),
            Err(_) => {
                let view = self.leading_view()?;
                let action = view.input.memory.actions.get(&id);
                let action = action.ok_or_else(|| Status::not_found(texts::action_is_forgotten(&id)))?;
                Ok(Response::new(self.action_message(&view, action)))
            }
        }
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryReply>, Status> {
        self.guard.allow(guard::caller(&request).as_ref(), Call::Look)?;
        self.leading_view()?;
        let limit = match request.into_inner().limit as usize {
            0 => HISTORY_DEFAULT,
            limit => limit.min(HISTORY_MAX),
        };
        let entries = records::newest_audit(self.store.as_ref(), limit, audit::KEPT, |_| true);
        let entries = entries.await.map_err(unreadable)?;
        let decisions = entries.into_iter().map(|entry| self.told(entry)).collect();
        Ok(Response::new(v1::HistoryReply { decisions }))
    }

    async fn get_document(&self, request: Request<v1::GetDocumentRequest>) -> Result<Response<v1::Document>, Status> {
        self.guard.allow(guard::caller(&request).as_ref(), Call::Look)?;
        let view = self.leading_view()?;
        let document = match document_kind(request.into_inner().kind())? {
            DocumentKind::Topology => &view.topology,
            DocumentKind::Policy => &view.policy,
        };
        Ok(Response::new(document_message(document)))
    }

    async fn apply_document(
        &self,
        request: Request<v1::ApplyDocumentRequest>,
    ) -> Result<Response<v1::ApplyDocumentReply>, Status> {
        let caller = guard::caller(&request);
        let request = request.into_inner();
        let kind = document_kind(request.kind())?;
        let call = match request.dry_run {
            true => Call::Look,
            false => Call::Rule { kind: kind.as_str() },
        };
        self.guard.allow(caller.as_ref(), call)?;
        self.leading_view()?;
        let author = match request.dry_run && guard::proven(caller.as_ref()).is_some() {
            true => self.guard.author(caller.as_ref(), "rule", "")?,
            false => self.guard.author(caller.as_ref(), "rule", &request.author)?,
        };
        let reason = required_text("reason", &request.reason, REASON_BYTES_MAX)?;
        let replaces = required_text("replaces", &request.replaces, NAME_BYTES_MAX)?;
        let bytes = request.text.len();
        if bytes > DOCUMENT_BYTES_MAX {
            let text = texts::document_too_long(kind.as_str(), bytes, DOCUMENT_BYTES_MAX);
            return Err(Status::invalid_argument(text));
        }
        let document = Document::new(kind, request.text, &author, daemon::clock::now()).because(reason);
        let version = document.version.clone();
        let (reply, answer) = oneshot::channel();
        let asked = reconcile::Request::Apply {
            document,
            by: principal(caller.as_ref()),
            replaces,
            dry_run: request.dry_run,
            reply,
        };
        let reply = match self.ask(asked, answer).await? {
            Applied::Problems(problems) => v1::ApplyDocumentReply {
                problems,
                ..Default::default()
            },
            Applied::Changed(in_force) => {
                let text = texts::document_changed_meanwhile(kind.as_str(), &in_force);
                return Err(Status::aborted(text));
            }
            Applied::InForce(answer) => v1::ApplyDocumentReply {
                accepted: true,
                problems: vec![],
                version,
                plan: Some(plan_reply(&answer)),
            },
        };
        Ok(Response::new(reply))
    }

    async fn make_token(&self, request: Request<v1::TokenRequest>) -> Result<Response<v1::Token>, Status> {
        let caller = guard::caller(&request);
        let call = Call::Rule {
            kind: "list of processes",
        };
        self.guard.allow(caller.as_ref(), call)?;
        let view = self.leading_view()?;
        let (store, own) = (self.store.as_ref(), self.signer.as_ref());
        let (accesses, topology) = (&self.guard.accesses, &view.input.topology);
        let made = tokens::make(store, own, accesses, topology, caller.as_ref(), request.into_inner());
        made.await.map(Response::new)
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        self.guard.allow(guard::caller(&request).as_ref(), Call::Look)?;
        self.leading_view()?;
        let v1::AuditRequest { from, limit } = request.into_inner();
        let (items, stream) = mpsc::channel(AUDIT_WAITING);
        let (store, signer) = (self.store.clone(), self.signer.clone());
        // The reader owns the task: it ends when the stream is dropped.
        tokio::spawn(async move {
            if let Err(error) = send_audit(store.as_ref(), signer, from, limit, &items).await {
                // Sending fails if the reader is gone, which is fine.
                let _ = items.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Sends the audit log, oldest entry first, each document before the first entry that names it, and the head at the
/// end, with the signature of this control plane.
async fn send_audit(
    store: &dyn Store,
    signer: Option<Arc<Identity>>,
    from: u64,
    limit: u32,
    items: &mpsc::Sender<Result<v1::AuditItem, Status>>,
) -> Result<(), Status> {
    use v1::audit_item::Item;
    let gone = |_| Status::cancelled("the reader is gone");
    let item = |item| Ok(v1::AuditItem { item: Some(item) });
    let (head, _) = records::audit_head(store).await.map_err(unreadable)?;
    let first = from.max(head.oldest());
    let last = match limit {
        0 => head.number,
        limit => head.number.min(first.saturating_add(u64::from(limit) - 1)),
    };
    let mut sent = BTreeSet::new();
    for number in first..=last {
        let Some(bytes) = records::audit_entry(store, number)
            .await
            .map_err(|it| store_status(&it))?
        else {
            // The entry was pruned since the head was read.
            continue;
        };
        if let Ok(AnyEntry::Decision(entry)) = AnyEntry::read(&bytes) {
            for (kind, version) in [
                (v1::DocumentKind::Topology, entry.input.topology),
                (v1::DocumentKind::Policy, entry.input.policy),
            ] {
                if !sent.insert(version.clone()) {
                    continue;
                }
                let found = store
                    .get(&records::document_key(&version))
                    .await
                    .map_err(|it| store_status(&it))?;
                if let Some(found) = found {
                    let document = v1::Document {
                        kind: kind.into(),
                        text: String::from_utf8_lossy(&found.value).into_owned(),
                        version,
                        ..Default::default()
                    };
                    items.send(item(Item::Document(document))).await.map_err(gone)?;
                }
            }
        }
        items.send(item(Item::Entry(bytes.into()))).await.map_err(gone)?;
    }
    if last == head.number {
        items.send(item(Item::Head(head.hash.clone()))).await.map_err(gone)?;
        if let Some(signer) = signer {
            let signed = signed(signer, head).await?;
            items.send(item(Item::SignedHead(signed))).await.map_err(gone)?;
        }
    }
    Ok(())
}

/// The head with the signature of this control plane.
pub(crate) async fn signed(signer: Arc<Identity>, head: AuditHead) -> Result<v1::SignedHead, Status> {
    let at = daemon::clock::now();
    let statement = audit::head_to_sign(head.number, &head.hash, at);
    let signing = tokio::task::spawn_blocking(move || signature::sign(signer.files(), &statement));
    let signed = signing
        .await
        .map_err(|_| Status::internal(texts::joining::broke_off("signing")))?;
    let Signature { certificate, bytes } =
        signed.map_err(|error| Status::unavailable(texts::joining::head_unsigned(error)))?;
    Ok(v1::SignedHead {
        number: head.number,
        hash: head.hash,
        at_ms: at.0,
        certificate,
        signature: bytes.into(),
    })
}

impl OperatorService {
    /// The view, if this replica leads or `anyone` will do.
    fn view_for(&self, anyone: bool) -> Result<Arc<View>, Status> {
        let view = self.views.borrow().clone();
        if !anyone {
            leads(&view)?;
        }
        Ok(view)
    }

    /// Age of the local copy of the store in milliseconds, if this replica does not lead.
    fn staleness(&self, view: &View) -> Option<u64> {
        let copy = || self.mirror.staleness().unwrap_or(Duration::MAX);
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        (view.role != Role::Leading).then(|| ms(copy()))
    }

    /// The view, if this replica leads.
    fn leading_view(&self) -> Result<Arc<View>, Status> {
        let view = self.views.borrow().clone();
        leads(&view)?;
        Ok(view)
    }

    async fn ask<T>(
        &self,
        request: reconcile::Request,
        answer: oneshot::Receiver<Result<T, Unanswered>>,
    ) -> Result<T, Status> {
        self.inbox.send(request).await.map_err(|_| stopping())?;
        match answer.await.map_err(|_| stopping())? {
            Ok(answer) => Ok(answer),
            Err(Unanswered::NotLeading(leader)) => Err(not_leading(&leader)),
            Err(Unanswered::Store(error)) => Err(store_status(&error)),
            Err(error @ (Unanswered::TooMany { .. } | Unanswered::TooManyDocuments { .. })) => {
                Err(Status::resource_exhausted(error.to_string()))
            }
        }
    }

    /// Waits until an action is over: ended, and applied by most edges if a plan carries it out.
    async fn wait_until_over(&self, id: &str) -> Result<(Arc<View>, Action), Status> {
        let mut views = self.views.clone();
        loop {
            let view = views.borrow_and_update().clone();
            leads(&view)?;
            let Some(action) = view.input.memory.actions.get(id) else {
                return Err(Status::not_found(texts::no_such_action(id)));
            };
            if action.phase_in_force().is_final() {
                return Ok((view.clone(), action.clone()));
            }
            views.changed().await.map_err(|_| stopping())?;
        }
    }

    /// An action with the number of edges that apply its plan.
    fn action_message(&self, view: &View, action: &Action) -> v1::Action {
        let named = waited_for(&view.input);
        let in_force = view.input.current.as_ref().map(|plan| plan.generation);
        let wanted = action.spreads.or(in_force).unwrap_or_default();
        let have = self.nodes.applied_by(&named, wanted);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let mut message = v1::Action {
            edges: count(named.len()),
            edges_acknowledged: count(have),
            spreads: action.spreads.unwrap_or_default(),
            ..action_message(action)
        };
        if let Some(plan) = action.spreads {
            message.text = texts::spreads(&message.text, plan, have, named.len());
        }
        message
    }

    fn told(&self, entry: AnyEntry) -> v1::Decision {
        match entry {
            AnyEntry::Decision(entry) => self.decision(*entry),
            AnyEntry::Access(entry) => access_message(*entry),
        }
    }

    fn decision(&self, entry: audit::Entry) -> v1::Decision {
        let number = entry.plan.as_ref().map(Plan::number);
        let acknowledged = number.map(|number| self.nodes.acknowledged(number)).unwrap_or_default();
        let known = self.nodes.all();
        let acknowledged = acknowledged.into_iter().map(|(id, at)| v1::NodeStatus {
            node: id.to_string(),
            kind: known
                .get(&id)
                .map_or(v1::NodeKind::Unspecified, |node| node.kind)
                .into(),
            acknowledged: number.map(Into::into),
            acknowledged_at_ms: at.0,
            ..Default::default()
        });
        let mut reasons: Vec<v1::Reason> = entry.reasons.iter().map(Into::into).collect();
        if let Some(because) = &entry.because {
            // A document may change rules without changing the plan.
            if reasons.is_empty() {
                reasons.push(v1::Reason {
                    code: "document-applied".to_owned(),
                    text: texts::plan_stays(),
                    ..Default::default()
                });
            }
            reasons[0].text = texts::applied_by(&reasons[0].text, &entry.actor, because);
        }
        v1::Decision {
            number: number.map(Into::into),
            at_ms: entry.at.0,
            actor: entry.actor,
            principal: entry.principal.map(principal_message),
            reasons,
            acknowledged: acknowledged.collect(),
        }
    }
}

fn stopping() -> Status {
    Status::unavailable(texts::calls::stopping())
}

fn leads(view: &View) -> Result<(), Status> {
    match &view.role {
        Role::Leading => Ok(()),
        Role::Following(leader) => Err(not_leading(leader)),
    }
}

fn not_leading(leader: &Leader) -> Status {
    let mut status = Status::failed_precondition(leader.to_string());
    if let Leader::Known(leader) = leader
        && let Ok(url) = leader.url.parse()
    {
        status.metadata_mut().insert(LEADER_KEY, url);
    }
    status
}

fn store_status(error: &StoreError) -> Status {
    let text = texts::store::with_remedy(error, error.remedy());
    match error {
        StoreError::NoSpace(_) => Status::resource_exhausted(text),
        StoreError::TooLarge { .. } | StoreError::TransactionTooLarge { .. } => Status::invalid_argument(text),
        StoreError::Conflict { .. } => Status::aborted(text),
        StoreError::Unreadable { .. } => Status::data_loss(text),
        StoreError::Unavailable { .. } | StoreError::Failed(_) => Status::unavailable(text),
    }
}

fn unreadable(error: records::RecordError) -> Status {
    match error {
        records::RecordError::Store(error) => store_status(&error),
        error @ records::RecordError::Unreadable { .. } => store_status(&error.into()),
    }
}
