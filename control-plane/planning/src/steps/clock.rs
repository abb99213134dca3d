//! A clock that went back.

use std::time::Duration;

use topology::{Intent, Reason, ReasonCode};

use crate::{Report, draft::Draft, facts::Facts, texts::changed};

/// Sets moments in the future to now: a clock that went back leaves them, and no step that began there would ever end.
pub(crate) fn follow(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let now = facts.now;
    let regions = draft.next.regions.values_mut().map(|it| &mut it.since);
    let rollout = draft.next.rollout.as_mut().map(|it| &mut it.since);
    let penalties = draft.memory.penalties.values_mut().map(|it| &mut it.at);
    let arrivals = draft.memory.arrivals.values_mut().map(|it| &mut it.since);
    let mut ahead = Duration::ZERO;
    for moment in regions.chain(rollout).chain(penalties).chain(arrivals) {
        ahead = ahead.max(moment.since(now));
        *moment = now.min(*moment);
    }
    // Clamp the end of an action to its life from now on.
    for action in draft.memory.actions.values_mut().filter(|it| !it.phase.is_final()) {
        let Intent {
            created_at, expires_at, ..
        } = &mut action.intent;
        ahead = ahead.max(created_at.since(now));
        let life = expires_at.since(*created_at);
        *expires_at = (*expires_at).min(now + life);
        *created_at = now.min(*created_at);
    }
    if let Some(rest) = &mut draft.memory.taken_back {
        rest.until = rest.until.min(now + facts.input.policy.publish.hold);
    }
    if !ahead.is_zero() {
        report.change(Reason::of(ReasonCode::ClockWentBack, changed::clock_went_back(ahead)));
    }
}
