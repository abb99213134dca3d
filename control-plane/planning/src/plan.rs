//! The decision, from end to end: the list of its steps. Each step reads the facts, may change the draft, and gives
//! every reason to the report.

use topology::{Moment, Reason, ReasonCode, Snapshot, snapshot::SNAPSHOT_SCHEMA};

use crate::{
    Input, Outcome, Report,
    draft::{Draft, differ_only_in_number},
    facts::Facts,
    gate::Gate,
    steps::{
        clock, correlated, data, documents, edges, expire, levels, primary, recover, request, rollout, routes, settle,
        spread::{self, Carrier},
        stacks, taken_back,
    },
    texts,
};

/// Decides. Nodes can always apply the plan of the outcome: a plan that they could not apply is refused here, and the
/// plan in force stays.
pub fn plan(input: &Input, now: Moment) -> Outcome {
    let outcome = decide(input, now);
    let Some(problem) = invalid_because(input, &outcome) else {
        return outcome;
    };
    let refused = Reason::of(ReasonCode::InvalidPlan, texts::refused::invalid_plan(&problem));
    // A request that would make the plan invalid is refused, and the world goes on without it.
    let mut outcome = match input.request {
        Some(_) => plan(&without_request(input), now),
        None => Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report {
                changed: vec![],
                ..outcome.report
            },
        },
    };
    match input.request {
        Some(_) => outcome.report.deny(refused),
        None => outcome.report.refuse(refused),
    }
    outcome
}

fn without_request(input: &Input) -> Input {
    Input {
        request: None,
        ..input.clone()
    }
}

fn invalid_because(input: &Input, outcome: &Outcome) -> Option<String> {
    let snapshot = Snapshot {
        schema: SNAPSHOT_SCHEMA,
        plan: outcome.plan.clone()?,
        topology: input.topology.clone(),
        dns_ttl_s: input.policy.dns.ttl_s(),
        probe: input.policy.probe.clone(),
    };
    snapshot.validate().err().map(|error| error.to_string())
}

fn decide(input: &Input, now: Moment) -> Outcome {
    let mut next = Draft::of(input, now);
    let mut reasons = Report::default();
    let (draft, report) = (&mut next, &mut reasons);
    let facts = Facts::of(input, now);
    clock::follow(&facts, draft, report);
    recover::adopt(&facts, draft, report);
    documents::follow(&facts, draft, report);
    spread::note_done(&facts, draft, report);
    expire::end_what_is_over(&facts, draft, report);
    let facts = &facts.with_verdicts();
    draft.memory.believed = facts.believed.clone().into_owned();
    taken_back::take_back(facts, draft, report);
    settle::settle(facts, draft, report);
    let correlated = correlated::find(facts, draft);
    request::carry_out_request(facts, draft, report);
    for region in input.primaries() {
        primary::decide(facts, &correlated, draft, report, &region);
    }
    routes::repair(facts, draft, report);
    data::say_where_data_is_written(facts, draft, report);
    edges::find_proven(facts, draft, report);
    edges::find_lost(facts, draft, report);
    edges::set(facts, draft, report);
    stacks::set(facts, draft, report);
    stacks::advise(facts, draft, report);
    levels::set(facts, draft, report);
    rollout::advance(facts, draft, report);
    finish(facts, next, reasons)
}

/// Numbers the next plan, if it differs from the one in force.
fn finish(facts: &Facts<'_>, mut draft: Draft, report: Report) -> Outcome {
    let current = facts.input.current.as_ref();
    let recovers = current.is_some_and(|it| it.generation < draft.next.generation);
    let same = !recovers && current.is_some_and(|current| differ_only_in_number(current, &draft.next));
    let carrier = if same {
        Carrier::InForce(draft.next.generation)
    } else {
        Carrier::Next(draft.next.generation + 1)
    };
    spread::let_orders_spread(facts, &mut draft, carrier);
    let Draft { mut next, memory, .. } = draft;
    let plan = (!same).then(|| {
        next.generation += 1;
        next.epoch = facts.input.epoch;
        next.created_at = facts.now;
        next.reasons.clone_from(&report.changed);
        next
    });
    Outcome { plan, memory, report }
}

/// The rule that stops automatic changes now, if one does.
pub fn automation(input: &Input, now: Moment) -> Option<Reason> {
    Gate::Automation.stop(&Facts::of(input, now), &input.memory)
}
