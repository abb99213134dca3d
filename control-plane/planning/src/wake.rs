//! The moments at which steps, orders and waits end by themselves.

use std::time::Duration;

use topology::{Intent, IntentKind, Moment, Plan, RegionId, RegionState};

use crate::{Action, Input, Memory, Phase, steps::edges::returning};

/// Longest wait of a request for its approval: after this the world has changed too much to act on it. An order that
/// then stands for a time, like an override, does so from its approval on.
pub const REQUEST_LIFE: Duration = Duration::from_secs(600);

/// The first moment after `now` at which the decision may change without a new fact: the end of a step, of a standing
/// order, of a wait for approval. `None` when only facts matter.
pub fn next_wake(input: &Input, now: Moment) -> Option<Moment> {
    let regions = input.current.iter().flat_map(|plan| &plan.regions);
    let steps = regions.filter_map(|(id, region)| match region.state {
        RegionState::Restoring(_) => Some(restore_step_end(input, id, region.since)),
        RegionState::Draining(_) => Some(drain_step_end(input, id, region.since)),
        RegionState::Serving | RegionState::Evacuated => None,
    });
    let actions = input.memory.actions.values();
    let expiries = actions.filter_map(expiry);
    let arrivals = &input.memory.arrivals;
    let arrivals = arrivals.iter().filter_map(|(region, it)| {
        let per_second = input.topology.regions.get(region)?.connects_per_s_max?;
        Some(it.end(per_second, input.policy.failover.reconnect_window))
    });
    let rollout = input.current.iter().filter_map(|plan| rollout_step_end(input, plan));
    let rest = input.memory.taken_back.iter().map(|it| it.until);
    let Memory {
        lost_edges, new_edges, ..
    } = &input.memory;
    let edges = returning(input, lost_edges.keys().chain(new_edges), now).map(|(_, again)| again);
    steps
        .chain(expiries)
        .chain(arrivals)
        .chain(rollout)
        .chain(rest)
        .chain(edges)
        .filter(|wake| *wake > now)
        .min()
}

/// The end of an action by its own time, if it has one.
pub(crate) fn expiry(action: &Action) -> Option<Moment> {
    match action.phase {
        Phase::AwaitingApproval => Some(approval_end(&action.intent)),
        Phase::Running if action.intent.kind.stands() => Some(action.intent.expires_at),
        _ => None,
    }
}

/// The end of a request's wait for its approval.
pub(crate) fn approval_end(intent: &Intent) -> Moment {
    intent.expires_at.min(intent.created_at + REQUEST_LIFE)
}

/// A restore step ends when it was in force, and the region healthy, for the policy's `restore.step_hold`.
pub(crate) fn restore_step_end(input: &Input, region: &RegionId, since: Moment) -> Moment {
    let healthy_since = input.verdicts.get(region).and_then(|verdict| verdict.healthy_since);
    healthy_since.unwrap_or(since).max(since) + input.policy.restore.step_hold
}

/// A step of a planned drain lasts the policy's `drain.step_hold`; in an emergency the next part of the sessions leaves
/// as soon as the targets accept connections again.
pub(crate) fn drain_step_end(input: &Input, region: &RegionId, since: Moment) -> Moment {
    let planned = matches!(
        input.memory.moving(region).map(|action| &action.intent.kind),
        Some(IntentKind::Switchover { .. })
    );
    since
        + if planned {
            input.policy.drain.step_hold
        } else {
            input.policy.failover.reconnect_window
        }
}

/// The end of a rollout's current step; none when the rollout is at its last.
pub(crate) fn rollout_step_end(input: &Input, plan: &Plan) -> Option<Moment> {
    let rollout = plan.rollout.as_ref().filter(|rollout| rollout.percent < 100)?;
    let steps = &input.policy.rollout.steps;
    let step = steps.iter().rfind(|step| step.percent <= rollout.percent);
    Some(rollout.since + step.map_or(Duration::ZERO, |step| step.hold))
}
