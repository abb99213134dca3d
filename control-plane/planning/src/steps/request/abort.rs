//! The order to end another one.

use topology::{Intent, IntentKind, Reason, ReasonCode};
use verdict::Health;

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    steps::{
        data::check_may_come_home,
        primary::{
            leaving::evacuate,
            returning::{ReturnStep, restore_to},
        },
    },
    texts::{changed, refused},
};

/// Ends an action, and takes back the part of its effects that can be taken back.
pub(super) fn abort(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    id: &str,
    why: &str,
) -> Result<Phase, Reason> {
    let action = draft
        .memory
        .actions
        .get(id)
        .filter(|action| !action.phase.is_final())
        .cloned();
    let Some(action) = action else {
        let text = refused::nothing_to_abort(id);
        return Err(facts.reason_for(&intent.kind, ReasonCode::NoSuchAction, text));
    };
    let kind = &action.intent.kind;
    if action.phase == Phase::Running {
        match kind {
            IntentKind::Failover { region, .. } | IntentKind::Switchover { region, .. } => {
                let health = facts.health(region);
                if matches!(health, Health::Down | Health::Blind) {
                    let text = refused::sessions_cannot_come_back(region, health, &facts.summary(region));
                    return Err(facts.reason_for(kind, ReasonCode::NotHealthy, text));
                }
                check_may_come_home(facts, gate, draft, report, region, None)?;
                // As fast as it accepts connections; the rest follows like that of any return.
                let step = ReturnStep {
                    percent: 100,
                    why,
                    accepted: None,
                };
                restore_to(facts, gate, draft, report, region, &step);
            }
            IntentKind::Restore { region, .. } => {
                evacuate(facts, gate, draft, report, region, ReasonCode::RestoreAborted, why)?;
            }
            IntentKind::Rollout { version } if draft.next.rollout.as_ref().is_some_and(|it| it.action == id) => {
                draft.next.rollout = None;
                let text = changed::rollout_aborted(why, version);
                report.change(facts.reason_for(kind, ReasonCode::RolledBack, text));
            }
            _ => {}
        }
    }
    draft.end_action(facts, id, Phase::Aborted, why);
    report.change(facts.reason_for(kind, ReasonCode::Aborted, why));
    Ok(Phase::Done)
}
