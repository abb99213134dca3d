//! The messages that operators get, made from the view and from answers of the deciding task.

use std::collections::BTreeSet;

use api::{convert::NamesSeen, v1};
use planning::{
    Action, Check, Phase,
    audit::{Access, AccessEntry, Principal},
    loads,
};
use topology::{Moment, Plan, PlanNumber, Reason, RegionId, RegionState};
use verdict::Health;

use crate::{
    nodes::{Node, Nodes},
    reconcile::Answer,
    records::{Document, DocumentKind},
    view::{Progress, Role, Unwritten, View},
};

/// The plan message of a decision or a dry run.
pub(super) fn plan_reply(answer: &Answer) -> v1::PlanReply {
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
        // No edge applies a dry run, so its outcome waits for none.
        outcome: outcome_of_phase(answer.action.as_ref().map(|action| action.phase)).into(),
        regions: regions(view, shown),
        changed: reasons(&report.changed),
        refused: reasons(&report.refused),
        waiting: reasons(&report.waiting),
        checks: report.checks.iter().map(check_message).collect(),
        loads: after.into_iter().map(load).collect(),
    }
}

pub(super) fn regions(view: &View, plan: Option<&Plan>) -> Vec<v1::RegionStatus> {
    let regions = view.input.topology.regions.keys();
    regions.map(|region| region_status(view, plan, region)).collect()
}

pub(super) fn region_status(view: &View, plan: Option<&Plan>, region: &RegionId) -> v1::RegionStatus {
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

pub(super) fn edges(view: &View) -> Vec<v1::EdgeStatus> {
    let states = view
        .input
        .current
        .as_ref()
        .map(|plan| plan.edges.clone())
        .unwrap_or_default();
    let planning::Memory {
        lost_edges: lost,
        new_edges: new,
        ..
    } = &view.input.memory;
    let state = |edge: &topology::EdgeId| match states.get(edge) {
        Some(_) if lost.contains_key(edge) => "lost".to_owned(),
        Some(_) if new.contains(edge) => "new".to_owned(),
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

pub(super) fn node_status(id: &str, node: &Node) -> v1::NodeStatus {
    v1::NodeStatus {
        node: id.to_owned(),
        kind: node.kind.into(),
        acknowledged: Some(node.acknowledged.into()),
        acknowledged_at_ms: node.acknowledged_at.0,
        refused: node.refused.as_ref().map(|(_, why)| why.clone()).unwrap_or_default(),
        connected: node.connections > 0,
        root: node.shown.as_ref().map(|shown| shown.root.clone()).unwrap_or_default(),
        certificate_until_ms: node.shown.as_ref().map_or(0, |shown| shown.until.0),
        names: node.names.as_ref().map(names_reported),
    }
}

fn names_reported((at, seen): &(Moment, NamesSeen)) -> v1::NamesReported {
    let within_us = |share| seen.latency.quantile(share).map_or(0, |ms| (ms * 1000.0).ceil() as u64);
    v1::NamesReported {
        at_ms: at.0,
        answered: seen.answered,
        refused: seen.refused,
        limited: seen.limited,
        failed: seen.failed,
        p50_us: within_us(0.5),
        p99_us: within_us(0.99),
    }
}

pub(super) fn number_of(plan: Option<&Plan>) -> Option<v1::PlanNumber> {
    plan.map(|plan| PlanNumber::into(plan.number()))
}

pub(super) fn progress_message(view: &View, nodes: &Nodes) -> v1::Progress {
    let Progress {
        judged,
        decided_at,
        store_took_at,
        published,
        unwritten: _,
        leaderless_since,
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
        leaderless_since_ms: at(leaderless_since),
    }
}

pub(super) fn unwritten_message(unwritten: &Unwritten) -> v1::Unwritten {
    v1::Unwritten {
        since_ms: unwritten.since.0,
        error: unwritten.error.to_string(),
        remedy: unwritten.error.remedy().to_owned(),
        pending: unwritten.pending.iter().map(Into::into).collect(),
    }
}

/// Explains that this control plane does not lead; empty if it leads.
pub(super) fn not_leading_text(view: &View) -> String {
    match &view.role {
        Role::Leading => String::new(),
        Role::Following(leader) => view.why_leaderless().unwrap_or_else(|| leader.to_string()),
    }
}

pub(super) fn document_message(document: &Document) -> v1::Document {
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

pub(super) fn check_message(check: &Check) -> v1::Check {
    v1::Check {
        rule: check.rule.to_string(),
        region: check.region.as_ref().map(ToString::to_string).unwrap_or_default(),
        passed: check.passed,
        text: check.text.clone(),
    }
}

pub(super) fn action_message(action: &Action) -> v1::Action {
    let standing = action.intent.kind.stands() || action.phase == Phase::AwaitingApproval;
    v1::Action {
        id: action.intent.id.clone(),
        kind: action.intent.kind.as_str().to_owned(),
        subject: action.intent.kind.subject(),
        author: action.intent.author.clone(),
        reason: action.intent.reason.clone(),
        phase: action.phase_in_force().to_string(),
        owner: action.owner,
        created_at_ms: action.intent.created_at.0,
        changed_at_ms: action.changed_at.0,
        expires_at_ms: if standing { action.intent.expires_at } else { Moment(0) }.0,
        approved_by: action.approved_by.clone().unwrap_or_default(),
        text: action.text.clone(),
        shown: action.shown_digest().unwrap_or_default(),
        effects: action.effects(),
        ..Default::default()
    }
}

/// The outcome of a request, by its action.
pub fn outcome_of(action: Option<&Action>) -> api::v1::Outcome {
    outcome_of_phase(action.map(Action::phase_in_force))
}

/// The outcome of a request, by its action's phase; `None` means that it was refused.
pub fn outcome_of_phase(phase: Option<Phase>) -> api::v1::Outcome {
    use api::v1::Outcome;
    match phase {
        Some(Phase::Running) => Outcome::Running,
        Some(Phase::AwaitingApproval) => Outcome::AwaitingApproval,
        Some(Phase::Done) => Outcome::Done,
        Some(Phase::Refused | Phase::Aborted | Phase::Expired) | None => Outcome::Refused,
    }
}

/// The principal of a decision, for operators.
pub(super) fn principal_message(principal: Principal) -> v1::Principal {
    let Principal {
        id,
        serial,
        roles,
        source,
    } = principal;
    v1::Principal {
        id,
        serial,
        roles,
        source,
    }
}

/// An entry about access among decisions: it changed no plan.
pub(super) fn access_message(entry: AccessEntry) -> v1::Decision {
    let Access {
        kind,
        control_plane,
        principal,
        text,
        times,
        first,
        last,
    } = entry.access;
    let actor = principal.as_ref().map(|it| it.id.rsplit('/').next().unwrap_or(&it.id));
    let actor = actor.unwrap_or("a stranger").to_owned();
    let mut evidence = vec![format!("at {control_plane}")];
    if times > 1 {
        evidence.push(format!("{times} times from {first:#} to {last:#} UTC"));
    }
    v1::Decision {
        number: None,
        at_ms: last.0,
        actor,
        principal: principal.map(principal_message),
        reasons: vec![v1::Reason {
            code: kind.as_str().to_owned(),
            text,
            evidence,
            ..Default::default()
        }],
        acknowledged: Vec::new(),
    }
}
