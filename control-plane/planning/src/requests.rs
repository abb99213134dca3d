//! What operators ask for: carried out at once, kept waiting for a second person, or refused with the rule that said no.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::take,
};

use topology::{
    EdgeState, Intent, IntentKind, Reason, ReasonCode, RegionId, RegionState, Rollout, Share, Stack, policy::TwoPerson,
};
use verdict::Health;

use crate::{
    Action, PLANNER, Phase,
    actions::{RECOVERED, STANDING_MAX},
    data::risk,
    plan::{Ordered, Planner, approval_end},
    regions::{total, total_at},
};

/// What whoever approves a request was shown, as in [`Action::shown`].
type Shown = BTreeMap<String, String>;

impl Planner<'_> {
    /// Carries out the request of this decision, unless its token was used before.
    pub(crate) fn take_request(&mut self) {
        let Some(intent) = self.input.request.clone() else {
            return;
        };
        if self.memory.actions.contains_key(&intent.id) {
            return;
        }
        if person(&intent.author) == PLANNER {
            let text = format!(
                "\"{}\" is who acts without being asked; give your own name",
                intent.author
            );
            let refusal = self.about(&intent.kind, ReasonCode::BadRequest, text);
            return self.report.refused.push(refusal);
        }
        let may_stay = if intent.kind.stands() {
            self.has_room_for_one_more(&intent.kind)
        } else {
            Ok(())
        };
        match may_stay.and_then(|()| self.carry_out(&intent, None)) {
            Ok(phase) => self.record(intent, phase, None),
            Err(reason) if reason.code == ReasonCode::NeedsApproval => {
                if let Err(refusal) = self.has_room_for_one_more(&intent.kind) {
                    return self.report.refused.push(refusal);
                }
                let until = Some(approval_end(&intent));
                self.report.waiting.push(Reason { until, ..reason });
                self.record(intent, Phase::AwaitingApproval, None);
            }
            Err(refusal) => self.report.refused.push(refusal),
        }
    }

    /// What stands or waits is remembered until its time is over, so there is a limit to it. It never keeps anybody from
    /// moving a region, or from ending what stands.
    fn has_room_for_one_more(&self, kind: &IntentKind) -> Result<(), Reason> {
        let stays = |action: &&Action| match action.phase {
            Phase::AwaitingApproval => true,
            Phase::Running => action.intent.kind.stands(),
            _ => false,
        };
        if self.memory.actions.values().filter(stays).count() < STANDING_MAX {
            return Ok(());
        }
        let text = format!(
            "{STANDING_MAX} orders stand or wait for approval, which is the most; `meridian abort` ends one, `meridian \
             unfreeze` every freeze"
        );
        Err(self.about(kind, ReasonCode::BadRequest, text))
    }

    fn record(&mut self, intent: Intent, phase: Phase, approved_by: Option<String>) {
        if phase == Phase::Running {
            self.replace_recovered(&intent);
        }
        let said = self.report.changed.iter().chain(&self.report.waiting).last();
        let action = Action {
            text: said.map(|reason| reason.text.clone()).unwrap_or_default(),
            intent,
            phase,
            owner: self.input.epoch,
            changed_at: self.now,
            approved_by,
            shown: take(&mut self.shown),
        };
        self.memory.actions.insert(action.intent.id.clone(), action);
    }

    /// Whoever orders again what only a recovered plan showed says until when: then that is what counts.
    fn replace_recovered(&mut self, intent: &Intent) {
        let same = self.memory.running(|kind| *kind == intent.kind);
        let recovered = same.filter(|action| action.intent.author == RECOVERED && action.intent.id != intent.id);
        let ids: Vec<String> = recovered.map(|action| action.intent.id.clone()).collect();
        for id in ids {
            self.end_action(&id, Phase::Done, &format!("{} ordered it anew", intent.author));
        }
    }

    /// All or nothing: what is refused half-way leaves no trace but the refusal. Whether a second person is needed is asked
    /// last, so that nobody is asked to approve what is refused anyway; and again of whoever approves, if the order would
    /// do more by now than they were shown.
    fn carry_out(&mut self, intent: &Intent, approved: Option<&Shown>) -> Result<Phase, Reason> {
        let before = (self.next.clone(), self.memory.clone(), self.moved.clone());
        let said = self.report.changed.len();
        let force = matches!(intent.kind, IntentKind::Failover { force: true, .. });
        let outer = (self.by, self.forced);
        (self.by, self.forced) = (Ordered::Yes, force);
        let outcome = self.try_to(intent);
        (self.by, self.forced) = outer;
        let (mut asks, passed) = (take(&mut self.asks), take(&mut self.passed));
        if self.needs_two(TwoPerson::Override) {
            let by_force = passed.iter().map(|(rule, text)| {
                let because = format!("it passes the rule {rule} by force: {text}");
                (format!("{} {rule}", TwoPerson::Override), because)
            });
            asks.extend(by_force);
        }
        let outcome = outcome.and_then(|phase| {
            let mut shown = asks.clone();
            if !asks.is_empty() {
                shown.extend(self.effects(&before.0.routes));
            }
            let is_new = |key: &&String| approved.is_none_or(|it| !it.contains_key(*key));
            let new: Vec<&str> = shown.keys().filter(is_new).map(|key| shown[key].as_str()).collect();
            if new.is_empty() {
                return Ok(phase);
            }
            let (kind, author, id) = (intent.kind.as_str(), &intent.author, &intent.id);
            let text = match approved {
                None => {
                    let because: Vec<&str> = asks.values().map(String::as_str).collect();
                    let because = because.join("; and because ");
                    format!("{kind} by {author} needs a second person, because {because}: `meridian approve {id}`")
                }
                Some(_) => format!(
                    "{kind} by {author} is not done: since it was shown, this changed: {}; whoever agrees to that as well says \
                     so with `meridian approve {id}`",
                    new.join("; ")
                ),
            };
            self.shown = shown;
            Err(self.about(&intent.kind, ReasonCode::NeedsApproval, text))
        });
        if outcome.is_err() {
            (self.next, self.memory, self.moved) = before;
            self.report.changed.truncate(said);
        }
        outcome
    }

    /// Where sessions go that were elsewhere in these routes.
    fn effects(&self, before: &BTreeMap<RegionId, Vec<Share>>) -> BTreeMap<String, String> {
        let mut effects = BTreeMap::new();
        for (primary, shares) in &self.next.routes {
            let were = before.get(primary).map(Vec::as_slice).unwrap_or_default();
            for target in shares.iter().map(|share| &share.region) {
                if total_at(shares, target) > total_at(were, target) {
                    let text = format!("sessions of {primary} go to {target}");
                    effects.insert(text.clone(), text);
                }
            }
            debug_assert!(total(shares) == 100, "routes are whole");
        }
        effects
    }

    fn try_to(&mut self, intent: &Intent) -> Result<Phase, Reason> {
        let what = match &intent.kind {
            IntentKind::Approve { action } => format!("approval of {action}"),
            // Reasons name their region, and automation is one.
            IntentKind::Freeze | IntentKind::Unfreeze => intent.kind.as_str().to_owned(),
            kind if kind.region().is_some() => kind.as_str().to_owned(),
            kind => format!("{} of {}", kind.as_str(), kind.subject()),
        };
        let why = format!("{what} by {}: {}", intent.author, intent.reason);
        match &intent.kind {
            IntentKind::Failover {
                region,
                promote,
                accept_loss,
                force: _,
            } => {
                let state = self.state(&intent.kind, region)?;
                if accept_loss.is_some() && !promote {
                    let text =
                        "sessions move without loss of data; a loss is accepted only together with promoting".into();
                    return Err(self.about(&intent.kind, ReasonCode::BadRequest, text));
                }
                if state == RegionState::Evacuated && !promote {
                    return Ok(self.already(&intent.kind, format!("{region} is evacuated already")));
                }
                let mut phase = Phase::Done;
                if state != RegionState::Evacuated {
                    self.leaves_enough(region)?;
                    self.end_moves(region, Phase::Aborted, &format!("overtaken: {why}"));
                    let routes = self.next.routes.clone();
                    phase = self.evacuate(region, ReasonCode::ForcedFailover, &why)?;
                    self.guests_leave();
                    self.nobody_is_stranded(region, &routes)?;
                }
                if *promote {
                    self.promote(region, *accept_loss)?;
                }
                if let Some(loss) = accept_loss {
                    self.ask_two(TwoPerson::DataLoss, "", risk(*loss));
                }
                if state != RegionState::Evacuated {
                    self.second_evacuation(region);
                }
                Ok(phase)
            }
            IntentKind::Switchover { region, promote } => {
                match self.state(&intent.kind, region)? {
                    RegionState::Serving => {}
                    RegionState::Evacuated => {
                        return Ok(self.already(&intent.kind, format!("{region} is evacuated already")));
                    }
                    moving => {
                        let text = format!("it is {moving}; abort or finish that first");
                        return Err(self.about(&intent.kind, ReasonCode::BadRequest, text));
                    }
                }
                let health = self.health(region);
                let text = format!("it is {health}: {}", self.summary(region));
                let well = matches!(health, Health::Healthy | Health::Degraded);
                if !self.check(ReasonCode::NotHealthy, region, well, text.clone()) {
                    let text = format!(
                        "{text}; a switchover is planned and needs a region that works, `meridian failover {region}` does not"
                    );
                    return Err(self.about(&intent.kind, ReasonCode::NotHealthy, text));
                }
                if let Some(guest) = self.guest_of(region) {
                    let text = format!("sessions of {guest} are there; move them before it is left as planned");
                    return Err(self.about(&intent.kind, ReasonCode::NoHeadroom, text));
                }
                self.leaves_enough(region)?;
                let first = self.input.policy.drain.steps.first().copied().unwrap_or(0);
                self.change(ReasonCode::Switchover, region, why);
                self.drain_to(region, first, "the first part leaves")?;
                self.second_evacuation(region);
                if self.next.regions.get(region).map(|it| it.state) == Some(RegionState::Evacuated) {
                    self.follow_with_data(region, *promote);
                    return Ok(Phase::Done);
                }
                Ok(Phase::Running)
            }
            IntentKind::Restore { region, accept_loss } => {
                match self.state(&intent.kind, region)? {
                    // Its sessions came home before its data could.
                    RegionState::Serving if self.next.writers.contains_key(region) => {
                        self.must_be_healthy(region, &why)?;
                        self.bring_data_home(region, *accept_loss)?;
                        if let Some(loss) = accept_loss {
                            self.ask_two(TwoPerson::DataLoss, "", risk(*loss));
                        }
                        return Ok(Phase::Done);
                    }
                    RegionState::Serving => {
                        return Ok(self.already(&intent.kind, format!("{region} serves all its sessions already")));
                    }
                    // Whose action was lost with the store, or taken back with a plan: this one carries it on.
                    RegionState::Restoring(_) if self.memory.moving(region).is_none() && accept_loss.is_none() => {
                        self.said(
                            &intent.kind,
                            ReasonCode::AlreadySo,
                            format!("{why}; its return goes on"),
                        );
                        return Ok(Phase::Running);
                    }
                    RegionState::Restoring(_) => {
                        return Ok(self.already(&intent.kind, format!("{region} is returning already")));
                    }
                    RegionState::Evacuated | RegionState::Draining(_) => {}
                }
                let mover = self.memory.moving(region).map(|action| action.intent.id.clone());
                self.begin_restore(region, &why, *accept_loss)?;
                if let Some(mover) = mover {
                    self.end_action(&mover, Phase::Aborted, "the region returns");
                }
                if let Some(loss) = accept_loss {
                    self.ask_two(TwoPerson::DataLoss, "", risk(*loss));
                }
                let done = self.next.regions.get(region).map(|it| it.state) == Some(RegionState::Serving);
                Ok(if done { Phase::Done } else { Phase::Running })
            }
            IntentKind::DrainEdge { edge } => {
                let state = self.next.edges.get(edge).copied();
                let others = self
                    .next
                    .edges
                    .iter()
                    .filter(|(id, it)| *id != edge && **it == EdgeState::Serving);
                match (state, others.count()) {
                    (None, _) => {
                        let text = format!("there is no edge {edge}");
                        Err(self.about(&intent.kind, ReasonCode::BadRequest, text))
                    }
                    (_, 0) => {
                        let text = format!("{edge} is the last edge that DNS names");
                        Err(self.about(&intent.kind, ReasonCode::LastEdge, text))
                    }
                    _ => Ok(Phase::Running),
                }
            }
            IntentKind::DrainStack { stack } => {
                let mut regions = self.input.topology.regions.values();
                let Some(region) = regions.find(|region| region.stacks.iter().any(|it| it.address == *stack)) else {
                    let text = format!("there is no stack {stack}");
                    return Err(self.about(&intent.kind, ReasonCode::BadRequest, text));
                };
                let others = region.stacks.iter().map(|it| it.address).filter(|it| it != stack);
                let serving = others.filter(|it| !self.next.drained_stacks.contains(it));
                if serving.count() == 0 {
                    let region = &region.id;
                    let text = format!("{stack} is the last stack of {region} that gets sessions; drain {region}");
                    return Err(self.about(&intent.kind, ReasonCode::LastStack, text));
                }
                Ok(Phase::Running)
            }
            IntentKind::Rollout { version } => self.begin_rollout(intent, version, &why),
            IntentKind::Freeze => {
                let text = format!("{why}; no automatic change until {}", intent.expires_at);
                self.stands(intent, ReasonCode::Frozen, text);
                Ok(Phase::Running)
            }
            IntentKind::Unfreeze => {
                let freezes = self.memory.running(|kind| *kind == IntentKind::Freeze);
                let ids: Vec<String> = freezes.map(|action| action.intent.id.clone()).collect();
                for id in &ids {
                    self.end_action(id, Phase::Aborted, &format!("ended by {why}"));
                }
                let rest = usize::from(self.memory.taken_back.take().is_some());
                let text = match ids.len() + rest {
                    0 => format!("{why}; nothing was frozen"),
                    _ => format!("{why}; automation goes on"),
                };
                self.said(&intent.kind, ReasonCode::Unfrozen, text);
                Ok(Phase::Done)
            }
            IntentKind::Override { rule } => {
                let what = rule.to_string();
                self.ask_two(TwoPerson::Override, &what, "it turns a safety rule off".to_owned());
                let text = format!(
                    "{why}; the rule {rule} is OFF until {}, and ON again from then",
                    intent.expires_at
                );
                self.stands(intent, ReasonCode::RuleOverridden, text);
                Ok(Phase::Running)
            }
            IntentKind::Ack { region } => {
                self.state(&intent.kind, region)?;
                let text = match self.memory.penalties.remove(region) {
                    Some(penalty) => {
                        let value = penalty.value(&self.input.policy.damping, self.now);
                        format!("{why}; its penalty of {value} is lifted")
                    }
                    None => return Ok(self.already(&intent.kind, format!("{region} carries no penalty"))),
                };
                self.said(&intent.kind, ReasonCode::Acknowledged, text);
                Ok(Phase::Done)
            }
            IntentKind::Approve { action } => self.approve(intent, action, &why),
            IntentKind::Abort { action } => self.abort(intent, action, &why),
        }
    }

    fn begin_rollout(&mut self, intent: &Intent, version: &str, why: &str) -> Result<Phase, Reason> {
        if let Some(running) = self.next.rollout.as_ref().filter(|it| it.percent < 100) {
            let text = format!(
                "{} is at {} %; abort or finish it first",
                running.version, running.percent
            );
            return Err(self.about(&intent.kind, ReasonCode::RolloutRunning, text));
        }
        if self.next.rollout.as_ref().is_some_and(|it| it.version == version) {
            return Ok(self.already(&intent.kind, format!("all users are on {version} already")));
        }
        let stacks = self.input.topology.regions.values().flat_map(|region| &region.stacks);
        let versions: BTreeSet<&str> = stacks.map(Stack::version).collect();
        if !versions.contains(version) {
            let known: Vec<&str> = versions.into_iter().collect();
            let text = format!(
                "no stack has version {version}, so nobody could be sent to it; stacks have {}",
                known.join(", ")
            );
            return Err(self.about(&intent.kind, ReasonCode::BadRequest, text));
        }
        let percent = self.input.policy.rollout.steps.first().map_or(100, |step| step.percent);
        self.next.rollout = Some(Rollout {
            version: version.to_owned(),
            percent,
            since: self.now,
            action: intent.id.clone(),
        });
        let text = format!("{why}; {version} goes to {percent} % of users");
        self.said(&intent.kind, ReasonCode::RolloutStep, text);
        Ok(if percent == 100 { Phase::Done } else { Phase::Running })
    }

    fn approve(&mut self, intent: &Intent, id: &str, why: &str) -> Result<Phase, Reason> {
        let waiting = self.memory.actions.get(id);
        let waiting = waiting
            .filter(|action| action.phase == Phase::AwaitingApproval)
            .cloned();
        let Some(waiting) = waiting else {
            let text = format!("no action {id} waits for approval");
            return Err(self.about(&intent.kind, ReasonCode::NoSuchAction, text));
        };
        if person(&waiting.intent.author) == person(&intent.author) {
            let text = format!("{} asked for it; somebody else has to agree", intent.author);
            return Err(self.about(&intent.kind, ReasonCode::SamePerson, text));
        }
        let (approver, shown, mut asked) = (intent.author.clone(), waiting.shown, waiting.intent);
        if asked.kind.stands() {
            // It lasts as long as was asked for, however long it waited.
            asked.expires_at = self.now + asked.expires_at.since(asked.created_at);
        }
        self.said(&asked.kind, ReasonCode::Approved, why.to_owned());
        match self.carry_out(&asked, Some(&shown)) {
            Ok(phase) => {
                self.shown = shown;
                self.record(asked, phase, Some(approver));
            }
            Err(reason) if reason.code == ReasonCode::NeedsApproval => {
                let until = Some(approval_end(&asked));
                if let Some(action) = self.memory.actions.get_mut(id) {
                    action.shown = take(&mut self.shown);
                    action.text.clone_from(&reason.text);
                }
                self.report.waiting.push(Reason { until, ..reason });
            }
            Err(refusal) => {
                let text = refusal.text.clone();
                self.record(asked, Phase::Refused, Some(approver));
                self.end_action(id, Phase::Refused, &text);
                self.report.refused.push(refusal);
            }
        }
        Ok(Phase::Done)
    }

    fn abort(&mut self, intent: &Intent, id: &str, why: &str) -> Result<Phase, Reason> {
        let action = self
            .memory
            .actions
            .get(id)
            .filter(|action| !action.phase.is_final())
            .cloned();
        let Some(action) = action else {
            let text = format!("no action {id} is under way");
            return Err(self.about(&intent.kind, ReasonCode::NoSuchAction, text));
        };
        let text = why.to_owned();
        if action.phase == Phase::Running {
            match &action.intent.kind {
                IntentKind::Failover { region, .. } | IntentKind::Switchover { region, .. } => {
                    let health = self.health(region);
                    if matches!(health, Health::Down | Health::Blind) {
                        let text = format!(
                            "its sessions cannot come back: it is {health}, {}",
                            self.summary(region)
                        );
                        return Err(self.about(&action.intent.kind, ReasonCode::NotHealthy, text));
                    }
                    self.may_come_home(region, None)?;
                    // As fast as it accepts connections; the rest follows like that of any return.
                    self.restore_to(region, 100, &text, None);
                }
                IntentKind::Restore { region, .. } => {
                    self.evacuate(region, ReasonCode::RestoreAborted, &text)?;
                }
                IntentKind::Rollout { version } if self.carries_rollout(id) => {
                    self.next.rollout = None;
                    let text = format!("{text}; {version} is rolled back");
                    self.said(&action.intent.kind, ReasonCode::RolledBack, text);
                }
                _ => {}
            }
        }
        self.end_action(id, Phase::Aborted, &text);
        self.said(&action.intent.kind, ReasonCode::Aborted, text);
        Ok(Phase::Done)
    }

    fn carries_rollout(&self, id: &str) -> bool {
        self.next.rollout.as_ref().is_some_and(|it| it.action == id)
    }

    /// A primary whose sessions are in another region that is to be left.
    fn guest_of(&self, region: &RegionId) -> Option<RegionId> {
        let mut routes = self.next.routes.keys();
        routes
            .find(|guest| *guest != region && self.percent_at(guest, region) > 0)
            .cloned()
    }

    /// Nobody's sessions are sent home because the region that took them is left: an operator can move them first.
    fn nobody_is_stranded(&self, region: &RegionId, before: &BTreeMap<RegionId, Vec<Share>>) -> Result<(), Reason> {
        let mut guests = before.iter().filter(|(guest, _)| *guest != region);
        let stranded = guests.find(|(guest, shares)| self.percent_at(guest, guest) > total_at(shares, guest));
        let Some((guest, _)) = stranded else { return Ok(()) };
        let text = format!("sessions of {guest} are there and find no other place; move them first");
        Err(self.reason(ReasonCode::NoHeadroom, region, text, vec![]))
    }

    /// Leaving a second region is for two people to decide.
    fn second_evacuation(&mut self, region: &RegionId) {
        let others = self.others_away(region);
        let what = match others.as_slice() {
            [] => return,
            [other] => format!("{other} is away already"),
            others => format!("{} are away already", others.join(" and ")),
        };
        self.ask_two(TwoPerson::SecondEvacuation, &others.join(" "), what);
    }

    /// Notes that the request needs a second person, if the policy wants one for that.
    fn ask_two(&mut self, what: TwoPerson, about: &str, because: String) {
        if self.needs_two(what) {
            self.asks
                .insert(format!("{what} {about}").trim_end().to_owned(), because);
        }
    }

    fn state(&self, kind: &IntentKind, region: &RegionId) -> Result<RegionState, Reason> {
        let is_primary = self.input.topology.primaries().any(|it| it.id == *region);
        match self.next.regions.get(region) {
            Some(planned) if is_primary => Ok(planned.state),
            Some(_) => {
                let text = format!("{region} is a backup; only primaries fail over and return");
                Err(self.about(kind, ReasonCode::BadRequest, text))
            }
            None => Err(self.about(kind, ReasonCode::BadRequest, format!("there is no region {region}"))),
        }
    }

    fn already(&mut self, kind: &IntentKind, text: String) -> Phase {
        self.said(kind, ReasonCode::AlreadySo, text);
        Phase::Done
    }

    fn said(&mut self, kind: &IntentKind, code: ReasonCode, text: String) {
        let reason = self.about(kind, code, text);
        self.report.changed.push(reason);
    }

    fn stands(&mut self, intent: &Intent, code: ReasonCode, text: String) {
        let until = Some(intent.expires_at);
        let reason = self.about(&intent.kind, code, text);
        self.report.changed.push(Reason { until, ..reason });
    }

    fn about(&self, kind: &IntentKind, code: ReasonCode, text: String) -> Reason {
        match kind.region() {
            Some(region) => self.reason(code, region, text, vec![]),
            None => Reason {
                code,
                region: None,
                text,
                evidence: vec![],
                until: None,
            },
        }
    }
}

/// A name without what people write differently: who is asked to agree is not somebody else for an extra space.
fn person(name: &str) -> String {
    let words: Vec<String> = name.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}
