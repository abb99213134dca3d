//! What people and their tools call: look, ask why, try, force, stop, undo.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use api::{
    operator::LEADER_KEY,
    v1::{self, operator_server::Operator},
};
use planning::{Action, Check, Phase, REQUEST_LIFE, audit, loads};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use topology::{Intent, IntentKind, Moment, Plan, PlanNumber, Reason, ReasonCode, RegionId, RegionState};
use verdict::Health;

use crate::{
    nodes::{Node, Nodes},
    reconcile::{self, Answer, Applied, Leader, Progress, Role, Unanswered, Unwritten, View, outcome_of},
    records::{self, Document, DocumentKind},
    store::{Mirror, Store, StoreError},
};

/// Longest author or token taken, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Longest reason taken, in bytes. A day's requests are remembered, and each decision is recorded with all of them.
const REASON_BYTES_MAX: usize = 300;
/// Longest document, in bytes. It is written twice beside the audit entry, and all of that must fit into one transaction;
/// the document of a thousand edges takes half of it.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;
/// Longest standing order: what must last longer is no freeze but a change of policy.
const STANDING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Decisions returned when the caller names no number, and at most.
const HISTORY_DEFAULT: usize = 20;
const HISTORY_MAX: usize = 500;
/// Audit entries looked through for those about one region.
const WHY_SCANNED: u64 = 300;
/// Longest wait for an action in one request.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Audit entries on their way to one reader.
const AUDIT_WAITING: usize = 16;

/// The operator's service.
pub struct OperatorService {
    /// What is known and decided.
    pub views: watch::Receiver<Arc<View>>,
    /// Who follows.
    pub nodes: Nodes,
    /// Where decisions are kept.
    pub store: Arc<dyn Store>,
    /// Where requests go.
    pub inbox: mpsc::Sender<reconcile::Request>,
    /// Our copy of it, which tells how old what we know is.
    pub mirror: Mirror,
    /// Our name.
    pub node: topology::NodeId,
}

#[tonic::async_trait]
impl Operator for OperatorService {
    type AuditStream = ReceiverStream<Result<v1::AuditItem, Status>>;

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
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
                .filter(|action| !action.phase.is_final())
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
        }))
    }

    async fn why(&self, request: Request<v1::WhyRequest>) -> Result<Response<v1::WhyReply>, Status> {
        let v1::WhyRequest { region, from_anyone } = request.into_inner();
        let view = self.view_for(from_anyone)?;
        let region = known_region(&view, &region)?;
        let about = |reason: &Reason| reason.region.as_ref() == Some(&region);
        let stale = self.staleness(&view);
        // Who does not lead may have no store to read decisions from.
        let scanned = if stale.is_none() { WHY_SCANNED } else { 0 };
        let entries = records::newest_audit(self.store.as_ref(), HISTORY_DEFAULT, scanned, |entry| {
            entry.reasons.iter().any(about)
        });
        let entries = match entries.await {
            Ok(entries) => entries,
            // Everything else is known without the store, and it is now that people ask.
            Err(_) if view.progress.unwritten.is_some() => Vec::new(),
            Err(error) => return Err(unreadable(error)),
        };
        let waiting = view.report.refused.iter().chain(&view.report.waiting);
        let evidence = view.input.verdicts.get(&region).map(|verdict| verdict.evidence.clone());
        Ok(Response::new(v1::WhyReply {
            region: Some(region_status(&view, view.input.current.as_ref(), &region)),
            evidence: evidence.unwrap_or_default(),
            waiting: waiting.filter(|reason| about(reason)).map(Into::into).collect(),
            decisions: entries.into_iter().map(|entry| self.decision(entry)).collect(),
            not_leading: not_leading_text(&view),
            stale_ms: stale.unwrap_or_default(),
            answered_by: self.node.to_string(),
            progress: Some(progress_message(&view, &self.nodes)),
            unwritten: view.progress.unwritten.as_ref().map(unwritten_message),
        }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanReply>, Status> {
        self.leading_view()?;
        let (reply, answer) = oneshot::channel();
        let asked = match request.into_inner().request {
            None => reconcile::Request::Rehearse(reply),
            Some(request) => reconcile::Request::Ask {
                intent: intent(request)?,
                dry_run: true,
                reply,
            },
        };
        let answer = self.ask(asked, answer).await?;
        Ok(Response::new(plan_reply(&answer)))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActReply>, Status> {
        let view = self.leading_view()?;
        let intent = intent(request.into_inner())?;
        let token = intent.id.clone();
        let known = view.input.memory.actions.get(&token).cloned();
        if let Some(known) = &known
            && known.intent.kind != intent.kind
        {
            let text = format!(
                "token: \"{token:.64}\" was used for another request at {}",
                known.intent.created_at
            );
            return Err(Status::already_exists(text));
        }
        let (reply, answer) = oneshot::channel();
        let asked = reconcile::Request::Ask {
            intent,
            dry_run: false,
            reply,
        };
        let answer = self.ask(asked, answer).await?;
        let report = &answer.outcome.report;
        let outcome = outcome_of(answer.action.as_ref());
        let about: Vec<&Reason> = match (&known, outcome) {
            (Some(_), _) => vec![],
            (None, v1::Outcome::Refused) => report.refused.iter().collect(),
            (None, v1::Outcome::AwaitingApproval) => {
                let asks = |reason: &&Reason| reason.code == ReasonCode::NeedsApproval;
                report.waiting.iter().filter(asks).collect()
            }
            (None, _) => report.changed.iter().collect(),
        };
        let subject = answer.action.as_ref().and_then(|action| action.intent.kind.region());
        let about = about
            .into_iter()
            .filter(|reason| subject.is_none() || reason.region.as_ref() == subject);
        let mut reasons: Vec<v1::Reason> = about.map(Into::into).collect();
        if let (Some(_), Some(action)) = (&known, &answer.action) {
            let text = format!("already asked at {}; {}", action.intent.created_at, action.text);
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
        let v1::WaitRequest { action: id, timeout_ms } = request.into_inner();
        let mut views = self.views.clone();
        let over = async {
            loop {
                let view = views.borrow_and_update().clone();
                leads(&view)?;
                let Some(action) = view.input.memory.actions.get(&id) else {
                    let text = format!("there is no action \"{id:.64}\"; they are remembered for a day");
                    return Err(Status::not_found(text));
                };
                if action.phase.is_final() {
                    return Ok(self.action_message(&view, action));
                }
                views.changed().await.map_err(|_| stopping())?;
            }
        };
        let patience = Duration::from_millis(timeout_ms).min(WAIT_MAX);
        match tokio::time::timeout(patience, over).await {
            Ok(over) => over.map(Response::new),
            Err(_) => {
                let view = self.leading_view()?;
                let action = view.input.memory.actions.get(&id);
                let action = action.ok_or_else(|| Status::not_found("it was forgotten while it was waited for"))?;
                Ok(Response::new(self.action_message(&view, action)))
            }
        }
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryReply>, Status> {
        self.leading_view()?;
        let limit = match request.into_inner().limit as usize {
            0 => HISTORY_DEFAULT,
            limit => limit.min(HISTORY_MAX),
        };
        let entries = records::newest_audit(self.store.as_ref(), limit, audit::KEPT, |_| true);
        let entries = entries.await.map_err(unreadable)?;
        let decisions = entries.into_iter().map(|entry| self.decision(entry)).collect();
        Ok(Response::new(v1::HistoryReply { decisions }))
    }

    async fn get_document(&self, request: Request<v1::GetDocumentRequest>) -> Result<Response<v1::Document>, Status> {
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
        self.leading_view()?;
        let request = request.into_inner();
        let kind = document_kind(request.kind())?;
        let author = given("author", &request.author, NAME_BYTES_MAX)?;
        let reason = given("reason", &request.reason, REASON_BYTES_MAX)?;
        let replaces = given("replaces", &request.replaces, NAME_BYTES_MAX)?;
        let bytes = request.text.len();
        if bytes > DOCUMENT_BYTES_MAX {
            let text = format!(
                "text: the {} document has {bytes} bytes, and {DOCUMENT_BYTES_MAX} is the most; nothing was changed",
                kind.as_str()
            );
            return Err(Status::invalid_argument(text));
        }
        let document = Document::new(kind, request.text, &author, daemon::clock::now()).because(reason);
        let version = document.version.clone();
        let (reply, answer) = oneshot::channel();
        let asked = reconcile::Request::Apply {
            document,
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
                let text =
                    format!("somebody else changed it meanwhile; version {in_force:.12} is in force: get it again");
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

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        self.leading_view()?;
        let v1::AuditRequest { from, limit } = request.into_inner();
        let (items, stream) = mpsc::channel(AUDIT_WAITING);
        let store = self.store.clone();
        // Owned by the reader: it ends when the stream is dropped.
        tokio::spawn(async move {
            if let Err(error) = send_audit(store.as_ref(), from, limit, &items).await {
                // The reader may have gone.
                let _ = items.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Sends the audit log, oldest first, every document before the first entry that names it, and the head at the end.
async fn send_audit(
    store: &dyn Store,
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
            // Pruned since we looked.
            continue;
        };
        if let Ok(entry) = serde_json::from_slice::<audit::Entry>(&bytes) {
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
        items.send(item(Item::Head(head.hash))).await.map_err(gone)?;
    }
    Ok(())
}

impl OperatorService {
    /// The view, if we lead or `anyone` is asked.
    fn view_for(&self, anyone: bool) -> Result<Arc<View>, Status> {
        let view = self.views.borrow().clone();
        if !anyone {
            leads(&view)?;
        }
        Ok(view)
    }

    /// How old our copy of the store is, in milliseconds, if we do not lead.
    fn staleness(&self, view: &View) -> Option<u64> {
        let copy = || self.mirror.staleness().unwrap_or(Duration::MAX);
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        (view.role != Role::Leading).then(|| ms(copy()))
    }

    /// The view, if we lead.
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
            Err(error @ Unanswered::TooMany { .. }) => Err(Status::resource_exhausted(error.to_string())),
        }
    }

    /// An action, with how many edges apply what it did.
    fn action_message(&self, view: &View, action: &Action) -> v1::Action {
        let progress = progress_message(view, &self.nodes);
        v1::Action {
            edges: progress.edges,
            edges_acknowledged: progress.edges_acknowledged,
            ..action_message(action)
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
            // A document may change rules and not the plan.
            if reasons.is_empty() {
                reasons.push(v1::Reason {
                    code: "document-applied".to_owned(),
                    text: "the plan stays as it is".to_owned(),
                    ..Default::default()
                });
            }
            reasons[0].text = format!("{}; applied by {}: {because}", reasons[0].text, entry.actor);
        }
        v1::Decision {
            number: number.map(Into::into),
            at_ms: entry.at.0,
            actor: entry.actor,
            reasons,
            acknowledged: acknowledged.collect(),
        }
    }
}

fn known_region(view: &View, name: &str) -> Result<RegionId, Status> {
    let regions = &view.input.topology.regions;
    RegionId::new(name)
        .ok()
        .filter(|region| regions.contains_key(region))
        .ok_or_else(|| {
            let known: Vec<&str> = regions.keys().map(RegionId::as_str).collect();
            Status::not_found(format!(
                "there is no region \"{name:.64}\"; there are {}",
                known.join(", ")
            ))
        })
}

/// A text that must be there, without the space around it.
fn given(field: &str, text: &str, bytes_max: usize) -> Result<String, Status> {
    let text = text.trim();
    let problem = match text.len() {
        0 => "it must be given".to_owned(),
        // It is printed on other people's terminals.
        _ if text.contains(topology::text::is_hidden) => {
            "it has line breaks, control characters or others that cannot be seen".to_owned()
        }
        bytes if bytes > bytes_max => format!("it has {bytes} bytes, and {bytes_max} is the most"),
        _ => return Ok(text.to_owned()),
    };
    Err(Status::invalid_argument(format!("{field}: {problem}")))
}

/// Why a control plane does not lead; empty when it does.
fn not_leading_text(view: &View) -> String {
    match &view.role {
        Role::Leading => String::new(),
        Role::Following(leader) => leader.to_string(),
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping; whether it was done is unknown")
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
    let text = error.to_string();
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
        error @ records::RecordError::Unreadable { .. } => Status::data_loss(error.to_string()),
    }
}

/// A request as it is decided on.
fn intent(request: v1::ActRequest) -> Result<Intent, Status> {
    let v1::ActRequest {
        author,
        reason,
        token,
        duration_ms,
        kind,
    } = request;
    let kind = kind.ok_or_else(|| Status::invalid_argument("kind: it says nothing to do"))?;
    let kind = IntentKind::try_from(kind)?;
    let duration = Duration::from_millis(duration_ms);
    let life = if kind.stands() {
        if duration.is_zero() || duration > STANDING_MAX {
            let text = format!(
                "duration: a {} lasts more than nothing and at most 24 hours",
                kind.as_str()
            );
            return Err(Status::invalid_argument(text));
        }
        duration
    } else {
        REQUEST_LIFE
    };
    let now = daemon::clock::now();
    Ok(Intent {
        id: given("token", &token, NAME_BYTES_MAX)?,
        kind,
        author: given("author", &author, NAME_BYTES_MAX)?,
        reason: given("reason", &reason, REASON_BYTES_MAX)?,
        created_at: now,
        expires_at: now + life,
    })
}

fn document_kind(kind: v1::DocumentKind) -> Result<DocumentKind, Status> {
    match kind {
        v1::DocumentKind::Topology => Ok(DocumentKind::Topology),
        v1::DocumentKind::Policy => Ok(DocumentKind::Policy),
        v1::DocumentKind::Unspecified => Err(Status::invalid_argument("kind: it is not given")),
    }
}

fn document_message(document: &Document) -> v1::Document {
    let kind = match document.kind {
        DocumentKind::Topology => v1::DocumentKind::Topology,
        DocumentKind::Policy => v1::DocumentKind::Policy,
    };
    v1::Document {
        kind: kind.into(),
        text: document.text.clone(),
        version: document.version.clone(),
        author: document.author.clone(),
        applied_at_ms: document.applied_at.0,
    }
}

fn number_of(plan: Option<&Plan>) -> Option<v1::PlanNumber> {
    plan.map(|plan| PlanNumber::into(plan.number()))
}

/// What a decision is, or would be.
fn plan_reply(answer: &Answer) -> v1::PlanReply {
    let view = &answer.view;
    let (now, next) = (view.input.current.as_ref(), answer.outcome.plan.as_ref());
    let shown = next.or(now);
    let verdicts = &view.input.verdicts;
    let before = now
        .map(|plan| loads(&view.input.topology, plan, verdicts))
        .unwrap_or_default();
    let after = shown
        .map(|plan| loads(&answer.topology, plan, verdicts))
        .unwrap_or_default();
    let load = |load: planning::Load| {
        let same = |it: &&planning::Load| (&it.region, it.resource) == (&load.region, load.resource);
        v1::Load {
            now: before.iter().find(same).map_or(0.0, |it| it.planned),
            next: load.planned,
            max: load.max,
            region: load.region.to_string(),
            resource: load.resource.to_string(),
        }
    };
    let reasons = |reasons: &[Reason]| reasons.iter().map(Into::into).collect();
    let report = &answer.outcome.report;
    v1::PlanReply {
        number: number_of(now),
        changes: next.is_some(),
        outcome: outcome_of(answer.action.as_ref()).into(),
        regions: regions(view, shown),
        changed: reasons(&report.changed),
        refused: reasons(&report.refused),
        waiting: reasons(&report.waiting),
        checks: report.checks.iter().map(check_message).collect(),
        loads: after.into_iter().map(load).collect(),
    }
}

fn check_message(check: &Check) -> v1::Check {
    v1::Check {
        rule: check.rule.to_string(),
        region: check.region.as_ref().map(ToString::to_string).unwrap_or_default(),
        passed: check.passed,
        text: check.text.clone(),
    }
}

fn action_message(action: &Action) -> v1::Action {
    let standing = action.intent.kind.stands() || action.phase == Phase::AwaitingApproval;
    v1::Action {
        id: action.intent.id.clone(),
        kind: action.intent.kind.as_str().to_owned(),
        subject: action.intent.kind.subject(),
        author: action.intent.author.clone(),
        reason: action.intent.reason.clone(),
        phase: action.phase.to_string(),
        owner: action.owner,
        created_at_ms: action.intent.created_at.0,
        changed_at_ms: action.changed_at.0,
        expires_at_ms: if standing { action.intent.expires_at } else { Moment(0) }.0,
        approved_by: action.approved_by.clone().unwrap_or_default(),
        text: action.text.clone(),
        ..Default::default()
    }
}

fn progress_message(view: &View, nodes: &Nodes) -> v1::Progress {
    let Progress {
        judged,
        decided_at,
        store_took_at,
        published,
        unwritten: _,
    } = &view.progress;
    let at = |moment: &Option<Moment>| moment.map_or(0, |moment| moment.0);
    let plan = view.input.current.as_ref();
    let topology = &view.input.topology;
    let applied = plan.map(|plan| nodes.acknowledged(plan.number())).unwrap_or_default();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let is_edge = |id: &topology::NodeId| topology.edges.keys().any(|edge| edge.as_str() == id.as_str());
    v1::Progress {
        judged_tick_end_ms: judged.map_or(0, |(tick, _)| tick.end().0),
        judged_at_ms: judged.map_or(0, |(_, at)| at.0),
        decided_at_ms: at(decided_at),
        committed: number_of(plan),
        committed_at_ms: plan.map_or(0, |plan| plan.created_at.0),
        store_took_at_ms: at(store_took_at),
        published: published.map(|(number, _)| number.into()),
        published_at_ms: published.map_or(0, |(_, at)| at.0),
        nodes: count(topology.edges.len() + topology.name_servers.len()),
        nodes_acknowledged: count(applied.len()),
        edges: count(topology.edges.len()),
        edges_acknowledged: count(applied.keys().filter(|id| is_edge(id)).count()),
        acknowledged_at_ms: applied.values().max().map_or(0, |at| at.0),
    }
}

fn unwritten_message(unwritten: &Unwritten) -> v1::Unwritten {
    v1::Unwritten {
        since_ms: unwritten.since.0,
        error: unwritten.error.to_string(),
        remedy: unwritten.remedy().to_owned(),
        pending: unwritten.pending.iter().map(Into::into).collect(),
    }
}

fn regions(view: &View, plan: Option<&Plan>) -> Vec<v1::RegionStatus> {
    let regions = view.input.topology.regions.keys();
    regions.map(|region| region_status(view, plan, region)).collect()
}

fn region_status(view: &View, plan: Option<&Plan>, region: &RegionId) -> v1::RegionStatus {
    let planned = plan.and_then(|plan| plan.regions.get(region));
    let verdict = view.input.verdicts.get(region);
    let role = match view.input.topology.regions.get(region).map(|region| &region.role) {
        Some(topology::Role::Primary { .. }) => "primary",
        Some(topology::Role::Backup) | None => "backup",
    };
    let routes = plan.and_then(|plan| plan.routes.get(region)).into_iter().flatten();
    let writers = plan.and_then(|plan| plan.writers.get(region)).into_iter().flatten();
    let writers: BTreeSet<String> = writers.map(|(_, writer)| writer.to_string()).collect();
    let others = plan
        .into_iter()
        .flat_map(|plan| &plan.routes)
        .filter(|(primary, _)| *primary != region);
    let guests = others.flat_map(|(primary, shares)| {
        let here = shares.iter().filter(|share| share.region == *region);
        here.map(|share| v1::Share {
            region: primary.to_string(),
            percent: u32::from(share.percent),
        })
    });
    v1::RegionStatus {
        writers: writers.into_iter().collect(),
        guests: guests.collect(),
        region: region.to_string(),
        role: role.to_owned(),
        health: verdict.map_or(Health::NoData, |verdict| verdict.health).to_string(),
        state: planned
            .map_or(RegionState::Serving, |planned| planned.state)
            .to_string(),
        level: planned.map(|planned| planned.level).unwrap_or_default().to_string(),
        routes: routes
            .map(|share| v1::Share {
                region: share.region.to_string(),
                percent: u32::from(share.percent),
            })
            .collect(),
        summary: verdict.map_or_else(|| "not seen yet".to_owned(), |verdict| verdict.summary.clone()),
    }
}

fn edges(view: &View) -> Vec<v1::EdgeStatus> {
    let states = view
        .input
        .current
        .as_ref()
        .map(|plan| plan.edges.clone())
        .unwrap_or_default();
    let lost = &view.input.memory.lost_edges;
    let state = |edge: &topology::EdgeId| match states.get(edge) {
        Some(_) if lost.contains_key(edge) => "lost".to_owned(),
        state => state.map(ToString::to_string).unwrap_or_default(),
    };
    let edge = |edge: &topology::Edge| v1::EdgeStatus {
        heard_at_ms: view.edges.get(&edge.id).map_or(0, |seen| seen.heard_at.0),
        lost_since_ms: lost.get(&edge.id).map_or(0, |since| since.0),
        edge: edge.id.to_string(),
        state: state(&edge.id),
        addresses: edge.addresses.iter().map(ToString::to_string).collect(),
        port: u32::from(edge.port),
    };
    view.input.topology.edges.values().map(edge).collect()
}

fn node_status(id: &str, node: &Node) -> v1::NodeStatus {
    v1::NodeStatus {
        node: id.to_owned(),
        kind: node.kind.into(),
        acknowledged: Some(node.acknowledged.into()),
        acknowledged_at_ms: node.acknowledged_at.0,
        refused: node.refused.as_ref().map(|(_, why)| why.clone()).unwrap_or_default(),
        connected: node.connections > 0,
    }
}
