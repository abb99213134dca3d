//! Actions and the plan agree. A plan that was taken back or recovered, or new documents, can change the subject of an
//! action: then the action ends. A rollout that continues without its action gets it back.

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, RegionState};

use crate::{Action, PLANNER, Phase, Report, draft::Draft, facts::Facts, texts::changed};

/// Ends actions that have no subject any more, and revives a rollout that no one could end.
pub(crate) fn settle(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    revive_rollout(facts, draft);
    let regions = &draft.next.regions;
    let is_away = |region: &RegionId| regions.get(region).is_some_and(|it| it.state != RegionState::Serving);
    draft.memory.on_purpose.retain(is_away);
    let running = draft.memory.running(|_| true);
    let over = running.filter_map(|action| {
        let (phase, why) = end_of(facts, draft, action)?;
        Some((action.intent.clone(), phase, why))
    });
    for (intent, phase, why) in over.collect::<Vec<_>>() {
        let text = changed::order_ended(&intent, &why);
        draft.end_action(facts, &intent.id, phase, &text);
        if phase == Phase::Aborted {
            report.change(Reason::of(ReasonCode::Aborted, text).about(intent.kind.region()));
        }
    }
}

/// The phase and the reason with which a running action ended by other events; none while it goes on.
fn end_of(facts: &Facts<'_>, draft: &Draft, action: &Action) -> Option<(Phase, String)> {
    match &action.intent.kind {
        IntentKind::Failover { region, .. } | IntentKind::Switchover { region, .. } => {
            end_of_move(facts, draft, region, RegionState::Evacuated, |it| {
                matches!(it, RegionState::Draining(_))
            })
        }
        IntentKind::Restore { region, .. } => end_of_move(facts, draft, region, RegionState::Serving, |it| {
            matches!(it, RegionState::Restoring(_))
        }),
        IntentKind::Rollout { version } => {
            let rollout = draft.next.rollout.as_ref().filter(|it| it.action == action.intent.id);
            match rollout.map(|it| it.percent) {
                None => Some((Phase::Aborted, changed::rollout_is_gone(version))),
                Some(100..) => Some((Phase::Done, changed::all_on_version(version))),
                Some(_) => None,
            }
        }
        IntentKind::DrainEdge { edge } if !draft.next.edges.contains_key(edge) => {
            Some((Phase::Aborted, changed::edge_is_gone(edge)))
        }
        IntentKind::DrainStack { stack } if !facts.input.has_stack(stack) => {
            Some((Phase::Aborted, changed::stack_is_gone(*stack)))
        }
        _ => None,
    }
}

/// The same of a move: the region is at its end, or where the move cannot go on.
fn end_of_move(
    facts: &Facts<'_>,
    draft: &Draft,
    region: &RegionId,
    end: RegionState,
    goes_on: impl Fn(RegionState) -> bool,
) -> Option<(Phase, String)> {
    if !facts.input.primaries().contains(region) {
        let is_there = draft.next.regions.contains_key(region);
        return Some((Phase::Aborted, changed::is_no_primary(region, is_there)));
    }
    let state = draft.next.regions.get(region)?.state;
    match state {
        state if goes_on(state) => None,
        state if state == end => Some((Phase::Done, changed::region_is(region, state))),
        state => Some((Phase::Aborted, changed::region_is_now(region, state))),
    }
}

/// Gives a rollout its action back. The store may have forgotten the action of a rollout that nodes still have, or have
/// ended it in a plan that they refused. Without an action the rollout could not go on, be judged or be aborted.
fn revive_rollout(facts: &Facts<'_>, draft: &mut Draft) {
    let Some(rollout) = draft.next.rollout.clone().filter(|it| it.percent < 100) else {
        return;
    };
    let text = changed::rollout_revived(&rollout.version, rollout.percent);
    let kind = IntentKind::Rollout {
        version: rollout.version,
    };
    let known = draft
        .memory
        .actions
        .get(&rollout.action)
        .filter(|it| it.intent.kind == kind);
    let known = known.cloned();
    if known.as_ref().is_some_and(|it| it.phase == Phase::Running) {
        return;
    }
    let intent = Intent {
        id: rollout.action.clone(),
        kind,
        author: PLANNER.to_owned(),
        reason: text.clone(),
        created_at: facts.now,
        expires_at: facts.now,
    };
    let revived = Action {
        intent: known.as_ref().map_or(intent, |it| it.intent.clone()),
        phase: Phase::Running,
        owner: facts.input.epoch,
        changed_at: facts.now,
        approved_by: known.as_ref().and_then(|it| it.approved_by.clone()),
        spreads: None,
        shares: known.as_ref().map(|it| it.shares.clone()).unwrap_or_default(),
        shown: known.map(|it| it.shown).unwrap_or_default(),
        text,
    };
    draft.memory.actions.insert(rollout.action, revived);
}
