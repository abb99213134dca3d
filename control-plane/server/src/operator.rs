//! What people and their tools call: look, ask why, force, stop, undo.

use std::{sync::Arc, time::Duration};

use api::v1::{self, operator_server::Operator};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status};
use topology::{Intent, IntentKind, Plan, Reason, RegionId, RegionState, Role};
use verdict::Health;

use crate::{
    nodes::{Node, Nodes},
    reconcile::{self, Answer, View},
    records::{self, AuditEntry},
    store::{Store, StoreError},
};

/// Longest reason, author or token taken, in characters.
const TEXT_MAX: usize = 500;
/// Longest freeze: what must last longer is no freeze but a change of policy.
const FREEZE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Decisions returned when the caller names no number, and at most.
const HISTORY_DEFAULT: usize = 20;
const HISTORY_MAX: usize = 500;

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
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let view = self.views.borrow().clone();
        let plan = view.input.current.as_ref();
        let now = daemon::clock::now();
        let intents = view.input.intents.iter();
        let standing = intents.filter(|it| it.kind == IntentKind::Freeze && it.is_live(now));
        Ok(Response::new(v1::StatusReply {
            number: plan.map(|plan| plan.number().into()),
            plan_created_at_ms: plan.map_or(0, |plan| plan.created_at.0),
            now_ms: now.0,
            regions: view
                .input
                .topology
                .regions
                .keys()
                .map(|region| region_status(&view, region))
                .collect(),
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
            // Failovers and restores are carried out at once; what still stands are freezes.
            intents: standing.map(intent_reply).collect(),
        }))
    }

    async fn why(&self, request: Request<v1::WhyRequest>) -> Result<Response<v1::WhyReply>, Status> {
        let view = self.views.borrow().clone();
        let region = known_region(&view, &request.into_inner().region)?;
        let about = |reason: &&Reason| reason.region.as_ref() == Some(&region);
        let mut decisions = Vec::new();
        for entry in records::read_audit(self.store.as_ref(), HISTORY_MAX)
            .await
            .map_err(internal)?
        {
            if entry.reasons.iter().any(|reason| about(&reason)) && decisions.len() < HISTORY_DEFAULT {
                decisions.push(self.decision(entry));
            }
        }
        let waiting = view
            .report
            .refused
            .iter()
            .chain(&view.report.waiting)
            .filter(about)
            .map(Into::into)
            .collect();
        let evidence = view
            .input
            .verdicts
            .get(&region)
            .map(|verdict| verdict.evidence.clone())
            .unwrap_or_default();
        Ok(Response::new(v1::WhyReply {
            region: Some(region_status(&view, &region)),
            evidence,
            waiting,
            decisions,
        }))
    }

    async fn failover(&self, request: Request<v1::FailoverRequest>) -> Result<Response<v1::ActionReply>, Status> {
        let v1::FailoverRequest {
            region,
            reason,
            author,
            token,
        } = request.into_inner();
        let region = self.primary(&region)?;
        self.ask(IntentKind::Failover { region }, reason, author, token, None)
            .await
    }

    async fn restore(&self, request: Request<v1::RestoreRequest>) -> Result<Response<v1::ActionReply>, Status> {
        let v1::RestoreRequest {
            region,
            reason,
            author,
            token,
        } = request.into_inner();
        let region = self.primary(&region)?;
        self.ask(IntentKind::Restore { region }, reason, author, token, None)
            .await
    }

    async fn freeze(&self, request: Request<v1::FreezeRequest>) -> Result<Response<v1::ActionReply>, Status> {
        let v1::FreezeRequest {
            reason,
            author,
            token,
            duration_ms,
        } = request.into_inner();
        let life = Duration::from_millis(duration_ms);
        if life.is_zero() || life > FREEZE_MAX {
            return Err(Status::invalid_argument(
                "duration: a freeze lasts more than nothing and at most 24 hours",
            ));
        }
        self.ask(IntentKind::Freeze, reason, author, token, Some(life)).await
    }

    async fn unfreeze(&self, request: Request<v1::UnfreezeRequest>) -> Result<Response<v1::ActionReply>, Status> {
        let v1::UnfreezeRequest { reason, author } = request.into_inner();
        let (author, why) = (given("author", author)?, given("reason", reason)?);
        let (reply, answer) = oneshot::channel();
        self.send(reconcile::Request::Unfreeze { author, why, reply }, answer)
            .await
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryReply>, Status> {
        let limit = match request.into_inner().limit as usize {
            0 => HISTORY_DEFAULT,
            limit => limit.min(HISTORY_MAX),
        };
        let entries = records::read_audit(self.store.as_ref(), limit)
            .await
            .map_err(internal)?;
        let decisions = entries.into_iter().map(|entry| self.decision(entry)).collect();
        Ok(Response::new(v1::HistoryReply { decisions }))
    }
}

impl OperatorService {
    fn primary(&self, name: &str) -> Result<RegionId, Status> {
        let view = self.views.borrow().clone();
        let region = known_region(&view, name)?;
        match view.input.topology.regions.get(&region).map(|region| &region.role) {
            Some(Role::Primary { .. }) => Ok(region),
            _ => Err(Status::invalid_argument(format!(
                "{region} is a backup; only primaries fail over and return"
            ))),
        }
    }

    async fn ask(
        &self,
        kind: IntentKind,
        reason: String,
        author: String,
        token: String,
        life: Option<Duration>,
    ) -> Result<Response<v1::ActionReply>, Status> {
        let (reason, author, token) = (
            given("reason", reason)?,
            given("author", author)?,
            given("token", token)?,
        );
        let intent = reconcile::intent(token, kind, author, reason, life);
        let (reply, answer) = oneshot::channel();
        self.send(reconcile::Request::Ask(intent, reply), answer).await
    }

    async fn send(
        &self,
        request: reconcile::Request,
        answer: oneshot::Receiver<Result<Answer, StoreError>>,
    ) -> Result<Response<v1::ActionReply>, Status> {
        let stopping = || Status::unavailable("the control plane is stopping; whether it was done is unknown");
        self.inbox.send(request).await.map_err(|_| stopping())?;
        let answer = answer.await.map_err(|_| stopping())?.map_err(internal)?;
        Ok(Response::new(v1::ActionReply {
            number: answer.view.input.current.as_ref().map(|plan| plan.number().into()),
            accepted: answer.accepted,
            reasons: answer.reasons.iter().map(Into::into).collect(),
        }))
    }

    fn decision(&self, entry: AuditEntry) -> v1::Decision {
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
        v1::Decision {
            number: number.map(Into::into),
            at_ms: entry.at.0,
            actor: entry.actor,
            reasons: entry.reasons.iter().map(Into::into).collect(),
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

fn given(field: &str, text: String) -> Result<String, Status> {
    if text.trim().is_empty() {
        return Err(Status::invalid_argument(format!("{field}: it must be given")));
    }
    if text.chars().count() > TEXT_MAX {
        return Err(Status::invalid_argument(format!(
            "{field}: it is longer than {TEXT_MAX} characters"
        )));
    }
    Ok(text)
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn region_status(view: &View, region: &RegionId) -> v1::RegionStatus {
    let plan = view.input.current.as_ref();
    let planned = plan.and_then(|plan| plan.regions.get(region));
    let verdict = view.input.verdicts.get(region);
    let role = match view.input.topology.regions.get(region).map(|region| &region.role) {
        Some(Role::Primary { .. }) => "primary",
        Some(Role::Backup) | None => "backup",
    };
    let routes = plan.and_then(|plan| plan.routes.get(region)).into_iter().flatten();
    v1::RegionStatus {
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
    let edge = |edge: &topology::Edge| v1::EdgeStatus {
        edge: edge.id.to_string(),
        state: states.get(&edge.id).map(ToString::to_string).unwrap_or_default(),
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
        refused: node.refused.clone(),
        connected: node.connections > 0,
    }
}

fn intent_reply(intent: &Intent) -> v1::Intent {
    let (kind, region) = match &intent.kind {
        IntentKind::Failover { region } => ("failover", region.to_string()),
        IntentKind::Restore { region } => ("restore", region.to_string()),
        IntentKind::Freeze => ("freeze", String::new()),
    };
    v1::Intent {
        id: intent.id.clone(),
        kind: kind.to_owned(),
        region,
        author: intent.author.clone(),
        reason: intent.reason.clone(),
        expires_at_ms: intent.expires_at.0,
    }
}
