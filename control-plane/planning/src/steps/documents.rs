//! Regions and edges that came or went with new documents.
//!
//! Why it is so: docs/decisions/21-documents-in-force.md.

use std::collections::BTreeSet;

use topology::{EdgeState, Level, Reason, ReasonCode, RegionId, RegionPlan, RegionState, Role, snapshot::digest};

use crate::{
    Input, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    placing::{Displaced, place_again},
    shares::home,
    texts::{changed, join_and},
};

/// Adds the regions and edges of new documents to the plan, and drops those that are gone.
pub(crate) fn follow(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let Input { topology, policy, .. } = facts.input;
    let documents = digest(topology, policy.dns.ttl_s(), &policy.probe);
    let changed = draft.next.documents != documents;
    draft.next.documents = documents;
    draft.next.regions.retain(|id, _| topology.regions.contains_key(id));
    draft.next.edges.retain(|id, _| topology.edges.contains_key(id));
    for region in topology.regions.values() {
        let serving = RegionPlan {
            state: RegionState::Serving,
            level: Level::L0,
            since: facts.now,
        };
        let plan = draft.next.regions.entry(region.id.clone()).or_insert(serving);
        if region.role == Role::Backup {
            // Only a primary leaves its sessions to others; one that was made a backup has none to leave.
            plan.state = RegionState::Serving;
        }
    }
    // Edges of the first plan are named at once, because there are no others. A later one first shows that it works.
    let state = match draft.next.generation {
        0 => EdgeState::Serving,
        _ => EdgeState::Drained,
    };
    for edge in topology.edges.keys() {
        if draft.next.edges.contains_key(edge) {
            continue;
        }
        draft.next.edges.insert(edge.clone(), state);
        if state == EdgeState::Drained {
            draft.memory.new_edges.insert(edge.clone());
        }
    }
    if changed {
        say_that_documents_changed(facts, draft, report);
    }
    follow_writers(facts, draft, report);
    follow_routes(facts, draft, report);
}

fn say_that_documents_changed(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let genesis = draft.next.generation == 0;
    let (code, text) = if genesis {
        (ReasonCode::Genesis, changed::first_plan())
    } else {
        let text = changed::documents_changed(&facts.input.differences);
        (ReasonCode::TopologyChanged, text)
    };
    report.change(Reason::of(code, text));
}

/// Makes a primary its own writer again where its writer is gone from the topology. An operator who applies such a
/// topology all the same ([`crate::refuses_topology`]) reads what it did.
fn follow_writers(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let regions = &facts.input.topology.regions;
    draft.next.writers.retain(|id, _| regions.contains_key(id));
    let mut lost = Vec::new();
    for (region, writers) in &mut draft.next.writers {
        let gone = writers.iter().filter(|(_, writer)| !regions.contains_key(writer));
        let (classes, gone): (Vec<String>, BTreeSet<RegionId>) =
            gone.map(|(class, writer)| (class.clone(), writer.clone())).unzip();
        if !gone.is_empty() {
            writers.retain(|_, writer| !gone.contains(writer));
            lost.push((region.clone(), classes.join(", "), join_and(&gone)));
        }
    }
    draft.next.writers.retain(|_, writers| !writers.is_empty());
    for (region, classes, gone) in lost {
        let text = changed::writer_gone(&gone, &classes);
        report.change(facts.reason(ReasonCode::Demoted, &region, text));
    }
}

/// Gives a new primary its own sessions, and finds new places for sessions at regions that are gone.
fn follow_routes(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let topology = &facts.input.topology;
    let is_primary = |id: &RegionId| matches!(topology.regions.get(id), Some(it) if it.role != Role::Backup);
    draft.next.routes.retain(|id, _| is_primary(id));
    for region in topology.primaries() {
        let Some(shares) = draft.next.routes.get(&region.id) else {
            draft.next.routes.insert(region.id.clone(), vec![home(&region.id)]);
            if let Some(plan) = draft.next.regions.get_mut(&region.id) {
                plan.state = RegionState::Serving;
            }
            continue;
        };
        let targets = shares.iter().map(|share| share.region.clone());
        let gone: BTreeSet<RegionId> = targets.filter(|it| !topology.regions.contains_key(it)).collect();
        if !gone.is_empty() {
            let why = changed::regions_are_gone(&gone);
            let displaced = Displaced {
                hosts: &gone,
                code: ReasonCode::TopologyChanged,
                why: &why,
            };
            place_again(facts, Gate::Automation, draft, report, &region.id, &displaced);
        }
    }
}
