//! Actions and the plan agree: what an action was about can be changed under it, by a plan that was taken back or
//! recovered, or by other documents. Then the action ends; a rollout that goes on without its action gets it back.

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, RegionState};

use crate::{
    Action, PLANNER, Phase,
    plan::{Planner, has_stack, primaries},
};

impl Planner<'_> {
    /// Ends what is about nothing any more, and revives a rollout nobody could end.
    pub(crate) fn settle(&mut self) {
        self.revive_rollout();
        let regions = &self.next.regions;
        let is_away = |region: &RegionId| regions.get(region).is_some_and(|it| it.state != RegionState::Serving);
        self.memory.on_purpose.retain(is_away);
        let running = self.memory.running(|_| true);
        let over = running.filter_map(|action| {
            let (phase, why) = self.is_over(action)?;
            Some((action.intent.clone(), phase, why))
        });
        for (intent, phase, why) in over.collect::<Vec<_>>() {
            let text = format!(
                "{} of {} by {} ended: {why}",
                intent.kind.as_str(),
                intent.kind.subject(),
                intent.author
            );
            self.end_action(&intent.id, phase, &text);
            if phase == Phase::Aborted {
                self.report.changed.push(Reason {
                    code: ReasonCode::Aborted,
                    region: intent.kind.region().cloned(),
                    text,
                    evidence: vec![],
                    until: None,
                });
            }
        }
    }

    /// How a running action ended without being told, and why; none while it goes on.
    fn is_over(&self, action: &Action) -> Option<(Phase, String)> {
        match &action.intent.kind {
            IntentKind::Failover { region, .. } | IntentKind::Switchover { region, .. } => {
                self.is_settled(region, RegionState::Evacuated, |it| {
                    matches!(it, RegionState::Draining(_))
                })
            }
            IntentKind::Restore { region, .. } => self.is_settled(region, RegionState::Serving, |it| {
                matches!(it, RegionState::Restoring(_))
            }),
            IntentKind::Rollout { version } => {
                let rollout = self.next.rollout.as_ref().filter(|it| it.action == action.intent.id);
                match rollout.map(|it| it.percent) {
                    None => Some((Phase::Aborted, format!("{version} is not rolled out any more"))),
                    Some(100..) => Some((Phase::Done, format!("all users are on {version}"))),
                    Some(_) => None,
                }
            }
            IntentKind::DrainEdge { edge } if !self.next.edges.contains_key(edge) => {
                Some((Phase::Aborted, format!("there is no edge {edge} any more")))
            }
            IntentKind::DrainStack { stack } if !has_stack(self.input, stack) => {
                Some((Phase::Aborted, format!("there is no stack {stack} any more")))
            }
            _ => None,
        }
    }

    /// Whether a region is at the end of a move, or where the move cannot go on.
    fn is_settled(
        &self,
        region: &RegionId,
        end: RegionState,
        goes_on: impl Fn(RegionState) -> bool,
    ) -> Option<(Phase, String)> {
        if !primaries(self.input).contains(region) {
            let what = match self.next.regions.contains_key(region) {
                true => "is a backup now",
                false => "is gone from the topology",
            };
            return Some((Phase::Aborted, format!("{region} {what}")));
        }
        let state = self.next.regions.get(region)?.state;
        match state {
            state if goes_on(state) => None,
            state if state == end => Some((Phase::Done, format!("{region} is {state}"))),
            state => Some((Phase::Aborted, format!("{region} is {state} now"))),
        }
    }

    /// The store may have forgotten the action of a rollout that nodes still have, or have ended it in a plan that they
    /// refused. Without one nothing could go on, be judged or be aborted.
    fn revive_rollout(&mut self) {
        let Some(rollout) = self.next.rollout.clone().filter(|it| it.percent < 100) else {
            return;
        };
        let text = format!("{} goes on at {} %, as nodes have it", rollout.version, rollout.percent);
        let kind = IntentKind::Rollout {
            version: rollout.version,
        };
        let known = self
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
            created_at: self.now,
            expires_at: self.now,
        };
        let revived = Action {
            intent: known.as_ref().map_or(intent, |it| it.intent.clone()),
            phase: Phase::Running,
            owner: self.input.epoch,
            changed_at: self.now,
            approved_by: known.as_ref().and_then(|it| it.approved_by.clone()),
            shown: known.map(|it| it.shown).unwrap_or_default(),
            text,
        };
        self.memory.actions.insert(rollout.action, revived);
    }
}
