//! What becomes of one primary: it fails over, drains, stays away, returns.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use topology::{Intent, IntentKind, Moment, Reason, ReasonCode, RegionId, RegionState, Share};
use verdict::Health;

use crate::{
    Action, Penalty, Phase,
    actions::{Arrivals, PLANNER},
    believed::is_unseen,
    capacity::{Headroom, Placed, percent_by_rate, shrink},
    plan::{Ordered, Planner, describe, drain_step_end, home, restore_step_end},
};

impl Planner<'_> {
    /// One primary by its state and its health.
    pub(crate) fn decide(&mut self, region: &RegionId) {
        let Some(planned) = self.next.regions.get(region).cloned() else {
            return;
        };
        if self.moved.contains(region) {
            return;
        }
        let (health, failing) = (self.health(region), self.is_failing(region));
        match (planned.state, health) {
            (RegionState::Serving, Health::Down) if failing => self.fail_over(region),
            (RegionState::Serving, Health::Down) => {
                let text = format!("not moved: {}", self.summary(region));
                self.wait(ReasonCode::TriggerPending, region, text, None);
            }
            (RegionState::Serving, _) if is_unseen(self.seen(region)) => {
                let code = if self.is_stale(region) {
                    ReasonCode::StaleSamples
                } else {
                    ReasonCode::NoData
                };
                let text = self.summary(region);
                self.wait(code, region, text, None);
            }
            (RegionState::Serving, Health::Suspect) => {
                let text = self.summary(region);
                self.wait(ReasonCode::TriggerPending, region, text, None);
            }
            (RegionState::Serving, _) => {}
            (RegionState::Restoring(_), Health::Down) if failing => {
                // Not a new evacuation but the end of an attempt to lift one: of the limits only the gate applies.
                if !self.is_step_gated(region) {
                    let text = format!("it failed again while returning: {}", self.summary(region));
                    // Where it cannot be left, the restore is not over: it goes on when the region is well again.
                    match self.evacuate(region, ReasonCode::RestoreAborted, &text) {
                        Ok(_) => self.end_moves(region, Phase::Aborted, &text),
                        Err(refusal) => self.report.refused.push(refusal),
                    }
                }
            }
            (RegionState::Restoring(percent), _) => self.continue_restore(region, percent),
            (RegionState::Draining(percent), _) => self.continue_drain(region, percent),
            (RegionState::Evacuated, _) => {
                self.offer_restore(region);
                self.offer_promotion(region);
            }
        }
    }

    /// An automatic failover: only if every safety rule agrees.
    fn fail_over(&mut self, region: &RegionId) {
        if self.is_gated(region) {
            return;
        }
        let policy = &self.input.policy.failover;
        let regions = self.input.topology.regions.keys();
        let well = regions.filter(|it| matches!(self.health(it), Health::Healthy | Health::Degraded));
        let well = well.count();
        let text = match well {
            0 => "no region looks healthy, so our own view may be broken and nothing moves; check the network of the vantages with `meridian status`, or order a move with `meridian failover`".to_owned(),
            well => format!("{well} regions look healthy"),
        };
        if !self.check(ReasonCode::EverythingLooksDead, region, well > 0, text.clone()) {
            return self.refuse(ReasonCode::EverythingLooksDead, region, text);
        }
        let group = self.correlated.get(region).filter(|_| policy.correlated_hold);
        let text = match group {
            None => "no other primary turned bad with it by the word of the same vantages".to_owned(),
            Some(group) => {
                let names: Vec<&str> = group.iter().map(RegionId::as_str).collect();
                let names = names.join(" and ");
                format!(
                    "{names} turned bad together, so the evidence may be at fault and nothing moves; `meridian failover` moves one of them"
                )
            }
        };
        let alone = group.is_none();
        if !self.check(ReasonCode::CorrelatedEvidence, region, alone, text.clone()) {
            return self.refuse(ReasonCode::CorrelatedEvidence, region, text);
        }
        let (others, limit) = (self.bad_or_moving(region), policy.automatic_max as usize);
        let text = match others.len() {
            0 if limit == 0 => {
                format!("the policy lets automation leave no region; `meridian failover {region}` asks for it")
            }
            0 => "no other region that automation left is bad, and none is moving".to_owned(),
            _ => format!(
                "{}; automation leaves a further region only while fewer than {limit} are bad or moving; `meridian failover \
                 {region}` asks for it all the same",
                others.join(" and ")
            ),
        };
        if !self.check(ReasonCode::EvacuationLimit, region, others.len() < limit, text.clone()) {
            return self.refuse(ReasonCode::EvacuationLimit, region, text);
        }
        if let Err(refusal) = self.leaves_enough(region) {
            return self.report.refused.push(refusal);
        }
        let text = self.summary(region);
        match self.evacuate(region, ReasonCode::Failover, &text) {
            Ok(phase) => {
                let id = format!("auto-{}-{}", self.next.generation + 1, region);
                let intent = Intent {
                    id: id.clone(),
                    kind: IntentKind::Failover {
                        region: region.clone(),
                        promote: false,
                        accept_loss: None,
                        force: false,
                    },
                    author: PLANNER.to_owned(),
                    reason: text.clone(),
                    created_at: self.now,
                    expires_at: self.now,
                };
                let action = Action {
                    intent,
                    phase,
                    owner: self.input.epoch,
                    changed_at: self.now,
                    approved_by: None,
                    text,
                    shown: BTreeMap::new(),
                };
                self.memory.actions.insert(id, action);
            }
            Err(refusal) => self.report.refused.push(refusal),
        }
    }

    /// Moves a primary's sessions to its backups: all of them, or as many as find a place now.
    pub(crate) fn evacuate(&mut self, region: &RegionId, code: ReasonCode, why: &str) -> Result<Phase, Reason> {
        let placed = self.place_away(region, 100)?;
        self.penalise(region);
        self.note_purpose(region);
        let against = match self.by {
            Ordered::Yes => self.speaks_against(region, &placed.shares),
            Ordered::No => Vec::new(),
        };
        let why = match against.is_empty() {
            true => why.to_owned(),
            false => format!("{why}; against it speaks that {}", against.join(", and that ")),
        };
        Ok(self.leave(region, placed, code, &why))
    }

    /// Remembers whether a region that is left now was emptied on purpose: by a person, while it was well.
    pub(crate) fn note_purpose(&mut self, region: &RegionId) {
        let is_well = !matches!(self.last_known(region), Some(Health::Down | Health::Suspect));
        if self.by == Ordered::Yes && is_well {
            self.memory.on_purpose.insert(region.clone());
        } else {
            self.memory.on_purpose.remove(region);
        }
    }

    /// What is known against an order to leave a region for these others: whoever orders it may know better, and is told.
    fn speaks_against(&self, region: &RegionId, shares: &[Share]) -> Vec<String> {
        let mut against = Vec::new();
        if self.seen(region) == Health::Healthy {
            against.push(format!("{region} is healthy"));
        }
        for target in shares.iter().map(|share| &share.region).filter(|it| *it != region) {
            let seen = self.seen(target);
            let known = self.memory.believed.get(target);
            let since = known.and_then(|it| it.unseen_since);
            match (seen, known) {
                (Health::Healthy | Health::Degraded, _) => {}
                (Health::NoData | Health::Blind, Some(known)) => {
                    let since = since.map_or_else(String::new, |since| format!(" since {since}"));
                    against.push(format!("nobody sees {target}{since}, when it was {}", known.health));
                }
                (Health::NoData | Health::Blind, None) => against.push(format!("nobody has seen {target} yet")),
                (seen, _) => against.push(format!("{target} is {seen}: {}", self.summary(target))),
            }
        }
        against
    }

    /// Carries out what was placed: the region is left, or partly left.
    fn leave(&mut self, region: &RegionId, placed: Placed, code: ReasonCode, why: &str) -> Phase {
        let Placed { mut shares, left } = placed;
        let text = format!("{why}; its sessions go to {}", describe(&shares));
        if left == 0 {
            self.set(region, RegionState::Evacuated, shares);
            self.change(code, region, text);
            return Phase::Done;
        }
        let text = format!("{text}; {left} % find no place yet and stay");
        shares.insert(
            0,
            Share {
                region: region.clone(),
                percent: left,
            },
        );
        self.set(region, RegionState::Draining(left), shares);
        self.change(code, region, text);
        Phase::Running
    }

    /// The next part of an emergency that found no place for all at once.
    fn continue_emergency(&mut self, region: &RegionId, percent: u8, end: Moment) {
        // Who ordered it by hand knows what health does not show; automation knows nothing else.
        let is_bad = self.health(region) == Health::Down && self.is_failing(region);
        if !is_bad && !self.is_ordered(region) {
            return self.stop_leaving(region, percent);
        }
        if self.now < end {
            let text = format!("{percent} % of its sessions wait for their turn");
            return self.wait(ReasonCode::PartlyMoved, region, text, Some(end));
        }
        // What a person ordered goes on as it began: by what was last known, if nobody sees anything now.
        if self.is_ordered(region) {
            (self.by, self.forced) = (Ordered::Yes, self.is_forced(region));
        }
        let placed = self.place_away(region, 100);
        (self.by, self.forced) = (Ordered::No, false);
        match placed {
            Ok(placed) if placed.left < percent => {
                if self.is_step_gated(region) {
                    return;
                }
                let phase = self.leave(region, placed, ReasonCode::DrainStep, "the next part leaves");
                if phase == Phase::Done {
                    self.end_moves(region, Phase::Done, "all its sessions left");
                }
            }
            Ok(_) => {
                let text = format!("{percent} % of its sessions find no place in its backups and stay");
                self.wait(ReasonCode::PartlyMoved, region, text, None);
            }
            Err(refusal) => self.partly_moved(percent, refusal),
        }
    }

    /// Automation leaves what is down, and nothing else: what is left of a region that is not stays.
    fn stop_leaving(&mut self, region: &RegionId, percent: u8) {
        let health = self.health(region);
        let (code, text) = match health {
            Health::Healthy => (
                ReasonCode::RestoreReady,
                format!(
                    "it is healthy again with {percent} % of its sessions left; `meridian restore {region}` brings the \
                     others back"
                ),
            ),
            Health::Degraded => (
                ReasonCode::RestoreReady,
                format!(
                    "it is degraded with {percent} % of its sessions left: {}; once it is healthy, `meridian restore \
                     {region}` brings the others back",
                    self.summary(region)
                ),
            ),
            Health::Down | Health::Suspect | Health::NoData | Health::Blind => (
                ReasonCode::PartlyMoved,
                format!(
                    "{percent} % of its sessions stay while it is {health}: {}",
                    self.summary(region)
                ),
            ),
        };
        self.wait(code, region, text, None);
    }

    /// The next part of a planned drain, or of an emergency.
    fn continue_drain(&mut self, region: &RegionId, percent: u8) {
        let Some(since) = self.next.regions.get(region).map(|it| it.since) else {
            return;
        };
        let end = drain_step_end(self.input, region, since);
        let planned = match self.memory.moving(region).map(|action| &action.intent.kind) {
            Some(IntentKind::Switchover { promote, .. }) => Some(*promote),
            _ => None,
        };
        let health = self.health(region);
        let Some(promote) = planned else {
            return self.continue_emergency(region, percent, end);
        };
        if health == Health::Down {
            if self.is_step_gated(region) {
                return;
            }
            // What was planned has become an emergency, which its operator ordered in effect.
            let text = format!("it failed while it was drained: {}", self.summary(region));
            return match self.evacuate(region, ReasonCode::Failover, &text) {
                Ok(Phase::Done) => self.end_moves(region, Phase::Done, &text),
                // The rest follows as that of any region that is down.
                Ok(_) => self.end_moves(region, Phase::Aborted, &text),
                Err(refusal) => self.report.refused.push(refusal),
            };
        }
        let targets = self.next.routes.get(region).into_iter().flatten();
        let unfit = targets
            .map(|share| share.region.clone())
            .find(|target| target != region && !matches!(self.health(target), Health::Healthy | Health::Degraded));
        if let Some(target) = unfit {
            let (it_is, what) = (self.health(&target), self.summary(&target));
            if it_is == Health::Down {
                if self.is_step_gated(region) {
                    return;
                }
                let text = format!("drain stopped, because {target} is down: {what}; it serves all its sessions again");
                self.end_moves(region, Phase::Aborted, &text);
                self.set(region, RegionState::Serving, vec![home(region)]);
                return self.change_because_of(&target, ReasonCode::Aborted, region, text);
            }
            let text = format!("held at {percent} %: {target} is {it_is}, {what}");
            return self.wait(ReasonCode::DrainHold, region, text, None);
        }
        if self.now < end {
            let text = format!("held at {percent} % until {end}");
            return self.wait(ReasonCode::DrainHold, region, text, Some(end));
        }
        let steps = &self.input.policy.drain.steps;
        let left = steps.iter().copied().find(|step| *step < percent).unwrap_or(0);
        match self.place_away(region, 100 - left) {
            Ok(placed) if left + placed.left < percent => {
                if self.is_step_gated(region) {
                    return;
                }
                self.drained(region, left, placed, "the last step held");
            }
            Ok(_) => {
                let text = format!("{percent} % of its sessions find no place in its backups and stay");
                return self.wait(ReasonCode::PartlyMoved, region, text, None);
            }
            Err(refusal) => return self.partly_moved(percent, refusal),
        }
        if self.next.regions.get(region).map(|it| it.state) == Some(RegionState::Evacuated) {
            self.end_moves(region, Phase::Done, "all its sessions left");
            self.follow_with_data(region, promote);
        }
    }

    /// What stays because it finds no place waits for one.
    fn partly_moved(&mut self, percent: u8, refusal: Reason) {
        if refusal.code != ReasonCode::NoHeadroom {
            return self.report.refused.push(refusal);
        }
        let text = format!("{percent} % of them stay: {}", refusal.text);
        self.report.waiting.push(Reason {
            code: ReasonCode::PartlyMoved,
            text,
            ..refusal
        });
    }

    /// A planned step: at most `left` percent of the sessions stay.
    pub(crate) fn drain_to(&mut self, region: &RegionId, left: u8, why: &str) -> Result<(), Reason> {
        let placed = self.place_away(region, 100 - left)?;
        self.note_purpose(region);
        self.drained(region, left, placed, why);
        Ok(())
    }

    fn drained(&mut self, region: &RegionId, left: u8, placed: Placed, why: &str) {
        let Placed { mut shares, left: rest } = placed;
        let stay = left + rest;
        let state = if stay == 0 {
            RegionState::Evacuated
        } else {
            RegionState::Draining(stay)
        };
        let text = match stay {
            0 => format!("{why}; its sessions go to {}", describe(&shares)),
            stay => format!(
                "{why}; {stay} % of its sessions stay, the others go to {}",
                describe(&shares)
            ),
        };
        if stay > 0 {
            shares.insert(
                0,
                Share {
                    region: region.clone(),
                    percent: stay,
                },
            );
        }
        self.set(region, state, shares);
        self.change(ReasonCode::DrainStep, region, text);
    }

    fn offer_restore(&mut self, region: &RegionId) {
        if self.health(region) != Health::Healthy {
            return;
        }
        match self.hold_down(region) {
            Some(held) => self.report.waiting.push(held),
            None => {
                let text = format!("it is healthy; `meridian restore {region}` brings it back in steps");
                self.wait(ReasonCode::RestoreReady, region, text, None);
            }
        }
    }

    /// Begins an operator's restore.
    pub(crate) fn begin_restore(
        &mut self,
        region: &RegionId,
        why: &str,
        accepted: Option<Duration>,
    ) -> Result<(), Reason> {
        self.must_be_healthy(region, why)?;
        if let Some(held) = self.hold_down(region) {
            return Err(held);
        }
        self.may_come_home(region, accepted)?;
        self.penalise(region);
        let at_home = match self.next.regions.get(region).map(|it| it.state) {
            Some(RegionState::Draining(percent)) => percent,
            _ => 0,
        };
        let steps = &self.input.policy.restore.steps;
        let first = steps.iter().copied().find(|step| *step > at_home).unwrap_or(100);
        self.restore_to(region, first, why, accepted);
        Ok(())
    }

    pub(crate) fn must_be_healthy(&mut self, region: &RegionId, why: &str) -> Result<(), Reason> {
        let health = self.health(region);
        let text = format!("it is {health}: {}", self.summary(region));
        if self.check(ReasonCode::NotHealthy, region, health == Health::Healthy, text.clone()) {
            return Ok(());
        }
        Err(self.reason(ReasonCode::NotHealthy, region, format!("{why}; but {text}"), vec![]))
    }

    /// Anti-flap: why a region that moved too often may not return yet.
    fn hold_down(&mut self, region: &RegionId) -> Option<Reason> {
        let policy = &self.input.policy.damping;
        let penalty = self.memory.penalties.get(region).copied();
        let (until, value) = penalty.map_or((None, 0), |it| (it.until(policy, self.now), it.value(policy, self.now)));
        let text = match until {
            Some(until) => format!(
                "it moved too often (penalty {value}, {} lifts it); it stays away until {until}, or `meridian ack {region}`",
                policy.reuse
            ),
            None => format!("penalty {value}, held from {}", policy.suppress),
        };
        if self.check(ReasonCode::HoldDown, region, until.is_none(), text.clone()) {
            return None;
        }
        Some(Reason {
            until,
            ..self.reason(ReasonCode::HoldDown, region, text, vec![])
        })
    }

    fn continue_restore(&mut self, region: &RegionId, percent: u8) {
        let Some(since) = self.next.regions.get(region).map(|it| it.since) else {
            return;
        };
        // A step goes on only by what is seen now: that of a tick without data waits for the next one.
        let health = self.seen(region);
        if health != Health::Healthy {
            let text = format!("held at {percent} %: it is {health}, {}", self.summary(region));
            return self.wait(ReasonCode::RestoreHold, region, text, None);
        }
        let end = restore_step_end(self.input, region, since);
        if self.now < end {
            let text = format!("held at {percent} % until {end}");
            return self.wait(ReasonCode::RestoreHold, region, text, Some(end));
        }
        if self.rate(region, region) == 0 {
            let text = format!("held at {percent} % while it accepts the connections of this step");
            return self.wait(ReasonCode::RestoreHold, region, text, None);
        }
        if self.is_step_gated(region) {
            return;
        }
        let restore = &self.input.policy.restore;
        let next = restore
            .steps
            .iter()
            .copied()
            .find(|step| *step > percent)
            .unwrap_or(100);
        let held = format!("healthy at {percent} % for {} s", restore.step_hold.as_secs_f64());
        let accepted = match self.memory.moving(region).map(|action| &action.intent.kind) {
            Some(IntentKind::Restore { accept_loss, .. }) => *accept_loss,
            _ => None,
        };
        self.restore_to(region, next, &held, accepted);
    }

    /// Brings sessions back until `percent` of them are at home, or as many as the region accepts connections from now. Where
    /// that is all of them its data follow, with at most `accepted` lost.
    pub(crate) fn restore_to(&mut self, region: &RegionId, percent: u8, why: &str, accepted: Option<Duration>) {
        let at_home = self.percent_at(region, region);
        // A return that was ordered begins, also while others are still coming.
        let percent = percent.min(at_home.saturating_add(self.rate(region, region).max(1)));
        if percent >= 100 {
            let text = format!("{why}; it serves all its sessions again");
            return self.restored(region, text, accepted);
        }
        // The sessions that stay away stay where they are; they move on only from a backup that is down.
        let away: Vec<Share> = self.next.routes.get(region).into_iter().flatten().cloned().collect();
        let away: Vec<Share> = away.into_iter().filter(|share| share.region != *region).collect();
        let all_up = away.iter().all(|share| self.health(&share.region) != Health::Down);
        let away = if all_up {
            Ok(shrink(&away, 100 - percent))
        } else {
            self.place_away(region, 100 - percent)
                .and_then(|placed| match placed.left {
                    0 => Ok(placed.shares),
                    left => {
                        let text = format!("its backups have no room for {left} % of its sessions");
                        Err(self.reason(ReasonCode::NoHeadroom, region, text, vec![]))
                    }
                })
        };
        match away {
            Ok(away) => {
                let mut shares = vec![Share {
                    region: region.clone(),
                    percent,
                }];
                shares.extend(away);
                let text = format!("{why}; it takes {percent} % of its sessions");
                self.set(region, RegionState::Restoring(percent), shares);
                self.change(ReasonCode::RestoreStep, region, text);
            }
            Err(refusal) => {
                // A healthy home beats backups that cannot hold the rest.
                let text = format!("{why}; all at once, because {}", refusal.text);
                self.restored(region, text, accepted);
            }
        }
    }

    fn restored(&mut self, region: &RegionId, text: String, accepted: Option<Duration>) {
        self.set(region, RegionState::Serving, vec![home(region)]);
        self.end_moves(region, Phase::Done, &text);
        self.change(ReasonCode::RestoreDone, region, text);
        // What its copy lacks may have grown since the return began. Sessions need not wait for that; the writer does, and
        // it is said below.
        if self.next.writers.contains_key(region) {
            let _ = self.bring_data_home(region, accepted);
        }
    }

    /// A backup that went down under the sessions it took, or can no longer hold them: they move on to the next fit one.
    pub(crate) fn repair_routes(&mut self) {
        self.guests_leave();
        let degrade = self.input.policy.failover.degrade_to_admit;
        let routes = self.next.routes.clone();
        for (primary, shares) in routes {
            let planned = Headroom::beside(&self.input.topology, &self.next.routes);
            let away = || shares.iter().map(|share| &share.region).filter(|it| **it != primary);
            // Where a person insisted on a place, what was known of it then is no news.
            let insisted = self.insisted_at(&primary);
            let is_news = |it: &RegionId| {
                let bad_since = self.memory.believed.get(it).and_then(|it| it.bad_since);
                insisted.is_none_or(|at| bad_since.is_some_and(|since| since.start() > at))
            };
            let dead = away().find(|it| self.is_dead(it) && is_news(it)).cloned();
            let crowded = away().find(|target| insisted.is_none() && planned.is_over(target, degrade));
            let crowded = crowded.cloned();
            if let Some(target) = dead {
                self.leave_dead_backup(&primary, &shares, &target);
            } else if let Some(target) = crowded {
                self.relieve_crowded_backup(&primary, &shares, &target);
            }
        }
    }

    /// When a person insisted, by force, on where the sessions of a region that is still away go.
    fn insisted_at(&self, primary: &RegionId) -> Option<Moment> {
        let since = self.next.regions.get(primary).map(|it| it.since);
        let by_force = |action: &&Action| {
            let is_forced =
                matches!(&action.intent.kind, IntentKind::Failover { region, force: true, .. } if region == primary);
            let is_last = action.phase == Phase::Done && since <= Some(action.changed_at);
            is_forced && (is_last || action.phase == Phase::Running)
        };
        let actions = self.memory.actions.values().filter(by_force);
        actions.map(|action| action.changed_at).max()
    }

    /// The sessions at a backup that is down move on to the next. Home comes last, though it may be well again: a return is for an
    /// operator to order, and only where no other region has room is it better than a dead one.
    fn leave_dead_backup(&mut self, primary: &RegionId, shares: &[Share], target: &RegionId) {
        let at_home = self.percent_at(primary, primary);
        let problem = format!("backup {target} is down: {}", self.summary(target));
        let (mut placed, refusal) = match self.place_away(primary, 100 - at_home) {
            Ok(placed) => (placed, None),
            Err(refusal) => {
                let shares = self.kept_away(primary, 100 - at_home);
                let left = 100 - at_home - total(&shares);
                (Placed { shares, left }, Some(refusal))
            }
        };
        let returning = self.takes_back(primary).min(placed.left);
        placed.left -= returning;
        let stays = at_home + returning;
        if let Some(refusal) = refusal.filter(|_| returning == 0) {
            let text = format!("{problem}; {}", refusal.text);
            let evidence = self.reason(refusal.code, target, String::new(), vec![]).evidence;
            return self.report.refused.push(Reason {
                text,
                evidence,
                ..refusal
            });
        }
        let mut repaired = Vec::new();
        if stays > 0 {
            let share = Share {
                region: primary.clone(),
                percent: stays,
            };
            repaired.push(share);
        }
        repaired.extend(placed.shares);
        let mut text = format!("{problem}; its sessions go to {}", describe(&repaired));
        let mut left = placed.left;
        if left > 0 {
            // Nowhere is better than where they are for these; edges pass a dead region over.
            text = format!("{text}; {left} % find no place yet");
            let mut were: Vec<&Share> = shares.iter().filter(|it| it.region != *primary).collect();
            were.sort_by_key(|it| !self.is_dead(&it.region));
            for was in were {
                let stay = left.min(was.percent.saturating_sub(total_at(&repaired, &was.region)));
                left -= stay;
                match repaired.iter_mut().find(|it| it.region == was.region) {
                    Some(share) => share.percent += stay,
                    None if stay > 0 => repaired.push(Share {
                        region: was.region.clone(),
                        percent: stay,
                    }),
                    None => {}
                }
            }
        }
        if repaired == shares || self.is_gated(primary) {
            return;
        }
        self.count_arrivals(primary, &repaired);
        self.next.routes.insert(primary.clone(), repaired);
        self.change_because_of(target, ReasonCode::Failover, primary, text.clone());
        if stays > at_home {
            self.stay(primary, stays, &text);
        }
    }

    /// Percent of a primary's own sessions that it can take back at once, because it is well and not at its limits.
    fn takes_back(&self, primary: &RegionId) -> u8 {
        if !matches!(self.health(primary), Health::Healthy | Health::Degraded) {
            return 0;
        }
        let degrade = self.input.policy.failover.degrade_to_admit;
        let headroom = Headroom::beside(&self.input.topology, &self.next.routes);
        headroom
            .percent(primary, primary, degrade)
            .min(self.rate(primary, primary))
    }

    /// A backup that holds more than it has room for gives some of it to others.
    fn relieve_crowded_backup(&mut self, primary: &RegionId, shares: &[Share], target: &RegionId) {
        let problem = format!("backup {target} is over its capacity");
        let at_home = self.percent_at(primary, primary);
        let placed = match self.place_away(primary, 100 - at_home) {
            Ok(placed) if placed.left == 0 => placed,
            Ok(placed) => {
                let text = format!("{problem}, and {} % of its sessions find no other place", placed.left);
                return self.refuse(ReasonCode::NoHeadroom, primary, text);
            }
            Err(refusal) => return self.report.refused.push(refusal),
        };
        let text = format!("{problem}; its sessions go to {}", describe(&placed.shares));
        let mut repaired: Vec<Share> = shares.iter().filter(|it| it.region == *primary).cloned().collect();
        repaired.extend(placed.shares);
        if repaired != shares && !self.is_gated(primary) {
            self.count_arrivals(primary, &repaired);
            self.next.routes.insert(primary.clone(), repaired);
            self.change_because_of(target, ReasonCode::Failover, primary, text);
        }
    }

    /// Sessions of others at a region that was left. Only a primary is left, and none is a backup of another; but one that
    /// was a backup until lately may still have guests. That they move on is part of leaving it, so nothing gates it.
    pub(crate) fn guests_leave(&mut self) {
        let left = self
            .next
            .regions
            .iter()
            .filter(|(_, it)| it.state == RegionState::Evacuated);
        let left: BTreeSet<RegionId> = left.map(|(id, _)| id.clone()).collect();
        let is_guest = |shares: &Vec<Share>| shares.iter().any(|share| left.contains(&share.region));
        let guests = self.next.routes.iter().filter(|(_, shares)| is_guest(shares));
        for primary in guests.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            let why = "a region that took its sessions is left";
            self.place_again(&primary, &left, ReasonCode::Failover, why);
        }
    }

    fn is_dead(&self, target: &RegionId) -> bool {
        self.health(target) == Health::Down && self.is_failing(target)
    }

    /// Places for `percent` of a primary's sessions in its fit backups, in their order, as far as capacity and connection
    /// rates allow. What is away already stays where it is, unless that is down or over its capacity. An error when no
    /// further session finds a place.
    pub(crate) fn place_away(&mut self, region: &RegionId, percent: u8) -> Result<Placed, Reason> {
        let input = self.input;
        let degrade = input.policy.failover.degrade_to_admit;
        let kept = self.kept_away(region, percent);
        let to_move = percent - total(&kept);
        if to_move == 0 {
            return Ok(Placed { shares: kept, left: 0 });
        }
        let backups = input.topology.backups_of(region);
        let mut fit: Vec<&RegionId> = backups.iter().filter(|backup| self.is_fit(backup)).collect();
        let unfit: Vec<String> = backups
            .iter()
            .filter(|it| !self.is_fit(it))
            .map(|it| format!("{it} is {}", self.seen(it)))
            .collect();
        let text = match fit.len() {
            0 if backups.is_empty() => "it has no backup".to_owned(),
            0 => format!("none of its backups is fit to take its sessions: {}", unfit.join(", ")),
            fit => format!("{fit} of its {} backups are fit to take its sessions", backups.len()),
        };
        if !self.check(ReasonCode::NoFitBackup, region, !fit.is_empty(), text.clone()) {
            return Err(self.reason(ReasonCode::NoFitBackup, region, text, unfit));
        }
        if fit.is_empty() {
            // Only by force: whoever gave the order says that what is believed of them is wrong.
            fit = backups.iter().filter(|it| self.is_serving(it)).collect();
        }
        let mut routes = self.next.routes.clone();
        routes.insert(region.clone(), kept.clone());
        let kept_at = |target: &RegionId| total_at(&kept, target);
        let mut placed = Headroom::beside(&input.topology, &routes).place(region, to_move, &fit, degrade, |target| {
            let was_there = self.percent_at(region, target).saturating_sub(kept_at(target));
            was_there.saturating_add(self.rate(region, target))
        });
        let found = to_move - placed.left;
        let text = match found {
            0 => {
                let headroom = Headroom::beside(&input.topology, &routes);
                let full = fit
                    .iter()
                    .map(|target| match headroom.percent(region, target, degrade) {
                        0 => format!("{target} has no room left"),
                        _ => format!("{target} accepts no more connections for now"),
                    });
                let full: Vec<String> = full.chain(unfit.iter().cloned()).collect();
                format!("its sessions find no place in its backups: {}", full.join(", "))
            }
            found => format!("its backups can take {found} of the {to_move} % of its sessions to move now"),
        };
        let passed = self.check(ReasonCode::NoHeadroom, region, placed.left == 0, text.clone());
        if let (true, Some(first), 1..) = (passed && self.forced, fit.first(), placed.left) {
            // By force: beyond what it has room for, and faster than it accepts connections.
            let rest = Share {
                region: (*first).clone(),
                percent: placed.left,
            };
            placed.shares.push(rest);
            placed.left = 0;
        }
        if to_move == placed.left {
            return Err(self.reason(ReasonCode::NoHeadroom, region, text, unfit));
        }
        // In the order of the backups, which is the order they overflow in; then what was kept elsewhere.
        let elsewhere = kept
            .iter()
            .map(|share| &share.region)
            .filter(|it| !backups.contains(it));
        let shares = backups.iter().chain(elsewhere).map(|target| Share {
            region: target.clone(),
            percent: kept_at(target) + total_at(&placed.shares, target),
        });
        Ok(Placed {
            shares: shares.filter(|share| share.percent > 0).collect(),
            left: placed.left,
        })
    }

    /// Of at most `percent` of a primary's sessions that are away already, those that stay where they are.
    fn kept_away(&self, region: &RegionId, percent: u8) -> Vec<Share> {
        let degrade = self.input.policy.failover.degrade_to_admit;
        let shares = self.next.routes.get(region).into_iter().flatten();
        let serves = |target: &RegionId| {
            let planned = self.next.regions.get(target);
            planned.is_some_and(|it| it.state == RegionState::Serving) && self.health(target) != Health::Down
        };
        let away = shares.filter(|share| share.region != *region && serves(&share.region));
        let kept = shrink(&away.cloned().collect::<Vec<_>>(), percent);
        let mut routes = self.next.routes.clone();
        routes.insert(region.clone(), kept.clone());
        let planned = Headroom::beside(&self.input.topology, &routes);
        let fits = |share: &Share| !planned.is_over(&share.region, degrade);
        kept.into_iter().filter(fits).collect()
    }

    pub(crate) fn percent_at(&self, primary: &RegionId, target: &RegionId) -> u8 {
        let shares = self.next.routes.get(primary);
        shares.map_or(0, |shares| total_at(shares, target))
    }

    fn rate(&self, primary: &RegionId, target: &RegionId) -> u8 {
        let window = self.input.policy.failover.reconnect_window;
        percent_by_rate(&self.input.topology, &self.memory, primary, target, window, self.now)
    }

    fn is_serving(&self, backup: &RegionId) -> bool {
        let planned = self.next.regions.get(backup);
        planned.is_some_and(|it| it.state == RegionState::Serving)
    }

    /// Whether a backup may be sent sessions. One bad tick does not disqualify it: no trigger has fired, and everybody would
    /// cross an ocean for a blip; if it does fail, they move on in the next tick. An order goes by what was last known, and
    /// by the word of whoever gives it where nothing is.
    fn is_fit(&self, backup: &RegionId) -> bool {
        let by_order = self.by == Ordered::Yes;
        self.is_serving(backup)
            && match self.health_for_this(backup) {
                Some(Health::Healthy | Health::Degraded) => true,
                Some(Health::Suspect) => by_order || self.is_blip(backup),
                Some(Health::Down | Health::NoData | Health::Blind) => false,
                None => by_order,
            }
    }

    /// Whether any of a primary's sessions would find a place in its backups now, connection rates aside.
    pub(crate) fn has_place(&self, region: &RegionId) -> bool {
        let degrade = self.input.policy.failover.degrade_to_admit;
        let headroom = Headroom::beside(&self.input.topology, &self.next.routes);
        let mut backups = self.input.topology.backups_of(region).iter();
        backups.any(|backup| self.is_fit(backup) && headroom.percent(region, backup, degrade) > 0)
    }

    pub(crate) fn set(&mut self, region: &RegionId, state: RegionState, shares: Vec<Share>) {
        self.count_arrivals(region, &shares);
        if let Some(plan) = self.next.regions.get_mut(region) {
            (plan.state, plan.since) = (state, self.now);
        }
        self.moved.insert(region.clone());
        self.next.routes.insert(region.clone(), shares);
    }

    /// Remembers how many sessions a move sends to each region that limits its connection rate.
    pub(crate) fn count_arrivals(&mut self, primary: &RegionId, shares: &[Share]) {
        let window = self.input.policy.failover.reconnect_window;
        let demand = self.input.topology.regions.get(primary).map_or(0, |it| it.sessions_max);
        for share in shares {
            let limited = self.input.topology.regions.get(&share.region);
            let more = share.percent.saturating_sub(self.percent_at(primary, &share.region));
            let Some(per_second) = limited.and_then(|it| it.connects_per_s_max).filter(|_| more > 0) else {
                continue;
            };
            let now = self.now;
            let fresh = || Arrivals {
                since: now,
                sessions: 0,
            };
            let arrivals = self.memory.arrivals.entry(share.region.clone()).or_insert_with(fresh);
            if arrivals.end(per_second, window) <= now {
                *arrivals = fresh();
            }
            // Counted from the last of them: two windows that meet would let twice as many come within one.
            arrivals.since = now;
            let more = (u64::from(demand) * u64::from(more)).div_ceil(100) as u32;
            arrivals.sessions = arrivals.sessions.saturating_add(more);
        }
    }

    fn penalise(&mut self, region: &RegionId) {
        let now = self.now;
        let penalty = self.memory.penalties.entry(region.clone());
        penalty
            .or_insert_with(|| Penalty::none(now))
            .add(&self.input.policy.damping, now);
    }

    /// Ends whatever action moves the region.
    pub(crate) fn end_moves(&mut self, region: &RegionId, phase: Phase, text: &str) {
        let ids: Vec<String> = self
            .memory
            .running(|kind| kind.region() == Some(region))
            .map(|action| action.intent.id.clone())
            .collect();
        for id in ids {
            self.end_action(&id, phase, text);
        }
    }
}

pub(crate) fn total(shares: &[Share]) -> u8 {
    shares.iter().map(|share| share.percent).sum()
}

pub(crate) fn total_at(shares: &[Share], target: &RegionId) -> u8 {
    let there = shares.iter().filter(|share| share.region == *target);
    there.map(|share| share.percent).sum()
}
